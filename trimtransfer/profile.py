"""Host profiles: which chunks the files of a reference host consist of. Digests only, never content.

What the deltas of a version can start from on every host that has the same files. FORMAT.md, "Profile".

Invariant: constructed profiles are valid: each file's records cover it, filled up to whole blocks, and paths stay
within their tree.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, DIGEST_SIZE, MAX_CHUNK_SIZE, MAX_IMAGE_SIZE, Bytes, Kind, object_digest
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError
from trimtransfer.table import ZERO

MAGIC: Final = b"TrimProf"
FORMAT: Final = 1
MAX_TREES: Final = 64
MAX_FILES: Final = 1 << 22
MAX_RECORDS: Final = 1 << 23
"""Most chunks and zero runs of a profile: some 200 GiB of files."""
MAX_PATHS: Final = 1 << 29
MAX_PROFILE: Final = 1 << 30
"""Longest profile in bytes: a reader takes it whole."""
FILE: Final = np.dtype([("tree", "<u4"), ("size", "<u8"), ("records", "<u4"), ("path", "<u4")])
"""A file: number of its tree, size in bytes, how many records it has, how long its path is."""
_HEADER: Final = struct.Struct("<8sHBxIIIII")
_COLUMNS: Final = (("tree", 4), ("size", 8), ("records", 4), ("path", 4))
_LEVEL: Final = 9


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A reference host: how many ``trees``, their ``files`` (dtype ``FILE``) with ``paths`` relative to their tree, in
    the files' order all ``records`` (uint32 lengths, bit ``ZERO`` for runs of zeros) and the chunks' ``digests`` (32
    bytes each)."""

    trees: int
    files: NDArray[np.void]
    paths: tuple[bytes, ...]
    records: NDArray[np.uint32]
    digests: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        trees: int,
        files: NDArray[np.void],
        paths: Sequence[bytes],
        records: NDArray[np.uint32],
        digests: NDArray[np.uint8],
    ) -> Profile:
        """Build a checked value; ``FormatError`` for anything that breaks a rule."""
        made = cls(trees, files, tuple(paths), records, digests)
        made._check()
        return made

    @classmethod
    def from_bytes(cls, data: Bytes) -> Profile:
        """Parse a profile; ``FormatError`` for anything but a valid one."""
        view = memoryview(data)
        if not _HEADER.size + DIGEST_SIZE <= len(view) <= MAX_PROFILE:
            raise FormatError("profile", 0, f"{_HEADER.size + DIGEST_SIZE} to {MAX_PROFILE} bytes", len(view))
        magic, version, kind, trees, count, records, chunks, stored = _HEADER.unpack_from(view)
        if (magic, version, kind) != (MAGIC, FORMAT, Kind.DISK) or view[11]:
            expected = f"format {FORMAT}, chunker {int(Kind.DISK)} (a newer one needs a newer program)"
            raise FormatError("profile", 0, expected, (magic, version, kind))
        end = len(view) - DIGEST_SIZE
        if object_digest(view[:end]) != bytes(view[end:]):
            raise FormatError("profile", end, "the digest of what is before", "another one")
        if count > MAX_FILES or not chunks <= records <= MAX_RECORDS:
            raise FormatError("profile", 12, f"at most {MAX_FILES} files of {MAX_RECORDS} records", (count, records))
        if _HEADER.size + stored + DIGEST_SIZE * chunks != end:
            raise FormatError("profile", 28, "columns and digests up to the end", (chunks, stored))
        part = view[_HEADER.size : _HEADER.size + stored]
        columns = memoryview(decompress(part, FILE.itemsize * count + 4 * records + MAX_PATHS, "profile"))
        files, lengths, paths = _take(columns, count, records)
        digests = np.frombuffer(view, np.uint8, DIGEST_SIZE * chunks, _HEADER.size + stored)
        return cls.of(trees, files, paths, lengths, digests.reshape(-1, DIGEST_SIZE))

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        columns = [np.ascontiguousarray(self.files[name]).tobytes() for name, _ in _COLUMNS]
        stored = compress(b"".join((*columns, self.records.astype("<u4").tobytes(), *self.paths)), _LEVEL)
        counts = self.trees, len(self.files), len(self.records), len(self.digests), len(stored)
        body = b"".join((_HEADER.pack(MAGIC, FORMAT, int(Kind.DISK), *counts), stored, self.digests.tobytes()))
        return body + object_digest(body)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return int(self.files["size"].sum(dtype=np.uint64))

    def _check(self) -> None:
        files, records = self.files, self.records
        if not 0 < self.trees <= MAX_TREES or len(files) > MAX_FILES or len(records) > MAX_RECORDS:
            expected = f"1 to {MAX_TREES} trees, at most {MAX_FILES} files of {MAX_RECORDS} records"
            raise FormatError("profile", "header", expected, (self.trees, len(files), len(records)))
        zero = records >= ZERO
        lengths = (records & np.uint32(ZERO - 1)).astype(np.int64)
        fits = (lengths > 0) & (zero | (lengths <= MAX_CHUNK_SIZE))
        if not fits.all() or int(np.count_nonzero(~zero)) != len(self.digests):
            raise FormatError("profile", "records", "chunks with a digest each, and zero runs", "others")
        _all((files["tree"] < self.trees) & (files["size"] <= MAX_IMAGE_SIZE), "files of its trees")
        ends = np.cumsum(files["records"], dtype=np.int64)
        if (int(ends[-1]) if len(files) else 0) != len(records):
            raise FormatError("profile", "files", f"{len(records)} records in all", "another number")
        before = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(lengths)))
        covered = before[ends] - before[ends - files["records"]]
        _all(covered == -(-files["size"].astype(np.int64) // BLOCK_SIZE) * BLOCK_SIZE, "records that cover their file")
        if len(self.paths) != len(files) or not all(map(_is_inside, self.paths)):
            raise FormatError("profile", "paths", "a path within its tree for each file", "others")


def _take(columns: memoryview, count: int, records: int) -> tuple[NDArray[np.void], NDArray[np.uint32], list[bytes]]:
    """Split the columns."""
    if len(columns) < FILE.itemsize * count + 4 * records:
        raise FormatError("profile", "columns", f"those of {count} files and {records} records", len(columns))
    files, at = np.zeros(count, dtype=FILE), 0
    for name, width in _COLUMNS:
        files[name] = np.frombuffer(columns, f"<u{width}", count, at)
        at += width * count
    lengths = np.frombuffer(columns, "<u4", records, at).astype(np.uint32, copy=False)
    at += 4 * records
    ends = at + np.cumsum(files["path"], dtype=np.int64)
    if (int(ends[-1]) if count else at) != len(columns):
        raise FormatError("profile", "paths", "paths up to the end", "others")
    starts = [at, *ends[:-1].tolist()] if count else []
    return files, lengths, [bytes(columns[low:high]) for low, high in zip(starts, ends.tolist(), strict=True)]


def _is_inside(path: bytes) -> bool:
    return b"\0" not in path and not {b"", b".", b".."} & set(path.split(b"/"))


def _all(fits: NDArray[np.bool_], expected: str) -> None:
    if not fits.all():
        raise FormatError("profile", "files", expected, f"number {int(np.argmin(fits))} is not")
