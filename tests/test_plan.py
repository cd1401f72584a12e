"""Planning, each function beside a slow and obvious twin, and whole plans carried out in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.fetchplan import FetchPlan, Located, frame_tasks, plan_fetch
from trimtransfer.assembly.plan import GAP, Groups, Window, coalesce, runs, same_place
from trimtransfer.assembly.report import CATEGORIES, Content, estimate_seconds
from trimtransfer.chunk import BLOCK_SIZE, chunk_digest
from trimtransfer.errors import FormatError
from trimtransfer.location import FRAME, RUN, Locations, PackRef
from trimtransfer.table import ZERO, Table

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12)
RECORDS = st.lists(st.integers(-3, 5), min_size=1, max_size=30)
"""Negative: a run of so many zero blocks; else the number of a chunk."""


CHECK = [0] * 16


def data_of(number: int) -> bytes:
    """Return the content of chunk ``number``: one to three blocks that tell their number."""
    return bytes([number + 1]) * (BLOCK_SIZE * (1 + number % 3))


def table_of(records: list[int]) -> Table:
    """Return the table of such records, zero runs side by side made one."""
    lengths: list[int] = []
    digests: list[bytes] = []
    for record in records:
        if record >= 0:
            lengths.append(len(data_of(record)))
            digests.append(chunk_digest(data_of(record)))
        elif lengths and lengths[-1] & ZERO:
            lengths[-1] += -record * BLOCK_SIZE
        else:
            lengths.append(-record * BLOCK_SIZE | ZERO)
    names = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
    return Table.from_records(np.array(lengths, dtype=np.uint32), names)


def bytes_of(records: list[int]) -> bytes:
    """Return the region that such records describe."""
    return b"".join(data_of(record) if record >= 0 else bytes(-record * BLOCK_SIZE) for record in records)


def window_of(*regions: list[int]) -> Window:
    """Return a window of regions that follow each other."""
    tables = [table_of(records) for records in regions]
    starts = np.cumsum([0, *(table.size for table in tables)])[:-1].tolist()
    return Window.of(list(range(len(tables))), starts, tables)


# ---- extents


@given(PIECES)
def test_extents_against_a_map_of_bytes(pieces: list[tuple[int, int]]) -> None:
    positions = [1000 * n for n in range(len(pieces))]
    where: dict[int, int] = {}
    for (offset, length), position in zip(pieces, positions, strict=True):
        where.update({offset + n: position + n for n in range(length)})
    columns = np.array(pieces, dtype=np.int64).reshape(-1, 2)
    extents = Extents.of(columns[:, 0], columns[:, 1], np.array(positions, dtype=np.int64))
    assert extents.size == len(where)
    asked = [(offset, length) for offset in range(0, 75, 3) for length in range(1, 16, 2)]
    offsets, lengths = np.array(asked, dtype=np.int64).T
    covered = extents.covers(offsets, lengths)
    located = extents.locate(offsets, lengths)
    for n, (offset, length) in enumerate(asked):
        places = [where.get(offset + k) for k in range(length)]
        assert covered[n] == (None not in places)
        if located[n] >= 0:
            assert places == list(range(int(located[n]), int(located[n]) + length))
        elif None not in places and offset in (p[0] for p in pieces):
            assert places != list(range(places[0], places[0] + length))  # type: ignore[arg-type]


def test_no_extents() -> None:
    none = Extents.none()
    assert (none.size, len(none)) == (0, 0)
    assert not none.covers(np.array([0]), np.array([1])).any()
    assert (none.locate(np.array([0]), np.array([1])) == -1).all()


# ---- requests and runs


@given(PIECES, st.integers(0, 8), st.integers(5, 40))
def test_coalesce(pieces: list[tuple[int, int]], gap: int, limit: int) -> None:
    pieces = sorted((offset, length + 1) for offset, length in pieces)
    columns = np.array(pieces, dtype=np.int64).reshape(-1, 2)
    found = coalesce(columns[:, 0], columns[:, 1], gap=gap, limit=limit)
    assert [n for piece in found for n in range(piece.first, piece.last)] == list(range(len(pieces)))
    for piece in found:
        mine = pieces[piece.first : piece.last]
        assert piece.start == mine[0][0]
        assert piece.end == max(offset + length for offset, length in mine)
        assert piece.end - piece.start <= max(limit, *(length for _, length in mine))
    for one, other in itertools.pairwise(found):
        joined = max(one.end, pieces[other.first][0] + pieces[other.first][1]) - one.start
        assert other.start - one.end > gap or joined > limit, "these could share a request"


@given(st.lists(RECORDS, min_size=1, max_size=3), st.data())
def test_runs_cover_the_chosen_records(regions: list[list[int]], data: st.DataObject) -> None:
    window = window_of(*regions)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(window), max_size=len(window))))
    limit = data.draw(st.sampled_from([BLOCK_SIZE, 3 * BLOCK_SIZE, 1 << 20]))
    found = runs(window, chosen, limit=limit)
    assert [n for run in found for n in range(run.first, run.last)] == np.flatnonzero(chosen).tolist()
    for run in found:
        assert run.offset == window.offsets[run.first]
        assert run.length == int(window.lengths[run.first : run.last].sum())
        assert run.length <= limit + int(window.lengths[run.last - 1])


# ---- chunks


@given(st.lists(RECORDS, min_size=1, max_size=3))
def test_groups_are_the_equal_chunks(regions: list[list[int]]) -> None:
    window = window_of(*regions)
    groups = Groups.of(window, np.flatnonzero(~window.zero))
    expected: dict[bytes, list[int]] = {}
    for record in np.flatnonzero(~window.zero).tolist():
        expected.setdefault(window.digests[record].tobytes(), []).append(record)
    found = [groups.order[a:b].tolist() for a, b in zip(groups.starts[:-1], groups.starts[1:], strict=True)]
    assert sorted(found) == sorted(expected.values())
    numbers = groups.numbers(len(window))
    assert (numbers[window.zero] == -1).all()
    for number, members in enumerate(found):
        assert (numbers[members] == number).all()


def test_different_chunks_with_one_prefix_stay_apart() -> None:
    window = window_of([0, 1, 0, 1, 2])
    window.digests[:, :8] = 7
    window = Window(**{**{name: getattr(window, name) for name in Window.__slots__}, "prefixes": window.prefixes * 0})
    groups = Groups.of(window, np.arange(5))
    for first, last in zip(groups.starts[:-1], groups.starts[1:], strict=True):
        assert len({window.digests[record].tobytes() for record in groups.order[first:last]}) == 1
    assert sorted(groups.order.tolist()) == [0, 1, 2, 3, 4]


@given(RECORDS, RECORDS)
def test_same_place_never_claims_other_bytes(old: list[int], new: list[int]) -> None:
    """What it claims is there byte for byte, and every chunk with the same offset and digest is found."""
    window, table = window_of(new), table_of(old)
    same = same_place(window, 0, 0, table)
    before, after = bytes_of(old), bytes_of(new)
    known = {(int(o), d.tobytes()) for o, d, z in zip(table.offsets, table.digests, table.zero, strict=True) if not z}
    for n in range(len(window)):
        start, end = int(window.offsets[n]), int(window.offsets[n]) + int(window.lengths[n])
        if same[n]:
            assert before[start:end] == after[start:end]
        elif not window.zero[n]:
            assert (start, window.digests[n].tobytes()) not in known


# ---- fetching


def pack_of(chunks: list[list[int]], name: int) -> tuple[PackRef, list[tuple[int, int, bytes]]]:
    """Return a pack of plain frames, each with these chunks, and (offset, length, content) of each frame."""
    at, frames = 16, []
    for members in chunks:
        raw = b"".join(map(data_of, members))
        frames.append((at, len(raw), raw))
        at += len(raw)
    return PackRef(bytes([name]) * 32, at), frames


@st.composite
def located_windows(draw: st.DrawFn) -> tuple[list[list[int]], list[Located], dict[int, bytes], Window]:
    """Draw regions, and packs that hold the chunks of each region in frames of a few."""
    regions = draw(st.lists(RECORDS, min_size=1, max_size=3))
    window = window_of(*regions)
    packs: dict[int, bytes] = {}
    parts: list[Located] = []
    for row, records in enumerate(regions):
        table = table_of(records)
        members = [record for record in records if record >= 0]
        positions = np.flatnonzero(~table.zero).tolist()
        size = draw(st.integers(1, 4))
        groups = [members[n : n + size] for n in range(0, len(members), size)]
        ref, frames = pack_of(groups, row)
        packs[row] = bytes(16) + b"".join(raw for _, _, raw in frames)
        frame = np.zeros(len(frames), dtype=FRAME)
        run = np.zeros(len(members), dtype=RUN)
        at = 0
        for number, (offset, length, _) in enumerate(frames):
            frame[number] = (0, offset, length, length, 0, CHECK)
            start = 0
            for chunk in groups[number]:
                run[at] = (positions[at], 1, number, start)
                start += len(data_of(chunk))
                at += 1
        parts.append(Located(int(window.first[row]), table, Locations.of((ref,) if frames else (), frame, run)))
    return regions, parts, packs, window


def carry_out(fetch: FetchPlan, packs: dict[int, bytes], image: bytearray) -> int:
    """Carry out a fetch plan in memory; return the bytes asked for."""
    asked = 0
    for part in fetch.ranges:
        pack = packs[fetch.packs[part.pack].digest[0]]
        data = pack[part.start : part.end]
        assert len(data) == part.end - part.start
        assert not part.whole or len(data) == fetch.packs[part.pack].length
        asked += len(data)
        for task in frame_tasks(fetch, part):
            raw = data[task.offset - part.start :][: task.stored]
            for start, length, digest in task.wanted:
                assert chunk_digest(raw[start : start + length]) == digest
            for start, length, offset in task.writes:
                image[offset : offset + length] = raw[start : start + length]
    return asked


@given(located_windows(), st.data())
def test_a_fetch_plan_fills_every_wanted_place(
    located: tuple[list[list[int]], list[Located], dict[int, bytes], Window], data: st.DataObject
) -> None:
    regions, parts, packs, window = located
    groups = Groups.of(window, np.flatnonzero(~window.zero))
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))), dtype=np.bool_)
    placed = np.zeros(len(window), dtype=np.bool_)
    fetch = plan_fetch(window, groups, wanted, placed, parts)
    assert not len(fetch.missing)
    expected = b"".join(map(bytes_of, regions))
    image = bytearray(len(expected))
    asked = carry_out(fetch, packs, image)
    for group in range(len(groups)):
        for record in groups.order[groups.starts[group] : groups.starts[group + 1]].tolist():
            start, end = int(window.offsets[record]), int(window.offsets[record]) + int(window.lengths[record])
            assert image[start:end] == (expected[start:end] if wanted[group] else bytes(end - start))
    assert asked == fetch.fetch_bytes
    used = {int(pack) for pack in fetch.frames["pack"]}
    assert asked <= sum(fetch.packs[pack].length for pack in used)
    assert len(fetch.wanted) == int(wanted.sum()), "each chunk comes once, however often it occurs"


def test_chunks_that_no_location_names_are_missing() -> None:
    window = window_of([0, 1])
    groups = Groups.of(window, np.arange(2))
    nothing = plan_fetch(window, groups, np.ones(2, dtype=np.bool_), np.zeros(2, dtype=np.bool_), [])
    assert nothing.missing.tolist() == [0, 1]
    assert nothing.ranges == []


def test_most_of_a_pack_is_fetched_whole_and_less_in_ranges() -> None:
    records = [0, 3, 1, 4, 2, 5, 0]
    window = window_of(records)
    ref, frames = pack_of([[record] for record in records], 0)
    ref = PackRef(ref.digest, ref.length + 200_000)
    frame = np.zeros(len(frames), dtype=FRAME)
    for number, (offset, length, _) in enumerate(frames):
        frame[number] = (0, offset + (100_000 if number > 2 else 0), length, length, 0, CHECK)
    run = np.array([(n, 1, n, 0) for n in range(len(records))], dtype=RUN)
    parts = [Located(0, table_of(records), Locations.of((ref,), frame, run))]
    groups = Groups.of(window, np.arange(len(records)))
    everything = np.ones(len(groups), dtype=np.bool_)
    fetch = plan_fetch(window, groups, everything, np.zeros(len(window), dtype=np.bool_), parts, gap=GAP)
    assert [(part.start, part.whole) for part in fetch.ranges] == [(16, False), (frames[3][0] + 100_000, False)]
    ref, frames = pack_of([[record] for record in records], 0)
    for number, (offset, length, _) in enumerate(frames):
        frame[number] = (0, offset, length, length, 0, CHECK)
    for unused, whole in ((0, True), (sum(length for _, length, _ in frames) * 2, False)):
        larger = PackRef(ref.digest, ref.length + unused)
        parts = [Located(0, parts[0].table, Locations.of((larger,), frame, run))]
        fetch = plan_fetch(window, groups, everything, np.zeros(len(window), dtype=np.bool_), parts)
        assert [(part.start, part.whole) for part in fetch.ranges] == [(0, True) if whole else (16, False)]


def test_contradicting_frames_are_refused() -> None:
    """Two regions that describe one frame differently: the repository is damaged."""
    window = window_of([0], [1])
    ref = PackRef(bytes(32), 100_000)
    run = np.array([(0, 1, 0, 0)], dtype=RUN)
    parts = []
    for row, record in enumerate((0, 1)):
        frame = np.array([(0, 16, 5000 + row, 8192, 1, CHECK)], dtype=FRAME)
        parts.append(Located(row, table_of([record]), Locations.of((ref,), frame, run)))
    groups = Groups.of(window, np.arange(2))
    with pytest.raises(FormatError, match="one description"):
        plan_fetch(window, groups, np.ones(2, dtype=np.bool_), np.zeros(2, dtype=np.bool_), parts)


# ---- reports


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 26)), max_size=20))
def test_content_adds_up(entries: list[tuple[int, int]]) -> None:
    columns = np.array(entries, dtype=np.int64).reshape(-1, 2)
    content = Content.tally(columns[:, 0].astype(np.uint8), columns[:, 1].astype(np.uint32))
    assert content.size == sum(length for _, length in entries)
    for number, name in enumerate(CATEGORIES):
        assert content.to_dict()[name] == sum(length for category, length in entries if category == number)
    assert (content + content).size == 2 * content.size


def test_estimate() -> None:
    assert estimate_seconds(size=1000, requests=8, round_trip=0.5, bandwidth=100, connections=4) == 11
