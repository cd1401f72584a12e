"""Joint differences: a table as runs of records of several tables of an earlier version, and literal records.

For images whose files have moved to other regions, as in one that was made anew from the same packages. Where one table
is enough ``trimtransfer.table`` has the simpler form. FORMAT.md, "Table".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import DIGEST_SIZE, REGION_SIZE, Bytes
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.table import MAX_RECORDS, ZERO, Table

MAX_BASES: Final = 32
"""Most tables that one is made of: all are in memory at a time, decoded 24 MiB at most."""
_MARK: Final = bytes(DIGEST_SIZE)
_WHAT: Final = "joint difference"
_LEVEL: Final = 3
_BASE: Final = np.dtype([("digest", "u1", (DIGEST_SIZE,)), ("length", "<u4")])
_OP: Final = np.dtype([("base", "<u4"), ("start", "<u4"), ("copied", "<u4"), ("literal", "<u4")])
_LIMIT: Final = 8 + MAX_BASES * _BASE.itemsize + MAX_RECORDS * (_OP.itemsize + 4 + DIGEST_SIZE)


class BaseRef(NamedTuple):
    """A table that is copied from: its digest, and the length of its region in bytes."""

    digest: bytes
    length: int


def encode_joint(table: Table, bases: Sequence[BaseRef], base: NDArray[np.int64], start: NDArray[np.int64]) -> bytes:
    """Return the stored form of ``table`` as a joint difference to ``bases``, at most ``MAX_BASES`` of them.

    For each record ``base`` is the number of one of them, and ``start`` the number of the equal record there; ``base``
    is -1 for records that are literal.
    """
    copied = base >= 0
    goes_on = np.zeros(len(table), dtype=np.bool_)
    goes_on[1:] = copied[1:] & copied[:-1] & (base[1:] == base[:-1]) & (start[1:] == start[:-1] + 1)
    begins = copied & ~goes_on
    begins[0] = True
    op = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    ops = np.zeros(len(first), dtype=_OP)
    ops["base"], ops["start"] = np.where(copied[first], (base[first], start[first]), 0)
    ops["copied"] = np.bincount(op, weights=copied, minlength=len(ops))
    ops["literal"] = np.bincount(op, weights=~copied, minlength=len(ops))
    refs = np.zeros(len(bases), dtype=_BASE)
    for row, ref in zip(refs, bases, strict=True):
        row["digest"], row["length"] = np.frombuffer(ref.digest, dtype=np.uint8), ref.length
    literal = ~copied
    records = table.lengths[literal] | np.where(table.zero[literal], np.uint32(ZERO), np.uint32(0))
    columns = b"".join(np.ascontiguousarray(ops[name]).tobytes() for name in ("base", "start", "copied", "literal"))
    digests = table.digests[literal & ~table.zero]
    counts = struct.pack("<II", len(refs), len(ops))
    body = b"".join((counts, refs.tobytes(), columns, records.astype("<u4").tobytes(), digests.tobytes()))
    return _MARK + compress(body, _LEVEL)


def is_joint(stored: Bytes) -> bool:
    """Return whether a stored difference is a joint one."""
    return bytes(stored[:DIGEST_SIZE]) == _MARK


class JointDifference:
    """A joint difference, parsed: ``bases`` are the tables that it needs, in order."""

    def __init__(self, stored: Bytes) -> None:
        """Parse the stored form.

        Raises:
            FormatError: not a joint difference.
        """
        if not is_joint(stored):
            raise FormatError(_WHAT, 0, f"{DIGEST_SIZE} zero bytes", bytes(stored[:8]))
        body = memoryview(decompress(memoryview(stored)[DIGEST_SIZE:], _LIMIT, _WHAT))
        bases, ops = struct.unpack_from("<II", body) if len(body) >= 8 else (0, 0)
        at = 8 + bases * _BASE.itemsize + ops * _OP.itemsize
        if not (1 <= bases <= MAX_BASES and 1 <= ops <= MAX_RECORDS) or len(body) < at:
            expected = f"1 to {MAX_BASES} bases and 1 to {MAX_RECORDS} operations that fit {len(body)} bytes"
            raise FormatError(_WHAT, 0, expected, (bases, ops))
        refs = np.frombuffer(body, dtype=_BASE, count=bases, offset=8)
        if int(refs["length"].max()) > REGION_SIZE:
            raise FormatError(_WHAT, 8, f"regions of at most {REGION_SIZE} bytes", int(refs["length"].max()))
        self.bases = tuple(BaseRef(row["digest"].tobytes(), int(row["length"])) for row in refs)
        self._ops = np.zeros(ops, dtype=_OP)
        for number, name in enumerate(("base", "start", "copied", "literal")):
            offset = 8 + bases * _BASE.itemsize + 4 * ops * number
            self._ops[name] = np.frombuffer(body, dtype="<u4", count=ops, offset=offset)
        self._check()
        literals = int(self._ops["literal"].sum(dtype=np.int64))
        if len(body) < at + 4 * literals:
            raise FormatError(_WHAT, at, f"{literals} literal records", f"{len(body) - at} bytes")
        self._records = np.frombuffer(body, dtype="<u4", count=literals, offset=at).astype(np.uint32, copy=False)
        at += 4 * literals
        chunks = int(np.count_nonzero(self._records < ZERO))
        if len(body) != at + DIGEST_SIZE * chunks:
            raise FormatError(_WHAT, at, f"{chunks} digests and nothing else", f"{len(body) - at} bytes")
        self._digests = np.frombuffer(body, dtype=np.uint8, offset=at).reshape(chunks, DIGEST_SIZE)

    def table(self, bases: Sequence[Table], *, size: int, digest: bytes) -> Table:
        """Return the table of a region of ``size`` bytes, made of these tables.

        Raises:
            FormatError: a run that its base does not have, or no table comes out.
            IntegrityError: the result is not the table with this ``digest``.
        """
        lengths = np.array([len(base) for base in bases])
        ends = self._ops["start"].astype(np.int64) + self._ops["copied"]
        if len(bases) != len(self.bases) or (ends > lengths[self._ops["base"]]).any():
            raise FormatError(_WHAT, "operations", "runs within their bases", "others")
        held = [base.lengths | np.where(base.zero, np.uint32(ZERO), np.uint32(0)) for base in bases]
        records: list[NDArray[np.uint32]] = []
        digests: list[NDArray[np.uint8]] = []
        at = taken = 0
        for number, start, copied, literal in self._ops.tolist():
            kept, fresh = held[number][start : start + copied], self._records[at : at + literal]
            chunks = int(np.count_nonzero(fresh < ZERO))
            records += [kept, fresh]
            digests += [
                bases[number].digests[start : start + copied][kept < ZERO],
                self._digests[taken : taken + chunks],
            ]
            at, taken = at + literal, taken + chunks
        made = Table.from_records(np.concatenate(records), np.concatenate(digests))
        if made.size != size:
            raise FormatError(_WHAT, "operations", f"a table of {size} bytes", made.size)
        if made.digest() != digest:
            raise IntegrityError("table", digest, made.digest())
        return made

    def _check(self) -> None:
        ops = self._ops
        total = int((ops["copied"].astype(np.int64) + ops["literal"]).sum())
        if total > MAX_RECORDS or int(ops["base"].max()) >= len(self.bases):
            raise FormatError(_WHAT, "operations", f"known bases, {MAX_RECORDS} records in all", total)
