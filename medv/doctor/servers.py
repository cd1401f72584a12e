"""Which servers, proxies and caches an answer passed, by what they say of themselves. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SIGNS: Final = (
    ("nginx", "server", r"nginx|openresty|angie"),
    ("iis", "server", r"microsoft-iis|microsoft-httpapi"),
    ("s3", "server", r"amazons3|minio|ceph|garage|seaweedfs|rustfs|cloudfront"),
    ("s3", "via", r"cloudfront"),
    ("s3", "x-amz-request-id", r"."),
    ("s3", "x-amz-cf-id", r"."),
    ("squid", "via", r"squid"),
    ("squid", "server", r"squid"),
    ("squid", "x-squid-error", r"."),
    ("squid", "x-cache", r"(?:hit|miss) from \S+$"),
    ("apache", "server", r"apache"),
    ("lighttpd", "server", r"lighttpd"),
    ("caddy", "server", r"caddy"),
    ("varnish", "via", r"varnish"),
    ("varnish", "x-varnish", r"."),
    ("cloudflare", "server", r"cloudflare"),
    ("cloudflare", "cf-ray", r"."),
    ("azure", "x-ms-request-id", r"."),
    ("medv-repo serve", "server", r"medv"),
)
"""(name, header, pattern in its value): CloudFront and S3 share their remedies, and so do stores that speak as S3."""
_CACHES: Final = ("age", "x-cache", "x-cache-status", "cf-cache-status", "x-varnish", "x-proxy-cache")
_HIT: Final = re.compile(r"\b(?:hit|stale|updating|revalidated)\b", re.IGNORECASE)


def recognise(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of those that the headers (by lower-case name) tell of, the first sign first."""
    found = [name for name, header, sign in _SIGNS if re.search(sign, headers.get(header, ""), re.IGNORECASE)]
    return tuple(dict.fromkeys(found))


def is_cached(headers: Mapping[str, str]) -> bool | None:
    """Return whether a shared cache says that it had this answer already; None where none speaks."""
    if not any(name in headers for name in _CACHES):
        return None
    age = headers.get("age", "")
    if age.isascii() and age.isdigit() and int(age[:12]) > 0:
        return True
    return any(_HIT.search(headers.get(name, "")) for name in _CACHES[1:])


def on_the_way(headers: Mapping[str, str]) -> str:
    """Return what the headers tell of proxies and caches, for people; empty: nothing."""
    told = [f"{name.title()}: {headers[name][:80]}" for name in ("via", *_CACHES) if name in headers]
    return ", ".join(told)
