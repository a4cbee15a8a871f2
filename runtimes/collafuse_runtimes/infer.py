"""Finish hand-over tensors on this device: x_{t_c} in, images out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.checks import check_labels
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import require_same_plan
from collafuse_runtimes.disk.atomic import new_directory
from collafuse_runtimes.disk.found import require_replaceable
from collafuse_runtimes.engines import DEFAULTS, Engine, EngineOptions, open_engine
from collafuse_runtimes.errors import CheckFailed, InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.files.image_record import RECORD_FILE, write_record
from collafuse_runtimes.files.images import write_contact_sheet, write_png
from collafuse_runtimes.verify import require_golden_start

ARRAY_FILE, SHEET_FILE = "images.npz", "contact_sheet.png"
NO_NETWORK = "fake"
"""The engine that runs no head: there is nothing to hold against the golden input."""
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class InferResult:
    """What ``run_inference`` made.

    Attributes:
        images: (N, C, H, W) float32.
        out_dir: the folder.
        files: names in it: one PNG per sample, then contact_sheet.png, images.npz (key "images")
            and images.json (what made them).
        steps: denoising steps run.
        engine: its name.
    """

    images: Float32Array
    out_dir: Path
    files: tuple[str, ...]
    steps: int
    engine: str


@dataclass(frozen=True)
class InferSettings:
    """How hand-over tensors are finished.

    Attributes:
        engine: its name.
        options: what it is told.
        steps: a baked step count; None takes the bundle's first.
        batch_size: samples per engine call, at least 1; changes speed and memory, not the images.
    """

    engine: str = "ort-cpu"
    options: EngineOptions = DEFAULTS
    steps: int | None = None
    batch_size: int = 8


USUAL = InferSettings()


def run_inference(
    bundle: HeadBundle,
    handover: Handover,
    out_dir: Path,
    settings: InferSettings = USUAL,
    *,
    labels: npt.NDArray[Any] | None = None,
    on_step: OnStep | None = None,
    overwrite: bool = False,
) -> InferResult:
    """Denoise every tensor of a hand-over file and write the images as one new folder.

    Args:
        out_dir: must not exist or be empty; with ``overwrite`` it may be a folder that an earlier call wrote.
        labels: (N,) class indices, exactly for conditional heads.
        on_step: called with (steps done, steps in all) over all batches, after every step, or after every batch where
            the engine would be slower for it.

    Raises:
        PlanMismatch: head and hand-over were made for different plans.
        InputError: an option is unusable, or ``out_dir`` holds something.
        EngineUnavailable: as ``open_engine``.
        CheckFailed: the graph's first step is not the network's (``require_golden_start``), or an image holds NaN or
            Inf; nothing is written.
        ArtefactError: ``out_dir`` cannot be written.
    """
    replaceable = partial(require_replaceable, kind="images", overwrite=overwrite)
    replaceable(out_dir)
    with new_directory(out_dir, check=replaceable) as aside:
        images = finish_tensors(bundle, handover, settings, labels=labels, on_step=on_step)
        taken = bundle.row_range(settings.steps).steps
        files = (*_write_images(aside, images), RECORD_FILE)
        write_record(aside, bundle, handover, taken, settings.engine, aside / ARRAY_FILE)
    return InferResult(images, out_dir, files, taken, settings.engine)


def finish_tensors(
    bundle: HeadBundle,
    handover: Handover,
    settings: InferSettings = USUAL,
    *,
    labels: npt.NDArray[Any] | None = None,
    on_step: OnStep | None = None,
) -> Float32Array:
    """As ``run_inference``, with nothing written: the images, (N, C, H, W) float32 in [-1, 1].

    Raises:
        PlanMismatch, InputError, EngineUnavailable, CheckFailed: as ``run_inference``.
    """
    require_same_plan(bundle.plan, f"head {bundle.path}", handover.plan, "the hand-over file")
    if settings.batch_size < 1:
        raise InputError(f"batch size {settings.batch_size} out of range: must be at least 1")
    check_labels(labels, len(handover), bundle.num_classes)
    rows = bundle.row_range(settings.steps)
    with open_engine(bundle, settings.engine, settings.options) as engine:
        if settings.engine != NO_NETWORK:
            require_golden_start(engine, rows)
        images = _denoise_in_batches(engine, handover, rows.steps, labels, settings.batch_size, on_step)
    _require_finite(images, settings.engine)
    return images


def _denoise_in_batches(
    engine: Engine,
    handover: Handover,
    steps: int,
    labels: npt.NDArray[Any] | None,
    batch_size: int,
    on_step: OnStep | None,
) -> Float32Array:
    starts = range(0, len(handover), batch_size)
    parts = []
    for batch, start in enumerate(starts):
        stop = min(start + batch_size, len(handover))

        def report(k: int, _: object = None, batch: int = batch) -> None:
            if on_step is not None:
                on_step(batch * steps + k + 1, len(starts) * steps)

        watched = on_step is not None and not engine.watched_is_slower
        parts.append(
            engine.denoise(
                handover.x_tc[start:stop],
                steps,
                seed=handover.seed,
                sample_indices=range(handover.first_index + start, handover.first_index + stop),
                labels=None if labels is None else labels[start:stop],
                on_step=report if watched else None,
            )
        )
        if not watched:
            report(steps - 1)
    return np.concatenate(parts)


def _require_finite(images: Float32Array, engine_name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if bad.size:
        raise CheckFailed(
            f"engine {engine_name} returned NaN or Inf in {bad.size} of {len(images)} images (first: {bad[0]}); "
            "nothing was written: run `collafuse-edge verify` on this head"
        )


def _write_images(folder: Path, images: Float32Array) -> tuple[str, ...]:
    names = [f"{i:05d}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        write_png(folder / name, image)
    write_contact_sheet(folder / SHEET_FILE, images)
    np.savez(folder / ARRAY_FILE, images=images)
    return (*names, SHEET_FILE, ARRAY_FILE)
