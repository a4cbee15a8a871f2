"""A noise value depends on (seed, sample index, timestep) and on nothing else, and never changes between releases."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.diffusion.noise import MAX_SEED, check_seed, gaussian_noise, noise_batch
from collafuse_runtimes.errors import InputError

words = st.one_of(st.integers(0, MAX_SEED), st.sampled_from([0, 1, 2**53, 2**63 - 1, 2**63, 2**63 + 1, MAX_SEED]))


@pytest.mark.parametrize(
    ("block", "digest"),
    [
        ((42, 3, 17, (1, 8, 8)), "6ea4bf0f6b1e18227139aeef999c2cf76c24a0f20040e47106e8e912e38a7a40"),
        ((42, 4, 17, (1, 8, 8)), "06d6a66e0c1b5258a49e520bc379aee5419a4407801e4d6fdc5a95a6c1ce9772"),
        ((MAX_SEED, MAX_SEED, 1000, (3, 5)), "6d1f5d9005fa9ba0c49686980ec78b3956d07baa2e2b3c9279eab848f05b9f20"),
    ],
)
def test_pinned_blocks(block: tuple[int, int, int, tuple[int, ...]], digest: str) -> None:
    """A change of numpy's generators would be seen here before it is seen in images."""
    assert hashlib.sha256(gaussian_noise(*block).astype("<f4").tobytes()).hexdigest() == digest


@settings(max_examples=50, deadline=None)
@given(words, words, st.integers(0, 1000))
def test_the_generator_starts_at_the_documented_key_and_counter(seed: int, index: int, timestep: int) -> None:
    bits: Any = np.random.Philox(0)
    state = bits.state
    state["state"]["key"][:] = (seed, 0x636F6C6C61667573)
    state["state"]["counter"][:] = (0, 0, timestep, index)
    state["buffer_pos"], state["has_uint32"] = 4, 0
    bits.state = state
    expected = np.random.Generator(bits).standard_normal((2, 3), dtype=np.float32)
    assert gaussian_noise(seed, index, timestep, (2, 3)).tobytes() == expected.tobytes()


@settings(max_examples=50, deadline=None)
@given(words, st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.integers(0, 1000))
def test_a_batch_is_its_samples_in_any_order(seed: int, indices: list[int], timestep: int) -> None:
    batch = noise_batch(seed, indices, timestep, (1, 4, 4))
    assert batch.shape == (len(indices), 1, 4, 4)
    assert batch.dtype == np.float32
    for row, index in zip(batch[::-1], indices[::-1], strict=True):
        assert row.tobytes() == gaussian_noise(seed, index, timestep, (1, 4, 4)).tobytes()


def test_every_pair_of_neighbours_differs() -> None:
    """Also from 2^63 on, where a detour through float64 would merge neighbours."""
    near = (0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, MAX_SEED - 1, MAX_SEED)
    keys = [*itertools.product(near, near, (0, 1)), *itertools.product((0, 1), (0, 1), range(1001))]
    blocks = {gaussian_noise(seed, index, t, (4,)).tobytes() for seed, index, t in keys}
    assert len(blocks) == len(set(keys))


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_values_are_standard_normal(seed: int) -> None:
    values = noise_batch(seed, range(64), 5, (1, 64, 64)).ravel().astype(np.float64)
    n = values.size
    moments = [np.mean(values**k) for k in (1, 2, 3, 4)]
    spreads = [1, 2, 15, 96]  # variances of x, x^2, x^3, x^4
    for moment, expected, spread in zip(moments, (0, 1, 0, 3), spreads, strict=True):
        assert abs(moment - expected) < 4 * (spread / n) ** 0.5
    for bound, share in ((1, 0.6826895), (2, 0.9544997), (3, 0.9973002)):
        assert abs(np.mean(np.abs(values) < bound) - share) < 4 * (share * (1 - share) / n) ** 0.5


@pytest.mark.parametrize("other", [(8, 3, 5), (7, 4, 5), (7, 3, 6), (3, 7, 5), (7, 5, 3)])
def test_neighbouring_blocks_are_uncorrelated(other: tuple[int, int, int]) -> None:
    a = gaussian_noise(7, 3, 5, (40_000,)).astype(np.float64)
    b = gaussian_noise(*other, (40_000,)).astype(np.float64)
    for shift in range(5):
        assert abs(np.mean(a[: len(a) - shift] * b[shift:])) < 5 / len(a) ** 0.5


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, None, "7", np.float64(3)])
def test_seeds_out_of_range_are_refused(seed: Any) -> None:
    with pytest.raises(InputError) as caught:
        check_seed(seed)
    assert str(caught.value) == f"seed {seed!r} out of range: must be an integer from 0 to 18446744073709551615"


@pytest.mark.parametrize(
    ("index", "timestep", "name"), [(-1, 0, "sample index"), (2**64, 0, "sample index"), (0, -1, "timestep")]
)
def test_indices_out_of_range_are_refused(index: int, timestep: int, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} .*: must be an integer from 0 to 18446744073709551615$"):
        gaussian_noise(0, index, timestep, (1,))


def test_numpy_integers_are_integers() -> None:
    seed, index = np.uint64(MAX_SEED), np.int32(3)
    assert gaussian_noise(seed, index, 5, (4,)).tobytes() == gaussian_noise(MAX_SEED, 3, 5, (4,)).tobytes()
