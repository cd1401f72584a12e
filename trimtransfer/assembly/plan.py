"""Planning: the records of the regions at hand, which of them are equal or in place, and what is copied in one piece.

Pure, vectorised over records. A window is some regions' records side by side; planning it takes arrays and returns
arrays, so that 30,000 chunks cost milliseconds. Nothing here is trusted later: whoever executes a plan verifies every
chunk, and a source that turns out wrong only moves its chunks to the fetch list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.table import Table

GAP: Final = 16 << 10
"""Neighbours closer than this share a request: a request's headers and round trip cost more than these bytes."""
MAX_RANGE: Final = 4 << 20
RUN_BYTES: Final = 1 << 20
"""Local copies are made in pieces of about this size."""

UNASSIGNED, ZERO, PLACED, SELF, FETCH, SEEDS = -1, 0, 1, 2, 3, 4
"""Sources of a record: none yet; zeros; right at its place already; another place of the output; a pack; the first seed
(the next ones follow)."""

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The records of some regions, one after the other.

    ``regions`` are the regions' numbers and ``first`` each one's first record (and, last, the number of records);
    ``offsets`` are absolute in the image, in bytes. Arrays of shape (records,), ``digests`` (records, 32).
    """

    regions: Numbers
    first: Numbers
    offsets: Numbers
    lengths: NDArray[np.uint32]
    zero: Mask
    digests: NDArray[np.uint8]
    prefixes: NDArray[np.uint64]

    @classmethod
    def of(cls, regions: Sequence[int], starts: Sequence[int], tables: Sequence[Table]) -> Window:
        """Put tables side by side; ``starts`` are the regions' absolute starts."""
        counts = np.array([len(table) for table in tables], dtype=np.int64)
        return cls(
            np.array(regions, dtype=np.int64),
            np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts))),
            np.concatenate([table.offsets + start for start, table in zip(starts, tables, strict=True)]),
            np.concatenate([table.lengths for table in tables]),
            np.concatenate([table.zero for table in tables]),
            np.concatenate([table.digests for table in tables]),
            np.concatenate([table.prefixes for table in tables]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def region_rows(self, records: Numbers) -> Numbers:
        """Return for each record the row (not the number) of its region."""
        return np.searchsorted(self.first, records, side="right") - 1


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Equal chunks of a window: group g is ``order[starts[g]:starts[g + 1]]``, its lowest record, the leader, first."""

    order: Numbers
    starts: Numbers
    leaders: Numbers

    @classmethod
    def of(cls, window: Window, records: Numbers) -> Groups:
        """Group these records (ascending, chunks only) by digest.

        Sorted by prefix; a group ends where the whole digest differs, so different chunks never share one, whatever
        their prefixes. (Prefixes made to collide may split a group: then its chunk is fetched twice.)
        """
        order = records[np.argsort(window.prefixes[records], kind="stable")]
        digests = window.digests[order]
        begins = np.ones(len(order), dtype=np.bool_)
        begins[1:] = (digests[1:] != digests[:-1]).any(axis=1)
        first = np.flatnonzero(begins)
        return cls(order, np.append(first, len(order)).astype(np.int64), order[first])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> Numbers:
        """Records of each group."""
        return np.diff(self.starts)

    def numbers(self, records: int) -> Numbers:
        """Return the group of each of the window's ``records`` records, -1 for those in none."""
        numbers = np.full(records, -1, dtype=np.int64)
        numbers[self.order] = np.repeat(np.arange(len(self), dtype=np.int64), self.sizes)
        return numbers

    def any(self, mask: Mask) -> Mask:
        """Return for each group whether ``mask`` (one per record of the window) holds for a member."""
        if not len(self):
            return np.zeros(0, dtype=np.bool_)
        found: Mask = np.logical_or.reduceat(mask[self.order], self.starts[:-1])
        return found

    def spread(self, values: NDArray[np.int64]) -> Numbers:
        """Return ``values`` (one per group) for each record of ``order``."""
        return np.repeat(values, self.sizes)


def same_place(window: Window, row: int, start: int, old: Table) -> Mask:
    """Return which records of the window's region ``row`` the table ``old`` of the same ``start`` has at their place.

    A zero record counts if it lies within one zero run of ``old``; a chunk if offset, length and digest are equal.
    """
    low, high = int(window.first[row]), int(window.first[row + 1])
    offsets = window.offsets[low:high] - start
    lengths = window.lengths[low:high].astype(np.int64)
    old_offsets = old.offsets
    at = np.searchsorted(old_offsets, offsets, side="right") - 1
    ends = old_offsets[at] + old.lengths[at].astype(np.int64)
    same: Mask = (old_offsets[at] == offsets) & (old.lengths[at] == lengths) & ~old.zero[at] & ~window.zero[low:high]
    candidates = np.flatnonzero(same)
    same[candidates] = (old.digests[at[candidates]] == window.digests[low:high][candidates]).all(axis=1)
    same |= window.zero[low:high] & old.zero[at] & (offsets + lengths <= ends)
    return same


class Run(NamedTuple):
    """Neighbouring records ``first`` to ``last`` (exclusive): absolute ``offset`` and ``length`` in bytes."""

    first: int
    last: int
    offset: int
    length: int


def runs(window: Window, chosen: Mask, *, limit: int = RUN_BYTES) -> list[Run]:
    """Return the chosen records as runs of neighbours of about ``limit`` bytes (at most one chunk more)."""
    records = np.flatnonzero(chosen)
    if not len(records):
        return []
    starts = window.offsets[records]
    ends = starts + window.lengths[records]
    begins = np.ones(len(records), dtype=np.bool_)
    begins[1:] = (records[1:] != records[:-1] + 1) | (starts[1:] != ends[:-1])
    origin = starts[np.maximum.accumulate(np.where(begins, np.arange(len(records)), 0))]
    piece = (starts - origin) // limit
    begins[1:] |= piece[1:] != piece[:-1]
    low = np.flatnonzero(begins)
    high = np.append(low[1:], len(records)) - 1
    columns = (records[low], records[high] + 1, starts[low], ends[high] - starts[low])
    return [Run(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


class Piece(NamedTuple):
    """A coalesced request: items ``first`` to ``last`` (exclusive) lie in bytes ``start`` to ``end``."""

    first: int
    last: int
    start: int
    end: int


def coalesce(starts: Numbers, lengths: Numbers, *, gap: int = GAP, limit: int = MAX_RANGE) -> list[Piece]:
    """Return requests for the items (sorted by start) in which neighbours over gaps up to ``gap`` share one.

    A request is at most ``limit`` bytes long unless one item is longer.
    """
    pieces: list[Piece] = []
    for item, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        end = start + length
        if pieces:
            last = pieces[-1]
            if start - last.end <= gap and end - last.start <= limit:
                pieces[-1] = Piece(last.first, item + 1, last.start, max(last.end, end))
                continue
        pieces.append(Piece(item, item + 1, start, end))
    return pieces
