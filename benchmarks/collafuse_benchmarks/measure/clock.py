"""The clocks a measurement runs on: a steady one for its figures, the wall clock to match other records."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Time, and waiting for it."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never set, never slewed by more than NTP's rate."""

    def wall(self) -> float:
        """Unix seconds; jumps when somebody sets the clock."""

    def sleep(self, seconds: float) -> None:
        """Wait; Ctrl-C ends it."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait, at most until ``event`` is set; whether it is."""


class SystemClock:
    """This machine's: ``time.monotonic`` (CLOCK_MONOTONIC on Linux) and ``time.time``."""

    def monotonic(self) -> float:
        """See ``Clock``."""
        return time.monotonic()

    def wall(self) -> float:
        """See ``Clock``."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """See ``Clock``."""
        time.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """See ``Clock``."""
        return event.wait(seconds)


SYSTEM_CLOCK = SystemClock()
