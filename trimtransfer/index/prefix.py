"""The index of local data: chunk digest prefix and length -> where such a chunk lies (file number, offset).

A :class:`PrefixIndex` never changes; a growing set of files has several. It finds *candidates*: eight bytes of a digest
prove nothing, and files change. Whoever reads a candidate verifies the whole digest.

An :class:`IndexWriter` takes any number of rows in any order within :data:`WRITER_MEMORY` bytes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.index.rowfile import MAX_FILES, ROW_SIZE, RowFile, Rows, write_rows

Live: TypeAlias = Callable[[NDArray[np.uint32]], NDArray[np.bool_]]
"""Tells which of some file numbers still stand for a file."""

BUFFER_ROWS: Final = 1 << 18
"""Rows that a writer holds before it spills them, and that a merge holds of all its inputs together."""
WRITER_MEMORY: Final = 48 << 20
"""Bytes that a writer or a merge takes at most: for each row of the buffer 24, as much again while parts are joined,
and again for the sorted copy, 40 for sorting by two columns, and the allocator's share. The tests measure it."""
ALTERNATIVES: Final = 64
"""Rows of one chunk that a lookup goes through at most; more copies of a chunk than that are never all gone."""
_MAX_SPILLS: Final = 64
_RESIDENT: Final = 8 << 20
"""Bytes of a mapped index that may be in this process's memory; what was touched beyond is given back to the system, in
whose page cache it stays. Otherwise an index would count, in time, with its whole size."""
_PLACES: Final = 64
"""Random accesses to rows between two such releases: each brings in two pages with their neighbours, 128 KiB."""


class PrefixIndex:
    """Rows in ascending order of (prefix, length), in memory or mapped from a file. Immutable; safe among threads.

    ``kind`` is the chunker that cut the indexed files.
    """

    def __init__(self, rows: Rows, *, kind: int) -> None:
        """Make an index in memory of rows in any order."""
        self.kind = kind
        self.columns = rows.take(rows.order())
        self._map: mmap.mmap | None = None
        self._touched = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PrefixIndex:
        """Map an index file after checking all of it.

        Raises:
            FormatError: not an index file of this version, or damaged.
            OSError: it cannot be opened or read.
        """
        with RowFile(path) as file:
            file.check()
            return cls._mapped(file)

    @classmethod
    def _mapped(cls, file: RowFile) -> PrefixIndex:
        index = cls.__new__(cls)
        index.kind, index._touched = file.kind, 0
        index._map = mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ)

        def column(name: str, dtype: str) -> NDArray[np.uint64]:
            return np.frombuffer(index._map or b"", dtype=dtype, count=len(file), offset=file.column_start(name))

        index.columns = Rows(
            column("prefixes", "<u8"),
            column("lengths", "<u4").astype(np.uint32, copy=False),
            column("files", "<u4").astype(np.uint32, copy=False),
            column("offsets", "<u8"),
        )
        return index

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"PrefixIndex({len(self):,} rows, {'mapped' if self._map is not None else 'in memory'})"

    def find(
        self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32], *, live: Live | None = None
    ) -> NDArray[np.int64]:
        """Return for each wanted chunk the number of a row with its prefix and length, or -1 (int64, same shape).

        With ``live`` only rows of files that are live count; of up to :data:`ALTERNATIVES` rows of a chunk the first
        such one is taken.
        """
        order = np.argsort(prefixes)  # ascending lookups walk through memory once; measured seven times as fast
        found = np.empty(len(prefixes), dtype=np.int64)
        # Lookups that ascend touch the index from one end to the other: in as many parts as it has times _RESIDENT.
        parts = -(-len(self) * ROW_SIZE // _RESIDENT) if self._map is not None else 1
        step = max(1, -(-len(order) // max(1, parts)))
        for start in range(0, len(order), step):
            part = order[start : start + step]
            found[part] = self._find_ascending(
                prefixes[part].astype(np.uint64, copy=False), lengths[part].astype(np.uint32, copy=False), live
            )
            self._release()
        return found

    def place(self, row: int) -> tuple[int, int]:
        """Return the file number and the offset of a row."""
        place = int(self.columns.files[row]), int(self.columns.offsets[row])
        self._touched += 1
        if self._touched % _PLACES == 0:
            self._release()
        return place

    def rows(self, prefix: int, length: int, *, limit: int = ALTERNATIVES) -> NDArray[np.int64]:
        """Return the numbers of all rows of one chunk, at most ``limit``: where to look when the first one lied."""
        wanted = np.array([prefix], dtype=np.uint64)
        first = int(self._lower_bound(wanted, np.array([length], dtype=np.uint32))[0])
        window = slice(first, first + limit)
        same = (self.columns.prefixes[window] == wanted[0]) & (self.columns.lengths[window] == length)
        return first + np.flatnonzero(same).astype(np.int64)

    def _find_ascending(
        self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32], live: Live | None
    ) -> NDArray[np.int64]:
        at = self._lower_bound(prefixes, lengths)
        found = np.full(len(at), -1, dtype=np.int64)
        pending = np.arange(len(at))
        for _ in range(ALTERNATIVES):
            pending = pending[at[pending] < len(self)]
            here = at[pending]
            same = (self.columns.prefixes[here] == prefixes[pending]) & (self.columns.lengths[here] == lengths[pending])
            pending, here = pending[same], here[same]
            good = live(self.columns.files[here]) if live is not None else np.ones(len(here), dtype=np.bool_)
            found[pending[good]] = here[good]
            pending = pending[~good]
            if not len(pending):
                break
            at[pending] += 1
        return found

    def _lower_bound(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the first row not below each (prefix, length)."""
        low = np.searchsorted(self.columns.prefixes, prefixes, side="left").astype(np.int64)
        inside = np.flatnonzero(low < len(self))
        short = self.columns.lengths[low[inside]] < lengths[inside]
        short &= self.columns.prefixes[low[inside]] == prefixes[inside]
        # Two chunks with one prefix: 64 bits do not meet by chance, so this is for hostile tables, and must stay fast.
        odd = inside[short]
        if len(odd):
            high = np.searchsorted(self.columns.prefixes, prefixes[odd], side="right").astype(np.int64)
            low[odd] = self._bisect_lengths(low[odd], high, lengths[odd])
        return low

    def _bisect_lengths(
        self, low: NDArray[np.int64], high: NDArray[np.int64], lengths: NDArray[np.uint32]
    ) -> NDArray[np.int64]:
        """Return the first row in [low, high) whose length is not below the wanted one, else high, for each."""
        while bool((low < high).any()):
            middle = (low + high) // 2
            shorter = np.zeros(len(low), dtype=np.bool_)
            open_ = low < high
            shorter[open_] = self.columns.lengths[middle[open_]] < lengths[open_]
            low = np.where(open_ & shorter, middle + 1, low)
            high = np.where(open_ & ~shorter, middle, high)
        return low

    def _release(self) -> None:
        """Give the touched pages of a large mapped file back; they come back from the page cache with a soft fault."""
        large = len(self) * ROW_SIZE > _RESIDENT
        if self._map is not None and large and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


class IndexWriter:
    """Collects rows in any order; sorted runs that do not fit into memory are spilled to ``directory`` and merged.

    Use it as a context manager: spilled runs are deleted at the end. Not for several threads.
    """

    def __init__(self, directory: str | os.PathLike[str], *, kind: int, buffer_rows: int = BUFFER_ROWS) -> None:
        self.kind = kind
        self._directory = Path(directory)
        self._limit = buffer_rows
        self._parts: list[Rows] = []
        self._buffered = self._total = self._spilled = 0
        self._spills: list[Path] = []

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._total

    @property
    def room(self) -> int:
        """How many rows can be added before some are spilled."""
        return max(0, self._limit - self._buffered)

    def add(self, rows: Rows) -> None:
        """Add rows; they are kept, not copied. Raises ``ValueError`` for file numbers at or above ``MAX_FILES``."""
        if int(rows.files.max(initial=0)) >= MAX_FILES:
            raise ValueError("file number out of range")
        if len(rows) > self.room and self._buffered:
            self._spill()
        self._parts.append(rows)
        self._buffered += len(rows)
        self._total += len(rows)

    def finish(self, path: str | os.PathLike[str], *, durable: bool = True) -> int:
        """Write everything added so far as an index file; return the number of rows. The writer is empty afterwards."""
        total = self._total
        if self._spills:
            self._spill()
            merge(self._spills, path, kind=self.kind, durable=durable)
        else:
            write_rows(path, self._sorted_slices(), rows=total, kind=self.kind, durable=durable)
        self.close()
        return total

    def close(self) -> None:
        """Forget what was added and delete what was spilled."""
        self._parts.clear()
        self._buffered = self._total = 0
        for spill in self._spills:
            spill.unlink(missing_ok=True)
        self._spills.clear()

    def _spill(self) -> None:
        if len(self._spills) == _MAX_SPILLS:
            joined = self._spill_name()
            merge(self._spills, joined, kind=self.kind, durable=False)
            for spill in self._spills:
                spill.unlink(missing_ok=True)
            self._spills[:] = [joined]
        path = self._spill_name()
        self._spills.append(path)
        write_rows(path, self._sorted_slices(), rows=self._buffered, kind=self.kind, durable=False)
        self._parts.clear()
        self._buffered = 0

    def _spill_name(self) -> Path:
        self._spilled += 1
        return self._directory / f"spill-{os.getpid()}-{id(self):x}-{self._spilled}.tmp"

    def _sorted_slices(self) -> Iterator[Rows]:
        if not self._parts:
            return
        rows = Rows.joined(self._parts)
        self._parts[:] = [rows]
        order = rows.order()
        for start in range(0, len(order), 1 << 16):
            yield rows.take(order[start : start + (1 << 16)])


def merge(
    paths: Sequence[Path],
    target: str | os.PathLike[str],
    *,
    kind: int,
    live: Live | None = None,
    durable: bool = True,
) -> int:
    """Merge index files into a new one, without the rows of files that are not ``live``; return its number of rows.

    Streams: :data:`BUFFER_ROWS` rows are in memory at a time, however large the files are.

    Raises:
        FormatError: an input is damaged; then nothing was written.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(RowFile(path)) for path in paths]
        total = 0
        for file in files:
            file.check()
            total += _count_live(file, live)
        write_rows(target, _merged(files, live), rows=total, kind=kind, durable=durable)
        return total


def _count_live(file: RowFile, live: Live | None) -> int:
    if live is None:
        return len(file)
    step = 1 << 16
    return sum(
        int(np.count_nonzero(live(file.read_files(at, min(at + step, len(file)))))) for at in range(0, len(file), step)
    )


def _merged(files: Sequence[RowFile], live: Live | None) -> Iterator[Rows]:
    """Yield the rows of sorted files in order.

    Each round holds a window of every file. The smallest last row of those windows that do not end their file bounds
    what may be given out: no row that was not read yet is smaller. That empties at least this one window, so every
    round makes progress.
    """
    window = max(1024, BUFFER_ROWS // max(1, len(files)))
    at = [0] * len(files)
    while True:
        spans = [(at[n], min(at[n] + window, len(file))) for n, file in enumerate(files)]
        parts = [file.read(*span) for file, span in zip(files, spans, strict=True)]
        rows = Rows.joined(parts) if parts else Rows.empty()
        if not len(rows):
            return
        sources = np.repeat(np.arange(len(files)), [len(part) for part in parts])
        order = rows.order()
        ends = np.cumsum([len(part) for part in parts]) - 1  # the last row of each window, in the joined rows
        unfinished = ends[[n for n, file in enumerate(files) if spans[n][1] < len(file)]]
        if len(unfinished):
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            order = order[: int(rank[unfinished].min()) + 1]
        for n, count in enumerate(np.bincount(sources[order], minlength=len(files)).tolist()):
            at[n] += count
        taken = rows.take(order)
        yield taken if live is None else taken.take(live(taken.files))


class PrefixSet:
    """Digest prefixes that are wanted, to count which of them a scan has come across (8 bytes and a flag each)."""

    def __init__(self, prefixes: NDArray[np.uint64]) -> None:
        self._prefixes = np.unique(prefixes)
        self._met = np.zeros(len(self._prefixes), dtype=np.bool_)
        self.met = 0
        """How many of them were met so far."""

    def __len__(self) -> int:
        return len(self._prefixes)

    def meet(self, prefixes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which of ``prefixes`` are wanted and met for the first time now."""
        first = np.zeros(len(prefixes), dtype=np.bool_)
        if not len(self._prefixes):
            return first
        distinct, where = np.unique(prefixes, return_index=True)
        at = np.searchsorted(self._prefixes, distinct)
        at[at == len(self._prefixes)] = 0
        new = (self._prefixes[at] == distinct) & ~self._met[at]
        self._met[at[new]] = True
        self.met += int(np.count_nonzero(new))
        first[where[new]] = True
        return first
