"""The reader of ext2, ext3 and ext4 (``ExtFileSystem``).

Source: Linux, Documentation/filesystems/ext4. Refused: bigalloc, shared blocks, compression, external journals, and any
feature not listed in ``superblock``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, FileEntry, FileSystem, check_count
from trimtransfer.filesystem.ext.directory import entries, inline_entries
from trimtransfer.filesystem.ext.groups import Groups
from trimtransfer.filesystem.ext.inodes import DIRECTORY, REGULAR, ROOT, Inodes
from trimtransfer.filesystem.ext.superblock import FILETYPE, HAS_JOURNAL, Superblock
from trimtransfer.filesystem.paths import walk
from trimtransfer.filesystem.ranges import Ranges, joined, ranges_of
from trimtransfer.filesystem.volume import Volume

_JOURNAL_MARK: Final = 0xC03B3998
_JOURNAL_KINDS: Final = (3, 4)
"""Block types of a journal's superblock, versions 1 and 2 (Linux, jbd2)."""


class ExtFileSystem(FileSystem):
    """An ext2, ext3 or ext4 file system; ``superblock`` and ``groups`` are what they say."""

    def __init__(self, volume: Volume) -> None:
        self.superblock = Superblock.read(volume)
        block = self.superblock
        super().__init__(volume, kind=block.name, length=block.blocks * block.block_size, block_size=block.block_size)
        self.groups = Groups.read(volume, block)

    @cached_property
    def _inodes(self) -> Inodes:
        return Inodes.read(self.volume, self.groups)

    def files(self) -> Iterator[FileEntry]:
        """See ``FileSystem.files``."""
        inodes, self._directory_bytes = self._inodes, 0
        seen = np.zeros(len(inodes.numbers), dtype=np.bool_)
        for path, number in walk(ROOT, self._children):
            row = inodes.find(number)
            if inodes.kinds[row] == REGULAR and not seen[row]:
                seen[row] = True
                size = int(inodes.sizes[row])
                found = inodes.runs.extents(number, 0 if inodes.encrypted[row] else size)
                found[:, 1] += self.start
                yield FileEntry(path, size, found)

    def free(self) -> Ranges:
        """See ``FileSystem.free``."""
        return self._bytes(self.groups.free())

    def reached(self) -> Ranges:
        """See ``FileSystem.reached``."""
        space = self._inodes.runs.space()
        space[:, 0] += self.start
        return joined((space, self._bytes(self._inodes.blocks), self._bytes(self.groups.metadata())))

    def packed(self) -> int:
        """See ``FileSystem.packed``."""
        inodes = self._inodes
        owners = inodes.numbers[inodes.encrypted & (inodes.kinds == REGULAR)]
        return int(inodes.runs.lengths[np.isin(inodes.runs.owners, owners)].sum())

    def _bytes(self, blocks: Ranges) -> Ranges:
        size = self.block_size
        return ranges_of(blocks[:, 0] * size + self.start, blocks[:, 1] * size)

    def _children(self, number: int) -> list[tuple[bytes, int]] | None:
        """Return (name, inode) of what a directory holds; None for anything else. Encrypted names, which may hold any
        byte, are given as hexadecimal digits."""
        inodes = self._inodes
        row = inodes.find(number)
        if inodes.kinds[row] != DIRECTORY:
            return None
        found = self._entries(number, row)
        return [(name.hex().encode(), inode) for name, inode in found] if inodes.encrypted[row] else found

    def _entries(self, number: int, row: int) -> list[tuple[bytes, int]]:
        """Return (name, inode) of what a directory holds, as stored."""
        inodes = self._inodes
        typed = bool(self.superblock.incompatible & FILETYPE)
        if inodes.inline[row]:
            at = self._inode_offset(number)
            inode = self.volume.bytes("ext inode", at, self.superblock.inode_size)
            return list(inline_entries(inode, where=self.start + at, typed=typed))
        found: list[tuple[bytes, int]] = []
        for _, place, length in inodes.runs.extents(number, int(inodes.sizes[row])).tolist():
            self._spend(length)
            for at in range(place, place + length, self.block_size):
                check_count("ext directory", len(found), MAX_FILES)
                block = self.volume.bytes("ext directory", at, self.block_size)
                found += entries(block, where=self.start + at, typed=typed)
        return found

    def _inode_offset(self, number: int) -> int:
        """Return where an inode lies, in bytes."""
        group, index = divmod(number - 1, self.superblock.inodes_per_group)
        return int(self.groups.inode_tables[group]) * self.block_size + index * self.superblock.inode_size

    def _doubt(self) -> str:
        return self.superblock.doubt() or self._journal_doubt()

    def _journal_doubt(self) -> str:
        """Return why the journal may hold what is not in the file system yet, or nothing."""
        if not self.superblock.compatible & HAS_JOURNAL:
            return ""
        if not self.superblock.journal_inode:
            return "its journal is on another device"
        found = self._inodes.runs.extents(self.superblock.journal_inode, self.block_size)
        if not len(found):
            return "its journal cannot be found"
        head = self.volume.bytes("ext journal", int(found[0, 1]), 1024)
        mark, kind, start, error = (int.from_bytes(head[at : at + 4], "big") for at in (0, 4, 28, 32))
        if mark != _JOURNAL_MARK or kind not in _JOURNAL_KINDS:
            raise FormatError("ext journal", self.start + int(found[0, 1]), f"the mark {_JOURNAL_MARK:#x}", hex(mark))
        if error:
            return "its journal records an error; run e2fsck"
        return "its journal must be recovered" if start else ""
