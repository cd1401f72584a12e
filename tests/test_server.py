"""The embedded server against a real client over TLS: ranges, conditions, caching, and requests that mean no good."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from answering import check_outside, check_part, check_whole, exchange
from hypothesis import given, settings
from hypothesis import strategies as st

from medv.ranges import BadPath, Facts, decide, object_name
from medv.server import LoopbackServer

DATA = bytes(i * 7 & 0xFF for i in range(100_000))
PACK = "packs/ab/ab" + "0" * 62 + ".bin"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    top = tmp_path_factory.mktemp("served")
    root = top / "repository"
    for name, data in {
        PACK: DATA,
        "images/x/head.json": b"{}",
        "images/x/1/tables.bin": DATA[:10],
        "empty.bin": b"",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        os.utime(root / name, (1_700_000_000, 1_700_000_000))
    (top / "secret.txt").write_text("secret")
    (root / ".hidden").write_text("secret")
    (root / "link.bin").symlink_to(top / "secret.txt")
    (root / "folder").symlink_to(top)
    os.mkfifo(root / "pipe.bin")
    with LoopbackServer(root) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LoopbackServer) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=server.ca_file)
    with httpx.Client(base_url=server.url, verify=trusted, trust_env=False, timeout=20) as opened:
        yield opened


def get(client: httpx.Client, name: str = PACK, **headers: str) -> httpx.Response:
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return client.get("/" + name, headers={"Accept-Encoding": "identity", **fields})


def test_whole_file(client: httpx.Client) -> None:
    check_whole(get(client), DATA)


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=99990-", 99_990, 99_999),
        ("bytes=99990-1000000", 99_990, 99_999),
        ("bytes=-10", 99_990, 99_999),
        ("bytes=-1000000", 0, 99_999),
        ("Bytes=1-2", 1, 2),
        ("bytes=0-999999999999999999", 0, 99_999),
    ],
)
def test_single_ranges(client: httpx.Client, value: str, first: int, last: int) -> None:
    check_part(get(client, range=value), DATA, first, last)


@pytest.mark.parametrize("value", ["bytes=100000-", "bytes=100000-100001", "bytes=-0", "bytes=999999999999999999-"])
def test_ranges_outside_the_file(client: httpx.Client, value: str) -> None:
    answer = get(client, range=value)
    check_outside(answer, DATA)
    assert answer.content == b""


def test_range_of_an_empty_file(client: httpx.Client) -> None:
    assert get(client, "empty.bin", range="bytes=0-").status_code == 416
    assert get(client, "empty.bin").content == b""


@pytest.mark.parametrize(
    "value",
    [
        "bytes=200-100",
        "bytes=",
        "bytes=-",
        "lines=1-2",
        "bytes=a-b",
        "bytes=1-2-3",
        "bytes=0-1,5-6",
        "bytes=" + "9" * 400 + "-",
    ],
)
def test_ranges_that_are_ignored(client: httpx.Client, value: str) -> None:
    answer = get(client, range=value)
    assert (answer.status_code, answer.content) == (200, DATA)


def test_a_thousand_ranges_cost_nothing(client: httpx.Client) -> None:
    answer = get(client, range="bytes=" + ",".join(f"{i}-{i + 50_000}" for i in range(1000)))
    assert (answer.status_code, answer.content) == (416, b"")


def test_head_has_the_headers_of_get_and_ignores_ranges(client: httpx.Client) -> None:
    answer = client.head("/" + PACK, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "100000"
    assert answer.headers["etag"] == get(client).headers["etag"]


def test_conditions(client: httpx.Client) -> None:
    seen = get(client).headers
    etag, modified = seen["etag"], seen["last-modified"]
    for fresh in ({"if_none_match": etag}, {"if_none_match": f'"x", W/{etag}'}, {"if_none_match": "*"}):
        answer = get(client, **fresh)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert get(client, if_modified_since=modified).status_code == 304
    assert get(client, if_modified_since="Mon, 01 Jan 2001 00:00:00 GMT").status_code == 200
    assert get(client, if_modified_since="yesterday").status_code == 200
    assert get(client, if_none_match='"x"', if_modified_since=modified).status_code == 200
    assert get(client, if_match='"x"').status_code == 412
    assert get(client, if_match=f"W/{etag}").status_code == 412
    assert get(client, if_match=etag, range="bytes=0-1").status_code == 206
    assert get(client, if_unmodified_since="Mon, 01 Jan 2001 00:00:00 GMT").status_code == 412
    assert get(client, if_none_match=etag, range="bytes=0-1").status_code == 304


def test_if_range(client: httpx.Client) -> None:
    seen = get(client).headers
    for current in (seen["etag"], seen["last-modified"]):
        assert get(client, range="bytes=5-9", if_range=current).content == DATA[5:10]
    for other in ('"x"', "W/" + seen["etag"], "Mon, 01 Jan 2001 00:00:00 GMT", "nonsense"):
        answer = get(client, range="bytes=5-9", if_range=other)
        assert (answer.status_code, len(answer.content)) == (200, len(DATA))


def test_a_date_proves_nothing_while_the_second_lasts() -> None:
    facts = Facts(size=10, mtime_ns=1_700_000_000_000_000_000, inode=1)
    headers = [(b"range", b"bytes=0-0"), (b"if-range", b"Tue, 14 Nov 2023 22:13:20 GMT")]
    assert decide("GET", headers, facts, now=1_700_000_001).status == 200
    assert decide("GET", headers, facts, now=1_700_000_002).status == 206


def test_caching(client: httpx.Client) -> None:
    assert get(client).headers["cache-control"] == "public, max-age=31536000, immutable"
    head = get(client, "images/x/head.json")
    assert (head.headers["cache-control"], head.headers["content-type"]) == ("no-cache", "application/json")
    assert "immutable" in get(client, "images/x/1/tables.bin").headers["cache-control"]
    assert get(client, "empty.bin").headers["cache-control"] == "no-cache"
    assert get(client, "packs/ab/none.bin").headers["cache-control"] == "no-store"


def test_the_certificate_is_verified(server: LoopbackServer) -> None:
    with httpx.Client(trust_env=False) as stranger, pytest.raises(httpx.ConnectError, match="certificate"):
        stranger.get(server.url + "/" + PACK)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_other_methods(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/" + PACK)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


HOSTILE = """
    /../secret.txt /packs/../../secret.txt /%2e%2e/secret.txt /..%2fsecret.txt /packs%2f..%2f..%2fsecret.txt
    /..%5csecret.txt /%252e%252e/secret.txt //etc/passwd /packs//x /./empty.bin /empty.bin/ / /empty.bin%00 /%00
    /empty%zz.bin /.hidden /packs/ /%c0%ae%c0%ae/secret.txt /C:/windows /empty.bin;x /~root /-rf * /a%20b
    http://example.org/empty.bin
"""
LONG = ["/" + "a" * 2000, "/" + "a/" * 500]


@pytest.mark.parametrize("path", HOSTILE.split() + LONG, ids=lambda path: path[:30])
def test_hostile_paths(server: LoopbackServer, path: str) -> None:
    answer = exchange(
        server.url, server.ca_file, b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer.split(b" ")[1] == b"400"
    assert b"secret" not in answer


@pytest.mark.parametrize(
    "name", ["none.bin", "packs", "packs/ab", "link.bin", "folder/secret.txt", "empty.bin/x", "pipe.bin", "A.BIN"]
)
def test_what_is_not_there(client: httpx.Client, name: str) -> None:
    answer = get(client, name)
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_escaped_letters_and_queries_name_the_same_file(client: httpx.Client) -> None:
    assert client.get("/%65mpty.bin?x=../..").status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        # Not complete, so that it does not depend on how many bytes arrive together whether they are too many.
        b"GET /empty.bin HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000,
        b"GET /" + b"a" * 40_000,
        b"nonsense\r\n\r\n",
        b"get /empty.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=["header", "line", "nonsense", "method"],
)
def test_malformed_requests(server: LoopbackServer, request_bytes: bytes) -> None:
    assert exchange(server.url, server.ca_file, request_bytes).split(b" ")[1] in (b"400", b"405", b"431")


def test_requests_in_parallel(server: LoopbackServer) -> None:
    trusted = ssl.create_default_context(cafile=server.ca_file)
    wrong: list[int] = []

    def fetch(start: int) -> None:
        with httpx.Client(base_url=server.url, verify=trusted, trust_env=False) as own:
            for first in range(start, 100_000, 8 * 997):
                answer = get(own, range=f"bytes={first}-{first + 996}")
                if answer.content != DATA[first : first + 997]:
                    wrong.append(first)

    threads = [threading.Thread(target=fetch, args=(i * 997,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_that_shrinks_while_it_is_sent_breaks_the_transfer(tmp_path: Path) -> None:
    victim = tmp_path / "victim.bin"
    victim.write_bytes(bytes(64 << 20))
    with LoopbackServer(tmp_path, tls=False) as plain, httpx.Client(trust_env=False) as own:
        with own.stream("GET", plain.url + "/victim.bin") as answer:
            os.truncate(victim, 4096)
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        assert own.get(plain.url + "/victim.bin").content == bytes(4096)


def test_two_servers_and_a_stopped_one(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a")
    with LoopbackServer(tmp_path, tls=False) as one, LoopbackServer(tmp_path, tls=False) as two:
        assert one.url != two.url
        with httpx.Client(trust_env=False) as own:
            assert own.get(one.url + "/a.bin").content + own.get(two.url + "/a.bin").content == b"aa"
    with httpx.Client(trust_env=False) as own, pytest.raises(httpx.ConnectError):
        own.get(one.url + "/a.bin")


@given(st.binary(max_size=60))
def test_no_path_leaves_the_repository(path: bytes) -> None:
    try:
        name = object_name(b"/" + path)
    except BadPath:
        return
    assert all(part and part[0] != "." and "/" not in part and "\\" not in part and "\0" not in part for part in name)


@settings(max_examples=300)
@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(0, 50))
def test_every_range_header_gets_a_sound_answer(value: str, size: int) -> None:
    facts = Facts(size=size, mtime_ns=0, inode=1)
    answer = decide("GET", [(b"range", value.encode())], facts, now=10)
    assert answer.status in (200, 206, 416)
    assert 0 <= answer.start <= answer.start + answer.length <= size
    if answer.status == 206:
        assert answer.length > 0
    if answer.status == 416:
        assert answer.length == 0
