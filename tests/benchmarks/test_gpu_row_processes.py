"""Each row of the GPU table is a process: an error, a crash or a hang is that row's reason; rows can be chosen."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from places import ROOT

from collafuse_runtimes.errors import CheckFailed, EngineUnavailable

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))

import _gpu_rows
import gpu_latency
from _gpu_rows import ROWS, Row, RowProcess, serve

ROW = Row("tensorrt", "fp32")


class Doubling:
    """A runner that does as its mood says."""

    def __init__(self, mood: str) -> None:
        self.mood = mood

    def step(self, x: Any, k: int) -> tuple[Any, float]:
        return 2 * x, 0.5 + k

    def trajectory(self, x_tc: Any) -> tuple[Any, float]:
        if self.mood == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.mood == "hang":
            time.sleep(60)
        if self.mood == "raise":
            raise RuntimeError("CUDA error:\n an illegal memory access")
        if self.mood == "check":
            raise CheckFailed("no number")
        return x_tc + os.getpid(), 3.0


@contextmanager
def opened(mood: str) -> Iterator[Doubling]:
    if mood == "unavailable":
        raise EngineUnavailable("no GPU here")
    if mood == "dead":
        os._exit(3)
    yield Doubling(mood)


def serve_doubling(connection: Connection, mood: str) -> None:
    serve(connection, opened(mood))


def process(mood: str = "") -> RowProcess:
    return RowProcess(ROW, serve_doubling, (mood,))


def test_a_row_runs_in_another_process_and_its_results_come_back() -> None:
    x = np.full((1, 1, 2, 2), 1.5, np.float32)
    with process() as row, process() as other:
        after, ms = row.step(x, 2)
        np.testing.assert_array_equal(after, 2 * x)
        assert ms == 2.5
        pids = {float(one.trajectory(0 * x)[0][0, 0, 0, 0]) for one in (row, other)}
    assert len(pids) == 2 and os.getpid() not in pids


@pytest.mark.parametrize(
    ("mood", "kind", "words"),
    [
        ("crash", EngineUnavailable, "tensorrt: its process was ended by SIGSEGV"),
        ("hang", EngineUnavailable, "tensorrt: no answer within 2 s; its process was stopped"),
        ("raise", EngineUnavailable, "RuntimeError: CUDA error: an illegal memory access"),
        ("check", CheckFailed, "no number"),
    ],
)
def test_what_befalls_one_row_is_its_reason_and_the_others_go_on(
    mood: str, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    with process(mood) as bad, process() as good:
        monkeypatch.setattr(_gpu_rows, "CALL_S", 2.0)
        with pytest.raises(kind) as error:
            bad.trajectory(x)
        assert type(error.value) is kind and str(error.value) == words
        monkeypatch.setattr(_gpu_rows, "CALL_S", 30.0)
        assert good.trajectory(x)[1] == 3.0
        if mood in ("crash", "hang"):
            with pytest.raises(EngineUnavailable, match="its process was ended by SIG"):
                bad.step(x, 0)


@pytest.mark.parametrize(("mood", "words"), [("unavailable", "no GPU here"), ("dead", "its process ended, code 3")])
def test_a_row_that_does_not_open_says_why(mood: str, words: str) -> None:
    with pytest.raises(EngineUnavailable, match=words):
        process(mood)


def chosen(monkeypatch: pytest.MonkeyPatch, *patterns: str) -> list[str]:
    options = [option for pattern in patterns for option in ("--rows", pattern)]
    monkeypatch.setattr(sys, "argv", ["gpu_latency.py", *options])
    return [str(row) for row in gpu_latency.parse().chosen]


def test_rows_are_chosen_by_name_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch) == [str(row) for row in ROWS]
    assert chosen(monkeypatch, "tensorrt fp16") == ["tensorrt fp16"]
    assert chosen(monkeypatch, "ort-cuda *", "tensorrt int8*") == [
        "ort-cuda fp32",
        "ort-cuda fp16",
        "tensorrt int8-trt",
    ]
    assert not any("max-autotune" in name for name in chosen(monkeypatch, "torch eager *", "ort-*", "tensorrt*"))


def test_a_pattern_of_no_row_is_refused_with_the_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        chosen(monkeypatch, "tensorrt bf16")
    assert ended.value.code == 2
    assert "--rows 'tensorrt bf16' is no row; valid, with * and ?: torch eager fp32, " in capsys.readouterr().err


def test_the_report_holds_the_chosen_rows_alone() -> None:
    row = Row("tensorrt", "fp16")
    report = gpu_latency.make_report([row], {}, {row: "not run"}, 3)
    assert [(entry["by"], entry["precision"], entry["reason"]) for entry in report["rows"]] == [
        ("tensorrt", "fp16", "not run")
    ]
