"""Whether the journal of NTFS ($LogFile) holds what is not in the file system yet.

Source: the restart pages as described by the Linux-NTFS project. The journal is clean if it was reset (all bits set),
or if its newest restart area has no client in use or is marked clean.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from trimtransfer.errors import FormatError

WHAT: Final = "NTFS journal"
_HEAD: Final = struct.Struct("<4sHHQIIHhh")
_AREA: Final = struct.Struct("<QHHHH")
_NO_CLIENT: Final = 0xFFFF
_CLEAN: Final = 0x2
_STRIDE: Final = 512
_VERSION: Final = 1
"""Windows 8 and later work with version 2, and go back to 1 when they let go of a volume."""


def doubt(read: Callable[[int, int], bytes], size: int) -> str:
    """Return why a journal of ``size`` bytes is not clean, or nothing; ``read(offset, length)`` reads it.

    Raises:
        FormatError: it has no restart page that can be read.
    """
    first = read(0, _STRIDE)
    if first == b"\xff" * _STRIDE:
        return ""
    page = _HEAD.unpack_from(first)[4] if first[:4] == b"RSTR" else 4096
    if page not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536) or 2 * page > size:
        raise FormatError(WHAT, 16, "a possible size of pages", page)
    areas = [area for at in (0, page) if (area := _area(read(at, page))) is not None]
    if not areas:
        raise FormatError(WHAT, 0, "a restart page", first[:4])
    _, client, flags, version = max(areas)
    if version != _VERSION:
        return "a Windows keeps changes to it in its own memory; shut it down in full (no fast start, no hibernation)"
    if client != _NO_CLIENT and not flags & _CLEAN:
        return (
            "its journal must be recovered; shut the system that uses it down in full (no fast start, no hibernation)"
        )
    return ""


def _area(page: bytes) -> tuple[int, int, int, int] | None:
    """Return (sequence number, first client in use, flags, version) of a restart page; None for anything else."""
    if page[:4] != b"RSTR":
        return None
    _, marks, count, _, _, _, place, _, version = _HEAD.unpack_from(page)
    if count != len(page) // _STRIDE + 1 or marks + 2 * count > _STRIDE or place + _AREA.size > _STRIDE - 2:
        return None
    mark = page[marks : marks + 2]
    if any(page[end - 2 : end] != mark for end in range(_STRIDE, len(page) + 1, _STRIDE)):
        return None
    sequence, _, _, client, flags = _AREA.unpack_from(page, place)
    return sequence, client, flags, version
