"""Layout of a dynamic VHD: footer copy, header, block table, the used blocks in order, footer.

Each block's data lies on a border of 4 KiB, its bitmap in the sector before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.disk.layout import PIECE, SECTOR, Identity, place_units
from trimtransfer.disk.units import Units
from trimtransfer.disk.vhd import COOKIE, DYNAMIC, FOOTER, MAX_SIZE, SPARSE, SPARSE_COOKIE, UNUSED, checksum

BLOCK: Final = 2 << 20
_ALIGN: Final = 4096
_STRIDE: Final = BLOCK + _ALIGN
_TABLE: Final = FOOTER.size + SPARSE.size
_NONE: Final = (1 << 64) - 1
_CREATOR: Final = (b"win ", 0xA0000, b"Wi2k")
"""The program named here decides for others whether the size or the geometry counts; for this one it is the size."""
_EPOCH: Final = 946_684_800  # VHD counts seconds from 2000-01-01


class VhdLayout:
    """A dynamic VHD for a disk of ``size`` bytes of which the ranges (``starts``, ``lengths``) are not zero.

    Raises:
        ValueError: the format has no disk of this size.
    """

    format = "vhd"

    def __init__(self, size: int, starts: NDArray[np.int64], lengths: NDArray[np.int64], identity: Identity) -> None:
        if size % SECTOR or not 0 < size <= MAX_SIZE:
            raise ValueError(f"VHD has disks of whole sectors, at most {MAX_SIZE:,} bytes, not of {size:,}")
        self.size, self._identity = size, identity
        self._units = Units(size, BLOCK, starts, lengths)
        self._blocks = -(-size // BLOCK)
        self._data = -(-(_TABLE + 4 * self._blocks + SECTOR) // _ALIGN) * _ALIGN
        used = self._units.total
        self._end = self._data + (used - 1) * _STRIDE + BLOCK if used else self._data
        self.file_size = self._end + FOOTER.size

    def place(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return where a range of the disk lies; see ``Layout``."""
        return place_units(self._units, offset, length, self._data, _STRIDE)

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield footers, header, table and bitmaps."""
        footer = self._footer()
        yield 0, footer
        yield FOOTER.size, self._header()
        for first in range(0, self._blocks, PIECE // 4):
            ranks = self._units.ranks(first, min(PIECE // 4, self._blocks - first))
            entries = np.where(ranks >= 0, (self._data - SECTOR + ranks * _STRIDE) // SECTOR, UNUSED)
            yield _TABLE + 4 * first, entries.astype(">u4").tobytes()
        padding = -4 * self._blocks % SECTOR
        yield _TABLE + 4 * self._blocks, b"\xff" * padding
        for number in range(self._units.total):
            yield self._data - SECTOR + number * _STRIDE, b"\xff" * SECTOR
        yield self._end, footer

    def _footer(self) -> bytes:
        time = max(0, self._identity.created - _EPOCH) & 0xFFFF_FFFF
        fields = [COOKIE, 2, 0x10000, FOOTER.size, time, *_CREATOR, self.size, self.size, *geometry(self.size)]
        fields += [DYNAMIC, 0, self._identity.unique, 0]
        fields[14] = checksum(FOOTER.pack(*fields), 64)
        return FOOTER.pack(*fields)

    def _header(self) -> bytes:
        fields = [SPARSE_COOKIE, _NONE, _TABLE, 0x10000, self._blocks, BLOCK, 0, bytes(16), 0, 0, b"", b""]
        fields[6] = checksum(SPARSE.pack(*fields), 36)
        return SPARSE.pack(*fields)


def geometry(size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track as the specification's appendix computes them."""
    sectors = min(size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track, tracks = 17, sectors // 17
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        per_track, heads, tracks = 31, 16, sectors // 31
    if tracks >= heads * 1024:
        per_track, heads, tracks = 63, 16, sectors // 63
    return tracks // heads, heads, per_track
