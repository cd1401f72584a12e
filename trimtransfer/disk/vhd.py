"""VHD, the format of Virtual PC and of older Hyper-V: fixed, dynamic and differencing disks.

Source: Microsoft's "Virtual Hard Disk Image Format Specification" of 2006. The size of the disk is the footer's current
size, as in Hyper-V, not what its cylinders, heads and sectors give. A sector whose bit in its block's bitmap is clear
was never written: it reads as zeros, or as in the parent. Some programs leave the bitmaps of dynamic disks aside, so
one whose unwritten sectors hold something is refused: it is not certain what its guest sees.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.disk.mapping import ABSENT, STORED, Runs, join_pieces, numbers
from trimtransfer.disk.pages import Pages
from trimtransfer.disk.reference import Reference
from trimtransfer.errors import FormatError, SourceRefused
from trimtransfer.geometry import Read

COOKIE: Final = b"conectix"
SPARSE_COOKIE: Final = b"cxsparse"
FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
"""Cookie, features, version, offset of the dynamic header, time, creator (program, version, system), original and
current size, geometry (cylinders, heads, sectors), type, checksum, unique id, saved state."""
SPARSE: Final = struct.Struct(">8sQQIIII16sII512s192s256x")
"""Cookie, offset of the next header, offset of the block table, version, blocks, block size, checksum, the parent's
unique id, time and name, its locators."""
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
SECTOR: Final = 512
UNUSED: Final = 0xFFFF_FFFF
"""Entry of a block that is not in the file."""
MAX_SIZE: Final = 2040 << 30
_MAX_BLOCK: Final = 1 << 30
_WINDOW: Final = 64  # blocks mapped at once
_PIECE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Footer:
    """A VHD's footer: ``size`` of the disk, its ``type``, where the dynamic header is, the unique id."""

    size: int
    type: int
    data_offset: int
    unique: bytes


def checksum(data: bytes, at: int) -> int:
    """Return the checksum of a footer or header whose own field of four bytes at ``at`` does not count."""
    total = int(np.frombuffer(data, dtype=np.uint8).sum(dtype=np.int64)) - sum(data[at : at + 4])
    return ~total & 0xFFFF_FFFF


def parse_footer(data: bytes) -> Footer | None:
    """Return the footer in these 512 bytes, None if they are none."""
    if len(data) < FOOTER.size or data[:8] != COOKIE:
        return None
    fields = FOOTER.unpack_from(data)
    if fields[14] != checksum(data, 64):
        return None
    return Footer(fields[9], fields[13], fields[3], fields[15])


def read_footer(read: Read, file_size: int, name: str) -> Footer:
    """Return the footer of a VHD. Dynamic disks have a copy at their start, but one whose end lacks it was cut short.

    Raises:
        FormatError: it is not there, or contradicts the copy.
    """
    found = parse_footer(read(file_size - FOOTER.size, FOOTER.size)) if file_size >= FOOTER.size else None
    if found is None:
        raise FormatError(name, "end", "the footer of a VHD", "damaged, or cut short")
    copy = parse_footer(read(0, FOOTER.size))  # of a fixed disk that is content of the guest
    if found.type != FIXED and copy is not None and copy != found:
        raise FormatError(name, "end", "the footer that is at the start, too", "another one")
    if found.type not in (FIXED, DYNAMIC, DIFFERENCING):
        raise FormatError(name, "footer", "a fixed, dynamic or differencing disk", f"type {found.type}")
    if found.size % SECTOR or not 0 < found.size <= MAX_SIZE:
        raise FormatError(name, "footer", f"a disk of whole sectors, at most {MAX_SIZE:,} bytes", found.size)
    if found.type == FIXED and found.size != file_size - FOOTER.size:
        raise FormatError(name, "footer", f"a fixed disk of {file_size - FOOTER.size:,} bytes", f"{found.size:,}")
    return found


class DynamicVhd:
    """The mapping of a dynamic or differencing VHD, read through ``read``; ``name`` is for messages.

    ``base``: the parent of a differencing disk; ``unique``: the disk's own id, which its children name.

    Raises:
        FormatError: not a valid one.
        SourceRefused: (from ``runs``) it is not certain what its guest sees.
    """

    def __init__(self, read: Read, file_size: int, name: str, footer: Footer) -> None:
        self._name, self._read = name, read
        self._pages = Pages(read, file_size, name)
        self.size, self.unique = footer.size, footer.unique
        header = self._pages.read(footer.data_offset, SPARSE.size)
        fields = SPARSE.unpack(header)
        if fields[0] != SPARSE_COOKIE or fields[6] != checksum(header, 36):
            raise FormatError(name, footer.data_offset, "the header of a dynamic VHD", "damaged, or none")
        self._table, entries, self.unit = fields[2], fields[4], fields[5]
        if self.unit & (self.unit - 1) or not 4096 <= self.unit <= _MAX_BLOCK:
            raise FormatError(name, footer.data_offset + 32, "a power of two as block size", self.unit)
        blocks = -(-self.size // self.unit)
        if entries < blocks or self._table + 4 * blocks > file_size:
            raise FormatError(name, footer.data_offset + 28, f"a table of at least {blocks:,} blocks", entries)
        self._bitmap = -(-self.unit // SECTOR // 8 // SECTOR) * SECTOR
        self._clear = np.zeros(blocks, dtype=np.bool_)  # blocks whose unwritten sectors are known to hold nothing
        self.window = _WINDOW * self.unit
        self.base = _parent(fields[10], fields[7], name) if footer.type == DIFFERENCING else None

    @property
    def detail(self) -> str:
        """What people may want to know of it."""
        return f"{'differencing' if self.base else 'dynamic'}, blocks of {self.unit:,} bytes"

    def runs(self, offset: int, length: int) -> Runs:
        """Return the runs of a range of the guest disk."""
        first = offset // self.unit
        count = -(-(offset + length) // self.unit) - first
        entries = numbers(self._pages.read(self._table + 4 * first, 4 * count), ">u4").astype(np.int64)
        parts = [self._block(number, entry) for number, entry in enumerate(entries.tolist(), first)]
        starts, lengths, states, places = (np.concatenate(column) for column in zip(*parts, strict=True))
        return join_pieces(starts, lengths, states, places).clip(offset, length)

    def _block(
        self, number: int, entry: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Return starts, lengths, states and places of the pieces of a block: one, or its sectors."""
        start = number * self.unit
        at = entry * SECTOR
        used = np.zeros(1, dtype=np.uint8)
        if entry != UNUSED:
            bitmap = np.frombuffer(self._pages.read(at, self._bitmap), dtype=np.uint8)
            bits = bitmap[: self.unit // SECTOR // 8]
            used = np.ones(1, dtype=np.uint8) if bool((bits == 255).all()) else np.unpackbits(bits)
            if self.base is None and len(used) > 1 and not self._clear[number]:
                self._check_unwritten(number, at + self._bitmap, used)
        length = self.unit // len(used)
        shifts = np.arange(len(used), dtype=np.int64) * length
        states = np.where(used, STORED, ABSENT).astype(np.uint8)
        return start + shifts, np.full(len(used), length, dtype=np.int64), states, at + self._bitmap + shifts

    def _check_unwritten(self, number: int, place: int, used: NDArray[np.uint8]) -> None:
        """Refuse a disk with something in sectors that were never written."""
        for first in range(0, len(used), _PIECE // SECTOR):
            some = used[first : first + _PIECE // SECTOR]
            data = np.frombuffer(self._read(place + first * SECTOR, len(some) * SECTOR), dtype=np.uint8)
            sectors = data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR)
            if (sectors.any(axis=1) & (some[: len(sectors)] == 0)).any():
                raise SourceRefused(
                    self._name,
                    f"has data in block {number} where its bitmap says that nothing was written; programs differ in "
                    "what they make of that: copy it with the one that uses it, or with: qemu-img convert -f vpc",
                )
        self._clear[number] = True

    def unpack(self, place: int, start: int) -> bytes:
        """Nothing in a VHD is packed."""
        raise FormatError(self._name, place, "nothing packed", f"the disk's byte {start}")


def _parent(raw: bytes, unique: bytes, name: str) -> Reference:
    """Return the parent by the last part of its name: it is looked for beside the file, and known by its id."""
    text = raw.decode("utf-16-be", "replace").partition("\0")[0]
    parent = text.replace("\\", "/").rpartition("/")[2]
    if not parent:
        raise FormatError(name, "dynamic header", "the name of the parent disk", "none")
    return Reference(parent, "vhd", unique)
