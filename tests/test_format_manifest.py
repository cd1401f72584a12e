"""Names, heads and manifests: round trips, limits, every damaged byte; and the worked example of FORMAT.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtransfer
from trimtransfer.chunk import (
    MAX_IMAGE_SIZE,
    REGION_SIZE,
    Kind,
    chunk_digest,
    image_digest,
    object_check,
    object_digest,
    region_digest,
)
from trimtransfer.errors import FormatError
from trimtransfer.head import Head
from trimtransfer.keys import KeyFile, directory
from trimtransfer.location import FRAME, RUN, Locations, PackRef
from trimtransfer.manifest import (
    DISK_FORMATS,
    KEYS,
    LOCATIONS,
    ROW,
    TABLES,
    FileRef,
    Manifest,
    Segment,
    zero_region_digest,
)
from trimtransfer.names import check_name, head_name, keys_name, locations_name, manifest_name, tables_name
from trimtransfer.pack import Codec, PackBuilder, decode_frame
from trimtransfer.table import ZERO, Table, decode_full, encode_full

GIB = 1 << 30


def manifest(
    *, length: int = 3 * REGION_SIZE + 50_000, used: tuple[int, ...] = (0, 3), start: int = 63 * 512
) -> Manifest:
    """A manifest of two segments, the second from ``start`` on, with rows for the regions ``used``."""
    segments = (Segment(0, start), Segment(start, length - start))
    zero = np.ones(sum(s.regions for s in segments), dtype=np.bool_)
    zero[list(used)] = False
    rows = np.zeros(len(used), dtype=ROW)
    for number, row in enumerate(rows):
        row["content"], row["table"] = number + 1, number + 101
        row["full"] = (0, 100, 100 * number, np.full(16, 7, dtype=np.uint8))
        row["rest"] = (1, 50, 50 * number, np.full(16, 8, dtype=np.uint8))
    files = (FileRef(TABLES, "v1", 100 * len(used), bytes(32)), FileRef(LOCATIONS, "v0", 50 * len(used), bytes(32)))
    return Manifest("win10", "v1", "v0", 7, 1_700_000_000, Kind.DISK, length, segments, files, zero, rows)


def test_manifest_round_trip() -> None:
    value = manifest()
    again = Manifest.from_bytes(value.to_bytes())
    assert again.to_bytes() == value.to_bytes()
    assert (again.image, again.version, again.parent, again.sequence) == ("win10", "v1", "v0", 7)
    assert again.region_count == 5
    assert again.digest() == object_digest(value.to_bytes())
    used = again.region(3)
    assert (used.start, used.length, used.zero) == (63 * 512 + 2 * REGION_SIZE, REGION_SIZE, False)
    assert (used.content, used.full.offset, used.difference.length, used.rest.file) == (bytes([2] * 32), 100, 0, 1)
    last = again.region(4)
    assert (last.length, last.zero, last.content) == (
        50_000 - 63 * 512,
        True,
        region_digest(bytes(last.length)),
    )


@pytest.mark.parametrize("number", range(len(DISK_FORMATS)))
@pytest.mark.parametrize("flat", [None, bytes(range(32))])
def test_what_it_was_published_from(number: int, flat: bytes | None) -> None:
    """A number in four bits of the flags; raw is none, so such manifests are as they always were."""
    value = replace(manifest(), disk_format=DISK_FORMATS[number], flat=flat)
    data = value.to_bytes()
    assert data[15] == 16 * number + (flat is not None)
    again = Manifest.from_bytes(data)
    assert (again.disk_format, again.flat) == (DISK_FORMATS[number], flat)
    assert again.image_digest() == manifest().image_digest()
    assert ("raw", "qcow2", "vhd", "vhdx", "vmdk")[number] == DISK_FORMATS[number]


def test_an_empty_image_has_one_empty_segment() -> None:
    nothing = Manifest("a", "1", "", 1, 0, Kind.BYTES, 0, (Segment(0, 0),), (), np.zeros(0, np.bool_), np.zeros(0, ROW))
    again = Manifest.from_bytes(nothing.to_bytes())
    assert (again.region_count, again.length, again.image_digest()) == (0, 0, image_digest(0, [(0, 0)], []))


def test_every_flipped_bit_truncation_and_extension_is_found() -> None:
    data = manifest().to_bytes()
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(FormatError):
                Manifest.from_bytes(damaged)
        with pytest.raises(FormatError):
            Manifest.from_bytes(data[:at])
    for extended in (data + b"\0", data + data):
        with pytest.raises(FormatError):
            Manifest.from_bytes(extended)


def resealed(data: bytes, at: int, value: bytes) -> bytes:
    """Manifest bytes with a changed field and a trailer that fits: what an attacker would send."""
    body = bytearray(data[:-32])
    body[at : at + len(value)] = value
    return bytes(body) + object_digest(bytes(body))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"X"),
        (8, b"\x03"),  # a newer format
        (8, b"\x02"),  # names no key files
        (8, b"\x00"),
        (12, b"\x03"),  # unknown kind
        (13, b"\x01"),  # unknown codec
        (14, b"\x01"),  # unknown encryption
        (15, b"\x02"),
        (15, b"\x08"),
        (15, b"\x50"),  # unknown format of the file it was published from
        (32, (MAX_IMAGE_SIZE + 1).to_bytes(8, "little")),
        (32, (5).to_bytes(8, "little")),
        (40, b"\x99"),  # image digest
        (104, b"\x01"),
        (108, (0).to_bytes(4, "little")),
        (108, (2**32 - 1).to_bytes(4, "little")),
        (112, (2**32 - 1).to_bytes(4, "little")),
        (116, (2**32 - 1).to_bytes(4, "little")),
        (121, b"/"),
        (120, b"\xff"),
    ],
)
def test_hostile_fields_are_refused(at: int, value: bytes) -> None:
    with pytest.raises(FormatError):
        Manifest.from_bytes(resealed(manifest().to_bytes(), at, value))


@settings(max_examples=300)
@given(st.integers(0, 700), st.binary(min_size=1, max_size=8))
def test_resealed_damage_raises_format_errors_only(at: int, value: bytes) -> None:
    data = manifest().to_bytes()
    try:
        Manifest.from_bytes(resealed(data, min(at, len(data) - 40), value))
    except FormatError:
        return


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_hostile_bytes_raise_format_errors_only(data: bytes) -> None:
    for attempt in (data, data + object_digest(data), manifest().to_bytes()[:120] + data):
        with pytest.raises(FormatError):
            Manifest.from_bytes(attempt)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("full", (0, 100, 101, np.zeros(16, np.uint8))),  # beyond the file
        ("full", (0, 0, 0, np.zeros(16, np.uint8))),  # absent
        ("full", (1, 50, 0, np.zeros(16, np.uint8))),  # a locations file
        ("full", (2, 50, 0, np.zeros(16, np.uint8))),  # no such file
        ("rest", (0, 50, 0, np.zeros(16, np.uint8))),
        ("fresh", (1, 2**32 - 1, 2**64 - 1, np.zeros(16, np.uint8))),
    ],
)
def test_stored_pieces_lie_within_files_of_their_kind(name: str, value: tuple[object, ...]) -> None:
    rows = manifest().rows.copy()
    rows[name][1] = value
    with pytest.raises(FormatError):
        replace(manifest(), rows=rows)


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (Segment(0, 100),),
        (Segment(1, 3 * REGION_SIZE + 49_999),),
        (Segment(0, 3 * REGION_SIZE + 50_000), Segment(3 * REGION_SIZE + 50_000, 0)),
        (Segment(0, 100), Segment(50, 3 * REGION_SIZE + 49_900)),
    ],
)
def test_segments_cover_the_image(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(FormatError):
        replace(manifest(), segments=segments)


def test_a_sparse_image_of_64_gib_has_a_small_manifest() -> None:
    assert len(manifest(length=64 * GIB).to_bytes()) < 1200


def test_zero_regions_have_the_digest_of_their_bytes() -> None:
    for length in (1, 4096, (1 << 20) - 1, 1 << 20, (3 << 20) + 17):
        assert zero_region_digest(length) == region_digest(bytes(length))


@pytest.mark.parametrize("name", ["a", "win10-22h2.2026_11", "0", "a" * 64, "connect", "com", "v1.con"])
def test_good_names(name: str) -> None:
    assert check_name("image", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "a\\b", "A", "a b", "a\0", "a\n", "-a", "_a", ".a", "a.", "a" * 65, "c:", "con",
     "nul.txt",
     "com1", "lpt9.a.b", "e\u0301", "\u00e9", "%2e%2e", "a?b"],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    for use in (lambda n: check_name("image", n), head_name, lambda n: manifest_name("ok", n)):
        with pytest.raises(FormatError):
            use(name)


def test_object_names() -> None:
    assert head_name("a") == "images/a/head.json"
    assert manifest_name("a", "1") == "images/a/1/manifest.bin"
    assert tables_name("a", "1") == "images/a/1/tables.bin"
    assert locations_name("a", "1") == "images/a/1/locations.bin"
    assert keys_name("a", "1") == "images/a/1/keys.bin"


HEAD = Head("win10", "v1", 3, bytes(range(32)), 1000, bytes(32), 64 * GIB)


def test_head_round_trip() -> None:
    assert Head.from_bytes(HEAD.to_bytes()) == HEAD
    assert len(HEAD.to_bytes()) <= 1024
    fields = json.loads(HEAD.to_bytes())
    assert Head.from_bytes(json.dumps({**fields, "later": [1]}).encode()) == HEAD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{" * 900,
        b"[" * 1000,
        b" " * 1025,
        b'{"format": 1, "format": 1}',
        HEAD.to_bytes().replace(b'"format": 1', b'"format": 2'),
        HEAD.to_bytes().replace(b'"format": 1', b'"format": true'),
        HEAD.to_bytes().replace(b'"sequence": 3', b'"sequence": 3.0'),
        HEAD.to_bytes().replace(b'"sequence": 3', b'"sequence": NaN'),
        HEAD.to_bytes().replace(b'"sequence": 3', b'"sequence": -1'),
        HEAD.to_bytes().replace(b'"sequence": 3', b'"sequence": 99999999999999999999'),
        HEAD.to_bytes().replace(b"win10", b"../x"),
        HEAD.to_bytes().replace(b"0001", b"00G1"),
        HEAD.to_bytes().replace(b"0001", b"001"),
        HEAD.to_bytes() + b"{}",
    ],
)
def test_hostile_heads_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Head.from_bytes(data)


@given(st.binary(max_size=1100))
def test_random_heads_raise_format_errors_only(data: bytes) -> None:
    with pytest.raises(FormatError):
        Head.from_bytes(data)


FIRST, SECOND = b"Trim Transfer moves disk images.".ljust(4096, b"."), b"second\n".ljust(100, b"!")


def example() -> tuple[dict[str, bytes], bytes]:
    """The objects of FORMAT.md's worked example, made anew, and the image that they describe."""
    first, second = FIRST, SECOND
    image = first + bytes(4 * 4096) + second
    records = np.array([4096, ZERO | 16_384, 100], dtype=np.uint32)
    digests = np.frombuffer(chunk_digest(first) + chunk_digest(second), dtype=np.uint8).reshape(2, 32)
    table = Table.from_records(records, digests)
    builder = PackBuilder()
    offset = builder.add(first + second)
    pack_digest, pack = builder.finish()
    frames = np.zeros(1, dtype=FRAME)
    check = np.frombuffer(object_check(first + second), dtype=np.uint8)
    frames[0] = (0, offset, len(first + second), len(first + second), Codec.PLAIN, check)
    runs = np.array([(0, 1, 0, 0), (2, 1, 0, 4096)], dtype=RUN)
    places = Locations.of((PackRef(pack_digest, len(pack)),), frames, runs)
    tables, locations = encode_full(table), places.to_bytes()
    row = np.zeros(1, dtype=ROW)
    row["content"] = np.frombuffer(region_digest(image), dtype=np.uint8)
    row["table"] = np.frombuffer(table.digest(), dtype=np.uint8)
    row["full"] = (0, len(tables), 0, np.frombuffer(object_check(tables), dtype=np.uint8))
    row["fresh"] = (1, len(locations), 0, np.frombuffer(object_check(locations), dtype=np.uint8))
    keys = directory([(table.digest(), 2)]) + key_of(first).to_bytes(8, "little") + bytes(8)
    files = (
        FileRef(TABLES, "1", len(tables), object_digest(tables)),
        FileRef(LOCATIONS, "1", len(locations), object_digest(locations)),
        FileRef(KEYS, "1", len(keys), object_digest(keys)),
    )
    value = Manifest(
        "tiny", "1", "", 1, 1_795_000_000, Kind.DISK, len(image), (Segment(0, len(image)),), files,
        np.zeros(1, np.bool_), row,
    )  # fmt: skip
    data = value.to_bytes()
    head = Head("tiny", "1", 1, object_digest(data), len(data), value.image_digest(), len(image)).to_bytes()
    return {
        "head.json": head,
        "manifest.bin": data,
        "tables.bin": tables,
        "locations.bin": locations,
        "keys.bin": keys,
        "pack": pack,
    }, image


def key_of(block: bytes) -> int:
    """The key of a block by the formula of FORMAT.md."""
    low = sum(block) % 2**32
    high = sum((len(block) - at) * byte for at, byte in enumerate(block)) % 2**32
    return (high * 2**32 + low) * 0x9E3779B97F4A7C15 % 2**64


def documented() -> dict[str, bytes]:
    """The objects of the worked example as FORMAT.md prints them."""
    text = (Path(trimtransfer.__file__).parent / "FORMAT.md").read_text()
    part = text[text.index("## Worked example") :]
    found: dict[str, bytes] = {}
    for name, body in re.findall(r"^`([a-z.]+)`[^\n]*\n\n```\n(.*?)```", part, re.DOTALL | re.MULTILINE):
        if name == "head.json":
            found[name] = body.encode()
            continue
        data = bytearray()
        for line in body.splitlines():
            if repeat := re.fullmatch(r"([0-9a-f]{2}) x (\d+)", line.split("  ")[0].strip()):
                data += bytes.fromhex(repeat[1]) * int(repeat[2])
            else:
                data += bytes.fromhex(line.split("|")[0])
        found[name] = bytes(data)
    return found


def test_the_worked_example_of_the_format_page_is_read_and_made_again() -> None:
    objects, image = documented(), example()[1]
    head = Head.from_bytes(objects["head.json"])
    assert object_digest(objects["manifest.bin"]) == head.manifest_digest
    value = Manifest.from_bytes(objects["manifest.bin"])
    assert value.image_digest() == head.image_digest
    region = value.region(0)
    table = decode_full(objects["tables.bin"], size=region.length, digest=region.table)
    places = Locations.from_bytes(objects["locations.bin"])
    assert places.packs[0].digest == object_digest(objects["pack"])
    content = bytearray(region.length)
    for record, frame, start, length in places.pieces(table).tolist():
        row = places.frames[frame]
        stored = objects["pack"][row["offset"] : row["offset"] + row["stored"]]
        raw = decode_frame(stored, codec=row["codec"], raw=int(row["raw"]), check=row["check"].tobytes())
        at = int(table.offsets[record])
        content[at : at + length] = raw[start : start + length]
        assert chunk_digest(content[at : at + length]) == table.digests[record].tobytes()
    assert content == image
    assert region_digest(content) == region.content
    keys = KeyFile(lambda offset, length: objects["keys.bin"][offset : offset + length], len(objects["keys.bin"]))
    assert keys.keys(keys.find(region.table)).tolist() == [key_of(FIRST), 0]
    assert value.file_names()[2] == keys_name("tiny", "1")
    assert value.files[2].digest == object_digest(objects["keys.bin"])
    made = example()[0]
    assert made["keys.bin"] == objects["keys.bin"]
    for name in ("head.json", "manifest.bin", "pack"):
        # zstd may compress tables and locations otherwise in another release; their content is compared above
        if made["tables.bin"] == objects["tables.bin"] and made["locations.bin"] == objects["locations.bin"]:
            assert made[name] == objects[name], name


def format_1() -> dict[str, bytes]:
    """The worked example as it was published before there were key files: ``golden/format_1.json``."""
    objects = json.loads((Path(__file__).parent / "golden" / "format_1.json").read_text())
    found = {name: bytes.fromhex("".join(lines)) for name, lines in objects.items() if name != "head.json"}
    return {**found, "head.json": objects["head.json"].encode(), "pack": example()[0]["pack"]}


def test_what_was_published_before_there_were_key_files_is_still_read() -> None:
    objects, image = format_1(), example()[1]
    head, value = Head.from_bytes(objects["head.json"]), Manifest.from_bytes(objects["manifest.bin"])
    assert (value.format, value.digest()) == (1, head.manifest_digest)
    assert value.to_bytes() == objects["manifest.bin"]
    assert value.image_digest() == head.image_digest == Manifest.from_bytes(example()[0]["manifest.bin"]).image_digest()
    assert value.region(0).content == region_digest(image)
    assert decode_full(objects["tables.bin"], size=len(image), digest=value.region(0).table).size == len(image)
