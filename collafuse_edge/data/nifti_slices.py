"""Axial slices of NIfTI volumes, read with nibabel."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from collafuse_edge.data.image_set import Float32Array, Int64Array, Source
from collafuse_runtimes.errors import InputError

_AXIAL = 2


def open_volumes(paths: list[Path], slices: tuple[int, int] | None) -> Source:
    """Axial slices of 3-D volumes: last axis after ``as_closest_canonical``, feet to head, front of the head up.

    Negative values become 0, each slice is divided by its maximum, slices without a positive value are dropped.

    Args:
        paths: the volumes, in order.
        slices: START and STOP of the slices to take from every volume; None means all.

    Raises:
        InputError: nibabel is missing; a volume cannot be read, is not 3-D or holds NaN or Inf (while reading).
    """
    table = [(path, index) for path in paths for index in range(*_clipped(slices, _depth(path)))]

    def read(rows: Int64Array) -> Iterator[Float32Array]:
        current, volume = None, np.empty(0, np.float32)
        for path, index in (table[row] for row in rows):
            if path != current:
                current, volume = path, _volume(path)
            plane = volume[:, :, index]
            peak = plane.max()
            if peak > 0:
                yield np.rot90(plane / peak)

    return Source(len(table), read)


def _clipped(slices: tuple[int, int] | None, depth: int) -> tuple[int, int]:
    start, stop = slices or (0, depth)
    return start, min(stop, depth)


def _depth(path: Path) -> int:
    """Axial slices, from the header alone."""
    import nibabel

    image = _load(path)
    try:
        axes = nibabel.io_orientation(image.affine)[:, 0]
        return int(image.shape[list(axes).index(_AXIAL)])
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} has no usable orientation ({error}); give it a valid affine") from error


def _volume(path: Path) -> Float32Array:
    """(X, Y, Z) float32, X to the right, Y to the front, Z to the head; negative values are 0."""
    import nibabel

    try:
        volume: Float32Array = nibabel.as_closest_canonical(_load(path)).get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise _unreadable(path, error) from error
    volume = volume.reshape(volume.shape[:3])
    if not np.isfinite(volume).all():
        first = int(np.flatnonzero(~np.isfinite(volume).all(axis=(0, 1)))[0])
        raise InputError(f"{path} holds NaN or Inf, first in slice {first}; mend it or leave the slice out")
    return volume.clip(min=0)


def _load(path: Path) -> Any:
    """The opened image, its voxels still on disk.

    Raises:
        InputError: nibabel is missing, the file is damaged or not 3-D.
    """
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise InputError(f"reading {path} needs nibabel; pip install 'collafuse-edge[train]'") from error
    try:
        image = nibabel.load(path)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise _unreadable(path, error) from error
    if len(image.shape) < 3 or any(size != 1 for size in image.shape[3:]):
        raise InputError(f"{path} has shape {image.shape}; valid: one 3-D volume per file; split it")
    return image


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"cannot read {path}: {reason}; fetch it again or leave it out")
