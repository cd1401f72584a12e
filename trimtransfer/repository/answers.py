"""What a server answers to a publisher: fields, and what its errors mean here. Pure; FORMAT.md, "Uploads"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trimtransfer.errors import (
    AccessDenied,
    FetchError,
    FormatError,
    Locked,
    NoSpace,
    NotFound,
    TargetRefused,
    TrimTransferError,
    VersionExists,
)
from trimtransfer.fetch.courier import Reply


def fields_of(reply: Reply) -> dict[str, Any]:
    """Return the fields of an answer; ``FormatError`` if it has none."""
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FormatError("answer of the server", 0, "a JSON object", repr(reply.body[:80]))
    return found


def refusal(reply: Reply, url: str, image: str, version: str) -> TrimTransferError:
    """Return what an answer that is no success means to who publishes this version to the server at ``url``."""
    if reply.status == 403:
        cause = "access denied: these credentials give no right to publish this image; ask whoever runs the server"
        return AccessDenied(url, cause, status=403)
    try:
        facts = fields_of(reply)
    except FormatError:
        facts = {}
    if "error" not in facts:
        return FetchError(url, "the server refuses the upload", status=reply.status)
    return meaning(facts, url, image, version)


def meaning(facts: Mapping[str, Any], url: str, image: str, version: str) -> TrimTransferError:
    """Return what an error that the server tells of means here."""
    kind, message = str(facts.get("error", "")), str(facts.get("message", ""))[:1000]
    if kind == "exists":
        return VersionExists(image, version)
    if kind == "outrun":
        newest = str(facts.get("newest", ""))[:64] or "another version"
        reason = f"{version} is not published: {newest} came first; run the same command again, to build on that"
        return TargetRefused(f"{url}, image {image}", reason)
    if kind == "locked":
        return Locked(url, "another publisher")
    if kind == "space":
        return NoSpace(url, None, None, "make room on the server")
    if kind == "damaged":
        return FormatError(f"{url}: the upload", "what was sent", "what the server's check accepts", message)
    if kind == "missing":
        return NotFound(f"what the server needs ({message})", url)
    if kind == "internal":
        return FetchError(url, message, retryable=True)
    return TargetRefused(url, message)
