"""Precision and recall of generated images, by nearest neighbours among features (Kynkaanniemi et al. 2019).

A set's manifold is the union of balls around its features, each as wide as the way to its k-th neighbour in the set
(ibid., eq. 1). Precision: share of the generated images on the real manifold (are they real?). Recall: share of the
real ones on the generated manifold (is everything there?).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from collafuse_edge.evaluation.kid import Features
from collafuse_runtimes.errors import InputError

K = 3
_BLOCK = 512


@dataclass(frozen=True)
class PrecisionRecall:
    """Attributes: precision, recall in 0..1, the k of the neighbour, and the images of each side that took part."""

    precision: float
    recall: float
    k: int
    count: int


def precision_recall(real: Features, generated: Features, k: int = K) -> PrecisionRecall:
    """Of as many images on both sides: the larger set's first ones, as both figures grow with the number.

    Args:
        real, generated: (N, D) and (M, D).

    Raises:
        InputError: k or fewer images on a side.
    """
    count = min(len(real), len(generated))
    if count <= k:
        raise InputError(f"{count} images on a side are too few for precision and recall; valid: more than {k}")
    x, y = real[:count], generated[:count]
    return PrecisionRecall(_share_inside(y, x, k), _share_inside(x, y, k), k, count)


def _share_inside(points: Features, manifold: Features, k: int) -> float:
    radii = np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _distances(manifold, manifold)])
    inside = [(block <= radii).any(axis=1) for block in _distances(points, manifold)]
    return float(np.concatenate(inside).mean())


def _distances(a: Features, b: Features) -> Iterator[Features]:
    """Squared distances in blocks of rows; of one set with itself the way to itself, 0, is among them."""
    norms = (b**2).sum(axis=1)
    for start in range(0, len(a), _BLOCK):
        rows = a[start : start + _BLOCK]
        squared = np.maximum((rows**2).sum(axis=1)[:, None] + norms - 2 * rows @ b.T, 0.0)
        if a is b:
            squared[np.arange(len(rows)), np.arange(start, start + len(rows))] = 0.0
        yield squared
