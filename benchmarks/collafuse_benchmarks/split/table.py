"""Parts joined to a table: one row for every whole way from noise to image."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from collafuse_benchmarks.energy.measurement import EnergyResult
from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.measure.summary import Summary
from collafuse_benchmarks.split.parts import Name, NoEnergy, Part, Row, Weights, handover_bytes
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.errors import InputError

SHARE_TOLERANCE = 0.1
WIDEST, DISJOINT = ("wall", "board", "module"), ("gpu", "cpu package")
"""Scopes of sensors."""
NO_ENERGY = "energy was not measured"


@dataclass(frozen=True)
class Link(Record):
    """Between server and device, as stated by the user.

    Attributes:
        mbps: 10^6 bits per second.
        latency_ms: until the first byte arrives.
    """

    mbps: float
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mbps) and self.mbps > 0):
            raise InputError(f"link speed {self.mbps} Mbit/s out of range: must be above 0")
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise InputError(f"link latency {self.latency_ms} ms out of range: must be at least 0")

    def transfer_ms(self, count: int) -> float:
        """For ``count`` bytes; nothing for none."""
        return self.latency_ms + count * 8 / (self.mbps * 1e3) if count else 0.0


@dataclass(frozen=True)
class Side(Record):
    """What a row of the table says of one side: a ``Row`` and its machine, without samples and energy."""

    name: str
    steps: int
    network: Weights
    engine: str
    precision: str
    machine: str
    summary: Summary | None
    turns: tuple[int, ...] = ()
    is_right: bool | None = None
    sampler: Sampler | None = None


@dataclass(frozen=True)
class SplitRow(Record):
    """One way to make one image. Times are medians, joules are gross and per image; None is not measured.

    Attributes:
        cut_ratio, cut: c, and its timestep.
        noise_level: ``SplitPlan.noise_level`` of what is handed over; 0 at c = 0, where that is the image itself. At
            c = 1 it is that of the noise the device starts from: nothing crosses.
        server, edge: None where that side has no step, or was not measured.
        server_ms, edge_ms: 0 where that side has no step.
        transfer_bytes: of a hand-over file with one tensor.
        transfer_ms: None where no link was stated; the total is without it then.
        total_ms: None where a side was not measured.
        server_j, edge_j, total_j: as the times; transfer is not counted.
        energy_scope: what the sensors of both sides see, in words.
        energy_reason: why ``total_j`` is None.
        notes: why it makes no images, or wrong ones; empty where it does.
        origin: which parts it is joined from, where a side has several; None where each has one.
        handover_kid, image_kid, and their errors: from `evaluate`, where given: distance of the hand-over tensors and
            of the finished images from real images.
    """

    derived: ClassVar = ("title",)
    cut_ratio: float
    cut: int
    noise_level: float
    server: Side | None
    edge: Side | None
    server_ms: float | None
    transfer_bytes: int
    transfer_ms: float | None
    edge_ms: float | None
    total_ms: float | None
    server_j: float | None
    edge_j: float | None
    total_j: float | None
    energy_scope: str | None
    energy_reason: str | None
    notes: tuple[str, ...]
    origin: str | None = None
    handover_kid: float | None = None
    image_kid: float | None = None
    handover_kid_error: float | None = None
    image_kid_error: float | None = None

    @property
    def title(self) -> str:
        """For tables and messages."""
        where = "c = 0, all on the server" if self.cut == 0 else f"c = {self.cut_ratio:g}"
        if self.edge is not None:
            where += f", {self.edge.name}, {self.edge.steps} steps on {self.edge.engine}"
        return where if self.origin is None else f"{where} ({self.origin})"


@dataclass(frozen=True)
class _Measured:
    """A row, where it was measured, and which part it is of where its side has several."""

    row: Row
    machine: str
    origin: str | None

    @property
    def side(self) -> Side:
        row = self.row
        return Side(row.name, row.steps, row.network, row.engine, row.precision, self.machine, row.summary, row.turns,
                    row.is_right, row.sampler)  # fmt: skip

    @property
    def notes(self) -> list[str]:
        row = self.row
        wrong = f"the output of {row.name} on {row.engine} was wrong, so its times mean nothing"
        return ([row.note] if row.note else []) + ([wrong] if row.is_right is False else [])


def join(plan: SplitPlan, parts: Sequence[Part], link: Link | None, dtype: str = "float32") -> tuple[SplitRow, ...]:
    """Every server row of a cut with every edge row of it, by cut; a side that was not measured leaves a gap.

    Args:
        parts: of one family of plans.
    """
    sides: dict[Name, dict[float, list[_Measured]]] = {"server": defaultdict(list), "edge": defaultdict(list)}
    several = {side: sum(part.side == side for part in parts) > 1 for side in sides}
    for number, part in enumerate(parts, 1):
        origin = f"{part.side} of part {number}" if several[part.side] else None
        for row in part.rows:
            sides[part.side][row.cut_ratio].append(_Measured(row, part.machine, origin))
    rows = []
    for c in sorted(sides["server"].keys() | sides["edge"].keys()):
        pairs = product(sides["server"].get(c) or (None,), sides["edge"].get(c) or (None,))
        rows += [_join_row(plan.with_cut_ratio(c), server, edge, link, dtype) for server, edge in pairs]
    return tuple(rows)


def _join_row(
    plan: SplitPlan, server: _Measured | None, edge: _Measured | None, link: Link | None, dtype: str
) -> SplitRow:
    size = handover_bytes(plan, None if server is None else server.row.steps, dtype)
    server_ms, server_j, server_scope = _cost(server, plan.t_c == 0)
    edge_ms, edge_j, edge_scope = _cost(edge, plan.cut == 0)
    transfer_ms = None if link is None else link.transfer_ms(size)
    missing = {name: side for name, side, joules in (("server", server, server_j), ("edge", edge, edge_j))
               if joules is None}  # fmt: skip
    scopes = [f"{side}: {scope}" for side, scope in (("server", server_scope), ("edge", edge_scope)) if scope]
    both = [side for side in (server, edge) if side is not None]
    return SplitRow(
        cut_ratio=plan.cut_ratio,
        cut=plan.cut,
        noise_level=plan.noise_level,
        server=None if server is None else server.side,
        edge=None if edge is None else edge.side,
        server_ms=server_ms,
        transfer_bytes=size,
        transfer_ms=transfer_ms,
        edge_ms=edge_ms,
        total_ms=None if server_ms is None or edge_ms is None else server_ms + (transfer_ms or 0.0) + edge_ms,
        server_j=server_j,
        edge_j=edge_j,
        total_j=None if server_j is None or edge_j is None else server_j + edge_j,
        energy_scope="; ".join(scopes) or None,
        energy_reason=f"{' and '.join(missing)}: {_why(missing.values())}" if missing else None,
        notes=tuple(note for side in both for note in side.notes),
        origin=", ".join(side.origin for side in both if side.origin) or None,
    )


def _cost(side: _Measured | None, has_no_step: bool) -> tuple[float | None, float | None, str | None]:
    """(ms, gross joules per image, what the sensor sees); zeros where that side truly does nothing."""
    if has_no_step:
        return 0.0, 0.0, None
    if side is None:
        return None, None, None
    joules, scope = joules_per_image(side.row.energy)
    return (None if side.row.summary is None else side.row.summary.median), joules, scope


def joules_per_image(energy: EnergyResult | NoEnergy | None) -> tuple[float | None, str | None]:
    """(gross J an image, what its sensor sees): the widest figure there is.

    A wall meter, else the board, else the module; else GPU and processor package, which do not overlap, added.
    """
    sensors = () if energy is None else energy.sensors
    found = {sensor.info.scope: sensor.gross.mean for sensor in sensors if sensor.gross.mean is not None}
    for scope in WIDEST:
        if scope in found:
            return found[scope], scope
    scopes = [scope for scope in DISJOINT if scope in found]
    return (sum(found[scope] for scope in scopes), " + ".join(scopes)) if scopes else (None, None)


def _why(missing: Iterable[_Measured | None]) -> str:
    return "; ".join(dict.fromkeys("not measured" if side is None else _no_joules(side.row.energy) for side in missing))


def _no_joules(energy: EnergyResult | NoEnergy | None) -> str:
    if energy is None:
        return NO_ENERGY
    reasons = (f"{sensor.info.name}: {sensor.gross.reason}" for sensor in energy.sensors)
    return energy.reason or "; ".join(reasons)


def _turn_medians(row: Row) -> list[float]:
    """The median of every turn; nothing where the turns do not add up to the samples, or a clock stood still."""
    if min(row.turns, default=0) < 1 or sum(row.turns) != len(row.samples_ms):
        return []
    turns = np.split(np.array(row.samples_ms), np.cumsum(row.turns)[:-1])
    medians = [float(np.median(turn)) for turn in turns]
    return medians if min(medians) > 0 else []


@dataclass(frozen=True)
class ShareCheck(Record):
    """Do the times of one side follow its step counts?

    Attributes:
        side, part, machine, way: whose; parts are counted from 1.
        steps, ratio: step counts, and for each the time relative to the most steps, over the steps' own ratio: 1
            where time follows the steps. The median over the rounds of the measurement, each way's turn in a round
            against the other's turn in the same one: the machine may be slower in one round than in the next.
        holds: whether all are within 10 % of 1.
    """

    side: Name
    part: int
    machine: str
    way: str
    steps: tuple[int, ...]
    ratio: tuple[float, ...]
    holds: bool


def share_checks(parts: Sequence[Part]) -> tuple[ShareCheck, ...]:
    """One check for every network, precision and engine that a part has at two step counts or more."""
    groups: dict[tuple[Name, int, str, str], dict[int, list[float]]] = defaultdict(dict)
    for number, part in enumerate(parts, 1):
        for row in part.rows:
            if medians := _turn_medians(row):
                way = f"{row.network.preset} {row.network.weights_sha256[:8]} {row.precision} {row.engine}"
                groups[part.side, number, part.machine, way][row.steps] = medians
    return tuple(_share_check(*whose, times) for whose, times in groups.items() if len(times) > 1)


def _share_check(side: Name, part: int, machine: str, way: str, times: dict[int, list[float]]) -> ShareCheck:
    steps = tuple(sorted(times))
    most = times[steps[-1]]
    ratio = tuple(
        float(np.median([a / b for a, b in zip(times[count], most, strict=False)])) * steps[-1] / count
        for count in steps
    )
    return ShareCheck(side, part, machine, way, steps, ratio, all(abs(value - 1) <= SHARE_TOLERANCE for value in ratio))
