"""How long long work takes: a warning on a busy machine, an estimate from its first steps, and the time of a step."""

import sys
import time
from collections.abc import Callable

TIMED_STEPS = 2
"""Steps after the first, which warms up, that the estimate goes by."""


class Pace:
    """Told of every step as it ends; says once, on stderr, how long all of them take.

    Args:
        title: of the work, e.g. "train server".
        total: steps in all.
        clock: seconds.
    """

    def __init__(self, title: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._total, self._clock = title, total, clock
        self._calls, self._warm, self._seconds = 0, 0.0, 0.0

    def step(self, done: int) -> str:
        """After a step: seconds a step, "" after the first one, which warms up; ``done`` of the total are done."""
        now = self._clock()
        self._calls += 1
        if self._calls == 1:
            self._warm = now
            return ""
        self._seconds = (now - self._warm) / (self._calls - 1)
        if self._calls == 1 + TIMED_STEPS and done < self._total:
            left = self._total - done
            print(
                f"{self._title}: about {duration(left * self._seconds)} on this machine for the {left} steps to come, "
                f"{self._seconds:.2g} s each",
                file=sys.stderr,
                flush=True,
            )
        return f"{self._seconds:.2g} s/step"


def duration(seconds: float) -> str:
    """In the unit people use: "8 s", "14 min", "3.2 h", "2.5 days"."""
    for limit, unit, name, digits in ((99.5, 1, "s", 0), (5970, 60, "min", 0), (129_600, 3600, "h", 1)):
        if seconds < limit:
            return f"{max(seconds / unit, 1 if unit == 1 else 0):.{digits}f} {name}"
    return f"{seconds / 86_400:.1f} days"


def warn_if_busy(title: str) -> None:
    """One line on stderr where other work keeps the machine busy before this one begins."""
    from collafuse_runtimes.device.busy import busy_text

    if why := busy_text():
        print(
            f"warning   {title}: this machine is busy ({why}); every step may take several times as long as on a quiet "
            "one",
            file=sys.stderr,
            flush=True,
        )
