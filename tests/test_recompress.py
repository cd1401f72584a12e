"""Recompression: zlib and gzip are predicted to the last bit, and any stream comes again exactly or not at all."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deflating import Bits, Token, Twin, compressor, deflated
from hypothesis import given
from hypothesis import strategies as st
from vectors import content as content_of

import trimtransfer.recompress
from trimtransfer import native
from trimtransfer.errors import FormatError
from trimtransfer.recompress import (
    GZIP_HEAD,
    MAX_PARTS,
    UNIX,
    VERSION,
    Part,
    gzip_check,
    number,
    rewrap,
    rewrap_pieces,
    sealed,
)
from trimtransfer.wrapped import COMPRESSORS, Unwrapped, explain, unwrap

GOLDEN = Path(__file__).parent / "golden" / "recompress.json"
ALL = 1 << 30
LEVELS = range(1, 10)


@pytest.fixture(scope="module")
def mixed() -> bytes:
    """Real text and programs, noise and zeros, in turn: stored, fixed and dynamic blocks come of it."""
    rng = random.Random(7)
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / "argparse.py", library / "typing.py", Path(native.__file__).parent.with_name("_native.abi3.so")]
    parts = [path.read_bytes()[:200_000] for path in files]
    parts += [rng.randbytes(70_000), bytes(5_000), b"ab" * 3000, rng.randbytes(40_000), parts[0][:30_000]]
    return b"".join(parts)


def explained(stream: bytes, by: bytes) -> tuple[native.Inflated, bytes, bool]:
    """Decode a stream, explain it by a compressor, and check that it comes again."""
    found = native.inflate(stream, limit=ALL)
    assert found is not None
    assert found.content.tobytes() == zlib.decompressobj(-15).decompress(stream)
    made = native.explain(stream, found, by, stop=ALL, room=16 * len(stream) + 4096)
    assert made is not None
    assert rebuilt(found.content.tobytes(), by, made[0]) == stream[: found.consumed]
    return found, *made


def rebuilt(content: bytes, by: bytes, record: bytes, room: int = native.REBUILD_ROOM) -> bytes:
    rebuilder, piece, parts, more = native.Rebuilder(content, by, record), np.empty(room, np.uint8), [], True
    while more:
        size, more = rebuilder.write(piece)
        parts.append(piece[:size].tobytes())
    return b"".join(parts)


def round_trip(data: bytes) -> Unwrapped:
    made = unwrap(data, limit=ALL)
    assert made is not None
    assert rewrap(made.content, made.record, limit=len(data)) == data
    return made


@pytest.mark.parametrize("memory", [8, 9])
@pytest.mark.parametrize("level", LEVELS)
def test_zlib_is_predicted_exactly(mixed: bytes, level: int, memory: int) -> None:
    found, _, right = explained(deflated([mixed], level=level, memory=memory), compressor(level, memory=memory))
    assert found.content.tobytes() == mixed
    assert right


@pytest.mark.parametrize("memory", range(1, 10))
def test_zlib_with_little_memory_is_predicted(mixed: bytes, memory: int) -> None:
    """Small blocks, and small hashes with many collisions; hashes below 8 bits do not exist."""
    stream = deflated([mixed], memory=memory)
    record = explained(stream, compressor(6, memory=memory))[1]
    assert len(record) * 50 < len(stream)


@pytest.mark.parametrize("window", range(9, 16))
def test_small_windows_are_predicted(mixed: bytes, window: int) -> None:
    stream = deflated([mixed], window=window)
    record = explained(stream, compressor(6, window=window))[1]
    assert len(record) * 100 < len(stream)


@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize(
    ("strategy", "ours"), [(zlib.Z_FILTERED, 1), (zlib.Z_RLE, 2), (zlib.Z_HUFFMAN_ONLY, 3), (zlib.Z_FIXED, 0)]
)
def test_strategies_are_predicted_exactly(mixed: bytes, level: int, strategy: int, ours: int) -> None:
    assert explained(deflated([mixed], level=level, strategy=strategy), compressor(level, strategy=ours))[2]


@pytest.mark.parametrize("level", LEVELS)
def test_gnu_gzip_is_predicted_exactly(mixed: bytes, level: int) -> None:
    packed = gnu_gzip(mixed, level)
    assert explained(packed[10:], compressor(level, gnu=True))[2]
    assert len(round_trip(packed).record) * 200 <= len(packed)


def gnu_gzip(data: bytes, level: int, *options: str) -> bytes:
    if shutil.which("gzip") is None:
        pytest.skip("no gzip here")
    return subprocess.run(["gzip", "-n", f"-{level}", *options], input=data, capture_output=True, check=True).stdout


def test_gnu_gzip_at_the_end_of_its_buffer(mixed: bytes) -> None:
    """Near the end of a full buffer GNU gzip looks for no matches; seldom it moves the buffer before that."""
    wrong = 0
    for length in (32768, 65536, 65536 + 3 * 32768):
        for more in (-300, -262, -261, -200, -100, -10, -1, 0, 1):
            data = (mixed * 2)[150_000 : 150_000 + length + more]
            wrong += not explained(gnu_gzip(data, 9)[10:], compressor(9, gnu=True))[2]
    assert wrong <= 3


@pytest.mark.parametrize("level", [0, *LEVELS])
@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH])
def test_flushed_streams_come_again(mixed: bytes, level: int, flush: int) -> None:
    """Pieces down to a byte, flushed: how zlib goes on behind a flush is predicted, but for a few tokens."""
    rng = random.Random(level)
    pieces, at = [], 0
    while at < len(mixed):
        size = rng.choice([1, 2, 3, 50, 1000, 20_000, 131_072])
        pieces.append(mixed[at : at + size])
        at += size
    stream = deflated(pieces, level=level, flush=flush)
    found = native.inflate(stream, limit=ALL)
    assert found is not None
    best = explain(stream, found)
    if level == 0:
        by, record = compressor(6), explained(stream, compressor(6))[1]
    else:
        assert best is not None
        by, record = best
        assert len(record) < 8 * len(pieces) + len(stream) // 200
    assert rebuilt(mixed, by, record) == stream
    assert not len(found.flushes) or found.crossing == (flush != zlib.Z_FULL_FLUSH and level > 0)


@pytest.mark.parametrize("options", [["-6"], ["-9"], ["-6", "-i"], ["-1", "-p", "1"], ["-9", "-z"]])
def test_pigz_is_predicted(mixed: bytes, options: list[str]) -> None:
    if shutil.which("pigz") is None:
        pytest.skip("no pigz here")
    packed = subprocess.run(["pigz", "-n", *options], input=mixed * 3, capture_output=True, check=True).stdout
    assert len(round_trip(packed).record) * 200 <= len(packed)


def test_the_twin_says_the_same(mixed: bytes, rnd: random.Random) -> None:
    """The slow twin, and streams of the tokens it chooses: explained without a correction."""
    for _ in range(12):
        start, size = rnd.randrange(len(mixed)), rnd.choice([0, 1, 2, 3, 4, 258, 259, 3000, 6000])
        data = mixed[start : start + size]
        by = compressor(rnd.randint(1, 9), gnu=rnd.random() < 0.3, window=rnd.choice([9, 12, 15]))
        tokens = Twin(data, by).tokens()
        record = bytes([1 | 4 | 16]) + number(len(tokens))
        stream = rebuilt(data, by, record)
        assert read_fixed(stream) == tokens
        assert zlib.decompress(stream, -15) == data


def read_fixed(stream: bytes) -> list[Token]:
    """Read the tokens of a stream of one fixed block, slowly."""
    value, at = int.from_bytes(stream, "little"), 3

    def take(bits: int) -> int:
        nonlocal at
        at += bits
        return value >> (at - bits) & ((1 << bits) - 1)

    def code(bits: int) -> int:
        return int(f"{take(bits):0{bits}b}"[::-1], 2)

    found = []
    while True:
        symbol = code(7)
        if symbol < 24:
            symbol += 256
        else:
            symbol = symbol * 2 + code(1)
            if symbol < 192:
                symbol -= 48
            elif symbol < 200:
                symbol += 280 - 192
            else:
                symbol = symbol * 2 + code(1) - 400 + 144
        if symbol == 256:
            return found
        if symbol < 256:
            found.append(Token(0, symbol))
            continue
        x = symbol - 257
        extra = 0 if x < 8 or x == 28 else x // 4 - 1
        length = 258 if x == 28 else 3 + (x if x < 8 else ((4 + x % 4) << extra) + take(extra))
        x = code(5)
        extra = 0 if x < 4 else x // 2 - 1
        found.append(Token(length, 1 + (x if x < 4 else ((2 + x % 2) << extra) + take(extra))))


def test_the_compressor_is_found(mixed: bytes) -> None:
    """Among all that are tried; small contents may be explained by several."""
    for level in (1, 4, 6, 7, 9):
        stream = deflated([mixed * 3], level=level)
        found = native.inflate(stream, limit=ALL)
        assert found is not None
        best = explain(stream, found)
        assert best is not None
        assert best[0] == compressor(level) or len(best[1]) <= len(stream) // 16_000 + 4
        assert best[0] in COMPRESSORS


def gzip_member(data: bytes, *, flags: int, level: int = 6) -> bytes:
    """A member with the optional fields that ``flags`` asks for."""
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\1\2\3\4\0\xff"
    head += b"\5\0extra" if flags & 4 else b""
    head += b"a name\0" if flags & 8 else b""
    head += b"a remark\0" if flags & 16 else b""
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little") if flags & 2 else b""
    return (
        head + deflated([data], level=level) + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    )


@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_gzip_heads(mixed: bytes, flags: int) -> None:
    member = gzip_member(mixed[:50_000], flags=flags)
    assert gzip.decompress(member) == mixed[:50_000]
    assert round_trip(member).content == mixed[:50_000]


def test_members_and_what_lies_behind_them(mixed: bytes) -> None:
    members = gzip_member(mixed, flags=8) + gnu_gzip(mixed[::-1], 9) + gzip_member(b"", flags=0)
    for tail in (b"", bytes(512), b"\x1f\x8b\x08 no member", mixed[:3000]):
        made = round_trip(members + tail)
        assert made.content.startswith(mixed + mixed[::-1])
        assert len(made.record) < 400


def test_zlib_and_zip_files(mixed: bytes) -> None:
    made = round_trip(zlib.compress(mixed, 9))
    assert made.content == mixed
    assert len(made.record) < 60
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(5):
            archive.writestr(f"entry {index}", mixed[index * 1000 :], compress_type=8 if index != 2 else 0)
        with archive.open("streamed", "w", force_zip64=True) as entry:
            entry.write(mixed)
    made = round_trip(file.getvalue())
    assert made.content.count(mixed[-1000:]) == 6 * mixed.count(mixed[-1000:])
    assert len(made.record) < 300
    code = "import sys, zipfile; zipfile.ZipFile(sys.stdout.buffer, 'w', 8).writestr('a', repr(list(range(9999))))"
    streamed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    assert repr(list(range(9999))).encode() in round_trip(streamed).content


def test_files_of_too_many_parts_are_not_unwrapped(mixed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    members = b"".join(gzip_member(mixed[:5000], flags=8) for _ in range(4))
    assert len(round_trip(members).content) == 20_000
    monkeypatch.setattr(trimtransfer.recompress, "MAX_PARTS", 11)
    assert unwrap(members, limit=ALL) is None


def test_what_is_not_unwrapped(mixed: bytes, rnd: random.Random) -> None:
    packed = gzip_member(mixed, flags=0)
    assert unwrap(packed, limit=len(mixed)) is not None
    assert unwrap(packed, limit=len(mixed) - 1) is None
    assert unwrap(packed[:-9], limit=ALL) is None
    assert unwrap(packed[:-8] + bytes(8), limit=ALL) is None
    assert unwrap(zlib.compress(mixed)[:-1] + b"?", limit=ALL) is None
    assert unwrap(gzip.compress(mixed, 0), limit=ALL) is not None
    for data in (b"", b"\x1f\x8b\x08", mixed, packed[:10], packed[:18], b"PK\3\4", b"PK\3\4" + bytes(26), b"\x78\x9c"):
        assert unwrap(data, limit=ALL) is None
    # A compressor that nobody predicts: literals and matches by chance.
    odd, size = Bits().put(3, 3), 0
    while size < 30_000:
        if size > 4 and rnd.random() < 0.5:
            odd.literal(257).code(rnd.randrange(4), 5)
        else:
            odd.literal(rnd.choice(b"ab"))
        size += 1
    stream = odd.literal(256).to_bytes()
    explained(stream, compressor(6))
    content = zlib.decompress(stream, -15)
    assert unwrap(gzip_head() + stream + gzip_check(content), limit=ALL) is None


def test_what_nobody_predicts_is_given_up_soon(mixed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of shortened matches: every compressor is tried on the first bytes only."""
    rng, content, at = random.Random(1), mixed[:180_000], 0
    tokens: list[tuple[int, int]] = []
    while at < len(content):
        size, start = min(rng.randint(3, 5), len(content) - at), max(0, at - 4000)
        back = at - start - content[start:at].rfind(content[at : at + size])
        tokens.append((size, back) if size >= 3 and back <= at - start else (1, 0))
        at += tokens[-1][0]
    stream = fixed_block(content, tokens)
    looked: list[int] = []
    real = native.explain

    def look(*arguments: Any, stop: int, room: int) -> tuple[bytes, bool] | None:
        looked.append(stop)
        return real(*arguments, stop=stop, room=room)

    monkeypatch.setattr(native, "explain", look)
    found = native.inflate(stream, limit=ALL)
    assert found is not None
    assert explain(stream, found) is None
    assert max(looked) <= 1 << 16


def fixed_block(content: bytes, tokens: list[tuple[int, int]]) -> bytes:
    """Write a stream of one fixed block: sizes and distances of tokens, 1 for literals."""
    bits, out, at = Bits().put(3, 3), bytearray(), 0
    for size, back in tokens:
        if size == 1:
            bits.literal(content[at])
        else:
            code = (
                back - 1
                if back <= 4
                else 2 * ((back - 1).bit_length() - 1) + (back - 1 >> (back - 1).bit_length() - 2 & 1)
            )
            extra = max(0, code // 2 - 1)
            bits.literal(257 + size - 3).code(code, 5).put(back - 1 & (1 << extra) - 1, extra)
        at += size
        if bits.size > 4096:
            whole = bits.size // 8
            out += (bits.value & (1 << 8 * whole) - 1).to_bytes(whole, "little")
            bits.value, bits.size = bits.value >> 8 * whole, bits.size - 8 * whole
    return bytes(out) + bits.literal(256).to_bytes()


def gzip_head() -> bytes:
    return GZIP_HEAD + bytes([0, UNIX])


ODD_STREAMS: dict[str, Callable[[], bytes]] = {
    "empty fixed": lambda: Bits().put(3, 3).literal(256).to_bytes(),
    "padding": lambda: Bits().put(3, 3).literal(65).literal(256).to_bytes(padding=21),
    "empty blocks": lambda: Bits().put(2, 3).literal(256).put(2, 3).literal(256).put(3, 3).literal(256).to_bytes(),
    "258 as code 284": lambda: (
        Bits().put(3, 3).literal(65).literal(284).put(31, 5).code(0, 5).literal(285).code(0, 5).literal(256).to_bytes()
    ),
    "stored padding": lambda: Bits().put(1, 3).put(19, 5).put(1, 16).put(0xFFFE, 16).put(65, 8).to_bytes(),
    "empty stored": lambda: Bits().put(1, 3).put(0, 5).put(0, 16).put(0xFFFF, 16).to_bytes(),
    "short matches": lambda: (
        Bits()
        .put(3, 3)
        .literal(65)
        .literal(65)
        .literal(65)
        .literal(257)
        .code(2, 5)
        .literal(257)
        .code(0, 5)
        .literal(258)
        .code(4, 5)
        .put(1, 1)
        .literal(256)
        .to_bytes()
    ),
    "no distances": lambda: no_distances(),
}


def no_distances() -> bytes:
    """A dynamic block whose only distance code has no bits, and lengths of 'A' and the end only."""
    bits = Bits().put(5, 3).put(0, 5).put(0, 5).put(14, 4)
    lengths = {18: 1, 1: 2, 0: 2}
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1):
        bits.put(lengths.get(symbol, 0), 3)
    bits.code(0, 1).put(65 - 11, 7).code(3, 2)  # 65 zeros, a one,
    bits.code(0, 1).put(127, 7).code(0, 1).put(190 - 138 - 11, 7).code(3, 2)  # 190 zeros, a one,
    return bits.code(2, 2).code(0, 1).code(0, 1).code(1, 1).to_bytes()  # and a zero; A A end


@pytest.mark.parametrize("name", ODD_STREAMS)
def test_odd_streams_come_again(name: str) -> None:
    stream = ODD_STREAMS[name]()
    for by in (compressor(6), compressor(1, gnu=True), compressor(9, strategy=2)):
        explained(stream, by)
        explained(stream + b"more", by)


streams = st.builds(
    lambda pieces, level, memory, window, strategy, flush: deflated(
        pieces, level=level, memory=memory, window=window, strategy=strategy, flush=flush
    ),
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.builds(lambda text, times: text * times, st.binary(max_size=20), st.integers(0, 300)),
        ),
        max_size=8,
    ),
    st.integers(0, 9),
    st.integers(1, 9),
    st.integers(9, 15),
    st.integers(0, 4),
    st.sampled_from([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_BLOCK]),
)
compressors = st.builds(
    lambda level, strategy, flags, bits, window, block: bytes(
        [level | strategy << 4 | flags << 6, bits | window << 4, block]
    ),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 8),
    st.integers(9, 15),
    st.integers(7, 15),
)


@given(streams, compressors)
def test_any_stream_comes_again_whatever_compressor_is_blamed(stream: bytes, by: bytes) -> None:
    explained(stream, by)


@given(streams, compressors, st.integers(0, 1 << 20), st.integers(0, 7))
def test_damaged_streams_are_refused_or_come_again(stream: bytes, by: bytes, at: int, bit: int) -> None:
    damaged = bytearray(stream)
    damaged[at % len(stream)] ^= 1 << bit
    other = zlib.decompressobj(-15)
    try:
        expected = other.decompress(damaged)
        accepted = other.eof
    except zlib.error:
        accepted = False
    found = native.inflate(damaged, limit=ALL)
    assert (found is not None) == accepted
    if found is not None:
        assert found.content.tobytes() == expected
        explained(bytes(damaged), by)


def test_damaged_real_streams(mixed: bytes, rnd: random.Random) -> None:
    stream = deflated([mixed[:60_000]], level=9)
    for _ in range(150):
        damaged = bytearray(stream)
        for _ in range(rnd.randint(1, 3)):
            damaged[rnd.randrange(len(stream))] ^= 1 << rnd.randrange(8)
        if native.inflate(damaged, limit=ALL) is not None:
            explained(bytes(damaged), compressor(9))


@given(st.binary(max_size=200), st.binary(max_size=400))
def test_hostile_records_are_refused_or_bounded(content: bytes, body: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert len(rewrap(content, bytes([VERSION << 4]) + body, limit=10_000)) <= 10_000


@given(compressors, st.binary(max_size=300), st.binary(max_size=300))
def test_hostile_blocks_are_refused_or_bounded(by: bytes, content: bytes, record: bytes) -> None:
    body = bytes([Part.DEFLATE]) + by + b"\0" + number(len(record)) + record
    try:
        made = rewrap(content, sealed(body), limit=100_000)
    except FormatError:
        return
    found = native.inflate(made, limit=ALL)  # it may be another content's, or none's
    assert found is None or len(made) <= 100_000


def test_mutated_records(mixed: bytes, rnd: random.Random) -> None:
    data = mixed[100_000:160_000]
    stream = deflated([data[:20_000], data[20_000:]], level=6, flush=zlib.Z_SYNC_FLUSH)
    by = compressor(4)  # many corrections
    record = explained(stream, by)[1]
    same = 0
    for _ in range(300):
        mutated = bytearray(record)
        mutated[rnd.randrange(len(record))] ^= 1 << rnd.randrange(8)
        if rnd.random() < 0.2:
            del mutated[rnd.randrange(len(mutated)) :]
        body = bytes([Part.DEFLATE]) + by + b"\0" + number(len(mutated)) + mutated
        try:
            same += rewrap(data, bytes([VERSION << 4]) + body, limit=ALL) == stream
        except FormatError:
            continue
    assert same <= 3


def test_limits() -> None:
    empty = bytes([Part.RAW, 0])
    assert rewrap(b"", bytes([VERSION << 4]) + empty * 1000, limit=0) == b""
    with pytest.raises(FormatError, match="used up"):
        rewrap(b"", sealed(empty * (MAX_PARTS + 1)), limit=1 << 20)
    with pytest.raises(FormatError, match="used up"):
        rewrap(b"more", bytes([VERSION << 4]) + empty, limit=100)
    with pytest.raises(FormatError, match="up to 3 bytes"):
        rewrap(b"more", bytes([VERSION << 4, Part.COPIED, 0]), limit=3)
    with pytest.raises(FormatError, match="version 1"):
        rewrap(b"", b"\x40", limit=100)
    with pytest.raises(FormatError, match="version 1"):
        rewrap(b"", b"", limit=100)
    with pytest.raises(FormatError, match="number below"):
        rewrap(b"", bytes([VERSION << 4, Part.COPIED]) + b"\xff" * 20, limit=100)
    with pytest.raises(FormatError, match="declared size up to"):
        rewrap(b"", sealed(bytes(1 << 20)), limit=1000)
    for by in (b"\x00\xf7\x0f", b"\x0a\xf7\x0f", b"\x06\xf9\x0f", b"\x06\x87\x0f", b"\x06\xf7\x06", b"\x06\xf7\x10"):
        with pytest.raises(FormatError, match="compressor"):
            rewrap(b"", bytes([VERSION << 4, Part.DEFLATE]) + by + b"\0\0", limit=100)


def test_memory_stays_bounded(mixed: bytes) -> None:
    """Beside content and record, 4 MiB, whatever the size; pieces of a MiB."""
    content = mixed * 12
    made = round_trip(gnu_gzip(content, 1))
    tracemalloc.start()
    sizes = [len(piece) for piece in rewrap_pieces(made.content, made.record, limit=ALL)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) <= 1 << 20
    assert peak < 4 << 20, peak


def test_content_in_a_view_and_small_pieces(mixed: bytes) -> None:
    stream = deflated([mixed], level=9)
    record = explained(stream, compressor(9))[1]
    assert rebuilt(mixed, compressor(9), record, room=native.REBUILD_ROOM) == stream
    assert rebuilt(mixed, compressor(9), record, room=1 << 24) == stream
    body = bytes([Part.DEFLATE]) + compressor(9) + b"\0" + number(len(record)) + record
    assert rewrap(memoryview(bytearray(mixed)), sealed(body), limit=len(stream)) == stream


def test_real_files(rnd: random.Random) -> None:
    """The compressed documents of this machine: all come again, and on the whole from next to nothing."""
    folders = [Path("/usr/share") / name for name in ("man", "doc", "info")]
    files = sorted(path for folder in folders for path in folder.rglob("*.gz") if path.is_file())
    files = [path for path in files if path.stat().st_size >= 128]  # for less no record pays
    if len(files) < 20:
        pytest.skip("no compressed documents here")
    whole = records = 0
    for path in rnd.sample(files, min(len(files), 150)):
        data = path.read_bytes()
        made = unwrap(data, limit=ALL)
        assert made is not None, path
        assert made.content == gzip.decompress(data)
        whole, records = whole + len(data), records + len(made.record)
    assert records * 200 <= whole


def test_the_example_of_the_format(mixed: bytes) -> None:
    page = (Path(native.__file__).parent.parent / "FORMAT.md").read_text()
    (found,) = re.findall(r"one block, all as predicted: `([0-9a-f ]+)`", page)
    record, data = bytes.fromhex(found), mixed[:3000]
    assert rewrap(data, record, limit=3000) == gnu_gzip(data, 9)
    assert round_trip(gnu_gzip(data, 9)).record == record


def golden() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text())
    return loaded


@pytest.mark.parametrize("name", golden())
def test_golden_records(name: str) -> None:
    """What every version must rebuild: the predictor is part of the format."""
    vector = golden()[name]
    content = content_of(vector)
    file = rewrap(content, bytes.fromhex(vector["record"]), limit=vector["size"])
    assert (len(file), hashlib.sha256(file).hexdigest()) == (vector["size"], vector["sha256"])
