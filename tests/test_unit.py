"""Units: a delta between what is inside of compressed files makes the very same bytes; nothing is believed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deflating import deflated
from hypothesis import given
from hypothesis import strategies as st
from test_similar import edited
from vectors import make as content_of

import trimtransfer
from trimtransfer import native, unit
from trimtransfer.delta import encode
from trimtransfer.errors import FormatError
from trimtransfer.recompress import rewrap
from trimtransfer.unit import MAX_CONTENT, MAX_INFLATED, Span, inflated, is_wrapped, make, wrap
from trimtransfer.wrapped import Slice, Unwrapping, compressor_of, unwrap

GOLDEN = Path(__file__).parent / "golden" / "unit_1.json"
OLD = content_of([["words", 60, 1], ["text", 30, 2]])


def changed(data: bytes, seed: int = 5) -> bytes:
    """Return content with words changed all over, and bytes put in."""
    found = edited(data, random.Random(seed), 700)
    return found[:70_000] + b"put in" + found[70_000:]


def blocks_of(stream: bytes) -> tuple[np.ndarray, bytes]:
    """Return the rows of a raw stream's blocks, and its content."""
    out = np.empty(1 << 23, np.uint8)
    ends, _ = native.inflate_blocks(stream, out, bit=0, context=0, most=1 << 16)
    return ends, out[: int(ends[-1, 1])].tobytes()


def unit_of(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """Return a base - a gzip file with something around it - and the unit that makes the other gzip file of it."""
    stream = gzip.compress(old, 6, mtime=0)
    base, made = b"before" + stream + b"behind", unwrap(gzip.compress(new, 6, mtime=0), limit=MAX_CONTENT)
    assert made is not None
    ends, _ = blocks_of(stream[10:])
    spans = [Span(((16, len(stream) - 18),), len(ends), 0, len(old)), Span(((0, 6), (len(base) - 6, 6)))]
    delta = encode(inflated(spans, base), made.content, level=9)
    return base, wrap(spans, made.record, delta, base=len(base))


@pytest.fixture(scope="module")
def wrapped() -> tuple[bytes, bytes, bytes]:
    """Base, unit and what it makes."""
    base, stored = unit_of(OLD, changed(OLD))
    return base, stored, gzip.compress(changed(OLD), 6, mtime=0)


def test_a_unit_makes_a_compressed_file_of_another(wrapped: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = wrapped
    assert is_wrapped(stored)
    assert make(stored, base, limit=len(target)) == target
    plain = encode(base, target, level=19)
    assert not is_wrapped(plain)
    assert make(plain, base, limit=len(target)) == target
    assert len(stored) < len(plain) / 5


def test_what_it_makes_is_bounded(wrapped: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = wrapped
    with pytest.raises(FormatError, match="file of up to"):
        make(stored, base, limit=len(target) - 1)
    for other in (base[:-1], base + b"?", b""):
        with pytest.raises(FormatError, match="base of"):
            make(stored, other, limit=len(target))


def test_another_base_of_the_same_length_makes_something_else_or_nothing(wrapped: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = wrapped
    other = bytearray(base)
    other[len(base) // 2] ^= 4
    with contextlib.suppress(FormatError):
        assert make(stored, other, limit=len(target)) != target


def test_blocks_from_the_middle_of_a_stream() -> None:
    """What they refer to is not known: zeros, but the same for whoever decodes them."""
    stream = deflated([OLD], memory=3)
    ends, content = blocks_of(stream)
    first, last = len(ends) // 3, 2 * len(ends) // 3
    (begin, low), (end, high) = ends[first, :2].tolist(), ends[last, :2].tolist()
    span = Span(((begin // 8, (end + 7) // 8 - begin // 8),), last - first, begin % 8, high - low, 32768)
    found = bytes(inflated([span], stream))
    same = np.frombuffer(found, np.uint8) == np.frombuffer(content[low:high], np.uint8)
    assert 0 < same.mean() < 1
    assert bytes(inflated([replace(span, pieces=split(span.pieces[0]))], stream)) == found
    for wrong in (
        replace(span, blocks=span.blocks + 1),
        replace(span, blocks=span.blocks - 1),
        replace(span, size=span.size - 1),
        replace(span, size=span.size + 1),
        replace(span, bit=(span.bit + 1) % 8),
        replace(span, pieces=((0, len(stream) + 1),)),
    ):
        with pytest.raises(FormatError):
            inflated([wrong], stream)


def split(piece: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    start, length = piece
    return (start, 5), (start + 5, length - 5)


def test_slices_make_any_bytes_of_a_stream(rnd: random.Random) -> None:
    """Explained and rebuilt from whole blocks, cut to the byte, as ``Unwrapping`` does it."""
    done = 0
    for stream in (deflated([OLD], level=9), deflated([OLD[:50_000], OLD[50_000:]], level=5, flush=zlib.Z_FULL_FLUSH)):
        ends, content = blocks_of(stream)
        rows = np.concatenate((np.zeros((1, 3), np.int64), ends))
        for _ in range(8):
            first = rnd.randrange(len(ends))
            last = rnd.randint(first + 1, len(ends))
            begin, low, context = int(rows[first, 0]), int(rows[first, 1]), min(32768, int(rows[first, 1]))
            end = (int(rows[last, 0]) + 7 * (last == len(ends))) // 8
            flushed = bool((ends[:, 2] == 0).any()) and low < 50_000 < int(rows[last, 1])
            flushes = np.array([50_000 - low + context] if flushed else [], np.uint64)
            part = content[low - context : int(rows[last, 1])]
            skip = rnd.randint(1 if begin % 8 else 0, (end - begin // 8) // 2)
            by = Slice(stream[begin // 8 :], begin % 8, last - first, part, context, flushes, skip)
            compressor = compressor_of(by)
            if compressor is None:  # few bytes, or the beginning of an independent part: what lies before is misleading
                continue
            data = b"in front" + stream[begin // 8 + skip : end] + b"behind"
            opened = Unwrapping(memoryview(data), limit=1 << 20)
            if not opened.take_slice(8, len(data) - 6, by, compressor):
                continue
            done += 1
            made = opened.finish()
            assert made is not None
            assert rewrap(made.content, made.record, limit=len(data)) == data
    assert done > 8


def test_spans_are_bounded() -> None:
    base = bytes(1000)
    with pytest.raises(FormatError, match="bytes of chunks"):
        inflated([Span(((0, 1000),))] * 3, base)
    with pytest.raises(FormatError, match="at most"):
        inflated([Span(((0, 10),), 1, 0, MAX_INFLATED), Span(((0, 10),))], base)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01",
        b"\xff\xff\xff\x7f",
        bytes([1, 0, 200, 0]),
        bytes([1, 1, 0, 8, 0, 0]),
        bytes([1, 1, 0, 0, 0]),
        b"\0?",
    ],
)
def test_bodies_that_break_a_rule(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = unit.codec.compress
    with monkeypatch.context() as patch:
        patch.setattr(unit.codec, "compress", lambda _, level: real(body, level))
        stored = wrap([], b"\x10", encode(b"", b"", level=1), base=0)
    with pytest.raises(FormatError):
        make(stored, b"", limit=100)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_bounded(data: bytes) -> None:
    for start in (b"", unit.MAGIC, unit.MAGIC + b"\1\0\0\0" + (300).to_bytes(4, "little")):
        with contextlib.suppress(FormatError):
            assert len(make(start + data, bytes(300), limit=1000)) <= 1000


@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_damaged_units(wrapped: tuple[bytes, bytes, bytes], at: int, bit: int) -> None:
    base, stored, target = wrapped
    damaged = bytearray(stored)
    damaged[at % len(stored)] ^= 1 << bit
    with contextlib.suppress(FormatError):
        assert len(make(damaged, base, limit=len(target))) <= len(target)


def test_truncated_units(wrapped: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = wrapped
    for size in [*range(60), len(stored) // 2, len(stored) - 1]:
        with pytest.raises(FormatError):
            make(stored[:size], base, limit=len(target))


def example() -> tuple[bytes, bytes, bytes]:
    """Return base, unit and target of FORMAT.md's example."""
    page = (Path(trimtransfer.__file__).parent / "FORMAT.md").read_text()
    section = page[page.index("## Wrapped unit") : page.index("## Delta index")]
    base, stored = (bytes.fromhex(block) for block in re.findall(r"```\n([0-9a-f \n]+)```", section))
    (level,) = re.findall(r"of GNU gzip -(\d)", section)
    assert level == "9"
    text = b"The quick brown fox jumps over the lazy dog. " * 3 + b"It does."
    return base, stored, text


def test_the_example_of_the_format() -> None:
    base, stored, text = example()
    target = make(stored, base, limit=1000)
    assert gzip.decompress(target) == text
    assert gzip.decompress(base) == text.replace(b"fox", b"cat")


def test_golden() -> None:
    """What every version must make of a unit that was stored once."""
    golden = json.loads(GOLDEN.read_text())
    base = bytes.fromhex("".join(golden["base"]))
    made = make(bytes.fromhex("".join(golden["unit"])), base, limit=golden["size"])
    assert (len(made), hashlib.sha256(made).hexdigest()) == (golden["size"], golden["sha256"])
