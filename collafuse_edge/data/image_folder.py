"""Picture files, read with Pillow."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Float32Array, Source
from collafuse_edge.data.notes import Notes
from collafuse_edge.data.scaling import Scaling
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".pnm")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What Pillow may take a file for, whatever its name: no EPS (it would start Ghostscript), PSD, PDF, ..."""
MAX_PIXELS = 1 << 26
LONG_SIDE = 4096
"""Longer ones are averaged down by a whole factor before anything else, the largest plan's side being this."""
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339
_WHITE_IS_ZERO, _SIGNED, _ALPHA_IN_FLOATS = 0, 2, 1 << 22
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""EXIF orientation to quarter turns to the left and a mirror image, left and right, after them."""


def open_images(pictures: list[Path], scaling: Scaling | None = None) -> Source:
    """Image files.

    Of a file with several frames the first is read; EXIF orientation is applied; transparency becomes black. Grey
    files keep 16 bits; Pillow reads 16-bit colour as 8-bit. WhiteIsZero is turned over.

    Raises:
        InputError: while reading, a file that cannot be decoded, is of no format in ``FORMATS``, has more than
            ``MAX_PIXELS`` or pixels of no known range.
    """
    source = Source(len(pictures), lambda rows: _read_all([pictures[row] for row in rows], scale, source.notes))
    scale = scaling or Scaling()
    return source


def _read_all(paths: list[Path], scaling: Scaling, notes: Notes) -> Iterator[Float32Array]:
    try:
        for path in paths:
            pixels = _read(path, scaling, notes)
            scaling.require(str(path), pixels[np.newaxis])
            yield scaling.to_unit(pixels)
    finally:
        scaling.note(notes)


def _read(path: Path, scaling: Scaling, notes: Notes) -> npt.NDArray[Any]:
    """Decoded, turned upright; stored values."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # doubtful metadata; the pixels are judged by what is read
            _require_size(path, image)
            if getattr(image, "n_frames", 1) > 1:
                notes.add("first of several frames taken")
            pixels = _pixels(image, path, scaling, notes)
            return _upright(_shortened(pixels), _orientation(image), notes)
    except UnidentifiedImageError:
        raise InputError(
            f"cannot read image {path}: Pillow finds none of {', '.join(FORMATS)} in it (another format, an "
            "unusual kind, or damaged); replace or remove it"
        ) from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"cannot read image {path}: {reason}; replace or remove it") from error


def _require_size(path: Path, image: "Image.Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} has {width}x{height} pixels; valid: at most {MAX_PIXELS}; shrink it, or check where it is from"
        )
    if not width * height:
        raise InputError(f"{path} has {width}x{height} pixels; remove it")


def _pixels(image: "Image.Image", path: Path, scaling: Scaling, notes: Notes) -> Any:
    """(h, w) or (h, w, 3): unsigned integers, floats, or whole numbers that need a window."""
    bands = image.getbands()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep(image, path, scaling, notes)
    if "A" in bands or "a" in bands or "transparency" in image.info:
        notes.add("transparency made black")
        return _on_black(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _deep(image: "Image.Image", path: Path, scaling: Scaling, notes: Notes) -> Any:
    """One channel of more than 8 bits."""
    tags = dict(getattr(image, "tag_v2", {}))
    pixels = np.asarray(image)
    if image.mode.startswith("I;16"):
        bits = int(_first(tags.get(_BITS), 16))
        pixels = pixels.astype(np.uint16)
        if _first(tags.get(_SAMPLE_FORMAT), 1) == _SIGNED:
            pixels = pixels.view(np.int16)
    elif image.mode == "I" and image.format != "TIFF":  # PGM and, once, PNG of 16 bits
        bits, pixels = 16, pixels.astype(np.uint16)
    else:
        bits = 32
    if _first(tags.get(_PHOTOMETRIC), 1) == _WHITE_IS_ZERO:
        notes.add("white-is-zero turned over")
        pixels = _turned_over(path, pixels, bits)
    if 8 < bits < 16 and pixels.dtype == np.uint16 and scaling.window is None and scaling.max_value is None:
        unit: npt.NDArray[np.float32] = pixels.astype(np.float32) / np.float32(2**bits - 1)
        return unit
    return pixels


def _turned_over(path: Path, pixels: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    white = np.uint16(2 ** min(bits, 16) - 1) if pixels.dtype == np.uint16 else np.float32(1)
    if pixels.dtype.kind in "fu":
        turned: npt.NDArray[Any] = white - pixels
        return turned
    raise InputError(f"{path} is white-is-zero with {pixels.dtype} pixels, whose white nothing says; convert it")


def _first(value: Any, default: int) -> Any:
    """A tag's value: one number, or the first of several."""
    found = default if value is None else value
    return found[0] if isinstance(found, tuple) and found else found


def _on_black(image: "Image.Image") -> Any:
    from PIL import Image

    rgba = image.convert("RGBA")
    if rgba.width * rgba.height > _ALPHA_IN_FLOATS:  # in 8 bits, to a quarter of the memory
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, rgba).convert("RGB"))
    unit = np.asarray(rgba).astype(np.float32) / np.float32(255)
    return unit[..., :3] * unit[..., 3:]


def _orientation(image: "Image.Image") -> int:
    """EXIF's, 1 where it says none or nonsense; nothing else of EXIF is looked at."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata that Pillow cannot parse raises anything; the pixels are good all the same
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _upright(pixels: npt.NDArray[Any], orientation: int, notes: Notes) -> npt.NDArray[Any]:
    if orientation == 1:
        return pixels
    notes.add("turned upright by EXIF")
    turns, mirrored = _TURNS[orientation]
    turned = np.rot90(pixels, turns)
    return turned[:, ::-1] if mirrored else turned


def _shortened(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Averaged over blocks until no side is longer than ``LONG_SIDE``, a band of rows at a time."""
    factor = -(-max(pixels.shape[:2]) // LONG_SIDE)
    if factor == 1:
        return pixels
    bands = [_block_means(pixels[top : top + factor], factor) for top in range(0, len(pixels), factor)]
    means = np.stack(bands)
    return (means if pixels.dtype.kind == "f" else np.rint(means)).astype(pixels.dtype)


def _block_means(band: npt.NDArray[Any], factor: int) -> npt.NDArray[np.float64]:
    """(rows, w[, 3]) -> (ceil(w / factor)[, 3])."""
    rows = band.mean(axis=0, dtype=np.float64)
    starts = np.arange(0, len(rows), factor)
    sums = np.add.reduceat(rows, starts, axis=0)
    lengths = np.diff([*starts, len(rows)]).astype(np.float64)
    return sums / lengths.reshape(-1, *[1] * (sums.ndim - 1))
