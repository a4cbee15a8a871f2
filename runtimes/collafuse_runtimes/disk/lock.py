"""Who is at work here: locks of the kernel (flock), which end with their holder however it ends."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collafuse_runtimes.errors import InputError
from collafuse_runtimes.text import one_line


class Busy(Exception):
    """Another process, or this one, holds the lock."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; False where the file system has no locks.

    Raises:
        Busy: somebody else holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy from None
    except OSError:
        return False
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        found, held = path.stat(follow_symlinks=False), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


@contextmanager
def hold(path: Path, lock_file: Path, doing: str) -> Iterator[None]:
    """Be the only process at work on ``path`` while the block runs.

    A file system without locks, or a folder that cannot be written, refuses nobody.

    Args:
        lock_file: beside ``path``; it says who holds it, and is gone when the block ends. One left by a killed process
            holds nothing.
        doing: what is being done, for example "is being trained".

    Raises:
        InputError: another process is at work on it; says which and since when.
    """
    descriptor = _take(path, lock_file, doing)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                lock_file.unlink()
            os.close(descriptor)


def _take(path: Path, lock_file: Path, doing: str) -> int | None:
    while True:
        try:
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None
        try:
            locked = try_lock(descriptor)
        except Busy:
            holder = one_line(os.read(descriptor, 200).decode(errors="replace") or "another process", 200)
            os.close(descriptor)
            raise InputError(f"{path} {doing} by {holder}; wait until it ends, or choose another --out") from None
        if locked and not is_at(lock_file, descriptor):  # its holder ended, and took the file along, just now
            os.close(descriptor)
            continue
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        return descriptor
