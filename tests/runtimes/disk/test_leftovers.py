"""What killed processes leave is taken away by the next, what living ones are writing is not; nothing is lost."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collafuse_runtimes.disk import atomic, lock
from collafuse_runtimes.disk.atomic import new_directory, write_bytes
from collafuse_runtimes.disk.scratch import scratch_folder
from collafuse_runtimes.errors import ArtefactError

WRITING = """
import sys
from pathlib import Path
from collafuse_runtimes.disk.atomic import new_directory
from collafuse_runtimes.disk.partial import PARTIAL, beside
from collafuse_runtimes.disk import atomic
from collafuse_runtimes.disk.scratch import scratch_folder
folder = Path(sys.argv[1])
with new_directory(folder / "head") as aside, scratch_folder("test"):
    (aside / "kind.json").write_text("theirs")
    file, descriptor = atomic._create(folder / "x.bin", 0o644)
    print("ready", flush=True)
    sys.stdin.readline()
    file.unlink()
"""


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process with a file, a folder and a scratch folder half written."""
    command, environment = [sys.executable, "-c", WRITING, str(folder)], {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def write_all(folder: Path, text: str) -> None:
    write_bytes(folder / "x.bin", text.encode())
    with new_directory(folder / "head") as aside:
        (aside / "kind.json").write_text(text)
    with scratch_folder("test"):
        pass


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_dead_writers_leftovers_go_and_a_living_ones_stay(tmp_path: Path) -> None:
    def leftovers() -> list[str]:
        return sorted(p.name[:10] for p in tmp_path.iterdir() if p.name.startswith((".", "collafuse-")))

    with writer(tmp_path) as process:
        assert len(leftovers()) == 3
        write_all(tmp_path, "ours")
        assert len(leftovers()) == 3
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait() == 0
        assert (tmp_path / "head" / "kind.json").read_text() == "theirs"
    assert leftovers() == []
    with writer(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(leftovers()) == 3
        write_all(tmp_path, "ours")
        assert leftovers() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head", "x.bin"]


@pytest.mark.parametrize(
    "name",
    [
        ".x.bin.0123456789ab.partial~", ".x.bin.0123456789AB.partial", ".x.bin.012345.partial", "x.bin.partial",
        ".y.bin.0123456789ab.partial", ".xxbin.0123456789ab.partial", ".x.bin.0123456789ab.previou",
    ],
)  # fmt: skip
def test_only_our_own_names_are_taken_away(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    write_bytes(tmp_path / "x.bin", b"new")
    assert (tmp_path / name).read_text() == "mine"


def test_without_locks_nothing_is_taken_away_and_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    leftover = tmp_path / ".x.bin.0123456789ab.partial"
    leftover.touch()
    monkeypatch.setattr(fcntl, "flock", unsupported)
    write_all(tmp_path, "new")
    assert leftover.exists()
    with lock.hold(tmp_path / "a", tmp_path / ".a.lock", "is busy"), lock.hold(tmp_path, tmp_path / ".a.lock", ""):
        pass


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "漢" * 85, "." + "b" * 254, "x" * 251 + ".tar"])
def test_every_name_the_file_system_takes(name: str, tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_bytes(tmp_path / name, text.encode())
        assert (tmp_path / name).read_text() == text
    (tmp_path / name).unlink()
    for text in ("first", "second"):
        with new_directory(tmp_path / name) as aside:
            assert len(os.fsencode(aside.name)) <= 143
            (aside / "kind.json").write_text(text)
        assert (tmp_path / name / "kind.json").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(ArtefactError, match="File name too long; nothing was changed: choose a shorter name"):
        write_bytes(tmp_path / (name + "a" * 255), b"")


def head(folder: Path, text: str) -> None:
    folder.mkdir()
    for name in ("kind.json", "b.bin"):
        (folder / name).write_text(text)


def texts(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.iterdir()}


def lower_layer(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """As overlayfs without redirect_dir: a folder of a lower layer can be neither exchanged nor renamed."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == path:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)


def test_a_folder_that_cannot_be_renamed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head(tmp_path / "head", "old")
    lower_layer(monkeypatch, tmp_path / "head")
    with new_directory(tmp_path / "head") as aside:
        (aside / "kind.json").write_text("new")
    assert texts(tmp_path / "head") == {"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("step", ["copytree", "_remove_json_first", "rmtree"])
def test_whatever_fails_on_the_way_the_old_folder_is_there(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head(tmp_path / "head", "old")
    lower_layer(monkeypatch, tmp_path / "head")
    holder = atomic if step.startswith("_") else atomic.shutil
    real = getattr(holder, step)
    failures: list[None] = []

    def fail(path: Path, *rest: object, **options: object) -> None:
        if not failures:
            failures.append(None)
            if step.startswith("_"):
                real(path)
            raise OSError(errno.EIO, "Input/output error")
        real(path, *rest, **options)

    monkeypatch.setattr(holder, step, fail)
    with (
        pytest.raises(ArtefactError, match="Input/output error; nothing was changed"),
        new_directory(tmp_path / "head") as aside,
    ):
        (aside / "kind.json").write_text("new")
    assert failures
    assert texts(tmp_path / "head") == {"old"}


KILLED = """
import os, signal, sys
from pathlib import Path
from collafuse_runtimes.disk import atomic
how, path = sys.argv[1], Path(sys.argv[2])
real = Path.rename
def rename(self, target):
    if self == path and how == "copied":
        raise OSError(18, "Invalid cross-device link")
    if target == path:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.rename = rename
atomic._exchange = lambda a, b: False
with atomic.new_directory(path) as aside:
    (aside / "kind.json").write_text("new")
"""


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_a_process_killed_with_the_place_empty_loses_nothing(how: str, tmp_path: Path) -> None:
    path = tmp_path / "head"
    head(path, "old")
    ended = subprocess.run([sys.executable, "-c", KILLED, how, path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not path.exists()
    assert [texts(p) for p in tmp_path.glob(".head.*.previous")] == [{"old"}]
    with pytest.raises(ZeroDivisionError), new_directory(path):
        _ = 1 / 0  # the next writer fails, too
    assert texts(path) == {"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


OVERLAY = """
set -e
mkdir low up work merged low/head
echo old > low/head/kind.json; echo old > low/head/b.bin
mount -t overlay overlay -o lowerdir=low,upperdir=up,workdir=work,redirect_dir=off merged || exit 77
cd merged
$PYTHON -c '
from pathlib import Path
from collafuse_runtimes.disk.atomic import new_directory
with new_directory(Path("head")) as aside:
    (aside / "kind.json").write_text("new")
'
test "$(cat head/kind.json)" = new
test "$(ls -A . head | tr "\\n" " ")" = ".: head  head: kind.json "
"""


def test_a_folder_of_a_real_overlays_lower_layer_is_replaced(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", OVERLAY], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    if ended.returncode in (77, 1) and b"NG" not in ended.stdout and b"Traceback" not in ended.stderr and ended.stderr:
        pytest.skip(f"no overlay can be mounted here: {ended.stderr.decode().strip()}")
    assert ended.returncode == 0, ended
