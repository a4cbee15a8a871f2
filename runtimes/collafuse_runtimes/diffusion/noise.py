"""Counter-based Gaussian noise: a value depends on (seed, sample index, timestep) and on nothing else.

Philox4x64 (Salmon et al. 2011). The key is (seed, a constant of this project), the counter starts at
(0, 0, timestep, sample index), so every (sample, timestep) pair owns 2^128 draws that no other pair touches.
"""

import reprlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import InputError

Float32Array = npt.NDArray[np.float32]

_DOMAIN = 0x636F6C6C61667573  # "collafus"
MAX_SEED = 2**64 - 1


def check_seed(seed: int) -> int:
    """Return ``seed`` or raise InputError when it is not an integer in 0..2^64-1."""
    return _check_word("seed", seed)


def check_sample_index(index: int) -> int:
    """Return ``index`` or raise InputError when it is not an integer in 0..2^64-1."""
    return _check_word("sample index", index)


def gaussian_noise(seed: int, sample_index: int, timestep: int, shape: tuple[int, ...]) -> Float32Array:
    """One sample's noise, standard normal float32 of ``shape``.

    Raises:
        InputError: seed, sample index or timestep is not an integer in 0..2^64-1.
    """
    counter = [0, 0, _check_word("timestep", timestep), check_sample_index(sample_index)]
    # As uint64 arrays: from lists numpy goes through float64, which merges neighbouring seeds from 2^63 on.
    bits = np.random.Philox(key=np.array([check_seed(seed), _DOMAIN], np.uint64), counter=np.array(counter, np.uint64))
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


def noise_batch(seed: int, sample_indices: Iterable[int], timestep: int, shape: tuple[int, ...]) -> Float32Array:
    """Noise of several samples at one timestep, (B, *shape) float32."""
    return np.stack([gaussian_noise(seed, index, timestep, shape) for index in sample_indices])


def _check_word(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= MAX_SEED:
        raise InputError(f"{name} {reprlib.repr(value)} out of range: must be an integer from 0 to {MAX_SEED}")
    return int(value)
