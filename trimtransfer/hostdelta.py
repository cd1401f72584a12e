"""Deltas from host files: what they make of a version out of chunks that a host's files hold.

Such an index is a delta index whose base is no version but a list of chunks, each by its length and the first eight
bytes of its digest: what a client's own index of files is searched with. It proves nothing, as no delta index does.
FORMAT.md, "Host delta index".

Invariant: constructed values are valid in themselves; whether base runs lie within the list is looked at when they are
used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, MAX_CHUNK_SIZE, Bytes, object_check
from trimtransfer.codec import compress, decompress
from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex
from trimtransfer.errors import FormatError, IntegrityError

MAGIC: Final = b"TrimBase"
FORMAT: Final = 1
MAX_BASE_CHUNKS: Final = 1 << 20
"""Most chunks that the deltas of a profile start from, 12 MiB: some 27 GiB of files."""
GROUP_BITS: Final = 14
"""Base runs number chunks in groups of 2^14: ``region`` and ``record`` of a run."""
_HEADER: Final = struct.Struct(f"<8sHHII{CHECK_SIZE}s")
_ROW: Final = 12
_LEVEL: Final = 9
MAX_HOST_DELTA: Final = MAX_INDEX + _HEADER.size + _ROW * MAX_BASE_CHUNKS + (1 << 16)
"""Longest such index in bytes: a reader takes it whole."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseChunks:
    """Chunks that deltas start from: ``lengths`` in bytes (uint32), and ``prefixes``, the first eight bytes of digests
    as numbers (uint64)."""

    lengths: NDArray[np.uint32]
    prefixes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.lengths)


class HostDelta:
    """The index of a profile, in memory: ``index``, whose ``base`` is the digest of the profile, and ``chunks``."""

    def __init__(self, data: Bytes) -> None:
        """Parse it.

        Raises:
            FormatError: not such an index.
            IntegrityError: the list of chunks is damaged.
        """
        view = memoryview(data)
        if not _HEADER.size <= len(view) <= MAX_HOST_DELTA:
            raise FormatError("host delta index", 0, f"{_HEADER.size} to {MAX_HOST_DELTA} bytes", len(view))
        magic, version, reserved, count, stored, check = _HEADER.unpack_from(view)
        if (magic, version, reserved) != (MAGIC, FORMAT, 0):
            expected = f"format {FORMAT} (a newer one needs a newer program)"
            raise FormatError("host delta index", 0, expected, (magic, version, reserved))
        end = _HEADER.size + stored
        if count > MAX_BASE_CHUNKS or end > len(view):
            raise FormatError("host delta index", 12, f"at most {MAX_BASE_CHUNKS} chunks within it", (count, stored))
        part = view[_HEADER.size : end]
        if object_check(part) != check:
            raise IntegrityError("host delta index, base chunks", check, object_check(part))
        self.chunks = _chunks(decompress(part, _ROW * count, "base chunks"), count)
        self.index = DeltaIndex(view[end:])


def encode_host_delta(chunks: BaseChunks, index: bytes) -> bytes:
    """Return the index of a profile: its list of chunks, and a delta index whose base runs number them."""
    columns = chunks.lengths.astype("<u4").tobytes() + chunks.prefixes.astype("<u8").tobytes()
    stored = compress(columns, _LEVEL)
    header = _HEADER.pack(MAGIC, FORMAT, 0, len(chunks), len(stored), object_check(stored))
    return b"".join((header, stored, index))


def _chunks(columns: bytes, count: int) -> BaseChunks:
    if len(columns) != _ROW * count:
        raise FormatError("base chunks", 0, f"{_ROW * count} bytes for {count} chunks", len(columns))
    lengths = np.frombuffer(columns, "<u4", count).astype(np.uint32, copy=False)
    if ((lengths == 0) | (lengths > MAX_CHUNK_SIZE)).any():
        raise FormatError("base chunks", 0, f"chunks of 1 to {MAX_CHUNK_SIZE} bytes", "others")
    return BaseChunks(lengths, np.frombuffer(columns, "<u8", count, 4 * count).astype(np.uint64, copy=False))
