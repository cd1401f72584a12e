"""Rolling match: every place of a block is found, nothing else, at bounded cost; against the slow twin."""

from __future__ import annotations

import random

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import KINDS, make

from trimtransfer import native
from trimtransfer.chunk import chunk_digest
from trimtransfer.match import BlockTable, Match, Matcher

SIZES = [16, 17, 48, 64, 255, 512]


def pairs(matches: list[Match]) -> list[tuple[int, int]]:
    return [(match.offset, match.index) for match in matches]


def digests_of(*blocks: bytes) -> np.ndarray:
    return np.array([list(chunk_digest(block)) for block in blocks], np.uint8).reshape(-1, 32)


@st.composite
def tables_and_data(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """A table's content, a block size, and data that holds parts of that content at odd places."""
    pieces = st.tuples(st.sampled_from(sorted(KINDS)), st.just(1), st.integers(0, 300))
    table = make(draw(st.lists(pieces, min_size=1, max_size=3)))
    size = draw(st.sampled_from(SIZES))
    data = b""
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(table)))
        other = draw(st.binary(max_size=2 * size))
        data += table[start : start + draw(st.integers(0, 3000))] + other
    return table, size, data


class TestFind:
    @given(tables_and_data())
    @settings(max_examples=150, deadline=None)
    def test_equal_to_the_twin(self, case: tuple[bytes, int, bytes]) -> None:
        table, size, data = case
        assert pairs(BlockTable.of(table, size).find(data)) == reference.find_blocks(table, size, data)

    @given(tables_and_data(), st.lists(st.integers(0, 1500), min_size=1, max_size=10))
    @settings(max_examples=100, deadline=None)
    def test_any_division(self, case: tuple[bytes, int, bytes], parts: list[int]) -> None:
        table, size, data = case
        blocks = BlockTable.of(table, size)
        matcher, found, at = Matcher(blocks), [], 0
        for part in [*parts, len(data)]:
            found += matcher.feed(data[at : at + part])
            at += part
        assert found == blocks.find(data)

    def test_byte_by_byte(self) -> None:
        table = make([["random", 1, 1], ["zeros", 1, 0]])
        data = b"x" + table[100:2000] + bytes(200) + table
        blocks = BlockTable.of(table, 64)
        matcher = Matcher(blocks)
        found = [match for at in range(len(data)) for match in matcher.feed(data[at : at + 1])]
        assert pairs(found) == reference.find_blocks(table, 64, data)

    def test_large_blocks(self) -> None:
        """Sums beyond 32 bits, and windows that are longer than what a call is given."""
        table = b"\xff" * (3 << 16) + random.Random(1).randbytes(1 << 17)
        data = b"ab" + table[1 << 16 :] + b"\xff" * 70_000
        blocks = BlockTable.of(table, 1 << 16)
        expected = reference.find_blocks(table, 1 << 16, data)
        assert len(expected) >= 4
        assert pairs(blocks.find(data)) == expected
        matcher = Matcher(blocks)
        assert pairs([m for at in range(0, len(data), 9999) for m in matcher.feed(data[at : at + 9999])]) == expected

    def test_every_offset(self) -> None:
        block = random.Random(3).randbytes(64)
        blocks = BlockTable.of(block, 64)
        for at in range(200):
            data = random.Random(at).randbytes(at) + block
            assert pairs(blocks.find(data)) == [(at, 0)]
            assert pairs(blocks.find(data + b"z")) == [(at, 0)]
            assert blocks.find(data[:-1]) == []

    def test_the_first_of_equal_blocks(self) -> None:
        one, other = random.Random(1).randbytes(32), random.Random(2).randbytes(32)
        blocks = BlockTable.of(other + one + other + one + b"rest", 32)
        assert len(blocks) == 4
        assert pairs(blocks.find(one + b"!" + other)) == [(0, 1), (33, 0)]

    def test_nothing(self) -> None:
        for table in (b"", b"short"):
            blocks = BlockTable.of(table, 16)
            assert len(blocks) == 0
            assert blocks.find(random.Random(1).randbytes(1000)) == []
        assert BlockTable.of(bytes(64), 16).find(b"") == []

    def test_any_buffer(self) -> None:
        table = make([["random", 1, 7]])
        blocks = BlockTable.of(memoryview(bytearray(table)), 512)
        for data in (bytearray(table), memoryview(table), memoryview(table).cast("I")):
            assert pairs(blocks.find(data)) == [(at, at // 512) for at in range(0, 4096, 512)]


class TestKeys:
    @given(st.binary(min_size=16, max_size=400), st.integers(16, 64))
    def test_of_blocks(self, data: bytes, size: int) -> None:
        expected = reference.window_keys(data, size)[::size] if len(data) >= size else []
        assert native.block_keys(data, size).tolist() == expected[: len(data) // size]

    def test_rolled_keys(self, rnd: random.Random) -> None:
        """The compiled function, all windows: it reports exactly the offsets whose key is in the table."""
        data = make([["sparse", 2, rnd.randint(0, 99)], ["random", 1, rnd.randint(0, 99)]])
        every = reference.window_keys(data, 48)
        keys = sorted({key for key in every if rnd.random() < 0.3})
        blocks = native.Blocks(np.array(keys, np.uint64), 48)
        offsets, rows = np.empty(5, np.uint64), np.empty(5, np.uint32)
        found, position = [], 0
        while position <= len(data) - 48:
            count, position = native.match(data, blocks, position, offsets, rows)
            found += list(zip(offsets[:count].tolist(), rows[:count].tolist(), strict=True))
        at = {key: row for row, key in enumerate(keys)}
        assert found == [(offset, at[key]) for offset, key in enumerate(every) if key in at]


class TestHostile:
    def test_blocks_with_one_sum(self) -> None:
        """Two bytes up by one and the two between down by one: the sums stay, the content does not."""
        rng, blocks = random.Random(5), []
        for place in range(0, 60, 4):
            block = bytearray(b"\x40" * 64)
            for k, change in enumerate((1, -1, -1, 1)):
                block[place + k] += change
            blocks.append(bytes(block))
        keys = native.block_keys(b"".join(blocks), 64)
        assert len(set(keys.tolist())) == 1
        table = BlockTable(keys, digests_of(*blocks), 64)
        order = [rng.randrange(len(blocks)) for _ in range(100)]
        data = b"".join(blocks[k] + rng.randbytes(3) for k in order)
        assert pairs(table.find(data)) == [(67 * at, k) for at, k in enumerate(order)]

    def test_windows_that_only_look_like_a_block(self) -> None:
        """Zeros, and a table that promises other content for their sum: a block's length is hashed once, not more."""
        size = 64
        table = BlockTable(native.block_keys(bytes(size), size), digests_of(b"x" * size), size)
        matcher = Matcher(table)
        for _ in range(10):
            assert matcher.feed(bytes(20_000)) == []
        assert 200_000 // size <= matcher.refuted <= 200_000 // size + 16

    def test_a_match_after_windows_that_only_look_like_it(self) -> None:
        size, real = 64, random.Random(1).randbytes(64)
        keys = native.block_keys(bytes(size) + real, size)
        table = BlockTable(keys, digests_of(b"x" * size, real), size)
        data = bytes(80) + random.Random(2).randbytes(2000) + real
        assert pairs(table.find(data)) == [(2080, 1)]

    def test_zeros_are_matched_once_per_block(self) -> None:
        blocks = BlockTable.of(bytes(512), 512)
        matcher = Matcher(blocks)
        assert pairs(matcher.feed(bytes(100_000))) == [(at, 0) for at in range(0, 100_000 - 511, 512)]
        assert matcher.refuted == 0


class TestArguments:
    @pytest.mark.parametrize("size", [-1, 0, 15, (1 << 24) + 1])
    def test_block_sizes(self, size: int) -> None:
        with pytest.raises(ValueError, match="blocks of"):
            BlockTable.of(bytes(100), size)
        with pytest.raises(ValueError, match="blocks of"):
            BlockTable(np.empty(0, np.uint64), np.empty((0, 32), np.uint8), size)

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            BlockTable(np.zeros(2, np.uint64), np.zeros((1, 32), np.uint8), 16)
        with pytest.raises(TypeError):
            BlockTable(np.zeros(1, np.int64), np.zeros((1, 32), np.uint8), 16)  # type: ignore[arg-type]

    def test_room(self) -> None:
        blocks = native.Blocks(np.empty(0, np.uint64), 16)
        with pytest.raises(ValueError, match="room"):
            native.match(bytes(100), blocks, 0, np.empty(0, np.uint64), np.empty(0, np.uint32))
        with pytest.raises(ValueError, match="room"):
            native.match(bytes(100), blocks, 0, np.empty(2, np.uint64), np.empty(1, np.uint32))
