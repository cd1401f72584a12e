"""The format of bundles, and bundles as stores: the documented example, hostile bytes, what is held and what is not."""

from __future__ import annotations

import lzma
import os
import random
import re
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_format_manifest import documented, example

import trimtransfer
from trimtransfer.assembly.sync import sync
from trimtransfer.bundle import HEADER_SIZE, PIECE, BundleVersion, Directory, Header, piece_array
from trimtransfer.bundlestore import BundleStore, is_bundle, part_path, part_paths
from trimtransfer.chunk import object_check, object_digest
from trimtransfer.errors import FetchError, FormatError, IntegrityError, NotFound
from trimtransfer.names import head_name, keys_name, locations_name, manifest_name, tables_name
from trimtransfer.nearstore import NearStore, bundle_stats, held_bytes, is_offline
from trimtransfer.pack import pack_name
from trimtransfer.repository.bundlecheck import check_bundle
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import make_bundle
from trimtransfer.store import DirectoryStore, Range

GOLDEN = lzma.decompress((Path(__file__).parent / "golden" / "bundle_1.xz").read_bytes())
"""The bundle of the worked example, as it was made when the format was new."""
OBJECTS = {
    head_name("tiny"): "head.json",
    manifest_name("tiny", "1"): "manifest.bin",
    tables_name("tiny", "1"): "tables.bin",
    locations_name("tiny", "1"): "locations.bin",
    keys_name("tiny", "1"): "keys.bin",
    pack_name(object_digest(documented()["pack"])): "pack",
}

Objects: TypeAlias = dict[str, tuple[int, list[tuple[int, bytes]]]]
"""Length, and pieces (start, bytes) in a bundle, of objects by name."""


def directory_of(data: bytes) -> Directory:
    return Directory.from_bytes(data[: HEADER_SIZE + Header.from_bytes(data).directory])


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def build(objects: Objects, bases: tuple[str, ...] = ()) -> bytes:
    """Return a bundle."""
    found = [piece for _, pieces in objects.values() for piece in pieces]
    rows = piece_array([(start, len(data)) for start, data in found])
    for row, (_, data) in zip(rows, found, strict=True):
        row["check"] = np.frombuffer(object_check(data), dtype=np.uint8)
    first = np.cumsum([0, *(len(pieces) for _, pieces in objects.values())])
    lengths = np.array([length for length, _ in objects.values()])
    directory = Directory((BundleVersion("tiny", "1", bases),), tuple(objects), lengths, first, rows)
    return directory.to_bytes() + b"".join(data for _, data in found)


# ---- the format


def test_the_example_of_the_format_page_is_read_and_made_again(tmp_path: Path) -> None:
    objects = documented()
    for name, file in OBJECTS.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_bytes(objects[file])
    make_bundle(DirectoryStore(tmp_path / "repository"), tmp_path / "tiny.bundle", [Wanted("tiny")])
    made = (tmp_path / "tiny.bundle").read_bytes()
    text = (Path(trimtransfer.__file__).parent / "FORMAT.md").read_text()
    (body,) = re.findall(r"in the order of its names:\n\n```\n(.*?)```", text, re.DOTALL)
    printed = bytes.fromhex(body)
    directory = Directory.from_bytes(printed)
    assert directory.names == tuple(OBJECTS)
    assert made == printed + b"".join(objects[file] for file in OBJECTS.values())
    assert made == GOLDEN


def test_bundles_of_format_1_are_read_for_ever(tmp_path: Path) -> None:
    report = sync(written(tmp_path / "b", GOLDEN), "tiny", output=tmp_path / "tiny.img")
    assert (tmp_path / "tiny.img").read_bytes() == example()[1]
    assert (report.network.bytes, report.network.requests) == (0, 0)
    assert report.content.size == report.length == len(example()[1])


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}(/[a-z0-9][a-z0-9._-]{0,8}){0,2}", fullmatch=True)
versions = st.sampled_from(["1", "2.0", "beta"])
pieces = st.lists(st.tuples(st.integers(0, 50), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4)


@st.composite
def bundles(draw: st.DrawFn) -> Objects:
    found: Objects = {}
    for name in draw(st.lists(names, min_size=1, max_size=5, unique=True)):
        at, placed = 0, []
        for gap, data in draw(pieces):
            placed.append((at + gap, data))
            at += gap + len(data)
        found[name] = at + draw(st.integers(0, 9)), placed
    return found


@given(bundles(), st.lists(versions, max_size=3).map(tuple))
def test_what_is_written_is_read_back(objects: Objects, bases: tuple[str]) -> None:
    data = build(objects, bases)
    directory = directory_of(data)
    assert directory.versions == (BundleVersion("tiny", "1", bases),)
    assert directory.to_bytes() == data[: HEADER_SIZE + Header.from_bytes(data).directory]
    assert directory.length == len(data)
    for name, (length, placed) in objects.items():
        number = directory.find(name)
        assert number is not None
        content: list[int | None] = [None] * length
        for start, piece in placed:
            content[start : start + len(piece)] = piece
        for start, size in [(0, length), (length // 3, length // 2), (length // 2, 1)]:
            held: list[int | None] = [None] * size
            for at, count, position in directory.held(number, start, min(size, length - start)):
                held[at - start : at - start + count] = data[position : position + count]
            assert held[: length - start] == content[start : start + size][: length - start]
    assert directory.find("no such") is None


@given(bundles(), st.randoms(use_true_random=False))
def test_damage_raises_format_errors_only(objects: Objects, rnd: random.Random) -> None:
    data = bytearray(build(objects))
    end = HEADER_SIZE + Header.from_bytes(data).directory
    data[rnd.randrange(end)] ^= 1 << rnd.randrange(8)
    with pytest.raises(FormatError):
        directory_of(bytes(data))
    with pytest.raises(FormatError):
        directory_of(bytes(data[: rnd.randrange(end)]))


def signed(directory: bytes, *, length: int | None = None) -> bytes:
    """Return header and directory with a digest that is right."""
    begin = bytearray(build({"a": (1, [(0, b"x")])})[:24])
    begin[12:16] = len(directory).to_bytes(4, "little")
    begin[16:24] = (HEADER_SIZE + len(directory) if length is None else length).to_bytes(8, "little")
    return bytes(begin) + object_digest(bytes(begin) + directory) + directory


@settings(max_examples=500)
@given(bundles(), st.randoms(use_true_random=False))
def test_hostile_directories_raise_format_errors_only(objects: Objects, rnd: random.Random) -> None:
    data = build(objects)
    body = bytearray(data[HEADER_SIZE : HEADER_SIZE + Header.from_bytes(data).directory])
    for _ in range(rnd.randrange(1, 4)):
        at = rnd.randrange(len(body))
        body[at] = rnd.choice((0, 1, 0x7F, 0x80, 0xFF, rnd.randrange(256)))
    body = body[: rnd.randrange(len(body))] if rnd.random() < 0.2 else body
    try:
        found = directory_of(signed(bytes(body), length=len(data)))
    except FormatError:
        return
    assert found.length == len(data)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_directory(body: bytes) -> None:
    with pytest.raises(FormatError):
        directory_of(signed(body))


HOSTILE: dict[str, Callable[[Directory], Directory]] = {
    "a name twice": lambda one: replace(one, names=(one.names[0],) * 6),
    "a name that leaves": lambda one: replace(one, names=("../x", *one.names[1:])),
    "an absolute name": lambda one: replace(one, names=("/etc/passwd", *one.names[1:])),
    "a hidden name": lambda one: replace(one, names=("images/.x", *one.names[1:])),
    "an empty name": lambda one: replace(one, names=("", *one.names[1:])),
    "a piece beyond its object": lambda one: replace(one, lengths=one.lengths - 1),
    "an empty piece": lambda one: replace(one, pieces=np.zeros(6, dtype=PIECE)),
    "an object without a piece": lambda one: replace(one, first=np.array([0, 2, 2, 3, 4, 5, 6])),
    "no versions": lambda one: replace(one, versions=()),
    "a version that is none": lambda one: replace(one, versions=(BundleVersion("../tiny", "1"),)),
    "too many bases": lambda one: replace(one, versions=(BundleVersion("tiny", "1", ("0",) * 17),)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_rules(case: str) -> None:
    with pytest.raises(FormatError):
        HOSTILE[case](directory_of(GOLDEN))


# ---- a bundle as a store


def test_a_bundle_reads_like_the_repository(tmp_path: Path) -> None:
    objects = documented()
    with closing(BundleStore(written(tmp_path / "b", GOLDEN))) as store:
        for name, file in OBJECTS.items():
            length = len(objects[file])
            assert store.read(name, limit=length) == objects[file]
            assert (store.exists(name), store.size(name)) == (True, length)
            assert store.read_range(Range(name, 3, 9, length)) == objects[file][3:12]
            with pytest.raises(FormatError):
                store.read(name, limit=length - 1)
            with pytest.raises(FormatError, match="length"):
                store.read_range(Range(name, 0, 1, length + 1))
        assert dict(store.list()) == {name: len(objects[file]) for name, file in OBJECTS.items()}
        assert [name for name, _ in store.list("packs")] == [name for name in OBJECTS if name.startswith("packs/")]
        assert (store.stats.bytes, store.stats.requests) == (0, 0)
        assert store.read_stats.bytes > sum(map(len, objects.values()))
        for name in ("images", "images/tiny", "../b", "/etc/passwd"):
            assert not store.exists(name)
            with pytest.raises(NotFound):
                store.read(name, limit=1)


def test_gaps_are_zeros_but_what_is_asked_for_again_must_be_there(tmp_path: Path) -> None:
    data = build({"packs/a": (100, [(10, b"first"), (20, b"second")])}, ("0",))
    with closing(BundleStore(written(tmp_path / "b", data))) as store:
        got: list[bytes] = []
        store.fetch([Range("packs/a", 10, 16, 100)], lambda _, found: got.append(bytes(found)))
        assert got == [b"first" + bytes(5) + b"second"]
        for ranges, again in (([Range("packs/a", 10, 16, 100)], True), ([Range("packs/a", 30, 5, 100)], False)):
            with pytest.raises(NotFound, match="does not have tiny 0, from which this bundle starts"):
                store.fetch(ranges, lambda _, found: got.append(bytes(found)), again=again)
        with pytest.raises(NotFound):
            store.read_range(Range("packs/a", 10, 16, 100))
        with pytest.raises(NotFound):
            store.read("packs/a", limit=100)
        assert len(got) == 1


def test_every_truncation_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "b"
    end = HEADER_SIZE + Header.from_bytes(GOLDEN).directory
    for size in (*range(end + 2), *range(end, len(GOLDEN), 97), *directory_of(GOLDEN).positions.tolist()[:-1]):
        path.write_bytes(GOLDEN[:size])
        with pytest.raises(FormatError):
            BundleStore(path)
        if size < end:
            with pytest.raises(FormatError):
                BundleStore(path, partial=True)
            continue
        with closing(BundleStore(path, partial=True)) as store:
            assert "cut off" in store.problem
            whole = np.cumsum(store.directory.pieces["length"]) + end <= size
            for name, there in zip(OBJECTS, whole, strict=True):
                if there:
                    assert store.read(name, limit=1 << 20) == documented()[OBJECTS[name]]
                else:
                    with pytest.raises(FormatError):
                        store.read(name, limit=1 << 20)


def test_every_flipped_byte_is_found(tmp_path: Path, rnd: random.Random) -> None:
    path, end = tmp_path / "b", HEADER_SIZE + Header.from_bytes(GOLDEN).directory
    for at in (*range(0, end, 7), *range(end, len(GOLDEN), 61), len(GOLDEN) - 1):
        data = bytearray(GOLDEN)
        data[at] ^= 1 << rnd.randrange(8)
        path.write_bytes(data)
        if at < end:
            with pytest.raises(FormatError):
                BundleStore(path, partial=True)
            continue
        with closing(BundleStore(path)) as store:
            assert check_bundle(store).damage
    path.write_bytes(GOLDEN)
    with closing(BundleStore(path)) as store:
        assert check_bundle(store).damage == ()


@settings(max_examples=40)
@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_nothing_wrong_enters_an_image(at: int, flip: int) -> None:
    data = bytearray(GOLDEN)
    data[at] ^= flip
    with TemporaryDirectory() as folder:
        output = Path(folder) / "tiny.img"
        try:
            sync(written(Path(folder) / "b", bytes(data)), "tiny", output=output, cache=folder)
        except (FormatError, IntegrityError, NotFound):
            assert not output.exists()
        else:
            assert output.read_bytes() == example()[1]


# ---- parts


def in_parts(folder: Path, data: bytes, size: int) -> Path:
    for number, start in enumerate(range(0, len(data), size), 1):
        part_path(folder / "b", number).write_bytes(data[start : start + size])
    return folder / "b"


@pytest.mark.parametrize("size", [8, 100, 519, 1000, 2884, 5768])
def test_parts_are_read_as_one(tmp_path: Path, size: int) -> None:
    path = in_parts(tmp_path, GOLDEN, max(size, -(-len(GOLDEN) // 999)))
    for named in (path, part_path(path, 1)):
        assert is_bundle(named)
        with closing(BundleStore(named)) as store:
            assert store.parts == sorted(tmp_path.iterdir())
            assert check_bundle(store).damage == ()


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    path = in_parts(tmp_path, GOLDEN, 1000)
    part_path(path, 7).write_bytes(b"of another one")  # is not needed
    BundleStore(path).close()
    part_path(path, 7).unlink()
    part_path(path, 4).rename(tmp_path / "away")
    with pytest.raises(FormatError, match=r"b\.004 missing"):
        BundleStore(path)
    with closing(BundleStore(path, partial=True)) as store:
        assert store.read(head_name("tiny"), limit=1024) == documented()["head.json"]
    (tmp_path / "away").rename(part_path(path, 4))
    part_path(path, 6).unlink()
    with pytest.raises(FormatError, match=r"parts after b\.005 missing"):
        BundleStore(path)
    for number in range(2, 6):
        part_path(path, number).unlink()
    with pytest.raises(FormatError, match=r"parts after b\.001 are missing"):
        BundleStore(path)
    part_path(path, 1).unlink()
    assert part_paths(path) == []
    with pytest.raises(NotFound):
        BundleStore(path)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(written(tmp_path / "b", GOLDEN))
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo", "none"):
        assert not is_bundle(tmp_path / name)
        assert part_paths(tmp_path / name) == []
    assert is_bundle(tmp_path / "link")
    for data in (b"", b"TrimPack", os.urandom(1000)):
        path = written(tmp_path / "other", data)
        assert not is_bundle(path)
        with pytest.raises(FormatError):
            BundleStore(path)


def test_a_stick_that_is_unplugged_is_no_damage(tmp_path: Path) -> None:
    with closing(BundleStore(written(tmp_path / "b", GOLDEN))) as store:
        folder = os.open(tmp_path, os.O_RDONLY)
        os.dup2(folder, store._files[0])  # every read fails from now on
        os.close(folder)
        with pytest.raises(FetchError, match="plug it in and run the same command again") as failed:
            store.read(head_name("tiny"), limit=1024)
        assert (failed.value.retryable, failed.value.exit_code) == (True, 5)


# ---- a bundle near another store


@pytest.fixture
def far(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "far")
    store.put("packs/a", bytes(range(100)))
    store.put("packs/b", b"only there")
    return store


def near(tmp_path: Path, far: DirectoryStore | NearStore, *held: tuple[int, int]) -> NearStore:
    number = len(list(tmp_path.glob("near*")))
    data = build({"packs/a": (100, [(start, bytes(range(start, end))) for start, end in held])})
    return NearStore(BundleStore(written(tmp_path / f"near{number}", data)), far)


def fetched(store: NearStore, ranges: list[Range], *, again: bool = False) -> dict[Range, bytes]:
    got: dict[Range, bytes] = {}
    lock = threading.Lock()

    def deliver(wanted: Range, data: memoryview) -> None:
        with lock:
            assert wanted not in got
            got[wanted] = bytes(data)

    store.fetch(ranges, deliver, again=again)
    return got


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 100), min_size=2, max_size=8, unique=True),
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 100)), min_size=1, max_size=6, unique=True),
)
def test_what_a_bundle_has_is_not_fetched(borders: list[int], wanted: list[tuple[int, int]]) -> None:
    """In KiB: the object has 100, the longest hole that is not fetched 16."""
    with TemporaryDirectory() as name:
        far = DirectoryStore(Path(name) / "far")
        content = bytes([number % 255 + 1 for number in range(100)])
        far.put("packs/a", b"".join(bytes([one]) * 1024 for one in content))
        edges = sorted(borders)[: len(borders) // 2 * 2]
        held = list(zip(edges[::2], edges[1::2], strict=True))
        pieces = [(1024 * low, b"".join(bytes([one]) * 1024 for one in content[low:high])) for low, high in held]
        store = NearStore(BundleStore(written(Path(name) / "near", build({"packs/a": (102_400, pieces)}))), far)
        total = here = 0
        spans = {Range("packs/a", 1024 * start, 1024 * min(length, 100 - start), 102_400) for start, length in wanted}
        for span, data in fetched(store, list(spans)).items():
            first, last = span.start // 1024, (span.start + span.length) // 1024
            there = [(max(low, first), min(high, last)) for low, high in held if max(low, first) < min(high, last)]
            holes = [(end, start) for (_, end), (start, _) in pairwise(there) if start - end <= 16]
            expected = bytearray(content[first:last])
            for low, high in holes:
                expected[low - first : high - first] = bytes(high - low)
            assert data == b"".join(bytes([one]) * 1024 for one in expected)
            near_bytes = sum(high - low for low, high in there)
            here += near_bytes
            total += last - first - near_bytes - sum(high - low for low, high in holes)
            assert held_bytes(store, span) == 1024 * near_bytes
            assert store.read_range(span) == b"".join(bytes([one]) * 1024 for one in content[first:last])
            if 0 < near_bytes < last - first:
                total += last - first
            else:
                here += near_bytes
                total += last - first - near_bytes
        assert (far.stats.bytes, bundle_stats(store).bytes) == (1024 * total, 1024 * here)
        store.close()


def test_what_is_asked_for_again_comes_from_afar(tmp_path: Path, far: DirectoryStore) -> None:
    store = near(tmp_path, far, (0, 100))
    wanted = Range("packs/a", 0, 100, 100)
    assert store.read_range(wanted) == bytes(range(100))
    assert far.stats.bytes == 0
    assert fetched(store, [wanted], again=True) == {wanted: bytes(range(100))}
    assert far.stats.bytes == 100
    assert store.read("packs/b", limit=10) == store.read_range(Range("packs/b", 0, 10)) == b"only there"
    assert (store.url, is_offline(store)) == (far.url, False)
    assert held_bytes(store, Range("packs/a", 0, 10, 99)) == 0  # it is another object there
    store.close()


@pytest.mark.parametrize("held", [[(0, 100)], [(0, 30), (40, 100)]])
def test_a_bundle_that_fails_costs_bytes_only(
    tmp_path: Path, far: DirectoryStore, held: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    store = near(tmp_path, far, *held)
    wanted = [Range("packs/a", at, 10, 100) for at in range(25, 100, 10) if at < 90] + [Range("packs/a", 0, 25, 100)]
    os.truncate(tmp_path / "near0", os.path.getsize(tmp_path / "near0") - 20)
    assert fetched(store, wanted) == {one: bytes(range(one.start, one.start + one.length)) for one in wanted}
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, store.near._files[0])
    os.close(folder)
    assert fetched(store, wanted) == {one: bytes(range(one.start, one.start + one.length)) for one in wanted}
    assert store.held_near(wanted[0]) == 0  # it is not asked again
    assert "what the bundle cannot give is fetched" in caplog.text
    store.close()


def test_a_chain_of_bundles_without_a_repository(tmp_path: Path) -> None:
    base = BundleStore(written(tmp_path / "base", build({"packs/a": (100, [(0, b"0123456789")])})))
    data = build({"packs/a": (100, [(30, b"abcdefghij")])})
    store = NearStore(BundleStore(written(tmp_path / "more", data)), base)
    assert is_offline(store)
    wanted = Range("packs/a", 5, 30, 100)
    assert fetched(store, [wanted]) == {
        wanted: b"56789" + bytes(20) + b"abcde"
    }  # nobody has, or needs, what is between
    with pytest.raises(NotFound):
        fetched(store, [Range("packs/a", 50, 10, 100)])
    store.close()
