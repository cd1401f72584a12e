"""The reader of NTFS (``NtfsFileSystem``).

Source: the structures as described by the Linux-NTFS project. Names and runs come from the master file table alone;
directory indexes repeat the names and are not looked at. Names are given in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import FileEntry, FileSystem, Runs
from trimtransfer.filesystem.ntfs import journal
from trimtransfer.filesystem.ntfs.boot import Boot
from trimtransfer.filesystem.ntfs.records import Records
from trimtransfer.filesystem.ntfs.table import (
    BITMAP_FILE,
    DATA,
    FIRST_FREE,
    LOG,
    MIRROR,
    ROOT,
    TABLE,
    FileTable,
    TableReader,
)
from trimtransfer.filesystem.paths import walk
from trimtransfer.filesystem.ranges import Ranges, joined, merged, of_bits
from trimtransfer.filesystem.stream import read_stream
from trimtransfer.filesystem.volume import Volume

_FLAGS: Final = (
    (0x0001, "it is marked dirty; run chkdsk"),
    (0xC03E, "Windows has still to work on it (volume flags {:#x}); start it and shut it down, or run chkdsk"),
)
_HIBERNATED: Final = (b"hibr", b"HIBR", b"rstr", b"RSTR")
"""How hiberfil.sys begins while a Windows sleeps in it; awake it is empty or begins otherwise."""
_MIRRORED: Final = 4
_AT_ONCE: Final = 4 << 20


class NtfsFileSystem(FileSystem):
    """An NTFS volume."""

    def __init__(self, volume: Volume) -> None:
        self._boot = Boot.read(volume)
        super().__init__(volume, kind="NTFS", length=self._boot.length, block_size=self._boot.cluster_size)

    @cached_property
    def _table(self) -> FileTable:
        return TableReader(self.volume, self._boot).read()

    @cached_property
    def _data(self) -> Runs:
        return self._table.streams.runs_of(DATA)

    def files(self) -> Iterator[FileEntry]:
        """See ``FileSystem.files``."""
        table = self._table
        seen = np.zeros(len(table.used), dtype=np.bool_)
        for path, number in walk(ROOT, self._children):
            if not seen[number]:
                seen[number] = True
                found = self._data.extents(number, int(table.filled[number]))
                found[:, 1] += self.start
                yield FileEntry(path, int(table.sizes[number]), found)

    def _children(self, number: int) -> list[tuple[bytes, int]] | None:
        """Return (name, record) of what a directory holds; None for anything else."""
        table = self._table
        if not (number < len(table.used) and table.used[number]):
            raise FormatError("NTFS name", f"record {number}", "a record in use", "a free one")
        return table.names.get(number, []) if table.directories[number] else None

    def free(self) -> Ranges:
        """See ``FileSystem.free``."""
        clusters, extents = self._boot.clusters, self._extents(BITMAP_FILE)
        if int(self._table.filled[BITMAP_FILE]) < -(-clusters // 8):
            raise FormatError("NTFS map of clusters", "its size", -(-clusters // 8), "less")
        parts = []
        for at in range(0, -(-clusters // 8), _AT_ONCE):
            count = min(8 * _AT_ONCE, clusters - 8 * at)
            data = read_stream(self.volume, "NTFS map of clusters", extents, at, -(-count // 8))
            bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count, bitorder="little")
            part = of_bits(bits == 0)
            part[:, 0] += 8 * at
            parts.append(part)
        found = merged(joined(parts)) * self.block_size
        found[:, 0] += self.start
        return found

    def reached(self) -> Ranges:
        """See ``FileSystem.reached``."""
        space = self._table.streams.space()
        space[:, 0] += self.start
        return space

    def packed(self) -> int:
        """See ``FileSystem.packed``; what Windows compresses with CompactOS, too."""
        return self._table.streams.packed(DATA)

    def _extents(self, number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return self._data.extents(number, int(self._table.filled[number]))

    def _doubt(self) -> str:
        table = self._table
        if table.flags < 0:
            raise FormatError("NTFS volume", "record 3", "flags of the volume", "none")
        for mask, reason in _FLAGS:
            if table.flags & mask:
                return reason.format(table.flags)
        lost = [number for number in table.names if not self._is_directory(number)]
        if lost:
            raise FormatError("NTFS name", f"record {lost[0]}", "a directory", "something else")
        return self._journal_doubt() or self._mirror_doubt() or self._sleep_doubt()

    def _is_directory(self, number: int) -> bool:
        table = self._table
        return number < len(table.used) and bool(table.used[number] and table.directories[number])

    def _journal_doubt(self) -> str:
        extents = self._extents(LOG)
        return journal.doubt(
            lambda at, length: read_stream(self.volume, journal.WHAT, extents, at, length),
            int(self._table.sizes[LOG]),
        )

    def _mirror_doubt(self) -> str:
        """Compare the first records of the table with their copy, but for their check marks, as those may differ."""
        size = _MIRRORED * self._boot.record_size
        first, second = (
            _without_marks(read_stream(self.volume, "NTFS records", self._extents(number), 0, size), size // _MIRRORED)
            for number in (TABLE, MIRROR)
        )
        return "" if first == second else "the copy of its first file records is another one; run chkdsk"

    def _sleep_doubt(self) -> str:
        for name, number in self._table.names.get(ROOT, []):
            if name.lower() == b"hiberfil.sys" and number >= FIRST_FREE:
                start = read_stream(self.volume, "NTFS hiberfil.sys", self._extents(number), 0, 4)
                if start in _HIBERNATED:
                    return "a Windows sleeps in it; shut it down in full (no fast start, no hibernation)"
        return ""


def _without_marks(data: bytes, size: int) -> bytes:
    rows = np.frombuffer(bytearray(data), dtype=np.uint8).reshape(-1, size)
    found = Records.of(rows, 0).rows
    for row in found:
        at = int.from_bytes(row[4:6].tobytes(), "little")
        row[at : at + 2] = 0
    return found.tobytes()
