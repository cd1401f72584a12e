"""The superblock of XFS. Source: XFS Algorithms and Data Structures, third edition (big-endian throughout)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ranges import Column
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "XFS superblock"
_SHARED: Final = 0x200
_DIRECTORIES_2: Final = 0x2000
_MORE: Final = 0x8000
_LAZY_COUNT: Final = 0x2
_FILE_TYPE_4: Final = 0x200
_FILE_TYPE: Final = 0x1
_SPARSE_INODES: Final = 0x2
_NEEDS_REPAIR: Final = 0x10
_KNOWN_INCOMPATIBLE: Final = _FILE_TYPE | _SPARSE_INODES | 0x4 | 0x8 | _NEEDS_REPAIR | 0x20 | 0x40 | 0x80
"""And: other UUID in metadata, big times, big extent counts, exchanged ranges, parent pointers."""
_REFLINK: Final = 0x4
_KNOWN_READ_ONLY: Final = 0xF
"""Trees of free inodes, of owners, of shared blocks; counts of blocks of inode trees."""
_MAX_GROUPS: Final = 1 << 14
"""Usual are 4 to some hundred; headers of 4 KiB then take 64 MiB."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says, sizes in bytes, checked for what the rest of the reader relies on."""

    version: int
    block_size: int
    sector_size: int
    inode_size: int
    directory_block: int
    blocks: int
    group_blocks: int
    groups: int
    group_shift: int
    inode_shift: int
    root: int
    log_start: int
    log_blocks: int
    inodes: int
    free_inodes: int
    free_blocks: int
    lazy_count: bool
    typed: bool
    sparse_inodes: bool
    shares: bool
    needs_repair: bool

    @classmethod
    def read(cls, volume: Volume) -> Superblock:
        """Read the superblock of a volume.

        Raises:
            FormatError: there is none, it breaks a rule, or it has a feature that is not known here.
        """
        data = volume.bytes(WHAT, 0, 512)

        def number(at: int, size: int) -> int:
            return int.from_bytes(data[at : at + size], "big")

        features = number(100, 2)
        version = features & 15
        more = number(200, 4) if features & _MORE else 0
        new = version == 5
        incompatible, read_only = (number(216, 4), number(212, 4)) if new else (0, 0)
        found = cls(
            version=version,
            block_size=number(4, 4),
            sector_size=number(102, 2),
            inode_size=number(104, 2),
            directory_block=number(4, 4) << min(number(192, 1), 16),
            blocks=number(8, 8),
            group_blocks=number(84, 4),
            groups=number(88, 4),
            group_shift=number(124, 1),
            inode_shift=number(123, 1),
            root=number(56, 8),
            log_start=number(48, 8),
            log_blocks=number(96, 4),
            inodes=number(128, 8),
            free_inodes=number(136, 8),
            free_blocks=number(144, 8),
            lazy_count=new or bool(more & _LAZY_COUNT),
            typed=bool(incompatible & _FILE_TYPE) if new else bool(more & _FILE_TYPE_4),
            sparse_inodes=bool(incompatible & _SPARSE_INODES),
            shares=bool(read_only & _REFLINK),
            needs_repair=bool(incompatible & _NEEDS_REPAIR) or bool(number(126, 1)),
        )
        known = (
            (data[:4] == b"XFSB" and version in (4, 5), "the mark XFSB of version 4 or 5"),
            (bool(features & _DIRECTORIES_2) and not features & _SHARED, "directories of version 2"),
            (not incompatible & ~_KNOWN_INCOMPATIBLE and not read_only & ~_KNOWN_READ_ONLY, "features that are known"),
            (number(16, 8) == 0, "no realtime section"),
            (number(220, 4) == 0 if new else True, "no feature that only a log has"),
        )
        for good, what in known:
            if not good:
                raise FormatError(WHAT, volume.start, what, f"{features:#x} {incompatible:#x} {read_only:#x}")
        found._check(volume)
        return found

    def _check(self, volume: Volume) -> None:
        size, per_block = self.block_size, self.block_size // max(1, self.inode_size)
        rules = (
            (512 <= size <= 65536 and _is_power(size), "block size"),
            (512 <= self.sector_size <= size and _is_power(self.sector_size), "sector size"),
            (256 <= self.inode_size <= min(2048, size) and _is_power(self.inode_size), "inode size"),
            (self.directory_block <= 65536, "size of directory blocks"),
            (per_block == 1 << self.inode_shift, "inodes per block"),
            (64 <= self.group_blocks <= 1 << 31 and 0 < self.groups <= _MAX_GROUPS, "number of groups"),
            (self.group_blocks <= 1 << self.group_shift <= 2 * self.group_blocks, "size of groups"),
            (
                (self.groups - 1) * self.group_blocks < self.blocks <= self.groups * self.group_blocks,
                "number of blocks",
            ),
            (self.blocks * size <= volume.length, "number of blocks"),
            (max(self.root, self.log_start) < 1 << 63, "root or log"),
        )
        for good, name in rules:
            if not good:
                raise FormatError(WHAT, volume.start, f"a possible {name}", repr(self))

    def group_lengths(self) -> Column:
        """Return the number of blocks of each allocation group; the last may be shorter."""
        lengths = np.full(self.groups, self.group_blocks, dtype=np.int64)
        lengths[-1] = self.blocks - (self.groups - 1) * self.group_blocks
        return lengths

    def place(self, group: Column, block: Column) -> Column:
        """Return where blocks of groups lie, in bytes."""
        return (group * self.group_blocks + block) * self.block_size

    def split(self, what: str, numbers: Column, lengths: Column | int) -> Column:
        """Return where runs of blocks lie that are given as the file system numbers them, in bytes.

        Raises:
            FormatError: one does not lie within one group.
        """
        group, block = numbers >> self.group_shift, numbers & ((1 << self.group_shift) - 1)
        good = (group >= 0) & (group < self.groups)
        good &= block + lengths <= self.group_lengths()[np.where(good, group, 0)]
        if not good.all():
            raise FormatError(what, "a pointer", "blocks within a group", int(numbers[int(np.argmin(good))]))
        return self.place(group, block)

    def inode_place(self, numbers: Column) -> Column:
        """Return where inodes lie, in bytes."""
        shift = self.group_shift + self.inode_shift
        group, index = numbers >> shift, numbers & ((1 << shift) - 1)
        block, rest = index >> self.inode_shift, index & ((1 << self.inode_shift) - 1)
        return self.place(group, block) + rest * self.inode_size


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)
