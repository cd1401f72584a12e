"""Non-resident attributes of NTFS, each in one piece or in several from several records, put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_RUNS, Runs, check_count
from trimtransfer.filesystem.ntfs.records import Records, take
from trimtransfer.filesystem.ranges import Column, Ranges, ranges_of

WHAT: Final = "NTFS attribute"
UNNAMED: Final = 0
_NOT_PLAIN: Final = 0x40FF
"""Flags of a compressed or encrypted attribute."""
_COMPACT: Final = "WofCompressedData".encode("utf-16-le")
"""The stream in which Windows keeps what it compressed file by file."""
_FIELDS: Final = ("owner", "kind", "name", "low", "high", "flags", "allocated", "size", "filled")


@dataclass(slots=True)
class Pieces:
    """Pieces as they are found, in any order; ``cluster_size`` in bytes, ``clusters`` of the volume."""

    cluster_size: int
    clusters: int
    _columns: list[NDArray[np.int64]] = field(default_factory=list)
    _runs: list[NDArray[np.int64]] = field(default_factory=list)
    _names: dict[bytes, int] = field(default_factory=lambda: {b"": UNNAMED})
    _count: int = 0
    _run_count: int = 0

    def add(self, records: Records, row: Column, at: Column, kind: Column) -> None:
        """Take over the given attributes of records, all of them non-resident.

        Raises:
            FormatError: their runs break a rule, or there are too many.
        """
        if not len(row):
            return
        index, offset, place, length = records.runs(row, at, self.clusters)
        rows = records.rows
        names = [self._names.setdefault(name, len(self._names)) for name in records.names(row, at)]
        parts = (
            records.owners[row],
            kind,
            np.array(names, dtype=np.int64),
            take(rows, row, at + 16, 8),
            take(rows, row, at + 24, 8),
            take(rows, row, at + 12, 2),
            *(take(rows, row, at + position, 8) for position in (40, 48, 56)),
        )
        self._columns.append(np.stack(parts, axis=1))
        self._runs.append(np.stack((index + self._count, offset, place, length), axis=1))
        self._count += len(row)
        self._run_count += len(index)
        check_count(WHAT, max(self._count, self._run_count), MAX_RUNS)

    def runs_of(self, owner: int, kind: int) -> NDArray[np.int64]:
        """Return the runs found so far (n, 3: offset, place, length, in bytes) of an unnamed attribute, by offset."""
        found = []
        before = 0
        for pieces, runs in zip(self._columns, self._runs, strict=True):
            wanted = (pieces[:, 0] == owner) & (pieces[:, 1] == kind) & (pieces[:, 2] == UNNAMED)
            found.append(runs[wanted[runs[:, 0] - before], 1:])
            before += len(pieces)
        together = np.concatenate(found) if found else np.zeros((0, 3), dtype=np.int64)
        return together[np.argsort(together[:, 0], kind="stable")] * self.cluster_size

    def joined(self) -> Streams:
        """Return all attributes, put together.

        Raises:
            FormatError: pieces are missing, or do not follow each other.
        """
        pieces = np.concatenate(self._columns) if self._columns else np.zeros((0, len(_FIELDS)), dtype=np.int64)
        runs = np.concatenate(self._runs) if self._runs else np.zeros((0, 4), dtype=np.int64)
        order = np.lexsort((pieces[:, 3], pieces[:, 2], pieces[:, 1], pieces[:, 0]))
        pieces = pieces[order]
        first = np.ones(len(pieces), dtype=np.bool_)
        first[1:] = (pieces[1:, :3] != pieces[:-1, :3]).any(axis=1)
        expected = np.where(first, 0, np.concatenate(([0], pieces[:-1, 4])) + 1)
        self._check(pieces, pieces[:, 3] == np.where(first, 0, expected))
        heads = pieces[first]
        last = np.concatenate((first[1:], [True])) if len(pieces) else first
        self._check(heads, heads[:, 6] == (pieces[last, 4] + 1) * self.cluster_size)
        self._check(heads, (heads[:, 8] >= 0) & (heads[:, 7] <= heads[:, 6]) & (heads[:, 8] <= heads[:, 7]))
        number = np.empty(len(pieces), dtype=np.int64)
        number[order] = np.cumsum(first) - 1
        runs = np.stack((number[runs[:, 0]], *(runs[:, 1:] * self.cluster_size).T), axis=1)
        return Streams(heads, runs, self._names.get(_COMPACT, -1))

    def _check(self, pieces: NDArray[np.int64], good: NDArray[np.bool_]) -> None:
        if not good.all():
            owner = int(pieces[int(np.argmin(good)), 0])
            raise FormatError(WHAT, f"record {owner}", "pieces one after the other up to its size", "others")


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """Attributes: a row of ``heads`` each (``_FIELDS``); ``runs`` (n, 4): number of the attribute, and in bytes offset
    in it, place in the volume, length; ``compact``: number of the name of compressed streams, -1 if there are none."""

    heads: NDArray[np.int64]
    runs: NDArray[np.int64]
    compact: int = -1

    def chosen(self, kind: int) -> NDArray[np.bool_]:
        """Return which attributes are the unnamed ones of a type."""
        found: NDArray[np.bool_] = (self.heads[:, 1] == kind) & (self.heads[:, 2] == UNNAMED)
        return found

    def runs_of(self, kind: int) -> Runs:
        """Return the runs of the unnamed attributes of a type, by the records they belong to."""
        wanted = self.runs[self.chosen(kind)[self.runs[:, 0]]]
        heads = self.heads[wanted[:, 0]]
        plain = (heads[:, 5] & _NOT_PLAIN) == 0
        return Runs.of(WHAT, [Runs(heads[:, 0], wanted[:, 1], wanted[:, 2], wanted[:, 3], plain)])

    def sizes(self, kind: int) -> tuple[Column, Column, Column]:
        """Return owner, size and how much was ever written of the unnamed attributes of a type."""
        heads = self.heads[self.chosen(kind)]
        return heads[:, 0], heads[:, 7], heads[:, 8]

    def packed(self, kind: int) -> int:
        """Return the space of compressed or encrypted attributes of a type, in bytes."""
        wanted = self.chosen(kind) & ((self.heads[:, 5] & _NOT_PLAIN) != 0)
        wanted |= (self.heads[:, 1] == kind) & (self.heads[:, 2] == self.compact)
        return int(self.runs[:, 3][wanted[self.runs[:, 0]]].sum())

    def space(self) -> Ranges:
        """Return where in the volume all attributes lie, in bytes."""
        return ranges_of(self.runs[:, 2], self.runs[:, 3])
