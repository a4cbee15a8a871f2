"""The picture of a disclosure report: real images, and for each cut what is uploaded and the best guess from it."""

import io
import math
from collections.abc import Sequence

from collafuse_benchmarks.disclosure.measure import Attacked
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.files.images import to_uint8

SHOWN = 8
_LEAST_SIDE, _GAP, _CAPTION = 72, 3, 15


def rows_of(real: Float32Array, cuts: Sequence[Attacked]) -> list[tuple[str, Float32Array]]:
    """(caption, images) row by row."""
    rows = [("real", real[:SHOWN])]
    for attacked in cuts:
        c = f"c = {attacked.cut.cut_ratio:g}"
        rows += [
            (f"{c}: what would be uploaded", attacked.released[:SHOWN]),
            (f"{c}: best guess ({attacked.cut.best.attacker.partition(',')[0]})", attacked.best_guess[:SHOWN]),
        ]
    return rows


def draw(rows: Sequence[tuple[str, Float32Array]]) -> bytes:
    """A PNG; small images are shown larger, each pixel as a square."""
    from PIL import Image, ImageDraw

    count, _, height, width = rows[0][1].shape
    scale = math.ceil(_LEAST_SIDE / min(height, width))
    cell, line = width * scale + _GAP, height * scale + _CAPTION + _GAP
    sheet = Image.new("RGB", (max(count * cell, 300), len(rows) * line), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for row, (caption, images) in enumerate(rows):
        pen.text((1, row * line + 1), caption, fill=(0, 0, 0))
        for column, pixels in enumerate(to_uint8(images)):
            large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
            tile = Image.fromarray(large[..., 0] if large.shape[-1] == 1 else large)
            sheet.paste(tile, (column * cell, row * line + _CAPTION))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
