"""Recompression: compressed files as their content and a short record, from which the very same bytes come again.

The content of two versions of a gzip file is alike where the files are not. So what is compared, sent and stored as a
difference is the content, and the file is rebuilt on arrival. Nothing is hoped for: deflate's compressor is part of
this format (``native/predict.h``; FORMAT.md, "Recompression"), not of the environment, and a publisher gets a record
only after the file came again from it. For xz and zstd a record names tools of the environment (``tool.py``).

A file is a sequence of parts: deflate streams, and bytes beside them. What a client needs is :func:`rewrap_pieces`;
``wrapped.py`` finds the streams in gzip, zlib and zip files.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Final, NoReturn, TypeAlias

import numpy as np

from trimtransfer import codec, native
from trimtransfer.chunk import Bytes
from trimtransfer.errors import FormatError
from trimtransfer.tool import TOOL_SIZE, Tool

VERSION: Final = 1
"""Of the record and of the predictor behind it."""
VERSION_TOOLS: Final = 2
"""Of a record that names tools, and is otherwise the same."""
VERSION_MORE: Final = 3
"""Of one that takes more than one piece of what a tool makes."""
MAX_TOOLS: Final = 16
MAX_REMADE: Final = 4096
"""Parts that tools make: each may cost the time to begin, a millisecond."""
MAX_PARTS: Final = 65_536
"""Each may cost the time to begin a stream, a tenth of a millisecond."""
GZIP_HEAD: Final = bytes.fromhex("1f8b080000000000")
"""Of a file without name and time: then the level's mark and the system follow."""
UNIX: Final = 3
_PIECE: Final = 1 << 20
_WHAT: Final = "record of recompression"


class Part(IntEnum):
    """What a part of a file is made from."""

    RAW = 1
    """Bytes in the record."""
    COPIED = 2
    """Bytes of the content."""
    DEFLATE = 3
    """A deflate stream: compressor, content, record."""
    GZIP_CHECK = 4
    """CRC-32 and size of the content of the stream before."""
    ZLIB_CHECK = 5
    """Adler-32 of it."""
    MEMBER = 6
    """A gzip member with a head of ten bytes, the stream, and its check."""
    SLICE = 7
    """Some bytes of whole blocks of a deflate stream, whose content follows some that lies before it."""
    REMADE = 8
    """Some bytes of what a tool makes of content."""
    MORE = 9
    """Other bytes of what the last tool made."""


Compress: TypeAlias = Callable[[Tool, Bytes], bytes]
"""Returns what a tool makes of content: :meth:`Tool.compress`, or what is known to be the same."""


def rewrap(content: Bytes, record: Bytes, *, limit: int, compress: Compress = Tool.compress) -> bytes:
    """Return the file that ``content`` and ``record`` stand for, of at most ``limit`` bytes.

    Raises:
        FormatError: the record breaks a rule. One that breaks none may still be another file's: compare a digest.
    """
    return b"".join(rewrap_pieces(content, record, limit=limit, compress=compress))


def rewrap_pieces(content: Bytes, record: Bytes, *, limit: int, compress: Compress = Tool.compress) -> Iterator[bytes]:
    """Yield the file that ``content`` and ``record`` stand for, in pieces of at most a MiB.

    ``content`` may be a mapped file: each stream's is read in order, never more than 64 KiB before the last byte read,
    and once more in order for its check. Beside it and the record some 3 MiB are needed, however large the file is;
    for what a tool makes as much as that is, and up to ``tool.MAX_MEMORY``.

    Raises:
        FormatError: the record breaks a rule, or the file has more than ``limit`` bytes.
    """
    written = 0
    for piece in _Rewrapping(content, _body(record, limit), compress, version=_version(record)).pieces():
        written += len(piece)
        if written > limit:
            raise FormatError(_WHAT, "its end", f"a file of up to {limit} bytes", "more")
        yield piece


def record_tools(record: Bytes, *, limit: int) -> tuple[Tool, ...]:
    """Return the tools that a record names, of a file of at most ``limit`` bytes; ``FormatError`` as :func:`rewrap`."""
    if _version(record) not in (VERSION_TOOLS, VERSION_MORE):
        return ()
    return _tools(Fields(_body(record, limit), _WHAT))


def sealed(parts: Bytes, tools: Sequence[Tool] = (), *, more: bool = False) -> bytes:
    """Return a record from its parts, compressed where that makes it shorter; those that tools make name these by their
    numbers; ``more`` if there are such parts."""
    version = (VERSION_MORE if more else VERSION_TOOLS) if tools else VERSION
    body = b"".join((bytes([len(tools)]), *(tool.to_bytes() for tool in tools), parts)) if tools else bytes(parts)
    packed = codec.compress(body, 19)
    return bytes([version << 4 | 1]) + packed if len(packed) < len(body) else bytes([version << 4]) + body


def _version(record: Bytes) -> int:
    return bytes(record[:1])[0] >> 4 if record else 0


def _body(record: Bytes, limit: int) -> bytes:
    """Return the parts of a record; they have at most a quarter of what is rebuilt, and a little."""
    first, most = bytes(record[:1]), limit // 4 + 4096
    if not VERSION <= _version(record) <= VERSION_MORE or first[0] & 15 > 1:
        raise FormatError(_WHAT, 0, f"version {VERSION} to {VERSION_MORE}", first.hex() or "nothing")
    if first[0] & 15:
        return codec.decompress(memoryview(record)[1:], most, _WHAT)
    if len(record) > most:
        raise FormatError(_WHAT, 0, f"at most {most} bytes", len(record))
    return bytes(record[1:])


def number(value: int) -> bytes:
    """Return a number in groups of seven bits, lowest first, all but the last with bit 7 set."""
    groups = bytearray()
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes(groups) + bytes([value])


class Fields:
    """Reads what bytes hold, field by field; whatever is not there or too large is a ``FormatError``."""

    def __init__(self, body: bytes, what: str) -> None:
        """``what`` they are is said in errors."""
        self._body, self._what, self.at = body, what, 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._body) - self.at

    def byte(self) -> int:
        """Read a byte."""
        return self.raw(1)[0]

    def raw(self, size: int) -> bytes:
        """Read ``size`` bytes."""
        if size > self.left:
            self.refuse(f"{size} bytes", f"{self.left} bytes left")
        self.at += size
        return self._body[self.at - size : self.at]

    def number(self) -> int:
        """Read a number as :func:`number` writes it."""
        value, shift, group = 0, 0, 128
        while group >= 128:
            if shift == 63:
                self.refuse("a number below 2^63", "a longer one")
            group = self.byte()
            value |= (group & 127) << shift
            shift += 7
        return value

    def refuse(self, expected: object, got: object) -> NoReturn:
        """Raise ``FormatError``: here something else is expected."""
        raise FormatError(self._what, self.at, expected, got)


def _tools(fields: Fields) -> tuple[Tool, ...]:
    count = fields.byte()
    if not 0 < count <= MAX_TOOLS:
        fields.refuse(f"1 to {MAX_TOOLS} tools", count)
    return tuple(Tool.from_bytes(fields.raw(TOOL_SIZE)) for _ in range(count))


class _Rewrapping(Fields):
    """Reads a record part by part and takes the content on the way."""

    def __init__(self, content: Bytes, body: bytes, compress: Compress, *, version: int) -> None:
        super().__init__(body, _WHAT)
        self._content, self._taken, self._compress = memoryview(content).cast("B"), 0, compress
        self._stream = self._content[:0]
        """Content of the last deflate stream."""
        self._tools = _tools(self) if version != VERSION else ()
        self._remade, self._made = 0, memoryview(b"")
        self._keeps = version == VERSION_MORE

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of all parts."""
        for _ in range(MAX_PARTS):
            if not self.left:
                break
            yield from self._part()
        if self.left or self._taken < len(self._content):
            self.refuse("all parts and all content used up", f"{len(self._content) - self._taken} bytes left")

    def _part(self) -> Iterator[bytes]:
        kind = self.byte()
        if kind == Part.RAW:
            yield self.raw(self.number())
        elif kind == Part.COPIED:
            taken = self._take()
            yield from (bytes(taken[at : at + _PIECE]) for at in range(0, len(taken), _PIECE))
        elif kind == Part.DEFLATE:
            yield from self._deflate()
        elif kind == Part.GZIP_CHECK:
            yield gzip_check(self._stream)
        elif kind == Part.ZLIB_CHECK:
            yield zlib_check(self._stream)
        elif kind == Part.MEMBER:
            yield GZIP_HEAD + bytes([self.byte(), UNIX])
            yield from self._deflate()
            yield gzip_check(self._stream)
        elif kind == Part.SLICE:
            yield from self._slice()
        elif kind == Part.REMADE and self._tools:
            yield self._remake()
        elif kind == Part.MORE and self._keeps:
            yield self._some(self._made)
        else:
            self.refuse("a part", kind)

    def _deflate(self) -> Iterator[bytes]:
        compressor = self.raw(native.COMPRESSOR_SIZE)
        self._stream = self._take()
        yield from self._rebuilt(compressor)

    def _slice(self) -> Iterator[bytes]:
        """Yield what is asked for of the bytes of a slice."""
        compressor, bit, context = self.raw(native.COMPRESSOR_SIZE), self.byte(), self.number()
        self._stream = self._take()
        skip, left = self.number(), self.number()
        for piece in self._rebuilt(compressor, context=context, bit=bit):
            taken = piece[skip : skip + left]
            skip, left = max(0, skip - len(piece)), left - len(taken)
            yield taken
        if left:
            self.refuse(f"a slice of {left} bytes more", "its end")

    def _remake(self) -> bytes:
        """Return what is asked for of what a tool makes."""
        number, self._remade = self.byte(), self._remade + 1
        if number >= len(self._tools) or self._remade > MAX_REMADE:
            self.refuse(f"a tool below {len(self._tools)}, at most {MAX_REMADE} times", number)
        self._made = memoryview(b"")
        made = memoryview(self._compress(self._tools[number], self._take()))
        if self._keeps:
            self._made = made
        return self._some(made)

    def _some(self, made: memoryview) -> bytes:
        skip, size = self.number(), self.number()
        some = made[skip : skip + size]
        if len(some) < size:
            self.refuse(f"{size} bytes that a tool makes", len(some))
        return bytes(some)

    def _rebuilt(self, compressor: bytes, **options: int) -> Iterator[bytes]:
        """Yield what comes of the content that was taken last and the blocks that follow."""
        start, size = self.at, self.number()
        try:
            rebuilder = native.Rebuilder(self._stream, compressor, self.raw(size), **options)
            more = True
            while more:
                piece = np.empty(_PIECE, np.uint8)
                count, more = rebuilder.write(piece)
                yield piece[:count].tobytes()
        except ValueError as error:
            raise FormatError(_WHAT, start, "a stream's compressor and blocks", str(error)) from None

    def _take(self) -> memoryview:
        """Take content: the rest for 0, else one byte less than a number says."""
        said, left = self.number(), len(self._content) - self._taken
        size = said - 1 if said else left
        if size > left:
            self.refuse(f"at most {left} bytes of content", size)
        taken = self._content[self._taken : self._taken + size]
        self._taken += len(taken)
        return taken


def gzip_check(content: Bytes) -> bytes:
    """Return what ends a gzip member with this content (RFC 1952)."""
    return zlib.crc32(content).to_bytes(4, "little") + (len(content) & 0xFFFFFFFF).to_bytes(4, "little")


def zlib_check(content: Bytes) -> bytes:
    """Return what ends a zlib stream with this content (RFC 1950)."""
    return zlib.adler32(content).to_bytes(4, "big")
