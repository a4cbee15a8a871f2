"""Which cut, head and step count to take, given limits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any, Literal

from collafuse_benchmarks.measure.record import Record
from collafuse_benchmarks.pages.document import figure
from collafuse_benchmarks.split.settings import ABOVE_BEST, Limits
from collafuse_benchmarks.split.table import SplitRow

By = Literal["total_j", "total_ms"]


@dataclass(frozen=True)
class _Rule:
    option: str
    value: Callable[[SplitRow], float | None]
    is_upper: bool
    what: str

    def holds(self, row: SplitRow, limit: float) -> bool:
        value = self.value(row)
        return value is not None and (value <= limit if self.is_upper else value >= limit)

    def keeping(self, value: float) -> str:
        """Four digits, rounded so that the limit they state is kept."""
        rounding = ROUND_CEILING if self.is_upper else ROUND_FLOOR
        return figure(float(Context(prec=4, rounding=rounding).create_decimal(repr(value))), 4)

    def excess(self, row: SplitRow, limit: float) -> float:
        """How far beyond the limit, relative to it; infinite where it was not measured."""
        value = self.value(row)
        if value is None:
            return float("inf")
        return max(0.0, (value - limit if self.is_upper else limit - value) / (abs(limit) or 1.0))


RULES = {
    "max_latency_ms": _Rule("--max-latency-ms", lambda row: row.total_ms, True, "milliseconds"),
    "max_energy_j": _Rule("--max-energy-j", lambda row: row.total_j, True, "joules"),
    "min_noise_level": _Rule(
        "--min-noise-level", lambda row: row.noise_level if row.transfer_bytes else math.inf, False, "noise level"
    ),
    "min_handover_kid": _Rule(
        "--min-handover-kid",
        lambda row: row.handover_kid if row.transfer_bytes else math.inf,
        False,
        "KID of the hand-over tensors",
    ),
    "max_image_kid": _Rule("--max-image-kid", lambda row: row.image_kid, True, "KID of the images"),
}


@dataclass(frozen=True)
class Choice(Record):
    """Outcome of ``choose``.

    Attributes:
        row: the cheapest admissible way; None where none is admissible.
        by: what "cheapest" went by, "total_j" or "total_ms".
        admissible: how many ways keep every limit.
        advice: where none does: what would have to give, one line each.
        quality: what is known of the images of ``row``, for people; None where there is no row.
    """

    row: SplitRow | None
    by: By
    admissible: int
    advice: tuple[str, ...]
    quality: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the title of ``row`` stands in the table alone."""
        row = None if self.row is None else self.row.to_dict()
        return {**super().to_dict(), "row": row and {name: value for name, value in row.items() if name != "title"}}


def choose(rows: Sequence[SplitRow], limits: Limits) -> Choice:
    """The way that keeps all limits and costs least: gross energy where all of them have it, else time.

    Ways with a side that was not measured are left out, and those that make no images (they have notes).
    """
    whole = [row for row in rows if row.total_ms is not None and not row.notes]
    kept = [row for row in whole if not _broken(row, limits)]
    if kept and limits.max_kid_above_best is not None:
        scored = [row for row in kept if row.image_kid is not None]
        if not scored:
            unknown = f"{ABOVE_BEST} {limits.max_kid_above_best:g} cannot be judged: no way's images have a score"
            return Choice(None, "total_ms", 0, (f"{unknown} (--image-kid)",))
        most = min(_image_kid(row) for row in scored) + limits.max_kid_above_best
        kept = [row for row in scored if _image_kid(row) <= most]
    by: By = "total_j" if kept and all(row.total_j is not None for row in kept) else "total_ms"
    if kept:
        row = min(kept, key=lambda row: (getattr(row, by), row.total_ms))
        return Choice(row, by, len(kept), (), _quality(row))
    return Choice(None, by, 0, tuple(_advice(whole, limits)))


def _image_kid(row: SplitRow) -> float:
    return math.inf if row.image_kid is None else row.image_kid


def _quality(row: SplitRow) -> str:
    if row.image_kid is None:
        return "Nobody scored the images of this way (--image-kid): the choice knows its cost, not its quality."
    error = "" if row.image_kid_error is None else f" +- {figure(row.image_kid_error, 2)}"
    return f"KID of its images: {figure(row.image_kid, 3)}{error}."


def _broken(row: SplitRow, limits: Limits) -> list[str]:
    """Names of the limits that a row does not keep."""
    stated = {name: getattr(limits, name) for name in RULES}
    return [name for name, limit in stated.items() if limit is not None and not RULES[name].holds(row, limit)]


def _advice(rows: Sequence[SplitRow], limits: Limits) -> list[str]:
    """For every limit that alone stands in the way, the least that it would have to be; else the nearest way."""
    if not rows:
        return ["no way that makes images was measured on both sides"]
    lines = []
    for name, rule in RULES.items():
        limit = getattr(limits, name)
        if limit is None:
            continue
        others = [row for row in rows if not _broken(row, replace(limits, **{name: None}))]
        values = [(value, row) for row in others if (value := rule.value(row)) is not None]
        if values:
            value, row = (min if rule.is_upper else max)(values, key=lambda pair: pair[0])
            lines.append(f"{rule.option} {limit:g} would have to be {rule.keeping(value)}: {row.title}")
        elif others:
            lines.append(f"{rule.option} {limit:g} cannot be judged: {rule.what} {_why_not(name, others[0])}")
    if lines:
        return lines
    nearest = min(
        rows, key=lambda row: sum(RULES[name].excess(row, getattr(limits, name)) for name in _broken(row, limits))
    )
    what = ", ".join(
        f"{RULES[name].option} {getattr(limits, name):g} (it has {figure(RULES[name].value(nearest), 4)})"
        for name in _broken(nearest, limits)
    )
    return [f"no single limit is to blame; nearest is {nearest.title}, which breaks {what}"]


def _why_not(name: str, row: SplitRow) -> str:
    missing = "--image-kid" if name == "max_image_kid" else "--handover-kid"
    return f"not measured ({row.energy_reason})" if name == "max_energy_j" else f"not given ({missing})"
