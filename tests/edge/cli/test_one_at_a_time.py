"""Two trainings, or two measurements, never share one output; a dead one is in nobody's way."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import done, refusal
from small_product import copy_product, listing, words

from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.pages.document import Document
from collafuse_benchmarks.pages.folder import ReportFolder
from collafuse_runtimes.errors import InputError

HOLD = """
import sys
from pathlib import Path
from collafuse_runtimes.disk.lock import hold
from collafuse_runtimes.disk.partial import hidden
path = Path(sys.argv[1])
with hold(path, hidden(path, "lock"), "is busy"):
    print("ready", flush=True)
    sys.stdin.readline()
"""
TRAIN = "train-client --data @data.npz --plan @plan.json --preset tiny --steps 2 --batch-size 4 --cpu --out @new"


@contextmanager
def another(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process at work on ``path``."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_the_second_training_is_refused(resume: tuple[str, ...], tmp_path: Path) -> None:
    site = copy_product(tmp_path / "site")
    train = [*words(TRAIN, site), *resume]
    with another(site / "new") as process:
        before = listing(site)
        line = refusal(*train)
        assert f"{site}/new is being trained by process {process.pid} on " in line
        assert "since 20" in line and line.endswith("; wait until it ends, or choose another --out")
        assert listing(site) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (site / ".new.lock").exists()
    if not resume:
        done(*train)
        assert not (site / ".new.lock").exists()


def test_processes_of_one_run_share_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = copy_product(tmp_path / "site")
    monkeypatch.setenv("RANK", "1")
    with another(site / "server"):
        assert "exists already; choose another --out, or delete it" in refusal(
            *words("train-server @a.shard.safetensors --preset tiny --steps 2 --cpu --out @server", site)
        )


@dataclass(frozen=True)
class Finished(Record):
    complete: bool


def test_the_second_measurement_is_refused(tmp_path: Path) -> None:
    def folder() -> ReportFolder[Finished]:
        return ReportFolder(tmp_path / "out", "test", lambda *_: Document("", ()))

    with folder() as first:
        first.save(Finished(False))
        with pytest.raises(InputError, match=rf"out is being measured by process {os.getpid()} on "), folder():
            pass
    with folder() as third:
        third.save(Finished(True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
