"""Deltas: round trips over all kinds of change, the slow twin, damage, extremes, and the example of FORMAT.md."""

from __future__ import annotations

import hashlib
import random
import re
import struct
from pathlib import Path

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import KINDS, make

from trimtransfer import native
from trimtransfer.delta import MAX_TARGET, decode, encode
from trimtransfer.errors import FormatError

HEADER = 156


def program(rng: random.Random, functions: int, *, grown: frozenset[int] = frozenset()) -> bytes:
    """Code of the shape that compilers make: functions that call each other by distance; some have ``grown``."""
    bodies = [[rng.randbytes(rng.randint(4, 40)) for _ in range(rng.randint(1, 6))] for _ in range(functions)]
    calls = [[rng.randrange(functions) for _ in body] for body in bodies]
    sizes = [sum(map(len, body)) + 5 * len(body) + 48 * (number in grown) for number, body in enumerate(bodies)]
    starts = [sum(sizes[:number]) for number in range(functions)]
    code = bytearray()
    for number, body in enumerate(bodies):
        code += bytes(48 * (number in grown))
        for piece, called in zip(body, calls[number], strict=True):
            code += piece + b"\xe8"
            code += ((starts[called] - len(code) - 4) % 2**32).to_bytes(4, "little")
    return bytes(code)


def programs(seed: int, functions: int) -> tuple[bytes, bytes]:
    """Two builds of a program."""
    grown = frozenset(random.Random(seed + 1).sample(range(functions), functions // 40 + 1))
    return program(random.Random(seed), functions), program(random.Random(seed), functions, grown=grown)


def round_trip(base: bytes, target: bytes, *, level: int = 3) -> bytes:
    """Encode, decode by ours and by the slow twin, and return the delta."""
    delta = encode(base, target, level=level)
    assert decode(delta, base, limit=len(target)) == target
    assert reference.apply_delta(delta, base) == target
    return delta


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A base, and a target made of parts of it, moved, changed here and there, between bytes of its own."""
    pieces = st.tuples(st.sampled_from(sorted(KINDS)), st.just(1), st.integers(0, 300))
    base = make(draw(st.lists(pieces, max_size=3)))[: draw(st.integers(0, 3 * 4096))]
    target = bytearray()
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(base)))
        part = bytearray(base[start : start + draw(st.integers(0, 3000))])
        step, change = draw(st.integers(1, 90)), draw(st.integers(0, 255))
        for at in range(draw(st.integers(0, 50)), len(part), step):
            part[at] = (part[at] + change) % 256
        target += part + draw(st.binary(max_size=40))
    return base, bytes(target)


class TestRoundTrip:
    @given(pairs(), st.integers(1, 19))
    @settings(max_examples=100, deadline=None)
    def test_parts_moved_and_changed(self, pair: tuple[bytes, bytes], level: int) -> None:
        round_trip(*pair, level=level)

    @given(st.binary(max_size=300), st.binary(max_size=300))
    def test_anything(self, base: bytes, target: bytes) -> None:
        round_trip(base, target)

    @given(st.integers(0, 2**32), st.integers(1, 300))
    @settings(max_examples=25, deadline=None)
    def test_programs(self, seed: int, functions: int) -> None:
        base, target = programs(seed, functions)
        round_trip(base, target)
        round_trip(target, base)

    @given(pairs())
    @settings(max_examples=60, deadline=None)
    def test_pieces_cover_the_target(self, pair: tuple[bytes, bytes]) -> None:
        base, target = pair
        pieces = native.delta_pieces(base, target, price=72).tolist()
        assert sum(copied + literal for _, copied, literal in pieces) == len(target)
        assert all(start + copied <= len(base) for start, copied, _ in pieces)

    @given(pairs())
    @settings(max_examples=60, deadline=None)
    def test_both_with_and_without_sites(self, pair: tuple[bytes, bytes]) -> None:
        base, target = pair
        pieces = native.delta_pieces(base, target, price=72)
        for sites in (False, True):
            columns = native.delta_columns(base, target, pieces, sites=sites)
            made = native.delta_apply(base, [column.data for column in columns], len(target), sites=sites)
            assert made == target

    def test_several_files_as_one(self, seed: int) -> None:
        rng = random.Random(seed)
        files = [rng.randbytes(5000) for _ in range(4)]
        delta = round_trip(b"".join(files), b"".join(reversed(files)))
        assert len(delta) < 400

    def test_any_buffer(self) -> None:
        base, target = bytearray(b"abcdefgh" * 9), memoryview(b"abcdefgh" * 10)
        assert decode(memoryview(encode(base, target, level=3)), base) == target

    def test_the_same_twice(self, seed: int) -> None:
        base, target = programs(seed, 50)
        assert encode(base, target, level=9) == encode(base, target, level=9)


class TestSize:
    """What deltas are made for costs next to nothing."""

    def test_moved_code(self, seed: int) -> None:
        base, target = programs(seed, 4000)
        delta = round_trip(base, target, level=19)
        assert delta[10] == 1
        assert len(delta) < len(target) // 40  # 24,000 calls, of which most cross a place that has grown

    def test_entries_put_into_a_table(self, seed: int) -> None:
        """As in an object's relocations: an address, a kind and a distance that all move on, and nothing is equal."""
        rng = random.Random(seed)
        rows = [(8 * n, rng.choice([2, 11]), rng.randrange(1 << 20)) for n in range(20_000)]
        base = b"".join(struct.pack("<QQQ", 64 + at, kind, 4096 + to) for at, kind, to in rows)
        rows[5000:5000] = [(9, 9, 9)] * 7
        target = b"".join(struct.pack("<QQQ", 128 + at, kind, 8192 + to) for at, kind, to in rows)
        assert len(round_trip(base, target, level=19)) < 4000

    def test_other_bytes_in_the_middle(self, seed: int) -> None:
        """As a module's signature: of the same length, so that what follows is in its place again."""
        rng = random.Random(seed)
        base = rng.randbytes(100_000)
        target = base[:50_000] + rng.randbytes(512) + base[50_512:]
        delta = round_trip(base, target)
        assert len(delta) < HEADER + 512 + 40

    @pytest.mark.parametrize("change", ["equal", "shifted", "halves", "empty"])
    def test_little_changed(self, change: str, seed: int) -> None:
        base = random.Random(seed).randbytes(1 << 20)
        half = len(base) // 2
        target = {"equal": base, "shifted": b"x" + base[:-1], "halves": base[half:] + base[:half], "empty": b""}
        assert len(round_trip(base, target[change])) < 200


class TestExtremes:
    @pytest.mark.parametrize(
        ("base", "target"),
        [
            (b"", b""),
            (b"", b"abc" * 100),
            (b"abc" * 100, b""),
            (b"a", b"a"),
            (b"\0" * 11, b"\0" * 12),
            (b"\0" * 100_000, b"\0" * 70_000 + b"\1" + b"\0" * 30_000),
            (b"ab" * 50_000, b"ba" * 50_000),
            (bytes(range(256)) * 200, bytes(range(255, -1, -1)) * 200),
        ],
        ids=["empty", "no base", "no target", "one", "short", "zeros", "two", "reversed"],
    )
    def test_edges(self, base: bytes, target: bytes) -> None:
        round_trip(base, target)

    def test_sixteen_mib(self, seed: int) -> None:
        rng = random.Random(seed)
        base = rng.randbytes(16 << 20)
        target = bytearray(base[1000:] + rng.randbytes(1000))
        for _ in range(5000):
            at = rng.randrange(len(target) - 4)
            target[at : at + 4] = b"new!"
        delta = encode(base, target, level=1)
        assert len(delta) < 50_000
        assert decode(delta, base) == target
        zeros = bytes(MAX_TARGET)
        assert decode(encode(base, zeros, level=1), base) == zeros
        assert decode(encode(zeros, base, level=1), zeros) == base

    @pytest.mark.parametrize("period", [1, 2, 7, 8, 24, 500])
    def test_time_is_bounded_for_repetitions(self, period: int, seed: int) -> None:
        """Every gram everywhere, and never quite what is wanted: would take hours if work were not bounded."""
        rng = random.Random(seed)
        base = bytearray(rng.randbytes(period) * (1_000_000 // period))
        target = bytearray(base)
        for at in range(0, len(base), 700):
            base[at] ^= 1
        for at in range(0, len(target), 40):
            target[at] ^= 2
        delta = encode(base, target, level=1)
        assert decode(delta, base) == target

    @pytest.mark.parametrize("level", [0, 20, -1])
    def test_levels(self, level: int) -> None:
        with pytest.raises(ValueError, match="level"):
            encode(b"", b"", level=level)


def damaged(delta: bytes, base: bytes, limit: int) -> None:
    """Decoding ends in our error or in some target of the declared length."""
    try:
        target = decode(delta, base, limit=limit)
    except FormatError:
        return
    assert len(target) == int.from_bytes(delta[20:28], "little") <= limit


class TestDamage:
    @pytest.fixture(params=["plain", "sites"])
    def case(self, request: pytest.FixtureRequest) -> tuple[bytes, bytes, bytes]:
        base, target = programs(7, 12 if request.param == "plain" else 120)
        if request.param == "plain":
            target = target[:300] + b"something else" + base[:50]
        delta = encode(base, target, level=3)
        assert delta[10] == (request.param == "sites")
        return base, target, delta

    def test_every_byte(self, case: tuple[bytes, bytes, bytes]) -> None:
        base, target, delta = case
        for at in range(len(delta)):
            for flip in (1, 128, 255):
                wrong = bytearray(delta)
                wrong[at] ^= flip
                damaged(bytes(wrong), base, 2 * len(target))

    def test_every_truncation(self, case: tuple[bytes, bytes, bytes]) -> None:
        base, _, delta = case
        for size in range(len(delta)):
            with pytest.raises(FormatError):
                decode(delta[:size], base)
        with pytest.raises(FormatError):
            decode(delta + b"\0", base)

    def test_limits(self, case: tuple[bytes, bytes, bytes]) -> None:
        base, target, delta = case
        with pytest.raises(FormatError, match="at most"):
            decode(delta, base, limit=len(target) - 1)
        for other in (base + b"\0", base[1:], b""):
            with pytest.raises(FormatError, match="base"):
                decode(delta, other)

    def test_sizes_that_lie(self, case: tuple[bytes, bytes, bytes]) -> None:
        base, _, delta = case
        for at in range(12, HEADER, 8):
            for value in (1, 1 << 20, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1):
                wrong = delta[:at] + struct.pack("<Q", value) + delta[at + 8 :]
                with pytest.raises(FormatError):
                    decode(wrong, base)

    @given(st.lists(st.binary(max_size=60), min_size=8, max_size=8), st.binary(max_size=200), st.integers(0, 400))
    @settings(max_examples=400, deadline=None)
    def test_hostile_columns(self, columns: list[bytes], base: bytes, length: int) -> None:
        sizes = [size for column in columns for size in (len(column), len(column))]
        for sites in (0, 1):
            header = struct.pack("<8sHBxQQ16Q", b"TrimDelt", 1, sites, len(base), length, *sizes)
            delta = header + b"".join(columns)
            damaged(delta, base, length)

    @given(st.data(), st.integers(0, 1000), st.booleans())
    @settings(max_examples=300, deadline=None)
    def test_right_only_where_the_twin_agrees(self, data: st.DataObject, seed: int, sites: bool) -> None:
        """Changed columns: what ours accepts, the twin makes the same of."""
        base, target = programs(seed, 20)
        pieces = native.delta_pieces(base, target, price=72)
        columns = [bytes(column) for column in native.delta_columns(base, target, pieces, sites=sites)]
        number = data.draw(st.sampled_from([k for k in range(8) if columns[k]]))
        wrong = bytearray(columns[number])
        wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
        columns[number] = bytes(wrong)
        made = native.delta_apply(base, columns, len(target), sites=sites)
        sizes = [size for column in columns for size in (len(column), len(column))]
        header = struct.pack("<8sHBxQQ16Q", b"TrimDelt", 1, sites, len(base), len(target), *sizes)
        if isinstance(made, bytearray):
            assert made == reference.apply_delta(header + b"".join(columns), base)
        else:
            with pytest.raises((AssertionError, ValueError, IndexError, KeyError)):
                reference.apply_delta(header + b"".join(columns), base)


class TestFormat:
    def test_the_example_of_the_page(self) -> None:
        page = (Path(native.__file__).parent.parent / "FORMAT.md").read_text()
        (example,) = re.findall(r"```\n(5472696d 44656c74 [0-9a-f \n]*)```", page)
        delta = bytes.fromhex(example)
        base, target = b"The quick brown cat jumps over", b"The quick brown fox jumps over it."
        assert decode(delta, base) == reference.apply_delta(delta, base) == target
        assert encode(base, target, level=19) == delta

    @pytest.mark.parametrize("path", sorted((Path(__file__).parent / "golden").glob("delta_*.bin")), ids=str)
    def test_golden_deltas_stay_readable(self, path: Path) -> None:
        """``delta_SEED_FUNCTIONS_TARGET.bin``: made once of :func:`programs`; TARGET begins the target's SHA-256."""
        _, seed, functions, digest = path.stem.split("_")
        base, _ = programs(int(seed), int(functions))
        target = decode(path.read_bytes(), base)
        assert hashlib.sha256(target).hexdigest()[:16] == digest
