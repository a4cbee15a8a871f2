"""Names beside a path for what is being written to it, and what killed processes left under such names.

.NAME.<12 hex digits>.partial   being written; its writer holds a lock on it, so one without a lock is a dead writer's
.NAME.<12 hex digits>.previous  the older folder while its place is taken, where the system cannot exchange the two
"""

import hashlib
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from collafuse_runtimes.disk.lock import Busy, is_at, try_lock

LONGEST_STEM = 64
"""Bytes; file systems allow names of 255 bytes, some 143."""
PARTIAL, PREVIOUS = "partial", "previous"


def beside(path: Path, ending: str) -> Path:
    """A fresh hidden name in the folder of ``path``."""
    return path.parent / f".{_stem(path)}.{secrets.token_hex(6)}.{ending}"


def hidden(path: Path, ending: str) -> Path:
    """The one hidden name of that ending in the folder of ``path``."""
    return path.parent / f".{_stem(path)}.{ending}"


def is_partial(folder: Path) -> bool:
    """Whether this is a folder that is being filled."""
    return folder.name.endswith(f".{PARTIAL}")


def open_folder(path: Path) -> int | None:
    """A descriptor to lock a folder by; None where the system cannot open folders."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return None


def remove_leftovers(path: Path) -> None:
    """Take away what killed processes left of writing ``path``; if one died between two renames, put the old one back.

    What another process is writing now is left alone, and so is everything where the file system knows no locks.
    """
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{12}}\.({PARTIAL}|{PREVIOUS})")
    with suppress(OSError):
        names = sorted((found[1], name) for name in os.listdir(path.parent) if (found := pattern.fullmatch(name)))  # noqa: PTH208  bytes of names matter, not paths
        for ending, name in names:
            _settle(path, path.parent / name, ending)


def _settle(path: Path, leftover: Path, ending: str) -> None:
    with suppress(OSError, Busy):
        descriptor = os.open(leftover, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if not (try_lock(descriptor) and is_at(leftover, descriptor)):
                return
            if ending == PREVIOUS and not _is_whole(path, leftover):
                shutil.rmtree(path, ignore_errors=True)
                leftover.rename(path)
            elif leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()
        finally:
            os.close(descriptor)


def _is_whole(path: Path, previous: Path) -> bool:
    """Whether ``path`` still, or again, has every JSON file of its kind: those are taken away first (``atomic``)."""
    return path.is_dir() and {p.name for p in previous.glob("*.json")} <= {p.name for p in path.glob("*.json")}


def _stem(path: Path) -> str:
    """The name, or of a long one the beginning and a digest; never half a character."""
    name = os.fsencode(path.name)
    if len(name) <= LONGEST_STEM:
        return path.name
    kept = name[: LONGEST_STEM - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(name).hexdigest()[:8]}"
