"""Giving way: the rate on a simulated line with others at work, what the kernel's tables say, and a real shaped line.

The simulated line is a fluid: a bottleneck with a queue before it. Who takes what he can get (TCP) keeps the queue full
and shares the line equally with whoever else wants it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import MISSING_NGINX, has_nginx

from trimtransfer.fetch.throttle import Throttle
from trimtransfer.fetch.traffic import Background, interface_of, received_by
from trimtransfer.fetch.yielding import FLOOR, TARGET, BaseDelay, Totals, Yielding

MB = 1e6
TICK = 0.05
GREEDY = float("inf")


@dataclass
class Line:
    """A simulated line of ``capacity`` bytes per second with a queue of ``buffer`` seconds before it.

    ``visible``: the interface counts others' bytes, too; ``delays``: answers tell of the queue.
    """

    capacity: float
    buffer: float = 0.3
    round_trip: float = 0.02
    visible: bool = True
    counted: bool = True
    delays: bool = True
    now: float = 1000.0
    queue: float = 0.0
    own: float = 0.0
    all: float = 5e9
    history: list[tuple[float, float, float, float]] = field(default_factory=list)

    def run(self, yielding: Yielding, seconds: float, others: Callable[[float], float]) -> None:
        """Let time pass; note (time, our rate, others' rate, queue in seconds) of each tick."""
        end, step = self.now + seconds, 0
        while self.now < end:
            want, theirs = yielding.rate, others(self.now)
            got, other = self._shared(want, theirs)
            arriving = min(want, 2 * self.capacity) + (other if theirs is not GREEDY else self.capacity)
            self.queue = min(self.buffer, max(0.0, self.queue + (arriving / self.capacity - 1) * TICK))
            self.now += TICK
            self.own += got * TICK
            self.all += (1.045 * got + (other if self.visible else 0.0)) * TICK
            self.history.append((self.now, got, other, self.queue))
            if self.delays and step % 4 == 0:
                yielding.delayed(self.round_trip + self.queue)
            if step % 10 == 9:
                yielding.step(self.totals())
            step += 1

    def totals(self) -> Totals:
        return Totals(self.now, int(self.own), int(self.all) if self.counted else None)

    def mean(self, column: int, begin: float, end: float) -> float:
        """Return the mean of a column of the history, between seconds after the start."""
        values = [row[column] for row in self.history if begin <= row[0] - 1000 < end]
        return sum(values) / len(values)

    def _shared(self, want: float, theirs: float) -> tuple[float, float]:
        if want + theirs <= self.capacity:
            return want, theirs
        fair = self.capacity / 2
        got = min(want, max(fair, self.capacity - theirs))
        return got, min(theirs, self.capacity - got)


LINES = [0.25 * MB, 2 * MB, 12.5 * MB, 125 * MB]


def between(begin: float, end: float, rate: float) -> Callable[[float], float]:
    return lambda now: rate if begin <= now - 1000 < end else 0.0


@pytest.mark.parametrize("capacity", LINES)
@pytest.mark.parametrize("counted", [True, False])
def test_an_idle_line_is_used_with_a_short_queue(capacity: float, counted: bool) -> None:
    line = Line(capacity, counted=counted)
    line.run(Yielding(line.totals()), 60, between(0, 0, 0))
    assert line.mean(1, 20, 60) > 0.75 * capacity
    assert line.mean(3, 20, 60) < 1.5 * TARGET


@pytest.mark.parametrize("capacity", LINES)
@pytest.mark.parametrize("delays", [True, False])
def test_who_wants_all_gets_almost_all(capacity: float, delays: bool) -> None:
    """Seen at the interface, with or without delays to be seen; afterwards the line is used again."""
    line = Line(capacity, delays=delays)
    line.run(Yielding(line.totals()), 120, between(40, 80, GREEDY))
    assert line.mean(1, 20, 40) > 0.7 * capacity
    assert line.mean(2, 46, 80) > 0.9 * capacity - FLOOR
    assert line.mean(1, 100, 120) > 0.7 * capacity


@pytest.mark.parametrize("capacity", LINES)
def test_other_machines_on_the_line_are_felt_by_the_queue(capacity: float) -> None:
    """Their bytes do not pass our interface; LEDBAT's part alone must give way."""
    line = Line(capacity, visible=False)
    line.run(Yielding(line.totals()), 120, between(40, 80, GREEDY))
    assert line.mean(1, 20, 40) > 0.7 * capacity
    assert line.mean(2, 50, 80) > 0.9 * capacity - FLOOR
    assert line.mean(1, 105, 120) > 0.7 * capacity


@pytest.mark.parametrize("capacity", LINES[1:])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_who_wants_a_part_gets_it_and_the_rest_is_used(capacity: float, share: float) -> None:
    """A call or a film: it loses nothing, and we take most of what it leaves."""
    line = Line(capacity)
    line.run(Yielding(line.totals()), 90, between(30, 90, share * capacity))
    assert line.mean(2, 36, 90) > 0.99 * share * capacity
    assert line.mean(1, 50, 90) > 0.7 * (0.75 - share) * capacity


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(0, 1 << 34), st.integers(0, 1 << 34), st.floats(0, 100) | st.none()),
        max_size=60,
    ),
    st.booleans(),
)
def test_whatever_is_seen_the_rate_keeps_its_bounds(
    events: list[tuple[float, int, int, float | None]], counted: bool
) -> None:
    now, own, total = 0.0, 0, 0
    yielding = Yielding(Totals(0, 0, 0))
    for seconds, mine, others, delay in events:
        now, own, total = now + seconds, own + mine, total + mine + others
        if delay is not None:
            yielding.delayed(delay)
        before = yielding.rate
        rate = yielding.step(Totals(now, own, total if counted else None))
        assert FLOOR <= rate <= max(FLOOR, 2 * before)
        assert rate == yielding.rate


def test_the_shortest_delay_of_ten_minutes() -> None:
    base = BaseDelay()
    assert base.add(0.3, 0) == 0
    assert base.add(0.1, 30) == 0
    assert base.add(0.4, 599) == pytest.approx(0.3)
    assert base.add(0.4, 601) == 0, "the way has become longer"
    assert base.add(0.2, 700) == 0


def test_the_line_is_no_wider_than_what_its_interface_brings() -> None:
    """Bytes that waited in the sockets' buffers are ours when they are read: more, for a while, than the line carries.
    Taken for its width they would leave nothing free, and nobody who comes would be seen."""
    step, line = 0.5, 2e6
    yielding = Yielding(Totals(0.0, 0, 0))
    read = 0.0
    for number in range(1, 40):
        read += (1.3 if number in {10, 11, 12, 13} else 0.93) * line * step / 1.06
        rate = yielding.step(Totals(number * step, round(read), round(number * line * step)))
    assert yielding.capacity == pytest.approx(line / 1.06, rel=0.01)
    assert rate <= 0.9 * line


def test_nothing_is_concluded_from_gaps() -> None:
    yielding = Yielding(Totals(0, 0, 0))
    assert yielding.step(Totals(0.1, 10**9, 10**9)) == yielding.step(Totals(100, 0, 10**12)) == 256 << 10


# ---- the kernel's tables

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
nonsense
x\ty\tz\tw\tv\tu\tt\ts
"""
ROUTES6 = """fe800000000000000000000000000000 40 00000000000000000000000000000000 00 0 100 1 0 1 eth0
20010db8000000000000000000000000 20 0 00 0 100 1 0 1 wlan0
20010db8000000000000000000000001 80 0 00 0 0 1 0 80200001 lo
00000000000000000000000000000000 00 0 00 0 400 1 0 3 eth0
short
"""


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("8.8.8.8", "eth0"), ("192.0.2.9", "eth0"), ("10.1.2.3", "tun0"), ("127.0.0.5", "lo"), ("::1", "lo"),
        ("2001:db8::9", "wlan0"), ("2606:4700::1", "eth0"), ("fe80::1%eth0", "eth0"), ("2001:db8::1", None),
        ("host", None), ("", None),
    ],
)  # fmt: skip
def test_the_interface_of_an_address(address: str, interface: str | None) -> None:
    assert interface_of(address, ROUTES, ROUTES6) == interface


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_tables_are_read(routes: str, routes6: str) -> None:
    interface_of("10.0.0.1", routes, routes6)
    interface_of("fe80::1", routes, routes6)
    received_by("lo", routes)


@pytest.mark.skipif(not shutil.which("ip") or not Path("/proc/net/route").exists(), reason="needs Linux and ip")
def test_the_same_interface_as_ip_says() -> None:
    tables = [
        Path(path).read_text() if Path(path).exists() else "" for path in ("/proc/net/route", "/proc/net/ipv6_route")
    ]
    for address in ("127.0.0.1", "192.0.2.1", "8.8.8.8"):
        told = subprocess.run(["ip", "-o", "route", "get", address], capture_output=True, text=True, check=False)
        words = told.stdout.split()
        if told.returncode == 0 and "dev" in words:
            assert interface_of(address, *tables) == words[words.index("dev") + 1]
    before = received_by("lo", Path("/proc/net/dev").read_text())
    assert before is not None
    assert received_by("none", Path("/proc/net/dev").read_text()) is None
    assert received_by("lo", " lo: x\n") is received_by("lo", "lo:") is None


def test_a_throttle_gives_way_under_its_limit() -> None:
    throttle = Throttle(100_000, yields=Background())
    throttle.connected("127.0.0.1")
    throttle.answered(0.01)
    assert throttle.rate == 100_000
    throttle.limit = None
    assert throttle.rate is not None
    assert throttle.rate <= 1.5 * (256 << 10)


# ---- a real line

RATE = 16e6 / 8
"""Bytes per second of the real line."""
TRANSFER = """
import json, sys, threading, time
from trimtransfer.fetch.http import HttpStore
from trimtransfer.fetch.throttle import Throttle
from trimtransfer.fetch.traffic import Background
from trimtransfer.store import Range
url, size, background = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "background"
store = HttpStore(url, throttle=Throttle(yields=Background() if background else None))
def fetch():
    store.fetch((Range("big.bin", at, 1 << 20, size) for at in range(0, size, 1 << 20)), lambda *_: None)
threading.Thread(target=fetch, daemon=True).start()
for line in sys.stdin:
    print(json.dumps([time.monotonic(), store.stats.bytes]), flush=True)
"""
OTHERS = {"background": 24 << 20, "plain": 1 << 20}
"""Bytes of the other download: long enough to see it take over; short where it does not."""
OTHER = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))"


class Shaped:
    """A server behind a line of ``RATE``, in network namespaces of their own; needs root."""

    def __init__(self, folder: Path) -> None:
        self.names = f"tt-{os.getpid()}-s", f"tt-{os.getpid()}-c"
        self.folder = folder
        self.url = "http://10.77.0.1:8080"

    def __enter__(self) -> Shaped:
        server, client = self.names
        with contextlib.ExitStack() as stack:
            for name in self.names:
                _run("ip", "netns", "add", name)
                stack.callback(_run, "ip", "netns", "del", name)
            _run("ip", "-n", server, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", client)
            for name, device, address in ((server, "v0", "10.77.0.1/24"), (client, "v1", "10.77.0.2/24")):
                _run("ip", "-n", name, "address", "add", address, "dev", device)
                _run("ip", "-n", name, "link", "set", device, "up")
                _run("ip", "-n", name, "link", "set", "lo", "up")
            shape = f"root tbf rate {int(RATE * 8)}bit burst 32kb latency 300ms".split()
            _run("ip", "netns", "exec", server, "tc", "qdisc", "add", "dev", "v0", *shape)
            stack.enter_context(self._nginx(server))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program on the client's side."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[1], *command], stdin=pipe, stdout=pipe, text=True, bufsize=1
        )

    @contextlib.contextmanager
    def _nginx(self, namespace: str) -> Iterator[None]:
        (self.folder / "nginx.conf").write_text(
            f"daemon off; user root; pid {self.folder}/pid; error_log {self.folder}/error.log; events {{ }}\n"
            f"http {{ access_log off; server {{ listen 8080; root {self.folder}/root; }} }}\n"
        )
        command = ["ip", "netns", "exec", namespace, "nginx", "-p", str(self.folder), "-c", "nginx.conf"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def shaped(tmp_path: Path) -> Iterator[Shaped]:
    """A real line, or a skipped test."""
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    (tmp_path / "root").mkdir()
    with open(tmp_path / "root" / "big.bin", "wb") as file:
        file.truncate(256 << 20)
    for size in OTHERS.values():
        with open(tmp_path / "root" / f"{size}.bin", "wb") as file:
            file.truncate(size)
    line = Shaped(tmp_path)
    try:
        line.__enter__()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and CAP_NET_ADMIN: {error}")
    yield line
    line.__exit__()


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize("manner", ["background", "plain"])
def test_another_process_on_a_real_line(shaped: Shaped, manner: str) -> None:
    """While another program downloads, it gets most of the line, the first seconds included; beside a plain
    transfer with its four connections, much less than its share."""
    size = OTHERS[manner]
    with shaped.start(sys.executable, "-c", TRANSFER, shaped.url, str(256 << 20), manner) as ours:
        assert ours.stdin is not None
        assert ours.stdout is not None

        def now() -> tuple[float, int]:
            assert ours.stdin is not None
            assert ours.stdout is not None
            ours.stdin.write("\n")
            at, received = json.loads(ours.stdout.readline())
            return float(at), int(received)

        def rate(begin: tuple[float, int], end: tuple[float, int]) -> float:
            return (end[1] - begin[1]) / (end[0] - begin[0])

        def wait(seconds: float) -> tuple[float, int]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ours.wait(seconds)
            return now()

        def settled() -> float:
            """The rate once it is grown, or after a while: the machine may have other work."""
            found, until = 0.0, time.monotonic() + 60
            while found <= 0.6 * RATE and time.monotonic() < until:
                found = rate(now(), wait(4))
            return found

        wait(8)
        alone = settled()
        begin = now()
        with shaped.start(sys.executable, "-c", OTHER, f"{shaped.url}/{size}.bin") as other:
            assert other.stdout is not None
            assert int(other.stdout.readline()) == size
        beside = now()
        seconds = beside[0] - begin[0]
        theirs, mine = size / seconds, rate(begin, beside)
        wait(8)
        later = settled()
        ours.kill()
    print(f"{manner}: alone {alone:,.0f}; beside {mine:,.0f} and {theirs:,.0f}; later {later:,.0f} of {RATE:,.0f} B/s")
    if manner == "background":
        assert alone > 0.6 * RATE
        assert theirs > 0.6 * RATE
        assert mine < 0.3 * RATE
        assert later > 0.6 * RATE
    else:
        assert theirs < 0.6 * RATE, "the line does not make anybody wait: this test would show nothing"
