"""The energy of one head on this machine: trials of whole trajectories between two idle windows, and their times."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from collafuse_benchmarks.energy.measurement import (
    EnergyInterrupted,
    EnergyResult,
    Progress,
    measure_energy,
)
from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.latency.run import Build, prepare
from collafuse_benchmarks.measure.record import Facts, Record
from collafuse_benchmarks.measure.subject import EngineUse, OutputCheck, Subject, describe_engine, describe_subject
from collafuse_benchmarks.measure.summary import Summary, summarise
from collafuse_benchmarks.measure.workload import Workload, check_engine
from collafuse_runtimes.device.state import DeviceState, changes, read_device_state
from collafuse_runtimes.engines import Engine, EngineOptions, open_engine

KIND = "energy"


@dataclass(frozen=True)
class Calls(Record):
    """Times of every head call of the trials, in order."""

    derived: ClassVar = ("summary",)
    samples_ms: tuple[float, ...]

    @cached_property
    def summary(self) -> Summary | None:
        """Of the samples; None where there are none."""
        return summarise(self.samples_ms)


@dataclass(frozen=True)
class EnergyReport(Record):
    """Outcome of ``measure_head_energy``, also of one that was broken off (``complete`` is false then).

    Attributes:
        subject: head, plan and tensors.
        engine: its name, options and arithmetic.
        batch: images at once.
        build: of TensorRT engines.
        state_before, state_after: of the machine.
        changes: between the two, in words.
        check: of what the engine computes, after the trials.
        complete: whether the measurement came to its end.
        call_ms: times of the head calls.
        energy: windows, trials and what every sensor saw.
    """

    subject: Subject
    engine: EngineUse
    batch: int
    build: Build | None
    state_before: Facts
    state_after: Facts | None
    changes: tuple[str, ...]
    check: OutputCheck | None
    complete: bool
    call_ms: Calls
    energy: EnergyResult


def measure_work_energy(
    work: Callable[[], int],
    found: Found,
    settings: EnergySettings,
    *,
    keep: Callable[[EnergyResult], None],
    on_progress: Progress | None = None,
) -> EnergyResult:
    """``measure_energy`` by the sensors of this machine.

    Args:
        keep: given the result so far between two windows, at the end, and where it is broken off.

    Raises:
        EnergyInterrupted, InputError: as ``measure_energy``.
    """
    try:
        result = measure_energy(
            work, found.sensors, settings, reasons=found.reasons, on_progress=on_progress, on_result=keep
        )
    except EnergyInterrupted as stopped:
        keep(stopped.result)
        raise
    keep(result)
    return result


def measure_head_energy(
    load: Workload,
    engine_name: str,
    options: EngineOptions,
    found: Found,
    settings: EnergySettings,
    *,
    on_report: Callable[[EnergyReport], None] = lambda _: None,
    on_progress: Progress | None = None,
) -> EnergyReport:
    """Measure head calls on one engine; without a sensor their times alone, and why there is no energy.

    Args:
        load: the head and the tensors it is run on.
        found: the sensors of this machine.
        on_report: given the report so far between two windows and at the end, or, broken off, what there is of it.

    Raises:
        KeyboardInterrupt: it was broken off; ``on_report`` has what there is.
        CheckFailed: the engine does not compute what it should (``on_report`` has the report).
        InputError, EngineUnavailable, ArtefactError: as ``open_engine``.
    """
    engine = open_engine(load.bundle, engine_name, options)
    before = read_device_state()
    report_of = _reporter(load, engine, options, before)
    stamps: list[float] = []

    def work() -> int:
        begun = time.perf_counter()
        done = len(load.denoise(engine, len(stamps)))
        stamps.append((time.perf_counter() - begun) * 1e3)
        return done

    def so_far(energy: EnergyResult) -> EnergyReport:
        return report_of(Calls(tuple(stamps[settings.warmup :])), energy)

    with engine:
        result = measure_work_energy(
            work, found, settings, keep=lambda energy: on_report(so_far(energy)), on_progress=on_progress
        )
        check = check_engine([load], engine)
    after = read_device_state()
    changed = tuple(changes(before, after))
    whole = replace(so_far(result), state_after=after.to_dict(), changes=changed, check=check, complete=result.complete)
    on_report(whole)
    check.require_passed(f"{load.bundle.path} on {engine_name}")
    return whole


def _reporter(
    load: Workload, engine: Engine, options: EngineOptions, before: DeviceState
) -> Callable[[Calls, EnergyResult], EnergyReport]:
    """(times, energy) -> the report as long as it is not whole."""
    subject, use = describe_subject(load.bundle, load.handover, load.steps), describe_engine(engine, options)
    build = prepare(load.bundle, engine.name, options)

    def report_of(calls: Calls, energy: EnergyResult) -> EnergyReport:
        return EnergyReport(subject, use, load.batch, build, before.to_dict(), None, (), None, False, calls, energy)

    return report_of
