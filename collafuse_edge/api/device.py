"""What runs anywhere, on the base install: plans, bundles, hand-overs, engines, verify, infer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.engines import DEFAULTS, Engine, EngineOptions
from collafuse_runtimes.engines import open_engine as _open_engine
from collafuse_runtimes.files import bundle as _bundle
from collafuse_runtimes.files import handover as _handover
from collafuse_runtimes.files import plan_file as _plan_file
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.verify import VerifyReport

StrPath = str | os.PathLike[str]


def read_plan(path: StrPath) -> SplitPlan:
    """The plan of a plan file.

    Raises:
        ArtefactError: missing, damaged, or of a version that this release does not read.
    """
    return _plan_file.read_plan(Path(path))


def write_plan(path: StrPath, plan: SplitPlan) -> None:
    """Write a plan file; a plan file that is there is replaced.

    Raises:
        ArtefactError: it cannot be written, or something else is there.
    """
    _plan_file.write_plan(Path(path), plan)


def read_bundle(path: StrPath) -> HeadBundle:
    """A head bundle, every file of it checked against its digest.

    Raises:
        ArtefactError: missing, damaged, or of a version that this release does not read.
    """
    return _bundle.read_bundle(Path(path))


def read_handover(path: StrPath) -> Handover:
    """A hand-over file: ``x_tc`` is (N, C, H, W) float32 at the plan's hand-over level.

    Raises:
        ArtefactError: missing, damaged, or its tensor does not fit its plan.
    """
    return _handover.read_handover(Path(path))


def write_handover(path: StrPath, handover: Handover, dtype: str = "float32") -> None:
    """Write a hand-over file; a hand-over file that is there is replaced.

    Args:
        handover: ``x_tc`` is (N, C, H, W) float16 or float32, N at least 1, at the plan's hand-over level.
        dtype: "float32", or "float16", which halves the file and rounds each value once.

    Raises:
        InputError: a field or ``dtype`` is out of range, or the tensor does not fit the plan or is not finite.
        ArtefactError: it cannot be written, or something else is there.
    """
    _handover.write_handover(Path(path), handover, dtype)


def open_engine(bundle: HeadBundle | StrPath, engine: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> Engine:
    """An engine for a head, to be used as ``with open_engine(head) as engine: engine.denoise(x_tc, steps)``.

    Args:
        bundle: a head bundle, or where it lies.
        engine: "ort-cpu", "ort-cuda", "openvino", "tensorrt" ...; `collafuse-edge doctor` lists them.
        options: threads (1 to 1024), spinning, gpu (index of the GPU, from 0), cache, trust_bundle, checkpoint: e.g.
            ``EngineOptions(threads=2)``. Each engine takes some of them.

    Raises:
        EngineUnavailable: the engine cannot run here; the message says why.
        InputError: an option that this engine does not take, or a precision that it does not run.
        ArtefactError: the bundle is damaged.
    """
    return _open_engine(_read(bundle), engine, options)


def verify(bundle: HeadBundle | StrPath, engine: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> VerifyReport:
    """Whether an engine computes what the trained network computed: its golden trajectories, step by step.

    ``report.passed`` says it; ``report.require_passed(name)`` raises CheckFailed with the figures.

    Raises:
        EngineUnavailable, InputError, ArtefactError: as ``open_engine``.
    """
    from collafuse_runtimes.verify import verify_bundle

    return verify_bundle(_read(bundle), engine, options)


def infer(
    bundle: HeadBundle | StrPath,
    handover: Handover | StrPath,
    out: StrPath | None = None,
    *,
    engine: str = "ort-cpu",
    options: EngineOptions = DEFAULTS,
    steps: int | None = None,
    labels: npt.NDArray[Any] | None = None,
    batch_size: int = 8,
    overwrite: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Float32Array:
    """Finish hand-over tensors: (N, C, H, W) float32 images in [-1, 1].

    Args:
        handover: N hand-over tensors of the head's plan, or their file.
        out: a new folder for the images as PNG and npz; None writes nothing.
        engine: as ``open_engine``.
        options: as ``open_engine``.
        steps: a step count that is baked into the head; None is its first.
        labels: (N,) integers, 0 to num_classes - 1, exactly for conditional heads.
        batch_size: images at once, at least 1; changes speed and memory, not the images.
        overwrite: whether ``out`` may be a folder that an earlier call wrote.
        on_step: called with (steps done, steps in all).

    Raises:
        PlanMismatch: head and tensors were made for different plans.
        InputError, EngineUnavailable, ArtefactError: as ``open_engine``; ``out`` holds something.
        CheckFailed: the engine does not compute the head's network, or an image holds NaN or Inf.
    """
    from collafuse_runtimes.infer import InferSettings, finish_tensors, run_inference

    head, settings = _read(bundle), InferSettings(engine, options, steps, batch_size)
    tensors = handover if isinstance(handover, Handover) else read_handover(handover)
    if out is None:
        return finish_tensors(head, tensors, settings, labels=labels, on_step=on_step)
    where = Path(out)
    done = run_inference(head, tensors, where, settings, labels=labels, on_step=on_step, overwrite=overwrite)
    return done.images


def _read(bundle: HeadBundle | StrPath) -> HeadBundle:
    return bundle if isinstance(bundle, HeadBundle) else read_bundle(bundle)
