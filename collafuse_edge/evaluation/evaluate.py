"""Quality of generated images: the kernel inception distance against real ones, with all that names the score.

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
from collafuse_edge.evaluation.kid import LEAST_FOR_ERROR, kid_of_features, kid_on_reference_scale
from collafuse_runtimes.checks import check_images
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.image_record import ImageRecord, read_record, record_of_handover
from collafuse_runtimes.files.sealed import read_bytes, sha256_file
from collafuse_runtimes.text import one_line

ESTIMATOR = "U-statistic over all pairs, cubic kernel, features centred and scaled on the real images"
NO_RECORD = "made by a release of `infer` that wrote no images.json, or by another program"


@dataclass(frozen=True)
class KidScore:
    """One score with all that names it; what is not known is None, and ``unknown`` says why.

    Attributes:
        kid_mean: KID of features centred and scaled on the real images; 0 for equal distributions (the estimator is
            unbiased, so it may be below).
        kid_error, kid_low, kid_high: its standard error over the images of both sides, and the 95 % interval.
        kid_error_reason: why they are None.
        kid_raw, kid_raw_error: KID of the features as they are, as the literature gives it.
        kid_std, subset_size: None: no subsets are drawn, so there is no deviation over them.
        estimator: what ``kid_mean`` is, in words; scores of another one are not comparable.
        real, generated: names of the two sets.
        head, head_sha256, precision, engine, sampler, steps: the head bundle's name, its weights, and how it ran; None
            for hand-over tensors.
        cut_ratio, cut, fingerprint: of the plan.
        seed, first_index: of the noise.
        server_sampler, server_steps, server_sha256: how the hand-over was made.
    """

    kid_mean: float
    kid_error: float | None
    kid_low: float | None
    kid_high: float | None
    kid_error_reason: str | None
    kid_raw: float
    kid_raw_error: float | None
    kid_std: None
    subset_size: None
    estimator: str
    real: str
    real_count: int
    generated: str
    generated_count: int
    extractor: str
    extractor_sha256: str
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


def kid(real: Float32Array, generated: Generated, extractor: Path, *, real_name: str, generated_name: str) -> KidScore:
    """KID between two sets of images in [-1, 1] (values beyond are clipped), each (N, C, H, W), N >= 2.

    Args:
        extractor: ONNX file with one input, (N, 3, H, W) RGB in 0..255, and one output, (N, D) features. Images are
            resized (bilinear, antialiased) to its H and W.

    Raises:
        InputError: fewer than 2 images, or the extractor's inputs, outputs or features are of another kind, too large
            or all the same.
        ArtefactError: the extractor cannot be read.
    """
    images = generated.images
    if min(len(real), len(images)) < 2:
        raise InputError(f"KID needs at least 2 images a side; real {len(real)}, generated {len(images)}")
    of_real, of_generated = features_of(extractor, real), features_of(extractor, images)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = kid_on_reference_scale(of_real, of_generated)
            raw = kid_of_features(of_real, of_generated)
    except InputError as error:
        raise InputError(f"{extractor} cannot judge these images: {error}; use another extractor") from None
    if not (math.isfinite(scaled.value) and math.isfinite(raw.value)):
        raise InputError(f"{extractor} gives features too large for KID (overflow in float64); use another extractor")
    low, high = scaled.interval or (None, None)
    few = f"fewer than {LEAST_FOR_ERROR} images on a side: too few to say how far the score would scatter"
    return KidScore(
        kid_mean=scaled.value,
        kid_error=scaled.error,
        kid_low=low,
        kid_high=high,
        kid_error_reason=few if scaled.error is None else None,
        kid_raw=raw.value,
        kid_raw_error=raw.error,
        kid_std=None,
        subset_size=None,
        estimator=ESTIMATOR,
        real=real_name,
        real_count=len(real),
        generated=generated_name,
        generated_count=len(images),
        extractor=extractor.name,
        extractor_sha256=sha256_file(extractor),
        **_made_by(generated.record),
    )


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


def describe_score(score: KidScore) -> list[str]:
    """Lines for people; the first is the score."""
    error = (
        score.kid_error_reason
        if score.kid_error is None
        else f"standard error {score.kid_error:.2g}, 95 % interval {score.kid_low:.3g} to {score.kid_high:.3g}"
    )
    return [
        f"KID       {score.kid_mean:.4g} ({error})",
        "scale     0: no difference; 1: as if every feature had moved by half its deviation over the real images",
        f"raw       {score.kid_raw:.4g} in the extractor's own units",
        f"real      {score.real_count} images: {score.real}",
        f"generated {score.generated_count} images: {score.generated}",
        f"made by   {_describe_maker(score)}",
        f"extractor {score.extractor} ({score.extractor_sha256[:16]}); not comparable with scores of another extractor",
    ]


def _describe_maker(score: KidScore) -> str:
    if score.fingerprint is None:
        return f"unknown: {score.unknown}"
    server = f"{score.server_steps} server steps, c = {score.cut_ratio:g}, seed {score.seed}"
    if score.sampler is None:
        return f"{server}; no head"
    return f"{score.head}, {score.steps} steps of {Sampler(**score.sampler).text} by {score.engine}, after {server}"
