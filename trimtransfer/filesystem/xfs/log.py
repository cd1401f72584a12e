"""Whether the log of an XFS file system holds what is not in it yet.

A log is a ring of sectors, each marked with the number of its round. It is clean if the newest record is the one that
unmounting writes and ends where the newest round ends. Anything odd, such as a torn write, counts as not clean:
mounting settles it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError

_SECTOR: Final = 512
_MARK: Final = 0xFEEDBABE
_UNMOUNT: Final = 0x20
_PIECE: Final = 4 << 20
_HEAD_COVERS: Final = 32768
_DIRTY: Final = (
    "its log must be recovered (it is mounted, or was not unmounted); unmount it (shut its guest down), or mount and "
    "unmount it once"
)
_MAX_LOG: Final = 2 << 30


def doubt(read: Callable[[int, int], bytes], size: int) -> str:
    """Return why a log of ``size`` bytes is not clean, or nothing; ``read(offset, length)`` reads it.

    Raises:
        FormatError: it is longer than logs can be.
    """
    if not 0 < size <= _MAX_LOG or size % _SECTOR:
        raise FormatError("XFS log", "its size", f"at most {_MAX_LOG} bytes", size)
    words = _words(read, size)
    record = words[:, 0] == _MARK
    rounds = np.where(record, words[:, 1], words[:, 0])
    if not rounds.any():
        return ""
    count, first = len(rounds), int(rounds[0])
    other = np.flatnonzero(rounds != first)
    end = int(other[0]) if len(other) else 0
    if first == 0 or (len(other) and (rounds[end:] != first - 1).any()):
        return _DIRTY
    before = np.flatnonzero(record[: end or count])
    return _last_record_doubt(read, int(before[-1]), end, count) if len(before) else _DIRTY


def _words(read: Callable[[int, int], bytes], size: int) -> NDArray[np.int64]:
    """Return the first two numbers of each sector (n, 2)."""
    parts = []
    for at in range(0, size, _PIECE):
        piece = np.frombuffer(read(at, min(_PIECE, size - at)), dtype=">u4").reshape(-1, _SECTOR // 4)
        parts.append(piece[:, :2].astype(np.int64))
    return np.concatenate(parts)


def _last_record_doubt(read: Callable[[int, int], bytes], at: int, end: int, count: int) -> str:
    """Return why the record at sector ``at`` of ``count`` is not an unmount record that ends at ``end``, or nothing."""
    head = read(at * _SECTOR, _SECTOR)
    version, length, operations, size = (int.from_bytes(head[where : where + 4], "big") for where in (8, 12, 40, 320))
    heads = -(-size // _HEAD_COVERS) if version & 2 and size > _HEAD_COVERS else 1
    if operations != 1 or (at + heads - (-length // _SECTOR)) % count != end:
        return _DIRTY
    operation = read((at + heads) % count * _SECTOR, 12)
    return "" if operation[9] & _UNMOUNT else _DIRTY
