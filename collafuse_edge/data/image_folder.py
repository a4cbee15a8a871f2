"""A folder of image files, read with Pillow."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Float32Array, Int64Array, Source
from collafuse_edge.data.pixels import check_pixels, to_unit
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".pnm")


def open_images(pictures: list[Path]) -> Source:
    """Image files.

    Of a file with several frames the first is read; EXIF orientation is applied; transparency becomes black. Grey
    files keep 16 bits; Pillow reads 16-bit colour as 8-bit.

    Raises:
        InputError: while reading, a file that cannot be decoded or has pixels of no known range.
    """

    def read(rows: Int64Array) -> Iterator[Float32Array]:
        return (_read(pictures[row]) for row in rows)

    return Source(len(pictures), read)


def _read(path: Path) -> Float32Array:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            pixels = _pixels(ImageOps.exif_transpose(image), path)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read image {path}: {reason}; replace or remove it") from error
    check_pixels(str(path), pixels[np.newaxis])
    return to_unit(pixels)


def _pixels(image: "Image.Image", path: Path) -> npt.NDArray[Any]:
    """(h, w) or (h, w, 3), uint8, uint16 or float."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        return _sixteen_bits(np.asarray(image), path)
    if "A" in image.getbands() or "transparency" in image.info:
        return _on_black(np.asarray(image.convert("RGBA")))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("L", "F", "RGB"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _sixteen_bits(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint16]:
    """Mode "I" has 32 bits, but Pillow uses it for 16-bit PGM, once for PNG too; other files do not tell."""
    if path.suffix.lower() not in (".png", ".pgm", ".pnm"):
        raise InputError(f"{path} has 32-bit integer pixels; valid: 8 or 16 bits, or floats in 0 to 1; convert it")
    return pixels.astype(np.uint16)


def _on_black(rgba: npt.NDArray[np.uint8]) -> Float32Array:
    unit = to_unit(rgba)
    return unit[..., :3] * unit[..., 3:]
