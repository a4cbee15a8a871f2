"""Images in .npz files: one ``images`` array with optional ``split``, or MedMNIST's array per split."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.formats.bounded import require_memory, require_room
from collafuse_edge.data.image_set import Float32Array, Int64Array, Source
from collafuse_edge.data.labels.array_labels import array_labels, names_of_texts
from collafuse_edge.data.notes import Notes, listed, one_line
from collafuse_edge.data.scaling import Scaling
from collafuse_runtimes.errors import InputError

_SPLITS = ("train", "val", "test")
"""MedMNIST v2's (Yang et al. 2023)."""


def open_npz(path: Path, split: str | None, scaling: Scaling | None = None) -> Source:
    """Images of one split, or all where the file has no splits.

    Labels are those of ``array_labels``; several for an image (multi-label sets such as ChestMNIST) are no classes.

    Raises:
        InputError: damaged or pickled file, no known keys, unknown split, pixels or labels that cannot be used.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise InputError(
                f"{path} is damaged or no .npz; fetch it again or save it with numpy.savez(path, images=...)"
            )
        _require_honest_members(path)
        with np.load(path, allow_pickle=False) as arrays:
            return _open(str(path), arrays, split, scaling or Scaling())
    except InputError:
        raise
    except Exception as error:  # damaged archives raise a dozen kinds, tokenize's and NotImplementedError among them
        reason = one_line(" ".join(str(error).split()))[:200] or type(error).__name__
        raise InputError(f"cannot read {path}: {reason}; fetch or save it again (without Python objects)") from error


def array_source(
    name: str,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None = None,
    label_names: tuple[str, ...] | None = None,
    rows: Int64Array | None = None,
    scaling: Scaling | None = None,
) -> Source:
    """A source over arrays in memory; ``rows`` are those to offer (default: all). ``images`` is not copied.

    Raises:
        InputError: shapes, dtypes, ranges or counts do not fit.
    """
    _check_shape(name, images)
    scale, notes = scaling or Scaling(), Notes()
    scale.require(name, images)
    scale.note(notes)
    classes = array_labels(name, labels, len(images), label_names, notes)
    offered = np.arange(len(images)) if rows is None else rows

    def read(wanted: Int64Array) -> Iterator[Float32Array]:
        for index in offered[wanted]:
            image = scale.to_unit(images[index])
            yield image[..., 0] if image.shape[2:] == (1,) else image

    numbers = None if classes.numbers is None else classes.numbers[offered]
    return Source(len(offered), read, numbers, classes.names, notes, why_unlabelled=classes.why_none)


def _open(name: str, arrays: Any, split: str | None, scaling: Scaling) -> Source:
    label_names = tuple(str(label) for label in arrays["label_names"].astype(str)) if "label_names" in arrays else None
    if "images" in arrays:
        images = arrays["images"]
        _check_shape(name, images)
        rows = _rows_of_split(name, arrays.get("split"), len(images), split)
        return array_source(name, images, arrays.get("labels"), label_names, rows, scaling)
    found = [key for key in _SPLITS if f"{key}_images" in arrays]
    if not found:
        keys = one_line(listed(arrays.files))[:200] or "none"
        raise InputError(f"{name} has no images: it holds the keys {keys}; valid: images, or train_images, val_, test_")
    chosen = _chosen_split(name, found, split)
    if label_names is None:
        every = [arrays[f"{key}_labels"] for key in found if f"{key}_labels" in arrays]
        label_names = names_of_texts(every, Notes())
    images, labels = arrays[f"{chosen}_images"], arrays.get(f"{chosen}_labels")
    return array_source(name, images, labels, label_names, scaling=scaling)


def _require_honest_members(path: Path) -> None:
    """Every array's header against the bytes its member really has, before any is read."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        require_memory(str(path), sum(member.file_size for member in members))
        for member in members:
            require_room(path, member.compress_size, member.file_size)
            with archive.open(member) as stream:
                magic = stream.read(len(np.lib.format.MAGIC_PREFIX))
            if member.filename.endswith(".npy") or magic == np.lib.format.MAGIC_PREFIX:
                with archive.open(member) as stream:
                    _require_honest_header(path, member, stream)


def _require_honest_header(path: Path, member: zipfile.ZipInfo, stream: Any) -> None:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise InputError(f"{path} holds Python objects in {member.filename}; save it again with plain arrays")
    announced, there = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if announced != there:
        raise InputError(
            f"{path} announces {announced} bytes in {member.filename} and holds {there}: damaged; fetch it again"
        )


def _rows_of_split(name: str, split_of: npt.NDArray[Any] | None, count: int, split: str | None) -> Int64Array:
    if split_of is None:
        if split is not None:
            raise InputError(f"{name} has no splits, so split {split!r} cannot be selected; leave it out")
        return np.arange(count, dtype=np.int64)
    if split_of.shape != (count,):
        raise InputError(f"{name} has {count} images but split of shape {split_of.shape}; valid: one name per image")
    names = split_of.astype(str)
    return np.flatnonzero(names == _chosen_split(name, sorted(set(names.tolist())), split))


def _chosen_split(name: str, valid: list[str], split: str | None) -> str:
    chosen = "train" if split is None else split
    if chosen not in valid:
        raise InputError(f"{name} has no split {chosen!r}; valid: {', '.join(valid)}")
    return chosen


def _check_shape(name: str, images: npt.NDArray[Any]) -> None:
    grey, channels = images.ndim == 3, images.ndim == 4 and images.shape[3] in (1, 3)
    if not (grey or channels) or 0 in images.shape[1:]:
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        how = "; channels come last: save images.transpose(0, 2, 3, 1)" if first else ""
        raise InputError(f"{name} has images of shape {images.shape}; valid: (N,H,W), (N,H,W,1) or (N,H,W,3){how}")
