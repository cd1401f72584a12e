"""Anchors beside their slow twin; what is found to resemble new content, and how new content is divided into units."""

from __future__ import annotations

import random
from contextlib import closing
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from syncing import BLOCK, make_images, write_sparse
from test_format_manifest import manifest
from vectors import KINDS, make

from trimtransfer import native
from trimtransfer.chunk import MAX_CHUNK_SIZE, REGION_SIZE, Kind
from trimtransfer.deltaindex import BASE, TARGET
from trimtransfer.errors import Cancelled
from trimtransfer.location import FRAME
from trimtransfer.repository import deltaunits, similar
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.similar import Similar
from trimtransfer.store import DirectoryStore
from trimtransfer.table import ZERO, Table
from trimtransfer.watch import Watch

ANCHOR = 24
MEMORY = 8
_64 = (1 << 64) - 1
_CHOOSE, _SECOND, _THIRD = 0x9E3779B97F4A7C15, 0xB504F333F9DE6485, 0xBB67AE8584CAA73B


# ---- anchors


def twin(data: bytes, bits: int) -> list[tuple[int, int]]:
    """Return key and place of every anchor, byte by byte, as ``native/anchors.h`` says."""
    found: list[tuple[int, int]] = []
    for at in range(len(data) - ANCHOR + 1):
        one, two, three = (int.from_bytes(data[at + n : at + n + 8], "little") for n in (0, 8, 16))
        if ((one + _SECOND) * _CHOOSE & _64) >> (64 - bits):
            continue
        mixed = (one * _CHOOSE ^ two * _SECOND) & _64
        mixed ^= mixed >> 29
        key = ((mixed + three) * _THIRD & _64) >> 32
        if key not in [before for before, _ in found[-MEMORY:]]:
            found.append((key, at))
    return found


def chosen_words(count: int, bits: int, rnd: random.Random) -> bytes:
    """Words of eight bytes that are anchors by themselves."""
    inverse = pow(_CHOOSE, -1, 1 << 64)
    words = (rnd.randrange(1 << (64 - bits)) * inverse - _SECOND & _64 for _ in range(count))
    return b"".join(word.to_bytes(8, "little") for word in words)


def anchors(data: bytes, bits: int) -> list[tuple[int, int]]:
    """Return key and place of every anchor, by the compiled function."""
    keys, places = native.anchors(data, bits=bits)
    return list(zip(keys.tolist(), places.tolist(), strict=True))


pieces = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 2), st.integers(0, 300))


@given(st.lists(pieces, max_size=2), st.integers(0, 3 * 4096), st.integers(1, 16))
@settings(max_examples=60)
def test_anchors_are_those_of_the_twin(recipe: list[Any], length: int, bits: int) -> None:
    data = make(recipe, length=length)
    assert anchors(data, bits) == twin(data, bits)[: (len(data) >> bits) * 4 + 64]


@pytest.mark.parametrize("bits", range(1, 17))
def test_anchors_at_every_density(bits: int, rnd: random.Random) -> None:
    """In random bytes, and in those made to be chosen."""
    for data in (rnd.randbytes(3000), chosen_words(60, bits, rnd), rnd.randbytes(5) + chosen_words(60, bits, rnd)):
        assert anchors(data, bits) == twin(data, bits)[: (len(data) >> bits) * 4 + 64]
    assert len(anchors(chosen_words(60, bits, rnd), bits)) >= 58
    found = len(anchors(rnd.randbytes(200 << bits if bits < 10 else 200_000), bits))
    expected = 200 if bits < 10 else 200_000 >> bits
    assert abs(found - expected) < 8 * expected**0.5 + 4


@pytest.mark.parametrize("length", range(41))
def test_anchors_of_short_data(length: int, rnd: random.Random) -> None:
    """Only whole windows count: an anchor in the last bytes but 23 is none."""
    data = (chosen_words(6, 16, rnd) + bytes(8))[:length]
    for bits in (1, 8, 16):
        assert anchors(data, bits) == twin(data, bits)
    assert len(anchors(data, 16)) >= max(0, (length - ANCHOR) // 8 + 1 if length >= ANCHOR else 0)


def test_a_pattern_that_repeats_has_few_anchors(rnd: random.Random) -> None:
    """Of one of up to eight bytes only the first repetition, however many of its places are chosen."""
    for bits, word in product((2, 5, 8), (chosen_words(1, 8, rnd), rnd.randbytes(3), rnd.randbytes(1))):
        found = anchors(word * 1000, bits)
        assert found == twin(word * 1000, bits)
        assert {place // len(word) for _, place in found} <= {0}
    for bits in range(1, 17):
        assert anchors(bytes(10_000), bits) == [], "zeros have none"


def test_no_more_anchors_than_there_is_room_for(rnd: random.Random) -> None:
    data = chosen_words(1000, 16, rnd)
    whole = twin(data, 16)
    assert len(whole) >= 998
    assert anchors(data, 16) == whole[:64]
    lib, ffi = native.lib, native.ffi
    for room in (0, 1, 7, 998, 2000):
        keys, places = np.full(room + 1, 77, np.uint32), np.full(room + 1, 77, np.uint32)
        arguments = (ffi.from_buffer("uint32_t[]", array) for array in (keys, places))
        count = lib.tt_anchors(ffi.from_buffer("uint8_t[]", data), len(data), 16, *arguments, room)
        assert count == min(room, len(whole))
        assert list(zip(keys[:count].tolist(), places[:count].tolist(), strict=True)) == whole[:room]
        assert keys[count:].tolist() == places[count:].tolist() == [77] * (room + 1 - count)


@pytest.mark.parametrize("bits", [-1, 0, 17, 64])
def test_densities_that_there_are_not(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        native.anchors(bytes(100), bits=bits)


# ---- similar chunks


class Version:
    """A published version and an index of it."""

    def __init__(self, folder: Path, data: bytes, kind: Kind = Kind.DISK) -> None:
        write_sparse(folder / "source.img", data)
        publish(folder / "repository", folder / "source.img", image="disk", version="1", kind=kind, level=1)
        self.data, self.store = data, DirectoryStore(folder / "repository")
        self.reader = VersionReader.open(self.store, "disk", "1")
        self.regions = list(self.reader.used_regions())

    def similar(self, regions: list[int] | None = None, **options: Any) -> Similar:
        """Return an index of some regions, all by default."""
        chosen = list(self.regions) if regions is None else regions
        options = {"workers": 2, "watch": Watch(), **options}
        return Similar(self.reader, chosen, self.store.scratch(), **options)

    def find(self, target: bytes, *, most: int = 1 << 30, **options: Any) -> list[tuple[int, int]]:
        """Return (start, length) in the image of the chunks found, in the order they came in."""
        with closing(self.similar(**options)) as index:
            return [chunk for part in index.find(target, most=most) for chunk in self.chunks(*part)]

    def chunks(self, region: int, records: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return (start, length) of some records."""
        table = self.reader.table(region)
        assert not table.zero[records].any()
        start = int(self.reader.manifest.starts[region])
        return [(start + int(table.offsets[n]), int(table.lengths[n])) for n in records.tolist()]


def covered(found: list[tuple[int, int]], start: int, length: int) -> int:
    """Return how many bytes of a range are in chunks."""
    return sum(max(0, min(at + size, start + length) - max(at, start)) for at, size in found)


def edited(data: bytes, rnd: random.Random, step: int) -> bytes:
    """Change a word of four bytes every ``step`` bytes or so."""
    changed = bytearray(data)
    at = rnd.randrange(step)
    while at + 4 <= len(changed):
        changed[at : at + 4] = rnd.randbytes(4)
        at += rnd.randrange(step // 2, 3 * step // 2)
    return bytes(changed)


@pytest.fixture
def version(tmp_path: Path, rnd: random.Random) -> Version:
    """3 MiB of files without anything in common, between zeros."""
    data = bytearray(4 << 20)
    data[BLOCK : BLOCK + (3 << 20)] = rnd.randbytes(3 << 20)
    data[1 << 20 : (1 << 20) + 50_000] = bytes(50_000)
    return Version(tmp_path, bytes(data))


@pytest.mark.parametrize("shift", [0, 1, 4095, 70_001])
@pytest.mark.parametrize("step", [0, 400, 150])
def test_content_that_moved_and_was_edited(version: Version, rnd: random.Random, shift: int, step: int) -> None:
    """Wherever it lies in the new content, on the block grid or off it, and however it is called there."""
    start, length = 2 << 20, 600_000
    part = version.data[start : start + length]
    target = rnd.randbytes(shift) + (edited(part, rnd, step) if step else part)
    found = version.find(target)
    assert covered(found, start, length) > 0.9 * length
    assert sum(size for _, size in found) < length + 3 * MAX_CHUNK_SIZE


def test_parts_in_another_order(version: Version, rnd: random.Random) -> None:
    places = [(2 << 20) + 150_000, 20_000, (1 << 20) + 300_000]
    target = b"".join(edited(version.data[at : at + 120_000], rnd, 500) for at in places)
    found = version.find(target)
    for at in places:
        assert covered(found, at, 120_000) > 90_000


def test_nothing_resembles_other_content(version: Version, rnd: random.Random) -> None:
    for target in (b"", b"x", bytes(100_000), rnd.randbytes(ANCHOR), rnd.randbytes(1 << 20), b"abcdefgh" * 100_000):
        assert version.find(target) == []


def test_most_and_order(version: Version, rnd: random.Random) -> None:
    """What resembles most comes first where there is not room for all; what is found comes in the version's order."""
    best, good = version.data[100_000:500_000], edited(version.data[2 << 20 : (2 << 20) + 400_000], rnd, 60)
    target = good + best
    whole = version.find(target)
    assert covered(whole, 100_000, 400_000) > 350_000
    assert covered(whole, 2 << 20, 400_000) > 300_000
    for most in (0, 5000, 100_000, 300_000, 500_000, 1 << 20):
        found = version.find(target, most=most)
        assert found == sorted(found)
        assert sum(size for _, size in found) <= most
        assert sum(size for _, size in found) >= min(most, sum(size for _, size in whole)) - MAX_CHUNK_SIZE
        if most <= 300_000:
            assert covered(found, 2 << 20, 400_000) <= most // 5


def test_chunks_between_others_belong_to_them(tmp_path: Path, rnd: random.Random) -> None:
    """Eight at a time at most, as far as there is room, the fewest first."""
    version = Version(tmp_path, b"".join(rnd.randbytes(BLOCK * 4 - 100) + bytes(100) for _ in range(40)))
    chunks = version.chunks(0, np.flatnonzero(~version.reader.table(0).zero))
    wanted = [0, 9, 12, 22, 23, 25]
    target = b"".join(version.data[at : at + size] for at, size in (chunks[number] for number in wanted))
    sizes = [size for _, size in chunks]
    least = sum(sizes[number] for number in wanted)
    few = sizes[10] + sizes[11] + sizes[24]
    for room, expected in (
        (1 << 30, [*range(13), *range(22, 26)]),
        (least + few + sum(sizes[1:9]), [*range(13), *range(22, 26)]),
        (least + few, [0, *range(9, 13), *range(22, 26)]),
        (least + sizes[24], [0, 9, 12, 22, 23, 24, 25]),
        (least, wanted),
    ):
        assert [chunks.index(chunk) for chunk in version.find(target, most=room)] == expected


@pytest.mark.parametrize(("files", "told"), [(32, True), (33, False)])
def test_what_many_chunks_have_tells_nothing(tmp_path: Path, rnd: random.Random, files: int, told: bool) -> None:
    licence = rnd.randbytes(8 * BLOCK)
    data = b"".join(licence + rnd.randbytes(BLOCK - 100) + bytes(100) for _ in range(files))
    version = Version(tmp_path, data)
    found = version.find(licence)
    assert bool(found) == told


def test_regions_that_are_asked_for(tmp_path: Path, rng: np.random.Generator) -> None:
    """Of an image of five regions; what is found comes by regions, in order."""
    (data,) = make_images(rng, versions=1, pieces=40)
    version = Version(tmp_path, data)
    starts, lengths = version.reader.manifest.starts, version.reader.manifest.lengths
    target = data
    with closing(version.similar()) as index:
        parts = list(index.find(target, most=1 << 30))
        assert [region for region, _ in parts] == sorted(region for region, _ in parts)
        assert all((np.diff(records) > 0).all() for _, records in parts)
        assert len(parts) > 2
    for region in version.regions[1:]:
        start, length = int(starts[region]), int(lengths[region])
        filled = int(version.reader.table(region).lengths[~version.reader.table(region).zero].sum())
        found = version.find(data[start : start + length])
        assert covered(found, start, length) > 0.8 * filled, "the numbers of chunks go on from region to region"
        with closing(version.similar([region])) as index:
            assert {number for number, _ in index.find(target, most=1 << 30)} == {region}
    assert int(lengths.sum()) == len(data)
    with closing(version.similar([])) as index:
        assert list(index.find(target, most=1 << 30)) == []


@pytest.mark.parametrize("most", [12, 8, 0])
def test_anchors_are_thinned_out_for_large_versions(
    version: Version, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer anchors of longer stretches; at their fewest they are one in 2^16 places, whatever the version's size."""
    with closing(version.similar()) as index:
        whole = len(index._entries)
    monkeypatch.setattr(similar, "_MOST", most)
    with closing(version.similar()) as index:
        assert len(index._entries) <= max(3 << 20 >> 16, 1 << most) * 2
        assert len(index._entries) < whole
        found = [chunk for part in index.find(version.data[: 2 << 20], most=1 << 30) for chunk in version.chunks(*part)]
        assert most < 12 or covered(found, 0, 2 << 20) > 1 << 20
    assert whole > 3 << 20 >> 9


def test_it_lies_in_files_where_it_is_large(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says the same; nothing is left over."""
    target = version.data[1 << 20 : 2 << 20]
    whole = version.find(target)
    monkeypatch.setattr("trimtransfer.spill.Rows.__init__.__kwdefaults__", {"in_memory": 100})
    assert version.find(target) == whole
    assert list(version.store.scratch().iterdir()) == []


def test_progress_and_cancelling(version: Version) -> None:
    seen: list[tuple[str, int, int]] = []
    version.find(b"", watch=Watch(lambda *now: seen.append(now)))
    assert {phase for phase, *_ in seen} == {"similar"}
    assert seen[0][1] == 0
    assert seen[-1][1] == seen[-1][2] > 0

    class Stop(Watch):
        def check(self) -> None:
            raise Cancelled("as asked")

    with pytest.raises(Cancelled):
        version.similar(watch=Stop())


def test_entries_are_the_anchors_of_chunks(tmp_path: Path, rnd: random.Random) -> None:
    """Each with the chunk that it begins in; one that begins in zeros before a chunk, with none."""
    reaching = next(word for n in range(10**6) if twin(bytes(4) + (word := n.to_bytes(4, "little")) + bytes(16), 8))
    part = reaching + rnd.randbytes(150_000)
    version = Version(tmp_path, bytes(BLOCK) + part + bytes(3 * BLOCK - len(part) % BLOCK) + part)
    table = version.reader.table(0)
    assert table.zero[0]
    numbers = {int(record): number for number, record in enumerate(np.flatnonzero(~table.zero))}
    expected, dropped = set(), 0
    for key, place in twin(version.data, 8):
        record = int(np.searchsorted(table.offsets, place, side="right")) - 1
        if record in numbers:
            expected.add(key << 32 | numbers[record])
        else:
            dropped += 1
    assert dropped == 2
    with closing(version.similar()) as index:
        assert index._sorted.tolist() == sorted(expected)
        assert [tuple(row) for row in index._all.tolist()] == [(0, n, int(table.lengths[n])) for n in numbers]


# ---- units


def nearest(base: Any, new: list[int], most: int) -> list[int]:
    """The slow twin of ``regions_to_scan``."""
    used = [index for index in range(base.region_count) if not base.zero[index]]
    ordered = sorted(used, key=lambda index: (min(abs(index - other) for other in new), index))
    chosen, size = [], 0
    for index in ordered:
        if size >= most:
            break
        chosen.append(index)
        size += int(base.lengths[index])
    return sorted(chosen)


@given(
    st.sets(st.integers(0, 60), min_size=1, max_size=40),
    st.sets(st.integers(0, 80), min_size=1, max_size=5),
    st.integers(0, 40 * REGION_SIZE // 64),
)
def test_regions_to_scan(used: set[int], new: set[int], size: int) -> None:
    base = manifest(length=60 * REGION_SIZE + 50_000, used=tuple(sorted(used)))
    for least in (0, REGION_SIZE, 5 * REGION_SIZE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deltaunits, "_LEAST_SCAN", least)
            found = deltaunits.regions_to_scan(base, sorted(new), size)
        assert found == nearest(base, sorted(new), max(least, 64 * size))


def test_a_small_change_reads_a_gib() -> None:
    base = manifest(length=60 * REGION_SIZE, used=tuple(range(60)))
    assert deltaunits.regions_to_scan(base, [30], 1) == list(range(22, 38))
    assert len(deltaunits.regions_to_scan(base, [30], 1 << 30)) == 60
    assert deltaunits.regions_to_scan(SimpleNamespace(zero=np.ones(3, np.bool_)), [3], 1) == []  # type: ignore[arg-type]


@given(st.lists(st.integers(1, MAX_CHUNK_SIZE), min_size=1, max_size=300))
def test_split(lengths: list[int]) -> None:
    parts = list(deltaunits.split(np.array(lengths, dtype=np.int64)))
    assert [number for part in parts for number in range(len(lengths))[part]] == list(range(len(lengths)))
    sizes = [sum(lengths[part]) for part in parts]
    assert max(sizes) <= (4 << 20) + MAX_CHUNK_SIZE
    assert len(parts) == -(-sum(lengths) // (4 << 20))
    assert max(sizes) - min(sizes) <= 2 * MAX_CHUNK_SIZE


@given(st.sets(st.integers(0, 200), min_size=1))
def test_runs(records: set[int]) -> None:
    for dtype in (TARGET, BASE):
        runs = deltaunits.runs_of(np.array(sorted(records)), dtype)
        rows = list(zip(runs["record"].tolist(), runs["count"].tolist(), strict=True))
        assert [at + n for at, count in rows for n in range(count)] == sorted(records)
        assert all(at + count < following for (at, count), (following, _) in pairwise(rows))


def test_plain_cost() -> None:
    """A chunk's share of its frame; zero runs cost nothing."""
    lengths = np.array([4096, ZERO | 8192, 12_288, 8192], dtype=np.uint32)
    table = Table.from_records(lengths, np.ones((3, 32), dtype=np.uint8))
    frames = np.zeros(2, dtype=FRAME)
    frames["stored"], frames["raw"] = (4000, 100), (16_384, 8192)
    places = SimpleNamespace(frame=np.array([0, -1, 0, 1]), frames=frames)
    assert deltaunits.plain_cost(table, places).tolist() == [1000, 0, 3000, 100]  # type: ignore[arg-type]


def test_changed_regions() -> None:
    """Those whose table the other version has nowhere, be it at another place."""
    base, target = manifest(used=(0, 3)), manifest(used=(1, 3, 4))
    target.rows["table"][2] = 200
    assert deltaunits.changed_regions(target, base) == [4]
    assert deltaunits.changed_regions(base, base) == []


@pytest.fixture
def pair(tmp_path: Path, rnd: random.Random) -> tuple[VersionReader, VersionReader, bytes, bytes]:
    """Two versions: content edited, some that was there already elsewhere, some of it twice, some that is new."""
    old = bytearray(6 << 20)
    old[: 2 << 20] = rnd.randbytes(2 << 20)
    new = bytearray(old)
    new[BLOCK : 1 << 20] = edited(old[BLOCK : 1 << 20], rnd, 2000)
    new[3 << 20 : 4 << 20] = old[1 << 20 : 2 << 20]
    fresh = rnd.randbytes(300_000 // BLOCK * BLOCK - 50) + bytes(50)
    for at in ((4 << 20) + 10 * BLOCK, 5 << 20):  # after zeros both, so they are cut alike
        new[at : at + len(fresh)] = fresh
    for number, data in enumerate((old, new), 1):
        write_sparse(tmp_path / "source.img", bytes(data))
        publish(tmp_path / "repository", tmp_path / "source.img", image="disk", version=str(number), kind=Kind.DISK)
    store = DirectoryStore(tmp_path / "repository")
    return VersionReader.open(store, "disk", "2"), VersionReader.open(store, "disk", "1"), bytes(new), bytes(old)


def test_units_hold_what_is_new_once(
    pair: tuple[VersionReader, VersionReader, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chunk that the base lacks in one unit; the bases' content is what their runs say."""
    target, base, new, old = pair
    monkeypatch.setattr(deltaunits, "_TARGET", 300_000)
    monkeypatch.setattr(deltaunits, "_BASE", 400_000)
    content = deltaunits.NewContent(target, base, target.store.scratch(), workers=2, watch=Watch())
    known = {
        base.table(region).digests[n].tobytes()
        for region in base.used_regions()
        for n in range(len(base.table(region)))
    }
    seen: list[bytes] = []
    made_units: list[bytes] = []
    for unit in content.units():
        table, start = target.table(unit.region), int(target.manifest.starts[unit.region])
        seen += [table.digests[n].tobytes() for n in unit.records.tolist()]
        made_units.append(bytes(unit.target))
        assert made_units[-1] == joined_content(new, start, table, unit.records.tolist())
        assert 0 < len(unit.target) <= 300_000 + MAX_CHUNK_SIZE
        made = b""
        for region, record, count in unit.runs.tolist():
            at = int(base.manifest.starts[region])
            made += joined_content(old, at, base.table(region), list(range(record, record + count)))
        assert bytes(unit.base) == made
        assert len(made) <= 400_000
    lacking = {
        target.table(region).digests[n].tobytes()
        for region in target.used_regions()
        for n in np.flatnonzero(~target.table(region).zero).tolist()
    } - known
    assert sorted(seen) == sorted(lacking)
    assert content.size == sum(len(unit) for unit in made_units) > 1 << 20
    nothing = deltaunits.NewContent(base, base, base.store.scratch(), workers=2, watch=Watch())
    assert (nothing.size, list(nothing.units())) == (0, [])


def joined_content(image: bytes, start: int, table: Table, records: list[int]) -> bytes:
    """Return the content of records of the region at ``start``."""
    places = [(start + int(table.offsets[n]), int(table.lengths[n])) for n in records]
    return b"".join(image[at : at + length] for at, length in places)
