"""Seeds that are disk images in other formats than raw: what their guest sees is cut as a published image is.

So their chunks are found on the block grid, whatever the clusters of the file lie at, compressed ones too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import REGION_SIZE, Kind
from trimtransfer.chunker import ZERO, cut_and_digest
from trimtransfer.disk.source import DiskSource
from trimtransfer.errors import Cancelled
from trimtransfer.geometry import recognise
from trimtransfer.index.prefix import IndexWriter, PrefixIndex
from trimtransfer.index.rowfile import Rows
from trimtransfer.index.seed import Category
from trimtransfer.index.tree import Progress


class DiskSeed:
    """A disk image as a seed; its rows are those of ``index``. Its methods may be called from any thread."""

    def __init__(self, disk: DiskSource, index: PrefixIndex) -> None:
        self.name = str(disk.path)
        self.category: Category = "seed"
        self._disk, self._index = disk, index

    def __repr__(self) -> str:
        return f"DiskSeed({self.name!r}, {self._disk.format}, {len(self._index):,} rows)"

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return for each wanted chunk (first 8 digest bytes, length) a row where it may be, or -1."""
        return self._index.find(prefixes, lengths)

    def read(self, row: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with what the guest sees at ``row`` now; False if that cannot be read."""
        if not 0 <= row < len(self._index):
            return False
        _, offset = self._index.place(row)
        try:
            self._disk.read_into(buffer, offset)
        except Exception:
            # Changed, cut short, damaged: for a seed all of them mean "not here".
            return False
        return True

    def close(self) -> None:
        """Close the disk's files."""
        self._disk.close()


def seed_from_disk(
    disk: DiskSource,
    kind: Kind,
    *,
    directory: Path,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> DiskSeed:
    """Scan a disk, cut as an image of this ``kind`` is, and return it as a seed, which closes it.

    ``directory`` takes temporary files. Memory: one region.

    Raises:
        FormatError, SourceRefused, SourceChanged, OSError: the disk cannot be read.
        NoSpace: no room for the index.
        Cancelled: ``cancel`` was set.
    """
    target = directory / "disk-seed.tmp"
    done = 0
    view = memoryview(bytearray(min(REGION_SIZE, disk.size)))
    with IndexWriter(directory, kind=kind) as writer:
        for start, length in _regions(disk, kind):
            if cancel is not None and cancel.is_set():
                raise Cancelled("stopped while a seed was scanned")
            disk.read_into(view[:length], start)
            writer.add(_rows(kind, view[:length], start))
            done += length
            if progress is not None:
                progress("scan", done, 0)
        writer.finish(target, durable=False)
    try:
        return DiskSeed(disk, PrefixIndex.open(target))
    finally:
        target.unlink()  # what is mapped stays


def _regions(disk: DiskSource, kind: Kind) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the regions that are not all holes."""
    for segment in recognise(disk.read, disk.size, kind=kind).segments:
        for start in range(segment.start, segment.start + segment.length, REGION_SIZE):
            length = min(REGION_SIZE, segment.start + segment.length - start)
            if any(True for _ in disk.extents(start, length)):
                yield start, length


def _rows(kind: Kind, region: memoryview, start: int) -> Rows:
    """Return the rows of a region's chunks, their offsets those of the guest."""
    records, digests = cut_and_digest(kind, region)
    lengths = records & (ZERO - np.uint32(1))
    offsets = np.cumsum(lengths, dtype=np.int64) - lengths + start
    solid = records < ZERO
    prefixes = np.ascontiguousarray(digests[:, :8]).view("<u8").reshape(-1).astype(np.uint64, copy=False)
    files = np.zeros(len(prefixes), dtype=np.uint32)
    return Rows(prefixes, lengths[solid], files, offsets[solid].astype(np.uint64))
