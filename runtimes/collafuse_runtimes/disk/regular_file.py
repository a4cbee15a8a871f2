"""Reading files that are files: a pipe would wait for ever, a device such as /dev/zero would never end."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from collafuse_runtimes.errors import ArtefactError

_KINDS = {stat.S_IFDIR: "Is a directory", stat.S_IFIFO: "it is a pipe", stat.S_IFSOCK: "it is a socket"}


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading, unbuffered.

    Args:
        follow: whether it may be a link.

    Raises:
        ArtefactError: it is missing, unreadable, or no regular file.
    """
    if not follow and path.is_symlink():
        raise ArtefactError(f"cannot read {path}: it is a link; give the file itself")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}; check the path"
        ) from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise ArtefactError(f"cannot read {path}: {_KINDS.get(kind, 'it is a device')}; give the path of a file")
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123  of a descriptor


def read_bytes(path: Path, limit: int | None = None, *, follow: bool = True) -> bytes:
    """A regular file's bytes.

    Raises:
        ArtefactError: it is missing, unreadable, no regular file, or larger than ``limit`` bytes.
    """
    with open_regular(path, follow=follow) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise ArtefactError(f"cannot read {path}: {size} bytes, valid here are at most {limit}; check the path")
            return file.read()
        except OSError as error:
            raise ArtefactError(f"cannot read {path}: {error.strerror}; check the path") from error
