"""Commands of a site that owns images: init, upload, train-client."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.choices import Prediction, Preset, Protocol, Schedule, ShardDtype
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.cli.parts.output import (
    JsonOption,
    OutFile,
    OutFolder,
    OverwriteOption,
    PlanOption,
    emit,
)
from collafuse_edge.cli.parts.training_options import (
    CheckpointMinutes,
    Cpu,
    Resume,
    Threads,
    run_training,
    settings_for,
)
from collafuse_edge.training.settings import TrainSettings


def init(
    size: Annotated[str, typer.Option(help="Image side, or HEIGHTxWIDTH.")],
    out: OutFile = Path("plan.json"),
    channels: Annotated[int, typer.Option(help="1 (grey) or 3 (colour).")] = 1,
    timesteps: Annotated[int, typer.Option(help="T, the number of timesteps, 2 to 1000.")] = 100,
    schedule: Annotated[Schedule, typer.Option(help="How noise grows over the timesteps.")] = "cosine",
    cut_ratio: Annotated[float, typer.Option(help="Cut ratio c: the device's share of the timesteps, 0 to 1.")] = 0.2,
    prediction: Annotated[
        Prediction | None, typer.Option(help="What heads predict. Default: epsilon, v at c = 1.")
    ] = None,
    server_prediction: Annotated[Prediction | None, typer.Option(help="What the server predicts. Default: v.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a plan file."""
    from collafuse_edge.init import describe_plan, init_plan

    plan = init_plan(out, size, channels, timesteps, schedule, cut_ratio, prediction, server_prediction)
    more = {
        "cut": plan.cut,
        "noise_level": plan.noise_level,
        "start_alpha_bar": plan.alpha_bar_at(plan.timesteps - 1),
        "fingerprint": plan.fingerprint,
    }
    emit({**plan.to_dict(), **more}, as_json, *describe_plan(plan, out))


@keeps_options
@chooses_images
def upload(
    data: DataChoice,
    plan: PlanOption,
    out: OutFile,
    protocol: Annotated[Protocol, typer.Option(help="upload sends x_n only; paper discloses x_0.")] = "upload",
    key: Annotated[Path | None, typer.Option(help="Secret noise key; default in your configuration folder.")] = None,
    draws: Annotated[int, typer.Option(help="paper only: noisy copies per image.")] = 8,
    seed: Annotated[int, typer.Option(help="paper only: seed of the noise.")] = 0,
    dtype: Annotated[ShardDtype, typer.Option(help="Type of the shard's numbers.")] = "float16",
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Refuse (exit code 1) what is warned of.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Noise private images to the hand-over level and write the shard for the server."""
    from collafuse_edge.upload import describe_upload, upload_images
    from collafuse_runtimes.disk.found import require_replaceable
    from collafuse_runtimes.files.plan_file import read_plan

    require_replaceable(out, "collafuse-shard", overwrite=overwrite)
    split_plan = read_plan(plan)
    images = data.load(split_plan.image_shape)
    done = upload_images(
        out, images.images, split_plan, protocol, key=key, draws=draws, seed=seed, dtype=dtype, strict=strict
    )
    result = {
        "shard": str(out),
        "count": len(done.shard),
        "protocol": protocol,
        "discloses_x_0": protocol == "paper",
        "level": split_plan.handover_level,
        "key": str(done.key),
        "key_created": done.key_created,
        "ledger": str(done.ledger),
        "warnings": [asdict(finding) for finding in done.warnings],
        "notes": [
            *({"kind": "data", "count": 0, "text": line} for line in images.notes),
            *(asdict(finding) for finding in done.notes),
        ],
    }
    emit(result, as_json, *note_lines(images), *describe_upload(done, out))


@keeps_options
@chooses_images
@takes("training", TrainSettings, learning_rate=None, mixed_precision=None, channels_last=None)
def train_client(
    *,
    data: DataChoice,
    plan: PlanOption,
    out: OutFolder,
    preset: Annotated[Preset, typer.Option(help="Layout of the network, with a learning rate.")] = "small",
    conditional: Annotated[bool, typer.Option(help="Condition the head on the labels of the data.")] = False,
    training: Values,
    checkpoint_minutes: CheckpointMinutes = 5.0,
    resume: Resume = False,
    cpu: Cpu = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Train a head on the site's own images; nothing leaves this machine."""
    from collafuse_edge.training.client import client_task
    from collafuse_edge.training.loop import TrainRun
    from collafuse_edge.training.presets import PRESETS, network_config
    from collafuse_runtimes.files.plan_file import read_plan

    split_plan = read_plan(plan)
    images = data.load(split_plan.image_shape)
    task, num_classes = client_task(split_plan, images, conditional)
    network = network_config(preset, split_plan, num_classes)
    settings = settings_for(training, cpu, learning_rate=PRESETS[preset].learning_rate)
    class_names = images.class_names if conditional else None
    run = TrainRun(task, network, settings, out, checkpoint_minutes, resume, cpu, class_names)
    run_training(run, threads, as_json, images.notes)


COMMANDS = (init, upload, train_client)
