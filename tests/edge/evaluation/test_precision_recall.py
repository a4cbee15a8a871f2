"""Precision and recall on sets whose answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_edge.evaluation.neighbours import precision_recall
from collafuse_runtimes.errors import InputError


def draws(seed: int, count: int, dimensions: int = 6) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal((count, dimensions))


def test_equal_distributions_have_the_same_precision_and_recall() -> None:
    found = precision_recall(draws(0, 800), draws(1, 800))
    assert found.precision == pytest.approx(found.recall, abs=0.05)
    assert found.precision > 0.8


def test_images_of_elsewhere_have_neither() -> None:
    found = precision_recall(draws(0, 300), draws(1, 300) + 50)
    assert (found.precision, found.recall) == (0.0, 0.0)


def test_a_set_against_itself_is_whole() -> None:
    x = draws(0, 200)
    assert (precision_recall(x, x).precision, precision_recall(x, x).recall) == (1.0, 1.0)


def test_real_looking_images_of_one_kind_lack_recall() -> None:
    real = np.concatenate([draws(0, 300), draws(1, 300) + 40])
    found = precision_recall(real[np.random.default_rng(0).permutation(600)], draws(2, 600))
    assert found.precision > 0.8
    assert 0.3 < found.recall < 0.6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 40), st.integers(5, 40))
def test_it_is_the_definition_written_out(seed: int, n: int, m: int) -> None:
    real, generated = draws(seed, n, 3), draws(seed + 1, m, 3)
    count = min(n, m)
    found = precision_recall(real, generated)

    def share(points: np.ndarray, manifold: np.ndarray) -> float:
        radius = [sorted(np.linalg.norm(manifold - one, axis=1))[3] for one in manifold]
        hits = [any(np.linalg.norm(p - c) <= r + 1e-9 for c, r in zip(manifold, radius, strict=True)) for p in points]
        return float(np.mean(hits))

    assert found.precision == pytest.approx(share(generated[:count], real[:count]))
    assert found.recall == pytest.approx(share(real[:count], generated[:count]))
    assert (found.k, found.count) == (3, count)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="3 images on a side are too few"):
        precision_recall(draws(0, 3), draws(1, 30))
