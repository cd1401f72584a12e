"""Deltas: what of a target a base has, the columns of bytes that tell it, and applying them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.native.wall import ffi, lib, u32, u64

COLUMNS: Final = 8
"""Columns of a delta (``tt_columns`` in ``native/delta.h``)."""


def delta_pieces(base: Bytes, target: Bytes, *, price: int) -> NDArray[np.uint64]:
    """Return the pieces of ``target``: rows of (start in the base, bytes copied, literal bytes), which cover it.

    ``price`` is how many bits a piece is thought to take, 1 to 65,536: more makes fewer pieces. Takes 3.5 bytes of
    memory for each byte of the base, and 2 for each of the target. ``ValueError`` for a base of 4 GiB or more.
    """
    old, new = ffi.from_buffer("uint8_t[]", base), ffi.from_buffer("uint8_t[]", target)
    if len(old) >= (1 << 32) - 1:
        raise ValueError(f"a base of {len(old)} bytes; less than 4 GiB")
    if not 1 <= price <= 1 << 16:
        raise ValueError(f"a price of {price} bits; 1 to 65,536")
    scratch = np.empty(lib.tt_delta_scratch(len(old)), np.uint32)
    pieces = np.empty((lib.tt_delta_capacity(len(new)), 3), np.uint64)
    count = lib.tt_delta_find(old, len(old), new, len(new), price, u32(scratch), _pieces(pieces))
    return pieces[:count].copy()


def delta_columns(base: Bytes, target: Bytes, pieces: NDArray[np.uint64], *, sites: bool) -> list[NDArray[np.uint8]]:
    """Return the columns that describe these pieces, which :func:`delta_pieces` returned for the same bytes."""
    old, new = ffi.from_buffer("uint8_t[]", base), ffi.from_buffer("uint8_t[]", target)
    copied = int(pieces[:, 1].sum())
    if copied + int(pieces[:, 2].sum()) != len(new) or (pieces[:, 0] + pieces[:, 1]).max() > len(old):
        raise ValueError("pieces of another base or target")
    rooms = [10 * len(pieces)] * 3 + [copied, copied, copied, 2 * copied, len(new) - copied]
    columns = [np.empty(room, np.uint8) for room in rooms]
    made, kept = _columns(columns)
    lib.tt_delta_write(old, new, _pieces(pieces), len(pieces), _tables(sites), made)
    del kept
    return [column[: made.size[number]].copy() for number, column in enumerate(columns)]


def delta_apply(base: Bytes, columns: Sequence[Bytes], length: int, *, sites: bool) -> bytearray | int:
    """Return the target of ``length`` bytes, or the number of the column that is not right. Takes any bytes."""
    if len(columns) != COLUMNS:
        raise ValueError(f"{len(columns)} columns; {COLUMNS}")
    old, target = ffi.from_buffer("uint8_t[]", base), bytearray(length)
    made, kept = _columns(columns)
    wrong: int = lib.tt_delta_apply(old, len(old), made, _tables(sites), ffi.from_buffer("uint8_t[]", target), length)
    del kept
    return wrong - 1 if wrong else target


def _columns(columns: Sequence[Any]) -> tuple[Any, list[object]]:
    """Return a ``tt_columns`` of these buffers, and what must be kept while it is used."""
    made, kept = ffi.new("tt_columns *"), [ffi.from_buffer("uint8_t[]", column) for column in columns]
    made.data, made.size = kept, [len(view) for view in kept]
    return made, kept


def _tables(sites: bool) -> object:
    return ffi.new("uint32_t[]", lib.TT_DELTA_TABLES) if sites else ffi.NULL


def _pieces(array: NDArray[np.uint64]) -> object:
    return ffi.cast("tt_piece *", u64(array))
