"""How long one head takes on this machine, in three scopes that are never mixed.

step        one denoising step inside a trajectory, nothing else
head call   a whole trajectory, host tensor in to host tensor out, copies to and from a GPU included
end to end  from a hand-over file to PNG images in memory: read, check, finish, encode
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from collafuse_benchmarks.latency.cold_start import ColdStart, cold_start
from collafuse_benchmarks.measure.memory import Memory, free_gpu_bytes, peak_bytes, reset_peak
from collafuse_benchmarks.measure.record import Facts, Record
from collafuse_benchmarks.measure.subject import EngineUse, OutputCheck, Subject, describe_engine, describe_subject
from collafuse_benchmarks.measure.summary import Summary, summarise
from collafuse_benchmarks.measure.timing import Measure, Mode, collect, host_timed
from collafuse_benchmarks.measure.workload import Workload, check_engine
from collafuse_runtimes.device.state import changes, read_device_state
from collafuse_runtimes.engines import DEFAULTS, ENGINES, Engine, EngineOptions, open_engine
from collafuse_runtimes.engines.trt.binding import MODULES
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.files.handover import Handover

KIND = "latency"
SCOPES = ("step", "head call", "end to end")
HOST = "host clock"
EVENTS = "CUDA events"


@dataclass(frozen=True)
class Series(Record):
    """Samples of one scope and batch; with ``reason`` where there are none.

    Attributes:
        scope: one of SCOPES.
        batch: images at once.
        clock: what was read.
        samples_ms: every sample, in order.
    """

    derived: ClassVar = ("summary",)
    scope: str
    batch: int
    clock: str
    samples_ms: tuple[float, ...]
    reason: str | None = None

    @cached_property
    def summary(self) -> Summary | None:
        """Of the samples; None where there are none."""
        return summarise(self.samples_ms)


@dataclass(frozen=True)
class Build(Record):
    """How a TensorRT engine came to be there.

    Attributes:
        hit: whether it was in the cache.
        reason: why, or why not.
        seconds: of its build.
        inspection: the types of its convolutions, in words.
    """

    hit: bool
    reason: str
    seconds: float
    inspection: str


@dataclass(frozen=True)
class LatencyReport(Record):
    """Outcome of ``measure_latency``, also of one that was broken off (``complete`` is false then).

    Attributes:
        subject: head, plan and tensors.
        engine: its name, options and arithmetic.
        mode: how long was measured.
        batches: images at once, in the order measured.
        state_before, state_after: of the machine.
        changes: between the two, in words.
        build: of TensorRT engines.
        load_ms: entering the engine once, in this process; a build is not in it.
        cold_starts: fresh processes.
        series: one per scope and batch.
        memory: one per batch.
        check: of what the engine computes, after the timing.
        complete: whether the measurement came to its end.
    """

    subject: Subject
    engine: EngineUse
    mode: Mode
    batches: tuple[int, ...]
    state_before: Facts
    state_after: Facts | None = None
    changes: tuple[str, ...] = ()
    build: Build | None = None
    load_ms: float | None = None
    cold_starts: tuple[ColdStart, ...] = ()
    series: tuple[Series, ...] = ()
    memory: tuple[Memory, ...] = ()
    check: OutputCheck | None = None
    complete: bool = False


OnReport = Callable[[LatencyReport], None]


@dataclass(frozen=True)
class LatencySettings:
    """How a head is measured.

    Attributes:
        mode: how long.
        engine: its name.
        options: what it is told.
        steps: a baked step count; None takes the bundle's first.
        batches: images at once, each measured in all scopes.

    Raises:
        InputError: no batch size, or one twice.
    """

    mode: Mode
    engine: str = "ort-cpu"
    options: EngineOptions = DEFAULTS
    steps: int | None = None
    batches: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if not self.batches or len(set(self.batches)) != len(self.batches):
            named = ", ".join(map(str, self.batches)) or "none"
            raise InputError(f"batch sizes {named}: valid: one or more different sizes, for example 1,4,8")


@dataclass
class _Run:
    """One measurement as it grows; everything that changes its report is told to ``on_report``."""

    report: LatencyReport
    engine: Engine
    free_before: tuple[int | None, str | None]
    gpu: int
    on_report: OnReport
    on_stage: Callable[[str], None]

    def grow(self, **fields: Any) -> None:
        self.report = replace(self.report, **fields)
        self.on_report(self.report)

    def measure_batch(self, load: Workload) -> None:
        """All scopes of one batch size, and the memory they took."""
        engine, was_reset = self.engine, reset_peak()
        with load.files() as paths:
            measures = {
                "step": _step_measure(load, engine),
                "head call": host_timed(lambda i: load.denoise(engine, i)),
                "end to end": host_timed(lambda i: load.finish_file(engine, paths[i % len(paths)])),
            }
            for scope, measure in measures.items():
                clock = EVENTS if scope == "step" and is_on_gpu(engine.name) else HOST
                self.on_stage(f"batch {load.batch}: {scope}")
                self.measure_scope(Series(scope, load.batch, clock, ()), measure)
        peak, reason = peak_bytes()
        on_gpu = _gpu_memory(self.free_before, self.gpu)
        memory = Memory(load.batch, peak, reason, "batch" if was_reset else "process", *on_gpu)
        self.grow(memory=(*self.report.memory, memory))

    def measure_scope(self, empty: Series, measure: Measure | str) -> None:
        before = self.report.series
        if isinstance(measure, str):
            self.report = replace(self.report, series=(*before, replace(empty, reason=measure)))
            return

        def keep(samples: list[float]) -> None:
            self.grow(series=(*before, replace(empty, samples_ms=tuple(samples))))

        keep(collect(measure, self.report.mode, keep))


def measure_latency(
    bundle: HeadBundle,
    handover_path: Path,
    handover: Handover,
    settings: LatencySettings,
    *,
    on_report: OnReport = lambda _: None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> LatencyReport:
    """Measure a head on one engine.

    Args:
        handover_path, handover: a hand-over file of the head's plan and what is in it.
        on_report: given the report so far every few seconds and after every stage: what it was last given is what an
            interruption leaves.
        on_stage: told what is measured now.

    Raises:
        InputError, PlanMismatch, EngineUnavailable, ArtefactError: as ``open_engine``; a batch is out of range.
        CheckFailed: after all else: the engine does not compute what it should (the report is saved before).
    """
    name, options = settings.engine, settings.options
    count = bundle.row_range(settings.steps).steps
    loads = [Workload(bundle, handover, count, batch) for batch in settings.batches]
    engine = open_engine(bundle, name, options)
    before = read_device_state()
    report = LatencyReport(
        subject=describe_subject(bundle, handover, count),
        engine=describe_engine(engine, options),
        mode=settings.mode,
        batches=tuple(settings.batches),
        state_before=before.to_dict(),
        build=prepare(bundle, name, options),
    )
    gpu = options.gpu or 0
    free_before = free_gpu_bytes(gpu) if is_on_gpu(name) else (None, "the engine runs on the CPU")
    run = _Run(report, engine, free_before, gpu, on_report, on_stage)
    _measure_loaded(run, loads)
    on_stage("cold starts")
    for _ in range(settings.mode.cold_starts):
        start = cold_start(bundle.path, handover_path, name, options, count)
        run.grow(cold_starts=(*run.report.cold_starts, start))
    after = read_device_state()
    run.grow(state_after=after.to_dict(), changes=tuple(changes(before, after)), complete=True)
    assert run.report.check is not None
    run.report.check.require_passed(f"{bundle.path} on {name}")
    return run.report


def _measure_loaded(run: _Run, loads: Sequence[Workload]) -> None:
    """All that one loading of the engine serves: the load, every batch size, and the check."""
    begun = time.perf_counter()
    with run.engine:
        run.report = replace(run.report, load_ms=(time.perf_counter() - begun) * 1e3)
        for load in loads:
            run.measure_batch(load)
        run.on_stage("check of the output")
        run.grow(check=check_engine(loads, run.engine))


def prepare(bundle: HeadBundle, engine_name: str, options: EngineOptions) -> Build | None:
    """Build the TensorRT engine where one is needed, so that its build is in no figure; None for other engines."""
    if engine_name not in MODULES or options.trust_bundle:
        return None
    from collafuse_runtimes.engines.trt.prepare import build_engine, print_progress

    built = build_engine(bundle, engine_name, options, on_progress=print_progress)
    return Build(built.hit, built.reason, built.seconds, built.inspection)


def is_on_gpu(engine_name: str) -> bool:
    """Whether the engine takes a GPU."""
    return "gpu" in ENGINES[engine_name].options


def _step_measure(load: Workload, engine: Engine) -> Measure | str:
    """How single steps are timed, or why they cannot be.

    On the CPU: the time between the ends of successive steps of a running trajectory. On a GPU: CUDA events around
    one step, since between the steps of a trajectory nothing comes back to the host.
    """
    rows = load.bundle.row_range(load.steps)
    if is_on_gpu(engine.name):
        return _device_step_measure(load, engine)
    if rows.steps < 2:
        return "a trajectory of one step has no step between two others; see the head call"

    def measure(i: int) -> list[float]:
        ends: list[float] = []
        load.denoise(engine, i, on_step=lambda *_: ends.append(time.perf_counter()))
        return [(b - a) * 1e3 for a, b in pairwise(ends)]

    return measure


def _device_step_measure(load: Workload, engine: Engine) -> Measure:
    rows = load.bundle.row_range(load.steps)
    z = load.tensors(1)[0] if load.bundle.sampler.is_stochastic else None

    def measure(i: int) -> tuple[float]:
        engine.step(load.tensors(i)[0], rows.first_row + i % rows.steps, z, load.labels)
        return (engine.device_ms,)

    return measure


def _gpu_memory(before: tuple[int | None, str | None], gpu: int) -> tuple[int | None, str | None]:
    if before[0] is None:
        return before
    now, reason = free_gpu_bytes(gpu)
    return (None, reason) if now is None else (before[0] - now, None)
