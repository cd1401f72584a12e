"""Delta indexes and the units in them: round trips beside a slow twin, every rule, every damaged byte, memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtransfer.chunk import MAX_CHUNK_SIZE, MAX_IMAGE_SIZE, REGION_SIZE, object_check
from trimtransfer.codec import compress, decompress
from trimtransfer.deltaindex import (
    BASE,
    DELTA_CODEC,
    MAX_BASES,
    MAX_INDEX,
    MAX_TARGET,
    TARGET,
    UNIT,
    DeltaIndex,
    Units,
    encode_index,
)
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.location import PackRef
from trimtransfer.pack import MAX_PACK
from trimtransfer.table import MAX_RECORDS, ZERO, Table

GOLDEN = Path(__file__).parent / "golden" / "deltaindex_1.json"
HEADER = 80
REGIONS = MAX_IMAGE_SIZE // REGION_SIZE + 256


# ---- the slow twin


@dataclass(frozen=True)
class One:
    """A unit as plain values: ``targets`` are (record, count), ``bases`` (region, record, count)."""

    pack: int
    offset: int
    stored: int
    raw: int
    plain: int
    check: bytes
    targets: tuple[tuple[int, int], ...]
    bases: tuple[tuple[int, int, int], ...]


def joined(packs: Sequence[PackRef], ones: Sequence[One]) -> Units:
    """Return units as the program has them, not checked."""
    units = np.zeros(len(ones), dtype=UNIT)
    for row, one in zip(units, ones, strict=True):
        row["pack"], row["offset"], row["stored"], row["raw"], row["plain"] = (
            one.pack, one.offset, one.stored, one.raw, one.plain
        )  # fmt: skip
        row["targets"], row["bases"] = len(one.targets), len(one.bases)
        row["check"] = list(one.check)
    targets = np.array([run for one in ones for run in one.targets], dtype=TARGET)
    bases = np.array([run for one in ones for run in one.bases], dtype=BASE)
    return Units(tuple(packs), units, targets, bases)


def taken_apart(units: Units) -> list[One]:
    """Return units as plain values."""
    targets, bases = iter(units.targets.tolist()), iter(units.bases.tolist())
    found = []
    for row in units.units:
        made = tuple(next(targets) for _ in range(int(row["targets"])))
        base = tuple(next(bases) for _ in range(int(row["bases"])))
        numbers = [int(row[name]) for name in ("pack", "offset", "stored", "raw", "plain")]
        found.append(One(*numbers, row["check"].tobytes(), made, base))
    assert not list(targets)
    assert not list(bases)
    return found


def body_of(packs: Sequence[PackRef], ones: Sequence[One]) -> bytes:
    """Return what is compressed: counts, packs, then every column, as FORMAT.md has it."""
    targets = [run for one in ones for run in one.targets]
    bases = [run for one in ones for run in one.bases]
    columns = [[len(packs), len(ones), len(targets), len(bases)]]
    body = struct.pack("<4I", *columns[0])
    for ref in packs:
        body += ref.digest + struct.pack("<I", ref.length)
    numbers = [(u.pack, u.offset, u.stored, u.raw, u.plain, len(u.targets), len(u.bases)) for u in ones]
    for column in range(7):
        body += b"".join(struct.pack("<I", row[column]) for row in numbers)
    body += b"".join(one.check for one in ones)
    for rows, width in ((targets, 2), (bases, 3)):
        for column in range(width):
            body += b"".join(struct.pack("<I", row[column]) for row in rows)
    return body


def pieces_of(ones: Sequence[One], lengths: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return (record, unit, start, length) of each chunk that units make."""
    found = []
    for number, one in enumerate(ones):
        start = 0
        for record, count in one.targets:
            for at in range(record, record + count):
                found.append((at, number, start, lengths[at]))
                start += lengths[at]
    return found


# ---- values


def table_of(records: Sequence[int]) -> Table:
    """A table of records: lengths, negative ones of zero runs."""
    stored = np.array([-length | ZERO if length < 0 else length for length in records], dtype=np.uint32)
    chunks = sum(length > 0 for length in records)
    return Table.from_records(stored, np.arange(32 * chunks, dtype=np.uint64).astype(np.uint8).reshape(-1, 32))


@st.composite
def valid(draw: st.DrawFn) -> tuple[list[PackRef], list[One], list[int]]:
    """Packs, units, and the records (negative: zero runs) of a table that they fit."""
    packs = draw(
        st.lists(
            st.builds(PackRef, st.binary(min_size=32, max_size=32), st.integers(17, MAX_PACK)), min_size=1, max_size=3
        )
    )
    records: list[int] = []
    ones: list[One] = []
    for _ in range(draw(st.integers(0, 5))):
        runs, raw = [], 0
        for _ in range(draw(st.integers(1, 3))):
            for _ in range(draw(st.integers(0, 2))):  # records that no unit makes, zero runs never side by side
                zeros = draw(st.booleans()) and not (records and records[-1] < 0)
                records.append(-draw(st.integers(1, 50_000)) if zeros else draw(st.integers(1, 50_000)))
            count = draw(st.integers(1, 4))
            runs.append((len(records), count))
            records += [draw(st.integers(1, MAX_CHUNK_SIZE)) for _ in range(count)]
            raw += sum(records[-count:])
        pack = draw(st.integers(0, len(packs) - 1))
        offset = draw(st.integers(16, packs[pack].length - 1))
        stored = draw(st.integers(1, packs[pack].length - offset))
        bases = []
        for _ in range(draw(st.integers(0, 3))):
            first = draw(st.integers(0, MAX_RECORDS - 1))
            most = min(MAX_RECORDS - first, MAX_RECORDS - sum(count for *_, count in bases))
            if most:
                bases.append((draw(st.integers(0, REGIONS - 1)), first, draw(st.integers(1, most))))
        check, plain = draw(st.binary(min_size=16, max_size=16)), draw(st.integers(0, 2**32 - 1))
        ones.append(One(pack, offset, stored, raw, plain, check, tuple(runs), tuple(bases)))
    return packs, ones, records


def example() -> tuple[list[PackRef], list[One], list[int]]:
    """Two units of two packs, and the records of their region."""
    packs = [PackRef(bytes(range(32)), 1000), PackRef(bytes(range(32, 64)), MAX_PACK)]
    ones = [
        One(0, 16, 300, 20_000, 4000, bytes([7] * 16), ((0, 2), (3, 1)), ((5, 0, 3), (2, 9, 1), (5, 1, 4))),
        One(1, 70_000, 5, 4096, 100, bytes([8] * 16), ((5, 1),), ()),
    ]
    return packs, ones, [8192, 4096, -16_384, 7712, 4096, 4096]


# ---- round trips


@given(valid())
def test_units_round_trip(drawn: tuple[list[PackRef], list[One], list[int]]) -> None:
    packs, ones, _ = drawn
    value = joined(packs, ones)
    checked = Units.of(value.packs, value.units, value.targets, value.bases)
    stored = checked.to_bytes()
    again = Units.from_bytes(stored)
    assert again.packs == tuple(packs)
    assert taken_apart(again) == ones
    assert decompress(stored, 1 << 20, "units") == body_of(packs, ones)


@given(valid())
def test_pieces(drawn: tuple[list[PackRef], list[One], list[int]]) -> None:
    packs, ones, records = drawn
    found = joined(packs, ones).pieces(table_of(records or [1]))
    assert found.tolist() == pieces_of(ones, records)


@given(valid(), st.randoms(use_true_random=False))
def test_select_and_frames(drawn: tuple[list[PackRef], list[One], list[int]], rnd: Any) -> None:
    packs, ones, _ = drawn
    value = joined(packs, ones)
    chosen = sorted(rnd.sample(range(len(ones)), rnd.randint(0, len(ones))))
    part = value.select(np.array(chosen, dtype=np.int64))
    assert part.packs == tuple(packs)
    assert taken_apart(part) == [ones[number] for number in chosen]
    frames = [(one.pack, one.offset, one.stored, one.raw, DELTA_CODEC, list(one.check)) for one in ones]
    columns = ("pack", "offset", "stored", "raw", "codec", "check")
    assert [tuple(row[name].tolist() for name in columns) for row in value.frames] == frames


@given(st.dictionaries(st.integers(0, REGIONS - 1), valid(), max_size=4), st.binary(min_size=64, max_size=64))
@settings(max_examples=50)
def test_an_index_round_trip(regions: dict[int, tuple[list[PackRef], list[One], list[int]]], digests: bytes) -> None:
    data = encode_index(
        digests[:32], digests[32:], ((region, joined(*regions[region][:2])) for region in sorted(regions))
    )
    index = DeltaIndex(data)
    assert (index.target, index.base) == (digests[:32], digests[32:])
    assert index.regions.tolist() == sorted(regions)
    for region, (packs, ones, _) in regions.items():
        units = index.units(region)
        assert units is not None
        assert (units.packs, taken_apart(units)) == (tuple(packs), ones)
        for other in (region - 1, region + 1):
            assert (index.units(other) is None) == (other not in regions)


def test_golden() -> None:
    """An index as it was written once: read for ever, and written again from the same values."""
    golden = json.loads(GOLDEN.read_text())
    index = DeltaIndex(bytes.fromhex("".join(golden["data"])))
    assert (index.target.hex(), index.base.hex()) == (golden["target"], golden["base"])
    assert index.regions.tolist() == [int(region) for region in golden["regions"]]
    for region, (packs, ones) in golden["regions"].items():
        refs = [PackRef(bytes.fromhex(digest), length) for digest, length in packs]
        expected = [
            One(*numbers, bytes.fromhex(check), tuple(map(tuple, targets)), tuple(map(tuple, bases)))
            for numbers, check, targets, bases in ones
        ]
        units = index.units(int(region))
        assert units is not None
        assert (units.packs, taken_apart(units)) == (tuple(refs), expected)
        assert decompress(units.to_bytes(), 1 << 20, "units") == body_of(refs, expected)


# ---- limits


def test_an_index_of_nothing() -> None:
    index = DeltaIndex(encode_index(bytes(32), bytes(32), ()))
    assert index.regions.tolist() == []
    assert index.units(0) is None
    nothing = Units.from_bytes(joined([], []).to_bytes())
    assert len(nothing.pieces(table_of([4096]))) == len(nothing.frames) == 0


def largest(count: int = MAX_RECORDS) -> Units:
    """As many of everything as there may be; of all but bases ``count``."""
    units = np.zeros(count, dtype=UNIT)
    units["pack"], units["offset"], units["stored"], units["raw"] = np.arange(count), 16, 1, MAX_TARGET
    units["targets"], units["bases"] = 1, MAX_BASES // count
    units["check"] = np.random.default_rng(1).integers(0, 256, (count, 16))
    targets = np.ones(count, dtype=TARGET)
    targets["record"] = np.arange(count)
    bases = np.ones(MAX_BASES, dtype=BASE)
    bases["region"] = REGIONS - 1
    refs = tuple(PackRef(number.to_bytes(32, "little"), MAX_PACK) for number in range(count))
    return Units.of(refs, units, targets, bases)


def test_as_much_as_there_may_be_in_bounded_memory() -> None:
    value = largest()
    stored = value.to_bytes()
    tracemalloc.start()
    try:
        again = Units.from_bytes(stored)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
    assert again.packs == value.packs
    for name in ("units", "targets", "bases"):
        assert np.array_equal(getattr(again, name), getattr(value, name))


CHANGES: dict[str, tuple[str, int, str, int]] = {
    "a pack that is not there": ("units", 0, "pack", 2),
    "a pack far from there": ("units", 0, "pack", 2**32 - 1),
    "in the header of its pack": ("units", 0, "offset", 15),
    "begins beyond its pack": ("units", 0, "offset", 1000),
    "ends beyond its pack": ("units", 0, "stored", 985),
    "ends beyond everything": ("units", 0, "stored", 2**32 - 1),
    "offset and length overflow": ("units", 1, "offset", 2**32 - 1),
    "stored as nothing": ("units", 0, "stored", 0),
    "makes nothing": ("units", 0, "raw", 0),
    "makes too much": ("units", 0, "raw", MAX_TARGET + 1),
    "no targets": ("units", 0, "targets", 0),
    "more targets than there are": ("units", 0, "targets", 3),
    "targets beyond everything": ("units", 0, "targets", 2**32 - 1),
    "fewer targets than there are": ("units", 0, "targets", 1),
    "more bases than there are": ("units", 0, "bases", 4),
    "fewer bases than there are": ("units", 0, "bases", 2),
    "a target of nothing": ("targets", 0, "count", 0),
    "a target over the next": ("targets", 0, "count", 4),
    "a target out of order": ("targets", 1, "record", 1),
    "a target over the next one's start": ("targets", 1, "count", 3),
    "a target beyond any table": ("targets", 2, "record", MAX_RECORDS),
    "a target beyond everything": ("targets", 2, "count", 2**32 - 1),
    "a base of nothing": ("bases", 1, "count", 0),
    "a base beyond any table": ("bases", 1, "record", MAX_RECORDS),
    "a base that leaves any table": ("bases", 0, "record", MAX_RECORDS - 2),
    "more base chunks than a table has": ("bases", 2, "count", MAX_RECORDS - 1),
    "a base beyond everything": ("bases", 1, "count", 2**32 - 1),
    "a region beyond any image": ("bases", 1, "region", REGIONS),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_number_out_of_its_range(change: tuple[str, int, str, int]) -> None:
    part, number, name, value = change
    packs, ones, _ = example()
    good = joined(packs, ones)
    rows = {name: getattr(good, name).copy() for name in ("units", "targets", "bases")}
    Units.of(good.packs, **rows)
    rows[part][name][number] = value
    with pytest.raises(FormatError):
        Units.of(good.packs, **rows)
    with pytest.raises(FormatError):
        Units.from_bytes(Units(good.packs, **rows).to_bytes())


@pytest.mark.parametrize("length", [0, 16, MAX_PACK + 1, 2**32 - 1])
def test_a_pack_of_another_length_than_packs_have(length: int) -> None:
    value = joined([PackRef(bytes(32), length)], [])
    with pytest.raises(FormatError):
        Units.from_bytes(value.to_bytes())


EDGES: dict[str, Callable[[dict[str, NDArray[np.void]]], None]] = {
    "as much as a unit makes": lambda rows: rows["units"]["raw"].__setitem__(0, MAX_TARGET),
    "up to its pack's end": lambda rows: rows["units"]["stored"].__setitem__(0, 984),
    "up to a table's end": lambda rows: rows["targets"]["record"].__setitem__(2, MAX_RECORDS - 1),
    "as many chunks as a table has": lambda rows: rows["bases"]["count"].__setitem__(2, MAX_RECORDS - 4),
    "the last region": lambda rows: rows["bases"]["region"].__setitem__(0, REGIONS - 1),
}


@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES.keys())
def test_the_last_number_of_a_range(edge: Callable[[dict[str, NDArray[np.void]]], None]) -> None:
    packs, ones, _ = example()
    good = joined(packs, ones)
    rows = {name: getattr(good, name).copy() for name in ("units", "targets", "bases")}
    edge(rows)
    assert Units.from_bytes(Units.of(good.packs, **rows).to_bytes()).packs == good.packs


@pytest.mark.parametrize(
    "records",
    [
        [8192, 4096, -16_384, 7712, 4096],  # fewer records
        [8192, 4096, -16_384, 7712, 4096, -4096],  # a zero run in a target
        [8192, 4096, -16_384, 7713, 4096, 4096],  # chunks of another length in all
        [8192, 4096, -16_384, 7712, 4096, 4095],
    ],
)
def test_units_that_do_not_fit_the_table(records: list[int]) -> None:
    packs, ones, good = example()
    joined(packs, ones).pieces(table_of(good))
    with pytest.raises(FormatError):
        joined(packs, ones).pieces(table_of(records))


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("count", [MAX_RECORDS + 1, MAX_BASES + 1, 2**31, 2**32 - 1])
def test_counts_are_compared_with_the_bytes_that_are_there(which: int, count: int) -> None:
    packs, ones, _ = example()
    body = bytearray(body_of(packs, ones))
    body[4 * which : 4 * which + 4] = count.to_bytes(4, "little")
    with pytest.raises(FormatError):
        Units.from_bytes(compress(bytes(body), 1))


@pytest.mark.parametrize(
    ("which", "count"),
    [("packs", MAX_RECORDS), ("units", MAX_RECORDS), ("targets", MAX_RECORDS), ("bases", MAX_RECORDS), ("bases", 16)],
)
def test_one_more_than_there_may_be(which: str, count: int) -> None:
    """With all its bytes there."""
    value = largest(count)
    parts: dict[str, Any] = {name: getattr(value, name) for name in ("packs", "units", "targets", "bases")}
    part = parts[which]
    parts[which] = (*part, part[0]) if which == "packs" else np.append(part, part[:1])
    if which in ("targets", "bases"):
        units = parts["units"] = parts["units"].copy()
        units[which][-1] += 1
    with pytest.raises(FormatError):
        Units.from_bytes(Units(**parts).to_bytes())


def small_index() -> bytes:
    """An index of two regions."""
    packs, ones, _ = example()
    return encode_index(
        bytes([1] * 32), bytes([2] * 32), [(3, joined(packs, ones)), (9, joined(packs[1:], [replaced(ones[1])]))]
    )


def replaced(one: One) -> One:
    """The same unit as the only one of a single pack."""
    return One(0, one.offset, one.stored, one.raw, one.plain, one.check, one.targets, ((0, 0, MAX_RECORDS),))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"trimFrom"),
        (8, b"\0\0"),
        (8, b"\2\0"),  # a newer format
        (10, b"\1\0"),  # reserved
        (11, b"\1"),
        (12, b"\1\0\0\0"),  # fewer rows
        (12, b"\3\0\0\0"),
        (12, b"\xff\xff\xff\xff"),
        (HEADER, b"\x09"),  # two rows of one region
        (HEADER, b"\x0a"),  # the first region after the second
        (HEADER + 4, b"\0\0\0\0"),  # shorter than what follows
        (HEADER + 4, b"\xff\xff\xff\xff"),
    ],
)
def test_a_header_or_a_directory_that_is_none(at: int, value: bytes) -> None:
    data = bytearray(small_index())
    DeltaIndex(data)
    data[at : at + len(value)] = value
    with pytest.raises(FormatError):
        DeltaIndex(data)


def test_a_newer_format_is_called_so() -> None:
    data = bytearray(small_index())
    data[8] = 2
    with pytest.raises(FormatError, match="newer"):
        DeltaIndex(data)


def test_an_index_longer_than_any() -> None:
    with pytest.raises(FormatError):
        DeltaIndex(memoryview(bytes(MAX_INDEX + 1)))
    rows = MAX_INDEX // 24 - 10  # as much as fits, of more regions than an image has
    header = b"TrimFrom" + struct.pack("<HHI", 1, 0, rows) + bytes(64)
    directory = np.zeros(rows, dtype=[("region", "<u4"), ("rest", "u1", (20,))])
    directory["region"] = np.arange(rows)
    with pytest.raises(FormatError):
        DeltaIndex(header + directory.tobytes())


# ---- damage


def values(index: DeltaIndex) -> dict[int, tuple[tuple[PackRef, ...], list[One]]]:
    """Return all units of an index."""
    found = {}
    for region in index.regions.tolist():
        units = index.units(region)
        assert units is not None
        found[region] = units.packs, taken_apart(units)
    return found


def test_every_flipped_bit_and_every_truncation_of_an_index() -> None:
    """What no check covers is which pair it is of, and which region units are of; their pieces tell."""
    data = small_index()
    whole = values(DeltaIndex(data))
    for at in range(len(data)):
        with pytest.raises(FormatError):
            DeltaIndex(data[:at])
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            try:
                found = values(DeltaIndex(damaged))
            except (FormatError, IntegrityError):
                continue
            assert 16 <= at < HEADER or (at - HEADER) % 24 < 4
            assert list(found.values()) == list(whole.values())
    with pytest.raises(FormatError):
        DeltaIndex(data + b"\0")


def test_every_flipped_bit_and_every_truncation_of_units() -> None:
    """The index has a check of them; the parser must merely stay calm."""
    packs, ones, records = example()
    stored, table = joined(packs, ones).to_bytes(), table_of(records)
    for at in range(len(stored)):
        with pytest.raises(FormatError):
            Units.from_bytes(stored[:at])
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[at] ^= 1 << bit
            calmly(bytes(damaged), table)
    body = body_of(packs, ones)
    for at in range(len(body)):
        with pytest.raises(FormatError):
            Units.from_bytes(compress(body[:at], 1))
        for bit in range(8):
            damaged = bytearray(body)
            damaged[at] ^= 1 << bit
            calmly(compress(bytes(damaged), 1), table)


def calmly(stored: bytes, table: Table) -> None:
    """Read units and apply them."""
    try:
        units = Units.from_bytes(stored)
        assert len(units.pieces(table)) <= len(table)
        assert len(taken_apart(units)) == len(units.units)
    except FormatError:
        pass


@settings(max_examples=300)
@given(st.binary(max_size=300), st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_hostile_bytes_raise_format_errors_only(data: bytes, counts: list[int]) -> None:
    table = table_of(example()[2])
    head = struct.pack("<4I", *counts)
    for attempt in (data, compress(data, 1), compress(head + data, 1)):
        calmly(attempt, table)
    header = b"TrimFrom" + struct.pack("<HHI", 1, 0, counts[0] % 2) + bytes(64)
    for attempt in (data, header + data):
        try:
            values(DeltaIndex(attempt))
        except (FormatError, IntegrityError):
            continue


@settings(max_examples=300)
@given(st.lists(st.sampled_from([0, 1, 2, 16, 17, 4096, MAX_RECORDS, MAX_TARGET, 2**31, 2**32 - 1]), max_size=40))
def test_hostile_numbers(numbers: list[int]) -> None:
    """One unit of one pack whose numbers are anything."""
    columns = (numbers + [1] * 40)[:12]
    ref = bytes(32) + MAX_PACK.to_bytes(4, "little")
    body = struct.pack("<4I", 1, 1, 1, 1) + ref + struct.pack("<7I", *columns[:7]) + bytes(16)
    calmly(compress(body + struct.pack("<5I", *columns[7:]), 1), table_of([4096, 1, 16]))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = compress(bytes(64 << 20), 1)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="declared size"):
            Units.from_bytes(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_units_that_are_no_longer_what_they_were() -> None:
    """Their check is compared before anything is decoded."""
    data = bytearray(small_index())
    data[-1] ^= 1
    index = DeltaIndex(data)
    assert index.units(3) is not None
    with pytest.raises(IntegrityError, match="region 9"):
        index.units(9)
    assert object_check(data[-5:]) != object_check(small_index()[-5:])
