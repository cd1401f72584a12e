"""Finding chunks at any offset: all are found however the stream is divided, at bounded cost whatever it holds."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtransfer import finder
from trimtransfer.chunk import BLOCK_SIZE, MAX_CHUNK_SIZE, chunk_digest
from trimtransfer.finder import ChunkFinder, chunk_keys

MIB = 1 << 20


class Image:
    """Chunks of an image and what a finder wants to know of them."""

    def __init__(self, chunks: list[bytes], gaps: list[int] | None = None) -> None:
        self.chunks = chunks
        self.lengths = np.array([len(chunk) for chunk in chunks], dtype=np.uint32)
        starts = np.cumsum([0, *map(len, chunks)])[:-1]
        self.keys = chunk_keys(b"".join(chunks), starts, self.lengths.astype(np.int64))
        digests = [chunk_digest(chunk)[:8] for chunk in chunks]
        self.prefixes = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
        self.places = (starts + np.cumsum(gaps or [0] * len(chunks))).astype(np.int64)

    def finder(self) -> ChunkFinder:
        return ChunkFinder(self.keys, self.prefixes, self.lengths, self.places)


def feed(one: ChunkFinder, data: bytes, piece: int) -> ChunkFinder:
    """Give a finder a stream in pieces, as reading a file does."""
    at = 0
    while at < len(data) and not one.exhausted:
        after = one.search(memoryview(data)[at : at + piece + MAX_CHUNK_SIZE], at, at + min(piece, len(data) - at))
        assert after > at
        at = after
    return one


def check(image: Image, one: ChunkFinder, data: bytes) -> set[int]:
    """Everything that was found is there; return the contents that were found."""
    rows, offsets = one.found()
    for row, offset in zip(rows.tolist(), offsets.tolist(), strict=True):
        assert data[offset : offset + len(image.chunks[row])] == image.chunks[row]
    return set(rows.tolist())


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([100, 4096, 8192, 12_288, 65_536, 4096 * 3 + 7]), min_size=1, max_size=8),
    layout=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 7)), max_size=8),
    piece=st.sampled_from([4096, 10_000, 65_536, 1 << 20]),
    seed=st.integers(0, 2**32),
)
def test_every_chunk_with_a_key_is_found(
    lengths: list[int], layout: list[tuple[int, int]], piece: int, seed: int
) -> None:
    rnd = random.Random(seed)
    image = Image([rnd.randbytes(length) for length in lengths])
    stream, placed = b"", set()
    for gap, number in layout:
        number %= len(lengths)
        stream += rnd.randbytes(gap) + image.chunks[number]
        placed.add(number)
    stream += rnd.randbytes(500)
    found = check(image, feed(image.finder(), stream, piece), stream)
    assert {number for number in placed if lengths[number] >= BLOCK_SIZE} <= found <= placed


@pytest.mark.parametrize("shift", [0, 1, 63 * 512, 777, 4095])
def test_behind_its_first_chunk_an_image_is_hashed_and_not_searched(shift: int, rnd: random.Random) -> None:
    """Also chunks without a key, and those behind runs of zeros, are found by what precedes them."""
    chunks = [rnd.randbytes(4096 * rnd.randrange(1, 30)) for _ in range(60)] + [rnd.randbytes(100)]
    gaps = [0] * 30 + [3 * MIB] + [0] * 30
    image = Image(chunks, gaps)
    whole = bytearray(sum(map(len, chunks)) + 3 * MIB)
    for chunk, place in zip(chunks, image.places.tolist(), strict=True):
        whole[place : place + len(chunk)] = chunk
    stream = rnd.randbytes(shift) + whole + rnd.randbytes(1000)
    one = feed(image.finder(), stream, MIB)
    assert len(check(image, one, stream)) == 61
    assert one.looks == 61
    assert one.vain == 0


def test_of_chunks_that_begin_alike_each_is_found(rnd: random.Random) -> None:
    block = rnd.randbytes(BLOCK_SIZE)
    image = Image([block + rnd.randbytes(4096 * number) for number in range(1, 7)])
    stream = b"".join(rnd.randbytes(1000 * number) + image.chunks[5 - number] for number in range(6))
    assert check(image, feed(image.finder(), stream, MIB), stream) == set(range(6))


def test_blocks_of_one_byte_are_not_looked_for(rnd: random.Random) -> None:
    """Erased flash and the like: only behind another chunk."""
    image = Image([rnd.randbytes(8192), b"\xff" * 4096 + rnd.randbytes(4096), b"\x55" * 4096 + rnd.randbytes(4096)])
    filler = b"\xff" * MIB + b"\x55" * MIB
    one = feed(image.finder(), filler, MIB)
    assert (one.looks, one.vain) == (0, 0)
    stream = filler + b"\xff" + b"".join(image.chunks)
    assert check(image, feed(image.finder(), stream, MIB), stream) == {0, 1, 2}


def test_a_key_that_fails_again_and_again_is_dropped_and_the_others_are_still_found(rnd: random.Random) -> None:
    common = rnd.randbytes(BLOCK_SIZE)
    image = Image([common + rnd.randbytes(4096), rnd.randbytes(40_000)])
    filler = common * 1000
    stream = filler + image.chunks[1] + filler
    one = feed(image.finder(), stream, MIB)
    assert check(image, one, stream) == {1}
    assert one.looks <= 40


def test_a_hostile_table_costs_a_bounded_number_of_looks(rnd: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk has the key of a block that the data is full of; then as many keys as there are blocks."""
    monkeypatch.setattr(finder, "VAIN", MIB)
    common = rnd.randbytes(BLOCK_SIZE)
    count = 50_000
    lengths = np.full(count, MAX_CHUNK_SIZE, dtype=np.uint32)
    prefixes = np.array([rnd.getrandbits(64) for _ in range(count)], dtype=np.uint64)
    places = np.arange(count, dtype=np.int64) * MAX_CHUNK_SIZE
    stream = common * 4096
    keys = chunk_keys(common, np.zeros(1, np.int64), np.array([BLOCK_SIZE]))
    one = feed(ChunkFinder(np.repeat(keys, count), prefixes, lengths, places), stream, MIB)
    assert one.looks * MAX_CHUNK_SIZE <= MIB + len(stream) + 8 * MAX_CHUNK_SIZE
    assert one.looks <= 32 * 8

    data = rnd.randbytes(MIB)
    every = np.arange(count, dtype=np.int64)
    keys = chunk_keys(data, every, np.full(count, BLOCK_SIZE))
    one = feed(ChunkFinder(keys, prefixes, lengths, places), data * 16, MIB)
    assert one.exhausted
    assert one.looks * MAX_CHUNK_SIZE <= MIB + one.passed + 8 * MAX_CHUNK_SIZE
    assert len(one.found()[0]) == 0


def test_data_that_holds_next_to_nothing_is_given_up(rnd: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "SAMPLE", 4 * MIB)
    image = Image([rnd.randbytes(40_000) for _ in range(10)])
    stream = image.chunks[0] + rnd.randbytes(6 * MIB) + image.chunks[1]
    one = feed(image.finder(), stream, MIB)
    assert one.exhausted
    assert check(image, one, stream) == {0}
    assert 4 * MIB <= one.passed <= 4 * MIB + 100_000


def test_zeros_do_not_count_as_data(monkeypatch: pytest.MonkeyPatch, rnd: random.Random) -> None:
    monkeypatch.setattr(finder, "SAMPLE", MIB)
    image = Image([rnd.randbytes(40_000)])
    stream = bytes(5 * MIB) + image.chunks[0]
    one = feed(image.finder(), stream, MIB)
    assert check(image, one, stream) == {0}


def test_nothing_to_look_for() -> None:
    empty = np.zeros(0, dtype=np.uint64)
    one = feed(ChunkFinder(empty, empty, empty.astype(np.uint32), empty.astype(np.int64)), b"data" * 50_000, MIB)
    assert len(one.found()[0]) == 0
