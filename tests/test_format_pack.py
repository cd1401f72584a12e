"""Frames, packs and locations: round trips, limits, and hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtransfer.chunk import object_check, object_digest
from trimtransfer.codec import compress
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.location import FRAME, RUN, Locations, PackRef
from trimtransfer.pack import (
    MAX_FRAME_RAW,
    MAX_PACK,
    PACK_MAGIC,
    Codec,
    PackBuilder,
    check_pack,
    decode_frame,
    encode_frame,
    pack_name,
)
from trimtransfer.table import ZERO, Table


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 30))
def test_frame_round_trip(content: bytes, times: int) -> None:
    raw = content * times
    codec, stored = encode_frame(raw, level=3)
    assert len(stored) <= len(raw)
    assert decode_frame(stored, codec=codec, raw=len(raw), check=object_check(stored)) == raw


def test_incompressible_frames_are_stored_plain() -> None:
    raw = np.random.default_rng(7).bytes(70_000)
    assert encode_frame(raw, level=19) == (Codec.PLAIN, raw)


@pytest.mark.parametrize("size", [0, MAX_FRAME_RAW + 1])
def test_frames_have_limits(size: int) -> None:
    with pytest.raises(ValueError, match="a frame holds"):
        encode_frame(bytes(size), level=1)


def test_a_frame_is_checked_before_it_is_decoded() -> None:
    codec, stored = encode_frame(b"content " * 1000, level=3)
    check = object_check(stored)
    for at in range(len(stored)):
        damaged = bytearray(stored)
        damaged[at] ^= 0x10
        with pytest.raises(IntegrityError):
            decode_frame(damaged, codec=codec, raw=8000, check=check)
    with pytest.raises(FormatError):
        decode_frame(stored, codec=codec, raw=7999, check=check)
    with pytest.raises(FormatError):
        decode_frame(stored, codec=9, raw=8000, check=check)
    bomb = compress(bytes(64 << 20), 1)
    with pytest.raises(FormatError, match="declared size"):
        decode_frame(bomb, codec=Codec.ZSTD, raw=64 << 20, check=object_check(bomb))


def test_packs_hold_frames_up_to_their_limit() -> None:
    builder = PackBuilder()
    assert builder.empty
    frame = bytes(range(250)) * 1000
    offsets = []
    while not builder.full(len(frame)):
        offsets.append(builder.add(frame))
    with pytest.raises(ValueError, match="does not fit"):
        builder.add(frame)
    digest, data = builder.finish()
    assert offsets == [len(PACK_MAGIC) + n * len(frame) for n in range(15)]
    assert len(data) <= MAX_PACK
    assert digest == object_digest(data)
    check_pack(data, digest)
    assert pack_name(digest) == f"packs/{digest.hex()[:2]}/{digest.hex()}.bin"
    with pytest.raises(IntegrityError):
        check_pack(data[:-1] + b"!", digest)
    for bad in (b"", b"TrimPack\x02" + bytes(7), data + bytes(MAX_PACK)):
        with pytest.raises(FormatError):
            check_pack(bad, digest)


def locations(seed: int, frames: int = 3) -> Locations:
    rng = np.random.default_rng(seed)
    table = np.zeros(frames, dtype=FRAME)
    table["offset"] = 16 + 100 * np.arange(frames)
    table["stored"], table["raw"], table["codec"] = 100, 12_288, 1
    table["check"] = rng.integers(0, 256, (frames, 16))
    runs = np.array([(0, 2, 0, 0), (3, 1, 1, 4096), (4, 1, 2, 0)], dtype=RUN)
    return Locations.of((PackRef(rng.bytes(32), 16 + 100 * frames),), table, runs)


def table_of(records: list[int]) -> Table:
    chunks = sum(1 for n in records if n < ZERO)
    return Table.from_records(np.array(records, dtype=np.uint32), np.ones((chunks, 32), dtype=np.uint8))


REGION = [4096, 8192, ZERO | 16_384, 8192, 4096]


def test_locations_round_trip_and_pieces() -> None:
    value = locations(1)
    again = Locations.from_bytes(value.to_bytes())
    assert again.packs == value.packs
    assert np.array_equal(again.frames, value.frames)
    assert np.array_equal(again.runs, value.runs)
    pieces = again.pieces(table_of(REGION))
    assert pieces.tolist() == [(0, 0, 0, 4096), (1, 0, 4096, 8192), (3, 1, 4096, 8192), (4, 2, 0, 4096)]


def test_no_locations_at_all_are_valid() -> None:
    nothing = Locations.of((), np.zeros(0, dtype=FRAME), np.zeros(0, dtype=RUN))
    assert len(Locations.from_bytes(nothing.to_bytes()).pieces(table_of(REGION))) == 0


@pytest.mark.parametrize(
    "records",
    [
        [4096, ZERO | 8192, 4096, 8192, 4096],  # a run over a zero record
        [4096, 8192, ZERO | 16_384, 8193, 4096],  # a chunk that leaves its frame
        [4096, 8192, ZERO | 16_384, 8192],  # fewer records
    ],
)
def test_locations_that_do_not_fit_the_table_are_refused(records: list[int]) -> None:
    with pytest.raises(FormatError):
        locations(1).pieces(table_of(records))


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("frames", "pack", 1),
        ("frames", "offset", 15),
        ("frames", "offset", 2**32 - 1),
        ("frames", "stored", 0),
        ("frames", "stored", 2**32 - 1),
        ("frames", "raw", 0),
        ("frames", "raw", MAX_FRAME_RAW + 1),
        ("frames", "codec", 2),
        ("runs", "record", 2**32 - 1),
        ("runs", "count", 0),
        ("runs", "count", 4),
        ("runs", "frame", 3),
    ],
)
def test_numbers_out_of_range_are_refused(part: str, name: str, value: int) -> None:
    good = locations(2)
    rows = {"frames": good.frames.copy(), "runs": good.runs.copy()}
    rows[part][name][0] = value
    with pytest.raises(FormatError):
        Locations.of(good.packs, rows["frames"], rows["runs"])
    with pytest.raises(FormatError):
        Locations.from_bytes(Locations(good.packs, rows["frames"], rows["runs"]).to_bytes())


@settings(max_examples=300)
@given(st.binary(max_size=200), st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_hostile_locations_raise_format_errors_only(data: bytes, counts: list[int]) -> None:
    head = b"".join(n.to_bytes(4, "little") for n in counts)
    for attempt in (data, compress(data, 1), compress(head + data, 1)):
        try:
            found = Locations.from_bytes(attempt)
        except FormatError:
            continue
        try:
            found.pieces(table_of(REGION))
        except FormatError:
            continue


def test_every_flip_and_truncation_of_stored_locations() -> None:
    stored = locations(3).to_bytes()
    for at in range(len(stored)):
        with pytest.raises(FormatError):
            Locations.from_bytes(stored[:at])
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[at] ^= 1 << bit
            try:  # the check in the manifest finds all of these; the parser must merely stay calm
                Locations.from_bytes(damaged).pieces(table_of(REGION))
            except FormatError:
                continue
