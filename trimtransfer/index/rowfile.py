"""The file of an index: rows (digest prefix, length, file number, offset) in columns, sorted, checked.

It is read back through the checks or not at all: whoever opens one knows that every row is in range and in order, and
that no byte was damaged. It is no protection against someone who may write to the cache; content found with an index is
verified by whoever uses it. FORMAT.md, "Index".

Invariant of :class:`RowFile`: the rows are in ascending order of (prefix, length), lengths are those of chunks, offsets
lie within the largest image, and file numbers are below ``files``.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, MAX_CHUNK_SIZE, MAX_IMAGE_SIZE, Kind, object_check, object_hasher
from trimtransfer.errors import FormatError

MAGIC: Final = b"TrimIndx"
FORMAT: Final = 1
ROW_SIZE: Final = 24
MAX_ROWS: Final = 1 << 34
"""16 Gi rows index 256 TiB of files; a larger count in a header is refused before anything is computed with it."""
MAX_FILES: Final = (1 << 32) - 1
_HEADER: Final = struct.Struct("<8sHBxIQ8x16s16s16s16s")
HEADER_SIZE: Final = _HEADER.size + CHECK_SIZE
_COLUMNS: Final = (("prefixes", 8), ("offsets", 8), ("lengths", 4), ("files", 4))
"""The columns in the order in which they are stored, and the width of their numbers in bytes."""
_SLICE: Final = 1 << 16
"""Rows that are read, checked or written at a time: 1.5 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows, one array for each column: ``prefixes`` and ``offsets`` uint64, ``lengths`` and ``files`` uint32.

    ``prefixes`` are the first eight bytes of chunk digests as little-endian numbers, ``offsets`` and ``lengths`` bytes.
    """

    prefixes: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    files: NDArray[np.uint32]
    offsets: NDArray[np.uint64]

    @classmethod
    def empty(cls) -> Rows:
        """Return no rows."""
        wide, narrow = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint32)
        return cls(wide, narrow, narrow, wide)

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """Return the rows of several parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.prefixes for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.files for part in parts]),
            np.concatenate([part.offsets for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.prefixes)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Rows:
        """Return the rows that a numpy index selects."""
        return Rows(self.prefixes[which], self.lengths[which], self.files[which], self.offsets[which])

    def order(self) -> NDArray[np.intp]:
        """Return the stable order by (prefix, length)."""
        order = np.argsort(self.prefixes, kind="stable")
        prefixes, lengths = self.prefixes[order], self.lengths[order]
        # Equal prefixes nearly always mean equal chunks; only where they do not, the slower sort by two keys is needed.
        if bool(((prefixes[1:] == prefixes[:-1]) & (lengths[1:] < lengths[:-1])).any()):
            return np.lexsort((self.lengths, self.prefixes))
        return order


class RowFile:
    """An index file open for reading in slices, its header checked; :meth:`check` checks the rows.

    ``kind`` is the chunker that cut the files, ``files`` a bound on the file numbers. Use it as a context manager.

    Raises:
        FormatError: not an index file of this version, or damaged.
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.kind = self.files = self.rows = 0
        self._checks: list[bytes] = []
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
        try:
            found = os.fstat(self.descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise self._wrong("file", "a regular file", "something else")
            self._parse_header(os.pread(self.descriptor, HEADER_SIZE, 0), found.st_size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.rows

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def column_start(self, name: str) -> int:
        """Return the offset in the file at which a column begins."""
        return _column_start(name, self.rows)

    def read(self, start: int, stop: int) -> Rows:
        """Return the rows from ``start`` to ``stop``."""
        columns = {
            name: np.frombuffer(self._read_column(name, width, start, stop), dtype=f"<u{width}").astype(
                f"u{width}", copy=False
            )
            for name, width in _COLUMNS
        }
        return Rows(columns["prefixes"], columns["lengths"], columns["files"], columns["offsets"])

    def read_files(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Return the file numbers alone of the rows from ``start`` to ``stop``."""
        return np.frombuffer(self._read_column("files", 4, start, stop), dtype="<u4").astype(np.uint32, copy=False)

    def check(self) -> None:
        """Read everything once; raise ``FormatError`` if a byte is damaged or a row breaks a rule."""
        hashers = {name: object_hasher() for name, _ in _COLUMNS}
        last = (0, 0)
        for start in range(0, self.rows, _SLICE):
            rows = self.read(start, min(start + _SLICE, self.rows))
            self._check_rules(rows, start, last)
            last = int(rows.prefixes[-1]), int(rows.lengths[-1])
            _feed(hashers, rows)
        for (name, _), check in zip(_COLUMNS, self._checks, strict=True):
            found = hashers[name].digest()[:CHECK_SIZE]
            if found != check:
                raise self._wrong(f"column {name}", f"check {check.hex()}", found.hex())

    def _parse_header(self, header: bytes, size: int) -> None:
        if len(header) < HEADER_SIZE or header[: len(MAGIC)] != MAGIC:
            raise self._wrong(0, f"a header of {HEADER_SIZE} bytes that begins with {MAGIC!r}", header[:8])
        _, version, self.kind, self.files, self.rows, *self._checks = _HEADER.unpack_from(header)
        if version != FORMAT:
            raise self._wrong(8, f"format {FORMAT}", version)
        if object_check(header[: _HEADER.size]) != header[_HEADER.size :]:
            raise self._wrong(_HEADER.size, "the check of the header", header[_HEADER.size :].hex())
        if self.kind not in tuple(Kind):
            raise self._wrong(10, "chunker 1 or 2", self.kind)
        if self.rows > MAX_ROWS or size != HEADER_SIZE + self.rows * ROW_SIZE:
            raise self._wrong(16, f"at most {MAX_ROWS} rows that fit a file of {size} bytes", self.rows)

    def _check_rules(self, rows: Rows, start: int, last: tuple[int, int]) -> None:
        """Check the ranges and the order of a slice of rows; ``last`` is the (prefix, length) before it."""
        prefixes, lengths = rows.prefixes, rows.lengths
        bad = (lengths == 0) | (lengths > MAX_CHUNK_SIZE) | (rows.files >= self.files) | (rows.offsets > MAX_IMAGE_SIZE)
        same = prefixes[1:] == prefixes[:-1]
        bad[1:] |= (prefixes[1:] < prefixes[:-1]) | (same & (lengths[1:] < lengths[:-1]))
        bad[0] |= (int(prefixes[0]), int(lengths[0])) < last
        if bad.any():
            raise self._wrong(f"row {start + int(np.argmax(bad))}", "a row in range and in order", "another")

    def _read_column(self, name: str, width: int, start: int, stop: int) -> bytes:
        wanted = (stop - start) * width
        at = self.column_start(name) + start * width
        parts = []
        while wanted > 0:
            part = os.pread(self.descriptor, wanted, at)
            if not part:
                raise self._wrong(at, f"{wanted} more bytes", "the end of the file")
            parts.append(part)
            wanted, at = wanted - len(part), at + len(part)
        return b"".join(parts)

    def _wrong(self, where: int | str, expected: object, got: object) -> FormatError:
        return FormatError(f"index {self.path.name}", where, expected, got)


def write_rows(path: str | os.PathLike[str], slices: Iterable[Rows], *, rows: int, kind: int, durable: bool) -> None:
    """Write an index file of ``rows`` rows in all, given in ascending order of (prefix, length).

    The file appears whole or not at all (temporary name, rename); with ``durable`` it survives a power cut on return.
    Raises ``ValueError`` if the slices do not hold ``rows`` rows.
    """
    final = Path(path)
    temporary = final.with_name(final.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        hashers = {name: object_hasher() for name, _ in _COLUMNS}
        done = files = 0
        for part in slices:
            for name, width in _COLUMNS:
                _write_all(descriptor, _stored(part, name), _column_start(name, rows) + done * width)
            _feed(hashers, part)
            files = max(files, int(part.files.max(initial=0)) + 1)
            done += len(part)
            if done > rows:
                break
        if done != rows:
            raise ValueError(f"{done} rows instead of {rows}")
        checks = [hashers[name].digest()[:CHECK_SIZE] for name, _ in _COLUMNS]
        header = _HEADER.pack(MAGIC, FORMAT, kind, files, rows, *checks)
        _write_all(descriptor, header + object_check(header), 0)
        if durable:
            os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    temporary.replace(final)
    if durable:
        _sync_directory(final.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _column_start(name: str, rows: int) -> int:
    at = HEADER_SIZE
    for other, width in _COLUMNS:
        if other == name:
            return at
        at += rows * width
    raise ValueError(name)


def _stored(rows: Rows, name: str) -> bytes:
    column: NDArray[np.uint64] | NDArray[np.uint32] = getattr(rows, name)
    return column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes()


def _feed(hashers: dict[str, blake3], rows: Rows) -> None:
    for name, _ in _COLUMNS:
        hashers[name].update(_stored(rows, name))


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
