"""One denoising step as a torch module: network, baked tables and sampler arithmetic, ready to be traced."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, Transition
from collafuse_runtimes.diffusion.samplers import StepCoefficients, apply_step
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

NETWORK_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: its sums, and so the bundle's bytes, depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class CurrentRow:
    """The row of the step being computed, past the network, which would copy it once per image of the batch."""

    step: Tensor  # (1,) int32


class RowTable(nn.Module):
    """Stands in for a module whose output depends on the timestep alone: -> (1, E), the current row."""

    def __init__(self, table: Tensor, current: CurrentRow) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.current = current

    def forward(self, _: Tensor) -> Tensor:
        """Look the row up."""
        return torch.index_select(self.get_buffer("table"), 0, self.current.step)


class StepGraph(nn.Module):
    """(sample, step[, noise][, label][, x_0_old]) -> next_sample[, x_0], all steps of all baked step counts.

    Owns ``network`` and alters it: time embeddings become a table with one row per baked step.

    Raises:
        InputError: the network's time or class embedding is of a kind that cannot be baked.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: SplitPlan,
        transitions: "Sequence[Transition]",
        table: Float32Array,
        precision: str,
    ) -> None:
        super().__init__()
        self.current = CurrentRow()
        self.network = bake_time_embeddings(network, [t for t, _ in transitions], self.current)
        self.network_dtype = NETWORK_DTYPES[precision]
        self.to(self.network_dtype)
        self.value_range = plan.value_range
        self.register_buffer("coefficients", torch.from_numpy(table))

    def forward(
        self,
        sample: Tensor,
        step: Tensor,
        noise: Tensor | None = None,
        label: Tensor | None = None,
        x_0_old: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One step; ``noise`` for stochastic samplers, ``label`` for conditional heads, ``x_0_old`` for samplers with
        history, which get x_0 too."""
        self.current.step = step
        out = self.network(sample.to(self.network_dtype), step, class_labels=label, return_dict=False)[0].float()
        row = torch.index_select(self.get_buffer("coefficients"), 0, step)  # (1, 7)
        coefficients = StepCoefficients(*row.unbind(1))
        next_sample, x_0 = apply_step(sample, out, coefficients, self.value_range, noise, x_0_old)
        return next_sample if x_0_old is None else (next_sample, x_0)


def bake_time_embeddings(network: nn.Module, timesteps: "Sequence[int]", current: CurrentRow) -> nn.Module:
    """Replace the network's time embedding by its values at ``timesteps``; row k belongs to timesteps[k].

    Raises:
        InputError: the network is not a UNet2DModel with positional or learned time embedding and, at most, a class
            table.
    """
    config = getattr(network, "config", {})
    kind, classes = config.get("time_embedding_type"), config.get("class_embed_type")
    if kind not in ("positional", "learned") or classes is not None:
        raise InputError(
            f"cannot export a network with time_embedding_type {kind!r}, class_embed_type {classes!r}; "
            "valid: a UNet2DModel with 'positional' or 'learned' and None"
        )
    with torch.inference_mode():
        embeddings = network.get_submodule("time_embedding")(
            network.get_submodule("time_proj")(torch.tensor(timesteps, dtype=torch.int64)).to(torch.float32)
        )
    network.add_module("time_proj", RowTable(embeddings.clone(), current))
    network.add_module("time_embedding", nn.Identity())
    return network
