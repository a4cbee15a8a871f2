"""W(s) of an image is one Brownian path: variance s, independent increments, the same whatever was asked before."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collafuse_edge.upload.brownian import (
    LAST,
    grid_index,
    grid_time,
    level_time,
    path_value,
    path_weights,
)
from collafuse_runtimes.diffusion.schedule import SCHEDULES, alpha_bar
from collafuse_runtimes.errors import InputError

DIGEST = hashlib.sha256(b"an image").digest()
TIMES = st.floats(math.log(1e-6), math.log(1e15)).map(math.exp)
INDICES = st.integers(1, LAST)


def covariance(s: float, t: float) -> float:
    """Of W(s) and W(t), exactly: every node's draw is a standard normal of its own."""
    at_s, at_t = dict(path_weights(s)), dict(path_weights(t))
    return math.fsum(at_s[node] * at_t[node] for node in at_s.keys() & at_t.keys())


@settings(max_examples=300, deadline=None)
@given(INDICES, INDICES)
@example(1, LAST)
@example(LAST // 2, LAST // 2 + 1)
def test_the_covariance_is_the_smaller_time(i: int, j: int) -> None:
    s, t = grid_time(i), grid_time(j)
    assert covariance(s, t) == pytest.approx(min(s, t), rel=1e-12)
    assert covariance(s, s) == pytest.approx(s, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(INDICES, min_size=4, max_size=4, unique=True))
def test_increments_are_independent(indices: list[int]) -> None:
    q, r, s, t = (grid_time(i) for i in sorted(indices))
    between = covariance(r, t) - covariance(r, s) - covariance(q, t) + covariance(q, s)
    assert abs(between) <= 1e-12 * ((r - q) * (t - s)) ** 0.5 + 1e-12 * r


@settings(max_examples=300, deadline=None)
@given(TIMES)
def test_any_time_is_reached_to_two_to_the_minus_17(s: float) -> None:
    assert grid_time(grid_index(s)) == pytest.approx(s, rel=2**-17)
    assert sum(weight**2 for _, weight in path_weights(s)) == pytest.approx(s, rel=2**-17 + 1e-12)
    assert len(path_weights(s)) <= 24


@settings(max_examples=300, deadline=None)
@given(st.integers(0, LAST))
def test_the_grid_is_increasing_and_its_points_are_exact(index: int) -> None:
    assert grid_index(grid_time(index)) == index
    assert index == LAST or grid_time(index) < grid_time(index + 1)
    assert index == 0 or {node for node, _ in path_weights(grid_time(index))} >= {index}


def test_every_level_of_every_plan_is_in_range() -> None:
    for schedule in SCHEDULES:
        for timesteps in range(2, 1001):
            levels = alpha_bar(schedule, timesteps)
            assert level_time(float(levels[0])) > 4e-5
            assert level_time(float(levels[-2])) < 2**50


@settings(max_examples=30, deadline=None)
@given(st.permutations([1e-5, 0.1127, 0.55, 1.0, 9.6, 4e6]))
def test_the_order_of_asking_changes_nothing(times: list[float]) -> None:
    alone = {s: path_value(DIGEST, path_weights(s), (1, 4, 4)) for s in sorted(times)}
    for s in times:
        assert path_value(DIGEST, path_weights(s), (1, 4, 4)).tobytes() == alone[s].tobytes()


def test_drawn_paths_have_the_moments() -> None:
    """The draws, not only the weights: 20,000 pixels at six times, all pairs."""
    times = np.array([1e-5, 0.1127, 0.1242, 0.55, 9.6, 4e6])
    paths = np.stack([path_value(DIGEST, path_weights(float(s)), (20_000,)) for s in times])
    found = np.cov(paths) / np.sqrt(np.outer(times, times))
    expected = np.minimum.outer(times, times) / np.sqrt(np.outer(times, times))
    assert np.abs(found - expected).max() < 4.5 * (2 / 20_000) ** 0.5
    assert np.abs(paths.mean(axis=1) / times**0.5).max() < 4.5 / 20_000**0.5


def test_two_digests_share_nothing() -> None:
    weights = path_weights(0.1127)
    values = [path_value(hashlib.sha256(bytes([i])).digest(), weights, (5_000,)) for i in range(6)]
    correlations = np.corrcoef(values) - np.eye(6)
    assert np.abs(correlations).max() < 4.5 / 5_000**0.5


def test_the_clean_level_has_no_noise() -> None:
    assert grid_index(level_time(1.0)) == 0
    assert not path_value(DIGEST, path_weights(0.0), (3,)).any()


@pytest.mark.parametrize("s", [-1e-9, math.nan, math.inf, 2.0**81])
def test_impossible_times_are_refused(s: float) -> None:
    with pytest.raises(InputError, match="out of range: must be 0 to 1e"):
        path_weights(s)
