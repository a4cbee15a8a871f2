"""Energy per image: idle, work in several trials, idle again, watched by every sensor of the machine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from collafuse_benchmarks.energy.integrate import EnergyFigure
from collafuse_benchmarks.energy.power_log import PowerLog
from collafuse_benchmarks.energy.result import (
    SensorEnergy,
    Timeline,
    Trial,
    Window,
    raw_samples,
    sensor_energy,
)
from collafuse_benchmarks.energy.sensors.base import Sensor
from collafuse_benchmarks.energy.sensors.meter import MeterLog
from collafuse_benchmarks.energy.settings import EnergySettings
from collafuse_benchmarks.measure.clock import SYSTEM_CLOCK, Clock
from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.errors import InputError

Progress = Callable[[str, float], None]
"""Called with the phase ("warm-up", "idle before", "trial 1 of 5", ..., "idle after") and how much of it is done."""

_LOOK_S = 0.25
"""How often a window asks whether it has lasted long enough, and progress is told."""
_SETTLE_S = 2.0
"""Longest wait for a sensor's next reading before the first window and after the last."""
_CLOCK_SET_S = 0.25
"""More than NTP's slewing moves the wall clock in minutes."""


DEFAULTS = EnergySettings()


@dataclass(frozen=True)
class EnergyResult:
    """Outcome of ``measure_energy``.

    Attributes:
        settings: as asked for.
        timeline: idle windows and trials, with images and seconds, whether or not there was a sensor.
        sensors: figures per sensor; scopes may overlap, so they are never added up.
        reasons: of kinds of sensors that cannot be used here, one line each.
        complete: False where the run was stopped; unfinished windows are not in it.
        stated: ``reason`` in the words of the file that the result was read from.
    """

    settings: EnergySettings
    timeline: Timeline
    sensors: tuple[SensorEnergy, ...]
    reasons: dict[str, str]
    complete: bool
    stated: str | None = None

    @property
    def reason(self) -> str | None:
        """Why there is no energy at all; None where there was a sensor."""
        if self.sensors:
            return None
        return self.stated or in_words(self.reasons) or "no sensor was given"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with every raw sample."""
        return _Kept(
            settings=self.settings,
            complete=self.complete,
            idle_before=self.timeline.idle_before,
            trials=self.timeline.trials,
            idle_after=self.timeline.idle_after,
            energy=self.sensors or None,
            reason=self.reason,
            reasons=self.reasons,
        ).to_dict()

    @classmethod
    def from_dict(cls, value: object) -> "EnergyResult":
        """Inverse of ``to_dict``.

        Raises:
            InputError: names the field that is missing, unknown or odd.
        """
        kept = _Kept.from_dict(value)
        timeline = Timeline(kept.idle_before, kept.trials, kept.idle_after)
        return cls(kept.settings, timeline, kept.energy or (), kept.reasons, kept.complete, kept.reason)


@dataclass(frozen=True)
class _Kept(Record):
    """An ``EnergyResult`` as its JSON is laid out."""

    settings: EnergySettings
    complete: bool
    idle_before: Window | None
    trials: tuple[Trial, ...]
    idle_after: Window | None
    energy: tuple[SensorEnergy, ...] | None
    reason: str | None
    reasons: dict[str, str]


def in_words(reasons: Mapping[str, str]) -> str:
    """Why each kind of sensor cannot be used, in one line; empty where there is none."""
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())


class EnergyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a measurement; ``result`` holds the finished windows and trials, complete False."""

    def __init__(self, result: EnergyResult) -> None:
        super().__init__("the energy measurement was stopped")
        self.result = result


def measure_energy(
    work: Callable[[], int],
    sensors: Sequence[Sensor],
    settings: EnergySettings = DEFAULTS,
    *,
    reasons: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
    on_result: Callable[[EnergyResult], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> EnergyResult:
    """Measure idle power, then energy per image over trials of ``work``, then idle power again.

    Args:
        work: does one unit of work, waits for its end, and returns how many images it made (at least 1). Warm-up comes
            first, so that "idle" is the machine with everything loaded and nothing to do.
        sensors: may be none: the result then tells images and seconds, and why there is no energy. Not closed.
        reasons: of sensors that cannot be used, as ``Found.reasons``; kept in the result.
        on_progress: told a few times a second, in the measured windows too: let it be cheap.
        on_result: given the result so far between two windows: what it was last given is what a kill leaves.

    Raises:
        InputError: ``work`` returned no count of images, or two sensors have one name.
        EnergyInterrupted: Ctrl-C; carries the result so far.
    """
    with PowerLog(sensors, clock=clock) as log:

        def tell() -> None:
            if on_result is not None:
                run.settle()
                on_result(_result(run, sensors, reasons or {}, complete=False))

        run = _Run(work, [sensor.info.name for sensor in sensors], settings, log, clock, on_progress, tell)
        try:
            run.measure()
        except KeyboardInterrupt as stop:
            with suppress(KeyboardInterrupt):  # a second one does not wait for the last readings
                run.settle()
            raise EnergyInterrupted(_result(run, sensors, reasons or {}, complete=False)) from stop
    return _result(run, sensors, reasons or {}, complete=True)


class _Run:
    """The windows of one measurement as they come."""

    def __init__(
        self,
        work: Callable[[], int],
        names: Sequence[str],
        settings: EnergySettings,
        log: PowerLog,
        clock: Clock,
        on_progress: Progress | None,
        on_window: Callable[[], None],
    ) -> None:
        self.settings, self.log = settings, log
        self._work, self._clock, self._on_progress, self._on_window = work, clock, on_progress, on_window
        self._awaited = list(names)
        self._idle_before: Window | None = None
        self._trials: list[Trial] = []
        self._idle_after: Window | None = None

    @property
    def timeline(self) -> Timeline:
        return Timeline(self._idle_before, tuple(self._trials), self._idle_after)

    def measure(self) -> None:
        settings = self.settings
        for k in range(settings.warmup):
            self._tell("warm-up", k / settings.warmup)
            self._unit()
        self.settle()
        self._idle_before = self._idle("idle before")
        for k in range(settings.trials):
            self._on_window()
            self._trials.append(self._trial(f"trial {k + 1} of {settings.trials}"))
        self._on_window()
        self._idle_after = self._idle("idle after")
        self.settle()

    def _idle(self, phase: str) -> Window:
        return self._window(phase, self.settings.idle_s, lambda: self._clock.sleep(_LOOK_S))

    def _trial(self, phase: str) -> Trial:
        counts: list[int] = []
        window = self._window(phase, self.settings.window_s, lambda: counts.append(self._unit()))
        return Trial(window, sum(counts), len(counts))

    def _unit(self) -> int:
        images = self._work()
        if isinstance(images, bool) or not isinstance(images, int | np.integer) or images < 1:
            raise InputError(f"the work returned {images!r}; valid is the number of images it made, at least 1")
        return int(images)

    def _window(self, phase: str, seconds: float, step: Callable[[], None]) -> Window:
        """Repeat ``step`` until the time is over and every sensor has moved often enough, at most prolong_s."""
        begin, begin_unix = self._clock.monotonic(), self._clock.wall()
        passed = look = 0.0
        while not (passed >= look and self._is_enough(begin, passed, seconds)):
            if passed >= look:
                self._tell(phase, min(passed / seconds, 1.0))
                look = min(passed + _LOOK_S, seconds) if passed < seconds else passed + _LOOK_S
            step()
            passed = self._clock.monotonic() - begin
        window = Window(begin, self._clock.monotonic(), begin_unix, self._clock.wall())
        self._tell(phase, 1.0)
        return window

    def _is_enough(self, begin: float, passed: float, seconds: float) -> bool:
        if passed < seconds:
            return False
        counts = {name: self.log.updates(name, begin) for name in self._awaited if self.log.vanished(name) is None}
        if min(counts.values(), default=self.settings.min_updates) >= self.settings.min_updates:
            return True
        if passed < seconds + self.settings.prolong_s:
            return False
        self._awaited = [name for name, count in counts.items() if count]  # what never moves is not waited for again
        return True

    def settle(self) -> None:
        """Let every sensor read once more, so that the next or last window begins or ends between two readings."""
        now = self._clock.monotonic()
        names = [name for name in self._awaited if self.log.vanished(name) is None]
        while self._clock.monotonic() - now < _SETTLE_S and not all(self.log.updates(name, now) for name in names):
            self._clock.sleep(0.01)

    def _tell(self, phase: str, share: float) -> None:
        if self._on_progress is not None:
            self._on_progress(phase, share)


def _result(run: _Run, sensors: Sequence[Sensor], reasons: Mapping[str, str], *, complete: bool) -> EnergyResult:
    log, timeline, settings = run.log, run.timeline, run.settings

    def one(sensor: Sensor) -> SensorEnergy:
        name = sensor.info.name

        def energy_of(window: Window) -> EnergyFigure:
            return log.energy(name, window.begin, window.end, min_updates=settings.min_updates)

        vanished = log.vanished(name)
        samples = raw_samples("monotonic", log.samples(name), vanished.time if vanished else None)
        return sensor_energy(sensor.info, timeline, energy_of, samples)

    return EnergyResult(settings, timeline, tuple(map(one, sensors)), dict(reasons), complete)


def with_meter(result: EnergyResult, meter: MeterLog) -> EnergyResult:
    """The same result with the figures of a wall meter added, or renewed; its idle windows are the run's.

    The meter's clock and this machine's must agree: an offset shifts every window by as much.

    Raises:
        InputError: the file does not cover a window, the machine's clock was set during the run, or no window was
            finished.
    """
    windows = result.timeline.windows
    if not windows:
        raise InputError("the run was stopped before its first window ended: there is nothing to match with a meter")
    offsets = [unix - mono for w in windows for mono, unix in ((w.begin, w.begin_unix), (w.end, w.end_unix))]
    jump = max(offsets) - min(offsets)
    if jump > _CLOCK_SET_S:
        raise InputError(
            f"this machine's clock was set by {jump:.3g} s during the run, so {meter.path} cannot be matched with it: "
            "synchronise the clocks (NTP) and measure again"
        )

    def energy_of(window: Window) -> EnergyFigure:
        return meter.energy(window.begin_unix, window.end_unix, min_updates=result.settings.min_updates)

    info = meter.info
    readings = meter.between(windows[0].begin_unix, windows[-1].end_unix)
    added = sensor_energy(info, result.timeline, energy_of, raw_samples("unix", readings, None))
    others = tuple(sensor for sensor in result.sensors if sensor.info.name != info.name)
    return replace(result, sensors=(*others, added))
