"""Members of compressed files in bytes: where gzip, zip, zstd and xz ones may begin, where those of the latter two end.

For publishers. Formats: RFC 8878 (zstd frames), The .xz File Format 1.2 and LZMA2's chunks as liblzma reads them; local
headers of PKWARE's APPNOTE 6.3, section 4.3.7. Nothing is decoded here, and nothing believed: whoever uses a member
decodes it and compares what comes of it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.tool import Kind, is_filter
from trimtransfer.wrapped import gzip_starts

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
XZ_MAGIC: Final = b"\xfd7zXZ\0"
ZIP_MAGIC: Final = b"PK\x03\x04"
MAX_HEAD: Final = 1096
"""Most bytes in front of an LZMA2 payload: a stream's header and a block's (1,024); or of a zstd frame's magic."""
_ZIP_HEAD: Final = struct.Struct("<4s5H3I2H")
_CHECKS: Final = (0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64)
_LZMA2_ID: Final = 0x21
_BLOCK: Final = 1 << 17
_LITERALS: Final = 0x5D
"""Of LZMA: lc 3, lp 0, pb 2, as nearly everybody has them."""


@dataclass(frozen=True, slots=True)
class Framed:
    """What a tool of ``kind`` made: bytes ``head`` to ``end`` of the bytes looked at; ``following``: where another one
    of the same file may begin. ``option``: of a zstd frame bits of :class:`trimtransfer.tool.Zstd`, of LZMA2 the filter
    before it. ``window``: dictionary or window as a tool has it, 0 where the frame has none of its own. ``size`` of
    the content, -1 if it is not declared."""

    kind: Kind
    head: int
    end: int
    following: int
    option: int
    window: int
    props: int
    size: int


def member_starts(content: Bytes) -> NDArray[np.int64]:
    """Return where in ``content`` members may begin, ascending: gzip ones at multiples of 512, where files and their
    parts begin; zip entries that are deflated, zstd frames and xz files at any byte, for archives and packages have
    them anywhere."""
    data = bytes(content)
    found = [*_all(data, ZSTD_MAGIC), *_all(data, XZ_MAGIC)]
    found += [at for at in _all(data, ZIP_MAGIC) if zip_content(data, at) is not None]
    return np.union1d(gzip_starts(data), np.array(found, dtype=np.int64)).astype(np.int64)


def _all(data: bytes, magic: bytes) -> list[int]:
    found, at = list[int](), data.find(magic)
    while at >= 0:
        found.append(at)
        at = data.find(magic, at + len(magic))
    return found


def zip_content(head: bytes, at: int = 0) -> tuple[int, int] | None:
    """Return where the deflate stream of the local header at ``at`` begins, and its size, -1 if that stands behind it;
    None if there is no such entry. Of ``head`` 30 bytes from there on are needed."""
    fixed = head[at : at + 30]
    if len(fixed) < 30 or not fixed.startswith(ZIP_MAGIC):
        return None
    _, version, flags, method, *_, size, _, name, extra = _ZIP_HEAD.unpack(fixed)
    if version & 0xFF > 63 or method != 8 or flags & 1 or not 0 < name <= 1024 or extra > 4096:
        return None
    return at + 30 + name + extra, -1 if flags & 8 or size == 0xFFFFFFFF else size


def zstd_frame(data: bytes, *, most: int) -> Framed | None:
    """Return the zstd frame at the first byte; None if there is none, or ``data`` ends before it.

    ``most`` blocks are looked at. A frame that needs a dictionary is none.
    """
    found = zstd_head(data)
    if found is None:
        return None
    at, window, option, size = found
    end, check = _zstd_end(data, at, most), 4 * bool(option & 2)
    if end is None or end + check > len(data):
        return None
    return Framed(Kind.ZSTD, 0, end + check, end + check, option, window, 0, size)


def zstd_head(data: bytes) -> tuple[int, int, int, int] | None:
    """Return of the zstd frame at the first byte where its blocks begin, its window as a power of two, rounded down (0:
    as its content), ``option`` and ``size`` as :class:`Framed` has them; None if there is none."""
    if len(data) < 9 or not data.startswith(ZSTD_MAGIC) or data[4] & 0b1011:
        return None
    single, checked, at = bool(data[4] & 0x20), bool(data[4] & 4), 5
    window = 0 if single else 10 + (data[5] >> 3)
    at += not single
    width = (int(single), 2, 4, 8)[data[4] >> 6]
    size = int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0) if width else -1
    return at + width, window, bool(width) | checked << 1, size


def _zstd_end(data: bytes, at: int, most: int) -> int | None:
    """Return where the last block ends of those that begin at ``at``."""
    for _ in range(most):
        head = int.from_bytes(data[at : at + 3], "little")
        kind, size = head >> 1 & 3, head >> 3
        at += 3 + (1 if kind == 1 else size)
        if kind == 3 or size > _BLOCK or at > len(data):
            return None
        if head & 1:
            return at
    return None


def xz_block(data: bytes, check: int | None, *, most: int) -> tuple[Framed, int] | None:
    """Return the first block of an xz file at the first byte, or with ``check`` the block that begins there in one with
    checks of this kind; and the kind. None if there is none, it is of a sort that nobody makes, or ``data`` ends before
    it. ``most`` chunks of LZMA2 are looked at."""
    at = 0
    if check is None:
        if len(data) < 13 or not data.startswith(XZ_MAGIC) or data[6] or data[7] > 15 or not _right(data, 6, 8):
            return None
        check, at = data[7], 12
    found = _block_head(data, at)
    if found is None:
        return None
    head, before, dictionary = found
    chunks = _lzma2_end(data, head, most)
    if chunks is None:
        return None
    end, size, props = chunks
    following = end + (at - end) % 4 + _CHECKS[check]
    return Framed(Kind.LZMA2, head, end, following, before, dictionary, props, size), check


def _right(data: bytes, low: int, high: int) -> bool:
    return zlib.crc32(data[low:high]) == int.from_bytes(data[high : high + 4], "little")


def _block_head(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return where the payload of the block at ``at`` begins, the filter before LZMA2 (0: none), and the dictionary."""
    size = (data[at] + 1) * 4 if at < len(data) and data[at] else 0
    head = data[at : at + size]
    if not size or len(head) < size or head[1] & 0x3C or not _right(data, at, at + size - 4):
        return None
    place = 2
    for flag in (0x40, 0x80):  # the sizes, compressed and not, which are seen anyway
        place = _behind_number(head, place) if head[1] & flag else place
    before = 0
    if head[1] & 3 == 1 and is_filter(head[place]) and not head[place + 1]:
        before, place = head[place], place + 2
    elif head[1] & 3:
        return None
    if head[place : place + 2] != bytes((_LZMA2_ID, 1)) or head[place + 2] > 40:
        return None
    return at + size, before, head[place + 2]


def _behind_number(head: bytes, place: int) -> int:
    """Return what follows a number; no farther than a header of 8 bytes and its check allow to read on."""
    while place < len(head) - 8 and head[place] & 0x80:
        place += 1
    return min(place + 1, len(head) - 7)


def _lzma2_end(data: bytes, at: int, most: int) -> tuple[int, int, int] | None:
    """Return where chunks of LZMA2 that begin at ``at`` end, the size of their content, and the first properties."""
    size, props = 0, -1
    for _ in range(most):
        head = data[at : at + 6]
        if not head:
            return None
        control = head[0]
        if control == 0:
            return at + 1, size, _LITERALS if props < 0 else props
        if len(head) < 6 or 3 <= control < 0x80:
            return None
        some = int.from_bytes(head[1:3], "big") + 1
        if control < 0x80:
            at, size = at + 3 + some, size + some
            continue
        size += some + ((control & 0x1F) << 16)
        fresh = control >= 0xC0
        props = head[5] if fresh and props < 0 else props
        at += 5 + fresh + int.from_bytes(head[3:5], "big") + 1
    return None
