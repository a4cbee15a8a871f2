"""One door for images of every kind: recognise the source, select, fit to the plan."""

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from collafuse_edge.data.conversions import Conversions, duplicate_lines, head_lines
from collafuse_edge.data.folders.image_folder import EXTENSIONS, open_images
from collafuse_edge.data.formats.dicom_slices import is_dicom, open_series
from collafuse_edge.data.image_set import Float32Array, ImageSet, Int64Array, Selection, Source
from collafuse_edge.data.notes import Notes, one_line
from collafuse_edge.data.phantom import open_phantoms
from collafuse_edge.data.pixels import fit
from collafuse_runtimes.disk.home import expand
from collafuse_runtimes.errors import InputError

KINDS = (
    "a folder of images, an image, .npz, idx or idx.gz, .nii or .nii.gz, DICOM, or a folder of one of these, "
    "or phantom:<population>[:<count>[:<seed>]]"
)
_IDX_NAME = re.compile(r"[-.]idx\d?(-ubyte)?(\.gz)?$")
_EVERYTHING = Selection()
_OF_FOLDERS = ("include", "exclude", "labels_file")
_FILES = "folders have files to choose and to label"


def load_images(source: str, image_shape: tuple[int, int, int], selection: Selection = _EVERYTHING) -> ImageSet:
    """Read ``source``, a path or ``phantom:<population>[:<count>[:<seed>]]``, into one array.

    - folder of images (png, jpg, bmp, tif, webp, ...) or NIfTI volumes: all below it in sorted order; folders named
      like a split are splits, masks are left out; where every image lies in a sub-folder, the first folder's name is
      its class (docs/data.md);
    - ``.npz``: ``images`` (N,H,W), (N,H,W,1) or (N,H,W,3) [, ``labels``, ``label_names``, ``split``], or MedMNIST's
      ``train_images``, ``train_labels``, ``val_...``, ``test_...``;
    - idx (the MNIST format), plain or gzipped, with the labels file beside it if there is one;
    - NIfTI volumes: axial slices, a volume scaled as a whole, empty ones dropped;
    - DICOM series: slices in the order of their positions;
    - phantoms: drawn, not read.

    Args:
        source: what to read.
        image_shape: (C, H, W) of the plan, C 1 or 3. Images are converted to C channels, padded with black to H:W and
            resized.
        selection: what to take.

    Raises:
        InputError: the source is missing, of no known kind, damaged, holds pixels or labels that cannot be used, or
            the selection names something it does not have or leaves nothing.
    """
    notes = Notes()
    parts = _open(source, image_shape, selection, notes)
    rows = _rows_of_classes(source, parts, selection.classes)
    wanted = sum(map(len, rows))
    count = wanted if selection.limit is None else min(wanted, selection.limit)
    images, first = _allocate(source, count, image_shape), parts[0]
    taken = _take(parts, rows, images)
    if not taken.filled:
        raise InputError(f"{source} has no image left after selection ({_in_words(selection)}); select less narrowly")
    images, labels, conversions = images[: taken.filled], taken.labels, taken.conversions
    lines = (
        *head_lines(source, taken.filled, wanted, labels, first, selection),
        *notes.lines(),
        *conversions.lines(),
        *duplicate_lines(images, labels, taken.names),
    )
    said = tuple(one_line(line) for line in lines)
    return ImageSet(
        images, labels, first.label_names, source, said, first.why_unlabelled, conversions.found, taken.names
    )


class _Taken(NamedTuple):
    """What was read: how many images, their labels and names where they have them, and what was done to them."""

    filled: int
    labels: Int64Array | None
    names: tuple[str, ...]
    conversions: Conversions


def _take(parts: Sequence[Source], rows: Sequence[Int64Array], images: Float32Array) -> _Taken:
    """Fill ``images`` with these rows of the parts, in order, as far as both go."""
    labels: list[Int64Array] = []
    names: list[str] = []
    conversions, filled = Conversions((images.shape[1], images.shape[2], images.shape[3])), 0
    for part, of_part in zip(parts, rows, strict=True):
        start = filled
        for image in islice(part.read(of_part), len(images) - filled):
            conversions.see(image)
            fit(image, out=images[filled])
            filled += 1
        taken = of_part[: filled - start]
        labels += [] if part.labels is None else [part.labels[taken]]
        names += [part.row_names[row] for row in taken] if part.row_names else []
    for part in parts:
        conversions.notes.merge(part.notes)
    return _Taken(filled, np.concatenate(labels) if labels else None, tuple(names), conversions)


def is_image_source(path: Path) -> bool:
    """Whether ``load_images`` would try to read this path: a folder, or a file with a name of a known kind."""
    name = path.name.lower()
    known = (".npz", ".nii", ".nii.gz", *EXTENSIONS)
    return path.is_dir() or name.endswith(known) or bool(_IDX_NAME.search(name)) or is_dicom(path)


def _open(source: str, image_shape: tuple[int, int, int], selection: Selection, notes: Notes) -> tuple[Source, ...]:
    if source.partition(":")[0] == "phantom":
        _refuse_unused(source, selection, "split", "slices", "window", "max_value", *_OF_FOLDERS)
        return (open_phantoms(source, image_shape),)
    path = expand(source)
    if not source or not os.path.exists(path):  # noqa: PTH110  Path.exists raises on names no file can have
        raise InputError(f"{source!r} does not exist; give the path of {KINDS}")
    if path.is_dir():
        from collafuse_edge.data.folders.reading import open_folder

        return open_folder(source, path, selection, notes)
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"{source} is neither a folder nor a regular file; give the path of {KINDS}")
    _refuse_unused(source, selection, *_OF_FOLDERS)
    return (_open_file(source, path, selection),)


def _open_file(source: str, path: Path, selection: Selection) -> Source:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from collafuse_edge.data.formats.nifti_slices import open_volumes

        _refuse_unused(source, selection, "split")
        return open_volumes([path], selection.slices, selection.scaling())
    if not name.endswith((*EXTENSIONS, ".npz")) and is_dicom(path):
        _refuse_unused(source, selection, "split")
        return open_series([path], selection.slices, selection.scaling())
    _refuse_unused(source, selection, "slices")
    if name.endswith(".npz"):
        from collafuse_edge.data.formats.npz_arrays import open_npz

        return open_npz(path, selection.split, selection.scaling())
    if _IDX_NAME.search(name):
        from collafuse_edge.data.formats.idx_files import open_idx

        _refuse_unused(source, selection, "split")
        return open_idx(path, selection.scaling())
    if name.endswith(EXTENSIONS):
        _refuse_unused(source, selection, "split")
        return open_images([path], selection.scaling())
    raise InputError(f"{source} is of no known kind; valid: {KINDS}")


def _refuse_unused(source: str, selection: Selection, *fields: str) -> None:
    has = {"split": "folders and .npz files have splits", "slices": "NIfTI volumes and DICOM series have slices"}
    for field in fields:
        if getattr(selection, field):
            reason = has.get(field, "read images have values to scale" if field in ("window", "max_value") else _FILES)
            raise InputError(f"{field} {_shown(selection, field)} does not fit {source}: only {reason}; leave it out")


def _rows_of_classes(source: str, parts: tuple[Source, ...], classes: tuple[str, ...]) -> list[Int64Array]:
    """The rows to read of every part."""
    if not classes:
        return [np.arange(part.count, dtype=np.int64) for part in parts]
    labels = [part.labels for part in parts if part.labels is not None]
    if not labels:
        why = f" ({parts[0].why_unlabelled})" if parts[0].why_unlabelled else ""
        raise InputError(
            f"{source} has no labels{why}, so classes {', '.join(classes)} cannot be selected; leave them out"
        )
    names = parts[0].label_names
    present = range(len(names)) if names else np.unique(np.concatenate(labels)).tolist()
    number = {str(label): label for label in present} | {name: label for label, name in enumerate(names or ())}
    for name in classes:
        if name not in number:
            valid = ", ".join(names or (str(label) for label in present))
            raise InputError(f"{source} has no class {name!r}; valid: {valid}")
    wanted = [number[name] for name in classes]
    return [np.flatnonzero(np.isin(of_part, wanted)) for of_part in labels]


def _allocate(source: str, count: int, image_shape: tuple[int, int, int]) -> Float32Array:
    try:
        return np.empty((count, *image_shape), np.float32)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"{source}: {count} images of {image_shape} do not fit into memory; take fewer with --limit"
        ) from error


def _in_words(selection: Selection) -> str:
    given = [
        f"{field} {_shown(selection, field)}"
        for field in ("split", "classes", "slices", *_OF_FOLDERS)
        if getattr(selection, field)
    ]
    return ", ".join(given) or "all images"


def _shown(selection: Selection, field: str) -> str:
    value = getattr(selection, field)
    if isinstance(value, tuple):
        return (":" if field == "slices" else ", ").join(str(part) for part in value)
    return repr(value if isinstance(value, str) else str(value))
