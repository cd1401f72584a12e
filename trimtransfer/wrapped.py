"""Finds deflate streams in gzip, zlib and zip files and makes the record from which ``recompress.py`` rebuilds them.

For publishers. Formats: RFC 1950, 1951 and 1952, and the local headers of PKWARE's APPNOTE 6.3, section 4.3.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import Bytes
from trimtransfer.errors import FormatError
from trimtransfer.recompress import (
    GZIP_HEAD,
    MAX_REMADE,
    MAX_TOOLS,
    UNIX,
    Part,
    gzip_check,
    number,
    rewrap_pieces,
    sealed,
    zlib_check,
)
from trimtransfer.tool import Tool

SHARE: Final = 8
"""A record pays if it has at most one of so many bytes of the stream."""
_STAGES: Final = (1 << 16, 1 << 20, 1 << 23)
"""Bytes of content by which compressors are compared before one of them explains all."""
_KEPT: Final = 8
"""Compressors that go on to the next stage, at most."""
_SHORT: Final = 64
"""Bytes that go to the record; more of them go to the content, where a delta may find them again."""
_SECTOR: Final = 512
"""Files begin at multiples of it, and so do the parts of some: what an early boot image has before its archive."""
_GZIP: Final = b"\x1f\x8b\x08"
_LOCAL, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_INDEPENDENT: Final = 0x80


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """A compressed file as what it contains and the record to rebuild it (:func:`trimtransfer.recompress.rewrap`)."""

    content: bytes
    record: bytes

    def __repr__(self) -> str:
        return f"Unwrapped({len(self.content)} bytes, record of {len(self.record)})"


def unwrap(data: Bytes, *, limit: int) -> Unwrapped | None:
    """Return a compressed file as content, of at most ``limit`` bytes, and record; rebuilt and compared already.

    None if it is no gzip, zlib or zip file, if it is damaged, or if the record does not pay.
    """
    view = memoryview(data).cast("B")
    opened = Unwrapping(view, limit=limit)
    magic = bytes(view[:4])
    if magic.startswith(_GZIP):
        _unwrap_gzip(opened)
    elif magic == _LOCAL:
        _unwrap_zip(opened)
    elif len(view) > 6 and magic[0] & 0x8F == 8 and int.from_bytes(magic[:2], "big") % 31 == 0 and not magic[1] & 32:
        _unwrap_zlib(opened)
    unwrapped = opened.finish()
    if unwrapped is None:
        return None
    pays = len(unwrapped.record) * SHARE <= len(view)
    return unwrapped if pays and _comes_again(unwrapped, view) else None


def _comes_again(unwrapped: Unwrapped, view: memoryview) -> bool:
    """Tell whether the file is rebuilt exactly; a record may be refused if it has too many parts."""
    at = 0
    try:
        for piece in rewrap_pieces(unwrapped.content, unwrapped.record, limit=len(view)):
            if piece != view[at : at + len(piece)]:
                return False
            at += len(piece)
    except FormatError:
        return False
    return at == len(view)


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Whole blocks of a deflate stream: ``blocks`` of them, from bit ``bit`` of ``data`` on.

    ``content`` is ``context`` bytes before theirs, and theirs; ``flushes`` are offsets in it where the compressor
    flushed. What is wanted of their bytes begins ``skip`` bytes behind the first of ``data``.
    """

    data: Bytes
    bit: int
    blocks: int
    content: Bytes
    context: int
    flushes: NDArray[np.uint64]
    skip: int


class Unwrapping:
    """Bytes that become parts of a record, from the first to the last; with at most ``limit`` bytes of content.

    ``at`` is the end of the last deflate stream that was taken, ``streams`` how many were, ``likely`` the compressor
    that explained the last one (empty: none).
    """

    def __init__(self, view: memoryview, *, limit: int) -> None:
        self.view, self.at, self.streams, self.likely = view, 0, 0, b""
        self._content: list[Bytes] = []
        self._parts = bytearray()
        self._tools: dict[Tool, int] = {}
        self._remade, self._more = 0, False
        self._copied, self._left = 0, limit

    @property
    def room(self) -> int:
        """Bytes of content that there is room for."""
        return self._left

    def finish(self) -> Unwrapped | None:
        """Make a part of what is left, and return all; None if no stream was taken, or it is too much."""
        if not self.streams or not self.copy_to(len(self.view)):
            return None
        return Unwrapped(b"".join(self._content), sealed(self._parts, tuple(self._tools), more=self._more))

    def copy_to(self, end: int) -> bool:
        """Make a part of the bytes up to ``end`` that are in none yet; False if it is too much."""
        piece = self.view[self._copied : end]
        if len(piece) > max(_SHORT, self._left):
            return False
        if len(piece) > _SHORT:
            self._content.append(piece)
            self._left -= len(piece)
            self._parts += bytes([Part.COPIED]) + number(len(piece) + 1)
        elif piece:
            self._parts += bytes([Part.RAW]) + number(len(piece)) + piece
        self._copied = end
        return True

    def take(
        self,
        start: int,
        check: Callable[[Bytes], bytes] | None,
        *,
        size: int | None = None,
        stop: int | None = None,
    ) -> bool:
        """Take the deflate stream at ``start``, of ``size`` bytes if known, and the check behind it; up to ``stop``
        if that is given.

        False if it is damaged or its record does not pay; then nothing has changed.
        """
        rest = self.view[start:stop]
        hint = int.from_bytes(rest[-4:], "little") if check is gzip_check else 0
        limit = min(self._left, native.CONTENT_MOST)
        found = native.inflate(rest, limit=limit, expected=hint if hint >> 10 <= len(rest) else 0)
        if found is None or size not in (None, found.consumed):
            return False
        content = found.content.data
        ending = check(content) if check else b""
        end = start + found.consumed
        explained = explain(self.view[start:end], found, likely=self.likely)
        if bytes(self.view[end : end + len(ending)]) != ending or explained is None:
            return False
        return self._add(start, end + len(ending), content, explained, check)

    def take_slice(self, start: int, end: int, by: Slice, compressor: bytes) -> bool:
        """Take the bytes from ``start`` to ``end``, which are some of a slice of a deflate stream, as its content.

        False if its record does not pay; then nothing has changed, but what lies before it may be copied.
        """
        room = (end - start) // SHARE + 16
        if len(by.content) > self._left or not self.copy_to(start) or len(by.content) > self._left:
            return False
        record = native.explain_slice(
            by.data, by.content, by.flushes, compressor, bit=by.bit, context=by.context, blocks=by.blocks, room=room
        )
        if record is None:
            return False
        head = bytes([Part.SLICE]) + compressor + bytes([by.bit]) + number(by.context) + number(len(by.content) + 1)
        self._parts += head + number(by.skip) + number(end - start) + number(len(record)) + record
        self._content.append(by.content)
        self._left -= len(by.content)
        self._copied = self.at = end
        self.streams += 1
        return True

    def take_made(self, start: int, end: int, content: Bytes, tool: Tool, *, skip: int) -> bool:
        """Take the bytes from ``start`` to ``end``, which are what ``tool`` makes of ``content`` behind the first
        ``skip``, as that content. Not proven here. False if it is too much; then what lies before it may be copied."""
        if self._remade == MAX_REMADE or (tool not in self._tools and len(self._tools) == MAX_TOOLS):
            return False
        if len(content) > self._left or not self.copy_to(start) or len(content) > self._left:
            return False
        which = self._tools.setdefault(tool, len(self._tools))
        self._parts += bytes((Part.REMADE, which)) + number(len(content) + 1) + number(skip) + number(end - start)
        self._content.append(content)
        self._left -= len(content)
        self._copied = self.at = end
        self._remade += 1
        self.streams += 1
        return True

    def take_more(self, start: int, end: int, *, skip: int) -> bool:
        """Take the bytes from ``start`` to ``end``, which are others of what the tool made that was named last, behind
        the first ``skip`` of that. Not proven here. False if what lies before them is too much."""
        if not self._remade or not self.copy_to(start):
            return False
        self._parts += bytes([Part.MORE]) + number(skip) + number(end - start)
        self._copied = self.at = end
        self._more = True
        return True

    def _add(
        self,
        start: int,
        end: int,
        content: Bytes,
        explained: tuple[bytes, bytes],
        check: Callable[[Bytes], bytes] | None,
    ) -> bool:
        compressor, record = explained
        head = self.view[self._copied : start]
        plain = len(head) == 10 and head[:8] == GZIP_HEAD and head[9] == UNIX and check is gzip_check
        kept = len(head) if plain else 0
        if not plain and not self.copy_to(start):
            return False
        if len(content) > self._left:
            return False
        # The rest of the content is the content of the last part, whose size is then not needed.
        size = 0 if end == len(self.view) else len(content) + 1
        stream = compressor + number(size) + number(len(record)) + record
        self._parts += bytes([Part.MEMBER, head[8]]) if kept else bytes([Part.DEFLATE])
        self._parts += stream
        if check and not kept:
            self._parts.append(Part.GZIP_CHECK if check is gzip_check else Part.ZLIB_CHECK)
        self._content.append(content)
        self._left -= len(content)
        self._copied = self.at = end
        self.streams += 1
        self.likely = compressor
        return True


def _unwrap_gzip(opened: Unwrapping) -> None:
    """Take members while there are any."""
    while (start := gzip_content(opened.view, opened.at)) is not None and opened.take(start, gzip_check):
        pass


def gzip_content(view: memoryview, at: int) -> int | None:
    """Return where the deflate stream of the gzip member at ``at`` begins, None if there is none (RFC 1952, 2.3)."""
    head = bytes(view[at : at + 10])
    if len(head) < 10 or not head.startswith(_GZIP) or head[3] & 0xE0:
        return None
    flags, at = head[3], at + 10
    if flags & 4:
        at += 2 + int.from_bytes(view[at : at + 2], "little")
    for _ in range((flags >> 3 & 1) + (flags >> 4 & 1)):
        text = bytes(view[at : at + 4096])
        if b"\0" not in text:
            return None
        at += text.index(b"\0") + 1
    at += flags & 2
    return at if at < len(view) else None


def gzip_starts(content: Bytes) -> NDArray[np.int64]:
    """Return the multiples of 512 at which a gzip member may begin in ``content``."""
    whole = np.frombuffer(content, np.uint8)[: len(content) // _SECTOR * _SECTOR].reshape(-1, _SECTOR)
    found = (whole[:, 0] == _GZIP[0]) & (whole[:, 1] == _GZIP[1]) & (whole[:, 2] == _GZIP[2]) & (whole[:, 3] < 32)
    return np.flatnonzero(found).astype(np.int64) * _SECTOR


def _unwrap_zlib(opened: Unwrapping) -> None:
    opened.take(2, zlib_check)


def _unwrap_zip(opened: Unwrapping) -> None:
    """Take the entries that come one after the other; what follows them, the directory, is copied."""
    at: int | None = 0
    while at is not None:
        at = _zip_entry(opened, at)


def _zip_entry(opened: Unwrapping, at: int) -> int | None:
    """Go on behind an entry, or behind what follows its data; None where there is none."""
    view = opened.view
    head = bytes(view[at : at + 30])
    if head[:4] == _DESCRIPTOR:
        sizes = [size for size in (16, 24) if bytes(view[at + size : at + size + 2]) == b"PK"]
        return at + sizes[0] if sizes else None
    if head[:4] != _LOCAL or len(head) < 30:
        return None
    flags, method, size = (int.from_bytes(head[a:b], "little") for a, b in ((6, 8), (8, 10), (18, 22)))
    start = at + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    streamed = bool(flags & 8) or size == 0xFFFFFFFF
    if (
        method == 8
        and not flags & 1
        and start < len(view)
        and opened.take(start, None, size=None if streamed else size)
    ):
        return opened.at
    return None if streamed or start + size > len(view) else start + size


def explain(stream: Bytes, by: native.Inflated, *, likely: bytes = b"") -> tuple[bytes, bytes] | None:
    """Return the compressor that explains a deflate stream best, and its record; None if no record pays.

    ``likely`` is tried first, and suffices where it is right everywhere.

    Compressors are compared by ever longer parts of the content, so that few of them have to explain all; those whose
    record would be too long by twice are given up at once.
    """
    flag = _INDEPENDENT if len(by.flushes) and not by.crossing else 0
    compressors = [bytes([one[0] | flag]) + one[1:] for one in COMPRESSORS]
    compressors.sort(key=lambda one: one != likely)
    room = len(stream) // SHARE + 16
    for stop in _STAGES:
        if stop >= len(by.content):
            break
        fair = 2 * room * stop // len(by.content) + 64
        compressors, right = _best(stream, by, compressors, stop, min(fair, room))
        if right is not None:
            return right
    best: tuple[bytes, bytes] | None = None
    for compressor in compressors:
        found = native.explain(stream, by, compressor, stop=len(by.content) + 1, room=room)
        if found is not None:
            best, room = (compressor, found[0]), len(found[0])
        if found is not None and found[1]:
            break
    return best


def compressor_of(by: Slice) -> bytes | None:
    """Return the compressor that explains the first blocks of a deflate stream best; None if no record pays."""
    flags = (0, _INDEPENDENT) if len(by.flushes) else (0,)
    room = best = len(by.data) // SHARE + 16
    found = None
    for flag in flags:
        for one in COMPRESSORS:
            compressor = bytes([one[0] | flag]) + one[1:]
            record = native.explain_slice(
                by.data, by.content, by.flushes, compressor, bit=by.bit, context=by.context, blocks=by.blocks,
                room=min(room, best),
            )  # fmt: skip
            if record is not None and len(record) < best:
                best, found = len(record), compressor
    return found


def _best(
    stream: Bytes, by: native.Inflated, compressors: list[bytes], stop: int, room: int
) -> tuple[list[bytes], tuple[bytes, bytes] | None]:
    """Return the compressors that are about as good as the best at the first ``stop`` bytes, the best first.

    And the first that is right everywhere there, with its record, if it is right about all of the content, too.
    """
    scored: list[tuple[int, int]] = []
    least, tried = room, False
    for index, compressor in enumerate(compressors):
        found = native.explain(stream, by, compressor, stop=stop, room=min(room, least + least // 4 + 8))
        if found is None:
            continue
        if found[1] and not tried:
            most = len(stream) // SHARE + 16
            tried, whole = True, native.explain(stream, by, compressor, stop=len(by.content) + 1, room=most)
            if whole is not None and whole[1]:
                return [], (compressor, whole[0])
        scored.append((len(found[0]), index))
        least = min(least, len(found[0]))
    return [compressors[index] for size, index in sorted(scored)[:_KEPT] if size <= least + least // 4 + 8], None


def _compressors() -> Iterator[bytes]:
    """Yield, the likeliest first, GNU gzip and zlib (with memory level 8 and 9) at all levels, then zlib's strategies.

    FORMAT.md, "Recompression", has the meaning of the bytes.
    """
    for level in (9, 6, 8, 7, 5, 4, 3, 2, 1):
        yield bytes([level | 0x40, 0xF7, 15])
        yield bytes([level, 0xF7, 14])
        yield bytes([level, 0xF8, 15])
    for strategy, levels in ((1, (9, 6, 4)), (2, (6,)), (3, (6,))):
        yield from (bytes([level | strategy << 4, 0xF7, 14]) for level in levels)


COMPRESSORS: Final = tuple(_compressors())
