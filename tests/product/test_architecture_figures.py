"""The figures docs/architecture.md gives for the price of an upload, for mixed cuts and for few steps are these."""

import math
import re

import numpy as np
import pytest
from places import ROOT

from collafuse_edge.training.losses import WEIGHT_CAP, exact_server_pair, mixture_weights
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler, step_coefficients
from collafuse_runtimes.diffusion.schedule import alpha_bar, diffuse

TEXT = (ROOT / "docs" / "architecture.md").read_text()
PLAN = SplitPlan((1, 1, 1), timesteps=100)


def cells(first: str) -> list[str]:
    """The other cells of the table row that begins with this one."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \| (.*) \|$", TEXT, re.MULTILINE)
    return row.split(" | ")


def epsilon_variance(alpha_bar_t: float, s: float) -> float:
    """Var(eps | x_t) of Gaussian images: one minus the explained share of a jointly Gaussian pair."""
    return 1 - (1 - alpha_bar_t) / (alpha_bar_t * s**2 + 1 - alpha_bar_t)


def draw_efficiency(alpha_bar_n: float, alpha_bar_t: float, s: float) -> float:
    """Var(eps | x_t) / Var(eta / r | x_t): what a draw from x_n is worth beside one from clean images."""
    _, r_t = exact_server_pair(0.0, 0.0, alpha_bar_n, alpha_bar_t)
    v = epsilon_variance(alpha_bar_t, s)
    return float(r_t**2 * v / (r_t**2 * v + 1 - r_t**2))


@pytest.mark.parametrize("c", [0.2, 0.4, 0.8])
def test_efficiency_of_a_draw(c: float) -> None:
    cut = round(100 * c)
    found = [draw_efficiency(PLAN.alpha_bar[cut - 1], PLAN.alpha_bar[cut + above], 0.3) for above in (0, 5, 15)]
    assert cells(f"c = {c}") == [f"{100 * share:.2f}" for share in found]


@pytest.mark.parametrize(("n", "t"), [(19, 20), (19, 35), (79, 84)])
def test_the_variance_of_the_targets_is_that_of_draws(n: int, t: int) -> None:
    """Residuals of the best linear prediction, from the product's own pair."""
    a_n, a_t = PLAN.alpha_bar[n], PLAN.alpha_bar[t]
    random = np.random.default_rng(0)
    x_0, epsilon, eta = random.standard_normal((3, 400_000)) * np.array([[0.3], [1], [1]])
    x_t, r_t = exact_server_pair(diffuse(x_0, epsilon, a_n), eta, a_n, a_t)
    residual = np.var(eta - np.polyval(np.polyfit(x_t, eta, 1), x_t))
    v = epsilon_variance(a_t, 0.3)
    assert residual == pytest.approx(r_t**2 * v + 1 - r_t**2, rel=0.01)
    assert v / (residual / r_t**2) == pytest.approx(draw_efficiency(a_n, a_t, 0.3), rel=0.01)


def deviation_ratio(sampler: Sampler, steps: int, s: float) -> float:
    """Standard deviation of the hand-over by the exact score, over the true one; no value meets the clip."""
    plan, variance = PLAN.with_cut_ratio(0.2), 1.0
    for t, prev in plan.server_transitions(steps):
        a = plan.alpha_bar_at(t)
        row = step_coefficients(a, plan.alpha_bar_at(prev), sampler)
        epsilon = math.sqrt(1 - a) / (a * s**2 + 1 - a)  # E[eps | x_t] / x_t
        x_0 = row.x0_scale * (1 + row.x0_out * epsilon)
        variance = (row.c_x0 * x_0 + row.c_xt + row.c_out * epsilon) ** 2 * variance + row.sigma**2
    a_n = plan.alpha_bar_at(plan.handover_level)
    return math.sqrt(variance / (a_n * s**2 + 1 - a_n))


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_few_steps_narrow_the_distribution(name: str) -> None:
    found = [deviation_ratio(Sampler(name), steps, 0.5) for steps in (80, 20, 10, 5)]
    assert cells(name.upper()) == [f"{ratio:.3f}" for ratio in found]
    assert cells("server steps") == ["80", "20", "10", "5"]


def test_what_the_cap_costs() -> None:
    weights = mixture_weights(PLAN.alpha_bar, (20, 80), exact=True)
    assert f"largest weight is {weights.max():.2f} and the cap never acts" in " ".join(TEXT.split())
    assert (weights[0, 20:] == 1).all()
    late, middle = (mixture_weights(alpha_bar("cosine", 1000), (200, cut), exact=True)[0, 200:] for cut in (800, 400))
    assert [round(float(w), 2) for w in late[late < 1]] == [0.43, 0.86]
    assert (int((middle < 1).sum()), round(float(middle.min()), 2)) == (9, 0.11)
    assert WEIGHT_CAP == 10
