"""Axial slices of NIfTI volumes, read with nibabel."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.formats.bounded import require_memory, require_room
from collafuse_edge.data.formats.nifti_header import require_sane
from collafuse_edge.data.formats.volumes import scale_volume, slice_bounds
from collafuse_edge.data.image_set import Float32Array, Source
from collafuse_edge.data.notes import Notes
from collafuse_edge.data.pixels import isotropic
from collafuse_edge.data.scaling import Scaling
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line

MAX_VOXELS = 1 << 27
_AXIAL = 2


def open_volumes(paths: list[Path], slices: tuple[int, int] | None, scaling: Scaling | None = None) -> Source:
    """Axial slices of 3-D volumes: last axis after ``as_closest_canonical``, feet to head, front of the head up.

    A volume is scaled as a whole (``scale_volume``), so that one value is one grey in all its slices. Slices are
    stretched to square pixels where the voxels' sides differ. Slices without a value above black are left out.

    Args:
        paths: the volumes, in order.
        slices: START and STOP of the slices to take from every volume; None means all.

    Raises:
        InputError: nibabel is missing; a volume cannot be read, is not 3-D, is larger than ``MAX_VOXELS``, holds NaN or
            Inf or Hounsfield units without a window (while reading), or has fewer slices than were asked for.
    """
    notes = Notes()
    for path in paths:
        require_sane(path, notes)
    depths = {path: _depth(path) for path in paths}
    table = [(path, index) for path in paths for index in slice_bounds(str(path), depths[path], slices)]
    scale = scaling or Scaling()
    return Source(len(table), lambda rows: _planes([table[row] for row in rows], scale, notes), notes=notes)


def _planes(wanted: list[tuple[Path, int]], scaling: Scaling, notes: Notes) -> Iterator[Float32Array]:
    current, volume, spacing = None, np.empty(0, np.float32), (1.0, 1.0)
    for path, index in wanted:
        if path != current:
            del volume
            current, (volume, spacing) = path, _volume(path, scaling, notes)
        plane = volume[:, :, index]
        if not plane.max() > 0:
            notes.add("empty slice left out")
            continue
        upright = np.rot90(plane)
        try:
            image = isotropic(upright, spacing[1], spacing[0])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if image is not upright:
            notes.add(f"stretched to square pixels of {min(spacing):g} mm")
        yield image


def _depth(path: Path) -> int:
    """Axial slices, from the header alone."""
    import nibabel

    image = _load(path)
    try:
        with _quiet():
            axes = nibabel.io_orientation(image.affine)[:, 0]
        if not np.isfinite(axes).all():
            raise ValueError("an axis without direction")
        return int(image.shape[list(axes).index(_AXIAL)])
    except Exception as error:  # of a singular affine numpy and nibabel raise several kinds
        raise InputError(
            f"{path} has no usable orientation ({one_line(error, 200)}); give it a valid affine"
        ) from error


def _volume(path: Path, scaling: Scaling, notes: Notes) -> tuple[Float32Array, tuple[float, float]]:
    """(X, Y, Z) float32 in [0, 1], X to the right, Y to the front, Z to the head; distance of voxels along X and Y."""
    import nibabel
    from nibabel.affines import voxel_sizes

    try:
        with _quiet():
            image = nibabel.as_closest_canonical(_load(path))
            values: Float32Array = image.get_fdata(dtype=np.float32, caching="unchanged")
            x, y, _ = (float(side) for side in voxel_sizes(image.affine))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # nibabel's errors, numpy's and zlib's share no base
        raise _unreadable(path, error) from error
    values = values.reshape(values.shape[:3])
    bad = ~np.isfinite(values).all(axis=(0, 1))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InputError(f"{path} holds NaN or Inf, first in slice {first}; mend it or leave the slice out")
    return scale_volume(str(path), values, scaling, notes), (x, y)


def _load(path: Path) -> Any:
    """The opened image, its voxels still on disk and known to be there.

    Raises:
        InputError: nibabel is missing, the file is damaged, not 3-D, or smaller or larger than it says.
    """
    try:
        import nibabel
    except ImportError as error:
        raise InputError(f"reading {path} needs nibabel; pip install 'collafuse-edge[train]'") from error
    try:
        with _quiet():
            image = nibabel.load(path)
        shape, dtype = tuple(int(n) for n in image.shape), np.dtype(image.get_data_dtype())
        start = int(image.dataobj.offset)
    except Exception as error:  # HeaderDataError, ImageFileError, OSError and more share no base
        raise _unreadable(path, error) from error
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{path} has shape {shape}; valid: one 3-D volume per file; save each volume as a file of its own"
        )
    if dtype.kind not in "iuf":
        raise InputError(f"{path} has voxels of dtype {dtype}; valid: whole numbers or floats; convert it")
    _require_size(path, shape, dtype, start)
    return image


def _require_size(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, start: int) -> None:
    voxels, found = 1, path.stat().st_size
    for side in shape:
        voxels *= max(side, 0)
    size = start + voxels * np.dtype(dtype).itemsize
    if not voxels:
        raise InputError(f"{path} has shape {shape}; valid: sides of at least 1")
    if voxels > MAX_VOXELS:
        raise InputError(f"{path} has shape {shape}; valid: at most {MAX_VOXELS} voxels; crop it or shrink it")
    if path.name.lower().endswith(".gz"):
        require_room(path, found, size)
    elif found < size:
        raise InputError(f"{path} has {found} bytes and announces {size}: truncated or damaged; fetch it again")
    require_memory(str(path), 12 * voxels)  # float64 while axes are turned, float32 after


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what nibabel logs and numpy warns of; what matters is raised."""
    logger = logging.getLogger("nibabel.global")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot read {path}: {one_line(error, 200)}; fetch it again or leave it out")
