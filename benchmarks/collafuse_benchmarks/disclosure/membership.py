"""Was an image among those a network was trained on? And does it make copies of them?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_benchmarks.disclosure.attacks import FloatArray
from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.extras import needs

LEAST = 20
"""Images a side below which neither AUC nor a rate at 1 % is worth a line."""
FALSE_POSITIVES = 0.01
_BLOCK = 256
_NORMAL_95 = 1.959964

PredictEpsilon = Callable[[Float32Array, int], Float32Array]
"""(x, t) -> the noise a network sees in x at level t, (B, C, H, W)."""


@dataclass(frozen=True)
class Membership(Record):
    """How well members are told from non-members by one question to the network.

    Attributes:
        level: t of the question: the best one on a half of the images; the figures are of the other half.
        members, non_members: of that other half.
        auc, low, high: area under the ROC curve and its 95 % interval (DeLong et al. 1988); 0.5 is chance.
        tpr, tpr_low, tpr_high: members found where 1 % of the non-members are taken for members (Carlini et al. 2022),
            with its Wilson interval.
    """

    level: int
    members: int
    non_members: int
    auc: float
    low: float
    high: float
    tpr: float
    tpr_low: float
    tpr_high: float


def membership(
    predict: PredictEpsilon, members: Float32Array, non_members: Float32Array, levels: Sequence[int], seed: int = 0
) -> Membership:
    """SimA (Rao et al. 2025, arXiv 2509.25003): members have the smaller norm of the noise predicted from x_0 itself.

    Args:
        members, non_members: (N, C, H, W), (M, C, H, W), of one distribution: otherwise the test sees the difference of
            the distributions and calls it membership.
        levels: timesteps the network was trained for, to choose from.

    Raises:
        InputError: fewer than 40 images on a side: halves of 20.
        EngineUnavailable: the [evidence] extra is not installed.
    """
    if min(len(members), len(non_members)) < 2 * LEAST:
        raise InputError(
            f"{len(members)} members and {len(non_members)} others are too few for a membership test; valid: at least "
            f"{2 * LEAST} of each"
        )
    scores = {t: (_scores(predict, members, t), _scores(predict, non_members, t)) for t in levels}
    ways = np.random.Generator(np.random.Philox(seed))
    first_in, first_out = ways.permutation(len(members)), ways.permutation(len(non_members))
    half_in, half_out = len(members) // 2, len(non_members) // 2
    best = max(levels, key=lambda t: auc(scores[t][0][first_in[:half_in]], scores[t][1][first_out[:half_out]]))
    inside, outside = scores[best][0][first_in[half_in:]], scores[best][1][first_out[half_out:]]
    area = auc(inside, outside)
    error = _auc_error(inside, outside)
    with needs("evidence"):
        from scipy.stats import binomtest
    threshold = np.quantile(outside, 1 - FALSE_POSITIVES, method="higher")
    found = int((inside > threshold).sum())
    rate = binomtest(found, len(inside)).proportion_ci(0.95, method="wilson")
    return Membership(
        best, len(inside), len(outside), area, max(area - _NORMAL_95 * error, 0.0), min(area + _NORMAL_95 * error, 1.0),
        found / len(inside), float(rate.low), float(rate.high),
    )  # fmt: skip


def auc(inside: FloatArray, outside: FloatArray) -> float:
    """P(a member's score > another's), ties half: Mann & Whitney's U over its largest value."""
    return float(_placements(inside, outside).mean())


def _placements(scores: FloatArray, others: FloatArray) -> FloatArray:
    """(N,): of each score the share of the others that lie below it, ties half."""
    ordered = np.sort(others)
    ranks = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    shares: FloatArray = ranks / (2 * len(others))
    return shares


def _auc_error(inside: FloatArray, outside: FloatArray) -> float:
    parts = (_placements(inside, outside), _placements(outside, inside))
    return math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in parts))


def _scores(predict: PredictEpsilon, images: Float32Array, t: int) -> FloatArray:
    blocks = [images[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]
    norms = [np.linalg.norm(predict(block, t).reshape(len(block), -1).astype(np.float64), axis=1) for block in blocks]
    return -np.concatenate(norms)


@dataclass(frozen=True)
class Copies(Record):
    """Whether generated images lie nearer to those trained on than to others of the same kind.

    Attributes:
        generated: images.
        compared: trained and held-out images, as many of each, one of each group of near-duplicates.
        nearer_to_trained, low, high: share whose nearest image is one trained on, with its 95 % interval; 0.5 where
            nothing is copied. The interval knows that one image may be the nearest of many generated ones.
        ratio: median over generated images of the distance to the nearest trained one over that to the nearest held-out
            one; 1 where nothing is copied.
        closest: the smallest distance to a trained one, root mean square over pixels of [-1, 1].
        closest_held_out: the same to a held-out one, as control.
    """

    generated: int
    compared: int
    nearer_to_trained: float
    low: float
    high: float
    ratio: float
    closest: float
    closest_held_out: float


def copies(generated: Float32Array, trained: Float32Array, held_out: Float32Array, seed: int = 0) -> Copies:
    """Nearest neighbours by pixels, among equally many images of both sets.

    Where nothing is copied, trained and held-out images could change places. The share is then sum_k h_k l_k / G, h_k
    how many of the G generated images have image k of all n as their nearest, l_k 1 for one half of them at random; its
    variance is n / (4 (n - 1)) sum_k (h_k - G / n)^2 / G^2 (sampling without replacement; Cochran 1977, theorem 2.2).

    Args:
        generated, trained, held_out: (N, C, H, W) in [-1, 1]; of the last two one of each group of near-duplicates.

    Raises:
        InputError: fewer than 20 images in a set.
    """
    count = min(len(trained), len(held_out))
    if min(count, len(generated)) < LEAST:
        raise InputError(
            f"{len(generated)} generated, {len(trained)} trained and {len(held_out)} held-out images are too few to "
            f"look for copies; valid: at least {LEAST} of each"
        )
    draw = np.random.Generator(np.random.Philox(seed))
    to_trained, whose_trained = nearest(generated, trained[draw.permutation(len(trained))[:count]])
    to_held_out, whose_held_out = nearest(generated, held_out[draw.permutation(len(held_out))[:count]])
    is_nearer = to_trained < to_held_out
    hits = np.bincount(np.where(is_nearer, whose_trained, count + whose_held_out), minlength=2 * count)
    share, error = float(is_nearer.mean()), _exchange_error(hits)
    ratio = float(np.median(to_trained / np.maximum(to_held_out, 1e-12)))
    return Copies(
        len(generated), count, share, max(share - _NORMAL_95 * error, 0.0), min(share + _NORMAL_95 * error, 1.0), ratio,
        float(to_trained.min()), float(to_held_out.min()),
    )  # fmt: skip


def _exchange_error(hits: npt.NDArray[np.int64]) -> float:
    n, made = len(hits), hits.sum()
    return float(np.sqrt(n / (4 * (n - 1)) * ((hits - made / n) ** 2).sum()) / made)


def nearest(images: Float32Array, others: Float32Array) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """((N,) root mean square difference of each image to the nearest of the others, (N,) which one that is)."""
    flat = others.reshape(len(others), -1).astype(np.float64)
    norms = (flat**2).sum(axis=1)
    least, whose = [], []
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK].reshape(-1, flat.shape[1]).astype(np.float64)
        squared = (block**2).sum(axis=1)[:, None] + norms - 2 * block @ flat.T
        whose.append(squared.argmin(axis=1))
        least.append(np.sqrt(np.maximum(squared.min(axis=1), 0.0) / flat.shape[1]))
    return np.concatenate(least), np.concatenate(whose)
