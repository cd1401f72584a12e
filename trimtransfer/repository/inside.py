"""Looking into compressed files for deltas: what of a unit's chunks lies in compressed streams, and what their content
is like in the other version's.

Two gzip files have nothing alike, their contents have. So the streams of both versions are decoded, those of the base
are searched by anchors as chunks are, with blocks of a stream in the place of chunks, and the rest is a matter of
``unit.py``. Units stay what they are: chunks of a region out of chunks of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.deltaindex import MAX_BASE
from trimtransfer.native import anchors
from trimtransfer.repository.basespans import BaseSpans
from trimtransfer.repository.imagebytes import ImageBytes
from trimtransfer.repository.jobs import BaseRun, Jobs, Wanted, runs_of_jobs
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.similar import CHUNK, Anchored
from trimtransfer.repository.streams import CONTEXT, Stream, Streams
from trimtransfer.repository.takes import Inside, Take
from trimtransfer.repository.toolfinder import Member, ToolFinder, sort_of
from trimtransfer.table import Table
from trimtransfer.unit import MAX_CONTENT, MAX_CONTENT_JOBS
from trimtransfer.wrapped import Slice, compressor_of

_SHRUNK: Final = 2
"""A unit makes so many times as much content as bytes of other chunks."""
_SAMPLE: Final = 1 << 20
"""Bytes of content by which the compressor of a stream is found."""
_PART: Final = 4 << 20
_SHARE: Final = 0.04
"""Blocks that share less of their anchors have nothing in common with content; those that have share 0.1 to 1."""
_BRIDGE: Final = 1 << 20
"""Bytes of content between two blocks that are taken, too: less than this costs nothing but time."""
_PLAIN: Final = 1 << 16
"""Other bytes of a unit that make it worth looking for chunks that resemble them."""
_PIECE_OF: Final = 8
"""A member that only a tool makes whole is taken if at least one of so many bytes of it are wanted: all are made."""


class Place(NamedTuple):
    """Bytes ``low`` to ``high`` of a stream, by its number, at byte ``at`` of what a unit makes."""

    at: int
    stream: int
    low: int
    high: int


class Insides:
    """What of new chunks lies in streams of the target, and where the base's streams resemble it.

    Memory: 12 bytes for each block of the base's streams. Not for several threads at a time.
    """

    def __init__(self, targets: Streams, bases: Streams, base: ChunkReader, plain: Anchored, directory: Path) -> None:
        """Read the content of ``bases``, streams of the version that ``base`` reads; ``plain`` knows its chunks."""
        self._targets, self._bases, self._base, self._plain = targets, bases, base, plain
        self._image, self._compressors = ImageBytes(base), dict[int, bytes]()
        self._tools, self._jobs = ToolFinder(), Jobs(targets)
        self._placed = _placed(targets)
        self._blocks = Anchored(directory, total=bases.size)
        for number in _distinct(bases):
            self._blocks.add(*self._anchors(number, bases[number]))
        self._blocks.finish()

    def close(self) -> None:
        """Give the temporary files back."""
        self._blocks.close()

    def weights(
        self, start: int, table: Table, records: NDArray[np.int64], *, shrunk: float = _SHRUNK
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return how much of a unit each of these records of a region at ``start`` is: its length, or its share of
        content, of which a unit makes ``shrunk`` times as much, if that is more; and which of them begin inside of what
        can only be made whole."""
        lengths = table.lengths[records].astype(np.int64)
        inside, within, ats = (
            np.zeros(len(records)),
            np.zeros(len(records), dtype=np.bool_),
            np.cumsum(lengths) - lengths,
        )
        for row, place in self._pieces(start, table, records):
            stream = self._targets[place.stream]
            if stream.jobs is not None and self._jobs.tool(place.stream) is None:
                continue
            low, high = np.interp((8 * place.low, 8 * place.high), stream.bits, stream.contents)
            inside[row] += float(high - low)
            within[row] |= stream.framed is not None and place.low > 0 and place.at == ats[row]
        return np.maximum(lengths, (inside / shrunk).astype(np.int64)), within

    def jobs(self, start: int, table: Table, records: NDArray[np.int64]) -> Iterator[slice]:
        """Yield which of these records of a region at ``start`` should be a unit each: jobs of large frames."""
        pieces = [(row, place.stream, place.low, place.high) for row, place in self._pieces(start, table, records)]
        last = 0
        for low, high in self._jobs.rows(pieces):
            if high > max(low, last):
                yield slice(max(low, last), high)
                last = high

    def touches(self, start: int, table: Table, records: NDArray[np.int64]) -> bool:
        """Tell whether any of these records of a region at ``start`` lies in a stream."""
        return any(True for _ in self._pieces(start, table, records))

    def find(self, start: int, table: Table, records: NDArray[np.int64], target: Bytes) -> Inside | None:
        """Return how chunks of a region at ``start``, together ``target``, are unwrapped; None if they cannot be.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        takes, content, at = list[Take](), list[Bytes](), 0
        places = list(_merged(self._pieces(start, table, records)))
        most = MAX_CONTENT_JOBS if any(self._jobs.tool(place.stream) for place in places) else MAX_CONTENT
        room = most - len(target) + sum(place.high - place.low for place in places)
        jobs = dict[int, Wanted | None]()
        for place in places:
            if place.at >= at and self._targets[place.stream].jobs is not None:
                made = self._take_jobs(place, places, room, jobs)
            else:
                made = self._take(place, room) if place.at >= at else None
            if made is None:
                room -= place.high - place.low
                continue
            take, inside = made
            takes.append(take)
            content.append(inside)
            room -= len(inside) + place.high - place.low - (take.end - take.start)
            at = take.end
        return self._inside(tuple(takes), content, target) if takes else None

    # ---- the target

    def _pieces(self, start: int, table: Table, records: NDArray[np.int64]) -> Iterator[tuple[int, Place]]:
        """Yield what of records lies in streams, with the record's row, in order."""
        lengths = table.lengths[records].astype(np.int64)
        begins, ats = start + table.offsets[records], np.cumsum(lengths) - lengths
        first = np.maximum(np.searchsorted(self._placed[:, 0], begins, side="right") - 1, 0)
        last = np.searchsorted(self._placed[:, 0], begins + lengths)
        for row in np.flatnonzero(first < last).tolist():
            begin, end, at = int(begins[row]), int(begins[row] + lengths[row]), int(ats[row])
            for place, length, number, offset in self._placed[first[row] : last[row]].tolist():
                low, high = max(begin, place), min(end, place + length)
                if low < high:
                    yield row, Place(at + low - begin, number, offset + low - place, offset + high - place)

    def _take(self, place: Place, room: int) -> tuple[Take, Bytes] | None:
        """Return what is taken of a place, and its content, of at most ``room`` bytes."""
        stream = self._targets[place.stream]
        if stream.framed is not None:
            return self._take_framed(stream, place, room)
        if stream.whole and (place.low, place.high) == (0, stream.size) and stream.contents[-1] <= room:
            body = place.at + stream.head
            made = Take(place.at, place.at + stream.size, b"", body=body, zipped=stream.zipped)
            return made, self._targets.content(stream, 0, int(stream.contents[-1]))
        found = self._slice(stream, place.low, place.high, room)
        compressor = self._compressor(place.stream) if found else b""
        if found is None or not compressor:
            return None
        low, high, by = found
        return Take(place.at + low - place.low, place.at + high - place.low, compressor, by), by.content

    def _take_framed(self, stream: Stream, place: Place, room: int) -> tuple[Take, Bytes] | None:
        """Return the same of what a tool makes: whole, or what of it is wanted if that is enough."""
        assert stream.framed is not None
        low, high, size = max(place.low, stream.head), place.high, int(stream.contents[-1])
        if size > room or (high - low) * _PIECE_OF < stream.size - stream.head:
            return None
        if self._tools.hopeless(sort_of(stream.framed, size)):
            return None
        content = self._targets.content(stream, 0, size)
        member = Member(stream.framed, self._targets.read(stream, stream.head, stream.size), content)
        start, end = place.at + low - place.low, place.at + high - place.low
        return Take(start, end, b"", member=member, skip=low - stream.head), content

    def _take_jobs(
        self, place: Place, places: list[Place], room: int, known: dict[int, Wanted | None]
    ) -> tuple[Take, Bytes] | None:
        """Return the same of jobs; those of a stream are made once for all places of a unit."""
        more = place.stream in known
        if not more:
            those = [one for one in places if one.stream == place.stream]
            low, high = min(one.low for one in those), max(one.high for one in those)
            known[place.stream] = self._jobs.take(place.stream, low, high, room)
        found = known[place.stream]
        if found is None:
            return None
        low, high = max(place.low, found.begin), min(place.high, found.end)
        if low >= high:
            if not more:
                del known[place.stream]  # the next one has some of them
            return None
        start, end = place.at + low - place.low, place.at + high - place.low
        take = Take(start, end, b"", member=found.member, skip=low - found.begin, tool=found.tool, more=more)
        return take, b"" if more else found.member.content

    def _slice(self, stream: Stream, low: int, high: int, room: int) -> tuple[int, int, Slice] | None:
        """Return what of the bytes ``low`` to ``high`` of a stream can be made of whole blocks, and these."""
        bits, contents = stream.bits, stream.contents
        end = int(bits[-1]) // 8 if not stream.whole else (int(bits[-1]) + 7) // 8
        low, high = max(low, stream.head), min(high, end)
        begin = int(np.searchsorted(bits, 8 * low, side="right")) - 1
        until = min(int(np.searchsorted(bits, 8 * high)), len(bits) - 1)
        context = min(CONTEXT, int(contents[begin]))
        origin = int(contents[begin]) - context
        fits = int(np.searchsorted(contents, origin + room, side="right")) - 1
        if fits < until:
            until, high = fits, min(high, int(bits[max(0, fits)]) // 8)
        if until <= begin or high <= low:
            return None
        data = self._targets.read(stream, int(bits[begin]) // 8, (int(bits[until]) + 7) // 8)
        content = self._targets.content(stream, origin, int(contents[until]))
        empty = (contents[begin + 1 : until + 1] == contents[begin:until]) & (stream.types[begin:until] < 2)
        flushes = np.unique(contents[begin + 1 : until + 1][empty] - origin)
        flushes = flushes[flushes > context].astype(np.uint64)
        skip = low - int(bits[begin]) // 8
        return low, high, Slice(data, int(bits[begin]) % 8, until - begin, content, context, flushes, skip)

    def _compressor(self, number: int) -> bytes:
        """Return the compressor of a stream of the target, nothing if none explains it."""
        if number not in self._compressors:
            stream = self._targets[number]
            found = self._slice(stream, stream.head, stream.size, _SAMPLE)
            found = found or self._slice(stream, stream.head, stream.size, MAX_CONTENT)
            self._compressors[number] = (compressor_of(found[2]) if found else None) or b""
        return self._compressors[number]

    # ---- the base

    def _anchors(self, number: int, stream: Stream) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
        """Return the blocks of a stream of the base as chunks, and their anchors."""
        chunks = np.zeros(len(stream.types), dtype=CHUNK)
        chunks["region"], chunks["record"], chunks["length"] = number, np.arange(len(chunks)), np.diff(stream.contents)
        found = [np.zeros(0, dtype=np.uint64)]
        size = int(stream.contents[-1])
        for at in range(0, size, _PART):
            part = self._bases.content(stream, at, min(at + _PART, size))
            keys, places = anchors(part, bits=self._blocks.bits)
            block = np.searchsorted(stream.contents, places.astype(np.int64) + at, side="right") - 1
            found.append(keys.astype(np.uint64) << np.uint64(32) | block.astype(np.uint64))
        return chunks, np.unique(np.concatenate(found))

    def _inside(self, takes: tuple[Take, ...], content: list[Bytes], target: Bytes) -> Inside:
        """Return the takes with a base that resembles their content, and what else there is."""
        rest, whole = _rest(target, takes), b"".join(content)
        large = any(take.tool for take in takes)
        base, runs = BaseSpans(self._base, self._image, large=large), list[BaseRun]()
        if len(rest) >= _PLAIN:
            base.add_chunks(self._plain.find(rest, most=MAX_BASE // 2))
        for number, blocks in self._blocks.find(whole, most=base.most - base.size, share=_SHARE):
            stream = self._bases[number]
            if stream.jobs is not None:
                runs += runs_of_jobs(number, stream, blocks) if large else ()
                continue
            for first, end in _runs_of_blocks(stream.contents, blocks):
                base.add_blocks(number, stream, first, end)
        for run in sorted(runs, key=lambda run: run.first - run.end):
            base.add_run(self._bases, run)
        if base.size < len(whole) // 4:
            base.add_chunks(self._plain.find(whole, most=min(MAX_BASE // 2, base.most - base.size)))
        return Inside(takes, *base.finish(), self._tools)


def _runs_of_blocks(contents: NDArray[np.int64], blocks: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield runs (first, end) of blocks of a stream that make some blocks well, those between two that are near, too.

    What the first block of a run refers to is not known, and neither is what refers to that; so one more is taken
    before it, or all if they are few.
    """
    gaps = contents[blocks[1:]] - contents[blocks[:-1] + 1]
    end = 0
    for run in np.split(blocks, np.flatnonzero(gaps > _BRIDGE) + 1):
        first = max(end, int(run[0]) - 1) if contents[run[0]] > _BRIDGE else end
        end = int(run[-1]) + 1
        yield first, end


def _placed(streams: Streams) -> NDArray[np.int64]:
    """Return where streams lie (place in the image, length, number, offset in it; (n, 4)), by place."""
    rows = [np.zeros((0, 4), dtype=np.int64)]
    for number in range(len(streams)):
        extents = streams[number].extents
        extents = extents[extents[:, 0] < streams[number].size]
        lengths = np.minimum(extents[:, 2], streams[number].size - extents[:, 0])
        rows.append(np.stack((extents[:, 1], lengths, np.full(len(extents), number), extents[:, 0]), axis=1))
    joined = np.concatenate(rows)
    return joined[np.argsort(joined[:, 0], kind="stable")]


def _distinct(streams: Streams) -> Iterator[int]:
    """Yield the numbers of streams, but of those that seem to be equal only the first: many packages have a changelog
    in common, whose anchors must not count as common ones."""
    known = set[tuple[bytes, int]]()
    for number in range(len(streams)):
        key = streams[number].key, int(streams[number].bits[-1]) - int(streams[number].bits[0])
        if not key[0] or key not in known:
            known.add(key)
            yield number


def _merged(pieces: Iterator[tuple[int, Place]]) -> Iterator[Place]:
    """Yield places with those joined that go on in both, the unit's bytes and the stream."""
    last: Place | None = None
    for _, place in pieces:
        if last is not None and (place.stream, place.low, place.at - place.low) == (
            last.stream, last.high, last.at - last.low,
        ):  # fmt: skip
            last = last._replace(high=place.high)
            continue
        if last is not None:
            yield last
        last = place
    if last is not None:
        yield last


def _rest(target: Bytes, takes: tuple[Take, ...]) -> Bytes:
    """Return what of a unit's bytes is not taken out of it."""
    view, ends = memoryview(target), [0, *(take.end for take in takes)]
    starts = [*(take.start for take in takes), len(view)]
    return b"".join(view[end:start] for end, start in zip(ends, starts, strict=True))
