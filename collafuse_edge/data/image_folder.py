"""A folder of image files, read with Pillow."""

import os
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
_NIFTI = (".nii", ".nii.gz")


def find_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Image files and NIfTI files below ``root``, sorted by path; hidden files and folders are skipped.

    Raises:
        InputError: a folder cannot be listed.
    """
    files = sorted(_walk(root), key=lambda path: path.parts)
    pictures = [path for path in files if path.name.lower().endswith(EXTENSIONS)]
    return pictures, [path for path in files if path.name.lower().endswith(_NIFTI)]


def open_images(root: Path, pictures: list[Path]) -> Source:
    """Image files below ``root``; if each lies in a sub-folder, the first folder's name is the class.

    Of a file with several frames the first is read; EXIF orientation is applied; transparency becomes black. Grey
    files keep 16 bits; Pillow reads 16-bit colour as 8-bit.

    Raises:
        InputError: no image here; while reading, a file that cannot be decoded or has pixels of no known range.
    """
    if not pictures:
        known = " ".join(EXTENSIONS)
        raise InputError(f"{root} holds no image; valid: files ending in {known} or .nii .nii.gz, sub-folders included")

    def read(rows: Int64Array) -> Iterator[Float32Array]:
        return (_read(pictures[row]) for row in rows)

    folders = [path.relative_to(root).parts[:-1] for path in pictures]
    if not all(folders):
        return Source(len(pictures), read)
    names = sorted({folder[0] for folder in folders})
    labels = np.array([names.index(folder[0]) for folder in folders], np.int64)
    return Source(len(pictures), read, labels, tuple(names))


def _walk(root: Path) -> Iterator[Path]:
    """Files below ``root``, through links too, each real folder once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename}: {error.strerror}; make it readable or leave it out") from error

    seen: set[str] = set()
    for folder, children, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = sorted(child for child in children if not child.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


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
