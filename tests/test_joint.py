"""Joint differences: tables made of runs of several others, and what comes of damage and of missing bases."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import DIGEST_SIZE, REGION_SIZE, Kind
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.joint import MAX_BASES, BaseRef, JointDifference, encode_joint, is_joint
from trimtransfer.repository.audit import audit
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore
from trimtransfer.table import ZERO, Table

KIB, MIB = 1 << 10, 1 << 20
LENGTH = 4096


def table_of(numbers: list[int]) -> Table:
    """Return a table of chunks that are known by number; 0 is a zero run."""
    merged = [number for at, number in enumerate(numbers) if number or not at or numbers[at - 1]]
    records = np.array([LENGTH | (0 if number else ZERO) for number in merged], dtype=np.uint32)
    digests = [number.to_bytes(DIGEST_SIZE, "little") for number in merged if number]
    named = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_SIZE)
    return Table.from_records(records, named)


def encoded(table: Table, bases: list[Table]) -> bytes:
    """Return a joint difference that takes every chunk from the first base that has it."""
    base = np.full(len(table), -1, dtype=np.int64)
    start = np.zeros(len(table), dtype=np.int64)
    for record in np.flatnonzero(~table.zero).tolist():
        for number, found in enumerate(bases):
            equal = (found.digests == table.digests[record]).all(axis=1) & ~found.zero
            if equal.any() and base[record] < 0:
                base[record], start[record] = number, int(np.argmax(equal))
    return encode_joint(table, [BaseRef(found.digest(), found.size) for found in bases], base, start)


numbers = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@given(numbers, st.lists(numbers, min_size=1, max_size=5))
def test_round_trip(new: list[int], old: list[list[int]]) -> None:
    table, bases = table_of(new), [table_of(one) for one in old]
    stored = encoded(table, bases)
    assert is_joint(stored)
    difference = JointDifference(stored)
    assert [ref.digest for ref in difference.bases] == [base.digest() for base in bases]
    made = difference.table(bases, size=table.size, digest=table.digest())
    assert made.to_bytes() == table.to_bytes()


def test_runs_cost_next_to_nothing() -> None:
    bases = [table_of(list(range(1 + 1000 * number, 1001 + 1000 * number))) for number in range(4)]
    table = table_of([*range(3500, 4000), *range(1, 500), *range(1200, 1700), *range(2100, 2700)])
    assert len(encoded(table, bases)) < 4 * 40 + 120


def test_every_flipped_bit_and_every_truncation_is_found() -> None:
    bases = [table_of([1, 2, 0, 3]), table_of([4, 5, 6])]
    table = table_of([5, 6, 9, 0, 1, 2, 7])
    stored = encoded(table, bases)

    def read(data: bytes) -> Table:
        return JointDifference(data).table(bases, size=table.size, digest=table.digest())

    for size in range(len(stored)):
        with pytest.raises(FormatError):
            read(stored[:size])
    for at in range(8 * len(stored)):
        data = bytearray(stored)
        data[at // 8] ^= 1 << at % 8
        with suppress(FormatError, IntegrityError):
            assert read(bytes(data)).to_bytes() == table.to_bytes()  # a bit of zstd that means nothing


@given(st.binary(max_size=300))
def test_hostile_bytes_raise_format_errors_only(data: bytes) -> None:
    bases = [table_of([1, 2, 3])]
    for stored in (data, bytes(DIGEST_SIZE) + data, bytes(DIGEST_SIZE) + compress(data, 1)):
        with pytest.raises((FormatError, IntegrityError)):
            JointDifference(stored).table(bases, size=LENGTH, digest=bytes(32))


@given(st.integers(0, 3), st.lists(st.integers(0, 1 << 32) | st.integers(0, 4), min_size=4, max_size=16))
def test_hostile_numbers(bases: int, columns: list[int]) -> None:
    known = table_of([1, 2, 3])
    columns = [number & 0xFFFFFFFF for number in columns[: len(columns) // 4 * 4]]
    refs = (known.digest() + known.size.to_bytes(4, "little")) * bases
    head = bases.to_bytes(4, "little") + (len(columns) // 4).to_bytes(4, "little")
    body = head + refs + b"".join(number.to_bytes(4, "little") for number in columns)
    with pytest.raises((FormatError, IntegrityError)):
        JointDifference(bytes(DIGEST_SIZE) + compress(body, 1)).table([known] * bases, size=1, digest=bytes(32))


def test_other_bases_than_named_are_refused() -> None:
    table, bases = table_of([1, 2]), [table_of([1, 2, 3])]
    difference = JointDifference(encoded(table, bases))
    with pytest.raises(FormatError):
        difference.table([], size=table.size, digest=table.digest())
    with pytest.raises(FormatError):
        difference.table([table_of([1])], size=table.size, digest=table.digest())
    with pytest.raises(IntegrityError):
        difference.table([table_of([1, 3, 2])], size=table.size, digest=table.digest())


def shuffled(rnd: random.Random, regions: int) -> tuple[bytes, bytes]:
    """Return an image of random files in some regions, and one of the same files in another order."""
    files = [rnd.randbytes(rnd.randrange(1, 12) * 4096 - 100) + bytes(100) for _ in range(150 * regions)]
    images = []
    for _ in range(2):
        parts = [b"".join(files[number::regions]) for number in range(regions)]
        images.append(b"".join(part + bytes(REGION_SIZE - len(part)) for part in parts))
        rnd.shuffle(files)
    return images[0], images[1]


def test_tables_of_files_that_moved_cost_little(tmp_path: Path, rnd: random.Random) -> None:
    regions = 3
    for version, content in enumerate(shuffled(rnd, regions), 1):
        (tmp_path / "image").write_bytes(content)
        publish(tmp_path / "r", tmp_path / "image", image="a", version=str(version), kind=Kind.DISK, level=1)
        if version == 1:
            sync(tmp_path / "r", "a", output=tmp_path / "o")
    store = DirectoryStore(tmp_path / "r")
    reader = VersionReader.open(store, "a")
    rows = [reader.manifest.region(number) for number in range(regions)]
    assert all(is_joint(reader.piece(row.difference)) for row in rows)
    assert sum(row.difference.length for row in rows) < 0.4 * sum(row.full.length for row in rows)
    joint = [JointDifference(reader.piece(row.difference)) for row in rows]
    assert all(len(one.bases) <= min(regions, MAX_BASES) for one in joint)
    assert audit(store).damage == ()
    report = sync(tmp_path / "r", "a", output=tmp_path / "o", version="2")
    assert (tmp_path / "o").read_bytes() == content
    assert report.network.bytes < sum(row.difference.length for row in rows) + 20 * KIB
    bare = sync(tmp_path / "r", "a", output=tmp_path / "bare", seeds=[tmp_path / "image"])
    assert (tmp_path / "bare").read_bytes() == content
    assert bare.network.bytes >= sum(row.full.length for row in rows)  # without the parent's tables: whole
    assert len(decompress(reader.piece(rows[0].full), MIB, "table")) > 1000
