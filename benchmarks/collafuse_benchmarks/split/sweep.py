"""Which ways there are on this machine: every head, step count and engine, and the server's side of every cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collafuse_benchmarks.energy.sensors import Found
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.measure.timing import Mode
from collafuse_benchmarks.split.measure import EdgeWork, ServerWork, Watch, measure_parts
from collafuse_benchmarks.split.parts import Part, Weights
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.engines import EngineOptions
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.bundle import HeadBundle

ENERGY = {
    "quick": EnergySettings(idle_s=5.0, window_s=10.0, trials=2),
    "report": EnergySettings(idle_s=30.0, window_s=10.0, trials=5),
}
"""By mode."""


@dataclass(frozen=True)
class SplitServer:
    """An opened server.

    Attributes:
        name: of its folder.
        where: its path, for errors.
        plan: it was trained for; its cut is the lowest timestep that it knows.
        network: preset, parameters, sha256 of the weights.
        engine: what runs it, for example "torch cpu".
        work: (its plan cut anywhere, most steps or None) -> (steps, i -> x_{t_c} of sample i, (1, C, H, W) float32).
    """

    name: str
    where: str
    plan: SplitPlan
    network: Weights
    engine: str
    work: Callable[[SplitPlan, int | None], tuple[int, Callable[[int], Float32Array]]]


@dataclass(frozen=True)
class SweepOptions:
    """How to sweep.

    Attributes:
        mode: how long to measure.
        engines: each runs every bundle.
        engine_options: for all of them.
        cuts: of the server's side, "0,0.2,1"; None takes 0 and those of the bundles.
        server_steps: at most; None runs as many as ``handoff`` does.
    """

    mode: Mode
    engines: tuple[str, ...]
    engine_options: EngineOptions
    cuts: str | None = None
    server_steps: int | None = None


def sweep(
    heads: Sequence[HeadBundle], server: SplitServer | None, options: SweepOptions, found: Found, watch: Watch
) -> tuple[Part, ...]:
    """Measure every baked step count of every bundle on every engine, and the server's side of every cut.

    Args:
        found: sensors that see the energy.
        watch: the last call of its ``on_parts`` has the whole.

    Raises:
        InputError: a head or an engine is given twice, or the cuts are none.
        PlanMismatch, ArtefactError, EngineUnavailable, CheckFailed: as ``measure_parts``.
    """
    _require_different("head", [head.path.resolve() for head in heads])
    _require_different("engine", options.engines)
    edges = [
        EdgeWork(head, rows.steps, engine, options.engine_options)
        for head in heads
        for rows in head.row_ranges
        for engine in options.engines
    ]
    servers = [] if server is None else _server_works(server, heads, options)
    return measure_parts(edges, servers, options.mode, found, ENERGY[options.mode.name], watch)


def _require_different(what: str, given: Sequence[object]) -> None:
    for i, one in enumerate(given):
        if one in given[:i]:
            raise InputError(f"{what} {one} is given twice; give each once")


def _server_works(server: SplitServer, heads: Sequence[HeadBundle], options: SweepOptions) -> list[ServerWork]:
    for head in heads:
        require_same_plan(server.plan, server.where, head.plan, str(head.path), except_cut=True)
    plans = [server.plan.with_cut_ratio(c) for c in _cuts(heads, options.cuts)]
    return [_server_work(server, plan, options.server_steps) for plan in plans if plan.t_c]


def _server_work(server: SplitServer, plan: SplitPlan, most: int | None) -> ServerWork:
    steps, run = server.work(plan, most)
    note = None
    if plan.cut < server.plan.cut:
        note = (
            f"server {server.name} was trained for timesteps {server.plan.cut} and above only: its time at this cut "
            "is real, its images would not be"
        )
    return ServerWork(plan, run, steps, server.name, server.network, server.engine, note)


def _cuts(heads: Sequence[HeadBundle], text: str | None) -> list[float]:
    if text is not None:
        return _parse_cuts(text)
    if not heads:
        raise InputError("the server's side alone needs --cuts, for example --cuts 0,0.2,0.4")
    return sorted({0.0, *(head.plan.cut_ratio for head in heads)})


def _parse_cuts(text: str) -> list[float]:
    try:
        cuts = [float(part) for part in text.split(",")]
    except ValueError:
        cuts = []
    if not cuts or not all(0 <= c <= 1 for c in cuts) or len(set(cuts)) < len(cuts):
        raise InputError(
            f"--cuts {text!r} is not a list of cut ratios; valid: different numbers from 0 to 1, for example 0,0.2,0.4"
        )
    return cuts
