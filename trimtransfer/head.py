"""Heads: the one small object that says which version of an image is the newest. Replacing it commits a publish.

JSON of at most 1 KiB, read strictly: unknown fields are ignored, anything else odd is refused. FORMAT.md, "Head".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trimtransfer.chunk import MAX_IMAGE_SIZE, Bytes
from trimtransfer.errors import FormatError
from trimtransfer.fields import Fields
from trimtransfer.names import MAX_DISKS, check_name

MAX_HEAD: Final = 1024
"""Longest head in bytes."""
FORMAT: Final = 1
MAX_MIRRORS: Final = 4
MAX_MIRROR: Final = 100
"""Longest URL of a mirror in characters: four of them fit into a head beside the longest names."""
_MIRROR: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(?:/[A-Za-z0-9._~/%+-]*)?", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{16}")


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
    signed: str = ""
    """Id of the repository, if it has signed metadata. Of no weight for whoever cannot check these: it is a hint."""

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
        if self.signed:
            fields["signed"] = self.signed
        return json.dumps(fields, indent=1).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: Bytes) -> Head:
        """Parse a head.

        Raises:
            FormatError: anything but a valid head; one of a newer format asks to upgrade.
        """
        fields = Fields.parse("head", data, MAX_HEAD)
        fields.format(FORMAT)
        return cls(
            check_name("image", fields.text("image")),
            check_name("version", fields.text("version")),
            fields.number("sequence"),
            fields.digest("manifest_digest"),
            fields.number("manifest_length"),
            fields.digest("image_digest"),
            fields.number("length", MAX_IMAGE_SIZE),
            fields.number("disks", MAX_DISKS - 1, default=0),
            check_mirrors(fields.texts("mirrors", MAX_MIRRORS)),
            _signed(fields),
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


def _signed(fields: Fields) -> str:
    value = fields.text("signed", "")
    if value and not _ID.fullmatch(value):
        raise FormatError("head", "signed", "the id of a repository", repr(value)[:80])
    return value
