"""Quality of generated images: the kernel inception distance against real ones.

KID (Binkowski et al. 2018, eq. 4: squared MMD with the cubic polynomial kernel, unbiased), computed by torchmetrics on
the features of an extractor the user names. Scores of different extractors cannot be compared, so the extractor's name
and sha256 are part of every result.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse_runtimes.checks import check_images
from collafuse_runtimes.cpus import threads_by_quota
from collafuse_runtimes.errors import ArtefactError, EngineUnavailable, InputError
from collafuse_runtimes.noise import Float32Array, check_seed
from collafuse_runtimes.sealed import read_bytes, sha256_file

if TYPE_CHECKING:
    import torch

SUBSETS = 100
MAX_SUBSET_SIZE = 200
BATCH = 32


@dataclass(frozen=True)
class KidScore:
    """One score with all that names it.

    Attributes:
        kid_mean: mean over ``subsets`` random subsets of ``subset_size`` images of each side; near 0 (or slightly
            below, the estimator is unbiased) for equal distributions.
        kid_std: standard deviation over the subsets.
        seed: of the subsets.
    """

    kid_mean: float
    kid_std: float
    real: str
    real_count: int
    generated: str
    generated_count: int
    extractor: str
    extractor_sha256: str
    subsets: int
    subset_size: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def read_generated(path: Path) -> Float32Array:
    """Generated images, (N, C, H, W) float32: an `infer` folder or its images.npz, or a hand-over file.

    Raises:
        ArtefactError: missing, damaged, or none of these.
        InputError: the array is not a finite batch of images.
    """
    from collafuse_runtimes.handover import read_handover
    from collafuse_runtimes.infer import ARRAY_FILE

    if path.suffix == ".safetensors":
        return read_handover(path).x_tc
    path = path / ARRAY_FILE if path.is_dir() else path
    data = read_bytes(path)
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise ValueError("no .npz file, or a truncated one")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            images: Float32Array = archive["images"]
    except Exception as error:  # those of numpy and zipfile share no base
        raise ArtefactError(
            f"cannot read generated images from {path}: {_short(error)}; valid: a folder written by `infer`, its "
            f"{ARRAY_FILE}, or a .tc.safetensors file"
        ) from None
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(f"{path} has images of shape {images.shape}; valid: (N, C, H, W) with N >= 1, C 1 or 3")
    check_images(str(path), images, images.shape[1:])
    return images.astype(np.float32)


def kid(
    real: Float32Array,
    generated: Float32Array,
    extractor: Path,
    *,
    real_name: str,
    generated_name: str,
    seed: int = 0,
) -> KidScore:
    """KID between two sets of images in [-1, 1] (values beyond are clipped), each (N, C, H, W), N >= 2.

    Args:
        extractor: ONNX file with one input, (N, 3, H, W) RGB in 0..255, and one output, (N, D) features. Images are
            resized (bilinear) to its H and W.

    Raises:
        InputError: fewer than 2 images, a bad seed, or the extractor's inputs, outputs or features are of another kind.
        ArtefactError: the extractor cannot be read.
        EngineUnavailable: torchmetrics is not installed.
    """
    try:
        import torch
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise EngineUnavailable(f"{error.name} is not installed; pip install 'collafuse-edge[eval]'") from None
    count = min(len(real), len(generated))
    if count < 2:
        raise InputError(f"KID needs 2 and more images a side; real {len(real)}, generated {len(generated)}")
    subset_size = min(count, MAX_SUBSET_SIZE)
    check_seed(seed)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_feature_module(extractor), subsets=SUBSETS, subset_size=subset_size)
        for images, is_real in ((real, True), (generated, False)):
            for start in range(0, len(images), BATCH):
                metric.update(_to_uint8(images[start : start + BATCH]), real=is_real)
        mean, std = (float(value) for value in metric.compute())
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise InputError(f"{extractor} gives features too large for KID (overflow in float32); use another extractor")
    return KidScore(
        kid_mean=mean,
        kid_std=std,
        real=real_name,
        real_count=len(real),
        generated=generated_name,
        generated_count=len(generated),
        extractor=extractor.name,
        extractor_sha256=sha256_file(extractor),
        subsets=SUBSETS,
        subset_size=subset_size,
        seed=seed,
    )


def describe_score(score: KidScore) -> list[str]:
    """Lines for people."""
    return [
        f"KID       {score.kid_mean:.4g} +- {score.kid_std:.2g} over {score.subsets} subsets of {score.subset_size}, "
        f"seed {score.seed}",
        f"real      {score.real_count} images: {score.real}",
        f"generated {score.generated_count} images: {score.generated}",
        f"extractor {score.extractor} ({score.extractor_sha256[:16]}); not comparable with scores of another extractor",
    ]


def _to_uint8(images: Float32Array) -> "torch.Tensor":
    """(N, C, H, W) in [-1, 1] -> (N, 3, H, W) uint8."""
    import torch

    pixels = torch.from_numpy(np.round((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def _feature_module(extractor: Path) -> "torch.nn.Module":
    import torch

    features, height, width = _open_extractor(extractor)

    class Features(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            resized = torch.nn.functional.interpolate(
                pixels.float(), (height, width), mode="bilinear", align_corners=False, antialias=True
            )
            return torch.from_numpy(features(resized.numpy()))

    return Features()


def _open_extractor(path: Path) -> tuple[Callable[[Float32Array], Float32Array], int, int]:
    import onnxruntime

    model = read_bytes(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.intra_op_num_threads = threads_by_quota() or 0
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no public base
        raise ArtefactError(f"{path} is not a readable ONNX model: {_short(error)}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    height, width = _image_sides(path, inputs, outputs)

    def features(batch: Float32Array) -> Float32Array:
        try:
            result: Float32Array = session.run(None, {inputs[0].name: batch})[0]
        except Exception as error:
            raise InputError(f"{path} fails on a batch of shape {batch.shape}: {_short(error)}") from None
        if result.ndim != 2 or len(result) != len(batch):
            raise InputError(f"{path} turns {len(batch)} images into {result.shape}; valid: one row of features each")
        if not np.isfinite(result).all():
            raise InputError(f"{path} gives features with NaN or Inf; use another extractor")
        return result

    return features, height, width


def _image_sides(path: Path, inputs: list[Any], outputs: list[Any]) -> tuple[int, int]:
    """H and W of the extractor's input."""
    if len(inputs) == len(outputs) == 1 and {inputs[0].type, outputs[0].type} == {"tensor(float)"}:
        batch, *channels_and_sides = inputs[0].shape or (0,)
        match channels_and_sides:
            case 3, int(height), int(width) if not isinstance(batch, int) and len(outputs[0].shape) == 2:
                return height, width
    found = " to ".join(
        ", ".join(f"{t.type} ({', '.join(map(str, t.shape))})" for t in tensors) or "nothing"
        for tensors in (inputs, outputs)
    )
    raise InputError(
        f"{path} maps {found}; valid: one float32 input (N, 3, H, W) with fixed H and W and any N, one float32 output "
        "(N, D)"
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
