"""Distances between two sets of images that need no trained weights, and see blur: a Laplacian pyramid, sliced.

Sliced Wasserstein distance of 7x7 patches per level of a Laplacian pyramid (Karras et al. 2018, arXiv 1710.10196,
section 5), with one change: both sets are put on the mean and spread of the real one, so that a set of too little
contrast is far from it and not made equal to it first. The last level is the small image that is left over: its
distance is that of coarse structure and brightness.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import InputError

FloatArray = npt.NDArray[np.float64]

KERNEL = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
SMALLEST_SIDE = 8
PATCH, PATCHES, DIRECTIONS, SEED = 7, 8192, 256, 0


@dataclass(frozen=True)
class PyramidScore:
    """How far generated images are from real ones.

    Attributes:
        levels: sliced Wasserstein distance per level, finest first, in units of the real patches' spread at that level.
        mean: over the levels; two halves of one set are not at 0 but at a floor that falls with their size.
        pixels: sliced Wasserstein distance of whole images, in units of the real pixels' spread: sees global faults.
        sharpness: mean squared finest level, generated over real; 1 as sharp, below it blurred, above it noisy.
        brightness: mean of the generated pixels less that of the real ones, in [-2, 2].
    """

    levels: tuple[float, ...]
    mean: float
    pixels: float
    sharpness: float
    brightness: float


def pyramid_score(real: Float32Array, generated: Float32Array, *, clip: bool = True) -> PyramidScore:
    """Compare two sets of images.

    Args:
        real: (N, C, H, W) float32, N at least 2, sides at least 8.
        generated: (M, C, H, W) float32, M at least 2.
        clip: whether values beyond [-1, 1] are clipped, as of images; hand-over tensors go beyond it rightly.

    Raises:
        InputError: other shapes, or real images that are all the same.
    """
    if real.ndim != 4 or real.shape[1:] != generated.shape[1:] or min(len(real), len(generated)) < 2:
        raise InputError(f"images of shapes {real.shape} and {generated.shape}; valid: (N, C, H, W), N >= 2, one size")
    if min(real.shape[2:]) < SMALLEST_SIDE:
        raise InputError(
            f"images of {real.shape[2]}x{real.shape[3]} are too small for a pyramid; valid: sides of at least 8"
        )
    sets = [(images.clip(-1, 1) if clip else images).astype(np.float64) for images in (real, generated)]
    a, b = map(laplacian_pyramid, sets)
    if not a[0].any():
        raise InputError("the real images have no detail at all; give images that differ from one grey")
    levels = level_distances(a, b)
    whole = [images.reshape(len(images), -1) for images in sets]
    return PyramidScore(
        levels,
        float(np.mean(levels)),
        sliced_wasserstein(*whole),
        float((b[0] ** 2).mean() / (a[0] ** 2).mean()),
        float(whole[1].mean() - whole[0].mean()),
    )


def level_distances(real: list[FloatArray], generated: list[FloatArray]) -> tuple[float, ...]:
    """Sliced Wasserstein distance of the patches of two pyramids (``laplacian_pyramid``), level by level."""
    pairs = enumerate(zip(real, generated, strict=True))
    return tuple(sliced_wasserstein(_patches(x, level), _patches(y, level)) for level, (x, y) in pairs)


def laplacian_pyramid(images: FloatArray) -> list[FloatArray]:
    """(N, C, H, W) -> differences between the images and their blurred halves, finest first, then what is left.

    Burt & Adelson 1983 with their kernel (1, 4, 6, 4, 1) / 16. Adding up the levels, each enlarged, gives the images.
    """
    levels = []
    while min(images.shape[2:]) >= 2 * SMALLEST_SIDE and not any(side % 2 for side in images.shape[2:]):
        half = _blurred(images)[:, :, ::2, ::2]
        levels.append(images - enlarged(half))
        images = half
    return [*levels, images]


def enlarged(images: FloatArray) -> FloatArray:
    """Twice the sides: zeros between the pixels, then the kernel at four times its weight."""
    n, c, h, w = images.shape
    wide = np.zeros((n, c, 2 * h, 2 * w))
    wide[:, :, ::2, ::2] = 4 * images
    return _blurred(wide)


def sliced_wasserstein(real: FloatArray, generated: FloatArray) -> float:
    """Mean over random directions of the distance between the two sets' projections (Rabin et al. 2011).

    Args:
        real, generated: (N, D) and (M, D). Both are centred and scaled by the mean and spread of ``real``.

    Returns:
        The Wasserstein-1 distance of the projections, by quantiles where N and M differ.
    """
    centre, spread = real.mean(axis=0), float(np.sqrt(real.var(axis=0).mean())) or 1.0
    directions = np.random.Generator(np.random.Philox(SEED)).standard_normal((real.shape[1], DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    count = min(len(real), len(generated))
    a, b = (_quantiles((x - centre) / spread @ directions, count) for x in (real, generated))
    return float(np.abs(a - b).mean())


def _quantiles(values: FloatArray, count: int) -> FloatArray:
    """(N, K) -> (count, K): each column at the middles of ``count`` equal shares; sorted, where count is N."""
    ordered = np.sort(values, axis=0)
    place = ((np.arange(count) + 0.5) / count * len(ordered) - 0.5).clip(0, len(ordered) - 1)
    below = np.floor(place).astype(int)
    above, share = np.minimum(below + 1, len(ordered) - 1), (place - below)[:, None]
    result: FloatArray = ordered[below] * (1 - share) + ordered[above] * share
    return result


def _blurred(images: FloatArray) -> FloatArray:
    """The kernel along both sides, the border mirrored."""
    for axis in (2, 3):
        padding = [(0, 0)] * 4
        padding[axis] = (2, 2)
        padded, size = np.pad(images, padding, mode="reflect"), images.shape[axis]
        images = np.sum([k * padded.take(range(i, i + size), axis) for i, k in enumerate(KERNEL)], axis=0)
    return images


def _patches(level: FloatArray, number: int) -> FloatArray:
    """(PATCHES, C * 49): patches at random places of random images; the same places for sets of one size."""
    n, _, h, w = level.shape
    rng = np.random.Generator(np.random.Philox(key=[SEED, number]))
    image, top, left = (rng.integers(0, most, PATCHES) for most in (n, h - PATCH + 1, w - PATCH + 1))
    windows = np.lib.stride_tricks.sliding_window_view(level, (PATCH, PATCH), axis=(2, 3))
    return np.ascontiguousarray(windows[image, :, top, left]).reshape(PATCHES, -1)
