"""How often a thing is timed: warm-up, then runs until there are enough and enough time has passed."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from collafuse_runtimes.device.turns import in_turns
from collafuse_runtimes.errors import InputError

Measure = Callable[[int], Sequence[float]]
"""Does run number i and returns its samples, milliseconds."""
Save = Callable[[list[float]], None]
Turns = dict[str, list[list[float]]]
"""Name -> samples of each of its turns, milliseconds."""
SECONDS_BETWEEN_SAVES = 5.0
TURNS = 10
SETTLE_S = 0.1
Result = TypeVar("Result")


@dataclass(frozen=True)
class Mode:
    """How long to measure.

    Attributes:
        name: "quick" or "report".
        warmup: runs before the first that counts.
        runs: that count, at least.
        seconds: of them, at least.
        cold_starts: processes started afresh.
    """

    name: str
    warmup: int
    runs: int
    seconds: float
    cold_starts: int


QUICK = Mode("quick", warmup=10, runs=10, seconds=10.0, cold_starts=3)
REPORT = Mode("report", warmup=10, runs=64, seconds=60.0, cold_starts=5)
MODES = {mode.name: mode for mode in (QUICK, REPORT)}


def mode_named(name: str) -> Mode:
    """The mode of that name.

    Raises:
        InputError: there is none.
    """
    if name not in MODES:
        raise InputError(f"unknown mode {name!r}; valid: {', '.join(MODES)}")
    return MODES[name]


def collect(
    measure: Measure, mode: Mode, save: Save = lambda _: None, *, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Samples of ``measure`` in milliseconds, warm-up left out, with the garbage collector off as in ``timeit``.

    Args:
        save: given all samples so far every few seconds, and when the measurement is broken off.
        clock: seconds; decides when enough time has passed, not how long a run took.
    """
    samples: list[float] = []
    for i in range(mode.warmup):
        measure(i)
    was_on, begun = gc.isenabled(), clock()
    gc.collect()
    gc.disable()
    try:
        saved = begun
        runs = 0
        while runs < mode.runs or clock() - begun < mode.seconds:
            samples.extend(measure(mode.warmup + runs))
            runs += 1
            if clock() - saved >= SECONDS_BETWEEN_SAVES:
                save(samples)
                saved = clock()
    except BaseException:
        save(samples)
        raise
    finally:
        if was_on:
            gc.enable()
    return samples


def host_timed(run: Callable[[int], object]) -> Measure:
    """``run`` between two readings of the host's clock; it must return when its result is there."""

    def measure(i: int) -> tuple[float]:
        begun = time.perf_counter()
        run(i)
        return ((time.perf_counter() - begun) * 1e3,)

    return measure


def collect_in_turns(
    measures: Mapping[str, Measure],
    mode: Mode,
    save: Callable[[Turns], None] = lambda _: None,
    *,
    on_turn: Callable[[int, int], None] = lambda *_: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Samples of several things side by side: ten rounds in which each has a turn, in a fresh order every round.

    What drifts on the machine then drifts for all of them, and ratios taken within a round hold. A turn is a pause
    (thread pools of the one before go on spinning for a while), one run that does not count, and a tenth of the runs
    and seconds of ``mode``.

    Args:
        save: given all samples so far after every turn, and when the measurement is broken off.
        on_turn: told (turns done, turns in all).
    """
    samples: Turns = {name: [] for name in measures}
    done = 0
    try:
        for _, name in in_turns(sorted(measures), TURNS, SETTLE_S):
            measures[name](done)
            samples[name].append(_turn(measures[name], mode, clock))
            done += 1
            save(samples)
            on_turn(done, TURNS * len(measures))
    except BaseException:
        save(samples)
        raise
    return samples


def _turn(measure: Measure, mode: Mode, clock: Callable[[], float]) -> list[float]:
    part = Mode(mode.name, 0, -(-mode.runs // TURNS), mode.seconds / TURNS, 0)
    return collect(measure, part, clock=clock)


def time_rounds(
    runs: Mapping[str, Callable[[int], Result]],
    rounds: int,
    *,
    warmup: int = 1,
    settle_s: float = 0.0,
    on_result: Callable[[int, str, Result], None] = lambda *_: None,
) -> dict[str, list[float]]:
    """Milliseconds of several things side by side: one run of each every round, in a fresh order every round.

    Args:
        runs: each given the number of the round; it must return when its result is there.
        rounds: that count, after ``warmup`` others.
        settle_s: pause before each run.
        on_result: given (round, name, result) outside of what is timed, of the warm-up too.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for k, name in in_turns(list(runs), warmup + rounds, settle_s):
        begun = time.perf_counter()
        result = runs[name](k)
        samples[name].append((time.perf_counter() - begun) * 1e3)
        on_result(k, name, result)
    return {name: of_one[warmup:] for name, of_one in samples.items()}


def median_ratio(samples: Sequence[float], reference: Sequence[float]) -> float:
    """Of the ratios within a round: what drifts on the machine drifts for both."""
    return float(np.median(np.divide(samples, reference)))
