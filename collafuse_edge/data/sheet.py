"""The contact sheet of a data set: class by class, each under its name, as the network will see it."""

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.conversions import class_name
from collafuse_edge.data.image_set import ImageSet, Int64Array
from collafuse_runtimes.disk.atomic import write_bytes
from collafuse_runtimes.files.images import to_uint8

MOST = 64
_COLUMNS, _LEAST_SIDE, _GAP, _CAPTION = 8, 64, 2, 14


def write_sheet(images: ImageSet, path: Path, seed: int) -> None:
    """Write at most ``MOST`` images as one PNG, for its owner alone (mode 0600).

    Small images are shown larger, each pixel as a square, so that what the network sees is seen.

    Raises:
        ArtefactError: the file cannot be written.
    """
    from PIL import Image, ImageDraw

    rows = chosen_rows(images.labels, len(images), seed)
    groups = _groups(images, rows)
    _, _, height, width = images.images.shape
    scale = math.ceil(_LEAST_SIDE / min(height, width))
    cell_height, cell_width = height * scale + _GAP, width * scale + _GAP
    columns = min(_COLUMNS, max(len(group) for _, group in groups))
    total = sum(_CAPTION * bool(title) + math.ceil(len(group) / columns) * cell_height for title, group in groups)
    widest = max(columns * cell_width, *(7 * len(title) for title, _ in groups))
    sheet = Image.new("RGB", (widest, total), (255, 255, 255))
    draw, top = ImageDraw.Draw(sheet), 0
    for title, group in groups:
        if title:
            draw.text((1, top + 1), title, fill=(0, 0, 0))
            top += _CAPTION
        for place, pixels in enumerate(to_uint8(images.images[group])):
            tile = Image.fromarray(_enlarged(pixels, scale))
            sheet.paste(tile, (place % columns * cell_width, top + place // columns * cell_height))
        top += math.ceil(len(group) / columns) * cell_height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue(), mode=0o600)


def chosen_rows(labels: Int64Array | None, count: int, seed: int) -> Int64Array:
    """At most ``MOST`` rows, class by class, of each class the same number where it has as many; a draw of ``seed``."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    if labels is None:
        return np.sort(order[:MOST])
    queues = [order[labels[order] == number].tolist() for number in np.unique(labels)[:MOST]]
    taken: list[list[int]] = [[] for _ in queues]
    left = MOST
    while any(queues) and left:
        for queue, rows in zip(queues, taken, strict=True):
            if queue and left:
                rows.append(queue.pop(0))
                left -= 1
    return np.array([row for rows in taken for row in sorted(rows)], np.int64)


def _groups(images: ImageSet, rows: Int64Array) -> list[tuple[str, Int64Array]]:
    """(title, rows) of each class; one without title where there are no classes."""
    if images.labels is None:
        return [("", rows)]
    groups = []
    for number in np.unique(images.labels[rows]).tolist():
        here = rows[images.labels[rows] == number]
        title = f"{class_name(number, images.label_names)}: {len(here)} of {int((images.labels == number).sum())}"
        groups.append((title.encode("ascii", "replace").decode(), here))
    return groups


def _enlarged(pixels: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """(H, W, C) to (scale H, scale W) or (scale H, scale W, 3)."""
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    return large[..., 0] if large.shape[-1] == 1 else large
