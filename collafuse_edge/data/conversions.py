"""What was done to images on their way to the plan's tensor, in lines for people."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from collafuse_edge.data.image_set import Float32Array, Found, Int64Array, Selection, Source
from collafuse_edge.data.notes import Notes, images, listed
from collafuse_runtimes.networks.classes import MAX_CLASSES


class Conversions:
    """Watches images before they are fitted to (C, H, W).

    Attributes:
        notes: of what is not about size; readers' notes are merged into it.
    """

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        self.notes = Notes()
        self._channels, self._height, self._width = image_shape
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._low, self._high = np.inf, -np.inf

    def see(self, image: Float32Array) -> None:
        """One image as it was read, (h, w) or (h, w, 3) in [0, 1]."""
        self._sizes[image.shape[0], image.shape[1]] += 1
        self._low, self._high = min(self._low, float(image.min())), max(self._high, float(image.max()))
        if image.ndim == 2 and self._channels == 3:
            self.notes.add("grey repeated to three channels")
        elif image.ndim == 3 and self._channels == 1 and not (image == image[..., :1]).all():
            self.notes.add("colour made grey")

    @property
    def found(self) -> Found:
        """Sizes, the most frequent first, and values."""
        return Found(tuple(self._sizes.most_common()), self._low, self._high)

    def lines(self) -> tuple[str, ...]:
        """Sizes last, after all else."""
        wanted = (self._height, self._width)
        resized = {size: count for size, count in self._sizes.items() if size != wanted}
        padded = sum(n for (h, w), n in resized.items() if h * self._width != w * self._height)
        lines = list(self.notes.lines())
        if resized:
            change = f"resized from {_range(list(resized))} to {_size(wanted)}"
            bars = f", {padded} of them padded with black bars" if padded else ""
            lines.append(f"{change}: {images(sum(resized.values()))}{bars}")
        return tuple(lines)


def head_lines(
    source: str, count: int, wanted: int, labels: Int64Array | None, part: Source, selection: Selection
) -> tuple[str, ...]:
    """How many images were read, and how many of each class."""
    of = f" of {wanted}" if count < wanted and selection.limit is not None else ""
    lines = [f"{count}{of} image{'s' * (count != 1)} from {source}"]
    if labels is None:
        return (*lines, f"no classes: {part.why_unlabelled}") if part.why_unlabelled else tuple(lines)
    names = part.label_names
    numbers, counts = np.unique(labels, return_counts=True)
    shown = [f"{class_name(number, names)}: {n}" for number, n in zip(numbers.tolist(), counts.tolist(), strict=True)]
    every = len(names) if names else min(int(numbers[-1]) + 1, MAX_CLASSES)
    absent = sorted(set(range(every)) - set(numbers.tolist()))
    line = f"classes {listed(shown)}"
    if absent:
        line += f"; no image of {listed([class_name(number, names) for number in absent])}"
    return (*lines, line)


def class_name(number: int, names: Sequence[str] | None) -> str:
    """ "2 glioma", or "2" where classes have no names."""
    return f"{number} {names[number]}" if names else str(number)


def duplicates(values: Float32Array) -> list[tuple[int, int]]:
    """(row, first row) of every image that equals an earlier one in every pixel; ``values`` is (N, C, H, W)."""
    first: dict[bytes, int] = {}
    rows = [first.setdefault(hashlib.sha256(image.data).digest(), row) for row, image in enumerate(values)]
    return [(row, earlier) for row, earlier in enumerate(rows) if earlier != row]


def duplicate_lines(values: Float32Array, labels: Int64Array | None, names: Sequence[str]) -> tuple[str, ...]:
    """How many images are there twice, and whether under another class."""
    twice = duplicates(values)
    if not twice:
        return ()
    row, earlier = twice[0]
    shown = f" (first: {names[row]} is {names[earlier]})" if names else ""
    line = f"equal to an earlier one after conversion: {images(len(twice))}{shown}"
    other = 0 if labels is None else sum(int(labels[row] != labels[earlier]) for row, earlier in twice)
    return (line, f"equal to one of another class: {images(other)}") if other else (line,)


def _range(sizes: list[tuple[int, int]]) -> str:
    low, high = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    return _size(low) if low == high else f"{_size(low)} to {_size(high)}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
