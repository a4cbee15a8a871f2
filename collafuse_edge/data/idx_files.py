"""The idx format of MNIST (http://yann.lecun.com/exdb/mnist/): two zero bytes, type, dimensions, data, big-endian."""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collafuse_edge.data.image_set import Source
from collafuse_edge.data.npz_arrays import array_source
from collafuse_runtimes.errors import InputError

_UBYTE = 8


def open_idx(path: Path) -> Source:
    """Images (N,H,W), (N,H,W,1) or (N,H,W,3) with the labels of the file beside it, if there is one.

    The labels file of ``train-images-idx3-ubyte[.gz]`` is ``train-labels-idx1-ubyte[.gz]``.

    Raises:
        InputError: a file is damaged, not of unsigned bytes, or images and labels differ in number.
    """
    labels = _labels_beside(path)
    return array_source(str(path), _read(path), None if labels is None else _read(labels))


def _labels_beside(images: Path) -> Path | None:
    name, replaced = re.subn(r"images([-.])idx\d", r"labels\1idx1", images.name.removesuffix(".gz"))
    candidates = [images.with_name(name + suffix) for suffix in ("", ".gz")] if replaced else []
    return next((path for path in candidates if path.exists()), None)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"cannot read {path}: damaged or truncated ({error}); fetch it again") from error
    if zeros or kind != _UBYTE:
        raise InputError(f"{path} starts with {data[:4].hex(' ')}; valid: 00 00 08 and the dimensions (idx of ubyte)")
    start = 4 + 4 * dimensions
    if len(data) - start != math.prod(shape):
        found = len(data) - start
        raise InputError(f"{path} has {found} bytes for shape {shape}: damaged or truncated; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
