"""What the readers hand on: a finished set of images, the wish that led to it, and a source not yet read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.notes import Notes
from collafuse_runtimes.errors import InputError

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images ready for training.

    Attributes:
        images: (N, C, H, W) float32 in [-1, 1].
        labels: (N,) int64, or None. Keeps the source's numbering, also when only some classes were selected.
        label_names: the name of every label of the source, or None.
        source: where the images came from, for messages only.
        notes: what was done to the images while they were read, in words.
    """

    images: Float32Array
    labels: Int64Array | None
    label_names: tuple[str, ...] | None
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Selection:
    """What to take from a source.

    Attributes:
        split: a name in the ``split`` array of an npz, or "train", "val", "test" of MedMNIST's layout.
            None means "train" where the source has splits.
        classes: class names or label numbers to keep; empty means all.
        slices: NIfTI only, START and STOP of the axial slices, half-open.
        limit: keep the first ``limit`` images of what the rest selected.

    Raises:
        InputError: ``slices`` or ``limit`` is out of range.
    """

    split: str | None = None
    classes: tuple[str, ...] = ()
    slices: tuple[int, int] | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.slices is not None and not 0 <= self.slices[0] < self.slices[1]:
            start, stop = self.slices
            raise InputError(f"slices {start}:{stop} select nothing; valid: START:STOP with 0 <= START < STOP")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit} selects nothing; valid: 1 or more")


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
    """

    count: int
    read: Callable[[Int64Array], Iterator[Float32Array]]
    labels: Int64Array | None = None
    label_names: tuple[str, ...] | None = None
    notes: Notes = field(default_factory=Notes)
