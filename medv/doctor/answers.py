"""What is wrong with answers: refused, limited, web pages, compressed, altered, missing things that are there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from medv.doctor.ailments import find
from medv.doctor.finding import Finding, Severity
from medv.doctor.servers import recognise
from medv.doctor.wire import judge_failure
from trimtransfer.fetch.seen import Seen

_PAGE: Final = re.compile(rb"\s*(?:<!doctype html|<html|<head|<script|<\?xml[^>]*>\s*<html)", re.IGNORECASE)
_TITLE: Final = re.compile(rb"<title[^>]*>\s*(.{1,80}?)\s*</title>", re.IGNORECASE | re.DOTALL)
_LISTING: Final = re.compile(
    rb"<title>\s*(?:index of|directory listing|listing of)|<ListBucketResult|\[To Parent", re.I
)
_HIDDEN_BY_IIS: Final = frozenset(
    ("bin", "app_code", "app_globalresources", "app_localresources", "app_webreferences", "app_data", "app_browsers")
)
"""Folders that IIS hides unless it is told otherwise (applicationHost.config, hiddenSegments)."""
_OBJECTS: Final = frozenset((200, 206, 304))


def judge_answer(seen: Seen) -> Iterator[Finding]:
    """What keeps an answer from being one: nothing came, or a status that is none of an object that is there.

    404 and 410 are not judged here: whether they are right depends on what was asked for.
    """
    yield from judge_failure(seen)
    status = seen.status
    if status is None or status in _OBJECTS or status in (404, 410, 416):
        return
    told = f"{seen.url}: HTTP {status}"
    if status in (401, 403):
        schemes = schemes_of(seen)
        wants = (
            f"; it wants {', '.join(schemes)}" if schemes else "; it names no way to authenticate (WWW-Authenticate)"
        )
        yield find("access-denied", told + (wants if status == 401 else ""))
    elif status == 407:
        yield find("proxy-denied", told)
    elif status in (429, 503):
        after = seen.headers.get("retry-after")
        yield find("rate-limited", told + (f", Retry-After: {after[:40]}" if after else ", without Retry-After"))
    elif status >= 500:
        yield find("server-error", told + _title(seen))
    elif not 300 <= status < 400:
        yield find("refused", told + _title(seen))


def judge_body(seen: Seen) -> Iterator[Finding]:
    """What was done to the bytes of an object on the way, as far as headers and first bytes tell."""
    if not seen.succeeded:
        return
    coding = seen.headers.get("content-encoding", "identity").strip().lower()
    kind = seen.headers.get("content-type", "").lower()
    if is_page(seen):
        yield find("web-page", f"{seen.url}: Content-Type: {kind or 'none'}{_title(seen)}")
    elif coding not in ("", "identity"):
        yield find("compressed", f"{seen.url}: Content-Encoding: {coding[:40]}, asked for with identity")
    elif kind.startswith("text/"):
        yield find("text-type", f"{seen.url}: Content-Type: {kind[:60]}")


def judge_head(seen: Seen) -> Iterator[Finding]:
    """What is wrong where the head should be."""
    if seen.status in (404, 410):
        yield find("head-missing", f"{seen.url}: HTTP {seen.status}{_title(seen)}")


def judge_blocked(seen: Seen, *, kind: str, names: tuple[str, ...]) -> Iterator[Finding]:
    """What is wrong where a file of a ``kind`` (``bin``, ``json``) is not served although others are.

    ``names`` are those of the image and its version.
    """
    if seen.status not in (403, 404, 410):
        return
    hidden = [name for name in names if name in _HIDDEN_BY_IIS]
    told = f"{seen.url}: HTTP {seen.status}{_title(seen)}"
    if hidden:
        yield find("name-blocked", f"{told}; IIS hides folders named {hidden[0]}")
    else:
        yield find(f"{kind}-blocked", told)


def judge_missing(seen: Seen, *, admitted: bool) -> Iterator[Finding]:
    """What is wrong with the answer to a question for what cannot be there.

    ``admitted``: what is there was had, so that a refusal here is not one of everything.
    """
    status = seen.status
    if status is None or status in (401, 404, 407, 410) or (status == 403 and not admitted):
        return
    told = f"{seen.url}, which does not exist: HTTP {status}{_title(seen)}"
    if status in (200, 206, 304):
        yield find("soft-404", told)
    elif status == 403:
        yield find("missing-denied", told)
    elif status != 429:
        # The status of a failure makes clients try again, and fail in the end: for want of what they can do without.
        yield find("missing-odd", told, severity=Severity.ERROR if status >= 500 else None)


def judge_long_name(seen: Seen, *, admitted: bool) -> Iterator[Finding]:
    """What is wrong with the answer to a question for a missing object of the longest name there can be, with all sorts
    of characters in it. ``admitted`` as for :func:`judge_missing`."""
    if seen.status in (400, 405, 406, 413, 414, 431) or (seen.status == 404 and b"404.1" in seen.body):
        yield find("long-name-refused", f"{seen.name}: HTTP {seen.status}{_title(seen)}")
    else:
        yield from judge_missing(seen, admitted=admitted)


def judge_listing(seen: Seen) -> Iterator[Finding]:
    """Whether a folder shows what is in it."""
    if seen.status == 200 and _LISTING.search(seen.body):
        yield find("listing", f"{seen.url}:{_title(seen)}")


def judge_private(seen: Seen, missing: Seen) -> Iterator[Finding]:
    """Whether the publisher's own files are shown; ``missing`` is how the server answers for what is not there."""
    if seen.status == 200 and missing.status != 200:
        yield find("private-folder", f"{seen.url}: HTTP 200")


def judge_openness(seen: Seen) -> Iterator[Finding]:
    """Whether what was asked for without credentials came all the same, though there are some."""
    if seen.status == 200:
        yield find("open-despite-credentials", f"{seen.url}: HTTP 200 without credentials")


def is_page(seen: Seen) -> bool:
    """Whether this is a web page, which no object of a repository is."""
    return _PAGE.match(seen.body) is not None or "html" in seen.headers.get("content-type", "").lower()


def schemes_of(seen: Seen) -> list[str]:
    """Return the ways to authenticate that an answer offers."""
    value = seen.headers.get("www-authenticate", "")
    # Challenges are joined by commas, and so are the parameters of each: a scheme is a word that no = follows.
    words = re.findall(r"(?:^|,\s*)([A-Za-z][A-Za-z0-9-]*)(?=\s+[^=\s,]|\s*,|\s*$)", value)
    return list(dict.fromkeys(words))


def _title(seen: Seen) -> str:
    """Return what a page is called, and who sends it, for messages."""
    found = _TITLE.search(seen.body)
    title = " ".join(found[1].decode("utf-8", "replace").split()) if found else ""
    servers = recognise(seen.headers)
    return (f' "{title}"' if title else "") + (f" ({', '.join(servers)})" if servers else "")
