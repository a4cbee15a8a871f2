"""Features of images by an ONNX file the user names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.evaluation.kid import Features
from collafuse_runtimes.device.cpus import threads_by_quota
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.images import eight_bits
from collafuse_runtimes.files.sealed import read_bytes
from collafuse_runtimes.text import one_line

BATCH = 32


def features_of(extractor: Path, images: Float32Array) -> Features:
    """(N, D) float64 features of (N, C, H, W) images in [-1, 1]; values beyond are clipped, grey is repeated.

    The images are put into 8 bits, resized (bilinear, antialiased) to the extractor's H and W, and given as RGB in
    0..255.

    Raises:
        ArtefactError: the extractor cannot be read, or is no ONNX model.
        InputError: its inputs, outputs or features are of another kind than (N, 3, H, W) to (N, D).
    """
    features, height, width = _open(extractor)
    starts = range(0, len(images), BATCH)
    parts = [features(_resized(images[start : start + BATCH], height, width)) for start in starts]
    return np.concatenate(parts).astype(np.float64)


def _resized(images: Float32Array, height: int, width: int) -> Float32Array:
    """(N, C, H, W) in [-1, 1] -> (N, 3, height, width) in 0..255."""
    from PIL import Image

    pixels = eight_bits(images).astype(np.float32)
    size = (width, height)
    planes = [
        [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in image]
        for image in pixels
    ]
    resized = np.asarray(planes, dtype=np.float32)
    rgb: Float32Array = np.repeat(resized, 3 // resized.shape[1], axis=1)
    return rgb


def _open(path: Path) -> tuple[Callable[[Float32Array], Float32Array], int, int]:
    """(batch to features, H, W)."""
    import onnxruntime

    if path.exists() and not path.is_file():
        raise ArtefactError(f"{path} is not a file; valid: an ONNX feature extractor")
    model = read_bytes(path)
    if not model:
        raise ArtefactError(f"{path} is empty, not a readable ONNX model; copy it again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.intra_op_num_threads = threads_by_quota() or 0
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no public base
        raise ArtefactError(
            f"{path} is not a readable ONNX model: {one_line(error, 120)}; valid: one file with its weights in it"
        ) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    height, width = _image_sides(path, inputs, outputs)

    def features(batch: Float32Array) -> Float32Array:
        try:
            result: Float32Array = session.run(None, {inputs[0].name: batch})[0]
        except Exception as error:
            raise InputError(f"{path} fails on a batch of shape {batch.shape}: {one_line(error, 120)}") from None
        if result.ndim != 2 or len(result) != len(batch) or result.shape[1] == 0:
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
            case 3, int(height), int(width) if (
                not isinstance(batch, int) and min(height, width) > 0 and len(outputs[0].shape) == 2
            ):
                return height, width
    found = " to ".join(
        ", ".join(f"{t.type} ({', '.join(map(str, t.shape))})" for t in tensors) or "nothing"
        for tensors in (inputs, outputs)
    )
    raise InputError(
        f"{path} maps {found}; valid: one float32 input (N, 3, H, W) with fixed H and W and any N, one float32 output "
        "(N, D)"
    )
