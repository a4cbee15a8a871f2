"""Temporary folders that do not outlive their process for long: the next run takes away what a killed one left."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collafuse_runtimes.disk.lock import Busy, is_at, try_lock
from collafuse_runtimes.disk.partial import open_folder


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder ``collafuse-<purpose>-<8 characters>`` in the temporary folder, gone when the block ends.

    It is locked meanwhile, so folders of that purpose without a lock are a dead process's, and are removed first.
    """
    prefix = f"collafuse-{purpose}-"
    _remove_dead(Path(tempfile.gettempdir()), re.compile(re.escape(prefix) + "[a-z0-9_]{8}"))
    folder, descriptor = _make(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _make(prefix: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = open_folder(folder)
        if descriptor is None:
            return folder, None
        with suppress(Busy):
            try_lock(descriptor)
            if is_at(folder, descriptor):
                return folder, descriptor
        os.close(descriptor)  # another process took it for a dead one's, before the lock


def _remove_dead(place: Path, names: re.Pattern[str]) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(place)):
            if names.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def _remove_if_dead(folder: Path) -> None:
    descriptor = open_folder(folder)
    if descriptor is None:
        return
    try:
        with suppress(Busy):
            is_own = os.fstat(descriptor).st_uid == os.geteuid()
            if is_own and try_lock(descriptor) and is_at(folder, descriptor):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
