"""The HTTP store against a server that does everything wrong: rows TR1 to TR15 of the fault list, by name.

Whatever the fault: exactly the right bytes, each range once, or an error that names the cause.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import logging
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from servers import Authority, BadServer, ConnectProxy, Fault, Request, free_port

from trimtransfer.errors import AccessDenied, Cancelled, FetchError, FormatError, NotFound
from trimtransfer.fetch.connection import Connection
from trimtransfer.fetch.crew import Crew, Stopped
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.fetch.retry import Failed
from trimtransfer.store import Range

QUICK = FetchOptions(
    connect=5.0,
    stall=0.4,
    first_delay=0.01,
    max_delay=0.05,
    retry_after_cap=0.2,
    budget=30.0,
    first_budget=30.0,
    attempts=6,
    whole_limit=1 << 20,
)
CALM = replace(QUICK, stall=30.0)
"""For tests that count requests: a busy machine must not look like a stalled server."""
SIZE = 180_000
DATA = random.Random(20261120).randbytes(SIZE)
OTHER = random.Random(7).randbytes(50_000)
OBJECTS = {"packs/aa/x.bin": DATA, "packs/bb/y.bin": OTHER, "empty.bin": b""}
NAME = "packs/aa/x.bin"


def ranges(count: int = 9, *, total: int | None = SIZE) -> list[Range]:
    """Equal ranges that cover the object."""
    step = SIZE // count
    return [Range(NAME, start, step, total) for start in range(0, SIZE, step)]


def joined(wanted: list[Range], *, whole: bool = False) -> list[Range]:
    """The same ranges as one run."""
    return [replace(one, run=wanted[-1].end - one.start, whole=whole) for one in wanted]


class Receiver:
    """Takes deliveries and checks them: right bytes, each range once."""

    def __init__(self) -> None:
        self.got: Counter[Range] = Counter()
        self._lock = threading.Lock()

    def __call__(self, wanted: Range, data: memoryview) -> None:
        assert data.readonly
        assert bytes(data) == OBJECTS[wanted.name][wanted.start : wanted.start + wanted.length]
        with self._lock:
            self.got[wanted] += 1


def fetch_all(store: HttpStore, wanted: list[Range], *, again: bool = False) -> None:
    """Fetch, and check that all came, each once."""
    receiver = Receiver()
    store.fetch(iter(wanted), receiver, again=again)
    assert receiver.got == Counter(wanted)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


Opener = Callable[..., HttpStore]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens stores and closes them after the test."""
    stores = []

    def opener(server: BadServer | str, options: FetchOptions = QUICK, **arguments: object) -> HttpStore:
        url = server if isinstance(server, str) else server.url
        stores.append(HttpStore(url, options=options, **arguments))  # type: ignore[arg-type]
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


# ---- the fault matrix

HUGE_HEADER = b"HTTP/1.1 206 X\r\nX-Long: " + b"a" * (1 << 20) + b"\r\n\r\n"
LOGIN_PAGE = Fault(
    status=200, ignore_range=True, body=b"<html>log in</html>", headers={"Content-Type": "text/html; charset=utf-8"}
)

HEALED = {
    "TR1-whole-object": Fault(ignore_range=True),
    "TR1-whole-object-chunked": Fault(ignore_range=True, chunked=True),
    "TR1-whole-object-unframed": Fault(ignore_range=True, headers={"Content-Length": None}),
    "TR1-whole-object-cut": Fault(ignore_range=True, cut=90_000),
    "TR2-shifted": Fault(shift=1),
    "TR2-earlier": Fault(shift=-1),
    "TR2-no-content-range": Fault(headers={"Content-Range": None}),
    "TR2-other-total": Fault(headers={"Content-Range": "bytes 0-19999/180001"}),
    "TR2-nonsense": Fault(headers={"Content-Range": "bytes all/of/it"}),
    "TR2-huge-number": Fault(headers={"Content-Range": "bytes 0-19999/" + "9" * 400}),
    "TR2-multipart": Fault(
        headers={"Content-Range": None, "Content-Type": "multipart/byteranges; boundary=b"}, body=b"--b\r\n\r\n--b--"
    ),
    "TR3-cut-at-0": Fault(cut=0),
    "TR3-cut-at-1": Fault(cut=1),
    "TR3-cut-half": Fault(cut=10_000),
    "TR3-cut-last": Fault(cut=19_999),
    "TR3-cut-chunked": Fault(cut=9_000, chunked=True),
    "TR3-longer-body": Fault(longer=5_000),
    "TR3-extra-bytes": Fault(extra=b"\x00" * 100),
    "TR3-extra-answer": Fault(extra=b"HTTP/1.1 206 X\r\nContent-Length: 3\r\n\r\nbad"),
    "TR3-shorter-range": Fault(
        headers={"Content-Range": "bytes {first}-{half}/180000"}, body=b"{half}"
    ),
    "TR4-gzip": Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(DATA[:20_000])),
    "TR4-gzip-whole": Fault(ignore_range=True, headers={"Content-Encoding": "gzip"}, body=gzip.compress(DATA)),
    "TR4-chunked": Fault(chunked=True),
    "TR4-unframed": Fault(headers={"Content-Length": None}),
    "TR6-429": Fault(status=429, body=b"slow down", headers={"Retry-After": "0"}),
    "TR6-503-absurd": Fault(status=503, headers={"Retry-After": "99999999999"}),
    "TR6-503-date": Fault(status=503, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}),
    "TR6-503-nonsense": Fault(status=503, headers={"Retry-After": "when it rains"}),
    "TR6-500": Fault(status=500),
    "TR6-502-html": Fault(status=502, body=b"<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
    "TR6-504": Fault(status=504),
    "TR6-408": Fault(status=408),
    "TR6-reset-at-once": Fault(reset=True),
    "TR6-reset-in-body": Fault(reset=True, cut=10_000),
    "TR6-closed-without-answer": Fault(raw=b""),
    "TR6-no-http": Fault(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
    "TR6-half-a-head": Fault(raw=b"HTTP/1.1 206 X\r\nContent-Ra"),
    "TR7-silent": Fault(stall=-1),
    "TR7-silent-after-head": Fault(stall=0),
    "TR7-silent-in-body": Fault(stall=10_000),
    "TR7-body-drips": Fault(drip=0.02),
    "TR7-head-drips": Fault(drip_head=0.02),
    "TR7-endless-headers": Fault(endless=b"X-More: of the same\r\n" * 100),
    "TR7-endless-1xx": Fault(endless=b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"),
    "TR7-huge-header": Fault(raw=HUGE_HEADER),
    "TR8-redirect-and-back": Fault(status=302, headers={"Location": "/packs/aa/x.bin"}, body=b""),
    "TR11-login-page": LOGIN_PAGE,
    "TR11-cached-error": Fault(status=504, headers={"Age": "100"}),
}  # fmt: skip

FATAL: dict[str, tuple[Fault, type[Exception], str]] = {
    "TR5-404": (Fault(status=404, body=b"no"), NotFound, "x.bin"),
    "TR5-410": (Fault(status=410), NotFound, "x.bin"),
    "TR5-401": (Fault(status=401), AccessDenied, "HTTP 401"),
    "TR5-403": (Fault(status=403), AccessDenied, "give no right to this"),
    "TR5-407": (Fault(status=407), AccessDenied, "HTTPS_PROXY"),
    "TR5-416": (Fault(status=416), FetchError, "repository changed or is damaged"),
    "TR5-400": (Fault(status=400), FetchError, "HTTP 400"),
    "TR5-405": (Fault(status=405), FetchError, "HTTP 405"),
    "TR5-451": (Fault(status=451), FetchError, "HTTP 451"),
    "TR5-501": (Fault(status=501), FetchError, "HTTP 501"),
    "TR8-without-location": (Fault(status=301, body=b""), FetchError, "without a Location"),
    "TR8-other-scheme": (Fault(status=302, headers={"Location": "ftp://h/x"}), FetchError, "neither http nor https"),
    "TR8-malformed": (Fault(status=302, headers={"Location": "http://[::1/x"}), FetchError, "malformed"),
    "TR8-304": (Fault(status=304), FetchError, "HTTP 304"),
}

POSITIONS = {"start": 0, "middle": 4, "end": 8}


def shorter(fault: Fault, request: Request) -> Fault:
    """Fill in the fault whose answer depends on the question: half of the asked range, and honestly so."""
    assert request.range is not None
    first, last = request.range
    half = (first + last) // 2
    return replace(fault, headers={"Content-Range": f"bytes {first}-{half}/{SIZE}"}, body=DATA[first : half + 1])


@pytest.mark.parametrize("of", [1, 3])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", HEALED)
def test_a_fault_that_passes_is_healed(fault: str, position: str, of: int, opened: Opener) -> None:
    """One by one, and in runs of three."""
    wanted = ranges()
    wanted = [one for at in range(0, len(wanted), of) for one in joined(wanted[at : at + of])]

    def script(request: Request, turn: int) -> Fault | None:
        if turn != POSITIONS[position] // of:
            return None
        return shorter(HEALED[fault], request) if fault == "TR3-shorter-range" else HEALED[fault]

    with BadServer(OBJECTS, script) as server:
        fetch_all(opened(server, connections=1), wanted)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", FATAL)
def test_a_fault_that_stays_is_named_at_once(fault: str, position: str, opened: Opener) -> None:
    wrong, error, says = FATAL[fault]
    receiver = Receiver()
    with BadServer(OBJECTS, lambda _, turn: wrong if turn == POSITIONS[position] else None) as server:
        store = opened(server, CALM, connections=1)
        with pytest.raises(error, match=says) as caught:
            store.fetch(ranges(), receiver)
        assert server.url in str(caught.value)
        assert store.stats.retries == 0
        assert len(server.requests) == POSITIONS[position] + 1
    assert set(receiver.got.values()) <= {1}
    assert sum(receiver.got.values()) == POSITIONS[position]


@pytest.mark.parametrize("fault", HEALED)
def test_a_fault_for_ever_ends_in_an_error_or_in_the_right_bytes(fault: str, opened: Opener) -> None:
    def script(request: Request, turn: int) -> Fault | None:
        return shorter(HEALED[fault], request) if fault == "TR3-shorter-range" else HEALED[fault]

    receiver = Receiver()
    with BadServer(OBJECTS, script) as server:
        store = opened(server, replace(QUICK, attempts=3), connections=2)
        message = ""
        try:
            store.fetch(ranges(3), receiver)
        except FetchError as error:
            message = str(error)
    assert server.url in message if message else sum(receiver.got.values()) == 3
    assert len(message) < 500
    assert set(receiver.got.values()) <= {1}


@pytest.mark.parametrize("connections", [1, 4])
def test_random_faults(connections: int, rnd: random.Random, opened: Opener) -> None:
    faults = list(HEALED.items())

    def script(request: Request, turn: int) -> Fault | None:
        name, fault = faults[choices[turn % 400]]
        if never[turn % 400] or name.startswith(("TR2", "TR4-gzip", "TR7", "TR11")):  # wrong answers: only once each
            return None
        return shorter(fault, request) if name == "TR3-shorter-range" else fault

    choices = [rnd.randrange(len(faults)) for _ in range(400)]
    never = [rnd.random() < 0.7 for _ in range(400)]
    with BadServer(OBJECTS, script) as server:
        wanted = ranges(45)
        rnd.shuffle(wanted)
        fetch_all(opened(server, replace(CALM, attempts=30), connections=connections), wanted)


# ---- TR1: ranges that are ignored


def test_TR1_each_object_is_fetched_once_where_ranges_are_ignored(opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        store = opened(server, CALM, connections=1)
        others = [Range("packs/bb/y.bin", start, 1000, 50_000) for start in range(0, 50_000, 2000)]
        mixed = [wanted for pair in zip(ranges(18), others[:18], strict=True) for wanted in pair]
        fetch_all(store, mixed)
        assert Counter(request.target for request in server.requests) == {"/packs/aa/x.bin": 1, "/packs/bb/y.bin": 1}
        assert store.stats.bytes <= SIZE + 50_000
        fetch_all(store, ranges(9)[:3])
        assert len(server.requests) == 3
        assert store.stats.bytes < 2 * SIZE, "the rest of the object is not read"


def test_TR1_overlapping_and_repeated_ranges_come_too(opened: Opener) -> None:
    wanted = [Range(NAME, start, length, SIZE) for start, length in ((0, 90), (50, 100), (0, 90), (140, 9), (10, 20))]
    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        fetch_all(opened(server, CALM, connections=2), wanted)


def test_TR1_look_ahead_is_bounded(opened: Opener) -> None:
    pulled, delivered, most = 0, 0, 0

    def source() -> Iterator[Range]:
        nonlocal pulled
        for wanted in [Range(NAME, start, 100, SIZE) for start in range(0, SIZE, 100)]:
            pulled += 1
            yield wanted

    def deliver(wanted: Range, data: memoryview) -> None:
        nonlocal delivered, most
        most = max(most, pulled - delivered)
        delivered += 1

    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        opened(server, replace(CALM, look_ahead=50), connections=1).fetch(source(), deliver)
    assert delivered == 1800
    assert most <= 52


def test_TR1_a_large_object_is_not_streamed(opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        store = opened(server, replace(CALM, whole_limit=100_000))
        fetch_all(store, [Range(NAME, 50_000, 50_000, SIZE)])
        with pytest.raises(FetchError, match=r"ignores the Range header.*range support"):
            fetch_all(store, [Range(NAME, 100_000, 50_000, SIZE)])
        fetch_all(store, [Range(NAME, 0, SIZE, SIZE)])  # nothing wasted: it begins at the start


def test_TR1_ranges_that_work_again_are_used_again(opened: Opener) -> None:
    with BadServer(OBJECTS, [Fault(ignore_range=True)]) as server:
        store = opened(server, CALM, connections=1)
        fetch_all(store, ranges(9)[:1])
        fetch_all(store, ranges(9)[1:])
        assert len(server.requests) == 9
        assert store.stats.bytes <= SIZE + 65_536


def test_TR1_an_object_asked_for_whole_is_asked_for_without_range(opened: Opener) -> None:
    with BadServer(OBJECTS, [Fault(cut=100_000)]) as server:
        store = opened(server, CALM)
        fetch_all(store, [Range(NAME, 0, SIZE, SIZE, whole=True)])
        assert [request.range for request in server.requests] == [None, (100_000, SIZE - 1)]
        assert store.stats.bytes == SIZE


# ---- TR2, TR4, TR11: answers that are not what was asked for


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        pytest.param(Fault(headers={"Content-Range": f"bytes 0-{SIZE - 1}/{SIZE + 1}"}), "changed", id="TR2-total"),
        pytest.param(Fault(headers={"Content-Range": None}), "without Content-Range", id="TR2-no-content-range"),
        pytest.param(Fault(headers={"Content-Encoding": "gzip"}), "nginx: gzip off", id="TR4-gzip"),
        pytest.param(Fault(headers={"Content-Encoding": "br"}), "Content-Encoding: br", id="TR4-br"),
        pytest.param(LOGIN_PAGE, "login page", id="TR11-login-page"),
    ],
)
def test_a_wrong_answer_is_asked_for_once_more_past_the_caches(fault: Fault, says: str, opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: fault) as server:
        store = opened(server, CALM)
        with pytest.raises(FetchError, match=says) as caught:
            store.read_range(Range(NAME, 0, SIZE, SIZE))
        assert not caught.value.retryable
        assert [request.get("cache-control") for request in server.requests] == [None, "no-cache"]
        assert store.stats.bytes == 0, "no byte of such an answer is read"


def test_TR2_an_object_that_became_shorter(opened: Opener) -> None:
    with BadServer(OBJECTS) as server, pytest.raises(FetchError, match=r"changed or is damaged.*HTTP 416"):
        opened(server).read_range(Range(NAME, SIZE + 1000, 10))


# ---- TR3: bodies that are cut


@pytest.mark.parametrize("reset", [False, True], ids=["TR3-close", "TR6-reset"])
def test_a_cut_body_is_continued_at_the_last_good_byte(reset: bool, opened: Opener) -> None:
    cuts = [30_000, 50_000, 1, 60_000]
    with BadServer(OBJECTS, [Fault(cut=cut, reset=reset, delay=0.05) for cut in cuts]) as server:
        store = opened(server, CALM)
        fetch_all(store, [Range(NAME, 1000, 170_000, SIZE)])
        starts = [request.range[0] for request in server.requests if request.range]
        if reset:  # a reset may take bytes along that were under way
            assert starts[0] == 1000
            assert starts == sorted(starts)
        else:
            assert starts == [1000, 31_000, 81_000, 81_001, 141_001]
            assert store.stats.bytes == 170_000
        assert {request.range[1] for request in server.requests if request.range} == {170_999}
        assert (store.stats.requests, store.stats.retries) == (5, 4)


def test_TR3_a_range_that_the_server_shortens_is_no_failure(opened: Opener) -> None:
    def script(request: Request, turn: int) -> Fault:
        return shorter(Fault(), request) if turn < 6 else Fault()

    with BadServer(OBJECTS, script) as server:
        store = opened(server, CALM)
        fetch_all(store, [Range(NAME, 0, SIZE, SIZE)])
        assert (store.stats.requests, store.stats.retries, store.stats.bytes) == (7, 0, SIZE)


def test_TR3_a_server_that_gives_byte_by_byte_is_given_up(opened: Opener) -> None:
    def script(request: Request, turn: int) -> Fault:
        assert request.range is not None
        first = request.range[0]
        return Fault(headers={"Content-Range": f"bytes {first}-{first}/{SIZE}"}, body=DATA[first : first + 1])

    with BadServer(OBJECTS, script) as server, pytest.raises(FetchError, match="no progress in 6 attempts"):
        opened(server).read_range(Range(NAME, 0, SIZE, SIZE))


def test_TR3_extra_bytes_are_not_read(opened: Opener) -> None:
    fault = Fault(longer=50_000)
    with BadServer(OBJECTS, lambda *_: fault) as server:
        store = opened(server, CALM)
        fetch_all(store, [Range(NAME, 0, 100, SIZE)])
        # What came in one read together with the wanted bytes is all.
        assert store.stats.bytes <= 65_536
        assert server.connections == 1
        fetch_all(store, [Range(NAME, 0, 100, SIZE)])
        assert server.connections == 2, "a connection with unread bytes is not used again"


# ---- TR5: answers that repeating cannot change


@pytest.mark.parametrize("status", [401, 403, 407, 404, 410, 416, 400])
def test_TR5_the_error_carries_the_facts(status: int, opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(status=status)) as server:
        url = server.url.replace("://", "://user:geheim@")
        store = opened(url + "/?sig=geheim", CALM)
        with pytest.raises((FetchError, NotFound)) as caught:
            store.read(NAME, limit=SIZE)
        assert len(server.requests) == 1
    error = caught.value
    assert error.exit_code == {401: 8, 403: 8, 407: 8, 404: 4, 410: 4}.get(status, 5)
    assert f"{server.url}/{NAME}" in str(error)
    assert "geheim" not in str(error)
    if isinstance(error, FetchError):
        assert error.status == status
        assert not error.retryable


# ---- TR6: servers in trouble


def test_TR6_retry_after_holds_back_all_requests_and_halves_them(opened: Opener) -> None:
    times: list[float] = []

    def script(request: Request, turn: int) -> Fault | None:
        times.append(time.monotonic())
        return Fault(status=429, headers={"Retry-After": "86400"}) if turn == 4 else Fault(delay=0.01)

    with BadServer(OBJECTS, script) as server:
        store = opened(server, CALM, connections=4)
        fetch_all(store, ranges(36))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps[3:]) >= CALM.retry_after_cap * 0.9
    assert store.stats.retries == 1
    assert store._line.gate.limit in (2, 3, 4)  # halved; a few good requests in a row open it again


def test_TR6_patience_ends_with_the_cause(opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(status=503)) as server:
        with pytest.raises(
            FetchError, match=r"overloaded \(no progress in 6 attempts, \d+ seconds\) \(HTTP 503\)"
        ) as caught:
            opened(server).read(NAME, limit=SIZE)
        assert caught.value.retryable
        assert caught.value.status == 503
        assert len(server.requests) == 6


def test_TR6_a_closed_port(opened: Opener) -> None:
    port = free_port()
    with pytest.raises(FetchError, match=f"no server listens at 127.0.0.1:{port}; check the address") as caught:
        opened(f"http://127.0.0.1:{port}").read(NAME, limit=SIZE)
    assert caught.value.retryable


def test_TR6_a_closed_port_is_given_up_soon(opened: Opener) -> None:
    with pytest.raises(FetchError, match=r"no server listens at localhost:.* \(no progress in [1-5] attempts"):
        opened(f"http://localhost:{free_port()}", FetchOptions()).read(NAME, limit=SIZE)


def test_TR6_an_unknown_host(opened: Opener) -> None:
    with pytest.raises(FetchError, match="host name not found"):
        opened("http://no-such-host.invalid").read(NAME, limit=SIZE)


def test_TR6_a_server_never_seen_is_given_up_sooner(opened: Opener) -> None:
    options = replace(QUICK, first_budget=0.0)
    with pytest.raises(FetchError, match="no progress in 1 attempts"):
        opened(f"http://127.0.0.1:{free_port()}", options).read(NAME, limit=SIZE)


@pytest.mark.parametrize("tls", [False, True], ids=["TR6-tls-alert", "TR6-not-tls"])
def test_wrong_protocol(tls: bool, authority: Authority, opened: Opener) -> None:
    if tls:  # https to a server of plain http
        with BadServer(OBJECTS) as server, pytest.raises(FetchError, match="does not speak TLS") as caught:
            opened(server.url.replace("http:", "https:"), ca_cert=authority.file).read(NAME, limit=SIZE)
        assert not caught.value.retryable
        return
    context = authority.context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["none-of-ours"])
    context.verify_mode = ssl.CERT_REQUIRED  # a client certificate is asked for: TLS alert
    context.load_verify_locations(authority.file)
    with BadServer(OBJECTS, tls=context) as server, pytest.raises(FetchError) as caught:
        opened(server, ca_cert=authority.file).read(NAME, limit=SIZE)
    assert caught.value.retryable


# ---- TR7: stalls


@pytest.mark.parametrize("fault", [name for name in HEALED if name.startswith("TR7") and name != "TR7-silent-in-body"])
def test_a_stall_for_ever_is_an_error(fault: str, opened: Opener) -> None:
    options = replace(QUICK, attempts=2, stall=0.2)
    with BadServer(OBJECTS, lambda *_: HEALED[fault]) as server, pytest.raises(FetchError) as caught:
        opened(server, options).read_range(Range(NAME, 0, 20_000, SIZE))
    assert caught.value.retryable
    assert "no progress" in str(caught.value)


def test_TR7_slow_but_steady_is_no_stall(opened: Opener) -> None:
    options = replace(QUICK, stall=1.5, min_progress=16)
    with BadServer(OBJECTS, lambda *_: Fault(drip=0.01)) as server:
        store = opened(server, options)
        fetch_all(store, [Range(NAME, 0, 300, SIZE)])  # 3 seconds, more than one stall window
        assert store.stats.retries == 0


def test_TR7_a_slow_receiver_is_no_stall(opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        store = opened(server, replace(QUICK, stall=1.0), connections=1)
        store.fetch(ranges(2), lambda wanted, data: time.sleep(2.0 if wanted.start == 0 else 0.0))
        assert store.stats.retries == 0


# ---- TR8: redirects


def test_TR8_a_loop_ends(opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(status=302, headers={"Location": f"/{NAME}"})) as server:
        with pytest.raises(FetchError, match="more than 5 redirects"):
            opened(server).read(NAME, limit=SIZE)
        assert len(server.requests) == 6


def test_TR8_a_redirect_to_another_host_gets_no_credentials_and_is_remembered(opened: Opener) -> None:
    with BadServer(OBJECTS) as target:

        def script(request: Request, turn: int) -> Fault:
            location = f"{target.url.replace('://', '://evil:login@')}{request.target}"
            return Fault(status=307, headers={"Location": location}, body=b"elsewhere")

        with BadServer(OBJECTS, script) as server:
            store = opened(server.url.replace("://", "://user:geheim@"), CALM, connections=1)
            fetch_all(store, ranges())
            assert [request.get("authorization") for request in server.requests] == ["Basic dXNlcjpnZWhlaW0="]
            assert {request.get("authorization") for request in target.requests} == {None}
            assert len(target.requests) == 9
            assert store.stats.requests == 10
            assert server.connections == 1


def test_TR8_a_remembered_redirect_is_forgotten_when_it_fails(opened: Opener) -> None:
    with BadServer(OBJECTS, [None, None, Fault(reset=True)]) as target:

        def script(request: Request, turn: int) -> Fault | None:
            return Fault(status=302, headers={"Location": target.url + request.target}) if turn == 0 else None

        with BadServer(OBJECTS, script) as server:
            fetch_all(opened(server, CALM, connections=1), ranges())
            assert len(target.requests) == 3
            assert len(server.requests) == 8


def test_TR8_from_https_to_http_is_refused(authority: Authority, opened: Opener) -> None:
    with BadServer(OBJECTS) as plain:
        fault = Fault(status=301, headers={"Location": f"{plain.url}/{NAME}?sig=geheim"})
        with BadServer(OBJECTS, lambda *_: fault, tls=authority.context()) as server:
            with pytest.raises(FetchError, match="not encrypted: refused") as caught:
                opened(server, ca_cert=authority.file).read(NAME, limit=SIZE)
            assert "geheim" not in str(caught.value)
        assert plain.requests == []


# ---- TR9: certificates


def test_TR9_certificates(authority: Authority, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    cases = [
        (authority.context(), None, "local issuer"),
        (authority.context("other.example"), authority.file, "[Hh]ostname mismatch"),
        (authority.context(not_before=yesterday - timedelta(days=1), not_after=yesterday), authority.file, "expired"),
    ]
    for context, ca_cert, says in cases:
        with BadServer(OBJECTS, tls=context) as server:
            with pytest.raises(FetchError, match=f"certificate is not valid here: .*{says}.*--ca-cert") as caught:
                opened(server, ca_cert=ca_cert).read(NAME, limit=SIZE)
            assert not caught.value.retryable
            assert (server.requests, server.connections) == ([], 1)
    with BadServer(OBJECTS, tls=authority.context()) as server:
        assert opened(server, ca_cert=authority.file).read(NAME, limit=SIZE) == DATA
        monkeypatch.setenv("SSL_CERT_FILE", authority.file)
        assert opened(server).read(NAME, limit=SIZE) == DATA


def test_TR9_certificates_that_cannot_be_read(opened: Opener) -> None:
    with pytest.raises(FetchError, match=r"nowhere\.pem cannot be read"):
        opened("https://localhost", ca_cert="/nowhere.pem")


# ---- TR10: content is the receiver's business; asking again goes past the caches


def test_TR10_again_asks_caches_for_fresh_copies(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        store = opened(server)
        fetch_all(store, ranges(3), again=True)
        fetch_all(store, ranges(3))
        assert [request.get("cache-control") for request in server.requests] == ["no-cache"] * 3 + [None] * 3


# ---- TR11: proxies


def test_TR11_a_proxy_of_the_environment_is_used(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with BadServer({"http://repo.test/x.bin": b"by proxy"}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", "://me:geheim@"))
        store = opened("http://repo.test", CALM)
        assert store.read("x.bin", limit=100) == b"by proxy"
        assert proxy.requests[0].get("proxy-authorization") == "Basic bWU6Z2VoZWlt"
        monkeypatch.setenv("NO_PROXY", "repo.test")
        with pytest.raises(FetchError, match="not found"):
            opened("http://repo.test", replace(QUICK, attempts=1)).read("x.bin", limit=100)
        assert len(proxy.requests) == 1


@pytest.mark.parametrize(("status", "error"), [(407, AccessDenied), (502, FetchError)])
def test_TR11_a_proxy_that_does_not_connect(
    status: int, error: type[FetchError], opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BadServer({}, lambda *_: Fault(status=status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(error, match="proxy"):
            opened("https://repo.test").read("x.bin", limit=100)
        assert {request.method for request in proxy.requests} == {"CONNECT"}
        assert len(proxy.requests) == (1 if status == 407 else 6)


def test_TR11_tls_through_a_proxy(authority: Authority, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    faults: list[Fault | None] = [None] * 3 + [Fault(stall=100)] + [None] * 6 + [Fault(stall=-1)] * 99
    with ConnectProxy() as proxy, BadServer(OBJECTS, faults, tls=authority.context("repo.test")) as server:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        url = f"https://repo.test:{server.port}"
        store = opened(url, replace(QUICK, stall=2.0), ca_cert=authority.file, connections=1, cancel=cancel)
        fetch_all(store, ranges())
        assert store.stats.retries == 1, "the stalled connection was broken through the tunnel"
        assert set(proxy.targets) == {f"CONNECT repo.test:{server.port}"}
        with pytest.raises(FetchError, match="certificate is not valid"):
            opened(url).read(NAME, limit=SIZE)
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(Cancelled):
            fetch_all(store, ranges())


def test_TR11_unusable_proxy_settings(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://x:1")
    with pytest.raises(FetchError, match="proxy settings"):
        opened("http://repo.test").read("x.bin", limit=100)


# ---- TR12: mirrors are chosen above the store; what it offers them is an error that tells retryable from final


def test_TR12_errors_tell_whether_later_may_help(opened: Opener) -> None:
    for status, later in ((500, True), (429, True), (400, False)):
        with BadServer(OBJECTS, lambda *_, status=status: Fault(status=status)) as server:
            with pytest.raises(FetchError) as caught:
                opened(server).read(NAME, limit=SIZE)
            assert caught.value.retryable is later


# ---- TR13: requests are made anew


def test_TR13_headers_are_set_once_and_cookies_never(opened: Opener) -> None:
    cookie = {"Set-Cookie": "session=1; Path=/"}
    faults: list[Fault | None] = [Fault(status=500, headers=cookie), Fault(cut=3000, headers=cookie), Fault(reset=True)]
    with BadServer(OBJECTS, faults) as server:
        fetch_all(opened(server.url.replace("://", "://u:p@")), ranges(3))
        for request in server.requests:
            names = Counter(name for name, _ in request.headers)
            assert set(names.values()) == {1}
            assert request.get("accept-encoding") == "identity"
            assert request.get(
                "user-agent",
            ).startswith("trimtransfer/")  # type: ignore[union-attr]
            assert {"range", "authorization", "host"} <= set(names)
            assert "cookie" not in names


# ---- TR14: networks that go away and come back


def test_TR14_a_server_that_restarts_elsewhere_in_time(opened: Opener) -> None:
    gone = threading.Event()
    with BadServer(OBJECTS, lambda _, turn: Fault(reset=True) if gone.is_set() and turn < 12 else None) as server:
        store = opened(server, replace(CALM, attempts=40), connections=2)
        receiver = Receiver()

        def deliver(wanted: Range, data: memoryview) -> None:
            receiver(wanted, data)
            gone.set()

        store.fetch(ranges(), deliver)
        assert receiver.got == Counter(ranges())
        assert store.stats.retries >= 5


# ---- TR15: rate limits


def test_TR15_a_limited_rate(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        store = opened(server, replace(QUICK, stall=0.8), limit_rate=60_000, connections=2)
        begun = time.monotonic()
        fetch_all(store, ranges(2))  # 3 seconds; each wait for what one read brought is longer than the stall timer
        # Never faster than the full rate, less what may be saved up and what is paid for at the end.
        assert time.monotonic() - begun >= (SIZE - 2 * 65_536 - 6_000) / 60_000
        assert store.stats.retries == 0


def test_TR15_a_low_rate_asks_for_pieces_and_does_not_stall(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        store = opened(server, replace(QUICK, stall=0.7), limit_rate=1000, connections=4)
        fetch_all(store, [Range(NAME, 5000, 1500, SIZE)])
        assert [request.range for request in server.requests] == [(5000, 5799), (5800, 6499)]
        assert server.connections == 1
        assert store.stats.retries == 0
        store.limit_rate = None
        fetch_all(store, ranges())


# ---- reading small objects


def test_read(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        store = opened(server)
        assert store.read(NAME, limit=SIZE) == DATA
        assert store.read("empty.bin", limit=0) == b""
        assert [(request.range, request.get("cache-control")) for request in server.requests] == [
            (None, "no-cache")
        ] * 2
        with pytest.raises(NotFound, match=r"nothing\.bin not found"):
            store.read("nothing.bin", limit=10)


@pytest.mark.parametrize("fault", [Fault(), Fault(chunked=True), Fault(headers={"Content-Length": None})], ids=str)
def test_read_stops_at_its_limit(fault: Fault, opened: Opener) -> None:
    big = {"big.bin": bytes(4 << 20)}
    with BadServer(big, lambda *_: fault) as server:
        store = opened(server, CALM)
        with pytest.raises(FormatError, match="at most 1,000 bytes"):
            store.read("big.bin", limit=1000)
        assert store.stats.bytes <= 1000 + 65_536


@pytest.mark.parametrize("fault", [name for name in HEALED if name.startswith(("TR3-cut", "TR6", "TR7", "TR8"))])
def test_read_heals(fault: str, opened: Opener) -> None:
    with BadServer(OBJECTS, [HEALED[fault]]) as server:
        assert opened(server).read(NAME, limit=SIZE) == DATA


def test_read_of_json(opened: Opener) -> None:
    head = {"version": "1"}
    with BadServer({"head.json": json.dumps(head).encode()}) as server:
        assert json.loads(opened(server).read("head.json", limit=1024)) == head


# ---- runs


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_is_one_request_and_delivered_as_it_comes(whole: bool, opened: Opener) -> None:
    requests: list[int] = []
    receiver = Receiver()
    wanted = joined(ranges(), whole=whole)

    def deliver(one: Range, data: memoryview) -> None:
        requests.append(len(server.requests))
        receiver(one, data)

    with BadServer(OBJECTS, [Fault(stall=70_000)]) as server:
        opened(server, connections=1).fetch(wanted, deliver)
        assert [request.range for request in server.requests] == [None if whole else (0, SIZE - 1), (70_000, SIZE - 1)]
    assert requests == [1] * 3 + [2] * 6, "three pieces were there when the server fell silent"
    assert receiver.got == Counter(wanted)


def test_connections_share_runs_not_pieces(opened: Opener) -> None:
    wanted = ranges()
    with BadServer(OBJECTS, lambda *_: Fault(delay=0.1)) as server:
        fetch_all(opened(server, CALM, connections=4), joined(wanted[:4]) + joined(wanted[4:]))
        assert sorted(request.range or (0, 0) for request in server.requests) == [(0, 79_999), (80_000, SIZE - 1)]


def test_a_run_whose_pieces_are_not_all_wanted_ends_before(opened: Opener) -> None:
    """Others may have delivered them."""
    run = joined(ranges(), whole=True)
    other = Range("packs/bb/y.bin", 10, 20, 50_000)
    with BadServer(OBJECTS) as server:
        fetch_all(opened(server, CALM, connections=1), [*run[3:5], other, *run[6:8], run[1]])
        found = [request.range for request in server.requests]
    assert found == [(60_000, 99_999), (10, 29), (120_000, 159_999), (20_000, 39_999)]


def test_a_run_where_ranges_are_ignored_takes_the_rest_of_the_object_along(opened: Opener) -> None:
    wanted = ranges()
    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        fetch_all(opened(server, CALM, connections=1), joined(wanted[:3]) + joined(wanted[5:7]) + [wanted[8]])
        assert len(server.requests) == 1


def test_a_run_at_a_low_rate_is_asked_for_in_pieces(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        fetch_all(opened(server, CALM, connections=2, limit_rate=100_000), joined(ranges()[:4]))
        assert max(last - first for first, last in (request.range or (0, SIZE) for request in server.requests)) < SIZE


# ---- calls, threads and ends


def test_no_ranges_and_empty_ranges(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        store = opened(server)
        fetch_all(store, [])
        fetch_all(store, [Range("empty.bin", 0, 0, 0), Range(NAME, 7, 0, SIZE)])
        assert store.stats.requests == 0


@pytest.mark.parametrize(
    "wanted",
    [
        Range(NAME, -1, 2),
        Range(NAME, 1, -2),
        Range(NAME, SIZE - 1, 2, SIZE),
        Range(NAME, 1, SIZE - 1, SIZE, whole=True),
        Range(NAME, 0, SIZE, None, whole=True),
    ],
)
def test_ranges_that_cannot_be(wanted: Range, opened: Opener) -> None:
    with BadServer(OBJECTS) as server, pytest.raises(ValueError, match="Range"):
        opened(server).fetch([wanted], Receiver())


def test_an_error_of_the_receiver_ends_all(opened: Opener) -> None:
    calls = []

    def deliver(wanted: Range, data: memoryview) -> None:
        calls.append(wanted)
        if len(calls) == 3:
            raise ZeroDivisionError("full")

    with BadServer(OBJECTS, lambda *_: Fault(delay=0.01)) as server:
        store = opened(server, CALM, connections=1)
        with pytest.raises(ZeroDivisionError, match="full"):
            store.fetch(ranges(), deliver)
        assert len(calls) == 3
        fetch_all(store, ranges())


def test_an_error_of_the_source_ends_all(opened: Opener) -> None:
    def source() -> Iterator[Range]:
        yield from ranges()[:2]
        raise KeyError("plan")

    with BadServer(OBJECTS) as server, pytest.raises(KeyError, match="plan"):
        opened(server, CALM).fetch(source(), Receiver())


def test_ranges_are_pulled_late(opened: Opener) -> None:
    pulled = 0
    delivered = 0

    def source() -> Iterator[Range]:
        nonlocal pulled
        for wanted in ranges(36):
            pulled += 1
            assert pulled - delivered <= 4
            yield wanted

    lock = threading.Lock()

    def deliver(wanted: Range, data: memoryview) -> None:
        nonlocal delivered
        with lock:
            delivered += 1

    with BadServer(OBJECTS) as server:
        opened(server, CALM, connections=4).fetch(source(), deliver)
        assert server.connections <= 4
    assert pulled == delivered == 36


def test_bytes_on_their_way_are_bounded_whatever_the_connections(opened: Opener) -> None:
    """A range is on its way from when it is asked for until the receiver has taken it."""
    lock, on_way, most = threading.Lock(), 0, 0

    def script(request: Request, turn: int) -> Fault:
        nonlocal on_way, most
        assert request.range is not None
        with lock:
            on_way += request.range[1] + 1 - request.range[0]
            most = max(most, on_way)
        return Fault(delay=0.02)

    def deliver(wanted: Range, data: memoryview) -> None:
        nonlocal on_way
        time.sleep(0.01)
        with lock:
            on_way -= wanted.length

    with BadServer(OBJECTS, script) as server:
        store = opened(server, replace(CALM, in_flight=45_000), connections=16)
        store.fetch([*ranges(18), Range(NAME, 0, 100_000, SIZE), *ranges(60)], deliver)
        assert on_way == 0
    assert 30_000 <= most <= 100_000  # one that is longer than the bound comes alone


@pytest.mark.parametrize("length", [10_000, 50_000])
def test_a_bound_of_bytes_on_their_way_stops_nobody_who_ignores_ranges(length: int, opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(ignore_range=True)) as server:
        wanted = [Range(NAME, start, length, SIZE) for start in range(0, SIZE - length, length)]
        fetch_all(opened(server, replace(CALM, in_flight=30_000), connections=16), wanted)


@pytest.mark.parametrize(
    "fault",
    [Fault(stall=-1), Fault(stall=500), Fault(drip=0.01), Fault(status=503, headers={"Retry-After": "60"})],
    ids=["silent", "in-body", "drips", "waiting-to-retry"],
)
def test_cancelling_ends_promptly(fault: Fault, opened: Opener) -> None:
    cancel = threading.Event()
    patient = FetchOptions(stall=600)
    with BadServer(OBJECTS, lambda *_: fault) as server:
        store = opened(server, patient, cancel=cancel, connections=3)
        threading.Timer(0.3, cancel.set).start()
        receiver = Receiver()
        with pytest.raises(Cancelled):
            store.fetch(ranges(), receiver)
        assert receiver.got == {}
        deadline = time.monotonic() + 20
        while any(thread.name.startswith("fetch-") for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "threads are left"
            time.sleep(0.01)


def test_cancelling_leaves_a_thread_behind_that_nothing_can_wake(opened: Opener) -> None:
    cancel = threading.Event()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # a full backlog: the system drops further attempts, as a firewall does
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        store = opened(f"http://127.0.0.1:{listener.getsockname()[1]}", replace(CALM, connect=8.0), cancel=cancel)
        threading.Timer(0.3, cancel.set).start()
        receiver = Receiver()
        with pytest.raises(Cancelled):
            store.fetch(ranges(), receiver)
        assert any(thread.name.startswith("fetch-") for thread in threading.enumerate())
    assert receiver.got == {}


def test_several_threads_share_the_connections(opened: Opener) -> None:
    with BadServer(OBJECTS, lambda *_: Fault(delay=0.002)) as server:
        store = opened(server, CALM, connections=3)
        errors: list[BaseException] = []

        def run() -> None:
            try:
                fetch_all(store, ranges(18))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert server.connections <= 3
        assert store.stats.bytes == 4 * SIZE


def test_progress_is_reported(opened: Opener) -> None:
    seen: list[int] = []
    with BadServer(OBJECTS, [Fault(cut=1000)]) as server:
        store = opened(server, CALM, on_bytes=seen.append)
        fetch_all(store, ranges())
        assert sum(seen) == store.stats.bytes == SIZE


def test_a_closed_store_says_so(opened: Opener) -> None:
    with BadServer(OBJECTS) as server:
        store = opened(server)
        store.close()
        with pytest.raises(ValueError, match="closed"):
            store.read(NAME, limit=SIZE)


def test_logs_tell_of_retries_and_no_secrets(opened: Opener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with BadServer(OBJECTS, [Fault(status=500), Fault(reset=True)]) as server:
        store = opened(server.url.replace("://", "://user:geheim@") + "/?sig=vertraulich")
        store.read(NAME, limit=SIZE)
    ours = [record.getMessage() for record in caplog.records if record.name == "trimtransfer.fetch"]
    assert len(ours) == 2
    assert f"{server.url}/{NAME}: the server reports an error of its own" in ours[0]
    assert all(secret not in text for text in ours for secret in ("geheim", "vertraulich"))
    assert "HTTP Request: GET" in caplog.text
    assert "geheim" not in caplog.text
    assert "vertraulich" not in caplog.text


@pytest.mark.parametrize("arguments", [{"connections": 0}, {"limit_rate": 0}, {"limit_rate": -5}])
def test_arguments_that_cannot_be(arguments: dict[str, int], opened: Opener) -> None:
    with pytest.raises(ValueError, match=r"connections|rate limit"):
        opened("http://localhost", **arguments)


def test_a_connection_that_was_given_back_is_not_broken(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends a fetch breaks the connections in use, however long he takes: the next request finds sound ones."""
    abort = Connection.abort

    def slowly(connection: Connection, failure: Failed | None) -> None:
        time.sleep(0.02)
        abort(connection, failure)

    monkeypatch.setattr(Connection, "abort", slowly)

    def refuse(wanted: Range, view: memoryview) -> None:
        raise RuntimeError("enough")

    with BadServer(OBJECTS) as server:
        store = opened(server)
        for _ in range(30):
            with pytest.raises(RuntimeError, match="enough"):
                store.fetch(ranges(), refuse)
            assert store.read(NAME, limit=SIZE) == DATA


def test_a_thread_that_stops_unasked_has_not_done_its_work() -> None:
    def work() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        Crew(size=1, tick=0.01).run(work, watch=lambda: None, interrupt=lambda: None)
