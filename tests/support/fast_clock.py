"""A clock for tests of real work: seconds pass twenty times as fast."""

import threading
import time

SPEED = 20.0


class FastClock:
    """Stands in for ``SystemClock``."""

    def monotonic(self) -> float:
        return time.monotonic() * SPEED

    def wall(self) -> float:
        return time.time() * SPEED

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / SPEED)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds / SPEED)
