"""The energy of one head on this machine: trials of whole trajectories between two idle windows, and their times."""

import time
from collections.abc import Callable
from typing import Any

from collafuse_benchmarks.energy.measurement import EnergyInterrupted, Progress, measure_energy
from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.latency.run import prepare
from collafuse_benchmarks.measure.summary import summarise
from collafuse_benchmarks.measure.workload import (
    Workload,
    check_engine,
    describe_engine,
    describe_subject,
    require_right,
)
from collafuse_runtimes.device.state import changes, read_device_state
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover

KIND = "energy"


def measure_head_energy(
    bundle: HeadBundle,
    handover: Handover,
    found: Found,
    settings: EnergySettings,
    *,
    engine_name: str,
    options: EngineOptions,
    steps: int | None = None,
    batch: int = 1,
    on_report: Callable[[dict[str, Any]], None] = lambda _: None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure head calls on one engine; without a sensor their times alone, and why there is no energy.

    Args:
        found: the sensors of this machine.
        on_report: given the report so far between two windows and at the end, or, broken off, what there is of it.

    Returns:
        The report, JSON-ready: ``subject``, ``engine``, ``batch``, ``build``, ``state_before``, ``state_after``,
        ``changes``, ``call_ms`` (``samples_ms`` and ``summary`` of every head call of the trials), ``energy``
        (``EnergyResult.to_dict``), ``check``, ``complete``.

    Raises:
        KeyboardInterrupt: it was broken off; ``on_report`` has what there is.
        CheckFailed: the engine does not compute what it should (``on_report`` has the report).
        InputError, PlanMismatch, EngineUnavailable, ArtefactError: as ``open_engine``.
    """
    count = bundle.row_range(steps).steps
    load = Workload(bundle, handover, count, batch)
    engine = open_engine(bundle, engine_name, options)
    before = read_device_state()
    report: dict[str, Any] = {
        "subject": describe_subject(bundle, handover, count),
        "engine": describe_engine(engine, options),
        "batch": batch,
        "build": prepare(bundle, engine_name, options),
        "state_before": before.to_dict(),
        "state_after": None,
        "changes": [],
        "check": None,
        "complete": False,
    }
    stamps: list[float] = []

    def work() -> int:
        begun = time.perf_counter()
        done = len(load.denoise(engine, len(stamps)))
        stamps.append((time.perf_counter() - begun) * 1e3)
        return done

    def with_energy(energy: dict[str, Any]) -> dict[str, Any]:
        counted = stamps[settings.warmup :]
        summary = summarise(counted)
        calls = {"samples_ms": counted, "summary": None if summary is None else summary.to_dict()}
        return {**report, "call_ms": calls, "energy": energy}

    with engine:
        try:
            result = measure_energy(
                work,
                found.sensors,
                settings,
                reasons=found.reasons,
                on_progress=on_progress,
                on_result=lambda so_far: on_report(with_energy(so_far.to_dict())),
            )
        except EnergyInterrupted as stopped:
            on_report(with_energy(stopped.result.to_dict()))
            raise
        on_report(with_energy(result.to_dict()))
        report["check"] = check_engine([load], engine)
    after = read_device_state()
    report |= {"state_after": after.to_dict(), "changes": list(changes(before, after)), "complete": result.complete}
    whole = with_energy(result.to_dict())
    on_report(whole)
    require_right(report["check"], f"{bundle.path} on {engine_name}")
    return whole
