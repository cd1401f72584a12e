"""Directories of XFS: within the inode, or in blocks; what is behind the entries (hashes, free space) is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trimtransfer.errors import FormatError

WHAT: Final = "XFS directory"
LEAVES: Final = 1 << 35
"""Offset in a directory, in bytes, from which on there are only hashes."""
_SELF: Final = (b".", b"..")
_MARKS: Final = {b"XD2B": (16, True), b"XDB3": (64, True), b"XD2D": (16, False), b"XDD3": (64, False)}
"""Length of a block's head, and whether the hashes lie in the same block, by its mark."""
_UNUSED: Final = b"\xff\xff"


def short_entries(data: bytes, *, where: int, typed: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (name, inode number) of a directory that lies within its inode, whose data fork starts with ``data``.

    Raises:
        FormatError: an entry that does not fit.
    """
    count, long = data[0], data[1]
    size = 8 if long else 4
    at = 2 + size
    for _ in range(count):
        length = data[at] if at < len(data) else 0
        end = at + 3 + length + typed + size
        if not length or end > len(data):
            raise FormatError(WHAT, where + at, "an entry within the inode", f"a name of {length} bytes")
        yield data[at + 3 : at + 3 + length], int.from_bytes(data[end - size : end], "big")
        at = end


def block_entries(block: bytes, *, where: int, typed: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (name, inode number) of a directory block.

    Raises:
        FormatError: it is none, or has an entry that does not fit.
    """
    head = _MARKS.get(block[:4])
    if head is None:
        raise FormatError(WHAT, where, "the mark of a directory block", block[:4])
    at, together = head
    end = len(block)
    if together:
        end -= 8 + 8 * int.from_bytes(block[-8:-4], "big")
    if end < at:
        raise FormatError(WHAT, where, "entries before the hashes", end)
    while at < end:
        if block[at : at + 2] == _UNUSED:
            length = int.from_bytes(block[at + 2 : at + 4], "big")
            if length < 8 or length % 8:
                raise FormatError(WHAT, where + at, "unused space in eights", length)
            at += length
            continue
        name_length = block[at + 8] if at + 8 < end else 0
        following = at + (9 + name_length + typed + 2 + 7) // 8 * 8
        if not name_length or following > end:
            raise FormatError(WHAT, where + at, "an entry within its block", f"a name of {name_length} bytes")
        name = block[at + 9 : at + 9 + name_length]
        if name not in _SELF:
            yield name, int.from_bytes(block[at : at + 8], "big")
        at = following
