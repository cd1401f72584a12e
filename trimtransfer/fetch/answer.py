"""What the head of an HTTP answer says about the bytes that were asked for, and whether to believe it.

Pure. A range is a fact only if the status is 206 and Content-Range agrees with the request and with the object's known
length; a 200 is the whole object from its start. Anything else raises ``Failed`` with cause and remedy in its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from trimtransfer.fetch.retry import Cause, Failed, cause_of_status, parse_retry_after

_CONTENT_RANGE: Final = re.compile(r"\s*bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\s*", re.IGNORECASE | re.ASCII)
_LENGTH: Final = re.compile(r"\d{1,18}", re.ASCII)
_LEAST_PART: Final = 1024
"""Bytes that a shortened range has at least."""
REMEDIES: Final[Mapping[Cause, str]] = {
    Cause.MISSING: "not there",
    Cause.DENIED: "access denied: these credentials, or none, give no right to this; ask whoever runs the server",
    Cause.PROXY_DENIED: "the proxy asks for credentials; put them into HTTPS_PROXY as http://user:password@proxy:port",
    Cause.BEYOND_END: "the object ends before the wanted bytes: the repository changed or is damaged; run verify on it",
    Cause.REFUSED: "the server refuses the request",
    Cause.BUSY: "the server is overloaded",
    Cause.SERVER: "the server reports an error of its own; its log tells more",
}
"""What people read for a status, and what they can do."""

_UNKNOWN: Final = (
    "access denied: the server wants credentials that it knows, and got none, or others (wrong, expired or revoked); "
    "see --token-file, --client-cert and --kerberos, or get a signed URL"
)
_EXPIRED: Final = (
    "access denied: the credentials have expired; get new ones and run the same command again: it goes on where it "
    "stopped"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asked for: bytes ``start`` to ``stop`` (exclusive), by a Range header if ``ranged``.

    ``total`` is the object's length where it is known.
    """

    start: int
    stop: int
    total: int | None
    ranged: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What the body is: the object's bytes from ``start`` on, up to ``stop`` (None: to an end nobody named).

    ``partial`` tells a 206 from a 200; ``framed`` whether the message ends there too, so that its end can be read and
    the connection used again.
    """

    start: int
    stop: int | None
    partial: bool
    framed: bool = False


def check_status(status: int, headers: Mapping[str, str], *, now: datetime) -> None:
    """Raise ``Failed`` for every status but 200 and 206. ``headers`` by lower-case name; ``now`` is the wall clock."""
    if status in (200, 206):
        return
    cause = cause_of_status(status)
    retry_after = parse_retry_after(headers.get("retry-after"), now=now)
    raise Failed(cause, _remedy(cause, status, headers), status=status, retry_after=retry_after)


def _remedy(cause: Cause, status: int, headers: Mapping[str, str]) -> str:
    """Return what people read: of refused access, what kind of refusal it is."""
    if cause is Cause.DENIED and status == 401:
        expired = 'error_description="expired"' in headers.get("www-authenticate", "")
        return _EXPIRED if expired else _UNKNOWN
    return REMEDIES[cause]


def check_encoding(status: int, headers: Mapping[str, str]) -> None:
    """Refuse a body that is coded in any way: its bytes would not be the object's."""
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        detail = (
            f"the server compresses the answer (Content-Encoding: {coding[:40]}) although it was asked not to; "
            "switch compression off for this repository (nginx: gzip off; in its location)"
        )
        raise Failed(Cause.ENCODED, detail, status=status)


def check_answer(asked: Asked, status: int, headers: Mapping[str, str], *, whole_limit: int) -> Answer:
    """Return what the body of a 200 or 206 is, or raise ``Failed``.

    ``whole_limit`` is the most bytes of an object worth streaming where the server ignores the Range header.
    """
    check_encoding(status, headers)
    return _check_part(asked, headers) if status == 206 else _check_whole(asked, headers, whole_limit)


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return the body's announced length, or None."""
    value = headers.get("content-length", "")
    return int(value) if _LENGTH.fullmatch(value) else None


def _check_part(asked: Asked, headers: Mapping[str, str]) -> Answer:
    value = headers.get("content-range")
    if not asked.ranged:
        raise Failed(Cause.WRONG_RANGE, "a part of the object came although the whole was asked for", status=206)
    if value is None:
        kind = headers.get("content-type", "none")[:60]
        raise Failed(Cause.WRONG_RANGE, f"206 without Content-Range (Content-Type: {kind})", status=206)
    match = _CONTENT_RANGE.fullmatch(value)
    wanted = f"bytes {asked.start}-{asked.stop - 1}/{'*' if asked.total is None else asked.total}"
    detail = f"asked for {wanted}, the answer holds {value[:80]}"
    if match is None:
        raise Failed(Cause.WRONG_RANGE, detail, status=206)
    start, stop, total = int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])
    if total is not None and asked.total is not None and total != asked.total:
        detail += ": the repository changed or is damaged, or a cache mixes versions"
        raise Failed(Cause.WRONG_RANGE, detail, status=206)
    if start != asked.start or not start < stop <= asked.stop:
        raise Failed(Cause.WRONG_RANGE, detail, status=206)
    # A server may send less than asked (RFC 9110 section 15.3.7); the rest is asked for again, but not byte by byte.
    if stop < asked.stop and stop - start < _LEAST_PART:
        raise Failed(Cause.CUT, f"asked for {wanted}, the answer holds {value[:80]} only", status=206)
    return Answer(start, stop, partial=True, framed=_framed(headers, stop - start))


def _check_whole(asked: Asked, headers: Mapping[str, str], whole_limit: int) -> Answer:
    length = content_length(headers)
    if length is not None and asked.total is not None and length != asked.total:
        detail = f"{length:,} bytes came where the object has {asked.total:,}"
        if "html" in headers.get("content-type", "").lower():
            detail += ": a web page, perhaps the login page of a proxy or portal; open the URL in a browser"
        raise Failed(Cause.WRONG_RANGE, detail, status=200)
    if length is not None and length < asked.stop:
        raise Failed(Cause.WRONG_RANGE, f"the object has {length:,} bytes, wanted up to {asked.stop:,}", status=200)
    if asked.ranged and asked.start > 0 and asked.stop > whole_limit:
        detail = (
            f"the server, or a proxy on the way, ignores the Range header, and {asked.stop:,} bytes would have to be "
            f"read for {asked.stop - asked.start:,} (limit {whole_limit:,}); serve the repository with range support"
        )
        raise Failed(Cause.TOO_LARGE, detail, status=200)
    stop = asked.total if length is None else length
    return Answer(0, stop, partial=False, framed=stop is not None and _framed(headers, stop))


def _framed(headers: Mapping[str, str], length: int) -> bool:
    """Return whether the message's framing says that its body has exactly this length, or will say so at its end."""
    return content_length(headers) == length or "transfer-encoding" in headers
