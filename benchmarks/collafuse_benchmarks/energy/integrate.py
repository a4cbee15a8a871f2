"""Energy of a window from the samples of a sensor, or the reason why there is no figure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collafuse_runtimes.errors import InputError

MAX_HOLE_INTERVALS = 5
"""A longer pause between two readings, in polling intervals, leaves a window without a figure."""

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EnergyFigure:
    """Energy of one window.

    Attributes:
        joules: None where it could not be measured; may be negative where the power is.
        reason: one line, why there is no figure; None exactly where there is one.
        updates: new values in the window: readings of a power sensor, changes of a counter.
        dropped: readings in the window that failed.
    """

    joules: float | None
    reason: str | None
    updates: int
    dropped: int


@dataclass(frozen=True)
class Samples:
    """Readings of one sensor in the order they came.

    Attributes:
        times: (N,) s, increasing: the middle of each read call.
        values: (N,) W, or J of a counter.
        dropped: (M,) s, of the readings that failed.
    """

    times: Float64Array
    values: Float64Array
    dropped: Float64Array

    @property
    def changes(self) -> npt.NDArray[np.bool_]:
        """(N,) where the value differs from the one before; False for the first."""
        return np.asarray(np.diff(self.values, prepend=self.values[:1]) != 0, np.bool_)


def count_updates(quantity: str, samples: Samples, begin: float, end: float) -> int:
    """New values in a window: readings of a power sensor, changes of a counter."""
    inside = (samples.times >= begin) & (samples.times <= end)
    return int(np.count_nonzero(inside if quantity == "power" else inside & samples.changes))


def window_energy(
    quantity: str, samples: Samples, begin: float, end: float, *, interval_s: float, min_updates: int = 2
) -> EnergyFigure:
    """Energy between two instants.

    Power is integrated by the trapezoid rule, interpolated at both ends. Of a counter only the readings that brought
    a new value are used, because between them it is stale, with the first and the last of all; the difference is
    taken between its interpolated values at both ends.

    Args:
        quantity: "power" or "energy", as in ``SensorInfo``.
        begin, end: s, on the clock of the samples.
        interval_s: how often the sensor was to be read.
        min_updates: fewer new values in the window leave it without a figure.

    Raises:
        InputError: ``end`` is not after ``begin``.
    """
    if not end > begin:
        raise InputError(f"the window ends at {end} and begins at {begin}; it must end after it begins")
    updates = count_updates(quantity, samples, begin, end)
    dropped = int(np.count_nonzero((samples.dropped >= begin) & (samples.dropped <= end)))
    reason = _not_covered(samples.times, begin, end)
    if reason is None:
        reason = _not_usable(quantity, samples, begin, end, MAX_HOLE_INTERVALS * interval_s)
    if reason is None and updates < min_updates:
        reason = f"only {updates} new values in the window; {min_updates} are needed: measure for longer"
    if reason is not None:
        return EnergyFigure(None, reason, updates, dropped)
    joules = _trapezoid(samples, begin, end) if quantity == "power" else _difference(samples, begin, end)
    return EnergyFigure(joules, None, updates, dropped)


def _not_covered(times: Float64Array, begin: float, end: float) -> str | None:
    if not times.size:
        return "the sensor gave no reading at all"
    if times[0] > begin:
        return f"the first reading came {times[0] - begin:.3g} s after the window began"
    if times[-1] < end:
        return f"the last reading came {end - times[-1]:.3g} s before the window ended"
    return None


def _not_usable(quantity: str, samples: Samples, begin: float, end: float, max_hole_s: float) -> str | None:
    """From the last reading before the window to the first after it."""
    first, last = np.searchsorted(samples.times, begin, "right") - 1, np.searchsorted(samples.times, end, "left")
    around = slice(int(first), int(last) + 1)
    hole = float(np.diff(samples.times[around]).max(initial=0.0))
    if hole > max_hole_s:
        return f"no reading for {hole:.3g} s; at most {max_hole_s:.3g} s are bridged"
    if quantity == "energy":
        steps = np.diff(samples.values[around])
        if (steps < 0).any():
            return "the counter fell: it was reset"
        if not steps.any():
            return "the counter did not move"
    return None


def _trapezoid(samples: Samples, begin: float, end: float) -> float:
    inner = (samples.times > begin) & (samples.times < end)
    times = np.concatenate(([begin], samples.times[inner], [end]))
    watts = np.interp(times, samples.times, samples.values)
    return float(((watts[1:] + watts[:-1]) / 2 * np.diff(times)).sum())


def _difference(samples: Samples, begin: float, end: float) -> float:
    fresh = samples.changes
    fresh[[0, -1]] = True
    first, last = np.interp([begin, end], samples.times[fresh], samples.values[fresh])
    return float(last - first)
