"""On Gaussian data the best eps is known, so what a sampler makes of the noise is known in closed form.

For x_0 ~ N(0, s^2): v_t = alpha_bar_t s^2 + 1 - alpha_bar_t and E[eps | x_t] = sqrt(1 - alpha_bar_t) x_t / v_t. With
the vectors a_t = (sqrt(alpha_bar_t) s, sqrt(1 - alpha_bar_t)), |a_t|^2 = v_t, a DDIM step (eta 0) multiplies x by
a_prev . a_t / |a_t|^2, so a chain multiplies it by |a_end| / |a_start| times the cosines of the angles between levels.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from collafuse_runtimes.diffusion.noise import Float32Array, noise_batch
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, denoise

S = 0.15  # six standard deviations lie within the clip range


def variance(alpha_bar: float) -> float:
    return alpha_bar * S**2 + 1 - alpha_bar


def best_epsilon(plan: SplitPlan) -> Callable[[Float32Array, int], Float32Array]:
    def predict(x_t: Float32Array, t: int) -> Float32Array:
        alpha_bar = plan.alpha_bar_at(t)
        return np.float32((1 - alpha_bar) ** 0.5 / variance(alpha_bar)) * x_t

    return predict


def angle(alpha_bar: float) -> float:
    return math.atan2((1 - alpha_bar) ** 0.5, alpha_bar**0.5 * S)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("timesteps", "steps"), [(100, 100), (100, 9), (1000, 1000), (1000, 37)])
def test_ddim_scales_noise_as_in_closed_form(schedule: str, timesteps: int, steps: int) -> None:
    plan = SplitPlan((1, 4, 4), timesteps=timesteps, schedule=schedule, cut_ratio=0)
    chain = plan.server_transitions(steps)
    x = np.linspace(-3, 3, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    levels = [plan.alpha_bar_at(t) for t in (chain[0][0], *(prev for _, prev in chain))]
    cosines = math.prod(math.cos(angle(a) - angle(b)) for a, b in pairwise(levels))
    factor = S / variance(levels[0]) ** 0.5 * cosines
    result = denoise(x, plan, chain, Sampler(), best_epsilon(plan))
    np.testing.assert_allclose(result, factor * x, rtol=0, atol=3e-6)
    if steps == 1000:
        assert factor == pytest.approx(S, rel=0.015)


@pytest.mark.parametrize("sampler", [Sampler("ddpm"), Sampler("ddim", 1)], ids=["ddpm", "ddim-1"])
@pytest.mark.parametrize("steps", [100, 8])
def test_ancestral_sampling_ends_with_the_variance_in_closed_form(sampler: Sampler, steps: int) -> None:
    """Each step is x_prev = m x_t + sigma z with m = sqrt(alpha_bar_prev alpha_bar_t) s^2 / v_t plus x_t's own share of
    the posterior mean (Ho et al. 2020, eq. 7), so variances follow var_prev = m^2 var_t + sigma^2."""
    plan = SplitPlan((1, 64, 64), timesteps=100, cut_ratio=0)
    chain, expected, rows = plan.server_transitions(steps), 1.0, range(16)
    for t, prev in chain:
        a, a_prev = plan.alpha_bar_at(t), plan.alpha_bar_at(prev)
        beta = 1 - a / a_prev
        mean_x_0 = a**0.5 * S**2 / variance(a)
        m = (a_prev**0.5 * beta * mean_x_0 + (1 - beta) ** 0.5 * (1 - a_prev)) / (1 - a)
        expected = m**2 * expected + beta * (1 - a_prev) / (1 - a)

    def noise(t: int) -> Float32Array:
        return noise_batch(3, rows, t, plan.image_shape)

    result = denoise(noise(100), plan, chain, sampler, best_epsilon(plan), noise=noise)
    found = float(np.mean(result.astype(np.float64) ** 2))
    assert found == pytest.approx(expected, rel=5 * math.sqrt(2 / result.size))
