"""Heads: the one small object that says which version of an image is the newest. Replacing it commits a publish.

JSON of at most 1 KiB, read strictly: unknown fields are ignored, anything else odd is refused. FORMAT.md, "Head".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trimtransfer.chunk import DIGEST_SIZE, MAX_IMAGE_SIZE, Bytes
from trimtransfer.errors import FormatError
from trimtransfer.names import MAX_DISKS, check_name

MAX_HEAD: Final = 1024
"""Longest head in bytes."""
FORMAT: Final = 1
MAX_MIRRORS: Final = 4
MAX_MIRROR: Final = 100
"""Longest URL of a mirror in characters: four of them fit into a head beside the longest names."""
_MIRROR: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(?:/[A-Za-z0-9._~/%+-]*)?", re.ASCII)
_MAX_NUMBER: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Head:
    """Newest version of an image: names, sequence number, digests, and lengths in bytes; how many ``disks`` there are
    beside the first, which all else is about."""

    image: str
    version: str
    sequence: int
    manifest_digest: bytes
    manifest_length: int
    image_digest: bytes
    length: int
    disks: int = 0
    mirrors: tuple[str, ...] = ()
    """URLs of further servers that have the packs."""

    def to_bytes(self) -> bytes:
        """Return the head's bytes."""
        fields: dict[str, Any] = {
            "format": FORMAT,
            "image": self.image,
            "version": self.version,
            "sequence": self.sequence,
            "manifest_digest": self.manifest_digest.hex(),
            "manifest_length": self.manifest_length,
            "image_digest": self.image_digest.hex(),
            "length": self.length,
            **({"disks": self.disks} if self.disks else {}),
        }
        if self.mirrors:
            fields["mirrors"] = list(self.mirrors)
        return json.dumps(fields, indent=1).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: Bytes) -> Head:
        """Parse a head.

        Raises:
            FormatError: anything but a valid head; one of a newer format asks to upgrade.
        """
        if len(data) > MAX_HEAD:
            raise FormatError("head", 0, f"at most {MAX_HEAD} bytes", len(data))
        try:
            fields = json.loads(bytes(data), object_pairs_hook=_unique, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise FormatError("head", 0, "a JSON object", str(error)[:80]) from error
        if not isinstance(fields, dict):
            raise FormatError("head", 0, "a JSON object", type(fields).__name__)
        found = _number(fields, "format", _MAX_NUMBER)
        if found != FORMAT:
            raise FormatError("head", "format", f"{FORMAT} (a newer one needs a newer program)", found)
        return cls(
            check_name("image", _text(fields, "image")),
            check_name("version", _text(fields, "version")),
            _number(fields, "sequence", _MAX_NUMBER),
            _digest(fields, "manifest_digest"),
            _number(fields, "manifest_length", _MAX_NUMBER),
            _digest(fields, "image_digest"),
            _number(fields, "length", MAX_IMAGE_SIZE),
            _number(fields, "disks", MAX_DISKS - 1) if "disks" in fields else 0,
            _mirrors(fields),
        )


def check_mirrors(urls: Sequence[str]) -> tuple[str, ...]:
    """Return the URLs of mirrors as they are, or raise ``FormatError``: at most 4, plain http or https, no secrets."""
    if len(urls) > MAX_MIRRORS:
        raise FormatError("mirrors", "number", f"at most {MAX_MIRRORS}", len(urls))
    for url in urls:
        if len(url) > MAX_MIRROR or not _MIRROR.fullmatch(url):
            expected = f"http:// or https:// and at most {MAX_MIRROR} characters, without credentials and query"
            raise FormatError("mirrors", "URL", expected, repr(url)[:80])
    return tuple(urls)


def _mirrors(fields: dict[str, Any]) -> tuple[str, ...]:
    urls = fields.get("mirrors", [])
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise FormatError("head", "mirrors", "a list of URLs", repr(urls)[:80])
    return check_mirrors(urls)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field occurs twice")
    return fields


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise FormatError("head", name, "a string", repr(value)[:80])
    return value


def _number(fields: dict[str, Any], name: str, limit: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= limit:
        raise FormatError("head", name, f"a whole number up to {limit}", repr(value)[:80])
    return value


def _digest(fields: dict[str, Any], name: str) -> bytes:
    value = _text(fields, name)
    if len(value) != 2 * DIGEST_SIZE or not set(value) <= set("0123456789abcdef"):
        raise FormatError("head", name, f"{2 * DIGEST_SIZE} lower-case hexadecimal digits", repr(value)[:80])
    return bytes.fromhex(value)
