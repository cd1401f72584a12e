"""Directories of FAT: short names, and the long ones spread over entries before them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SIZE: Final = 32
_ENTRY: Final = struct.Struct("<11sBBBHHHHHHHI")
_LONG: Final = 0x0F
_LABEL: Final = 0x08
_DIRECTORY: Final = 0x10
_LAST: Final = 0x40
_MAX_PARTS: Final = 20
_SELF: Final = (b".          ", b"..         ")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory: its name (long ones in UTF-8, else as stored), first cluster (0: none), size in bytes."""

    name: bytes
    directory: bool
    cluster: int
    size: int


def entries(data: bytes, *, wide: bool) -> Iterator[Entry]:
    """Yield what a directory holds; ``wide``: numbers of clusters have 32 bits."""
    long = _LongName()
    for at in range(0, len(data) - SIZE + 1, SIZE):
        name, kind, case, _, _, _, _, high, _, _, low, size = _ENTRY.unpack_from(data, at)
        if name[0] == 0:
            return
        if name[0] == 0xE5:
            long = _LongName()
        elif kind & 0x3F == _LONG:
            long.add(data[at : at + SIZE])
        else:
            found, long = long.name(name), _LongName()
            if not kind & _LABEL and name not in _SELF:
                cluster = low | (high << 16 if wide else 0)
                yield Entry(found or _short_name(name, case), bool(kind & _DIRECTORY), cluster, size)


class _LongName:
    """The parts of a long name, which come last part first."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._sum = -1
        self._due = 0

    def add(self, entry: bytes) -> None:
        """Take over an entry with a part; a part out of order spoils the name."""
        number = entry[0] & 0x3F
        if entry[0] & _LAST and 1 <= number <= _MAX_PARTS:
            self._parts, self._sum, self._due = [], entry[13], number
        if number != self._due or number == 0 or entry[13] != self._sum:
            self._parts, self._due = [], 0
            return
        self._parts.append(entry[1:11] + entry[14:26] + entry[28:32])
        self._due -= 1

    def name(self, short: bytes) -> bytes:
        """Return the name in UTF-8 if it is whole and belongs to this short name; else nothing."""
        if not self._parts or self._due or self._sum != _sum(short):
            return b""
        text = b"".join(reversed(self._parts)).decode("utf-16-le", "surrogatepass")
        return text.partition("\0")[0].encode("utf-8", "surrogatepass")


def _sum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total


def _short_name(stored: bytes, case: int) -> bytes:
    """Return a short name; ``case`` has the bits of Windows NT for names in small letters."""
    base, extension = stored[:8].rstrip(b" "), stored[8:].rstrip(b" ")
    if base[:1] == b"\x05":
        base = b"\xe5" + base[1:]
    base = base.lower() if case & 0x08 else base
    extension = extension.lower() if case & 0x10 else extension
    return base + b"." + extension if extension else base
