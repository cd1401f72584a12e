"""B+trees of XFS: those of allocation groups (short pointers) and those of files' maps (long ones), level by level.

All trees of one kind are read together; a block that is named twice is an error, so circles end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_RUNS, check_count, distinct
from trimtransfer.filesystem.ranges import Column
from trimtransfer.filesystem.volume import Volume

_AT_ONCE: Final = 16 << 20
MAX_LEVELS: Final = 12


@dataclass(frozen=True, slots=True)
class Kind:
    """How the blocks of a kind of tree look: marks of versions 4 and 5, sizes of records, keys and pointers."""

    what: str
    marks: tuple[bytes, bytes]
    record: int
    key: int
    pointer: int

    def head(self, version: int) -> int:
        """Return the length of a block's head in bytes."""
        short = self.pointer == 4
        return (16 if short else 24) if version == 4 else (56 if short else 72)


FREE_BY_PLACE: Final = Kind("XFS tree of free space", (b"ABTB", b"AB3B"), 8, 8, 4)
FREE_BY_SIZE: Final = Kind("XFS tree of free space by size", (b"ABTC", b"AB3C"), 8, 8, 4)
INODES: Final = Kind("XFS tree of inodes", (b"IABT", b"IAB3"), 16, 4, 4)
FILE_MAP: Final = Kind("XFS map of a file", (b"BMAP", b"BMA3"), 16, 8, 8)


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """Blocks of trees: the tree each belongs to, where it lies in bytes, its level (0: leaf)."""

    owners: Column
    places: Column
    levels: Column


@dataclass(frozen=True, slots=True, eq=False)
class Leaves:
    """Records (n, size of a record) with the tree each belongs to, and where the trees' blocks lie, ascending."""

    owners: Column
    records: NDArray[np.uint8]
    places: Column


class Walker(ABC):
    """Reads trees of one kind. ``locate(owners, pointers)`` checks pointers and returns where they lead, in bytes."""

    def __init__(self, volume: Volume, kind: Kind, *, version: int, block_size: int) -> None:
        self._volume, self._kind, self._size = volume, kind, block_size
        self._version, self._head = version, kind.head(version)

    @abstractmethod
    def locate(self, owners: Column, pointers: Column) -> Column:
        """Return where blocks lie that a tree points to; to be defined by the kind of pointer."""

    def read(self, roots: Nodes) -> Leaves:
        """Return all records below these roots.

        Raises:
            FormatError: a block breaks a rule, or is used twice.
        """
        owners: list[Column] = []
        records: list[NDArray[np.uint8]] = []
        seen: list[Column] = []
        level = roots
        while len(level.places):
            seen.append(level.places)
            check_count(self._kind.what, sum(len(one) for one in seen), MAX_RUNS)
            distinct(self._kind.what, np.concatenate(seen))
            following: list[Nodes] = []
            step = max(1, _AT_ONCE // self._size)
            for at in range(0, len(level.places), step):
                part = slice(at, at + step)
                nodes = Nodes(level.owners[part], level.places[part], level.levels[part])
                self._take(nodes, owners, records, following)
            level = Nodes(*(np.concatenate([getattr(one, name) for one in following]) for name in Nodes.__slots__))
        nothing = np.zeros(0, dtype=np.int64)
        return Leaves(
            np.concatenate([nothing, *owners]),
            np.concatenate([np.zeros((0, self._kind.record), dtype=np.uint8), *records]),
            distinct(self._kind.what, np.concatenate([nothing, *seen])),
        )

    def _take(
        self, nodes: Nodes, owners: list[Column], records: list[NDArray[np.uint8]], following: list[Nodes]
    ) -> None:
        """Read blocks: take the records of leaves, and what the others point to."""
        kind, blocks = self._kind, self._volume.gather(self._kind.what, nodes.places, self._size)
        counts = blocks[:, 6:8].copy().view(">u2").reshape(-1).astype(np.int64)
        levels = blocks[:, 4:6].copy().view(">u2").reshape(-1).astype(np.int64)
        mark = np.frombuffer(kind.marks[self._version - 4], dtype=np.uint8)
        leaf = nodes.levels == 0
        room = self._size - self._head
        fan = room // (kind.key + kind.pointer)
        good = (blocks[:, :4] == mark).all(axis=1) & (levels == nodes.levels)
        good &= counts <= np.where(leaf, room // kind.record, fan)
        if not good.all():
            at = int(np.argmin(good))
            expected = f"mark {mark.tobytes()!r}, level {nodes.levels[at]}, a possible count"
            raise FormatError(kind.what, int(nodes.places[at]), expected, blocks[at, :8].tobytes())
        row, found = _slots(blocks[leaf], counts[leaf], self._head, kind.record)
        owners.append(nodes.owners[leaf][row])
        records.append(found)
        check_count(kind.what, sum(len(one) for one in owners), MAX_RUNS)
        row, raw = _slots(blocks[~leaf], counts[~leaf], self._head + fan * kind.key, kind.pointer)
        owner = nodes.owners[~leaf][row]
        places = self.locate(owner, raw.view(f">u{kind.pointer}").reshape(-1).astype(np.int64))
        following.append(Nodes(owner, places, nodes.levels[~leaf][row] - 1))


def _slots(blocks: NDArray[np.uint8], counts: Column, start: int, size: int) -> tuple[Column, NDArray[np.uint8]]:
    """Return (row, bytes) of the first ``counts`` slots of ``size`` bytes of each block, from ``start`` on."""
    room = (blocks.shape[1] - start) // size
    slots = blocks[:, start : start + room * size].reshape(len(blocks), room, size)
    row, slot = np.nonzero(np.arange(room) < counts[:, None])
    return row, np.ascontiguousarray(slots[row, slot])
