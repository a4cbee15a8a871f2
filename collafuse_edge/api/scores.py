"""How good images are."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from collafuse_edge.api.device import StrPath
from collafuse_edge.evaluation.kid import Features, kid_on_reference_scale
from collafuse_edge.evaluation.pyramid import pyramid_score
from collafuse_runtimes.diffusion.noise import Float32Array

if TYPE_CHECKING:
    from collafuse_edge.data import ImageSet
    from collafuse_edge.evaluation.evaluate import ImageScore

__all__ = ["evaluate", "image_features", "kid_on_reference_scale", "pyramid_score"]


def evaluate(generated: StrPath, real: "Float32Array | ImageSet", extractor: StrPath | None = None) -> "ImageScore":
    """How far generated images are from real ones, with all that names the score.

    Args:
        generated: a folder written by ``infer``, its images.npz, or a hand-over file.
        real: (N, C, H, W) float32 in [-1, 1], N at least 2, or what ``load_images`` gave.
        extractor: an ONNX file: (N, 3, H, W) RGB in 0..255 to (N, D) features, for KID, precision and recall; None
            leaves them out.

    Raises:
        InputError, ArtefactError: too few images, or the extractor or the images cannot be read.
    """
    from collafuse_edge.data import ImageSet
    from collafuse_edge.evaluation.evaluate import read_generated, real_images, score

    data = real if isinstance(real, ImageSet) else ImageSet(real, None, None, "an array")
    where = None if extractor is None else Path(extractor)
    real_set = real_images(data.source, data.images, where)
    return score(real_set, read_generated(Path(generated)), os.fspath(generated), where)


def image_features(images: Float32Array, extractor: StrPath) -> Features:
    """Features of images, (N, D) float64, to be compared by ``kid_on_reference_scale``: those of real images once.

    Args:
        images: (N, C, H, W) float32 in [-1, 1]; values beyond are clipped, grey is repeated.
        extractor: as ``evaluate``.

    Raises:
        InputError, ArtefactError: as ``evaluate``.
    """
    from collafuse_edge.evaluation.extractor import features_of

    return features_of(Path(extractor), images)
