"""From files to index rows: read, cut, hash.

A host file counts as if zeros filled it up to whole blocks, since that is how file systems store it; an image is cut as
publishing would cut it: by segments, its true last bytes, and zero runs left out. Files that change meanwhile give rows
that lie; whoever uses rows verifies content.

Memory: one buffer of a region (64 MiB) for files above :data:`SMALL`, read by the thread that calls
:meth:`Scanner.scan_large`, and a buffer of :data:`SMALL` bytes for each thread in :meth:`Scanner.scan_small`.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, MAX_IMAGE_SIZE, REGION_SIZE, Kind, chunk_digest
from trimtransfer.chunker import ZERO, cut
from trimtransfer.geometry import recognise
from trimtransfer.index.rowfile import Rows
from trimtransfer.index.walk import Found
from trimtransfer.localfile import Guard, next_data, open_local, read_into, size_of

SMALL: Final = 4 << 20
"""Largest file in bytes that :meth:`Scanner.scan_small` takes."""
SETTLED_NANOSECONDS: Final = 2_000_000_000
"""A file that was changed so shortly before it was read may change again within one tick of its clock, unseen."""
_HASHED_ALONE: Final = 64  # chunks of a region that one thread hashes faster than two could share


@dataclass(frozen=True, slots=True)
class Job:
    """A file to scan: its number in the index, its path, and what the walk saw."""

    number: int
    path: bytes
    found: Found


@dataclass(frozen=True, slots=True)
class Scanned:
    """What was scanned: the file as it was when it was opened, the bytes read, and the rows found.

    ``settled`` is False if the file changed meanwhile or may still change unseen: then it is to be read again.
    """

    number: int
    found: Found
    bytes: int
    rows: int
    settled: bool


class Scanner:
    """Scans files with one chunker. ``images``: files of at least this many bytes are taken for images (None: none).

    ``executor`` shares the hashing of large regions. Close it to free its buffers.
    """

    def __init__(self, kind: Kind, *, images: int | None, executor: Executor | None = None) -> None:
        self.kind = kind
        self._images = images
        self._executor = executor
        self._region: mmap.mmap | None = None
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()

    def close(self) -> None:
        """Free the region buffer; harmless when that is done already."""
        if self._region is not None:
            with suppress(BufferError):  # an exception on its way up may still hold a view
                self._region.close()
            self._region = None

    def scan_small(self, jobs: list[Job], guard: Guard | None = None) -> tuple[Rows, list[Scanned | None]]:
        """Scan files of at most :data:`SMALL` bytes; None in the place of one that cannot be read. Thread-safe."""
        try:
            buffer = self._buffers.get_nowait()
        except Empty:
            buffer = memoryview(bytearray(SMALL))
        parts: list[Rows] = []
        outcomes: list[Scanned | None] = []
        for job in jobs:
            try:
                outcomes.append(self._scan_whole(job, buffer, guard, parts))
            except OSError:
                outcomes.append(None)
        self._buffers.put(buffer)
        return (Rows.joined(parts) if parts else Rows.empty()), outcomes

    def scan_large(self, job: Job, guard: Guard | None = None) -> Iterator[tuple[Rows, int] | Scanned]:
        """Yield the rows of a file of any size and the bytes read, region by region, and at last the outcome.

        Not for several threads. Raises ``OSError`` if it cannot be opened; one that cannot be read to its end gives the
        rows of what could be read, and an outcome that is not settled.
        """
        descriptor = open_local(job.path, identity=_identity(job), device=job.found.block_device, guard=guard)
        try:
            before, started = _look(descriptor, job), time.time_ns()
            size = min(size_of(descriptor), MAX_IMAGE_SIZE)  # a sparse file may claim more than any disk holds
            done = count = 0
            complete = True
            try:
                for start, length in self._regions(descriptor, size, guard):
                    buffer = self._region_buffer()
                    got = read_into(descriptor, buffer[:length], start, guard=guard)
                    rows = self._rows(job.number, buffer, slice(0, got), start, size if got == length else start + got)
                    done, count = done + got, count + len(rows)
                    yield rows, got
            except OSError:
                complete = False
            settled = complete and not job.found.block_device and _settled(descriptor, before, started)
            yield Scanned(job.number, before, done, count, settled)
        finally:
            os.close(descriptor)

    def _scan_whole(self, job: Job, buffer: memoryview, guard: Guard | None, parts: list[Rows]) -> Scanned:
        descriptor = open_local(job.path, identity=_identity(job), guard=guard)
        try:
            before, started = _look(descriptor, job), time.time_ns()
            if before.size > SMALL:
                raise OSError(errno.EFBIG, "grew", os.fsdecode(job.path))
            got = read_into(descriptor, buffer[: before.size], 0, guard=guard)
            found = 0
            for start, length in self._segments(descriptor, got, guard) if got else ():
                rows = self._rows(job.number, buffer, slice(start, start + length), start, got)
                found += len(rows)
                parts.append(rows)
            return Scanned(job.number, before, got, found, _settled(descriptor, before, started))
        finally:
            os.close(descriptor)

    def _regions(self, descriptor: int, size: int, guard: Guard | None) -> Iterator[tuple[int, int]]:
        """Yield (start, length) of the regions to cut, without those that are holes."""
        for start, length in self._segments(descriptor, size, guard):
            at = start
            while at < start + length:
                data = next_data(descriptor, at) if guard is None else at
                if data is None:
                    return
                at += (max(data, at) - at) // REGION_SIZE * REGION_SIZE
                if at < start + length:
                    yield at, min(REGION_SIZE, start + length - at)
                at += REGION_SIZE

    def _segments(self, descriptor: int, size: int, guard: Guard | None) -> list[tuple[int, int]]:
        if not self._is_image(size):
            return [(0, size)]

        def read(offset: int, length: int) -> bytes:
            buffer = bytearray(max(0, min(length, size - offset)))
            return bytes(buffer[: read_into(descriptor, memoryview(buffer), offset, guard=guard)])

        return [(segment.start, segment.length) for segment in recognise(read, size, kind=self.kind).segments]

    def _is_image(self, size: int) -> bool:
        return self._images is not None and size >= self._images

    def _region_buffer(self) -> memoryview:
        if self._region is None:
            self._region = mmap.mmap(-1, REGION_SIZE)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):
                    self._region.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(self._region)

    def _rows(self, number: int, buffer: memoryview, data: slice, start: int, size: int) -> Rows:
        """Return the rows of a region: ``data`` of the buffer, from byte ``start`` on of a file of ``size`` bytes.

        Bytes of the buffer behind the data, up to a whole block, are overwritten if the file ends there.
        """
        length = data.stop - data.start
        padding = -length % BLOCK_SIZE if self.kind is Kind.DISK and start + length >= size else 0
        buffer[data.stop : data.stop + padding] = bytes(padding)
        padded = buffer[data.start : data.stop + padding]
        if not self._is_image(size):
            return self._cut_and_hash(number, padded, start)[0]
        rows, last = self._cut_and_hash(number, padded[:length], start)
        if not (padding and last):
            return rows
        # The last chunk as it would be in the same file inside an image, too.
        tail = _Chunks(padded, np.array([length - last]), np.array([last + padding], dtype=np.uint32))
        return Rows.joined([rows, tail.rows(number, start, tail.prefixes())])

    def _cut_and_hash(self, number: int, data: memoryview, start: int) -> tuple[Rows, int]:
        """Return the rows of a region, and the length of its last chunk (0 if it ends in a zero run)."""
        records = cut(self.kind, data)
        lengths = records & np.uint32(ZERO - 1)
        offsets = np.cumsum(lengths, dtype=np.int64) - lengths
        solid = records < ZERO
        chunks = _Chunks(data, offsets[solid], lengths[solid])
        last = int(records[-1]) if len(records) and solid[-1] else 0
        return chunks.rows(number, start, self._hash(chunks)), last

    def _hash(self, chunks: _Chunks) -> NDArray[np.uint64]:
        count = len(chunks.lengths)
        # Never from a thread of the executor itself: all of them could then wait for each other's other half.
        if self._executor is None or count < _HASHED_ALONE or len(chunks.data) <= SMALL:
            return chunks.prefixes()
        half = int(np.searchsorted(chunks.offsets, chunks.offsets[-1] // 2))
        second = self._executor.submit(chunks.part(slice(half, count)).prefixes)
        try:
            first = chunks.part(slice(0, half)).prefixes()
        finally:
            rest = second.result()  # the buffer must not be written to while the other thread hashes it
        return np.concatenate([first, rest])


@dataclass(frozen=True, slots=True, eq=False)
class _Chunks:
    """The chunks of a region: its bytes, and where in them each chunk begins and how long it is."""

    data: memoryview
    offsets: NDArray[np.int64]
    lengths: NDArray[np.uint32]

    def part(self, which: slice) -> _Chunks:
        """Return some of the chunks."""
        return _Chunks(self.data, self.offsets[which], self.lengths[which])

    def prefixes(self) -> NDArray[np.uint64]:
        """Hash the chunks and return the first eight bytes of each digest as a number."""
        spans = zip(self.offsets.tolist(), self.lengths.tolist(), strict=True)
        digests = b"".join([chunk_digest(self.data[at : at + length])[:8] for at, length in spans])
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)

    def rows(self, number: int, start: int, prefixes: NDArray[np.uint64]) -> Rows:
        """Return the index rows of the chunks of file ``number``, of which this region begins at byte ``start``."""
        files = np.full(len(self.lengths), number, dtype=np.uint32)
        return Rows(prefixes, self.lengths, files, (self.offsets + start).astype(np.uint64))


def _identity(job: Job) -> tuple[int, int]:
    return job.found.device, job.found.inode


def _look(descriptor: int, job: Job) -> Found:
    return Found.of(job.found.name, os.fstat(descriptor))


def _settled(descriptor: int, before: Found, started: int) -> bool:
    """Tell whether a file is as it was when it was opened, and any later change will show in its times."""
    if Found.of(before.name, os.fstat(descriptor)) != before:
        return False
    recent = started - SETTLED_NANOSECONDS
    # A modification time in the future is somebody's fancy; the change time is the system's and tells the truth.
    return before.ctime < recent and not recent <= before.mtime <= started
