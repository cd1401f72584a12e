"""The rate in force: one for all connections to all servers of a run, decided anew while it runs.

What is asked for (a limit, a schedule, yielding to others) is looked at every half second by the thread that watches a
transfer, so that a new hour, or somebody else's traffic, takes effect within a second. A rate of 0 is a pause: running
requests are broken off - what has arrived is kept - and none begins until it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from trimtransfer.errors import LimitReached
from trimtransfer.fetch.ratelimit import TokenBucket
from trimtransfer.fetch.schedule import UNLIMITED, LocalTime, Schedule, rate_text, system_time, when_text

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_INTERVAL: Final = 0.5
"""Seconds between two decisions."""
_LONGEST: Final = 4 * _INTERVAL
"""Most seconds of one interval that count as paused: nobody waits where no transfer runs."""


class Yields(Protocol):
    """What gives way to others on the line."""

    def rate(self, received: int) -> float:
        """Return the bytes per second to go on with; ``received`` counts all of this run's so far."""
        ...

    def connected(self, address: str) -> None:
        """Note an address that this run is connected to."""
        ...

    def answered(self, seconds: float) -> None:
        """Note how long a server took to begin an answer."""
        ...


class Throttle:
    """The rate in force. ``limit`` in bytes per second, ``allowance`` in bytes altogether (None: no such limit).

    ``clock`` is monotonic, ``wall`` and ``local`` tell the instant and what the wall clock shows then.
    """

    def __init__(
        self,
        limit: float | None = None,
        *,
        schedule: Schedule | None = None,
        yields: Yields | None = None,
        allowance: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        local: LocalTime = system_time,
    ) -> None:
        self.bucket = TokenBucket(limit, clock=clock)
        self.yields = yields
        self.paused = False
        """Whether nothing may be fetched now."""
        self.paused_seconds = 0.0
        """How long transfers have waited for the schedule."""
        self._limit, self._schedule, self._allowance = limit, schedule, allowance
        self._clock, self._wall, self._local = clock, wall, local
        self._lock = threading.Lock()
        self._received = 0
        self._governed = clock()
        self._decide()

    @property
    def limit(self) -> float | None:
        """The limit that holds at all times; may be changed."""
        return self._limit

    @limit.setter
    def limit(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ValueError(f"rate limit {rate!r}: give bytes per second above 0, or None for no limit")
        with self._lock:
            self._limit = rate
            self._decide()

    @property
    def rate(self) -> float | None:
        """Bytes per second in force: None for no limit, 0 for a pause."""
        return 0.0 if self.paused else self.bucket.rate

    def govern(self) -> None:
        """Decide anew, if that is due. Called several times a second while a transfer runs."""
        with self._lock:
            now = self._clock()
            passed = now - self._governed
            if passed < _INTERVAL:
                return
            self._governed = now
            if self.paused:
                self.paused_seconds += min(passed, _LONGEST)
            self._decide()

    def count(self, size: int) -> None:
        """Count bytes that have arrived; ``LimitReached`` where they are more than may be fetched altogether."""
        with self._lock:
            self._received += size
            received = self._received
        if self._allowance is not None and received > self._allowance:
            raise LimitReached(self._allowance)

    def connected(self, address: str) -> None:
        """Note an address that a connection leads to."""
        if self.yields is not None:
            self.yields.connected(address)

    def answered(self, seconds: float) -> None:
        """Note how long a server took to begin an answer, on a connection that stood already."""
        if self.yields is not None:
            self.yields.answered(seconds)

    def _decide(self) -> None:
        scheduled = UNLIMITED if self._schedule is None else self._schedule.rate_at(self._wall(), self._local)
        rate = min(UNLIMITED if self._limit is None else self._limit, scheduled)
        if rate > 0 and self.yields is not None:
            rate = min(rate, self.yields.rate(self._received))
        if rate > 0:
            if self.paused:
                _LOG.warning("the rate schedule's pause is over")
            self.paused = False
            self.bucket.rate = None if rate == UNLIMITED else rate
        elif not self.paused:
            self.paused = True
            _LOG.warning("paused by the rate schedule%s; Ctrl-C loses nothing", self._until())

    def _until(self) -> str:
        now = self._wall()
        change = self._schedule.next_change(now, self._local) if self._schedule is not None else None
        if change is None or self._schedule is None:
            return " for good"
        then = rate_text(self._schedule.rate_at(change, self._local))
        return f" until {when_text(change, now, self._local)}, then {then}"
