"""An external wall meter: its log is a CSV file, read after the measurement and matched by wall-clock time."""

import csv
import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from collafuse_benchmarks.energy.integrate import MAX_HOLE_INTERVALS, EnergyFigure, Samples, window_energy
from collafuse_benchmarks.energy.sensors.base import SensorInfo
from collafuse_runtimes.errors import ArtefactError, InputError

NAME = "meter"
COLUMNS = ("time", "watts")


@dataclass(frozen=True)
class MeterLog:
    """What a meter recorded.

    Attributes:
        path: the file.
        samples: times in Unix seconds, values in watts.
        interval_s: median distance of two readings.
        gaps: (begin, end) in Unix seconds of every pause longer than 5 intervals; a window that touches one has no
            figure.
    """

    path: Path
    samples: Samples
    interval_s: float
    gaps: tuple[tuple[float, float], ...]

    @property
    def info(self) -> SensorInfo:
        """As of any other sensor."""
        readings = f"{len(self.samples.times)} readings, one in {self.interval_s:.3g} s"
        longest = f"{len(self.gaps)} pauses of more than {MAX_HOLE_INTERVALS * self.interval_s:.3g} s"
        detail = f"{self.path.name}: {readings}; {longest}"
        return SensorInfo(NAME, "power", "wall", detail, self.interval_s)

    def energy(self, begin: float, end: float, *, min_updates: int = 2) -> EnergyFigure:
        """Energy between two instants of the wall clock, trapezoid with interpolated ends.

        Args:
            begin, end: Unix s.
            min_updates: fewer readings in the window leave it without a figure.

        Raises:
            InputError: the file does not cover the window, or ``end`` is not after ``begin``.
        """
        first, last = float(self.samples.times[0]), float(self.samples.times[-1])
        if begin < first or end > last:
            raise InputError(
                f"{self.path} covers {_iso(first)} to {_iso(last)}, not the window {_iso(begin)} to {_iso(end)}: "
                "let the meter log before, during and after the run, with both clocks synchronised"
            )
        return window_energy("power", self.samples, begin, end, interval_s=self.interval_s, min_updates=min_updates)

    def between(self, begin: float, end: float) -> Samples:
        """The readings from the last before ``begin`` to the first after ``end`` (Unix s)."""
        times = self.samples.times
        first = max(0, int(np.searchsorted(times, begin, "right")) - 1)
        part = slice(first, int(np.searchsorted(times, end, "left")) + 1)
        return Samples(times[part], self.samples.values[part], self.samples.dropped)


def read_meter(path: Path) -> MeterLog:
    """Read a CSV file with a header and the columns ``time`` and ``watts``; others are ignored.

    Times are ISO 8601 with a zone ("2026-11-24T09:30:00.5Z", "...+01:00") or Unix seconds, strictly increasing.

    Raises:
        ArtefactError: names file and line, what is wrong there and what is valid.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.DictReader(handle)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ArtefactError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ['none'])}; its first line must name time "
                    "and watts, divided by commas"
                )
            readings = [_reading(f"{path}, line {rows.line_num}", row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtefactError(f"cannot read {path}: {error}; give the meter's CSV file") from error
    if len(readings) < 2:
        raise ArtefactError(f"{path} holds {len(readings)} readings; must be at least 2")
    times, watts = np.array(readings, np.float64).T
    steps = np.diff(times)
    if (steps <= 0).any():
        k = int(np.argmax(steps <= 0)) + 1
        raise ArtefactError(
            f"{path}: reading {k + 1} ({_iso(times[k])}) is not after the one before ({_iso(times[k - 1])}); times "
            "must increase: sort the file and drop doubles"
        )
    interval = float(np.median(steps))
    long = np.flatnonzero(steps > MAX_HOLE_INTERVALS * interval)
    gaps = tuple((float(times[k]), float(times[k + 1])) for k in long)
    return MeterLog(path, Samples(times, watts, np.empty(0)), interval, gaps)


def _reading(where: str, row: dict[str, str]) -> tuple[float, float]:
    return _unix_seconds(where, row["time"]), _number(where, "watts", row["watts"])


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArtefactError(f"{where}: {name} {text!r} is no finite number; mend or drop this line")
    return value


def _unix_seconds(where: str, text: str | None) -> float:
    text = (text or "").strip()
    if re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?", text):
        return _number(where, "time", text)
    try:
        instant = datetime.fromisoformat(_for_python_310(text))
    except ValueError:
        raise ArtefactError(
            f"{where}: time {text!r} is neither ISO 8601 with a zone (2026-11-24T09:30:00Z) nor Unix seconds"
        ) from None
    if instant.tzinfo is None:
        raise ArtefactError(f"{where}: time {text!r} has no zone; add Z or an offset such as +01:00")
    return instant.timestamp()


def _for_python_310(text: str) -> str:
    """Its fromisoformat knows no Z and only fractions of 3 or 6 digits."""
    text = re.sub(r"[zZ]$", "+00:00", text)
    return re.sub(r"\.(\d{1,6})\d*", lambda found: f".{found[1]:0<6}", text)


def _iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
