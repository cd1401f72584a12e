"""Tools: what xz and zstd make is made again; hostile members are bounded; probes tell libraries apart."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import random
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from vectors import make as content_of

from trimtransfer import systemzstd
from trimtransfer import tool as tools
from trimtransfer.errors import FormatError
from trimtransfer.framed import Framed, member_starts, xz_block, zip_content, zstd_frame
from trimtransfer.recompress import MAX_REMADE, Part, number, record_tools, rewrap, sealed
from trimtransfer.repository.toolfinder import Member, Proven, ToolFinder, sort_of
from trimtransfer.tool import (
    FITTING,
    MAX_MEMORY,
    Kind,
    Tool,
    Zstd,
    decompress,
    dictionary,
    least_dictionary,
    probe,
    usable,
)
from trimtransfer.wrapped import Unwrapping

GOLDEN = Path(__file__).parent / "golden" / "tools.json"
CONTENT = content_of([["words", 60, 1], ["text", 30, 2], ["random", 4, 3], ["zeros", 5, 0]])
XZ = [["-6"], ["-9e"], ["-0"], ["-3"], ["--check=crc32", "--lzma2=dict=1MiB"], ["--x86", "--lzma2=preset=6e,lc=4"],
      ["-T2", "--block-size=100000"], ["--check=sha256", "-4"], ["--check=none", "-5e"]]  # fmt: skip
ALL = 1 << 14


def made_by(program: str, options: list[str], data: bytes) -> bytes:
    return subprocess.run([program, "-q", "-c", *options], input=data, capture_output=True, check=True).stdout


def members(file: bytes) -> list[tuple[int, Framed, Member]]:
    """Return the members of an xz or zstd file, each with its place, by the reader for publishers."""
    found, at, check = [], 0, None
    while True:
        if file.startswith(b"\x28\xb5\x2f\xfd"):
            framed = zstd_frame(file[at:], most=ALL)
        else:
            framed, check = xz_block(file[at:], check, most=ALL) or (None, check)
        if framed is None:
            return found
        stored = file[at + framed.head : at + framed.end]
        before = framed.option if framed.kind is Kind.LZMA2 else 0
        content = decompress(framed.kind, before, stored, framed.size if framed.size >= 0 else 1 << 22)
        found.append((at, framed, Member(framed, stored, content)))
        at += framed.following


@pytest.mark.parametrize("options", XZ, ids=" ".join)
def test_what_xz_makes_is_made_again(options: list[str]) -> None:
    file = made_by("xz", options, CONTENT)
    found = members(file)
    assert b"".join(member.content for _, _, member in found) == CONTENT
    assert len(found) == (1 if "-T2" not in options else -(-len(CONTENT) // 100_000))
    finder = ToolFinder()
    for _, framed, member in found:
        tool = finder.find(member)
        assert tool is not None
        assert tool.compress(member.content) == member.stored
        assert tool.memory(len(member.content)) <= MAX_MEMORY
        assert framed.size == len(member.content)


@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("level", [1, 3, 9, 15, 19])
@pytest.mark.parametrize("way", [0, Zstd.WORKERS, Zstd.STREAMED])
def test_what_this_libzstd_makes_is_made_again(way: int, level: int, checked: bool, size: bool) -> None:
    content = CONTENT * (2 if way else 1)
    how = {"write_checksum": checked, "write_content_size": size, "threads": 1 if way == Zstd.WORKERS else 0}
    compressor = zstandard.ZstdCompressor(level=level, **how)
    if way == 0 and size:
        file = compressor.compress(content)
    else:
        stream = compressor.compressobj(size=len(content) if size else -1)
        file = stream.compress(content) + stream.flush()
    ((at, framed, member),) = members(file + b"behind it")
    assert (at, framed.end, member.content) == (0, len(file), content)
    tool = ToolFinder().find(member)
    assert tool is not None
    assert tool.compress(content) == file


@pytest.mark.parametrize("options", [["-3"], ["-1", "-T2"], ["-9", "--no-check"], ["-19"], ["-3", "--single-thread"]])
@pytest.mark.parametrize("piped", [True, False])
def test_what_the_program_zstd_makes_is_made_again(options: list[str], piped: bool, tmp_path: Path) -> None:
    """By the system's library, where it is the program's release."""
    content = CONTENT * 2
    (tmp_path / "file").write_bytes(content)
    named = [] if piped else [str(tmp_path / "file")]
    file = made_by("zstd", options + named, content)
    ((_, _, member),) = members(file)
    finder = ToolFinder()
    tool = finder.find(member)
    if tool is None and (not systemzstd.is_there() or probe(SYSTEM) == probe(replace(SYSTEM, kind=Kind.ZSTD))):
        pytest.skip("no library of the program's release")
    assert tool is not None
    assert tool.compress(content) == file


SYSTEM = Tool(Kind.SYSTEM_ZSTD, 19, 0, Zstd.SIZE)


@pytest.mark.skipif(not systemzstd.is_there(), reason="the system has no libzstd")
@pytest.mark.parametrize("size", [0, 1, 1 << 17, (1 << 17) + 1, 700_000])
def test_the_systems_library(size: int, rnd: random.Random) -> None:
    content = (CONTENT * 2)[:size]
    for option in range(16):
        tool = Tool(Kind.SYSTEM_ZSTD, rnd.choice([1, 3, 9]), 0, option)
        file = tool.compress(content)
        assert zstandard.get_frame_parameters(file).has_checksum == bool(option & Zstd.CHECKSUM)
        assert zstandard.ZstdDecompressor().decompress(file, max_output_size=size + 1) == content
        begun = tool.beginning(content, 1 << 18)
        assert len(begun) <= len(file) + 64


def test_a_system_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemzstd, "_library", lambda: None)
    assert not systemzstd.is_there()
    with pytest.raises(FormatError, match="or later"):
        SYSTEM.compress(b"something")
    probe.cache_clear()
    assert usable([(SYSTEM.to_bytes(), bytes(16))]) == 0
    probe.cache_clear()


def test_frames_of_a_program_are_read_whatever_made_them() -> None:
    for options in (["-1"], ["-19"], ["--no-check"], ["--long=27"], ["-3", "--single-thread"]):
        file = made_by("zstd", options, CONTENT) * 2
        first, second = members(file)
        assert first[2].content == second[2].content == CONTENT
        assert first[0] == 0
        assert second[0] == len(file) // 2


def test_a_sort_that_nothing_makes_is_left_alone() -> None:
    finder = ToolFinder()
    framed = Framed(Kind.ZSTD, 0, 100, 100, Zstd.SIZE, 0, 0, 5000)
    wrong = Member(framed, b"something else", CONTENT[:5000])
    assert not finder.hopeless(wrong.sort)
    for _ in range(6):
        assert finder.find(wrong) is None
    assert finder.hopeless(sort_of(framed, 5000))
    assert not finder.hopeless(sort_of(framed, 500_000))


def test_what_was_proven_is_not_compressed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, _, member),) = members(made_by("xz", [], CONTENT))
    tool, proven = ToolFinder().find(member), Proven()
    assert tool is not None
    proven.add(tool, member)
    monkeypatch.setattr(Tool, "compress", lambda *_: b"")
    assert proven.compress(tool, memoryview(CONTENT)) == member.stored
    assert proven.compress(tool, CONTENT[1:]) == b""


# ---- limits


def test_memory_is_bounded() -> None:
    for tool in (Tool(Kind.LZMA2, 6, 24, 0, 93), Tool(Kind.LZMA2, 8, 40, 0, 93), Tool(Kind.ZSTD, 22, 0, Zstd.SIZE)):
        with pytest.raises(FormatError, match="at most"):
            tool.compress(bytes(12 << 20))
    assert Tool(Kind.LZMA2, 6, FITTING, 0, 93).memory(1 << 20) < 16 << 20


def test_dictionaries() -> None:
    assert [dictionary(code) for code in (0, 1, 12, 22, 39, 40)] == [4096, 6144, 1 << 18, 8 << 20, 3 << 30, 0xFFFFFFFF]
    for size in (0, 1, 4096, 4097, 1 << 20, (1 << 20) + 1):
        assert dictionary(least_dictionary(size)) >= max(size, 4096)
        assert size <= 4096 or dictionary(least_dictionary(size)) < 2 * size


@pytest.mark.parametrize("kind", Kind)
def test_more_content_than_was_said(kind: Kind) -> None:
    bomb = bytes(8 << 20)
    tool = Tool(kind, 1, 12 if kind is Kind.LZMA2 else 0, 0, 93 if kind is Kind.LZMA2 else 0)
    stored = tool.compress(bomb)
    assert len(stored) < 10_000
    assert decompress(kind, 0, stored, len(bomb)) == bomb
    for limit in (0, 1, 100_000, len(bomb) - 1):
        with pytest.raises(FormatError):
            decompress(kind, 0, stored, limit)
    for damaged in (stored[:-1], stored + b"?", stored[1:], b""):
        with pytest.raises(FormatError):
            decompress(kind, 0, damaged, len(bomb))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tool_or_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        tool = Tool.from_bytes(data[:5].ljust(5, b"\0"))
        assert tool.to_bytes() == data[:5].ljust(5, b"\0")
        with contextlib.suppress(FormatError):
            assert isinstance(tool.compress(data), bytes)


@given(st.binary(max_size=300), st.sampled_from(Kind), st.integers(0, 2000))
def test_any_bytes_are_decoded_or_refused(data: bytes, kind: Kind, limit: int) -> None:
    with contextlib.suppress(FormatError):
        assert len(decompress(kind, 0, data, limit)) <= limit


@given(st.binary(max_size=300), st.sampled_from([0, 1, 4, 10]))
def test_any_bytes_are_framed_or_not(data: bytes, check: int) -> None:
    for found in (
        zstd_frame(b"\x28\xb5\x2f\xfd" + data, most=100),
        (xz_block(data, check, most=100) or (None,))[0],
        (xz_block(b"\xfd7zXZ\0" + data, None, most=100) or (None,))[0],
    ):
        assert found is None or 0 <= found.head <= found.end <= len(data) + 6
    zip_content(b"PK\x03\x04" + data)


def test_damaged_frames(rnd: random.Random) -> None:
    for file in (made_by("xz", ["-1"], CONTENT[:50_000]), made_by("zstd", [], CONTENT[:50_000])):
        for _ in range(150):
            damaged = bytearray(file)
            damaged[rnd.randrange(len(file))] ^= 1 << rnd.randrange(8)
            with contextlib.suppress(FormatError):
                members(bytes(damaged[: rnd.randint(1, len(file))]))


def test_records_are_bounded() -> None:
    tool = Tool(Kind.ZSTD, 1, 0, Zstd.SIZE)
    content = b"abcdefgh" * 100
    made = tool.compress(content)
    part = bytes((Part.REMADE, 0)) + number(len(content) + 1)
    record = sealed(part + number(2) + number(len(made) - 3), [tool])
    assert record_tools(record, limit=1000) == (tool,)
    assert record_tools(sealed(b""), limit=1000) == ()
    assert rewrap(content, record, limit=1000) == made[2:-1]
    for wrong in (
        part + number(0) + number(len(made) + 1),
        part + number(len(made)) + number(1),
        part.replace(b"\0", b"\1", 1) + number(0) + number(1),
    ):
        with pytest.raises(FormatError):
            rewrap(content, sealed(wrong, [tool]), limit=1000)
    with pytest.raises(FormatError):
        rewrap(content, sealed(part + number(0) + number(1)), limit=1000)  # no tools, so no such part
    empty = bytes((Part.REMADE, 0, 1, 0, 0))
    with pytest.raises(FormatError, match="times"):
        rewrap(b"", sealed(empty * (MAX_REMADE + 1), [tool]), limit=1 << 20)


def test_taking_members_out() -> None:
    tool = Tool(Kind.LZMA2, 6, FITTING, 0, 93)
    first, second = CONTENT[:90_000], CONTENT[50_000:99_000]
    data = b"head" + tool.compress(first)[10:] + b"between" * 40 + tool.compress(second) + b"tail"
    opened = Unwrapping(memoryview(data), limit=1 << 20)
    low, high = 4, 4 + len(tool.compress(first)) - 10
    assert opened.take_made(low, high, first, tool, skip=10)
    assert opened.take_made(high + 280, len(data) - 4, second, tool, skip=0)
    assert not opened.take_made(len(data) - 4, len(data), bytes(1 << 20), tool, skip=0)
    made = opened.finish()
    assert made is not None
    assert rewrap(made.content, made.record, limit=len(data)) == data


# ---- starts


def test_starts_of_members(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("deflated", CONTENT[:5000], zipfile.ZIP_DEFLATED)
        file.writestr("stored", CONTENT[:5000], zipfile.ZIP_STORED)
    xz, zstd = made_by("xz", [], CONTENT), made_by("zstd", [], CONTENT)
    data = b"?" * 777 + out.getvalue() + b"PK\x03\x04" + bytes(40) + xz + b"x" + zstd
    starts = [777, len(data) - len(zstd) - 1 - len(xz), len(data) - len(zstd)]
    assert member_starts(data).tolist() == starts
    assert zip_content(data, 777) == (777 + 30 + len("deflated"), zip_size(out.getvalue()))
    assert member_starts(b"").tolist() == member_starts(np.zeros(5000, np.uint8).tobytes()).tolist() == []


def zip_size(data: bytes) -> int:
    return zipfile.ZipFile(io.BytesIO(data)).infolist()[0].compress_size


# ---- probes


def test_probes_tell_what_compresses_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Tool(Kind.LZMA2, 6, FITTING, 4, 93), Tool(Kind.LZMA2, 6, 18, 0, 93), Tool(Kind.ZSTD, 3, 0, Zstd.SIZE)]
    checks = [(tool.to_bytes(), probe(tool)) for tool in chosen]
    assert len({check for _, check in checks}) == 3
    assert usable(checks) == 0b111
    assert usable([(b"\x07\0\0\0\0", checks[0][1]), *checks, (checks[0][0], bytes(16))]) == 0b01110
    probe.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(tools, "_LZMA2", (*tools._LZMA2[:6], (lzma.MODE_NORMAL, lzma.MF_BT4, 63, 0), *tools._LZMA2[7:]))
        assert usable(checks) == 0b100
    probe.cache_clear()


def test_the_text_of_probes() -> None:
    """FORMAT.md, "Tool": it is written down by everybody in the same way."""
    text = tools._text()
    golden = json.loads(GOLDEN.read_text())
    assert (len(text), hashlib.sha256(text).hexdigest()) == (golden["text"]["size"], golden["text"]["sha256"])
    for stored, check in golden["liblzma"].items():
        if probe(Tool.from_bytes(bytes.fromhex(stored))).hex() != check:
            pytest.skip("this liblzma does otherwise than 5.2 to 5.8: units made with those fall back")
