"""What is dear to make, made once per test run and shared by its processes. Copy it before you damage it."""

import atexit
import fcntl
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

_of_the_run: list[Path] = []


def share_in(folder: Path) -> None:
    """``folder`` is one for all processes of this test run; conftest.py says which."""
    _of_the_run[:] = [folder]


@lru_cache
def _own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="made-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def workspace() -> Path:
    """Where the things made lie; outside pytest a folder of this process."""
    return _of_the_run[0] if _of_the_run else _own_folder()


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name``, which ``make`` wrote in the first process that asked; others wait for it.

    ``make`` may ask for things of other names. What a failed ``make`` leaves is thrown away.
    """
    path, lock_file = workspace() / name, workspace() / f"{name}.lock"
    with lock_file.open("a") as lock:  # it holds a word once the thing is whole
        fcntl.flock(lock, fcntl.LOCK_EX)
        if lock_file.stat().st_size == 0:
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            lock.write("made")
    return path
