"""Whatever ends `bench energy` or `bench split`, what was measured until then is in the report."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import run_cli
from fast_clock import FastClock
from heads import default_head, handover
from places import SUPPORT
from scripted_sensor import Scripted, constant
from small_product import product

from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.energy import sensors
from collafuse_benchmarks.energy.measurement import measure_energy
from collafuse_benchmarks.energy.run import EnergyReport, measure_head_energy
from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.latency import cold_start
from collafuse_benchmarks.latency import run as latency
from collafuse_benchmarks.latency.run import LatencyReport, LatencySettings, measure_latency
from collafuse_benchmarks.measure import timing
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.measure.workload import Workload
from collafuse_edge.cli import bench
from collafuse_runtimes.engines import DEFAULTS
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.files.sealed import read_json

pytestmark = pytest.mark.alone  # a clock that runs twenty times as fast makes every wait twenty times as long

SHORT = Mode("quick", warmup=0, runs=10, seconds=0.0, cold_starts=2)
HASTY = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from functools import partial
from fast_clock import FastClock
from collafuse_benchmarks.energy import run as energy_run
from collafuse_benchmarks.measure import timing
timing.MODES["quick"] = timing.Mode("quick", 0, 10, 20.0, 0)
energy_run.measure_energy = partial(energy_run.measure_energy, clock=FastClock())
from collafuse_edge.cli import main
main()
"""


def interrupted(how: signal.Signals, out: Path, has_begun: Callable[[Any], object], *command: object) -> Any:
    """The report of a command that was told to end, and its pages made anew."""
    running = subprocess.Popen(
        [sys.executable, "-c", HASTY, "bench", *map(str, command), "--out", out],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    report, until = out / "report.json", time.monotonic() + 60
    while not (report.exists() and has_begun(json.loads(report.read_text()))):
        assert time.monotonic() < until and running.poll() is None
        time.sleep(0.05)
    running.send_signal(how)
    _, err = running.communicate(timeout=30)
    saved = read_json(report, "collafuse-bench")
    assert saved["complete"] is False
    if how != signal.SIGKILL:
        assert (running.returncode, err.splitlines()[-1]) == (1, "error: stopped")
        assert "This measurement was broken off" in (out / "report.md").read_text()
    made = run_cli("bench", "report", out, "--out", out.with_name("pages"))
    assert made.code == 0 and "broken off" in made.out, made
    return saved


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_energy_keeps_its_windows(how: signal.Signals, tmp_path: Path) -> None:
    write_handover(tmp_path / "x.tc.safetensors", handover(default_head(), 6))
    saved = interrupted(
        how, tmp_path / "out", lambda report: report["energy"]["trials"],
        "energy", default_head().path, tmp_path / "x.tc.safetensors", "--idle-s", 2, "--trials", 100,
    )  # fmt: skip
    assert saved["energy"]["idle_before"]["seconds"] >= 2
    trials = saved["energy"]["trials"]
    assert 1 <= len(trials) < 100
    assert len(saved["call_ms"]["samples_ms"]) >= sum(trial["units"] for trial in trials) > 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_split_keeps_its_turns(how: signal.Signals, tmp_path: Path) -> None:
    def samples(report: Any) -> int:
        return sum(len(row["samples_ms"]) for part in report["parts"] for row in part["rows"])

    saved = interrupted(how, tmp_path / "out", samples, "split", product() / "edge.head")
    assert samples(saved) > 0
    assert saved["parts"][0]["rows"][0]["is_right"] is None


def test_energy_is_told_window_by_window() -> None:
    clock, told = FastClock(), []
    result = measure_energy(
        lambda: clock.sleep(1.0) or 1,  # type: ignore[func-returns-value]
        [Scripted(constant(5.0), clock)],
        EnergySettings(idle_s=2, trials=3, prolong_s=0),
        on_result=told.append,
        clock=clock,
    )
    assert [len(so_far.timeline.trials) for so_far in told] == [0, 1, 2, 3]
    for so_far in told:
        assert not so_far.complete and so_far.timeline.idle_before is not None and so_far.timeline.idle_after is None
        assert so_far.timeline.trials == result.timeline.trials[: len(so_far.timeline.trials)]
    assert result.complete


def test_an_energy_measurement_stopped_during_its_check_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(energy_run, "check_engine", stopped)
    monkeypatch.setattr(energy_run, "measure_energy", partial(measure_energy, clock=FastClock()))
    saved: list[EnergyReport] = []
    with pytest.raises(KeyboardInterrupt):
        measure_head_energy(
            Workload(default_head(), handover(default_head(), 6), 20), "ort-cpu", DEFAULTS,
            Found((), {"rapl": "none here"}), EnergySettings(idle_s=1, trials=1), on_report=saved.append,
        )  # fmt: skip
    assert saved[-1].energy.timeline.idle_after is not None
    assert (saved[-1].complete, saved[-1].check) == (False, None)
    kept = saved[-1].to_dict()["energy"]
    assert (kept["energy"], kept["reason"]) == (None, "rapl: none here")


def test_split_keeps_the_energy_of_a_way_that_was_broken_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop_in_the_second_trial() -> Callable[[str, float], None]:
        def show(phase: str, share: float) -> None:
            if "trial 2" in phase and share > 0.3:
                raise KeyboardInterrupt

        return show

    clock = FastClock()
    found = Found((Scripted(constant(5.0), clock),), {})
    monkeypatch.setitem(timing.MODES, "quick", SHORT)
    monkeypatch.setattr(timing, "SETTLE_S", 0.0)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # torch in the same process makes it slow
    monkeypatch.setattr(sensors, "find_sensors", lambda gpu: found)
    monkeypatch.setattr(energy_run, "measure_energy", partial(measure_energy, clock=clock))
    monkeypatch.setattr(bench, "_phase_printer", stop_in_the_second_trial)
    result = run_cli("bench", "split", product() / "edge.head", "--threads", 1, "--out", tmp_path / "out")
    assert (result.code, result.err.splitlines()[-1]) == (1, "error: stopped")
    (part,) = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]
    energy = part["rows"][0]["energy"]
    assert (len(energy["trials"]), energy["complete"], part["complete"]) == (1, False, False)
    assert energy["energy"][0]["gross"]["trials"] == 1
    assert energy["energy"][0]["samples"]["times"][-1] > energy["trials"][0]["window"]["end"] + 2
    assert part["rows"][1]["energy"] is None


def test_latency_keeps_what_came_before_a_cold_start_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts: list[None] = []

    def second_fails(*_: object) -> cold_start.ColdStart:
        starts.append(None)
        if len(starts) == 2:
            raise CheckFailed("a fresh process could not run")
        return cold_start.ColdStart(5.0, 1.0, 1.0, 1.0, 1.0)

    monkeypatch.setattr(latency, "cold_start", second_fails)
    saved: list[LatencyReport] = []
    with pytest.raises(CheckFailed):
        measure_latency(
            default_head(), tmp_path, handover(default_head(), 6), LatencySettings(SHORT, batches=(1, 2)),
            on_report=saved.append,
        )  # fmt: skip
    assert [memory.batch for memory in saved[-1].memory] == [1, 2]
    assert saved[-1].check is not None and saved[-1].check.passed
    assert (len(saved[-1].cold_starts), saved[-1].complete) == (1, False)
