"""Which chunks of a version, or of a host, resemble new content: found by anchors that both have, whatever stores them.

Deltas are made against what is found here. Nothing depends on it but how small they are: no name, no path and no place
is believed, so moved, renamed and rewritten files are found alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.framed import member_starts
from trimtransfer.native import anchors
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.rebuild import parts
from trimtransfer.spill import Rows
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_DENSITY: Final = 8
"""One place in 2^8 is an anchor: twice as many make deltas of a desktop's update no smaller."""
_MOST: Final = 24
"""At most about 2^24 anchors are kept, of 8 bytes each, in a mapped file; they are thinned out for larger versions."""
_SPARSEST: Final = 16
"""But never below one in 2^16 places, which is as few as there can be: above 1 TiB there are more of them."""
_COMMON: Final = 32
"""A key that more chunks have tells nothing: a licence, a table of zeros with a pattern."""
_LEAST: Final = 1.5
"""Votes a chunk needs. One is often chance: a vote is split among all chunks that have the key."""
_GAP: Final = 8
"""So many chunks between two that were found are taken, too: most often they belong to the same file."""
CHUNK: Final = np.dtype([("region", "<u4"), ("record", "<u4"), ("length", "<u4")])
_Scan: TypeAlias = tuple[int, NDArray[np.void], NDArray[np.uint64], NDArray[np.int64]]


class Content(Protocol):
    """Chunks in numbered regions that can be read one region after the other, by several threads."""

    def size(self, index: int) -> int:
        """Return the bytes of a region."""
        ...

    def table(self, index: int) -> Table:
        """Return its table."""
        ...

    def parts(self, index: int, table: Table) -> Iterator[tuple[int, int, bytearray | None]]:
        """Yield its content as :func:`trimtransfer.repository.rebuild.parts` does."""
        ...


class VersionContent:
    """The content of a version."""

    def __init__(self, reader: VersionReader) -> None:
        self._reader, self.table = reader, reader.table
        self.starts, self.zero = reader.manifest.starts, reader.manifest.zero

    def size(self, index: int) -> int:
        """Return the bytes of a region."""
        return int(self._reader.manifest.lengths[index])

    def parts(self, index: int, table: Table) -> Iterator[tuple[int, int, bytearray | None]]:
        """Yield its content."""
        return parts(self._reader, index, table)


class Anchored:
    """An index of the anchors of chunks, which are records of regions. Memory: 12 bytes a chunk."""

    def __init__(self, directory: Path, *, total: int) -> None:
        """``total`` bytes of content will be added; ``directory`` takes temporary files."""
        self.bits = min(_SPARSEST, max(_DENSITY, (max(0, total - 1) >> _MOST).bit_length()))
        self._chunks, self._entries = Rows(CHUNK, directory), Rows(np.dtype("<u8"), directory)

    def add(self, chunks: NDArray[np.void], entries: NDArray[np.uint64]) -> None:
        """Add chunks (dtype ``CHUNK``), by region and record in order, and their anchors, made with ``bits``: each with
        the key above, and the number of the chunk among these below 32 bits."""
        self._entries.append(entries + np.uint64(self._chunks.append(chunks)))

    def finish(self) -> None:
        """Prepare for being asked; nothing can be added any more."""
        self._sorted = self._entries.array()
        self._sorted.sort()
        self._all = self._chunks.array()

    def close(self) -> None:
        """Give the temporary files back."""
        self._chunks.close()
        self._entries.close()

    def find(self, target: Bytes, *, most: int, share: float = 0.0) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield regions and the records of them that resemble ``target`` most, in order, at most ``most`` bytes of
        chunks in all; only those that share so much of the anchors that they have in the mean."""
        numbers, votes = self._votes(target)
        lengths = self._all["length"]
        near = votes * (1 << self.bits) >= share * lengths[numbers]
        numbers, votes = numbers[near], votes[near]
        chosen, room = set[int](), most
        for number in numbers[np.argsort(-votes / lengths[numbers], kind="stable")].tolist():
            room -= int(lengths[number])
            if room < 0:
                break
            chosen.add(number)
        rows = self._all[sorted(chosen | self._between(chosen, room))]
        borders = np.flatnonzero(np.diff(rows["region"].astype(np.int64))) + 1
        for part in np.split(rows, borders) if len(rows) else ():
            yield int(part["region"][0]), part["record"].astype(np.int64)

    def _votes(self, target: Bytes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return chunks that share enough anchors with ``target``, and how many: a shared one counts in parts."""
        keys = np.unique(anchors(target, bits=self.bits)[0]).astype(np.uint64) << np.uint64(32)
        low = np.searchsorted(self._sorted, keys)
        count = np.searchsorted(self._sorted, keys | np.uint64(0xFFFFFFFF), side="right") - low
        use = (count > 0) & (count <= _COMMON)
        low, count = low[use], count[use]
        first = np.cumsum(count) - count
        at = np.arange(int(count.sum())) - np.repeat(first - low, count)
        chunk, number = np.unique(self._sorted[at] & np.uint64(0xFFFFFFFF), return_inverse=True)
        votes = np.bincount(number, weights=np.repeat(1 / count, count), minlength=len(chunk)).astype(np.float64)
        enough = votes >= _LEAST
        return chunk[enough].astype(np.int64), votes[enough]

    def _between(self, chosen: set[int], room: int) -> set[int]:
        """Return chunks that lie between chosen ones of the same region, as far as there is room: first where they are
        few."""
        ordered = np.array(sorted(chosen), dtype=np.int64)
        low, high = ordered[:-1], ordered[1:]
        count, region = high - low - 1, self._all["region"]
        near = np.flatnonzero((count > 0) & (count <= _GAP) & (region[low] == region[high]))
        found = set[int]()
        for gap in near[np.argsort(count[near], kind="stable")].tolist():
            between = slice(int(low[gap]) + 1, int(high[gap]))
            size = int(self._all["length"][between].sum())
            if size <= room:
                room -= size
                found.update(range(between.start, between.stop))
        return found


class Similar(Anchored):
    """The anchors of some regions; of a version also ``starts`` of members of compressed files that may be in them, as
    places in the image.

    Memory: 12 bytes a chunk, 4 MiB of content per worker.
    """

    def __init__(
        self, reader: VersionReader | Content, regions: Sequence[int], directory: Path, *, workers: int, watch: Watch
    ) -> None:
        """Read these regions, in ascending order; ``directory`` takes temporary files.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        self._content: Content = VersionContent(reader) if isinstance(reader, VersionReader) else reader
        self._places = reader.manifest.starts if isinstance(reader, VersionReader) else None
        total = sum(self._content.size(index) for index in regions)
        super().__init__(directory, total=total)
        self._watch = watch
        starts, done = [np.zeros(0, dtype=np.int64)], 0
        watch.report("similar", 0, total)
        for region, chunks, entries, found in self._scanned(regions, workers):
            self.add(chunks, entries)
            starts.append(found)
            done += self._content.size(region)
            watch.report("similar", done, total)
        self.starts = np.concatenate(starts)
        self.finish()

    def _scanned(self, regions: Sequence[int], workers: int) -> Iterator[_Scan]:
        """Yield each region with its chunks, its anchors, and where members may begin."""
        pending: deque[Future[_Scan]] = deque()
        with ThreadPoolExecutor(workers, "anchors") as pool:
            try:
                for index in regions:
                    pending.append(pool.submit(self._scan, index))
                    if len(pending) > 2 * workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for job in pending:
                    job.cancel()

    def _scan(self, index: int) -> _Scan:
        self._watch.check()
        table = self._content.table(index)
        records = np.flatnonzero(~table.zero)
        chunks = np.zeros(len(records), dtype=CHUNK)
        chunks["region"], chunks["record"], chunks["length"] = index, records, table.lengths[records]
        number = np.cumsum(~table.zero) - 1
        found, starts = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
        for first, last, content in self._content.parts(index, table):
            if content is None:
                continue
            keys, places = anchors(content, bits=self.bits)
            ends = np.cumsum(table.lengths[first:last], dtype=np.int64)
            record = first + np.searchsorted(ends, places, side="right")
            solid = ~table.zero[record]  # an anchor that begins in zeros belongs to nothing
            found.append((keys[solid].astype(np.uint64) << np.uint64(32)) | number[record[solid]].astype(np.uint64))
            if self._places is not None:
                starts.append(member_starts(content) + self._places[index] + table.offsets[first])
        return index, chunks, np.unique(np.concatenate(found)), np.concatenate(starts)
