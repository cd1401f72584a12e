"""Units and indexes that name tools: made, read for ever, and refused where they break a rule."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_similar import edited
from vectors import make as content_of

from trimtransfer import unit
from trimtransfer.delta import encode
from trimtransfer.deltaindex import BASE, MAX_TOOLS, TARGET, UNIT, DeltaIndex, Units, encode_index
from trimtransfer.errors import FormatError
from trimtransfer.location import PackRef
from trimtransfer.tool import FITTING, Kind, Tool, Zstd, probe, usable
from trimtransfer.unit import MAX_CONTENT, MAX_INFLATED, Span, inflated, make, tools_of, wrap
from trimtransfer.wrapped import Unwrapping

GOLDEN = Path(__file__).parent / "golden" / "unit_2.json"
OLD = content_of([["words", 20, 1], ["text", 10, 2]])
LZMA2, ZSTD = Tool(Kind.LZMA2, 6, FITTING, 4, 93), Tool(Kind.ZSTD, 3, 0, Zstd.SIZE | Zstd.CHECKSUM)


def files(contents: tuple[bytes, bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Return two members with something around them, and where they lie."""
    first, second = LZMA2.compress(contents[0]), ZSTD.compress(contents[1])
    made = b"before" + first + b"between" * 20 + second + b"behind"
    return made, [(6, 6 + len(first)), (146 + len(first), 146 + len(first) + len(second))]


def unit_of(old: bytes, new: bytes) -> tuple[bytes, bytes, bytes]:
    """Return base, unit and what it makes."""
    half = len(old) // 2
    base, places = files((old[:half], old[half:]))
    target, ends = files((new[:half], new[half:]))
    opened = Unwrapping(memoryview(target), limit=MAX_CONTENT)
    for (low, high), content, tool in zip(ends, (new[:half], new[half:]), (LZMA2, ZSTD), strict=True):
        assert opened.take_made(low, high, content, tool, skip=0)
    made = opened.finish()
    assert made is not None
    sizes = half, len(old) - half
    spans = [
        Span(((low, high - low),), size=size, kind=tool.kind, before=before)
        for (low, high), size, tool, before in zip(places, sizes, (LZMA2, ZSTD), (4, 0), strict=True)
    ]
    spans.append(Span(((0, 6), (places[0][1], 140))))
    delta = encode(inflated(spans, base), made.content, level=9)
    return base, wrap(spans, made.record, delta, base=len(base)), target


@pytest.fixture(scope="module")
def remade() -> tuple[bytes, bytes, bytes]:
    return unit_of(OLD, edited(OLD, random.Random(5), 700))


def test_a_unit_makes_members_of_others(remade: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = remade
    assert make(stored, base, limit=len(target)) == target
    assert tools_of(stored) == (LZMA2, ZSTD)
    assert len(stored) < len(encode(base, target, level=19)) / 2
    with pytest.raises(FormatError):
        make(stored, base, limit=len(target) - 1)


def test_another_library_makes_something_else(remade: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = remade
    other = make(stored, base, limit=2 * len(target), compress=lambda tool, content: bytes(len(content)))
    assert other != target
    with pytest.raises(FormatError):
        make(stored, base, limit=len(target), compress=lambda tool, content: b"")


def test_spans_of_members_are_bounded() -> None:
    packed = ZSTD.compress(OLD)
    span = Span(((0, len(packed)),), size=len(OLD), kind=Kind.ZSTD)
    assert bytes(inflated([span], packed)) == OLD
    for wrong in (
        replace(span, size=len(OLD) - 1),
        replace(span, size=len(OLD) + 1),
        replace(span, size=0),
        replace(span, size=MAX_INFLATED + 1),
        replace(span, kind=Kind.LZMA2),
        replace(span, pieces=((0, len(packed) - 1),)),
    ):
        with pytest.raises(FormatError):
            inflated([wrong], packed)


def with_spans(body: str, like: Span, monkeypatch: pytest.MonkeyPatch, *, large: bool = False) -> bytes:
    """Return a wrapped unit of the format that ``like`` asks for, with these bytes in the place of its spans."""
    real = unit.codec.compress
    with monkeypatch.context() as patch:
        patch.setattr(unit.codec, "compress", lambda _, level: real(bytes.fromhex(body), level))
        return wrap([like], b"\x10", encode(b"", b"", level=1), base=0, large=large)


@pytest.mark.parametrize(
    "body",
    [
        "01",
        "01 01 01 00 00 00",
        "01 03 00 00 00 00",
        "01 02 00 00 04 00",
        "01 01 00 00 0a 01",
        "01 01 00 00 00 ff ff ff 7f",
        "01 00 00 00 3f",
    ],
)
def test_bodies_that_break_a_rule(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = with_spans(body, Span((), kind=Kind.ZSTD), monkeypatch)
    with pytest.raises(FormatError):
        make(stored, b"", limit=100)


@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_damaged_units(remade: tuple[bytes, bytes, bytes], at: int, bit: int) -> None:
    base, stored, target = remade
    damaged = bytearray(stored)
    damaged[at % len(stored)] ^= 1 << bit
    with contextlib.suppress(FormatError):
        assert len(make(damaged, base, limit=len(target))) <= len(target)
    with contextlib.suppress(FormatError):
        tools_of(damaged)


def test_golden() -> None:
    """What every version must make of a unit that was stored once, where the libraries still do as they did."""
    golden = json.loads(GOLDEN.read_text())
    stored, base = (bytes.fromhex("".join(golden[name])) for name in ("unit", "base"))
    assert [tool.to_bytes().hex() for tool in tools_of(stored)] == [tool for tool, _ in golden["tools"]]
    if usable([(bytes.fromhex(tool), bytes.fromhex(check)) for tool, check in golden["tools"]]) != 0b11:
        pytest.skip("a library that compresses otherwise")
    made = make(stored, base, limit=golden["size"])
    assert (len(made), hashlib.sha256(made).hexdigest()) == (golden["size"], golden["sha256"])


# ---- the index


def units() -> Units:
    """Two units, of which the second needs tools."""
    rows, targets, bases = np.zeros(2, UNIT), np.zeros(2, TARGET), np.zeros(1, BASE)
    for name, values in {"offset": (16, 116), "stored": (100, 200), "raw": (4096, 8192), "plain": (300, 400),
                         "targets": (1, 1), "bases": (0, 1), "tools": (0, 3), "work": (0, 1234)}.items():  # fmt: skip
        rows[name] = values
    rows["check"] = np.arange(32).reshape(2, 16)
    targets["record"], targets["count"], bases["record"], bases["count"] = (0, 5), 1, 7, 2
    return Units.of((PackRef(bytes(range(32)), 1000),), rows, targets, bases)


TOOLS = [(LZMA2.to_bytes(), b"a" * 16), (ZSTD.to_bytes(), b"b" * 16)]


def test_an_index_with_tools() -> None:
    data = encode_index(b"t" * 32, b"b" * 32, [(3, units())], TOOLS)
    index = DeltaIndex(data)
    assert index.tool_checks() == TOOLS
    found = index.units(3)
    assert found is not None
    assert (found.units == units().units).all()
    assert (found.bases == units().bases).all()
    golden = json.loads(GOLDEN.read_text())
    again = DeltaIndex(bytes.fromhex("".join(golden["index"]))).units(3)
    assert again is not None
    assert (again.units == units().units).all()


def test_an_index_without_tools_is_what_it_was() -> None:
    rows = units()
    rows.units["tools"] = rows.units["work"] = 0
    data = encode_index(b"t" * 32, b"b" * 32, [(3, rows)])
    assert data[8:12] == b"\1\0\0\0"
    assert DeltaIndex(data).tool_checks() == []


def test_indexes_that_break_a_rule() -> None:
    data = bytearray(encode_index(b"t" * 32, b"b" * 32, [(3, units())], TOOLS))
    for at, value in ((8, 1), (8, 3), (10, 0), (10, 1), (10, MAX_TOOLS + 1), (10, 3)):
        wrong = data.copy()
        wrong[at] = value
        with pytest.raises(FormatError):
            DeltaIndex(wrong)
    few = DeltaIndex(encode_index(b"t" * 32, b"b" * 32, [(3, units())], TOOLS[:1]))
    with pytest.raises(FormatError, match="tools below 1"):
        few.units(3)
    assert usable(TOOLS) == 0
    assert probe(LZMA2) != b""
