"""Writing so that a reader sees the old state or the new one, never a part: write aside, sync, rename."""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collafuse_runtimes.disk.lock import Busy, is_at, try_lock
from collafuse_runtimes.disk.partial import PARTIAL, PREVIOUS, beside, is_partial, open_folder, remove_leftovers
from collafuse_runtimes.errors import ArtefactError

Check = Callable[[Path], None]
"""Raises where something may not be replaced."""

BeforeRename = Callable[[bytes], None]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_REMEDIES = {
    errno.EBUSY: "it is a mount point or in use: give the name of a new file or folder inside it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
}


def write_bytes(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o644,
    check: Check | None = None,
    before_rename: BeforeRename | None = None,
) -> None:
    """Replace or create ``path`` with ``data`` in one rename; ``mode`` less the umask. A link stays a link.

    Args:
        check: called with ``path`` before anything is written and again before the rename.
        before_rename: called with ``data`` when it is on the disk and only the rename is left; ``path`` stays as it was
            if this raises.

    Raises:
        ArtefactError: the directory is missing, not writable or full, or ``check`` refuses; ``path`` is as it was
            before.
    """
    descriptor = None
    target, aside = path, None
    try:
        target = _target(path)
        if check is not None:
            check(path)
        if not is_partial(target.parent):
            remove_leftovers(target)
        aside, descriptor = _create(target, mode)
        with os.fdopen(os.dup(descriptor), "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if check is not None:
            check(path)
        if before_rename is not None:
            before_rename(data)
        aside.replace(target)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if aside is not None:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def new_directory(path: Path, *, check: Check | None = None) -> Iterator[Path]:
    """Yield an empty directory beside ``path``; it takes the place of ``path`` when the block ends without an error.

    It replaces only an empty directory or an older one of its own kind, known by its JSON files: a folder of other
    things is never swept away.

    Args:
        check: called with ``path`` before the block and again before the exchange; decides what may be replaced in
            place of the rule above.

    Raises:
        ArtefactError: ``path`` cannot be written, is a file, or is a directory of something else; it is as it was
            before.
    """
    if path.name in ("", ".."):
        raise ArtefactError(f"cannot write {path}: it has no name of its own; give the name of a new folder")
    aside, descriptor = None, None
    try:
        target = _target(path)
        if target.exists() and not target.is_dir():
            raise ArtefactError(f"cannot write {path}: a file of that name exists; choose another name")
        if check is not None:
            check(path)
        remove_leftovers(target)
        aside, descriptor = _create_folder(target)
        yield aside
        _swap_in(aside, target, check or (lambda old: _require_same_kind(aside, old)))
    except ArtefactError as error:
        if str(aside) not in str(error):
            raise
        raise ArtefactError(str(error).replace(str(aside), str(path))) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> ArtefactError:
    """The line for a failed write."""
    reason = error.strerror or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "free space or choose a writable folder")
    return ArtefactError(f"cannot write {path}: {reason}; nothing was changed: {remedy}")


def _target(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _create(path: Path, mode: int) -> tuple[Path, int]:
    """A new file aside, locked while its descriptor is open."""
    while True:
        aside = beside(path, PARTIAL)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with suppress(Busy):
            try_lock(descriptor)
            if is_at(aside, descriptor):
                return aside, descriptor
        os.close(descriptor)  # somebody who takes leftovers away was quicker than the lock


def _create_folder(path: Path) -> tuple[Path, int | None]:
    """As ``_create``, a folder."""
    while True:
        aside = beside(path, PARTIAL)
        aside.mkdir(0o755)
        descriptor = open_folder(aside)
        if descriptor is None:
            return aside, None
        with suppress(Busy):
            try_lock(descriptor)
            if is_at(aside, descriptor):
                return aside, descriptor
        os.close(descriptor)


def _swap_in(aside: Path, path: Path, check: Check) -> None:
    """The new folder takes the place of the old: in one system call; else in two renames; else, where the old one
    cannot be renamed (a lower layer of an overlay), with a copy of the old kept until the new is in its place.

    A process killed between the steps of the last two leaves a ``.previous``; the next writer puts it back if needed.
    """
    if not path.exists():
        aside.rename(path)
        return
    check(path)
    if _exchange(aside, path):
        return
    previous = beside(path, PREVIOUS)
    descriptor = None
    try:
        descriptor = _set_aside(path, previous)
        aside.rename(path)
        shutil.rmtree(previous, ignore_errors=True)
    except BaseException:
        if previous.exists():
            _put_back(previous, path)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _put_back(previous: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    try:
        previous.rename(path)
    except OSError:  # not all of it could be removed
        shutil.copytree(previous, path, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(previous, ignore_errors=True)


def _set_aside(path: Path, previous: Path) -> int | None:
    """Move the old folder to ``previous``; the descriptor holds a lock on that."""
    descriptor = open_folder(path)
    try:
        if descriptor is not None:
            with suppress(Busy):
                try_lock(descriptor)
        path.rename(previous)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if error.errno != errno.EXDEV:
            raise
        descriptor = _copy_aside(path, previous)
        _remove_json_first(path)
    return descriptor


def _copy_aside(path: Path, previous: Path) -> int | None:
    copy, descriptor = _create_folder(path)
    try:
        shutil.copytree(path, copy, symlinks=True, dirs_exist_ok=True)
        copy.rename(previous)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)
        raise
    return descriptor


def _remove_json_first(path: Path) -> None:
    for file in path.glob("*.json"):
        file.unlink()
    shutil.rmtree(path)


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
