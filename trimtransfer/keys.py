"""Key files: for every chunk of some tables the key of its first block, to look for chunks at any offset of local data.

A version's key file serves the tables that were stored new in that version. Keys prove nothing and are no part of any
identity: without them, or with wrong ones, less is found. FORMAT.md, "Keys".

Invariant: an opened :class:`KeyFile` has a valid directory whose keys fill the file exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import DIGEST_SIZE, MAX_IMAGE_SIZE, REGION_SIZE
from trimtransfer.errors import FormatError
from trimtransfer.table import MAX_RECORDS

MAGIC: Final = b"TrimKeys"
FORMAT: Final = 1
MAX_TABLES: Final = MAX_IMAGE_SIZE // REGION_SIZE + 256
"""Regions of the longest image, with a short one for every segment."""
KEY_SIZE: Final = 8
_HEADER: Final = struct.Struct("<8sHHI")
ENTRY: Final = np.dtype([("table", "u1", (DIGEST_SIZE,)), ("count", "<u4")])
"""A table: its digest, and how many keys it has, one for each of its chunks."""

Read: TypeAlias = Callable[[int, int], bytes]
"""``read(offset, length)`` returns these bytes of a key file."""


def directory(tables: Sequence[tuple[bytes, int]]) -> bytes:
    """Return what a key file begins with: header and directory of these tables (digest, number of keys)."""
    entries = np.zeros(len(tables), dtype=ENTRY)
    for entry, (digest, count) in zip(entries, tables, strict=True):
        entry["table"], entry["count"] = np.frombuffer(digest, dtype=np.uint8), count
    return _HEADER.pack(MAGIC, FORMAT, 0, len(tables)) + entries.tobytes()


class KeyFile:
    """A key file that ``read`` reads, its directory in memory: 60 bytes for each of its tables."""

    def __init__(self, read: Read, length: int) -> None:
        """Read and check header and directory; ``length`` is the file's.

        Raises:
            FormatError: not a key file; and what ``read`` raises.
        """
        if length < _HEADER.size:
            raise FormatError("key file", 0, f"at least {_HEADER.size} bytes", length)
        self._read = read
        magic, version, reserved, tables = _HEADER.unpack(self._take(0, _HEADER.size))
        if (magic, version, reserved) != (MAGIC, FORMAT, 0):
            expected = f"format {FORMAT} (a newer one needs a newer program)"
            raise FormatError("key file", 0, expected, (magic, version, reserved))
        end = _HEADER.size + tables * ENTRY.itemsize
        if not 1 <= tables <= MAX_TABLES or end > length:
            raise FormatError("key file", 12, f"1 to {MAX_TABLES} tables that fit {length} bytes", tables)
        entries = np.frombuffer(self._take(_HEADER.size, end - _HEADER.size), dtype=ENTRY)
        counts = entries["count"].astype(np.int64)
        if not ((counts >= 1) & (counts <= MAX_RECORDS)).all():
            raise FormatError("key file", "directory", f"1 to {MAX_RECORDS} keys for each table", "another number")
        ends = end + KEY_SIZE * np.cumsum(counts)
        if int(ends[-1]) != length:
            raise FormatError("key file", "directory", f"keys up to byte {length}", int(ends[-1]))
        self._counts, self._starts = counts, ends - KEY_SIZE * counts
        self._digests, self._order = _sorted_digests(entries)

    def __len__(self) -> int:
        """Return the number of tables."""
        return len(self._counts)

    def find(self, table: bytes) -> int | None:
        """Return the number of the table with this digest, None if the file has no keys for it."""
        at = int(np.searchsorted(self._digests, np.frombuffer(table, dtype=self._digests.dtype)[0]))
        found = at < len(self._order) and self._digests[at].tobytes() == table
        return int(self._order[at]) if found else None

    def count(self, number: int) -> int:
        """Return how many keys a table has."""
        return int(self._counts[number])

    def keys(self, number: int) -> NDArray[np.uint64]:
        """Return the keys of a table, one for each of its chunks, in order; 0: the chunk is shorter than a block."""
        data = self._take(int(self._starts[number]), KEY_SIZE * int(self._counts[number]))
        return np.frombuffer(data, dtype="<u8").astype(np.uint64, copy=False)

    def _take(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length)
        if len(data) != length:
            raise FormatError("key file", offset, f"{length} bytes", len(data))
        return data


def _sorted_digests(entries: NDArray[np.void]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the tables' digests in rising order, compared as bytes, and the number of each."""
    digests = np.ascontiguousarray(entries["table"]).view(f"V{DIGEST_SIZE}").ravel()
    order = np.argsort(digests, kind="stable")
    digests = digests[order]
    if (digests[1:] == digests[:-1]).any():
        raise FormatError("key file", "directory", "each table once", "one twice")
    return digests, order
