"""The inodes of ext2, ext3 and ext4, read in bulk: those in use, with what is needed of them, and what they map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, MAX_RUNS, Runs, check_count
from trimtransfer.filesystem.ext.groups import Groups
from trimtransfer.filesystem.ext.mapping import Mapping, map_blocks, map_extents
from trimtransfer.filesystem.ext.superblock import Superblock
from trimtransfer.filesystem.ranges import Column, Ranges, ranges_of
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "ext inode"
BAD_BLOCKS: Final = 1
ROOT: Final = 2
RESIZE: Final = 7
DIRECTORY: Final = 4
REGULAR: Final = 8
_SYMLINK: Final = 10
_EXTENTS: Final = 0x80000
_INLINE: Final = 0x10000000
_COMPRESSED: Final = 0x4
_ENCRYPTED: Final = 0x800
_MAP: Final = slice(40, 100)
_ROWS_AT_ONCE: Final = 32768
"""Inodes parsed together: 8 MiB of the usual 256 bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Inodes:
    """All inodes in use, in order.

    ``numbers``, ``kinds`` (the mode's upper four bits), ``sizes`` in bytes, ``inline`` (content within the inode),
    ``encrypted`` (content, or names of a directory); their ``runs``, and the ``blocks`` (ranges of block numbers) of
    trees and attributes.
    """

    numbers: Column
    kinds: NDArray[np.uint8]
    sizes: Column
    inline: NDArray[np.bool_]
    encrypted: NDArray[np.bool_]
    runs: Runs
    blocks: Ranges

    @classmethod
    def read(cls, volume: Volume, groups: Groups) -> Inodes:
        """Read all inodes in use and follow their maps.

        Raises:
            FormatError: maps and counts of inodes disagree, or a file's map breaks a rule.
        """
        columns: list[tuple[NDArray[np.generic], ...]] = []
        runs: list[Runs] = []
        trees: list[Column] = []
        attributes: list[Column] = []
        for numbers, rows in _batches(volume, groups):
            batch = _Batch(numbers, rows)
            columns.append((numbers, batch.kinds, batch.sizes, batch.inline, batch.encrypted))
            for mapping in batch.mappings(volume, groups.superblock):
                runs += mapping.runs
                trees.append(mapping.tree)
            attributes.append(batch.attribute_blocks(groups.superblock))
            check_count(WHAT, sum(len(one[0]) for one in columns), MAX_FILES)
            check_count("ext file map", sum(len(one.owners) for one in runs), MAX_RUNS)
        if not columns:
            raise FormatError(WHAT, volume.start, "a root directory", "no inode in use")
        joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        extra = np.concatenate((*trees, np.unique(np.concatenate(attributes))))
        blocks = ranges_of(extra, np.ones_like(extra))
        return cls(joined[0], joined[1], joined[2], joined[3], joined[4], Runs.of("ext file map", runs), blocks)

    def find(self, number: int) -> int:
        """Return the row of an inode in use.

        Raises:
            FormatError: it is not in use.
        """
        at = int(self.numbers.searchsorted(number))
        if at == len(self.numbers) or self.numbers[at] != number:
            raise FormatError("ext directory", f"inode {number}", "an inode in use", "a free one")
        return at


def _batches(volume: Volume, groups: Groups) -> Iterator[tuple[Column, NDArray[np.uint8]]]:
    """Yield (inode numbers, their bytes) of inodes in use, in order."""
    size, per_group = groups.superblock.inode_size, groups.superblock.inodes_per_group
    numbers: list[Column] = []
    rows: list[NDArray[np.uint8]] = []
    waiting = 0
    for group, used in groups.used_inodes():
        start = int(groups.inode_tables[group]) * groups.superblock.block_size
        count = int(used[-1]) + 1
        table = np.frombuffer(volume.bytes("ext inode table", start, count * size), dtype=np.uint8)
        numbers.append(used + group * per_group + 1)
        rows.append(table.reshape(count, size)[used])
        waiting += len(used)
        if waiting >= _ROWS_AT_ONCE:
            yield np.concatenate(numbers), np.concatenate(rows)
            numbers, rows, waiting = [], [], 0
    if waiting:
        yield np.concatenate(numbers), np.concatenate(rows)


class _Batch:
    """Some inodes, parsed: columns of their fields."""

    def __init__(self, numbers: Column, rows: NDArray[np.uint8]) -> None:
        self.numbers, self._rows = numbers, rows
        self.kinds = (self._field(0, 2) >> 12).astype(np.uint8)
        self.flags = self._field(32, 4)
        high = np.where((self.kinds == REGULAR) | (self.kinds == DIRECTORY), self._field(108, 4), 0)
        self.sizes = self._field(4, 4) | high << 32
        self.inline = (self.flags & _INLINE) != 0
        self.encrypted = (self.flags & _ENCRYPTED) != 0
        wrong = (self.sizes < 0) | ((self.flags & _COMPRESSED) != 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise FormatError(WHAT, f"inode {numbers[at]}", "a size, not compressed", int(self.sizes[at]))

    def _field(self, at: int, size: int) -> Column:
        return self._rows[:, at : at + size].copy().view(f"<u{size}").reshape(-1).astype(np.int64)

    def mappings(self, volume: Volume, superblock: Superblock) -> Iterator[Mapping]:
        """Yield what the inodes with blocks map. A short symbolic link lies where the map would be."""
        kinds = self.kinds
        mapped = (kinds == REGULAR) | (kinds == DIRECTORY) | ((kinds == _SYMLINK) & (self.sizes >= 60))
        extents = (self.flags & _EXTENTS) != 0
        mapped |= (kinds == _SYMLINK) & extents
        # The blocks of these two are metadata of the groups, or of nothing.
        mapped &= ~self.inline & (self.numbers != RESIZE) & (self.numbers != BAD_BLOCKS)
        for chosen, follow in ((mapped & extents, map_extents), (mapped & ~extents, map_blocks)):
            if chosen.any():
                yield follow(volume, superblock, self.numbers[chosen], np.ascontiguousarray(self._rows[chosen, _MAP]))

    def attribute_blocks(self, superblock: Superblock) -> Column:
        """Return the blocks of extended attributes; inodes may share them."""
        high = self._field(118, 2) << 32 if superblock.has64 else np.zeros_like(self.numbers)
        blocks = self._field(104, 4) | high
        blocks = blocks[(blocks != 0) & (self.kinds != 0)]
        if len(blocks) and not (blocks.min() >= superblock.first_block and blocks.max() < superblock.blocks):
            raise FormatError("ext attributes", "inodes", f"blocks below {superblock.blocks}", int(blocks.max()))
        return np.unique(blocks)
