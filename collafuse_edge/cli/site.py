"""Commands of a site that owns images: init, upload, train-client."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from collafuse_edge.cli.parts.choices import Preset
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
    TrainingProcess,
    run_training,
    settings_for,
)
from collafuse_edge.settings import PlanSettings, UploadSettings
from collafuse_edge.training.settings import TrainSettings


@keeps_options
@takes("settings", PlanSettings)
def init(
    *,
    size: Annotated[str, typer.Option(help="Image side, or HEIGHTxWIDTH.")],
    out: OutFile = Path("plan.json"),
    settings: PlanSettings,
    as_json: JsonOption = False,
) -> None:
    """Write a plan file."""
    from collafuse_edge.init import describe_plan, init_plan

    plan = init_plan(out, size, settings)
    more = {
        "cut": plan.cut,
        "noise_level": plan.noise_level,
        "start_alpha_bar": plan.alpha_bar_at(plan.timesteps - 1),
        "fingerprint": plan.fingerprint,
    }
    emit({**plan.to_dict(), **more}, as_json, *describe_plan(plan, out))


@keeps_options
@chooses_images
@takes("settings", UploadSettings)
def upload(
    *,
    data: DataChoice,
    plan: PlanOption,
    out: OutFile,
    settings: UploadSettings,
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
    done = upload_images(out, images.images, split_plan, settings)
    result = {
        "shard": str(out),
        "count": len(done.shard),
        "protocol": settings.protocol,
        "discloses_x_0": settings.protocol == "paper",
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
@takes("process", TrainingProcess)
def train_client(
    *,
    data: DataChoice,
    plan: PlanOption,
    out: OutFolder,
    preset: Annotated[Preset, typer.Option(help="Layout of the network, with a learning rate.")] = "small",
    conditional: Annotated[bool, typer.Option(help="Condition the head on the labels of the data.")] = False,
    training: Values,
    process: TrainingProcess,
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
    settings = settings_for(training, process.cpu, learning_rate=PRESETS[preset].learning_rate)
    class_names = images.class_names if conditional else None
    minutes, resume, cpu = process.checkpoint_minutes, process.resume, process.cpu
    run_training(TrainRun(task, network, settings, out, minutes, resume, cpu, class_names), process, images.notes)


COMMANDS = (init, upload, train_client)
