"""The kernel inception distance and its standard error, from features alone.

KID is the squared maximum mean discrepancy between two sets of features under the kernel k(a, b) = (a . b / D + 1)^3,
as a U-statistic over all pairs (Binkowski et al. 2018, eq. 4; Gretton et al. 2012, eq. 3):

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

It is unbiased for given features, so equal distributions give values around 0, below it about as often as above.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import InputError

Features = npt.NDArray[np.float64]

LEAST_FOR_ERROR = 20
"""Images a side below which no standard error is given: it would be estimated from too few terms."""
NORMAL_95 = 1.959964
BLOCK = 1024


@dataclass(frozen=True)
class Mmd:
    """One estimate.

    Attributes:
        value: the U-statistic.
        error: its standard error over the images of both sides; None for fewer than LEAST_FOR_ERROR on one of them.
    """

    value: float
    error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, value +- 1.96 error."""
        return (
            None if self.error is None else (self.value - NORMAL_95 * self.error, self.value + NORMAL_95 * self.error)
        )


def kid_on_reference_scale(real: Features, generated: Features) -> Mmd:
    """KID of features less the mean of ``real``, over its spread: the root of the mean over features of their variance.

    One spread for all features: one that ``real`` hardly has is not blown up, and their proportions stay. Mean and
    spread come from the images, too, so they have their part in the error.

    Args:
        real: (N, D) float64, finite, N at least 2.
        generated: (M, D) float64, finite, M at least 2.

    Raises:
        InputError: other shapes, or no feature of ``real`` varies.
    """
    return _estimate(*_on_scale(real, generated), is_standardised=True)


def kid_of_features(real: Features, generated: Features) -> Mmd:
    """KID of the features as they are, the figure of the literature, whose scale is the extractor's own."""
    return _estimate(real, generated, is_standardised=False)


def kid_difference(real: Features, first: Features, second: Features, *, paired: bool) -> Mmd:
    """``kid_on_reference_scale`` of the second set less that of the first, and its error.

    The real images are the same on both sides, so what they add to both cancels; and so it does for generated images
    where they are paired, made from the same noise one by one.

    Args:
        real, first, second: (N, D), (M, D) and (K, D); M = K where ``paired``.

    Raises:
        InputError: other shapes, or no feature of ``real`` varies.
    """
    a, b = (_terms(*_on_scale(real, generated), is_standardised=True) for generated in (first, second))
    value = b.value - a.value
    if min(len(real), len(first), len(second)) < LEAST_FOR_ERROR:
        return Mmd(value, None)
    of_generated = [(b.of_y - a.of_y)] if paired else [a.of_y, b.of_y]
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (b.of_x - a.of_x, *of_generated))
    return Mmd(value, math.sqrt(variance))


def _on_scale(real: Features, generated: Features) -> tuple[Features, Features]:
    if real.ndim != 2 or real.shape[1:] != generated.shape[1:] or min(len(real), len(generated)) < 2:
        raise InputError(
            f"features of shapes {real.shape} and {generated.shape}; valid: (N, D) and (M, D), N, M at least 2"
        )
    centre = real.mean(axis=0)
    spread = float(np.sqrt(real.var(axis=0, ddof=1).mean()))
    if not spread > 1e-12 * float(np.abs(real).max()):
        raise InputError("no feature varies over the real images")
    return (real - centre) / spread, (generated - centre) / spread


def _estimate(x: Features, y: Features, *, is_standardised: bool) -> Mmd:
    terms = _terms(x, y, is_standardised=is_standardised)
    if min(len(x), len(y)) < LEAST_FOR_ERROR:
        return Mmd(terms.value, None)
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (terms.of_x, terms.of_y))
    return Mmd(terms.value, math.sqrt(variance))


@dataclass(frozen=True)
class _Terms:
    """The estimate, and what each image adds to its error, (N,) and (M,)."""

    value: float
    of_x: Features
    of_y: Features


def _terms(x: Features, y: Features, *, is_standardised: bool) -> _Terms:
    """Value and linear part.

    The linear part (Hajek projection; Serfling 1980, section 5.3) adds up one term per image: 2 h(x_i) / N and
    2 g(y_j) / M with h(x) = E k(x, X') - E k(x, Y) and g(y) = E k(y, Y') - E k(y, X); means over the images at hand
    stand for the expectations. Their own noise makes the error a little too large where the distributions are equal.
    """
    xx, yy, xy = _sums(x, x), _sums(y, y), _sums(x, y)
    n, m = len(x), len(y)
    h = xx.cubes / (n - 1) - xy.cubes / m
    g = yy.cubes / (m - 1) - xy.cubes_of_b / n
    of_x = 2 * h
    if is_standardised:
        of_x = of_x + _through_mean_and_spread(x, y, xx, yy, xy)
    return _Terms(float(h.mean() + g.mean()), of_x, 2 * g)


@dataclass(frozen=True)
class _Sums:
    """With u_ij = a_i . b_j / D: sums over j (and over i) of (u + 1)^3 and (u + 1)^2, over both of u (u + 1)^2."""

    cubes: Features
    cubes_of_b: Features
    squares: Features
    squares_of_b: Features
    slope: float


def _sums(a: Features, b: Features) -> _Sums:
    """In blocks, so that memory grows with the images and not with their pairs; of one set with itself i != j."""
    dimensions, is_within = a.shape[1], a is b
    rows, columns, slope = np.zeros((2, len(a))), np.zeros((2, len(b))), 0.0
    for start in range(0, len(a), BLOCK):
        block = slice(start, start + BLOCK)
        u = a[block] @ b.T / dimensions
        square = (u + 1) ** 2
        if is_within:
            np.fill_diagonal(square[:, start:], 0)
        cube = square * (u + 1)
        rows[:, block] = cube.sum(axis=1), square.sum(axis=1)
        columns += np.stack([cube.sum(axis=0), square.sum(axis=0)])
        slope += float((cube - square).sum())
    return _Sums(rows[0], columns[0], rows[1], columns[1], slope)


def _through_mean_and_spread(x: Features, y: Features, xx: _Sums, yy: _Sums, xy: _Sums) -> Features:
    """What each real image moves by moving the mean and the spread all features are measured by (delta method).

    A shift of the centre by d moves u by -(a + b) . d / D, a spread larger by a share e moves it by -2 e u; and image i
    moves the centre by x_i / N and the spread by a share (|x_i|^2 / D - 1) / (2 N).
    """
    n, m, dimensions = len(x), len(y), x.shape[1]
    of_xx, of_yy, of_xy = 1 / (n * (n - 1)), 1 / (m * (m - 1)), -2 / (n * m)
    by_shift = (
        2 * of_xx * xx.squares @ x + 2 * of_yy * yy.squares @ y + of_xy * (xy.squares @ x + xy.squares_of_b @ y)
    ) * (-3 / dimensions)
    by_spread = -6 * (of_xx * xx.slope + of_yy * yy.slope + of_xy * xy.slope)
    moved: Features = x @ by_shift + by_spread * ((x * x).sum(axis=1) / dimensions - 1) / 2
    return moved
