"""URLs that are a right in themselves, for a while: what is signed, and how that is checked.

Pure. Two shapes. The own one is a MAC (HMAC-SHA256) over what it permits: patterns of images, a path below which it
counts, an end, and a name for the log. The other is what nginx checks without any of our code (``secure_link``), and
CDNs in the same way: a hash of end, image and a secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from medv.gateway.access import check_pattern

PARAMETER: Final = "medv"
"""The only parameter of the query that the own shape needs."""
SKEW: Final = 60
"""Seconds that clocks may differ: so long after its end a signature still counts."""
LEAST_KEY: Final = 32
"""Bytes of the shortest key."""
_MAX_QUERY: Final = 2048
_VERSION: Final = "1"
_TEXT: Final = re.compile(r"[A-Za-z0-9._@+-]{0,64}")
_END: Final = re.compile(r"[0-9]{1,12}")
_MAC: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Permit:
    """What a signed URL permits: to read ``images`` (patterns) below ``prefix`` until ``end`` (seconds since 1970).

    ``label`` says in the log whom it was made for.
    """

    images: tuple[str, ...]
    end: int
    label: str = ""
    prefix: str = "/"

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("a signed URL is for at least one image")
        for pattern in self.images:
            check_pattern(pattern)
        if not _TEXT.fullmatch(self.label):
            raise ValueError(f"{self.label[:80]!r}: at most 64 letters, digits and . _ @ + -")
        if not self.prefix.startswith("/") or not self.prefix.endswith("/") or "~" in self.prefix:
            raise ValueError(f"{self.prefix[:80]!r}: a path begins and ends with a slash")


class BadSignature(ValueError):
    """A signature that is none, is of another key, or (``expired``) came to its end."""

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.expired = expired


def sign(permit: Permit, key: bytes) -> str:
    """Return the query, without ``?``, that permits it; ``ValueError`` for a key that is too short."""
    if len(key) < LEAST_KEY:
        raise ValueError(f"a key has at least {LEAST_KEY} bytes, this one has {len(key)}")
    text = _text(permit)
    return f"{PARAMETER}={quote(text, safe='~*/,.@-_')}~{_mac(text, key)}"


def check(query: str, path: str, keys: tuple[bytes, ...], now: float) -> Permit | None:
    """Return what the query of a request permits for ``path``; None if it holds no signature.

    Raises:
        BadSignature: it holds one that permits nothing here and now.
    """
    values = [value for name, value in _pairs(query) if name == PARAMETER]
    if not values:
        return None
    if len(values) > 1:
        raise BadSignature("two signatures")
    text, _, mac = values[0].rpartition("~")
    # Compared before anything in it is looked at, with every key, in the same time whether or not one fits.
    fits = [hmac.compare_digest(mac.encode(), _mac(text, key).encode()) for key in keys]
    if not any(fits) or not _MAC.fullmatch(mac):
        raise BadSignature("not signed with a key that counts here")
    permit = _parse(text)
    if now > permit.end + SKEW:
        raise BadSignature(f"expired {now - permit.end:.0f} s ago", expired=True)
    if not path.startswith(permit.prefix):
        raise BadSignature("signed for another path")
    return permit


def secure_link(end: int, image: str, secret: str) -> str:
    """Return the query that nginx's ``secure_link_md5 "$arg_expires $arg_image SECRET"`` checks; for one image."""
    digest = hashlib.md5(f"{end} {image} {secret}".encode(), usedforsecurity=False).digest()
    return f"expires={end}&image={image}&md5={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def add_query(url: str, query: str) -> str:
    """Return a URL with a query in the place of its own."""
    return urlunsplit(urlsplit(url)._replace(query=query, fragment=""))


def _pairs(query: str) -> list[tuple[str, str]]:
    if len(query) > _MAX_QUERY:
        raise BadSignature("a query of more than 2,048 characters")
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise BadSignature("a query of more than 16 parameters") from None


def _text(permit: Permit) -> str:
    return "~".join((_VERSION, str(permit.end), ",".join(permit.images), permit.label, permit.prefix))


def _parse(text: str) -> Permit:
    """Parse what was signed; it is the signer's, but may be of another release."""
    parts = text.split("~")
    if len(parts) != 5 or parts[0] != _VERSION or not _END.fullmatch(parts[1]):
        raise BadSignature("of a shape that this release does not know")
    try:
        return Permit(tuple(parts[2].split(",")), int(parts[1]), parts[3], parts[4])
    except ValueError as error:
        raise BadSignature(str(error)) from None


def _mac(text: str, key: bytes) -> str:
    digest = hmac.digest(key, b"medv signed url\0" + text.encode("utf-8", "surrogateescape"), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
