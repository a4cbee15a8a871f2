"""The attacker's denoiser: a head that somebody trained, or one trained on the spot on half of the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from collafuse_benchmarks.disclosure.measure import NetworkGuess
from collafuse_edge.training.loop import train
from collafuse_edge.training.presets import PRESETS, network_config
from collafuse_edge.training.run import TrainRun
from collafuse_edge.training.settings import TrainSettings
from collafuse_edge.training.tasks import ClientTask
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import CLEAN, SplitPlan, require_same_plan
from collafuse_runtimes.diffusion.samplers import Sampler, apply_step, step_coefficients
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.checkpoint import Checkpoint, load_network, read_checkpoint

if TYPE_CHECKING:
    import torch

PRESET = "edge"
OnStep = Callable[[int, int], None]
"""(done, in all)."""


@dataclass(frozen=True)
class Attacker:
    """A way to guess, the highest level it was trained for, and who it is in words."""

    guess: NetworkGuess | None
    level: int
    why_none: str | None
    text: str


def nobody() -> Attacker:
    """Filters alone."""
    return Attacker(None, CLEAN, "no attacker's network was asked for", "linear filters from half of the images")


def of_checkpoint(path: Path, plan: SplitPlan) -> Attacker:
    """A head, the site's own or another site's.

    Raises:
        ArtefactError: no client checkpoint, or damaged.
        PlanMismatch: its plan differs in more than the cut.
        InputError: it is class-conditional: an attacker does not know the class.
    """
    checkpoint = read_checkpoint(path, "client")
    require_same_plan(plan, "the plan", checkpoint.plan, str(path), except_cut=True)
    if checkpoint.network.num_classes is not None:
        raise InputError(f"{path} is class-conditional and needs labels; give a head without classes")
    text = f"the checkpoint {path.name} ({checkpoint.network.preset}), filters from half of the images"
    return Attacker(_guesses(checkpoint), checkpoint.plan.cut - 1, None, text)


def trained_here(
    plan: SplitPlan, references: Float32Array, levels: Sequence[int], steps: int, seed: int, on_step: OnStep
) -> Attacker:
    """A small network trained to denoise ``references`` at the levels that are attacked, and forgotten afterwards.

    It predicts v, whatever the plan's heads do: at noisy levels that is the better guess of x_0.
    """
    trained_plan = replace(
        plan, prediction_type="v", server_prediction_type="v", cut_ratio=(max(levels) + 1) / plan.timesteps
    )
    task = _DenoisingTask(trained_plan, references, levels)
    network = network_config(PRESET, trained_plan)
    settings = TrainSettings(
        steps=steps, warmup_steps=min(steps // 5, 100), learning_rate=PRESETS[PRESET].learning_rate, seed=seed
    )
    with scratch_folder("attacker") as folder:
        run = TrainRun(task, network, settings, folder / "head", cpu=True)
        checkpoint = train(run, lambda progress, _: on_step(progress.step, steps))
        guess = _guesses(checkpoint)
    text = f"a network ({PRESET}) trained here for {steps} steps on {len(references)} of the images, filters from them"
    return Attacker(guess, max(levels), None, text)


class _DenoisingTask(ClientTask):
    """As a head's, at some levels alone."""

    def __init__(self, plan: SplitPlan, x_0: Float32Array, levels: Sequence[int]) -> None:
        super().__init__(plan, x_0)
        self._levels = sorted(set(levels))

    def _timesteps(self, count: int, generator: "torch.Generator") -> "torch.Tensor":
        import torch

        chosen = torch.randint(0, len(self._levels), (count,), generator=generator, device=generator.device)
        return torch.tensor(self._levels, device=generator.device)[chosen]


def _guesses(checkpoint: Checkpoint) -> NetworkGuess:
    """x_0 by one call, the mean of what x_t may have come from."""
    predict, plan = predict_function(load_network(checkpoint)), checkpoint.plan

    def guess(x_t: Float32Array, t: int) -> Float32Array:
        row = step_coefficients(plan.alpha_bar_at(t), 1.0, Sampler("ddim"), plan.prediction_at(t))
        return apply_step(x_t, predict(x_t, t), row, plan.value_range)[1]

    return guess
