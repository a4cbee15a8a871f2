"""The sweep behind `bench split`: which ways there are on this machine, measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from collafuse_benchmarks.energy.measurement import EnergyInterrupted, measure_energy
from collafuse_benchmarks.energy.sensors import Found, find_sensors
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.measure.timing import mode_named
from collafuse_benchmarks.split.measure import EdgeWork, KeepEnergy, MeasureEnergy, ServerWork, measure_parts
from collafuse_benchmarks.split.parts import Part, with_cut
from collafuse_edge.handoff.timed import SplitServer, open_server
from collafuse_runtimes.diffusion.plan import require_same_plan
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle

ENERGY = {
    "quick": EnergySettings(idle_s=5.0, window_s=10.0, trials=2),
    "report": EnergySettings(idle_s=30.0, window_s=10.0, trials=5),
}
"""By mode."""


@dataclass(frozen=True)
class SweepOptions:
    """How to sweep.

    Attributes:
        engines: each runs every bundle.
        engine_options: for all of them.
        cuts: of the server's side, "0,0.2,1"; None takes 0 and those of the bundles.
        server_steps: at most; None runs as many as ``handoff`` does.
        server_device: torch device; None takes a GPU where there is one.
        mode: "quick" or "report".
        gpu: index of the one whose energy is read.
    """

    engines: tuple[str, ...]
    engine_options: EngineOptions
    cuts: str | None
    server_steps: int | None
    server_device: str | None
    mode: str
    gpu: int


def sweep(
    bundles: Sequence[Path],
    server: Path | None,
    options: SweepOptions,
    *,
    on_parts: Callable[[tuple[Part, ...]], None],
    on_turn: Callable[[int, int], None],
    on_phase: Callable[[str, float], None],
) -> None:
    """Measure every baked step count of every bundle on every engine, and the server's side of every cut.

    Args:
        on_parts: given the parts so far; the last call has the whole.

    Raises:
        InputError, PlanMismatch, ArtefactError, EngineUnavailable, CheckFailed: as ``measure_parts`` and
            ``open_server``.
    """
    mode = mode_named(options.mode)
    _require_different("head", [path.resolve() for path in bundles])
    _require_different("engine", options.engines)
    heads = [read_bundle(path) for path in bundles]
    edges = [
        EdgeWork(head, rows.steps, engine, options.engine_options)
        for head in heads
        for rows in head.row_ranges
        for engine in options.engines
    ]
    servers = [] if server is None else _server_works(open_server(server, options.server_device), heads, options)
    with find_sensors(gpu=options.gpu) as found:
        measure_parts(
            edges,
            servers,
            mode,
            measure_energy=_energy_measure(found, ENERGY[mode.name], on_phase),
            on_parts=on_parts,
            on_turn=on_turn,
        )


def _require_different(what: str, given: Sequence[object]) -> None:
    for i, one in enumerate(given):
        if one in given[:i]:
            raise InputError(f"{what} {one} is given twice; give each once")


def _server_works(server: SplitServer, heads: Sequence[HeadBundle], options: SweepOptions) -> list[ServerWork]:
    for head in heads:
        require_same_plan(server.plan, str(server.path), head.plan, str(head.path), except_cut=True)
    if options.cuts is not None:
        cuts = _parse_cuts(options.cuts)
    elif heads:
        cuts = sorted({0.0, *(head.plan.cut_ratio for head in heads)})
    else:
        raise InputError("the server's side alone needs --cuts, for example --cuts 0,0.2,0.4")
    works = []
    for c in cuts:
        plan = with_cut(server.plan, c)
        if plan.t_c == 0:
            continue
        steps, run = server.work(plan, options.server_steps)
        note = None
        if not server.knows(plan):
            note = (
                f"server {server.path.name} was trained for timesteps {server.plan.cut} and above only: its time at "
                "this cut is real, its images would not be"
            )
        works.append(ServerWork(plan, run, steps, server.path.name, server.network, f"torch {server.device}", note))
    return works


def _parse_cuts(text: str) -> list[float]:
    try:
        cuts = [float(part) for part in text.split(",")]
    except ValueError:
        cuts = []
    if not cuts or not all(0 <= c <= 1 for c in cuts) or len(set(cuts)) < len(cuts):
        raise InputError(f"--cuts {text!r}: valid are different numbers from 0 to 1, for example 0,0.2,0.4")
    return cuts


def _energy_measure(found: Found, settings: EnergySettings, on_phase: Callable[[str, float], None]) -> MeasureEnergy:
    """Energy of one way; without a sensor no time is spent on it, and the reason is kept."""

    def measure(work: Callable[[], int], name: str, keep: KeepEnergy) -> None:
        if not found.sensors:
            why = "; ".join(f"{kind}: {reason}" for kind, reason in found.reasons.items())
            keep({"energy": None, "reason": why, "reasons": dict(found.reasons)})
            return
        try:
            result = measure_energy(
                work,
                found.sensors,
                settings,
                reasons=found.reasons,
                on_progress=lambda phase, share: on_phase(f"energy of {name}: {phase}", share),
                on_result=lambda so_far: keep(so_far.to_dict()),
            )
        except EnergyInterrupted as stopped:
            keep(stopped.result.to_dict())
            raise
        keep(result.to_dict())

    return measure
