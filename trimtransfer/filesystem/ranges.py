"""Ranges of bytes or blocks as arrays: int64, shape (n, 2), each row (start, length).

*Merged* ranges ascend, neither touch nor overlap, and none is empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Column: TypeAlias = NDArray[np.int64]
"""int64, shape (n,)."""
Ranges: TypeAlias = NDArray[np.int64]
"""int64, shape (n, 2): start and length."""


def ranges_of(starts: Column, lengths: Column) -> Ranges:
    """Return columns as ranges, in the order given."""
    return np.stack((starts.astype(np.int64), lengths.astype(np.int64)), axis=1).reshape(-1, 2)


def no_ranges() -> Ranges:
    """Return no ranges at all."""
    return np.zeros((0, 2), dtype=np.int64)


def joined(parts: Iterable[Ranges]) -> Ranges:
    """Return all rows of several arrays, one after the other."""
    found = list(parts)
    return np.concatenate(found) if found else no_ranges()


def merged(ranges: Ranges) -> Ranges:
    """Return ranges in any order as merged ranges; overlaps count once."""
    ranges = ranges[ranges[:, 1] > 0]
    if not len(ranges):
        return no_ranges()
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ranges[:, 0] + ranges[:, 1])
    first = np.concatenate(([True], ranges[1:, 0] > ends[:-1]))
    last = np.concatenate((first[1:], [True]))
    starts = ranges[first, 0]
    return ranges_of(starts, ends[last] - starts)


def overlap(ranges: Ranges) -> int | None:
    """Return where two of the ranges, in any order, first overlap; None if they are disjoint."""
    ranges = ranges[ranges[:, 1] > 0]
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ranges[:, 0] + ranges[:, 1])
    wrong = np.flatnonzero(ranges[1:, 0] < ends[:-1])
    return int(ranges[wrong[0] + 1, 0]) if len(wrong) else None


def intersection(a: Ranges, b: Ranges) -> Ranges:
    """Return what two merged lists share, merged."""
    if not len(a) or not len(b):
        return no_ranges()
    borders, depth = _depth(((a, 1), (b, 1)))
    return _spans(borders, depth == 2)


def difference(a: Ranges, b: Ranges) -> Ranges:
    """Return what merged ``a`` has and merged ``b`` has not, merged."""
    if not len(a) or not len(b):
        return a
    borders, depth = _depth(((a, 1), (b, 2)))
    return _spans(borders, depth == 1)


def of_bits(bits: NDArray[np.bool_]) -> Ranges:
    """Return the runs of true values as merged ranges of positions."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], bits, [False])).view(np.int8)))
    return ranges_of(edges[::2], edges[1::2] - edges[::2])


class Cover:
    """Merged ranges to be asked often which parts of them lie where; an answer costs a search and what is found."""

    def __init__(self, ranges: Ranges) -> None:
        self._starts = np.ascontiguousarray(ranges[:, 0])
        self._ends = self._starts + ranges[:, 1]

    def within(self, start: int, length: int) -> Ranges:
        """Return the parts that lie in one range, merged."""
        first = int(self._ends.searchsorted(start, side="right"))
        last = int(self._starts.searchsorted(start + length))
        low = np.maximum(self._starts[first:last], start)
        return ranges_of(low, np.minimum(self._ends[first:last], start + length) - low)


def total(ranges: Ranges) -> int:
    """Return the sum of the lengths."""
    return int(ranges[:, 1].sum())


def _depth(lists: tuple[tuple[Ranges, int], ...]) -> tuple[Column, Column]:
    """Return all borders in order and the sum of the weights of the lists that cover what follows each."""
    borders = np.concatenate([np.concatenate((ranges[:, 0], ranges[:, 0] + ranges[:, 1])) for ranges, _ in lists])
    steps = np.concatenate([np.repeat(np.array((weight, -weight)), len(ranges)) for ranges, weight in lists])
    order = np.argsort(borders, kind="stable")
    return borders[order], np.cumsum(steps[order])


def _spans(borders: Column, wanted: NDArray[np.bool_]) -> Ranges:
    """Return the pieces between borders that are wanted, merged."""
    return merged(ranges_of(borders[:-1], np.where(wanted[:-1], np.diff(borders), 0)))
