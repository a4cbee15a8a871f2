"""A folder of images or volumes as a source: which files, which split, which class (docs/data.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np

from collafuse_edge.data.folders.folder_listing import choose_files, list_files
from collafuse_edge.data.folders.image_folder import EXTENSIONS, open_images
from collafuse_edge.data.formats.dicom_slices import is_dicom, open_series
from collafuse_edge.data.formats.nifti_slices import open_volumes
from collafuse_edge.data.image_set import Int64Array, Selection, Source
from collafuse_edge.data.labels.array_labels import Labels, text_labels
from collafuse_edge.data.labels.class_names import ClassNames, class_paths
from collafuse_edge.data.labels.labels_file import read_labels_file
from collafuse_edge.data.notes import Notes, images
from collafuse_edge.data.splits import choose_split
from collafuse_runtimes.errors import InputError

VOLUMES = (".nii", ".nii.gz")


def open_folder(source: str, root: Path, selection: Selection, notes: Notes) -> tuple[Source, ...]:
    """The chosen files of a folder, in sorted order; volumes in parts of one class each.

    Raises:
        InputError: nothing here to read, several kinds, or an option that does not fit what is here.
    """
    every = list_files(root, _is_known, notes)
    files = choose_files(root, every, selection.include, selection.exclude, notes)
    if not files:
        known = " ".join(EXTENSIONS + VOLUMES)
        raise InputError(
            f"{source} holds no image; valid: files ending in {known}, and DICOM of any name, sub-folders included"
        )
    if selection.labels_file is None:
        taken = choose_split(root, files, selection.split, notes)
        labels = _folder_labels(files, taken, notes)
    else:
        table = read_labels_file(selection.labels_file, root, files, notes)
        files = [file for file in files if file in table]
        taken = choose_split(root, files, selection.split, notes)
        labels = _of(files, taken, text_labels([table[file] for file in files], notes))
    return tuple(_parts(source, root, taken, labels, selection))


def _is_known(path: Path) -> bool:
    return path.name.lower().endswith(EXTENSIONS + VOLUMES) or is_dicom(path)


def _kind(file: PurePath) -> str:
    name = file.name.lower()
    return "images" if name.endswith(EXTENSIONS) else "NIfTI volumes" if name.endswith(VOLUMES) else "DICOM files"


def _folder_labels(files: Sequence[PurePath], taken: Sequence[PurePath], notes: Notes) -> Labels:
    """Numbered over all splits, so that each split numbers the classes alike."""
    paths = class_paths(files)
    without = [file for file, path in zip(files, paths, strict=True) if not path]
    if len(without) == len(files):
        return Labels(None)
    if without:
        first = without[0].as_posix()
        why = f"{len(without)} of its {images(len(files))} lie in no class's folder (first: {first})"
        return Labels(None, why_none=why)
    deeper = [file for file, path in zip(files, paths, strict=True) if len(path) > 1]
    if deeper:
        below = f"{images(len(deeper))}, first {deeper[0].as_posix()}"
        notes.say(f"the first folder is the class; folders below it are none ({below})")
    classes = ClassNames((path[0] for path in paths), notes)
    numbers = np.array([classes.number(path[0]) for path in paths], np.int64)
    return _of(files, taken, Labels(numbers, classes.names))


def _of(files: Sequence[PurePath], taken: Sequence[PurePath], labels: Labels) -> Labels:
    """The labels of those files alone that were taken."""
    if labels.numbers is None:
        return labels
    chosen = set(taken)
    return Labels(labels.numbers[[row for row, file in enumerate(files) if file in chosen]], labels.names)


def _parts(source: str, root: Path, files: list[PurePath], labels: Labels, selection: Selection) -> Iterator[Source]:
    kinds = {_kind(file): file.name for file in reversed(files)}
    if len(kinds) > 1:
        found = " and ".join(
            f"{kind} ({kinds[kind]})" for kind in ("images", "NIfTI volumes", "DICOM files") if kind in kinds
        )
        raise InputError(f"{source} holds both {found}; give a folder with one kind, or choose with --include")
    if "images" in kinds:
        if selection.slices is not None:
            start, stop = selection.slices
            raise InputError(
                f"slices {start}:{stop} does not fit {source}: only NIfTI volumes and DICOM series have slices; "
                "leave it out"
            )
        opened = open_images([root / file for file in files], selection.scaling())
        names = tuple(file.as_posix() for file in files)
        yield replace(
            opened, labels=labels.numbers, label_names=labels.names, why_unlabelled=labels.why_none, row_names=names
        )
        return
    for start, stop in _runs(labels.numbers, len(files)):
        open_part = open_volumes if "NIfTI volumes" in kinds else open_series
        opened = open_part([root / file for file in files[start:stop]], selection.slices, selection.scaling())
        numbers = None if labels.numbers is None else np.full(opened.count, labels.numbers[start])
        yield replace(opened, labels=numbers, label_names=labels.names, why_unlabelled=labels.why_none)


def _runs(numbers: Int64Array | None, count: int) -> list[tuple[int, int]]:
    """(start, stop) of neighbours of one class; a part may leave slices out, so it must have one label."""
    cuts = [] if numbers is None else (np.flatnonzero(np.diff(numbers)) + 1).tolist()
    return list(pairwise([0, *cuts, count]))
