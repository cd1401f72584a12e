"""What is wrong with headers that caches go by, and with what caches do. Pure: from answers that were seen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from medv.doctor.ailments import find
from medv.doctor.finding import Finding, Severity
from medv.doctor.servers import is_cached, on_the_way
from trimtransfer.fetch.seen import Seen

LONG_ENOUGH: Final = 7 * 86_400
"""Seconds that caches may at least keep what never changes."""
LATE: Final = 3_600
"""Seconds by which a new version may show late before that counts as an error."""
_HARMLESS: Final = frozenset(("accept-encoding", ""))
_DIRECTIVE: Final = re.compile(r'([a-z-]+)\s*(?:=\s*"?([^",]*)"?)?', re.IGNORECASE)


def directives(headers: Mapping[str, str]) -> dict[str, str] | None:
    """Return what Cache-Control says, by lower-case name (its value, or empty); None without that header.

    Expires counts as ``max-age`` of no known length, in the past as 0.
    """
    value = headers.get("cache-control")
    if value is None:
        return None
    found = (_DIRECTIVE.match(part.strip()) for part in value.split(","))
    return {match[1].lower(): (match[2] or "").strip() for match in found if match}


def keeping(told: Mapping[str, str]) -> int:
    """Return the seconds for which a shared cache may use an answer without asking again."""
    if any(word in told for word in ("no-cache", "no-store", "private")):
        return 0
    for word in ("s-maxage", "max-age"):
        value = told.get(word, "")
        if value.isascii() and value.isdigit():
            return int(value[:12])
    return 0


def judge_mutable(seen: Seen) -> Iterator[Finding]:
    """What is wrong with the headers of a file that is replaced: a head, or signed metadata without number."""
    if not seen.succeeded:
        return
    told = directives(seen.headers)
    if told is None or not told.keys() & {"no-cache", "no-store", "private", "max-age", "s-maxage", "must-revalidate"}:
        yield find("head-undeclared", f"{seen.url}: Cache-Control: {seen.headers.get('cache-control', 'missing')}")
    elif (seconds := keeping(told)) > 0:
        shown = f"{seen.url}: Cache-Control: {seen.headers['cache-control'][:80]}"
        yield find("head-cached", shown, severity=Severity.ERROR if seconds > LATE else None)
    yield from _judge_common(seen)


def judge_lasting(seen: Seen, *, credentials: bool) -> Iterator[Finding]:
    """What is wrong with the headers of a file that never changes: a pack, or a file of a version."""
    if not seen.succeeded:
        return
    told = directives(seen.headers)
    shown = f"{seen.url}: Cache-Control: {seen.headers.get('cache-control', 'missing')[:80]}"
    if told is None:
        yield find("lasting-undeclared", shown)
    elif "no-store" in told or "private" in told or "no-cache" in told:
        # What only some may read is private on purpose; then there is no more to say than that no cache helps.
        yield find("lasting-forbidden", shown, severity=Severity.NOTE if credentials else None)
    elif keeping(told) < LONG_ENOUGH:
        yield find("lasting-short", shown)
    if credentials and told is not None and not told.keys() & {"public", "s-maxage", "must-revalidate", "private"}:
        yield find("not-public", shown)
    yield from _judge_common(seen)


def _judge_common(seen: Seen) -> Iterator[Finding]:
    headers = seen.headers
    etag = headers.get("etag", "")
    if not etag and "last-modified" not in headers:
        yield find("no-validator", f"{seen.url}: neither ETag nor Last-Modified")
    if etag.startswith(("W/", "w/")):
        yield find("weak-validator", f"{seen.url}: ETag: {etag[:60]}")
    vary = {word.strip().lower() for word in headers.get("vary", "").split(",")}
    if vary - _HARMLESS:
        yield find("vary", f"{seen.url}: Vary: {headers['vary'][:80]}")
    if "set-cookie" in headers:
        yield find("cookie", f"{seen.url}: Set-Cookie: {headers['set-cookie'].partition('=')[0][:40]}=...")


def judge_same(one: Seen, other: Seen) -> Iterator[Finding]:
    """What is wrong with two answers for the same object, which did not change in between."""
    if not (one.succeeded and other.succeeded) or (one.asked == other.asked and one.body != other.body):
        return  # it did change, or was altered: that has a finding of its own
    for name in ("etag", "last-modified"):
        first, second = one.headers.get(name), other.headers.get(name)
        # A cache may give its own copy's time away, but not two values for the same bytes.
        if first is not None and second is not None and first != second:
            yield find("validator-changes", f"{one.url}: {name}: {first[:60]}, then {second[:60]}")


def judge_condition(seen: Seen) -> Iterator[Finding]:
    """What is wrong with the answer to a question whether an object has changed, which it has not."""
    if seen.status == 200:
        yield find("unconditional", f"{seen.url}: HTTP 200 to a question with If-None-Match or If-Modified-Since")


def judge_fresh(asked_past: Seen, plain: Seen) -> Iterator[Finding]:
    """Whether a cache hands out an old file: ``asked_past`` came past caches, then ``plain`` as they hand it out."""
    if not (asked_past.succeeded and plain.succeeded) or asked_past.body == plain.body:
        return
    age = plain.headers.get("age", "")
    how = on_the_way(plain.headers)
    told = f"{plain.url}: other bytes than asked past caches" + (f"; {how}" if how else "")
    yield find("head-stale", told + (f" ({age} seconds old)" if age.isdigit() else ""))


def judge_keeping(first: Seen, second: Seen) -> Iterator[Finding]:
    """Whether a cache on the way kept a piece of a pack: it was asked for twice in a row, without no-cache."""
    if not (first.succeeded and second.succeeded):
        return
    if is_cached(first.headers) is False and is_cached(second.headers) is False:
        yield find("not-kept", f"{second.url}: {on_the_way(second.headers)}, asked for a second time")


def judge_missing_again(seen: Seen) -> Iterator[Finding]:
    """Whether a cache kept the answer that something is not there: ``seen`` is that to the second question for it."""
    if seen.status in (404, 410) and is_cached(seen.headers):
        yield find("missing-kept", f"{seen.url}: HTTP {seen.status} out of a cache ({on_the_way(seen.headers)})")


def judge_way(seen: Seen) -> Iterator[Finding]:
    """What is on the way, by its own account."""
    told = on_the_way(seen.headers)
    if seen.status is not None and told:
        yield find("cache-seen", told)
