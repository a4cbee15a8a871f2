"""Every command that writes, on a disk that fills up: one line that names the path, exit code 2, the old state intact.

The disk is a small tmpfs where this process may mount one; writing past RLIMIT_FSIZE stands in for it everywhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import done
from file_size import file_size_limit
from small_product import copy_product, listing, product, refused, words

from collafuse_edge.cli.parts import training_options
from collafuse_edge.upload.shard import read_shard

PAGE = 4096
Full = Callable[[int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Disk:
    """A folder with a copy of the product, and how to leave it only so many bytes."""

    folder: Path
    full: Full
    reason: str
    is_real: bool


def filler(ballast: Path) -> Full:
    @contextmanager
    def full(leave: int) -> Iterator[None]:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(PAGE)) == PAGE:
                    pass
            except OSError:
                pass
            file.truncate(max(file.tell() - leave // PAGE * PAGE, 0))
        try:
            yield
        finally:
            ballast.unlink()

    return full


@pytest.fixture(params=["tmpfs", "file size limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "file size limit":
        yield Disk(copy_product(tmp_path / "site"), file_size_limit, "File too large", is_real=False)
        return
    mount = tmp_path / "disk"
    mount.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(mount)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(product(), mount / "site")
        yield Disk(mount / "site", filler(mount / "ballast"), "No space left on device", is_real=True)
    finally:
        subprocess.run(["umount", mount], check=True)


TRAIN = "train-client --data @data.npz --plan @plan.json --preset tiny --batch-size 4 --warmup-steps 0 --cpu --out @new"
WRITERS = [  # command, bytes left on the disk, bytes a file may have
    ("init --size 8 --out @new", 0, 100),
    ("upload --data @data.npz --plan @plan.json --key @upload.key --out @new", 0, 500),
    ("upload --data @data.npz --plan @plan.json --key @new --out @shard", 0, 50),
    (f"{TRAIN} --steps 2", 1_500_000, 50_000),  # the disk has room for the weights, not for their moving average
    ("handoff --plan @plan.json --server @server --count 2 --out @new", 0, 500),
    ("infer @edge.head @x.tc.safetensors --out @new", 2 * PAGE, 600),  # room for pictures, not for images.npz
]


@pytest.mark.parametrize(("command", "leave", "limit"), WRITERS, ids=[command for command, *_ in WRITERS])
def test_nothing_is_half_written(
    command: str, leave: int, limit: int, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    before = listing(disk.folder)
    with disk.full(leave if disk.is_real else limit):
        line = refused(capfd, *words(command, disk.folder))
    assert line.startswith(f"error: cannot write {disk.folder}/")
    assert re.search(rf"\bnew\b.*: {disk.reason}; nothing was changed: free space", line)
    assert listing(disk.folder) == before
    done(*words(command, disk.folder))


def test_an_older_file_is_intact(disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    before = listing(disk.folder)
    with disk.full(0 if disk.is_real else 100):
        for command in (
            "init --size 8 --timesteps 10 --cut-ratio 0.5 --out @plan.json",
            "upload --data @data.npz --plan @plan.json --key @upload.key --dtype float32 --overwrite "
            "--out @a.shard.safetensors",
            "handoff --plan @plan.json --server @server --count 1 --out @x.tc.safetensors --overwrite",
        ):
            assert disk.reason in refused(capfd, *words(command, disk.folder))
    assert listing(disk.folder) == before


def test_an_older_head_is_intact(
    disk: Disk, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing takes seconds and writes nothing: its result is that of the head exported before."""
    model = (disk.folder / "edge.head" / "model.onnx").read_bytes()
    monkeypatch.setattr("collafuse_export.onnx_graph.to_onnx", lambda *_: model)
    before = listing(disk.folder)
    export = words("export @head --sampler ddim --steps 5,2 --out @edge.head", disk.folder)
    with disk.full(len(model) + PAGE if disk.is_real else len(model) - 1):  # no room for the other files, or the model
        line = refused(capfd, *export)
    assert re.search(rf"^error: cannot write {disk.folder}/.*edge\.head.*: {disk.reason}", line)
    assert listing(disk.folder) == before
    done(*export)


def test_training_keeps_its_last_state_and_goes_on(
    disk: Disk, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after the third step has been saved: the fourth is lost, the third is not."""
    train = words(f"{TRAIN} --steps 6 --checkpoint-minutes 0", disk.folder)
    state = disk.folder / "new.resume.safetensors"
    with ExitStack() as until_freed:

        @contextmanager
        def progress(*_: object) -> Iterator[Callable[[int, str], None]]:
            yield lambda step, _: until_freed.enter_context(disk.full(1_000_000)) if step == 4 else None

        monkeypatch.setattr(training_options, "progress", progress)
        line = refused(capfd, *train)
        assert f"cannot write {state}: {disk.reason}; nothing was changed: free space" in line
        assert json.loads(read_payload(state))["progress"]["step"] == 3
    monkeypatch.undo()
    left = {path.name for path in disk.folder.iterdir()} - {path.name for path in product().iterdir()}
    assert left == {state.name}
    resumed = json.loads(done(*train, "--resume", "--json"))
    unbroken = json.loads(done(*train[:-5], disk.folder / "unbroken", "--steps", 6, "--json"))
    assert resumed["steps"] == 6
    assert resumed["weights_sha256"] == unbroken["weights_sha256"]
    assert not state.exists()


@pytest.mark.parametrize("arguments", ["init --size 8 --out @new", "verify @edge.head --json"])
def test_a_full_disk_behind_standard_output(arguments: str, tmp_path: Path) -> None:
    """`collafuse-edge ... > report` says that the report is incomplete; what was written stays."""
    folder = copy_product(tmp_path / "site")
    command = [sys.executable, "-m", "collafuse_edge", *words(arguments, folder)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert (
        ended.stderr == "error: cannot print the result: No space left on device; free space or choose another place\n"
    )
    assert (folder / "new").exists() == arguments.startswith("init")


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "collafuse_edge", "init", "--size", "8", "--out", str(tmp_path / "plan.json")]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert (tmp_path / "plan.json").exists()


def test_a_command_killed_while_it_writes(tmp_path: Path) -> None:
    """kill -9 as soon as the new file begins to exist: the old one is whole (or, were the kill late, the new one)."""
    plan, shard = tmp_path / "plan.json", tmp_path / "big.shard"
    np.savez(tmp_path / "data.npz", images=np.zeros((600, 64, 64), np.uint8))
    done("init", "--size", 64, "--out", plan)
    upload = (
        "upload", "--data", tmp_path / "data.npz", "--plan", plan, "--key", tmp_path / "key", "--out", shard,
        "--overwrite",
    )  # fmt: skip
    done(*upload, "--limit", 2)
    before = shard.read_bytes()
    command = [sys.executable, "-m", "collafuse_edge", *map(str, upload), "--dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not list(tmp_path.glob(".*.partial")):
            time.sleep(0.001)
        process.kill()
    assert shard.read_bytes() == before or len(read_shard(shard)) == 600
    visible = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")}
    assert visible == {"data.npz", "plan.json", "key", "key.ledger.json", "big.shard"}
    done(*upload)
    assert len(read_shard(shard)) == 600


def read_payload(path: Path) -> str:
    data = path.read_bytes()
    payload: str = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["collafuse"]
    return payload
