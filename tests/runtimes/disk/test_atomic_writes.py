"""Whoever reads while we write, after we were killed or ran out of space, finds the old content or the new, whole."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collafuse_runtimes.disk.atomic import new_directory, write_bytes
from collafuse_runtimes.errors import ArtefactError

NOBODY = 65534


def fill(folder: Path, text: str, count: int = 3) -> None:
    for i in range(count):
        (folder / f"{i}.bin").write_text(text)
    (folder / "kind.json").write_text(text)


def refused(write: Callable[[], object], reason: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        write()
    message = str(caught.value)
    assert message.startswith("cannot write ")
    assert reason in message
    assert len(message.splitlines()) == 1


def replace_directory(path: Path, text: str) -> None:
    with new_directory(path) as aside:
        fill(aside, text)


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """Work in ``folder`` as nobody where the tests run as root, who may write anywhere."""
    before, root = Path.cwd(), os.geteuid() == 0
    os.chdir(folder)
    if root:
        folder.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        os.chdir(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "x.bin"
    write_bytes(path, b"old")
    refused(lambda: write_bytes(path, bytes(100_000)), "No space left on device; nothing was changed: free space")
    assert path.read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["x.bin"]
    write_bytes(path, bytes(30_000))
    assert path.stat().st_size == 30_000


def test_a_full_disk_leaves_the_old_folder(small_disk: Path) -> None:
    path = small_disk / "head"
    replace_directory(path, "old")
    refused(lambda: replace_directory(path, "x" * 30_000), "No space left on device")
    assert [p.read_text() for p in sorted(path.iterdir())] == ["old"] * 4
    assert [p.name for p in small_disk.iterdir()] == ["head"]


def test_a_file_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    """The same without a mount: writing past RLIMIT_FSIZE fails half way through the data."""
    path, soft, hard = tmp_path / "x.bin", *resource.getrlimit(resource.RLIMIT_FSIZE)
    write_bytes(path, b"old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        refused(lambda: write_bytes(path, bytes(100_000)), "File too large; nothing was changed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


FILE_LOOP = """
import sys
from pathlib import Path
from collafuse_runtimes.disk.atomic import write_bytes
path = Path(sys.argv[1]) / "x.bin"
print("ready", flush=True)
for i in range(10**9):
    write_bytes(path, bytes([i % 256]) * 300_000)
"""
FOLDER_LOOP = """
import sys
from pathlib import Path
from collafuse_runtimes.disk.atomic import new_directory
path = Path(sys.argv[1]) / "head"
print("ready", flush=True)
for i in range(10**9):
    with new_directory(path) as aside:
        for name in ("a.json", "b.bin", "c.bin"):
            (aside / name).write_bytes(bytes([i % 256]) * 50_000)
"""


def kill_while_writing(loop: str, folder: Path, delay: float) -> None:
    with subprocess.Popen([sys.executable, "-c", loop, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.09, 0.14])
def test_a_file_is_whole_after_kill_9(tmp_path: Path, delay: float) -> None:
    write_bytes(tmp_path / "x.bin", b"\x07" * 300_000)
    kill_while_writing(FILE_LOOP, tmp_path, delay)
    data = (tmp_path / "x.bin").read_bytes()
    assert data == data[:1] * 300_000
    write_bytes(tmp_path / "x.bin", b"after")  # takes away what the killed process left behind
    assert (tmp_path / "x.bin").read_bytes() == b"after"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.09, 0.14])
def test_a_folder_is_whole_after_kill_9(tmp_path: Path, delay: float) -> None:
    with new_directory(tmp_path / "head") as aside:
        for name in ("a.json", "b.bin", "c.bin"):
            (aside / name).write_bytes(b"\x07" * 50_000)
    kill_while_writing(FOLDER_LOOP, tmp_path, delay)
    contents = {p.name: p.read_bytes() for p in (tmp_path / "head").iterdir()}
    assert contents.keys() == {"a.json", "b.bin", "c.bin"}
    assert set(contents.values()) == {contents["a.json"][:1] * 50_000}
    with new_directory(tmp_path / "head") as aside:
        (aside / "a.json").write_bytes(b"after")
    assert [p.read_bytes() for p in (tmp_path / "head").iterdir()] == [b"after"]
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_the_folder_is_never_missing_while_it_is_replaced(tmp_path: Path) -> None:
    path, changes, last = tmp_path / "head", 0, 0
    with subprocess.Popen([sys.executable, "-c", FOLDER_LOOP, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            while not path.exists():
                time.sleep(0.001)
            deadline = time.monotonic() + 10
            while changes < 20 and time.monotonic() < deadline:
                now = path.stat().st_ino
                changes, last = changes + (now != last), now
        finally:
            process.kill()
    assert changes == 20


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    write_bytes(locked / "x.bin", b"old")
    locked.chmod(0o555)
    with without_privileges(tmp_path):
        refused(lambda: write_bytes(Path("locked/x.bin"), b"new"), "Permission denied; nothing was changed")
        refused(lambda: replace_directory(Path("locked/head"), "new"), "Permission denied; nothing was changed")
    locked.chmod(0o755)
    assert [p.name for p in locked.iterdir()] == ["x.bin"]
    assert (locked / "x.bin").read_bytes() == b"old"


def test_a_folder_that_cannot_be_entered_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    with without_privileges(tmp_path):
        refused(lambda: write_bytes(Path("closed/x.bin"), b"new"), "Permission denied; nothing was changed")
        refused(lambda: replace_directory(Path("closed/head"), "new"), "Permission denied; nothing was changed")
    closed.chmod(0o755)
    assert list(closed.iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(lambda: write_bytes(tmp_path / "no" / "x.bin", b""), "No such file or directory")
    refused(lambda: replace_directory(tmp_path / "no" / "head", ""), "No such file or directory")
    assert list(tmp_path.iterdir()) == []


def test_files_and_folders_do_not_replace_each_other(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    replace_directory(tmp_path / "folder", "old")
    refused(lambda: replace_directory(tmp_path / "file", "new"), "a file of that name exists; choose another name")
    refused(lambda: write_bytes(tmp_path / "folder", b"new"), "Is a directory; nothing was changed")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_folder_needs_a_name_of_its_own(path: str) -> None:
    refused(lambda: replace_directory(Path(path), ""), "it has no name of its own; give the name of a new folder")


def test_an_empty_folder_and_one_of_the_same_kind_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    for text in ("first", "second"):
        replace_directory(tmp_path / "head", text)
        assert {p.read_text() for p in (tmp_path / "head").iterdir()} == {text}
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("names", [["photo.jpg"], ["other.json"], ["notes", "0.bin"]])
def test_a_folder_of_other_things_is_never_swept_away(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "photos"
    path.mkdir()
    for name in names:
        (path / name).write_text("precious")
    refused(lambda: replace_directory(path, "new"), "a folder of other files is there; choose another name or empty it")
    assert sorted(p.name for p in path.iterdir()) == sorted(names)
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_a_failing_block_leaves_the_old_folder(tmp_path: Path) -> None:
    replace_directory(tmp_path / "head", "old")
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "head") as aside:
        fill(aside, "new")
        _ = 1 / 0
    assert {p.read_text() for p in (tmp_path / "head").iterdir()} == {"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_where_folders_cannot_be_exchanged_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collafuse_runtimes.disk.atomic._exchange", lambda a, b: False)
    for text in ("first", "second"):
        replace_directory(tmp_path / "head", text)
        assert {p.read_text() for p in (tmp_path / "head").iterdir()} == {text}
    real_rename = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial") and (self / "0.bin").exists() and (self / "0.bin").read_text() == "third":
            raise OSError(5, "Input/output error")
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    refused(lambda: replace_directory(tmp_path / "head", "third"), "Input/output error; nothing was changed")
    assert {p.read_text() for p in (tmp_path / "head").iterdir()} == {"second"}
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    replace_directory(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    replace_directory(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert {p.read_text() for p in (tmp_path / "real").iterdir()} == {"new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o644, 0o755)]
)
def test_the_umask_is_respected(tmp_path: Path, umask: int, file_mode: int, folder_mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "x.bin", b"")
        write_bytes(tmp_path / "secret", b"", mode=0o600)
        replace_directory(tmp_path / "head", "")
    finally:
        assert os.umask(before) == umask
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert modes == {"x.bin": file_mode, "secret": 0o600, "head": folder_mode}
