"""File records of NTFS, many at a time: their attributes are walked in lock-step, one step of all records at once.

A record has room for few attributes and few runs, so the steps are few however many records there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ranges import Column

RECORD: Final = "NTFS file record"
_RUNS: Final = "NTFS runs"
_STRIDE: Final = 512
"""Each such piece of a record ends in two bytes that show whether it was written in whole."""
_END: Final = 0xFFFFFFFF
_LEAST: Final = 24
_IN_USE: Final = 1
_DIRECTORY: Final = 2
_SPARSE: Final = -1

Rows = NDArray[np.uint8]


def take(rows: Rows, row: Column, at: Column, size: int) -> Column:
    """Return the little-endian number of ``size`` bytes at ``at`` of the given rows; it lies within them."""
    found = np.ascontiguousarray(rows[row[:, None], at[:, None] + np.arange(size)])
    return found.view(f"<u{size}").reshape(-1).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """File records in use: their bytes ``rows`` (n, record size), ``numbers``, the record each belongs to (``owners``:
    its own number but for extension records), and which are directories."""

    rows: Rows
    numbers: Column
    owners: Column
    directories: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Rows, first: int) -> Records:
        """Pick those in use from records whose numbers begin with ``first``; their check marks are resolved.

        Raises:
            FormatError: one was not written in whole.
        """
        flags = rows[:, 22:24].copy().view("<u2").reshape(-1)
        used = (rows[:, :4] == np.frombuffer(b"FILE", dtype=np.uint8)).all(axis=1) & ((flags & _IN_USE) != 0)
        chosen = rows[used]
        numbers = (np.flatnonzero(used) + first).astype(np.int64)
        resolve(chosen, numbers)
        base = chosen[:, 32:40].copy().view("<u8").reshape(-1) & np.uint64((1 << 48) - 1)
        owners = np.where(base != 0, base.astype(np.int64), numbers)
        # No record belongs to record 0 by a base of 0: its extensions say 0 with its sequence number, which is 1.
        extends_table = (base == 0) & (chosen[:, 38:40].any(axis=1))
        owners = np.where(extends_table, 0, owners)
        return cls(chosen, numbers, owners, (flags[used] & _DIRECTORY) != 0)

    def attributes(self) -> tuple[Column, Column, Column]:
        """Return row, offset in it and type of all attributes.

        Raises:
            FormatError: one does not fit its record.
        """
        size = self.rows.shape[1]
        row = np.arange(len(self.rows))
        at = self.rows[:, 20:22].copy().view("<u2").reshape(-1).astype(np.int64)
        used = self.rows[:, 24:28].copy().view("<u4").reshape(-1).astype(np.int64)
        self._check(row, (used <= size) & (at >= 42) & (at + 4 <= used))
        found: list[tuple[Column, Column, Column]] = []
        while len(row):
            kind = take(self.rows, row, at, 4)
            going = kind != _END
            row, at, kind = row[going], at[going], kind[going]
            self._check(row, at + _LEAST <= used[row])
            length = take(self.rows, row, at + 4, 4)
            self._check(row, (length >= _LEAST) & (length % 8 == 0) & (at + length + 4 <= used[row]))
            found.append((row, at, kind))
            at = at + length
        return tuple(np.concatenate(columns) for columns in zip(*found, strict=True)) if found else (row, row, row)  # type: ignore[return-value]

    def _check(self, row: Column, good: NDArray[np.bool_]) -> None:
        if not good.all():
            number = int(self.numbers[row[int(np.argmin(good))]])
            raise FormatError(RECORD, f"record {number}", "attributes within the record", "others")

    def values(self, row: Column, at: Column) -> tuple[Column, Column]:
        """Return offset in the record and length of the values of resident attributes.

        Raises:
            FormatError: one does not lie within its attribute.
        """
        length, offset = take(self.rows, row, at + 16, 4), take(self.rows, row, at + 20, 2)
        self._check(row, offset + length <= take(self.rows, row, at + 4, 4))
        return at + offset, length

    def names(self, row: Column, at: Column) -> Iterator[bytes]:
        """Yield the names of attributes, as stored.

        Raises:
            FormatError: one does not lie within its attribute.
        """
        length, offset = 2 * take(self.rows, row, at + 9, 1), take(self.rows, row, at + 10, 2)
        self._check(row, (length == 0) | (offset + length <= take(self.rows, row, at + 4, 4)))
        for number, start, size in zip(row.tolist(), (at + offset).tolist(), length.tolist(), strict=True):
            yield self.rows[number, start : start + size].tobytes()

    def runs(self, row: Column, at: Column, clusters: int) -> tuple[Column, Column, Column, Column]:
        """Return the runs of non-resident attributes: index of the attribute, and in clusters: position in the
        attribute, position in the volume, length. Holes are left out.

        Raises:
            FormatError: runs break a rule, or leave the volume's ``clusters``.
        """
        length = take(self.rows, row, at + 4, 4)
        self._check(row, length >= 64)
        low, high = take(self.rows, row, at + 16, 8), take(self.rows, row, at + 24, 8)
        position, end = at + take(self.rows, row, at + 32, 2), at + length
        self._check(row, (low >= 0) & (low <= 1 << 52) & (high >= -1) & (high <= 1 << 52))
        decoder = _Decoder(self.rows, row, low.copy(), position, end, clusters)
        try:
            found = decoder.run()
        except FormatError as error:
            raise FormatError(RECORD, "its runs", error.expected, error.got) from None
        self._check(row, decoder.reached == high + 1)
        return found


class _Decoder:
    """Decodes the runs of many attributes in lock-step."""

    def __init__(self, rows: Rows, row: Column, low: Column, at: Column, end: Column, clusters: int) -> None:
        self._rows, self._row, self._end, self._clusters = rows, row, end, clusters
        self._at, self._place = at.copy(), np.zeros_like(at)
        self.reached = low
        """Where in its attribute each has arrived."""

    def run(self) -> tuple[Column, Column, Column, Column]:
        """Decode to the end."""
        found: list[tuple[Column, Column, Column, Column]] = []
        active = np.arange(len(self._row))
        while len(active):
            self._need(active, 1)
            head = take(self._rows, self._row[active], self._at[active], 1)
            active, head = active[head != 0], head[head != 0]
            found.append(self._step(active, head & 15, head >> 4))
        empty = np.zeros(0, dtype=np.int64)
        if not found:
            return empty, empty, empty, empty
        index, offset, place, length = (np.concatenate(columns) for columns in zip(*found, strict=True))
        kept = place != _SPARSE
        return index[kept], offset[kept], place[kept], length[kept]

    def _step(self, active: Column, length_size: Column, offset_size: Column) -> tuple[Column, Column, Column, Column]:
        """Decode one run of each active attribute; return the columns of what ``run`` returns, holes included."""
        if ((length_size == 0) | (length_size > 8) | (offset_size > 8)).any():
            raise FormatError(_RUNS, "", "sizes of 1 to 8 bytes", "others")
        self._need(active, 1 + length_size + offset_size)
        length = self._number(active, self._at[active] + 1, length_size)
        step = self._number(active, self._at[active] + 1 + length_size, offset_size)
        hole = offset_size == 0
        self._place[active] += step
        place, offset = self._place[active], self.reached[active]
        good = (length > 0) & (length <= 1 << 52) & (offset <= 1 << 52)
        good &= hole | ((place >= 0) & (place <= self._clusters - length))
        if not good.all():
            at = int(np.argmin(good))
            raise FormatError(_RUNS, "", f"within {self._clusters} clusters", f"{place[at]} + {length[at]}")
        self.reached[active] = offset + length
        self._at[active] += 1 + length_size + offset_size
        return active, offset, np.where(hole, _SPARSE, place), length

    def _need(self, active: Column, size: Column | int) -> None:
        if (self._at[active] + size > self._end[active]).any():
            raise FormatError(_RUNS, "", "an end within the attribute", "none")

    def _number(self, active: Column, at: Column, size: Column) -> Column:
        """Return signed numbers of 0 to 8 bytes."""
        column = np.arange(8)
        places = np.minimum(at[:, None] + column, self._rows.shape[1] - 1)
        found = np.where(column < size[:, None], self._rows[self._row[active][:, None], places], 0).astype(np.uint8)
        value = np.ascontiguousarray(found).view("<i8").reshape(-1)
        unused = np.clip(64 - 8 * size, 0, 56)
        return np.where(size == 0, 0, (value << unused) >> unused)


def resolve(rows: Rows, numbers: Column) -> None:
    """Check in place that records were written in whole, and put back the bytes where the check marks are.

    Raises:
        FormatError: one was not.
    """
    size = rows.shape[1]
    pieces = size // _STRIDE
    at = rows[:, 4:6].copy().view("<u2").reshape(-1).astype(np.int64)
    count = rows[:, 6:8].copy().view("<u2").reshape(-1)
    good = (count == pieces + 1) & (at >= 40) & (at + 2 * (pieces + 1) <= _STRIDE - 2) & (at % 2 == 0)
    row = np.arange(len(rows))
    if good.all():
        marks = np.stack([take(rows, row, at + 2 * number, 2) for number in range(pieces + 1)], axis=1)
        ends = rows.reshape(-1, pieces, _STRIDE)[:, :, -2:]
        stored = np.ascontiguousarray(ends).view("<u2").reshape(-1, pieces)
        good = (stored == marks[:, :1]).all(axis=1)
        ends[:] = marks[:, 1:].astype("<u2").view(np.uint8).reshape(-1, pieces, 2)
    if not good.all():
        raise FormatError(
            RECORD, f"record {int(numbers[int(np.argmin(good))])}", "a record written in whole", "another"
        )
