"""What each side learns: three tasks with one surface, a loss over a list of image indices."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from collafuse_edge.training.losses import (
    exact_server_pair,
    exact_server_v_target,
    mixture_weights,
    v_of_triple,
    v_target,
)
from collafuse_edge.upload.shard import Shard, read_shard
from collafuse_runtimes.checks import check_images, check_labels
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.diffusion.schedule import diffuse
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One batch, ready for the network.

    Attributes:
        x_t: (B, C, H, W) float32.
        t: (B,) int64.
        target: (B, C, H, W) float32.
        scale: (B, 1, 1, 1) float32, multiplies the network's output; None for 1.
        weight: (B, 1, 1, 1) float32, multiplies the squared error; None for 1.
        labels: (B,) int64, conditional heads only.
    """

    x_t: "torch.Tensor"
    t: "torch.Tensor"
    target: "torch.Tensor"
    scale: "torch.Tensor | None" = None
    weight: "torch.Tensor | None" = None
    labels: "torch.Tensor | None" = None

    def rows(self, chosen: slice) -> "Batch":
        """Some images of the batch."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {name: None if value is None else value[chosen] for name, value in tensors.items()}
        return Batch(**some)

    def loss(self, predicted: "torch.Tensor") -> "torch.Tensor":
        """Mean of weight * (scale * predicted - target)^2, a float32 scalar.

        Args:
            predicted: (B, C, H, W), the network's output in any precision.
        """
        import torch

        output = predicted.float() if self.scale is None else self.scale * predicted.float()
        if self.weight is None:
            return torch.nn.functional.mse_loss(output, self.target)
        return (self.weight * torch.nn.functional.mse_loss(output, self.target, reduction="none")).mean()


class Task(Protocol):
    """A training problem."""

    role: str
    plan: SplitPlan

    def __len__(self) -> int:
        """Number of images."""

    def digest(self) -> str:
        """sha256 of the training data, so that a resumed run cannot continue on other data."""

    def batch(self, indices: IntArray, generator: "torch.Generator") -> Batch:
        """Draw noise and timesteps for these images; all randomness comes from ``generator``."""


class ClientTask:
    """Prediction of epsilon (Ho et al. 2020, eq. 14) or v, as the plan says, on t < cut from the client's own images.

    Raises:
        InputError: the plan leaves the device no step, or labels and ``num_classes`` do not fit.
    """

    role = "client"

    def __init__(
        self, plan: SplitPlan, x_0: Float32Array, labels: IntArray | None = None, num_classes: int | None = None
    ) -> None:
        if plan.cut == 0:
            raise InputError(
                f"cut_ratio {plan.cut_ratio} leaves the device no step, so there is no head; choose a larger one"
            )
        check_images("training images", x_0, plan.image_shape)
        check_labels(labels, len(x_0), num_classes)
        self.plan, self.x_0, self.labels = plan, x_0, labels

    def __len__(self) -> int:
        return len(self.x_0)

    def digest(self) -> str:
        """sha256 over images and labels."""
        return digest_of([self.x_0] if self.labels is None else [self.x_0, self.labels])

    def batch(self, indices: IntArray, generator: "torch.Generator") -> Batch:
        """t uniform in 0..cut-1."""
        import torch

        device = generator.device
        x_0 = torch.from_numpy(self.x_0[indices]).to(device)
        t = self._timesteps(len(indices), generator)
        epsilon = torch.randn(x_0.shape, generator=generator, device=device)
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices]).to(device)
        a = _alpha_bar(self.plan, t)
        target = epsilon if self.plan.prediction_type == "epsilon" else v_target(x_0, epsilon, a).float()
        return Batch(diffuse(x_0, epsilon, a).float(), t, target, labels=labels)

    def _timesteps(self, count: int, generator: "torch.Generator") -> "torch.Tensor":
        import torch

        return torch.randint(0, self.plan.cut, (count,), generator=generator, device=generator.device)


class ServerTask:
    """Both server protocols, from shards that may be cut at different c.

    `upload`: the exact loss of ``losses.exact_server_pair``, t uniform in cut..T-1 of the image's own shard; for v its
    form in ``losses.exact_server_v_target``.
    `paper`: plain prediction of epsilon or v on the uploaded triples.
    Where the cuts differ, ``losses.mixture_weights`` make the minimiser that of the mixture of all images.

    Raises:
        InputError: no shard, or shards of both protocols.
        PlanMismatch: shards disagree on anything but the cut ratio.
    """

    role = "server"

    def __init__(self, shards: Sequence[Shard], names: Sequence[str]) -> None:
        if not shards:
            raise InputError("no shard given; valid: one or more files written by `collafuse-edge upload`")
        for shard, name in zip(shards[1:], names[1:], strict=True):
            require_same_plan(shards[0].plan, names[0], shard.plan, name, except_cut=True)
        protocols = sorted({shard.protocol for shard in shards})
        if len(protocols) > 1:
            raise InputError(f"shards mix the protocols {protocols}; train on shards of one protocol")
        self.protocol = protocols[0]
        self.plan = min((shard.plan for shard in shards), key=lambda plan: plan.cut)
        self.images = shards[0].images if len(shards) == 1 else np.concatenate([shard.images for shard in shards])
        self._cut = np.concatenate([np.full(len(shard), shard.plan.cut) for shard in shards])
        self._epsilon = [shard.epsilon for shard in shards if shard.epsilon is not None]
        self._t = [shard.t for shard in shards if shard.t is not None]
        if self.protocol == "paper":
            self._epsilon, self._t = [np.concatenate(self._epsilon)], [np.concatenate(self._t)]
        cuts, self._weight_row = np.unique(self._cut, return_inverse=True)
        self._weights = mixture_weights(self.plan.alpha_bar, cuts.tolist(), exact=self.protocol == "upload")

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> "ServerTask":
        """Read the shards."""
        return cls([read_shard(path) for path in paths], [str(path) for path in paths])

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """sha256 over all shards' tensors."""
        return digest_of([self.images, self._cut, *self._epsilon, *self._t])

    def batch(self, indices: IntArray, generator: "torch.Generator") -> Batch:
        """See the class."""
        import torch

        images = torch.from_numpy(self.images[indices]).to(generator.device)
        if self.protocol == "paper":
            t = torch.from_numpy(self._t[0][indices]).to(generator.device)
            target = torch.from_numpy(self._epsilon[0][indices]).to(generator.device)
            if self.plan.server_prediction_type == "v":
                target = v_of_triple(images, target, _alpha_bar(self.plan, t)).float()
            return Batch(images, t, target, weight=self._weight(indices, t))
        cut = torch.from_numpy(self._cut[indices]).to(generator.device)
        uniform = torch.rand(len(indices), generator=generator, device=generator.device)
        t = cut + (uniform * (self.plan.timesteps - cut)).long().clamp(max=self.plan.timesteps - 1 - cut)
        eta = torch.randn(images.shape, generator=generator, device=generator.device)
        levels = _alpha_bar(self.plan, cut - 1), _alpha_bar(self.plan, t)
        x_t, r_t = exact_server_pair(images, eta, *levels)
        is_v = self.plan.server_prediction_type == "v"
        target = exact_server_v_target(images, eta, *levels).float() if is_v else eta
        return Batch(x_t.float(), t, target, scale=r_t.float(), weight=self._weight(indices, t))

    def _weight(self, indices: IntArray, t: "torch.Tensor") -> "torch.Tensor | None":
        if len(self._weights) == 1:
            return None
        import torch

        row = torch.from_numpy(self._weight_row[indices]).to(t.device)
        table = torch.from_numpy(self._weights).to(t.device)
        return table[row, t][:, None, None, None].float()


def _alpha_bar(plan: SplitPlan, t: "torch.Tensor") -> "torch.Tensor":
    """(B, 1, 1, 1) float64: near alpha_bar = 1 the differences of the losses need the digits."""
    import torch

    table = torch.from_numpy(plan.alpha_bar.copy())
    return table.to(t.device)[t][:, None, None, None]


def digest_of(arrays: Sequence[npt.NDArray[np.generic]]) -> str:
    """sha256 over the bytes of arrays, hex."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array).data.cast("B"))
    return state.hexdigest()


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> IntArray:
    """Images of one optimizer step: consecutive slices of one fresh permutation per epoch, so every image is seen
    once per epoch whatever the batch size.

    Returns:
        (batch_size,) int64 in 0..count-1.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(positions // count):
        key = np.array([seed, epoch], np.uint64)  # numpy takes a list of large and small numbers through float64
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        here = positions // count == epoch
        indices[here] = order[positions[here] % count]
    return indices


def step_seed(seed: int, step: int) -> int:
    """Seed of the noise and timesteps of one optimizer step."""
    return int.from_bytes(hashlib.sha256(f"collafuse step {seed} {step}".encode()).digest()[:8], "little", signed=True)
