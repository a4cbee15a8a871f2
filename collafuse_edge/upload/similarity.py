"""Coarse perceptual hashes: which images are so alike that a second upload of one is a second look at the other.

The hash is a DCT hash (pHash; Zauner 2010, section 3.2): the signs of the lowest 16 x 16 cosine coefficients of the
grey image, the mean apart. The cosines are functions of position, not of pixels, so copies of different sizes have
the same hash, up to resizing errors.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array

SIDE = 16
HASH_BYTES = SIDE * SIDE // 8
MIN_SIDE = 8
"""Smaller images have too few coefficients to be told apart."""

NEAR_BITS, OF_BITS = 20, SIDE * SIDE - 1
"""Alike: at most 20 of 255 signs differ, and the same share of fewer where a side is below 16 (docs/formats.md)."""

_NEGLIGIBLE = 1e-3
"""Mean coefficient, in grey levels, below which a sign would be rounding."""

_BLOCK, _ROWS = 1024, 256

Hashes = npt.NDArray[np.uint8]
Size = tuple[int, int]


def perceptual_hashes(images: Float32Array) -> Hashes:
    """(N, 32) uint8: bit 16 u + v, most significant first, is set where cosine coefficient (u, v) is positive.

    Args:
        images: (N, C, H, W) in [-1, 1]; channels are averaged.
    """
    rows, columns = (_cosines(side) for side in images.shape[2:])
    bits = np.empty((len(images), SIDE, SIDE), bool)
    for start in range(0, len(images), _BLOCK):
        grey = images[start : start + _BLOCK].mean(axis=1, dtype=np.float64) * 127.5  # (B, H, W)
        bits[start : start + _BLOCK] = rows @ grey @ columns.T > _NEGLIGIBLE
    bits &= _visible(_size_of(images))
    return np.packbits(bits.reshape(len(images), -1), axis=1)


def alike(a: Hashes, size_a: Size, b: Hashes, size_b: Size) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """(first row of ``a``, (rows, len(b)) bool: which are alike), block after block, so that memory stays small.

    Args:
        size_a, size_b: (H, W) of the images hashed. Where they differ, the finest quarter of the smaller one's
            coefficients is left out: resizing changes it.
    """
    common = _visible(size_a)
    if size_a != size_b:
        smaller = min(size_a[0], size_b[0]), min(size_a[1], size_b[1])
        common = _visible((3 * smaller[0] // 4, 3 * smaller[1] // 4))
    count = int(common.sum())
    if min(*size_a, *size_b) < MIN_SIDE:
        return
    signs_a, signs_b = _signs(a, common), _signs(b, common)
    least = count - 2 * (count * NEAR_BITS // OF_BITS)  # agreements less disagreements
    for start in range(0, len(a), _ROWS):
        yield start, signs_a[start : start + _ROWS] @ signs_b.T >= least


def near_duplicate_groups(images: Float32Array) -> npt.NDArray[np.int64]:
    """(N,): the first image of the group each belongs to; alike ones are in one group, and those alike to them.

    Args:
        images: (N, C, H, W) in [-1, 1].
    """
    hashes, size = perceptual_hashes(images), _size_of(images)
    first = np.arange(len(images))
    for _, block in alike(hashes, size, hashes, size):
        for neighbours in block:
            joined = np.unique(first[np.flatnonzero(neighbours)])
            if len(joined) > 1:
                first[np.isin(first, joined)] = joined[0]
    return first


def _size_of(images: Float32Array) -> Size:
    return int(images.shape[2]), int(images.shape[3])


def _cosines(side: int) -> npt.NDArray[np.float64]:
    """DCT-II: (16, side), divided by ``side`` so that a coefficient is a mean over pixels."""
    positions = (np.arange(side) + 0.5) / side
    return np.cos(np.pi * np.outer(np.arange(SIDE), positions)) / side


def _visible(size: Size) -> npt.NDArray[np.bool_]:
    """(16, 16): coefficients that an image of this size has, its mean apart."""
    visible = np.outer(np.arange(SIDE) < size[0], np.arange(SIDE) < size[1])
    visible[0, 0] = False
    return visible


def _signs(hashes: Hashes, common: npt.NDArray[np.bool_]) -> Float32Array:
    """(N, common coefficients) of 1 and -1, so that one matrix product compares all pairs."""
    bits = np.unpackbits(hashes, axis=1)[:, common.ravel()]
    return bits.astype(np.float32) * 2 - 1
