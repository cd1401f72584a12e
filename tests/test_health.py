"""The memory of servers' health: what failures and deliveries do to it, whom it chooses, and the file that keeps it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.fetch.health import Health, HealthMemory, State, choose, parse_servers

NOW, MINUTE, HOUR, DAY = 1_800_000_000.0, 60.0, 3600.0, 86400.0
MIB = 1 << 20
FAST, SLOW = (Health().served(rate * MIB, 1, now=NOW) for rate in (10, 1))


def test_rests_grow_and_a_success_ends_them() -> None:
    health, now, rests = Health(), NOW, []
    for _ in range(8):
        assert health.state(now) is not State.RESTING
        health = health.failing(now=now)
        rests.append(health.rests_until - now)
        assert health.state(now) is health.state(health.rests_until - 1) is State.RESTING
        now = health.rests_until
        assert health.state(now) is State.PROBE
    assert rests[0] == MINUTE
    assert rests == sorted(rests)
    assert 30 * MINUTE < rests[-1] <= DAY
    assert health.served(1000, 1, now=now).state(now) is State.WELL


def test_damage_is_a_day_of_rest_and_failures_fade() -> None:
    lied = Health().failing(now=NOW, damaged=True)
    assert lied.rests_until == NOW + DAY
    assert lied.state(NOW + DAY) is State.PROBE
    failed = Health().failing(now=NOW)
    assert (failed.state(NOW + HOUR), failed.state(NOW + DAY)) == (State.PROBE, State.WELL)


def test_a_clock_that_was_set_back_imprisons_nobody() -> None:
    assert Health().failing(now=NOW + 10 * DAY).state(NOW) is State.PROBE


def test_rates_follow_what_is_measured() -> None:
    health = FAST
    for _ in range(20):
        health = health.served(MIB, 1, now=NOW)
    assert MIB < health.rate < 1.01 * MIB
    assert FAST.served(1000, 100, now=NOW).rate == FAST.rate, "too little to tell"
    assert FAST.served(MIB, 1, now=NOW + 30 * DAY).rate < 2 * MIB, "what is old counts little"


def shares(*healths: Health, now: float = NOW) -> list[float]:
    """Return how often each is chosen."""
    counts = Counter(choose(healths, now=now, chance=n / 1000) for n in range(1000))
    return [counts[n] / 1000 for n in range(len(healths))]


def test_the_better_one_is_asked_more_often() -> None:
    assert shares(FAST, SLOW) == [pytest.approx(0.99, abs=0.002), pytest.approx(0.01, abs=0.002)]
    assert shares(FAST, FAST.failing(now=NOW), now=NOW + HOUR)[0] > 0.7
    assert shares(FAST, Health()) == [0.5, 0.5], "an unknown one gets its turn"
    assert shares(Health(), Health(), Health()) == [pytest.approx(1 / 3, abs=0.01)] * 3
    assert shares(SLOW, FAST.failing(now=NOW)) == [1.0, 0.0], "who rests is not asked"
    assert choose([SLOW.failing(now=NOW)], now=NOW, chance=0.5) is None
    assert choose([], now=NOW, chance=0.5) is None


EVENTS = st.lists(
    st.tuples(st.sampled_from("sfd"), st.floats(0, 10 * DAY), st.integers(0, 1 << 40), st.floats(0, 1e6)), max_size=20
)


@given(st.lists(EVENTS, min_size=1, max_size=4), st.floats(0, 1, exclude_max=True), st.floats(-100 * DAY, 100 * DAY))
def test_whatever_happens_somebody_who_does_not_rest_is_chosen(
    histories: list[list[tuple[str, float, int, float]]], chance: float, later: float
) -> None:
    healths = []
    for history in histories:
        health, now = Health(), NOW
        for kind, wait, size, seconds in history:
            now += wait
            health = (
                health.served(size, seconds, now=now) if kind == "s" else health.failing(now=now, damaged=kind == "d")
            )
            assert 0 <= health.rests_until - now <= DAY or kind == "s"
        healths.append(health)
    now = NOW + later
    chosen = choose(healths, now=now, chance=chance)
    able = [number for number, health in enumerate(healths) if health.state(now) is not State.RESTING]
    assert chosen in able if able else chosen is None


# ---- the file


def test_what_is_learnt_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mirrors.json"
    memory = HealthMemory(path)
    assert memory["https://a"] == Health()
    memory.save()
    assert not path.exists(), "nothing was learnt"
    other = HealthMemory(path)
    memory["https://a"], other["https://b"] = FAST, SLOW
    memory.save()
    other.save()
    again = HealthMemory(path)
    assert (again["https://a"], again["https://b"]) == (FAST, SLOW), "neither process undoes the other's"
    assert [entry.name for entry in path.parent.iterdir()] == ["mirrors.json"]


def test_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "mirrors.json"
    for number in range(100):
        memory = HealthMemory(path)
        memory[f"https://{'long' * 40}{number}"] = Health().served(MIB, 1, now=NOW + number)
        memory.save()
    assert len(parse_servers(path.read_bytes())) == 64
    assert HealthMemory(path)[f"https://{'long' * 40}99"].rate == MIB
    assert path.stat().st_size < 64 << 10


def test_a_file_that_cannot_be_kept_or_read_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "mirrors.json", None):
        memory = HealthMemory(path)
        memory["https://a"] = FAST
        memory.save()
        assert memory["https://a"] == FAST
    (tmp_path / "mirrors.json").mkdir()
    assert HealthMemory(tmp_path / "mirrors.json")["https://a"] == Health()


GOOD = {"rate": 1.0, "measured": 2, "failures": 0, "failed": 0, "rests_until": 0}


@pytest.mark.parametrize(
    "entry",
    [
        None, 5, [], {}, {**GOOD, "rate": -1}, {**GOOD, "rate": "1"}, {**GOOD, "rate": None},
        {**GOOD, "failures": 1e300}, {**GOOD, "failed": float("nan")}, {**GOOD, "failed": float("inf")},
    ],
)  # fmt: skip
def test_entries_that_make_no_sense_are_left_out(entry: object) -> None:
    data = json.dumps({"format": 1, "servers": {"https://a": entry, "https://b": {**GOOD, "later": 1}}})
    assert set(parse_servers(data.encode())) == {"https://b"}


@given(st.one_of(st.binary(max_size=200), st.text(alphabet='{}[]":,ab01servers', max_size=80).map(str.encode)))
def test_any_bytes_are_a_file_or_nothing(data: bytes) -> None:
    try:
        parse_servers(data)
    except (ValueError, RecursionError):
        return


def test_a_hostile_file_counts_as_empty(tmp_path: Path) -> None:
    for data in (b"[" * 60000, b"\xff" * 100, b" " * (65 << 10), b'{"format":2,"servers":{}}'):
        (tmp_path / "mirrors.json").write_bytes(data)
        assert HealthMemory(tmp_path / "mirrors.json")["https://a"] == Health()
