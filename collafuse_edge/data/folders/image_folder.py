"""Picture files, read with Pillow."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Float32Array, Source
from collafuse_edge.data.notes import Notes
from collafuse_edge.data.scaling import Scaling
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".pnm")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What Pillow may take a file for, whatever its name: no EPS (it would start Ghostscript), PSD, PDF, ..."""
MAX_PIXELS = 1 << 26
LONG_SIDE = 4096
"""Longer ones are averaged down by a whole factor before anything else, the largest plan's side being this."""
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_ALPHA_IN_FLOATS, _BAND = 1 << 22, 1 << 20
"""Pixels: a picture beyond the first keeps 8 bits under its transparency; worked on at a time."""
_TIFF_KINDS = {
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"II", 0, (2,), 1, (16,), ()): ("I", "I;16S"),
    (b"MM", 0, (2,), 1, (16,), ()): ("I", "I;16BS"),
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"II", 1, (3,), 1, (64,), ()): ("F", "F;64F"),
    (b"MM", 1, (3,), 1, (64,), ()): ("F", "F;64BF"),
}
"""Byte order, photometric interpretation, sample format, fill order, bits, further samples: mode and raw mode."""
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
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubtful metadata; the pixels are judged by what is read
            with _open(path) as image:
                _require_size(path, image)
                if getattr(image, "is_animated", False):
                    notes.add("first of several frames taken")
                if image.info.get("icc_profile"):
                    notes.add("colour profile ignored")
                pixels = _pixels(image, path, scaling, notes)
                return _upright(_shortened(pixels, notes), _orientation(image), notes)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"cannot read image {path}: Pillow finds none of {', '.join(FORMATS)} in it (another format, an "
            "unusual kind, or damaged); replace or remove it"
        ) from None
    except Exception as error:  # damaged files bring Pillow to IndexError, KeyError, TypeError and more
        reason = one_line(error, 200)
        raise InputError(f"cannot read image {path}: {reason}; replace or remove it") from error


def _open(path: Path) -> "Image.Image":
    """By Pillow, for TIFF with kinds that its table lacks and its decoders know."""
    from PIL import Image, TiffImagePlugin

    for key, value in _TIFF_KINDS.items():
        TiffImagePlugin.OPEN_INFO.setdefault(key, value)
    return Image.open(path, formats=FORMATS)


def _require_size(path: Path, image: "Image.Image") -> None:
    width, height = image.size
    most = MAX_PIXELS // 2 if image.format == "WEBP" else MAX_PIXELS  # its decoder holds three copies of four bytes
    if width * height > most:
        raise InputError(
            f"{path} has {width}x{height} pixels; valid: at most {most}; shrink it, or check where it is from"
        )
    if not width * height:
        raise InputError(f"{path} has {width}x{height} pixels; remove it")


def _pixels(image: "Image.Image", path: Path, scaling: Scaling, notes: Notes) -> Any:
    """(h, w) or (h, w, 3): unsigned integers, floats, or whole numbers that need a window."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep(image, path, scaling, notes)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        notes.add("transparency made black")
        return _on_black(image)
    if image.mode not in ("1", "L"):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # done by Pillow
        notes.add("white-is-zero turned over")
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    signed = image.format == "TIFF" and _tag(image, _SAMPLE_FORMAT, 1) == _SIGNED
    return pixels.view(np.int8) if signed else pixels


def _deep(image: "Image.Image", path: Path, scaling: Scaling, notes: Notes) -> Any:
    """One channel of more than 8 bits."""
    pixels, bits = np.asarray(image), int(_tag(image, _BITS, 16))
    signed = _tag(image, _SAMPLE_FORMAT, 1) == _SIGNED
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF"):  # PGM, once PNG of 16 bits
        pixels = pixels.astype(np.uint16)
        pixels = pixels.view(np.int16) if signed else pixels
    elif image.mode == "I" and bits == 32 and not signed:
        pixels = pixels.view(np.uint32)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
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


def _tag(image: "Image.Image", number: int, default: int) -> Any:
    """A TIFF tag's number, of several the first; ``default`` where there is none."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) and value else value


def _on_black(image: "Image.Image") -> Any:
    """A band of rows at a time, so that a large picture is not in memory four times."""
    width, height = image.size
    fine = width * height <= _ALPHA_IN_FLOATS
    black = np.empty((height, width, 3), np.float32 if fine else np.uint8)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        rgba = np.asarray(image.crop((0, top, width, min(top + rows, height))).convert("RGBA")).astype(np.float32)
        band = rgba[..., :3] * rgba[..., 3:] / np.float32(255)
        black[top : top + rows] = band / np.float32(255) if fine else np.rint(band)
    return black


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


def _shortened(pixels: npt.NDArray[Any], notes: Notes) -> npt.NDArray[Any]:
    """Averaged over blocks until no side is longer than ``LONG_SIDE``."""
    from PIL import Image

    factor = -(-max(pixels.shape[:2]) // LONG_SIDE)
    if factor == 1:
        return pixels
    notes.add(f"longer than {LONG_SIDE}, averaged down first")
    plain = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)  # modes L, RGB and F
    means = np.asarray(Image.fromarray(np.ascontiguousarray(plain)).reduce(factor))
    return (means if pixels.dtype.kind == "f" else np.rint(means)).astype(pixels.dtype)
