"""HTTP as RFC 9110 has it, of the embedded server and of nginx in front in both ways: one suite for all of them."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from answering import check_outside, check_part, check_whole, exchange
from gateways import QUICK, Front, Serving
from servers import MISSING_NGINX, Authority, has_nginx

DATA = bytes(i * 7 & 0xFF for i in range(700_000))
PACK = "packs/ab/ab" + "0" * 62 + ".bin"
OPEN = QUICK + '[[rule]]\nimages = ["*"]\nanyone = "anonymous"\n[proxy]\naddresses = ["127.0.0.1"]\n'
KINDS = ["embedded", "auth-request", "accel"]


@pytest.fixture(scope="module", params=KINDS)
def url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[str]:
    top = tmp_path_factory.mktemp("http")
    root = top / "repository"
    files = {PACK: DATA, "images/x/head.json": b"{}", "images/x/1/tables.bin": DATA[:10], "images/x/1/from-2.bin": b""}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        os.utime(root / name, (1_700_000_000, 1_700_000_000))
    (top / "secret.txt").write_text("secret")
    (root / ".trimtransfer").mkdir()
    (root / ".trimtransfer/lock").write_text("secret")
    (root / "images/x/.hidden").write_text("secret")
    (root / "images/x/link.bin").symlink_to(top / "secret.txt")
    (root / "images/x/folder").symlink_to(top)
    if request.param == "embedded":
        with Serving(root, top / "work", OPEN, authority=authority) as server:
            yield server.url.replace("127.0.0.1", "localhost")
        return
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    text = OPEN + ('accel = "/medv-objects/"\n' if request.param == "accel" else "")
    with (
        Serving(root, top / "work", text) as server,
        Front(request.param, root, top, authority, upstream=f"127.0.0.1:{server.port}") as front,
    ):
        yield front.url


@pytest.fixture(scope="module")
def client(url: str, authority: Authority) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=authority.file)
    with httpx.Client(base_url=url, verify=trusted, trust_env=False, timeout=20) as opened:
        yield opened


def get(client: httpx.Client, name: str = PACK, **headers: str) -> httpx.Response:
    """Send a GET, once more where the kept connection was closed meanwhile (RFC 9110, 9.2.2), as nginx does after some
    refusals."""
    fields = {"Accept-Encoding": "identity", **{key.replace("_", "-"): value for key, value in headers.items()}}
    try:
        return client.get("/" + name, headers=fields)
    except httpx.RemoteProtocolError:
        return client.get("/" + name, headers=fields)


def test_whole_object(client: httpx.Client) -> None:
    answer = get(client)
    check_whole(answer, DATA)
    assert answer.headers["etag"][0] == '"'  # strong


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-400199", 100, 400_199),
        ("bytes=699990-", 699_990, 699_999),
        ("bytes=699990-10000000", 699_990, 699_999),
        ("bytes=-10", 699_990, 699_999),
        ("bytes=-10000000", 0, 699_999),
    ],
)
def test_single_ranges(client: httpx.Client, value: str, first: int, last: int) -> None:
    check_part(get(client, range=value), DATA, first, last)


@pytest.mark.parametrize("value", ["bytes=700000-", "bytes=700000-700001"])
def test_ranges_outside_the_object(client: httpx.Client, value: str) -> None:
    check_outside(get(client, range=value), DATA)


@pytest.mark.parametrize("value", ["lines=1-2", "bytes=0-1,5-6"])
def test_ranges_that_are_ignored(client: httpx.Client, value: str) -> None:
    """Several ranges are answered with the whole: one request never costs more than one reading of one file."""
    answer = get(client, range=value)
    assert (answer.status_code, answer.content) == (200, DATA)


def test_a_thousand_ranges_are_no_way_to_ask_for_more_than_the_whole(client: httpx.Client) -> None:
    answer = get(client, range="bytes=" + ",".join(f"{i}-{i + 50_000}" for i in range(1000)))
    assert answer.status_code in (200, 416)
    assert len(answer.content) <= len(DATA)


def test_head_has_the_headers_of_get(client: httpx.Client) -> None:
    answer, whole = client.head("/" + PACK), get(client)
    assert (answer.status_code, answer.content) == (200, b"")
    for name in ("content-length", "etag", "last-modified", "cache-control", "accept-ranges"):
        assert answer.headers[name] == whole.headers[name]


def test_conditions(client: httpx.Client) -> None:
    seen = get(client).headers
    etag, modified = seen["etag"], seen["last-modified"]
    for fresh in ({"if_none_match": etag}, {"if_none_match": f'"x", W/{etag}'}, {"if_none_match": "*"}):
        answer = get(client, **fresh)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert answer.headers["cache-control"] == seen["cache-control"]
    assert get(client, if_modified_since=modified).status_code == 304
    assert get(client, if_modified_since="Mon, 01 Jan 2001 00:00:00 GMT").status_code == 200
    assert get(client, if_none_match='"x"', if_modified_since=modified).status_code == 200
    assert get(client, if_match='"x"').status_code == 412
    assert get(client, if_match=etag, range="bytes=0-1").status_code == 206
    assert get(client, if_unmodified_since="Mon, 01 Jan 2001 00:00:00 GMT").status_code == 412
    assert get(client, if_none_match=etag, range="bytes=0-1").status_code == 304


def test_if_range(client: httpx.Client) -> None:
    seen = get(client).headers
    for current in (seen["etag"], seen["last-modified"]):
        assert get(client, range="bytes=5-9", if_range=current).content == DATA[5:10]
    for other in ('"x"', "Mon, 01 Jan 2001 00:00:00 GMT"):
        answer = get(client, range="bytes=5-9", if_range=other)
        assert (answer.status_code, len(answer.content)) == (200, len(DATA))


def test_caching_of_what_is_for_everybody(client: httpx.Client) -> None:
    for lasting in (PACK, "images/x/1/tables.bin"):
        assert get(client, lasting).headers["cache-control"] == "public, max-age=31536000, immutable"
    for replaced in ("images/x/head.json", "images/x/1/from-2.bin"):
        assert get(client, replaced).headers["cache-control"] == "no-cache"
    assert get(client, "images/x/head.json").headers["content-type"] == "application/json"
    missing = get(client, "images/x/none.json")
    assert (missing.status_code, missing.headers["cache-control"]) == (404, "no-store")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods(client: httpx.Client, method: str) -> None:
    assert client.request(method, "/" + PACK).status_code == 405


HOSTILE = """
    /../secret.txt /packs/../../secret.txt /%2e%2e/secret.txt /..%2fsecret.txt /packs%2f..%2f..%2fsecret.txt
    /..%5csecret.txt /%252e%252e/secret.txt //etc/passwd /./head.json /images/x/head.json/ / /images/x/head.json%00
    /images/x/%zz /images/x/.hidden /.trimtransfer/lock /images/x/link.bin /images/x/folder/secret.txt /packs/
    /%c0%ae%c0%ae/secret.txt /images/x/head.json;x /images /images/x /images/x/1 /images/x/%0d%0aX-Original-URI:y
    /medv-objects/images/x/head.json
    /images/x/../../.trimtransfer/lock /_medv/authorise /_medv_authorise /packs/ab/../../images/x/.hidden
    /packs/AB/ab /images/X/head.json http://example.org/.trimtransfer/lock
"""


@pytest.mark.parametrize(
    "path", [*HOSTILE.split(), "/" + "a" * 2000, "/images/" + "a/" * 400], ids=lambda one: one[:40]
)
def test_hostile_paths(url: str, authority: Authority, path: str) -> None:
    request = b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(url, authority.file, request)
    assert answer.split(b" ")[1] in (b"400", b"403", b"404"), answer[:200]
    assert b"secret" not in answer.replace(b"secret.txt", b"")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 250_000,
        b"GET /" + b"a" * 250_000,
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
    ],
    ids=["header", "line", "nonsense", "smuggling", "length"],
)
def test_malformed_requests(url: str, authority: Authority, request_bytes: bytes) -> None:
    try:
        answer = exchange(url, authority.file, request_bytes)
    except (ConnectionError, ssl.SSLError):
        return  # cut off while the rest was being sent
    assert not answer or answer.split(b" ")[1] in (b"400", b"404", b"413", b"414", b"431")


def test_what_a_disappearing_client_costs(url: str, authority: Authority, client: httpx.Client, tmp_path: Path) -> None:
    port = int(url.rpartition(":")[2])
    trusted = ssl.create_default_context(cafile=authority.file)
    for _ in range(10):
        with (
            socket.create_connection(("localhost", port), timeout=20) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(b"GET /" + PACK.encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(100)
    assert get(client).status_code == 200
