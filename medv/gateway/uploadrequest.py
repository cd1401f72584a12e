"""Requests of uploads: what their head says. Pure; FORMAT.md, "Uploads".

Browsers show certificates and Kerberos tickets by themselves, so that a page of somebody else could make them send
something here: every request carries a header that no page can add, and none from a page is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from medv.files import Scope
from medv.gateway.access import Principal
from medv.gateway.proxy import value
from medv.ranges import BadPath, Headers

PREFIX: Final = "/_medv/uploads"
_PATH: Final = re.compile(
    rb"/_medv/uploads(?:/(?P<id>[0-9a-f]{32})"
    rb"(?:/(?P<what>lacking|commit|files|packs/(?P<pack>[0-9a-f]{64})"
    rb"|files/(?P<disk>[0-9]{1,3})/(?P<file>[a-z0-9][a-z0-9._-]{0,79})))?)?"
)
_OFFSET: Final = re.compile(rb"offset=([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """A request whose sender is known: what it is about."""

    principal: Principal
    method: str
    id: str
    what: str
    pack: bytes
    disk: int
    file: str
    offset: int
    body: bytes = b""

    @property
    def owner(self) -> str:
        """Whose an upload is."""
        principal = self.principal
        kind = "right" if principal.grants else "user" if principal.user else "computer"
        return f"{kind}:{principal.name}"


def body_length(headers: Headers) -> int:
    """Return the length of a body; ``BadPath`` where there is a doubt about it, or the request is a browser's."""
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names or names.count(b"content-length") > 1 or names.count(b"authorization") > 1:
        raise BadPath("a body without a length, or two sets of credentials")
    if value(headers, b"x-medv-upload") != "1" or b"origin" in names or b"sec-fetch-site" in names:
        raise BadPath("a browser's request, or not one of this protocol")
    text = value(headers, b"content-length") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise BadPath("a length that is none")
    return int(text)


def parse_request(scope: Scope) -> tuple[str, str, bytes, int, str, int]:
    """Return what a path and a query name; ``BadPath``."""
    found, query = _PATH.fullmatch(scope["raw_path"]), scope["query_string"]
    offset = _OFFSET.fullmatch(query) if query else None
    if found is None or (query and offset is None):
        raise BadPath("not a path of uploads")
    id, what, pack, disk, file = (
        (found[name] or b"").decode("ascii") for name in ("id", "what", "pack", "disk", "file")
    )
    return id, what, bytes.fromhex(pack), int(disk or 0), file, int(offset[1]) if offset else 0
