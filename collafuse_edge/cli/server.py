"""Commands of the server: train-server, handoff."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collafuse_edge.cli.parts.choices import HandoverDtype, Preset
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.cli.parts.output import (
    JsonOption,
    OutFile,
    OutFolder,
    OverwriteOption,
    PlanOption,
    SamplerChoice,
    emit,
    progress,
)
from collafuse_edge.cli.parts.pace import Pace, warn_if_busy
from collafuse_edge.cli.parts.training_options import (
    Threads,
    TrainingProcess,
    run_training,
    settings_for,
)
from collafuse_edge.training.settings import TrainSettings

if TYPE_CHECKING:
    from collafuse_runtimes.diffusion.plan import SplitPlan
    from collafuse_runtimes.files.handover import Handover


@keeps_options
@takes(
    "training", TrainSettings, steps=20_000, batch_size=64, learning_rate=5e-4, warmup_steps=500,
    mixed_precision=None, channels_last=None,
)  # fmt: skip
@takes("process", TrainingProcess)
def train_server(
    *,
    shards: Annotated[list[Path], typer.Argument(help="Shards written by `upload`; their cut ratios may differ.")],
    out: OutFolder,
    preset: Annotated[Preset, typer.Option(help="Layout of the server's network.")] = "server-base",
    training: Values,
    process: TrainingProcess,
) -> None:
    """Train the server's denoiser on uploaded shards.

    On several GPUs: accelerate launch -m collafuse_edge train-server ...
    """
    from collafuse_edge.training.loop import TrainRun
    from collafuse_edge.training.presets import network_config
    from collafuse_edge.training.tasks import ServerTask

    task = ServerTask.from_files(shards)
    network = network_config(preset, task.plan)
    settings = settings_for(training, process.cpu)
    run = TrainRun(task, network, settings, out, process.checkpoint_minutes, process.resume, process.cpu)
    run_training(run, process)


@dataclass(frozen=True)
class ServerSteps:
    """What a server begins, and how."""

    count: Annotated[int, typer.Option(help="Hand-over tensors to make, one for each image.")]
    server: Annotated[
        Path | None, typer.Option(help="Folder written by train-server or import; not needed at c = 1.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all noise, the server's and the device's.")] = 0
    first_index: Annotated[int, typer.Option(help="Sample index of the first image.")] = 0
    steps: Annotated[int | None, typer.Option(help="Server steps. Default: 20 of dpm++2m, every step of others.")] = (
        None
    )
    way: SamplerChoice = field(default_factory=SamplerChoice)
    dtype: Annotated[HandoverDtype, typer.Option(help="Type of the tensors in the file.")] = "float32"
    batch_size: Annotated[int, typer.Option(help="Images per network call.")] = 32
    device: Annotated[
        str | None, typer.Option(help="torch device: cpu, cuda or cuda:N. Default: a GPU where there is one.")
    ] = None


@keeps_options
@takes("work", ServerSteps)
def handoff(
    *,
    plan: PlanOption,
    out: OutFile,
    work: ServerSteps,
    overwrite: OverwriteOption = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Run the server's steps and write the hand-over tensors."""
    from collafuse_edge.torch_threads import check_threads
    from collafuse_runtimes.disk.found import require_replaceable
    from collafuse_runtimes.files.handover import write_handover
    from collafuse_runtimes.files.plan_file import read_plan

    require_replaceable(out, "collafuse-handover", overwrite=overwrite)
    split_plan = read_plan(plan)
    check_threads(threads)
    handover = _run_server(split_plan, work, threads)
    write_handover(out, handover, work.dtype)
    done = f"timesteps {split_plan.timesteps - 1}..{split_plan.cut}" if split_plan.t_c else "pure noise (c = 1)"
    result = {
        "handover": str(out),
        "count": work.count,
        "cut": split_plan.cut,
        "level": split_plan.handover_level,
        "steps": len(handover.timesteps),
        "bytes": out.stat().st_size,
    }
    emit(
        result,
        as_json,
        f"server    {result['steps']} of {split_plan.t_c} steps, {done}",
        f"wrote     {out}: {work.count} tensors at level {split_plan.handover_level}, {result['bytes']} bytes",
    )


def _run_server(plan: "SplitPlan", work: ServerSteps, threads: int | None) -> "Handover":
    """The hand-over, with a progress bar where the server has steps."""
    from contextlib import nullcontext

    from collafuse_edge.handoff.server_steps import HandoverSettings, make_handover, server_way
    from collafuse_edge.torch_threads import torch_threads

    sampler, timesteps = work.way.named(work.steps)
    calls = len(server_way(plan, work.steps, sampler, timesteps)) * max(-(-work.count // max(work.batch_size, 1)), 0)
    settings = HandoverSettings(
        work.count, work.seed, work.first_index, work.steps, sampler, timesteps, work.batch_size, work.device
    )
    with progress("handoff", calls) as show, torch_threads(threads) if calls else nullcontext():
        pace = Pace("handoff", calls)
        if calls:
            warn_if_busy("handoff")
        return make_handover(plan, work.server, settings, on_step=lambda done: show(done, f"steps {pace.step(done)}"))


COMMANDS = (train_server, handoff)
