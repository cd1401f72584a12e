"""The table of FAT: which clusters are free, and chains of clusters as runs."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.fat.boot import Boot
from trimtransfer.filesystem.ranges import Column, Ranges, of_bits
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "FAT table"
_AT_ONCE: Final = 4 << 20
_MASKS: Final = {12: 0xFFF, 16: 0xFFFF, 32: 0x0FFFFFFF}
_CLEAN_MARKS: Final = {12: 0, 16: 0xC000, 32: 0x0C000000}
"""Bits of the second entry that are set while nobody has the volume mounted, and no disk error was met."""


class AllocationTable:
    """The table that is in use, in memory: an entry of uint32 for each cluster, the first two without meaning."""

    def __init__(self, volume: Volume, boot: Boot) -> None:
        self._volume, self._boot = volume, boot
        count = boot.clusters + 2
        self._next = _decode(self._copy(boot.active, -(-count * boot.bits // 8)), boot.bits)[:count]
        mask = _MASKS[boot.bits]
        self._next &= mask
        self._end = mask - 7
        ends = self._next != np.arange(1, count + 1, dtype=np.uint32)
        ends[-1] = True
        self._breaks: Column = np.flatnonzero(ends)  # where runs of clusters that follow each other end
        self.walked = 0
        """Clusters of the chains followed so far."""

    def _copy(self, number: int, length: int) -> bytearray:
        """Read the first bytes of a copy of the table."""
        found = bytearray()
        start = self._boot.table + number * self._boot.table_length
        while len(found) < length:
            found += self._volume.bytes(WHAT, start + len(found), min(_AT_ONCE, length - len(found)))
        return found

    def doubt(self) -> str:
        """Return why the table says that the volume is not clean, or nothing."""
        marks = _CLEAN_MARKS[self._boot.bits]
        if int(self._next[1]) & marks != marks:
            return "it is mounted, or was not unmounted, or disk errors were met; unmount it, or run chkdsk or fsck.fat"
        length = -(-(self._boot.clusters + 2) * self._boot.bits // 8)
        copies = {bytes(self._copy(number, length)) for number in range(self._boot.compared)}
        return (
            "the copies of its table differ; run chkdsk or fsck.fat"
            if self._boot.compared > 1 and len(copies) > 1
            else ""
        )

    def free(self) -> Ranges:
        """Return the free clusters, merged: first cluster and number."""
        found = of_bits(self._next == 0)
        return found[found[:, 0] >= 2] if not len(found) or found[0, 0] >= 2 else _from_two(found)

    def chain(self, first: int) -> list[tuple[int, int]]:
        """Return the runs (first cluster, number) of a chain.

        Raises:
            FormatError: it leaves the table, meets a free or bad cluster, or all chains followed so far have more
                clusters than there are: it is a circle, or they share clusters.
        """
        runs: list[tuple[int, int]] = []
        at = first
        while True:
            if not 2 <= at < len(self._next):
                raise FormatError(WHAT, f"cluster {first}", f"a chain within {len(self._next)} clusters", at)
            end = int(self._breaks[int(np.searchsorted(self._breaks, at))])
            runs.append((at, end - at + 1))
            self.walked += end - at + 1
            if self.walked > self._boot.clusters:
                raise FormatError(WHAT, f"cluster {first}", "chains that share no cluster", "a circle or shared ones")
            at = int(self._next[end])
            if at >= self._end:
                return runs


def _from_two(found: Ranges) -> Ranges:
    """Leave out the first two entries."""
    ends = found[:, 0] + found[:, 1]
    found[:, 0] = np.maximum(found[:, 0], 2)
    found[:, 1] = ends - found[:, 0]
    return found[found[:, 1] > 0]


def _decode(data: bytearray, bits: int) -> NDArray[np.uint32]:
    """Return the entries of a table as numbers."""
    if bits == 32:
        return np.frombuffer(data, dtype="<u4").astype(np.uint32)
    if bits == 16:
        return np.frombuffer(data, dtype="<u2").astype(np.uint32)
    data += bytes(-len(data) % 3)
    triples = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3).astype(np.uint32)
    first = triples[:, 0] | (triples[:, 1] & 15) << 8
    second = triples[:, 1] >> 4 | triples[:, 2] << 4
    return np.stack((first, second), axis=1).reshape(-1)
