"""The superblock of ext2, ext3 and ext4. Source: Linux, Documentation/filesystems/ext4 (little-endian throughout)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ranges import Column
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "ext superblock"
OFFSET: Final = 1024
HAS_JOURNAL: Final = 0x4
SPARSE_SUPER2: Final = 0x200
FILETYPE: Final = 0x2
RECOVER: Final = 0x4
META_BG: Final = 0x10
EXTENTS: Final = 0x40
SIXTY_FOUR: Final = 0x80
FLEX_BG: Final = 0x200
SPARSE_SUPER: Final = 0x1
GDT_CHECKSUM: Final = 0x10
METADATA_CHECKSUM: Final = 0x400
ORPHANS_PRESENT: Final = 0x10000

_READ_INCOMPATIBLE: Final = {
    FILETYPE: "filetype",
    RECOVER: "needs_recovery",
    META_BG: "meta_bg",
    EXTENTS: "extents",
    SIXTY_FOUR: "64bit",
    FLEX_BG: "flex_bg",
    0x400: "ea_inode",
    0x2000: "metadata_csum_seed",
    0x4000: "large_dir",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
}
_READ_ONLY: Final = {
    SPARSE_SUPER: "sparse_super",
    0x2: "large_file",
    0x4: "btree_dir",
    0x8: "huge_file",
    GDT_CHECKSUM: "uninit_bg",
    0x20: "dir_nlink",
    0x40: "extra_isize",
    0x100: "quota",
    METADATA_CHECKSUM: "metadata_csum",
    0x1000: "read-only",
    0x2000: "project",
    0x8000: "verity",
    ORPHANS_PRESENT: "orphan_present",
}
"""Features that this reader knows; any other is refused."""
_UNREAD_INCOMPATIBLE: Final = {0x1: "compression", 0x8: "journal_dev", 0x100: "mmp", 0x1000: "dirdata"}
_UNREAD: Final = {0x80: "has_snapshot", 0x200: "bigalloc", 0x800: "replica", 0x4000: "shared_blocks"}
"""Names of features that are refused, for messages."""
_MOUNTED: Final = "it is mounted, or was not unmounted"
_UNMOUNT: Final = "unmount it (shut its guest down), or run e2fsck"
_FIELDS: Final = struct.Struct("<7I")
_MAX_GROUPS: Final = 1 << 20
"""128 TiB with blocks of 4 KiB; the descriptors then take 64 MiB."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblock says, checked for what the rest of the reader relies on."""

    inodes: int
    blocks: int
    free_blocks: int
    free_inodes: int
    first_block: int
    block_size: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    first_inode: int
    descriptor_size: int
    reserved_descriptors: int
    first_meta_group: int
    backup_groups: tuple[int, int]
    state: int
    journal_inode: int
    last_orphan: int
    compatible: int
    incompatible: int
    read_only: int

    @classmethod
    def read(cls, volume: Volume) -> Superblock:
        """Read the superblock of a volume.

        Raises:
            FormatError: there is none, it breaks a rule, or it has a feature that is not known here.
        """
        data = volume.bytes(WHAT, OFFSET, 1024)
        u16, u32 = _reader(data, "<H"), _reader(data, "<I")
        dynamic = u32(76) > 0
        incompatible = u32(96) if dynamic else 0
        high = bool(incompatible & SIXTY_FOUR)
        found = cls(
            inodes=u32(0),
            blocks=u32(4) | (u32(336) << 32 if high else 0),
            free_blocks=u32(12) | (u32(344) << 32 if high else 0),
            free_inodes=u32(16),
            first_block=u32(20),
            block_size=1024 << min(u32(24), 20),
            blocks_per_group=u32(32),
            inodes_per_group=u32(40),
            inode_size=u16(88) if dynamic else 128,
            first_inode=u32(84) if dynamic else 11,
            descriptor_size=u16(254) if high else 32,
            reserved_descriptors=u16(206),
            first_meta_group=u32(260),
            backup_groups=(u32(588), u32(592)),
            state=u16(58),
            journal_inode=u32(224),
            last_orphan=u32(232),
            compatible=u32(92) if dynamic else 0,
            incompatible=incompatible,
            read_only=u32(100) if dynamic else 0,
        )
        found._check(volume, u16(56))
        return found

    def _check(self, volume: Volume, magic: int) -> None:
        at = volume.start + OFFSET
        if magic != 0xEF53:
            raise FormatError(WHAT, at + 56, "the mark 0xef53", hex(magic))
        for where, known, names, got in (
            (96, _READ_INCOMPATIBLE, _UNREAD_INCOMPATIBLE, self.incompatible),
            (100, _READ_ONLY, _UNREAD, self.read_only),
        ):
            if unknown := got & ~sum(known):
                raise FormatError(WHAT, at + where, "features that are known here", _feature_names(unknown, names))
        size = self.block_size
        rules = (
            (1024 <= size <= 65536, "block size"),
            (self.first_block == (1 if size == 1024 else 0), "first data block"),
            (8 <= self.blocks_per_group <= 8 * size and self.blocks_per_group % 8 == 0, "blocks per group"),
            (8 <= self.inodes_per_group <= 8 * size and self.inodes_per_group % 8 == 0, "inodes per group"),
            (128 <= self.inode_size <= size and not self.inode_size & (self.inode_size - 1), "inode size"),
            (
                32 <= self.descriptor_size <= 1024 and not self.descriptor_size & (self.descriptor_size - 1),
                "descriptors",
            ),
            (not self.has64 or self.descriptor_size >= 64, "descriptors"),
            (self.first_block < self.blocks and self.blocks * size <= volume.length, "number of blocks"),
        )
        for good, name in rules:
            if not good:
                raise FormatError(WHAT, at, f"a possible {name}", repr(self))
        if self.groups > _MAX_GROUPS or self.groups * self.inodes_per_group != self.inodes:
            raise FormatError(WHAT, at, f"{self.groups} groups of {self.inodes_per_group} inodes", self.inodes)

    @property
    def has64(self) -> bool:
        """Whether block numbers have 64 bits."""
        return bool(self.incompatible & SIXTY_FOUR)

    @property
    def groups(self) -> int:
        """Block groups; the last may be shorter."""
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def lazy(self) -> bool:
        """Whether groups may be marked as not initialised: their maps are not on the disk then."""
        return bool(self.read_only & (GDT_CHECKSUM | METADATA_CHECKSUM))

    @property
    def name(self) -> str:
        """ext4 has extents, 64-bit or flexible groups; ext3 has a journal."""
        if self.incompatible & (EXTENTS | SIXTY_FOUR | FLEX_BG):
            return "ext4"
        return "ext3" if self.compatible & HAS_JOURNAL else "ext2"

    def doubt(self) -> str:
        """Return why the superblock says that the file system is not clean, or nothing."""
        reasons = (
            (self.incompatible & RECOVER, f"its journal must be recovered ({_MOUNTED}); {_UNMOUNT}"),
            (self.state & 2, "errors were found in it; run e2fsck"),
            (not self.state & 1, f"{_MOUNTED}; {_UNMOUNT}"),
            (self.state & 4 or self.last_orphan, "deleted files of it are still to be released; run e2fsck"),
            (self.read_only & ORPHANS_PRESENT, "deleted files of it are still to be released; run e2fsck"),
        )
        return next((reason for holds, reason in reasons if holds), "")

    def group_starts(self) -> Column:
        """Return the first block of each group."""
        return self.first_block + np.arange(self.groups, dtype=np.int64) * self.blocks_per_group

    def group_lengths(self) -> Column:
        """Return the number of blocks of each group."""
        return np.minimum(self.blocks_per_group, self.blocks - self.group_starts())

    def has_backup(self, groups: Column) -> NDArray[np.bool_]:
        """Return which groups begin with a copy of the superblock."""
        if self.compatible & SPARSE_SUPER2:
            return np.isin(groups, (0, *self.backup_groups))
        if not self.read_only & SPARSE_SUPER:
            return np.ones(len(groups), dtype=np.bool_)
        powers = [base**exponent for base in (3, 5, 7) for exponent in range(1, 64) if base**exponent < 1 << 40]
        return np.isin(groups, (0, 1, *powers))


def _feature_names(bits: int, names: Mapping[int, str]) -> str:
    """Return features by their names, as far as they have one."""
    single = (1 << number for number in range(bits.bit_length()) if bits >> number & 1)
    return ", ".join(f"{names[bit]} ({bit:#x})" if bit in names else f"unknown ones ({bit:#x})" for bit in single)


class _reader:
    """Reads numbers of one size from a structure."""

    def __init__(self, data: bytes, form: str) -> None:
        self._data, self._form = data, form

    def __call__(self, at: int) -> int:
        value: int = struct.unpack_from(self._form, self._data, at)[0]
        return value
