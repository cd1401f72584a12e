"""The journal of a half-written file: which extents of it hold verified bytes of the version being assembled.

Append-only: blocks of extents, and barriers that say "everything up to here is on the disk". Within one boot of the
machine every block counts (the page cache outlives a killed process); after another boot only what lies before the last
barrier. A damaged or foreign journal is worth nothing and costs a re-scan of the file, never correctness. FORMAT.md,
"Journal".
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.extents import Extents
from trimtransfer.chunk import DIGEST_SIZE

MAGIC: Final = b"TrimJrnl"
FORMAT: Final = 1
_HEADER: Final = struct.Struct("<8sHBx32s32s16sQI")
_BLOCK: Final = struct.Struct("<4sBxxxII")  # magic, kind, number of entries, CRC-32 of the fields before it and payload
_BLOCK_MAGIC: Final = b"TTJb"
_EXTENTS, _BARRIER = 1, 2
_ENTRY: Final = np.dtype([("offset", "<u8"), ("length", "<u8")])
_POSITION: Final = struct.Struct("<Q")
_MOST_ENTRIES: Final = 1 << 16


class Base(IntEnum):
    """What a half-written file holds where nothing was written yet."""

    ZEROS = 1
    """A new sparse file."""
    OLD = 2
    """A clone of the old image."""
    UNKNOWN = 3
    """A device, or a file whose history was lost: every place must be looked at."""


@dataclass(frozen=True, slots=True)
class JournalKey:
    """What a journal belongs to: digest of the target's manifest, the target's length in bytes, and the base.

    ``base_manifest`` is the digest of the manifest of the old image that was cloned (zeros for another base).
    """

    target: bytes
    length: int
    base: Base
    base_manifest: bytes = bytes(DIGEST_SIZE)


def boot_id() -> bytes:
    """Return 16 bytes that differ after every boot of this machine; random (so never equal) where unknown."""
    with contextlib.suppress(OSError, ValueError):
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    return os.urandom(16)


class Journal:
    """An open journal. Methods may be called from several threads."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self._descriptor, self._size = descriptor, size
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, key: JournalKey, *, done: Extents | None = None, boot: bytes | None = None) -> Journal:
        """Start a journal, replacing any other; ``done`` are extents that are on the disk already."""
        header = _pack_header(key, boot or boot_id())
        temporary = path.with_name(path.name + ".tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, header)
            journal = cls(path, descriptor, len(header))
            if done is not None and len(done):
                journal.add(done.starts, done.ends - done.starts)
                journal.barrier(journal.position)
            os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return journal

    @property
    def position(self) -> int:
        """Bytes of the journal so far: what :meth:`barrier` takes."""
        with self._lock:
            return self._size

    def add(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Record that these extents were written (each call returns after its bytes are in the page cache)."""
        entries = np.empty(len(offsets), dtype=_ENTRY)
        entries["offset"], entries["length"] = offsets, lengths
        for start in range(0, len(entries), _MOST_ENTRIES):
            part = entries[start : start + _MOST_ENTRIES]
            self._append(_EXTENTS, len(part), part.tobytes())

    def add_one(self, offset: int, length: int) -> None:
        """Record that one extent was written."""
        self._append(_EXTENTS, 1, struct.pack("<QQ", offset, length))

    def barrier(self, position: int) -> None:
        """Record that all extents before ``position`` of the journal are on the disk, and bring that to the disk."""
        self._append(_BARRIER, 1, _POSITION.pack(position))
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; what it says stays."""
        os.close(self._descriptor)

    def _append(self, kind: int, count: int, payload: bytes) -> None:
        block = _pack_block(kind, count, payload)
        with self._lock:
            _write_all(self._descriptor, block)
            self._size += len(block)


def load_journal(path: Path, *, boot: bytes | None = None) -> tuple[JournalKey, Extents] | None:
    """Return what a journal belongs to and which extents can be relied on; None if it is missing, damaged or foreign.

    ``boot`` is the present boot's id. Reading ends at the first block that is not whole.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    header = _parse_header(data)
    if header is None:
        return None
    key, written_in = header
    blocks, covered = _parse_blocks(data)
    if written_in != (boot or boot_id()):
        blocks = [(at, entries) for at, entries in blocks if at < covered]
    parts = [entries for _, entries in blocks]
    entries = np.concatenate(parts) if parts else np.zeros(0, dtype=_ENTRY)
    fits = (entries["offset"] <= key.length) & (
        entries["length"] <= key.length - np.minimum(entries["offset"], key.length)
    )
    if not fits.all():
        return None
    return key, Extents.of(entries["offset"].astype(np.int64), entries["length"].astype(np.int64))


def _pack_header(key: JournalKey, boot: bytes) -> bytes:
    fields = _HEADER.pack(MAGIC, FORMAT, key.base, key.target, key.base_manifest, boot, key.length, 0)[:-_CRC_SIZE]
    return fields + zlib.crc32(fields).to_bytes(_CRC_SIZE, "little")


def _parse_header(data: memoryview) -> tuple[JournalKey, bytes] | None:
    if len(data) < _HEADER.size:
        return None
    magic, version, base, target, base_manifest, boot, length, crc = _HEADER.unpack(data[: _HEADER.size])
    if (magic, version) != (MAGIC, FORMAT) or crc != zlib.crc32(data[: _HEADER.size - _CRC_SIZE]):
        return None
    if base not in tuple(Base) or length >= 1 << 62:
        return None
    return JournalKey(target, length, Base(base), base_manifest), boot


def _pack_block(kind: int, count: int, payload: bytes) -> bytes:
    fields = _BLOCK.pack(_BLOCK_MAGIC, kind, count, 0)[:-_CRC_SIZE]
    return fields + zlib.crc32(payload, zlib.crc32(fields)).to_bytes(_CRC_SIZE, "little") + payload


def _parse_blocks(data: memoryview) -> tuple[list[tuple[int, NDArray[np.void]]], int]:
    """Return the blocks of extents with the position of each, and the position that the last barrier covers."""
    at, covered = _HEADER.size, 0
    blocks: list[tuple[int, NDArray[np.void]]] = []
    while len(data) - at >= _BLOCK.size:
        magic, kind, count, crc = _BLOCK.unpack(data[at : at + _BLOCK.size])
        size = count * (_ENTRY.itemsize if kind == _EXTENTS else _POSITION.size)
        payload = data[at + _BLOCK.size : at + _BLOCK.size + size]
        if magic != _BLOCK_MAGIC or not 0 < count <= _MOST_ENTRIES or len(payload) != size:
            break
        if crc != zlib.crc32(payload, zlib.crc32(data[at : at + _BLOCK.size - _CRC_SIZE])):
            break
        if kind == _EXTENTS:
            blocks.append((at, np.frombuffer(payload, dtype=_ENTRY)))
        elif kind == _BARRIER and count == 1:
            covered = max(covered, min(_POSITION.unpack(payload)[0], at))
        else:
            break
        at += _BLOCK.size + size
    return blocks, covered


_CRC_SIZE: Final = 4


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
