"""What is remembered of servers: how fast each was, how it failed, and so which one to ask next. Pure but for the file.

A server that fails rests, longer each time (a circuit breaker); afterwards it is tried with little, and is well again
once that succeeds. Everything fades, failures within a day, rates within weeks: nothing old decides for ever.
Instants are seconds since 1970, for this outlives the process; a clock that was set back frees whoever rests too long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_DAY: Final = 86_400.0
_FADE_FAILURES: Final = _DAY / 2
"""Seconds after which a failure counts half."""
_FADE_RATE: Final = 7 * _DAY
"""Seconds after which a measured rate counts half."""
_NEW_SHARE: Final = 0.3
"""Weight of one measurement beside those of a moment ago."""
_LEAST_MEASURED: Final = 256 << 10
"""Bytes from which on a transfer tells a rate: less is mostly waiting for the first byte."""
_FIRST_REST: Final = 60.0
_LONGEST_REST: Final = _DAY
_DAMAGE: Final = 6.0
"""Failures that one damaged delivery counts for."""
_FORGIVEN: Final = 0.5
"""Failures below which a server is well, though it has not served since."""
_MOST_FILE: Final = 64 << 10
_MOST_SERVERS: Final = 64
_HUGE: Final = 1e15


class State(Enum):
    """Whether a server may be asked."""

    WELL = "well"
    PROBE = "probe"
    """It failed and has rested: ask it for a little."""
    RESTING = "resting"


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one server: ``rate`` in bytes per second as of ``measured`` (0: never), ``failures`` in a row as
    of ``failed``, and until when it rests."""

    rate: float = 0.0
    measured: float = 0.0
    failures: float = 0.0
    failed: float = 0.0
    rests_until: float = 0.0

    def served(self, size: int, seconds: float, *, now: float) -> Health:
        """Return what is known after it served so many bytes in so many seconds."""
        well = replace(self, failures=0.0, rests_until=0.0)
        if size < _LEAST_MEASURED:
            return well
        found = size / max(seconds, 1e-3)
        share = 1.0 if not self.rate else 1.0 - (1.0 - _NEW_SHARE) * _faded(now - self.measured, _FADE_RATE)
        return replace(well, rate=self.rate + share * (found - self.rate), measured=now)

    def failing(self, *, now: float, damaged: bool = False) -> Health:
        """Return what is known after it failed, or delivered what was damaged."""
        failures = self._failures(now) + (_DAMAGE if damaged else 1.0)
        rest = _LONGEST_REST if damaged else min(_LONGEST_REST, _FIRST_REST * 2.0 ** min(failures - 1, 30))
        return replace(self, failures=failures, failed=now, rests_until=now + rest)

    def state(self, now: float) -> State:
        """Return whether it may be asked at an instant."""
        if 0 < self.rests_until - now <= _LONGEST_REST:
            return State.RESTING
        return State.PROBE if self._failures(now) >= _FORGIVEN else State.WELL

    def weight(self, now: float, typical: float) -> float:
        """Return how much speaks for it: the square of the rate to be expected, where ``typical`` is that of others."""
        known = _faded(now - self.measured, _FADE_RATE) if self.rate else 0.0
        expected = known * self.rate + (1.0 - known) * typical
        expected *= math.pow(0.5, min(60.0, self._failures(now)))
        return expected * expected

    def _failures(self, now: float) -> float:
        return self.failures * _faded(now - self.failed, _FADE_FAILURES)


def choose(healths: Sequence[Health], *, now: float, chance: float) -> int | None:
    """Return which server to ask, better ones more often; None: all rest. ``chance`` is random in [0, 1).

    A server that nothing is known of is taken for a typical one, so it gets its turn.
    """
    rates = [health.rate for health in healths if health.rate]
    typical = sum(rates) / len(rates) if rates else 1.0
    weights = [0.0 if one.state(now) is State.RESTING else max(1e-300, one.weight(now, typical)) for one in healths]
    left = chance * sum(weights)
    for number, weight in enumerate(weights):
        left -= weight
        if weight and left < 0:
            return number
    return max((number for number, weight in enumerate(weights) if weight), default=None)


class HealthMemory:
    """A file with what is known of servers, by URL (without secrets). It is a cache: unreadable, it counts as empty."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known = self._load()
        self._changed: set[str] = set()

    def __getitem__(self, url: str) -> Health:
        return self._known.get(url, Health())

    def __setitem__(self, url: str, health: Health) -> None:
        self._known[url] = health
        self._changed.add(url)

    def forget(self) -> None:
        """Drop what was noted since the last :meth:`save`."""
        self._known = self._load()
        self._changed.clear()

    def save(self) -> None:
        """Write what has changed since; what other processes wrote of other servers stays. Trouble is not told."""
        if self._path is None or not self._changed:
            return
        changed = {url: self._known[url] for url in self._changed}
        newest = sorted((self._load() | changed).items(), key=lambda item: max(item[1].measured, item[1].failed))
        values = {url: {one.name: getattr(health, one.name) for one in fields(health)} for url, health in newest}
        kept = dict(list(values.items())[-_MOST_SERVERS:])
        data = json.dumps({"format": 1, "servers": kept}, indent=1).encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix="mirrors-", delete=False) as file:
                try:
                    file.write(data)
                    file.close()
                    os.replace(file.name, self._path)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(file.name)
                    raise
        except OSError as error:
            _LOG.info("what was learnt of mirrors is not kept: %s", error)
        self._changed.clear()

    def _load(self) -> dict[str, Health]:
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as file:
                data = file.read(_MOST_FILE + 1)
            return parse_servers(data) if len(data) <= _MOST_FILE else {}
        except (OSError, ValueError, RecursionError):
            return {}


def parse_servers(data: bytes) -> dict[str, Health]:
    """Return what such a file says, less entries that make no sense; ``ValueError`` or ``RecursionError``: nothing."""
    top = json.loads(data)
    servers = top.get("servers") if isinstance(top, dict) and top.get("format") == 1 else None
    if not isinstance(servers, dict):
        raise ValueError("not a list of servers")
    found = {url: _health(values) for url, values in list(servers.items())[:_MOST_SERVERS]}
    return {url: health for url, health in found.items() if health is not None}


def _health(values: Any) -> Health | None:
    if not isinstance(values, Mapping):
        return None
    numbers = {one.name: values.get(one.name) for one in fields(Health)}
    found = {name: float(number) for name, number in numbers.items() if isinstance(number, int | float)}
    return Health(**found) if len(found) == len(numbers) and all(0 <= n < _HUGE for n in found.values()) else None


def _faded(age: float, half: float) -> float:
    """Return what is left after ``age`` seconds of what loses a half in ``half`` seconds; all of it in the future."""
    return math.pow(0.5, min(60.0, max(0.0, age) / half))
