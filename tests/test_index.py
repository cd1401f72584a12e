"""The index: lookups against a dictionary, merges against a sort, damage, and stated memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtransfer.index.prefix
from trimtransfer.chunk import MAX_CHUNK_SIZE, MAX_IMAGE_SIZE, object_check
from trimtransfer.errors import FormatError
from trimtransfer.index.prefix import ALTERNATIVES, WRITER_MEMORY, IndexWriter, PrefixIndex, PrefixSet, merge
from trimtransfer.index.rowfile import HEADER_SIZE, ROW_SIZE, RowFile, Rows, write_rows

Row = tuple[int, int, int, int]
"""Prefix, length, file, offset."""


def rows_of(values: list[Row]) -> Rows:
    columns = list(zip(*values, strict=True)) or [(), (), (), ()]
    return Rows(
        np.array(columns[0], dtype=np.uint64),
        np.array(columns[1], dtype=np.uint32),
        np.array(columns[2], dtype=np.uint32),
        np.array(columns[3], dtype=np.uint64),
    )


def values_of(rows: Rows) -> list[Row]:
    return list(
        zip(rows.prefixes.tolist(), rows.lengths.tolist(), rows.files.tolist(), rows.offsets.tolist(), strict=True)
    )


def reference(values: list[Row]) -> dict[tuple[int, int], set[Row]]:
    """What a lookup may answer, the slow way."""
    found: dict[tuple[int, int], set[Row]] = {}
    for row in values:
        found.setdefault(row[:2], set()).add(row)
    return found


# Few distinct prefixes and lengths, so that chunks repeat and different chunks share a prefix.
prefixes = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1), st.just(2**64 - 1))
lengths = st.one_of(st.integers(1, 4), st.integers(1, MAX_CHUNK_SIZE))
row_lists = st.lists(st.tuples(prefixes, lengths, st.integers(0, 9), st.integers(0, MAX_IMAGE_SIZE)), max_size=80)


def check_against(index: PrefixIndex, values: list[Row], asked: list[tuple[int, int]]) -> None:
    known = reference(values)
    found = index.find(
        np.array([p for p, _ in asked], dtype=np.uint64), np.array([n for _, n in asked], dtype=np.uint32)
    )
    assert found.dtype == np.int64
    held = values_of(index.columns)
    assert sorted(held) == sorted(values)
    for key, row in zip(asked, found.tolist(), strict=True):
        assert (row >= 0) == (key in known)
        if row >= 0:
            assert held[row] in known[key]
        assert {held[n] for n in index.rows(*key, limit=1000).tolist()} == known.get(key, set())


@given(row_lists, st.lists(st.tuples(prefixes, lengths), max_size=30))
def test_find_is_a_dictionary_lookup(values: list[Row], others: list[tuple[int, int]]) -> None:
    asked = [row[:2] for row in values] + others
    check_against(PrefixIndex(rows_of(values), kind=1), values, asked)


@settings(max_examples=40)
@given(row_lists, st.integers(1, 20), st.integers(1, 30))
def test_a_written_index_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[Row], part: int, buffer_rows: int
) -> None:
    directory = tmp_path_factory.mktemp("index")
    with IndexWriter(directory, kind=2, buffer_rows=buffer_rows) as writer:
        for start in range(0, len(values), part):
            writer.add(rows_of(values[start : start + part]))
        assert len(writer) == len(values)
        assert writer.finish(directory / "run", durable=False) == len(values)
        assert len(writer) == 0
    assert [path.name for path in directory.iterdir()] == ["run"]
    index = PrefixIndex.open(directory / "run")
    assert index.kind == 2
    check_against(index, values, [row[:2] for row in values])


@settings(max_examples=40)
@given(st.lists(row_lists, max_size=5), st.sets(st.integers(0, 9)))
def test_merging_is_sorting_without_the_dead(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[Row]], alive: set[int]
) -> None:
    directory = tmp_path_factory.mktemp("merge")
    paths = []
    for number, values in enumerate(runs):
        paths.append(directory / f"{number}")
        with IndexWriter(directory, kind=1) as writer:
            if values:
                writer.add(rows_of(values))
            writer.finish(paths[-1], durable=False)
    kept = [row for values in runs for row in values if row[2] in alive]
    total = merge(
        paths,
        directory / "all",
        kind=1,
        live=lambda files: np.isin(files, list(alive)),
        durable=False,
    )
    assert total == len(kept)
    check_against(PrefixIndex.open(directory / "all"), kept, [row[:2] for values in runs for row in values])


def test_merging_needs_many_windows(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtransfer.index.prefix.BUFFER_ROWS", 4096)
    paths, parts = [], []
    for number, count in enumerate((30_000, 5, 0, 12_345, 1024)):
        part = Rows(
            rng.integers(0, 5000, count).astype(np.uint64),
            rng.integers(1, 5, count).astype(np.uint32),
            np.full(count, number, dtype=np.uint32),
            np.arange(count, dtype=np.uint64),
        )
        parts.append(part)
        paths.append(tmp_path / str(number))
        with IndexWriter(tmp_path, kind=1) as writer:
            writer.add(part)
            writer.finish(paths[-1], durable=False)
    merge(paths, tmp_path / "all", kind=1, durable=False)
    with RowFile(tmp_path / "all") as file:
        file.check()
        assert sorted(values_of(file.read(0, len(file)))) == sorted(v for part in parts for v in values_of(part))


def test_more_spills_than_one_merge_takes(tmp_path: Path, rng: np.random.Generator) -> None:
    values = [(int(p), 1, 0, n) for n, p in enumerate(rng.integers(0, 2**63, 700))]
    with IndexWriter(tmp_path, kind=1, buffer_rows=5) as writer:
        for row in values:
            writer.add(rows_of([row]))
        writer.finish(tmp_path / "run", durable=False)
    check_against(PrefixIndex.open(tmp_path / "run"), values, [row[:2] for row in values])


def test_only_live_files_are_found() -> None:
    values: list[Row] = [(7, 4096, n, n) for n in range(5)] + [(8, 4096, 0, 0)]
    index = PrefixIndex(rows_of(values), kind=1)
    asked = np.array([7, 8, 9], dtype=np.uint64), np.array([4096] * 3, dtype=np.uint32)
    assert index.find(*asked, live=lambda files: files == 3).tolist() == [3, -1, -1]
    assert index.find(*asked, live=lambda files: files == 99).tolist() == [-1, -1, -1]


def test_a_lookup_gives_up_after_many_dead_copies() -> None:
    values: list[Row] = [(7, 4096, 0, n) for n in range(ALTERNATIVES)] + [(7, 4096, 1, 0)]
    index = PrefixIndex(rows_of(values), kind=1)
    asked = np.array([7], dtype=np.uint64), np.array([4096], dtype=np.uint32)
    assert index.find(*asked, live=lambda files: files == 1).tolist() == [-1]


def test_many_chunks_with_one_prefix_are_found_fast() -> None:
    count = 100_000
    rows = Rows(
        np.full(count, 42, dtype=np.uint64),
        np.arange(1, count + 1, dtype=np.uint32),
        np.zeros(count, dtype=np.uint32),
        np.zeros(count, dtype=np.uint64),
    )
    index = PrefixIndex(rows, kind=1)
    found = index.find(np.full(count, 42, dtype=np.uint64), np.arange(1, count + 1, dtype=np.uint32))
    assert found.tolist() == list(range(count))


def small_index(directory: Path) -> tuple[Path, list[Row]]:
    values: list[Row] = [(3, 4096, 0, 0), (3, 8192, 1, 4096), (5, 1, 2, MAX_IMAGE_SIZE), (2**64 - 1, 262144, 2, 7)]
    with IndexWriter(directory, kind=1) as writer:
        writer.add(rows_of(values))
        writer.finish(directory / "small")
    return directory / "small", values


def test_every_damaged_byte_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    path, values = small_index(tmp_path)
    sound = path.read_bytes()
    assert len(sound) == HEADER_SIZE + ROW_SIZE * len(values)
    for at in range(len(sound)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ flip]) + sound[at + 1 :])
            with pytest.raises(FormatError):
                PrefixIndex.open(path)
    for size in range(len(sound)):
        path.write_bytes(sound[:size])
        with pytest.raises(FormatError):
            PrefixIndex.open(path)
    path.write_bytes(sound + b"\0")
    with pytest.raises(FormatError):
        PrefixIndex.open(path)
    path.write_bytes(sound)
    check_against(PrefixIndex.open(path), values, [row[:2] for row in values])


def test_the_example_of_the_format_document(tmp_path: Path) -> None:
    page = (Path(trimtransfer.index.prefix.__file__).parent.parent / "FORMAT.md").read_text()
    example = bytes.fromhex(page.partition("## Index")[2].partition("```")[2].partition("```")[0])
    (tmp_path / "example").write_bytes(example)
    index = PrefixIndex.open(tmp_path / "example")
    assert values_of(index.columns) == [(1, 4096, 1, 4096), (0x0123456789ABCDEF, 8192, 0, 0)]
    write_rows(tmp_path / "again", [index.columns], rows=2, kind=1, durable=False)
    assert (tmp_path / "again").read_bytes() == example


@pytest.mark.parametrize(
    "values",
    [
        [(5, 1, 0, 0), (4, 1, 0, 0)],
        [(5, 2, 0, 0), (5, 1, 0, 0)],
        [(5, 0, 0, 0)],
        [(5, MAX_CHUNK_SIZE + 1, 0, 0)],
        [(5, 1, 0, MAX_IMAGE_SIZE + 1)],
        [(5, 1, 0, 2**64 - 1)],
    ],
    ids=["prefixes fall", "lengths fall", "empty", "too long", "too far", "farthest"],
)
def test_rows_that_break_a_rule_are_refused_though_their_checks_fit(tmp_path: Path, values: list[Row]) -> None:
    write_rows(tmp_path / "bad", [rows_of(values)], rows=len(values), kind=1, durable=False)
    with pytest.raises(FormatError, match="row"):
        PrefixIndex.open(tmp_path / "bad")


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_an_index_of_an_unknown_chunker_is_refused(tmp_path: Path, kind: int) -> None:
    write_rows(tmp_path / "bad", [rows_of([(5, 1, 0, 0)])], rows=1, kind=kind, durable=False)
    with pytest.raises(FormatError, match="chunker"):
        PrefixIndex.open(tmp_path / "bad")


def test_rules_hold_across_slices(tmp_path: Path) -> None:
    count = (1 << 16) + 1
    ones = np.ones(count, dtype=np.uint32)
    falling = np.arange(count, dtype=np.uint64)
    falling[-1] = 3
    rows = Rows(falling, ones, ones, np.zeros(count, dtype=np.uint64))
    write_rows(tmp_path / "bad", [rows], rows=count, kind=1, durable=False)
    with pytest.raises(FormatError, match=f"row {count - 1}"):
        PrefixIndex.open(tmp_path / "bad")


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_hostile_bytes_give_format_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile"
    header = b"TrimIndx" + data[:88].ljust(88, b"\0")
    for content in (data, header + object_check(header) + data[88:]):
        path.write_bytes(content)
        try:
            PrefixIndex.open(path)
        except FormatError:
            continue
        assert content[16:24] == bytes(8)  # no rows: nothing that could be wrong


def test_an_index_is_no_link_and_no_fifo(tmp_path: Path) -> None:
    path, _ = small_index(tmp_path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        PrefixIndex.open(tmp_path / "link")
    subprocess.run(["mkfifo", tmp_path / "fifo"], check=True)
    with pytest.raises(FormatError, match="regular file"):
        PrefixIndex.open(tmp_path / "fifo")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 rows instead of 2"):
        write_rows(tmp_path / "run", [rows_of([(1, 1, 0, 0)])], rows=2, kind=1, durable=False)
    assert list(tmp_path.iterdir()) == []


def test_file_numbers_are_bounded(tmp_path: Path) -> None:
    with IndexWriter(tmp_path, kind=1) as writer, pytest.raises(ValueError, match="file number"):
        writer.add(rows_of([(1, 1, 2**32 - 1, 0)]))


@given(st.lists(st.integers(0, 20)), st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8))
def test_wanted_prefixes_are_met_once(wanted: list[int], scans: list[list[int]]) -> None:
    met: set[int] = set()
    found = PrefixSet(np.array(wanted, dtype=np.uint64))
    assert len(found) == len(set(wanted))
    for scan in scans:
        first = found.meet(np.array(scan, dtype=np.uint64))
        for prefix, new in zip(scan, first.tolist(), strict=True):
            assert new == (prefix in wanted and prefix not in met)
            if new:
                met.add(prefix)
        assert found.met == len(met)


_MEASURE = """
import resource, sys, threading, time
from pathlib import Path
import numpy as np
from trimtransfer.index.prefix import IndexWriter, PrefixIndex, merge
from trimtransfer.index.rowfile import Rows

def resident(kind):
    for line in open("/proc/self/status"):
        if line.startswith(kind):
            return int(line.split()[1]) * 1024

directory, rng = Path(sys.argv[1]), np.random.default_rng(1)
def rows(count):
    files = np.zeros(count, dtype=np.uint32)
    return Rows(rng.integers(0, 2**63, count).astype(np.uint64), files + 4096, files, np.zeros(count, dtype=np.uint64))
rows(16384).order()
before = resident("VmRSS")
for name in ("a", "b"):
    with IndexWriter(directory, kind=1) as writer:
        for _ in range(192):
            writer.add(rows(16384))
        writer.finish(directory / name, durable=False)
merge([directory / "a", directory / "b"], directory / "c", kind=1, durable=False)
made = resident("VmHWM") - before
index = PrefixIndex.open(directory / "c")
anonymous = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
for count in (4096, 4096, 200_000):
    found = index.find(rng.integers(0, 2**63, count).astype(np.uint64), np.full(count, 4096, dtype=np.uint32))
for row in rng.integers(0, len(index), 5000).tolist():
    index.place(row)
print(made, resident("VmHWM") - anonymous, len(index))
"""


def test_writing_merging_and_lookups_stay_within_the_stated_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    made, looked_up, rows = map(int, done.stdout.split())
    assert rows == 2 * 192 * 16384
    assert made <= WRITER_MEMORY
    assert looked_up <= 64 << 20 < rows * ROW_SIZE // 2
