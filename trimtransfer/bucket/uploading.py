"""Sending a file to an object store: in one piece, or in parts of which those that arrived are not sent again.

An interrupted upload in parts stays in the store, unseen by readers; the next one for the same file goes on with it.
Entity tags tell what is there: the MD5 of one piece, and of parts the MD5 of their MD5s with their count. A store whose
tags are no MD5s (some ways of encryption) is trusted as to lengths: the SHA-256 of each piece was signed anyway.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from trimtransfer.bucket.listing import Part, parse_parts, parse_uploads
from trimtransfer.bucket.wire import Wire
from trimtransfer.errors import FetchError, IntegrityError, NotFound, SourceChanged
from trimtransfer.fetch.s3 import field

PART: Final = 16 << 20
"""Least bytes of a part; S3 allows parts of 5 MiB to 5 GiB, at most 10,000 of them."""
_MOST_PARTS: Final = 9000
_MD5: Final = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")


def part_length(length: int, least: int = PART) -> int:
    """Return the length of the parts (but for the last) that a file is sent in: the same whenever it is sent."""
    return max(least, -(-length // _MOST_PARTS))


def is_tag(etag: str) -> bool:
    """Tell whether an entity tag says what the content is."""
    return _MD5.fullmatch(etag) is not None


def tag_of(path: Path, *, least: int = PART) -> str:
    """Return the entity tag that a file gets when it is sent from here."""
    length = path.stat().st_size
    size = part_length(length, least)
    digests = [_md5(piece) for piece in _pieces(path, size)]
    if length <= size:
        return digests[0].hex() if digests else _md5(b"").hex()
    return f"{_md5(b''.join(digests)).hex()}-{len(digests)}"


def send_file(
    wire: Wire,
    name: str,
    path: Path,
    *,
    headers: dict[str, str],
    least: int = PART,
    sent: Callable[[int], None] = lambda _: None,
) -> None:
    """Store a file as the object ``name``. ``sent`` is called with the bytes of each piece that is there.

    Raises:
        IntegrityError: what the store has is something else.
        SourceChanged: the file changed while it was sent; else what :meth:`Wire.ask` raises.
    """
    length = path.stat().st_size
    size = part_length(length, least)
    if length > size:
        _send_parts(wire, name, path, length, size, headers, sent)
        return
    data = path.read_bytes()
    send_bytes(wire, name, data, headers=headers)
    sent(len(data))


def send_bytes(wire: Wire, name: str, data: bytes, *, headers: dict[str, str]) -> None:
    """Store an object; raises as :func:`send_file`."""
    _check_tag(name, wire.ask("PUT", name, body=data, headers=headers).etag, _md5(data).hex())


def begun_uploads(wire: Wire, prefix: str = "") -> list[tuple[str, str]]:
    """Return (name, id) of uploads in parts that have no end; none for a store that does not tell."""
    own = wire.key("")
    found: list[tuple[str, str]] = []
    markers: tuple[str, str] | None = ("", "")
    while markers is not None:
        following = [("key-marker", markers[0]), ("upload-id-marker", markers[1])] if markers[0] else []
        reply = wire.ask("GET", "", query=[("uploads", ""), ("prefix", own + prefix), *following])
        if reply.status == 501:
            return []
        page, markers = parse_uploads(reply.body, own)
        found += page
    return found


def abandon(wire: Wire, name: str, id: str) -> None:
    """Throw away what has arrived of an upload."""
    try:
        wire.ask("DELETE", name, query=[("uploadId", id)])
    except NotFound:
        return


def _send_parts(
    wire: Wire,
    name: str,
    path: Path,
    length: int,
    size: int,
    headers: dict[str, str],
    sent: Callable[[int], None],
) -> None:
    id, there = _resume(wire, name) or (_begin(wire, name, headers), {})
    tags = []
    for number, piece in enumerate(_pieces(path, size), 1):
        tag = _md5(piece).hex()
        part = there.get(number)
        if part is None or (part.length, part.etag) != (len(piece), tag):
            query = [("partNumber", str(number)), ("uploadId", id)]
            _check_tag(f"{name}, part {number}", found := wire.ask("PUT", name, query=query, body=piece).etag, tag)
            tags.append(found)
        else:
            tags.append(part.etag)
        sent(len(piece))
    if path.stat().st_size != length or len(tags) != -(-length // size):
        raise SourceChanged(os.fspath(path), "its length")
    _complete(wire, name, id, tags, length)


def _begin(wire: Wire, name: str, headers: dict[str, str]) -> str:
    reply = wire.ask("POST", name, query=[("uploads", "")], headers=headers)
    id = field(reply.body, "UploadId")
    if not id:
        raise FetchError(f"{wire.url}/{name}", "the store begins no upload in parts", status=reply.status)
    return id


def _resume(wire: Wire, name: str) -> tuple[str, dict[int, Part]] | None:
    """Return the last upload of this object that was begun, and its parts by number."""
    ids = [id for key, id in begun_uploads(wire, name) if key == name]
    for id in reversed(ids):
        parts: dict[int, Part] = {}
        marker = "0"
        try:
            while marker:
                query = [("uploadId", id), ("part-number-marker", marker)]
                page, marker = parse_parts(wire.ask("GET", name, query=query).body)
                parts.update((part.number, part) for part in page)
        except NotFound:
            continue
        return id, parts
    return None


def _complete(wire: Wire, name: str, id: str, tags: list[str], length: int) -> None:
    """Make an object of the parts. The answer may be lost after it was done: then the upload is gone, the object there;
    a store may also find out after it has begun to answer that it failed."""
    parts = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{tag}"</ETag></Part>' for number, tag in enumerate(tags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    for _ in range(3):
        try:
            reply = wire.ask("POST", name, query=[("uploadId", id)], body=body)
        except NotFound:
            break
        if b"<Error" not in reply.body:
            break
    found = wire.ask("HEAD", name)
    if int(found.headers.get("content-length", "-1")) != length:
        raise FetchError(f"{wire.url}/{name}", "the store did not put its parts together; run the same command again")
    whole = _md5(b"".join(bytes.fromhex(tag) for tag in tags)).hex() if all(map(is_tag, tags)) else ""
    if whole:
        _check_tag(name, found.etag, f"{whole}-{len(tags)}")


def _check_tag(name: str, found: str, expected: str) -> None:
    if is_tag(found) and found != expected:
        remedy = "the network or the store damages data; run the same command again"
        raise IntegrityError(f"{name}, as the store has it", expected.encode(), found.encode(), remedy)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(size):
            yield piece


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
