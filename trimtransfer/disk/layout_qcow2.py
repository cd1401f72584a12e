"""Layout of a qcow2 file, version 3: header, reference counts, L1 table, L2 tables, then the used clusters in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import MAX_IMAGE_SIZE
from trimtransfer.disk.layout import PIECE, SECTOR, Identity, place_units
from trimtransfer.disk.qcow2 import COPIED, HEADER, HEADER_3, MAGIC
from trimtransfer.disk.units import Units

CLUSTER: Final = 1 << 16
_ENTRIES: Final = CLUSTER // 8  # of an L1 or L2 cluster, or of the refcount table
_COUNTS: Final = CLUSTER // 2  # of a cluster of 16-bit reference counts


class Qcow2Layout:
    """A qcow2 file for a disk of ``size`` bytes of which the ranges (``starts``, ``lengths``) are not zero.

    Raises:
        ValueError: the format has no disk of this size.
    """

    format = "qcow2"

    def __init__(
        self, size: int, starts: NDArray[np.int64], lengths: NDArray[np.int64], identity: Identity | None = None
    ) -> None:
        if size % SECTOR or size > MAX_IMAGE_SIZE:
            raise ValueError(f"qcow2 has disks of whole sectors, at most {MAX_IMAGE_SIZE:,} bytes, not of {size:,}")
        self.size = size
        self._units = Units(size, CLUSTER, starts, lengths)
        self._tables = self._units.coarse(_ENTRIES)
        self._l1_entries = -(-size // (CLUSTER * _ENTRIES))
        l1 = max(1, -(-self._l1_entries // _ENTRIES))
        fixed = 1 + l1 + self._tables.total + self._units.total
        blocks = table = 0
        while True:  # the counts count themselves, too; both grow until they cover everything
            self._clusters = fixed + blocks + table
            needed = -(-self._clusters // _COUNTS)
            if needed == blocks:
                break
            blocks, table = needed, -(-needed // _ENTRIES)
        self._blocks, self._table = blocks, table
        self._l1 = (1 + table + blocks) * CLUSTER
        self._l2 = self._l1 + l1 * CLUSTER
        self._data = self._l2 + self._tables.total * CLUSTER
        self.file_size = self._clusters * CLUSTER

    def place(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return where a range of the disk lies; see ``Layout``."""
        return place_units(self._units, offset, length, self._data, CLUSTER)

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield header and tables."""
        yield 0, self._header()
        blocks = np.arange(self._blocks, dtype=np.int64)
        yield CLUSTER, ((1 + self._table + blocks) * CLUSTER).astype(">u8").tobytes()
        at, left = (1 + self._table) * CLUSTER, self._clusters
        while left:
            some = min(left, PIECE // 2)
            yield at, np.ones(some, dtype=">u2").tobytes()
            at, left = at + 2 * some, left - some
        ranks = self._tables.ranks(0, self._l1_entries)
        yield self._l1, _entries(ranks, self._l2)
        for number in np.flatnonzero(ranks >= 0).tolist():
            count = min(_ENTRIES, -(-self.size // CLUSTER) - number * _ENTRIES)
            clusters = self._units.ranks(number * _ENTRIES, count)
            yield self._l2 + int(ranks[number]) * CLUSTER, _entries(clusters, self._data)

    def _header(self) -> bytes:
        # No base, no snapshots, no encryption, no features; the table of counts has 16-bit ones (2^4).
        fields = (MAGIC, 3, 0, 0, 16, self.size, 0, self._l1_entries, self._l1, CLUSTER, self._table, 0, 0)
        return HEADER.pack(*fields) + HEADER_3.pack(0, 0, 0, 4, HEADER.size + HEADER_3.size) + bytes(8)


def _entries(ranks: NDArray[np.int64], first: int) -> bytes:
    """Return L1 or L2 entries: used number n lies at ``first`` plus n clusters, and nothing shares it."""
    entries = np.where(ranks >= 0, (first + ranks * CLUSTER).astype(np.uint64) | np.uint64(COPIED), np.uint64(0))
    return entries.astype(">u8").tobytes()
