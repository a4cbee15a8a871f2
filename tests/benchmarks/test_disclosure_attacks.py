"""Attacks and accounting on cases whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from collafuse_benchmarks.disclosure.accounting import guarantee, image_sensitivity
from collafuse_benchmarks.disclosure.attacks import (
    fit_prior,
    identify,
    psnr,
    wiener_by_covariance,
    wiener_by_spectrum,
)
from collafuse_benchmarks.disclosure.measure import Material, attack_cut
from collafuse_benchmarks.disclosure.verdict import verdict
from collafuse_runtimes.diffusion.plan import SplitPlan

FILTERS = pytest.mark.parametrize("wiener", [wiener_by_covariance, wiener_by_spectrum])


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape).astype(np.float32)


def smooth_images(seed: int, count: int, side: int = 16) -> np.ndarray:
    """Few smooth patterns mixed, so that other images of the set tell much about one."""
    patterns = np.stack([np.outer(np.cos(a * t), np.cos(b * t)) for a in (1, 2, 3) for b in (1, 2)
                         for t in [np.linspace(0, np.pi, side)]])  # fmt: skip
    mixed = np.einsum("nk,khw->nhw", draws(seed, count, len(patterns)), patterns)
    return (0.2 * mixed).clip(-1, 1).astype(np.float32)[:, None]


@FILTERS
def test_without_noise_the_image_is_returned(wiener) -> None:
    x_0, prior = smooth_images(1, 8), fit_prior(smooth_images(0, 40))
    y = x_0 + 1e-6 * draws(2, *x_0.shape)
    assert psnr(wiener(prior, y, 1e-12), x_0).min() > 100


@FILTERS
def test_of_noise_alone_nothing_but_the_mean_image_is_guessed(wiener) -> None:
    x_0, prior = smooth_images(1, 8), fit_prior(smooth_images(0, 40))
    s = 1e12
    guess = wiener(prior, (x_0 + math.sqrt(s) * draws(2, *x_0.shape)).astype(np.float32), s)
    mean_image = np.broadcast_to(prior.mean, x_0.shape).astype(np.float32)
    assert np.abs(guess - mean_image).max() < 1e-3
    assert psnr(guess, x_0).mean() == pytest.approx(psnr(mean_image, x_0).mean(), abs=0.01)


@settings(deadline=None, max_examples=15)
@given(st.floats(0.02, 20.0), st.integers(0, 2**31))
def test_the_filters_beat_both_the_tensor_and_the_mean_image(s: float, seed: int) -> None:
    x_0, prior = smooth_images(seed, 60), fit_prior(smooth_images(seed + 1, 200))
    y = (x_0 + math.sqrt(s) * draws(seed + 2, *x_0.shape)).astype(np.float32)
    mean_image = np.broadcast_to(prior.mean, x_0.shape).astype(np.float32)
    guess = psnr(wiener_by_covariance(prior, y, s), x_0).mean()
    assert guess > psnr(y, x_0).mean()
    assert guess > psnr(mean_image, x_0).mean() - 0.05


def test_the_filter_is_the_posterior_mean_of_a_normal_prior() -> None:
    """Against Sigma (Sigma + s I)^-1 written out."""
    references, y, s = smooth_images(0, 30, side=4), draws(3, 5, 1, 4, 4), 0.3
    prior = fit_prior(references)
    flat = references.reshape(30, -1).astype(np.float64)
    sample = np.cov(flat.T, bias=True)
    share = prior.floor / (np.trace(sample) / 16)
    sigma = (1 - share) * sample + prior.floor * np.eye(16)
    wanted = flat.mean(axis=0) + (y.reshape(5, -1) - flat.mean(axis=0)) @ np.linalg.solve(sigma + s * np.eye(16), sigma)
    found = wiener_by_covariance(prior, y, s).reshape(5, -1)
    assert np.abs(found - wanted.clip(-1, 1)).max() < 1e-5


def test_independent_noise_is_identified_by_chance_alone() -> None:
    candidates = draws(0, 200, 1, 8, 8).clip(-1, 1)
    hits = sum(int((identify(draws(seed, 200, 1, 8, 8), candidates) == np.arange(200)).sum()) for seed in range(1, 11))
    assert hits <= 10 + 4 * math.sqrt(10)  # 2000 tries of chance 1/200


def test_hardly_noised_images_are_all_identified() -> None:
    candidates = draws(0, 200, 1, 8, 8).clip(-1, 1)
    assert (identify(candidates + 0.05 * draws(1, 200, 1, 8, 8), candidates) == np.arange(200)).all()


@pytest.mark.parametrize(
    ("alpha_bar", "rho_image", "rho_pixel", "bound_pixel"),
    [(0.889, 262_714, 16.0, 43.2), (0.633, 56_400, 3.44, 16.0), (0.326, 15_858, 0.97, 7.6), (0.085, 3_050, 0.19, 3.1)],
)
def test_zcdp_is_what_was_computed_before(
    alpha_bar: float, rho_image: float, rho_pixel: float, bound_pixel: float
) -> None:
    """Of 128x128 images; epsilon lies below zCDP's bound rho + 2 sqrt(rho ln(1 / delta))."""
    sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
    image = guarantee("one image", image_sensitivity((1, 128, 128)), sigma, 1e-5)
    pixel = guarantee("one pixel", 2.0, sigma, 1e-5)
    assert image.zcdp == pytest.approx(rho_image, rel=5e-3)
    assert pixel.zcdp == pytest.approx(rho_pixel, rel=0.03)
    assert pixel.zcdp + 2 * math.sqrt(pixel.zcdp * math.log(1e5)) == pytest.approx(bound_pixel, rel=0.02)
    assert 0.6 * bound_pixel < pixel.epsilon < bound_pixel


@settings(deadline=None, max_examples=25)
@given(st.floats(0.3, 10.0), st.floats(0.1, 5.0), st.sampled_from([1e-3, 1e-5, 1e-7]))
def test_epsilon_is_exactly_the_mechanisms(sigma: float, sensitivity: float, delta: float) -> None:
    """Balle & Wang 2018, theorem 8, with scipy's normal distribution."""
    found = guarantee("one pixel", sensitivity, sigma, delta)
    a, b = sensitivity / (2 * sigma), found.epsilon * sigma / sensitivity
    exact = norm.cdf(a - b) - math.exp(found.epsilon + norm.logcdf(-a - b))
    assert exact == pytest.approx(delta, rel=1e-3) if found.epsilon > 0 else exact <= delta


def test_images_of_one_patient_add_up() -> None:
    one = guarantee("one image", 64.0, 3.0, 1e-5)
    four = guarantee("one patient", 64.0, 3.0, 1e-5, images=4)
    assert (four.sensitivity, four.zcdp) == (128.0, pytest.approx(4 * one.zcdp))


def attacked(c: float, **changes: object) -> object:
    x_0 = smooth_images(1, 40)
    material = Material(x_0[:20], x_0, None, fit_prior(smooth_images(0, 100)), None, -1, "none asked for")
    plan = SplitPlan((1, 16, 16), cut_ratio=c)
    return attack_cut(material, plan, seed=0, delta=1e-5, images_per_patient=None).cut


def test_a_larger_cut_discloses_less() -> None:
    cuts = [attacked(c) for c in (0.1, 0.4, 0.7, 0.95)]
    guesses = [cut.best.psnr for cut in cuts]
    assert guesses == sorted(guesses, reverse=True)
    assert guesses[0] - guesses[-1] > 10
    assert [cut.at_plan_size.share for cut in cuts] == sorted([cut.at_plan_size.share for cut in cuts], reverse=True)


def test_a_second_look_with_fresh_noise_is_worth_half_the_variance() -> None:
    cut = attacked(0.4)
    assert 0.5 < cut.second_look.gain <= 3.1
    assert cut.second_look.psnr == pytest.approx(cut.best.psnr + cut.second_look.gain)


def test_what_was_not_measured_is_null_with_a_reason() -> None:
    cut = attacked(0.4)
    assert (cut.network, cut.network_reason) == (None, "none asked for")
    assert "images-per-patient" in cut.patient_reason
    assert [one.unit for one in cut.guarantees] == ["one pixel", "one image"]


def test_the_words_follow_the_figures() -> None:
    open_cut, noisy = attacked(0.05), attacked(0.98)
    assert "can be made out" in open_cut.verdict
    assert "as good as named" in open_cut.verdict
    assert "hardly better than the mean image" in noisy.verdict
    assert "no better than that by much" in noisy.verdict
    guaranteed = (guarantee("one image", 1.0, 3.0, 1e-5),)
    assert "Guaranteed for an image: epsilon" in verdict(noisy.mean_image, noisy.best, noisy.at_plan_size, guaranteed)
