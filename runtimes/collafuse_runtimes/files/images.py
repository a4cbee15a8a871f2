"""Arrays to pictures: 8-bit PNG files and contact sheets."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.disk.atomic import write_bytes
from collafuse_runtimes.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_GAP, _CAPTION_HEIGHT, _BACKGROUND = 2, 14, 255
_LEAST_SIDE = 64


def to_uint8(images: Float32Array) -> npt.NDArray[np.uint8]:
    """(N, C, H, W) float in [-1, 1] (clipped) -> (N, H, W, C) uint8, rounded to nearest."""
    return np.ascontiguousarray(eight_bits(images).transpose(0, 2, 3, 1))


def eight_bits(images: Float32Array) -> npt.NDArray[np.uint8]:
    """Float in [-1, 1] (clipped), any shape -> uint8, rounded to nearest."""
    levels: npt.NDArray[np.uint8] = np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return levels


def write_png(path: Path, image: Float32Array) -> None:
    """Write one (C, H, W) image in [-1, 1], C 1 or 3.

    Raises:
        ArtefactError: the file cannot be written.
    """
    write_bytes(path, encode_png(image))


def encode_png(image: Float32Array) -> bytes:
    """One (C, H, W) image in [-1, 1], C 1 or 3, as the bytes of a PNG file."""
    return _encode(_to_pil(to_uint8(image[None])[0]))


def write_contact_sheet(
    path: Path,
    images: Float32Array,
    *,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    mode: int = 0o644,
) -> None:
    """Write (N, C, H, W) images in [-1, 1] as one PNG, row by row.

    Args:
        columns: images per row; default about square.
        captions: one line under each image.
        mode: of the file, less the umask.

    Raises:
        InputError: columns < 1, or another number of captions than images.
        ArtefactError: the file cannot be written.
    """
    from PIL import ImageDraw

    count, _, height, width = images.shape
    columns = min(count, math.ceil(math.sqrt(count))) if columns is None else columns
    if columns < 1:
        raise InputError(f"columns {columns} out of range: must be at least 1")
    if captions is not None and len(captions) != count:
        raise InputError(f"{len(captions)} captions for {count} images; give one each, or none")
    cell_height = height + _GAP + (_CAPTION_HEIGHT if captions else 0)
    sheet = _blank(columns * (width + _GAP) - _GAP, math.ceil(count / columns) * cell_height - _GAP)
    draw = ImageDraw.Draw(sheet)
    for i, pixels in enumerate(to_uint8(images)):
        x, y = i % columns * (width + _GAP), i // columns * cell_height
        sheet.paste(_to_pil(pixels), (x, y))
        if captions:
            draw.text((x + 1, y + height + 1), captions[i], fill=(0, 0, 0))
    write_bytes(path, _encode(sheet), mode=mode)


def encode_rows(rows: Sequence[tuple[str, Float32Array]]) -> bytes:
    """(caption, (N, C, H, W) images in [-1, 1]), row by row under its caption, as the bytes of a PNG file.

    Small images are shown larger, each pixel as a square.
    """
    from PIL import ImageDraw

    _, _, height, width = rows[0][1].shape
    scale = math.ceil(_LEAST_SIDE / min(height, width))
    cell, line = width * scale + _GAP, height * scale + _CAPTION_HEIGHT + _GAP
    widest = max(max(len(images) * cell, 6 * len(caption) + 6) for caption, images in rows)
    sheet = _blank(widest, len(rows) * line)
    draw = ImageDraw.Draw(sheet)
    for row, (caption, images) in enumerate(rows):
        draw.text((1, row * line + 1), caption, fill=(0, 0, 0))
        for column, pixels in enumerate(to_uint8(images)):
            large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(_to_pil(large), (column * cell, row * line + _CAPTION_HEIGHT))
    return _encode(sheet)


def _to_pil(pixels: npt.NDArray[np.uint8]) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _blank(width: int, height: int) -> "Image.Image":
    from PIL import Image

    return Image.new("RGB", (width, height), (_BACKGROUND,) * 3)


def _encode(image: "Image.Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
