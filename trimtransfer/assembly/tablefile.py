"""``tables.bin`` of a side directory: tables kept locally, each found by its digest.

Append-only, and trusted for nothing: a table counts only if its bytes have the digest that a manifest names. What a
killed run left half-written at the end is dropped. FORMAT.md, "Side directory".
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.table import MAX_TABLE_BYTES, Table, decode_full

MAGIC: Final = b"TrimTabl\x01\x00\x00\x00\x00\x00\x00\x00"
_ENTRY: Final = struct.Struct(f"<{DIGEST_SIZE}sI")
_MAX_STORED: Final = MAX_TABLE_BYTES + 4096
_SLACK: Final = 4 << 20
"""Bytes of unused tables that are not worth a rewrite."""


class TableFile:
    """An open file of tables. Methods may be called from several threads; one process at a time (the lock) writes.

    What is not in it is looked for in ``fallback``, another such file.
    """

    def __init__(self, path: Path, *, writable: bool = True, fallback: TableFile | None = None) -> None:
        """Open it; a missing, damaged or foreign file is as good as an empty one. ``OSError`` if it cannot be made."""
        self.path = path
        self._fallback = fallback
        self._writable = writable
        self._lock = threading.Lock()
        self._places: dict[bytes, tuple[int, int]] = {}
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._size = self._scan()
        if writable and self._size < len(MAGIC):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, MAGIC, 0)
            self._size = len(MAGIC)

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places or (self._fallback is not None and digest in self._fallback)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def get(self, digest: bytes, *, size: int) -> Table | None:
        """Return the table with this digest, of a region of ``size`` bytes; None if it is not here, or damaged."""
        place = self._places.get(digest)
        if place is None:
            return None if self._fallback is None else self._fallback.get(digest, size=size)
        stored = os.pread(self._descriptor, place[1], place[0])
        with contextlib.suppress(FormatError, IntegrityError):
            return decode_full(stored, size=size, digest=digest)
        with self._lock:
            self._places.pop(digest, None)
        return None

    def add(self, digest: bytes, stored: bytes) -> None:
        """Keep a table in its stored form (the caller has verified it); nothing happens if the file is read only."""
        if len(stored) > _MAX_STORED or not self._writable:
            return
        with self._lock:
            if digest in self._places:
                return
            entry = _ENTRY.pack(digest, len(stored)) + stored
            _write_all(self._descriptor, entry, self._size)
            self._places[digest] = (self._size + _ENTRY.size, len(stored))
            self._size += len(entry)

    def sync(self) -> None:
        """Bring everything added to the disk."""
        os.fdatasync(self._descriptor)

    def compact(self, keep: Iterable[bytes]) -> None:
        """Rewrite the file with the tables of ``keep`` alone, if that frees more than it keeps."""
        kept = [digest for digest in dict.fromkeys(keep) if digest in self._places]
        needed = len(MAGIC) + sum(_ENTRY.size + self._places[digest][1] for digest in kept)
        if self._size - needed <= max(needed, _SLACK):
            return
        temporary = self.path.with_name(self.path.name + ".tmp")
        with TableFile(temporary) as fresh:
            for digest in kept:
                at, length = self._places[digest]
                fresh.add(digest, os.pread(self._descriptor, length, at))
            fresh.sync()
            os.replace(temporary, self.path)
            with self._lock:
                os.dup2(fresh._descriptor, self._descriptor, inheritable=False)
                self._places, self._size = dict(fresh._places), fresh._size

    def _scan(self) -> int:
        """Find the entries; return where the last whole one ends."""
        if os.pread(self._descriptor, len(MAGIC), 0) != MAGIC:
            return 0
        total = os.fstat(self._descriptor).st_size
        at = len(MAGIC)
        while at + _ENTRY.size <= total:
            digest, length = _ENTRY.unpack(os.pread(self._descriptor, _ENTRY.size, at))
            if length > _MAX_STORED or at + _ENTRY.size + length > total:
                break
            self._places[digest] = (at + _ENTRY.size, length)
            at += _ENTRY.size + length
        return at


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
