"""The token bucket and the gate, on a clock that the test moves."""

from __future__ import annotations

import random
import threading

import pytest

from trimtransfer.fetch.ratelimit import Gate, TokenBucket


class Clock:
    """A monotonic clock that stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("rate", [1000, 64 << 10, 1 << 20, 8 << 20])
@pytest.mark.parametrize("connections", [1, 4])
def test_TR15_the_rate_is_kept_within_a_tenth_over_ten_seconds(rate: int, connections: int, rnd: random.Random) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock=clock)
    arrivals: list[tuple[float, int]] = []
    ready = [clock.now] * connections
    while clock.now < 1060:
        turn = min(range(connections), key=ready.__getitem__)
        clock.now = max(clock.now, ready[turn])
        size = rnd.randint(1, max(1, min(16 << 10, rate // 50)))
        arrivals.append((clock.now, size))
        ready[turn] = clock.now + bucket.spend(size)
    total = sum(size for _, size in arrivals)
    assert total >= 0.95 * rate * 60
    for start in range(1000, 1050):
        window = sum(size for at, size in arrivals if start <= at < start + 10)
        assert 0.9 * rate * 10 <= window <= 1.1 * rate * 10


def test_TR15_a_change_is_felt_by_those_who_wait() -> None:
    clock = Clock()
    bucket = TokenBucket(100, clock=clock)
    assert bucket.spend(1010) == pytest.approx(10.1)
    bucket.rate = 1000
    assert bucket.spend(0) == pytest.approx(1.01)
    bucket.rate = None
    assert bucket.spend(10**12) == 0
    bucket.rate = 100
    assert bucket.spend(100) == pytest.approx(1)


def test_TR15_an_idle_bucket_saves_up_little() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock=clock)
    clock.now += 3600
    assert bucket.spend(1000) == pytest.approx(0.9)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_TR15_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="None for no limit"):
        TokenBucket(rate)


def test_a_stopped_wait_ends_at_once() -> None:
    stop = threading.Event()
    stop.set()
    TokenBucket(1).pay(10**9, stop)


def test_TR6_the_gate_narrows_and_recovers() -> None:
    clock = Clock()
    gate = Gate(4, clock=clock)
    limits = []
    for _ in range(4):
        gate.complained(0)
        limits.append(gate.limit)
    assert limits == [2, 1, 1, 1]
    for _ in range(16 * 3 - 1):
        gate.went_well()
    assert gate.limit == 3
    for _ in range(100):
        gate.went_well()
    assert gate.limit == 4


def test_TR6_nobody_passes_during_a_pause() -> None:
    clock = Clock()
    gate, stop, inside = Gate(4, clock=clock), threading.Event(), threading.Event()
    gate.complained(5)

    def visitor() -> None:
        with gate.passage(stop) as admitted:
            if admitted:
                inside.set()

    thread = threading.Thread(target=visitor)
    thread.start()
    assert not inside.wait(0.1)
    clock.now += 5
    assert inside.wait(10)
    thread.join()


def test_the_gate_lets_nobody_in_after_a_stop() -> None:
    gate, stop = Gate(1), threading.Event()
    stop.set()
    with gate.passage(stop) as admitted:
        assert not admitted


def test_the_gate_counts() -> None:
    gate, stop, most = Gate(3), threading.Event(), []
    lock, running = threading.Lock(), [0]

    def visitor() -> None:
        for _ in range(50):
            with gate.passage(stop) as admitted:
                assert admitted
                with lock:
                    running[0] += 1
                    most.append(running[0])
                with lock:
                    running[0] -= 1

    threads = [threading.Thread(target=visitor) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 400
    assert max(most) <= 3
