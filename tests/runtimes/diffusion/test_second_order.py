"""DPM-Solver++ 2M: diffusers' scheduler step by step, second order on a Gaussian whose exact solution is known."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, Transition
from collafuse_runtimes.diffusion.samplers import (
    Sampler,
    StepCoefficients,
    apply_step,
    denoise,
    step_coefficients,
    step_table,
)
from collafuse_runtimes.diffusion.schedule import log_snr

TWO_M = Sampler("dpm++2m", levels="log-snr")
PLAN = SplitPlan((1, 8, 8), cut_ratio=0.6)
S, MEAN = 0.15, 0.3  # of the data; six standard deviations lie within the clip range


def whole(plan: SplitPlan, steps: int, levels: str) -> tuple[Transition, ...]:
    return plan.with_cut_ratio(0).server_transitions(steps, levels)


def best_epsilon(plan: SplitPlan) -> Callable[[Any, int], Any]:
    """E[epsilon | x_t] of x_0 ~ N(MEAN, S^2)."""

    def predict(x_t: Any, t: int) -> Any:
        a = plan.alpha_bar_at(t)
        return (1 - a) ** 0.5 * (x_t - a**0.5 * MEAN) / (a * S**2 + 1 - a)

    return predict


@pytest.mark.parametrize("levels", ["even", "log-snr", "karras"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 25])
def test_every_tensor_is_that_of_diffusers(levels: str, schedule: str, steps: int) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import DPMSolverMultistepScheduler

    plan = SplitPlan((1, 8, 8), schedule=schedule, cut_ratio=0.6)
    if schedule == "cosine":  # alpha_bar_99 = 2e-7 is beyond the float32 sigmas of diffusers
        chain: tuple[Transition, ...] = plan.client_transitions(min(steps, plan.cut), levels)
    else:
        chain = whole(plan, steps, levels)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=100,
        trained_betas=1 - plan.alpha_bar / np.array([1.0, *plan.alpha_bar[:-1]]),
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=[t for t, _ in chain])
    assert scheduler.timesteps.tolist() == [t for t, _ in chain]
    predict, seen, wanted = best_epsilon(plan), [], []
    x = 0.5 * torch.randn(3, *plan.image_shape, generator=torch.Generator().manual_seed(0))
    denoise(x, plan, chain, TWO_M, predict, on_step=lambda _, x: seen.append(x))
    for t, _ in chain:
        x = scheduler.step(predict(x, t), t, x).prev_sample
        wanted.append(x)
    assert max(float((a - b).abs().max()) for a, b in zip(seen, wanted, strict=True)) < 1e-4


def exact(plan: SplitPlan, x: float, start: int, end: int) -> float:
    """The probability-flow ODE of x_0 ~ N(MEAN, S^2) keeps (x - sqrt(alpha_bar) MEAN) / sqrt(alpha_bar S^2 + 1 -
    alpha_bar)."""
    a, b = plan.alpha_bar_at(start), plan.alpha_bar_at(end)
    return b**0.5 * MEAN + (x - a**0.5 * MEAN) * ((b * S**2 + 1 - b) / (a * S**2 + 1 - a)) ** 0.5


def error(sampler: Sampler, timesteps: Sequence[int]) -> float:
    """At the end of a float64 trajectory through these timesteps of a fine schedule, over start points."""
    plan = SplitPlan((1, 1, 1), timesteps=1000, cut_ratio=0.9)
    predict, worst = best_epsilon(plan), 0.0
    for start in (-1.0, 0.4, 1.5):
        x, x_0, before = start, 0.0, None
        for t, prev in pairwise(timesteps):
            levels = plan.alpha_bar_at(t), plan.alpha_bar_at(prev)
            row = step_coefficients(*levels, sampler, alpha_bar_before=before)
            clean = (x + row.x0_out * predict(x, t)) * row.x0_scale
            x = row.c_x0 * clean + row.c_xt * x + row.c_out * predict(x, t) + row.c_old * x_0
            x_0, before = clean, levels[0]
        worst = max(worst, abs(x - exact(plan, start, timesteps[0], timesteps[-1])))
    return worst


def test_the_error_falls_with_the_square_of_the_steps() -> None:
    """From timestep 899 to 99 on levels as even in log-SNR as 1000 timesteps allow: order 2 against DDIM's order 1."""
    plan = SplitPlan((1, 1, 1), timesteps=1000, cut_ratio=0.9)
    lambdas, counts = log_snr(plan.alpha_bar), (8, 16, 32, 64)
    errors: dict[str, list[float]] = {"dpm++2m": [], "ddim": []}
    for count in counts:
        wanted = np.linspace(lambdas[899], lambdas[99], count + 1)
        timesteps = [int(np.abs(lambdas - w).argmin()) for w in wanted]
        for name, found in errors.items():
            found.append(error(Sampler(name), timesteps))
    orders = {name: math.log2(found[0] / found[-1]) / 3 for name, found in errors.items()}
    assert 1.7 < orders["dpm++2m"] < 2.6
    assert 0.8 < orders["ddim"] < 1.3
    assert errors["dpm++2m"][0] < errors["ddim"][0] / 2


@pytest.mark.parametrize(("steps", "most"), [(5, 0.02), (10, 0.006), (20, 0.002)])
def test_float32_trajectories_end_where_the_exact_solution_ends(steps: int, most: float) -> None:
    x = np.linspace(-1.5, 1.5, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    chain = PLAN.client_transitions(steps, "karras")
    result = denoise(x, PLAN, chain[:-1], TWO_M, best_epsilon(PLAN))
    wanted = np.vectorize(lambda v: exact(PLAN, v, chain[0][0], chain[-1][0]))(x)
    assert np.abs(result - wanted).max() < most


def test_the_first_row_has_no_history_and_the_last_is_x_0() -> None:
    table = step_table(PLAN, PLAN.client_transitions(5, "karras"), TWO_M)
    assert table.shape == (5, 7)
    assert table[0, 6] == 0 and (table[1:4, 6] < 0).all()
    np.testing.assert_array_equal(table[4, 2:], [1, 0, 0, 0, 0])
    by_formula = step_coefficients(
        PLAN.alpha_bar_at(59), PLAN.alpha_bar_at(PLAN.client_transitions(5, "karras")[0][1]), TWO_M
    )
    np.testing.assert_allclose(table[0], by_formula, rtol=1e-6)


def test_a_table_of_several_step_counts_begins_anew_with_each() -> None:
    five, three = PLAN.client_transitions(5, "karras"), PLAN.client_transitions(3, "karras")
    table = step_table(PLAN, (*five, *three), TWO_M)
    np.testing.assert_array_equal(table[:5], step_table(PLAN, five, TWO_M))
    np.testing.assert_array_equal(table[5:], step_table(PLAN, three, TWO_M))


def test_order_one_is_ddim() -> None:
    """A single step of 2M between any two levels is DDIM's (Lu et al. 2022, section 4)."""
    rng = np.random.default_rng(0)
    x, eps = (rng.standard_normal((2, 1, 8, 8)).astype(np.float32) for _ in range(2))
    for t, prev in ((59, 30), (30, 4), (99, 59), (4, -1)):
        a, b = PLAN.alpha_bar_at(t), PLAN.alpha_bar_at(prev)
        rows = [step_coefficients(a, b, sampler) for sampler in (TWO_M, Sampler())]
        wide = (-1e9, 1e9)  # past the clip the two differ on purpose: 2M moves by x_0, DDIM by epsilon
        first, second = (apply_step(x, eps, StepCoefficients(*map(np.float32, row)), wide)[0] for row in rows)
        np.testing.assert_allclose(first, second, rtol=2e-4, atol=2e-5)


def test_a_server_s_trajectory_may_end_at_order_two() -> None:
    chain = PLAN.server_transitions(10)
    assert step_table(PLAN, chain, TWO_M)[-1, 6] < 0
    x: Float32Array = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    assert np.isfinite(denoise(x, PLAN, chain, TWO_M, best_epsilon(PLAN))).all()
