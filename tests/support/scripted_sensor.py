"""A sensor whose power over time is known, on a clock of the test's choosing."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from collafuse_benchmarks.energy.sensors.base import SensorInfo
from collafuse_benchmarks.measure.clock import Clock
from collafuse_runtimes.errors import SensorLost


@dataclass
class Curve:
    """Power that is linear between points: ramps and, with two points at one instant, steps.

    Attributes:
        times: s, not falling.
        watts: W at these instants.
    """

    times: Sequence[float]
    watts: Sequence[float]

    def power(self, t: float) -> float:
        k = int(np.searchsorted(self.times, t, "right"))
        if k in (0, len(self.times)):
            return self.watts[min(k, len(self.times) - 1)]
        t0, t1 = self.times[k - 1 : k + 1]
        w0, w1 = self.watts[k - 1 : k + 1]
        return w0 + (w1 - w0) * (t - t0) / (t1 - t0)

    def energy(self, begin: float, end: float) -> float:
        """Exact: the mean of the ends over every stretch on which power is linear."""
        edges = [begin, *(t for t in self.times if begin < t < end), end]
        total = 0.0
        for a, b in pairwise(edges):
            inside = a + (b - a) * 0.5
            total += self.power(inside) * (b - a)
        return total


def constant(watts: float) -> Curve:
    return Curve([0.0, 1.0], [watts, watts])


@dataclass
class Scripted:
    """Reads ``curve`` on ``clock``.

    Attributes:
        refresh_s: a counter has a new value only so often; 0 always.
        read_s: how long a reading takes, but for the first, until ``end`` is set.
        fails: instants (begin, end) between which readings fail.
        lost: instant from which the sensor is gone.
        stuck: instant from which a counter does not move.
    """

    curve: Curve
    clock: Clock
    quantity: str = "power"
    name: str = "scripted"
    scope: str = "board"
    interval_s: float = 0.1
    refresh_s: float = 0.0
    read_s: float = 0.0
    fails: Sequence[tuple[float, float]] = ()
    lost: float = float("inf")
    stuck: float = float("inf")
    on_read: Callable[[], None] = field(default=lambda: None)
    end: threading.Event = field(default_factory=threading.Event)
    reads: int = 0
    closed: bool = False

    @property
    def info(self) -> SensorInfo:
        return SensorInfo(self.name, self.quantity, self.scope, "a known curve", self.interval_s)

    def read(self) -> float:
        self.on_read()
        half = self.read_s / 2 if self.reads else 0.0
        self.reads += 1
        self.clock.wait(self.end, half)
        now = self.clock.monotonic()
        self.clock.wait(self.end, half)
        if now >= self.lost:
            raise SensorLost("the cable was pulled")
        if any(begin <= now <= end for begin, end in self.fails):
            raise OSError(5, "Input/output error")
        if self.quantity == "power":
            return self.curve.power(now)
        now = min(now, self.stuck)
        if self.refresh_s:
            now = np.floor(now / self.refresh_s) * self.refresh_s
        return self.curve.energy(0.0, float(now))

    def close(self) -> None:
        self.closed = True
