"""Sensors read in the background, one thread each, and the energy of any window in between."""

import math
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np

from collafuse_benchmarks.energy.integrate import EnergyFigure, Samples, count_updates, window_energy
from collafuse_benchmarks.energy.sensors.base import Sensor
from collafuse_benchmarks.measure.clock import SYSTEM_CLOCK, Clock
from collafuse_runtimes.errors import InputError, SensorLost

__all__ = ["EnergyFigure", "PowerLog", "Vanished"]

_PATIENCE_S = 2.0
"""Longest wait, in real time, for a first reading and for a thread to end."""


@dataclass(frozen=True)
class Vanished:
    """A sensor that is gone: when (s, monotonic) and what it said."""

    time: float
    message: str


@dataclass
class _Track:
    """What one thread writes and others read; a list's append is one step for them."""

    sensor: Sensor
    samples: list[tuple[float, float]] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)
    vanished: Vanished | None = None
    tried: threading.Event = field(default_factory=threading.Event)

    def read(self, clock: Clock) -> None:
        begun = clock.monotonic()
        try:
            value = self.sensor.read()
        except OSError:
            value = math.nan
        except SensorLost as error:
            self.vanished = Vanished(clock.monotonic(), str(error))
            return
        except Exception as error:  # a driver's library may raise anything; the other sensors go on
            self.vanished = Vanished(clock.monotonic(), f"{type(error).__name__}: {error}")
            return
        middle = (begun + clock.monotonic()) / 2
        if math.isfinite(value):
            self.samples.append((middle, value))
        else:
            self.dropped.append(middle)

    def copy(self, begin: float = -math.inf) -> Samples:
        """The samples from ``begin`` on, and the one before, which tells whether the first is new."""
        taken = self.samples[max(0, bisect_left(self.samples, (begin,)) - 1) :]
        times, values = np.array(taken, np.float64).reshape(-1, 2).T
        return Samples(times, values, np.array(self.dropped, np.float64))


class PowerLog:
    """Reads every sensor at its own interval while the block runs and keeps all samples.

    Instants are ``time.monotonic`` seconds; a sample's is the middle of its read call. Windows may be asked for
    during the block and after it.
    """

    def __init__(self, sensors: Sequence[Sensor], *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Take the sensors; reading begins with the block.

        Raises:
            InputError: two sensors have one name.
        """
        self._tracks = {sensor.info.name: _Track(sensor) for sensor in sensors}
        if len(self._tracks) < len(sensors):
            names = ", ".join(sensor.info.name for sensor in sensors)
            raise InputError(f"sensors {names}: each needs a name of its own; leave out the doubles")
        self._clock = clock
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "PowerLog":
        for name, track in self._tracks.items():
            thread = threading.Thread(target=self._poll, args=(track,), name=f"sensor {name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        for track in self._tracks.values():
            track.tried.wait(_PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)

    def _poll(self, track: _Track) -> None:
        due = self._clock.monotonic()
        while True:
            track.read(self._clock)
            track.tried.set()
            if track.vanished is not None:
                return
            now = self._clock.monotonic()
            due = max(due + track.sensor.info.interval_s, now)
            if self._clock.wait(self._stop, due - now):
                return

    def energy(self, name: str, begin: float, end: float, *, min_updates: int = 2) -> EnergyFigure:
        """Energy a sensor saw between two instants.

        Args:
            name: the sensor's ``info.name``.
            begin, end: s, monotonic.
            min_updates: fewer new values in the window leave it without a figure.

        Raises:
            InputError: no such sensor, or ``end`` is not after ``begin``.
        """
        track = self._track(name)
        info = track.sensor.info
        figure = window_energy(
            info.quantity, track.copy(), begin, end, interval_s=info.interval_s, min_updates=min_updates
        )
        if figure.joules is None and track.vanished is not None and track.vanished.time <= end:
            ago = end - track.vanished.time
            reason = f"the sensor vanished {ago:.3g} s before the window ended: {track.vanished.message}"
            return replace(figure, reason=reason)
        return figure

    def updates(self, name: str, begin: float) -> int:
        """New values of a sensor since an instant: readings of a power sensor, changes of a counter.

        Raises:
            InputError: no such sensor.
        """
        track = self._track(name)
        return count_updates(track.sensor.info.quantity, track.copy(begin), begin, math.inf)

    def samples(self, name: str) -> Samples:
        """A copy of everything read so far.

        Raises:
            InputError: no such sensor.
        """
        return self._track(name).copy()

    def vanished(self, name: str) -> Vanished | None:
        """When and why a sensor was lost; None while it is there.

        Raises:
            InputError: no such sensor.
        """
        return self._track(name).vanished

    def _track(self, name: str) -> _Track:
        if name not in self._tracks:
            raise InputError(f"no sensor {name!r} in this log; valid: {', '.join(self._tracks) or 'none'}")
        return self._tracks[name]
