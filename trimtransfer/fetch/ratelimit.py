"""Politeness towards a server and towards others on the line: a token bucket for bytes, a gate for requests.

Both are shared by all connections of a store. Waiting ends early when the ``stop`` event of the waiting transfer is
set. Clocks are monotonic.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_BURST: Final = 0.1
"""Seconds of transfer that an idle bucket saves up: 1 % of any 10 seconds."""
_RECOVERY: Final = 16
"""Requests in a row without complaint after which a slowed gate lets one more through at once."""
_TICK: Final = 0.05


class TokenBucket:
    """Bytes per second. ``rate`` may be changed at any time; None means no limit.

    The bucket may go into debt: bytes that have arrived are paid for afterwards, by waiting.
    """

    def __init__(self, rate: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = 0.0
        self._at = clock()
        self._rate: float | None = None
        self.rate = rate

    @property
    def rate(self) -> float | None:
        """Bytes per second, all connections together."""
        return self._rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ValueError(f"rate limit {rate!r}: give bytes per second above 0, or None for no limit")
        with self._lock:
            self._refill()
            self._rate = rate
            if rate is None:
                self._tokens = 0.0

    def spend(self, count: int) -> float:
        """Take ``count`` bytes out and return the seconds to wait before more may arrive."""
        with self._lock:
            self._refill()
            if self._rate is None:
                return 0.0
            self._tokens -= count
            return max(0.0, -self._tokens / self._rate)

    def pay(self, count: int, stop: threading.Event) -> None:
        """Take ``count`` bytes out and wait for them; a changed rate is felt within a second."""
        wait = self.spend(count)
        while wait > 0 and not stop.wait(min(wait, 1.0)):
            wait = self.spend(0)

    def _refill(self) -> None:
        now = self._clock()
        if self._rate is not None:
            self._tokens = min(self._rate * _BURST, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Flight:
    """Bytes on their way at once, at most ``limit``: what a killed process has fetched in vain.

    A single larger load is let through alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._loaded = 0

    @contextmanager
    def load(self, size: int, stop: threading.Event) -> Iterator[bool]:
        """Wait for room and hold it; yields False, at once, where ``stop`` is set."""
        if not self._enter(size, stop):
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._loaded -= size
                self._changed.notify_all()

    def _enter(self, size: int, stop: threading.Event) -> bool:
        with self._changed:
            while not stop.is_set():
                if not self._loaded or self._loaded + size <= self._limit:
                    self._loaded += size
                    return True
                self._changed.wait(_TICK)
        return False


class Gate:
    """How many requests run at once: ``limit`` at most, fewer after the server complained, none while it pauses us."""

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._most = self.limit = limit
        self._running = 0
        self._smooth = 0
        self._closed_until = clock()

    @contextmanager
    def passage(self, stop: threading.Event) -> Iterator[bool]:
        """Wait for a place and hold it; yields False, at once, where ``stop`` is set."""
        if not self._enter(stop):
            yield False
            return
        try:
            yield True
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify()

    def complained(self, delay: float) -> None:
        """Halve the number of requests at once, and let none start for ``delay`` seconds."""
        with self._changed:
            self.limit = max(1, self.limit // 2)
            self._smooth = 0
            self._closed_until = max(self._closed_until, self._clock() + delay)

    def went_well(self) -> None:
        """Note a request without complaint; after some, a slowed gate opens a little."""
        with self._changed:
            self._smooth += 1
            if self._smooth >= _RECOVERY and self.limit < self._most:
                self.limit += 1
                self._smooth = 0
                self._changed.notify()

    def _enter(self, stop: threading.Event) -> bool:
        with self._changed:
            while not stop.is_set():
                if self._running < self.limit and self._clock() >= self._closed_until:
                    self._running += 1
                    return True
                self._changed.wait(_TICK)
        return False
