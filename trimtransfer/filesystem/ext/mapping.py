"""From inodes to blocks in ext2, ext3 and ext4: extent trees and block maps, many inodes at a time, level by level.

Every block of a tree is read once: one that is named twice is an error, so no circle and no hostile fan-out costs more
than the volume's size. Owners are inode numbers; offsets and places of the runs are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_RUNS, Runs, check_count, distinct
from trimtransfer.filesystem.ext.superblock import Superblock
from trimtransfer.filesystem.ranges import Column
from trimtransfer.filesystem.volume import Volume

_TREE: Final = "ext extent tree"
_MAP: Final = "ext block map of a file"
_MAGIC: Final = 0xF30A
_MAX_DEPTH: Final = 5
_UNWRITTEN: Final = 32768
_DIRECT: Final = 12
_AT_ONCE: Final = 16 << 20
"""Bytes of tree blocks in memory."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Runs of some inodes, and the blocks that their trees take (block numbers, ascending)."""

    runs: list[Runs]
    tree: Column


def map_extents(volume: Volume, superblock: Superblock, owners: Column, roots: NDArray[np.uint8]) -> Mapping:
    """Return what the extent trees of inodes map; ``roots`` (n, 60) is the map part of each inode.

    Raises:
        FormatError: a node breaks a rule, names a block outside of the file system, or is used twice.
    """
    depths = roots[:, 6:8].copy().view("<u2").reshape(-1).astype(np.int64)
    if len(depths) and depths.max() > _MAX_DEPTH:
        raise FormatError(_TREE, f"inode {owners[int(depths.argmax())]}", f"at most {_MAX_DEPTH} levels", depths.max())
    runs: list[Runs] = []
    level = _parse(superblock, owners, roots, depths, runs)
    seen: list[Column] = []
    while len(level[0]):
        check_count(_TREE, sum(len(one) for one in seen) + len(level[0]), MAX_RUNS)
        seen.append(level[1])
        distinct(_TREE, np.concatenate(seen))
        level = _descend(volume, superblock, level, runs)
    return Mapping(runs, distinct(_TREE, np.concatenate(seen)) if seen else np.zeros(0, dtype=np.int64))


_Level = tuple[Column, Column, Column]
"""Owners, block numbers and depths of the nodes of one level."""


def _descend(volume: Volume, superblock: Superblock, level: _Level, runs: list[Runs]) -> _Level:
    """Read the nodes of a level; return their children."""
    found: list[_Level] = []
    owners, blocks, depths = level
    step = _AT_ONCE // superblock.block_size
    for at in range(0, len(owners), step):
        part = slice(at, at + step)
        nodes = volume.gather(_TREE, blocks[part] * superblock.block_size, superblock.block_size)
        found.append(_parse(superblock, owners[part], nodes, depths[part], runs))
    return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))  # type: ignore[return-value]


def _parse(
    superblock: Superblock, owners: Column, nodes: NDArray[np.uint8], depths: Column, runs: list[Runs]
) -> _Level:
    """Take the runs of the leaves among nodes (n, width) and return the children of the others."""
    width = nodes.shape[1]
    heads = nodes[:, :8].copy().view("<u2").astype(np.int64)
    slots = (width - 12) // 12
    good = (heads[:, 0] == _MAGIC) & (heads[:, 1] <= np.minimum(heads[:, 2], slots)) & (heads[:, 3] == depths)
    if not good.all():
        at = int(np.argmin(good))
        expected = f"mark {_MAGIC:#x}, at most {slots} entries, depth {depths[at]}"
        raise FormatError(_TREE, f"inode {owners[at]}", expected, [hex(number) for number in heads[at].tolist()])
    entries = nodes[:, 12 : 12 + 12 * slots].reshape(-1, slots, 12)
    filled = np.arange(slots) < heads[:, 1:2]
    row, slot = np.nonzero(filled)
    words = entries[row, slot].view("<u4").astype(np.int64)
    leaf = depths[row] == 0
    _take_leaves(superblock, owners[row[leaf]], words[leaf], runs)
    inner = ~leaf
    children = words[inner, 1] | (words[inner, 2] & 0xFFFF) << 32
    _check_blocks(superblock, _TREE, owners[row[inner]], children, np.ones_like(children))
    return owners[row[inner]], children, depths[row[inner]] - 1


def _take_leaves(superblock: Superblock, owners: Column, words: NDArray[np.int64], runs: list[Runs]) -> None:
    size = superblock.block_size
    lengths = words[:, 1] & 0xFFFF
    unwritten = lengths > _UNWRITTEN
    lengths = np.where(unwritten, lengths - _UNWRITTEN, lengths)
    blocks = words[:, 2] | (words[:, 1] >> 16) << 32
    _check_blocks(superblock, _TREE, owners, blocks, lengths)
    runs.append(Runs(owners, words[:, 0] * size, blocks * size, lengths * size, ~unwritten))


def _check_blocks(superblock: Superblock, what: str, owners: Column, blocks: Column, lengths: Column) -> None:
    wrong = (blocks < superblock.first_block) | (blocks + lengths > superblock.blocks) | (lengths == 0)
    if wrong.any():
        at = int(np.argmax(wrong))
        expected = f"blocks {superblock.first_block} to {superblock.blocks}"
        raise FormatError(what, f"inode {owners[at]}", expected, f"{blocks[at]} + {lengths[at]}")


def map_blocks(volume: Volume, superblock: Superblock, owners: Column, roots: NDArray[np.uint8]) -> Mapping:
    """Return what the block maps of inodes map: twelve blocks, and trees of one, two and three levels.

    Raises:
        FormatError: a map names a block outside of the file system, or a block of it is used twice.
    """
    pointers = roots.view("<u4").astype(np.int64)
    fan = superblock.block_size // 4
    runs = [_runs(superblock, owners, np.zeros_like(owners), pointers[:, :_DIRECT])]
    tree: list[Column] = []
    first = _DIRECT
    for depth in (1, 2, 3):
        blocks = pointers[:, _DIRECT + depth - 1]
        used = blocks != 0
        level = (owners[used], blocks[used], np.full(int(used.sum()), first, dtype=np.int64))
        for below in range(depth - 1, -1, -1):
            if len(level[0]):
                level = _expand(volume, superblock, level, fan**below, tree, runs)
        first += fan**depth
    return Mapping(runs, distinct(_MAP, np.concatenate(tree)) if tree else np.zeros(0, dtype=np.int64))


def _expand(
    volume: Volume, superblock: Superblock, level: _Level, span: int, tree: list[Column], runs: list[Runs]
) -> _Level:
    """Read a level of pointer blocks (owners, blocks, first block of the file each maps), of which each pointer stands
    for ``span`` blocks; return the next level, or take the runs where it is the last."""
    owners, blocks, firsts = level
    _check_blocks(superblock, _MAP, owners, blocks, np.ones_like(blocks))
    check_count(_MAP, sum(map(len, tree)) + len(blocks), MAX_RUNS)
    tree.append(blocks)
    distinct(_MAP, np.concatenate(tree))
    size, found = superblock.block_size, []
    step = _AT_ONCE // 4 // size
    for at in range(0, len(owners), step):
        part = slice(at, at + step)
        pointers = volume.gather(_MAP, blocks[part] * size, size).view("<u4").astype(np.int64)
        if span == 1:
            runs.append(_runs(superblock, owners[part], firsts[part], pointers))
            check_count(_MAP, sum(len(one.owners) for one in runs), MAX_RUNS)
            continue
        row, slot = np.nonzero(pointers)
        found.append((owners[part][row], pointers[row, slot], firsts[part][row] + slot * span))
        check_count(_MAP, sum(len(one[0]) for one in found), MAX_RUNS)
    return tuple(np.concatenate(columns) for columns in zip(*found, strict=True)) if found else level  # type: ignore[return-value]


def _runs(superblock: Superblock, owners: Column, firsts: Column, pointers: NDArray[np.int64]) -> Runs:
    """Return the runs of rows of pointers to blocks that follow each other in a file; zeros are holes."""
    row, slot = np.nonzero(pointers)
    blocks = pointers[row, slot]
    _check_blocks(superblock, _MAP, owners[row], blocks, np.ones_like(blocks))
    begins = np.ones(len(blocks), dtype=np.bool_)
    begins[1:] = (row[1:] != row[:-1]) | (slot[1:] != slot[:-1] + 1) | (blocks[1:] != blocks[:-1] + 1)
    at = np.flatnonzero(begins)
    lengths = np.diff(np.concatenate((at, [len(blocks)])))
    size = superblock.block_size
    offsets = (firsts[row[at]] + slot[at]) * size
    return Runs(owners[row[at]], offsets, blocks[at] * size, lengths * size, np.ones(len(at), dtype=np.bool_))
