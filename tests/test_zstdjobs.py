"""Jobs of zstd frames: what programs with several threads make is told apart, decoded and made again job by job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from test_inside import MIB, programs
from test_similar import edited
from test_unit_tools import with_spans
from vectors import make as content_of

from trimtransfer import systemzstd, unit, zstdjobs
from trimtransfer.assembly.turns import Turns
from trimtransfer.chunk import Bytes
from trimtransfer.delta import encode
from trimtransfer.errors import FormatError
from trimtransfer.recompress import Part, number, record_tools, rewrap, sealed
from trimtransfer.repository.largeframes import LargeFrame, read_large_frame
from trimtransfer.tool import MAX_MEMORY, Kind, Tool, Zstd, probe, usable
from trimtransfer.unit import MAX_CONTENT, MAX_CONTENT_JOBS, MAX_INFLATED, Span, inflated, is_large, make, wrap
from trimtransfer.wrapped import Unwrapping

GOLDEN = Path(__file__).parent / "golden" / "unit_3.json"
KINDS = [Kind.ZSTD, *([Kind.SYSTEM_ZSTD] if systemzstd.is_there() else [])]
JOB = Tool(Kind.ZSTD, 3, 10, Zstd.JOBS)
WORDS = content_of([["words", 20, 1], ["text", 10, 2]])


@pytest.fixture(scope="module")
def content() -> bytes:
    """Real programs, as a boot image has them."""
    return b"".join(programs(40 * MIB).values())


def read(frame: bytes, *, most: int = 1 << 40) -> tuple[LargeFrame | None, bytes]:
    """Return a frame as publishers read it, and its content."""
    kept = list[bytes]()
    found = read_large_frame(
        lambda offset, length: frame[offset : offset + length], lambda view: kept.append(bytes(view)), most=most
    )
    return found, b"".join(kept)


def by_program(options: list[str], data: bytes, path: Path | None) -> bytes:
    """Return what the program makes of data, through a pipe or of a file by its name."""
    if path is not None:
        path.write_bytes(data)
    command = ["zstd", "-q", "-c", *options, *([str(path)] if path else [])]
    return subprocess.run(command, input=None if path else data, capture_output=True, check=True).stdout


def ways(frame: LargeFrame, kind: Kind, level: int, first: int, last: int) -> Tool:
    """Return the tool of some of its jobs."""
    ends = frame.whole and frame.jobs[last] == len(frame.bits) - 1
    before = zstdjobs.overlap_of(level) if first else 0
    return Tool(kind, level, before, Zstd.JOBS | Zstd.ENDS * bool(ends))


def jobs_made(
    stored: bytes, content: bytes, kind: Kind, level: int, *, together: int = 1, alone: bool = True
) -> list[bool]:
    """Return of each run of jobs whether it is made again."""
    frame, known = read(stored)
    assert frame is not None
    assert known == content
    assert frame.whole
    assert frame.size == len(stored)
    right = []
    for first in range(0, len(frame.jobs) - 1, together):
        last = min(first + together, len(frame.jobs) - 1)
        tool = ways(frame, kind, level, first, last)
        begin, end = (int(frame.contents[frame.jobs[job]]) for job in (first, last))
        low, high = (int(frame.bits[frame.jobs[job]]) // 8 for job in (first, last))
        needs = content[begin - tool.before : end]
        assert tool.memory(len(needs)) <= MAX_MEMORY
        right.append(tool.compress(needs) == stored[low:high])
        if not first or not alone:
            continue
        context = content[begin - (1 << frame.framed.window) if begin > 1 << frame.framed.window else 0 : begin]
        blocks = int(frame.jobs[first + 1] - frame.jobs[first])
        middle, size = (int(frame.contents[frame.jobs[first + 1]]), int(frame.bits[frame.jobs[first + 1]]) // 8)
        assert zstdjobs.decode(stored[low:size], blocks, middle - begin, context) == content[begin:middle]
    return right


CASES = {"-1": (1, 7), "-3": (3, 20), "-9": (9, 19)}
"""Level, and MiB of content, of which several jobs come."""


@pytest.mark.slow
@pytest.mark.parametrize("piped", [True, False])
@pytest.mark.parametrize("threads", ["-T0", "-T2", "-T1"])
@pytest.mark.parametrize("option", CASES)
def test_what_the_program_makes_is_made_again(
    option: str, threads: str, piped: bool, content: bytes, tmp_path: Path
) -> None:
    """By the system's library, where it is the program's release."""
    level, size = CASES[option]
    data = content[: size * MIB + 12_345]
    stored = by_program([option, threads], data, None if piped else tmp_path / "file")
    right = jobs_made(stored, data, KINDS[-1], level, together=2 if level == 1 else 1)
    assert len(right) > 1
    program = Tool(Kind.SYSTEM_ZSTD, 3, 0, Zstd.CHECKSUM)
    if KINDS[-1] is Kind.ZSTD or program.compress(WORDS) != by_program(["-3"], WORDS, None):
        pytest.skip("no library of the program's release")
    assert all(right)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "size"), [(1, 7), (5, 20), (8, 20), (10, 18), (13, 18)])
def test_what_this_library_makes_is_made_again(level: int, size: int, content: bytes) -> None:
    data = content[: size * MIB + 777]
    stored = zstandard.ZstdCompressor(level=level, threads=2, write_checksum=bool(level % 2)).compress(data)
    assert all(jobs_made(stored, data, Kind.ZSTD, level))


@pytest.mark.parametrize("piped", [True, False])
def test_content_of_exactly_some_jobs(piped: bool, content: bytes, tmp_path: Path) -> None:
    """Through a pipe an empty block follows the last job; by name the last block of the job is the last one."""
    data = content[: 6 * MIB]
    stored = by_program(["-1", "-T2"], data, None if piped else tmp_path / "file")
    frame, known = read(stored)
    assert frame is not None
    assert known == data
    assert len(frame.jobs) == 4
    assert (int(frame.jobs[-1]) < len(frame.bits) - 1) == piped
    right = jobs_made(stored, data, KINDS[-1], 1)
    assert right == [True] * 3 or KINDS[-1] is Kind.ZSTD


def test_frames_that_have_no_jobs(content: bytes) -> None:
    """One thread goes on with its tables: where it looks as if there were jobs, no tool makes them."""
    for options in (["-1", "--single-thread"], ["-3", "--single-thread"]):
        data = content[: 19 * MIB]
        stored = by_program(options, data, None)
        frame, _ = read(stored)
        assert frame is not None
        if frame.whole:
            assert sum(jobs_made(stored, data, KINDS[-1], int(options[0][1:]), alone=False)) <= 1
    for options in (["-19", "-T2"], ["--long=27", "-1"], ["--ultra", "-20"]):
        assert read(by_program(options, content[: 2 * MIB], None))[0] is None
    for other in (b"", b"\x28\xb5\x2f\xfd", b"PK\x03\x04" + bytes(100), content[:1000]):
        assert read(other) == (None, b"")


def test_damaged_frames_end_before_the_damage(content: bytes, rnd: random.Random) -> None:
    data = content[: 7 * MIB]
    stored = by_program(["-1", "-T2"], data, None)
    for _ in range(12):
        damaged = bytearray(stored)
        at = rnd.randrange(len(stored))
        damaged[at] ^= 1 << rnd.randrange(8)
        frame, known = read(bytes(damaged[: rnd.choice([len(stored), rnd.randrange(len(stored))])]))
        if frame is not None:
            assert len(known) >= frame.contents[-1]
            assert (np.diff(frame.bits) > 0).all()
            assert (np.diff(frame.jobs) > 0).all()
            assert int(frame.jobs[-1]) <= len(frame.bits) - 1
            assert frame.whole or frame.contents[frame.jobs[-1]] % (2 * MIB) == 0
    frame, known = read(stored, most=3 * MIB)
    assert frame is not None
    assert not frame.whole
    assert (frame.contents[-1], len(frame.jobs)) == (2 * MIB, 2)


# ---- decoding


def blocks_of(content: bytes, before: int = 0, *, level: int = 3) -> tuple[bytes, int]:
    """Return the blocks of a job, and how many they are."""
    stored = zstdjobs.compress(content, level, before=before, ends=False)
    at = count = 0
    while at < len(stored):
        head = int.from_bytes(stored[at : at + 3], "little")
        at, count = at + 3 + (1 if head >> 1 & 3 == 1 else head >> 3), count + 1
    return stored, count


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_needs_what_lies_before_it(kind: Kind) -> None:
    before, new = WORDS[: 1 << 16], WORDS[1 << 15 : 3 << 15]
    tool = Tool(kind, 5, 16, Zstd.JOBS)
    stored = tool.compress(before + new)
    assert len(stored) < len(replace(tool, window=0).compress(new)) * 0.8
    assert zstdjobs.decode(stored, 1, len(new), before) == new
    assert zstdjobs.decode(stored, 1, len(new), b"x" * 999 + before) == new
    assert zstdjobs.decode(stored, 1, len(new), bytes(len(before))) != new
    ended = replace(tool, option=Zstd.JOBS | Zstd.ENDS).compress(before + new)
    assert bytes([ended[0] & 254]) + ended[1:] == stored


def test_what_is_referred_to() -> None:
    before, new = WORDS[: 1 << 16], WORDS[1 << 15 : 3 << 15]
    stored, count = blocks_of(before + new, len(before))
    for skip in (0, 30_000):
        found, least = zstdjobs.referred(stored, count, len(new), skip=skip, reach=len(before))
        assert 0 < len(found) <= least <= len(before)
        known = np.zeros(least, np.uint8)
        lacking = found - (len(before) - least)
        known[lacking] = np.frombuffer(before, np.uint8)[found]
        assert zstdjobs.decode(stored, count, len(new), known.tobytes())[skip:] == new[skip:]
    alone, count = blocks_of(new)
    assert zstdjobs.referred(alone, count, len(new), skip=0, reach=1000)[1] == 0


def test_blocks_that_break_a_rule() -> None:
    stored, count = blocks_of(WORDS[:40_000])
    last = bytes([stored[0] | 1]) + stored[1:]
    for wrong, blocks, size in (
        (stored, count + 1, 40_000), (stored + b"\0", count, 40_000), (stored[:-1], count, 40_000),
        (stored, count, 39_999), (stored, count, 40_001), (b"", 0, 40_000), (b"", 1, 1), (last * 2, 2, 80_000),
        (b"\xff\xff\xff" + bytes(200_000), 1, 10),
    ):  # fmt: skip
        with pytest.raises(FormatError):
            zstdjobs.decode(wrong, blocks, size, b"")
    bomb, count = blocks_of(bytes(8 << 20))
    assert len(bomb) < 4000
    with pytest.raises(FormatError):
        zstdjobs.decode(bomb, count, 1000, b"")


@given(st.binary(max_size=300), st.integers(0, 5), st.integers(0, 2000), st.integers(0, 50))
def test_any_bytes_are_blocks_or_refused(data: bytes, count: int, size: int, before: int) -> None:
    with contextlib.suppress(FormatError):
        assert len(zstdjobs.decode(data, count, size, bytes(before))) == size


# ---- tools


@pytest.mark.parametrize("kind", KINDS)
def test_tools_of_jobs(kind: Kind) -> None:
    tool = Tool(kind, 9, 20, Zstd.JOBS | Zstd.ENDS)
    assert Tool.from_bytes(tool.to_bytes()) == tool
    assert (tool.before, replace(tool, window=0).before) == (1 << 20, 0)
    for wrong in (replace(tool, window=9), replace(tool, window=22), replace(tool, option=Zstd.ENDS),
                  replace(tool, option=Zstd.JOBS | Zstd.CHECKSUM), replace(tool, option=64), replace(tool, props=1),
                  replace(tool, option=0)):  # fmt: skip
        with pytest.raises(FormatError):
            Tool.from_bytes(wrong.to_bytes())
    for size in (0, 1 << 20):
        with pytest.raises(FormatError, match="more than"):
            tool.compress(bytes(size))
    with pytest.raises(FormatError, match="at most"):
        Tool(kind, 19, 0, Zstd.JOBS).compress(bytes(32 << 20))
    probes = {probe(replace(tool, level=level, window=window)) for level in (1, 9) for window in (0, 17)}
    assert len(probes) == 4
    assert b"" not in probes
    assert probe(tool) == probe(replace(tool, window=18))  # the text is short
    assert usable([(tool.to_bytes(), probe(tool)), (tool.to_bytes(), bytes(16))]) == 1


def test_pieces_of_what_a_tool_makes() -> None:
    """Bytes of jobs that lie in several places are made once."""
    tool, content = replace(JOB, window=0), WORDS[:60_000]
    made = tool.compress(content)
    data = b"head" + made[5:900] + b"between" * 30 + made[900:-7] + b"tail"
    opened = Unwrapping(memoryview(data), limit=1 << 20)
    assert not opened.take_more(4, 899, skip=5)
    assert opened.take_made(4, 899, content, tool, skip=5)
    assert opened.take_more(899 + 210, len(data) - 4, skip=900)
    unwrapped = opened.finish()
    assert unwrapped is not None
    assert len(unwrapped.content) == len(content) + 210
    assert record_tools(unwrapped.record, limit=len(data)) == (tool,)
    calls = list[int]()

    def compress(tool: Tool, content: Bytes) -> bytes:
        calls.append(len(content))
        return tool.compress(content)

    assert rewrap(unwrapped.content, unwrapped.record, limit=len(data), compress=compress) == data
    assert calls == [len(content)]
    remade = bytes((Part.REMADE, 0)) + number(len(content) + 1) + number(0) + number(1)
    more = bytes([Part.MORE]) + number(len(made) - 3)
    assert rewrap(content, sealed(remade + more + number(3), [tool], more=True), limit=99) == made[:1] + made[-3:]
    for wrong, version in ((remade + more + number(4), True), (more + number(1) + remade, True),
                           (remade + more + number(3), False), (remade + more, True)):  # fmt: skip
        with pytest.raises(FormatError):
            rewrap(content, sealed(wrong, [tool], more=version), limit=99)


# ---- units


def unit_of(old: bytes, new: bytes) -> tuple[bytes, bytes, bytes]:
    """Return base, unit and what it makes: jobs of 1,024 bytes before them, and what follows."""
    (first, many), (second, more) = blocks_of(old[:30_000]), blocks_of(old[29_000:], 1000)
    base = b"head" + first + second + b"tail"
    made = JOB.compress(new)
    target = b"some head" + made + b"check"
    opened = Unwrapping(memoryview(target), limit=MAX_CONTENT_JOBS)
    assert opened.take_made(12, 9 + len(made), new, JOB, skip=3)
    unwrapped = opened.finish()
    assert unwrapped is not None
    before = old[29_000:30_000]
    spans = [
        Span(((4, len(first)),), many, size=29_000, skip=1000, job=True),
        Span(((4 + len(first), len(second)),), more, size=len(old) - 30_000, unknown=600, job=True,
             context=bytes(50) + before[:400]),
        Span(((0, 4),)),
    ]  # fmt: skip
    given = bytes(inflated(spans, base, large=True))
    assert given == old[1000:] + b"head"
    delta = encode(given, unwrapped.content, level=9)
    return base, wrap(spans, unwrapped.record, delta, base=len(base), large=True), target


@pytest.fixture(scope="module")
def remade() -> tuple[bytes, bytes, bytes]:
    return unit_of(WORDS, edited(WORDS, random.Random(5), 700))


def test_a_unit_makes_jobs_of_others(remade: tuple[bytes, bytes, bytes]) -> None:
    base, stored, target = remade
    assert is_large(stored)
    assert not is_large(encode(base, target, level=1))
    assert make(stored, base, limit=len(target)) == target
    assert len(stored) < len(encode(base, target, level=19)) / 2
    with pytest.raises(FormatError):
        make(stored, base, limit=len(target) - 1)


def test_spans_of_jobs_are_bounded() -> None:
    packed, count = blocks_of(WORDS[:50_000])
    span = Span(((0, len(packed)),), count, size=40_000, skip=10_000, job=True)
    assert bytes(inflated([span], packed, large=True)) == WORDS[10_000:50_000]
    for wrong in (replace(span, size=40_001), replace(span, skip=9_999), replace(span, blocks=count + 1),
                  replace(span, unknown=1), replace(span, pieces=((0, len(packed) - 1),))):  # fmt: skip
        with pytest.raises(FormatError):
            inflated([wrong], packed, large=True)
    zeros, count = blocks_of(bytes(12 << 20))
    many = [Span(((0, len(zeros)),), count, size=1, skip=(12 << 20) - 1, job=True)] * 7
    started = time.monotonic()
    with pytest.raises(FormatError):
        inflated(many, zeros + bytes(3 * len(zeros)), large=True)
    assert time.monotonic() - started < 1
    with pytest.raises(FormatError, match="at most"):
        inflated([Span(((0, len(zeros)),), count, size=12 << 20, job=True)] * 3, zeros * 3, large=True)


@pytest.mark.parametrize(
    "body",
    [
        "01 04 00 00 00 01 00 00",
        "01 04 01 00 00 00 00 00",
        "01 04 01 00 01 80 80 80 08 00 00",
        "01 04 01 00 00 01 81 80 80 02 00",
        "01 04 01 00 00 01 00 05 00",
        "01 04 01 00 00 01 00",
        "01 05 00 00 00 01",
        "01 04 01 01 00 05 00 01 00 00",
    ],
)
def test_bodies_that_break_a_rule(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = with_spans(body, Span((), 1, job=True, size=1), monkeypatch, large=True)
    with pytest.raises(FormatError):
        make(stored, b"", limit=100)


def test_only_a_large_unit_may_be_large() -> None:
    content = bytes(MAX_CONTENT + 1)
    record = Unwrapping(memoryview(content), limit=MAX_CONTENT_JOBS)
    assert record.copy_to(len(content))
    span = Span(((0, 10),), 1, size=1, job=True)
    small = bytearray(wrap([span], b"\x10", encode(b"", content, level=1), base=10, large=True))
    assert is_large(small)
    for version in (1, 2, 4):
        small[8] = version
        with pytest.raises(FormatError):
            make(small, bytes(10), limit=100)
    assert MAX_INFLATED < unit.MAX_INFLATED_JOBS


@given(st.integers(0, 1 << 20), st.integers(0, 7))
def test_damaged_units(remade: tuple[bytes, bytes, bytes], at: int, bit: int) -> None:
    base, stored, target = remade
    damaged = bytearray(stored)
    damaged[at % len(stored)] ^= 1 << bit
    with contextlib.suppress(FormatError):
        assert len(make(damaged, base, limit=len(target))) <= len(target)


def test_golden() -> None:
    """What every version must make of a unit that was stored once, where the library still does as it did."""
    golden = json.loads(GOLDEN.read_text())
    stored, base = (bytes.fromhex("".join(golden[name])) for name in ("unit", "base"))
    assert [tool.to_bytes().hex() for tool in unit.tools_of(stored)] == [tool for tool, _ in golden["tools"]]
    if usable([(bytes.fromhex(tool), bytes.fromhex(check)) for tool, check in golden["tools"]]) != 1:
        pytest.skip("a library that compresses otherwise")
    made = make(stored, base, limit=golden["size"])
    assert (len(made), hashlib.sha256(made).hexdigest()) == (golden["size"], golden["sha256"])


# ---- turns


def test_one_that_is_alone_has_all() -> None:
    turns, inside, most = Turns(2), list[bool](), list[list[bool]]()

    def work(alone: bool) -> None:
        for _ in range(30):
            with turns.taken(alone=alone):
                inside.append(alone)
                most.append(inside.copy())
                time.sleep(0.0005)
                inside.remove(alone)

    threads = [threading.Thread(target=work, args=(number % 3 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 180
    assert max(map(len, most)) == 2
    assert all(len(found) == 1 for found in most if True in found)
