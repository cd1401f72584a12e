"""Extents: disjoint pieces of an image, in order, each with the position in a file where its bytes lie.

Pure. Used for "which parts are safely written" by both ways of writing: a journal's extents lie at their own offset, a
redo file's where its records are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Pieces ``[starts, ends)`` of an image, disjoint and ascending; ``positions`` is where each begins in a file.

    All three int64, of one shape (n,), in bytes.
    """

    starts: Offsets
    ends: Offsets
    positions: Offsets

    @classmethod
    def of(cls, offsets: Offsets, lengths: Offsets, positions: Offsets | None = None) -> Extents:
        """Build from pieces in any order; where pieces overlap, the one given last counts.

        Pieces that follow each other both in the image and in the file become one.
        """
        offsets, lengths = offsets.astype(np.int64), lengths.astype(np.int64)
        positions = offsets if positions is None else positions.astype(np.int64)
        filled = lengths > 0
        offsets, lengths, positions = offsets[filled], lengths[filled], positions[filled]
        order = np.argsort(offsets, kind="stable")
        starts, ends = offsets[order], (offsets + lengths)[order]
        if len(starts) and (starts[1:] < ends[:-1]).any():
            return _painted(offsets, offsets + lengths, positions)
        return _joined(starts, ends, positions[order])

    @classmethod
    def none(cls) -> Extents:
        """Return no extents."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return int((self.ends - self.starts).sum())

    def locate(self, offsets: Offsets, lengths: NDArray[np.uint32] | Offsets) -> Offsets:
        """Return the position of each given piece that lies within one extent, -1 for each other (int64)."""
        if not len(self.starts):
            return np.full(len(offsets), -1, dtype=np.int64)
        at = np.searchsorted(self.starts, offsets, side="right") - 1
        known = np.maximum(at, 0)
        inside = (at >= 0) & (offsets + lengths.astype(np.int64) <= self.ends[known])
        return np.where(inside, self.positions[known] + (offsets - self.starts[known]), -1)

    def overlapping(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (offset within the range, length, position) of the parts of a range that lie in extents."""
        first = int(np.searchsorted(self.ends, offset, side="right"))
        last = int(np.searchsorted(self.starts, offset + length, side="left"))
        for number in range(first, last):
            start, end = max(offset, int(self.starts[number])), min(offset + length, int(self.ends[number]))
            yield start - offset, end - start, int(self.positions[number]) + start - int(self.starts[number])

    def covers(self, offsets: Offsets, lengths: NDArray[np.uint32] | Offsets) -> NDArray[np.bool_]:
        """Return which of the given pieces lie wholly within the extents, be it several neighbouring ones (bool)."""
        if not len(self.starts):
            return np.zeros(len(offsets), dtype=np.bool_)
        joint = np.concatenate(([True], self.starts[1:] != self.ends[:-1]))
        starts = self.starts[joint]
        ends = self.ends[np.concatenate((joint[1:], [True]))]
        at = np.searchsorted(starts, offsets, side="right") - 1
        return (at >= 0) & (offsets + lengths.astype(np.int64) <= ends[np.maximum(at, 0)])


def _joined(starts: Offsets, ends: Offsets, positions: Offsets) -> Extents:
    """Join neighbours of sorted disjoint pieces."""
    if not len(starts):
        return Extents(starts, ends, positions)
    length = ends - starts
    first = np.ones(len(starts), dtype=np.bool_)
    first[1:] = (starts[1:] != ends[:-1]) | (positions[1:] != positions[:-1] + length[:-1])
    last = np.concatenate((first[1:], [True]))
    return Extents(starts[first], ends[last], positions[first])


def _painted(starts: Offsets, ends: Offsets, positions: Offsets) -> Extents:
    """Resolve overlaps: the last piece that covers an elementary interval gives its position.

    Rare (a write repeated after a kill), so a sweep with a heap is fast enough.
    """
    import heapq

    borders = np.unique(np.concatenate((starts, ends)))
    order = np.argsort(starts, kind="stable").tolist()
    open_pieces: list[tuple[int, int]] = []  # (-number, end): the last given piece on top
    kept: list[tuple[int, int, int]] = []
    following = 0
    for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        while following < len(order) and starts[order[following]] <= low:
            number = order[following]
            heapq.heappush(open_pieces, (-number, int(ends[number])))
            following += 1
        while open_pieces and open_pieces[0][1] <= low:
            heapq.heappop(open_pieces)
        if open_pieces:
            number = -open_pieces[0][0]
            kept.append((low, high, int(positions[number]) + low - int(starts[number])))
    columns = np.array(kept, dtype=np.int64).reshape(-1, 3)
    return _joined(columns[:, 0], columns[:, 1], columns[:, 2])
