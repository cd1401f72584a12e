"""First pass of a publish: read the image once, and learn of every region its content digest and its table.

Holes are never read. A region whose content digest is that of the parent's region keeps the parent's table and is not
cut. Tables wait in a temporary file, so memory does not depend on the image: two regions are in flight.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from trimtransfer.chunk import DIGEST_SIZE, Kind, chunk_digest, region_digest, table_digest
from trimtransfer.chunker import cut
from trimtransfer.errors import Cancelled
from trimtransfer.finder import chunk_keys
from trimtransfer.image import Source
from trimtransfer.manifest import Manifest, Segment, region_geometry, zero_region_digest
from trimtransfer.spill import Pieces
from trimtransfer.table import ZERO, Table
from trimtransfer.watch import Watch

IN_FLIGHT: Final = 2
"""Regions in memory at a time: one is read while another is hashed."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One region's result: with ``table`` it was cut, with ``same_table`` it is the parent's, with neither zeros."""

    content: bytes
    table: Table | None
    same_table: bytes
    bytes_read: int
    keys: bytes = b""


class Survey:
    """What the first pass found, one entry per region: ``zero``, ``same`` as in the parent, content and table digests.

    ``flat`` is the plain digest of the whole image where it was asked for.
    """

    def __init__(self, kind: Kind, segments: tuple[Segment, ...], directory: Path) -> None:
        self.kind, self.segments = kind, segments
        self.starts, self.lengths = region_geometry(segments)
        count = len(self.starts)
        self.zero: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
        self.same: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
        self.content: NDArray[np.uint8] = np.zeros((count, DIGEST_SIZE), dtype=np.uint8)
        self.digests: NDArray[np.uint8] = np.zeros((count, DIGEST_SIZE), dtype=np.uint8)
        self.flat: bytes | None = None
        self.bytes_read = 0
        self._pieces, self._keys = Pieces(directory), Pieces(directory)
        self._number: NDArray[np.int64] = np.full(count, -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.starts)

    def table(self, index: int) -> Table:
        """Return the table of a region that was cut: neither zero nor the same as in the parent."""
        return Table.from_bytes(self._pieces[int(self._number[index])], size=int(self.lengths[index]))

    def keys(self, index: int) -> bytes:
        """Return the keys of such a region's chunks as a key file holds them; none for files of kind ``BYTES``."""
        return self._keys[int(self._number[index])]

    def add(self, index: int, found: _Found) -> None:
        """Take over what was found out about a region."""
        self.bytes_read += found.bytes_read
        self.content[index] = np.frombuffer(found.content, dtype=np.uint8)
        if found.table is not None:
            canonical = found.table.to_bytes()
            self._number[index] = self._pieces.append(canonical)
            self._keys.append(found.keys)
            self.digests[index] = np.frombuffer(table_digest(canonical), dtype=np.uint8)
        elif found.same_table:
            self.same[index] = True
            self.digests[index] = np.frombuffer(found.same_table, dtype=np.uint8)
        else:
            self.zero[index] = True

    def close(self) -> None:
        """Give the temporary files back."""
        self._pieces.close()
        self._keys.close()


def survey(
    source: Source,
    *,
    kind: Kind,
    segments: tuple[Segment, ...],
    parent: Manifest | None,
    directory: Path,
    workers: int,
    flat: bool,
    watch: Watch,
) -> Survey:
    """Return what the first pass over ``source`` finds; ``directory`` is for its temporary file.

    Raises:
        SourceChanged: the image shrank meanwhile.
        Cancelled: as asked.
    """
    result = Survey(kind, segments, directory)
    flat_digest = _FlatDigest(workers) if flat else None
    with ThreadPoolExecutor(workers, "digest") as digesters, ThreadPoolExecutor(IN_FLIGHT, "region") as readers:
        surveyor = _Surveyor(source, result, _known_contents(result, parent), digesters, workers, flat_digest)
        try:
            _run(surveyor, result, readers, source.size, watch)
        except BaseException:
            surveyor.stop()
            result.close()
            raise
    result.flat = flat_digest.digest() if flat_digest else None
    return result


def comparable(parent: Manifest | None, kind: Kind, starts: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each region whether the parent has one of the same number, start and kind of cuts."""
    found: NDArray[np.bool_] = np.zeros(len(starts), dtype=np.bool_)
    if parent is not None and parent.kind == kind:
        both = min(len(starts), parent.region_count)
        found[:both] = parent.starts[:both] == starts[:both]
    return found


def _run(surveyor: _Surveyor, result: Survey, readers: ThreadPoolExecutor, total: int, watch: Watch) -> None:
    """Survey all regions, ``IN_FLIGHT`` at a time, and take their results over in order."""
    pending: deque[Future[_Found]] = deque()
    done = 0
    watch.report("scan", 0, total)
    for index in range(len(result)):
        pending.append(readers.submit(surveyor.survey_region, index))
        while len(pending) >= IN_FLIGHT or (pending and index == len(result) - 1):
            at = index + 1 - len(pending)
            result.add(at, pending.popleft().result())
            done += int(result.lengths[at])
            watch.report("scan", done, total)


def _known_contents(result: Survey, parent: Manifest | None) -> dict[int, tuple[bytes, bytes]]:
    """Return content and table digest of the parent's regions that the new ones can be compared with."""
    if parent is None:
        return {}
    usable = comparable(parent, result.kind, result.starts)
    numbers = np.flatnonzero(~parent.zero)
    return {
        int(index): (row["content"].tobytes(), row["table"].tobytes())
        for index, row in zip(numbers, parent.rows, strict=True)
        if index < len(usable) and usable[index]
    }


class _Surveyor:
    """Surveys regions, each in one call from a thread of its own; chunk digests are shared out to ``digesters``."""

    def __init__(
        self,
        source: Source,
        result: Survey,
        known: dict[int, tuple[bytes, bytes]],
        digesters: ThreadPoolExecutor,
        workers: int,
        flat: _FlatDigest | None,
    ) -> None:
        self._source, self._result, self._known = source, result, known
        self._digesters, self._workers, self._flat = digesters, workers, flat
        self._buffers: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(min(IN_FLIGHT, len(result))):
            self._buffers.put(mmap.mmap(-1, int(result.lengths.max())))

    def survey_region(self, index: int) -> _Found:
        """Return what region ``index`` holds."""
        start, length = int(self._result.starts[index]), int(self._result.lengths[index])
        extents = list(self._source.extents(start, length))
        if not extents:
            if self._flat is not None:
                self._flat.add(index, None, length)
            return _Found(zero_region_digest(length), None, b"", 0)
        buffer = self._buffers.get()
        try:
            view = memoryview(buffer)[:length]
            self._read(view, start, extents)
            if self._flat is not None:
                self._flat.add(index, view, length)
            return self._examine(index, view, sum(size for _, size in extents))
        finally:
            self._buffers.put(buffer)

    def stop(self) -> None:
        """Let go of threads that wait for each other."""
        if self._flat is not None:
            self._flat.stop()

    def _read(self, view: memoryview, start: int, extents: list[tuple[int, int]]) -> None:
        """Fill ``view`` with the region's bytes: data where there is data, zeros in between."""
        array = np.frombuffer(view, dtype=np.uint8)
        at = 0
        for offset, size in extents:
            array[at : offset - start] = 0
            at = offset - start + size
            self._source.read_into(view[offset - start : at], offset)
        array[at:] = 0

    def _examine(self, index: int, view: memoryview, bytes_read: int) -> _Found:
        """Return a region's digests. Content and chunks are hashed from this one buffer, so they always agree."""
        content = region_digest(view)
        if content == zero_region_digest(len(view)):
            return _Found(content, None, b"", bytes_read)
        known_content, known_table = self._known.get(index, (b"", b""))
        if content == known_content:
            return _Found(content, None, known_table, bytes_read)
        records = cut(self._result.kind, view)
        zero = (records & np.uint32(ZERO)) != 0
        lengths = (records & np.uint32(ZERO - 1)).astype(np.int64)
        starts = (np.cumsum(lengths) - lengths)[~zero]
        digests = self._chunk_digests(view, starts, lengths[~zero])
        # Chunks of the other kind are cut at any byte, so they are found at any offset without keys.
        disk = self._result.kind is Kind.DISK
        keys = chunk_keys(view, starts, lengths[~zero]).astype("<u8").tobytes() if disk else b""
        return _Found(content, Table.from_records(records, digests), b"", bytes_read, keys)

    def _chunk_digests(
        self, view: memoryview, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return the digests (n, 32) of the chunks of a region, hashed by several threads."""
        shares = np.array_split(np.arange(len(starts)), max(1, min(self._workers, len(starts) // 64)))
        jobs = [self._digesters.submit(_digests, view, starts[share], lengths[share]) for share in shares]
        joined = b"".join(job.result() for job in jobs)
        return np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_SIZE)


def _digests(view: memoryview, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> bytes:
    pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
    return b"".join(chunk_digest(view[start : start + length]) for start, length in pairs)


class _FlatDigest:
    """Plain BLAKE3 of the whole image, fed region by region in image order by whoever has the next region."""

    _ZEROS: Final = bytes(1 << 20)

    def __init__(self, workers: int) -> None:
        self._hasher = blake3(max_threads=workers)
        self._turn = threading.Condition()
        self._next = 0
        self._stopped = False

    def add(self, index: int, view: memoryview | None, length: int) -> None:
        """Feed region ``index`` (None: zeros) once all regions before it are fed."""
        with self._turn:
            self._turn.wait_for(lambda: self._next == index or self._stopped)
            if self._stopped:
                raise Cancelled("stopped after a failure in another thread")
            for part in self._zeros(length) if view is None else (view,):
                self._hasher.update(part)
            self._next += 1
            self._turn.notify_all()

    def stop(self) -> None:
        """End the waiting of others after a failure."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def digest(self) -> bytes:
        """Return the digest of what was fed."""
        return self._hasher.digest()

    def _zeros(self, length: int) -> Iterator[memoryview]:
        piece = memoryview(self._ZEROS)
        for at in range(0, length, len(piece)):
            yield piece[: min(len(piece), length - at)]
