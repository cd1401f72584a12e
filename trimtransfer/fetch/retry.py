"""What to do when a request failed: one table from cause to action, and the limits of patience.

Pure: time and chance are arguments. The table is :data:`RULES`; :class:`Attempts` applies it to one transfer and adds
what depends on history: growing delays with jitter, ``Retry-After`` up to a cap, a budget of time without progress.
A transfer that moves forward never runs out of patience; one that stands still ends with the last failure's cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """Timers (seconds) and limits of a store that is reached by HTTP."""

    connect: float = 10.0
    """One address's time to accept a connection; TLS has as much again."""
    stall: float = 60.0
    """Cut a request that brings less than ``min_progress`` bytes for so long; the head of an answer counts as one."""
    min_progress: int = 1024
    """Bytes that count as progress: a server that drips one byte every few seconds does not make any."""
    asleep: float = 15.0
    """A pause of this process for so long (suspended, stopped) is taken for sleep: connections are made anew."""
    first_delay: float = 0.5
    """Delay before the first retry; doubled for each further one."""
    max_delay: float = 30.0
    """Cap of the doubled delay."""
    retry_after_cap: float = 120.0
    """Longest obeyed ``Retry-After``: servers send absurd ones."""
    budget: float = 900.0
    """Give up after so long without progress."""
    first_budget: float = 30.0
    """The same while the server has never answered: then the address is more likely wrong than the network."""
    refused_budget: float = 5.0
    """The same where connections are refused at once: a server that is being started anew is back by then."""
    attempts: int = 40
    """Give up after so many failures in a row without progress."""
    refreshes: int = 1
    """Repetitions, past caches, of an answer that is not what was asked for."""
    whole_limit: int = 64 << 20
    """Most bytes of an object that are streamed to cut a range out, where the server ignores ranges."""
    look_ahead: int = 256
    """Ranges known in advance where the server ignores ranges, so that each object is fetched once."""
    in_flight: int = 16 << 20
    """Bytes of ranges being fetched at once, all connections together, however many there are: a kill loses no more."""
    redirects: int = 5
    """Longest chain of redirects."""


class Cause(Enum):
    """Why a request failed, as far as the decision depends on it."""

    MISSING = "missing"
    DENIED = "denied"
    PROXY_DENIED = "proxy denied"
    BEYOND_END = "beyond end"
    REFUSED = "refused"
    CERTIFICATE = "certificate"
    NOT_TLS = "not TLS"
    REDIRECT = "redirect"
    TOO_LARGE = "too large without ranges"
    BUSY = "busy"
    SERVER = "server error"
    NOBODY = "nobody listens"
    CONNECTION = "connection"
    STALL = "stall"
    CUT = "cut"
    ASLEEP = "asleep"
    PAUSED = "paused"
    WRONG_RANGE = "wrong range"
    ENCODED = "encoded"


class Action(Enum):
    """What a failure leads to."""

    FATAL = "fatal"
    """Repeating cannot help."""
    BACKOFF = "backoff"
    """Repeat after a growing delay."""
    WAIT = "wait"
    """As BACKOFF, but the server's ``Retry-After`` decides where there is one; fewer requests at once from now on."""
    REFRESH = "refresh"
    """Repeat ``FetchOptions.refreshes`` times, asking caches for a fresh copy."""


RULES: Final[Mapping[Cause, Action]] = {
    Cause.MISSING: Action.FATAL,
    Cause.DENIED: Action.FATAL,
    Cause.PROXY_DENIED: Action.FATAL,
    Cause.BEYOND_END: Action.FATAL,
    Cause.REFUSED: Action.FATAL,
    Cause.CERTIFICATE: Action.FATAL,
    Cause.NOT_TLS: Action.FATAL,
    Cause.REDIRECT: Action.FATAL,
    Cause.TOO_LARGE: Action.FATAL,
    Cause.BUSY: Action.WAIT,
    Cause.SERVER: Action.BACKOFF,
    Cause.NOBODY: Action.BACKOFF,
    Cause.CONNECTION: Action.BACKOFF,
    Cause.STALL: Action.BACKOFF,
    Cause.CUT: Action.BACKOFF,
    Cause.ASLEEP: Action.BACKOFF,
    Cause.PAUSED: Action.BACKOFF,
    Cause.WRONG_RANGE: Action.REFRESH,
    Cause.ENCODED: Action.REFRESH,
}

_STATUS: Final[Mapping[int, Cause]] = {
    401: Cause.DENIED,
    403: Cause.DENIED,
    404: Cause.MISSING,
    407: Cause.PROXY_DENIED,
    408: Cause.SERVER,
    410: Cause.MISSING,
    416: Cause.BEYOND_END,
    421: Cause.SERVER,
    425: Cause.SERVER,
    429: Cause.BUSY,
    501: Cause.REFUSED,
    503: Cause.BUSY,
    505: Cause.REFUSED,
}


def cause_of_status(status: int) -> Cause:
    """Return the cause that an HTTP status other than 200, 206 and a redirect stands for."""
    return _STATUS.get(status, Cause.SERVER if 500 <= status <= 599 else Cause.REFUSED)


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for (RFC 9110 section 10.2.3), or None: absent, nonsense.

    ``now`` is the wall clock (aware), for the form that is a date; a date in the past is 0.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, OverflowError, TypeError, IndexError):  # what the parser raises depends on the nonsense
        return None


class Failed(Exception):
    """One attempt that failed: ``cause``, HTTP ``status``, ``retry_after`` in seconds; its text is for people."""

    def __init__(
        self, cause: Cause, detail: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.cause, self.status, self.retry_after = cause, status, retry_after


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a failure: an end with its ``reason`` (None: none), or a repetition after ``delay`` seconds."""

    delay: float = 0.0
    refresh: bool = False
    """Ask caches for a fresh copy."""
    slower: bool = False
    """All requests of this store wait for the delay, and fewer run at once."""
    give_up: bool = False
    reason: str = ""
    """Why patience ended, for the message; empty where repeating could never help."""


class Attempts:
    """The failures of one transfer since it last moved forward. ``now`` is a monotonic clock in seconds."""

    def __init__(self, options: FetchOptions, *, now: float) -> None:
        self._options = options
        self._since = now
        self._failures = 0
        self._refreshes = 0

    def progressed(self, *, now: float) -> None:
        """Note that bytes arrived: delays and budget begin anew."""
        self._since = now
        self._failures = 0

    def failed(self, failure: Failed, *, now: float, jitter: float, proven: bool = True) -> Decision:
        """Decide what follows a failure.

        ``jitter`` is a random number in [0, 1), so that clients hit by one outage do not return in step; ``proven``
        tells whether this server has ever answered.
        """
        action = RULES[failure.cause]
        self._failures += 1
        if action is Action.FATAL:
            return Decision(give_up=True)
        if action is Action.REFRESH:
            self._refreshes += 1
            if self._refreshes > self._options.refreshes:
                return Decision(give_up=True, reason=f"{self._refreshes} times in a row")
        delay = self._delay(failure, jitter)
        budget = self._options.budget if proven else self._first_budget(failure)
        if self._failures >= self._options.attempts or now + delay - self._since > budget:
            reason = f"no progress in {self._failures} attempts, {now - self._since:.0f} seconds"
            return Decision(give_up=True, reason=reason)
        return Decision(delay, refresh=action is Action.REFRESH, slower=action is Action.WAIT)

    def _first_budget(self, failure: Failed) -> float:
        """Return the seconds for a server that has never answered."""
        options = self._options
        return (
            min(options.first_budget, options.refused_budget) if failure.cause is Cause.NOBODY else options.first_budget
        )

    def _delay(self, failure: Failed, jitter: float) -> float:
        """Return the seconds to wait: a doubling delay less up to its half, or what the server asks for, capped."""
        options = self._options
        doubled = min(options.max_delay, options.first_delay * 2.0 ** min(self._failures - 1, 30))
        delay = doubled * (1.0 - jitter / 2)
        if RULES[failure.cause] is Action.WAIT and failure.retry_after is not None:
            return min(options.retry_after_cap, failure.retry_after) + jitter * options.first_delay
        return delay
