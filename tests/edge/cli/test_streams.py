"""Standard streams closed, full, broken or narrow: the work is done all the same, and the exit code tells how."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CLI = f"{shlex.quote(sys.executable)} -m collafuse_edge"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        ["bash", "-c", f"{CLI} {line}"], cwd=folder, env={**os.environ, **paths, **environment}, capture_output=True,
        check=False,
    )  # fmt: skip


CLOSED = [
    ("init --size 8 >&-", 0, b""),
    ("init --size 8 2>&-", 0, b""),
    ("init --size 8 <&- >&- 2>&-", 0, b""),
    ("init --size 8 2>/dev/full", 0, b""),
    ("init --size red 2>&-", 2, b""),
    ("init --size red 2>/dev/full", 2, b""),
    ("init --size red <&- >&-", 2, b"error: size 'red' is not a side or HEIGHTxWIDTH"),
    ("init --size 8 >/dev/full", 2, b"error: cannot print the result: No space left on device; free space or choose"),
    ("init --size 8 >/dev/full 2>&1", 2, b""),
    ("init --size 8 2>&- | true; exit ${PIPESTATUS[0]}", 1, b""),
    ("fly >&-", 2, b"error: No such command 'fly'"),
]


@pytest.mark.parametrize(("line", "code", "said"), CLOSED, ids=[line for line, *_ in CLOSED])
def test_streams_that_take_nothing(line: str, code: int, said: bytes, tmp_path: Path) -> None:
    ended = shell(line, tmp_path)
    assert ended.returncode == code, ended
    assert ended.stderr.startswith(said) and ended.stderr.count(b"\n") == (said != b"")
    assert (tmp_path / "plan.json").exists() == ("red" not in line and "fly" not in line)


def test_a_closed_streams_number_goes_to_no_file_of_ours(tmp_path: Path) -> None:
    """Else what a library prints on stderr would stand in the next file opened."""
    program = (
        "import os, sys; from collafuse_edge.cli.parts.streams import prepare_streams; prepare_streams(); "
        "file = os.open('data', os.O_CREAT | os.O_WRONLY); os.write(2, b'a warning'); print('hidden'); "
        "print('hidden', file=sys.stderr); os.write(file, b'data')"
    )
    subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, check=True,
    )  # fmt: skip
    assert (tmp_path / "data").read_bytes() == b"data"


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "environment", [ASCII, {"PYTHONIOENCODING": "ascii:strict"}, {"PYTHONOPTIMIZE": "2"}, {"PYTHONDEVMODE": "1"}]
)
def test_names_beyond_ascii(environment: dict[str, str], tmp_path: Path) -> None:
    name = "Pläne-計画.json"
    ended = shell(f"init --size 8 --out {name}; {CLI} init --size 16 --out {name}", tmp_path, **environment)
    assert (tmp_path / name).exists()
    assert ended.returncode == 2
    assert b"holds another plan; choose another --out" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_current_folder_that_was_deleted(tmp_path: Path) -> None:
    ended = shell("--version; mkdir gone; cd gone; rmdir ../gone; " + f"{CLI} init --size 8; {CLI} verify x", tmp_path)
    assert ended.returncode == 2
    first, second = ended.stderr.decode().splitlines()
    assert first.startswith("error: cannot write plan.json: No such file or directory")
    assert second.startswith("error: no head bundle at x")
