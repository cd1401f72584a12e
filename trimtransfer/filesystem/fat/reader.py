"""The reader of FAT12, FAT16 and FAT32 (``FatFileSystem``). Source: Microsoft, FAT32 File System Specification 1.03."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, FileEntry, FileSystem, Runs, check_count
from trimtransfer.filesystem.fat.boot import Boot
from trimtransfer.filesystem.fat.directory import entries
from trimtransfer.filesystem.fat.table import AllocationTable
from trimtransfer.filesystem.paths import walk
from trimtransfer.filesystem.ranges import Ranges, joined, ranges_of
from trimtransfer.filesystem.volume import MAX_READ, Volume

_ROOT: Final = 0
_SUMMARY_MARKS: Final = (b"RRaA", b"rrAa")
_UNCOUNTED: Final = 0xFFFFFFFF
_MAX_DIRECTORY: Final = 65536 * 32


@dataclass(slots=True)
class _Tree:
    """Files and directories, numbered as they are found; ``names`` (name, number) by directory, ``sizes`` in bytes;
    ``runs``: rows of number, offset in it, place in the volume, length."""

    names: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    runs: list[tuple[int, int, int, int]] = field(default_factory=list)


class FatFileSystem(FileSystem):
    """A FAT file system."""

    def __init__(self, volume: Volume) -> None:
        self._boot = Boot.read(volume)
        super().__init__(
            volume, kind=f"FAT{self._boot.bits}", length=self._boot.length, block_size=self._boot.cluster_size
        )

    @cached_property
    def _table(self) -> AllocationTable:
        return AllocationTable(self.volume, self._boot)

    def files(self) -> Iterator[FileEntry]:
        """See ``FileSystem.files``."""
        tree, runs = self._tree, self._runs
        for path, number in walk(_ROOT, tree.names.get):
            found = runs.extents(number, tree.sizes[number])
            found[:, 1] += self.start
            yield FileEntry(path, tree.sizes[number], found)

    def free(self) -> Ranges:
        """See ``FileSystem.free``."""
        found = self._table.free()
        starts = self.start + self._boot.data + (found[:, 0] - 2) * self.block_size
        return ranges_of(starts, found[:, 1] * self.block_size)

    def reached(self) -> Ranges:
        """See ``FileSystem.reached``."""
        space = self._runs.space()
        space[:, 0] += self.start
        return joined((np.array([[self.start, self._boot.data]], dtype=np.int64), space))

    @cached_property
    def _runs(self) -> Runs:
        owners, offsets, places, lengths = np.array(self._tree.runs, dtype=np.int64).reshape(-1, 4).T
        return Runs.of("FAT files", [Runs(owners, offsets, places, lengths, np.ones(len(owners), dtype=np.bool_))])

    @cached_property
    def _tree(self) -> _Tree:
        """All directories, read from the root on; no cluster is followed twice, so what is read is bounded."""
        tree = _Tree()
        self._table.walked = 0
        root = self._add(tree, self._boot.root_cluster, None)
        waiting = deque([(root, slice(0, len(tree.runs)))])
        while waiting:
            directory, runs = waiting.popleft()
            names = tree.names[directory] = []
            for entry in entries(self._directory(tree, runs), wide=self._boot.bits == 32):
                before = len(tree.runs)
                number = self._add(tree, entry.cluster, None if entry.directory else entry.size)
                names.append((entry.name, number))
                if entry.directory:
                    waiting.append((number, slice(before, len(tree.runs))))
        return tree

    def _add(self, tree: _Tree, cluster: int, size: int | None) -> int:
        """Add a file, or a directory (``size`` None), and follow its chain; return its number."""
        number = len(tree.sizes)
        check_count("FAT files", number, MAX_FILES)
        tree.sizes.append(size or 0)
        if not cluster and not size:  # an empty file, or the root directory before the clusters
            if size is None and number != _ROOT:
                raise FormatError("FAT directory", f"number {number}", "a first cluster", cluster)
            return number
        at = 0
        for first, count in self._table.chain(cluster):
            place = self._boot.data + (first - 2) * self.block_size
            tree.runs.append((number, at, place, count * self.block_size))
            at += count * self.block_size
        if size is not None and -(-size // self.block_size) * self.block_size != at:
            raise FormatError("FAT file", f"cluster {cluster}", f"a chain for {size} bytes", f"one of {at}")
        if size is None and at > _MAX_DIRECTORY:
            raise FormatError("FAT directory", f"cluster {cluster}", f"at most {_MAX_DIRECTORY} bytes", at)
        return number

    def _directory(self, tree: _Tree, runs: slice) -> bytes:
        """Return the content of a directory that has these rows of runs; without any it is the root before them."""
        if runs.start == runs.stop:
            return self.volume.bytes("FAT root directory", self._boot.root, min(self._boot.root_length, MAX_READ))
        parts = []
        for _, _, place, length in tree.runs[runs]:
            parts.append(self.volume.bytes("FAT directory", place, length))
        return b"".join(parts)

    def _doubt(self) -> str:
        if self._boot.dirty & 1:
            return "it is mounted, or was not unmounted; unmount it (shut its guest down), or run chkdsk or fsck.fat"
        if self._boot.dirty & 2:
            return "disk errors were met; run chkdsk or fsck.fat"
        return self._table.doubt() or self._summary_doubt()

    def _summary_doubt(self) -> str:
        """Compare the number of free clusters with the summary, where there is one."""
        if not self._boot.summary:
            return ""
        data = self.volume.bytes("FAT summary", self._boot.summary, 512)
        if (data[:4], data[484:488]) != _SUMMARY_MARKS:
            return ""
        stated, counted = int.from_bytes(data[488:492], "little"), int(self._table.free()[:, 1].sum())
        if stated not in (counted, _UNCOUNTED):
            return f"{counted:,} clusters of it are free, its summary says {stated:,}"
        return ""
