"""Content at any offset: keys of blocks, windows that have one of them, and anchors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.native.wall import ffi, lib, u32, u64


def block_keys(data: Bytes, size: int) -> NDArray[np.uint64]:
    """Return the keys (``native/match.h``) of the whole blocks of ``size`` bytes in ``data``."""
    view = ffi.from_buffer("uint8_t[]", data)
    keys = np.empty(len(view) // _block_size(size), np.uint64)
    lib.tt_match_keys(view, len(keys), size, u64(keys))
    return keys


class Blocks:
    """Keys of blocks of ``size`` bytes, in rising order, prepared for :func:`match`.

    Raises ``ValueError`` for more than 2^25 blocks, and for a size below 16 or above 2^24.
    """

    def __init__(self, keys: NDArray[np.uint64], size: int) -> None:
        if len(keys) > 1 << 25:
            raise ValueError(f"{len(keys)} blocks; at most {1 << 25}")
        self.size = _block_size(size)
        bits = max(11, (64 * len(keys) - 1).bit_length())
        self._filter, self._starts = np.empty(1 << (bits - 6), np.uint64), np.empty((1 << (bits - 5)) + 1, np.uint32)
        # The structure holds plain pointers; these arrays must live as long as it does.
        self._kept = [u64(keys), u64(self._filter), u32(self._starts)]
        lib.tt_match_prepare(self._kept[0], len(keys), bits, *self._kept[1:])
        self.pointer = ffi.new("tt_blocks *")
        self.pointer.size, self.pointer.count, self.pointer.bits = size, len(keys), bits
        self.pointer.keys, self.pointer.filter, self.pointer.starts = self._kept


def match(
    data: Bytes, blocks: Blocks, position: int, offsets: NDArray[np.uint64], rows: NDArray[np.uint32]
) -> tuple[int, int]:
    """Write offsets in ``data``, from ``position`` on, and the first row with the key of the window there.

    Returns how many were written and the first offset that was not looked at (``tt_match`` in ``native/match.h``).
    """
    if len(offsets) != len(rows) or not len(rows):
        raise ValueError(f"room for {len(offsets)} offsets and {len(rows)} rows")
    view = ffi.from_buffer("uint8_t[]", data)
    at = ffi.new("uint64_t *", position)
    count = lib.tt_match(view, len(view), blocks.pointer, at, u64(offsets), u32(rows), len(rows))
    return count, at[0]


def anchors(data: Bytes, *, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return keys and places (offsets in bytes) of the anchors of ``data``, one in 2^``bits`` places in the mean.

    ``ValueError`` for less than 1 or more than 16 bits, and for 4 GiB or more.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    if not 1 <= bits <= 16 or len(view) >= 1 << 32:
        raise ValueError(f"{bits} bits (1 to 16) for {len(view)} bytes (less than 4 GiB)")
    room = (len(view) >> bits) * 4 + 64
    keys, places = np.empty(room, np.uint32), np.empty(room, np.uint32)
    count = lib.tt_anchors(view, len(view), bits, u32(keys), u32(places), room)
    return keys[:count].copy(), places[:count].copy()


def _block_size(size: int) -> int:
    if not 16 <= size <= 1 << 24:
        raise ValueError(f"blocks of {size} bytes; 16 to {1 << 24}")
    return size
