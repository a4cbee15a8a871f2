"""Commands of the server: train-server, handoff."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.choices import HandoverDtype, Preset
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.cli.parts.output import (
    EtaOption,
    JsonOption,
    LevelsOption,
    OutFile,
    OutFolder,
    OverwriteOption,
    PlanOption,
    SamplerOption,
    emit,
    progress,
)
from collafuse_edge.cli.parts.pace import Pace, warn_if_busy
from collafuse_edge.cli.parts.training_options import (
    CheckpointMinutes,
    Cpu,
    Resume,
    Threads,
    run_training,
    settings_for,
)
from collafuse_edge.training.settings import TrainSettings


@keeps_options
@takes(
    "training", TrainSettings, steps=20_000, batch_size=64, learning_rate=5e-4, warmup_steps=500,
    mixed_precision=None, channels_last=None,
)  # fmt: skip
def train_server(
    *,
    shards: Annotated[list[Path], typer.Argument(help="Shards written by `upload`; their cut ratios may differ.")],
    out: OutFolder,
    preset: Annotated[Preset, typer.Option(help="Layout of the server's network.")] = "server-base",
    training: Values,
    checkpoint_minutes: CheckpointMinutes = 5.0,
    resume: Resume = False,
    cpu: Cpu = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Train the server's denoiser on uploaded shards.

    On several GPUs: accelerate launch -m collafuse_edge train-server ...
    """
    from collafuse_edge.training.loop import TrainRun
    from collafuse_edge.training.presets import network_config
    from collafuse_edge.training.tasks import ServerTask

    task = ServerTask.from_files(shards)
    network = network_config(preset, task.plan)
    run_training(
        TrainRun(task, network, settings_for(training, cpu), out, checkpoint_minutes, resume, cpu), threads, as_json
    )


@keeps_options
def handoff(
    plan: PlanOption,
    out: OutFile,
    count: Annotated[int, typer.Option(help="Hand-over tensors to make, one for each image.")],
    server: Annotated[
        Path | None, typer.Option(help="Folder written by train-server or import; not needed at c = 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all noise, the server's and the device's.")] = 0,
    first_index: Annotated[int, typer.Option(help="Sample index of the first image.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Server steps. Default: 20 of dpm++2m, every step of others.")
    ] = None,
    sampler: SamplerOption = "dpm++2m",
    eta: EtaOption = 0.0,
    levels: LevelsOption = None,
    dtype: Annotated[HandoverDtype, typer.Option(help="Type of the tensors in the file.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Images per network call.")] = 32,
    device: Annotated[
        str | None, typer.Option(help="torch device: cpu, cuda or cuda:N. Default: a GPU where there is one.")
    ] = None,
    overwrite: OverwriteOption = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Run the server's steps and write the hand-over tensors."""
    from contextlib import nullcontext

    from collafuse_edge.cli.parts.parsing import way_named
    from collafuse_edge.handoff.server_steps import make_handover, server_way
    from collafuse_edge.torch_threads import check_threads, torch_threads
    from collafuse_runtimes.disk.found import require_replaceable
    from collafuse_runtimes.files.handover import write_handover
    from collafuse_runtimes.files.plan_file import read_plan

    require_replaceable(out, "collafuse-handover", overwrite=overwrite)
    split_plan = read_plan(plan)
    check_threads(threads)
    way, timesteps = way_named(sampler, eta, levels, steps)
    calls = len(server_way(split_plan, steps, way, timesteps)) * max(-(-count // max(batch_size, 1)), 0)
    with progress("handoff", calls) as show, torch_threads(threads) if calls else nullcontext():
        pace = Pace("handoff", calls)
        if calls:
            warn_if_busy("handoff")
        handover = make_handover(
            split_plan,
            server,
            count=count,
            seed=seed,
            first_index=first_index,
            steps=steps,
            sampler=way,
            timesteps=timesteps,
            batch_size=batch_size,
            device=device,
            on_step=lambda done: show(done, f"steps {pace.step(done)}"),
        )
    write_handover(out, handover, dtype)
    done = f"timesteps {split_plan.timesteps - 1}..{split_plan.cut}" if split_plan.t_c else "pure noise (c = 1)"
    result = {
        "handover": str(out),
        "count": count,
        "cut": split_plan.cut,
        "level": split_plan.handover_level,
        "steps": len(handover.timesteps),
        "bytes": out.stat().st_size,
    }
    emit(
        result,
        as_json,
        f"server    {result['steps']} of {split_plan.t_c} steps, {done}",
        f"wrote     {out}: {count} tensors at level {split_plan.handover_level}, {result['bytes']} bytes",
    )


COMMANDS = (train_server, handoff)
