"""Seeds: local data that may hold wanted chunks - files, trees of files, block devices, images with known tables.

A seed only proposes. :meth:`Seed.read` fills the caller's buffer with what the file holds now; the caller hashes that
very buffer before he uses it. A seed that changed, shrank, vanished or lies costs a fetch, never a wrong byte.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, Kind, object_digest
from trimtransfer.errors import FormatError, Locked, TargetRefused
from trimtransfer.index.catalogue import Catalogue, Location
from trimtransfer.index.globs import PathChooser
from trimtransfer.index.prefix import ALTERNATIVES, IndexWriter, Live, PrefixIndex
from trimtransfer.index.rowfile import Rows
from trimtransfer.index.tree import Progress, TreeIndex, live_numbers
from trimtransfer.index.update import StopRule, UpdateReport, update_index
from trimtransfer.localfile import Guard, OpenFiles, hanging_mounts, look, open_local, read_into
from trimtransfer.table import Table

Category: TypeAlias = Literal["seed", "host", "previous"]

IMAGE_SIZE: Final = 1 << 20
"""Files of a seed tree from this size on are cut as images too: by segments, with their true last bytes."""
_LOCATIONS: Final = 4096
"""Locations of files that a seed remembers."""
_TWINS: Final = 4
"""Indexes of one seed, for processes that scan it at the same time."""
_KEPT: Final = 16
"""Indexes of seeds that are kept for the next time, the most recently used ones."""


class Seed(Protocol):
    """Local data that may hold wanted chunks. Safe among threads."""

    name: str
    """For reports."""
    category: Category

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return for each wanted chunk (first 8 digest bytes, length) a row where it may be, or -1."""
        ...

    def read(self, row: int, buffer: memoryview) -> bool:
        """Fill ``buffer``, of the chunk's length, with what is at ``row`` now; False if it cannot be read.

        Never raises ``OSError``. The caller verifies the digest.
        """
        ...


class FilePlaces(Protocol):
    """Where the files of an index are, by their numbers."""

    def locate(self, number: int) -> Location | None:
        """Return where a file is, or None if it is gone."""
        ...


class IndexedSeed:
    """A seed of indexed files. Use it as a context manager, or close it. Its methods may be called from any thread.

    ``indexes`` are searched in order; ``live`` tells which file numbers still count. With ``public`` only files that
    every user may read are read. ``report`` tells how the index was brought up to date, if it was.
    """

    def __init__(
        self,
        name: str,
        category: Category,
        indexes: Sequence[PrefixIndex],
        places: FilePlaces | None,
        *,
        live: Live | None = None,
        public: bool = False,
        report: UpdateReport | None = None,
    ) -> None:
        self.name, self.category, self.report = name, category, report
        self._indexes, self._places, self._live, self._public = tuple(indexes), places, live, public
        self._bases = np.cumsum([0, *(len(index) for index in indexes)])
        self._open = OpenFiles()
        self._lock = threading.Lock()
        self._locations: OrderedDict[int, Location | None] = OrderedDict()
        self._guards = {os.path.join(point, b""): Guard() for point in hanging_mounts()}
        self.unreadable = 0
        """Reads that failed: the file is gone, changed its identity, shrank, or does not answer."""

    def __enter__(self) -> IndexedSeed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of rows, those of files that are gone included."""
        return int(self._bases[-1])

    def __repr__(self) -> str:
        return f"IndexedSeed({self.name!r}, {self.category!r}, {len(self):,} rows)"

    def close(self) -> None:
        """Close all files; a closed seed reads nothing."""
        self._open.close()
        for guard in self._guards.values():
            guard.close()
        if isinstance(self._places, Catalogue):
            self._places.close()
        self._places = None

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return for each wanted chunk (first 8 digest bytes, length) a row where it may be, or -1."""
        found = np.full(len(prefixes), -1, dtype=np.int64)
        pending = np.arange(len(prefixes))
        for base, index in zip(self._bases.tolist(), self._indexes, strict=False):
            rows = index.find(prefixes[pending], lengths[pending], live=self._live)
            hit = rows >= 0
            found[pending[hit]] = rows[hit] + base
            pending = pending[~hit]
        return found

    def rows(self, prefix: int, length: int, *, limit: int = ALTERNATIVES) -> NDArray[np.int64]:
        """Return all rows of one chunk, at most ``limit``: where else to look when the first one lied."""
        found: list[NDArray[np.int64]] = []
        for base, index in zip(self._bases.tolist(), self._indexes, strict=False):
            rows = index.rows(prefix, length, limit=limit)
            if self._live is not None:
                rows = rows[self._live(index.columns.files[rows])]
            found.append(rows + base)
        return np.concatenate(found)[:limit] if found else np.zeros(0, dtype=np.int64)

    def order(self, rows: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the order in which rows are best read: file by file, ascending in each."""
        files, offsets = np.zeros(len(rows), dtype=np.uint32), np.zeros(len(rows), dtype=np.uint64)
        which = np.searchsorted(self._bases, rows, side="right") - 1
        for number, index in enumerate(self._indexes):
            here = np.flatnonzero((which == number) & (rows >= 0))
            local = rows[here] - self._bases[number]
            files[here], offsets[here] = index.columns.files[local], index.columns.offsets[local]
        return np.lexsort((offsets, files))

    def read(self, row: int, buffer: memoryview) -> bool:
        """Fill ``buffer``, of the chunk's length, with what is at ``row`` now; False if it cannot be read.

        Bytes behind the end of the file, within its last block, read as zeros. The caller verifies the digest.
        """
        try:
            if self._read(row, buffer):
                return True
        except (OSError, ValueError, FormatError, Locked):  # ValueError: a damaged catalogue gave an impossible path
            pass
        with self._lock:
            self.unreadable += 1
        return False

    def _read(self, row: int, buffer: memoryview) -> bool:
        which = int(np.searchsorted(self._bases, row, side="right")) - 1
        if not 0 <= row < len(self):
            return False
        number, offset = self._indexes[which].place(row - int(self._bases[which]))
        location = self._locate(number)
        if location is None:
            return False
        guard = next((guard for point, guard in self._guards.items() if location.path.startswith(point)), None)
        return self._open.use(
            number,
            lambda: open_local(
                location.path,
                identity=location.identity,
                device=location.block_device,
                public=self._public,
                guard=guard,
            ),
            lambda descriptor: _fill(descriptor, buffer, offset, guard),
        )

    def _locate(self, number: int) -> Location | None:
        with self._lock:
            if number in self._locations:
                self._locations.move_to_end(number)
                return self._locations[number]
        places = self._places
        location = places.locate(number) if places is not None else None
        with self._lock:
            self._locations[number] = location
            if len(self._locations) > _LOCATIONS:
                self._locations.popitem(last=False)
        return location


def seed_from_path(
    path: str | os.PathLike[str],
    kind: Kind,
    *,
    scratch: str | os.PathLike[str],
    known_tables: Iterable[tuple[int, Table]] | None = None,
    stop: StopRule | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> IndexedSeed:
    """Return a seed of a file, a directory tree or a block device, cut as an image of this ``kind`` is.

    Its index is kept in the directory ``scratch``: with the same directory the next call scans only what changed (a
    block device: all of it). ``known_tables`` are the regions' tables, each with the offset in the file at which its
    region begins: where the caller has them there is no scan.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        TimeoutError: its file system does not answer.
        Cancelled: ``cancel`` was set; what was indexed so far is kept.
        NoSpace: no room for the index.
        Locked: more than a few other processes scan the same seed.
    """
    real, found = look(path)
    key = object_digest(real + b"\0%d" % kind).hex()[:16]
    if known_tables is not None:
        return _seed_from_tables(real, found, kind, Path(scratch) / f"tables-{key}.bin", known_tables)
    for number in range(_TWINS):
        index = TreeIndex(Path(scratch) / (f"seed-{key}-{number}" if number else f"seed-{key}"), kind=kind)
        try:
            report = update_index(
                index,
                [os.fsdecode(real)],
                chooser=PathChooser(),
                images=IMAGE_SIZE if stat.S_ISDIR(found.st_mode) else 0,
                stop=stop,
                progress=progress,
                cancel=cancel,
            )
            break
        except Locked:  # another process scans the same seed just now; it may take long, so this one has its own index
            if number == _TWINS - 1:
                raise
    _forget_old(Path(scratch), index)
    return open_seed(index, os.fspath(path), "seed", report=report)


def open_seed(
    index: TreeIndex, name: str, category: Category, *, public: bool = False, report: UpdateReport | None = None
) -> IndexedSeed:
    """Return the seed of an index as it is; an empty one if there is no index or it is damaged."""
    catalogue, runs = index.open_runs()
    try:
        live = live_numbers(catalogue.numbers()) if catalogue is not None else None
    except (FormatError, Locked):
        catalogue, runs, live = None, [], None
    return IndexedSeed(name, category, runs, catalogue, live=live, public=public, report=report)


def _forget_old(scratch: Path, present: TreeIndex) -> None:
    """Delete the indexes of seeds that were not used for the longest time, beyond those that are kept."""
    with suppress(OSError):
        os.utime(present.directory / "lock")
        used = [(lock.stat().st_mtime, lock.parent) for lock in scratch.glob("seed-*/lock")]
        for _, directory in sorted(used, reverse=True)[_KEPT:]:
            with suppress(Locked, TargetRefused):
                TreeIndex(directory, kind=present.kind).clear()


@dataclass(frozen=True, slots=True)
class _OneFile:
    location: Location

    def locate(self, number: int) -> Location | None:
        return self.location if number == 0 else None


def _seed_from_tables(
    real: bytes, found: os.stat_result, kind: Kind, target: Path, tables: Iterable[tuple[int, Table]]
) -> IndexedSeed:
    with IndexWriter(target.parent, kind=kind) as writer:
        for start, table in tables:
            solid = ~table.zero
            offsets = (table.offsets[solid] + start).astype(np.uint64)
            files = np.zeros(len(offsets), dtype=np.uint32)
            writer.add(Rows(table.prefixes[solid], table.lengths[solid], files, offsets))
        writer.finish(target, durable=False)
    places = _OneFile(Location(real, (found.st_dev, found.st_ino), stat.S_ISBLK(found.st_mode)))
    return IndexedSeed(os.fsdecode(real), "seed", [PrefixIndex.open(target)], places)


def _fill(descriptor: int, buffer: memoryview, offset: int, guard: Guard | None) -> bool:
    got = read_into(descriptor, buffer, offset, guard=guard)
    missing = len(buffer) - got
    if missing >= BLOCK_SIZE or not got:
        return False
    buffer[got:] = bytes(missing)
    return True
