"""Arrays and byte strings too many for memory: kept in unlinked temporary files of a directory once they are large.

A process that dies leaves nothing behind: the files never have a name (or lose it at once).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trimtransfer.chunk import object_check
from trimtransfer.errors import IntegrityError
from trimtransfer.store import DISK_REMEDY

IN_MEMORY: Final = 4 << 20
"""Arrays up to this many bytes stay in memory."""


def large_array(count: int, dtype: DTypeLike, directory: Path, *, in_memory: int = IN_MEMORY) -> NDArray[Any]:
    """Return a zeroed writable array of ``count`` elements: mapped from a temporary file if it is large.

    The file's blocks are allocated first: a mapping must not meet a full disk.
    """
    kind = np.dtype(dtype)
    size = count * kind.itemsize
    if size <= in_memory:
        return np.zeros(count, dtype=kind)
    with tempfile.TemporaryFile(dir=directory) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=kind, mode="r+", shape=(count,))


def scatter(new: NDArray[Any], bucket: NDArray[np.int64], following: NDArray[np.int64], rows: NDArray[Any]) -> None:
    """Put each of ``new`` at the end of its ``bucket`` in ``rows``, keeping their order within buckets.

    ``following`` holds where each bucket's next row goes, and is moved on.
    """
    order = np.argsort(bucket, kind="stable")
    sizes = np.bincount(bucket, minlength=len(following))
    first = np.cumsum(sizes) - sizes
    rows[np.arange(len(new)) - first[bucket[order]] + following[bucket[order]]] = new[order]
    following += sizes


class Rows:
    """A growing array of structured rows: appended in parts, read whole; in a temporary file once it is large."""

    def __init__(self, dtype: DTypeLike, directory: Path, *, in_memory: int = IN_MEMORY) -> None:
        self.dtype = np.dtype(dtype)
        self._directory, self._in_memory = directory, in_memory
        self._parts: list[NDArray[Any]] = []
        self._held = 0  # bytes in _parts
        self._file: Any = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NDArray[Any]) -> int:
        """Append rows and return the number of the first one."""
        first = self._count
        self._parts.append(np.ascontiguousarray(rows, dtype=self.dtype))
        self._held += rows.nbytes
        self._count += len(rows)
        if self._held > self._in_memory:
            self._write()
        return first

    def array(self) -> NDArray[Any]:
        """Return all rows; valid until the next append."""
        if self._file is None:
            joined = np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=self.dtype)
            self._parts = [joined]
            return joined
        self._write()
        return np.memmap(self._file, dtype=self.dtype, mode="r+", shape=(self._count,))

    def close(self) -> None:
        """Give the memory and the file back."""
        self._parts = []
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - held
        for part in self._parts:
            _write_all(self._file.fileno(), part.view(np.uint8).data)
        self._parts, self._held = [], 0


class Pieces:
    """Byte strings kept in order in a temporary file, each found by its number. A damaged one raises when read."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - held
        self._ends = [0]
        self._checks: list[bytes] = []

    def __len__(self) -> int:
        return len(self._checks)

    def append(self, data: bytes) -> int:
        """Append a byte string and return its number."""
        _write_all(self._file.fileno(), memoryview(data))
        self._ends.append(self._ends[-1] + len(data))
        self._checks.append(object_check(data))
        return len(self._checks) - 1

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        data = os.pread(self._file.fileno(), end - start, start)
        found = object_check(data)
        if found != self._checks[number]:
            raise IntegrityError("temporary file", self._checks[number], found, DISK_REMEDY)
        return data

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


class Flat:
    """Bytes one after the other in a temporary file, read at any place. What is read is not checked."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - held
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: memoryview) -> None:
        """Append bytes."""
        _write_all(self._file.fileno(), data)
        self._size += len(data)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to ``end``."""
        return os.pread(self._file.fileno(), end - start, start)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
