"""`bench latency` times what it says, checks what it timed, and loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from command_line import refusal, run_cli
from fake_cuda import MEMORY, FakeCuda
from fake_tensorrt import FakeTensorrt
from heads import RGB_PLAN, calibration, conditional_head, default_head, handover, rgb_head

from collafuse_benchmarks.latency.run import LatencyReport, LatencySettings, measure_latency
from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.memory import free_gpu_bytes
from collafuse_benchmarks.measure.subject import describe_engine
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.pages.folder import read_report
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines import DEFAULTS, EngineOptions
from collafuse_runtimes.engines.base import Trajectory
from collafuse_runtimes.engines.fake_engine import FakeEngine
from collafuse_runtimes.engines.ort.cpu import OrtCpuEngine
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.handover import write_handover

SHORT = Mode("quick", warmup=2, runs=12, seconds=0.0, cold_starts=0)


@pytest.fixture(autouse=True)
def short_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.MODES, "quick", SHORT)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    write_handover(tmp_path / "x.tc.safetensors", handover(default_head(), 6))
    return tmp_path / "x.tc.safetensors"


def series(payload: dict[str, Any], scope: str, batch: int = 1) -> dict[str, Any]:
    (found,) = (s for s in payload["series"] if (s["scope"], s["batch"]) == (scope, batch))
    return dict(found)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("latency")
    write_handover(folder / "x.tc.safetensors", handover(default_head(), 6))
    with mock.patch.dict(timing.MODES, quick=replace(SHORT, cold_starts=1)):
        result = run_cli("bench", "latency", default_head().path, folder / "x.tc.safetensors", "--batch", "1,3",
                         "--threads", 1, "--out", folder / "out", "--json")  # fmt: skip
    assert result.code == 0, result
    found: dict[str, Any] = json.loads(result.out)
    assert found == read_report(folder / "out", "latency")
    return found


@pytest.mark.alone
def test_three_scopes_are_kept_apart(report: dict[str, Any]) -> None:
    for batch in (1, 3):
        step, call, whole = (series(report, s, batch) for s in ("step", "head call", "end to end"))
        assert [len(s["samples_ms"]) for s in (step, call, whole)] == [12 * 19, 12, 12]
        steps = 20 * step["summary"]["minimum"]
        assert 0.3 < steps / call["summary"]["minimum"] < 1.3
        assert whole["summary"]["minimum"] > 0.5 * call["summary"]["minimum"]
    assert series(report, "head call", 3)["summary"]["minimum"] > series(report, "head call")["summary"]["minimum"]


def test_start_memory_and_machine_are_in_the_report(report: dict[str, Any]) -> None:
    (start,) = report["cold_starts"]
    inner = sum(start[name] for name in ("import_ms", "read_ms", "load_ms", "first_call_ms"))
    assert 0 < inner < start["total_ms"]
    assert report["load_ms"] > 0
    assert [row["batch"] for row in report["memory"]] == [1, 3]
    for row in report["memory"]:
        assert 30e6 < row["process_peak"] < 8e9
        assert (row["device"], row["device_reason"]) == (None, "the engine runs on the CPU")
    assert report["state_before"]["packages"]["numpy"] == np.__version__
    assert report["state_after"] is not None
    assert report["complete"] is True
    assert report["check"]["passed"] is True and report["check"]["batches_differ"] is True
    assert report["engine"] == {"name": "ort-cpu", "options": {"threads": 1}, "arithmetic": "fp32", "tf32": None}


def spin(trajectory: Trajectory, step_ms: float) -> Float32Array:
    """A trajectory of known cost: every step ends ``step_ms`` of this thread's own time after the one before."""
    end = time.thread_time()
    x = trajectory.x_tc + 0
    for k in range(trajectory.rows.steps):
        end += step_ms / 1e3
        while time.thread_time() < end:
            pass
        if trajectory.on_step is not None:
            trajectory.on_step(k, x)
    return x


@pytest.mark.alone
def test_own_overhead_is_at_most_one_percent(tensors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an engine that takes 20 times 1 ms; on the clock of this thread, which stands while others have the CPU.

    Work beside this test still slows its thread, so the quietest of three measurements counts.
    """
    monkeypatch.setattr(FakeEngine, "_denoise", lambda _, trajectory: spin(trajectory, 1.0))
    monkeypatch.setattr(time, "perf_counter", time.thread_time)
    settings = LatencySettings(Mode("t", 3, 40, 0.0, 0), "fake")
    calls, steps = list[float](), list[float]()
    for _ in range(3):
        saved: list[LatencyReport] = []
        with pytest.raises(CheckFailed, match="golden trajectories do not hold"):  # it computes nothing
            measure_latency(default_head(), tensors, handover(default_head(), 6), settings, on_report=saved.append)
        call, step = (series(saved[-1].to_dict(), scope)["summary"] for scope in ("head call", "step"))
        calls.append(call["minimum"])
        steps.append(step["median"])
        if calls[-1] <= 20.2 and abs(steps[-1] - 1) <= 0.01:
            break
    assert 20.0 <= min(calls) <= 20.2
    assert min(steps) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("batch", [1, 3])
def test_times_of_a_wrong_engine_are_refused(
    batch: int, tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OrtCpuEngine._denoise
    first: list[Float32Array] = []

    def every_run_gives_the_first_image(self: OrtCpuEngine, trajectory: Trajectory) -> Float32Array:
        result = right(self, trajectory)
        if trajectory.on_step is not None or len(trajectory.x_tc) != batch:
            return result
        first.append(result)
        return first[0].copy()

    monkeypatch.setattr(OrtCpuEngine, "_denoise", every_run_gives_the_first_image)
    line = run_cli("bench", "latency", default_head().path, tensors, "--batch", "1,3", "--out", tmp_path / "out")
    assert line.code == 1
    assert "error: " in line.err and "two different batches gave the same images, so its times mean nothing" in line.err
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["check"]["passed"] is False
    assert "IS WRONG" in (tmp_path / "out" / "report.md").read_text()


def test_conditional_and_stochastic_heads_are_timed(tmp_path: Path) -> None:
    for bundle in (conditional_head(), rgb_head()):
        path = tmp_path / f"{bundle.path.stem}.tc.safetensors"
        write_handover(path, handover(bundle, 2))
        report = measure_latency(bundle, path, handover(bundle, 2), LatencySettings(SHORT, batches=(2,)))
        assert report.complete


def test_paths_stay_on_the_machine(tmp_path: Path) -> None:
    told = describe_engine(FakeEngine(default_head(), DEFAULTS), EngineOptions(cache=tmp_path / "engines", threads=2))
    assert told.options == {"cache": "engines", "threads": 2}


def test_a_trajectory_of_one_step_has_no_step_scope(tensors: Path) -> None:
    report = measure_latency(default_head(), tensors, handover(default_head(), 6), LatencySettings(SHORT, steps=1))
    step = series(report.to_dict(), "step")
    assert step["samples_ms"] == () and step["summary"] is None
    assert "no step between two others" in step["reason"]


def test_a_gpu_engine_is_built_first_and_its_steps_are_timed_by_cuda_events(
    tensors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a stand-in GPU whose kernels take 1 ms, each 1/1024 ms longer than the one before."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    cuda = FakeCuda().install(monkeypatch)
    FakeTensorrt(default_head(), cuda).install(monkeypatch)
    options = EngineOptions(cache=tmp_path / "cache")
    mode = Mode("t", warmup=1, runs=12, seconds=0.0, cold_starts=0)
    found = []
    for _ in range(2):
        with pytest.raises(CheckFailed, match="golden trajectories do not hold"):  # it computes another network
            measure_latency(
                default_head(), tensors, handover(default_head(), 6), LatencySettings(mode, "tensorrt", options),
                on_report=lambda report: found.append(report.to_dict()),
            )  # fmt: skip
    first, again = found[len(found) // 2 - 1], found[-1]
    assert first["build"]["hit"] is False and again["build"]["hit"] is True
    step = series(first, "step")
    assert step["clock"] == "CUDA events"
    assert all(1.0 <= ms < 1.2 for ms in step["samples_ms"])
    assert series(first, "head call")["clock"] == "host clock"
    (memory,) = first["memory"]
    assert memory["device"] >= 2 * 4 * 16 * 16 and memory["device_reason"] is None


def test_an_integrated_gpu_has_no_memory_figure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its free memory is the host's, which the process's own peak counts already."""
    cuda = FakeCuda().install(monkeypatch)
    assert free_gpu_bytes(0) == (MEMORY, None)
    cuda.integrated = True
    cuda.calls.clear()
    assert free_gpu_bytes(0) == (None, "an integrated GPU uses the host's memory: it is part of the process's")
    assert "cudaMemGetInfo" not in cuda.names()
    value, reason = free_gpu_bytes(3)
    assert value is None and reason is not None and "GPU 3 does not exist" in reason


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--batch", "0"), "batch 0 out of range: must be 1 to 1024"),
        (("--batch", "2,2"), "batch sizes 2, 2: valid: one or more different sizes"),
        (("--batch", "two"), "--batch 'two' is not a list of integers; valid: for example 20,10,5"),
        (("--mode", "slow"), "unknown mode 'slow'; valid: quick, report"),
        (("--steps", "3"), "3"),
        (("--engine", "ort-gpu"), "unknown engine 'ort-gpu'"),
        (("--spinning", "--engine", "fake"), "engine fake takes no option spinning"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(
    options: tuple[str, ...], line: str, tensors: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert line in refusal("bench", "latency", default_head().path, tensors, *options, "--out", out)
    assert not out.exists()


def test_tensors_of_another_plan_are_refused(tmp_path: Path) -> None:
    write_handover(tmp_path / "x.tc.safetensors", calibration(RGB_PLAN, 2))
    line = refusal("bench", "latency", default_head().path, tmp_path / "x.tc.safetensors")
    assert "plans disagree on image_shape" in line


def test_a_folder_with_files_is_not_written_into(tensors: Path, tmp_path: Path) -> None:
    line = refusal("bench", "latency", default_head().path, tensors, "--out", tmp_path)
    assert "a folder of other files is there, not a bench report; choose another name" in line


def has_step_samples(report: Path, least: int) -> bool:
    if not report.exists():
        return False
    found = [s for s in json.loads(report.read_text())["series"] if s["scope"] == "step"]
    return any(len(s["samples_ms"]) >= least for s in found)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_keeps_its_samples(how: signal.Signals, tensors: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HASTY,
            "bench",
            "latency",
            default_head().path,
            tensors,
            "--mode",
            "report",
            "--out",
            out,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    until = time.monotonic() + 120
    while not has_step_samples(out / "report.json", 20):
        assert time.monotonic() < until and running.poll() is None
        time.sleep(0.05)
    running.send_signal(how)
    _, err = running.communicate(timeout=120)
    saved = json.loads((out / "report.json").read_text())
    assert saved["complete"] is False
    assert len(series(saved, "step")["samples_ms"]) > 19
    if how != signal.SIGKILL:
        assert (running.returncode, err.splitlines()[-1]) == (1, "error: stopped")
        assert "This measurement was broken off" in (out / "report.md").read_text()
    made = run_cli("bench", "report", out, "--out", tmp_path / "pages")
    assert made.code == 0 and "broken off" in made.out


HASTY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from collafuse_benchmarks.measure import timing
timing.SECONDS_BETWEEN_SAVES = 0.2
from collafuse_edge.cli import main
main()
"""
