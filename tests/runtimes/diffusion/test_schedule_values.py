"""alpha_bar is the closed form of the papers, and diffusers' schedule to float32."""

import math

import numpy as np
import pytest

from collafuse_runtimes.diffusion.plan import CLEAN, SplitPlan
from collafuse_runtimes.diffusion.schedule import MAX_BETA, alpha_bar, cosine_betas, linear_betas

COUNTS = (2, 3, 10, 100, 1000)


def f(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


@pytest.mark.parametrize("timesteps", COUNTS)
def test_cosine_is_nichol_and_dhariwal_eq_17(timesteps: int) -> None:
    closed = np.array([f((t + 1) / timesteps) / f(0) for t in range(timesteps)])
    clipped = cosine_betas(timesteps) == MAX_BETA
    assert clipped.tolist() == [False] * (timesteps - 1) + [True]
    np.testing.assert_allclose(alpha_bar("cosine", timesteps)[:-1], closed[:-1], rtol=1e-11)


@pytest.mark.parametrize("timesteps", COUNTS)
def test_linear_is_ho_et_al_scaled_to_t(timesteps: int) -> None:
    scale = 1000 / timesteps
    betas = [scale * (1e-4 + (0.02 - 1e-4) * t / (timesteps - 1)) for t in range(timesteps)]
    np.testing.assert_allclose(linear_betas(timesteps), np.minimum(betas, 0.999), rtol=1e-12)
    logs = np.cumsum([math.log1p(-min(beta, 0.999)) for beta in betas])
    np.testing.assert_allclose(np.log(alpha_bar("linear", timesteps)), logs, rtol=1e-10)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("timesteps", range(2, 1001, 37))
def test_alpha_bar_falls_strictly_within_0_and_1(schedule: str, timesteps: int) -> None:
    values = alpha_bar(schedule, timesteps)
    assert values.shape == (timesteps,)
    assert values.dtype == np.float64
    assert np.all(np.diff(values) < 0)
    assert values[0] < 1
    assert values[-1] > 0


def test_alpha_bar_is_shared_and_so_cannot_be_written() -> None:
    values = alpha_bar("cosine", 100)
    assert alpha_bar("cosine", 100) is values
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 0.5


def test_ho_et_als_last_level() -> None:
    assert alpha_bar("linear", 1000)[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_the_level_below_timestep_0_is_clean() -> None:
    plan = SplitPlan((1, 8, 8))
    assert plan.alpha_bar_at(CLEAN) == 1.0
    assert [plan.alpha_bar_at(t) for t in range(100)] == plan.alpha_bar.tolist()


@pytest.mark.parametrize("timesteps", [10, 100, 1000])
def test_cosine_betas_are_diffusers(timesteps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(timesteps, beta_schedule="squaredcos_cap_v2").betas.numpy()
    np.testing.assert_allclose(cosine_betas(timesteps), theirs, rtol=1e-6)


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_linear_betas_are_diffusers(timesteps: int) -> None:
    """At T < 20 the scaled schedule leaves [0, 1] in diffusers; here it is clipped."""
    diffusers = pytest.importorskip("diffusers")
    scale = 1000 / timesteps
    theirs = diffusers.DDPMScheduler(timesteps, beta_start=1e-4 * scale, beta_end=0.02 * scale).betas.numpy()
    np.testing.assert_allclose(linear_betas(timesteps), theirs, rtol=1e-6)
