"""Recognition of disks and file systems, and the segments that follow from it; hostile tables stay harmless."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.chunk import Kind
from trimtransfer.geometry import SECTOR, Geometry, marks, partitions, recognise, table_doubt
from trimtransfer.image import ImageSource
from trimtransfer.manifest import MAX_SEGMENTS

MIB = 1 << 20
PATH = os.pathsep.join((os.environ["PATH"], "/sbin", "/usr/sbin"))


def look(image: bytes, *, size: int | None = None, kind: Kind | None = None) -> Geometry:
    """Recognise an image given by its first bytes; the rest up to ``size`` counts as zeros."""
    whole = size or len(image)

    def read(offset: int, length: int) -> bytes:
        return image[offset : offset + length].ljust(max(0, min(length, whole - offset)), b"\0")

    found = recognise(read, whole, kind=kind)
    check(found, whole)
    return found


def check(found: Geometry, size: int) -> None:
    """Segments cover the image without gaps, and none is empty unless the image is."""
    at = 0
    for segment in found.segments:
        assert segment.start == at
        assert segment.length > 0 or size == 0
        at += segment.length
    assert at == size
    assert 1 <= len(found.segments) <= MAX_SEGMENTS


def starts(found: Geometry) -> list[int]:
    return [segment.start // SECTOR for segment in found.segments]


def table(*entries: tuple[int, int, int], flag: int = 0) -> bytes:
    """A partition sector with entries (type, first sector, sectors)."""
    packed = b"".join(struct.pack("<B3xB3xII", flag, *entry) for entry in entries)
    return (bytes(446) + packed).ljust(510, b"\0") + b"\x55\xaa"


def put(image: bytearray, at: int, data: bytes) -> None:
    image[at : at + len(data)] = data


def test_anything_else_is_a_file() -> None:
    for image in (b"", b"x", bytes(4096), os.urandom(100), b"#!/bin/sh\n" * 1000):
        found = look(image)
        assert (found.name, found.kind, len(found.segments)) == ("file", Kind.BYTES, 1)
    assert look(b"text" * 1000, kind=Kind.DISK).kind is Kind.DISK


@pytest.mark.parametrize(
    ("name", "marks", "kind"),
    [
        ("ext2", {1080: b"\x53\xef"}, Kind.DISK),
        ("ext3", {1080: b"\x53\xef", 1116: b"\x04"}, Kind.DISK),
        ("ext4", {1080: b"\x53\xef", 1116: b"\x04", 1120: b"\x42"}, Kind.DISK),
        ("NTFS", {3: b"NTFS    ", 510: b"\x55\xaa"}, Kind.DISK),
        ("exFAT", {3: b"EXFAT   ", 510: b"\x55\xaa"}, Kind.DISK),
        ("FAT", {11: b"\x00\x02", 54: b"FAT16   ", 510: b"\x55\xaa"}, Kind.DISK),
        ("FAT", {11: b"\x00\x02", 82: b"FAT32   ", 510: b"\x55\xaa"}, Kind.DISK),
        ("XFS", {0: b"XFSB"}, Kind.DISK),
        ("btrfs", {65536 + 64: b"_BHRfS_M"}, Kind.DISK),
        ("swap", {4086: b"SWAPSPACE2"}, Kind.DISK),
        ("swap", {65536 - 10: b"SWAPSPACE2"}, Kind.DISK),
        ("LUKS", {0: b"LUKS\xba\xbe\x00\x02"}, Kind.DISK),
        ("LVM2", {512: b"LABELONE", 512 + 24: b"LVM2 001"}, Kind.DISK),
        ("squashfs", {0: b"hsqs"}, Kind.BYTES),
        ("ISO 9660", {32769: b"CD001", 32768 + 80: struct.pack("<I", 512)}, Kind.BYTES),
        ("file", {32769: b"CD001", 32768 + 80: struct.pack("<I", 100)}, Kind.BYTES),  # of a volume long gone
    ],
)
def test_file_systems(name: str, marks: dict[int, bytes], kind: Kind) -> None:
    image = bytearray(MIB)
    for at, mark in marks.items():
        put(image, at, mark)
    found = look(bytes(image))
    assert (found.name, found.kind, starts(found)) == (name, kind, [0])


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["mke2fs", "-q", "-F", "-t", "ext2"], "ext2"),
        (["mke2fs", "-q", "-F", "-t", "ext3"], "ext3"),
        (["mke2fs", "-q", "-F", "-t", "ext4"], "ext4"),
        (["mkswap"], "swap"),
        (["mkfs.vfat"], "FAT"),
        (["mkfs.ntfs", "-q", "-F"], "NTFS"),
        (["mkfs.xfs", "-q"], "XFS"),
        (["mkfs.btrfs", "-q"], "btrfs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_real_programs_make(tmp_path: Path, command: list[str], name: str) -> None:
    program = shutil.which(command[0], path=PATH)
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 512 * MIB)
    subprocess.run([program, *command[1:], path], check=True, capture_output=True)
    found = look(path.read_bytes()[: 8 * MIB], size=512 * MIB)
    assert (found.name, found.kind, len(found.segments)) == (name, Kind.DISK, 1)


def test_aligned_partitions_need_no_segments() -> None:
    found = look(table((0x83, 2048, 2048), (0x83, 4096, 4096)), size=8 * MIB)
    assert (found.name, found.kind, starts(found)) == ("MBR", Kind.DISK, [0])


def test_old_partitions_have_grids_of_their_own() -> None:
    found = look(table((0x07, 63, 4000), (0x83, 4063, 8000), flag=0x80), size=8 * MIB)
    assert starts(found) == [0, 63]  # 4063 - 63 is a multiple of 8 sectors: on the first one's grid
    found = look(table((0x07, 63, 4001), (0x83, 4064, 1000), (0x83, 8192, 1000)), size=8 * MIB)
    assert starts(found) == [0, 63, 4064]  # back on the image's grid at 4064, which 8192 shares


def test_partitions_over_others_or_out_of_range_count_for_nothing() -> None:
    found = look(table((0x83, 63, 1000), (0x83, 100, 10), (0x83, 1001, 1 << 20), (0x83, 1 << 30, 7)), size=8 * MIB)
    assert starts(found) == [0, 63]


def extended(image: bytearray, base: int, links: list[tuple[int, int]]) -> None:
    """Write a chain of logical partitions: (sector of the link, relative to base, first sector, relative to link)."""
    for number, (link, first) in enumerate(links):
        following = links[number + 1][0] if number + 1 < len(links) else 0
        entries = [(0x83, first, 100)] + ([(0x05, following, 200)] if following else [])
        put(image, (base + link) * SECTOR, table(*entries))


def test_logical_partitions() -> None:
    image = bytearray(4 * MIB)
    put(image, 0, table((0x83, 63, 900), (0x0F, 1008, 5000)))
    extended(image, 1008, [(0, 63), (200, 63), (409, 61)])
    assert starts(look(bytes(image))) == [0, 63, 1008 + 409 + 61]


def test_chains_in_circles_end() -> None:
    image = bytearray(4 * MIB)
    put(image, 0, table((0x05, 1000, 5000)))
    put(image, 1000 * SECTOR, table((0x83, 63, 50), (0x05, 200, 100)))
    put(image, 1200 * SECTOR, table((0x83, 64, 50), (0x05, 200, 100)))  # itself
    found = look(bytes(image))
    assert starts(found) == [0, 1063, 1264]
    image = bytearray(64 * MIB)
    put(image, 0, table((0x05, 1, 100_000)))
    extended(image, 1, [(8 * n, 3 + n % 2) for n in range(1, 10_000)])  # each shorter than a partition: all overlap
    look(bytes(image))


def gpt(entries: list[tuple[int, int]], *, entry_size: int = 128, count: int | None = None, first: int = 2) -> bytes:
    image = bytearray(MIB)
    put(image, 0, table((0xEE, 1, 0xFFFFFFFF)))
    header = struct.pack("<8s64xQII", b"EFI PART", first, len(entries) if count is None else count, entry_size)
    put(image, SECTOR, header)
    for number, (start, last) in enumerate(entries):
        entry = struct.pack("<16s16xQQ", os.urandom(15) + b"\1", start, last)
        put(image, first * SECTOR + number * entry_size, entry)
    return bytes(image)


def test_gpt() -> None:
    found = look(gpt([(34, 2047), (2048, 4095), (5000, 6000)]), size=4 * MIB)
    assert (found.name, starts(found)) == ("GPT", [0, 34, 2048])  # 5000 - 2048 is a multiple of 8 sectors
    assert starts(look(gpt([(34, 1 << 60), (0, 5), (9, 3)]), size=4 * MIB)) == [0]
    found = look(gpt([(35 + 9 * n, 43 + 9 * n) for n in range(300)], count=1 << 31), size=4 * MIB)
    assert len(found.segments) == MAX_SEGMENTS


@pytest.mark.parametrize("changes", [{"entry_size": 0}, {"entry_size": 1 << 31}, {"count": 0}, {"first": 1}])
def test_hostile_gpt(changes: dict[str, int]) -> None:
    image = bytearray(gpt([(34, 2047)]))
    fields = {"first": 2, "count": 1, "entry_size": 128} | changes
    put(image, SECTOR, struct.pack("<8s64xQII", b"EFI PART", fields["first"], fields["count"], fields["entry_size"]))
    assert look(bytes(image), size=4 * MIB).name == "GPT"


def test_boot_sectors_are_no_partition_tables() -> None:
    code = random.Random(1).randbytes(446) + bytes([0x12] * 64) + b"\x55\xaa"
    assert look(code, size=MIB).name == "file"
    assert look(table((0x83, 0, 100)), size=MIB).name == "file"  # a partition at sector 0


@given(st.binary(min_size=SECTOR, max_size=4 * SECTOR), st.integers(1, 1 << 46), st.booleans())
def test_random_tables_are_harmless(noise: bytes, size: int, as_gpt: bool) -> None:
    image = bytearray(noise)
    image[510:512] = b"\x55\xaa"
    for entry in range(4):
        image[446 + 16 * entry] &= 0x80
    if as_gpt:
        image[512:520] = b"EFI PART"
    look(bytes(image), size=size)


def checked_gpt(parts: list[tuple[int, int]], *, sector: int = SECTOR) -> bytearray:
    """Return the first 64 KiB of a disk with a GPT whose checksums are right."""
    image = bytearray(64 << 10)
    put(image, 0, table((0xEE, 1, 0xFFFFFFFF)))
    entries = b"".join(struct.pack("<16s16xQQ80x", b"type", start, last) for start, last in parts).ljust(1024, b"\0")
    put(image, 2 * sector, entries)
    fields = (1, 9, 5, 8, bytes(16), 2, 8, 128, zlib.crc32(entries))
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    put(image, sector, header)
    return image


def reader(image: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda at, length: bytes(image[at : at + length])


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_gpt_that_counts(sector: int) -> None:
    image = checked_gpt([(40, 99), (10, 29)], sector=sector)
    read = reader(image)
    assert recognise(read, 1 << 30).name == "GPT"
    assert partitions(read, 1 << 30, "GPT") == [(10 * sector, 30 * sector), (40 * sector, 100 * sector)]
    assert table_doubt(read) == ""


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (450, b"\x83", "does not protect"),
        (446 + 16, struct.pack("<B3xB3xII", 0, 0x83, 100, 100), "does not protect"),
        (510, b"\0\0", ""),
        (4096, b"EFI PART", "two GPTs"),
        (512 + 40, b"\7", "checksum of its GPT is wrong"),
        (512 + 12, struct.pack("<I", 1 << 31), "checksum of its GPT is wrong"),
        (1024 + 33, b"\7", "checksum of its GPT's entries"),
    ],
)
def test_a_gpt_that_may_be_an_old_one(at: int, data: bytes, reason: str) -> None:
    image = checked_gpt([(40, 99)])
    put(image, at, data)
    doubt = table_doubt(reader(image))
    assert reason in doubt if reason else doubt == ""


def test_marks_of_several_things() -> None:
    image = bytearray(MIB)
    assert marks(reader(image), MIB) == []
    put(image, 1080, b"\x53\xef")
    put(image, 0, b"LUKS\xba\xbe")
    put(image, 4086, b"SWAPSPACE2")
    put(image, 32769, b"CD001")
    for at in (0, 4096, MIB - 8192, MIB - 65536):
        assert marks(reader(image), MIB) == ["LUKS", "ext2", "ISO 9660", "swap"]
        raid = image.copy()
        put(raid, at, b"\xfc\x4e\x2b\xa9")
        assert marks(reader(raid), MIB)[-1] == "Linux RAID"


def test_what_programs_make_has_one_mark(tmp_path: Path) -> None:
    """A file system made over another leaves none of its marks."""
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 320 * MIB)
    makers = {
        "ext4": ["mke2fs", "-q", "-F", "-t", "ext4"],
        "FAT": ["mkfs.vfat", "-F", "32"],
        "NTFS": ["mkfs.ntfs", "-q", "-F", "-Q"],
        "XFS": ["mkfs.xfs", "-q", "-f"],
    }
    for name in ("ext4", "XFS", "NTFS", "FAT", "XFS", "ext4", "FAT", "ext4"):
        program = shutil.which(makers[name][0], path=PATH)
        if program is None:
            pytest.skip(f"{makers[name][0]} is not installed")
        subprocess.run([program, *makers[name][1:], path], check=True, capture_output=True)
        with ImageSource(path) as source:
            assert marks(source.read, source.size) == [name]
