"""Compressed files are looked at before memory is taken for what they claim to hold."""

import gzip
import os
from pathlib import Path

from collafuse_runtimes.errors import InputError

DEFLATE_LIMIT = 1032
"""No deflate stream expands further (RFC 1951: 258 bytes from two bits)."""
FREE = 256 << 20
"""Bytes that may come out of however little."""
USUAL = 200
"""Images compress to no less than a two-hundredth, but for drawn or empty ones."""


def require_room(path: Path, packed: int, unpacked: int) -> None:
    """Refuse what would fill the memory before it is read.

    Args:
        packed: bytes in the file.
        unpacked: bytes that its header announces.

    Raises:
        InputError: more than the stream can hold, a decompression bomb, or more than the memory that is left.
    """
    if unpacked > DEFLATE_LIMIT * packed + 1024:
        raise InputError(f"{path} announces {unpacked} bytes, more than its {packed} can hold: damaged; fetch it again")
    if unpacked > FREE and unpacked > USUAL * packed:
        raise InputError(
            f"{path} would grow from {packed} to {unpacked} bytes, more than {USUAL}-fold: a decompression bomb, or "
            "empty; leave it out, or save it uncompressed where you trust it"
        )
    require_memory(str(path), unpacked)


def require_memory(name: str, size: int) -> None:
    """Refuse ``size`` bytes where half of the memory that is left does not hold them.

    Raises:
        InputError: see above.
    """
    left = _memory_left()
    if left is not None and size > left // 2:
        raise InputError(
            f"{name} needs {size / 1e9:.1f} GB, more than half of the {left / 1e9:.1f} GB of memory left; free "
            "memory, or save it as several smaller files"
        )


def read_gzip(path: Path, size: int) -> bytes:
    """The first ``size`` bytes of a gzip file, and one more where there are more.

    Raises:
        OSError, EOFError, zlib.error: damaged or truncated.
    """
    with gzip.open(path) as stream:
        return stream.read(size + 1)


def _memory_left() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
