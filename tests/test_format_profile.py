"""Profiles, host delta indexes and what tells of them: round trips, every rule, every damaged byte, the examples of
FORMAT.md."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtransfer
from trimtransfer.chunk import MAX_CHUNK_SIZE, chunk_digest, object_check, object_digest
from trimtransfer.codec import compress
from trimtransfer.deltaindex import DeltaIndex, encode_index
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.hostdelta import MAX_BASE_CHUNKS, BaseChunks, HostDelta, encode_host_delta
from trimtransfer.hosts import MAX_HOSTS, MAX_OFFERS, MAX_SAMPLE, SAMPLE, Offer, encode_hosts, parse_hosts
from trimtransfer.profile import FILE, Profile
from trimtransfer.table import ZERO

GOLDEN = Path(__file__).parent / "golden" / "profile_1.json"
FILE_CONTENT = b"second\n".ljust(4096, b"\0")
"""The one file of the examples, filled up to a block."""


def example(heading: str) -> bytes:
    """Return the bytes of the example in a section of FORMAT.md."""
    text = (Path(trimtransfer.__file__).parent / "FORMAT.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return bytes.fromhex(re.findall(r"```\n([0-9a-f \n]+)```", section)[-1])


def test_the_examples_of_the_format() -> None:
    profile = Profile.from_bytes(example("Profile"))
    assert (profile.trees, profile.paths, profile.size) == (1, (b"bin/tool",), 7)
    assert profile.records.tolist() == [4096]
    assert profile.digests[0].tobytes() == chunk_digest(FILE_CONTENT)
    delta = HostDelta(example("Host delta index"))
    prefix = int.from_bytes(chunk_digest(FILE_CONTENT)[:8], "little")
    assert (delta.chunks.lengths.tolist(), delta.chunks.prefixes.tolist()) == ([4096], [prefix])
    assert delta.index.base == object_digest(example("Profile"))
    units = delta.index.units(0)
    assert units is not None
    assert (units.targets.tolist(), units.bases.tolist()) == ([(2, 1)], [(0, 0, 1)])
    manifest = re.search(r'"manifest_digest": "(\w+)"', (Path(trimtransfer.__file__).parent / "FORMAT.md").read_text())
    assert manifest is not None
    assert delta.index.target.hex() == manifest[1]
    (offer,) = parse_hosts(example("Hosts of a version"))
    assert (offer.profile, offer.length) == ("debian-12", len(example("Host delta index")))
    assert offer.sample.tolist() == [(prefix, 4096)]
    for heading, again in (("Profile", profile.to_bytes()), ("Hosts of a version", encode_hosts([offer]))):
        assert len(again) == len(example(heading))


def test_golden() -> None:
    """Objects as they were written once: read for ever."""
    golden = json.loads(GOLDEN.read_text())
    data = {name: bytes.fromhex("".join(part["data"])) for name, part in golden.items()}
    profile, expected = Profile.from_bytes(data["profile"]), golden["profile"]
    assert (profile.trees, [path.hex() for path in profile.paths]) == (expected["trees"], expected["paths"])
    assert [list(row) for row in profile.files.tolist()] == expected["files"]
    assert profile.records.tolist() == expected["records"]
    assert [digest.tobytes().hex() for digest in profile.digests] == expected["digests"]
    delta, expected = HostDelta(data["host_delta"]), golden["host_delta"]
    assert (delta.index.target.hex(), delta.index.base.hex()) == (expected["target"], expected["base"])
    assert delta.chunks.lengths.tolist() == expected["lengths"]
    assert delta.chunks.prefixes.tolist() == expected["prefixes"]
    assert delta.index.regions.tolist() == expected["regions"]
    units = delta.index.units(expected["regions"][0])
    assert units is not None
    assert [list(row) for row in units.targets.tolist()] == expected["targets"]
    assert [list(row) for row in units.bases.tolist()] == expected["bases"]
    found = facts(parse_hosts(data["hosts"]))
    assert [[*row[:4], [list(one) for one in row[4]]] for row in found] == golden["hosts"]["offers"]


# ---- profiles


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Some files of some trees."""
    trees = draw(st.integers(1, 3))
    rows, paths, records, digests = [], [], [], 0
    for _ in range(draw(st.integers(0, 5))):
        own = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 64)), min_size=1, max_size=4))
        records += [4096 * blocks | (ZERO if zero else 0) for zero, blocks in own]
        digests += sum(not zero for zero, _ in own)
        size = 4096 * sum(blocks for _, blocks in own) - draw(st.integers(0, 4095))
        names = st.binary(min_size=1, max_size=9).filter(
            lambda one: one not in (b".", b"..") and not set(one) & {0, 47}
        )
        paths.append(b"/".join(draw(st.lists(names, min_size=1, max_size=3))))
        rows.append((draw(st.integers(0, trees - 1)), size, len(own), len(paths[-1])))
    named = np.arange(32 * digests, dtype=np.uint64).astype(np.uint8).reshape(-1, 32)
    return Profile.of(trees, np.array(rows, dtype=FILE), paths, np.array(records, dtype=np.uint32), named)


@given(profiles())
def test_profiles_round_trip(profile: Profile) -> None:
    again = Profile.from_bytes(profile.to_bytes())
    assert (again.trees, again.paths) == (profile.trees, profile.paths)
    for name in ("files", "records", "digests"):
        assert np.array_equal(getattr(again, name), getattr(profile, name))


def two_files() -> Profile:
    """One file of a chunk and a run of zeros, and one of a chunk."""
    files = np.array([(0, 12_000, 2, 3), (1, 1, 1, 1)], dtype=FILE)
    records = np.array([4096, 8192 | ZERO, 4096], dtype=np.uint32)
    return Profile.of(2, files, [b"a/b", b"c"], records, np.arange(64, dtype=np.uint8).reshape(2, 32))


PROFILE_RULES: dict[str, Callable[[Profile], Profile]] = {
    "no tree": lambda one: replace(one, trees=0),
    "too many trees": lambda one: replace(one, trees=65),
    "a file of no tree": lambda one: replace(one, trees=1),
    "a record of nothing": lambda one: replace(one, records=one.records * [1, 1, 0]),
    "a chunk too long": lambda one: replace(one, records=one.records + np.array([MAX_CHUNK_SIZE, 0, 0], np.uint32)),
    "a digest too many": lambda one: replace(one, digests=np.zeros((3, 32), np.uint8)),
    "a digest too few": lambda one: replace(one, digests=one.digests[:1]),
    "a record too many": lambda one: replace(one, records=np.append(one.records, one.records[1:2])),
    "records that end early": lambda one: replace(one, files=changed(one, "size", 12_289)),
    "records that end late": lambda one: replace(one, files=changed(one, "size", 8192)),
    "a size beyond everything": lambda one: replace(one, files=changed(one, "size", 1 << 63)),
    "records beyond everything": lambda one: replace(one, files=changed(one, "records", (1 << 32) - 1)),
    "a path above its tree": lambda one: replace(one, paths=(b"../", b"c")),
    "an absolute path": lambda one: replace(one, paths=(b"/ab", b"c")),
    "an empty path": lambda one: replace(one, paths=(b"a/b", b""), files=changed(one, "path", 0, row=1)),
    "a path with a zero byte": lambda one: replace(one, paths=(b"a\0b", b"c")),
    "a path too long": lambda one: replace(one, files=changed(one, "path", 4)),
}


def changed(one: Profile, name: str, value: int, row: int = 0) -> Any:
    files = one.files.copy()
    files[name][row] = value
    return files


@pytest.mark.parametrize("change", PROFILE_RULES.values(), ids=PROFILE_RULES.keys())
def test_a_profile_that_breaks_a_rule(change: Callable[[Profile], Profile]) -> None:
    Profile.from_bytes(two_files().to_bytes())
    with pytest.raises(FormatError):
        Profile.from_bytes(change(two_files()).to_bytes())


def test_every_damaged_byte_of_a_profile() -> None:
    data = two_files().to_bytes()
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(FormatError):
                Profile.from_bytes(damaged)


@settings(max_examples=300)
@given(
    st.binary(max_size=200), st.lists(st.sampled_from([0, 1, 2, 16, 1 << 23, (1 << 32) - 1]), min_size=5, max_size=5)
)
def test_hostile_profiles(data: bytes, numbers: list[int]) -> None:
    head = b"TrimProf" + struct.pack("<HBB", 1, 1, 0)
    for columns in (data, compress(data, 1)):
        for body in (
            data,
            head + struct.pack("<5I", *numbers) + columns,
            head + struct.pack("<5I", *numbers[:4], len(columns)) + columns,
        ):
            try:
                Profile.from_bytes(body + object_digest(body))
            except FormatError:
                continue


# ---- host delta indexes


def host_delta(lengths: list[int], prefixes: list[int]) -> bytes:
    """Return an index with these base chunks and no units."""
    chunks = BaseChunks(np.array(lengths, np.uint32), np.array(prefixes, np.uint64))
    return encode_host_delta(chunks, encode_index(bytes(32), bytes(range(32)), ()))


@given(st.lists(st.tuples(st.integers(1, MAX_CHUNK_SIZE), st.integers(0, 2**64 - 1)), max_size=20))
def test_host_deltas_round_trip(chunks: list[tuple[int, int]]) -> None:
    delta = HostDelta(host_delta([length for length, _ in chunks], [prefix for _, prefix in chunks]))
    assert list(zip(delta.chunks.lengths.tolist(), delta.chunks.prefixes.tolist(), strict=True)) == chunks
    assert (delta.index.target, delta.index.base) == (bytes(32), bytes(range(32)))


def test_every_damaged_byte_of_a_host_delta() -> None:
    """The digests of target and base at the end are anybody's; all else is refused."""
    data = host_delta([4096, 8192], [1, 2**64 - 1])
    for at in range(len(data)):
        with pytest.raises((FormatError, IntegrityError)):
            HostDelta(data[:at])
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if at < len(data) - 64:
            with pytest.raises((FormatError, IntegrityError)):
                HostDelta(damaged)


@pytest.mark.parametrize("length", [0, MAX_CHUNK_SIZE + 1, 2**32 - 1])
def test_base_chunks_of_a_length_that_none_has(length: int) -> None:
    with pytest.raises(FormatError):
        HostDelta(host_delta([length], [1]))


@settings(max_examples=300)
@given(st.binary(max_size=100), st.sampled_from([0, 1, 2, MAX_BASE_CHUNKS, 2**32 - 1]), st.booleans())
def test_hostile_host_deltas(data: bytes, count: int, packed: bool) -> None:
    columns = compress(data, 1) if packed else data
    head = b"TrimBase" + struct.pack("<HHII16s", 1, 0, count, len(columns), object_check(columns))
    for attempt in (data, head + columns, head + columns + encode_index(bytes(32), bytes(32), ())):
        try:
            assert isinstance(HostDelta(attempt).index, DeltaIndex)
        except (FormatError, IntegrityError):
            continue


def test_as_many_base_chunks_as_there_may_be_in_bounded_memory() -> None:
    data = host_delta([4096] * MAX_BASE_CHUNKS, list(range(MAX_BASE_CHUNKS)))
    with pytest.raises(FormatError):
        HostDelta(host_delta([4096] * (MAX_BASE_CHUNKS + 1), list(range(MAX_BASE_CHUNKS + 1))))
    tracemalloc.start()
    try:
        assert len(HostDelta(data).chunks) == MAX_BASE_CHUNKS
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20


# ---- what a version offers

offers = st.builds(
    lambda name, length, plain, stored, sample: Offer(name, length, plain, stored, np.array(sample, dtype=SAMPLE)),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(
        lambda name: not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)", name)
    ),
    st.integers(1, 1 << 27),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, MAX_CHUNK_SIZE)), max_size=MAX_SAMPLE),
)


def facts(found: list[Offer]) -> list[Any]:
    return [(one.profile, one.length, one.plain, one.stored, one.sample.tolist()) for one in found]


@given(st.lists(offers, max_size=5, unique_by=lambda one: one.profile))
def test_offers_round_trip(found: list[Offer]) -> None:
    data = encode_hosts(found)
    assert len(data) <= MAX_HOSTS
    assert facts(parse_hosts(data)) == facts(found)


def offer(name: str = "host", count: int = 1, **values: int) -> Offer:
    return Offer(name, **{"length": 1, "plain": 2, "stored": 3, **values}, sample=np.ones(count, dtype=SAMPLE))


def test_limits_of_offers() -> None:
    most = [offer(f"{number:064}", MAX_SAMPLE) for number in range(MAX_OFFERS)]
    assert len(encode_hosts(most)) == MAX_HOSTS
    assert len(parse_hosts(encode_hosts(most))) == MAX_OFFERS
    for wrong in (
        [*most, offer()],
        [offer(), offer()],
        [offer("Host")],
        [offer(count=MAX_SAMPLE + 1)],
        [offer(length=0)],
        [offer(length=(1 << 27) + 1)],
        [offer(plain=1 << 63)],
        [replace(offer(), sample=np.zeros(1, dtype=SAMPLE))],
    ):
        with pytest.raises(FormatError):
            encode_hosts(wrong)


def test_every_damaged_byte_of_offers() -> None:
    data = encode_hosts([offer(), offer("other", 3)])
    body = data[:-16]
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        for wrong in (data[:at], damaged):
            with pytest.raises(FormatError):
                parse_hosts(wrong)
        for bit in range(8 if at < len(body) else 0):  # with a check that is right
            hostile = body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :]
            try:
                parse_hosts(hostile + object_check(hostile))
            except FormatError:
                continue


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 3))
def test_hostile_offers(data: bytes, count: int) -> None:
    for body in (data, b"TrimHost" + struct.pack("<HH", 1, count) + data):
        try:
            parse_hosts(body + object_check(body))
        except FormatError:
            continue
