"""Checkpoint of a head -> head bundle, published only when its graph computes what the torch network computes."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    check_graph,
    make_row_ranges,
    read_bundle,
    row_ranges_at,
    write_manifest,
)
from collafuse_runtimes.files.bundle_manifest import OPSETS, PRECISIONS
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint, require_trained_for
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


def export_head(checkpoint_dir: Path, out: Path, **options: Any) -> HeadBundle:
    """``export_with_report``, the bundle alone."""
    return export_with_report(checkpoint_dir, out, **options)[0]


def export_with_report(
    checkpoint_dir: Path,
    out: Path,
    *,
    cut_ratio: float | None = None,
    step_counts: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    timesteps: Sequence[int] | None = None,
    precision: str = "fp32",
    opset: int = 20,
    calibration: Handover | None = None,
    fit_to: Handover | Float32Array | None = None,
    teacher_steps: int | None = None,
    judge_on: Handover | None = None,
    force: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[HeadBundle, PrecisionReport | None]:
    """Export a client checkpoint and check the result on the CPU, step by step, against the torch network.

    Args:
        checkpoint_dir: written by ``train-client``; its moving-average weights are exported.
        out: the bundle folder; an older bundle of the same head there is replaced in one step.
        cut_ratio: of the plan to serve, at most the checkpoint's: the head was trained for all timesteps below its own
            cut. None is the checkpoint's.
        step_counts: denoising steps to bake in, the first is the default; None is ``default_step_counts``.
        sampler: baked in; default ``DEFAULT_SAMPLER``.
        timesteps: to bake in place of ``step_counts``, from the hand-over level down; ``sampler.levels`` is then GIVEN.
        precision: of the network, one of PRECISIONS; int8 in the flavour of the engines it is for.
        opset: 20, or 17 for older libraries (JetPack 5).
        calibration: hand-over tensors of the bundle's plan; int8 is fitted to some of them and judged on others, fp16
            judged on all (on the golden vectors where there are none).
        fit_to: hand-over tensors of the bundle's plan, or images, that the steps are fitted to (``fitting.fit_head``).
        teacher_steps: that the fit is to; None is every timestep.
        judge_on: hand-over tensors of the bundle's plan that judge the fit too.
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
    _check_options(precision, opset)
    if fit_to is None and teacher_steps is not None:
        raise InputError(f"--teacher-steps {teacher_steps} means nothing without --fit; give --fit, or leave it out")
    if fit_to is None and judge_on is not None:
        raise InputError("--judge-on means nothing without --fit; give --fit, or leave it out")
    from collafuse_export.golden import make_golden
    from collafuse_export.onnx_graph import to_onnx
    from collafuse_export.step_graph import StepGraph, one_thread

    checkpoint = read_checkpoint(checkpoint_dir, role="client")
    if checkpoint.distilled is not None:
        asked = (cut_ratio, step_counts, sampler, timesteps, fit_to)
        sampler, timesteps = _of_distilled(checkpoint_dir, checkpoint.distilled, asked)
    sampler = sampler or DEFAULT_SAMPLER
    plan, num_classes = checkpoint.plan, checkpoint.network.num_classes
    if cut_ratio is not None:
        plan = plan.with_cut_ratio(cut_ratio)
        require_trained_for(checkpoint, plan, "the export")
    if timesteps is None:
        counts = default_step_counts(plan, sampler, fit_to is not None) if step_counts is None else step_counts
        row_ranges = make_row_ranges(plan, counts, sampler.levels)
    else:
        row_ranges, sampler = row_ranges_at(plan, [timesteps]), replace(sampler, levels=GIVEN)
    _require_replaceable(out, checkpoint.weights_sha256, overwrite)
    with new_directory(out, check=replaces_own(FORMAT)) as aside, one_thread():
        network = load_network(checkpoint)
        bundle = HeadBundle(
            path=aside,
            plan=plan,
            sampler=sampler,
            row_ranges=row_ranges,
            precision=precision,
            opset=opset,
            num_classes=num_classes,
            network=_describe(network, checkpoint.network.preset, checkpoint.weights_sha256, plan.image_shape),
            parity={},
            tools={"collafuse-edge": __version__, **{name: _version(name) for name in TOOLS}},
            class_names=checkpoint.class_names,
            distilled=checkpoint.distilled,
        )
        check_calibration(precision, calibration, bundle)
        if fit_to is not None:
            bundle = fit_head(bundle, partial(predict_function, network), fit_to, teacher_steps, judge_on)
        write_golden(aside, make_golden(network, bundle))

        def graph(network_precision: str) -> bytes:
            fresh = load_network(checkpoint)  # the step graph alters its network
            step_graph = StepGraph(fresh, plan, bundle.transitions, bundle.table, network_precision)
            return to_onnx(step_graph, bundle.inputs, bundle.outputs, opset, len(bundle.transitions))

        comparison = None
        if precision == "fp32":
            write_bytes(aside / MODEL, graph("fp32"))
        else:
            bundle, comparison = write_low_precision(bundle, graph, calibration, on_progress)
        with open_engine(bundle, "ort-cpu") as engine:
            report = verify_engine(engine)
        report.require_passed(f"the {precision} graph of {checkpoint_dir}")
        if comparison is not None and not force:
            comparison.require_worth_it()
        check_graph(bundle)
        write_manifest(replace(bundle, parity=report.to_dict()))
    return read_bundle(out), comparison


def _of_distilled(
    checkpoint_dir: Path, distilled: Distilled, asked: tuple[object, ...]
) -> tuple[Sampler, tuple[int, ...]]:
    """The only way a distilled head may be run.

    Raises:
        InputError: another was asked for.
    """
    names = ("cut_ratio", "step_counts", "sampler", "timesteps", "fit_to")
    if other := [name for name, value in zip(names, asked, strict=True) if value is not None]:
        raise InputError(
            f"{checkpoint_dir} was distilled for {distilled.text}: leave out {', '.join(other)}, or export the head it "
            "was distilled from"
        )
    return Sampler(), distilled.timesteps


def _check_options(precision: str, opset: int) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; valid: {', '.join(PRECISIONS)}")
    if opset not in OPSETS:
        raise InputError(f"unknown opset {opset}; valid: {', '.join(map(str, OPSETS))}")
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


def _describe(
    network: "torch.nn.Module", preset: str, weights_sha256: str, image_shape: tuple[int, int, int]
) -> NetworkInfo:
    parameters, flops = network_cost(network, image_shape)
    return NetworkInfo(preset, parameters, flops, weights_sha256)
