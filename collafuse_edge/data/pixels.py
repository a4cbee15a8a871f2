"""From pixels in [0, 1] to the plan's tensor: channels, aspect ratio, size."""

import math

import numpy as np

from collafuse_edge.data.image_set import Float32Array
from collafuse_runtimes.errors import InputError

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601, the weights of Pillow's mode L."""
MAX_PADDING = 16
"""Canvas to image, in pixels; beyond it an image is shrunk first and padded then."""
SMALL_CANVAS = 1 << 20
MAX_STRETCH = 64


def isotropic(image: Float32Array, rows: float, columns: float) -> Float32Array:
    """``image`` (h, w) or (h, w, 3) stretched to square pixels of the smaller spacing, in [0, 1].

    Args:
        rows: distance of neighbouring rows, any unit.
        columns: distance of neighbouring columns.

    Raises:
        InputError: a spacing is no positive number, or one is more than ``MAX_STRETCH`` times the other.
    """
    if not (0 < rows < math.inf and 0 < columns < math.inf):
        raise InputError(
            f"spacing {rows:g} x {columns:g} is no distance of pixels; mend the header or convert the file"
        )
    finest = min(rows, columns)
    if max(rows, columns) > MAX_STRETCH * finest:
        raise InputError(
            f"spacing {rows:g} x {columns:g} stretches pixels more than {MAX_STRETCH}-fold; check the header"
        )
    height, width = max(1, round(image.shape[0] * rows / finest)), max(1, round(image.shape[1] * columns / finest))
    if (height, width) == image.shape[:2]:
        return image
    if image.ndim == 2:
        return _lanczos(image, height, width)
    return np.stack([_lanczos(image[..., channel], height, width) for channel in range(image.shape[2])], axis=-1)


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
    h, w = plane.shape
    rows, columns = _canvas(h, w, height, width)
    if rows * columns > max(MAX_PADDING * h * w, SMALL_CANVAS):  # a strip: the canvas would take the memory
        plane = _lanczos(plane, max(1, _rounded(h * height, rows)), max(1, _rounded(w * width, columns)))
        return _centred(plane, height, width)
    return _lanczos(_centred(plane, rows, columns), height, width)


def _lanczos(plane: Float32Array, height: int, width: int) -> Float32Array:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(plane))  # mode "F"
    resized: Float32Array = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return resized.clip(0, 1)


def _canvas(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """The smallest canvas of aspect ratio ``height``:``width`` that holds h x w."""
    if h * width == w * height:
        return h, w
    return max(h, _rounded(w * height, width)), max(w, _rounded(h * width, height))


def _centred(plane: Float32Array, rows: int, columns: int) -> Float32Array:
    """``plane`` amid black."""
    h, w = plane.shape
    top, left = (rows - h) // 2, (columns - w) // 2
    return np.pad(plane, ((top, rows - h - top), (left, columns - w - left)))


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
