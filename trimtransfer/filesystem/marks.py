"""What the first sectors of a volume tell beyond its kind: who it is, and whether it compresses or encrypts. Pure.

Nothing but advice depends on it, so marks are believed without checksums.

Sources: the layouts of ext4 and squashfs (Linux, Documentation/filesystems), btrfs (btrfs.readthedocs.io, "On-disk
format"), EROFS, cramfs and swap (Linux headers), XFS (Algorithms and Data Structures), NTFS and FAT (boot sectors),
LUKS 1.2.3 and LUKS2, BitLocker (libbde, "BitLocker Drive Encryption format"), containers (QEMU, block/; libewf).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from trimtransfer.filesystem.volume import Volume

_EXT: Final = 1024
_BTRFS: Final = 65536
_EROFS: Final = 1024
_PAGE: Final = 4096
_BITLOCKER: Final = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
"""Identifier that a BitLocker volume has in its first sector, as it is stored there."""
_BITLOCKER_AT: Final = (160, 424)
"""Of fixed disks, and of removable ones."""
_SQUASHFS_PLAIN: Final = 0x0002
"""Flag: data are stored uncompressed."""
_BTRFS_FLAGS: Final = ((0x08, "lzo"), (0x10, "zstd"))
_EROFS_PACKED: Final = 0x1
_COMPRESSORS: Final = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_CONVERT: Final = "qemu-img convert -O qcow2"
_PLACES: Final[dict[str, tuple[int, int]]] = {
    "ext2": (_EXT + 104, 16),
    "ext3": (_EXT + 104, 16),
    "ext4": (_EXT + 104, 16),
    "XFS": (32, 16),
    "NTFS": (72, 8),
    "btrfs": (_BTRFS + 32, 16),
    "LUKS": (168, 40),
    "swap": (1024 + 12, 16),
}
"""Where the identity of a volume of each kind lies, and its length in bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a volume was given when it was made: an ``identity``, ext a ``seed`` for the order of names and a time."""

    identity: bytes
    seed: bytes = b""
    created: int = 0


def identity(volume: Volume, kind: str) -> Identity | None:
    """Return the identity of a volume of this kind (as ``geometry.marks`` names it); None if it has none that is known
    here, or lies beyond the image."""
    if kind == "FAT":
        start = _read(volume, 0, 512)
        return Identity(start[67:71] if start[82:87] == b"FAT32" else start[39:43])
    if kind not in _PLACES:
        return None
    found = _read(volume, *_PLACES[kind])
    if not found.strip(b"\0"):
        return None
    if not kind.startswith("ext"):
        return Identity(found)
    return Identity(found, _read(volume, _EXT + 236, 16), int.from_bytes(_read(volume, _EXT + 264, 4), "little"))


def encryption(volume: Volume, kind: str) -> str:
    """Return the name of what encrypts a volume, or nothing."""
    if kind == "LUKS":
        return "LUKS"
    start = _read(volume, 0, 512)
    marked = start[3:11] == b"-FVE-FS-" or any(start[at : at + 16] == _BITLOCKER for at in _BITLOCKER_AT)
    return "BitLocker" if marked else ""


def compression(volume: Volume, kind: str) -> str:
    """Return what a file system says of its own compression, such as ``squashfs (zstd)``, or nothing."""
    if kind == "btrfs":
        (flags,) = struct.unpack("<Q", _read(volume, _BTRFS + 188, 8))
        names = [name for flag, name in _BTRFS_FLAGS if flags & flag]
        return f"btrfs ({', '.join(names)})" if names else ""
    start = _read(volume, 0, 96)
    if start[:4] == b"hsqs":
        compressor, _, flags = struct.unpack_from("<HHH", start, 20)
        return "" if flags & _SQUASHFS_PLAIN else f"squashfs ({_COMPRESSORS.get(compressor, 'unknown')})"
    if start[:4] == b"\x45\x3d\xcd\x28":
        return "cramfs"
    mark, flags = struct.unpack_from("<I76xI", _read(volume, _EROFS, 84))
    return "EROFS" if mark == 0xE0F5E1E2 and flags & _EROFS_PACKED else ""


def sleeps(volume: Volume) -> bool:
    """Return whether a swap space holds the memory of a system that hibernates (Linux, kernel/power/swap.c)."""
    return _read(volume, _PAGE - 10, 9) == b"S1SUSPEND"


def packed_file(start: bytes) -> str:
    """Return how a file that begins so is compressed, or nothing."""
    marks = (
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (b"PK\x03\x04", "zip"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"LZIP", "lzip"),
        (b"MSCF", "cabinet"),
    )
    return next((name for mark, name in marks if start.startswith(mark)), "")


def container(start: bytes, end: bytes) -> tuple[str, str]:
    """Return which disk container a file is, of those that are not read here, and what makes a disk image of it;
    nothing for others. ``start`` and ``end`` are its first and last 512 bytes."""
    marks = (
        (start[64:68] == b"\x7f\x10\xda\xbe", "a VirtualBox disk (VDI)", _CONVERT),
        (start.startswith((b"WithoutFreeSpace", b"WithouFreSpacExt")), "a Parallels disk", _CONVERT),
        (start.startswith(b"QED\0"), "a QED disk", _CONVERT),
        (start.startswith(b"Bochs Virtual HD Image"), "a Bochs disk", _CONVERT),
        (end.startswith(b"koly"), "an Apple disk image (DMG)", _CONVERT),
        (
            start.startswith((b"EVF\x09\x0d\x0a\xff\0", b"EVF2\x0d\x0a\x81\0")),
            "an EnCase image (EWF)",
            "ewfexport -f raw",
        ),
        (start.startswith(b"VMA\0"), "a Proxmox archive (VMA)", "vma extract"),
        (start.startswith(b"partclone-image"), "a Partclone image", "partclone.restore"),
    )
    return next(((name, way) for found, name, way in marks if found), ("", ""))


def _read(volume: Volume, offset: int, length: int) -> bytes:
    """Return bytes of a volume, zeros beyond its end."""
    length_there = max(0, min(length, volume.length - offset))
    return volume.read(volume.start + offset, length_there).ljust(length, b"\0")
