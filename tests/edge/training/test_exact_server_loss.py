"""The server learns the true E[eps | x_t] from images that were noised once, before they left their owner.

Prior: x_0 is -A or +A. Then p(x_n) is a mixture of two Gaussians and
E[eps | x_t] = (x_t - sqrt(alpha_bar_t) A tanh(sqrt(alpha_bar_t) A x_t / (1 - alpha_bar_t))) / sqrt(1 - alpha_bar_t).
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse_edge.training.losses import (
    exact_server_pair,
    exact_server_v_target,
    v_of_triple,
    v_target,
)
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.schedule import diffuse

A = 0.7
PLAN = SplitPlan((1, 1, 1), timesteps=50, cut_ratio=0.3)
LEVELS = 10
"""Levels above the cut that the small network learns; there r_t runs from 0.37 to 0.86."""


def true_epsilon(x_t: Any, alpha_bar_t: Any) -> Any:
    root = np.sqrt(alpha_bar_t)
    return (x_t - root * A * np.tanh(root * A * x_t / (1 - alpha_bar_t))) / np.sqrt(1 - alpha_bar_t)


def true_eta(x_t: float, alpha_bar_n: float, alpha_bar_t: float) -> float:
    """E[eta | x_t] = int eta phi(eta) p(x_n(x_t, eta)) d eta / int phi(eta) p(x_n(x_t, eta)) d eta, by the trapezoidal
    rule, which converges geometrically for these integrands; x_n(x_t, eta) solves the pair's x_t for x_n."""
    eta = np.linspace(-12, 12, 200_001)
    of_x_n, of_eta = (exact_server_pair(*unit, alpha_bar_n, alpha_bar_t)[0] for unit in ((1.0, 0.0), (0.0, 1.0)))
    x_n = (x_t - of_eta * eta) / of_x_n
    logs = [-((x_n - sign * A * alpha_bar_n**0.5) ** 2) / (2 * (1 - alpha_bar_n)) - eta**2 / 2 for sign in (-1, 1)]
    log_weight = np.logaddexp(*logs)
    weight = np.exp(log_weight - log_weight.max())
    return float((eta * weight).sum() / weight.sum())


@pytest.mark.parametrize("cut_ratio", [0.06, 0.3, 0.8])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_expected_eta_is_r_times_expected_epsilon(schedule: str, cut_ratio: float) -> None:
    plan = SplitPlan((1, 1, 1), timesteps=50, schedule=schedule, cut_ratio=cut_ratio)
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    for t in np.linspace(plan.cut, 46, 4).astype(int):
        alpha_bar_t = plan.alpha_bar_at(int(t))
        _, r_t = exact_server_pair(0.0, 0.0, alpha_bar_n, alpha_bar_t)
        assert 0 < r_t <= 1
        for deviation in (-3, -0.7, 0.2, 1.9):
            x_t = alpha_bar_t**0.5 * A + deviation * (1 - alpha_bar_t) ** 0.5
            difference = true_eta(x_t, alpha_bar_n, alpha_bar_t) - r_t * true_epsilon(x_t, alpha_bar_t)
            assert abs(difference) < 1e-10


def true_v(x_t: Any, alpha_bar_t: Any) -> Any:
    """E[v | x_t] = sqrt(alpha_bar_t) E[epsilon | x_t] - sqrt(1 - alpha_bar_t) E[x_0 | x_t] of the two-point prior."""
    x_0 = A * np.tanh(np.sqrt(alpha_bar_t) * A * x_t / (1 - alpha_bar_t))
    return np.sqrt(alpha_bar_t) * true_epsilon(x_t, alpha_bar_t) - np.sqrt(1 - alpha_bar_t) * x_0


@pytest.mark.parametrize("cut_ratio", [0.06, 0.3, 0.8])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_minimiser_of_the_v_loss_is_the_expected_v(schedule: str, cut_ratio: float) -> None:
    """The target is linear in (x_n, eta) and x_n in eta for a given x_t, so E[target | x_t] follows from E[eta | x_t];
    it must be r_t E[v | x_t] for every x_t."""
    plan = SplitPlan((1, 1, 1), timesteps=50, schedule=schedule, cut_ratio=cut_ratio)
    alpha_bar_n = plan.alpha_bar_at(plan.handover_level)
    for t in np.linspace(plan.cut, 49, 4).astype(int):
        levels = alpha_bar_n, plan.alpha_bar_at(int(t))
        of_x_n, of_eta = (exact_server_pair(*unit, *levels)[0] for unit in ((1.0, 0.0), (0.0, 1.0)))
        r_t = exact_server_pair(0.0, 0.0, *levels)[1]
        for deviation in (-3, -0.7, 0.2, 1.9):
            x_t = levels[1] ** 0.5 * A + deviation * (1 - levels[1]) ** 0.5
            eta = r_t * true_epsilon(x_t, levels[1])
            expected = exact_server_v_target((x_t - of_eta * eta) / of_x_n, eta, *levels)
            assert abs(expected - r_t * true_v(x_t, levels[1])) < 1e-9


@given(st.floats(-2, 2), st.floats(-4, 4), st.floats(-5, 5), st.sampled_from(range(15, 49)))
def test_the_v_loss_is_the_epsilon_loss_over_alpha_bar(x_n: float, eta: float, out: float, t: int) -> None:
    alpha_bar_n, a = PLAN.alpha_bar_at(14), PLAN.alpha_bar_at(t)
    x_t, r_t = exact_server_pair(x_n, eta, alpha_bar_n, a)
    epsilon = a**0.5 * out + (1 - a) ** 0.5 * x_t
    of_v = exact_server_v_target(x_n, eta, alpha_bar_n, a) - r_t * out
    assert a**0.5 * of_v == pytest.approx(eta - r_t * epsilon, rel=1e-9, abs=1e-9)


@given(st.floats(-1, 1), st.floats(-4, 4), st.floats(1e-4, 0.9999))
def test_v_epsilon_and_x_0_lead_to_each_other(x_0: float, epsilon: float, a: float) -> None:
    x_t, v = diffuse(x_0, epsilon, a), v_target(x_0, epsilon, a)
    assert a**0.5 * v + (1 - a) ** 0.5 * x_t == pytest.approx(epsilon, abs=1e-9)
    assert a**0.5 * x_t - (1 - a) ** 0.5 * v == pytest.approx(x_0, abs=1e-9)
    assert v_of_triple(x_t, epsilon, a) == pytest.approx(v, abs=1e-9)


@pytest.mark.parametrize(("n", "t"), [(0, 1), (14, 15), (14, 49), (40, 41)])
def test_further_noise_gives_the_marginal_of_level_t(n: int, t: int) -> None:
    """Mean sqrt(alpha_bar_t) x_0 and variance 1 - alpha_bar_t, from the coefficients themselves."""
    alpha_bar_n, alpha_bar_t = PLAN.alpha_bar_at(n), PLAN.alpha_bar_at(t)
    of_x_n, _ = exact_server_pair(1.0, 0.0, alpha_bar_n, alpha_bar_t)
    of_eta, _ = exact_server_pair(0.0, 1.0, alpha_bar_n, alpha_bar_t)
    of_x_0, of_epsilon = diffuse(1.0, 0.0, alpha_bar_n), diffuse(0.0, 1.0, alpha_bar_n)
    assert of_x_n * of_x_0 == pytest.approx(alpha_bar_t**0.5, rel=1e-12)
    assert (of_x_n * of_epsilon) ** 2 + of_eta**2 == pytest.approx(1 - alpha_bar_t, rel=1e-12)


def test_from_clean_images_it_is_the_ordinary_loss() -> None:
    x_t, r_t = exact_server_pair(0.4, -1.3, 1.0, 0.6)
    assert r_t == 1
    assert x_t == diffuse(0.4, -1.3, 0.6)


def test_arrays_and_tensors_give_the_same_pair() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x_n, eta = random.standard_normal((2, 5, 1, 3, 3)).astype(np.float32)
    alpha_bar_n, alpha_bar_t = (np.full((5, 1, 1, 1), v, np.float32) for v in (0.8, 0.3))
    arrays = exact_server_pair(x_n, eta, alpha_bar_n, alpha_bar_t)
    tensors = exact_server_pair(*map(torch.from_numpy, (x_n, eta, alpha_bar_n, alpha_bar_t)))
    assert arrays[1].shape == (5, 1, 1, 1)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=2e-7)


def trained_rms(*, exact: bool) -> float:
    """Train a small eps_theta(x_t, t) on released x_n alone; its rms distance to the true E[eps | x_t]."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    alpha_bar = torch.from_numpy(PLAN.alpha_bar.copy()).float()
    alpha_bar_n = alpha_bar[PLAN.handover_level]
    signs = torch.randint(0, 2, (100_000,), generator=draw) * 2 - 1
    released = diffuse(A * signs, torch.randn(signs.shape, generator=draw), alpha_bar_n)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 32), torch.nn.SiLU(), torch.nn.Linear(32, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1)
    )

    def eps_theta(x_t: Any, t: Any) -> Any:
        return network(torch.stack([2 * x_t, (t - PLAN.cut) / LEVELS - 0.5], dim=-1)).squeeze(-1)

    steps = 700
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_n = released[torch.randint(0, len(released), (2048,), generator=draw)]
        t = PLAN.cut + torch.randint(0, LEVELS, x_n.shape, generator=draw)
        eta = torch.randn(x_n.shape, generator=draw)
        x_t, r_t = exact_server_pair(x_n, eta, alpha_bar_n, alpha_bar[t])
        loss = (eta - (r_t if exact else 1) * eps_theta(x_t, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    t = (PLAN.cut + torch.arange(LEVELS)).repeat_interleave(2000)
    signs = torch.randint(0, 2, t.shape, generator=draw) * 2 - 1
    x_t = diffuse(A * signs, torch.randn(t.shape, generator=draw), alpha_bar[t])
    with torch.inference_mode():
        found = eps_theta(x_t, t).numpy()
    return float(np.sqrt(np.mean((found - true_epsilon(x_t.numpy(), alpha_bar[t].numpy())) ** 2)))


def test_a_trained_network_finds_the_true_epsilon_and_the_naive_loss_does_not() -> None:
    exact, naive = trained_rms(exact=True), trained_rms(exact=False)
    assert exact < 0.08
    assert naive > 3 * exact
