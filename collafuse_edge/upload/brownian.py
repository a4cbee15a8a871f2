"""One Brownian path per image: W(s) for any s, in any order, on any machine, from 32 bytes.

Levy's construction of Brownian motion (Levy 1948; Ciesielski 1961) on a grid of times, computed for one time alone as
a virtual Brownian tree is (Li et al. 2020, arXiv 2001.01328, section 4): halve the range of grid indices until the
index is met, and draw one bridge per halving (ibid.; Glasserman 2003, section 3.1),

    W(m) | W(a), W(b)  ~  N( ((b - m) W(a) + (m - a) W(b)) / (b - a),  (m - a)(b - m) / (b - a) ).

Unrolled, W(s) = sum_i w_i(s) Z_i: a weight per node visited, the same for all images, times that node's own standard
normal draw. sum_i w_i(s) w_i(t) = min(s, t) whichever times are asked for.

Grid times are floats with a 16-bit mantissa: 2^16 to an octave, 2^-47 to 2^80. s is rounded to the nearest, which
changes the noise's variance by at most 2^-17 of itself (3e-5 dB), and makes a last-bit difference of two machines'
cosine the same time.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import InputError

BITS = 16
OCTAVES = 128
LOWEST = -47
"""Octave 1 begins at 2^LOWEST; below it the grid is linear, as subnormal floats are."""
LAST = OCTAVES << BITS

Weights = Sequence[tuple[int, float]]


def grid_time(index: int) -> float:
    """The time of grid point ``index``, 0 to LAST; strictly increasing, exact in float64."""
    octave, rest = divmod(index, 1 << BITS)
    if octave == 0:
        return math.ldexp(rest, LOWEST - BITS)
    return math.ldexp((1 << BITS) + rest, LOWEST + octave - 1 - BITS)


def grid_index(s: float) -> int:
    """The grid point nearest to ``s``.

    Raises:
        InputError: s is negative, NaN or above 2^80.
    """
    if not 0 <= s <= grid_time(LAST):
        raise InputError(f"noise variance {s} out of range: must be 0 to {grid_time(LAST):.0e}")
    mantissa, exponent = math.frexp(s)  # s = mantissa 2^exponent, mantissa in [1/2, 1)
    octave = exponent - LOWEST
    if s == 0 or octave < 1:
        return round(math.ldexp(s, BITS - LOWEST))
    return (octave << BITS) + round(math.ldexp(2 * mantissa - 1, BITS))


def level_time(alpha_bar: float) -> float:
    """s = (1 - alpha_bar) / alpha_bar: x_n / sqrt(alpha_bar_n) = x_0 + W(s_n) has variance s about x_0."""
    return (1 - alpha_bar) / alpha_bar


def path_weights(s: float) -> Weights:
    """(node, weight) of every draw in W(s), at most 24; a node's number is the grid index of its time.

    Raises:
        InputError: as ``grid_index``.
    """
    index = grid_index(s)
    time = grid_time(index)
    weights = [(LAST, time / math.sqrt(grid_time(LAST)))]
    lower, upper = 0, LAST
    while index not in (lower, upper):
        node = (lower + upper) // 2
        a, m, b = grid_time(lower), grid_time(node), grid_time(upper)
        hat = (time - a) / (m - a) if index <= node else (b - time) / (b - m)
        weights.append((node, math.sqrt((m - a) * (b - m) / (b - a)) * hat))
        lower, upper = (lower, node) if index <= node else (node, upper)
    return weights


def path_value(digest: bytes, weights: Weights, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """W(s) of one image, float64 of ``shape``.

    A node's draw is float32 from Philox with the digest's first half as key and (0, node, its second half) as counter,
    as the noise of ``collafuse_runtimes.diffusion.noise``; the sum is float64, so that its rounding is far below
    float32's.

    Args:
        digest: 32 bytes.
        weights: ``path_weights(s)``.
    """
    words = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    bits: Any = np.random.Philox(key=words[:2])
    generator, state = np.random.Generator(bits), bits.state  # a state is set in less time than a Philox is made
    state["state"]["counter"][2:] = words[2:]
    value, term = np.zeros(shape), np.empty(shape)
    draw = np.empty(shape, np.float32)
    for node, weight in weights:
        state["state"]["counter"][1] = node
        bits.state = state
        generator.standard_normal(out=draw, dtype=np.float32)
        value += np.multiply(draw, weight, out=term)
    return value
