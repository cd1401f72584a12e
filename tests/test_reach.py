"""Names with several addresses, and sleep: rows TR6, TR12, TR14 of the fault list, over real sockets and processes."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from servers import Authority, BadServer, Fault, Request

from trimtransfer.errors import FetchError
from trimtransfer.fetch.awake import AwakeClock, running_time
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.store import Range

NAME = "mirror.test"
GOOD, OTHER, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"
SIZE = 100_000
OBJECTS = {"x.bin": random.Random(5).randbytes(SIZE)}
RANGES = [Range("x.bin", start, 10_000, SIZE) for start in range(0, SIZE, 10_000)]
OPTIONS = FetchOptions(connect=20.0, stall=20.0, first_delay=0.01, max_delay=0.05, attempts=8)


class Resolver:
    """Stands for the name service: ``NAME`` has these addresses, in this order; every other name has its own."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self._real = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != NAME:
            return self._real(host, port, *arguments, **options)
        return [found for one in self.addresses for found in self._real(one, port, *arguments, **options)]


@contextlib.contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """An address that never answers: a full backlog, so the system drops further attempts, as a firewall does."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield


def fetch_all(store: HttpStore) -> None:
    """Fetch, and check that all came, each once."""
    got: Counter[Range] = Counter()
    lock = threading.Lock()

    def deliver(wanted: Range, data: memoryview) -> None:
        assert bytes(data) == OBJECTS["x.bin"][wanted.start : wanted.start + wanted.length]
        with lock:
            got[wanted] += 1

    store.fetch(RANGES, deliver)
    assert got == Counter(RANGES)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def store() -> Iterator[Any]:
    """Opens a store of ``NAME`` and closes it after the test."""
    with contextlib.ExitStack() as stack:

        def opened(server: BadServer, options: FetchOptions = OPTIONS, **arguments: Any) -> HttpStore:
            url = server.url.replace("localhost", NAME)
            return stack.enter_context(contextlib.closing(HttpStore(url, options=options, **arguments)))

        yield opened


# ---- TR6: the next address


@pytest.mark.parametrize("first", ["refuses", "black hole", "both"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_TR6_an_address_that_does_not_answer_is_left_for_the_next(
    first: str, tls: bool, store: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtransfer.fetch.reach.FIRST_ROUND", 0.5)
    addresses = {"refuses": (OTHER, GOOD), "black hole": (THIRD, GOOD), "both": (OTHER, THIRD, GOOD)}[first]
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(*addresses))
    context = authority.context(NAME) if tls else None
    with BadServer(OBJECTS, tls=context) as server, black_hole(THIRD, server.port):
        opened = store(server, connections=3, ca_cert=authority.file if tls else None)
        fetch_all(opened)
        assert opened.stats.retries == 0
        assert 1 <= server.connections <= 3


def test_TR6_a_dead_address_is_remembered(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(OTHER, GOOD))
    tried: list[str] = []
    real = socket.create_connection

    def connect(address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        tried.append(address[0])
        return real(address, *arguments, **options)

    # Every answer ends its connection, so that each range needs a new one.
    with BadServer(OBJECTS, lambda *_: Fault(headers={"Connection": "close"})) as server:
        opened = store(server, connections=1)
        monkeypatch.setattr(socket, "create_connection", connect)
        fetch_all(opened)
        monkeypatch.undo()
    assert Counter(tried) == {OTHER: 1, GOOD: len(RANGES)}


def test_TR6_a_slow_address_has_its_whole_time_in_the_end(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtransfer.fetch.reach.FIRST_ROUND", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(OTHER, THIRD))
    with BadServer(OBJECTS) as server, black_hole(OTHER, server.port), black_hole(THIRD, server.port):
        with pytest.raises(FetchError, match="no connection in time") as caught:
            store(server, replace(OPTIONS, connect=0.6, attempts=2)).read("x.bin", limit=SIZE)
        assert caught.value.retryable


# ---- TR12: one address is bad, the other good


BAD = {
    "overloaded": Fault(status=503),
    "broken": Fault(status=500),
    "resets": Fault(reset=True),
    "cuts": Fault(cut=100),
    "silent": Fault(stall=-1),
    "of another version": Fault(headers={"Content-Range": f"bytes 0-9999/{SIZE + 1}"}),
    "compressed": Fault(headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", BAD)
def test_TR12_an_address_that_answers_badly_is_left_for_the_next(
    fault: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(OTHER, GOOD))
    options = replace(OPTIONS, stall=0.5) if fault == "silent" else OPTIONS
    with (
        BadServer(OBJECTS) as good,
        BadServer(OBJECTS, lambda *_: BAD[fault], address=OTHER, port=good.port) as bad,
    ):
        opened = store(good, options, connections=2)
        fetch_all(opened)
        assert 1 <= len(bad.requests) <= 2, "each connection leaves it at once"
        assert len(good.requests) >= len(RANGES)


def test_TR12_and_back_when_the_other_one_goes_bad(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Resolver(OTHER, GOOD))

    def worse_and_worse(request: Request, turn: int) -> Fault | None:
        return Fault(status=500) if turn >= 3 else None

    with (
        BadServer(OBJECTS, worse_and_worse) as good,
        BadServer(OBJECTS, [Fault(status=500)], address=OTHER, port=good.port) as other,
    ):
        opened = store(good, connections=1)
        fetch_all(opened)
        assert (len(good.requests), len(other.requests)) == (4, 1 + len(RANGES) - 3)
        assert opened.stats.retries == 2


# ---- TR14: sleep


def test_a_clock_does_not_count_sleep() -> None:
    times = [100.0, 100.0]
    clock = AwakeClock(15.0, clock=lambda: times[0], outer=lambda: times[1])

    def pass_time(running: float, suspended: float = 0.0) -> None:
        times[0] += running
        times[1] += running + suspended

    pass_time(5)
    assert clock.read() == (105.0, 0)
    pass_time(1, suspended=3600)  # a closed laptop: most clocks stand still
    assert clock.read() == (105.0, 1)
    pass_time(60)  # a stopped process: they do not
    assert clock.read() == (105.0, 2)
    pass_time(14)
    assert clock.read() == (119.0, 2)
    pass_time(500)  # nobody looked
    assert not clock.resume()
    assert clock.read() == (119.0, 2)
    pass_time(2, suspended=500)
    assert clock.resume()
    assert clock.read() == (119.0, 2)


def test_the_outer_clock_runs() -> None:
    begun = running_time()
    assert begun <= running_time() < begun + 3600


SLEEPER = """
import sys, threading
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.store import Range

options = FetchOptions(stall=float(sys.argv[2]), asleep=1.0, budget=2.0, attempts=4, first_delay=0.01, max_delay=0.05)
got, lock, arrived = {}, threading.Lock(), 0

def count(size):
    global arrived
    with lock:
        arrived += size
        print(arrived, flush=True)

def deliver(wanted, data):
    got[wanted.start] = bytes(data)

store = HttpStore(sys.argv[1], connections=2, options=options, on_bytes=count)

store.fetch([Range("x.bin", start, 10_000, 100_000) for start in range(0, 100_000, 10_000)], deliver)
print(f"done {store.stats.retries} " + b"".join(got[at] for at in sorted(got)).hex())
"""


@pytest.mark.parametrize("stall", [2.0, 600.0], ids=["timers ran out", "connections are dead"])
def test_TR14_a_process_that_slept_longer_than_its_timers_goes_on(stall: float) -> None:
    """While it sleeps, its connections die without a word; its patience (2 seconds) does not run out meanwhile."""
    asleep = threading.Event()

    def script(request: Request, turn: int) -> Fault | None:
        return Fault(stall=3000) if 2 <= turn < 4 and not asleep.is_set() else None

    with BadServer(OBJECTS, script) as server:
        command = [sys.executable, "-c", SLEEPER, server.url, str(stall)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                while int(process.stdout.readline()) < 2 * 10_000 + 2 * 3000:
                    pass
                process.send_signal(signal.SIGSTOP)
                asleep.set()
                time.sleep(4.0)
                process.send_signal(signal.SIGCONT)
                lines = process.communicate(timeout=120)[0].splitlines()
            finally:
                process.kill()
        word, retries, content = lines[-1].split()
        assert (word, bytes.fromhex(content)) == ("done", OBJECTS["x.bin"])
        assert int(retries) >= 2
        repeated = [request.range for request in server.requests[4:] if request.range and request.range[0] % 10_000]
        assert len(repeated) == 2, "what had arrived before is not fetched again"
