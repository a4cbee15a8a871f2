"""Measure the sides of a split that are at hand, all ways in turns, and what they take of energy."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from collafuse_benchmarks.energy.measurement import EnergyResult, Progress
from collafuse_benchmarks.energy.run import measure_work_energy
from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.latency.run import prepare
from collafuse_benchmarks.measure.timing import Measure, Mode, Turns, collect_in_turns, host_timed
from collafuse_benchmarks.measure.workload import Workload, check_engine
from collafuse_benchmarks.split.parts import (
    Name,
    NoEnergy,
    Part,
    Row,
    Weights,
    golden_handover,
    machine_name,
    require_one_family,
)
from collafuse_runtimes.device.state import DeviceState, changes, read_device_state
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.engines import Engine, EngineOptions, open_engine
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.bundle import HeadBundle

OnParts = Callable[[tuple[Part, ...]], None]


@dataclass(frozen=True)
class Watch:
    """Who is told how far a measurement is.

    Attributes:
        on_parts: given the parts so far, first without a sample, then after every turn and every energy measurement;
            what it was last given is what an interruption leaves.
        on_turn: told (turns done, turns in all).
        on_phase: told what is measured of energy now, and the share of it that is done.
    """

    on_parts: OnParts = lambda _: None
    on_turn: Callable[[int, int], None] = lambda *_: None
    on_phase: Progress = lambda *_: None


SILENT = Watch()


@dataclass(frozen=True)
class EdgeWork:
    """One way on the device: a bundle in one of its step counts on one engine."""

    bundle: HeadBundle
    steps: int
    engine: str
    options: EngineOptions


@dataclass(frozen=True)
class ServerWork:
    """One way on the server.

    Attributes:
        plan: with the cut of this row.
        run: i -> x_{t_c} of sample i, (1, C, H, W).
        steps, name, network, engine, note: as in ``Row``.
    """

    plan: SplitPlan
    run: Callable[[int], Float32Array]
    steps: int
    name: str
    network: Weights
    engine: str
    note: str | None


@dataclass
class _Way:
    side: Name
    row: Row
    measure: Measure
    work: Callable[[], int]
    check: Callable[[], None]

    @property
    def title(self) -> str:
        return f"{self.row.name}, {self.row.steps} steps, {self.row.engine}"


@dataclass
class _Run:
    """The rows of one measurement as they come; everything that changes one is told to ``on_parts``."""

    ways: Sequence[_Way]
    plan: SplitPlan
    mode: Mode
    before: DeviceState
    on_parts: OnParts

    def parts(self, after: DeviceState | None = None) -> tuple[Part, ...]:
        """One for each side that has a row; whole once the state after the measurement is known."""
        sides: tuple[Name, ...] = ("server", "edge")
        rows = {side: tuple(way.row for way in self.ways if way.side == side) for side in sides}
        return tuple(
            Part(
                side=side,
                plan=self.plan,
                family=self.plan.fingerprint,
                machine=machine_name(self.before),
                state_before=self.before.to_dict(),
                state_after=None if after is None else after.to_dict(),
                changes=() if after is None else tuple(changes(self.before, after)),
                mode=self.mode.name,
                rows=rows[side],
                complete=after is not None,
            )
            for side in sides
            if rows[side]
        )

    def keep_turns(self, samples: Turns) -> None:
        for i, way in enumerate(self.ways):
            turns = samples[str(i)]
            way.row = replace(way.row, samples_ms=tuple(chain(*turns)), turns=tuple(map(len, turns)))
        self.on_parts(self.parts())

    def measure_energy(self, way: _Way, found: Found, settings: EnergySettings, on_phase: Progress) -> None:
        """Without a sensor no time is spent on it, and the reason is kept."""

        def keep(energy: EnergyResult | NoEnergy) -> None:
            way.row = replace(way.row, energy=energy)
            self.on_parts(self.parts())

        def tell(phase: str, share: float) -> None:
            on_phase(f"energy of {way.title}: {phase}", share)

        if found.sensors:
            measure_work_energy(way.work, found, settings, keep=keep, on_progress=tell)
        else:
            keep(NoEnergy.because(found.reasons))

    def check(self, way: _Way) -> list[CheckFailed]:
        """Nothing where its output is right."""
        failures = []
        try:
            way.check()
        except CheckFailed as failure:
            failures.append(failure)
        way.row = replace(way.row, is_right=not failures)
        self.on_parts(self.parts())
        return failures


def measure_parts(
    edges: Sequence[EdgeWork],
    servers: Sequence[ServerWork],
    mode: Mode,
    found: Found,
    energy: EnergySettings,
    watch: Watch = SILENT,
) -> tuple[Part, ...]:
    """A part for each side that has work; one image at a time, all ways in turns.

    Args:
        found: sensors that see the energy; where there is none, no time is spent on it.
        energy: how long it is measured, for every way.

    Raises:
        PlanMismatch: plans that differ in more than their cut.
        CheckFailed: an engine or the server computes something wrong (the parts say so, and are given before).
        InputError, EngineUnavailable, ArtefactError: as ``open_engine``.
    """
    named = {str(edge.bundle.path): edge.bundle.plan for edge in edges} | {work.name: work.plan for work in servers}
    plan, before = require_one_family(named), read_device_state()
    with ExitStack() as stack:
        opened: dict[tuple[str, str], Engine] = {}
        ways = [_edge_way(edge, opened, stack) for edge in edges] + [_server_way(work) for work in servers]
        run = _Run(ways, plan, mode, before, watch.on_parts)
        watch.on_parts(run.parts())
        measures = {str(i): way.measure for i, way in enumerate(ways)}
        run.keep_turns(collect_in_turns(measures, mode, run.keep_turns, on_turn=watch.on_turn))
        for way in ways:
            run.measure_energy(way, found, energy, watch.on_phase)
        failures = [failure for way in ways for failure in run.check(way)]
    whole = run.parts(read_device_state())
    watch.on_parts(whole)
    for failure in failures:
        raise failure
    return whole


def _edge_way(edge: EdgeWork, opened: dict[tuple[str, str], Engine], stack: ExitStack) -> _Way:
    bundle, key = edge.bundle, (str(edge.bundle.path), edge.engine)
    if key not in opened:
        prepare(bundle, edge.engine, edge.options)
        opened[key] = stack.enter_context(open_engine(bundle, edge.engine, edge.options))
    engine, load = opened[key], Workload(bundle, golden_handover(bundle), edge.steps)
    network = Weights(bundle.network.preset, bundle.network.parameters, bundle.network.weights_sha256)
    row = Row(
        cut_ratio=bundle.plan.cut_ratio,
        steps=edge.steps,
        name=bundle.path.name,
        network=network,
        engine=edge.engine,
        precision=bundle.precision,
        samples_ms=(),
        sampler=bundle.sampler,
    )
    return _Way(
        "edge",
        row,
        host_timed(lambda i: load.denoise(engine, i)),
        lambda: len(load.denoise(engine, 0)),
        lambda: check_engine([load], engine).require_passed(f"{bundle.path} on {edge.engine}"),
    )


def _server_way(work: ServerWork) -> _Way:
    row = Row(work.plan.cut_ratio, work.steps, work.name, work.network, work.engine, "fp32", (), note=work.note)

    def check() -> None:
        first, again = work.run(0), work.run(0)
        if not np.isfinite(first).all() or not np.allclose(first, again, atol=1e-3):
            raise CheckFailed(
                f"server {work.name} gives NaN, or another tensor for the same noise, at c = {work.plan.cut_ratio}: "
                "its times mean nothing; train it again"
            )

    return _Way("server", row, host_timed(work.run), lambda: len(work.run(0)), check)
