"""What answers are believed, what is cut out of them, and where redirects may lead: all without a network."""

from __future__ import annotations

import random
from collections import deque
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.fetch.answer import Answer, Asked, check_answer, check_status
from trimtransfer.fetch.body import Body, Landing, Part, cut
from trimtransfer.fetch.retry import Cause, Failed
from trimtransfer.fetch.site import Site, follow, shown
from trimtransfer.store import Range

LIMIT = 10_000
MIDDLE = Asked(2000, 6000, 9000, ranged=True)
OPEN = Asked(2000, 6000, None, ranged=True)
WHOLE = Asked(0, 9000, 9000, ranged=False)


def headers(content_range: str | None, length: int | None = None, **others: str) -> dict[str, str]:
    found = {name.replace("_", "-"): value for name, value in others.items()}
    if content_range is not None:
        found["content-range"] = content_range
    if length is not None:
        found["content-length"] = str(length)
    return found


@pytest.mark.parametrize(
    ("asked", "status", "head", "answer"),
    [
        (MIDDLE, 206, headers("bytes 2000-5999/9000", 4000), Answer(2000, 6000, True, True)),
        (MIDDLE, 206, headers("bytes 2000-5999/9000"), Answer(2000, 6000, True, False)),
        (MIDDLE, 206, headers("bytes 2000-5999/9000", 4500), Answer(2000, 6000, True, False)),
        (MIDDLE, 206, headers("bytes 2000-5999/9000", transfer_encoding="chunked"), Answer(2000, 6000, True, True)),
        (MIDDLE, 206, headers(" Bytes  2000-5999/* ", 4000), Answer(2000, 6000, True, True)),
        (MIDDLE, 206, headers("bytes 2000-3500/9000", 1501), Answer(2000, 3501, True, True)),
        (OPEN, 206, headers("bytes 2000-5999/123456", 4000), Answer(2000, 6000, True, True)),
        (MIDDLE, 206, headers("bytes 2000-5999/*", content_encoding=" Identity "), Answer(2000, 6000, True, False)),
        (MIDDLE, 200, headers(None, 9000), Answer(0, 9000, False, True)),
        (MIDDLE, 200, headers(None), Answer(0, 9000, False, False)),
        (OPEN, 200, headers(None), Answer(0, None, False, False)),
        (WHOLE, 200, headers(None, 9000), Answer(0, 9000, False, True)),
        (Asked(0, 90_000, 90_000, ranged=True), 200, headers(None, 90_000), Answer(0, 90_000, False, True)),
    ],
)  # fmt: skip
def test_believed(asked: Asked, status: int, head: dict[str, str], answer: Answer) -> None:
    assert check_answer(asked, status, head, whole_limit=LIMIT) == answer


@pytest.mark.parametrize(
    ("asked", "status", "head", "cause", "says"),
    [
        (MIDDLE, 206, headers(None, 4000), Cause.WRONG_RANGE, "without Content-Range"),
        (MIDDLE, 206, headers(None, 4000, content_type="multipart/byteranges"), Cause.WRONG_RANGE, "multipart"),
        (MIDDLE, 206, headers("bytes 2001-6000/9000", 4000), Cause.WRONG_RANGE, "bytes 2000-5999/9000"),
        (MIDDLE, 206, headers("bytes 0-3999/9000", 4000), Cause.WRONG_RANGE, "bytes 0-3999"),
        (MIDDLE, 206, headers("bytes 2000-6000/9000", 4001), Cause.WRONG_RANGE, "2000-6000"),
        (MIDDLE, 206, headers("bytes 5999-2000/9000", 4000), Cause.WRONG_RANGE, "5999-2000"),
        (MIDDLE, 206, headers("bytes 2000-1999/9000", 0), Cause.WRONG_RANGE, "2000-1999"),
        (MIDDLE, 206, headers("bytes 2000-5999/9001", 4000), Cause.WRONG_RANGE, "changed or is damaged"),
        (MIDDLE, 206, headers("bytes 2000-5999", 4000), Cause.WRONG_RANGE, "bytes 2000-5999"),
        (MIDDLE, 206, headers("bytes */9000", 4000), Cause.WRONG_RANGE, "/9000"),
        (MIDDLE, 206, headers("blocks 2000-5999/9000", 4000), Cause.WRONG_RANGE, "blocks"),
        (MIDDLE, 206, headers("bytes 2000-5999/9000, bytes 2000-5999/9000", 4000), Cause.WRONG_RANGE, ", bytes"),
        (MIDDLE, 206, headers("bytes " + "9" * 5000 + "-5999/9000", 4000), Cause.WRONG_RANGE, "999"),
        (MIDDLE, 206, headers("bytes \uff12000-5999/9000", 4000), Cause.WRONG_RANGE, "bytes"),
        (MIDDLE, 206, headers("bytes 2000-2000/9000", 1), Cause.CUT, "only"),
        (WHOLE, 206, headers("bytes 0-8999/9000", 9000), Cause.WRONG_RANGE, "whole was asked"),
        (MIDDLE, 206, headers("bytes 2000-5999/9000", 4000, content_encoding="gzip"), Cause.ENCODED, "gzip off"),
        (WHOLE, 200, headers(None, content_encoding="br"), Cause.ENCODED, "br"),
        (WHOLE, 200, headers(None, 8999), Cause.WRONG_RANGE, "8,999"),
        (MIDDLE, 200, headers(None, 4000), Cause.WRONG_RANGE, "4,000"),
        (MIDDLE, 200, headers(None, 700, content_type="text/HTML"), Cause.WRONG_RANGE, "login page"),
        (OPEN, 200, headers(None, 5999), Cause.WRONG_RANGE, "wanted up to 6,000"),
        (Asked(1, 20_000, 90_000, ranged=True), 200, headers(None, 90_000), Cause.TOO_LARGE, "range support"),
        (Asked(1, 20_000, None, ranged=True), 200, headers(None), Cause.TOO_LARGE, "ignores the Range header"),
    ],
)  # fmt: skip
def test_refused(asked: Asked, status: int, head: dict[str, str], cause: Cause, says: str) -> None:
    with pytest.raises(Failed, match=says) as caught:
        check_answer(asked, status, head, whole_limit=LIMIT)
    assert caught.value.cause is cause
    assert caught.value.status == status
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("status", [200, 206])
def test_statuses_with_a_body_of_the_object(status: int) -> None:
    check_status(status, {}, now=datetime.now(UTC))


def test_a_status_brings_its_cause_and_retry_after() -> None:
    with pytest.raises(Failed) as caught:
        check_status(503, {"retry-after": "12"}, now=datetime.now(UTC))
    assert (caught.value.cause, caught.value.status, caught.value.retry_after) == (Cause.BUSY, 503, 12)


# ---- cutting parts out of a body


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], int, int]:
    """An object's length, wanted (start, length) in order, where the body breaks off, and a seed for its chunks."""
    length = draw(st.integers(1, 3000))
    borders = sorted(draw(st.lists(st.integers(0, length), max_size=12, unique=True)))
    wanted = [(a, b - a) for a, b in zip(borders[::2], borders[1::2], strict=False)]
    return length, wanted, draw(st.integers(0, length)), draw(st.integers(0, 2**32))


@given(cuts())
def test_parts_are_cut_whatever_the_chunks(case: tuple[int, list[tuple[int, int]], int, int]) -> None:
    length, wanted, breaks, seed = case
    rnd = random.Random(seed)
    data = rnd.randbytes(length)
    parts = deque(Part(Range("x", start, size, length)) for start, size in wanted)
    landing, got = Landing(), {}

    def ready(part: Part) -> None:
        landing.lend(part.wanted.length, lambda view: got.__setitem__(part.wanted.start, bytes(view)))

    for end in (breaks, length):  # the body breaks off once; what is missing comes with the next
        pieces = []
        position = 0
        while position < end:
            size = rnd.randint(1, min(700, end - position))
            pieces.append(data[position : position + size])
            position += size
        answer = Answer(0, length, partial=False, framed=True)
        broken = False
        try:
            cut(Body(iter(pieces), answer), answer, parts, landing, ready, limit=length)
        except Failed as failure:
            broken = failure.cause is Cause.CUT
        assert broken == bool(parts)
        assert not parts or parts[0].begin == max(end, parts[0].wanted.start)
    assert got == {start: data[start : start + size] for start, size in wanted}


def test_nothing_beyond_the_announced_end_is_used() -> None:
    answer = Answer(10, 20, partial=True, framed=False)
    chunks = iter([b"0123456789EXTRA", b"MORE"])
    parts = deque([Part(Range("x", 10, 30, 100))])
    landing = Landing()
    cut(Body(chunks, answer), answer, parts, landing, lambda part: pytest.fail("not complete"), limit=100)
    assert parts[0].got == 10
    assert bytes(landing.room(10)) == b"0123456789"
    assert next(chunks) == b"MORE"


def test_a_view_that_is_kept_keeps_its_bytes() -> None:
    landing = Landing()
    kept: list[memoryview] = []
    landing.room(8)[:] = b"original"
    landing.lend(8, lambda view: kept.append(view[:]))
    landing.room(8)[:] = b"replaced"
    assert bytes(kept[0]) == b"original"
    landing.lend(8, lambda view: kept.append(view))
    with pytest.raises(ValueError, match="released"):
        bytes(kept[1])
    with landing.room(8) as room:
        before = room.obj
    landing.lend(8, lambda view: None)
    assert landing.room(8).obj is before, "a buffer that nobody looks at is used again"


# ---- addresses


def test_credentials_go_to_their_own_origin_only() -> None:
    site = Site("https://me:p%40ss@repo.example/base/?sig=SECRET#x")
    assert site.url == "https://repo.example/base"
    assert site.locate("packs/ab/c.bin") == "https://repo.example/base/packs/ab/c.bin?sig=SECRET"
    assert site.authorization("https://repo.example:443/other") == "Basic bWU6cEBzcw=="
    for other in (
        "https://repo.example:8443/",
        "http://repo.example/",
        "https://evil.example/",
        "https://x.repo.example/",
    ):
        assert site.authorization(other) is None  # fmt: skip
    assert "me" not in repr(site)
    assert "SECRET" not in repr(site)


def test_credentials_follow_their_host_to_tls() -> None:
    site = Site("http://me:pw@repo.example/")
    assert site.authorization("https://repo.example/x") is not None
    assert site.authorization("https://repo.example:8443/x") is None
    assert Site("http://me:pw@repo.example:8080/").authorization("https://repo.example/x") is None
    assert Site("https://repo.example/").authorization("https://repo.example/x") is None


@pytest.mark.parametrize(
    "url", ["", "repo.example", "ftp://repo.example/", "https:///x", "https://h:99999/", "file:///x"]
)
def test_malformed_sites(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Site(url)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "https://h/b"),
        ("b", "https://h/a/b"),
        ("//k/b?q=1#f", "https://k/b?q=1"),
        ("https://user:pw@k/b", "https://k/b"),
    ],
)
def test_redirects(location: str, target: str) -> None:
    assert follow("https://h/a/x", location, status=302) == target


@pytest.mark.parametrize(
    "location",
    [None, "", "http://h/x", "ftp://h/x", "file:///etc/passwd", "https://:80/", "https://h:999999/", "https://[::1/"],
)
def test_refused_redirects(location: str | None) -> None:
    with pytest.raises(Failed) as caught:
        follow("https://h/a/x", location, status=302)
    assert caught.value.cause is Cause.REDIRECT


def test_shown() -> None:
    assert shown("https://u:p@h:1/a/b?sig=1#f") == "https://h:1/a/b"
