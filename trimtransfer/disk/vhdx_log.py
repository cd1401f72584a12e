"""The log of a VHDX that was not closed cleanly, replayed in memory: what its entries change in tables is seen by
reads, and the file stays as it is.

Source: [MS-VHDX] 2.3. Only changes of block table and metadata are taken, which is what a log is for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from trimtransfer.disk.crc32c import crc32c
from trimtransfer.errors import FormatError, SourceRefused
from trimtransfer.geometry import Read

SECTOR: Final = 4096
ENTRY: Final = struct.Struct("<4sIIIQII16sQQ")
"""Mark, checksum, the entry's length, where the sequence begins, sequence number, descriptors, the log's id, lengths of
the file (of what was flushed, and at last)."""
DESCRIPTOR: Final = struct.Struct("<4sI8sQQ")
"""Mark, trailing bytes, leading bytes (or, of zeros, their length), offset in the file, sequence number."""
MAX_LOG: Final = 16 << 20
_MAX_CHANGES: Final = 1 << 14
"""Every read looks at all of them."""
_MAX_CHECKED: Final = 4
"""Times the log's length that is summed up in search of entries: valid ones do not overlap."""
REMEDY: Final = "replay it by attaching the disk once in Hyper-V, or with: qemu-img check -r all"


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes of the file from ``start`` to ``end`` that are others: ``data``, or zeros where that is None."""

    start: int
    end: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class _Entry:
    sequence: int
    tail: int
    size: int
    flushed: int
    changes: tuple[Change, ...]


def read_log(read: Read, offset: int, length: int, log: bytes, file_size: int, name: str) -> tuple[Change, ...]:
    """Return the changes of a log of ``length`` bytes at ``offset``, in order; ``log`` is its id.

    Raises:
        FormatError: the log is not within the file, or the file is shorter than it was when the log was written.
        SourceRefused: no valid sequence of entries is in it.
    """
    if not 0 < length <= MAX_LOG or length % SECTOR or offset + length > file_size:
        raise FormatError(name, "log", f"up to {MAX_LOG:,} bytes within the file", f"{length:,} bytes at {offset:,}")
    data = read(offset, length)
    entries = dict(_entries(data, log))
    for place in sorted(entries, key=lambda place: -entries[place].sequence):
        sequence = _sequence(entries, place, length)
        if sequence:
            if sequence[-1].flushed > file_size:
                raise FormatError(name, "end", f"at least {sequence[-1].flushed:,} bytes", f"{file_size:,}: cut short")
            changes = tuple(change for entry in sequence for change in entry.changes)
            if len(changes) <= _MAX_CHANGES:
                return changes
            break
    raise SourceRefused(name, f"was not closed cleanly, and its log is not understood; {REMEDY}")


def replayed(read: Read, changes: tuple[Change, ...]) -> Read:
    """Return a function that reads as if the changes had been made."""

    def read_changed(offset: int, length: int) -> bytes:
        data = bytearray(read(offset, length))
        end = offset + len(data)
        for change in changes:
            low, high = max(offset, change.start), min(end, change.end)
            if low < high:
                part = slice(low - change.start, high - change.start)
                data[low - offset : high - offset] = bytes(high - low) if change.data is None else change.data[part]
        return bytes(data)

    return read_changed


def _sequence(entries: dict[int, _Entry], head: int, length: int) -> list[_Entry]:
    """Return the entries from the one on that the last, at ``head``, names as the first; none if one is missing."""
    found: list[_Entry] = []
    place = entries[head].tail
    for _ in range(len(entries)):
        entry = entries.get(place)
        if entry is None or (found and entry.sequence != found[-1].sequence + 1):
            return []
        found.append(entry)
        if place == head:
            return found
        place = (place + entry.size) % length
    return []


def _entries(data: bytes, log: bytes) -> Iterator[tuple[int, _Entry]]:
    """Yield the valid entries of the log with their places in it; one at its end goes on at its start."""
    twice = data + data
    checked = 0
    for place in range(0, len(data), SECTOR):
        if data[place : place + 4] != b"loge":
            continue
        size = ENTRY.unpack_from(data, place)[2]
        if not 0 < size <= len(data) or size % SECTOR or checked + size > _MAX_CHECKED * len(data):
            continue
        checked += size
        entry = _parse(twice[place : place + size], log)
        if entry is not None:
            yield place, entry


def _parse(raw: bytes, log: bytes) -> _Entry | None:
    """Return an entry, None if these bytes are no valid one."""
    _, check, size, tail, sequence, count, _, found, flushed, _ = ENTRY.unpack_from(raw)
    described = -(-(ENTRY.size + count * DESCRIPTOR.size) // SECTOR) * SECTOR
    if found != log or not sequence or described > size or check != crc32c(raw[:4] + bytes(4) + raw[8:]):
        return None
    changes: list[Change] = []
    at = described
    for number in range(count):
        descriptor = DESCRIPTOR.unpack_from(raw, ENTRY.size + number * DESCRIPTOR.size)
        sector = raw[at : at + SECTOR]
        change = _change(descriptor, sector, sequence)
        if change is None:
            return None
        changes.append(change)
        at += SECTOR if change.data is not None else 0
    return _Entry(sequence, tail, size, flushed, tuple(changes)) if at == size else None


def _change(descriptor: tuple[bytes, int, bytes, int, int], sector: bytes, sequence: int) -> Change | None:
    mark, trailing, leading, offset, number = descriptor
    if number != sequence or offset % SECTOR:
        return None
    if mark == b"zero":
        length = int.from_bytes(leading, "little")
        return Change(offset, offset + length, None) if length % SECTOR == 0 else None
    if mark != b"desc" or len(sector) != SECTOR or sector[:4] != b"data":
        return None
    if int.from_bytes(sector[4:8], "little") << 32 | int.from_bytes(sector[-4:], "little") != sequence:
        return None
    return Change(offset, offset + SECTOR, leading + sector[8:-4] + trailing.to_bytes(4, "little"))
