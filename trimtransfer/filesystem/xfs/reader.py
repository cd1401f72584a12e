"""The reader of XFS, versions 4 and 5 (``XfsFileSystem``).

Source: XFS Algorithms and Data Structures, third edition. Refused: realtime sections, external logs, and features that
are not listed in ``superblock``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, FileEntry, FileSystem, check_count
from trimtransfer.filesystem.paths import walk
from trimtransfer.filesystem.ranges import Ranges, joined, ranges_of
from trimtransfer.filesystem.stream import read_stream
from trimtransfer.filesystem.volume import Volume
from trimtransfer.filesystem.xfs import log
from trimtransfer.filesystem.xfs.directory import LEAVES, WHAT, block_entries, short_entries
from trimtransfer.filesystem.xfs.groups import Groups
from trimtransfer.filesystem.xfs.inodes import DIRECTORY, LOCAL, REGULAR, Inodes
from trimtransfer.filesystem.xfs.superblock import Superblock


class XfsFileSystem(FileSystem):
    """An XFS file system; ``superblock`` is what it says."""

    def __init__(self, volume: Volume) -> None:
        self.superblock = Superblock.read(volume)
        block = self.superblock
        super().__init__(volume, kind="XFS", length=block.blocks * block.block_size, block_size=block.block_size)
        self._groups = Groups(volume, block)

    @cached_property
    def _inodes(self) -> Inodes:
        return Inodes.read(self.volume, self.superblock, self._groups.chunks.used)

    def files(self) -> Iterator[FileEntry]:
        """See ``FileSystem.files``."""
        inodes, self._directory_bytes = self._inodes, 0
        seen = np.zeros(len(inodes.numbers), dtype=np.bool_)
        for path, number in walk(self.superblock.root, self._children):
            row = inodes.find(number)
            if inodes.kinds[row] == REGULAR and not seen[row]:
                seen[row] = True
                size = int(inodes.sizes[row])
                found = inodes.runs.extents(number, size)
                found[:, 1] += self.start
                yield FileEntry(path, size, found)

    def free(self) -> Ranges:
        """See ``FileSystem.free``."""
        return self._moved(self._groups.free())

    def reached(self) -> Ranges:
        """See ``FileSystem.reached``."""
        block, chunks = self.superblock, self._groups.chunks
        trees = np.concatenate((self._groups.tree_places(), chunks.places))
        parts = [
            self._groups.headers(),
            ranges_of(trees, np.full(len(trees), block.block_size)),
            chunks.space,
            self._inodes.runs.space(),
            self._inodes.space,
        ]
        if block.log_start:
            parts.append(np.array([self._log()], dtype=np.int64))
        return self._moved(joined(parts))

    def _moved(self, ranges: Ranges) -> Ranges:
        """Return ranges of the volume as ranges of the image."""
        return ranges_of(ranges[:, 0] + self.start, ranges[:, 1])

    @property
    def _shares(self) -> bool:
        return self.superblock.shares

    def _children(self, number: int) -> list[tuple[bytes, int]] | None:
        """Return (name, inode) of what a directory holds; None for anything else."""
        inodes, block = self._inodes, self.superblock
        row = inodes.find(number)
        if inodes.kinds[row] != DIRECTORY:
            return None
        if inodes.formats[row] == LOCAL:
            at = int(block.inode_place(inodes.numbers[row : row + 1])[0])
            core = 176 if block.version == 5 else 100
            data = self.volume.bytes("XFS inode", at, block.inode_size)[core:]
            return list(short_entries(data, where=self.start + at, typed=block.typed))
        extents = inodes.runs.extents(number, LEAVES)
        self._spend(int(extents[:, 2].sum()))
        found: list[tuple[bytes, int]] = []
        size = block.directory_block
        numbers = [np.arange(start // size, -(-(start + length) // size)) for start, _, length in extents.tolist()]
        for number_of_block in np.unique(np.concatenate(numbers)).tolist() if numbers else []:
            data = read_stream(self.volume, WHAT, extents, number_of_block * size, size)
            found += block_entries(data, where=number_of_block * size, typed=block.typed)
            check_count(WHAT, len(found), MAX_FILES)
        return found

    def _log(self) -> tuple[int, int]:
        """Return where the log lies in the volume, and its length, in bytes."""
        block = self.superblock
        start = np.array([block.log_start], dtype=np.int64)
        return int(block.split("XFS log", start, block.log_blocks)[0]), block.log_blocks * block.block_size

    def _doubt(self) -> str:
        if self.superblock.needs_repair:
            return "it is marked as in need of repair; run xfs_repair"
        if not self.superblock.log_start:
            return "its log is on another device"
        place, length = self._log()
        try:
            return log.doubt(lambda at, size: self.volume.bytes("XFS log", place + at, size), length)
        except FormatError as error:
            return f"its log cannot be read: {error}"
