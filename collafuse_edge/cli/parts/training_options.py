"""Options and the run both training commands share."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collafuse_edge.cli.parts.fields import Values
from collafuse_edge.cli.parts.output import JsonOption, emit, progress
from collafuse_edge.cli.parts.pace import Pace, warn_if_busy
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from collafuse_edge.training.loop import TrainRun
    from collafuse_edge.training.settings import TrainSettings
    from collafuse_runtimes.files.checkpoint import Checkpoint

Threads = Annotated[int | None, typer.Option(help="CPU threads of torch. Default: its own, or as few as a quota pays.")]


@dataclass(frozen=True)
class TrainingProcess:
    """How a training command runs, apart from what it trains."""

    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between saved states.")] = 5.0
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run exactly where its state was saved.")
    ] = False
    cpu: Annotated[bool, typer.Option("--cpu/--no-cpu", help="Leave a GPU unused.")] = False
    threads: Threads = None
    as_json: JsonOption = False


def settings_for(values: Values, cpu: bool, **suited: Any) -> "TrainSettings":
    """Settings from options; what they leave open becomes what suits, of the device where that is all that counts."""
    from collafuse_edge.training.settings import TrainSettings, device_defaults

    precision, channels_last = device_defaults(cpu)
    suited |= {"mixed_precision": precision, "channels_last": channels_last}
    return TrainSettings(**suited | {name: value for name, value in values.items() if value is not None})


def say(lines: list[str]) -> None:
    """Print the lines now, and once."""
    while lines:
        print(lines.pop(0), flush=True)


def run_training(run: "TrainRun", process: TrainingProcess, notes: tuple[str, ...] = ()) -> None:
    """Train with a progress bar and print what came out; of several processes only the first prints.

    Args:
        notes: what was done to the data, shown as soon as the first step has been made.

    Raises:
        InputError: an option is out of range, or as ``train``.
        CheckFailed: as ``train``.
    """
    from collafuse_edge.torch_threads import torch_threads

    if not run.checkpoint_minutes >= 0:
        raise InputError(f"--checkpoint-minutes {run.checkpoint_minutes} out of range: must be at least 0")
    is_first = os.environ.get("RANK", "0") == "0"  # set by `accelerate launch`
    unsaid = [f"note      {line}" for line in notes if is_first and not process.as_json]
    with torch_threads(process.threads):
        checkpoint = _train(run, unsaid, is_first)
    if not is_first:
        return
    losses = checkpoint.training["losses"]
    result = {
        "checkpoint": str(run.out),
        "steps": checkpoint.training["steps"],
        "loss": losses[-1][1],
        "seconds": checkpoint.training["seconds"],
        "weights_sha256": checkpoint.weights_sha256,
        **({"notes": notes} if run.task.role == "client" else {}),
    }
    say(unsaid)
    emit(result, process.as_json, *_describe_training(run, checkpoint))


def _train(run: "TrainRun", unsaid: list[str], is_first: bool) -> "Checkpoint":
    from collafuse_edge.training.loop import train
    from collafuse_edge.training.resume import Progress

    title = f"train {run.task.role}"
    with progress(title, run.settings.steps) as show:
        pace = Pace(title, run.settings.steps)

        def on_step(state: Progress, images_per_second: float) -> None:
            say(unsaid)
            loss = f"{state.losses[-1][1]:.4f}" if state.losses else "-"
            show(state.step, f"loss {loss} {pace.step(state.step)} {images_per_second:.3g} images/s")

        if is_first:
            warn_if_busy(title)
        return train(run, on_step)


def _describe_training(run: "TrainRun", checkpoint: "Checkpoint") -> list[str]:
    from collafuse_edge.training.presets import describe_cost

    done = checkpoint.training
    losses = done["losses"]
    return [
        f"network   {describe_cost(run.network, run.task.plan)}",
        f"trained   {done['steps']} steps on {done['images']} images in {done['seconds']:.0f} s, "
        f"loss {losses[0][1]:.4f} -> {losses[-1][1]:.4f}",
        f"wrote     {run.out}",
    ]
