"""The rate in force while a transfer runs: on a clock that the test moves, and over real connections."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from servers import BadServer, Nginx
from syncing import make_images, publish_all
from test_fetch import CALM, NAME, OBJECTS, SIZE, Receiver, fetch_all, ranges

from trimtransfer.cli.main import main
from trimtransfer.errors import LimitReached
from trimtransfer.fetch.http import HttpStore
from trimtransfer.fetch.manners import Pace
from trimtransfer.fetch.schedule import Schedule
from trimtransfer.fetch.throttle import Throttle
from trimtransfer.store import Range

MONDAY = datetime(2026, 11, 16, tzinfo=UTC).timestamp()
OFFICE = Schedule.parse("mon-fri 08:00-18:00 500k; daily 22:00-06:00 pause; otherwise unlimited")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy") or name.startswith("MEDV_"):
            monkeypatch.delenv(name)


class Clock:
    """A clock, monotonic and wall clock in one, that goes on when told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def local(self, instant: float) -> datetime:
        return datetime.fromtimestamp(instant, UTC)

    def throttle(self, limit: float | None = None, schedule: Schedule | None = None, **options: int) -> Throttle:
        return Throttle(limit, schedule=schedule, clock=self, wall=self, local=self.local, **options)


def at(hour: float, day: int = 0) -> float:
    return MONDAY + day * 86400 + hour * 3600


# ---- decisions


def test_limit_and_schedule_hold_together() -> None:
    clock = Clock(at(7))
    throttle = clock.throttle(100 << 10, OFFICE)
    found = []
    for hour in (7, 8, 17.99, 18, 22, 29.99, 30, 32):
        clock.now = at(hour)
        throttle.govern()
        found.append(throttle.rate)
    kib = 100.0 * 1024
    assert found == [kib, kib, kib, kib, 0.0, 0.0, kib, kib]
    throttle.limit = None
    assert throttle.rate == 500 << 10
    clock.now = at(19, 1)
    throttle.govern()
    assert throttle.rate is None
    with pytest.raises(ValueError, match="above 0"):
        throttle.limit = 0


def test_it_is_decided_twice_a_second_and_no_more() -> None:
    clock, asked = Clock(at(7.99)), [0]

    def local(instant: float) -> datetime:
        asked[0] += 1
        return datetime.fromtimestamp(instant, UTC)

    throttle = Throttle(schedule=OFFICE, clock=clock, wall=clock, local=local)
    for _ in range(100):
        clock.now += 0.1
        throttle.govern()
    assert asked[0] <= 22


def test_pauses_are_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(at(21.99))
    with caplog.at_level(logging.WARNING):
        throttle = clock.throttle(None, OFFICE)
        while clock.now < at(30.01):
            clock.now += 1
            throttle.govern()
    assert throttle.paused_seconds == pytest.approx(8 * 3600, abs=2)
    assert [record.message for record in caplog.records] == [
        "paused by the rate schedule until Tue 06:00, then unlimited; Ctrl-C loses nothing",
        "the rate schedule's pause is over",
    ]
    Clock(0).throttle(None, Schedule.parse("pause"))
    assert "for good" in caplog.text
    clock.now = at(23)
    throttle.govern()
    clock.now += 3600
    throttle.govern()
    assert throttle.paused_seconds == pytest.approx(8 * 3600 + 2, abs=3), "between transfers nobody waits"


def test_TR15_the_rate_follows_the_hour_within_a_second(rnd: random.Random) -> None:
    """Four connections over the change of an hour, on a clock that the test moves: not a byte faster than allowed."""
    slow, fast = 50_000, 400_000
    schedule = Schedule.parse(f"08:00-08:01 {slow}; otherwise {fast}")
    clock = Clock(at(7) + 59 * 60)
    throttle = clock.throttle(None, schedule)
    arrivals: list[tuple[float, int]] = []
    ready = [clock.now] * 4
    while clock.now < at(8) + 120:
        turn = min(range(4), key=ready.__getitem__)
        clock.now = max(clock.now, ready[turn])
        throttle.govern()
        wait = throttle.bucket.spend(0)
        if not wait:
            size = rnd.randint(1, 4096)
            arrivals.append((clock.now, size))
            wait = throttle.bucket.spend(size)
        ready[turn] = clock.now + max(1e-4, min(wait, 0.1))  # as often as the watching thread looks
    for begin, end, rate in ((-60, 0, fast), (1, 59, slow), (61, 120, fast)):
        came = sum(size for when, size in arrivals if at(8) + begin <= when < at(8) + end)
        assert came == pytest.approx(rate * (end - begin), rel=0.05)


def test_the_allowance() -> None:
    throttle = Throttle(allowance=100)
    throttle.count(60)
    throttle.count(40)
    with pytest.raises(LimitReached, match="at most 100 bytes are allowed; allow more with --max-bytes"):
        throttle.count(1)


def test_the_pace_of_a_plan() -> None:
    clock = Clock(at(17))
    pace = Pace(None, OFFICE)
    assert (pace.rate(at(9), clock.local), pace.rate(at(20), clock.local), pace.rate(at(23), clock.local)) == (
        500 << 10, None, 0.0,
    )  # fmt: skip
    hour = 3600 * (500 << 10)
    assert pace.seconds(hour + 10**6, 1e6, now=at(17), local=clock.local) == pytest.approx(3601)
    assert pace.seconds(10**6, 1e6, now=at(22), local=clock.local) == pytest.approx(8 * 3600 + 1)
    assert Pace(1000, None).seconds(5000, 1e6, now=0) == 5
    assert Pace(1000, Schedule.parse("pause")).seconds(5000, 1e6, now=0) is None


# ---- real connections


class Switch:
    """A schedule that the test throws over, as a clock would: ``rate`` is what it says from now on."""

    def __init__(self, rate: str) -> None:
        self._clock = Clock(at(9))
        self._pause = Schedule.parse(f"09:00-10:00 {rate}; otherwise unlimited")

    def throttle(self, **options: int) -> Throttle:
        return Throttle(schedule=self._pause, wall=self._clock, local=self._clock.local, **options)

    def over(self) -> None:
        """Let it be ten."""
        self._clock.now = at(10)

    def back(self) -> None:
        """Let it be nine, the next day."""
        self._clock.now = at(9, 1)


@pytest.fixture
def store_at() -> Iterator[Callable[[BadServer, Throttle], HttpStore]]:
    with contextlib.ExitStack() as stack:

        def opener(server: BadServer, throttle: Throttle) -> HttpStore:
            store = HttpStore(server.url, options=CALM, throttle=throttle)
            stack.callback(store.close)
            return store

        yield opener


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)


def test_a_pause_asks_for_nothing_and_then_all_comes(store_at: Callable[[BadServer, Throttle], HttpStore]) -> None:
    switch = Switch("pause")
    with BadServer(OBJECTS) as server:
        throttle = switch.throttle()
        store = store_at(server, throttle)
        threading.Timer(1.2, switch.over).start()
        fetch_all(store, ranges())
        assert throttle.paused_seconds > 0.4
        assert store.stats.retries == 0
        assert len(server.requests) == len(ranges())
        assert store.stats.bytes == SIZE


def test_a_pause_in_the_middle_loses_nothing(store_at: Callable[[BadServer, Throttle], HttpStore]) -> None:
    """Running requests are broken off, and go on at the very byte: nothing is fetched twice, nobody is to blame."""
    switch = Switch("pause")
    switch.over()
    throttle = switch.throttle()
    throttle.limit = 60_000
    with BadServer(OBJECTS) as server:
        store = store_at(server, throttle)
        receiver = Receiver()
        thread = threading.Thread(target=store.fetch, args=([Range(NAME, 0, SIZE, SIZE)], receiver))
        thread.start()
        wait_until(lambda: store.stats.bytes > 20_000)
        switch.back()
        wait_until(lambda: throttle.paused_seconds > 0.4)
        asked, came = len(server.requests), store.stats.bytes
        time.sleep(0.5)
        assert (len(server.requests), store.stats.bytes) == (asked, came)
        throttle.limit = None
        switch.over()
        thread.join(30)
        assert sum(receiver.got.values()) == 1
        assert store.stats.bytes < SIZE + 20_000, "less than a piece is lost"
        assert store.stats.retries == 0


def test_a_change_reaches_a_running_request(store_at: Callable[[BadServer, Throttle], HttpStore]) -> None:
    """At 2 kB/s the range would take a minute and a half; when the hour changes, it ends."""
    switch = Switch("2000")
    throttle = switch.throttle()
    with BadServer(OBJECTS) as server:
        store = store_at(server, throttle)
        threading.Timer(1.0, switch.over).start()
        begun = time.monotonic()
        fetch_all(store, [Range(NAME, 0, SIZE, SIZE)])
        assert time.monotonic() - begun < 30
        assert throttle.rate is None


# ---- the command


@pytest.fixture
def repository(tmp_path: Path, rng: np.random.Generator, nginx: Nginx) -> tuple[Nginx, list[bytes]]:
    images = make_images(rng)
    publish_all(nginx.root, images)
    return nginx, images


def hours_around(now: datetime) -> str:
    """Return hours that hold now and for an hour at least, in the schedule's language."""
    return f"{now - timedelta(hours=1):%H:%M}-{now + timedelta(hours=1):%H:%M}"


@pytest.mark.net
def test_ctrl_c_ends_a_pause_and_the_next_run_goes_on(repository: tuple[Nginx, list[bytes]], tmp_path: Path) -> None:
    nginx, images = repository
    output = tmp_path / "disk.img"
    command = [sys.executable, "-m", "trimtransfer", "sync", nginx.url, "disk", "-o", str(output), "--no-host-index"]
    command += ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--metered", "no"]
    paused = [*command, "--rate-schedule", f"{hours_around(datetime.now())} pause; otherwise unlimited"]
    with subprocess.Popen(paused, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "paused by the rate schedule until" in line
        assert "then unlimited" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "run the same command again" in process.stderr.read()
    assert nginx.served() == []
    environment = {**os.environ, "MEDV_RATE_SCHEDULE": "unlimited"}
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True)
    assert output.read_bytes() == images[-1]
    network = json.loads(done.stdout)["network"]
    assert (network["rate_bytes_per_second"], network["paused_seconds"]) == (None, 0.0)


@pytest.mark.net
def test_the_command_line_wins_over_the_environment(repository: tuple[Nginx, list[bytes]], tmp_path: Path) -> None:
    """No configuration file: an option, else its variable, else the default."""
    nginx, _ = repository
    common = ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--json", "--no-host-index"]
    plan = ["plan", nginx.url, "disk", "-o", str(tmp_path / "disk.img"), *common]

    def rate(*options: str, **environment: str) -> float | None:
        done = CliRunner().invoke(main, [*plan, *options], env=environment)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["rate_bytes_per_second"]  # type: ignore[no-any-return]

    assert rate() is None
    assert rate(MEDV_LIMIT_RATE="1M") == 1 << 20
    assert rate("--limit-rate", "2M", MEDV_LIMIT_RATE="1M") == 2 << 20
    assert rate("--limit-rate", "2M", MEDV_RATE_SCHEDULE="1M") == 1 << 20
    assert rate("--rate-schedule", "unlimited", MEDV_RATE_SCHEDULE="pause") is None
    assert rate(MEDV_RATE_SCHEDULE="pause") == 0
    assert CliRunner().invoke(main, plan, env={"MEDV_LIMIT_RATE": "fast"}).exit_code == 2


@pytest.mark.net
def test_plan_tells_when_it_would_end(repository: tuple[Nginx, list[bytes]], tmp_path: Path) -> None:
    nginx, _ = repository
    common = ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--no-host-index"]
    plan = ["plan", nginx.url, "disk", "-o", str(tmp_path / "disk.img"), *common]
    slow = CliRunner().invoke(main, [*plan, "--limit-rate", "1k"])
    assert "limited to 1k now" in slow.stdout
    assert "MiB/s (assumed" in slow.stdout.replace("\n", " ")
    never = CliRunner().invoke(main, [*plan, "--rate-schedule", "pause"])
    assert "not within a year under the rate schedule, paused now" in never.stdout
    report = json.loads(CliRunner().invoke(main, [*plan, "--rate-schedule", "pause", "--json"]).stdout)
    assert (report["estimate_seconds"], report["rate_bytes_per_second"]) == (None, 0.0)
    later = f"{hours_around(datetime.now())} pause; otherwise 100k"
    report = json.loads(CliRunner().invoke(main, [*plan, "--rate-schedule", later, "--json"]).stdout)
    assert report["estimate_seconds"] == pytest.approx(3600 + report["fetch"]["bytes"] / 102400, abs=90)


@pytest.mark.net
def test_more_than_may_be_is_refused_before_it_is_fetched(
    repository: tuple[Nginx, list[bytes]], tmp_path: Path
) -> None:
    nginx, images = repository
    output = tmp_path / "disk.img"
    common = ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--no-host-index"]
    sync = ["sync", nginx.url, "disk", "-o", str(output), *common]
    done = CliRunner().invoke(main, [*sync, "--max-bytes", "100k"])
    assert done.exit_code == 10
    assert "at most 102,400 bytes are allowed; allow more with --max-bytes" in done.stderr
    assert not [served for served in nginx.served() if "packs/" in served.uri]
    assert not output.exists()
    refused = CliRunner().invoke(main, [*sync, "--json"], env={"MEDV_MAX_BYTES": "1"})
    assert json.loads(refused.stdout)["error"]["type"] == "LimitReached"
    assert CliRunner().invoke(main, [*sync, "--max-bytes", "100M"]).exit_code == 0
    assert output.read_bytes() == images[-1]
    nginx.forget()
    assert CliRunner().invoke(main, [*sync, "--max-bytes", "0"]).exit_code in (0, 10)
    assert len(nginx.served(1)) == 1, "what is up to date costs one request, limit or not"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate-schedule", "mon 8-18 1k"], "'mon 8-18 1k': expected days, hours and then a rate"),
        (["--mirror", "ftp://x"], "not an http:// or https:// URL"),
        (["--max-bytes", "much"], "a number of bytes"),
        (["--metered", "perhaps"], "'perhaps' is not one of"),
    ],
)
def test_wrong_usage(options: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["sync", "https://host/", "disk", *options])
    assert done.exit_code == 2
    assert message in done.stderr
