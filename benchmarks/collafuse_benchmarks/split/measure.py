"""Measure the sides of a split that are at hand, all ways in turns, and what they take of energy."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from collafuse_benchmarks.latency.run import prepare
from collafuse_benchmarks.measure.timing import Measure, Mode, Turns, collect_in_turns, host_timed
from collafuse_benchmarks.measure.workload import Workload, check_engine, require_right
from collafuse_benchmarks.split.parts import Part, Row, golden_handover, machine_name, require_one_family
from collafuse_runtimes.device.state import changes, read_device_state
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.engines import Engine, EngineOptions, open_engine
from collafuse_runtimes.errors import CheckFailed
from collafuse_runtimes.files.bundle import HeadBundle

KeepEnergy = Callable[[dict[str, Any] | None], None]
MeasureEnergy = Callable[[Callable[[], int], str, KeepEnergy], None]
"""Told (work that returns how many images it made, name, what to give each ``EnergyResult.to_dict`` to)."""


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
    network: dict[str, Any]
    engine: str
    note: str | None


@dataclass
class _Way:
    side: str
    row: Row
    measure: Measure
    work: Callable[[], int]
    check: Callable[[], None]


def measure_parts(
    edges: Sequence[EdgeWork],
    servers: Sequence[ServerWork],
    mode: Mode,
    *,
    measure_energy: MeasureEnergy,
    on_parts: Callable[[tuple[Part, ...]], None] = lambda _: None,
    on_turn: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Part, ...]:
    """A part for each side that has work; one image at a time, all ways in turns.

    Args:
        on_parts: given the parts so far, first without a sample, then after every turn and every energy measurement;
            what it was last given is what an interruption leaves.

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
        state = before.to_dict()

        def parts(complete: bool = False, after: dict[str, Any] | None = None, changed: Sequence[str] = ()) -> Any:
            sides = {side: tuple(way.row for way in ways if way.side == side) for side in ("server", "edge")}
            return tuple(
                Part(side, plan, machine_name(state), state, after, tuple(changed), mode.name, rows, complete)
                for side, rows in sides.items()
                if rows
            )

        def save(samples: Turns) -> None:
            for i, way in enumerate(ways):
                turns = samples[str(i)]
                way.row = replace(way.row, samples_ms=tuple(chain(*turns)), turns=tuple(map(len, turns)))
            on_parts(parts())

        on_parts(parts())
        save(collect_in_turns({str(i): way.measure for i, way in enumerate(ways)}, mode, save, on_turn=on_turn))
        for way in ways:
            measure_energy(way.work, _title(way), partial(_keep_energy, way, lambda: on_parts(parts())))
        failures = []
        for way in ways:
            failures += _failure_of(way)
            on_parts(parts())
    end = read_device_state()
    whole: tuple[Part, ...] = parts(True, end.to_dict(), changes(before, end))
    on_parts(whole)
    for failure in failures:
        raise failure
    return whole


def _keep_energy(way: _Way, save: Callable[[], None], energy: dict[str, Any] | None) -> None:
    way.row = replace(way.row, energy=energy)
    save()


def _failure_of(way: _Way) -> list[CheckFailed]:
    """Nothing where its output is right."""
    try:
        way.check()
    except CheckFailed as failure:
        way.row = replace(way.row, is_right=False)
        return [failure]
    way.row = replace(way.row, is_right=True)
    return []


def _title(way: _Way) -> str:
    return f"{way.row.name}, {way.row.steps} steps, {way.row.engine}"


def _edge_way(edge: EdgeWork, opened: dict[tuple[str, str], Engine], stack: ExitStack) -> _Way:
    bundle, key = edge.bundle, (str(edge.bundle.path), edge.engine)
    if key not in opened:
        prepare(bundle, edge.engine, edge.options)
        opened[key] = stack.enter_context(open_engine(bundle, edge.engine, edge.options))
    engine, load = opened[key], Workload(bundle, golden_handover(bundle), edge.steps)
    network = {
        "preset": bundle.network.preset,
        "parameters": bundle.network.parameters,
        "weights_sha256": bundle.network.weights_sha256,
    }
    row = Row(
        bundle.plan.cut_ratio,
        edge.steps,
        bundle.path.name,
        network,
        edge.engine,
        bundle.precision,
        (),
        sampler=bundle.sampler.to_dict(),
    )
    return _Way(
        "edge",
        row,
        host_timed(lambda i: load.denoise(engine, i)),
        lambda: len(load.denoise(engine, 0)),
        lambda: require_right(check_engine([load], engine), f"{bundle.path} on {edge.engine}"),
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
