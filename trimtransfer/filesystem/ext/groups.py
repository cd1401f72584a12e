"""Block groups of ext2, ext3 and ext4: where their maps are, what they mark free, and what the groups themselves take.

A group that is marked as not initialised has no map on the disk: all of it is free but what metadata takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ext.superblock import META_BG, Superblock
from trimtransfer.filesystem.ranges import (
    Column,
    Ranges,
    difference,
    intersection,
    joined,
    merged,
    of_bits,
    ranges_of,
)
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "ext group"
_INODES_UNSET: Final = 1
_BLOCKS_UNSET: Final = 2
_MAPS_AT_ONCE: Final = 1 << 20
"""Bytes of maps read at a time; with their bits as bytes 9 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The group descriptors as columns (n,): block numbers of maps and tables, counts, and what is initialised."""

    volume: Volume
    superblock: Superblock
    block_maps: Column
    inode_maps: Column
    inode_tables: Column
    free_blocks: Column
    free_inodes: Column
    blocks_unset: NDArray[np.bool_]
    inodes_unset: NDArray[np.bool_]
    descriptor_blocks: Column

    @classmethod
    def read(cls, volume: Volume, superblock: Superblock) -> Groups:
        """Read all descriptors.

        Raises:
            FormatError: one names blocks that the file system does not have.
        """
        size, width = superblock.block_size, superblock.descriptor_size
        blocks = _descriptor_blocks(superblock)
        rows = volume.gather("ext group descriptors", blocks * size, size).reshape(-1, width)[: superblock.groups]

        def column(low: int, high: int, form: str) -> Column:
            found = _numbers(rows, low, form)
            return found | _numbers(rows, high, form) << (32 if form == "<u4" else 16) if superblock.has64 else found

        flags = _numbers(rows, 0x12, "<u2") * superblock.lazy
        found = cls(
            volume,
            superblock,
            column(0x00, 0x20, "<u4"),
            column(0x04, 0x24, "<u4"),
            column(0x08, 0x28, "<u4"),
            column(0x0C, 0x2C, "<u2"),
            column(0x0E, 0x2E, "<u2"),
            (flags & _BLOCKS_UNSET) != 0,
            (flags & _INODES_UNSET) != 0,
            blocks,
        )
        found._check()
        return found

    def _check(self) -> None:
        first, blocks = self.superblock.first_block, self.superblock.blocks
        for column, length in ((self.block_maps, 1), (self.inode_maps, 1), (self.inode_tables, self.table_blocks)):
            wrong = np.flatnonzero((column < first) | (column > blocks - length))
            if len(wrong):
                expected = f"maps and tables in blocks {first} to {blocks}"
                raise FormatError(WHAT, f"group {wrong[0]}", expected, int(column[wrong[0]]))

    @property
    def table_blocks(self) -> int:
        """Blocks of the inode table of a group."""
        return -(-self.superblock.inodes_per_group * self.superblock.inode_size // self.superblock.block_size)

    def metadata(self) -> Ranges:
        """Return the blocks that the groups themselves take: superblocks, descriptors, maps, inode tables."""
        ones = np.ones(self.superblock.groups, dtype=np.int64)
        return joined(
            (
                self._heads(),
                ranges_of(self.block_maps, ones),
                ranges_of(self.inode_maps, ones),
                ranges_of(self.inode_tables, ones * self.table_blocks),
            )
        )

    def _heads(self) -> Ranges:
        """Return superblocks and descriptors, with the blocks reserved for more of them."""
        block = self.superblock
        numbers = np.arange(block.groups, dtype=np.int64)
        backup = block.has_backup(numbers)
        per_block = block.block_size // block.descriptor_size
        old = len(self.descriptor_blocks)
        lengths = np.where(backup, 1 + old + block.reserved_descriptors, 0)
        if block.incompatible & META_BG:
            lengths = np.where(backup, 1 + block.first_meta_group + block.reserved_descriptors, 0)
            place = numbers % per_block
            holds = (place == 0) | (place == 1) | (place == per_block - 1)
            lengths = np.where(numbers < block.first_meta_group * per_block, lengths, backup.astype(np.int64) + holds)
        return ranges_of(block.group_starts(), np.minimum(lengths, block.group_lengths()))

    def free(self) -> Ranges:
        """Return the free blocks, as merged ranges of block numbers.

        Raises:
            FormatError: the maps contradict the counts of groups or superblock, or mark metadata free.
        """
        metadata = merged(self.metadata())
        parts, counts = [], np.zeros(self.superblock.groups, dtype=np.int64)
        for numbers, bits in self._maps(self.block_maps, self.blocks_unset, self.superblock.blocks_per_group):
            bits &= np.arange(bits.shape[1]) < self.superblock.group_lengths()[numbers, None]
            counts[numbers] = bits.sum(axis=1)
            for number, row in zip(numbers.tolist(), bits, strict=True):
                found = of_bits(row)
                found[:, 0] += self.superblock.first_block + number * self.superblock.blocks_per_group
                parts.append(found)
        mapped = merged(joined(parts))
        if len(wrong := intersection(mapped, metadata)):
            raise FormatError("ext block map", f"block {wrong[0, 0]}", "metadata marked as in use", "free")
        unset = self._unset(metadata)
        number = (unset[:, 0] - self.superblock.first_block) // self.superblock.blocks_per_group
        np.add.at(counts, number, unset[:, 1])
        self._check_counts("block", counts, self.free_blocks, self.superblock.free_blocks)
        return merged(joined((mapped, unset)))

    def _unset(self, metadata: Ranges) -> Ranges:
        """Return what is free of groups without a map, none across the border of groups."""
        starts, lengths = self.superblock.group_starts(), self.superblock.group_lengths()
        parts = []
        for number in np.flatnonzero(self.blocks_unset).tolist():
            parts.append(difference(ranges_of(starts[number : number + 1], lengths[number : number + 1]), metadata))
        return joined(parts)

    def used_inodes(self) -> Iterator[tuple[int, Column]]:
        """Yield (group, indexes of its inodes that are in use), for groups that have any.

        Raises:
            FormatError: the maps contradict the counts.
        """
        counts = np.where(self.inodes_unset, self.superblock.inodes_per_group, 0).astype(np.int64)
        for numbers, bits in self._maps(self.inode_maps, self.inodes_unset, self.superblock.inodes_per_group):
            counts[numbers] = bits.sum(axis=1)
            for number, row in zip(numbers.tolist(), bits, strict=True):
                used = np.flatnonzero(~row)
                if len(used):
                    yield number, used
        self._check_counts("inode", counts, self.free_inodes, self.superblock.free_inodes)

    def _maps(self, places: Column, unset: NDArray[np.bool_], bits: int) -> Iterator[tuple[Column, NDArray[np.bool_]]]:
        """Yield (groups, their bits that are free, shape (n, bits)) of those that have a map."""
        size = self.superblock.block_size
        present = np.flatnonzero(~unset)
        step = _MAPS_AT_ONCE // size
        for at in range(0, len(present), step):
            numbers = present[at : at + step]
            maps = self.volume.gather("ext map", places[numbers] * size, size)
            yield numbers, np.unpackbits(maps, axis=1, count=bits, bitorder="little") == 0

    def _check_counts(self, what: str, counted: Column, stated: Column, whole: int) -> None:
        wrong = np.flatnonzero(counted != stated)
        if len(wrong):
            at = int(wrong[0])
            raise FormatError(f"free {what}s", f"group {at}", f"{stated[at]}, the group's count", int(counted[at]))
        if int(counted.sum()) != whole:
            raise FormatError(f"free {what}s", "superblock", int(counted.sum()), whole)


def _descriptor_blocks(superblock: Superblock) -> Column:
    """Return the numbers of the blocks that hold the descriptors, in order."""
    per_block = superblock.block_size // superblock.descriptor_size
    numbers = np.arange(-(-superblock.groups // per_block), dtype=np.int64)
    plain = superblock.first_block + 1 + numbers
    if not superblock.incompatible & META_BG:
        return plain
    group = numbers * per_block
    own = superblock.first_block + group * superblock.blocks_per_group + superblock.has_backup(group)
    return np.where(numbers < superblock.first_meta_group, plain, own)


def _numbers(rows: NDArray[np.uint8], at: int, form: str) -> Column:
    """Return a little-endian field of all rows."""
    size = int(form[2:])
    if at + size > rows.shape[1]:
        return np.zeros(len(rows), dtype=np.int64)
    return np.ascontiguousarray(rows[:, at : at + size]).view(form).reshape(-1).astype(np.int64)
