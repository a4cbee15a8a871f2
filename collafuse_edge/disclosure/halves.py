"""Which images the attacker learns from and which are attacked, and how large the images really are."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_edge.data import ImageSet
from collafuse_edge.upload.similarity import near_duplicate_groups
from collafuse_runtimes.diffusion.plan import MAX_SIDE
from collafuse_runtimes.errors import InputError

LEAST_GROUPS = 4
OWN_SIZE_BYTES = 1 << 30
"""Memory that the images at their own size may take."""

Rows = npt.NDArray[np.int64]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Halves:
    """Rows of a data set.

    Attributes:
        groups: groups of near-duplicates in all.
        attacked: one image of each group of one half.
        references: all images of the other half's groups, which an attacker may know.
        candidates: one image of each group, those attacked first.
    """

    groups: int
    attacked: Rows
    references: Rows
    candidates: Rows


def make_halves(images: ImageSet, most: int, seed: int) -> Halves:
    """Draw the halves, group by group, so that no near-duplicate of an attacked image is known to the attacker.

    Args:
        most: images to attack, and candidates, at most.

    Raises:
        InputError: fewer than four groups.
    """
    group_of = near_duplicate_groups(images.images)
    firsts = np.unique(group_of)
    if len(firsts) < LEAST_GROUPS:
        raise InputError(
            f"{images.source} has {len(firsts)} images that are not near-duplicates of each other; valid: at least "
            f"{LEAST_GROUPS}, half of them to attack and half for the attacker to know"
        )
    order = np.random.Generator(np.random.Philox(seed)).permutation(firsts)
    attacked, known = order[: len(order) // 2], order[len(order) // 2 :]
    references = np.flatnonzero(np.isin(group_of, known))
    return Halves(len(firsts), attacked[:most], references, order[:most])


def own_shape(images: ImageSet, count: int) -> tuple[Shape | None, str | None]:
    """((C, H, W) of ``count`` images at their own size in the plan's proportions, what was bounded); None where the
    plan's is as large.

    The size is the median of the images'; where memory would not do, the largest that fits.
    """
    channels, height, width = images.images.shape[1:]
    scales = [scale for (h, w), n in images.found.sizes for scale in [max(h / height, w / width)] for _ in range(n)]
    scale = float(np.median(scales)) if scales else 1.0
    most = math.sqrt(OWN_SIZE_BYTES / (4 * channels * height * width * count))
    bounded = min(scale, most, MAX_SIDE / max(height, width))
    shape = (channels, round(height * bounded), round(width * bounded))
    note = None
    if bounded < scale:
        note = (
            f"the images are about {round(height * scale)}x{round(width * scale)}; they were told apart at "
            f"{shape[1]}x{shape[2]} for memory's sake, and are easier to tell apart at their own size"
        )
    return (shape if bounded > 1.01 else None), note
