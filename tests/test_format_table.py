"""Tables: canonical bytes, stored forms, and what hostile bytes do to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtransfer.chunk import MAX_CHUNK_SIZE, REGION_SIZE, table_digest
from trimtransfer.codec import compress
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.table import (
    MAX_RECORDS,
    ZERO,
    Table,
    decode_difference,
    decode_full,
    encode_difference,
    encode_full,
)


def make(records: list[tuple[int, int]]) -> Table:
    """A table from (length, seed of the digest) pairs; seed 0 is a zero run. Neighbouring zero runs are joined."""
    joined: list[tuple[int, int]] = []
    for length, seed in records:
        if seed == 0 and joined and joined[-1][1] == 0:
            joined[-1] = (joined[-1][0] + length, 0)
        else:
            joined.append((length, seed))
    lengths = np.array([n | (ZERO if seed == 0 else 0) for n, seed in joined], dtype=np.uint32)
    digests = np.array([[seed] * 32 for _, seed in joined if seed], dtype=np.uint8).reshape(-1, 32)
    return Table.from_records(lengths, digests)


records = st.lists(st.tuples(st.integers(1, MAX_CHUNK_SIZE), st.integers(0, 6)), min_size=1, max_size=60)


@given(records)
def test_canonical_bytes_round_trip(pairs: list[tuple[int, int]]) -> None:
    table = make(pairs)
    again = Table.from_bytes(table.to_bytes(), size=table.size)
    assert again.to_bytes() == table.to_bytes()
    assert again.digest() == table_digest(table.to_bytes())
    assert again.size == sum(length for length, _ in pairs)
    assert again.offsets.tolist() == [int(again.lengths[:n].sum()) for n in range(len(again))]


@given(records, records)
def test_stored_forms_round_trip(new: list[tuple[int, int]], old: list[tuple[int, int]]) -> None:
    table, base = make(new), make(old)
    whole = decode_full(encode_full(table), size=table.size, digest=table.digest())
    difference = decode_difference(encode_difference(table, base), base, size=table.size, digest=table.digest())
    assert whole.to_bytes() == difference.to_bytes() == table.to_bytes()


@given(records, st.integers(0, 59))
def test_difference_to_a_similar_table_is_small(pairs: list[tuple[int, int]], at: int) -> None:
    rng = np.random.default_rng(len(pairs))
    lengths = np.full(300, 4096, dtype=np.uint32)
    digests = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    base = Table.from_records(lengths, digests)
    changed = digests.copy()
    changed[at] ^= 1
    table = Table.from_records(lengths, changed)
    assert len(encode_difference(table, base)) < 32 + 120
    assert len(encode_full(table)) > 300 * 32


def test_prefixes_are_the_first_eight_bytes_little_endian() -> None:
    table = Table.from_records(np.array([5], dtype=np.uint32), np.arange(32, dtype=np.uint8).reshape(1, 32))
    assert table.prefixes.tolist() == [int.from_bytes(bytes(range(8)), "little")]


@pytest.mark.parametrize(
    ("records", "digests"),
    [
        ([0], 1),  # empty chunk
        ([ZERO], 0),  # empty zero run
        ([MAX_CHUNK_SIZE + 1], 1),
        ([ZERO | 1, ZERO | 1], 0),  # neighbouring zero runs
        ([ZERO | (REGION_SIZE + 1)], 0),
    ],
)
def test_invalid_records_are_refused(records: list[int], digests: int) -> None:
    canonical = len(records).to_bytes(4, "little") + np.array(records, dtype="<u4").tobytes() + bytes(32 * digests)
    size = sum(n & (ZERO - 1) for n in records)
    with pytest.raises(FormatError):
        Table.from_bytes(canonical, size=size)


def test_a_table_must_cover_its_region_exactly() -> None:
    table = make([(4096, 1), (8192, 2)])
    for size in (0, 12287, 12289):
        with pytest.raises(FormatError):
            Table.from_bytes(table.to_bytes(), size=size)


def test_every_flipped_bit_and_every_truncation_is_found() -> None:
    table, base = make([(4096, 1), (8192, 0), (100, 2)]), make([(4096, 1), (50, 3)])
    for stored, decode in (
        (encode_full(table), lambda data: decode_full(data, size=table.size, digest=table.digest())),
        (
            encode_difference(table, base),
            lambda data: decode_difference(data, base, size=table.size, digest=table.digest()),
        ),
    ):
        for at in range(len(stored)):
            for bit in range(8):
                damaged = bytearray(stored)
                damaged[at] ^= 1 << bit
                try:
                    found = decode(bytes(damaged))
                except (FormatError, IntegrityError):
                    continue
                # zstd ignores some header bits; then the content, which the digest covers, is the right one
                assert found.to_bytes() == table.to_bytes()
            with pytest.raises(FormatError):
                decode(stored[:at])
        with pytest.raises(FormatError):
            decode(stored + b"\0")


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_hostile_bytes_raise_format_errors_only(data: bytes) -> None:
    base = make([(4096, 1), (50, 3)])
    with pytest.raises(FormatError):
        Table.from_bytes(data, size=REGION_SIZE)
    for attempt in (data, compress(data, 1)):
        with pytest.raises((FormatError, IntegrityError)):
            decode_full(attempt, size=REGION_SIZE, digest=bytes(32))
        with pytest.raises((FormatError, IntegrityError)):
            decode_difference(base.digest() + attempt, base, size=REGION_SIZE, digest=bytes(32))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=12))
def test_hostile_numbers_in_a_difference(count: int, numbers: list[int]) -> None:
    base = make([(4096, 1), (50, 3)])
    body = count.to_bytes(4, "little") + np.array(numbers, dtype="<u4").tobytes()
    with pytest.raises((FormatError, IntegrityError)):
        decode_difference(base.digest() + compress(body, 1), base, size=4146, digest=bytes(32))


def test_counts_are_checked_against_the_bytes_that_are_there() -> None:
    for count in (0, MAX_RECORDS + 1, 2**32 - 1):
        with pytest.raises(FormatError):
            Table.from_bytes(count.to_bytes(4, "little") + bytes(36), size=4096)


def test_a_difference_to_another_table_is_refused() -> None:
    table, base, other = make([(4096, 1)]), make([(50, 3)]), make([(51, 3)])
    with pytest.raises(FormatError, match="base"):
        decode_difference(encode_difference(table, base), other, size=4096, digest=table.digest())


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(FormatError, match="declared size"):
        decode_full(compress(bytes(64 << 20), 1), size=4096, digest=bytes(32))
