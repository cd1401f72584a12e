"""Seeds that lie off the block grid: wanted chunks found at any offset of the files that the user named.

An image inside another file - behind the header of a virtual disk format, in an archive - lies at any offset, and
cutting that file by blocks from its start finds nothing. So a named file in which the chunks on the block grid are few
is rolled through for the keys of the chunks still wanted (``finder.py``). The keys are fetched for that: 8 bytes for a
chunk, and only from versions whose key files can find 32 times as many bytes as they have.

The rule: of what a file could give (its bytes of data, or all content that is to be written if that is less) its chunks
on the grid are below :data:`ON_GRID`, and looking through it pays (:mod:`payoff`). Folders and host files are not
rolled through: files begin on the grid.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.keyspill import KeySpill
from trimtransfer.assembly.payoff import Judge, decide_search
from trimtransfer.assembly.plan import Groups, Mask, Numbers, Window
from trimtransfer.assembly.resolve import Resolver
from trimtransfer.assembly.rolling import NamedFile, roll
from trimtransfer.finder import ChunkFinder
from trimtransfer.index.catalogue import Location
from trimtransfer.index.prefix import IndexWriter, PrefixIndex
from trimtransfer.index.rowfile import Rows as IndexRows
from trimtransfer.index.seed import IndexedSeed
from trimtransfer.manifest import KEYS, Region
from trimtransfer.spill import Rows
from trimtransfer.watch import Watch

ON_GRID: Final = 0.5
LEAST: Final = 256 << 10
"""Bytes that must be wanted, and in a file, to look for them."""
_WORTH: Final = 32
"""Bytes that a byte of keys must be able to find."""
_PASS: Final = 1 << 19
"""Chunks looked for in one pass over a file: 45 MiB of tables."""
_WANTED: Final = np.dtype(
    [("prefix", "<u8"), ("place", "<i8"), ("length", "<u4"), ("region", "<u4"), ("number", "<u4")]
)
"""A wanted chunk: digest prefix, place in the image, length, number of its region and of the chunk in that."""

Done: TypeAlias = Callable[[Numbers, NDArray[np.uint32]], Mask]


@dataclass(slots=True)
class _Wanted:
    """What is looked for: ``rows`` of dtype ``_WANTED``, in image order; of all content how much, and on each file's
    grid how much of it."""

    rows: Rows
    wanted_bytes: int
    content_bytes: int
    on_grid: list[int]


@dataclass(frozen=True, slots=True)
class _Places:
    """The files of the index, by number."""

    locations: Sequence[Location]

    def locate(self, number: int) -> Location | None:
        """Return where a file is."""
        return self.locations[number] if number < len(self.locations) else None


class Anywhere:
    """Searches ``files`` for what ``resolver`` finds in none of its seeds. ``directory`` takes temporary files."""

    def __init__(
        self, resolver: Resolver, files: Sequence[NamedFile], directory: Path, watch: Watch, judge: Judge
    ) -> None:
        self._judge = judge
        self._resolver, self._manifest = resolver, resolver.remote.manifest
        self._files, self._directory, self._watch = files, directory, watch
        self.warnings: list[str] = []
        self.read_seconds = 0.0
        """Time in which tables and keys were read from the repository."""

    def search(self, windows: Iterable[Sequence[Region]], done: Done) -> IndexedSeed | None:
        """Return what is found of these regions as a seed, None if nothing is or the search is not worth it.

        ``done`` tells which records (offsets and lengths in the image) are written already.

        Raises:
            FormatError, IntegrityError: tables are damaged; FetchError, NoSpace, Cancelled.
        """
        files = [file for file in self._files if file.data_bytes >= LEAST]
        if not files:
            return None
        wanted = self._gather(files, windows, done)
        try:
            files = [
                file
                for file, on_grid in zip(files, wanted.on_grid, strict=True)
                if on_grid < ON_GRID * min(file.data_bytes, wanted.content_bytes)
            ]
            if wanted.wanted_bytes < LEAST:
                return None
            files = [file for file in files if self._pays(file, wanted.wanted_bytes)]
            if not files:
                return None
            with KeySpill(self._resolver.remote.store, self._manifest, self._directory) as keys:
                versions = self._worth_fetching(wanted, sum(file.data_bytes for file in files))
                began = time.monotonic()
                keys.fetch(versions)
                self.read_seconds += time.monotonic() - began
                self.warnings += keys.warnings
                return self._roll(files, wanted.rows.array(), keys)
        finally:
            wanted.rows.close()

    def _pays(self, file: NamedFile, wanted: int) -> bool:
        """Decide whether looking through a file pays. How much a device holds is not known, so it is looked through."""
        if file.location.block_device:
            return True
        line = self._judge.line(self._resolver.remote.measured)
        name = os.path.basename(os.fsdecode(file.path))
        return self._judge.note(decide_search(name=name, size=file.data_bytes, wanted=wanted, line=line))

    def _gather(self, files: Sequence[NamedFile], windows: Iterable[Sequence[Region]], done: Done) -> _Wanted:
        """Read the tables of all regions - they are kept - and ask all seeds for their chunks."""
        wanted = _Wanted(Rows(_WANTED, self._directory), 0, 0, [0] * len(files))
        for regions in windows:
            began = time.monotonic()
            _, window = self._resolver.read(regions)
            self.read_seconds += time.monotonic() - began
            content = ~window.zero & ~done(window.offsets, window.lengths)
            records = np.sort(Groups.of(window, np.flatnonzero(content)).leaders)
            lengths = window.lengths[records].astype(np.int64)
            wanted.content_bytes += int(lengths.sum())
            for number, file in enumerate(files):
                here = file.seed.find(window.prefixes[records], window.lengths[records]) >= 0
                wanted.on_grid[number] += int(lengths[here].sum())
            for seed in self._resolver.seeds:
                records = records[seed.find(window.prefixes[records], window.lengths[records]) < 0]
            wanted.wanted_bytes += int(window.lengths[records].sum(dtype=np.int64))
            wanted.rows.append(_rows(window, records))
        return wanted

    def _worth_fetching(self, wanted: _Wanted, data_bytes: int) -> set[str]:
        """Return the versions whose key files can find so much more than they are long that it is worth it."""
        rows = wanted.rows.array()
        regions, at = np.unique(rows["region"], return_inverse=True)
        sizes = np.bincount(at, rows["length"])
        by_version: dict[str, float] = {}
        for region, size in zip(regions.tolist(), sizes.tolist(), strict=True):
            version = self._version(region)
            by_version[version] = by_version.get(version, 0) + size
        lengths = {file.version: file.length for file in self._manifest.files if file.kind == KEYS}
        if not lengths:
            self.warnings.append(
                "the repository has no keys for this version, so seeds are not searched at every offset; "
                "what was published by an older program has none"
            )
        return {
            version
            for version, size in by_version.items()
            if version in lengths and lengths[version] * _WORTH <= min(size, data_bytes)
        }

    def _version(self, region: int) -> str:
        """Return the version whose key file has the keys of a region."""
        return self._manifest.files[self._manifest.region(region).full.file].version

    def _roll(self, files: Sequence[NamedFile], rows: NDArray[Any], keys: KeySpill) -> IndexedSeed | None:
        """Look through the files for these chunks, some at a time; return what is found as a seed."""
        path = self._directory / f"anywhere-{os.getpid()}.tmp"
        with IndexWriter(self._directory, kind=int(self._manifest.kind)) as writer:
            for start in range(0, len(rows), _PASS):
                part = rows[start : start + _PASS]
                columns = self._keys(part, keys)
                for number, file in enumerate(files):
                    if columns.any():
                        part, columns = self._roll_file(number, file, part, columns, writer)
            if not len(writer):
                return None
            try:
                writer.finish(path, durable=False)
                index = PrefixIndex.open(path)
            finally:
                path.unlink(missing_ok=True)  # the mapping stays
        names = ", ".join(os.fsdecode(file.path) for file in files)
        return IndexedSeed(f"{names} (any offset)", "seed", [index], _Places([file.location for file in files]))

    def _keys(self, rows: NDArray[Any], keys: KeySpill) -> NDArray[np.uint64]:
        """Return the key of each chunk, 0 where there is none."""
        found = np.zeros(len(rows), dtype=np.uint64)
        for region in np.unique(rows["region"]).tolist():
            file = keys.file(self._version(region))
            table = file.find(self._manifest.region(region).table) if file is not None else None
            if file is None or table is None:
                continue
            here = np.flatnonzero(rows["region"] == region)
            here = here[rows["number"][here] < file.count(table)]
            found[here] = file.keys(table)[rows["number"][here]]
        return found

    def _roll_file(
        self, number: int, file: NamedFile, rows: NDArray[Any], keys: NDArray[np.uint64], writer: IndexWriter
    ) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """Look through one file and note what is found; return the chunks that are not, and their keys."""
        finder = ChunkFinder(keys, *(np.ascontiguousarray(rows[name]) for name in ("prefix", "length", "place")))
        roll(file, finder, self._watch)
        found, offsets = finder.found()
        numbers = np.full(len(found), number, dtype=np.uint32)
        writer.add(IndexRows(rows["prefix"][found], rows["length"][found], numbers, offsets.astype(np.uint64)))
        missing = np.ones(len(rows), dtype=np.bool_)
        missing[found] = False
        return rows[missing], keys[missing]


def _rows(window: Window, records: Numbers) -> NDArray[Any]:
    """Return rows of dtype ``_WANTED`` for some chunk records of a window."""
    before = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(~window.zero, dtype=np.int64)))
    at = window.region_rows(records)
    rows = np.zeros(len(records), dtype=_WANTED)
    rows["prefix"], rows["length"] = window.prefixes[records], window.lengths[records]
    rows["place"], rows["region"] = window.offsets[records], window.regions[at]
    rows["number"] = before[records] - before[window.first[at]]  # chunks before it in its region
    return rows
