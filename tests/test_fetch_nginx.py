"""The HTTP store against real nginx over TLS: what crosses the wire, and what nginx's own faults and limits lead to."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from servers import MISSING_NGINX, Authority, Nginx, has_nginx

from trimtransfer.errors import AccessDenied, FetchError, NotFound
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.store import Range, Store

pytestmark = [pytest.mark.net, pytest.mark.skipif(not has_nginx(), reason=MISSING_NGINX)]

OPTIONS = FetchOptions(first_delay=0.02, max_delay=0.2, retry_after_cap=0.3, budget=60, first_budget=60)
SIZE = 6_000_000
DATA = random.Random(3).randbytes(SIZE)


@pytest.fixture(autouse=True)
def objects(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "x.bin").write_bytes(DATA)
    (root / "sub").mkdir()
    (root / "sub/y.bin").write_bytes(DATA[::-1])
    return root


@pytest.fixture
def serve(objects: Path, tmp_path: Path, authority: Authority) -> Iterator[object]:
    """Starts nginx with further configuration, and opens a store on it."""
    open_now: list[Nginx | HttpStore] = []

    def start(*, http: str = "", server: str = "", path: str = "", **arguments: object) -> tuple[Nginx, HttpStore]:
        nginx = Nginx(objects, tmp_path, authority, http=http, server=server).__enter__()
        arguments = {"options": OPTIONS, "ca_cert": authority.file} | arguments
        store = HttpStore(nginx.url + path, **arguments)  # type: ignore[arg-type]
        open_now.extend((nginx, store))
        return nginx, store

    yield start
    for item in reversed(open_now):
        item.close() if isinstance(item, HttpStore) else item.__exit__()


def pieces(length: int, *, count: int, rnd: random.Random | None = None) -> list[Range]:
    starts = range(0, SIZE - length + 1, max(1, (SIZE - length) // max(1, count - 1)))
    wanted = [Range("x.bin", start, length, SIZE) for start in starts[:count]]
    if rnd:
        rnd.shuffle(wanted)
    return wanted


def fetch_all(store: Store, wanted: list[Range]) -> None:
    got: Counter[Range] = Counter()
    lock = threading.Lock()

    def deliver(part: Range, data: memoryview) -> None:
        right = DATA if part.name == "x.bin" else DATA[::-1]
        assert data == right[part.start : part.start + part.length]
        with lock:
            got[part] += 1

    store.fetch(wanted, deliver)
    assert got == Counter(wanted)


def test_what_crosses_the_wire_is_what_was_asked_for(serve, rnd: random.Random) -> None:
    nginx, store = serve()
    wanted = [*pieces(70_001, count=40, rnd=rnd), Range("x.bin", 0, SIZE, SIZE, whole=True), Range("x.bin", 9, 0, SIZE)]
    fetch_all(store, wanted)
    assert store.read("sub/y.bin", limit=SIZE) == DATA[::-1]
    served = nginx.served(42)
    assert len(served) == store.stats.requests == 42
    assert sum(line.bytes for line in served) == store.stats.bytes == sum(part.length for part in wanted) + SIZE
    assert Counter(line.status for line in served) == {206: 40, 200: 2}
    assert {line.range for line in served if line.status == 200} == {"-"}
    assert all(line.agent.startswith("trimtransfer/") for line in served)


def test_connections_are_kept(serve) -> None:
    nginx, store = serve(http="log_format c '$connection'; access_log connections.log c;", connections=3)
    for _ in range(3):
        fetch_all(store, pieces(1000, count=50))
    nginx.served(150)
    numbers = set((nginx.work / "connections.log").read_text().split())
    assert len(numbers) <= 3


def test_TR4_gzip_switched_on_for_everything(serve, objects: Path) -> None:
    text = b"compressible " * 100_000
    (objects / "text.bin").write_bytes(text)
    _, store = serve(http="gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;")
    assert store.read_range(Range("text.bin", 1000, 500_000, len(text))) == text[1000:501_000]
    assert store.read("text.bin", limit=len(text)) == text
    assert store.stats.retries == 0


def test_TR4_a_server_that_claims_gzip(serve) -> None:
    _, store = serve(server="add_header Content-Encoding gzip;")
    with pytest.raises(FetchError, match="gzip off"):
        fetch_all(store, pieces(1000, count=1))
    assert store.stats.requests == 2


def test_TR1_ranges_switched_off(serve) -> None:
    nginx, store = serve(server="max_ranges 0;", connections=1)
    other = [Range("sub/y.bin", start, 500, SIZE) for start in range(0, SIZE, 600_000)]
    fetch_all(store, pieces(100_000, count=30) + other)
    assert [line.status for line in nginx.served(2)] == [200, 200]
    assert store.stats.bytes <= 2 * SIZE


def test_TR5_what_is_missing_or_forbidden(serve, objects: Path) -> None:
    (objects / "password").write_text("user:{PLAIN}p@ss\n")
    rules = f"""
        location /closed/ {{ deny all; }}
        location /private/ {{ auth_basic "x"; auth_basic_user_file {objects}/password; alias {objects}/; }}
    """
    nginx, store = serve(server=rules)
    with pytest.raises(NotFound, match=r"nothing\.bin"):
        store.read("nothing.bin", limit=1)
    for name, status in (("closed/x.bin", 403), ("private/x.bin", 401)):
        with pytest.raises(AccessDenied) as caught:
            store.read(name, limit=1)
        assert caught.value.status == status
    with pytest.raises(FetchError, match="changed or is damaged") as refused:
        store.read_range(Range("x.bin", SIZE, 1))
    assert refused.value.status == 416
    assert len(nginx.served(4)) == 4
    known = HttpStore(nginx.url.replace("://", "://user:p%40ss@") + "/private", ca_cert=store_ca(nginx))
    fetch_all(known, pieces(1000, count=3))
    known.close()


def store_ca(nginx: Nginx) -> str:
    assert nginx.ca_cert is not None
    return nginx.ca_cert


def test_TR6_a_server_that_allows_one_connection(serve) -> None:
    limits = "limit_conn_zone $binary_remote_addr zone=one:1m;"
    nginx, store = serve(http=limits, server="limit_conn one 1; limit_conn_status 429; limit_rate 20m;", connections=4)
    fetch_all(store, pieces(300_000, count=20))
    statuses = Counter(line.status for line in nginx.served(20 + store.stats.retries))
    assert statuses[206] == 20
    assert set(statuses) <= {206, 429}
    # Fewer at once from the first complaint on: not every request is refused first.
    assert store.stats.retries < 20


def test_TR6_a_worker_of_the_server_dies(serve) -> None:
    nginx, store = serve(server="limit_rate 4m;", connections=3)
    killer = threading.Timer(0.15, lambda: [os.kill(pid, signal.SIGKILL) for pid in nginx.workers()])
    killer.start()
    fetch_all(store, pieces(1_000_000, count=6))
    killer.join()
    assert store.stats.bytes >= 6_000_000


def test_TR7_a_server_that_falls_silent_and_comes_back(serve) -> None:
    options = replace(OPTIONS, stall=0.3, attempts=1000)
    back = threading.Timer(1.1, lambda: nginx.resume())
    first = iter((True,))

    def fall_silent(count: int) -> None:
        if next(first, False):
            nginx.pause()
            back.start()

    nginx, store = serve(server="limit_rate 4m;", connections=2, options=options, on_bytes=fall_silent)
    try:
        fetch_all(store, pieces(1_000_000, count=6))
    finally:
        back.join()
    assert store.stats.retries > 0
    # What had arrived before the silence is not fetched again: 2 connections, at most what the kernel held.
    assert store.stats.bytes < 6_000_000 * 1.5


def test_TR8_from_http_to_https(objects: Path, tmp_path: Path, serve) -> None:
    target, _ = serve()
    with Nginx(objects, tmp_path, server=f"return 301 {target.url}$request_uri;") as plain:
        store = HttpStore(plain.url, ca_cert=store_ca(target), connections=1)
        fetch_all(store, pieces(1000, count=10))
        store.close()
        assert [line.status for line in plain.served(1)] == [301]
        assert len(target.served(10)) == 10


def test_TR9_the_certificate_is_verified(serve, monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    nginx, _ = serve()
    with pytest.raises(FetchError, match="certificate is not valid here"):
        HttpStore(nginx.url).read("x.bin", limit=SIZE)
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    assert HttpStore(nginx.url).read("x.bin", limit=SIZE) == DATA


@pytest.mark.parametrize("rate", [100_000, 2_000_000])
def test_TR15_a_limited_rate(rate: int, serve) -> None:
    _, store = serve(limit_rate=rate)
    fetch_all(store, pieces(rate // 10, count=5))
    assert store.stats.bytes == rate // 10 * 5
