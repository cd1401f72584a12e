"""A clock that does not count sleep: a laptop that was closed, a process that was stopped.

After sleep connections are dead although nothing says so, and timers that ran out meanwhile prove nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

_SUSPENDED: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def running_time() -> float:
    """Return seconds of a monotonic clock that runs on while the machine is suspended, where there is one."""
    return time.monotonic() if _SUSPENDED is None else time.clock_gettime(_SUSPENDED)


class AwakeClock:
    """Seconds of ``clock`` less those of sleeps. Read it several times a second: a gap of ``gap`` seconds is a sleep.

    ``outer`` is the clock by which gaps show: one that also counts suspension. Safe among threads.
    """

    def __init__(
        self,
        gap: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        outer: Callable[[], float] = running_time,
    ) -> None:
        self._gap, self._clock, self._outer = gap, clock, outer
        self._lock = threading.Lock()
        self._asleep = 0.0
        self._sleeps = 0
        self._last = clock(), outer()

    def resume(self) -> bool:
        """Begin to be read again after a pause in which nobody did; tell whether the machine slept in it."""
        with self._lock:
            now = self._clock(), self._outer()
            passed, really = now[0] - self._last[0], now[1] - self._last[1]
            self._last = now
            if really >= self._gap:
                self._asleep += passed
            return really - passed >= self._gap

    def read(self) -> tuple[float, int]:
        """Return the seconds, and how many sleeps there were so far."""
        with self._lock:
            now = self._clock(), self._outer()
            if now[1] - self._last[1] >= self._gap:
                self._asleep += now[0] - self._last[0]
                self._sleeps += 1
            self._last = now
            return now[0] - self._asleep, self._sleeps
