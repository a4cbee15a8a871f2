"""The front of ways runs, small, from images to its record."""

import json
import runpy
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_cli
from places import ROOT
from small_product import write_extractor

pytest.importorskip("torch")
sys.path.append(str(ROOT / "benchmarks" / "experiments" / "front"))

import measuring
import reporting
import servers
import settings
import timing
import training
from ways import DDIM, TODAY, TWO_M, Way

FRONT = ROOT / "benchmarks" / "experiments" / "front"
CLIENTS, SEEDS, SIDE, HELD_OUT = ("glioma_tumor", "pituitary_tumor"), (0,), 8, 12


class Inline:
    """An executor that works at once, in this process."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Any, *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work(*arguments))
        return future


def in_process(_: Path, *arguments: object) -> dict[str, Any]:
    line = run_cli(*arguments, "--json")
    if line.code:
        assert line.code == 1 and arguments[0] == "distill", line  # a head of one step may be refused
        raise SystemExit(line.err)
    result: dict[str, Any] = json.loads(line.out)
    return result


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clients of 8x8 noise, a training step a network, today's way and a distilled one, four trials of settings."""
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "weights").mkdir()
    np.savez(
        tmp_path / "data" / "brain_mri_64.npz",
        images=random.integers(0, 256, (80, SIDE, SIDE), np.uint8),
        labels=np.repeat([0, 1], 40),
        split=np.full(80, "train"),
        label_names=np.array(CLIENTS),
        near_dup_group=np.full(80, -1),
    )
    write_extractor(tmp_path / "weights" / "squeezenet1_0_features.onnx")
    changes, quickly = settings.CHANGES[:2], ("--batch-size", 4, "--warmup-steps", 0, "--cpu")
    quick = {
        "CLIENTS": CLIENTS, "SEEDS": SEEDS, "SIZE": SIDE, "HELD_OUT": HELD_OUT, "COUNT": HELD_OUT, "CALIBRATION": 8,
        "SHOWN": 3, "ROUNDS": 2, "run": in_process, "ThreadPoolExecutor": Inline, "ProcessPoolExecutor": Inline,
        "TRAINING": quickly, "DISTILL": quickly,
        "HEADS": {"small": (1, 1e-3)}, "STUDENTS": {"small": (2, 3e-4)}, "CHANGES": changes,
        "SERVER": ("--preset", "tiny", "--steps", 1, "--learning-rate", 1e-3),
        "SERVERS": {name: training.SERVERS[name] for name in ("v0.2", "epsilon0.2")},
        "STAGES": ((("small", 0.2, (2,)), ("server", "v0.2", ()), ("server", "epsilon0.2", ())),),
        "SERVER_WAYS": ((DDIM, 4), (TWO_M, 3)),
        "WAYS": (TODAY, Way("small", 0.2, DDIM, 2, "distilled")),
        "TRIALS": tuple(settings.Trial(side, change, 0) for change in changes for side in settings.SIDES),
    }  # fmt: skip
    for module in (measuring, reporting, servers, settings, timing, training):
        for name, value in quick.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    measuring.own_images.cache_clear()
    measuring.real_features.cache_clear()
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Inline)
    monkeypatch.setattr("collafuse_edge.cli.distilling.TENSORS", 2 * 40)
    monkeypatch.setenv("COLLAFUSE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_a_small_front_runs_from_images_to_its_record_and_again_without_work(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = small / "results"
    stages = [word for stage in ("train", "score", "time", "settings", "publish") for word in ("--stage", stage)]
    monkeypatch.setattr(sys, "argv", ["front", str(small / "out"), "--results", str(results), *stages])
    runpy.run_path(str(FRONT / "__main__.py"), run_name="__main__")
    record = json.loads((results / "front.json").read_text())
    measured = {(p["name"], p["seed"]) for p in record["points"] if "server" in p}
    assert (TODAY.name, 0) in measured
    assert all(np.isfinite(p["server"]["kid"]) for p in record["points"] if "server" in p)
    assert TODAY.name in record["times"]["ways"]
    assert [(s["server"], s["seed"]) for s in record["servers"]] == [
        (name, seed) for name in ("v0.2", "epsilon0.2") for seed in SEEDS
    ]
    assert [(s["side"], s["change"]) for s in record["settings"]] == [
        (side, list(change)) for change in settings.CHANGES for side in settings.SIDES
    ]
    assert "| head | nothing |" in (results / "front.md").read_text()
    assert (results / "front.png").stat().st_size > 1000 and "<svg" in (results / "front.svg").read_text()
    monkeypatch.setattr(training, "run", None)
    monkeypatch.setattr(settings, "run", None)
    sys.argv.remove("train")
    sys.argv.remove("--stage")
    made = (results / "front.md").read_bytes()
    runpy.run_path(str(FRONT / "__main__.py"), run_name="__main__")
    before, after = (text.split(b"## c = 0.2")[0] for text in (made, (results / "front.md").read_bytes()))
    assert before == after
