"""What is wrong with ranges: ignored, wrong, mixed up, cut short, beyond the end, above 4 GiB. Pure.

What an answer must be is said by :func:`trimtransfer.fetch.answer.check_answer`, as clients go by it.
"""

from __future__ import annotations

from collections.abc import Iterator

from medv.doctor.ailments import find
from medv.doctor.finding import Finding, Severity
from trimtransfer.fetch.answer import Answer, Asked, check_answer, content_length
from trimtransfer.fetch.retry import Cause, Failed
from trimtransfer.fetch.seen import Seen

WHOLE_LIMIT = 64 << 20
"""Longest object that clients read whole for a part of it (``FetchOptions.whole_limit``)."""
LARGE = 1 << 31
"""From here on 32-bit numbers fail."""


def judge_range(seen: Seen, total: int, right: bytes | None = None) -> Iterator[Finding]:
    """What is wrong with the answer to a range of an object of ``total`` bytes.

    ``right`` is what the range holds, where that is known for certain.
    """
    if seen.asked is None or not seen.succeeded:
        if seen.asked is not None and seen.status == 416:
            code = "range-large" if seen.asked[1] > LARGE else "range-wrong"
            yield find(code, f"{_asked(seen)}: HTTP 416 although the object has {total:,}")
        return
    start, stop = seen.asked
    if seen.status == 200:
        too_large = start > 0 and stop > WHOLE_LIMIT
        yield find("range-ignored", f"{_asked(seen)}: HTTP 200", severity=Severity.ERROR if too_large else None)
        length = content_length(seen.headers)
        if length is not None and length != total and "content-encoding" not in seen.headers:
            yield find("whole-wrong", f"{seen.url}: {length:,} bytes, not {total:,}")
        return
    try:
        answer = check_answer(Asked(start, stop, total, ranged=True), 206, seen.headers, whole_limit=WHOLE_LIMIT)
    except Failed as failed:
        if failed.cause is not Cause.ENCODED:  # that has a finding of its own
            code = "range-large" if stop > LARGE else "range-wrong"
            yield find(code, f"{_asked(seen)}: {failed}")
        return
    yield from _judge_bytes(seen, answer, right)


def _judge_bytes(seen: Seen, answer: Answer, right: bytes | None) -> Iterator[Finding]:
    assert seen.asked is not None
    assert answer.stop is not None
    start, stop = seen.asked
    if seen.ended and len(seen.body) != answer.stop - answer.start:
        told = f"{len(seen.body):,} bytes came, announced were {answer.stop - answer.start:,}"
        longer = len(seen.body) > answer.stop - answer.start  # what is too much, clients leave
        yield find("range-wrong", f"{_asked(seen)}: {told}", severity=Severity.WARNING if longer else None)
    elif answer.stop < stop:
        yield find("range-short", f"{_asked(seen)}: {answer.stop - start:,} bytes came")
    if right is not None and not right.startswith(seen.body[: len(right)]):
        code = "range-large" if start >= LARGE else "range-mixed"
        yield find(code, f"{_asked(seen)}: other bytes than the object has there")


def judge_beyond(seen: Seen) -> Iterator[Finding]:
    """What is odd in the answer to a range that begins behind an object's end."""
    if seen.status is not None and seen.status != 416 and seen.status < 500 and seen.status not in (429, 401, 403):
        yield find("range-beyond", f"{_asked(seen)}, behind its end: HTTP {seen.status} instead of 416")


def judge_whole(seen: Seen, total: int, right: bytes | None = None) -> Iterator[Finding]:
    """What is wrong with the answer to a plain question for an object of ``total`` bytes.

    ``right`` are its bytes, or first bytes, where they are known.
    """
    if seen.status in (413, 502, 504) and total > 1 << 20:
        yield find("size-limit", f"{seen.url}, {total:,} bytes: HTTP {seen.status}")
    if not seen.succeeded or seen.headers.get("content-encoding", "identity").lower() != "identity":
        return
    length = content_length(seen.headers)
    if seen.status == 206:
        yield find("whole-wrong", f"{seen.url}: a part came (HTTP 206) although no range was asked for")
    elif length is not None and length != total:
        yield find("whole-wrong", f"{seen.url}: {length:,} bytes, not {total:,}")
    elif length is None:
        yield find("no-length", f"{seen.url}: no Content-Length")
    if right is not None and seen.status == 200 and seen.body[: len(right)] != right[: len(seen.body)]:
        yield find("damaged", f"{seen.url}: other bytes than a moment ago")


def _asked(seen: Seen) -> str:
    assert seen.asked is not None
    return f"{seen.url}, bytes {seen.asked[0]:,} to {seen.asked[1] - 1:,}"
