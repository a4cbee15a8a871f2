"""A head in fp16 or int8: its graph, and the comparison with float32 that decides whether it is worth publishing."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from collafuse_export.calibration import MAX_CHECK, split_handover, step_feeds, trajectories
from collafuse_export.precision import PrecisionReport, compare_graphs, compare_precisions
from collafuse_export.quantize import FLAVOURS, Quantiser
from collafuse_export.sensitivity import Sensitivity, layers_to_keep_float, measure_sensitivity
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import require_same_plan
from collafuse_runtimes.disk.atomic import write_bytes
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.engines import open_engine
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.golden import read_golden
from collafuse_runtimes.files.handover import Handover

SENSITIVITY_TENSORS = 2
"""Enough to rank layers: each costs a trajectory per layer."""

OnProgress = Callable[[str, int, int], None]
"""Called with (what, done, in all)."""


def check_calibration(precision: str, handover: Handover | None, bundle: HeadBundle) -> None:
    """Require hand-over tensors of the bundle's plan where a precision is calibrated.

    Raises:
        InputError: missing, too few, or given to fp32.
        PlanMismatch: of another plan.
    """
    if handover is None and precision in FLAVOURS:
        raise InputError(
            f"precision {precision} is calibrated on real hand-over tensors: give a file made by "
            "`collafuse-edge handoff --count 24` as --calibration"
        )
    if handover is not None:
        if precision == "fp32":
            raise InputError(
                "precision fp32 takes no calibration; leave out --calibration, or choose another precision"
            )
        require_same_plan(bundle.plan, "the head", handover.plan, "the calibration file")
        split_handover(handover)


def write_low_precision(
    bundle: HeadBundle, graph: Callable[[str], bytes], handover: Handover | None, on_progress: OnProgress
) -> tuple[HeadBundle, PrecisionReport]:
    """Write ``model.onnx`` in the bundle's precision and measure it against float32 and float16.

    Args:
        bundle: its folder holds the golden vectors already.
        graph: "fp32" or "fp16" to the serialised step graph.
        handover: tensors to calibrate and to measure on; None measures on the golden vectors (fp16 only).

    Returns:
        The bundle (with the layers that stayed in float) and the figures.
    """
    golden = read_golden(bundle)
    tensors = handover or Handover(golden.x_tc, bundle.plan, golden.seed, 0, bundle.sampler.to_dict(), (), None)
    calibration, check = (range(0), range(len(tensors))) if handover is None else split_handover(handover)
    with scratch_folder("export") as scratch:
        floats = {name: _variant(bundle, scratch / name, name, graph(name)) for name in ("fp32", "fp16")}
        sensitivities: tuple[Sensitivity, ...] = ()
        if bundle.precision in FLAVOURS:
            base = floats[_base_precision(bundle)]
            with open_engine(base) as engine:
                feeds = step_feeds(engine, tensors, calibration)
                quantiser = Quantiser(base.model_path.read_bytes(), feeds, bundle.precision)
            candidate = scratch / "candidate"
            sensitivities = _sensitivities(quantiser, base, tensors, calibration, candidate, on_progress)
            bundle = _quantised(bundle, quantiser, sensitivities, floats["fp32"], tensors, calibration)
        else:
            write_bytes(bundle.model_path, floats[bundle.precision].model_path.read_bytes())
            floats.pop(bundle.precision)
        on_progress("compare", 0, 1)
        report = compare_precisions(
            bundle,
            floats,
            tensors,
            check,
            source="golden vectors" if handover is None else "hand-over tensors",
            float_layers=tuple(asdict(s) for s in sensitivities[: len(bundle.float_layers)]),
        )
        on_progress("compare", 1, 1)
    return bundle, report


def _base_precision(bundle: HeadBundle) -> str:
    """TensorRT's flavour stands on the fp16 graph, whose other layers then run in fp16, where QDQ in fp16 exists
    (opset 19); on the fp32 graph otherwise, like ONNX Runtime's flavour."""
    return "fp16" if bundle.precision == "int8-trt" and bundle.opset >= 19 else "fp32"


def _quantised(
    bundle: HeadBundle,
    quantiser: Quantiser,
    sensitivities: tuple[Sensitivity, ...],
    reference: HeadBundle,
    tensors: Handover,
    calibration: range,
) -> HeadBundle:
    """Write the int8 graph; while it is too far off, twice as many layers stay in float, up to half of them.

    Here, too, only calibration tensors are looked at.
    """
    rows = calibration[:MAX_CHECK]
    order = [entry.layer for entry in sensitivities]
    count = max(len(layers_to_keep_float(sensitivities)), 1)
    while True:
        bundle = replace(bundle, float_layers=tuple(order[:count]))
        write_bytes(bundle.model_path, quantiser.quantise(bundle.float_layers))
        if count * 2 > len(order) // 2 or all(r.passed for r in compare_graphs(bundle, reference, tensors, rows)):
            return bundle
        count *= 2


def _sensitivities(
    quantiser: Quantiser,
    base: HeadBundle,
    tensors: Handover,
    calibration: range,
    scratch: Path,
    on_progress: OnProgress,
) -> tuple[Sensitivity, ...]:
    """Against the float graph the quantiser stands on, so that int8 alone makes the difference."""
    rows = calibration[:SENSITIVITY_TENSORS]

    def finished(bundle: HeadBundle) -> Float32Array:
        only = replace(bundle, row_ranges=bundle.row_ranges[:1])
        with open_engine(only) as engine:
            states = trajectories(engine, tensors, rows)[only.row_ranges[0].steps]
        images: Float32Array = states[-1]
        return images

    def run(model: bytes) -> Float32Array:
        return finished(_variant(base, scratch, quantiser.flavour, model))

    return measure_sensitivity(
        quantiser, run, finished(base), lambda done, total: on_progress("layer by layer in int8", done, total)
    )


def _variant(bundle: HeadBundle, folder: Path, precision: str, model: bytes) -> HeadBundle:
    """The same head with another graph, in a scratch folder."""
    folder.mkdir(exist_ok=True)
    variant = replace(bundle, path=folder, precision=precision)
    variant.model_path.write_bytes(model)
    return variant
