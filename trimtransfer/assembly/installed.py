"""An image whose manifest and tables are kept beside it: what it holds where, and that as a seed - without a scan.

Nothing read from it is trusted: the image may have been changed since, and a half-written one lacks pieces. Whoever
uses a chunk verifies it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.index.prefix import IndexWriter, PrefixIndex
from trimtransfer.index.rowfile import Rows
from trimtransfer.index.seed import Category
from trimtransfer.manifest import Manifest
from trimtransfer.table import ZERO, Table

_STREAMED_LOOKUPS: Final = 2
"""Lookups that go through all tables; sorting them into an index pays from the next one on."""
_IN_MEMORY_ROWS: Final = 1 << 19
_RECENT: Final = 32
"""Tables kept decoded: each is asked for a few times while its region is planned."""


class ImageContent(Protocol):
    """What an image is read from: a file, or parts of it kept elsewhere. Safe among threads."""

    path: Path
    size: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` of the image on; ``SourceChanged`` or ``OSError`` where that cannot be."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class InstalledImage:
    """The image ``source`` that holds, as far as known, the version of ``manifest``, with ``tables`` to look it up.

    It has the shape of a seed: a row is the absolute offset of a chunk in the image. ``extents`` limits what is offered
    to parts of the image. ``directory`` takes large temporary files.
    """

    def __init__(
        self,
        source: ImageContent,
        manifest: Manifest,
        tables: TableFile,
        directory: Path,
        *,
        category: Category = "previous",
        extents: Extents | None = None,
    ) -> None:
        self.source, self.manifest, self.tables = source, manifest, tables
        self.name = str(source.path)
        self.category: Category = category
        self._directory, self._extents = directory, extents
        self._recent: dict[int, Table] = {}
        self._lookups = 0
        self._index: PrefixIndex | None = None

    def __repr__(self) -> str:
        return f"InstalledImage({self.name!r}, {self.manifest.image} {self.manifest.version})"

    def is_complete(self) -> bool:
        """Return whether all its tables are here, so that it is worth asking."""
        return all(digest.tobytes() in self.tables for digest in self.manifest.rows["table"])

    def table_at(self, start: int) -> Table | None:
        """Return the table of the region that begins at ``start``, in bytes; None if there is none, or it is lost."""
        index = int(np.searchsorted(self.manifest.starts, start))
        if index >= self.manifest.region_count or int(self.manifest.starts[index]) != start:
            return None
        table = self._recent.get(index)
        if table is None:
            table = self._table(index)
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            if table is not None:  # one that is lost may be fetched later
                self._recent[index] = table
        return table

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the offset in the image of a chunk with each prefix and length, -1 where there is none."""
        self._lookups += 1
        if self._index is None and self._lookups <= _STREAMED_LOOKUPS:
            return self._join(prefixes, lengths)
        if self._index is None:
            self._index = self._build_index()
        rows = self._index.find(prefixes, lengths)
        offsets = self._index.columns.offsets[np.maximum(rows, 0)] if len(self._index) else np.zeros(len(rows))
        return np.where(rows >= 0, offsets.astype(np.int64), -1)

    def read(self, row: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with the chunk at offset ``row``; False if the image cannot be read there."""
        if row < 0 or row + len(buffer) > self.source.size:
            return False
        try:
            self.source.read_into(buffer, row)
        except Exception:
            # Shorter than it was, or not readable: for a seed both mean "not here".
            return False
        return True

    def close(self) -> None:
        """Close the image's file; the tables are the caller's."""
        self.source.close()

    def _table(self, index: int) -> Table | None:
        region = self.manifest.region(index)
        if region.zero:
            return zero_table(region.length)
        return self.tables.get(region.table, size=region.length)

    def _chunks(self) -> Iterator[Rows]:
        """Yield the chunks of each region that is not all zero, as index rows (file 0, absolute offset)."""
        for index in np.flatnonzero(~self.manifest.zero).tolist():
            table = self._table(index)
            if table is None:
                continue
            offsets = table.offsets + int(self.manifest.starts[index])
            offered = ~table.zero
            if self._extents is not None:
                offered &= self._extents.covers(offsets, table.lengths)
            count = int(np.count_nonzero(offered))
            yield Rows(
                table.prefixes[offered],
                table.lengths[offered],
                np.zeros(count, dtype=np.uint32),
                offsets[offered].astype(np.uint64),
            )

    def _join(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Look everything up in one pass over the tables."""
        order = np.argsort(prefixes)
        ascending = prefixes[order]
        found = np.full(len(prefixes), -1, dtype=np.int64)
        for rows in self._chunks() if len(prefixes) else ():
            at = np.searchsorted(ascending, rows.prefixes)
            at[at == len(ascending)] = 0
            hits = np.flatnonzero(ascending[at] == rows.prefixes)
            number = order[at[hits]]  # the caller asks for each chunk once, so the first of equal prefixes will do
            same = lengths[number] == rows.lengths[hits]
            found[number[same]] = rows.offsets[hits[same]].astype(np.int64)
        return found

    def _build_index(self) -> PrefixIndex:
        parts: list[Rows] = []
        total = 0
        chunks = self._chunks()
        for rows in chunks:
            parts.append(rows)
            total += len(rows)
            if total > _IN_MEMORY_ROWS:
                return self._build_mapped(parts, chunks)
        return PrefixIndex(Rows.joined(parts) if parts else Rows.empty(), kind=int(self.manifest.kind))

    def _build_mapped(self, parts: list[Rows], further: Iterator[Rows]) -> PrefixIndex:
        path = self._directory / f"previous-{os.getpid()}.tmp"
        try:
            with IndexWriter(self._directory, kind=int(self.manifest.kind)) as writer:
                for rows in parts:
                    writer.add(rows)
                parts.clear()
                for rows in further:
                    writer.add(rows)
                writer.finish(path, durable=False)
            return PrefixIndex.open(path)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # the mapping stays


def zero_table(length: int) -> Table:
    """Return the table of a region of zeros, ``length`` in bytes."""
    return Table.from_records(np.array([length | ZERO], dtype=np.uint32), np.zeros((0, DIGEST_SIZE), dtype=np.uint8))


class WrittenIndex:
    """Chunks that the present run has written, for regions planned later: digest prefix and length -> image offset.

    Grows by windows. Large parts go to unlinked temporary files of ``directory``.
    """

    def __init__(self, directory: Path, *, kind: int) -> None:
        self._directory, self._kind = directory, kind
        self._parts: list[PrefixIndex] = []
        self._files = 0

    def add(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32], offsets: NDArray[np.int64]) -> None:
        """Add chunks."""
        if not len(prefixes):
            return
        rows = Rows(prefixes, lengths, np.zeros(len(prefixes), dtype=np.uint32), offsets.astype(np.uint64))
        # Parts double in size from the newest to the oldest, so there are few of them and each row moves few times.
        while self._parts and len(self._parts[-1]) <= 2 * len(rows) and len(rows) < _IN_MEMORY_ROWS:
            rows = Rows.joined([self._parts.pop().columns, rows])
        part = PrefixIndex(rows, kind=self._kind)
        self._parts.append(part if len(part) < _IN_MEMORY_ROWS else self._mapped(part))

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the offset of each chunk, -1 where there is none."""
        found = np.full(len(prefixes), -1, dtype=np.int64)
        for part in self._parts:
            open_ = np.flatnonzero(found < 0)
            rows = part.find(prefixes[open_], lengths[open_])
            hit = rows >= 0
            found[open_[hit]] = part.columns.offsets[rows[hit]].astype(np.int64)
        return found

    def _mapped(self, part: PrefixIndex) -> PrefixIndex:
        self._files += 1
        path = self._directory / f"written-{os.getpid()}-{self._files}.tmp"
        try:
            with IndexWriter(self._directory, kind=self._kind) as writer:
                writer.add(part.columns)
                writer.finish(path, durable=False)
            return PrefixIndex.open(path)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
