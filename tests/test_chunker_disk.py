"""Chunker 1: block hints and the cut rule for disk images, on every instruction set, against the slow twin."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import DISK, KINDS, content, expectation, load, make

from trimtransfer import chunker, native
from trimtransfer.chunk import BLOCK_SIZE, MAX_CHUNK_SIZE, REGION_SIZE, Kind, chunk_digest, region_digest, region_hasher
from trimtransfer.chunker import ZERO, cut, cut_and_digest

VECTORS = load(DISK)
SIZES = [0, 1, 15, 16, 17, 4095, 4096, 4097, 8191, 8192, 8193, 65536, 300_001]


@pytest.fixture(params=native.available(), ids=lambda path: path.name.lower())
def simd(request: pytest.FixtureRequest) -> Iterator[native.Simd]:
    """Every instruction set that this machine has, one after the other."""
    yield native.select(request.param)
    native.select(None)


def records(region: bytes) -> list[reference.Record]:
    lengths = cut(Kind.DISK, region)
    return [reference.Record(int(length & ~ZERO), bool(length & ZERO)) for length in lengths]


def as_arrays(blocks: list[reference.Block]) -> tuple[np.ndarray, np.ndarray]:
    flags = [1 if block.zero else 2 if block.zero_tail else 0 for block in blocks]
    return np.array([block.mixed for block in blocks], np.uint32), np.array(flags, np.uint8)


def hints(data: bytes | memoryview) -> tuple[np.ndarray, np.ndarray]:
    blocks = -(-len(data) // BLOCK_SIZE)
    mixed, flags = np.zeros(blocks, np.uint32), np.full(blocks, 255, np.uint8)
    native.hints(data, mixed, flags)
    return mixed, flags


def check_hints(data: bytes) -> None:
    mixed, flags = hints(data)
    expected_mixed, expected_flags = as_arrays(reference.blocks_of(data))
    assert mixed.tolist() == expected_mixed.tolist()
    assert flags.tolist() == expected_flags.tolist()


# Images in miniature: runs of blocks of the kinds that the rule tells apart, and an end at any byte.
pieces = st.lists(
    st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 90), st.integers(0, 2**16)),
    max_size=12,
)


@st.composite
def images(draw: st.DrawFn) -> bytes:
    data = make(draw(pieces))
    return data[: max(0, len(data) - draw(st.integers(0, 2 * BLOCK_SIZE)))]


class TestHints:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.usefixtures("simd")
    def test_equal_to_the_xxhash_package(self, size: int) -> None:
        check_hints(random.Random(size).randbytes(size))

    @pytest.mark.usefixtures("simd")
    def test_any_alignment(self) -> None:
        data = random.Random(1).randbytes(3 * BLOCK_SIZE + 100 + 64)
        for offset in range(64):
            view = memoryview(data)[offset : offset + 3 * BLOCK_SIZE + 100]
            mixed, flags = hints(view)
            expected = as_arrays(reference.blocks_of(bytes(view)))
            assert (mixed.tolist(), flags.tolist()) == (expected[0].tolist(), expected[1].tolist())

    @pytest.mark.usefixtures("simd")
    def test_flags_see_every_byte(self) -> None:
        for at in [0, 1, 7, 8, 63, 64, 2048, 4079, 4080, 4081, 4087, 4088, 4095]:
            block = bytearray(BLOCK_SIZE)
            block[at] = 1
            assert hints(bytes(block))[1].tolist() == [2 if at < 4080 else 0]

    @pytest.mark.usefixtures("simd")
    def test_zeros(self) -> None:
        for size in SIZES:
            check_hints(bytes(size))

    @settings(max_examples=40, deadline=None)
    @given(images())
    def test_paths_agree(self, data: bytes) -> None:
        results = []
        for path in native.available():
            native.select(path)
            results.append([array.tolist() for array in hints(data)])
        native.select(None)
        assert all(result == results[0] for result in results)

    def test_zero_blocks_never_cut(self) -> None:
        """Else a chunk of zeros could follow a cut inside a short run of zero blocks."""
        assert reference.blocks_of(bytes(BLOCK_SIZE))[0].mixed >= 2**32 // 12


# Blocks for the rule alone: every threshold is met exactly, one below and one above.
edges = [0, 2**32 // 48 - 1, 2**32 // 48, 2**32 // 12 - 1, 2**32 // 12, 2**32 - 1]
kinds_of_block = st.one_of(
    st.just(reference.Block(2**32 - 1, False, False)),
    st.builds(reference.Block, st.sampled_from(edges), st.just(False), st.booleans()),
    st.just(reference.Block(2**31, True, False)),
)
runs_of_blocks = st.lists(st.tuples(kinds_of_block, st.integers(1, 70)), max_size=30)


class TestRule:
    @settings(max_examples=500, deadline=None)
    @given(runs_of_blocks)
    def test_equal_to_the_twin(self, runs: list[tuple[reference.Block, int]]) -> None:
        self.check([block for block, count in runs for _ in range(count)])

    @pytest.mark.parametrize("seed", range(20))
    def test_whole_regions(self, seed: int) -> None:
        """Regions of 16,384 blocks with up to one chunk per block."""
        rng = random.Random(seed)
        often = rng.choice([0.02, 0.3, 0.5, 0.5, 0.55, 0.8, 1.0])
        zeros = rng.choice([0.0, 0.0, 0.05, 0.5])
        self.check([self.any_block(rng, often, zeros) for _ in range(16384)])

    def test_a_record_for_every_block(self) -> None:
        ends, zero = reference.Block(0, False, False), reference.Block(2**31, True, False)
        for blocks in ([ends] * 16384, [ends, zero] * 8192):
            assert len(native.cut(*as_arrays(blocks))) == 16384
            self.check(blocks)

    @staticmethod
    def any_block(rng: random.Random, often: float, zeros: float) -> reference.Block:
        if rng.random() < zeros:
            return reference.Block(2**31, True, False)
        ends = rng.random() < often
        return (
            reference.Block(2**32 - 1, False, True)
            if ends and rng.random() < 0.5
            else reference.Block(0 if ends else 2**32 - 1, False, False)
        )

    @staticmethod
    def check(blocks: list[reference.Block]) -> None:
        runs = native.cut(*as_arrays(blocks))
        got = [reference.Record(int(run & 0x7FFFFFFF), bool(run >> 31)) for run in runs]
        assert got == reference.cut_blocks(blocks)

    def test_zero_runs_by_example(self) -> None:
        """Each case of the rule for runs of zero blocks: d data, e data that ends a chunk, 0 zero."""
        cases = {
            "ddd0000ddd": "3 Z4 3",  # four zero blocks
            "ddd000ddd": "9",  # three are data
            "dde0ddd": "3 Z1 3",  # follows a cut
            "0ddd": "Z1 3",  # touches the start
            "ddd0": "3 Z1",  # touches the end
            "0": "Z1",
            "dde0": "3 Z1",
            "d" * 63 + "000" + "d": "64 3",  # cut by length inside a run that is data: so is its rest
            "d" * 64 + "000" + "d": "64 Z3 1",
            "d" * 62 + "000" + "d" * 2: "64 3",
        }
        meaning = {
            "d": reference.Block(2**32 - 1, False, False),
            "e": reference.Block(2**32 - 1, False, True),
            "0": reference.Block(2**31, True, False),
        }
        for text, expected in cases.items():
            blocks = [meaning[letter] for letter in text]
            runs = native.cut(*as_arrays(blocks))
            assert " ".join(f"{'Z' * int(run >> 31)}{run & 0x7FFFFFFF}" for run in runs) == expected, text
            self.check(blocks)


class TestCut:
    @pytest.mark.usefixtures("simd")
    @settings(max_examples=60, deadline=None)
    @given(images())
    def test_equal_to_the_twin(self, data: bytes) -> None:
        assert records(data) == reference.cut_disk(data)

    @given(images())
    @settings(max_examples=100, deadline=None)
    def test_covers_the_region(self, data: bytes) -> None:
        at = 0
        for length, zero in records(data):
            assert length > 0
            assert at % BLOCK_SIZE == 0
            assert zero == (not any(data[at : at + length]))
            assert zero or length <= MAX_CHUNK_SIZE
            at += length
        assert at == len(data)

    @given(images(), images(), images())
    @settings(max_examples=100, deadline=None)
    def test_equal_content_is_cut_equally(self, one: bytes, other: bytes, common: bytes) -> None:
        """From the first common cut on, the cuts of a common rest are the same, whatever lies before it."""
        ends = []
        for before in (one, other):
            before = before.ljust(-(-len(before) // BLOCK_SIZE) * BLOCK_SIZE, b"\1")
            found, at = [], -len(before)
            for length, zero in records(before + common):
                if at >= 0:
                    found.append((at, length, zero))
                at += length
            ends.append(found)
        shared = {at for at, _, zero in ends[0] if not zero} & {at for at, _, zero in ends[1] if not zero}
        if shared:
            first = min(shared)
            assert [r for r in ends[0] if r[0] >= first] == [r for r in ends[1] if r[0] >= first]

    def test_a_whole_region(self) -> None:
        """64 MiB, then one byte less; zeros, small files, large files."""
        rng = random.Random(7)
        parts = []
        while sum(map(len, parts)) < REGION_SIZE:
            kind = rng.choice(["zeros", "random", "file", "files", "sparse"])
            parts.append(make([[kind, rng.randint(1, 300), rng.randint(0, 99)]]))
        region = b"".join(parts)[:REGION_SIZE]
        assert records(region) == reference.cut_disk(region)
        assert records(region[:-1]) == reference.cut_disk(region[:-1])

    def test_sizes_at_the_edge(self) -> None:
        assert records(b"") == []
        assert records(b"\0") == [reference.Record(1, True)]
        assert records(b"\1") == [reference.Record(1, False)]
        assert records(bytes(REGION_SIZE)) == [reference.Record(REGION_SIZE, True)]
        with pytest.raises(ValueError, match="at most"):
            cut(Kind.DISK, bytes(REGION_SIZE + 1))

    def test_any_buffer(self) -> None:
        data = make([["random", 30, 1], ["zeros", 9, 0], ["file", 3, 2]])
        for buffer in (bytearray(data), memoryview(data), memoryview(bytearray(data)).cast("H")):
            assert cut(Kind.DISK, buffer).tolist() == cut(Kind.DISK, data).tolist()
        with pytest.raises((ValueError, BufferError)):
            cut(Kind.DISK, memoryview(data)[::2])

    def test_threads(self) -> None:
        regions = [make([["random", 900, seed], ["zeros", 5, 0], ["file", 40, seed]]) for seed in range(8)]
        expected = [records(region) for region in regions]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(records, regions * 4)) == expected * 4


def check_digests(data: bytes) -> None:
    """``cut_and_digest`` against the twin's records and hashing each of them by itself."""
    hasher = region_hasher()
    lengths, digests = cut_and_digest(Kind.DISK, data, content=hasher)
    twin = reference.cut_disk(data)
    assert [reference.Record(int(length & ~ZERO), bool(length & ZERO)) for length in lengths] == twin
    starts = np.cumsum([0, *(length for length, _ in twin)])
    chunks = [data[at : at + length] for at, (length, zero) in zip(starts, twin, strict=False) if not zero]
    assert digests.shape == (len(chunks), 32)
    assert digests.tobytes() == b"".join(map(chunk_digest, chunks))
    assert hasher.digest() == region_digest(data)
    assert cut_and_digest(Kind.DISK, data)[0].tolist() == lengths.tolist()


class TestCutAndDigest:
    @settings(max_examples=150, deadline=None)
    @given(images(), st.integers(1, 40))
    def test_pieces_change_nothing(self, data: bytes, blocks: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunker, "_PIECE", blocks * BLOCK_SIZE)
            check_digests(data)

    @pytest.mark.parametrize("text", [
        "d" * 63 + "000" + "d" * 9 + "e" + "d" * 9,  # cut by length inside a short run of zeros, which is data
        "d" * 62 + "00" + "d" * 62 + "000" + "d" * 65 + "0ed",
        "ddd0" * 40,  # no piece may end a chunk at such a run,
        "ddd0000" * 20,  # unless the run is long enough,
        "dde0d" * 20,  # or follows a cut
        "d" * 64 + "000" + "d" * 64 + "0" + "d" * 64 + "00",
    ])  # fmt: skip
    def test_zero_runs_across_pieces(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pieces that end anywhere near short runs of zeros: d data, e data that ends a chunk, 0 zero."""
        block = {"d": make([["text", 1, 9]]), "e": make([["file", 1, 1]]), "0": bytes(BLOCK_SIZE)}
        data = b"".join(block[letter] for letter in text)
        for blocks in range(1, len(text) + 1):
            monkeypatch.setattr(chunker, "_PIECE", blocks * BLOCK_SIZE)
            assert cut_and_digest(Kind.DISK, data)[0].tolist() == cut(Kind.DISK, data).tolist(), blocks
        check_digests(data)

    @pytest.mark.parametrize("name", VECTORS)
    def test_golden(self, name: str) -> None:
        check_digests(content(VECTORS[name]))

    def test_too_long(self) -> None:
        with pytest.raises(ValueError, match="at most"):
            cut_and_digest(Kind.DISK, bytes(REGION_SIZE + 1))


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.usefixtures("simd")
def test_golden(name: str) -> None:
    vector = VECTORS[name]
    assert expectation(records(content(vector))) == vector["expected"]


class TestChoice:
    def test_select(self) -> None:
        for path in native.available():
            assert native.select(path) == path == native.selected()
        assert native.select(None) == max(native.available())

    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match="2 hints and 1 flags"):
            native.cut(np.zeros(2, np.uint32), np.zeros(1, np.uint8))
        with pytest.raises(TypeError):
            native.cut(np.zeros(2, np.int64), np.zeros(2, np.uint8))
        with pytest.raises(ValueError, match="1 hints and 1 flags for 4097 bytes"):
            native.hints(bytes(4097), np.zeros(1, np.uint32), np.zeros(1, np.uint8))

    @pytest.mark.parametrize("path", native.available(), ids=lambda path: path.name.lower())
    def test_environment(self, path: native.Simd) -> None:
        assert self.run(path.name.lower()) == (0, f"{int(path)}\n")

    def test_environment_refused(self) -> None:
        code, text = self.run("mmx")
        assert code != 0
        assert "TRIMTRANSFER_SIMD=mmx" in text

    @staticmethod
    def run(value: str) -> tuple[int, str]:
        program = "from trimtransfer import native; print(int(native.selected()))"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=dict(os.environ, TRIMTRANSFER_SIMD=value),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


def test_vectors_are_what_the_twin_says() -> None:
    """So that a vector can only be wrong together with the specification."""
    for name, vector in VECTORS.items():
        assert expectation(reference.cut_disk(content(vector))) == vector["expected"], name
