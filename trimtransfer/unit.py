"""What a stored unit makes of its base: chunks, one after the other (FORMAT.md, "Delta" and "Wrapped unit").

A unit is told by its first bytes. A *delta* makes them of the base as it is. A *wrapped* unit looks into compressed
files: parts of the base are inflated, a delta makes content of that, and a record makes compressed bytes of the content
again. Where base bytes come from is not known here, and nothing is believed: who makes a unit compares every chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer import codec, delta, native, zstdjobs
from trimtransfer.chunk import Bytes
from trimtransfer.deltaindex import MAX_TARGET
from trimtransfer.errors import FormatError
from trimtransfer.recompress import Compress, Fields, number, record_tools, rewrap
from trimtransfer.tool import Kind, Tool, decompress, is_filter

MAGIC: Final = b"TrimWrap"
VERSION: Final = 1
VERSION_TOOLS: Final = 2
"""Of a unit with spans of what tools made; a record that names tools may be in any."""
VERSION_JOBS: Final = 3
"""Of a unit of more content, or with spans of jobs of zstd frames."""
MAX_CONTENT: Final = 12 << 20
"""Most bytes of content of a wrapped unit: with the columns of their delta they are in memory."""
MAX_INFLATED: Final = 16 << 20
"""Most bytes that the spans of its base give together."""
MAX_CONTENT_JOBS: Final = 20 << 20
MAX_INFLATED_JOBS: Final = 24 << 20
"""The same of a unit with jobs, which have up to 16 MiB of content and 2 MiB before that: who makes units several at a
time makes such a one alone (:func:`is_large`)."""
MAX_CONTEXT: Final = 4 << 20
MAX_DECODED: Final = 80 << 20
"""Bytes of content that are decoded for all spans of jobs together, those counted that lie before."""
_JOB: Final = 4
"""In the place of a kind: jobs."""
MAX_UNKNOWN: Final = 1 << 15
_MAX_SPANS: Final = 65_536
_MAX_BODY: Final = 4 << 20
_HEADER: Final = struct.Struct("<8sHHIII")
_WHAT: Final = "wrapped unit"


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that the base of a wrapped unit's delta consists of: ``pieces`` (start, length) of the chunks' bytes, one
    after the other. As they are; or, with ``blocks``, so many blocks of a deflate stream from bit ``bit`` on, of
    ``size`` bytes, with ``unknown`` bytes before them to which they may refer, and which are taken for zeros; or, with
    a ``kind``, what a tool of that kind made of ``size`` bytes, with a filter ``before`` LZMA2; or, with ``job``, of
    so many blocks of a zstd frame, from a job's start on, the ``size`` bytes behind the first ``skip``: before them lie
    ``context`` and the last ``unknown`` bytes that the spans before gave."""

    pieces: tuple[tuple[int, int], ...]
    blocks: int = 0
    bit: int = 0
    size: int = 0
    unknown: int = 0
    kind: Kind | None = None
    before: int = 0
    job: bool = False
    skip: int = 0
    context: bytes = b""


def is_wrapped(stored: Bytes) -> bool:
    """Tell whether a stored unit is a wrapped one."""
    return bytes(memoryview(stored)[: len(MAGIC)]) == MAGIC


def is_large(stored: Bytes) -> bool:
    """Tell whether a stored unit is one that takes so much memory that it should be made alone."""
    return is_wrapped(stored) and bytes(memoryview(stored)[8:10]) == VERSION_JOBS.to_bytes(2, "little")


def make(stored: Bytes, base: Bytes, *, limit: int, compress: Compress = Tool.compress) -> bytes:
    """Return what a stored unit makes of its base's bytes, at most ``limit`` of them; ``compress`` is what tools do.

    Of another base with the same length, or by a tool of another make, comes something else, or an error: only digests
    tell. Takes any bytes, in time and memory bounded by the length of the two, ``limit``, ``MAX_CONTENT``,
    ``MAX_INFLATED`` and ``tool.MAX_MEMORY``.

    Raises:
        FormatError: it is no unit for a base of this length, makes more, or needs a tool that does not work here.
    """
    if not is_wrapped(stored):
        return delta.decode(stored, base, limit=limit)
    spans, record, inner = _parse(memoryview(stored), memoryview(base).nbytes)
    large = is_large(stored)
    given = inflated(spans, base, large=large)
    content = delta.decode(inner, given, limit=MAX_CONTENT_JOBS if large else MAX_CONTENT)
    del given
    return rewrap(content, record, limit=limit, compress=compress)


def tools_of(stored: Bytes) -> tuple[Tool, ...]:
    """Return the tools that a stored unit needs.

    Raises:
        FormatError: it is no unit, or needs one that is not known here.
    """
    if not is_wrapped(stored):
        return ()
    view = memoryview(stored)
    if len(view) < _HEADER.size:
        raise FormatError(_WHAT, 0, f"a header of {_HEADER.size} bytes", len(view))
    spans, record = _HEADER.unpack_from(view)[-2:]
    return record_tools(view[_HEADER.size + spans :][:record], limit=MAX_TARGET)


def inflated(spans: Sequence[Span], base: Bytes, *, large: bool = False) -> memoryview:
    """Return what spans give of these base bytes, one after the other; ``large``: for a unit with jobs.

    Raises:
        FormatError: they give more than ``MAX_INFLATED`` bytes, or are not in the base as they say.
    """
    most = MAX_INFLATED_JOBS if large else MAX_INFLATED
    view = memoryview(base).cast("B")
    taken = [_taken(span, len(view)) for span in spans]
    if sum(taken) > 2 * len(view):
        raise FormatError(_WHAT, "spans", f"at most {2 * len(view)} bytes of chunks", sum(taken))
    sizes = [span.size if span.blocks or span.kind else size for span, size in zip(spans, taken, strict=True)]
    if sum(sizes) > most:
        raise FormatError(_WHAT, "spans", f"at most {most} bytes", sum(sizes))
    decoded = sum(len(span.context) + span.unknown + span.skip + span.size for span in spans if span.job)
    if decoded > MAX_DECODED:
        raise FormatError(_WHAT, "spans", f"at most {MAX_DECODED} bytes of jobs", decoded)
    found = np.empty(sum(sizes), np.uint8)
    at = 0
    for span, size in zip(spans, sizes, strict=True):
        data = b"".join(view[start : start + length] for start, length in span.pieces)
        found[at : at + size] = _of_job(span, data, found[:at]) if span.job else _content(span, data)
        at += size
    return found.data


def _taken(span: Span, length: int) -> int:
    """Return how many bytes a span takes, and check that its pieces lie in a base of this length."""
    if any(start + size > length for start, size in span.pieces):
        raise FormatError(_WHAT, "spans", f"pieces of {length} bytes", "others")
    return sum(size for _, size in span.pieces)


def _content(span: Span, data: bytes) -> NDArray[np.uint8]:
    if span.blocks:
        return _inflated(span, data)
    if span.kind is not None:
        data = decompress(span.kind, span.before, data, span.size)
        if len(data) != span.size:
            raise FormatError(_WHAT, "spans", f"{span.size} bytes of content", len(data))
    return np.frombuffer(data, np.uint8)


def _of_job(span: Span, data: bytes, given: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if span.unknown > len(given):
        raise FormatError(_WHAT, "spans", f"{span.unknown} bytes before a job", len(given))
    context = span.context + given[len(given) - span.unknown :].tobytes()
    content = zstdjobs.decode(data, span.blocks, span.skip + span.size, context)
    return np.frombuffer(content, np.uint8)[span.skip :]


def _inflated(span: Span, data: bytes) -> NDArray[np.uint8]:
    out = np.zeros(span.unknown + span.size, np.uint8)
    ends, _ = native.inflate_blocks(data, out, bit=span.bit, context=span.unknown, most=span.blocks)
    if len(ends) != span.blocks or int(ends[-1, 1]) != len(out):
        raise FormatError(_WHAT, "spans", f"{span.blocks} blocks of {span.size} bytes", f"{len(ends)} blocks")
    return out[span.unknown :]


def wrap(spans: Sequence[Span], record: bytes, inner: bytes, *, base: int, large: bool = False) -> bytes:
    """Return a wrapped unit for ``base`` bytes: its spans, the record, and the delta between their contents; ``large``:
    one with jobs."""
    version = VERSION_TOOLS if any(span.kind for span in spans) else VERSION
    version = VERSION_JOBS if large else version
    body = codec.compress(b"".join((number(len(spans)), *(_stored(span, version) for span in spans))), 19)
    return b"".join((_HEADER.pack(MAGIC, version, 0, base, len(body), len(record)), body, record, inner))


def _stored(span: Span, version: int) -> bytes:
    kind = bytes([_JOB if span.job else span.kind or 0]) if version != VERSION else b""
    head = kind + number(span.blocks) + number(len(span.pieces))
    pieces = b"".join(number(start) + number(length) for start, length in span.pieces)
    if span.kind is not None:
        return head + pieces + bytes([span.before]) + number(span.size)
    if span.job:
        sizes = number(span.skip) + number(span.size) + number(span.unknown) + number(len(span.context))
        return head + pieces + sizes + span.context
    if not span.blocks:
        return head + pieces
    return head + pieces + bytes([span.bit]) + number(span.size) + number(span.unknown)


def _parse(view: memoryview, base: int) -> tuple[list[Span], memoryview, memoryview]:
    """Return spans, record and delta."""
    if len(view) < _HEADER.size:
        raise FormatError(_WHAT, 0, f"a header of {_HEADER.size} bytes", len(view))
    magic, version, reserved, length, *sizes = _HEADER.unpack_from(view)
    if (magic, reserved) != (MAGIC, 0) or not VERSION <= version <= VERSION_JOBS:
        raise FormatError(_WHAT, 0, f"TrimWrap, version {VERSION} to {VERSION_JOBS}", bytes(view[:12]))
    if length != base:
        raise FormatError(_WHAT, 12, f"a base of {base} bytes", length)
    if _HEADER.size + sum(sizes) > len(view):
        raise FormatError(_WHAT, 16, f"parts of {len(view)} bytes", sizes)
    middle, end = _HEADER.size + sizes[0], _HEADER.size + sum(sizes)
    body = codec.decompress(view[_HEADER.size : middle], _MAX_BODY, _WHAT)
    return list(_spans(Fields(body, _WHAT), version)), view[middle:end], view[end:]


def _spans(fields: Fields, version: int) -> Iterator[Span]:
    count = fields.number()
    if count > _MAX_SPANS:
        fields.refuse(f"at most {_MAX_SPANS} spans", count)
    for _ in range(count):
        yield _span(fields, fields.byte() if version != VERSION else 0, version)
    if fields.left:
        fields.refuse("the end", f"{fields.left} bytes more")


def _span(fields: Fields, kind: int, version: int) -> Span:
    blocks, count = fields.number(), fields.number()
    if count > fields.left // 2:
        fields.refuse("pieces of two bytes at least", count)
    pieces = tuple((fields.number(), fields.number()) for _ in range(count))
    if kind == _JOB and version == VERSION_JOBS:
        return _job_span(fields, pieces, blocks)
    if kind:
        return _made_span(fields, pieces, kind, blocks)
    if not blocks:
        return Span(pieces)
    span = Span(pieces, blocks, fields.byte(), fields.number(), fields.number())
    if span.bit > 7 or blocks > MAX_INFLATED or span.unknown > MAX_UNKNOWN:
        fields.refuse(f"a bit of a byte, at most {MAX_UNKNOWN} unknown bytes", (span.bit, span.unknown))
    return span


def _job_span(fields: Fields, pieces: tuple[tuple[int, int], ...], blocks: int) -> Span:
    skip, size, unknown, before = fields.number(), fields.number(), fields.number(), fields.number()
    if not blocks or not size or unknown + before > MAX_CONTEXT or skip + size > MAX_INFLATED:
        expected = f"blocks of up to {MAX_INFLATED} bytes, at most {MAX_CONTEXT} before them"
        fields.refuse(expected, (blocks, skip, size, unknown, before))
    return Span(pieces, blocks, size=size, unknown=unknown, job=True, skip=skip, context=fields.raw(before))


def _made_span(fields: Fields, pieces: tuple[tuple[int, int], ...], kind: int, blocks: int) -> Span:
    before, size = fields.byte(), fields.number()
    good = before == 0 or (kind == Kind.LZMA2 and is_filter(before))
    if not good or blocks or kind not in (Kind.LZMA2, Kind.ZSTD) or size > MAX_INFLATED:
        fields.refuse(f"what a known kind of tool makes of up to {MAX_INFLATED} bytes", (kind, before, size))
    return Span(pieces, size=size, kind=Kind(kind), before=before)
