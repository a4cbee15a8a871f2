"""The first bytes of a NIfTI file, looked at before nibabel reads whatever they ask for.

Layout: NIfTI-1 (Cox et al. 2004, nifti1.h) and NIfTI-2 (nifti2.h).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

from collafuse_edge.data.notes import Notes
from collafuse_runtimes.errors import InputError

MAX_OFFSET = 1 << 26
"""Bytes of header and extensions before the voxels."""
_LENGTH = 540
_FIELDS = {348: ("f", 108, "3f", 80, "h", 254), 540: ("q", 168, "3d", 112, "i", 348)}
"""Length of the header to struct format and place of vox_offset, pixdim[1:4] and sform_code."""
_GZIP = b"\x1f\x8b"


def require_sane(path: Path, notes: Notes) -> None:
    """Compression, place of the voxels and their sizes; what is not of NIfTI is left to nibabel.

    Raises:
        InputError: the name does not fit the compression, the file is cut within its header, the voxels begin within
            the header or far behind it, or a voxel has no size.
    """
    head = _head(path)
    for order in "<>":
        length = struct.unpack_from(f"{order}i", head)[0] if len(head) >= 4 else 0
        if length in _FIELDS and len(head) >= length:
            _check(path, head, order, length, notes)


def _head(path: Path) -> bytes:
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as stream:
            start = stream.read(_LENGTH)
        if start and (start[:2] == _GZIP) != packed:
            found, name = ("no gzip file", ".nii") if packed else ("a gzip file", ".nii.gz")
            raise InputError(f"{path} is {found}; if it is NIfTI, give it a name that ends in {name}")
        if not packed:
            return start
        with gzip.open(path) as unpacked:
            return unpacked.read(_LENGTH)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; fetch it again or leave it out") from error


def _check(path: Path, head: bytes, order: str, length: int, notes: Notes) -> None:
    offset_kind, offset_at, sizes_kind, sizes_at, code_kind, code_at = _FIELDS[length]
    offset = struct.unpack_from(order + offset_kind, head, offset_at)[0]
    single = head[344:347] == b"n+1" or head[4:7] == b"n+2"
    if single and not length + 4 <= offset <= MAX_OFFSET:
        raise InputError(
            f"{path} says that its voxels begin at byte {offset:g}; valid: {length + 4} to {MAX_OFFSET}; damaged: "
            "fetch it again"
        )
    sizes = struct.unpack_from(order + sizes_kind, head, sizes_at)
    by_sizes = struct.unpack_from(order + code_kind, head, code_at)[0] == 0
    if not by_sizes or all(math.isfinite(size) and size != 0 for size in sizes):
        return
    if any(sizes):
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise InputError(f"{path} has voxels of {shown} mm; mend the header (pixdim) or convert the file")
    notes.say("volumes without voxel sizes taken as square")
