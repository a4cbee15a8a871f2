"""Is a lower precision worth it? Size, distance from float32 and speed of one head in several precisions, side by side.

A precision that fails its tolerance, or that is slower than float32 on the engines it is made for, is refused.
"""

import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collafuse_export.calibration import labels_for, trajectories
from collafuse_runtimes.device.turns import in_turns
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines import Engine, available_engines, open_engine
from collafuse_runtimes.errors import CheckFailed, CollafuseError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover
from collafuse_runtimes.verify import TOLERANCES, RangeReport, compare, compare_trajectories

MADE_FOR = {
    "fp16": ("tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-cuda"),
    "int8-cpu": ("ort-cpu", "openvino"),
    "int8-trt": ("tensorrt", "tensorrt-rtx", "ort-tensorrt"),
}
Key = tuple[str, str]
"""(engine, precision)."""

WARMUP, ROUNDS = 2, 9
SETTLE_S = 0.05
"""Pause before each trajectory."""


@dataclass(frozen=True)
class Timing:
    """Whole trajectories of one image, the default step count.

    Attributes:
        engine: its name.
        precision: of the graph it ran.
        median_ms: over ``ROUNDS`` rounds.
        against_fp32: time relative to the float32 graph on the same engine, median of the ratios within a round.
        cosine: of the last image it made to what float32 on ``ort-cpu`` made of the same tensor.
    """

    engine: str
    precision: str
    median_ms: float
    against_fp32: float
    cosine: float


@dataclass(frozen=True)
class PrecisionReport:
    """One precision against float32.

    Attributes:
        precision: the one judged.
        megabytes: of model.onnx, by precision.
        tensors: how many hand-over tensors the distances are over, and ``source`` which.
        ranges: distance from the float32 graph per baked step count (every step and the end).
        timings: side by side in one run on this machine; absolute times are this machine's alone.
        speed: "faster", "slower", or why it was not judged here.
        float_layers: layers left in float, with what each alone does to the images (int8 only).
    """

    precision: str
    megabytes: dict[str, float]
    tensors: int
    source: str
    ranges: tuple[RangeReport, ...]
    timings: tuple[Timing, ...]
    speed: str
    float_layers: tuple[dict[str, Any], ...] = ()

    @property
    def within_tolerance(self) -> bool:
        """Whether every step of every range is close enough."""
        return all(r.passed for r in self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "within_tolerance": self.within_tolerance}

    def require_worth_it(self) -> None:
        """Raise CheckFailed when the precision fails its tolerance or is slower; the message holds the figures."""
        if self.within_tolerance and self.speed != "slower":
            return
        worst = next((r for r in self.ranges if not r.passed), self.ranges[0])
        distance = f"cosine {worst.worst.cosine:.4f}, max-abs {worst.worst.max_abs} after step {worst.worst_step + 1}"
        asked = TOLERANCES[self.precision]
        tolerance = f"cosine >= {asked.cosine} and (max-abs <= {asked.max_abs} or max-rel <= {asked.max_rel})"
        times = ", ".join(f"{t.precision} on {t.engine} {t.median_ms:.1f} ms" for t in self.timings)
        reasons = [] if self.within_tolerance else [f"too far from float32 ({distance}; valid: {tolerance})"]
        reasons += [f"slower than float32 ({times})"] if self.speed == "slower" else []
        raise CheckFailed(f"{self.precision} is {' and '.join(reasons)}; nothing was written: use fp32, or --force")


def compare_precisions(
    candidate: HeadBundle,
    others: dict[str, HeadBundle],
    handover: Handover,
    rows: range,
    *,
    source: str,
    float_layers: tuple[dict[str, Any], ...] = (),
) -> PrecisionReport:
    """Measure ``candidate`` against the same head in other precisions.

    Args:
        others: by precision; "fp32" is the reference.
        rows: tensors of ``handover`` to run.
        source: what the tensors are, for people.
    """
    bundles = {**others, candidate.precision: candidate}
    with open_engine(others["fp32"]) as reference, open_engine(candidate) as engine:
        expected, actual = (trajectories(e, handover, rows) for e in (reference, engine))
    tolerance = TOLERANCES[candidate.precision]
    ranges = tuple(compare_trajectories(steps, actual[steps][1:], expected[steps][1:], tolerance) for steps in expected)
    timings = measure_speed(bundles, candidate.precision, handover, rows)
    return PrecisionReport(
        precision=candidate.precision,
        megabytes={name: bundle.model_path.stat().st_size / 1e6 for name, bundle in bundles.items()},
        tensors=len(rows),
        source=source,
        ranges=ranges,
        timings=timings,
        speed=judge_speed(candidate.precision, timings),
        float_layers=float_layers,
    )


def compare_graphs(
    candidate: HeadBundle, reference: HeadBundle, handover: Handover, rows: range
) -> tuple[RangeReport, ...]:
    """Every step of every baked step count by ``ort-cpu``, in the tolerance of the candidate's precision."""
    with open_engine(reference) as right, open_engine(candidate) as engine:
        expected, actual = (trajectories(e, handover, rows) for e in (right, engine))
    tolerance = TOLERANCES[candidate.precision]
    return tuple(compare_trajectories(steps, actual[steps][1:], expected[steps][1:], tolerance) for steps in expected)


def measure_speed(
    bundles: dict[str, HeadBundle], precision: str, handover: Handover, rows: range
) -> tuple[Timing, ...]:
    """Every bundle on the engines ``precision`` is made for that run here, in shuffled order, round after round.

    An engine runs float32 and what is made for it; ``ort-cpu`` runs all, as a yardstick.
    """
    samples: dict[Key, list[float]] = {}
    images: dict[Key, Float32Array] = {}
    with ExitStack() as stack:
        engines = _open_all(bundles, precision, handover, rows.start, stack)
        for number, key in in_turns(list(engines), WARMUP + ROUNDS, SETTLE_S):
            elapsed, images[key] = _timed_trajectory(engines[key], handover, rows.start + number % len(rows))
            if number >= WARMUP:
                samples.setdefault(key, []).append(elapsed)
    reference = images["ort-cpu", "fp32"]
    return tuple(
        Timing(
            engine=engine,
            precision=precision,
            median_ms=float(np.median(values)),
            against_fp32=float(np.median(np.divide(values, samples[engine, "fp32"]))),
            cosine=compare(images[engine, precision], reference).cosine,
        )
        for (engine, precision), values in samples.items()
    )


def judge_speed(precision: str, timings: tuple[Timing, ...]) -> str:
    """Compare the fastest engine of each precision, among those that ``precision`` is made for and that compute it
    rightly."""
    valid = [t for t in timings if t.engine in MADE_FOR[precision] and t.cosine >= TOLERANCES[t.precision].cosine]
    ours = [t.median_ms for t in valid if t.precision == precision]
    floats = [t.median_ms for t in valid if t.precision == "fp32"]
    if not ours or not floats:
        return f"not judged: made for {', '.join(MADE_FOR[precision])}, none of which runs here; measure on the device"
    return "faster" if min(ours) < min(floats) else "slower"


def describe_precision(report: PrecisionReport) -> list[str]:
    """Lines for people."""
    sizes = ", ".join(f"{name} {size:.2f} MB" for name, size in report.megabytes.items())
    lines = [f"size      {sizes}"]
    for entry in report.float_layers:
        lines.append(f"in float  {entry['layer']}: alone it makes {entry['share']:.0%} of int8's squared error")
    for r in report.ranges:
        lines.append(
            f"distance  {r.steps} steps, {report.tensors} {report.source}: cosine {r.final.cosine:.5f}, max-abs "
            f"{r.final.max_abs:.3g} at the end; worst after step {r.worst_step + 1}: max-abs {r.worst.max_abs:.3g}"
        )
    for t in report.timings:
        lines.append(
            f"time      {t.precision} on {t.engine}: {t.median_ms:.1f} ms, {t.against_fp32:.2f} of fp32's there, "
            f"cosine {t.cosine:.5f}"
        )
    return [*lines, f"speed     {report.precision}: {report.speed}"]


def _open_all(
    bundles: dict[str, HeadBundle], precision: str, handover: Handover, row: int, stack: ExitStack
) -> dict[Key, Engine]:
    engines: dict[Key, Engine] = {}
    for name, reason in available_engines().items():
        if reason is not None or name not in ("ort-cpu", *MADE_FOR[precision]):
            continue
        wanted = [p for p in bundles if p == "fp32" or name == "ort-cpu" or name in MADE_FOR[p]]
        with suppress(CollafuseError):  # its library is here, but its device is not, or cannot run this head
            opened = {(name, p): stack.enter_context(open_engine(bundles[p], name)) for p in wanted}
            for engine in opened.values():
                _timed_trajectory(engine, handover, row)
            engines |= opened
    return engines


def _timed_trajectory(engine: Engine, handover: Handover, row: int) -> tuple[float, Float32Array]:
    """(milliseconds, images) of the default step count."""
    x_tc, labels = handover.x_tc[row : row + 1], labels_for([row], engine.bundle.num_classes)
    begun = time.perf_counter()
    images = engine.denoise(x_tc, seed=handover.seed, sample_indices=[handover.first_index + row], labels=labels)
    return (time.perf_counter() - begun) * 1e3, images
