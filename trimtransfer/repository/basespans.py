"""What a unit that looks into compressed files starts from: chunks as they are, blocks and members of streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.deltaindex import BASE, MAX_BASE
from trimtransfer.repository.imagebytes import ImageBytes
from trimtransfer.repository.jobs import BaseRun, job_span
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.streams import CONTEXT, Stream, Streams
from trimtransfer.tool import Kind
from trimtransfer.unit import MAX_DECODED, MAX_INFLATED, MAX_INFLATED_JOBS, Span

_CONTEXTS: Final = 3 << 20
"""Most bytes that are told of what lies before jobs."""


class BaseSpans:
    """Collects what the base of a unit consists of; ``size`` in bytes of what its spans give, ``most`` at most."""

    def __init__(self, chunks: ChunkReader, image: ImageBytes, *, large: bool = False) -> None:
        """Take what reads the chunks of the other version, and its image; ``large``: of a unit with jobs."""
        self.most, self._decodable = MAX_INFLATED_JOBS if large else MAX_INFLATED, MAX_DECODED
        self._chunks, self._image, self.size = chunks, image, 0
        self._records: set[tuple[int, int]] = set()
        self._plain: dict[tuple[int, int], int] = {}
        self._spans: list[tuple[tuple[int, int], list[tuple[int, int, int, int]], Span]] = []
        self._jobs: dict[tuple[int, int], tuple[Streams, BaseRun]] = {}
        self._room = MAX_BASE

    def add_chunks(self, found: Iterator[tuple[int, NDArray[np.int64]]]) -> None:
        """Add chunks as they are, as far as there is room."""
        for region, records in found:
            for record in records.tolist():
                length = self._length(region, record)
                if (region, record) in self._plain or not self._take({(region, record)}):
                    continue
                self._plain[region, record] = length
                self.size += length

    def add_blocks(self, number: int, stream: Stream, first: int, end: int) -> None:
        """Add the content of blocks of a stream, by its number, unless there is no room, or a run of zeros in them."""
        begin, size = int(stream.contents[first]), int(stream.contents[end] - stream.contents[first])
        if stream.framed is None:
            span = Span((), end - first, int(stream.bits[first]) % 8, size, min(begin, CONTEXT))
        else:
            kind, before = stream.framed.kind, stream.framed.option
            span = Span((), size=size, kind=kind, before=before if kind is Kind.LZMA2 else 0)
        self._add(number, stream, first, end, span)

    def add_run(self, streams: Streams, run: BaseRun) -> None:
        """Add the content of blocks of a job of one of these streams, as far as there is room."""
        stream = streams[run.stream]
        begin, before = int(stream.contents[run.first]), run.skip(stream) + run.reach(stream)
        room = min(self.most - self.size, self._decodable - before)
        end = min(run.end, int(np.searchsorted(stream.contents, begin + room, side="right")) - 1)
        if end <= run.first:
            return
        cut = replace(run, end=end)
        span = Span((), end - run.start, size=int(stream.contents[end]) - begin, job=True, skip=run.skip(stream))
        if self._add(run.stream, stream, run.start, end, span):
            self._decodable -= before + span.size
            self._jobs[run.stream, begin] = streams, cut

    def _add(self, number: int, stream: Stream, first: int, end: int, span: Span) -> bool:
        """Add what blocks give as a span, and tell whether that was done."""
        low, high = int(stream.bits[first]) // 8, (int(stream.bits[end]) + 7) // 8
        pieces = [piece for place in stream.places(low, high) for piece in self._image.pieces(*place)]
        if self.size + span.size > self.most or not all(piece.solid for piece in pieces):
            return False
        if not self._take({(one.region, one.record) for one in pieces}):
            return False
        order = number, int(stream.contents[first]) + span.skip
        self._spans.append((order, [(one.region, one.record, one.start, one.length) for one in pieces], span))
        self.size += span.size
        return True

    def finish(self) -> tuple[NDArray[np.void], Bytes, tuple[Span, ...]]:
        """Return the base runs, the bytes of their chunks, and the spans of these."""
        ordered = sorted(self._records)
        content, at = memoryview(bytearray(MAX_BASE - self._room)), 0
        starts = dict[tuple[int, int], int]()
        for region, record in ordered:
            starts[region, record] = at
            at += self._chunks.read(region, [record], content[at:])
        plain = [(starts[record], length) for record, length in self._plain.items()]
        spans = (Span(_joined(plain)),) * bool(plain) + tuple(
            replace(span, pieces=_joined(
                [(starts[region, record] + start, length) for region, record, start, length in pieces]
            ))
            for pieces, span in self._ordered()
        )  # fmt: skip
        return _runs(ordered), content, spans

    def _ordered(self) -> Iterator[tuple[list[tuple[int, int, int, int]], Span]]:
        """Yield spans by stream and place, those of jobs with what lies before them: what the span before gave if that
        goes on there, and what else they refer to, as far as there is room for it."""
        known, before, room = 0, (-1, -1), _CONTEXTS
        for order, pieces, span in sorted(self._spans, key=lambda one: one[0]):
            if not span.job:
                yield pieces, span
                continue
            streams, run = self._jobs[order]
            start = order[1] - span.skip
            made = job_span(streams, run, span, known=known if before == (run.stream, start) else 0)
            if made is not None and len(made.context) <= room:
                room -= len(made.context)
                known, before = span.size, (run.stream, order[1] + span.size)
                yield pieces, made

    def _take(self, records: set[tuple[int, int]]) -> bool:
        """Take records if there is room for them."""
        size = sum(self._length(*record) for record in records - self._records)
        if size > self._room:
            return False
        self._room -= size
        self._records |= records
        return True

    def _length(self, region: int, record: int) -> int:
        return int(self._chunks.region(region)[0].lengths[record])


def _runs(ordered: list[tuple[int, int]]) -> NDArray[np.void]:
    """Return ascending (region, record) as runs of neighbours."""
    rows = np.array(ordered, dtype=np.int64).reshape(-1, 2)
    first = np.flatnonzero(np.concatenate(([True], (np.diff(rows, axis=0) != (0, 1)).any(axis=1))) if len(rows) else [])
    runs = np.zeros(len(first), dtype=BASE)
    runs["region"], runs["record"] = rows[first, 0], rows[first, 1]
    runs["count"] = np.diff(np.append(first, len(rows)))
    return runs


def _joined(pieces: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return pieces (start, length) with neighbours joined."""
    found: list[tuple[int, int]] = []
    for start, length in pieces:
        if found and sum(found[-1]) == start:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((start, length))
    return tuple(found)
