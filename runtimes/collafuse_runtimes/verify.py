"""Does an engine compute what the torch network computed? Golden trajectories, compared step by step."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.engines import DEFAULTS, Engine, EngineOptions, open_engine
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.bundle import HeadBundle, RowRange
from collafuse_runtimes.files.golden import read_golden


@dataclass(frozen=True)
class Tolerance:
    """Agreement asked for: cosine AND (max_abs OR max_rel), no NaN or Inf."""

    cosine: float
    max_abs: float
    max_rel: float


TOLERANCES = {
    "fp32": Tolerance(0.999, 1e-4, 1e-3),
    "fp16": Tolerance(0.995, 1e-2, 5e-2),
    "bf16": Tolerance(0.99, 2e-2, 1e-1),
    "int8-cpu": Tolerance(0.99, 2e-1, 2.5e-1),
    "int8-trt": Tolerance(0.99, 2e-1, 2.5e-1),
}
"""By precision of the bundle, or of the engine's arithmetic where that is coarser."""


@dataclass(frozen=True)
class Agreement:
    """How far one tensor is from another.

    Attributes:
        cosine: of the angle between them, flattened; 0 when one is not finite.
        max_abs: largest absolute difference; None when not finite.
        max_rel: max_abs over the largest absolute expected value; None when not finite.
    """

    cosine: float
    max_abs: float | None
    max_rel: float | None

    def meets(self, tolerance: Tolerance) -> bool:
        """Whether it is close enough."""
        if self.max_abs is None or self.max_rel is None:
            return False
        return self.cosine >= tolerance.cosine and (
            self.max_abs <= tolerance.max_abs or self.max_rel <= tolerance.max_rel
        )


@dataclass(frozen=True)
class RangeReport:
    """One baked step count.

    Attributes:
        steps: the step count.
        worst_step: the step (0-based) of the largest difference, or the first that is not finite.
        worst: agreement after that step.
        final: agreement of the images.
        passed: whether every step is within tolerance.
    """

    steps: int
    worst_step: int
    worst: Agreement
    final: Agreement
    passed: bool


@dataclass(frozen=True)
class VerifyReport:
    """Outcome for one bundle and engine."""

    engine: str
    precision: str
    tolerance: Tolerance
    ranges: tuple[RangeReport, ...]

    @property
    def passed(self) -> bool:
        """Whether every row range passed."""
        return all(r.passed for r in self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "ranges": [asdict(r) for r in self.ranges], "passed": self.passed}

    def require_passed(self, what: str) -> None:
        """Do nothing, or say what is wrong with ``what``.

        Raises:
            CheckFailed: names the worst range and step with the figures and what was asked for.
        """
        wanted = self.tolerance
        for r in self.ranges:
            if not r.passed:
                raise CheckFailed(
                    f"{what} on {self.engine} differs from the torch network after step {r.worst_step + 1} "
                    f"of {r.steps}: {_figures(r.worst)}; asked for {self.precision}: cosine >= {wanted.cosine} "
                    f"and (max-abs <= {wanted.max_abs} or max-rel <= {wanted.max_rel})"
                )


def compare(actual: Float32Array, expected: Float32Array) -> Agreement:
    """Agreement of two arrays of one shape, computed in float64."""
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Agreement(0.0, None, None)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(not (a.any() or b.any()))
    max_abs = float(np.abs(a - b).max())
    peak = float(np.abs(b).max())
    return Agreement(cosine, max_abs, max_abs / peak if peak else max_abs)


def compare_trajectories(steps: int, actual: Float32Array, expected: Float32Array, tolerance: Tolerance) -> RangeReport:
    """Compare (steps, B, C, H, W) arrays step by step."""
    agreements = [compare(a, b) for a, b in zip(actual, expected, strict=True)]
    distances = [np.inf if a.max_abs is None else a.max_abs for a in agreements]
    worst = int(np.argmax(distances))
    passed = all(agreement.meets(tolerance) for agreement in agreements)
    return RangeReport(steps, worst, agreements[worst], agreements[-1], passed)


def tolerance_of(engine: Engine) -> Tolerance:
    """The looser of what the bundle's precision and the engine's own arithmetic need."""
    names = (engine.bundle.precision, engine.arithmetic or engine.bundle.precision)
    return max((TOLERANCES[name] for name in names), key=lambda tolerance: tolerance.max_abs)


def verify_engine(engine: Engine) -> VerifyReport:
    """Run the golden input through an open engine, every row range, and compare each step.

    Raises:
        ArtefactError: the golden file is damaged.
    """
    bundle = engine.bundle
    golden, tolerance = read_golden(bundle), tolerance_of(engine)
    reports = []
    for steps, expected in golden.trajectories.items():
        actual = np.full_like(expected, np.nan)
        engine.denoise(golden.x_tc, steps, seed=golden.seed, labels=golden.labels, on_step=actual.__setitem__)
        if engine.watched_is_slower:  # what `infer` runs is another path, with the same end
            actual[-1] = engine.denoise(golden.x_tc, steps, seed=golden.seed, labels=golden.labels)
        reports.append(compare_trajectories(steps, actual, expected, tolerance))
    return VerifyReport(engine.name, bundle.precision, tolerance, tuple(reports))


def require_golden_start(engine: Engine, rows: RowRange) -> None:
    """Run the first of ``rows`` on the golden input: a graph swapped under a valid seal shows before it is used.

    Raises:
        CheckFailed: the tensor after that step is not the torch network's.
        ArtefactError: the golden file is damaged, or the graph fails.
    """
    bundle = engine.bundle
    golden = read_golden(bundle)
    shape, count, first = bundle.plan.image_shape, len(golden.x_tc), rows.transitions[0][0]
    noise = noise_batch(golden.seed, range(count), first, shape) if bundle.sampler.is_stochastic else None
    state = engine.step(golden.x_tc, rows.first_row, noise, golden.labels)
    agreement = compare(state, golden.trajectories[rows.steps][0])
    if not agreement.meets(tolerance_of(engine)):
        raise CheckFailed(
            f"the first step of {bundle.path} on {engine.name} is not that of the network it was exported from: "
            f"{_figures(agreement)}; nothing was written: copy the bundle again, and see `collafuse-edge verify`"
        )


def verify_bundle(bundle: HeadBundle, engine_name: str = "ort-cpu", options: EngineOptions = DEFAULTS) -> VerifyReport:
    """Open an engine and compare it with the bundle's golden trajectories.

    Args:
        engine_name, options: as in ``open_engine``.

    Raises:
        EngineUnavailable, InputError, ArtefactError: as ``open_engine`` and ``read_golden``.
    """
    with open_engine(bundle, engine_name, options) as engine:
        return verify_engine(engine)


def describe_report(report: VerifyReport) -> list[str]:
    """A report in lines for people, one per row range."""
    return [
        f"{'passed' if r.passed else 'FAILED':9} {r.steps} steps on {report.engine}: {_figures(r.final)} at the end; "
        f"worst after step {r.worst_step + 1}: {_figures(r.worst)}"
        for r in report.ranges
    ]


def _figures(agreement: Agreement) -> str:
    if agreement.max_abs is None:
        return "NaN or Inf"
    return f"cosine {agreement.cosine:.6f}, max-abs {agreement.max_abs:.3g}, max-rel {agreement.max_rel:.3g}"
