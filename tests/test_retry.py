"""The decision table: what follows which failure, when patience ends, and what a Retry-After is worth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.fetch.retry import (
    RULES,
    Action,
    Attempts,
    Cause,
    Decision,
    Failed,
    FetchOptions,
    cause_of_status,
    parse_retry_after,
)

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
PATIENT = FetchOptions(
    first_delay=1, max_delay=8, retry_after_cap=120, budget=900, first_budget=30, attempts=40, refreshes=1
)


def attempts(options: FetchOptions = PATIENT) -> Attempts:
    return Attempts(options, now=0)


def test_every_cause_has_a_rule() -> None:
    assert set(RULES) == set(Cause)


@pytest.mark.parametrize(
    ("status", "cause", "action"),
    [
        (400, Cause.REFUSED, Action.FATAL),
        (401, Cause.DENIED, Action.FATAL),
        (403, Cause.DENIED, Action.FATAL),
        (404, Cause.MISSING, Action.FATAL),
        (405, Cause.REFUSED, Action.FATAL),
        (407, Cause.PROXY_DENIED, Action.FATAL),
        (408, Cause.SERVER, Action.BACKOFF),
        (410, Cause.MISSING, Action.FATAL),
        (416, Cause.BEYOND_END, Action.FATAL),
        (421, Cause.SERVER, Action.BACKOFF),
        (425, Cause.SERVER, Action.BACKOFF),
        (429, Cause.BUSY, Action.WAIT),
        (451, Cause.REFUSED, Action.FATAL),
        (500, Cause.SERVER, Action.BACKOFF),
        (501, Cause.REFUSED, Action.FATAL),
        (502, Cause.SERVER, Action.BACKOFF),
        (503, Cause.BUSY, Action.WAIT),
        (504, Cause.SERVER, Action.BACKOFF),
        (505, Cause.REFUSED, Action.FATAL),
        (599, Cause.SERVER, Action.BACKOFF),
        (204, Cause.REFUSED, Action.FATAL),
        (304, Cause.REFUSED, Action.FATAL),
        (600, Cause.REFUSED, Action.FATAL),
        (999, Cause.REFUSED, Action.FATAL),
    ],
)
def test_statuses(status: int, cause: Cause, action: Action) -> None:
    assert cause_of_status(status) is cause
    assert RULES[cause] is action


@pytest.mark.parametrize("cause", Cause)
def test_what_follows_a_first_failure(cause: Cause) -> None:
    decision = attempts().failed(Failed(cause, "x", retry_after=5), now=1, jitter=0)
    expected = {
        Action.FATAL: Decision(give_up=True),
        Action.BACKOFF: Decision(delay=1),
        Action.WAIT: Decision(delay=5, slower=True),
        Action.REFRESH: Decision(delay=1, refresh=True),
    }
    assert decision == expected[RULES[cause]]


def test_delays_double_up_to_the_cap_and_jitter_takes_up_to_half() -> None:
    history = attempts()
    delays = [history.failed(Failed(Cause.STALL, "x"), now=1, jitter=0).delay for _ in range(6)]
    assert delays == [1, 2, 4, 8, 8, 8]
    assert attempts().failed(Failed(Cause.STALL, "x"), now=1, jitter=0.5).delay == 0.75


def test_progress_begins_anew() -> None:
    history = attempts()
    for _ in range(39):
        assert not history.failed(Failed(Cause.CUT, "x"), now=1, jitter=0).give_up
    history.progressed(now=800)
    assert history.failed(Failed(Cause.CUT, "x"), now=1600, jitter=0) == Decision(delay=1)


def test_patience_ends_after_the_attempts() -> None:
    history = attempts()
    ends = [history.failed(Failed(Cause.CONNECTION, "x"), now=1, jitter=0).give_up for _ in range(40)]
    assert ends == [False] * 39 + [True]


@pytest.mark.parametrize(("proven", "last"), [(True, 898.0), (False, 28.0)])
def test_patience_ends_with_the_budget(proven: bool, last: float) -> None:
    failure = Failed(Cause.CONNECTION, "x")
    assert not attempts().failed(failure, now=last, jitter=0, proven=proven).give_up
    decision = attempts().failed(failure, now=last + 2, jitter=0, proven=proven)
    assert decision.give_up
    assert "no progress in 1 attempts" in decision.reason


def test_where_nobody_listens_patience_is_short_until_a_server_has_answered() -> None:
    failure = Failed(Cause.NOBODY, "x")
    assert attempts().failed(failure, now=6, jitter=0, proven=False).give_up
    assert not attempts().failed(failure, now=3, jitter=0, proven=False).give_up
    assert not attempts().failed(failure, now=800, jitter=0).give_up


def test_a_wrong_answer_is_refreshed_once_even_with_progress_between() -> None:
    history = attempts()
    assert history.failed(Failed(Cause.WRONG_RANGE, "x"), now=1, jitter=0).refresh
    history.progressed(now=2)
    assert history.failed(Failed(Cause.ENCODED, "x"), now=3, jitter=0) == Decision(
        give_up=True, reason="2 times in a row"
    )


@pytest.mark.parametrize(
    ("asked", "delay"), [(None, 1.0), (0.0, 0.0), (7.0, 7.0), (120.0, 120.0), (1e12, 120.0)], ids=str
)
def test_retry_after_is_obeyed_up_to_the_cap(asked: float | None, delay: float) -> None:
    assert attempts().failed(Failed(Cause.BUSY, "x", retry_after=asked), now=1, jitter=0).delay == delay


def test_retry_after_counts_for_busy_servers_only() -> None:
    assert attempts().failed(Failed(Cause.SERVER, "x", retry_after=50), now=1, jitter=0).delay == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        (" 17 ", 17),
        ("-5", None),
        ("1.5", None),
        ("9" * 5000, 999_999_999_999),
        ("soon", None),
        ("²", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0),
        ("Fri, 20 Nov 2026 12:00:30 -0000", 30),
        ("Fri, 99 Nov 2026 12:00:30 GMT", None),
        ("Fri, 20 Nov 99999999999 12:00:30 GMT", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_retry_after_values(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


@given(st.text(max_size=60))
def test_retry_after_of_any_text_is_none_or_a_wait(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or seconds >= 0


@given(st.lists(st.tuples(st.sampled_from(Cause), st.floats(0, 60), st.booleans()), max_size=120), st.floats(0, 0.999))
def test_no_history_leads_past_the_limits(steps: list[tuple[Cause, float, bool]], jitter: float) -> None:
    history, now, since, failures = attempts(), 0.0, 0.0, 0
    for cause, duration, progress in steps:
        now += duration
        if progress:
            history.progressed(now=now)
            since, failures = now, 0
        failures += 1
        decision = history.failed(Failed(cause, "x", retry_after=duration * 9), now=now, jitter=jitter)
        if decision.give_up:
            return
        assert RULES[cause] is not Action.FATAL
        assert failures < PATIENT.attempts
        assert now + decision.delay - since <= PATIENT.budget
        assert 0 <= decision.delay <= PATIENT.retry_after_cap + PATIENT.first_delay
        now += decision.delay
