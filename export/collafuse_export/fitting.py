"""Fitted steps: a head's few steps made to land where its own many steps land, by least squares alone.

Let y be the teacher's state (many steps of the same network, DPM-Solver++ 2M) at the level where a step of the student
ends, for the last step its image, and x, x_0, x_0_old what the student itself has before that step, x_0 clipped as
always. The step becomes

    x_prev = c_xt x + c_x0 x_0 + c_old x_0_old,   (c_xt, c_x0, c_old) = argmin || y - x_prev ||^2

over all pixels of all tensors, in float64. Steps are fitted in order, so each sees the errors of those before it and
mends what it can. Nothing is trained: a step costs one call of the network.

Kin: S4S (2502.17423), which searches coefficients and levels for the final error by back-propagation; DPM-Solver-v3
(2310.13268), whose coefficients come from statistics of the network. Here a step is one linear system.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from collafuse_export.calibration import labels_for
from collafuse_export.golden import handover_of
from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.fitted import FREE_COLUMNS, FitReport, FittedRange, FittedRows, OnServer
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import CLEAN, SplitPlan, Transition, require_same_plan
from collafuse_runtimes.diffusion.samplers import Sampler, StepCoefficients, apply_step, denoise, zeros_like
from collafuse_runtimes.diffusion.schedule import FloatArray
from collafuse_runtimes.engines.base import Labels
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError
from collafuse_runtimes.files.bundle import HeadBundle, RowRange
from collafuse_runtimes.files.handover import Handover

SOLVER = "dpm++2m"
MOST_TENSORS, LEAST = 48, 6
"""Of a source. Eight determine three coefficients a step, the others judge; the teacher's time is in proportion."""
BATCH = 8
"""Tensors per call of the network."""
UNDETERMINED = 1e-6
"""Combinations of the columns that are smaller than this share of the largest keep the solver's coefficients."""
ERRORS = 2.0
"""Standard errors, over held-out tensors, that a fit's gain must exceed: less is chance."""
VALUE_RANGE = SplitPlan.value_range

Predict = Callable[[Float32Array, int], Float32Array]
"""(x_t, t) -> what the network predicts, both (B, C, H, W) float32."""
PredictWith = Callable[[Labels | None], Predict]


@dataclass(frozen=True)
class Judgement:
    """How near the images of a few-step way come to the teacher's.

    Attributes:
        errors: (B,) mean square difference of every image, images in [-1, 1].
        sharpness: power of their Laplacian relative to that of the teacher's.
    """

    errors: FloatArray
    sharpness: float

    @property
    def rmse(self) -> float:
        """Root mean square difference over all images."""
        return float(self.errors.mean() ** 0.5)

    def is_better_than(self, other: "Judgement") -> bool:
        """Whether its mean square difference is lower, on the same tensors, by more than ``ERRORS`` standard errors."""
        gain = other.errors - self.errors
        return bool(gain.mean() > ERRORS * gain.std(ddof=1) / len(gain) ** 0.5)


@dataclass(frozen=True)
class Part:
    """Tensors and the network as it sees them.

    Attributes:
        x: (B, C, H, W) float32 at the hand-over level.
        predict: the network with these tensors' labels.
    """

    x: Float32Array
    predict: Predict


def fit_head(
    bundle: HeadBundle,
    predict_with: PredictWith,
    source: Handover | Float32Array,
    teacher_steps: int | None = None,
    judge_on: Handover | None = None,
) -> HeadBundle:
    """Fit every baked step count of a head that is being exported, and judge each on tensors left out of the fit.

    Args:
        bundle: with the solver's rows, of DPM-Solver++ 2M.
        predict_with: labels (B,) int32, or None -> the network for tensors with these labels.
        source: hand-over tensors of the bundle's plan, or images, (N, C, H, W) float32 in [-1, 1], which are noised to
            exactly its level. Tensors of a conditional head get every class in turn.
        teacher_steps: of DPM-Solver++ 2M on Karras levels, the students' own added; None is every timestep.
        judge_on: hand-over tensors of the plan that judge too: what is fitted to local images may be no better there.

    Returns:
        The bundle with the fitted rows.

    Raises:
        InputError: another sampler, fewer than ``LEAST`` tensors, or a step count that is not below the teacher's.
        PlanMismatch: the hand-over tensors are of another plan.
        ArtefactError: the network predicts NaN or Inf.
        CheckFailed: of a step count, the fitted rows are no nearer to the teacher than the solver's, by ``ERRORS``.
    """
    if bundle.sampler.name != SOLVER:
        raise InputError(
            f"sampler {bundle.sampler.name} cannot be fitted; valid: {SOLVER}, whose steps know the last x_0"
        )
    plan, ranges = bundle.plan, bundle.row_ranges
    way = teacher_way(plan, ranges, teacher_steps)
    kind, seen, unseen = _parts(bundle, predict_with, source)
    states = teacher_states(seen, plan, way, {prev for _, prev in bundle.transitions})
    tables = [fit_rows(seen, rows, bundle.table_of(rows), states) for rows in ranges]

    def judged(part: Part, what: str) -> tuple[FittedRange, ...]:
        images = teacher_states(part, plan, way, {CLEAN})[CLEAN]
        figures = []
        for rows, table in zip(ranges, tables, strict=True):
            rivals = (table, bundle.table_of(rows))
            fitted, unfitted = (judge(part.predict, rows, rival, part.x, images) for rival in rivals)
            require_better(rows, fitted, unfitted, what)
            figures.append(FittedRange(rows.steps, fitted.rmse, unfitted.rmse, fitted.sharpness, unfitted.sharpness))
        return tuple(figures)

    ranges_here, server = judged(unseen, "held-out tensors"), None
    if judge_on is not None:
        part = _server_part(bundle, predict_with, judge_on)
        server = OnServer(len(part.x), judged(part, "tensors of the server"))
    report = FitReport(kind, len(seen.x), len(unseen.x), len(way), ranges_here, server)
    numbers = tuple(tuple(row) for row in np.concatenate(tables).tolist())
    return replace(bundle, sampler=replace(bundle.sampler, fitted=True), fitted=FittedRows(numbers, report))


def teacher_way(plan: SplitPlan, ranges: Sequence[RowRange], steps: int | None) -> tuple[Transition, ...]:
    """The teacher's transitions: every level, or ``steps`` Karras levels and every level where a student's step ends.

    Raises:
        InputError: a student takes as many steps, or ``steps`` are more than the plan allows.
    """
    most, longest = steps or plan.cut, max(rows.steps for rows in ranges)
    if longest >= most:
        raise InputError(
            f"{longest} steps cannot be fitted to a teacher of {most}; valid: step counts below it"
            + (", or more --teacher-steps" if most < plan.cut else " (this plan leaves the device no more)")
        )
    karras = plan.client_transitions(steps, "even" if steps is None else "karras")
    levels = {t for transitions in (karras, *(rows.transitions for rows in ranges)) for t, _ in transitions}
    return plan.client_transitions_at(sorted(levels, reverse=True))


def teacher_states(part: Part, plan: SplitPlan, way: Sequence[Transition], levels: set[int]) -> dict[int, Float32Array]:
    """The teacher's tensors at some levels, (B, C, H, W) float32 each; its images are those at CLEAN."""
    states: dict[int, Float32Array] = {}

    def keep(k: int, x: Float32Array) -> None:
        if way[k][1] in levels:
            states[way[k][1]] = x

    denoise(part.x, plan, way, Sampler(SOLVER), part.predict, on_step=keep)
    return states


def fit_rows(part: Part, rows: RowRange, solver: Float32Array, states: dict[int, Float32Array]) -> Float32Array:
    """The least-squares coefficients of one step count, each step along the student's own trajectory.

    Args:
        solver: (steps, 7) float32, the unfitted rows.
        states: the teacher's tensors for ``part`` at every level where a step ends.

    Returns:
        (steps, 7) float32; c_x0, c_xt and c_old fitted, c_old only after the first step.
    """
    table: Float32Array = solver.copy()
    x, x_0_old = part.x, zeros_like(part.x)
    for k, (t, prev) in enumerate(rows.transitions):
        out = part.predict(x, t)
        x_0 = apply_step(x, out, _row(table, k), VALUE_RANGE, x_0_old=x_0_old)[1]
        free = FREE_COLUMNS if k else FREE_COLUMNS[:-1]
        columns = [x_0, x, x_0_old][: len(free)]
        table[k, free] = best_coefficients(columns, states[prev], solver[k, free].astype(np.float64))
        x, x_0_old = apply_step(x, out, _row(table, k), VALUE_RANGE, x_0_old=x_0_old)
    table += 0  # no -0.0, which reads like a coefficient
    return table


def best_coefficients(columns: Sequence[Float32Array], target: Float32Array, start: FloatArray) -> FloatArray:
    """argmin over c of || target - sum_i c_i columns_i ||^2, and of these the nearest to ``start``.

    By QR, image after image, so that the columns of all images are never in memory at once and their condition is not
    squared as in the normal equations.

    Args:
        columns: (B, C, H, W) each; target the same.
        start: (len(columns),), kept in directions that the columns leave undetermined.
    """
    factor: FloatArray = np.empty((0, len(columns) + 1))
    for arrays in zip(*columns, target, strict=True):
        block = np.stack([array.ravel() for array in arrays], axis=1).astype(np.float64)
        block[:, -1] -= block[:, :-1] @ start
        factor = np.asarray(np.linalg.qr(np.concatenate([factor, block]), mode="r"))
    correction = np.linalg.lstsq(factor[:, :-1], factor[:, -1], rcond=UNDETERMINED)[0]
    result: FloatArray = start + correction
    return result


def judge(
    predict: Predict, rows: RowRange, table: Float32Array, tensors: Float32Array, reference: Float32Array
) -> Judgement:
    """Run few steps with a table of coefficients and hold the images against a reference.

    Args:
        predict: the network, with the tensors' labels where it is conditional.
        rows: the steps to run.
        table: (rows.steps, 7) float32, of any solver that draws no noise.
        tensors: (B, C, H, W) float32 at the level of the first step.
        reference: the same shape: the teacher's images of these tensors.
    """
    x, x_0_old = tensors, zeros_like(tensors)
    for k, (t, _) in enumerate(rows.transitions):
        x, x_0_old = apply_step(x, predict(x, t), _row(table, k), VALUE_RANGE, x_0_old=x_0_old)
    distance = x.astype(np.float64) - reference
    own, wanted = laplacian_power(x), laplacian_power(reference)
    return Judgement((distance**2).mean(axis=(1, 2, 3)), own / wanted if wanted else float(own == wanted))


def laplacian_power(images: Float32Array) -> float:
    """Mean square of the five-point Laplacian: (B, C, H, W) to how much fine detail there is."""
    p = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = p[:, :, :-2, 1:-1] + p[:, :, 2:, 1:-1] + p[:, :, 1:-1, :-2] + p[:, :, 1:-1, 2:]
    return float(((around - 4 * p[:, :, 1:-1, 1:-1]) ** 2).mean())


def require_better(rows: RowRange, fitted: Judgement, unfitted: Judgement, what: str) -> None:
    """Do nothing, or say that the fit did not help.

    Args:
        what: the tensors that judged.

    Raises:
        CheckFailed: with their figures.
    """
    if not fitted.is_better_than(unfitted):
        raise CheckFailed(
            f"{rows.steps} fitted steps are no better than unfitted ones: RMSE {fitted.rmse:.4g} against "
            f"{unfitted.rmse:.4g} to the teacher on {len(fitted.errors)} {what}, sharpness "
            f"{fitted.sharpness:.3f} against {unfitted.sharpness:.3f}; a gain must exceed {ERRORS:g} standard errors; "
            "nothing was written: leave out this step count or --fit, or fit to more tensors"
        )


def in_batches(predict_with: PredictWith, labels: Labels | None) -> Predict:
    """The network for any number of tensors, ``BATCH`` at a time.

    Raises:
        ArtefactError: the function does, where the network predicts NaN or Inf.
    """

    def predict(x: Float32Array, t: int) -> Float32Array:
        rows = [slice(start, start + BATCH) for start in range(0, len(x), BATCH)]
        out = np.concatenate([predict_with(None if labels is None else labels[r])(x[r], t) for r in rows])
        if not np.isfinite(out).all():
            raise ArtefactError(
                f"the head predicts NaN or Inf at timestep {t}, so nothing can be fitted; train it again"
            )
        return out

    return predict


def _parts(bundle: HeadBundle, predict_with: PredictWith, source: Handover | Float32Array) -> tuple[str, Part, Part]:
    """(kind of source, what to fit to, what to judge on): evenly spread over the source; every third is fitted to."""
    is_handover = isinstance(source, Handover)
    chosen = _spread(bundle, source)
    tensors = chosen if is_handover else handover_of(chosen, bundle.plan)
    is_seen = np.arange(len(tensors)) % 3 == 0
    seen, unseen = (
        Part(x, in_batches(predict_with, labels_for(range(len(x)), bundle.num_classes)))
        for x in (tensors[is_seen], tensors[~is_seen])
    )
    return "hand-over" if is_handover else "images", seen, unseen


def _server_part(bundle: HeadBundle, predict_with: PredictWith, judge_on: Handover) -> Part:
    x = _spread(bundle, judge_on)
    return Part(x, in_batches(predict_with, labels_for(range(len(x)), bundle.num_classes)))


def _spread(bundle: HeadBundle, source: Handover | Float32Array) -> Float32Array:
    """At most ``MOST_TENSORS`` of the source's tensors or images, evenly spread over it."""
    plan, is_handover = bundle.plan, isinstance(source, Handover)
    if isinstance(source, Handover):
        require_same_plan(plan, "the head", source.plan, "the hand-over file")
    given = source.x_tc if isinstance(source, Handover) else source
    check_images("x_tc" if is_handover else "images", given, plan.image_shape)
    if len(given) < LEAST:
        what = "make them with `collafuse-edge handoff --count 48`" if is_handover else "give more images"
        raise InputError(f"{len(given)} tensors are too few to fit and to judge; valid: at least {LEAST}; {what}")
    chosen: Float32Array = given[np.linspace(0, len(given) - 1, min(len(given), MOST_TENSORS)).round().astype(int)]
    return chosen


def _row(table: Float32Array, k: int) -> StepCoefficients:
    return StepCoefficients(*table[k].tolist())
