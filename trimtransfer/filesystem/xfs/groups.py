"""Allocation groups of XFS: their free space, twice over, and their inodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ranges import Column, Ranges, merged, overlap, ranges_of
from trimtransfer.filesystem.volume import Volume
from trimtransfer.filesystem.xfs.btree import (
    FREE_BY_PLACE,
    FREE_BY_SIZE,
    INODES,
    MAX_LEVELS,
    Kind,
    Leaves,
    Nodes,
    Walker,
)
from trimtransfer.filesystem.xfs.superblock import Superblock

_SPACE: Final = "XFS free space of a group"
_INODES: Final = "XFS inodes of a group"
_CHUNK: Final = 64
"""Inodes of a chunk, one record of the tree."""


class _GroupWalker(Walker):
    """Reads trees whose pointers are block numbers within the group; their owners are groups."""

    def __init__(self, volume: Volume, superblock: Superblock, kind: Kind) -> None:
        super().__init__(volume, kind, version=superblock.version, block_size=superblock.block_size)
        self._superblock, self._what = superblock, kind.what

    def locate(self, owners: Column, pointers: Column) -> Column:
        """Return where blocks of groups lie."""
        if len(pointers) and not (pointers < self._superblock.group_lengths()[owners]).all():
            raise FormatError(self._what, "a pointer", "a block of the group", int(pointers.max()))
        return self._superblock.place(owners, pointers)

    def start(self, roots: Column, levels: Column) -> Nodes:
        """Return the roots of the trees of all groups, given with their numbers of levels."""
        if len(levels) and not (levels.min() >= 1 and levels.max() <= MAX_LEVELS):
            raise FormatError(self._what, "its root", f"1 to {MAX_LEVELS} levels", int(levels.max()))
        groups = np.arange(len(roots), dtype=np.int64)
        return Nodes(groups, self.locate(groups, roots), levels - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """What the trees of inodes say: ``used``, numbers of inodes in use, ascending; ``space`` that inodes take (ranges
    in bytes); where the trees' blocks lie, ``places``."""

    used: Column
    space: Ranges
    places: Column


class Groups:
    """The allocation groups of a volume."""

    def __init__(self, volume: Volume, superblock: Superblock) -> None:
        self._volume, self._superblock = volume, superblock
        self._heads = np.arange(superblock.groups, dtype=np.int64)

    def _sectors(self, number: int, mark: bytes, what: str) -> NDArray[np.uint8]:
        """Return a header of all groups, the sector of this number of each."""
        block = self._superblock
        places = block.place(self._heads, np.zeros_like(self._heads)) + number * block.sector_size
        rows = self._volume.gather(what, places, block.sector_size)
        good = (rows[:, :4] == np.frombuffer(mark, dtype=np.uint8)).all(axis=1)
        good &= (_field(rows, 8) == self._heads) & (_field(rows, 12) == block.group_lengths())
        if not good.all():
            raise FormatError(what, f"group {int(np.argmin(good))}", f"the mark {mark!r} and its place", "others")
        return rows

    @cached_property
    def _space(self) -> NDArray[np.uint8]:
        return self._sectors(1, b"XAGF", _SPACE)

    def headers(self) -> Ranges:
        """Return the space of the groups' headers, four sectors each, in bytes."""
        block = self._superblock
        length = -(-4 * block.sector_size // block.block_size) * block.block_size
        return ranges_of(block.place(self._heads, np.zeros_like(self._heads)), np.full(block.groups, length))

    @cached_property
    def _trees(self) -> tuple[Leaves, Leaves]:
        found = []
        for kind, root, levels in ((FREE_BY_PLACE, 16, 28), (FREE_BY_SIZE, 20, 32)):
            walker = _GroupWalker(self._volume, self._superblock, kind)
            found.append(walker.read(walker.start(_field(self._space, root), _field(self._space, levels))))
        return found[0], found[1]

    def tree_places(self) -> Column:
        """Return where the blocks of the trees of free space lie, in bytes."""
        return np.concatenate([tree.places for tree in self._trees])

    def free(self) -> Ranges:
        """Return the free space, merged ranges in bytes.

        Raises:
            FormatError: the two trees of free space differ, or contradict the counts.
        """
        by_place, by_size = (self._free_of(tree) for tree in self._trees)
        if not np.array_equal(by_place, by_size):
            raise FormatError(_SPACE, "its trees", "the same free space", "different")
        if (twice := overlap(by_place)) is not None:
            raise FormatError(_SPACE, twice, "pieces that do not overlap", "others")
        self._check_free()
        return merged(by_place)

    def _free_of(self, tree: Leaves) -> Ranges:
        """Return the pieces of a tree in bytes, by place."""
        block, words = self._superblock, tree.records.view(">u4").astype(np.int64)
        good = (words[:, 1] > 0) & (words.sum(axis=1) <= block.group_lengths()[tree.owners])
        if not good.all():
            group = int(tree.owners[int(np.argmin(good))])
            raise FormatError(_SPACE, f"group {group}", "pieces within the group", "others")
        found = ranges_of(block.place(tree.owners, words[:, 0]), words[:, 1] * block.block_size)
        return found[np.lexsort((found[:, 1], found[:, 0]))]

    def _check_free(self) -> None:
        block, tree = self._superblock, self._trees[0]
        counted = np.zeros(block.groups, dtype=np.int64)
        np.add.at(counted, tree.owners, tree.records.view(">u4")[:, 1].astype(np.int64))
        stated = _field(self._space, 52)
        wrong = np.flatnonzero(counted != stated)
        if len(wrong):
            raise FormatError("free blocks", f"group {wrong[0]}", int(stated[wrong[0]]), int(counted[wrong[0]]))
        whole = int((stated + _field(self._space, 48)).sum())
        if block.lazy_count:
            whole += int(_field(self._space, 60).sum())
        if whole != block.free_blocks:
            raise FormatError("free blocks", "superblock", whole, block.free_blocks)

    @cached_property
    def chunks(self) -> Chunks:
        """The inodes in use.

        Raises:
            FormatError: a tree breaks a rule or contradicts the counts, or deleted files are still to be released.
        """
        rows = self._sectors(2, b"XAGI", _INODES)
        if (rows[:, 40:296] != 0xFF).any():
            raise FormatError(_INODES, "its lists", "no deleted file still to be released", "some")
        walker = _GroupWalker(self._volume, self._superblock, INODES)
        tree = walker.read(walker.start(_field(rows, 20), _field(rows, 24)))
        words = tree.records.view(">u4").astype(np.int64)
        free = np.unpackbits(tree.records[:, 8:16], axis=1)[:, ::-1] != 0
        exists = np.ones_like(free)
        if self._superblock.sparse_inodes:
            holes = np.unpackbits(tree.records[:, 4:6], axis=1)[:, ::-1] != 0
            exists = ~np.repeat(holes, _CHUNK // 16, axis=1)
        self._check_inodes(tree.owners, rows, exists, free)
        shift = self._superblock.group_shift + self._superblock.inode_shift
        numbers = (tree.owners << shift | words[:, 0])[:, None] + np.arange(_CHUNK)
        block = (words[:, :1] + np.arange(_CHUNK)) >> self._superblock.inode_shift
        if (block >= self._superblock.group_lengths()[tree.owners, None])[exists].any():
            raise FormatError(_INODES, "its tree", "inodes within the group", "others")
        used = np.sort(numbers[exists & ~free])
        return Chunks(used, self._inode_space(np.sort(numbers[exists])), tree.places)

    def _inode_space(self, numbers: Column) -> Ranges:
        size = self._superblock.inode_size
        places = self._superblock.inode_place(numbers)
        if (twice := overlap(ranges_of(places, np.full(len(places), size)))) is not None:
            raise FormatError(_INODES, twice, "chunks that do not overlap", "others")
        return merged(ranges_of(places, np.full(len(places), size)))

    def _check_inodes(
        self, groups: Column, rows: NDArray[np.uint8], exists: NDArray[np.bool_], free: NDArray[np.bool_]
    ) -> None:
        block = self._superblock
        for what, bits, at, whole in (
            ("inodes", exists, 16, block.inodes),
            ("free inodes", exists & free, 28, block.free_inodes),
        ):
            counted = np.zeros(block.groups, dtype=np.int64)
            np.add.at(counted, groups, bits.sum(axis=1))
            stated = _field(rows, at)
            wrong = np.flatnonzero(counted != stated)
            if len(wrong):
                raise FormatError(what, f"group {wrong[0]}", int(stated[wrong[0]]), int(counted[wrong[0]]))
            if int(counted.sum()) != whole:
                raise FormatError(what, "superblock", int(counted.sum()), whole)


def _field(rows: NDArray[np.uint8], at: int) -> Column:
    """Return a number of four bytes of all rows."""
    return rows[:, at : at + 4].copy().view(">u4").reshape(-1).astype(np.int64)
