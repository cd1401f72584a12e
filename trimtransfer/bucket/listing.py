"""The lists that an object store answers with: objects, parts of an upload, uploads that were begun.

Pure. XML of the S3 API without a document type: one that declares any is refused, so nothing in it can grow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from xml.etree import ElementTree

from trimtransfer.errors import FormatError

_WHAT: Final = "list of an object store"
_NAMESPACE: Final = re.compile(r"^\{[^}]*\}")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object: its name, length, entity tag (an MD5 for what was sent in one piece), and when it was written by the
    store's clock, in seconds since 1970."""

    name: str
    length: int
    etag: str
    written: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload that has arrived."""

    number: int
    length: int
    etag: str


def parse_keys(data: bytes, own: str) -> tuple[list[Listed], str]:
    """Return the objects of a ListObjectsV2 whose keys begin with ``own``, without that, and the token of the next page
    (empty: none); ``FormatError``."""
    root = _parse(data)
    listed = []
    for item in _children(root, "Contents"):
        key = _text(item, "Key")
        if not key.startswith(own):
            raise FormatError(_WHAT, "Key", f"one that begins with {own!r}", repr(key[:80]))
        written = _moment(_text(item, "LastModified"))
        listed.append(Listed(key[len(own) :], _number(item, "Size"), _text(item, "ETag").strip('"'), written))
    more = _text(root, "IsTruncated", "false") == "true"
    token = _text(root, "NextContinuationToken") if more else ""
    if more and not token:
        raise FormatError(_WHAT, "NextContinuationToken", "one, as there are more", "none")
    return listed, token


def parse_parts(data: bytes) -> tuple[list[Part], str]:
    """Return the parts of a ListParts, and the number after which the next page begins (empty: there is none)."""
    root = _parse(data)
    parts = [
        Part(_number(item, "PartNumber"), _number(item, "Size"), _text(item, "ETag").strip('"'))
        for item in _children(root, "Part")
    ]
    more = _text(root, "IsTruncated", "false") == "true"
    return parts, str(parts[-1].number) if more and parts else ""


def parse_uploads(data: bytes, own: str) -> tuple[list[tuple[str, str]], tuple[str, str] | None]:
    """Return (name, id) of each upload of a ListMultipartUploads below ``own``, and the markers of the next page."""
    root = _parse(data)
    pairs = [(_text(item, "Key"), _text(item, "UploadId")) for item in _children(root, "Upload")]
    more = _text(root, "IsTruncated", "false") == "true" and pairs
    return [(key[len(own) :], id) for key, id in pairs if key.startswith(own)], pairs[-1] if more else None


def _parse(data: bytes) -> ElementTree.Element:
    if b"<!" in data:
        raise FormatError(_WHAT, 0, "XML without declarations", "some")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise FormatError(_WHAT, "XML", "well-formed XML", str(error)) from None


def _children(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in root if _NAMESPACE.sub("", child.tag) == name]


def _text(element: ElementTree.Element, name: str, default: str | None = None) -> str:
    for child in element:
        if _NAMESPACE.sub("", child.tag) == name:
            return child.text or ""
    if default is None:
        raise FormatError(_WHAT, name, "this field", "none")
    return default


def _number(element: ElementTree.Element, name: str) -> int:
    text = _text(element, name)
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise FormatError(_WHAT, name, "a number", repr(text[:40]))
    return int(text)


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise FormatError(_WHAT, "LastModified", "a date", repr(text[:40])) from None
