"""What content is, told for people: by a file's path and first bytes, or by its bytes alone. Pure.

It explains reports and decides nothing, so a wrong guess costs nothing.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from trimtransfer.chunk import Bytes
from trimtransfer.codec import compress

KINDS: Final = {
    "program": "programs and libraries",
    "module": "kernel modules",
    "initrd": "initial RAM disks",
    "compressed": "compressed files",
    "archive": "archives and packages",
    "media": "pictures, sound, video",
    "font": "fonts",
    "text": "text",
    "database": "databases",
    "lists": "package lists",
    "log": "logs",
    "swap": "swap and hibernation",
    "structure": "structures of file systems",
    "free": "free space",
    "table": "outside of volumes",
    "random": "compressed or encrypted",
    "data": "other content",
}
"""Kinds, and what they are called."""
HEAD: Final = 4096
"""First bytes of a file that are worth a look."""

_SWAP: Final = frozenset(("pagefile.sys", "swapfile.sys", "hiberfil.sys", "swapfile", "swap.img", "swap.file"))
_PATHS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("lists", re.compile(r"^var/lib/(apt/lists|dnf|dpkg/info|rpm|pacman/sync)/|^var/cache/(dnf|apt/\w*pkgcache)")),
    ("log", re.compile(r"^var/log/|\.(log|evtx|etl|journal)(\.\d+)?$", re.IGNORECASE)),
    ("initrd", re.compile(r"(^|/)(initrd|initramfs)[^/]*$")),
    ("module", re.compile(r"\.(ko|sys)(\.(xz|gz|zst))?$", re.IGNORECASE)),
)
_SUFFIXES: Final = {
    "archive": "zip jar apk deb rpm cab msi msix whl egg tar 7z rar cpio iso ja crx xpi esd wim appx snap",
    "compressed": "gz xz zst bz2 lz4 lzma br tgz txz z",
    "media": "png jpg jpeg gif webp svgz ico bmp tif tiff mp3 ogg oga opus flac wav mp4 mkv webm avi mov wmv pdf heic",
    "font": "ttf otf ttc woff woff2 pfb pcf",
    "program": "so dll exe ocx efi drv cpl a o pyc class mui elf bin",
    "database": "db sqlite sqlite3 mdb ibd frm myd edb dat hve cache",
    "text": "txt py pl pm sh rb js mjs css html htm xml json yaml yml conf cfg ini toml md rst c h hpp cpp java po pot "
    "inf svg desktop service list csv lua tcl el rs go ts manifest",
}
_SUFFIX_KIND: Final = {suffix: kind for kind, names in _SUFFIXES.items() for suffix in names.split()}
_MAGIC: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x7fELF", "program"),
    (0, b"MZ", "program"),
    (0, b"\xcf\xfa\xed\xfe", "program"),
    (0, b"\x1f\x8b", "compressed"),
    (0, b"\xfd7zXZ\0", "compressed"),
    (0, b"\x28\xb5\x2f\xfd", "compressed"),
    (0, b"BZh", "compressed"),
    (0, b"\x04\x22\x4d\x18", "compressed"),
    (0, b"PK\x03\x04", "archive"),
    (0, b"!<arch>\ndebian", "archive"),
    (0, b"!<arch>\n", "program"),
    (0, b"\xed\xab\xee\xdb", "archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "archive"),
    (0, b"Rar!", "archive"),
    (0, b"MSCF", "archive"),
    (0, b"MSWIM\0\0\0", "archive"),
    (0, b"070701", "archive"),
    (257, b"ustar", "archive"),
    (0, b"\x89PNG", "media"),
    (0, b"\xff\xd8\xff", "media"),
    (0, b"GIF8", "media"),
    (0, b"RIFF", "media"),
    (0, b"OggS", "media"),
    (0, b"fLaC", "media"),
    (0, b"%PDF", "media"),
    (4, b"ftyp", "media"),
    (0, b"\x1aE\xdf\xa3", "media"),
    (0, b"SQLite format 3\0", "database"),
    (0, b"regf", "database"),
    (4, b"\xef\xcd\xab\x89", "database"),
    (0, b"OTTO", "font"),
    (0, b"\0\1\0\0\0", "font"),
    (0, b"wOF", "font"),
    (0, b"LPKSHHRH", "log"),
    (0, b"ElfFile\0", "log"),
)
"""Where a mark is, the mark, what bears it."""
_SAMPLE: Final = 64 << 10
_PACKED: Final = 0.97
"""Share of its length from which on what zstd makes of content shows that it cannot be made smaller."""
_TEXT: Final = 0.95


def kind_of_file(path: str, start: Bytes) -> str:
    """Return the kind of a file from its path (from the root on, parts joined by ``/``) and its first bytes."""
    name = path.rpartition("/")[2].lower()
    if name in _SWAP:
        return "swap"
    for kind, pattern in _PATHS:
        if pattern.search(path):
            return kind
    return _by_magic(start) or _SUFFIX_KIND.get(name.rpartition(".")[2], "") or _by_bytes(start)


def kind_of_content(data: Bytes) -> str:
    """Return the kind of content of which nothing is known but its bytes, from where it begins on."""
    return _by_magic(data) or _by_bytes(data)


def is_packed(data: Bytes) -> bool:
    """Return whether content looks like noise: compressed already, or encrypted."""
    sample = bytes(memoryview(data)[:_SAMPLE])
    return len(sample) >= 1024 and len(compress(sample, 1)) >= _PACKED * len(sample)


def is_swap(name: str) -> bool:
    """Return whether a file of this name, in lower case and in the root, holds memory that was paged out."""
    return name in _SWAP


def _by_magic(start: Bytes) -> str:
    view = bytes(memoryview(start)[:HEAD])
    for at, mark, kind in _MAGIC:
        if view[at : at + len(mark)] == mark:
            return kind
    return "text" if view[:2] == b"#!" else ""


def _by_bytes(data: Bytes) -> str:
    sample = np.frombuffer(memoryview(data)[:_SAMPLE], dtype=np.uint8)
    sample = sample[: int(np.flatnonzero(sample)[-1]) + 1] if sample.any() else sample[:0]
    if not len(sample):
        return "data"
    printable = ((sample >= 32) & (sample != 127)) | ((sample >= 9) & (sample <= 13))
    if printable.mean() >= _TEXT and not is_packed(sample.tobytes()):
        return "text"
    return "random" if is_packed(sample.tobytes()) else "data"
