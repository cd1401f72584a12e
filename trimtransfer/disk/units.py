"""Units: which equal parts of a disk hold data, as runs; and the place of each among them. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_RUNS: Final = 1 << 20
"""Runs kept; above that the smallest gaps are filled, which allocates units of zeros and harms nothing else."""


class Units:
    """The units of ``unit`` bytes of a disk of ``size`` bytes that are touched by ranges of bytes.

    ``starts`` and ``lengths`` of the ranges (int64, in order, not overlapping) lie within the disk.
    """

    def __init__(self, size: int, unit: int, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self.size, self.unit = size, unit
        kept = lengths > 0
        self._set(starts[kept] // unit, -(-(starts + lengths)[kept] // unit))

    def _set(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Take runs over, those that touch or overlap as one, and at most ``MAX_RUNS`` of them."""
        apart = np.flatnonzero(starts[1:] > ends[:-1])
        if len(apart) >= MAX_RUNS:
            gaps = (starts[1:] - ends[:-1])[apart]
            apart = np.sort(apart[np.argsort(gaps, kind="stable")[len(gaps) - MAX_RUNS + 1 :]])
        some = len(starts) > 0
        self.starts = starts[np.concatenate(([0], apart + 1))] if some else starts
        self.ends = ends[np.concatenate((apart, [len(ends) - 1]))] if some else ends
        counts = self.ends - self.starts
        self.before = np.cumsum(counts) - counts
        self.total = int(counts.sum())

    def coarse(self, times: int) -> Units:
        """Return the units of ``times`` the size that these lie in."""
        return Units(self.size, self.unit * times, self.starts * self.unit, (self.ends - self.starts) * self.unit)

    def ranks(self, first: int, count: int) -> NDArray[np.int64]:
        """Return for each of ``count`` units from ``first`` on its number among the used ones, -1 if it is unused."""
        found = np.full(count, -1, dtype=np.int64)
        if not self.total:
            return found
        numbers = np.arange(first, first + count, dtype=np.int64)
        run = np.searchsorted(self.starts, numbers, side="right") - 1
        used = (run >= 0) & (numbers < self.ends[run])
        found[used] = (self.before[run] + numbers - self.starts[run])[used]
        return found

    def run_of(self, number: int) -> tuple[int, int]:
        """Return, of a unit, its number among the used ones (-1: unused), and the unit at which the run of used or
        unused units ends that it lies in; a last run of unused ones ends with the disk."""
        run = int(np.searchsorted(self.starts, number, side="right")) - 1
        if run >= 0 and number < int(self.ends[run]):
            return int(self.before[run]) + number - int(self.starts[run]), int(self.ends[run])
        following = run + 1 < len(self.starts)
        return -1, int(self.starts[run + 1]) if following else -(-self.size // self.unit)
