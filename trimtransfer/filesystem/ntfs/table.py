"""The master file table of NTFS, read whole: names, sizes, and the runs of all that does not lie in its records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, check_count
from trimtransfer.filesystem.ntfs.boot import Boot
from trimtransfer.filesystem.ntfs.pieces import Pieces, Streams
from trimtransfer.filesystem.ntfs.records import RECORD, Records, take
from trimtransfer.filesystem.ranges import Column
from trimtransfer.filesystem.stream import read_stream
from trimtransfer.filesystem.volume import Volume

TABLE, MIRROR, LOG, VOLUME, ROOT, BITMAP_FILE, FIRST_FREE = 0, 1, 2, 3, 5, 6, 24
"""Numbers of the volume's own files; those before ``FIRST_FREE`` are reserved."""
FILE_NAME: Final = 0x30
VOLUME_INFORMATION: Final = 0x70
DATA: Final = 0x80
BITMAP: Final = 0xB0
_SHORT_NAME: Final = 2
_NUMBER: Final = (1 << 48) - 1
_AT_ONCE: Final = 8 << 20
_MAX_RECORDS: Final = 4 * MAX_FILES
"""Records, free ones and extensions among them."""


@dataclass(frozen=True, slots=True, eq=False)
class FileTable:
    """What the table says.

    By record number: which are ``used`` and which ``directories``, the ``sizes`` of unnamed data in bytes and how much
    of it was ever ``filled`` (the rest reads as zeros). ``names`` gives (name, number) by directory, ``streams`` all
    attributes outside of records, ``flags`` those of the volume (-1: none).
    """

    used: NDArray[np.bool_]
    directories: NDArray[np.bool_]
    sizes: Column
    filled: Column
    names: dict[int, list[tuple[bytes, int]]]
    streams: Streams
    flags: int


class TableReader:
    """Reads the table of one volume, once."""

    def __init__(self, volume: Volume, boot: Boot) -> None:
        self._volume, self._boot = volume, boot
        self._pieces = Pieces(boot.cluster_size, boot.clusters)
        self._names: dict[int, list[tuple[bytes, int]]] = {}
        self._counted = 0
        self._resident: list[tuple[Column, Column]] = []
        self._heads: list[tuple[Column, Column, NDArray[np.bool_]]] = []
        self._flags = -1

    def read(self) -> FileTable:
        """Read it.

        Raises:
            FormatError: a record breaks a rule, pieces are missing, or there are too many files.
        """
        for records in self._records():
            self._take(records)
        streams = self._pieces.joined()
        numbers, owners, directories = (np.concatenate(columns) for columns in zip(*self._heads, strict=True))
        used = np.zeros(self._count, dtype=np.bool_)
        base = numbers == owners
        used[numbers[base]] = True
        if not (owners < self._count).all() or not used[owners].all():
            raise FormatError(RECORD, "extension records", "of records in use", "of others")
        is_directory = np.zeros(self._count, dtype=np.bool_)
        is_directory[numbers[base]] = directories[base]
        sizes, filled = np.zeros(self._count, dtype=np.int64), np.zeros(self._count, dtype=np.int64)
        for owner, size in self._resident:
            sizes[owner] = size
        owner, size, written = streams.sizes(DATA)
        sizes[owner], filled[owner] = size, written
        self._check_used(streams, used, numbers[~base])
        return FileTable(used, is_directory, sizes, filled, self._names, streams, self._flags)

    def _records(self) -> Iterator[Records]:
        """Yield the records in use in batches. The runs of the table itself come from the records read so far."""
        size = self._boot.record_size
        first = self._volume.bytes(RECORD, self._boot.table * self._boot.cluster_size, size)
        self._take_table(Records.of(_rows(first, size), 0))
        done = 0
        while done < self._bytes:
            extents, end = self._known()
            if end <= done:
                raise FormatError(RECORD, f"record {done // size}", "runs of the table", "none")
            for at in range(done, end, _AT_ONCE):
                data = read_stream(self._volume, RECORD, extents, at, min(_AT_ONCE, end - at))
                yield Records.of(_rows(data, size), at // size)
            done = end

    def _take_table(self, first: Records) -> None:
        """Start with the part of the table's runs that lies in its own record."""
        row, at, kind = first.attributes()
        outside = take(first.rows, row, at + 8, 1) != 0
        wanted = (kind == DATA) & outside & (take(first.rows, row, at + 9, 1) == 0)
        if not len(first.numbers) or wanted.sum() != 1:
            raise FormatError(RECORD, "record 0", "the table's own record", "another")
        self._start = Pieces(self._boot.cluster_size, self._boot.clusters)
        self._start.add(first, row[wanted], at[wanted], kind[wanted])
        self._bytes = int(take(first.rows, row[wanted], at[wanted] + 56, 8)[0])
        self._count = self._bytes // self._boot.record_size
        if self._count < FIRST_FREE or self._bytes % self._boot.record_size:
            raise FormatError(RECORD, "record 0", "a table of whole records", f"{self._bytes} bytes")
        check_count("NTFS file table", self._count, _MAX_RECORDS)

    def _known(self) -> tuple[NDArray[np.int64], int]:
        """Return the extents of the table as far as known, and where in it they end."""
        runs = self._start.runs_of(TABLE, DATA) if not self._heads else self._pieces.runs_of(TABLE, DATA)
        ends = np.cumsum(runs[:, 2])
        together = runs[:, 0] == ends - runs[:, 2]
        runs = runs[: len(runs) if together.all() else int(np.argmin(together))]
        return runs, min(int(runs[:, 2].sum()), self._bytes) // self._boot.record_size * self._boot.record_size

    def _take(self, records: Records) -> None:
        self._heads.append((records.numbers, records.owners, records.directories))
        check_count("NTFS files", sum(len(head[0]) for head in self._heads), MAX_FILES)
        row, at, kind = records.attributes()
        outside = take(records.rows, row, at + 8, 1) != 0
        self._pieces.add(records, row[outside], at[outside], kind[outside])
        row, at, kind = row[~outside], at[~outside], kind[~outside]
        place, length = records.values(row, at)
        unnamed = (kind == DATA) & (take(records.rows, row, at + 9, 1) == 0)
        inside = records.owners[row[unnamed]]
        if len(inside) and inside.max() >= self._count:
            raise FormatError(RECORD, "extension records", "of records in the table", int(inside.max()))
        self._resident.append((inside, length[unnamed]))
        named = kind == FILE_NAME
        self._take_names(records, row[named], place[named], length[named])
        volume = (kind == VOLUME_INFORMATION) & (records.owners[row] == VOLUME) & (length >= 12)
        if volume.any():
            self._flags = int(take(records.rows, row[volume], place[volume] + 10, 2)[0])

    def _take_names(self, records: Records, row: Column, place: Column, length: Column) -> None:
        """Take over names. Short ones beside a long one do not count."""
        if (length < 66).any():
            raise FormatError("NTFS name", "a file name attribute", "66 bytes at least", int(length.min()))
        size = 2 * take(records.rows, row, place + 64, 1)
        if (size + 66 > length).any():
            raise FormatError("NTFS name", "a file name attribute", "a name within it", int(size.max()))
        parent = take(records.rows, row, place, 8) & _NUMBER
        kept = take(records.rows, row, place + 65, 1) != _SHORT_NAME
        columns = (column[kept].tolist() for column in (row, records.owners[row], parent, place, size))
        for number, owner, directory, start, count in zip(*columns, strict=True):
            raw = records.rows[number, start + 66 : start + 66 + count].tobytes()
            name = raw.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")
            if owner >= FIRST_FREE:
                self._names.setdefault(directory, []).append((name, owner))
                self._counted += 1
        check_count("NTFS names", self._counted, MAX_FILES)

    def _check_used(self, streams: Streams, used: NDArray[np.bool_], extensions: Column) -> None:
        """Compare the records in use with the table's map of them."""
        extents = streams.runs_of(BITMAP).extents(TABLE, self._boot.length)
        data = read_stream(self._volume, "NTFS map of records", extents, 0, -(-self._count // 8))
        marked = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=self._count, bitorder="little") != 0
        found = used.copy()
        found[extensions] = True
        wrong = np.flatnonzero(found[FIRST_FREE:] != marked[FIRST_FREE:])
        if len(wrong):
            number = FIRST_FREE + int(wrong[0])
            raise FormatError("NTFS map of records", f"record {number}", bool(marked[number]), bool(found[number]))


def _rows(data: bytes, size: int) -> NDArray[np.uint8]:
    return np.frombuffer(bytearray(data), dtype=np.uint8).reshape(-1, size)
