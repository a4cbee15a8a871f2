"""Quality of generated images: distances from real ones, with all that names the score.

Scores of different extractors cannot be compared, so the extractor's name and sha256 are part of every result, and so
is what made the images.
"""

import io
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.evaluation.extractor import features_of
from collafuse_edge.evaluation.kid import (
    LEAST_FOR_ERROR,
    Features,
    Mmd,
    kid_of_features,
    kid_on_reference_scale,
)
from collafuse_edge.evaluation.neighbours import K, precision_recall
from collafuse_edge.evaluation.pyramid import pyramid_score
from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.image_record import ImageRecord, read_record, record_of_handover
from collafuse_runtimes.files.sealed import read_bytes, sha256_file
from collafuse_runtimes.text import one_line

ESTIMATOR = "U-statistic over all pairs, cubic kernel, features centred and scaled on the real images"
NO_RECORD = "made by a release of `infer` that wrote no images.json, or by another program"


@dataclass(frozen=True)
class ImageScore:
    """How far one set of images is from real ones, with all that names the score.

    What was not measured is None with its reason beside it; of what made the images ``unknown`` says why.

    Attributes:
        pyramid: ``PyramidScore.mean``, lower is nearer; needs no extractor, and sees blur.
        pyramid_floor: the same between two halves of the real images: what no set of that size comes below.
        pyramid_levels, pixels, sharpness, brightness: of ``PyramidScore``.
        pyramid_reason: why they are None.
        kid_mean: KID of features centred and scaled on the real images; 0 for equal distributions (the estimator is
            unbiased, so it may be below).
        kid_error, kid_low, kid_high: its standard error over the images of both sides, and the 95 % interval.
        kid_error_reason: why they, or the KID itself, are None.
        kid_raw, kid_raw_error: KID of the features as they are, as the literature gives it.
        kid_std, subset_size: None: no subsets are drawn, so there is no deviation over them.
        estimator: what ``kid_mean`` is, in words; scores of another one are not comparable.
        manifold_precision, manifold_recall: precision and recall among the features (``neighbours.PrecisionRecall``).
        neighbour, neighbour_count: its k, and the images of each side that took part.
        real, generated: names of the two sets.
        head, head_sha256, precision, engine, sampler, steps: the head bundle's name, its weights, and how it ran; None
            for hand-over tensors.
        cut_ratio, cut, fingerprint: of the plan.
        seed, first_index: of the noise.
        server_sampler, server_steps, server_sha256: how the hand-over was made.
    """

    pyramid: float | None
    pyramid_floor: float | None
    pyramid_levels: tuple[float, ...] | None
    pixels: float | None
    sharpness: float | None
    brightness: float | None
    pyramid_reason: str | None
    kid_mean: float | None
    kid_error: float | None
    kid_low: float | None
    kid_high: float | None
    kid_error_reason: str | None
    kid_raw: float | None
    kid_raw_error: float | None
    kid_std: None
    subset_size: None
    estimator: str
    manifold_precision: float | None
    manifold_recall: float | None
    neighbour: int | None
    neighbour_count: int | None
    real: str
    real_count: int
    generated: str
    generated_count: int
    extractor: str | None
    extractor_sha256: str | None
    head: str | None
    head_sha256: str | None
    precision: str | None
    engine: str | None
    sampler: dict[str, Any] | None
    steps: int | None
    cut_ratio: float | None
    cut: int | None
    fingerprint: str | None
    seed: int | None
    first_index: int | None
    server_sampler: dict[str, Any] | None
    server_steps: int | None
    server_sha256: str | None
    unknown: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Real:
    """Real images, their name, and their features where there is an extractor: computed once for many sets."""

    name: str
    images: Float32Array
    features: Features | None


@dataclass(frozen=True)
class Generated:
    """Images to judge, (N, C, H, W) float32, and what made them; None where that is not known."""

    images: Float32Array
    record: ImageRecord | None


def read_generated(path: Path) -> Generated:
    """Generated images: an `infer` folder or its images.npz, or a hand-over file.

    Raises:
        ArtefactError: missing, damaged, or none of these, or images.json beside it is of other images.
        InputError: the array is not a finite batch of images.
    """
    from collafuse_runtimes.files.handover import read_handover
    from collafuse_runtimes.infer import ARRAY_FILE

    if path.suffix == ".safetensors":
        handover = read_handover(path)
        return Generated(handover.x_tc, record_of_handover(handover))
    path = path / ARRAY_FILE if path.is_dir() else path
    data = read_bytes(path)
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise ValueError("no .npz file, or a truncated one")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            images: Float32Array = archive["images"]
    except Exception as error:  # those of numpy and zipfile share no base
        raise ArtefactError(
            f"cannot read generated images from {path}: {one_line(error, 120)}; valid: a folder written by `infer`, "
            f"its {ARRAY_FILE}, or a .tc.safetensors file"
        ) from None
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(f"{path} has images of shape {images.shape}; valid: (N, C, H, W) with N >= 1, C 1 or 3")
    check_images(str(path), images, images.shape[1:])
    return Generated(images.astype(np.float32), read_record(path) if path.name == ARRAY_FILE else None)


def real_images(name: str, images: Float32Array, extractor: Path | None) -> Real:
    """Raises InputError for fewer than 2 images, and what ``features_of`` raises."""
    if len(images) < 2:
        raise InputError(f"{name} has {len(images)} image; valid: at least 2, or no spread is known")
    return Real(name, images, None if extractor is None else features_of(extractor, images))


def score(real: Real, generated: Generated, name: str, extractor: Path | None) -> ImageScore:
    """All distances between two sets of images in [-1, 1] (values beyond are clipped), each (N, C, H, W), N >= 2.

    Args:
        name: of the generated images.
        extractor: ONNX file with one input, (N, 3, H, W) RGB in 0..255, and one output, (N, D) features. Images are
            resized (bilinear, antialiased) to its H and W. None: no KID, no precision and recall.

    Raises:
        InputError: fewer than 2 images, or the extractor's inputs, outputs or features are of another kind, too large
            or all the same.
        ArtefactError: the extractor cannot be read.
    """
    if len(generated.images) < 2:
        raise InputError(f"{name} has {len(generated.images)} image; valid: at least 2, or no distribution is known")
    return ImageScore(
        **_by_pyramid(real, generated.images),
        **_by_features(real, generated.images, extractor),
        real=real.name,
        real_count=len(real.images),
        generated=name,
        generated_count=len(generated.images),
        **_made_by(generated.record),
    )


def _by_pyramid(real: Real, images: Float32Array) -> dict[str, Any]:
    try:
        found, reason = pyramid_score(real.images, images), None
    except InputError as error:
        found, reason = None, str(error)
    halves = [half for half in (real.images[::2], real.images[1::2]) if len(half) > 1]
    floor = pyramid_score(*halves).mean if found is not None and len(halves) == 2 else None
    return {
        "pyramid": None if found is None else found.mean,
        "pyramid_floor": floor,
        "pyramid_levels": None if found is None else found.levels,
        **{key: getattr(found, key, None) for key in ("pixels", "sharpness", "brightness")},
        "pyramid_reason": reason,
    }


def _by_features(real: Real, images: Float32Array, extractor: Path | None) -> dict[str, Any]:
    named = {"estimator": ESTIMATOR, "kid_std": None, "subset_size": None}
    if extractor is None or real.features is None:
        empty = dict.fromkeys(_OF_FEATURES)
        return {**named, **empty, "kid_error_reason": "no feature extractor was given: --extractor"}
    of_generated = features_of(extractor, images)
    scaled, raw = _kids(real.features, of_generated, extractor)
    low, high = scaled.interval or (None, None)
    few = f"fewer than {LEAST_FOR_ERROR} images on a side: too few to say how far the score would scatter"
    near = precision_recall(real.features, of_generated) if min(len(real.images), len(images)) > K else None
    return {
        **named,
        "kid_mean": scaled.value,
        "kid_error": scaled.error,
        "kid_low": low,
        "kid_high": high,
        "kid_error_reason": few if scaled.error is None else None,
        "kid_raw": raw.value,
        "kid_raw_error": raw.error,
        "manifold_precision": None if near is None else near.precision,
        "manifold_recall": None if near is None else near.recall,
        "neighbour": None if near is None else near.k,
        "neighbour_count": None if near is None else near.count,
        "extractor": extractor.name,
        "extractor_sha256": sha256_file(extractor),
    }


_OF_FEATURES = (
    "kid_mean", "kid_error", "kid_low", "kid_high", "kid_raw", "kid_raw_error", "manifold_precision", "manifold_recall",
    "neighbour", "neighbour_count", "extractor", "extractor_sha256",
)  # fmt: skip


def _kids(real: Features, generated: Features, extractor: Path) -> tuple[Mmd, Mmd]:
    """(on the real images' scale, raw)."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled, raw = kid_on_reference_scale(real, generated), kid_of_features(real, generated)
    except InputError as error:
        raise InputError(f"{extractor} cannot judge these images: {error}; use another extractor") from None
    if not (math.isfinite(scaled.value) and math.isfinite(raw.value)):
        raise InputError(f"{extractor} gives features too large for KID (overflow in float64); use another extractor")
    return scaled, raw


def _made_by(record: ImageRecord | None) -> dict[str, Any]:
    head: dict[str, Any] = {} if record is None or record.head is None else record.head
    server: dict[str, Any] = {} if record is None else record.server
    reason = "no head has run: these are hand-over tensors" if record is not None and record.head is None else None
    return {
        "head": head.get("name"),
        "head_sha256": head.get("weights_sha256"),
        **{key: head.get(key) for key in ("precision", "engine", "sampler", "steps")},
        "cut_ratio": None if record is None else record.plan.cut_ratio,
        "cut": None if record is None else record.plan.cut,
        "fingerprint": None if record is None else record.plan.fingerprint,
        "seed": None if record is None else record.seed,
        "first_index": None if record is None else record.first_index,
        **{f"server_{key}": server.get(key) for key in ("sampler", "steps")},
        "server_sha256": server.get("weights_sha256"),
        "unknown": NO_RECORD if record is None else reason,
    }
