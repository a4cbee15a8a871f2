"""Fitted steps: exact where linear algebra says so, better than the solver on held-out tensors or refused."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from heads import PLAN, calibration, checkpoint

from collafuse_export.fitting import (
    LEAST,
    Judgement,
    Part,
    Predict,
    best_coefficients,
    fit_head,
    fit_rows,
    in_batches,
    judge,
    laplacian_power,
    teacher_states,
    teacher_way,
)
from collafuse_export.step_graph import one_thread
from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import CLEAN, SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, denoise
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.errors import ArtefactError, CheckFailed, InputError, PlanMismatch
from collafuse_runtimes.files.bundle import HeadBundle, NetworkInfo, make_row_ranges
from collafuse_runtimes.files.checkpoint import load_network, read_checkpoint
from collafuse_runtimes.files.handover import Handover

TWO_M = Sampler("dpm++2m", levels="karras")
SMOOTH = SplitPlan((1, 6, 6), cut_ratio=0.6)
SPREADS = np.repeat([0.05, 0.12, 0.2], 12).reshape(1, 1, 6, 6)  # of the pixels: three kinds; nothing is clipped


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in an export."""
    with one_thread():
        yield


def variance(level: int) -> np.ndarray:
    a = SMOOTH.alpha_bar_at(level)
    return a * SPREADS**2 + 1 - a


def best_epsilon(x: Float32Array, t: int) -> Float32Array:
    """E[epsilon | x_t] of independent pixels N(0, SPREADS^2)."""
    return ((1 - SMOOTH.alpha_bar_at(t)) ** 0.5 * x / variance(t)).astype(np.float32)


def gaussian_part(count: int, seed: int = 0) -> Part:
    level = SMOOTH.handover_level
    noise = noise_batch(seed, range(count), level, SMOOTH.image_shape)
    return Part((variance(level) ** 0.5 * noise).astype(np.float32), best_epsilon)


def exact_states(part: Part) -> dict[int, Float32Array]:
    """The probability-flow ODE keeps x / sqrt(alpha_bar s^2 + 1 - alpha_bar) of every pixel."""
    start = variance(SMOOTH.handover_level)
    return {
        level: (part.x * (variance(level) / start) ** 0.5).astype(np.float32) for level in range(-1, SMOOTH.cut - 1)
    }


def unfitted(plan: SplitPlan, counts: tuple[int, ...], conditional: bool = False) -> HeadBundle:
    return HeadBundle(
        Path("none"), plan, TWO_M, make_row_ranges(plan, counts, TWO_M.levels), "fp32", 20,
        3 if conditional else None, NetworkInfo("test", 1, 1, "0" * 64), {}, {},
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_one_step_on_a_gaussian_has_the_coefficients_in_closed_form(seed: int) -> None:
    """x_0 = k x with k = sqrt(alpha_bar) s^2 / v, the target is g x with g = s / sqrt(v): weighted least squares of g
    on (k, 1) over the three kinds of pixels, the weight of each its sum of squares."""
    part, (rows,) = gaussian_part(8, seed), make_row_ranges(SMOOTH, [1])
    states = exact_states(part)
    table = fit_rows(part, rows, unfitted(SMOOTH, (1,)).table, states)
    v, a = variance(SMOOTH.handover_level), SMOOTH.alpha_bar_at(SMOOTH.handover_level)
    k, g = (a**0.5 * SPREADS**2 / v).ravel(), (SPREADS / v**0.5).ravel()
    weight = (part.x.astype(np.float64) ** 2).sum(axis=0).ravel()
    columns = np.stack([k, np.ones_like(k)])
    wanted = np.linalg.solve((columns * weight) @ columns.T, (columns * weight) @ g)
    np.testing.assert_allclose(table[0, [2, 3]], wanted, atol=2e-5)
    assert table[0, [4, 5, 6]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_two_steps_on_three_kinds_of_pixels_are_exact(seed: int) -> None:
    """Three coefficients of the second step, three factors to meet; what was fitted to eight tensors holds for all."""
    part, fresh, (rows,) = gaussian_part(8, seed), gaussian_part(100, seed + 50), make_row_ranges(SMOOTH, [2], "karras")
    solver = unfitted(SMOOTH, (2,)).table
    table = fit_rows(part, rows, solver, exact_states(part))
    reference = exact_states(fresh)[CLEAN]
    assert judge(best_epsilon, rows, table, fresh.x, reference).rmse < 2e-5
    assert judge(best_epsilon, rows, solver, fresh.x, reference).rmse > 5e-3


def test_of_what_the_tensors_leave_open_the_solver_decides() -> None:
    x = noise_batch(0, range(4), 0, (1, 4, 4))
    start = np.array([0.7, 0.2, 0.1])
    found = best_coefficients([x, np.float32(0.5) * x, x], np.float32(2) * x, start)
    assert found @ [1, 0.5, 1] == pytest.approx(2)
    assert np.cross(found - start, [1, 0.5, 1]) == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(best_coefficients([0 * x] * 3, x, start), start)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_fitted_is_better_on_held_out_tensors_or_refused(conditional: bool, seed: int) -> None:
    counts, tensors = ((3, 1), (2,), (6,))[seed % 3], 6 + 3 * seed
    network = load_network(read_checkpoint(checkpoint(conditional=conditional, seed=seed)))
    bundle = unfitted(PLAN, counts, conditional)
    source = calibration(PLAN, tensors, x_tc=noise_batch(seed, range(tensors), 3, PLAN.image_shape))
    try:
        fitted = fit_head(bundle, partial(predict_function, network), source)
    except CheckFailed as error:
        assert "fitted steps are no better than unfitted ones" in str(error)
        return
    held_out = source.x_tc[np.arange(tensors) % 3 != 0]  # the very tensors, by another path
    labels = (np.arange(len(held_out)) % 3).astype(np.int32) if conditional else None
    predict = predict_function(network, labels)
    teacher = denoise(held_out, PLAN, PLAN.client_transitions(), Sampler("dpm++2m"), predict)
    assert fitted.fitted is not None
    for rows, said in zip(fitted.row_ranges, fitted.fitted.report.ranges, strict=True):
        errors = [
            np.sqrt(((denoise(held_out, PLAN, rows.transitions, TWO_M, predict, table=t) - teacher) ** 2).mean())
            for t in (fitted.table_of(rows), bundle.table_of(rows))
        ]
        assert errors[0] < errors[1]
        assert errors == pytest.approx([said.rmse, said.rmse_unfitted], abs=1e-5)


def test_three_steps_gain_by_a_fit() -> None:
    """The refusal is for the exception: of eight untrained networks at least six."""
    better = 0
    for seed in range(8):
        network = load_network(read_checkpoint(checkpoint(seed=seed)))
        with suppress(CheckFailed):
            fit_head(unfitted(PLAN, (3,)), partial(predict_function, network), calibration(PLAN, 12))
            better += 1
    assert better >= 6


def zero(_: object = None) -> Predict:
    return lambda x, _: np.zeros_like(x)


def test_tensors_that_say_nothing_are_refused_with_the_figures() -> None:
    """All that is fitted to is zero, so the fit is the solver."""
    x_tc = noise_batch(0, range(9), 3, PLAN.image_shape)
    x_tc[::3] = 0
    with pytest.raises(CheckFailed) as error:
        fit_head(unfitted(PLAN, (3,)), zero, calibration(PLAN, 9, x_tc=x_tc))
    for part in (
        "3 fitted steps are no better",
        "RMSE ",
        "to the teacher on 6 held-out tensors",
        "nothing was written",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("counts", "source", "options", "message"),
    [
        ((3,), calibration(PLAN, LEAST - 1), {}, "5 tensors are too few to fit and to judge; valid: at least 6; make"),
        ((3,), np.zeros((5, 1, 16, 16), np.float32), {}, "valid: at least 6; give more images"),
        ((3,), np.zeros((9, 1, 8, 8), np.float32), {}, r"images has shape \(9, 1, 8, 8\)"),
        ((3,), np.full((9, 1, 16, 16), np.nan, np.float32), {}, "images holds NaN"),
        ((20,), calibration(PLAN, 9), {}, "20 steps cannot be fitted to a teacher of 20; valid: step counts below it"),
        ((3, 8), calibration(PLAN, 9), {"teacher_steps": 8}, "teacher of 8; valid: .* or more --teacher-steps"),
        ((3,), calibration(PLAN, 9), {"teacher_steps": 21}, "device steps 21 out of range: this plan allows 1 to 20"),
        ((3,), calibration(PLAN, 9), {"teacher_steps": -1}, "cannot be fitted to a teacher of -1"),
    ],
)  # fmt: skip
def test_unusable_fits(
    counts: tuple[int, ...], source: Handover | Float32Array, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit_head(unfitted(PLAN, counts), zero, source, **options)


def test_a_network_that_gives_no_numbers_is_refused() -> None:
    def broken(_: object) -> Predict:
        return lambda x, t: x * (np.nan if t == 5 else 1)

    with pytest.raises(ArtefactError, match="predicts NaN or Inf at timestep 5, so nothing can be fitted"):
        fit_head(unfitted(PLAN, (3,)), broken, calibration(PLAN, 9))


def test_hand_over_tensors_of_another_plan_are_refused() -> None:
    with pytest.raises(PlanMismatch, match=r"disagree on cut_ratio: the head has .* the hand-over file has "):
        fit_head(unfitted(PLAN, (3,)), zero, calibration(PLAN.with_cut_ratio(0.2), 9))


def test_a_teacher_of_few_steps_stops_where_its_students_do() -> None:
    ranges = make_row_ranges(PLAN, [3, 1], "even")
    way = teacher_way(PLAN, ranges, 7)
    visited = {t for t, _ in way}
    assert visited == {t for t, _ in PLAN.client_transitions(7, "karras")} | {19, 12, 6}
    assert all(prev == start for (_, prev), (start, _) in pairwise(way))
    part = Part(noise_batch(0, range(2), 3, PLAN.image_shape), zero())
    states = teacher_states(part, PLAN, way, {12, CLEAN})
    assert {level: x.shape for level, x in states.items()} == {12: (2, 1, 16, 16), CLEAN: (2, 1, 16, 16)}
    assert teacher_way(PLAN, ranges, None) == PLAN.client_transitions()


def test_a_gain_within_chance_is_none() -> None:
    def errors(*values: float) -> Judgement:
        return Judgement(np.array(values), 1.0)

    assert errors(1, 1, 1, 1).is_better_than(errors(2, 2.1, 1.9, 2))
    assert not errors(1, 1, 1, 1).is_better_than(errors(0.8, 1.5, 0.7, 1.2))
    assert not errors(1, 1).is_better_than(errors(1, 1))
    assert not errors(2, 2.1).is_better_than(errors(1, 1))


def test_labels_and_tensors_stay_together_in_batches() -> None:
    labels = np.arange(19, dtype=np.int32)
    x = np.zeros((19, 1, 2, 2), np.float32)
    predict = in_batches(lambda part: lambda x, t: x + t + part[:, None, None, None].astype(np.float32), labels)
    np.testing.assert_array_equal(predict(x, 5)[:, 0, 0, 0], labels + 5)


def test_sharpness_is_the_power_of_the_laplacian() -> None:
    flat, point = np.full((1, 1, 5, 5), 0.4, np.float32), np.zeros((1, 1, 5, 5), np.float32)
    point[0, 0, 2, 2] = 1
    assert laplacian_power(flat) == 0
    assert laplacian_power(point) == pytest.approx((16 + 4) / 25)
    (rows,) = make_row_ranges(PLAN, [1])
    table = np.array([[1, 0, 0, 0.5, 0, 0, 0]], np.float32)
    half = judge(zero(), rows, table, point, point)
    assert (half.rmse, half.sharpness) == (pytest.approx(0.1), pytest.approx(0.25))
