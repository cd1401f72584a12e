"""Chunker 2: byte-wise cuts, on every instruction set, against the slow twin; streams, regions and golden vectors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import BYTES, KINDS, content, expectation, load, make

from trimtransfer import native
from trimtransfer.bytechunker import MEANS, ByteChunker, Rule, cut_bytes, cuts, final_records
from trimtransfer.chunk import Kind, chunk_digest
from trimtransfer.chunker import cut, cut_and_digest
from trimtransfer.table import ZERO

VECTORS = load(BYTES)
SMALL = 1 << 10
"""A mean chunk length that makes short data interesting."""


@pytest.fixture(params=native.available(), ids=lambda path: path.name.lower())
def simd(request: pytest.FixtureRequest) -> Iterator[native.Simd]:
    """Every instruction set that this machine has, one after the other."""
    yield native.select(request.param)
    native.select(None)


def ends_of(data: bytes, *, mean: int = SMALL, final: bool = True) -> list[int]:
    return [int(end) for end in cuts(data, mean=mean, final=final)]


def twin(data: bytes, *, mean: int = SMALL, final: bool = True) -> list[int]:
    return reference.search(data, reference.SEARCH_RULES[mean], final=final)


def as_records(lengths: np.ndarray) -> list[reference.Record]:
    return [reference.Record(int(length) % ZERO, bool(length >= ZERO)) for length in lengths]


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Pieces of all kinds one after the other, the end at any byte."""
    pieces = draw(
        st.lists(
            st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 12), st.integers(0, 2**12)), min_size=1, max_size=6
        )
    )
    data = make(pieces)
    return data[draw(st.integers(0, 4095)) : len(data) - draw(st.integers(0, 4095))]


class TestCuts:
    @pytest.mark.usefixtures("simd")
    @settings(max_examples=60, deadline=None)
    @given(contents(), st.sampled_from(sorted(reference.SEARCH_RULES)), st.booleans())
    def test_equal_to_the_twin(self, data: bytes, mean: int, final: bool) -> None:
        assert ends_of(data, mean=mean, final=final) == twin(data, mean=mean, final=final)

    @pytest.mark.usefixtures("simd")
    def test_every_length(self) -> None:
        """All ends of the data around the borders of the scan's groups, and of the chunk's minimum and maximum."""
        data = make([["random", 2, 5], ["sparse", 1, 5]])
        for size in [*range(1100), *range(4000, 4200)]:
            assert ends_of(data[:size]) == twin(data[:size]), size

    @pytest.mark.usefixtures("simd")
    def test_any_alignment(self) -> None:
        data = make([["random", 20, 1], ["text", 5, 1]])
        expected = twin(data)
        for offset in range(65):
            assert cuts(memoryview(bytes(offset) + data)[offset:], mean=SMALL).tolist() == expected

    def test_paths_agree(self, rnd: random.Random) -> None:
        """More bytes than the slow twin can do: every path against the plain C one, all means."""
        pieces = [[rnd.choice(sorted(KINDS)), rnd.randint(1, 200), rnd.randint(0, 9999)] for _ in range(40)]
        data = make(pieces)
        for mean in MEANS:
            native.select(native.Simd.SCALAR)
            expected = ends_of(data, mean=mean)
            for path in native.available():
                native.select(path)
                assert ends_of(data, mean=mean) == expected, (pieces, mean, path)
        native.select(None)

    @pytest.mark.usefixtures("simd")
    def test_every_period(self) -> None:
        """Data that repeats: right, whatever cancels in the hash; the data is what the twin can do in good time."""
        rng = random.Random(4)
        for period in range(1, 513):
            data = (rng.randbytes(period) * (9000 // period + 1))[:9000]
            assert ends_of(data) == twin(data), period

    @given(contents(), contents(), contents().filter(len))
    @settings(max_examples=60, deadline=None)
    def test_cuts_meet_again(self, one: bytes, other: bytes, common: bytes) -> None:
        """From the first common cut on, the cuts of a common rest are the same, whatever lies before it."""
        found = [
            {end - len(before) for end in ends_of(before + common) if end > len(before)} for before in (one, other)
        ]
        shared = found[0] & found[1]
        first = min(shared)  # the end of the data at the latest
        assert {end for end in found[0] if end >= first} == {end for end in found[1] if end >= first}

    @given(contents())
    @settings(max_examples=60, deadline=None)
    def test_lengths(self, data: bytes) -> None:
        rule = Rule(SMALL)
        lengths = [after - before for before, after in pairwise([0, *ends_of(data)])]
        assert sum(lengths) == len(data)
        assert all(rule.min <= length <= rule.max for length in lengths[:-1])
        assert all(0 < length <= rule.max for length in lengths[-1:])

    def test_the_mean_is_kept(self) -> None:
        data = random.Random(8).randbytes(8 << 20)
        for mean in (1 << 10, 1 << 13, 1 << 14):
            assert 0.95 < len(data) / len(ends_of(data, mean=mean)) / mean < 1.05

    def test_room_for_the_cuts_runs_out(self) -> None:
        """The C function stops at a full array and goes on from its last cut."""
        data = make([["random", 30, 2]])
        expected, room = twin(data), np.empty(3, np.uint64)
        by, found = small_rule(), [0]
        while found[-1] < len(data):
            count = native.search(memoryview(data)[found[-1] :], by, room, final=True)
            assert 0 < count <= 3
            found += [found[-1] + int(end) for end in room[:count]]
        assert found[1:] == expected
        assert native.search(data, by, room[:0], final=True) == 0

    def test_any_buffer(self) -> None:
        data = make([["random", 30, 1]])
        for buffer in (bytearray(data), memoryview(data), memoryview(bytearray(data)).cast("H")):
            assert cuts(buffer, mean=SMALL).tolist() == ends_of(data)
        with pytest.raises((ValueError, BufferError)):
            cuts(memoryview(data)[::2])

    def test_threads(self) -> None:
        parts = [make([["random", 900, seed], ["text", 40, seed]]) for seed in range(8)]
        expected = [ends_of(part) for part in parts]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ends_of, parts * 4)) == expected * 4


def small_rule() -> object:
    rule = Rule(SMALL)
    return native.rule(
        least=rule.min, norm=rule.norm, most=rule.max, strict=rule.strict, loose=rule.loose, level=rule.level
    )


class TestRule:
    def test_numbers(self) -> None:
        """The frozen numbers of the twin; the others follow by the same arithmetic."""
        for mean, numbers in reference.SEARCH_RULES.items():
            rule = Rule(mean)
            assert numbers == (rule.min, rule.norm, rule.max, rule.strict, rule.loose, rule.level)

    def test_probabilities(self) -> None:
        for mean in MEANS:
            rule = Rule(mean)
            candidate = ((127 - rule.level) / 256) ** 2
            assert candidate * (rule.loose + 1) / 2**64 == pytest.approx(4 / mean)
            assert candidate * (rule.strict + 1) / 2**64 == pytest.approx(1 / (4 * mean))
            e = np.exp(-(rule.norm - rule.min) / (4 * mean))
            assert rule.min + (1 - e) * 4 * mean + e * mean / 4 == pytest.approx(mean, rel=1e-3)

    @pytest.mark.parametrize("mean", [0, 1, 512, 1000, 65535, 1 << 19, -65536])
    def test_other_means_are_refused(self, mean: int) -> None:
        with pytest.raises(ValueError, match="no rule"):
            Rule(mean)
        with pytest.raises(ValueError, match="no rule"):
            ByteChunker(mean=mean)

    @pytest.mark.parametrize(
        "wrong", [{"least": 255}, {"norm": 4097}, {"norm": 255}, {"most": 1 << 41}, {"level": 127}, {"strict": -1}]
    )
    def test_rules_that_the_search_is_not_made_for(self, wrong: dict[str, int]) -> None:
        right = {"least": 256, "norm": 842, "most": 4096, "strict": 1, "loose": 2, "level": 111}
        native.rule(**right)
        with pytest.raises(ValueError, match="no rule"):
            native.rule(**(right | wrong))


class TestStream:
    @staticmethod
    def check(data: bytes, parts: list[int], mean: int) -> None:
        """Feed ``data`` in pieces of these lengths (the last one again and again)."""
        chunker, chunks, at = ByteChunker(mean=mean), [], 0
        while at < len(data):
            size = parts.pop(0) if len(parts) > 1 else parts[0]
            # A copy that is overwritten afterwards: chunks are taken from it at once.
            piece = bytearray(data[at : at + size])
            chunks += [bytes(chunk) for chunk in chunker.feed(piece)]
            piece[:] = b"\xaa" * len(piece)
            at += size
        chunks += [bytes(chunk) for chunk in chunker.finish()]
        assert b"".join(chunks) == data
        assert [len(chunk) for chunk in chunks] == np.diff([0, *ends_of(data, mean=mean)]).tolist()
        assert chunker.finish() == []

    @given(contents(), st.lists(st.integers(1, 30000), min_size=1, max_size=20))
    @settings(max_examples=100, deadline=None)
    def test_any_division(self, data: bytes, parts: list[int]) -> None:
        self.check(data, parts, SMALL)

    @pytest.mark.parametrize("size", [1, 255, 256, 4095, 4096, 4097, 8192, 100_000])
    def test_equal_pieces(self, size: int) -> None:
        self.check(make([["random", 12, 3], ["zeros", 3, 3], ["text", 5, 3]]), [size], SMALL)

    def test_default_mean(self, rnd: random.Random) -> None:
        data = make([["random", 700, 3], ["zeros", 300, 3], ["text", 300, 3]])
        self.check(data, [rnd.randint(1, 900_000) for _ in range(20)], 1 << 16)

    def test_one_stream_after_another(self) -> None:
        chunker = ByteChunker()
        for seed in range(3):
            data = make([["random", 90, seed]])
            chunks = chunker.feed(data) + chunker.finish()
            assert [len(chunk) for chunk in chunks] == np.diff([0, *ends_of(data, mean=1 << 16)]).tolist()


class TestRegion:
    @given(contents())
    @settings(max_examples=60, deadline=None)
    def test_equal_to_the_twin(self, data: bytes) -> None:
        assert as_records(cut_bytes(data)) == reference.cut_bytes(data)

    @given(
        st.lists(st.tuples(st.sampled_from(["zeros", "random", "text"]), st.integers(1, 300)), max_size=5),
        st.integers(0, 4095),
        st.integers(1 << 18, 1 << 20),
    )
    @settings(max_examples=60, deadline=None)
    def test_piece_by_piece(self, kinds: list[tuple[str, int]], less: int, piece: int) -> None:
        data = make([[kind, blocks, number] for number, (kind, blocks) in enumerate(kinds)])
        data = data[: max(0, len(data) - less)]
        records, seen = [], 0
        for seen, part in final_records(data, piece=piece):
            records += as_records(part)
            assert sum(record.length for record in records) <= seen
        assert seen == len(data)
        assert records == as_records(cut_bytes(data)) == reference.cut_bytes(data)

    def test_zeros(self) -> None:
        assert cut_bytes(b"").tolist() == []
        assert as_records(cut_bytes(bytes(1))) == [reference.Record(1, True)]
        assert as_records(cut_bytes(bytes((1 << 20) + 1))) == [reference.Record((1 << 20) + 1, True)]
        for at in (0, 1, (1 << 18) - 1, 1 << 18, (1 << 20) - 1):
            data = bytearray(1 << 20)
            data[at] = 1
            assert as_records(cut_bytes(data)) == reference.cut_bytes(bytes(data))


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.usefixtures("simd")
def test_golden(name: str) -> None:
    vector = VECTORS[name]
    data = content(vector)
    if "mean" in vector:
        lengths = np.diff([0, *ends_of(data, mean=vector["mean"])]).tolist()
        found = [reference.Record(length, False) for length in lengths]
    else:
        found = as_records(cut_bytes(data))
    assert expectation(found) == vector["expected"]


def test_vectors_are_what_the_twin_says() -> None:
    """So that a vector can only be wrong together with the specification."""
    for name, vector in VECTORS.items():
        options = {"mean": vector["mean"]} if "mean" in vector else {}
        assert expectation(reference.cut_bytes(content(vector), **options)) == vector["expected"], name


def test_through_the_chunker() -> None:
    region = make([["random", 900, 1], ["zeros", 900, 0], ["text", 300, 2]])
    lengths, digests = cut_and_digest(Kind.BYTES, region)
    assert lengths.tolist() == cut(Kind.BYTES, region).tolist() == cut_bytes(region).tolist()
    records, at, expected = as_records(lengths), 0, []
    for record in records:
        if not record.zero:
            expected.append(chunk_digest(region[at : at + record.length]))
        at += record.length
    assert [bytes(digest) for digest in digests] == expected
