"""Checkpoint of a head -> head bundle, published only when its graph computes what the torch network computes."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from collafuse_export.fitting import SOLVER, fit_head
from collafuse_export.low_precision import OnProgress, check_calibration, write_low_precision
from collafuse_export.precision import PrecisionReport
from collafuse_runtimes import __version__
from collafuse_runtimes.diffusion.distilled import Distilled
from collafuse_runtimes.diffusion.levels import GIVEN
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.disk.atomic import new_directory, write_bytes
from collafuse_runtimes.disk.found import peek, replaces_own, require_replaceable
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.extras import missing
from collafuse_runtimes.files.bundle import (
    FORMAT,
    MANIFEST,
    MODEL,
    HeadBundle,
    NetworkInfo,
    RowRange,
    check_graph,
    make_row_ranges,
    read_bundle,
    row_ranges_at,
    write_manifest,
)
from collafuse_runtimes.files.bundle_manifest import OPSETS, PRECISIONS
from collafuse_runtimes.files.checkpoint import Checkpoint, load_network, read_checkpoint, require_trained_for
from collafuse_runtimes.files.golden import write_golden
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.networks.network import network_cost
from collafuse_runtimes.verify import verify_engine

if TYPE_CHECKING:
    import torch

TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy")


DEFAULT_SAMPLER = Sampler(SOLVER, levels="karras")
DEFAULT_STEPS, DEFAULT_FITTED_STEPS = (8, 5), (3,)
"""What ``DEFAULT_SAMPLER`` takes unless told: benchmarks/results/front.md."""


def default_step_counts(plan: SplitPlan, sampler: Sampler, is_fitted: bool) -> tuple[int, ...]:
    """Few steps for the sampler made for them, every step for the others; never more than a plan leaves the device."""
    if sampler.name != SOLVER:
        return (plan.cut,)
    few = DEFAULT_FITTED_STEPS if is_fitted else DEFAULT_STEPS
    return tuple(dict.fromkeys(min(steps, plan.cut) for steps in few))


@dataclass(frozen=True)
class ExportSettings:
    """What is baked into a bundle.

    Attributes:
        cut_ratio: of the plan to serve, at most the checkpoint's: the head was trained for all timesteps below its own
            cut. None is the checkpoint's.
        step_counts: denoising steps to bake in, the first is the default; None is ``default_step_counts``.
        sampler: baked in; None is ``DEFAULT_SAMPLER``.
        timesteps: to bake in place of ``step_counts``, from the hand-over level down; ``sampler.levels`` is then GIVEN.
        precision: of the network, one of PRECISIONS; int8 in the flavour of the engines it is for.
        opset: 20, or 17 for older libraries (JetPack 5).
        calibration: hand-over tensors of the bundle's plan; int8 is fitted to some of them and judged on others, fp16
            judged on all (on the golden vectors where there are none).

    Raises:
        InputError: an unknown precision or opset.
    """

    cut_ratio: float | None = None
    step_counts: Sequence[int] | None = None
    sampler: Sampler | None = None
    timesteps: Sequence[int] | None = None
    precision: str = "fp32"
    opset: int = 20
    calibration: Handover | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; valid: {', '.join(PRECISIONS)}")
        if self.opset not in OPSETS:
            raise InputError(f"unknown opset {self.opset}; valid: {', '.join(map(str, OPSETS))}")


@dataclass(frozen=True)
class Fit:
    """What few steps are fitted to (``fitting.fit_head``); nothing where ``to`` is None.

    Attributes:
        to: hand-over tensors of the bundle's plan, or images.
        teacher_steps: that the fit is to; None is every timestep.
        judge_on: hand-over tensors of the bundle's plan that judge the fit too.

    Raises:
        InputError: there is nothing to fit to, and something else is given.
    """

    to: Handover | Float32Array | None = None
    teacher_steps: int | None = None
    judge_on: Handover | None = None

    def __post_init__(self) -> None:
        if self.to is None and self.teacher_steps is not None:
            steps = self.teacher_steps
            raise InputError(f"--teacher-steps {steps} means nothing without --fit; give --fit, or leave it out")
        if self.to is None and self.judge_on is not None:
            raise InputError("--judge-on means nothing without --fit; give --fit, or leave it out")


DEFAULTS, NO_FIT = ExportSettings(), Fit()


def export_head(
    checkpoint_dir: Path,
    out: Path,
    settings: ExportSettings = DEFAULTS,
    fit: Fit = NO_FIT,
    *,
    force: bool = False,
    overwrite: bool = False,
) -> HeadBundle:
    """``export_with_report``, the bundle alone."""
    return export_with_report(checkpoint_dir, out, settings, fit, force=force, overwrite=overwrite)[0]


def export_with_report(
    checkpoint_dir: Path,
    out: Path,
    settings: ExportSettings = DEFAULTS,
    fit: Fit = NO_FIT,
    *,
    force: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[HeadBundle, PrecisionReport | None]:
    """Export a client checkpoint and check the result on the CPU, step by step, against the torch network.

    Args:
        checkpoint_dir: written by ``train-client``; its moving-average weights are exported.
        out: the bundle folder; an older bundle of the same head there is replaced in one step.
        force: whether to publish a precision that is slower than float32 or too far from it. The gate of the golden
            trajectories cannot be forced.
        overwrite: whether to replace a bundle of another head too.
        on_progress: called with (what, done, in all) during the long parts.

    Returns:
        The bundle, read back from ``out``, and the figures that a lower precision was judged by (None for fp32).

    Raises:
        InputError: an option is unusable, the plan leaves the device no step, or ``out`` holds something else.
        EngineUnavailable: a library of the [export] extra is not installed.
        ArtefactError: the checkpoint is damaged, or ``out`` cannot be written.
        ExportFailed: torch cannot turn this network into a graph.
        PlanMismatch: the cut is larger than the head was trained for, or the calibration tensors, or those to fit to,
            are of another plan.
        CheckFailed: the graph differs from the network by more than its precision allows, a lower precision is not
            worth it, or fitted steps are no better than the solver's; nothing is written.
    """
    _require_tools()
    from collafuse_export.step_graph import one_thread

    checkpoint = read_checkpoint(checkpoint_dir, role="client")
    way = _way(checkpoint, settings, fit)
    _require_replaceable(out, checkpoint.weights_sha256, overwrite)
    with new_directory(out, check=replaces_own(FORMAT)) as aside, one_thread():
        bundle, comparison = _write_graph(
            _fitted(aside, checkpoint, way, settings, fit), checkpoint, settings, on_progress
        )
        with open_engine(bundle, "ort-cpu") as engine:
            report = verify_engine(engine)
        report.require_passed(f"the {settings.precision} graph of {checkpoint_dir}")
        if comparison is not None and not force:
            comparison.require_worth_it()
        check_graph(bundle)
        write_manifest(replace(bundle, parity=report.to_dict()))
    return read_bundle(out), comparison


class _Way(NamedTuple):
    """The steps that are baked."""

    plan: SplitPlan
    sampler: Sampler
    row_ranges: tuple[RowRange, ...]


def _way(checkpoint: Checkpoint, settings: ExportSettings, fit: Fit) -> _Way:
    """What is asked for, or what suits.

    Raises:
        InputError, PlanMismatch: the head does not serve it.
    """
    sampler, timesteps = settings.sampler, settings.timesteps
    if checkpoint.distilled is not None:
        sampler, timesteps = _of_distilled(checkpoint.path, checkpoint.distilled, settings, fit)
    sampler, plan = sampler or DEFAULT_SAMPLER, checkpoint.plan
    if settings.cut_ratio is not None:
        plan = plan.with_cut_ratio(settings.cut_ratio)
        require_trained_for(checkpoint, plan, "the export")
    if timesteps is not None:
        return _Way(plan, replace(sampler, levels=GIVEN), row_ranges_at(plan, [timesteps]))
    counts = settings.step_counts
    if counts is None:
        counts = default_step_counts(plan, sampler, fit.to is not None)
    return _Way(plan, sampler, make_row_ranges(plan, counts, sampler.levels))


def _fitted(folder: Path, checkpoint: Checkpoint, way: _Way, settings: ExportSettings, fit: Fit) -> HeadBundle:
    """The bundle without its graph, fitted where that is asked for; its golden trajectories are in the folder."""
    from collafuse_export.golden import make_golden

    network = load_network(checkpoint)
    bundle = HeadBundle(
        path=folder,
        plan=way.plan,
        sampler=way.sampler,
        row_ranges=way.row_ranges,
        precision=settings.precision,
        opset=settings.opset,
        num_classes=checkpoint.network.num_classes,
        network=_describe(network, checkpoint, way.plan.image_shape),
        parity={},
        tools={"collafuse-edge": __version__, **{name: _version(name) for name in TOOLS}},
        class_names=checkpoint.class_names,
        distilled=checkpoint.distilled,
    )
    check_calibration(settings.precision, settings.calibration, bundle)
    if fit.to is not None:
        bundle = fit_head(bundle, partial(predict_function, network), fit.to, fit.teacher_steps, fit.judge_on)
    write_golden(folder, make_golden(network, bundle))
    return bundle


def _write_graph(
    bundle: HeadBundle, checkpoint: Checkpoint, settings: ExportSettings, on_progress: OnProgress
) -> tuple[HeadBundle, PrecisionReport | None]:
    """Write model.onnx; (bundle, figures of a lower precision)."""
    from collafuse_export.onnx_graph import to_onnx
    from collafuse_export.step_graph import StepGraph

    def graph(precision: str) -> bytes:
        fresh = load_network(checkpoint)  # the step graph alters its network
        step_graph = StepGraph(fresh, bundle.plan, bundle.transitions, bundle.table, precision)
        return to_onnx(step_graph, bundle.inputs, bundle.outputs, bundle.opset, len(bundle.transitions))

    if bundle.precision != "fp32":
        return write_low_precision(bundle, graph, settings.calibration, on_progress)
    write_bytes(bundle.path / MODEL, graph("fp32"))
    return bundle, None


def _of_distilled(
    path: Path, distilled: Distilled, settings: ExportSettings, fit: Fit
) -> tuple[Sampler, tuple[int, ...]]:
    """The only way a distilled head may be run.

    Raises:
        InputError: another was asked for.
    """
    names = ("cut_ratio", "step_counts", "sampler", "timesteps")
    asked = {**{name: getattr(settings, name) for name in names}, "fit_to": fit.to}
    if other := [name for name, value in asked.items() if value is not None]:
        raise InputError(
            f"{path} was distilled for {distilled.text}: leave out {', '.join(other)}, or export the head it "
            "was distilled from"
        )
    return Sampler(), distilled.timesteps


def _require_tools() -> None:
    for name in TOOLS:
        if importlib.util.find_spec(name) is None:
            raise missing(name, "export")


def _require_replaceable(out: Path, weights_sha256: str, overwrite: bool) -> None:
    """A bundle of the same weights can be made again at any time; one of others takes ``overwrite``."""
    try:
        is_same = peek(out / MANIFEST)["network"]["weights_sha256"] == weights_sha256
    except (ArtefactError, OSError, ValueError, LookupError, TypeError, RecursionError):
        is_same = False
    remedy = "it is another head's: choose another --out, or replace it with --overwrite"
    require_replaceable(out, FORMAT, overwrite=overwrite or is_same, remedy=remedy)


def _version(module: str) -> str:
    """Of an installed module; onnxruntime comes under several names of its distribution."""
    return str(importlib.import_module(module).__version__)


def _describe(network: "torch.nn.Module", checkpoint: Checkpoint, image_shape: tuple[int, int, int]) -> NetworkInfo:
    parameters, flops = network_cost(network, image_shape)
    return NetworkInfo(checkpoint.network.preset, parameters, flops, checkpoint.weights_sha256)
