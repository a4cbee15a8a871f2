"""One door for images of every kind: recognise the source, select, fit to the plan."""

import os
import re
from itertools import islice
from pathlib import Path

import numpy as np

from collafuse_edge.data.image_set import Float32Array, ImageSet, Int64Array, Selection, Source
from collafuse_edge.data.phantom import open_phantoms
from collafuse_edge.data.pixels import fit
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.home import expand

KINDS = (
    "a folder of images, .npz, idx or idx.gz, .nii or .nii.gz or a folder of them, "
    "or phantom:<population>[:<count>[:<seed>]]"
)
_IDX_NAME = re.compile(r"[-.]idx\d?(-ubyte)?(\.gz)?$")
_EVERYTHING = Selection()


def load_images(source: str, image_shape: tuple[int, int, int], selection: Selection = _EVERYTHING) -> ImageSet:
    """Read ``source``, a path or ``phantom:<population>[:<count>[:<seed>]]``, into one array.

    - folder of images (png, jpg, bmp, tif, webp, ...): all below it in sorted order, hidden ones skipped; where every
      image lies in a sub-folder, the first folder's name is its class;
    - ``.npz``: ``images`` (N,H,W), (N,H,W,1) or (N,H,W,3) [, ``labels``, ``label_names``, ``split``], or MedMNIST's
      ``train_images``, ``train_labels``, ``val_...``, ``test_...``;
    - idx (the MNIST format), plain or gzipped, with the labels file beside it if there is one;
    - NIfTI volumes: axial slices, each divided by its maximum, empty ones dropped;
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
    opened = _open(source, image_shape, selection)
    rows = _rows_of_classes(source, opened, selection.classes)
    count = len(rows) if selection.limit is None else min(len(rows), selection.limit)
    images = _allocate(source, count, image_shape)
    filled = 0
    for filled, image in enumerate(islice(opened.read(rows), count), start=1):
        fit(image, out=images[filled - 1])
    if not filled:
        raise InputError(f"{source} has no image left after selection ({_in_words(selection)}); select less narrowly")
    labels = None if opened.labels is None else opened.labels[rows[:filled]]
    return ImageSet(images[:filled], labels, opened.label_names, source, opened.notes.lines())


def _open(source: str, image_shape: tuple[int, int, int], selection: Selection) -> Source:
    if source.partition(":")[0] == "phantom":
        _refuse_unused(source, selection, "split", "slices")
        return open_phantoms(source, image_shape)
    path = expand(source)
    if not source or not os.path.exists(path):  # noqa: PTH110  Path.exists raises on names no file can have
        raise InputError(f"{source!r} does not exist; give the path of {KINDS}")
    if path.is_dir():
        return _open_folder(source, path, selection)
    return _open_file(source, path, selection)


def _open_folder(source: str, path: Path, selection: Selection) -> Source:
    from collafuse_edge.data.image_folder import find_files, open_images
    from collafuse_edge.data.nifti_slices import open_volumes

    pictures, volumes = find_files(path)
    _refuse_unused(source, selection, "split")
    if pictures and volumes:
        raise InputError(
            f"{source} holds both images ({pictures[0].name}) and NIfTI volumes ({volumes[0].name}); "
            "give a folder with one kind"
        )
    if volumes:
        return open_volumes(volumes, selection.slices)
    _refuse_unused(source, selection, "slices")
    return open_images(path, pictures)


def _open_file(source: str, path: Path, selection: Selection) -> Source:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from collafuse_edge.data.nifti_slices import open_volumes

        _refuse_unused(source, selection, "split")
        return open_volumes([path], selection.slices)
    _refuse_unused(source, selection, "slices")
    if name.endswith(".npz"):
        from collafuse_edge.data.npz_arrays import open_npz

        return open_npz(path, selection.split)
    if _IDX_NAME.search(name):
        from collafuse_edge.data.idx_files import open_idx

        _refuse_unused(source, selection, "split")
        return open_idx(path)
    raise InputError(f"{source} is of no known kind; valid: {KINDS}")


def _refuse_unused(source: str, selection: Selection, *fields: str) -> None:
    has = {"split": ".npz files have splits", "slices": "NIfTI volumes have slices"}
    for field in fields:
        if getattr(selection, field) is not None:
            raise InputError(
                f"{field} {_shown(selection, field)} does not fit {source}: only {has[field]}; leave it out"
            )


def _rows_of_classes(source: str, opened: Source, classes: tuple[str, ...]) -> Int64Array:
    if not classes:
        return np.arange(opened.count, dtype=np.int64)
    if opened.labels is None:
        raise InputError(f"{source} has no labels, so classes {', '.join(classes)} cannot be selected; leave them out")
    names = opened.label_names
    present = range(len(names)) if names else np.unique(opened.labels).tolist()
    number = {str(label): label for label in present} | {name: label for label, name in enumerate(names or ())}
    for name in classes:
        if name not in number:
            valid = ", ".join(names or (str(label) for label in present))
            raise InputError(f"{source} has no class {name!r}; valid: {valid}")
    return np.flatnonzero(np.isin(opened.labels, [number[name] for name in classes]))


def _allocate(source: str, count: int, image_shape: tuple[int, int, int]) -> Float32Array:
    try:
        return np.empty((count, *image_shape), np.float32)
    except (MemoryError, ValueError) as error:
        raise InputError(f"{source}: {count} images of {image_shape} do not fit into memory; set a limit") from error


def _in_words(selection: Selection) -> str:
    given = [
        f"{field} {_shown(selection, field)}" for field in ("split", "classes", "slices") if getattr(selection, field)
    ]
    return ", ".join(given) or "all images"


def _shown(selection: Selection, field: str) -> str:
    value = getattr(selection, field)
    if isinstance(value, tuple):
        return (":" if field == "slices" else ", ").join(str(part) for part in value)
    return repr(value)
