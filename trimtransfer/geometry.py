"""What an image is, told from its first sectors: its kind, and the segments that have a block grid of their own.

Recognition only steers where chunks end. A wrong guess costs bytes, never correctness, so tables are read with bounds
but without checksums: hostile or damaged ones at worst give one segment, or a few odd ones.

Sources: UEFI 2.10 section 5 (MBR, GPT); ECMA-119 8.4 (ISO 9660); the file systems' own descriptions for their marks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from trimtransfer.chunk import BLOCK_SIZE, Kind
from trimtransfer.manifest import MAX_SEGMENTS, Segment

Read: TypeAlias = Callable[[int, int], bytes]
"""``read(offset, length)`` returns these bytes of the image, fewer only at its end."""

SECTOR: Final = 512
_MAX_LOGICAL: Final = 128
"""Logical partitions followed in an extended one; a chain in a circle ends here."""
_MAX_ENTRIES: Final = 1024
"""GPT entries looked at; 128 are usual."""
_PAGE_SIZES: Final = (4096, 8192, 16384, 65536)
_EXTENDED: Final = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE: Final = 0xEE
_ISO_DESCRIPTOR: Final = 16 * 2048
_RAID_MARK: Final = b"\xfc\x4e\x2b\xa9"
"""Of a member's superblock (Linux, md): at the start, or near the end, in the places of its four versions."""
_MBR_ENTRY: Final = struct.Struct("<B3xB3xII")
_GPT_HEADER: Final = struct.Struct("<8s64xQII")
_GPT_ENTRY: Final = struct.Struct("<16s16xQQ")

_MAGIC: Final[tuple[tuple[str, int, bytes], ...]] = (
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("XFS", 0, b"XFSB"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("ReFS", 3, b"ReFS\x00\x00\x00\x00"),
    ("LVM2", 512 + 24, b"LVM2 001"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("HFS+", 1024, b"H+\x00\x04"),
    ("HFSX", 1024, b"HX\x00\x05"),
    ("APFS", 32, b"NXSB"),
    ("btrfs", 65536 + 64, b"_BHRfS_M"),
)
"""File systems and the like that fill an image without a partition table: name, offset of a mark, the mark."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What was recognised: ``name`` for people (``GPT``, ``ext4``, ``file``), the kind, the segments."""

    name: str
    kind: Kind
    segments: tuple[Segment, ...]


def recognise(read: Read, size: int, *, kind: Kind | None = None) -> Geometry:
    """Return the geometry of an image of ``size`` bytes; ``kind`` overrides the kind that would be chosen.

    A disk has a segment from its start, and one from each partition on that does not lie on the block grid of the
    segment before it. Other content is one segment.
    """
    name = _recognise(read, size)
    chosen = kind if kind is not None else _kind(name)
    starts = _grid_starts(_partitions(read, size, name)) if chosen is Kind.DISK else [0]
    ends = [*starts[1:], size]
    return Geometry(name, chosen, tuple(Segment(a, b - a) for a, b in zip(starts, ends, strict=True)))


def _kind(name: str) -> Kind:
    """ISO 9660 and squashfs lay files end to end (2 KiB or no alignment at all), so 4 KiB blocks would not follow them
    from one build to the next; everything else that is recognised allocates in clusters of 4 KiB or more."""
    return Kind.BYTES if name in ("file", "ISO 9660", "squashfs") else Kind.DISK


def _recognise(read: Read, size: int) -> str:
    start = read(0, 4096)
    if start[:4] in (b"hsqs", b"sqsh"):
        return "squashfs"
    if _is_iso(read, size):
        return "ISO 9660"
    if start[SECTOR : SECTOR + 8] == b"EFI PART" or read(4096, 8) == b"EFI PART":
        return "GPT"
    for name, offset, mark in _MAGIC:
        if read(offset, len(mark)) == mark:
            return name
    if _is_fat(start):
        return "FAT"
    if any(True for _ in _mbr_entries(start, 0, size)):
        return "MBR"
    if start[1080:1082] == b"\x53\xef":
        return _ext_name(start)
    if _has_swap(read):
        return "swap"
    return "file"


def _is_iso(read: Read, size: int) -> bool:
    """A disk that once was an ISO image keeps its descriptor: the volume must be about as long as the image."""
    descriptor = read(_ISO_DESCRIPTOR, 84)
    if len(descriptor) < 84 or descriptor[1:6] != b"CD001":
        return False
    volume = int.from_bytes(descriptor[80:84], "little") * 2048
    return size // 2 <= volume <= size + (1 << 20)


def _is_fat(start: bytes) -> bool:
    """FAT's own mark lies in the midst of what is code in other boot sectors: the sector size must be one, too."""
    sector_size = int.from_bytes(start[11:13], "little")
    marked = start[54:57] == b"FAT" or start[82:87] == b"FAT32"
    return marked and start[510:512] == b"\x55\xaa" and sector_size in (512, 1024, 2048, 4096)


def _ext_name(start: bytes) -> str:
    """ext4 has extents, 64-bit or flexible groups; ext3 has a journal (``s_feature_incompat``, ``_compat``)."""
    compatible, incompatible = struct.unpack_from("<II", start, 1024 + 92)
    if incompatible & (0x40 | 0x80 | 0x200):
        return "ext4"
    return "ext3" if compatible & 0x4 else "ext2"


def partitions(read: Read, size: int, name: str) -> list[tuple[int, int]]:
    """Return (start, end) in bytes of all partitions of an image of ``size`` bytes that was recognised as ``name``.

    They come in order and as the table has them: hostile ones overlap, or end where they do not begin.
    """
    if name == "GPT":
        return sorted(_gpt_partitions(read))
    return sorted(_mbr_partitions(read, size)) if name == "MBR" else []


def marks(read: Read, size: int) -> list[str]:
    """Return the names of all file systems and the like whose marks a volume of ``size`` bytes bears.

    More than one is a sign of something that was made over another; a table of partitions counts as ``MBR``.
    """
    start = read(0, 4096)
    found = [name for name, offset, mark in _MAGIC if read(offset, len(mark)) == mark]
    if _is_fat(start):
        found.append("FAT")
    if start[1080:1082] == b"\x53\xef":
        found.append(_ext_name(start))
    if any(True for _ in _mbr_entries(start, 0, size)):
        found.append("MBR")
    if read(_ISO_DESCRIPTOR + 1, 5) == b"CD001":
        found.append("ISO 9660")
    if _has_swap(read):
        found.append("swap")
    places = (0, 4096, (size - 8192) // 4096 * 4096, (size // 65536 - 1) * 65536)
    if any(read(at, 4) == _RAID_MARK for at in places if at >= 0):
        found.append("Linux RAID")
    return found


def table_doubt(read: Read) -> str:
    """Return why the GPT of an image may not be the table that counts, or nothing.

    It counts if its checksums are right and the MBR before it protects it. A program that does not know GPT leaves an
    old one in place, and then the partitions of the MBR count.
    """
    entries = [_MBR_ENTRY.unpack_from(read(0, SECTOR).ljust(SECTOR, b"\0"), 446 + 16 * number) for number in range(4)]
    kinds = {kind for _, kind, _, _ in entries if kind}
    if kinds != {_PROTECTIVE}:
        return "its MBR does not protect its GPT, which may be an old one"
    headers = [sector for sector in (SECTOR, 4096) if read(sector, 8) == b"EFI PART"]
    if len(headers) != 1:
        return "it has two GPTs, for sectors of different sizes"
    header = read(headers[0], SECTOR).ljust(SECTOR, b"\0")
    length, check = struct.unpack_from("<II", header, 12)
    table, count, size, entries_check = struct.unpack_from("<QIII", header, 72)
    blank = header[:16] + bytes(4) + header[20 : min(length, SECTOR)]
    if not 92 <= length <= SECTOR or zlib.crc32(blank) != check:
        return "the checksum of its GPT is wrong"
    if count * size > _MAX_ENTRIES * 4096 or zlib.crc32(read(table * headers[0], count * size)) != entries_check:
        return "the checksum of its GPT's entries is wrong"
    return ""


def _has_swap(read: Read) -> bool:
    return any(read(page - 10, 10) in (b"SWAPSPACE2", b"SWAP-SPACE") for page in _PAGE_SIZES)


def _partitions(read: Read, size: int, name: str) -> list[tuple[int, int]]:
    """Return the partitions that count for segments: those out of range or over another are left out."""
    kept: list[tuple[int, int]] = []
    for start, end in partitions(read, size, name):
        if 0 < start < end <= size and (not kept or start >= kept[-1][1]):
            kept.append((start, end))
    return kept


def _grid_starts(partitions: list[tuple[int, int]]) -> list[int]:
    """Return where segments start: 0, and every partition that is off the grid of the segment it would lie in."""
    starts = [0]
    for start, _ in partitions:
        if (start - starts[-1]) % BLOCK_SIZE and len(starts) < MAX_SEGMENTS:
            starts.append(start)
    return starts


def _mbr_entries(sector: bytes, base: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (type, first sector, sectors) of a partition sector's valid entries, ``base`` added to the first sector.

    A sector with an entry that no partitioning program writes is none: boot sectors of file systems end in the same
    two bytes, and have code where the table would be.
    """
    if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
        return
    entries = [_MBR_ENTRY.unpack_from(sector, 446 + 16 * n) for n in range(4)]
    if any(flag not in (0, 0x80) for flag, *_ in entries):
        return
    for _, kind, first, sectors in entries:
        if kind and first and sectors and (base + first) * SECTOR < size:
            yield kind, base + first, sectors


def _mbr_partitions(read: Read, size: int) -> Iterator[tuple[int, int]]:
    for kind, first, sectors in _mbr_entries(read(0, SECTOR), 0, size):
        if kind in _EXTENDED:
            yield from _logical_partitions(read, size, first)
        elif kind != _PROTECTIVE:
            yield first * SECTOR, (first + sectors) * SECTOR


def _logical_partitions(read: Read, size: int, extended: int) -> Iterator[tuple[int, int]]:
    """Follow the chain of an extended partition: each link holds a partition, relative to itself, and the next link,
    relative to the extended partition."""
    link = extended
    for _ in range(_MAX_LOGICAL):
        following = 0
        for kind, first, sectors in _mbr_entries(read(link * SECTOR, SECTOR), 0, size):
            if kind in _EXTENDED:
                following = extended + first
            else:
                yield (link + first) * SECTOR, (link + first + sectors) * SECTOR
        if following <= link:  # the end, or a chain that goes back
            return
        link = following


def _gpt_partitions(read: Read) -> Iterator[tuple[int, int]]:
    """Partitions of a disk of 512-byte sectors, else of one of 4 KiB sectors."""
    for sector in (SECTOR, 4096):
        header = read(sector, _GPT_HEADER.size)
        if len(header) == _GPT_HEADER.size and header[:8] == b"EFI PART":
            break
    else:
        return
    _, table, count, entry_size = _GPT_HEADER.unpack(header)
    if not _GPT_ENTRY.size <= entry_size <= 4096 or table > 1 << 40:
        return
    entries = read(table * sector, min(count, _MAX_ENTRIES) * entry_size)
    for at in range(0, len(entries) - _GPT_ENTRY.size + 1, entry_size):
        kind, first, last = _GPT_ENTRY.unpack_from(entries, at)
        if any(kind):
            yield first * sector, (last + 1) * sector
