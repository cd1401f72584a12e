"""A probe asks one thing at a time, reads no more than it may, and tells all that it saw."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from servers import BadServer, Fault, Request

from trimtransfer.fetch.probe import Probe, Question
from trimtransfer.fetch.retry import Cause
from trimtransfer.fetch.seen import Seen

LARGE = bytes(range(256)) * 20_000


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_no_more_is_read_than_is_allowed() -> None:
    with BadServer({"x.bin": LARGE, "y.bin": b"small"}) as server, Probe(server.url, budget=300_000) as probe:
        seen = probe.ask("x.bin", Question(limit=1000, narrow=True))
        assert (seen.status, seen.body, seen.ended) == (200, LARGE[:1000], False)
        assert seen.headers["content-length"] == str(len(LARGE))
        seen = probe.ask("y.bin")
        assert (seen.body, seen.ended, seen.opened) == (b"small", True, True)
        assert not probe.ask("y.bin").opened, "kept"
        assert probe.ask("y.bin", Question(anew=True)).opened
        left = probe.left
        assert 300_000 - (128 << 10) < left < 299_000
        seen = probe.ask("x.bin", Question(limit=1 << 30))
        assert left <= len(seen.body) < left + 1
        assert probe.left <= 0
        assert probe.ask("y.bin").body == b""
        assert probe.requests == len(server.requests) == 6


def test_what_is_asked_for_is_what_is_sent() -> None:
    with BadServer({"x.bin": LARGE}) as server, Probe(f"{server.url}/?signature=1", budget=1 << 20) as probe:
        seen = probe.ask("x.bin", Question(start=5, stop=25, headers={"If-None-Match": '"1"'}, query="a=b", fresh=True))
    assert (seen.status, seen.body, seen.asked) == (206, LARGE[5:25], (5, 25))
    (request,) = server.requests
    assert request.target == "/x.bin?signature=1&a=b"
    assert request.range == (5, 24)
    assert request.get("accept-encoding") == "identity"
    assert request.get("cache-control") == "no-cache"
    assert request.get("if-none-match") == '"1"'
    assert seen.url == f"{server.url}/x.bin", "no signature in what is shown"


def test_redirects_are_told_and_credentials_stay_at_home() -> None:
    with BadServer({"x.bin": b"there"}, address="127.0.0.2") as other:
        place = f"http://127.0.0.2:{other.port}"
        home = BadServer({}, lambda request, turn: Fault(status=302, headers={"Location": f"{place}/x.bin?secret"}))
        with home, Probe(home.url.replace("://", "://user:pass@"), budget=1000) as probe:
            assert probe.has_credentials
            seen = probe.ask("x.bin")
    assert seen.body == b"there"
    assert [(hop.status, hop.target, hop.crossed) for hop in seen.hops] == [(302, f"{place}/x.bin", True)]
    assert home.requests[0].get("authorization")
    assert other.requests[0].get("authorization") is None


def test_what_takes_too_long_is_cut() -> None:
    told: list[Seen] = []
    slow = Fault(drip=0.2)
    with (
        BadServer({"x.bin": LARGE}, lambda *_: slow) as server,
        Probe(server.url, budget=1 << 20, patience=1.0, tell=told.append) as probe,
    ):
        begun = time.monotonic()
        seen = probe.ask("x.bin")
        assert time.monotonic() - begun < 5
    assert (seen.status, seen.cause) == (200, Cause.STALL)
    assert told == [seen]


def test_a_server_that_is_not_there() -> None:
    with BadServer({}) as server:
        url = server.url
    with Probe(url, budget=1000) as probe:
        seen = probe.ask("x.bin")
        assert (seen.status, seen.cause) == (None, Cause.NOBODY)
        assert not seen.succeeded
        assert probe.proxy() is None
    with Probe("http://nothing.invalid", budget=1000) as probe:
        assert probe.addresses() == []
        assert probe.ask("x").cause is Cause.CONNECTION


def test_each_address_by_itself() -> None:
    def script(request: Request, turn: int) -> Fault | None:
        return replace(Fault(), body=b"one") if request.target == "/x.bin" else None

    with (
        BadServer({}, script) as one,
        BadServer({"x.bin": b"two"}, address="127.0.0.2", port=one.port),
        Probe(f"http://localhost:{one.port}", budget=1000) as probe,
    ):
        bodies = [probe.ask("x.bin", Question(address=f"127.0.0.{number}")).body for number in (1, 2)]
    assert bodies == [b"one", b"two"]
