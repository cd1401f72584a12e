"""The inodes of XFS, read in bulk: those in use, with what is needed of them, and what their forks map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, MAX_RUNS, Runs, check_count
from trimtransfer.filesystem.ranges import Column, Ranges, joined, ranges_of
from trimtransfer.filesystem.volume import Volume
from trimtransfer.filesystem.xfs.btree import FILE_MAP, MAX_LEVELS, Nodes, Walker
from trimtransfer.filesystem.xfs.superblock import Superblock

WHAT: Final = "XFS inode"
DIRECTORY: Final = 4
REGULAR: Final = 8
LOCAL: Final = 1
_EXTENTS: Final = 2
_TREE: Final = 3
_BIG_COUNTS: Final = 0x10
_REALTIME: Final = 0x1
_AT_ONCE: Final = 16 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Inodes:
    """All inodes in use, in order: ``numbers``, ``kinds`` (the mode's upper four bits), ``formats`` of their data
    forks, ``sizes`` in bytes; the ``runs`` of the data forks, and other ``space`` (trees and attributes; ranges in
    bytes)."""

    numbers: Column
    kinds: NDArray[np.uint8]
    formats: NDArray[np.uint8]
    sizes: Column
    runs: Runs
    space: Ranges

    @classmethod
    def read(cls, volume: Volume, superblock: Superblock, used: Column) -> Inodes:
        """Read the inodes of these numbers and follow their maps.

        Raises:
            FormatError: an inode or a map breaks a rule, or there are too many.
        """
        check_count(WHAT, len(used), MAX_FILES)
        kinds, formats, sizes, runs, space = [], [], [], [], []
        step = _AT_ONCE // superblock.inode_size
        for at in range(0, len(used), step):
            batch = _Batch(volume, superblock, used[at : at + step])
            kinds.append(batch.kinds)
            formats.append(batch.formats)
            sizes.append(batch.sizes)
            for fork in batch.forks():
                found, trees = fork.follow(volume, superblock)
                space.append(trees)
                if fork.data:
                    runs.append(found)
                else:
                    space.append(found.space())
            check_count(WHAT, sum(len(one.owners) for one in runs), MAX_RUNS)
        if not kinds:
            raise FormatError(WHAT, volume.start, "a root directory", "no inode in use")
        together = Runs.of("XFS map of a file", runs)
        return cls(used, np.concatenate(kinds), np.concatenate(formats), np.concatenate(sizes), together, joined(space))

    def find(self, number: int) -> int:
        """Return the row of an inode in use.

        Raises:
            FormatError: it is not in use.
        """
        at = int(self.numbers.searchsorted(min(number, (1 << 63) - 1)))
        if at == len(self.numbers) or self.numbers[at] != number:
            raise FormatError("XFS directory", f"inode {number}", "an inode in use", "a free one")
        return at


@dataclass(frozen=True, slots=True, eq=False)
class _Fork:
    """Forks of one kind of some inodes: their numbers, formats, counts of runs, and the bytes of each."""

    data: bool
    numbers: Column
    formats: Column
    counts: Column
    content: list[memoryview]

    def follow(self, volume: Volume, superblock: Superblock) -> tuple[Runs, Ranges]:
        """Return the runs of the forks, and the space of their trees in bytes."""
        listed = self._listed()
        walker = _MapWalker(volume, superblock)
        tree = walker.read(self._roots(walker))
        owners = np.concatenate((listed[0], tree.owners))
        counted = np.zeros(len(self.numbers), dtype=np.int64)
        np.add.at(counted, owners, 1)
        mapped = (self.formats == _EXTENTS) | (self.formats == _TREE)
        wrong = np.flatnonzero(np.where(mapped, counted != self.counts, False))
        if len(wrong):
            number = int(self.numbers[wrong[0]])
            raise FormatError(WHAT, f"inode {number}", f"{self.counts[wrong[0]]} runs", int(counted[wrong[0]]))
        runs = _unpack(superblock, self.numbers[owners], np.concatenate((listed[1], tree.records)))
        size = superblock.block_size
        return runs, ranges_of(tree.places, np.full(len(tree.places), size))

    def _listed(self) -> tuple[Column, NDArray[np.uint8]]:
        """Return (row, record) of the runs that lie within inodes."""
        rows = np.flatnonzero((self.formats == _EXTENTS) & (self.counts > 0))
        counts = self.counts[rows]
        parts = []
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            if 16 * count > len(self.content[row]):
                raise FormatError(WHAT, f"inode {self.numbers[row]}", "runs within the inode", f"{count} runs")
            parts.append(self.content[row][: 16 * count])
        records = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, 16)
        return np.repeat(rows, counts), records

    def _roots(self, walker: _MapWalker) -> Nodes:
        """Return what the roots within inodes point to."""
        owners, pointers, levels = [], [], []
        for row in np.flatnonzero(self.formats == _TREE).tolist():
            content = self.content[row]
            fan = (len(content) - 4) // 16
            level, count = int.from_bytes(content[:2], "big"), int.from_bytes(content[2:4], "big")
            if not (1 <= level <= MAX_LEVELS and 1 <= count <= fan):
                raise FormatError(WHAT, f"inode {self.numbers[row]}", f"a root of 1 to {fan} entries", (level, count))
            start = 4 + 8 * fan
            found = np.frombuffer(content[start : start + 8 * count], dtype=">u8").astype(np.int64)
            owners.append(np.full(count, row, dtype=np.int64))
            pointers.append(found)
            levels.append(np.full(count, level - 1, dtype=np.int64))
        nothing = np.zeros(0, dtype=np.int64)
        owner, pointer = np.concatenate([nothing, *owners]), np.concatenate([nothing, *pointers])
        return Nodes(owner, walker.locate(owner, pointer), np.concatenate([nothing, *levels]))


class _MapWalker(Walker):
    """Reads the trees of files' maps, whose pointers are block numbers of the file system."""

    def __init__(self, volume: Volume, superblock: Superblock) -> None:
        super().__init__(volume, FILE_MAP, version=superblock.version, block_size=superblock.block_size)
        self._superblock = superblock

    def locate(self, owners: Column, pointers: Column) -> Column:
        """Return where blocks lie."""
        return self._superblock.split(FILE_MAP.what, pointers, 1)


class _Batch:
    """Some inodes, parsed: columns of their fields."""

    def __init__(self, volume: Volume, superblock: Superblock, numbers: Column) -> None:
        self._numbers, self._superblock = numbers, superblock
        self._rows = volume.gather(WHAT, superblock.inode_place(numbers), superblock.inode_size)
        new = superblock.version == 5
        self._core = 176 if new else 100
        self.kinds = (self._field(2, 2) >> 12).astype(np.uint8)
        self.formats = self._rows[:, 5].copy()
        self.sizes = self._field(56, 8)
        good = (self._field(0, 2) == 0x494E) & (self.kinds != 0) & (self.sizes >= 0)
        good &= (self._rows[:, 4] == 3) if new else (self._rows[:, 4] < 3)
        if new:
            good &= self._field(152, 8) == numbers
        good &= (self.kinds != REGULAR) | ((self._field(90, 2) & _REALTIME) == 0)
        if not good.all():
            raise FormatError(
                WHAT, f"inode {numbers[int(np.argmin(good))]}", "an inode in use of this place", "another"
            )

    def _field(self, at: int, size: int) -> Column:
        return self._rows[:, at : at + size].copy().view(f">u{size}").reshape(-1).astype(np.int64)

    def forks(self) -> Iterator[_Fork]:
        """Yield the data forks and the attribute forks."""
        size, core = self._superblock.inode_size, self._core
        flags = self._field(120, 8) if core == 176 else np.zeros_like(self._numbers)
        big = (flags & _BIG_COUNTS) != 0
        data_counts = np.where(big, self._field(24, 8), self._field(76, 4))
        attribute_counts = np.where(big, self._field(76, 4), self._field(80, 2))
        border = self._rows[:, 82].astype(np.int64) * 8
        if (border > size - core).any() or (data_counts < 0).any():
            raise FormatError(WHAT, "its forks", "forks within the inode", int(border.max()))
        bulk = memoryview(self._rows.tobytes())
        starts = (np.arange(len(self._numbers)) * size + core).tolist()
        ends = np.where(border > 0, border, size - core).tolist()
        content = [bulk[start : start + end] for start, end in zip(starts, ends, strict=True)]
        yield _Fork(True, self._numbers, self.formats.astype(np.int64), data_counts, content)
        has = np.flatnonzero(border > 0)
        rest = [bulk[starts[row] + ends[row] : starts[row] + size - core] for row in has.tolist()]
        yield _Fork(False, self._numbers[has], self._rows[has, 83].astype(np.int64), attribute_counts[has], rest)


def _unpack(superblock: Superblock, owners: Column, records: NDArray[np.uint8]) -> Runs:
    """Return packed runs as columns: a flag, 54 bits of position in the file, 52 of place, 21 of length."""
    words = np.ascontiguousarray(records).view(">u8").astype(np.uint64)
    high, low = words[:, 0], words[:, 1]
    unwritten = (high >> np.uint64(63)) != 0
    offsets = ((high & np.uint64((1 << 63) - 1)) >> np.uint64(9)).astype(np.int64)
    blocks = ((high & np.uint64(0x1FF)) << np.uint64(43) | low >> np.uint64(21)).astype(np.int64)
    lengths = (low & np.uint64((1 << 21) - 1)).astype(np.int64)
    most = ((1 << 63) - 1) // superblock.block_size - (1 << 21)
    if (lengths == 0).any() or (offsets > most).any():
        raise FormatError(WHAT, "its runs", f"runs of blocks below {most}", "others")
    places = superblock.split("XFS map of a file", blocks, lengths)
    size = superblock.block_size
    return Runs(owners, offsets * size, places, lengths * size, ~unwritten)
