"""A clock for tests: threads run for real, time passes only while all of them wait, and then at once."""

import threading


class VirtualClock:
    """Stands in for ``SystemClock``; to it belong the thread that made it and every other from its first call on."""

    def __init__(self, wall_offset: float = 1.7e9) -> None:
        self.wall_offset = wall_offset
        """Unix time less monotonic time; change it to set the clock."""
        self._now = 1000.0
        self._changed = threading.Condition()
        self._known = {threading.current_thread()}
        self._waiting: dict[threading.Thread, float] = {}

    def monotonic(self) -> float:
        with self._changed:
            self._known.add(threading.current_thread())
            return self._now

    def wall(self) -> float:
        return self.monotonic() + self.wall_offset

    def sleep(self, seconds: float) -> None:
        self.wait(threading.Event(), seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        me = threading.current_thread()
        with self._changed:
            self._known.add(me)
            until = self._now + seconds
            self._waiting[me] = until
            self._pass_time()
            while self._now < until and not event.is_set():
                self._changed.wait(0.002)  # an event that is set, or a thread that ended, tells nobody
                self._pass_time()
            del self._waiting[me]
        return event.is_set()

    def _pass_time(self) -> None:
        self._known = {thread for thread in self._known if thread.is_alive()}
        if self._known <= self._waiting.keys():
            self._now = max(self._now, min(self._waiting.values()))
            self._changed.notify_all()
