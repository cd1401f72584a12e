"""qcow2, versions 2 and 3: header, and where each cluster of the guest disk lies.

Source: QEMU's docs/interop/qcow2.txt. Internal snapshots and bitmaps are left aside: the active disk counts. What
cannot be read with certainty is refused: encryption, an external data file, a disk marked dirty or corrupt, features
that are not known here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import MAX_IMAGE_SIZE
from trimtransfer.disk.mapping import ABSENT, PACKED, STORED, ZERO, Runs, join, numbers
from trimtransfer.disk.packed import inflate, unzstd
from trimtransfer.disk.pages import Pages
from trimtransfer.disk.reference import Reference
from trimtransfer.errors import FormatError, SourceRefused
from trimtransfer.geometry import Read

MAGIC: Final = b"QFI\xfb"
DIRTY: Final = 1
CORRUPT: Final = 2
EXTERNAL: Final = 4
COMPRESSION: Final = 8
EXTENDED: Final = 16
"""Incompatible features."""
BACKING_FORMAT: Final = 0xE2792ACA
"""Header extension with the base's format."""
OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
COPIED: Final = 1 << 63
HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
"""Magic, version, base's name (offset, size), cluster bits, disk size, encryption, L1 table (entries, offset), refcount
table (offset, clusters), snapshots (number, offset)."""
HEADER_3: Final = struct.Struct(">QQQII")
"""Features (incompatible, compatible, autoclear), refcount order, header length."""
_COMPRESSED: Final = 1 << 62
_SUBCLUSTERS: Final = 32
_MAX_NAME: Final = 1023
_WINDOW: Final = 1 << 15  # clusters mapped at once
_REMEDY: Final = "repair it with: qemu-img check -r all"


@dataclass(frozen=True, slots=True)
class _Header:
    version: int
    size: int
    cluster_bits: int
    l1_size: int
    l1_offset: int
    extended: bool
    zstd: bool
    base: Reference | None


class Qcow2:
    """The mapping of a qcow2 file, read through ``read``; ``base`` is the disk below it, ``name`` is for messages.

    Raises:
        FormatError: not a valid qcow2 file.
        SourceRefused: one that cannot be read here, or not with certainty.
    """

    def __init__(self, read: Read, file_size: int, name: str) -> None:
        self._read, self._name = read, name
        self._pages = Pages(read, file_size, name)
        self._header = header = _parse(read, file_size, name)
        self.size, self.base = header.size, header.base
        self.unit = 1 << header.cluster_bits
        self.window = self.unit * (_WINDOW // _SUBCLUSTERS if header.extended else _WINDOW)
        self._words = 2 if header.extended else 1
        self._per_table = self.unit // (8 * self._words)
        needed = -(-self.size // (self.unit * self._per_table))
        if header.l1_size < needed or header.l1_offset % self.unit:
            raise FormatError(name, 36, f"an aligned L1 table of at least {needed:,} entries", header.l1_size)
        if header.l1_offset + 8 * needed > file_size:
            raise FormatError(name, 40, f"an L1 table within {file_size:,} bytes", header.l1_offset)

    @property
    def detail(self) -> str:
        """What people may want to know of it."""
        extended = ", extended L2 entries" if self._header.extended else ""
        return f"version {self._header.version}, clusters of {self.unit:,} bytes{extended}"

    def runs(self, offset: int, length: int) -> Runs:
        """Return the runs of a range of the guest disk."""
        first = offset // self.unit
        count = -(-(offset + length) // self.unit) - first
        entries = self._entries(first, count)
        if self._header.extended:
            return self._extended(first, entries).clip(offset, length)
        states, places = self._decode(entries[:, 0], first)
        return join(first * self.unit, self.unit, states, places).clip(offset, length)

    def unpack(self, place: int, start: int) -> bytes:
        """Return the content of a compressed cluster; ``place`` is its L2 entry."""
        bits = 62 - (self._header.cluster_bits - 8)
        offset = place & ((1 << bits) - 1)
        length = ((place >> bits) + 1) * 512 - offset % 512
        packed = self._read(offset, min(length, 2 * self.unit))
        what = f"{self._name}: cluster at byte {start:,}"
        if self._header.zstd:
            return unzstd(packed, self.unit, what)
        content = inflate(packed, self.unit, what, header=False)
        if len(content) != self.unit:
            raise FormatError(what, 0, f"{self.unit:,} bytes", f"{len(content):,} bytes")
        return content

    def _entries(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return the L2 entries (count, words) of clusters; zeros where there is no L2 table."""
        found = np.zeros((count, self._words), dtype=np.uint64)
        start = first // self._per_table
        tables = -(-(first + count) // self._per_table) - start
        level1 = numbers(self._pages.read(self._header.l1_offset + 8 * start, 8 * tables), ">u8")
        for at in np.flatnonzero(level1).tolist():
            offset = int(level1[at]) & OFFSET_MASK
            if not offset:
                continue
            if offset % self.unit:
                raise FormatError(self._name, f"L1 entry {start + at}", "an aligned L2 table", offset)
            before = (start + at) * self._per_table
            low, high = max(first, before), min(first + count, before + self._per_table)
            size = 8 * self._words
            raw = self._pages.read(offset + (low - before) * size, (high - low) * size)
            found[low - first : high - first] = numbers(raw, ">u8").reshape(-1, self._words)
        return found

    def _decode(self, entries: NDArray[np.uint64], first: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return states and places of clusters from their L2 entries (or the first words of extended ones)."""
        packed = (entries & np.uint64(_COMPRESSED)) != 0
        offsets = entries & np.uint64(OFFSET_MASK)
        zero = ~packed & ((entries & np.uint64(1)) != 0)
        stored = ~packed & ~zero & (offsets != 0)
        self._require(~(stored & (offsets % np.uint64(self.unit) != 0)), first, "an aligned cluster", entries)
        if self._header.version < 3 or self._header.extended:
            self._require(~zero, first, "no zero bit", entries)
        states = np.full(len(entries), ABSENT, dtype=np.uint8)
        states[zero], states[stored], states[packed] = ZERO, STORED, PACKED
        places = np.where(packed, entries & np.uint64(_COMPRESSED - 1), offsets).astype(np.int64)
        return states, places

    def _extended(self, first: int, entries: NDArray[np.uint64]) -> Runs:
        """Return the runs of clusters whose entries have a second word: which of 32 subclusters are stored or zero."""
        states, places = self._decode(entries[:, 0], first)
        bits = np.arange(_SUBCLUSTERS, dtype=np.uint64)
        stored = ((entries[:, 1:] >> bits) & np.uint64(1)) != 0
        zero = ((entries[:, 1:] >> (bits + np.uint64(32))) & np.uint64(1)) != 0
        packed = states == PACKED
        fits = (~(stored & zero).any(axis=1) & ((states == STORED) | ~stored.any(axis=1))) | packed
        self._require(fits, first, "subclusters that are stored or zero", entries[:, 1])
        part = self.unit // _SUBCLUSTERS
        kinds = np.where(stored, STORED, np.where(zero, ZERO, ABSENT)).astype(np.uint8)
        kinds[packed] = PACKED
        shifts = np.arange(_SUBCLUSTERS, dtype=np.int64) * part
        where = np.where(packed[:, None], places[:, None], places[:, None] + shifts)
        return join(first * self.unit, part, kinds.reshape(-1), where.reshape(-1))

    def _require(self, fine: NDArray[np.bool_], first: int, expected: str, entries: NDArray[Any]) -> None:
        if not fine.all():
            at = int(np.argmin(fine))
            raise FormatError(self._name, f"entry of cluster {first + at}", expected, f"{int(entries[at]):#x}")


def _parse(read: Read, file_size: int, name: str) -> _Header:
    start = read(0, HEADER.size + HEADER_3.size + 8)
    if len(start) < HEADER.size or start[:4] != MAGIC:
        raise FormatError(name, 0, "the header of a qcow2 file", start[:4].hex())
    fields = HEADER.unpack_from(start)
    version, cluster_bits, size, encryption = fields[1], fields[4], fields[5], fields[6]
    if version not in (2, 3):
        raise SourceRefused(name, f"is qcow version {version}; convert it with: qemu-img convert -O qcow2")
    if not 9 <= cluster_bits <= 21:
        raise FormatError(name, 20, "clusters of 2^9 to 2^21 bytes", cluster_bits)
    if size % 512 or size > MAX_IMAGE_SIZE:
        raise FormatError(name, 24, f"a disk of whole sectors, at most {MAX_IMAGE_SIZE:,} bytes", size)
    if encryption:
        raise SourceRefused(name, "is encrypted; convert it to one that is not, with: qemu-img convert")
    features, compression, length = _features(start, version, name)
    if features & EXTENDED and cluster_bits < 14:
        raise FormatError(name, 72, "extended L2 entries with clusters of 16 KiB or more", cluster_bits)
    area = read(0, min(1 << cluster_bits, file_size))
    base = _base(area, length, fields[2], fields[3], name)
    return _Header(version, size, cluster_bits, fields[7], fields[8], bool(features & EXTENDED), compression == 1, base)


def _features(start: bytes, version: int, name: str) -> tuple[int, int, int]:
    """Return incompatible features, compression type and header length; refuse what cannot be read."""
    if version == 2:
        return 0, 0, HEADER.size
    if len(start) < HEADER.size + HEADER_3.size:
        raise FormatError(name, HEADER.size, "the header of version 3", "the end of the file")
    features, _, _, _, length = HEADER_3.unpack_from(start, HEADER.size)
    if length < HEADER.size + HEADER_3.size or length % 8:
        raise FormatError(name, 100, "a header of 104 bytes or more", length)
    if features & CORRUPT:
        raise SourceRefused(name, f"is marked corrupt; {_REMEDY}")
    if features & DIRTY:
        raise SourceRefused(name, f"was not closed cleanly; {_REMEDY}")
    if features & EXTERNAL:
        raise SourceRefused(name, "keeps its content in an external data file; convert it with: qemu-img convert")
    unknown = features & ~(COMPRESSION | EXTENDED)
    if unknown:
        raise SourceRefused(name, f"uses features that are not known here (bits {unknown:#x}); convert it to raw")
    compression = start[104] if features & COMPRESSION and length > 104 and len(start) > 104 else 0
    if compression > 1:
        raise SourceRefused(name, f"is compressed in a way that is not known here ({compression}); convert it to raw")
    return features, compression, length


def _base(area: bytes, header_length: int, offset: int, size: int, name: str) -> Reference | None:
    """Return the base's name and format, None without a base. ``area`` is the file's first cluster."""
    if not offset:
        return None
    if not 0 < size <= _MAX_NAME or offset + size > len(area):
        raise FormatError(name, 8, "a base's name within the first cluster", f"{size} bytes at {offset}")
    base = area[offset : offset + size].decode("utf-8", "surrogateescape")
    found = _extension(area[:offset], header_length, BACKING_FORMAT, name)
    if not found:
        raise SourceRefused(
            name,
            f"is based on {base!r} without saying what format that has, and guessing may be abused; "
            "state it with: qemu-img rebase -u -F FORMAT -b BASE",
        )
    return Reference(base, found.decode("ascii", "replace"))


def _extension(area: bytes, at: int, wanted: int, name: str) -> bytes:
    """Return the data of a header extension, empty if there is none."""
    while at + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, at)
        if not kind:
            break
        if at + 8 + length > len(area):
            raise FormatError(name, at, "a header extension within the first cluster", f"{length} bytes")
        if kind == wanted:
            return area[at + 8 : at + 8 + length]
        at += 8 + -(-length // 8) * 8
    return b""
