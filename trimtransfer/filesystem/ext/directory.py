"""Directories of ext2, ext3 and ext4, read linearly: the nodes of hashed ones look like unused entries."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from trimtransfer.errors import FormatError

WHAT: Final = "ext directory"
_ENTRY: Final = struct.Struct("<IHBB")
_SELF: Final = (b".", b"..")
_INODE_HEAD: Final = 128
_ATTRIBUTES_MARK: Final = 0xEA020000
_ATTRIBUTE: Final = struct.Struct("<BBHIII")
_SYSTEM: Final = 7
_INLINE_PART: Final = 60


def entries(block: bytes, *, where: int, typed: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (name, inode number) of a directory block that lies at ``where`` in the image.

    ``typed``: entries have a type, so that names have a length of one byte.

    Raises:
        FormatError: an entry that does not fit.
    """
    at, end = 0, len(block)
    while at + _ENTRY.size <= end:
        inode, length, name_length, kind = _ENTRY.unpack_from(block, at)
        if not typed:
            name_length |= kind << 8
        if length in (0, 65535) and end == 65536:  # lengths of 64 KiB do not fit
            length = end
        elif end > 65536 // 2 and length & 3:
            length = (length & 65532) | (length & 3) << 16
        if length < 8 or length & 3 or at + length > end or (inode and name_length + 8 > length):
            raise FormatError(WHAT, where + at, "an entry within its block", f"{length} bytes, name of {name_length}")
        if inode and name_length:
            name = block[at + 8 : at + 8 + name_length]
            if name not in _SELF:
                yield name, inode
        at += length


def inline_entries(inode: bytes, *, where: int, typed: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (name, inode number) of a directory that lies within its inode (given in full): in the place of the map,
    behind the parent's number, and for more in the attribute ``system.data``.

    Raises:
        FormatError: an entry or attribute that does not fit.
    """
    yield from entries(inode[44 : 40 + _INLINE_PART], where=where + 44, typed=typed)
    yield from entries(_system_data(inode, where), where=where, typed=typed)


def _system_data(inode: bytes, where: int) -> bytes:
    """Return the value of the attribute system.data of an inode; empty if it has none."""
    if len(inode) < _INODE_HEAD + 4:
        return b""
    first = _INODE_HEAD + int.from_bytes(inode[128:130], "little") + 4
    if first > len(inode) or int.from_bytes(inode[first - 4 : first], "little") != _ATTRIBUTES_MARK:
        return b""
    at = first
    while at + _ATTRIBUTE.size <= len(inode) and any(inode[at : at + 4]):
        name_length, index, offset, holder, size, _ = _ATTRIBUTE.unpack_from(inode, at)
        name = inode[at + 16 : at + 16 + name_length]
        if index == _SYSTEM and name == b"data" and not holder:
            if first + offset + size > len(inode):
                raise FormatError("ext inline directory", where, "a value within the inode", f"{offset} + {size}")
            return inode[first + offset : first + offset + size]
        at += (16 + name_length + 3) & ~3
    return b""
