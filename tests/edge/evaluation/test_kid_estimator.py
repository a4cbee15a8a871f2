"""KID is the U-statistic of Binkowski et al. 2018, and its 95 % interval holds the true value 95 times in 100."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.evaluation.kid import BLOCK, Features, Mmd, kid_of_features, kid_on_reference_scale
from collafuse_runtimes.errors import InputError


def gaussian(count: int, dimensions: int, random: np.random.Generator, shift: float = 0, widen: float = 1) -> Features:
    """Features of decaying spread, one per unit of variance on average."""
    spread = 1 / np.sqrt(np.arange(1, dimensions + 1))
    spread /= np.sqrt((spread**2).mean())
    return widen * spread * random.standard_normal((count, dimensions)) + shift


@pytest.mark.parametrize(("n", "m"), [(20, 30), (60, 25), (BLOCK + 7, 40)])
def test_it_is_torchmetrics_polynomial_mmd_over_all_images(n: int, m: int) -> None:
    """Which its subsets become when they are as large as the sets; of unequal sets, its terms one by one."""
    from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

    random = np.random.default_rng(n)
    x, y = gaussian(n, 6, random), gaussian(m, 6, random, shift=0.3)
    found = kid_of_features(x, y).value
    as_tensors = [torch.from_numpy(f) for f in (x, y)]
    xx, yy, xy = (poly_kernel(as_tensors[i], as_tensors[j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    mean = [float((k.sum() - k.diag().sum()) / (len(k) * (len(k) - 1))) for k in (xx, yy)]
    assert found == pytest.approx(sum(mean) - 2 * float(xy.mean()), rel=1e-10)
    equal = kid_of_features(x[:m], y[:n][: len(x[:m])]) if n >= m else kid_of_features(x, y[:n])
    pair = (xx[:m, :m], xy[:m], yy) if n >= m else (xx, xy[:, :n], yy[:n, :n])
    assert equal.value == pytest.approx(float(maximum_mean_discrepancy(*pair)), rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_the_scale_of_the_features_does_not_matter(seed: int, scale: float, shift: float) -> None:
    random = np.random.default_rng(seed)
    x, y = gaussian(25, 5, random), gaussian(30, 5, random, shift=0.5)
    first, other = kid_on_reference_scale(x, y), kid_on_reference_scale(scale * x + shift, scale * y + shift)
    assert other.value == pytest.approx(first.value, rel=1e-6, abs=1e-7)
    assert other.error == pytest.approx(first.error, rel=1e-6)


@pytest.mark.parametrize("d", [0.1, 0.3, 0.51])
def test_one_means_that_every_feature_moved_by_half_a_deviation(d: float) -> None:
    """Of many independent features moved by d deviations each the score is (1 + d^2)^3 - 1."""
    random = np.random.default_rng(1)
    x, y = random.standard_normal((2, 1500, 2000))
    assert kid_on_reference_scale(7 * x, 7 * (y + d)).value == pytest.approx((1 + d**2) ** 3 - 1, abs=0.01)
    assert pytest.approx(1, abs=0.01) == (1 + 0.51**2) ** 3 - 1


def test_for_given_features_it_is_unbiased() -> None:
    """Against the closed form of one dimension: k = (xy + 1)^3 needs the first three moments alone."""

    def true_kid(shift: float, widen: float) -> float:
        moments = [(0.0, 1.0, 0.0), (shift, shift**2 + widen**2, shift**3 + 3 * shift * widen**2)]

        def k(a: tuple[float, ...], b: tuple[float, ...]) -> float:
            return a[2] * b[2] + 3 * a[1] * b[1] + 3 * a[0] * b[0] + 1

        return k(moments[0], moments[0]) + k(moments[1], moments[1]) - 2 * k(*moments)

    random = np.random.default_rng(0)
    for shift, widen in ((0.0, 1.0), (0.4, 0.8)):
        values = [
            kid_of_features(random.standard_normal((12, 1)), widen * random.standard_normal((9, 1)) + shift).value
            for _ in range(6000)
        ]
        assert abs(np.mean(values) - true_kid(shift, widen)) < 4 * np.std(values) / len(values) ** 0.5


@pytest.mark.parametrize(
    ("n", "m", "shift", "widen"), [(60, 60, 0.2, 1.0), (60, 60, 0.0, 0.8), (150, 50, 0.5, 1.0), (60, 60, 0.0, 1.0)]
)
def test_the_interval_holds_the_true_value(n: int, m: int, shift: float, widen: float) -> None:
    """Where the distributions are equal it is somewhat too wide: the linear part of the statistic vanishes there."""
    random = np.random.default_rng(3)
    truth = kid_on_reference_scale(gaussian(5000, 32, random), gaussian(5000, 32, random, shift, widen)).value
    runs = [kid_on_reference_scale(gaussian(n, 32, random), gaussian(m, 32, random, shift, widen)) for _ in range(300)]
    held = np.mean([low <= truth <= high for low, high in map(interval, runs)])
    is_null = (shift, widen) == (0, 1)
    assert 0.91 <= held <= (1.0 if is_null else 0.995)
    scatter, error = np.std([run.value for run in runs]), np.mean([run.error for run in runs])
    assert 0.85 * scatter < error < (2.5 if is_null else 1.35) * scatter


def interval(estimate: Mmd) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval


def test_features_that_do_not_vary_are_refused() -> None:
    with pytest.raises(InputError, match="no feature varies over the real images"):
        kid_on_reference_scale(np.full((5, 3), 2.0), np.random.default_rng(0).standard_normal((5, 3)))


@pytest.mark.parametrize(("real", "generated"), [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5,), (5,))])
def test_features_that_cannot_be_compared_are_refused(real: tuple[int, ...], generated: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"features of shapes .*; valid: \(N, D\) and \(M, D\), N, M at least 2"):
        kid_on_reference_scale(np.ones(real), np.ones(generated))
