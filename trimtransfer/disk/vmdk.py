"""VMDK, the format of VMware: sparse extents, compressed (stream-optimized) ones, and descriptors that name extents.

Source: VMware's "Virtual Disk Format 5.0" technical note. Snapshots (disks with a parent), host devices, and the sparse
extents of ESX (COWD, SESparse) are refused.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtransfer.chunk import MAX_IMAGE_SIZE
from trimtransfer.disk.mapping import ABSENT, PACKED, STORED, ZERO, Runs, join, numbers
from trimtransfer.disk.packed import inflate
from trimtransfer.disk.pages import Pages
from trimtransfer.errors import FormatError, SourceRefused
from trimtransfer.geometry import Read

MAGIC: Final = b"KDMV"
DESCRIPTOR_MARK: Final = b"# Disk DescriptorFile"
REFUSED: Final = {b"COWD": "an ESX sparse extent", b"\xbe\xba\xfe\xca": "an ESX SESparse extent"}
"""First bytes of extents that cannot be read here."""
SECTOR: Final = 512
MAX_DESCRIPTOR: Final = 1 << 20
MAX_EXTENTS: Final = 512
HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
"""Magic, version, flags, capacity, grain size, descriptor (offset, size), entries of a grain table, grain directories
(spare one, main one), overhead, unclean shutdown, line ends, compression. Offsets and sizes are in sectors."""
_GRAIN: Final = struct.Struct("<QI")
_AT_END: Final = (1 << 64) - 1
_ZERO_GRAINS, _COMPRESSED, _MARKERS = 1 << 2, 1 << 16, 1 << 17
_LINE_ENDS: Final = b"\n \r\n"
_WINDOW: Final = 1 << 15  # grains mapped at once
_NO_PARENT: Final = "ffffffff"
_EXTENT: Final = re.compile(r'(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)(?:\s+"([^"]*)"(?:\s+(\d{1,18}))?)?\s*')
_SETTING: Final = re.compile(r'([A-Za-z]\w*)\s*=\s*"?([^"]*)"?\s*')
_REMEDY: Final = "consolidate its snapshots, or convert it with: qemu-img convert"


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a disk as its descriptor names it: ``size`` in bytes, ``kind`` (FLAT, SPARSE, ZERO), file, offset."""

    size: int
    kind: str
    name: str
    offset: int


def parse_descriptor(raw: bytes, name: str) -> tuple[Extent, ...]:
    """Return the extents that a descriptor names, in the order of the disk; ``name`` is for messages.

    Raises:
        FormatError: not a descriptor.
        SourceRefused: of a disk that cannot be read here.
    """
    if not raw.startswith(DESCRIPTOR_MARK):
        raise FormatError(name, 0, "a VMDK descriptor", raw[:16].hex())
    extents: list[Extent] = []
    for number, line in enumerate(raw.partition(b"\0")[0].decode("utf-8", "surrogateescape").splitlines(), 1):
        text = line.strip()
        if text.startswith(("RW ", "RDONLY ", "NOACCESS ")):
            extents.append(_extent(text, number, name))
            if len(extents) > MAX_EXTENTS:
                raise FormatError(name, f"line {number}", f"at most {MAX_EXTENTS} extents", len(extents))
        elif found := _SETTING.fullmatch(text):
            _check_setting(found[1].lower(), found[2], name)
    if not extents or sum(extent.size for extent in extents) > MAX_IMAGE_SIZE:
        raise FormatError(name, "descriptor", f"extents of at most {MAX_IMAGE_SIZE:,} bytes", len(extents))
    return tuple(extents)


def _extent(text: str, number: int, name: str) -> Extent:
    found = _EXTENT.fullmatch(text)
    if found is None:
        raise FormatError(name, f"line {number}", "access, sectors, kind, file and offset of an extent", text[:80])
    access, sectors, kind, file, offset = found.groups()
    kind = "FLAT" if kind == "VMFS" else kind
    if access == "NOACCESS" or kind not in ("FLAT", "SPARSE", "ZERO"):
        raise SourceRefused(name, f"has an extent that cannot be read here ({access} {kind}); {_REMEDY}")
    if (kind == "ZERO") != (file is None) or (offset and kind != "FLAT"):
        raise FormatError(name, f"line {number}", "a file for each extent that is not zero", text[:80])
    return Extent(int(sectors) * SECTOR, kind, file or "", int(offset or 0) * SECTOR)


def _check_setting(key: str, value: str, name: str) -> None:
    if key == "parentcid" and value.strip().lower() != _NO_PARENT:
        raise SourceRefused(name, f"is a snapshot of another disk; {_REMEDY}")
    if key in ("encryptionkeys", "encryption"):
        raise SourceRefused(name, "is encrypted; take the encryption off first")


class SparseExtent:
    """The mapping of a sparse extent, read through ``read``; ``descriptor`` is the one embedded, if any.

    Raises:
        FormatError: not a valid one.
        SourceRefused: one that cannot be read with certainty.
    """

    def __init__(self, read: Read, file_size: int, name: str) -> None:
        self._read, self._name = read, name
        self._pages = Pages(read, file_size, name)
        header = _header(read(0, SECTOR), 0, name)
        self.descriptor = self._embedded(header[5], header[6])
        if header[9] == _AT_END:  # written as a stream: the final header is the sector before the last one
            end = max(0, file_size - 2 * SECTOR)
            header = _header(read(end, SECTOR), end, name)
        _, _, flags, capacity, grain, _, _, self._per_table, _, directory, _, unclean, _, compression = header
        if unclean:
            raise SourceRefused(name, "was not closed cleanly; start and stop its machine, or use qemu-img convert")
        self._zero_grains = bool(flags & _ZERO_GRAINS)
        self._compressed = bool(flags & _COMPRESSED)
        if self._compressed and (compression != 1 or not flags & _MARKERS):
            raise SourceRefused(name, f"is compressed in a way that is not known here ({compression}); {_REMEDY}")
        if grain & (grain - 1) or not 8 <= grain <= 4096:
            raise FormatError(name, 20, "grains of a power of two, from 4 KiB to 2 MiB", f"{grain} sectors")
        if capacity * SECTOR > MAX_IMAGE_SIZE or not 1 <= self._per_table <= 1 << 16:
            raise FormatError(name, 12, f"at most {MAX_IMAGE_SIZE:,} bytes", f"{capacity} sectors")
        self.size, self.unit = capacity * SECTOR, grain * SECTOR
        self._directory, self.window = directory * SECTOR, self.unit * _WINDOW
        tables = -(-self.size // (self.unit * self._per_table))
        if directory == 0 or self._directory + 4 * tables > file_size:
            raise FormatError(name, 56, f"a directory of {tables:,} tables within the file", directory)

    @property
    def detail(self) -> str:
        """What people may want to know of it."""
        return f"{'compressed' if self._compressed else 'sparse'}, grains of {self.unit:,} bytes"

    def _embedded(self, offset: int, size: int) -> bytes:
        if not offset or not size:
            return b""
        if size > MAX_DESCRIPTOR // SECTOR:
            raise FormatError(self._name, 36, f"a descriptor of at most {MAX_DESCRIPTOR:,} bytes", size * SECTOR)
        return self._pages.read(offset * SECTOR, size * SECTOR).rstrip(b"\0")

    def runs(self, offset: int, length: int) -> Runs:
        """Return the runs of a range of the guest disk."""
        first = offset // self.unit
        count = -(-(offset + length) // self.unit) - first
        places = self._entries(first, count).astype(np.int64)
        states = np.full(count, PACKED if self._compressed else STORED, dtype=np.uint8)
        states[places == 0] = ABSENT
        if self._zero_grains:
            states[places == 1] = ZERO
        return join(first * self.unit, self.unit, states, places * SECTOR).clip(offset, length)

    def _entries(self, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Return the entries of grains: their sectors; zeros where there is no table."""
        found = np.zeros(count, dtype=np.uint64)
        start = first // self._per_table
        tables = -(-(first + count) // self._per_table) - start
        directory = numbers(self._pages.read(self._directory + 4 * start, 4 * tables), "<u4")
        for at in np.flatnonzero(directory).tolist():
            before = (start + at) * self._per_table
            low, high = max(first, before), min(first + count, before + self._per_table)
            raw = self._pages.read(int(directory[at]) * SECTOR + (low - before) * 4, (high - low) * 4)
            found[low - first : high - first] = numbers(raw, "<u4")
        return found

    def unpack(self, place: int, start: int) -> bytes:
        """Return the content of the compressed grain at byte ``place``, which must say that it is this grain."""
        marker = self._pages.read(place, _GRAIN.size)
        sector, length = _GRAIN.unpack(marker)
        if sector * SECTOR != start or not 0 < length <= 2 * self.unit:
            raise FormatError(self._name, place, f"the grain of byte {start:,}", f"sector {sector}, {length} bytes")
        what = f"{self._name}: grain at byte {start:,}"
        content = inflate(self._read(place + _GRAIN.size, length), self.unit, what, header=True)
        if len(content) < min(self.unit, self.size - start):
            raise FormatError(what, 0, f"{self.unit:,} bytes", f"{len(content):,} bytes")
        return content


def _header(
    data: bytes, at: int, name: str
) -> tuple[bytes, int, int, int, int, int, int, int, int, int, int, int, bytes, int]:
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise FormatError(name, at, "the header of a sparse VMDK extent", data[:4].hex())
    header = HEADER.unpack_from(data)
    if not 1 <= header[1] <= 3:
        raise SourceRefused(name, f"is VMDK version {header[1]}; only 1 to 3 are known; {_REMEDY}")
    if header[2] & 1 and header[12] != _LINE_ENDS:
        raise FormatError(name, at + 73, "line ends as they were written", "others: it was transferred as text")
    return header
