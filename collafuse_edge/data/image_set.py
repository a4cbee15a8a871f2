"""What the readers hand on: a finished set of images, the wish that led to it, and a source not yet read."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.notes import Notes
from collafuse_edge.data.scaling import Scaling
from collafuse_runtimes.errors import InputError

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Images as they came from their source.

    Attributes:
        sizes: (height, width) to the number of images that have it.
        low, high: smallest and largest value, of full scale 0 to 1.
    """

    sizes: tuple[tuple[tuple[int, int], int], ...] = ()
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class ImageSet:
    """Images ready for training.

    Attributes:
        images: (N, C, H, W) float32 in [-1, 1].
        labels: (N,) int64, or None. Keeps the source's numbering, also when only some classes were selected.
        label_names: the name of every label of the source, or None.
        source: where the images came from, for messages only.
        notes: what was taken, left out and done to the images while they were read, in words.
        why_unlabelled: why ``labels`` is None, "" where the source says nothing of classes.
        found: sizes and values before conversion.
        row_names: of every image, or () where the source has none.
    """

    images: Float32Array
    labels: Int64Array | None
    label_names: tuple[str, ...] | None
    source: str
    notes: tuple[str, ...] = ()
    why_unlabelled: str = ""
    found: Found = field(default_factory=Found)
    row_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, one for each label number; None where there are no labels or they are numbers."""
        return None if self.labels is None else self.label_names


@dataclass(frozen=True)
class Selection:
    """What to take from a source.

    Attributes:
        split: a name in the ``split`` array of an npz, or "train", "val", "test" of MedMNIST's layout or of a folder's
            sub-folders, there "all" too. None means "train" where the source has splits.
        classes: class names or label numbers to keep; empty means all.
        slices: NIfTI and DICOM only, START and STOP of the slices of each volume or series, half-open.
        limit: keep the first ``limit`` images of what the rest selected.
        include, exclude: folders only, patterns of ``globs``.
        labels_file: folders only, a table of ``labels_file``.
        window: LOW and HIGH, the stored values that become black and white; beyond them values are clipped.
        max_value: the stored value that becomes white, of pictures and arrays of whole numbers.

    Raises:
        InputError: ``slices``, ``limit``, ``window`` or ``max_value`` is out of range.
    """

    split: str | None = None
    classes: tuple[str, ...] = ()
    slices: tuple[int, int] | None = None
    limit: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    labels_file: Path | None = None
    window: tuple[float, float] | None = None
    max_value: int | None = None

    def __post_init__(self) -> None:
        if self.slices is not None and not 0 <= self.slices[0] < self.slices[1]:
            start, stop = self.slices
            raise InputError(f"slices {start}:{stop} select nothing; valid: START:STOP with 0 <= START < STOP")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit} out of range: must be at least 1")
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            low, high = self.window
            raise InputError(f"window {low:g}:{high:g} is empty; valid: LOW:HIGH with LOW < HIGH, for example -160:240")
        if self.max_value is not None and self.max_value < 1:
            raise InputError(f"--max-value {self.max_value} out of range: must be at least 1, for example 4095")
        if self.window is not None and self.max_value is not None:
            raise InputError("--window and --max-value both say what is white; give one of them")

    def scaling(self) -> Scaling:
        """How stored values become [0, 1], for one source."""
        return Scaling(self.window, self.max_value)


@dataclass(frozen=True)
class Source:
    """A source that is opened but whose pixels are not yet decoded.

    Attributes:
        count: images it holds at most.
        read: rows to their pixels, in order: (h, w) or (h, w, 3) float32 in [0, 1], sizes may differ.
            A row without content (an empty NIfTI slice) is left out.
        labels: (count,) int64, or None.
        label_names: as in ``ImageSet``.
        notes: filled while opening and reading.
        why_unlabelled: as in ``ImageSet``.
        row_names: of every row, or ().
    """

    count: int
    read: Callable[[Int64Array], Iterator[Float32Array]]
    labels: Int64Array | None = None
    label_names: tuple[str, ...] | None = None
    notes: Notes = field(default_factory=Notes)
    why_unlabelled: str = ""
    row_names: tuple[str, ...] = ()
