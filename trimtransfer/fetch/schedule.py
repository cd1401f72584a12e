"""How fast a transfer may be at which hour of which day: a small language, and what follows from it for an instant.

Pure: instants are seconds since 1970, and the wall clock is a function from an instant to the local time. Rules hold by
what the wall clock shows, so on days on which it is put forward or back they begin and end when it shows their times;
an hour that occurs twice is ruled twice, one that is left out is not.

The language: rules with a ``;`` between them, of which the first that fits decides.

    mon-fri 08:00-18:00 500k; sat,sun 09:00-12:00,13:00-18:00 2M; daily 22:00-06:00 pause; otherwise unlimited

Days (``mon`` to ``sun``, lists and spans of them, ``daily``) and hours (``HH:MM-HH:MM``, ``24:00`` as an end) may be
left out: every day, the whole day. Hours that pass midnight belong to the day on which they begin. ``otherwise`` comes
last; without it there is no limit at other times. A rate is bytes per second (powers of 1024), ``unlimited``, or
``pause`` (0), which waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from trimtransfer.errors import FormatError

UNLIMITED: Final = float("inf")
MAX_TEXT: Final = 4096
"""Longest schedule in characters."""
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAILY: Final = frozenset(range(7))
_DAY_MINUTES: Final = 24 * 60
_HOUR: Final = 3600.0
_HORIZON: Final = 8 * 24 * _HOUR
"""Seconds after which a schedule has said everything: a week, and a day for what clocks are put forward or back."""
_LONGEST: Final = 366 * 24 * _HOUR
"""Seconds within which a transfer is followed."""
_RATE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmg]?)(?:i?b)?(?:/s)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SPAN: Final = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_EXAMPLE: Final = "such as: mon-fri 08:00-18:00 500k; otherwise unlimited"

LocalTime: TypeAlias = Callable[[float], datetime]
"""Returns what the wall clock shows at an instant."""


def system_time(instant: float) -> datetime:
    """Return what the wall clock of this machine shows at an instant."""
    return datetime.fromtimestamp(instant).astimezone()


def parse_rate(text: str) -> float | None:
    """Return bytes per second: ``500k``, ``2.5M``, ``1G`` (powers of 1024), 0 included; None: it is no rate."""
    match = _RATE.fullmatch(text)
    return float(match[1]) * _UNITS[match[2].lower()] if match else None


@dataclass(frozen=True, slots=True)
class Rule:
    """A rate (bytes per second) for hours that begin on ``days`` (0: Monday): minutes of the day, end exclusive.

    An end at or before its start is on the next day.
    """

    days: frozenset[int]
    spans: tuple[tuple[int, int], ...]
    rate: float

    def holds(self, day: int, minute: int) -> bool:
        """Tell whether it holds at a minute of a weekday."""
        for start, end in self.spans:
            if start < end:
                if day in self.days and start <= minute < end:
                    return True
            elif (day in self.days and minute >= start) or ((day - 1) % 7 in self.days and minute < end):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rules, of which the first that holds decides; ``otherwise`` is the rate at all other times."""

    rules: tuple[Rule, ...]
    otherwise: float = UNLIMITED

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read a schedule; ``FormatError`` that shows the rule which is none."""
        if len(text) > MAX_TEXT:
            raise FormatError("rate schedule", MAX_TEXT, f"at most {MAX_TEXT} characters", len(text))
        parts = [part for part in text.lower().split(";") if part.strip()]
        rules: list[Rule] = []
        for number, part in enumerate(parts, 1):
            words = part.split()
            if words[0] == "otherwise":
                if number < len(parts):
                    raise _refused(part, "as the last rule")
                return cls(tuple(rules), _rate(words[1:], part))
            rules.append(_rule(words, part))
        if not rules:
            raise _refused(text, f"rules, {_EXAMPLE}")
        return cls(tuple(rules))

    def rate_at(self, instant: float, local: LocalTime = system_time) -> float:
        """Return the rate at an instant: bytes per second, ``UNLIMITED``, or 0 for a pause."""
        shown = local(instant)
        day, minute = shown.weekday(), shown.hour * 60 + shown.minute
        return next((rule.rate for rule in self.rules if rule.holds(day, minute)), self.otherwise)

    def next_change(self, instant: float, local: LocalTime = system_time) -> float | None:
        """Return the first instant after this one at which the rate is another; None: it never changes."""
        rate = self.rate_at(instant, local)
        for candidate in self._candidates(instant, local):
            if self.rate_at(candidate, local) != rate:
                return candidate
        return None

    def _candidates(self, instant: float, local: LocalTime) -> Iterator[float]:
        """Yield the instants at which something may change: ends of spans, midnights, and jumps of the wall clock.

        While its distance from UTC stays the same, the wall clock is arithmetic. That distance is looked at every hour
        at least; should it differ, the jump is found by halving. So no time zone's rules need to be known.
        """
        edges = sorted({0, *(edge % _DAY_MINUTES for rule in self.rules for span in rule.spans for edge in span)})
        at, end = instant, instant + _HORIZON
        while at < end:
            offset = _offset(at, local)
            second = (at + offset) % (_DAY_MINUTES * 60)
            later = next((60 * edge for edge in edges if 60 * edge > second), 60 * (edges[0] + _DAY_MINUTES))
            following = min(at + later - second, at + _HOUR)
            if _offset(following, local) != offset:
                following = _jump(at, following, local)
            yield following
            at = following


def finish(
    schedule: Schedule | None,
    instant: float,
    size: float,
    most: float,
    local: LocalTime = system_time,
) -> float | None:
    """Return when ``size`` bytes have come that are fetched from an instant on with at most ``most`` bytes per second.

    None: not within a year.
    """
    at, end = instant, instant + _LONGEST
    while at < end:
        rate = most if schedule is None else min(most, schedule.rate_at(at, local))
        following = None if schedule is None else schedule.next_change(at, local)
        if following is None or size <= rate * (following - at):
            return at + size / rate if rate > 0 and size <= rate * (end - at) else None
        size -= rate * (following - at)
        at = following
    return None


def rate_text(rate: float) -> str:
    """Return a rate as the language writes it."""
    if rate == UNLIMITED:
        return "unlimited"
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
        if rate >= size:
            return f"{rate / size:.4g}{unit}"
    return f"{rate:.4g}" if rate else "pause"


def when_text(instant: float, now: float, local: LocalTime = system_time) -> str:
    """Return an instant for people: the time, with the day where that is not today."""
    shown, today = local(instant), local(now)
    if shown.date() == today.date():
        return f"{shown:%H:%M}"
    return f"{shown:%a %H:%M}" if shown.date() - today.date() < timedelta(days=7) else f"{shown:%Y-%m-%d %H:%M}"


def _rule(words: list[str], part: str) -> Rule:
    """Read days, hours and rate, of which the first two may be missing."""
    days: frozenset[int] = _DAILY
    spans: tuple[tuple[int, int], ...] = ((0, _DAY_MINUTES),)
    rest = list(words)
    if rest and rest[0][:3] in (*_DAYS, "dai"):
        days = _days(rest.pop(0), part)
    if rest and ":" in rest[0]:
        spans = tuple(_span(text, part) for text in rest.pop(0).split(","))
    return Rule(days, spans, _rate(rest, part))


def _days(text: str, part: str) -> frozenset[int]:
    if text == "daily":
        return _DAILY
    days: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise _refused(part, "days such as mon-fri or sat,sun, or daily")
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        days.update((start + number) % 7 for number in range((end - start) % 7 + 1))
    return frozenset(days)


def _span(text: str, part: str) -> tuple[int, int]:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise _refused(part, "hours such as 08:00-18:00")
    hours = [int(number) for number in match.groups()]
    start, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if hours[1] > 59 or hours[3] > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES or start == end:
        raise _refused(part, "two different times from 00:00 to 24:00")
    return start, end


def _rate(words: list[str], part: str) -> float:
    text = "".join(words)
    if text in ("unlimited", "pause"):
        return UNLIMITED if text == "unlimited" else 0.0
    rate = parse_rate(text)
    if rate is None:
        raise _refused(part, "days, hours and then a rate: 500k, 2.5M, unlimited or pause")
    return rate


def _refused(part: str, expected: str) -> FormatError:
    return FormatError("rate schedule", repr(part.strip()[:80]), expected, "something else")


def _offset(instant: float, local: LocalTime) -> float:
    """Return the seconds by which the wall clock is ahead of UTC at an instant."""
    shown = local(instant).replace(tzinfo=None, microsecond=0)
    return (shown - _EPOCH).total_seconds() - float(int(instant // 1))


_EPOCH: Final = datetime(1970, 1, 1)


def _jump(before: float, after: float, local: LocalTime) -> float:
    """Return the whole second at which the wall clock is put forward or back between two instants."""
    low, high = int(before // 1), int(-(-after // 1))
    offset = _offset(low, local)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(middle, local) == offset:
            low = middle
        else:
            high = middle
    return float(high)
