"""Signatures of Amazon's version 4 on requests to S3-compatible object stores, as header lines or within a URL.

Pure. Source: "Authenticating Requests (AWS Signature Version 4)" of the S3 API reference. Paths are signed as they are
sent. A server refuses what was signed more than fifteen minutes ago, so a request that was lost on the way cannot
arrive much later.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

EMPTY: Final = hashlib.sha256(b"").hexdigest()
"""Digest of an empty body."""
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
LONGEST: Final = 7 * 86_400
"""Most seconds that a signed URL is valid for."""
SKEW: Final = 15 * 60
"""Seconds after which a signature in header lines is not accepted any more."""
_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class AccessKeys:
    """Who asks: the id of a key, its secret, and the token of temporary ones (empty: none)."""

    id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


def signed_headers(
    keys: AccessKeys,
    region: str,
    method: str,
    url: str,
    *,
    now: datetime,
    payload: str = EMPTY,
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return header lines that sign a request, with ``headers`` (names in lower case), which are signed, too.

    ``payload`` is the SHA-256 of the body in hexadecimal digits, or ``UNSIGNED``; ``now`` is aware.
    """
    stamp = _stamp(now)
    lines = {**(headers or {}), "x-amz-date": stamp, "x-amz-content-sha256": payload}
    if keys.token:
        lines["x-amz-security-token"] = keys.token
    parts = urlsplit(url)
    query = sorted(parse_qsl(parts.query, keep_blank_values=True))
    names, signature = _sign(keys, region, stamp, method, url, query, lines, payload)
    scope = f"{keys.id}/{_scope(stamp, region)}"
    lines["Authorization"] = f"{_ALGORITHM} Credential={scope}, SignedHeaders={names}, Signature={signature}"
    return lines


def presigned(
    keys: AccessKeys, region: str, url: str, *, now: datetime, seconds: int, query: Mapping[str, str] | None = None
) -> str:
    """Return a URL with which anybody can GET this one object for ``seconds``, and no other; ``query`` is signed, too.

    ``ValueError`` for a time that S3 does not allow.
    """
    if not 1 <= seconds <= LONGEST:
        raise ValueError(f"a signed URL is valid for 1 second to 7 days, not {seconds:,} seconds")
    stamp = _stamp(now)
    fields = {
        **(query or {}),
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{keys.id}/{_scope(stamp, region)}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.token:
        fields["X-Amz-Security-Token"] = keys.token
    pairs = sorted(fields.items())
    _, signature = _sign(keys, region, stamp, "GET", url, pairs, {}, UNSIGNED)
    return urlunsplit(urlsplit(url)._replace(query=f"{query_of(pairs)}&X-Amz-Signature={signature}"))


def query_of(pairs: list[tuple[str, str]]) -> str:
    """Return a query as S3 wants it encoded."""
    return "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)


def _sign(
    keys: AccessKeys,
    region: str,
    stamp: str,
    method: str,
    url: str,
    query: list[tuple[str, str]],
    headers: Mapping[str, str],
    payload: str,
) -> tuple[str, str]:
    """Return the names of the signed header lines, and the signature."""
    parts = urlsplit(url)
    lines = {name.lower(): " ".join(value.split()) for name, value in headers.items()} | {"host": _host(url)}
    names = ";".join(sorted(lines))
    block = "".join(f"{name}:{lines[name]}\n" for name in sorted(lines))
    canonical = "\n".join((method, parts.path or "/", query_of(query), block, names, payload))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join((_ALGORITHM, stamp, _scope(stamp, region), digest))
    key = b"AWS4" + keys.secret.encode()
    for part in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return names, hmac.digest(key, text.encode(), "sha256").hex()


def _host(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def _scope(stamp: str, region: str) -> str:
    return f"{stamp[:8]}/{region}/s3/aws4_request"


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
