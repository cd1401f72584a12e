"""Tables: which records (zero runs and chunks) make up a region, and how tables are stored.

A :class:`Table` covers one region exactly and in order. Its canonical bytes are what the table digest names; the stored
forms (whole, or as a difference to another table) are compressed and never an identity. FORMAT.md, "Table".

Invariant: a constructed table is valid - no empty record, no chunk above the limit, no two zero records side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, DIGEST_SIZE, MAX_CHUNK_SIZE, REGION_SIZE, Bytes, table_digest
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError, IntegrityError

ZERO: Final = 1 << 31
"""Bit of a record's length that marks a zero run."""
MAX_RECORDS: Final = REGION_SIZE // BLOCK_SIZE
"""Most records of a table: as many as a region has blocks (FORMAT.md, "Table")."""
MAX_TABLE_BYTES: Final = 4 + MAX_RECORDS * (4 + DIGEST_SIZE)
_LEVEL: Final = 3  # digests do not compress; the length column does at any level
_OP: Final = np.dtype([("start", "<u4"), ("copied", "<u4"), ("literal", "<u4")])


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The records of one region.

    ``lengths`` in bytes (uint32, shape (n,)), ``zero`` marks zero runs (bool, (n,)), ``digests`` names the chunks
    (uint8, (n, 32); zeros for zero runs).
    """

    lengths: NDArray[np.uint32]
    zero: NDArray[np.bool_]
    digests: NDArray[np.uint8]

    @classmethod
    def from_records(cls, records: NDArray[np.uint32], digests: NDArray[np.uint8]) -> Table:
        """Build from lengths with the ``ZERO`` bit (what the chunker returns) and the chunks' digests (k, 32)."""
        zero = (records & np.uint32(ZERO)) != 0
        placed = np.zeros((len(records), DIGEST_SIZE), dtype=np.uint8)
        placed[~zero] = digests
        table = cls(records & np.uint32(ZERO - 1), zero, placed)
        table._check(int(table.lengths.sum(dtype=np.int64)))
        return table

    @classmethod
    def from_bytes(cls, canonical: Bytes, *, size: int) -> Table:
        """Parse the canonical bytes of a table of a region of ``size`` bytes.

        Raises:
            FormatError: anything but a valid table that covers the region exactly.
        """
        view = memoryview(canonical)
        if not 4 <= len(view) <= MAX_TABLE_BYTES:
            raise FormatError("table", 0, f"4 to {MAX_TABLE_BYTES} bytes", f"{len(view)} bytes")
        count = int.from_bytes(view[:4], "little")
        if not 1 <= count <= MAX_RECORDS or len(view) < 4 + 4 * count:
            raise FormatError("table", 0, f"1 to {MAX_RECORDS} records that fit {len(view)} bytes", f"{count} records")
        records = np.frombuffer(view, dtype="<u4", count=count, offset=4).astype(np.uint32, copy=False)
        chunks = int(np.count_nonzero(records < ZERO))
        if len(view) != 4 + 4 * count + DIGEST_SIZE * chunks:
            raise FormatError("table", 4 + 4 * count, f"{chunks} digests and nothing else", f"{len(view)} bytes in all")
        digests = np.frombuffer(view, dtype=np.uint8, offset=4 + 4 * count).reshape(chunks, DIGEST_SIZE)
        zero = records >= ZERO
        placed = np.zeros((count, DIGEST_SIZE), dtype=np.uint8)
        placed[~zero] = digests
        table = cls(records & np.uint32(ZERO - 1), zero, placed)
        table._check(size)
        return table

    def _check(self, size: int) -> None:
        if len(self.lengths) > MAX_RECORDS:
            raise FormatError("table", 0, f"at most {MAX_RECORDS} records", len(self.lengths))
        total = int(self.lengths.sum(dtype=np.int64))
        if total != size or size > REGION_SIZE:
            raise FormatError("table", 4, f"records of {size} bytes in all, at most {REGION_SIZE}", f"{total} bytes")
        bad = (self.lengths == 0) | (~self.zero & (self.lengths > MAX_CHUNK_SIZE))
        bad[1:] |= self.zero[1:] & self.zero[:-1]
        if bad.any():
            at = int(np.argmax(bad))
            expected = f"chunks of 1 to {MAX_CHUNK_SIZE} bytes, zero runs not side by side"
            raise FormatError("table", 4 + 4 * at, expected, f"record {at} of {int(self.lengths[at])} bytes")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Bytes that the records cover: the region's length."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each record starts within the region, in bytes (int64, shape (n,))."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return ends - self.lengths

    @property
    def prefixes(self) -> NDArray[np.uint64]:
        """The first eight bytes of each digest as a little-endian number (uint64, shape (n,))."""
        return np.ascontiguousarray(self.digests[:, :8]).view("<u8").reshape(-1).astype(np.uint64, copy=False)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes: count, lengths with the zero bit, digests of the chunks."""
        records = self.lengths | np.where(self.zero, np.uint32(ZERO), np.uint32(0))
        return b"".join(
            (len(self).to_bytes(4, "little"), records.astype("<u4").tobytes(), self.digests[~self.zero].tobytes())
        )

    def digest(self) -> bytes:
        """Return the table digest."""
        return table_digest(self.to_bytes())


def encode_full(table: Table) -> bytes:
    """Return the stored form of a whole table: its canonical bytes as one zstd frame."""
    return compress(table.to_bytes(), _LEVEL)


def decode_full(stored: Bytes, *, size: int, digest: bytes) -> Table:
    """Return the table of a region of ``size`` bytes from its stored form.

    Raises:
        FormatError: not a stored table.
        IntegrityError: a table, but not the one with this ``digest``.
    """
    return _checked(decompress(stored, MAX_TABLE_BYTES, "stored table"), size, digest)


def encode_difference(table: Table, base: Table) -> bytes:
    """Return the stored form of ``table`` as a difference to ``base``: runs copied from it, and literal records."""
    ops, literal = _difference(table, base)
    count = len(ops).to_bytes(4, "little")
    records = table.lengths[literal] | np.where(table.zero[literal], np.uint32(ZERO), np.uint32(0))
    digests = table.digests[literal][~table.zero[literal]]
    body = b"".join((count, ops.tobytes(), records.astype("<u4").tobytes(), digests.tobytes()))
    return base.digest() + compress(body, _LEVEL)


def difference_base(stored: Bytes) -> bytes:
    """Return the digest of the table that a stored difference starts from.

    Raises:
        FormatError: too short to hold one.
    """
    if len(stored) < DIGEST_SIZE:
        raise FormatError("table difference", 0, f"at least {DIGEST_SIZE} bytes", len(stored))
    return bytes(stored[:DIGEST_SIZE])


def decode_difference(stored: Bytes, base: Table, *, size: int, digest: bytes) -> Table:
    """Return the table of a region of ``size`` bytes from its difference to ``base``.

    Raises:
        FormatError: not a difference, or one to another table.
        IntegrityError: the result is not the table with this ``digest``.
    """
    if difference_base(stored) != base.digest():
        raise FormatError("table difference", 0, f"base {base.digest().hex()[:16]}", bytes(stored[:8]).hex())
    limit = 4 + MAX_RECORDS * (_OP.itemsize + 4 + DIGEST_SIZE)
    body = memoryview(decompress(memoryview(stored)[DIGEST_SIZE:], limit, "table difference"))
    ops, records, digests = _parse_difference(body, len(base))
    base_records = base.lengths | np.where(base.zero, np.uint32(ZERO), np.uint32(0))
    parts: list[NDArray[np.uint32]] = []
    named: list[NDArray[np.uint8]] = []
    at = taken = 0
    for start, copied, literal in ops.tolist():
        parts += [base_records[start : start + copied], records[at : at + literal]]
        fresh = int(np.count_nonzero(parts[-1] < ZERO))
        kept = base.digests[start : start + copied]
        named += [kept[parts[-2] < ZERO], digests[taken : taken + fresh]]
        at, taken = at + literal, taken + fresh
    canonical = b"".join(
        (
            sum(len(part) for part in parts).to_bytes(4, "little"),
            *(part.astype("<u4").tobytes() for part in parts),
            *(part.tobytes() for part in named),
        )
    )
    return _checked(canonical, size, digest)


def _parse_difference(
    body: memoryview, base_records: int
) -> tuple[NDArray[np.void], NDArray[np.uint32], NDArray[np.uint8]]:
    """Split a difference into its operations, literal records and literal digests, all ranges checked."""
    what = "table difference"
    count = int.from_bytes(body[:4], "little") if len(body) >= 4 else 0
    if not 1 <= count <= MAX_RECORDS or len(body) < 4 + _OP.itemsize * count:
        raise FormatError(what, 0, f"1 to {MAX_RECORDS} operations that fit {len(body)} bytes", f"{count} operations")
    ops = np.frombuffer(body, dtype=_OP, count=count, offset=4)
    ends = ops["start"].astype(np.int64) + ops["copied"]
    literals = int(ops["literal"].sum(dtype=np.int64))
    records_total = literals + int(ops["copied"].sum(dtype=np.int64))
    if int(ends.max()) > base_records or records_total > MAX_RECORDS:
        raise FormatError(
            what, 4, f"runs within {base_records} records, {MAX_RECORDS} in all", f"{records_total} records"
        )
    at = 4 + _OP.itemsize * count
    if len(body) < at + 4 * literals:
        raise FormatError(what, at, f"{literals} literal records", f"{len(body) - at} bytes")
    records = np.frombuffer(body, dtype="<u4", count=literals, offset=at).astype(np.uint32, copy=False)
    at += 4 * literals
    chunks = int(np.count_nonzero(records < ZERO))
    if len(body) != at + DIGEST_SIZE * chunks:
        raise FormatError(what, at, f"{chunks} digests and nothing else", f"{len(body) - at} bytes")
    return ops, records, np.frombuffer(body, dtype=np.uint8, offset=at).reshape(chunks, DIGEST_SIZE)


def _difference(table: Table, base: Table) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Return the operations that make ``table`` from ``base``, and which of its records are literal.

    Greedy: each record that the base has starts a run where the base has it first - or goes on with the run before it.
    """
    where: dict[bytes, int] = {}
    base_keys = _keys(base)
    for number in range(len(base_keys) - 1, -1, -1):
        where[base_keys[number]] = number
    ops: list[list[int]] = []
    literal = np.zeros(len(table), dtype=np.bool_)
    following = -1  # base record that would continue the present run; -1 when the last record was literal
    for number, key in enumerate(_keys(table)):
        if 0 <= following < len(base_keys) and base_keys[following] == key:
            ops[-1][1] += 1
            following += 1
        elif (start := where.get(key, -1)) >= 0:
            ops.append([start, 1, 0])
            following = start + 1
        else:
            if not ops:
                ops.append([0, 0, 0])
            ops[-1][2] += 1
            literal[number] = True
            following = -1
    return np.array([tuple(op) for op in ops], dtype=_OP), literal


def _keys(table: Table) -> list[bytes]:
    """Return what identifies each record: its length, and its digest (zeros for a zero run)."""
    packed = np.empty((len(table), 4 + DIGEST_SIZE), dtype=np.uint8)
    records = table.lengths | np.where(table.zero, np.uint32(ZERO), np.uint32(0))
    packed[:, :4] = records.astype("<u4").view(np.uint8).reshape(-1, 4)
    packed[:, 4:] = table.digests
    data, step = packed.tobytes(), 4 + DIGEST_SIZE
    return [data[at : at + step] for at in range(0, len(data), step)]


def _checked(canonical: bytes, size: int, digest: bytes) -> Table:
    found = table_digest(canonical)
    if found != digest:
        raise IntegrityError("table", digest, found)
    return Table.from_bytes(canonical, size=size)
