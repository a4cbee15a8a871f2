"""A data set as the network will see it: a contact sheet, counts, sizes, ranges, duplicates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.data.conversions import duplicates
from collafuse_edge.data.image_set import ImageSet, Int64Array
from collafuse_edge.data.notes import listed, one_line
from collafuse_edge.data.sheet import write_sheet

_NAMED = 20
PRIVATE = "the sheet shows private images: it is for the site that owns them, and its file is for you alone (mode 0600)"


@dataclass(frozen=True)
class DataReport:
    """What ``inspect`` found in a data set, JSON-ready.

    Attributes:
        source: as given.
        image_shape: (C, H, W) of the plan.
        count: images.
        classes: name (or number) to number of images; None without labels.
        sizes: "HxW" before conversion to the number of images that have it.
        range_before: smallest and largest value as read, of full scale 0 to 1.
        range_after: the same of the tensor, -1 to 1.
        duplicates: (image, the earlier one it equals) by name, or by number from 0.
        notes: of ``ImageSet``.
        sheet: file of the contact sheet, None where none was asked for.
    """

    source: str
    image_shape: tuple[int, int, int]
    count: int
    classes: dict[str, int] | None
    sizes: dict[str, int]
    range_before: tuple[float, float]
    range_after: tuple[float, float]
    duplicates: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    sheet: str | None = None


def inspect_images(images: ImageSet, sheet: Path | None, seed: int = 0) -> DataReport:
    """Report a data set and write its contact sheet, readable by its owner alone.

    Raises:
        ArtefactError: the sheet cannot be written.
    """
    if sheet is not None:
        write_sheet(images, sheet, seed)
    low, high = float(images.images.min()), float(images.images.max())
    names = images.row_names or tuple(map(str, range(len(images))))
    return DataReport(
        source=images.source,
        image_shape=images.images.shape[1:],
        count=len(images),
        classes=None if images.labels is None else _counts(images.labels, images.label_names),
        sizes={f"{height}x{width}": count for (height, width), count in images.found.sizes},
        range_before=(images.found.low, images.found.high),
        range_after=(low, high),
        duplicates=tuple((names[row], names[earlier]) for row, earlier in duplicates(images.images)),
        notes=images.notes,
        sheet=None if sheet is None else str(sheet),
    )


def describe_data(report: DataReport) -> list[str]:
    """Lines for people."""
    channels, height, width = report.image_shape
    sizes = listed([f"{size}: {count}" for size, count in report.sizes.items()])
    lines = [
        f"data      {report.source}: {report.count} images, as {channels}x{height}x{width}",
        f"sizes     {sizes}",
        f"values    {report.range_before[0]:.3f} to {report.range_before[1]:.3f} of full scale, "
        f"{report.range_after[0]:.3f} to {report.range_after[1]:.3f} as the network sees them",
    ]
    lines += [f"note      {line}" for line in report.notes]
    lines += [one_line(f"twice     {one} is {other}") for one, other in report.duplicates[:_NAMED]]
    if report.sheet is not None:
        drawn = report.source.startswith("phantom:")
        lines += [f"wrote     {report.sheet}", *([] if drawn else [f"warning   {PRIVATE}"])]
    return lines


def _counts(labels: Int64Array, names: tuple[str, ...] | None) -> dict[str, int]:
    numbers, counts = np.unique(labels, return_counts=True)
    found: dict[str, int] = dict.fromkeys(names or (), 0)
    return found | {
        names[number] if names else str(number): count
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }


def to_dict(report: DataReport) -> dict[str, Any]:
    """JSON-ready; ``kind`` is "data"."""
    from dataclasses import asdict

    return {"kind": "data", **asdict(report)}
