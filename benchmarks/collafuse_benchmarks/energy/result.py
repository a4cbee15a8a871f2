"""What an energy measurement found: windows, trials, and per sensor the figures with their reasons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from collafuse_benchmarks.energy.integrate import EnergyFigure, Samples
from collafuse_benchmarks.energy.sensors.base import SensorInfo
from collafuse_benchmarks.measure.record import Record
from collafuse_runtimes.errors import InputError

Label = Literal["measured", "unavailable"]
Clock = Literal["monotonic", "unix"]


@dataclass(frozen=True)
class Window(Record):
    """A stretch of time on both clocks.

    Attributes:
        begin, end: s, monotonic; the clock of the sensors' samples.
        begin_unix, end_unix: s, Unix time; the clock of a wall meter's file.
    """

    derived: ClassVar = ("seconds",)
    begin: float
    end: float
    begin_unix: float
    end_unix: float

    @property
    def seconds(self) -> float:
        """Its length by the monotonic clock."""
        return self.end - self.begin


@dataclass(frozen=True)
class Trial:
    """One window of work.

    Attributes:
        window: from before its first unit of work to after its last.
        images: made in it, at least 1.
        units: calls of the work in it.
    """

    window: Window
    images: int
    units: int

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f"images {self.images} out of range: must be at least 1")


@dataclass(frozen=True)
class IdlePower:
    """Mean power of an idle window.

    Attributes:
        watts: None where it could not be measured.
        reason: one line, why there is no figure; None exactly where there is one.
        updates, dropped: as in ``EnergyFigure``.
    """

    watts: float | None
    reason: str | None
    updates: int
    dropped: int


@dataclass(frozen=True)
class TrialEnergy:
    """One trial as one sensor saw it.

    Attributes:
        energy: of the whole window.
        gross_j_per_image: energy over images; None where there is no energy.
        net_j_per_image: the same less idle power times time; None where energy or idle power is missing.
    """

    energy: EnergyFigure
    gross_j_per_image: float | None
    net_j_per_image: float | None


@dataclass(frozen=True)
class Statistic:
    """J/image over the trials.

    Attributes:
        label: "measured" or "unavailable".
        mean: J/image; None exactly where the label is "unavailable".
        std: with ddof 1; None for fewer than two trials.
        trials: how many the mean is over.
        reason: one line, what is missing; None where every trial counts.
    """

    label: Label
    mean: float | None
    std: float | None
    trials: int
    reason: str | None


@dataclass(frozen=True)
class RawSamples:
    """Everything a sensor gave.

    Attributes:
        clock: "monotonic" or "unix", of all times here.
        times: s, the middle of each reading.
        values: W, or J of a counter.
        dropped: s, of the readings that failed.
        vanished: s, when the sensor was lost for good; None where it was not.
    """

    clock: Clock
    times: tuple[float, ...]
    values: tuple[float, ...]
    dropped: tuple[float, ...]
    vanished: float | None

    def __post_init__(self) -> None:
        if len(self.times) != len(self.values):
            raise InputError(f"{len(self.times)} times and {len(self.values)} values; valid: as many of both")


@dataclass(frozen=True)
class SensorEnergy:
    """The measurement as one sensor saw it.

    Attributes:
        info: the sensor, with its scope.
        idle_before, idle_after: mean power of the two idle windows.
        idle_w: mean of both, subtracted for net figures; None where one is missing.
        idle_drift_w: after less before; None where one is missing.
        trials: one per trial of the result, in its order.
        gross, net: over the trials.
        samples: all raw readings.
    """

    info: SensorInfo
    idle_before: IdlePower
    idle_after: IdlePower
    idle_w: float | None
    idle_drift_w: float | None
    trials: tuple[TrialEnergy, ...]
    gross: Statistic
    net: Statistic
    samples: RawSamples


@dataclass(frozen=True)
class Timeline:
    """When everything was; None for an idle window that was not finished."""

    idle_before: Window | None
    trials: tuple[Trial, ...]
    idle_after: Window | None

    @property
    def windows(self) -> tuple[Window, ...]:
        """All finished windows in order."""
        every = (self.idle_before, *(trial.window for trial in self.trials), self.idle_after)
        return tuple(window for window in every if window is not None)


def sensor_energy(
    info: SensorInfo, timeline: Timeline, energy_of: Callable[[Window], EnergyFigure], samples: RawSamples
) -> SensorEnergy:
    """All figures of one sensor.

    Args:
        energy_of: the energy the sensor saw in a window.
    """
    before, after = _idle_power(timeline.idle_before, energy_of), _idle_power(timeline.idle_after, energy_of)
    idle_w = drift_w = None
    if before.watts is not None and after.watts is not None:
        idle_w, drift_w = (before.watts + after.watts) / 2, after.watts - before.watts
    trials = tuple(_trial_energy(trial, energy_of(trial.window), idle_w) for trial in timeline.trials)
    gross = _statistic([trial.gross_j_per_image for trial in trials], _gross_reason(trials))
    no_idle = next((f"idle power: {idle.reason}" for idle in (before, after) if idle.reason is not None), None)
    net = _statistic([trial.net_j_per_image for trial in trials], gross.reason or no_idle)
    return SensorEnergy(info, before, after, idle_w, drift_w, trials, gross, net, samples)


def _idle_power(window: Window | None, energy_of: Callable[[Window], EnergyFigure]) -> IdlePower:
    if window is None:
        return IdlePower(None, "the run was stopped before this window ended", 0, 0)
    figure = energy_of(window)
    watts = None if figure.joules is None else figure.joules / window.seconds
    return IdlePower(watts, figure.reason, figure.updates, figure.dropped)


def _trial_energy(trial: Trial, figure: EnergyFigure, idle_w: float | None) -> TrialEnergy:
    if figure.joules is None:
        return TrialEnergy(figure, None, None)
    net = None if idle_w is None else (figure.joules - idle_w * trial.window.seconds) / trial.images
    return TrialEnergy(figure, figure.joules / trial.images, net)


def _gross_reason(trials: Sequence[TrialEnergy]) -> str | None:
    if not trials:
        return "no trial was finished"
    reasons = [(k, trial.energy.reason) for k, trial in enumerate(trials, 1) if trial.energy.reason is not None]
    return f"trial {reasons[0][0]} of {len(trials)}: {reasons[0][1]}" if reasons else None


def _statistic(values: Sequence[float | None], reason: str | None) -> Statistic:
    found = [value for value in values if value is not None]
    if not found:
        return Statistic("unavailable", None, None, 0, reason)
    std = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Statistic("measured", float(np.mean(found)), std, len(found), reason)


def raw_samples(clock: Clock, samples: Samples, vanished: float | None) -> RawSamples:
    """Arrays to plain numbers."""
    times, values, dropped = (tuple(array.tolist()) for array in (samples.times, samples.values, samples.dropped))
    return RawSamples(clock, times, values, dropped, vanished)
