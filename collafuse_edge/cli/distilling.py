"""The command distill: a trained head to one made for very few steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from collafuse_edge.cli.exporting import HANDOVER_SUFFIX, JudgeOption
from collafuse_edge.cli.parts.config import keeps_options
from collafuse_edge.cli.parts.data_options import SELECTION_OPTIONS, DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.fields import Values, takes
from collafuse_edge.cli.parts.output import OutFolder, emit, progress, refuse_options
from collafuse_edge.cli.parts.pace import Pace, warn_if_busy
from collafuse_edge.cli.parts.training_options import TrainingProcess, settings_for
from collafuse_edge.training.settings import TrainSettings

if TYPE_CHECKING:
    from collafuse_edge.training.distill import Distillation, DistillReport
    from collafuse_runtimes.diffusion.noise import Float32Array
    from collafuse_runtimes.engines.base import Labels
    from collafuse_runtimes.files.checkpoint import Checkpoint

NOT_JUDGED = "server    not judged on a server's tensors: give some with --judge-on"
TENSORS = 2048
"""Least number of tensors that images are noised to; each image gets as many draws as that takes."""


@dataclass(frozen=True)
class Student:
    """The head to make, and by what."""

    steps: Annotated[int, typer.Option(help="Denoising steps the new head is made for: 1, 2 or 4.")] = 2
    train_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1500
    judge_on: JudgeOption = None
    teacher_steps: Annotated[int, typer.Option(help="Steps the teacher takes, by dpm++2m on karras levels.")] = 10


@keeps_options
@chooses_images
@takes("student", Student)
@takes(
    "training", TrainSettings, only=("batch_size", "learning_rate", "warmup_steps", "ema_decay", "seed"),
    learning_rate=3e-4, warmup_steps=20, ema_decay=0.995,
)  # fmt: skip
@takes("process", TrainingProcess)
def distill(
    *,
    context: typer.Context,
    teacher: Annotated[Path, typer.Argument(help="Folder written by train-client or import.")],
    data: Annotated[
        DataChoice,
        typer.Option(
            "--data", help="Hand-over tensors, or images (as for upload --data).", metavar="X.tc.safetensors|DATA"
        ),
    ],
    out: OutFolder,
    student: Student,
    training: Values,
    process: TrainingProcess,
) -> None:
    """Turn a trained head into one that needs 1, 2 or 4 steps, and no others; nothing leaves this machine.

    Fails where the new head is no nearer to the teacher's images than the teacher itself is in as few steps.
    """
    from dataclasses import asdict

    from collafuse_edge.torch_threads import torch_threads
    from collafuse_edge.training.distill import Distillation, describe_distilled
    from collafuse_runtimes.files.checkpoint import read_checkpoint

    if data.source.endswith(HANDOVER_SUFFIX):
        refuse_options(context, tuple(SELECTION_OPTIONS), "hand-over tensors are taken as they are")
    settings = settings_for({"steps": student.train_steps, **training}, process.cpu)
    head = read_checkpoint(teacher, "client")
    tensors = _tensors(head, teacher, data)
    work = Distillation(
        head, tensors.x_n, student.steps, settings, out, tensors.source, tensors.distinct, tensors.labels,
        _server_tensors(student.judge_on, head, teacher), student.teacher_steps, process.checkpoint_minutes,
        process.resume, process.cpu,
    )  # fmt: skip
    with torch_threads(process.threads):
        checkpoint, report = _distill(work)
    assert checkpoint.distilled is not None
    unjudged = student.judge_on is None and tensors.source == "images"
    emit(
        {"checkpoint": str(out), **asdict(report), "weights_sha256": checkpoint.weights_sha256},
        process.as_json,
        *tensors.notes,
        *([NOT_JUDGED] if unjudged else []),
        f"made for  {checkpoint.distilled.text}",
        *describe_distilled(report),
        f"wrote     {out}",
    )


def _distill(work: "Distillation") -> "tuple[Checkpoint, DistillReport]":
    """With a progress bar."""
    from collafuse_edge.training.distill import distill
    from collafuse_edge.training.resume import Progress

    total = work.settings.steps
    with progress("distill", total) as show:
        pace, passed = Pace("distill", total), 0

        def on_step(state: Progress, images_per_second: float) -> None:
            nonlocal passed
            passed += 1
            show(passed, f"{pace.step(passed)} {images_per_second:.3g} images/s")

        warn_if_busy("distill")
        return distill(work, on_step)


class _Tensors(NamedTuple):
    """What is distilled on, as in ``Distillation``, and lines about it."""

    x_n: "Float32Array"
    source: str
    distinct: int
    labels: "Labels | None"
    notes: list[str]


def _tensors(head: "Checkpoint", teacher: Path, data: DataChoice) -> _Tensors:
    """Hand-over tensors as they are, or images noised as those are."""
    import numpy as np

    from collafuse_export.calibration import labels_for
    from collafuse_export.golden import handover_of
    from collafuse_runtimes.checks import check_labels
    from collafuse_runtimes.diffusion.plan import require_same_plan
    from collafuse_runtimes.disk.home import expand
    from collafuse_runtimes.files.handover import read_handover

    classes = head.network.num_classes
    if data.source.endswith(HANDOVER_SUFFIX):
        handover = read_handover(expand(data.source))
        require_same_plan(head.plan, str(teacher), handover.plan, data.source)
        return _Tensors(handover.x_tc, "hand-over", len(handover), labels_for(range(len(handover)), classes), [])
    images = data.load(head.plan.image_shape)
    distinct, labels = len(images.images), None
    order = np.arange(-(-TENSORS // distinct) * distinct) % distinct
    x_n = handover_of(images.images[order], head.plan)
    if classes is not None:
        check_labels(images.labels, distinct, classes)
        assert images.labels is not None
        labels = images.labels[order].astype(np.int32)
    return _Tensors(x_n, "images", distinct, labels, note_lines(images))


def _server_tensors(judge_on: Path | None, head: "Checkpoint", teacher: Path) -> "Float32Array | None":
    from collafuse_runtimes.diffusion.plan import require_same_plan
    from collafuse_runtimes.files.handover import read_handover

    if judge_on is None:
        return None
    server = read_handover(judge_on)
    require_same_plan(head.plan, str(teacher), server.plan, str(judge_on))
    return server.x_tc


COMMANDS = (distill,)
