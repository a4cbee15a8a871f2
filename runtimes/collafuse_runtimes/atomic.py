"""Writing so that a reader sees the old state or the new one, never a part: write aside, sync, rename."""

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collafuse_runtimes.errors import ArtefactError

BeforeRename = Callable[[bytes], None]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, before_rename: BeforeRename | None = None) -> None:
    """Replace or create ``path`` with ``data`` in one rename; ``mode`` less the umask.

    Args:
        before_rename: called with ``data`` when it is on the disk and only the rename is left; ``path`` stays as it was
            if this raises.

    Raises:
        ArtefactError: the directory is missing, not writable or full; ``path`` is as it was before.
    """
    aside = _aside(path)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if before_rename is not None:
            before_rename(data)
        aside.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside ``path``; it takes the place of ``path`` when the block ends without an error.

    It replaces only an empty directory or an older one of its own kind, known by its JSON files: a folder of other
    things is never swept away.

    Raises:
        ArtefactError: ``path`` cannot be written, is a file, or is a directory of something else; it is as it was
            before.
    """
    if path.name in ("", ".."):
        raise ArtefactError(f"cannot write {path}: it has no name of its own; give the name of a new folder")
    aside = _aside(path)
    try:
        if path.exists() and not path.is_dir():
            raise ArtefactError(f"cannot write {path}: a file of that name exists; choose another name")
        if path.is_symlink():
            path = path.resolve()
            aside = _aside(path)
        aside.mkdir(0o755)
        yield aside
        _swap_in(aside, path)
    except ArtefactError as error:
        if str(aside) not in str(error):
            raise
        raise ArtefactError(str(error).replace(str(aside), str(path))) from error
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _swap_in(aside: Path, path: Path) -> None:
    if not path.exists():
        aside.rename(path)
        return
    _require_same_kind(aside, path)
    if not _exchange(aside, path):
        previous = _aside(path)
        path.rename(previous)
        try:
            aside.rename(path)
        except OSError:
            previous.rename(path)
            raise
        shutil.rmtree(previous, ignore_errors=True)


def _require_same_kind(aside: Path, path: Path) -> None:
    kind, found = {file.name for file in aside.glob("*.json")}, {file.name for file in path.iterdir()}
    if found and not (kind and kind <= found):
        raise ArtefactError(f"cannot write {path}: a folder of other files is there; choose another name or empty it")


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one system call (renameat2, Linux); False where kernel or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _aside(path: Path) -> Path:
    """A fresh hidden name beside ``path``; what a killed process leaves there is never read."""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"


def _cannot_write(path: Path, error: OSError) -> ArtefactError:
    reason = error.strerror or type(error).__name__
    return ArtefactError(f"cannot write {path}: {reason}; nothing was changed: free space or choose a writable folder")
