"""The redo file: everything that an image in place will become, complete and verified before the first byte changes.

Records are appended as content arrives. When all are there a commit record ends the file; from then on the image is
brought forward by applying every record, which may be repeated as often as it is interrupted and needs nothing but this
file. Before the commit record the image is untouched, and an interrupted run goes on where it stopped. FORMAT.md,
"Redo file".
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.holes import hole_bytes
from trimtransfer.assembly.journal import Base, boot_id
from trimtransfer.assembly.partial import Batches
from trimtransfer.assembly.rawfile import Piece, RawFile
from trimtransfer.chunk import CHECK_SIZE, MAX_IMAGE_SIZE, object_check
from trimtransfer.disk.source import Disk
from trimtransfer.errors import IntegrityError, SourceChanged

MAGIC: Final = b"TrimRedo"
FORMAT: Final = 1
MAX_RECORD: Final = 4 << 20
"""Longest data of one record; what applying holds in memory."""
_HEADER: Final = struct.Struct("<8sHxx32sQQQ16sI")
_RECORD: Final = struct.Struct(f"<4sBxxxQQ{CHECK_SIZE}sI")
_RECORD_MAGIC: Final = b"TTRr"
_DATA, _ZEROS, _COMMIT = 1, 2, 3
_CRC_SIZE: Final = 4
_IN_FILE: Final = 1 << 62
"""Added to a position that lies in the redo file; others lie in the image."""


@dataclass(frozen=True, slots=True)
class RedoKey:
    """What a redo file belongs to: digest of the target's manifest, the target's length, and the image's device and
    inode number."""

    target: bytes
    length: int
    device: int
    inode: int


class RedoRecord:
    """One record as it was found: kind, absolute ``offset`` and ``length``, position of its data, their check."""

    __slots__ = ("check", "kind", "length", "offset", "position")

    def __init__(self, kind: int, offset: int, length: int, check: bytes, position: int) -> None:
        self.kind, self.offset, self.length, self.check, self.position = kind, offset, length, check, position


class Redo:
    """An open redo file over the image ``image``. Methods may be called from several threads.

    ``base`` says how far the image's own content is known, ``done`` what an earlier run had collected.
    """

    wrote = "in-place"

    def __init__(self, path: Path, image: RawFile, key: RedoKey, *, base: Base) -> None:
        """Open the redo file of this target and go on with it, or start one (any other is discarded)."""
        self.path, self.image, self.key, self.base = path, image, key, base
        self._lock = threading.Lock()
        self._data = _Columns()
        self._zeros = _Columns()
        self._file = RawFile(path, create=True)
        self._batches = Batches(self.sync)
        try:
            self._count, self._end = self._resume()
        except BaseException:
            self._file.close()
            raise
        self.done = self._extents()

    def write(self, pieces: Sequence[Piece]) -> None:
        """Add verified bytes."""
        for offset, data in pieces:
            for start in range(0, len(data), MAX_RECORD):
                part = data[start : start + MAX_RECORD]
                position = self._append(_DATA, offset + start, len(part), object_check(part), part)
                with self._lock:
                    self._data.add(offset + start, len(part), position)

    def write_zeros(self, offset: int, length: int) -> None:
        """Add a range of zeros."""
        self._append(_ZEROS, offset, length, bytes(CHECK_SIZE), memoryview(b""))

    def locate(self, offsets: NDArray[np.int64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return positions for :meth:`read` of pieces that are in the redo file, or right in the image already."""
        with self._lock:
            known = self._data.extents()
        found = known.locate(offsets, lengths)
        return np.where(found >= 0, found + _IN_FILE, offsets)

    def read(self, position: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with what lies at ``position``; False if that cannot be."""
        if position >= _IN_FILE:
            return self._file.read(position - _IN_FILE, buffer)
        return self.image.read(position, buffer)

    def fetched(self, size: int) -> None:
        """Count bytes that came over the network and were added."""
        self._batches.fetched(size)

    def sync(self) -> None:
        """Bring what was added to the disk."""
        self._file.sync_data()

    def overlay(self) -> Overlay:
        """Return what the image will be once everything added so far is applied."""
        with self._lock:
            return Overlay(self.image, self._file, self._data.extents(), self._zeros.extents(), self.key.length)

    def growth(self, image: Disk) -> int:
        """Return the bytes by which ``image``, where it has holes, grows when everything added so far is applied."""
        with self._lock:
            data = self._data.extents()
        return hole_bytes(image, data.starts, data.ends - data.starts)

    def commit(self) -> None:
        """Declare the file complete, durably: from now on it will be applied, whatever happens."""
        self._file.sync()
        self._append(_COMMIT, self.key.length, self._count, bytes(CHECK_SIZE), memoryview(b""))
        self._file.sync()

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()

    def _append(self, kind: int, offset: int, length: int, check: bytes, data: memoryview) -> int:
        """Append a record and return the position of its data."""
        header = _pack_record(kind, offset, length, check)
        with self._lock:
            position = self._end + len(header)
            self._file.write(self._end, header)
            self._file.write(position, data)
            self._end = position + len(data)
            self._count += 1
            if kind == _ZEROS:
                self._zeros.add(offset, length, position)
        return position

    def _resume(self) -> tuple[int, int]:
        """Take over the records of an earlier run; return their number and where they end."""
        found = read_header(self._file)
        count, end = 0, _HEADER.size
        if found is not None and found[0] == self.key:
            for record in read_records(self._file, verify=found[1] != boot_id()):
                columns = self._data if record.kind == _DATA else self._zeros
                columns.add(record.offset, record.length, record.position)
                count += 1
                end = record.position + (record.length if record.kind == _DATA else 0)
            self._file.resize(end)
        else:
            self._file.resize(0)
        self._file.write(0, _pack_header(self.key))
        self._file.sync()
        return count, end

    def _extents(self) -> Extents:
        offsets = np.concatenate((self._data.column(0), self._zeros.column(0)))
        return Extents.of(offsets, np.concatenate((self._data.column(1), self._zeros.column(1))))


class Overlay:
    """An image as a redo file will make it: to be verified before a byte of it is changed. Safe among threads."""

    def __init__(self, image: RawFile, redo: RawFile, data: Extents, zeros: Extents, length: int) -> None:
        self.size = length
        self._image, self._redo, self._data, self._zeros = image, redo, data, zeros
        self._image_size = image.size

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # the files belong to others

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on; ``SourceChanged`` if a file is shorter than it was."""
        there = min(len(buffer), max(0, self._image_size - offset))
        good = self._image.read(offset, buffer[:there])
        buffer[there:] = bytes(len(buffer) - there)
        for at, part, _ in self._zeros.overlapping(offset, len(buffer)):
            buffer[at : at + part] = bytes(part)
        for at, part, position in self._data.overlapping(offset, len(buffer)):
            good = good and self._redo.read(position, buffer[at : at + part])
        if not good:
            raise SourceChanged(str(self._image.path), "it ends earlier than it did")

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the range: holes are not looked for."""
        yield start, length


class RedoData:
    """The data of an abandoned redo file as parts of the image that it was to make: a seed's source.

    ``extents`` tells which parts. Its records are not verified here: whoever uses a chunk does that. A file that is
    none, or belongs to another ``target``, has no parts.
    """

    def __init__(self, path: Path, target: bytes) -> None:
        self.path = path
        self._file = RawFile(path, writable=False)
        header = read_header(self._file)
        columns = _Columns()
        mine = header is not None and header[0].target == target
        for record in read_records(self._file, verify=False) if mine else ():
            if record.kind == _DATA:
                columns.add(record.offset, record.length, record.position)
        self.extents = columns.extents()
        self.size = int(self.extents.ends[-1]) if len(self.extents) else 0

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on; ``SourceChanged`` where not all of that is here."""
        got = 0
        for at, length, position in self.extents.overlapping(offset, len(buffer)):
            if at != got or not self._file.read(position, buffer[at : at + length]):
                break
            got += length
        if got != len(buffer):
            raise SourceChanged(str(self.path), f"holds no {len(buffer):,} bytes at {offset:,} of the image")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Columns:
    """Growing columns of offsets, lengths and positions: 24 bytes for each record."""

    def __init__(self) -> None:
        self._values = array("q")

    def add(self, offset: int, length: int, position: int) -> None:
        self._values.extend((offset, length, position))

    def column(self, number: int) -> NDArray[np.int64]:
        return np.array(self._values, dtype=np.int64).reshape(-1, 3)[:, number]

    def extents(self) -> Extents:
        return Extents.of(self.column(0), self.column(1), self.column(2))


def read_header(file: RawFile) -> tuple[RedoKey, bytes] | None:
    """Return what a redo file belongs to and the boot it was written in; None if it is none, or damaged."""
    data = os.pread(file.descriptor, _HEADER.size, 0)
    if len(data) < _HEADER.size:
        return None
    magic, version, target, length, device, inode, boot, crc = _HEADER.unpack(data)
    if (magic, version) != (MAGIC, FORMAT) or crc != zlib.crc32(data[:-_CRC_SIZE]):
        return None
    return RedoKey(target, length, device, inode), boot


def read_records(file: RawFile, *, verify: bool, commit: list[int] | None = None) -> Iterator[RedoRecord]:
    """Yield the records up to the first that is not whole; with ``verify`` the data of each are checked too.

    A commit record is not yielded and ends the file; if it counts all records, that number is added to ``commit``.
    """
    at, count, total = _HEADER.size, 0, file.size
    buffer = memoryview(bytearray(MAX_RECORD)) if verify else memoryview(b"")
    while at + _RECORD.size <= total:
        data = os.pread(file.descriptor, _RECORD.size, at)
        magic, kind, offset, length, check, crc = _RECORD.unpack(data)
        if magic != _RECORD_MAGIC or crc != zlib.crc32(data[:-_CRC_SIZE]) or kind not in (_DATA, _ZEROS, _COMMIT):
            return
        position = at + _RECORD.size
        if kind == _COMMIT:
            if commit is not None and length == count:
                commit.append(count)
            return
        at = position + (length if kind == _DATA else 0)
        if offset + length > MAX_IMAGE_SIZE or (kind == _DATA and (length > MAX_RECORD or at > total)):
            return
        if verify and kind == _DATA:
            part = buffer[:length]
            if not file.read(position, part) or object_check(part) != check:
                return
        yield RedoRecord(kind, offset, length, check, position)
        count += 1


def is_committed(file: RawFile) -> bool:
    """Return whether a redo file ends in a commit record that counts all its records."""
    commit: list[int] = []
    for _ in read_records(file, verify=False, commit=commit):
        pass
    return bool(commit)


def apply(
    file: RawFile,
    image: RawFile,
    *,
    length: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write every record of a committed redo file into ``image``, set its ``length``, and bring all to the disk.

    May be repeated. Each record's data are checked in the very buffer that is written.

    Raises:
        IntegrityError: a record's data were damaged on the disk; the image is then a mixture.
    """
    if image.size < length:
        image.resize(length)
    buffer = memoryview(bytearray(MAX_RECORD))
    total = file.size
    for record in read_records(file, verify=False):
        if record.kind == _ZEROS:
            image.write_zeros(record.offset, record.length)
        else:
            part = buffer[: record.length]
            if not file.read(record.position, part) or object_check(part) != record.check:
                raise IntegrityError(f"{file.path}, byte {record.position}", record.check, object_check(part))
            image.write(record.offset, part)
        if progress is not None:
            progress("write", record.position, total)
    image.resize(length)
    image.sync()
    if progress is not None:
        progress("write", total, total)


def is_applied(file: RawFile, image: RawFile) -> bool:
    """Return whether the image holds what every record says, read back from it."""
    buffer = memoryview(bytearray(MAX_RECORD))
    for record in read_records(file, verify=False):
        if record.kind == _DATA:
            part = buffer[: record.length]
            if not image.read(record.offset, part) or object_check(part) != record.check:
                return False
        elif not _all_zeros(image, record.offset, record.length, buffer):
            return False
    return True


def _all_zeros(image: RawFile, offset: int, length: int, buffer: memoryview) -> bool:
    for at in range(offset, offset + length, len(buffer)):
        part = buffer[: min(len(buffer), offset + length - at)]
        if not image.read(at, part) or np.frombuffer(part, dtype=np.uint8).any():
            return False
    return True


def discard_redo(path: Path) -> None:
    """Delete a redo file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _pack_header(key: RedoKey) -> bytes:
    fields = _HEADER.pack(MAGIC, FORMAT, key.target, key.length, key.device, key.inode, boot_id(), 0)[:-_CRC_SIZE]
    return fields + zlib.crc32(fields).to_bytes(_CRC_SIZE, "little")


def _pack_record(kind: int, offset: int, length: int, check: bytes) -> bytes:
    fields = _RECORD.pack(_RECORD_MAGIC, kind, offset, length, check, 0)[:-_CRC_SIZE]
    return fields + zlib.crc32(fields).to_bytes(_CRC_SIZE, "little")
