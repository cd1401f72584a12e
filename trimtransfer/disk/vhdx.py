"""VHDX, the format of Hyper-V: fixed and dynamic disks, with sectors of 512 bytes or 4 KiB.

Source: Microsoft's [MS-VHDX]. A disk that was not closed cleanly has changes in its log; they are replayed in memory,
or it is refused. Differencing disks are refused. Blocks that are unmapped or undefined read as zeros.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np

from trimtransfer.chunk import MAX_IMAGE_SIZE
from trimtransfer.disk.crc32c import crc32c
from trimtransfer.disk.mapping import STORED, ZERO, Runs, join, numbers
from trimtransfer.disk.pages import Pages
from trimtransfer.disk.vhdx_log import REMEDY, Change, read_log, replayed
from trimtransfer.errors import FormatError, SourceRefused
from trimtransfer.geometry import Read

IDENTIFIER: Final = b"vhdxfile"
HEADER_OFFSETS: Final = (64 << 10, 128 << 10)
REGION_OFFSETS: Final = (192 << 10, 256 << 10)
HEADER_SIZE: Final = 4096
REGION_SIZE: Final = 64 << 10
HEADER: Final = struct.Struct("<4sIQ16s16s16sHHIQ")
"""Mark, checksum, sequence number, ids of file writes, data writes and the log, versions of log and format, the log's
length and offset."""
REGION_HEADER: Final = struct.Struct("<4sIII")
REGION_ENTRY: Final = struct.Struct("<16sQII")
METADATA_HEADER: Final = struct.Struct("<8sHH20x")
METADATA_ENTRY: Final = struct.Struct("<16sIII4x")
BAT_REGION: Final = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA_REGION: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
FILE_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
DISK_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
DISK_ID: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
LOGICAL_SECTOR: Final = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
PHYSICAL_SECTOR: Final = UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
_KNOWN: Final = frozenset((FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL_SECTOR, PHYSICAL_SECTOR))
MIB: Final = 1 << 20
FULLY_PRESENT: Final = 6
_HOLES: Final = (0, 1, 2, 3, 5)  # not present, undefined, zero, unmapped, unmapped by a draft of the format
_MAX_ENTRIES: Final = 2047
_MAX_PLACE: Final = 1 << 62
_WINDOW: Final = 1 << 12  # blocks mapped at once
_CUT: Final = "the file is cut short; copy it again"


@dataclass(frozen=True, slots=True)
class _Parameters:
    size: int
    block: int
    sector: int


class Vhdx:
    """The mapping of a VHDX file, read through ``read``; ``name`` is for messages.

    Raises:
        FormatError: not a valid VHDX file.
        SourceRefused: one that cannot be read here, or not with certainty.
    """

    def __init__(self, read: Read, file_size: int, name: str) -> None:
        self._name = name
        if file_size < MIB or read(0, 8) != IDENTIFIER:
            raise FormatError(name, 0, "the first MiB of a VHDX file", read(0, 8).hex())
        changes = _log(read, file_size, name)
        regions = _regions(read, file_size, name)
        for change in changes:
            if not any(at <= change.start and change.end <= at + length for at, length in regions.values()):
                raise SourceRefused(name, f"has a log that changes more than its tables; {REMEDY}")
        self._replayed = len(changes)
        self._pages = Pages(replayed(read, changes) if changes else read, file_size, name)
        self._bat, bat_length = regions[BAT_REGION]
        found = _parameters(self._pages, *regions[METADATA_REGION], name)
        self.size, self.unit, self._sector = found.size, found.block, found.sector
        self._ratio = (found.sector << 23) // found.block
        blocks = -(-self.size // self.unit)
        needed = blocks + max(0, blocks - 1) // self._ratio
        if 8 * needed > bat_length:
            raise FormatError(name, self._bat, f"a block table of at least {needed:,} entries", f"{bat_length:,} bytes")
        self.window = _WINDOW * self.unit

    @property
    def detail(self) -> str:
        """What people may want to know of it."""
        log = f", {self._replayed} changes from its log" if self._replayed else ""
        return f"blocks of {self.unit:,} bytes, sectors of {self._sector}{log}"

    def runs(self, offset: int, length: int) -> Runs:
        """Return the runs of a range of the guest disk."""
        first = offset // self.unit
        count = -(-(offset + length) // self.unit) - first
        blocks = np.arange(first, first + count, dtype=np.int64)
        slots = blocks + blocks // self._ratio  # after every ``ratio`` blocks there is the entry of their bitmap
        start, end = int(slots[0]), int(slots[-1]) + 1
        entries = numbers(self._pages.read(self._bat + 8 * start, 8 * (end - start)), "<u8")[slots - start]
        kinds = entries & np.uint64(7)
        places = (entries >> np.uint64(20) << np.uint64(20)).astype(np.int64)
        stored = kinds == FULLY_PRESENT
        fine = np.isin(kinds, np.array(_HOLES, dtype=np.uint64)) | (stored & (places >= MIB) & (places < _MAX_PLACE))
        if not fine.all():
            at = int(np.argmin(fine))
            raise FormatError(
                self._name, f"entry of block {first + at}", "a block that is there, or not", f"{int(entries[at]):#x}"
            )
        if stored.any() and int(places[stored].max()) + self.unit > self._pages.size:
            raise FormatError(self._name, "end", "blocks that are whole", f"{self._pages.size:,} bytes: {_CUT}")
        states = np.where(stored, STORED, ZERO).astype(np.uint8)
        return join(first * self.unit, self.unit, states, places).clip(offset, length)

    def unpack(self, place: int, start: int) -> bytes:
        """Nothing in a VHDX is packed."""
        raise FormatError(self._name, place, "nothing packed", f"the disk's byte {start}")


def _log(read: Read, file_size: int, name: str) -> tuple[Change, ...]:
    """Find the header in force, and return what its log would change: nothing if the disk was closed cleanly."""
    valid = [fields for at in HEADER_OFFSETS if (fields := _header(read(at, HEADER_SIZE))) is not None]
    if not valid:
        raise FormatError(name, HEADER_OFFSETS[0], "a VHDX header", "two that are damaged")
    _, _, sequence, _, _, log, log_version, version, length, offset = max(valid, key=lambda fields: fields[2])
    if len(valid) == 2 and valid[0][2] == valid[1][2] and valid[0][3:] != valid[1][3:]:
        raise FormatError(name, HEADER_OFFSETS[1], "another sequence number than the first header's", sequence)
    if version != 1 or log_version:
        raise SourceRefused(name, f"is VHDX version {version} with log version {log_version}; only 1 and 0 are known")
    return read_log(read, offset, length, log, file_size, name) if any(log) else ()


def _header(data: bytes) -> tuple[int, int, int, bytes, bytes, bytes, int, int, int, int] | None:
    """Return a header's fields, None if it is not valid."""
    if len(data) < HEADER_SIZE or data[:4] != b"head":
        return None
    fields = HEADER.unpack_from(data)
    if fields[1] != crc32c(data[:4] + bytes(4) + data[8:]):
        return None
    return fields


def _regions(read: Read, file_size: int, name: str) -> dict[bytes, tuple[int, int]]:
    """Return offset and length of the two regions that every VHDX has, from the first region table that is valid."""
    for at in REGION_OFFSETS:
        data = read(at, REGION_SIZE)
        if len(data) < REGION_SIZE:
            continue
        mark, check, count, _ = REGION_HEADER.unpack_from(data)
        if mark == b"regi" and count <= _MAX_ENTRIES and check == crc32c(data[:4] + bytes(4) + data[8:]):
            return _known_regions(data, count, file_size, name)
    raise FormatError(name, REGION_OFFSETS[0], "a VHDX region table", "two that are damaged")


def _known_regions(data: bytes, count: int, file_size: int, name: str) -> dict[bytes, tuple[int, int]]:
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        kind, offset, length, required = REGION_ENTRY.unpack_from(data, REGION_HEADER.size + number * REGION_ENTRY.size)
        if kind not in (BAT_REGION, METADATA_REGION):
            if required & 1:
                raise SourceRefused(name, f"needs a region that is not known here ({UUID(bytes_le=kind)})")
            continue
        if kind in found or offset < MIB or offset % MIB:
            raise FormatError(name, f"region {number}", "one region of its kind, at a whole MiB", offset)
        if offset + length > file_size:
            got = f"{file_size:,}: {_CUT}"
            raise FormatError(name, "end", f"at least {offset + length:,} bytes, as its region table says", got)
        found[kind] = (offset, length)
    if len(found) != 2:
        raise FormatError(name, REGION_OFFSETS[0], "regions of block table and metadata", f"{len(found)} of them")
    return found


def _parameters(pages: Pages, offset: int, length: int, name: str) -> _Parameters:
    """Return what the metadata says of the disk."""
    items = _items(pages, offset, length, name)
    block, flags = _numbers(pages, items, FILE_PARAMETERS, "<II", name)
    (size,) = _numbers(pages, items, DISK_SIZE, "<Q", name)
    (sector,) = _numbers(pages, items, LOGICAL_SECTOR, "<I", name)
    if flags & 2:
        raise SourceRefused(
            name, "is a differencing disk; merge it with its parent first (Hyper-V: Merge-VHD) or publish the parent"
        )
    if block & (block - 1) or not MIB <= block <= 256 * MIB:
        raise FormatError(name, "block size", "a power of two from 1 to 256 MiB", block)
    if sector not in (512, 4096):
        raise FormatError(name, "logical sector size", "512 or 4096", sector)
    if size % sector or not 0 < size <= MAX_IMAGE_SIZE:
        raise FormatError(name, "disk size", f"whole sectors, at most {MAX_IMAGE_SIZE:,} bytes", size)
    return _Parameters(size, block, sector)


def _items(pages: Pages, offset: int, length: int, name: str) -> dict[bytes, tuple[int, int]]:
    """Return offset in the file and length of the metadata items."""
    mark, _, count = METADATA_HEADER.unpack(pages.read(offset, METADATA_HEADER.size))
    if mark != b"metadata" or count > _MAX_ENTRIES:
        raise FormatError(name, offset, f"a metadata table of at most {_MAX_ENTRIES} entries", count)
    table = pages.read(offset + METADATA_HEADER.size, count * METADATA_ENTRY.size)
    found: dict[bytes, tuple[int, int]] = {}
    for kind, at, size, flags in METADATA_ENTRY.iter_unpack(table):
        if kind not in _KNOWN and flags & 4:
            if not flags & 2:
                raise SourceRefused(name, f"needs metadata that is not known here ({UUID(bytes_le=kind)})")
            continue  # the parent locator of a differencing disk, which is refused by its flag
        if at + size > length or kind in found:
            raise FormatError(name, offset, f"metadata items within {length:,} bytes, each once", at + size)
        found[kind] = (offset + at, size)
    return found


def _numbers(pages: Pages, items: dict[bytes, tuple[int, int]], kind: bytes, layout: str, name: str) -> tuple[int, ...]:
    at, size = items.get(kind, (0, 0))
    if size != struct.calcsize(layout):
        raise FormatError(name, "metadata", f"item {UUID(bytes_le=kind)}", f"{size} bytes")
    return struct.unpack(layout, pages.read(at, size))
