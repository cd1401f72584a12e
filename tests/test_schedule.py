"""Rates by the hour: the language, the rate of every minute beside an obvious twin, and clocks that are put forward."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC as ZERO
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtransfer.errors import FormatError
from trimtransfer.fetch.schedule import UNLIMITED, Rule, Schedule, finish, parse_rate, rate_text, when_text

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
OFFICE = "mon-fri 08:00-18:00 500k; otherwise unlimited"
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")
"""Half an hour put forward, offsets of 45 minutes, a day left out (Apia, 30 December 2011)."""


def clock(zone: str) -> Callable[[float], datetime]:
    """Return the wall clock of a zone."""
    try:
        info = ZoneInfo(zone)
    except ZoneInfoNotFoundError:
        pytest.skip("no time zone data on this machine")
    return lambda instant: datetime.fromtimestamp(instant, info)


def utc(*when: int) -> float:
    return datetime(*when, tzinfo=ZERO).timestamp()  # type: ignore[arg-type, misc]


UTC = clock("UTC")

# ---- the language


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500k", Schedule((Rule(frozenset(range(7)), ((0, 1440),), 512000.0),))),
        ("otherwise 1M", Schedule((), 1048576.0)),
        (OFFICE, Schedule((Rule(frozenset(range(5)), ((480, 1080),), 512000.0),), UNLIMITED)),
        (
            " SAT,Sun-Mon 22:00-06:00,07:30-24:00 2.5 MB/s ;; daily pause; otherwise 0;",
            Schedule((Rule(frozenset((5, 6, 0)), ((1320, 360), (450, 1440)), 2621440.0),
                      Rule(frozenset(range(7)), ((0, 1440),), 0.0)), 0.0),
        ),
        ("fri-mon unlimited", Schedule((Rule(frozenset((4, 5, 6, 0)), ((0, 1440),), UNLIMITED),))),
    ],
)  # fmt: skip
def test_the_language(text: str, expected: Schedule) -> None:
    assert Schedule.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "rules, such as"),
        (" ; ", "rules, such as"),
        ("mon", "then a rate"),
        ("mon-fri 08:00-18:00", "then a rate"),
        ("mon-fry 1k", "days such as"),
        ("monday 1k", "days such as"),
        ("mon 8:00-18:00 1k", "hours such as"),
        ("mon 08:00-08:00 1k", "two different times"),
        ("mon 08:60-09:00 1k", "two different times"),
        ("mon 24:00-01:00 1k", "two different times"),
        ("mon 08:00-24:01 1k", "two different times"),
        ("08:00-18:00 mon 1k", "then a rate"),
        ("mon -1k", "then a rate"),
        ("mon 1k 2k", "then a rate"),
        ("otherwise 1k; mon 2k", "as the last rule"),
        ("mon 1e9", "then a rate"),
        ("mon 08:00\u0660-18:00 1k", "hours such as"),
        ("x" * 5000, "at most 4096"),
    ],
)
def test_what_is_no_schedule_says_what_it_should_be(text: str, hint: str) -> None:
    with pytest.raises(FormatError, match=hint):
        Schedule.parse(text)


@given(st.text(alphabet="monfrisatwedly 0123456789:-,;kMGunlimtedpaush.", max_size=60))
def test_any_text_is_a_schedule_or_is_refused(text: str) -> None:
    try:
        schedule = Schedule.parse(text)
    except FormatError:
        return
    assert schedule.rate_at(utc(2026, 11, 21), UTC) >= 0


def test_rates() -> None:
    assert [parse_rate(text) for text in ("0", "1.5k", "2MiB/s", "1G", "k", "-1", "")] == [
        0, 1536, 2 << 20, 1 << 30, None, None, None,
    ]  # fmt: skip
    assert [rate_text(rate) for rate in (0.0, 100.0, 512000.0, 2.5 * (1 << 20), 3.0 * (1 << 30), UNLIMITED)] == [
        "pause", "100", "500k", "2.5M", "3G", "unlimited",
    ]  # fmt: skip


# ---- every minute, beside a twin

SPANS = st.tuples(st.integers(0, 1439), st.integers(1, 1440)).filter(lambda span: span[0] != span[1])
RULES = st.tuples(
    st.sets(st.sampled_from(DAYS), min_size=1),
    st.lists(SPANS, min_size=1, max_size=3),
    st.sampled_from(["pause", "unlimited", "1k", "2k", "3M"]),
)
SCHEDULES = st.lists(RULES, min_size=1, max_size=4)
RATES = {"pause": 0.0, "unlimited": UNLIMITED, "1k": 1024.0, "2k": 2048.0, "3M": 3.0 * (1 << 20)}
Rules = list[tuple[set[str], list[tuple[int, int]], str]]


def text_of(rules: Rules) -> str:
    """Write rules in the language."""

    def span(one: tuple[int, int]) -> str:
        return f"{one[0] // 60:02}:{one[0] % 60:02}-{one[1] // 60:02}:{one[1] % 60:02}"

    return "; ".join(f"{','.join(sorted(days))} {','.join(map(span, spans))} {rate}" for days, spans, rate in rules)


def week_of(rules: Rules) -> list[float]:
    """Return the rate of every minute of a week, each rule painted over those after it."""
    minutes = [UNLIMITED] * (7 * 1440)
    for days, spans, rate in reversed(rules):
        for day in days:
            for start, end in spans:
                for minute in range(start, end if end > start else end + 1440):
                    minutes[(DAYS.index(day) * 1440 + minute) % len(minutes)] = RATES[rate]
    return minutes


@given(SCHEDULES, st.integers(0, 7 * 1440 - 1))
def test_the_rate_of_every_minute(rules: Rules, first: int) -> None:
    schedule, week = Schedule.parse(text_of(rules)), week_of(rules)
    monday = utc(2026, 11, 16)
    for minute in {first, *(edge % 10080 for edge in range(first, first + 2000, 97))}:
        assert schedule.rate_at(monday + minute * MINUTE + 59.9, UTC) == week[minute]
    change = schedule.next_change(monday + first * MINUTE + 1, UTC)
    ahead = next((n for n in range(1, 10081) if week[(first + n) % 10080] != week[first]), None)
    assert change == (None if ahead is None else monday + (first + ahead) * MINUTE)


@settings(max_examples=50)
@given(SCHEDULES, st.sampled_from(ZONES), st.sampled_from([2011, 2026]), st.integers(0, 364), st.data())
def test_no_change_is_missed_when_clocks_jump(
    rules: Rules, zone: str, year: int, day: int, data: st.DataObject
) -> None:
    """From a change to the next the rate stays the same, minute by minute; there it differs from the minute before."""
    local, schedule = clock(zone), Schedule.parse(text_of(rules))
    at = utc(year, 1, 1) + day * DAY + data.draw(st.integers(0, 86399))
    change = schedule.next_change(at, local)
    rate = schedule.rate_at(at, local)
    end = at + 8 * DAY if change is None else change
    steps = range(1, int((end - at) // MINUTE))
    for step in random.Random(day).sample(steps, min(len(steps), 60)):
        assert schedule.rate_at(at + step * MINUTE, local) == rate
    assert schedule.rate_at(end - 1, local) == rate
    if change is not None:
        assert schedule.rate_at(change, local) != rate


def test_clocks_put_forward_and_back() -> None:
    """Berlin 2026: 02:00 becomes 03:00 on 29 March (01:00 UTC), 03:00 becomes 02:00 on 25 October (01:00 UTC)."""
    local = clock("Europe/Berlin")
    schedule = Schedule.parse("daily 02:00-02:30 1k; otherwise unlimited")
    spring, autumn = utc(2026, 3, 29), utc(2026, 10, 25)
    assert schedule.next_change(spring, local) == utc(2026, 3, 30, 0, 0), "the half hour that was left out"
    changes, at = [], autumn - HOUR
    for _ in range(4):
        at = schedule.next_change(at, local) or 0.0
        changes.append(at - autumn)
    assert changes == [0, 30 * MINUTE, HOUR, 90 * MINUTE], "the half hour that came twice"
    night = Schedule.parse("sat 22:00-06:00 pause")
    assert night.next_change(spring - HOUR, local) == utc(2026, 3, 29, 4), "at 06:00 by the clock: seven hours"


def test_midnight_belongs_to_the_day_before() -> None:
    schedule = Schedule.parse("fri 22:00-06:00 1k; otherwise 2k")
    hours = [schedule.rate_at(utc(2026, 11, 20) + hour * HOUR, UTC) for hour in (0, 5, 21, 22, 29, 30, 46)]
    assert hours == [2048, 2048, 2048, 1024, 1024, 2048, 2048]


# ---- when a transfer ends


@settings(max_examples=40)
@given(SCHEDULES, st.integers(0, 10079), st.integers(1, 1 << 34), st.sampled_from([500.0, 5000.0, 1e7]))
def test_the_end_of_a_transfer(rules: Rules, first: int, size: int, most: float) -> None:
    schedule, week = Schedule.parse(text_of(rules)), week_of(rules)
    start = utc(2026, 11, 16) + first * MINUTE
    found = finish(schedule, start, size, most, UTC)
    left, minute = float(size), 0
    weekly = sum(min(most, rate) * MINUTE for rate in week)
    weeks = max(0, int(left // weekly) - 1) if weekly else 60
    left -= weeks * weekly
    expected = None
    while expected is None and minute < 4 * 10080 and weeks < 60:
        step = min(most, week[(first + minute) % 10080]) * MINUTE
        if step >= left:
            expected = (weeks * 10080 + minute + left / step) * MINUTE
        left, minute = left - step, minute + 1
    if expected is None or expected > 366 * DAY:
        assert found is None
    else:
        assert found == pytest.approx(start + expected, abs=0.1)


def test_an_end_that_does_not_come() -> None:
    assert finish(Schedule.parse("pause"), 0, 1, 100, UTC) is None
    assert finish(Schedule.parse("1k"), 0, 366 * DAY * 100 + 1, 100, UTC) is None
    assert finish(Schedule.parse("1k"), 0, 10**9, 100, UTC) == 10**7
    assert finish(Schedule.parse("mon 00:00-00:01 1; otherwise pause"), 0, 10**9, 100, UTC) is None
    assert finish(None, 1000, 500, 100) == 1005


def test_times_for_people() -> None:
    now = utc(2026, 11, 20, 9)
    later = [now + HOUR, now + DAY, now + 7 * DAY]
    assert [when_text(at, now, UTC) for at in later] == ["10:00", "Sat 09:00", "2026-11-27 09:00"]
    assert when_text(now, now, lambda at: UTC(at) + timedelta(hours=1)) == "10:00"
