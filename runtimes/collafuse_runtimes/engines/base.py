"""What every engine offers, and the one place where its inputs are checked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.checks import check_images, check_labels
from collafuse_runtimes.diffusion.noise import Float32Array, check_seed, noise_batch
from collafuse_runtimes.engine_options import EngineOptions
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.bundle import HeadBundle, RowRange

Labels = npt.NDArray[np.int32]
OnStep = Callable[[int, Float32Array], None]
Self = TypeVar("Self", bound="Engine")


@dataclass(frozen=True)
class Trajectory:
    """One checked ``denoise`` call.

    Attributes:
        x_tc: (B, C, H, W) float32, contiguous; the caller's, not to be written to.
        rows: the steps to run.
        labels: (B,) int32 for conditional heads, else None.
        noise: t -> (B, C, H, W) float32 for stochastic heads, else None.
        on_step: called after step k with (k, x); x may be a buffer that the next step but one overwrites.
        has_history: whether each step takes the x_0 of the one before, zeros at the start.
    """

    x_tc: Float32Array
    rows: RowRange
    labels: Labels | None
    noise: Callable[[int], Float32Array] | None
    on_step: OnStep | None
    has_history: bool


class Engine(ABC):
    """A context manager that runs the steps of one head; constructing is cheap, entering loads it."""

    name: ClassVar[str]
    arithmetic: ClassVar[str | None] = None
    """Precision the engine computes in where that is not the bundle's own."""
    tf32: ClassVar[str | None] = None
    """What keeps float32 from being computed as TF32, whose mantissa has ten bits; None where nothing would."""
    watched_is_slower: ClassVar[bool] = False
    """Whether ``on_step`` costs a copy from the GPU after every step, and another path than without it."""

    def __init__(self, bundle: HeadBundle, options: EngineOptions) -> None:
        self.bundle = bundle
        self.options = options
        self._entered = False

    def __enter__(self: Self) -> Self:
        self._open()
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._close()

    def step(
        self,
        sample: npt.NDArray[Any],
        row: int,
        noise: npt.NDArray[Any] | None = None,
        labels: npt.NDArray[Any] | None = None,
        x_0_old: npt.NDArray[Any] | None = None,
    ) -> Float32Array:
        """One denoising step; ``step_with_x_0`` without its second result."""
        return self.step_with_x_0(sample, row, noise, labels, x_0_old)[0]

    def step_with_x_0(
        self,
        sample: npt.NDArray[Any],
        row: int,
        noise: npt.NDArray[Any] | None = None,
        labels: npt.NDArray[Any] | None = None,
        x_0_old: npt.NDArray[Any] | None = None,
    ) -> tuple[Float32Array, Float32Array | None]:
        """One denoising step.

        Args:
            sample: (B, C, H, W) float16/float32 at the level of the row's timestep.
            row: absolute row of the baked tables (``RowRange.first_row + k``).
            noise: as ``sample``; exactly for stochastic heads.
            labels: (B,) integers; exactly for conditional heads.
            x_0_old: as ``sample``: the second result of the step before, for samplers with history; None, which
                counts as zeros, before the first step.

        Returns:
            (next sample, x_0), both (B, C, H, W) float32, the caller's own; x_0 is for samplers with history, else
            None.

        Raises:
            InputError: names the bad input and what is valid.
        """
        self._require_entered()
        x = self._images("sample", sample)
        z = None
        if not 0 <= row < len(self.bundle.transitions):
            raise InputError(f"row {row} out of range: this head has rows 0 to {len(self.bundle.transitions) - 1}")
        if (noise is not None) != self.bundle.sampler.is_stochastic:
            wanted = "needs a noise tensor" if noise is None else "takes no noise tensor"
            raise InputError(f"sampler {self.bundle.sampler.name} of {self.bundle.path} {wanted}")
        if noise is not None:
            z = self._images("noise", noise)
            if z.shape != x.shape:
                raise InputError(f"noise has shape {z.shape}; valid: the sample's, {x.shape}")
        y, x_0 = self._step(x, row, z, self._labels(labels, len(x)), self._history(x_0_old, x))
        if x_0 is None or not self.bundle.sampler.has_history:
            return self._checked(y, x), None
        return self._checked(y, x), self._checked(x_0, x)

    def denoise(
        self,
        x_tc: npt.NDArray[Any],
        steps: int | None = None,
        *,
        seed: int | None = None,
        sample_indices: Sequence[int] | None = None,
        labels: npt.NDArray[Any] | None = None,
        on_step: OnStep | None = None,
    ) -> Float32Array:
        """The whole trajectory, from the hand-over tensor to the image; it stays where the engine runs between steps.

        Args:
            x_tc: (B, C, H, W) float16/float32 at the plan's hand-over level.
            steps: a baked step count; None takes the bundle's first.
            seed: of the noise, for stochastic heads (ignored by deterministic ones).
            sample_indices: B indices of the samples; default 0..B-1.
            labels: (B,) integers; exactly for conditional heads.
            on_step: called after step k with (k, x), k = 0..steps-1. x is float32 (B, C, H, W) and may be the
                engine's own buffer: copy what you keep.

        Returns:
            (B, C, H, W) float32 in about [-1, 1], the caller's own.

        Raises:
            InputError: names the bad input and what is valid.
        """
        self._require_entered()
        x = self._images("x_tc", x_tc)
        indices = range(len(x)) if sample_indices is None else sample_indices
        if len(indices) != len(x):
            raise InputError(f"{len(indices)} sample indices for {len(x)} samples; give one each")
        rows, checked = self.bundle.row_range(steps), self._labels(labels, len(x))
        noise, has_history = self._noise_source(seed, indices), self.bundle.sampler.has_history
        return self._checked(self._denoise(Trajectory(x, rows, checked, noise, on_step, has_history)), x)

    @property
    def device_ms(self) -> float:
        """Milliseconds the GPU took for the last ``step``, or the last ``denoise`` without ``on_step``, by CUDA events.

        From where its first step begins in the GPU's stream to where its last one ends: copying the input there and
        the result back is outside, whatever the engine does between two steps is inside. Reading it waits for the
        GPU; running does not.

        Raises:
            InputError: the engine does not run on a GPU, is not open, or has run nothing yet.
            EngineUnavailable: CUDA's events cannot be used here; the message says why.
        """
        self._require_entered()
        return self._device_ms()

    @abstractmethod
    def _open(self) -> None:
        """Load what running needs."""

    @abstractmethod
    def _close(self) -> None:
        """Release it."""

    @abstractmethod
    def _step(
        self, x: Float32Array, row: int, z: Float32Array | None, labels: Labels | None, x_0_old: Float32Array | None
    ) -> tuple[Float32Array, Float32Array | None]:
        """``x_0_old`` exactly for samplers with history."""

    @abstractmethod
    def _denoise(self, trajectory: Trajectory) -> Float32Array: ...

    def _device_ms(self) -> float:
        raise InputError(f"engine {self.name} does not run on a GPU; take the time around the call instead")

    def _require_entered(self) -> None:
        if not self._entered:
            raise InputError(f"engine {self.name} is not open; use it inside `with open_engine(...) as engine:`")

    def _images(self, name: str, value: npt.NDArray[Any]) -> Float32Array:
        check_images(name, value, self.bundle.plan.image_shape)
        return np.ascontiguousarray(value, dtype=np.float32)

    def _checked(self, y: Float32Array, x: Float32Array) -> Float32Array:
        """``y`` where it is what a step of ``x`` must be."""
        if y.shape != x.shape or y.dtype != np.float32:
            raise ArtefactError(
                f"the graph of {self.bundle.path} turns {x.shape} into {y.dtype} {y.shape}; valid: float32 of the same "
                "shape; export the head again"
            )
        return y

    def _history(self, x_0_old: npt.NDArray[Any] | None, x: Float32Array) -> Float32Array | None:
        sampler = self.bundle.sampler
        if not sampler.has_history:
            if x_0_old is not None:
                raise InputError(f"sampler {sampler.name} of {self.bundle.path} takes no x_0_old")
            return None
        old = np.zeros_like(x) if x_0_old is None else self._images("x_0_old", x_0_old)
        if old.shape != x.shape:
            raise InputError(f"x_0_old has shape {old.shape}; valid: the sample's, {x.shape}")
        return old

    def _labels(self, labels: npt.NDArray[Any] | None, count: int) -> Labels | None:
        check_labels(labels, count, self.bundle.num_classes)
        return None if labels is None else np.ascontiguousarray(labels, dtype=np.int32)

    def _noise_source(self, seed: int | None, indices: Sequence[int]) -> Callable[[int], Float32Array] | None:
        if not self.bundle.sampler.is_stochastic:
            return None
        if seed is None:
            raise InputError(f"sampler {self.bundle.sampler.name} of {self.bundle.path} draws noise; give a seed")
        check_seed(seed)
        return lambda t: noise_batch(seed, indices, t, self.bundle.plan.image_shape)
