"""Copy/add deltas: a target described by what it takes from a base (FORMAT.md, "Delta").

Base and target are buffers; either may be several files one after the other, and files of a kind are better put
together, for the columns of a delta compress together. What a delta says is never believed: who decodes one compares
the result's digest.

``native/delta_find.c`` finds the pieces and ``native/delta.c`` writes and reads the columns; here these are compressed,
and sizes are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import Bytes
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError

MAGIC: Final = b"TrimDelt"
VERSION: Final = 1
MAX_LEVEL: Final = 19
"""Above it zstd uses windows that a decoder does not agree to (``codec.MAX_WINDOW``)."""
MAX_TARGET: Final = (16 << 20) + (512 << 10)
"""Most bytes that a decoder makes unless told otherwise: 16 MiB and as much as two chunks, since a unit is filled with
whole chunks. With the columns, at most three times as much, this bounds what decoding takes beside the base."""
SLACK: Final = 4096
"""The columns have at most three times the target's bytes and so many more. What says how copies differ takes up to two
bytes for each byte copied, and three more where a copy ends; a piece takes up to seven and what its lengths need above
127; there is at most one for each 12 bytes of the target, and two, beside those that make at least 32 bytes of a copy
literal, which saves more than they take (``native/delta_find.c``)."""

Columns: TypeAlias = Sequence[NDArray[np.uint8]]
_NAMES: Final = ("copies", "literals", "moves", "gaps", "sites", "marks", "values", "bytes")
_HEADER: Final = struct.Struct("<8sHBxQQ16Q")
_CHANGES: Final = slice(3, 7)
"""The columns that say how copies differ from the base."""
_TRIAL_LEVEL: Final = 3
_PRICE: Final = 72
"""What a piece is thought to take, in bits: right for programs."""
_TEXT_PRICE: Final = 200
"""The same for text, whose literals compress well; tried where pieces are below this length in the mean:"""
_PIECE_LENGTH: Final = 1024


def encode(base: Bytes, target: Bytes, *, level: int) -> bytes:
    """Return a delta from which :func:`decode` makes ``target`` out of ``base``.

    ``level`` is zstd's, 1 to 19. Beside the two it takes 3.5 bytes of memory for each byte of the base and up to 16 for
    each of the target, of which most are seldom touched. The same arguments give the same delta, with the same zstd
    library. ``ValueError`` for another level and for a base of 4 GiB or more.
    """
    if not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"level {level}; 1 to {MAX_LEVEL}")
    sites, plain = _describe(base, target)
    stored = [_store(column, level) for column in plain]
    sizes = [size for pair in zip(map(len, plain), map(len, stored), strict=True) for size in pair]
    header = _HEADER.pack(MAGIC, VERSION, sites, memoryview(base).nbytes, memoryview(target).nbytes, *sizes)
    return b"".join([header, *stored])


def decode(delta: Bytes, base: Bytes, *, limit: int = MAX_TARGET) -> bytes:
    """Return the target that a delta describes, if it has at most ``limit`` bytes.

    ``base`` is what it was made from; of another base with the same length comes another target, or an error: only the
    target's digest tells. Takes any bytes, in time and memory bounded by ``limit`` and the length of ``delta``.

    Raises:
        FormatError: not a delta, one that makes more than ``limit`` bytes, or one for a base of another length.
    """
    view = memoryview(delta)
    sites, length, sizes = _parse(view, memoryview(base).nbytes, limit)
    columns: list[Bytes] = []
    at = _HEADER.size
    for name, (plain, stored) in zip(_NAMES, sizes, strict=True):
        columns.append(_load(view[at : at + stored], plain, f"{name} of a delta"))
        at += stored
    target = native.delta_apply(base, columns, length, sites=sites)
    if isinstance(target, int):
        raise FormatError("delta", _NAMES[target], "numbers that make the target", "others")
    return bytes(target)


def _parse(view: memoryview, base: int, limit: int) -> tuple[bool, int, Sequence[tuple[int, int]]]:
    """Return whether it uses sites, the target's length, and (plain, stored) size of every column."""
    if len(view) < _HEADER.size:
        raise FormatError("delta", 0, f"a header of {_HEADER.size} bytes", len(view))
    magic, version, sites, base_length, length, *numbers = _HEADER.unpack_from(view)
    if (magic, version) != (MAGIC, VERSION) or view[11] or sites > 1:
        raise FormatError("delta", 0, "TrimDelt, version 1, sites used or not", bytes(view[:12]))
    if base_length != base:
        raise FormatError("delta", 12, f"a base of {base} bytes", base_length)
    if length > limit:
        raise FormatError("delta", 20, f"a target of at most {limit} bytes", length)
    sizes = list(zip(numbers[::2], numbers[1::2], strict=True))
    if sum(numbers[::2]) > 3 * length + SLACK or any(stored > plain for plain, stored in sizes):
        raise FormatError("delta", 28, f"columns for a target of {length} bytes, none above its plain size", sizes)
    if _HEADER.size + sum(numbers[1::2]) != len(view):
        raise FormatError("delta", 28, "columns up to its end", sizes)
    return bool(sites), length, sizes


def _describe(base: Bytes, target: Bytes) -> tuple[bool, Columns]:
    """Return whether sites are used, and the columns: of what is worth trying, what compresses best."""
    few = native.delta_pieces(base, target, price=_PRICE)
    best = _with_or_without_sites(base, target, few)
    if len(few) * _PIECE_LENGTH <= memoryview(target).nbytes:
        return best
    other = _with_or_without_sites(base, target, native.delta_pieces(base, target, price=_TEXT_PRICE))
    return min(best, other, key=lambda found: _trial(found[1]))


def _with_or_without_sites(base: Bytes, target: Bytes, pieces: NDArray[np.uint64]) -> tuple[bool, Columns]:
    without, using = (native.delta_columns(base, target, pieces, sites=sites) for sites in (False, True))
    sites = _trial(using[_CHANGES]) < _trial(without[_CHANGES])
    return sites, using if sites else without


def _trial(columns: Columns) -> int:
    """Return what columns take when they are compressed quickly."""
    return sum(len(_store(column, _TRIAL_LEVEL)) for column in columns)


def _store(column: NDArray[np.uint8], level: int) -> Bytes:
    """Return a column as it is stored: compressed where that is less."""
    packed = compress(column.data, level)
    return packed if len(packed) < len(column) else column.data


def _load(stored: memoryview, plain: int, what: str) -> Bytes:
    """Return a column of ``plain`` bytes; stored as it is if it has that length."""
    if len(stored) == plain:
        return stored
    column = decompress(stored, plain, what)
    if len(column) != plain:
        raise FormatError(what, 0, f"{plain} bytes", len(column))
    return column
