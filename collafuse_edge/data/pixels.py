"""From stored pixels to the plan's tensor: range, channels, aspect ratio, size."""

from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Float32Array
from collafuse_runtimes.errors import InputError

_FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, the weights of Pillow's mode L."""


def check_pixels(name: str, pixels: npt.NDArray[Any]) -> None:
    """Require uint8, uint16 or floats in [0, 1]; ``pixels`` is a stack of images, first axis the image.

    Raises:
        InputError: another dtype, NaN or Inf (names the first image) or a range beyond [0, 1] (names the range).
    """
    if pixels.dtype.newbyteorder("=") in _FULL_SCALE or not pixels.size:
        return
    if pixels.dtype.kind != "f":
        raise InputError(f"{name} has pixels of dtype {pixels.dtype}; valid: uint8, uint16, or floats in 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        first = next(i for i, image in enumerate(pixels) if not np.isfinite(image).all())
        raise InputError(f"{name} holds NaN or Inf, first in image {first}; mend or remove it")
    if low < 0 or high > 1:
        raise InputError(f"{name} has float pixels from {low:g} to {high:g}; valid: 0 to 1; rescale them first")


def to_unit(pixels: npt.NDArray[Any]) -> Float32Array:
    """Checked pixels to float32 in [0, 1]: uint8 / 255, uint16 / 65535, floats as they are."""
    full_scale = _FULL_SCALE.get(pixels.dtype.newbyteorder("="))
    if full_scale is None:
        return pixels.astype(np.float32, copy=False)
    unit: Float32Array = np.divide(pixels, np.float32(full_scale), dtype=np.float32)
    return unit


def fit(image: Float32Array, out: Float32Array) -> None:
    """Fill ``out`` (C, H, W), range [-1, 1], with ``image`` (h, w) or (h, w, 3), range [0, 1].

    Colour becomes grey by BT.601 luma, grey becomes colour by repetition. Black bars bring the image, centred, to the
    aspect ratio H:W; then LANCZOS in 32-bit floats (no 8-bit rounding), its overshoot clipped.
    """
    channels, height, width = out.shape
    if image.ndim == 2:
        out[:] = _resized(image, height, width)
    elif channels == 1:
        out[0] = _resized(image @ _LUMA, height, width)
    else:
        for channel in range(channels):
            out[channel] = _resized(image[..., channel], height, width)
    out *= 2
    out -= 1


def _resized(plane: Float32Array, height: int, width: int) -> Float32Array:
    if plane.shape == (height, width):
        return plane.clip(0, 1)
    from PIL import Image

    padded = Image.fromarray(np.ascontiguousarray(_padded(plane, height, width)))  # mode "F"
    resized: Float32Array = np.asarray(padded.resize((width, height), Image.Resampling.LANCZOS))
    return resized.clip(0, 1)


def _padded(plane: Float32Array, height: int, width: int) -> Float32Array:
    """Centre ``plane`` in the smallest black canvas of aspect ratio ``height``:``width``."""
    h, w = plane.shape
    if h * width == w * height:
        return plane
    rows, columns = max(h, _rounded(w * height, width)), max(w, _rounded(h * width, height))
    top, left = (rows - h) // 2, (columns - w) // 2
    return np.pad(plane, ((top, rows - h - top), (left, columns - w - left)))


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
