"""The distinct chunks of a version while it is published: found by digest, each with where it is stored.

Two chunks are the same if the first sixteen bytes of their digests are: forging that takes 2^64 work and yields a
version that clients refuse, never a wrong image. Memory: columns beyond 4 MiB lie in mapped temporary files, sorted
in buckets of bounded size, so that an image of any size has its inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.location import FRAME
from trimtransfer.spill import Rows, large_array, scatter
from trimtransfer.table import Table

NOWHERE: Final = 0xFFFFFFFF
"""Pack number of a chunk that is not stored yet."""
IN_PARENT, AGAIN = 1, 2
"""Marks of a chunk: the parent version has it; it is stored again although a known pack has it."""
_BUCKET: Final = 1 << 20
"""Rows sorted at a time: 28 MiB and as much again for the order."""
_ROW: Final = np.dtype([("prefix", "<u8"), ("rest", "<u8"), ("region", "<u4"), ("record", "<u4"), ("length", "<u4")])

Tables: TypeAlias = Callable[[], Iterable[tuple[int, Table]]]
"""Yields (region number, table) of all regions that are not all zero, in order; called more than once."""


class Inventory:
    """The distinct chunks of a version, sorted by digest.

    Columns, one element per chunk: ``length``; ``region`` and ``record`` of its first occurrence; ``marks``; and where
    it is stored: ``pack`` (number, or ``NOWHERE``), ``frame`` (number in ``frames``), ``start`` in the frame's content.
    Of chunks marked ``IN_PARENT``, ``parent_region`` and ``parent_record`` are where the parent's tables have it.
    """

    def __init__(self, tables: Tables, directory: Path) -> None:
        self._directory = directory
        self.occurrences = 0
        """Chunk records of the version, repetitions included."""
        self.occurrence_bytes = 0
        rows, ends = self._gather(tables)
        kept = [_sort(rows[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self._size = sum(kept)
        self._prefix = self._column("<u8")
        self._rest = self._column("<u8")
        self.length = self._column("<u4")
        self.region = self._column("<u4")
        self.record = self._column("<u4")
        self.pack = self._column("<u4")
        self.frame = self._column("<u4")
        self.start = self._column("<u4")
        self.marks = self._column("u1")
        self.parent_region = self._column("<u4")
        self.parent_record = self._column("<u4")
        self.frames = Rows(FRAME, directory)
        self._fill(rows, zip([0, *ends[:-1]], kept, strict=True))

    def __len__(self) -> int:
        return self._size

    def find(self, table: Table) -> NDArray[np.int64]:
        """Return the number here of each of the table's records; -1 for zero runs and unknown chunks."""
        prefix, rest = _keys(table)
        found = np.full(len(table), -1, dtype=np.int64)
        if not self._size:
            return found
        at = np.searchsorted(self._prefix, prefix)
        candidates = np.flatnonzero(~table.zero)
        while len(candidates):  # one turn; more only for digests that share eight bytes and differ after them
            candidates = candidates[at[candidates] < self._size]
            candidates = candidates[self._prefix[at[candidates]] == prefix[candidates]]
            equal = self._rest[at[candidates]] == rest[candidates]
            found[candidates[equal]] = at[candidates[equal]]
            candidates = candidates[~equal]
            at[candidates] += 1
        return found

    def missing_regions(self) -> NDArray[np.int64]:
        """Return the numbers of the regions where chunks occur first that are stored nowhere yet, in order."""
        found = [np.zeros(0, dtype=np.uint32)]
        for part in self.slices():
            found.append(np.unique(self.region[part][self.pack[part] == NOWHERE]))
        return np.unique(np.concatenate(found)).astype(np.int64)

    def slices(self) -> Iterator[slice]:
        """Yield slices that cover all chunks, each of bounded size."""
        for start in range(0, self._size, _BUCKET):
            yield slice(start, min(start + _BUCKET, self._size))

    def close(self) -> None:
        """Give the temporary files back."""
        self.frames.close()

    def _column(self, dtype: str) -> NDArray[Any]:
        return large_array(self._size, dtype, self._directory)

    def _gather(self, tables: Tables) -> tuple[NDArray[Any], list[int]]:
        """Return a row for every chunk record, in buckets by digest, and where the buckets end.

        Two readings: the first counts, so that the second can put every row into its bucket's place.
        """
        counts = np.zeros(1 << 16, dtype=np.int64)
        for _, table in tables():
            self.occurrence_bytes += int(table.lengths[~table.zero].sum(dtype=np.int64))
            counts += np.bincount((_keys(table)[0] >> np.uint64(48))[~table.zero].astype(np.int64), minlength=1 << 16)
        self.occurrences = int(counts.sum())
        bits = min(16, max(0, (self.occurrences // _BUCKET).bit_length()))
        sizes = counts.reshape(1 << bits, -1).sum(axis=1)
        ends = np.cumsum(sizes)
        rows = large_array(self.occurrences, _ROW, self._directory)
        following = ends - sizes  # where each bucket's next row goes
        for region, table in tables():
            new = _rows(region, table)
            bucket = new["prefix"] >> np.uint64(63 - bits) >> np.uint64(1)
            scatter(new, bucket.astype(np.int64), following, rows)
        return rows, ends.tolist()

    def _fill(self, rows: NDArray[Any], parts: Iterable[tuple[int, int]]) -> None:
        at = 0
        for start, count in parts:
            part, place = rows[start : start + count], slice(at, at + count)
            self._prefix[place], self._rest[place] = part["prefix"], part["rest"]
            self.length[place], self.region[place], self.record[place] = part["length"], part["region"], part["record"]
            self.pack[place] = NOWHERE
            at += count


def _keys(table: Table) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the first and second eight bytes of each digest as numbers."""
    halves = np.ascontiguousarray(table.digests[:, :16]).view("<u8")
    return halves[:, 0].copy(), halves[:, 1].copy()


def _rows(region: int, table: Table) -> NDArray[Any]:
    """Return the rows of one region's chunk records, in record order."""
    record = np.flatnonzero(~table.zero)
    prefix, rest = _keys(table)
    rows = np.empty(len(record), dtype=_ROW)
    rows["prefix"], rows["rest"] = prefix[record], rest[record]
    rows["region"], rows["record"], rows["length"] = region, record, table.lengths[record]
    return rows


def _sort(rows: NDArray[Any]) -> int:
    """Sort a bucket by digest and keep each digest's first row, at the front; return how many these are.

    Rows came in image order and the sort is stable, so the first row is the first occurrence.
    """
    ordered = rows[np.lexsort((rows["rest"], rows["prefix"]))]
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = (ordered["prefix"][1:] != ordered["prefix"][:-1]) | (ordered["rest"][1:] != ordered["rest"][:-1])
    kept = int(np.count_nonzero(first))
    rows[:kept] = ordered[first]
    return kept
