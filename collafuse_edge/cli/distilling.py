"""The command distill: a trained head to one made for very few steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collafuse_edge.cli.exporting import HANDOVER_SUFFIX, JudgeOption
from collafuse_edge.cli.parts.data_options import SELECTION_OPTIONS, DataChoice, chooses_images, note_lines
from collafuse_edge.cli.parts.output import JsonOption, OutFolder, emit, progress, refuse_options
from collafuse_edge.cli.parts.pace import Pace, warn_if_busy
from collafuse_edge.cli.parts.training_options import (
    BatchSize,
    CheckpointMinutes,
    Cpu,
    EmaDecay,
    LearningRate,
    Resume,
    Seed,
    Threads,
    WarmupSteps,
    settings_from,
)

if TYPE_CHECKING:
    from collafuse_edge.training.distill import Distillation
    from collafuse_edge.training.settings import TrainSettings

TENSORS = 2048
"""Least number of tensors that images are noised to; each image gets as many draws as that takes."""


@chooses_images
def distill(
    context: typer.Context,
    teacher: Annotated[Path, typer.Argument(help="Folder written by train-client.")],
    data: Annotated[
        DataChoice,
        typer.Option("--data", help="Hand-over tensors, or images.", metavar="X.tc.safetensors|DATA"),
    ],
    out: OutFolder,
    steps: Annotated[int, typer.Option(help="Denoising steps the new head is made for: 1, 2 or 4.")] = 2,
    train_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1500,
    judge_on: JudgeOption = None,
    teacher_steps: Annotated[int, typer.Option(help="Steps the teacher takes, by dpm++2m on karras levels.")] = 10,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 3e-4,
    warmup_steps: WarmupSteps = 20,
    ema_decay: EmaDecay = 0.995,
    seed: Seed = 0,
    checkpoint_minutes: CheckpointMinutes = 5.0,
    resume: Resume = False,
    cpu: Cpu = False,
    threads: Threads = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a trained head into one that needs 1, 2 or 4 steps, and no others; nothing leaves this machine.

    Fails where the new head is no nearer to the teacher's images than the teacher itself is in as few steps.
    """
    from dataclasses import asdict

    from collafuse_edge.torch_threads import torch_threads
    from collafuse_edge.training.distill import describe_distilled
    from collafuse_edge.training.distill import distill as run
    from collafuse_edge.training.resume import Progress

    if data.source.endswith(HANDOVER_SUFFIX):
        refuse_options(context, tuple(SELECTION_OPTIONS), "hand-over tensors are taken as they are")
    settings = settings_from(
        train_steps, batch_size, 1, learning_rate, "cosine", warmup_steps, ema_decay, 1.0, seed, None, None, False, cpu
    )
    work, notes = _work(teacher, data, judge_on, steps, settings, out, teacher_steps, checkpoint_minutes, resume, cpu)
    with torch_threads(threads), progress("distill", train_steps) as show:
        pace, passed = Pace("distill", train_steps), 0

        def on_step(state: Progress, images_per_second: float) -> None:
            nonlocal passed
            passed += 1
            show(passed, f"{pace.step(passed)} {images_per_second:.3g} images/s")

        warn_if_busy("distill")
        checkpoint, report = run(work, on_step)
    result = {"checkpoint": str(out), **asdict(report), "weights_sha256": checkpoint.weights_sha256}
    assert checkpoint.distilled is not None
    emit(
        result,
        as_json,
        *notes,
        f"made for  {checkpoint.distilled.text}",
        *describe_distilled(report),
        f"wrote     {out}",
    )


def _work(
    teacher: Path,
    data: DataChoice,
    judge_on: Path | None,
    steps: int,
    settings: "TrainSettings",
    out: Path,
    teacher_steps: int,
    checkpoint_minutes: float,
    resume: bool,
    cpu: bool,
) -> "tuple[Distillation, list[str]]":
    """(what to distil, lines about the data)."""
    import numpy as np

    from collafuse_edge.training.distill import Distillation
    from collafuse_export.calibration import labels_for
    from collafuse_export.golden import handover_of
    from collafuse_runtimes.checks import check_labels
    from collafuse_runtimes.diffusion.plan import require_same_plan
    from collafuse_runtimes.disk.home import expand
    from collafuse_runtimes.files.checkpoint import read_checkpoint
    from collafuse_runtimes.files.handover import read_handover

    head = read_checkpoint(teacher, "client")
    classes, labels, notes = head.network.num_classes, None, list[str]()
    if data.source.endswith(HANDOVER_SUFFIX):
        handover = read_handover(expand(data.source))
        require_same_plan(head.plan, str(teacher), handover.plan, data.source)
        x_n, distinct, source = handover.x_tc, len(handover), "hand-over"
        labels = labels_for(range(distinct), classes)
    else:
        images = data.load(head.plan.image_shape)
        distinct, source, notes = len(images.images), "images", note_lines(images)
        order = np.arange(-(-TENSORS // distinct) * distinct) % distinct
        x_n = handover_of(images.images[order], head.plan)
        if classes is not None:
            check_labels(images.labels, distinct, classes)
            assert images.labels is not None
            labels = images.labels[order].astype(np.int32)
    server = None if judge_on is None else read_handover(judge_on)
    if server is not None:
        require_same_plan(head.plan, str(teacher), server.plan, str(judge_on))
    elif source == "images":
        notes.append("server    not judged on a server's tensors: give some with --judge-on")
    work = Distillation(
        head, x_n, steps, settings, out, source, distinct, labels, None if server is None else server.x_tc,
        teacher_steps, checkpoint_minutes, resume, cpu,
    )  # fmt: skip
    return work, notes


COMMANDS = (distill,)
