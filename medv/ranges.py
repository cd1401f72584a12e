"""What a static file server answers to one request: pure decisions from the request and the facts of a file.

Names are strict, because a repository holds nothing that needs escaping; conditions and ranges follow RFC 9110
(sections 13.2.2 and 14). Only single ranges are served: several at once are legal to ignore (then the whole file is
the answer) and are refused when there are many of them, so that no request costs more than one reading of one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Final
from urllib.parse import unquote_to_bytes

MAX_PATH: Final = 1024
"""Longest request path in bytes; the longest name of an object is a fifth of it."""
MAX_IGNORED_RANGES: Final = 16
"""A request for more ranges than this is refused instead of being answered with the whole file."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)
_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e\x80-\xff]*"')

Headers = list[tuple[bytes, bytes]]


class BadPath(ValueError):
    """A request path that can name nothing, or that tries to leave the repository."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file is to the cache rules: ``size`` in bytes, ``mtime_ns`` and ``inode``."""

    size: int
    mtime_ns: int
    inode: int

    @property
    def etag(self) -> str:
        """A strong validator: objects are replaced by renaming, so a new content is a new inode."""
        return f'"{self.inode:x}-{self.mtime_ns:x}-{self.size:x}"'

    @property
    def modified(self) -> int:
        """Time of the last change in whole seconds, as ``Last-Modified`` states it."""
        return self.mtime_ns // 1_000_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer: ``length`` bytes of the file from ``start`` on (0 where there is no body)."""

    status: int
    start: int = 0
    length: int = 0


def object_name(raw_path: bytes) -> tuple[str, ...]:
    """Return the parts of the name that a raw (percent-encoded) request path asks for.

    Raises :class:`BadPath` for empty, dot and hidden parts, encoded separators, and anything else no object is called.
    """
    if len(raw_path) > MAX_PATH or not raw_path.startswith(b"/") or _BAD_ESCAPE.search(raw_path):
        raise BadPath("too long, or not a path")
    # Split before decoding: an encoded slash must stay inside its part, where the pattern refuses it.
    parts = []
    for raw in raw_path[1:].split(b"/"):
        part = unquote_to_bytes(raw).decode("latin-1")
        if not _NAME.fullmatch(part):
            raise BadPath("not a name")
        parts.append(part)
    return tuple(parts)


def decide(method: str, headers: Headers, facts: Facts, *, now: int) -> Answer:
    """Return the answer to a GET or HEAD of a file, ``now`` being the time in seconds since 1970."""
    whole = Answer(200, 0, facts.size)
    refused = _precondition(headers, facts)
    if refused:
        return Answer(refused)
    if method != "GET":  # a range means nothing to any other method (RFC 9110 section 14.2)
        return whole
    wanted = _values(headers, b"range")
    if len(wanted) != 1 or not _if_range_holds(headers, facts, now):
        return whole
    return _ranged(wanted[0], facts.size) or whole


def http_date(seconds: int) -> str:
    """Return a time in the form of HTTP."""
    return formatdate(seconds, usegmt=True)


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _precondition(headers: Headers, facts: Facts) -> int:
    """Return 304 or 412 if a condition of the request says so, else 0; order of RFC 9110 section 13.2.2."""
    match = _values(headers, b"if-match")
    unmodified = None if match else _seconds(_values(headers, b"if-unmodified-since"))
    if match and not _matches(match, facts.etag, weak=False):
        return 412
    if unmodified is not None and facts.modified > unmodified:
        return 412
    if none_match := _values(headers, b"if-none-match"):
        return 304 if _matches(none_match, facts.etag, weak=True) else 0
    since = _seconds(_values(headers, b"if-modified-since"))
    return 304 if since is not None and facts.modified <= since else 0


def _matches(values: Iterable[str], etag: str, *, weak: bool) -> bool:
    text = ", ".join(values)
    if text == "*":
        return True
    for found in _ETAG.finditer(text):
        given = found.group()
        if given == etag or (weak and given.removeprefix("W/") == etag):
            return True
    return False


def _seconds(values: list[str]) -> int | None:
    """Return the time of a date header, or None if it is absent or no date (then it must be ignored)."""
    try:
        return int(parsedate_to_datetime(values[0]).timestamp()) if len(values) == 1 else None
    except (ValueError, OverflowError):
        return None


def _if_range_holds(headers: Headers, facts: Facts, now: int) -> bool:
    """Tell whether the range may be served: no ``If-Range``, or one that names exactly this file."""
    condition = _values(headers, b"if-range")
    if not condition:
        return True
    if len(condition) == 1 and _ETAG.fullmatch(condition[0]):
        return condition[0] == facts.etag
    # A date is a strong validator only when the file could not have changed twice in that second.
    return _seconds(condition) == facts.modified and facts.modified < now - 1


def _ranged(value: str, size: int) -> Answer | None:
    """Return the answer to a ``Range`` header for a file of ``size`` bytes; None means that it is ignored."""
    if value.count(",") >= MAX_IGNORED_RANGES:
        return Answer(416)
    found = _RANGE.fullmatch(value)
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        suffix = min(int(last), size)
        return Answer(206, size - suffix, suffix) if suffix else Answer(416)
    start = int(first)
    end = int(last) if last else size - 1
    if last and end < start:
        return None
    return Answer(206, start, min(end, size - 1) - start + 1) if start < size else Answer(416)
