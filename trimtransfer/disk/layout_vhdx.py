"""Layout of a dynamic VHDX: identifier, headers and region tables in the first MiB, an empty log, metadata, block
table, then the used blocks in order."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import MAX_IMAGE_SIZE
from trimtransfer.disk import vhdx
from trimtransfer.disk.crc32c import crc32c
from trimtransfer.disk.layout import PIECE, SECTOR, Identity, place_units
from trimtransfer.disk.units import Units
from trimtransfer.disk.vhdx import MIB

_LEAST_BLOCK: Final = 2 * MIB
_MOST_BLOCKS: Final = 1 << 21
"""Blocks get larger rather than more than this: 16 MiB of table."""
_LOG, _METADATA, _BAT = MIB, 2 * MIB, 3 * MIB
_ITEMS: Final = 64 << 10  # where items begin in the metadata region
_REQUIRED, _OF_DISK = 4, 2
_CREATOR: Final = "Trim Transfer"


class VhdxLayout:
    """A dynamic VHDX for a disk of ``size`` bytes of which the ranges (``starts``, ``lengths``) are not zero.

    Raises:
        ValueError: the format has no disk of this size.
    """

    format = "vhdx"

    def __init__(self, size: int, starts: NDArray[np.int64], lengths: NDArray[np.int64], identity: Identity) -> None:
        if size % SECTOR or not 0 < size <= MAX_IMAGE_SIZE:
            raise ValueError(f"VHDX has disks of whole sectors, at most {MAX_IMAGE_SIZE:,} bytes, not of {size:,}")
        self.size, self._identity = size, identity
        self._block = _LEAST_BLOCK
        while -(-size // self._block) > _MOST_BLOCKS:
            self._block *= 2
        self._units = Units(size, self._block, starts, lengths)
        self._blocks = -(-size // self._block)
        self._ratio = (SECTOR << 23) // self._block
        self._slots = self._blocks + (self._blocks - 1) // self._ratio
        self._bat_size = -(-8 * self._slots // MIB) * MIB
        self._data = _BAT + self._bat_size
        self.file_size = self._data + self._units.total * self._block

    def place(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return where a range of the disk lies; see ``Layout``."""
        return place_units(self._units, offset, length, self._data, self._block)

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield headers and tables."""
        yield 0, vhdx.IDENTIFIER + _CREATOR.encode("utf-16-le")
        for sequence, at in enumerate(vhdx.HEADER_OFFSETS):
            yield at, self._header(sequence)
        regions = self._regions()
        for at in vhdx.REGION_OFFSETS:
            yield at, regions
        yield _METADATA, self._metadata_region()
        for first in range(0, self._blocks, PIECE // 8):
            count = min(PIECE // 8, self._blocks - first)
            yield from self._table(first, count)

    def _id(self, purpose: str) -> bytes:
        """Return one of several unique ids that come from the one given (RFC 9562, version 8)."""
        digest = bytearray(sha256(self._identity.unique + purpose.encode()).digest()[:16])
        digest[7], digest[8] = digest[7] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
        return bytes(digest)

    def _header(self, sequence: int) -> bytes:
        ids = (self._id("file"), self._id("data"), bytes(16))
        fields = vhdx.HEADER.pack(b"head", 0, sequence, *ids, 0, 1, MIB, _LOG)
        return _summed(fields.ljust(vhdx.HEADER_SIZE, b"\0"))

    def _regions(self) -> bytes:
        entries = ((vhdx.BAT_REGION, _BAT, self._bat_size, 1), (vhdx.METADATA_REGION, _METADATA, MIB, 1))
        table = vhdx.REGION_HEADER.pack(b"regi", 0, len(entries), 0)
        table += b"".join(vhdx.REGION_ENTRY.pack(*entry) for entry in entries)
        return _summed(table.ljust(vhdx.REGION_SIZE, b"\0"))

    def _metadata_region(self) -> bytes:
        items = (
            (vhdx.FILE_PARAMETERS, struct.pack("<II", self._block, 0), _REQUIRED),
            (vhdx.DISK_SIZE, struct.pack("<Q", self.size), _REQUIRED | _OF_DISK),
            (vhdx.DISK_ID, self._id("disk"), _REQUIRED | _OF_DISK),
            (vhdx.LOGICAL_SECTOR, struct.pack("<I", SECTOR), _REQUIRED | _OF_DISK),
            (vhdx.PHYSICAL_SECTOR, struct.pack("<I", 4096), _REQUIRED | _OF_DISK),
        )
        table, content = vhdx.METADATA_HEADER.pack(b"metadata", 0, len(items)), b""
        for kind, value, flags in items:
            table += vhdx.METADATA_ENTRY.pack(kind, _ITEMS + len(content), len(value), flags)
            content += value
        return table.ljust(_ITEMS, b"\0") + content

    def _table(self, first: int, count: int) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of some blocks; between groups of them there is an unused one for a bitmap."""
        ranks = self._units.ranks(first, count)
        blocks = np.arange(first, first + count, dtype=np.int64)
        slots = blocks + blocks // self._ratio
        entries = np.zeros(int(slots[-1] - slots[0]) + 1, dtype="<u8")
        entries[slots - slots[0]] = np.where(ranks >= 0, self._data + ranks * self._block | vhdx.FULLY_PRESENT, 0)
        yield _BAT + 8 * int(slots[0]), entries.tobytes()


def _summed(data: bytes) -> bytes:
    """Return a header or table with its checksum in place, after its mark of four bytes."""
    return data[:4] + crc32c(data).to_bytes(4, "little") + data[8:]
