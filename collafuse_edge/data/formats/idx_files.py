"""The idx format of MNIST (http://yann.lecun.com/exdb/mnist/): two zero bytes, type, dimensions, data, big-endian."""

import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.formats.bounded import read_gzip, require_room
from collafuse_edge.data.formats.npz_arrays import array_source
from collafuse_edge.data.image_set import Source
from collafuse_edge.data.scaling import Scaling
from collafuse_runtimes.errors import InputError

_UBYTE = 8


def open_idx(path: Path, scaling: Scaling | None = None) -> Source:
    """Images (N,H,W), (N,H,W,1) or (N,H,W,3) with the labels of the file beside it, if there is one.

    The labels file of ``train-images-idx3-ubyte[.gz]`` is ``train-labels-idx1-ubyte[.gz]``.

    Raises:
        InputError: a file is damaged, not of unsigned bytes, or images and labels differ in number.
    """
    labels = _labels_beside(path)
    return array_source(str(path), _read(path), None if labels is None else _read(labels), scaling=scaling)


def _labels_beside(images: Path) -> Path | None:
    name, replaced = re.subn(r"images([-.])idx\d", r"labels\1idx1", images.name.removesuffix(".gz"))
    candidates = [images.with_name(name + suffix) for suffix in ("", ".gz")] if replaced else []
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    """The header first; then no more bytes than it announces."""
    try:
        head = _first_bytes(path, 4 + 4 * 255)
        zeros, kind, dimensions = struct.unpack_from(">HBB", head)
        shape = struct.unpack_from(f">{dimensions}I", head, 4)
        if zeros or kind != _UBYTE:
            raise InputError(
                f"{path} starts with {head[:4].hex(' ')}; valid: 00 00 08 and the dimensions (idx of ubyte)"
            )
        start, size = 4 + 4 * dimensions, math.prod(shape)
        if not 1 <= dimensions <= 4:
            raise InputError(f"{path} has {dimensions} dimensions; valid: 3, 4 for colour, or 1 for labels")
        if path.suffix == ".gz":
            require_room(path, path.stat().st_size, size)
        elif path.stat().st_size < start + size:
            size_found = path.stat().st_size - start
            raise InputError(f"{path} has {size_found} bytes for shape {shape}: damaged or truncated; fetch it again")
        data = _first_bytes(path, start + size)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"cannot read {path}: damaged or truncated ({error}); fetch it again") from error
    if len(data) - start != size:
        found = f"{len(data) - start} bytes" if len(data) - start < size else "more bytes than belong there"
        raise InputError(f"{path} has {found} for shape {shape}: damaged or truncated; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _first_bytes(path: Path, size: int) -> bytes:
    """``size`` bytes from the start, decompressed, and one more where there are more; fewer where there are not."""
    if path.suffix == ".gz":
        return read_gzip(path, size)
    with path.open("rb") as stream:
        return stream.read(size + 1)
