"""The wall to the compiled module: one typed function for each C function, arguments checked here, nothing else.

The C functions read and write the callers' buffers, keep no state and release the interpreter lock, so every function
may run in several threads at once (on different output arrays). Which instruction set they use is found at run time;
it never changes a result. The environment variable ``TRIMTRANSFER_SIMD`` (scalar, ssse3, neon, avx2 or avx512), read
once when this module is imported, forces one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, Bytes
from trimtransfer.errors import TrimTransferError

try:
    from trimtransfer._native import ffi, lib
except ModuleNotFoundError:  # a checkout that is not installed hides the package that is
    raise TrimTransferError(
        f"the compiled part of trimtransfer is missing in {os.path.dirname(__file__)}: "
        "work in another directory, or install with 'pip install -e .'"
    ) from None

VARIABLE: Final = "TRIMTRANSFER_SIMD"
CONTENT_MOST: Final[int] = lib.TT_CONTENT_MOST
"""Bytes of content in a deflate stream that can be explained and rebuilt."""
REBUILD_ROOM: Final[int] = lib.TT_REBUILD_ROOM
COMPRESSOR_SIZE: Final = 3


class Simd(IntEnum):
    """Instruction sets that the compiled functions can use (``TT_SCALAR`` and so on in ``native/cpu.h``)."""

    SCALAR = 0
    SSSE3 = 1
    NEON = 1
    AVX2 = 2
    AVX512 = 3


def selected() -> Simd:
    """Return the instruction set in use."""
    return Simd(lib.tt_path())


def select(path: Simd | None) -> Simd:
    """Make all later calls use ``path`` (None: the best one) and return what is in use now.

    Raises ``ValueError`` if this machine, or this build, does not have it.
    """
    now = lib.tt_select(-1 if path is None else int(path))
    if now < 0:
        raise ValueError(f"this machine or this build has no {path!r}")
    return Simd(now)


def available() -> tuple[Simd, ...]:
    """Return the instruction sets that this machine and this build have, slowest first."""
    before = selected()
    found = tuple(path for path in Simd if lib.tt_select(int(path)) >= 0)
    select(before)
    return found


def hints(data: Bytes, mixed: NDArray[np.uint32], flags: NDArray[np.uint8]) -> None:
    """Write the mixed hint and the flags (bit 0: all zero; bit 1: not, but its last 16 bytes are) of every 4 KiB block.

    A short last block counts as padded with zeros. ``data`` must be contiguous; ``ValueError`` if it is not, or if the
    arrays do not have one element for each block.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    if not len(mixed) == len(flags) == -(-len(view) // BLOCK_SIZE):
        raise ValueError(
            f"{len(mixed)} hints and {len(flags)} flags for {len(view)} bytes: one of each per 4 KiB block"
        )
    lib.tt_hints(view, len(view), _u32(mixed), _u8(flags))


def cut(mixed: NDArray[np.uint32], flags: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the records of one region as numbers of blocks, bit 31 set for zero records (``native/cut.h``).

    Raises ``ValueError`` unless both arrays have one element for each block.
    """
    if len(mixed) != len(flags) or len(mixed) >= 1 << 31:
        raise ValueError(f"{len(mixed)} hints and {len(flags)} flags: one of each per block, below 2^31")
    runs = np.empty(len(mixed), np.uint32)
    return runs[: lib.tt_cut(_u32(mixed), _u8(flags), len(mixed), _u32(runs))]


def rule(*, least: int, norm: int, most: int, strict: int, loose: int, level: int) -> object:
    """Return a rule of chunker 2 (``tt_rule`` in ``native/search.h``) for :func:`search`; make it once.

    Raises ``ValueError`` for values that the search is not made for.
    """
    if not (256 <= least <= norm <= most <= 1 << 40 and 0 <= strict <= loose < 1 << 64 and 0 <= level <= 126):
        raise ValueError(f"no rule: {least} {norm} {most} bytes, hashes {strict} {loose}, level {level}")
    made = ffi.new("tt_rule *")
    made.min, made.norm, made.max = least, norm, most
    made.strict, made.loose, made.level = strict, loose, level
    return made


def search(data: Bytes, by: object, cuts: NDArray[np.uint64], *, final: bool) -> int:
    """Write the ends of the chunks of ``data``, which begins with one, to ``cuts``; return how many.

    ``by`` is what :func:`rule` returned. With ``final`` the data ends here and so does the last chunk; otherwise the
    search stops where fewer bytes than the rule's largest chunk are left. It also stops when ``cuts`` is full.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    count: int = lib.tt_search(view, len(view), final, by, _u64(cuts), len(cuts))
    return count


class Inflated(NamedTuple):
    """A raw deflate stream, decoded: its content; its own size in bytes; where its compressor flushed, as offsets in
    the content; whether a match reaches back over such a place."""

    content: NDArray[np.uint8]
    consumed: int
    flushes: NDArray[np.uint64]
    crossing: bool


def inflate(data: Bytes, *, limit: int, expected: int = 0) -> Inflated | None:
    """Decode the raw deflate stream that ``data`` begins with (``native/recompress.h``).

    None if it is malformed or has more than ``limit`` bytes of content, which is at most ``CONTENT_MOST``. Where its
    content is of the ``expected`` size nothing is copied.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    work, sizes = np.empty(lib.tt_inflate_memory() // 8 + 1, np.uint64), np.zeros(4, np.uint64)
    flushes = np.empty(len(view) // 4 + 1, np.uint64)
    content = np.empty(min(max(expected, 4096), limit), np.uint8)
    lib.tt_inflate_start(_u64(work), view, len(view))
    while (state := _inflate(work, content, flushes, sizes)) == lib.TT_ROOM and len(content) < limit:
        more = np.empty(min(2 * len(content), limit), np.uint8)
        more[: int(sizes[1])] = content[: int(sizes[1])]
        content = more
    if state != lib.TT_DONE:
        return None
    consumed, size, count, crossing = sizes.tolist()
    if size < len(content) // 2:
        content = content[:size].copy()  # else the room that was not needed would be kept
    return Inflated(content[:size], consumed, flushes[:count].copy(), bool(crossing))


def _inflate(
    work: NDArray[np.uint64], content: NDArray[np.uint8], flushes: NDArray[np.uint64], sizes: NDArray[np.uint64]
) -> int:
    state: int = lib.tt_inflate(_u64(work), _u8(content), len(content), _u64(flushes), len(flushes), _u64(sizes))
    return state


class Ended(IntEnum):
    """Why :func:`inflate_blocks` ended."""

    DONE = lib.TT_DONE
    ROOM = lib.TT_ROOM
    """There is no room for the next block."""
    BAD = lib.TT_BAD
    """The next block is malformed, or not all there."""


def inflate_blocks(
    data: Bytes, out: NDArray[np.uint8], *, bit: int, context: int, most: int
) -> tuple[NDArray[np.int64], Ended]:
    """Decode at most ``most`` whole blocks of a raw deflate stream, from bit ``bit`` (0 to 7) of ``data`` on.

    ``out`` begins with ``context`` bytes of content that they may refer to; theirs goes behind it. Returns a row for
    each block - the bit behind it, the end of its content in ``out``, its type, plus 4 if it is the final one - and why
    there are no more.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    if not 0 <= bit <= 7 or not 0 <= context <= len(out):
        raise ValueError(f"bit {bit} (0 to 7), {context} bytes of context in {len(out)}")
    work = np.empty(lib.tt_inflate_memory() // 8 + 1, np.uint64)
    # A block takes at least ten bits.
    ends, state = np.empty((min(most, len(view) + 1), 3), np.uint64), ffi.new("int *")
    count = lib.tt_inflate_blocks(
        _u64(work), view, len(view), bit, _u8(out), context, len(out), _u64(ends), len(ends), state
    )
    return ends[:count].astype(np.int64), Ended(state[0])


def explain_slice(
    data: Bytes, content: Bytes, flushes: NDArray[np.uint64], compressor: bytes, *, bit: int, context: int, blocks: int,
    room: int,
) -> bytes | None:  # fmt: skip
    """Return the record of ``blocks`` whole blocks, from bit ``bit`` of ``data`` on, for a compressor.

    ``content`` is ``context`` bytes before them, and theirs; ``flushes`` are the offsets in it where the compressor
    flushed, rising, all behind the context. None if the record has more than ``room`` bytes, or this is not so.
    """
    view, whole = ffi.from_buffer("uint8_t[]", data), ffi.from_buffer("uint8_t[]", content)
    work, record = np.empty(lib.tt_explain_memory() // 8 + 1, np.uint64), np.empty(room, np.uint8)
    sizes = ffi.new("uint64_t[2]")
    state = lib.tt_explain_slice(
        _u64(work), view, len(view), bit, blocks, whole, len(whole), context, _u64(flushes), len(flushes), compressor,
        _u8(record), room, sizes,
    )  # fmt: skip
    return record[: sizes[0]].tobytes() if state == lib.TT_DONE else None


def explain(data: Bytes, by: Inflated, compressor: bytes, *, stop: int, room: int) -> tuple[bytes, bool] | None:
    """Return the record of the stream ``data``, which is ``by`` decoded, for a compressor given by three bytes.

    And whether all was as predicted. None if the record has more than ``room`` bytes. Only so much is looked at as
    ``stop`` bytes of content need; a record that ends before the content does is good for its length alone.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    work, record = np.empty(lib.tt_explain_memory() // 8 + 1, np.uint64), np.empty(room, np.uint8)
    sizes = ffi.new("uint64_t[2]")
    content, flushes = (_u8(by.content), len(by.content)), (_u64(by.flushes), len(by.flushes))
    state = lib.tt_explain(_u64(work), view, len(view), *content, *flushes, compressor, stop, _u8(record), room, sizes)
    return (record[: sizes[0]].tobytes(), sizes[0] == sizes[1]) if state == lib.TT_DONE else None


class Rebuilder:
    """A raw deflate stream that comes again from its content and its record, piece by piece."""

    def __init__(
        self, content: Bytes, compressor: bytes, record: Bytes, *, context: int = 0, bit: int | None = None
    ) -> None:
        """With ``bit`` (0 to 7) it is a slice of a stream that begins there, behind ``context`` bytes of the content.

        Raises ``ValueError`` if the three bytes describe no compressor, or the content is too large or too short.
        """
        self._work = np.empty(lib.tt_rebuild_memory() // 8 + 1, np.uint64)
        # The work memory holds plain pointers to these.
        self._kept = ffi.from_buffer("uint8_t[]", content), ffi.from_buffer("uint8_t[]", record)
        sizes = len(self._kept[0]), len(self._kept[1])
        known, record_of = len(compressor) == COMPRESSOR_SIZE, (self._kept[1], sizes[1])
        if known and bit is None:
            state = lib.tt_rebuild_start(_u64(self._work), self._kept[0], sizes[0], compressor, *record_of)
        elif known and bit is not None and 0 <= context <= sizes[0] and 0 <= bit <= 7:
            slice_of = self._kept[0], sizes[0], context, bit
            state = lib.tt_rebuild_slice_start(_u64(self._work), *slice_of, compressor, *record_of)
        else:
            state = lib.TT_BAD
        if state != lib.TT_DONE:
            raise ValueError(f"compressor {compressor.hex()}, {sizes[0]} bytes of content")

    def write(self, piece: NDArray[np.uint8]) -> tuple[int, bool]:
        """Write what comes next, and return its size and whether there is more; at least ``REBUILD_ROOM`` is needed.

        Raises ``ValueError``, whose first argument is the place in the record, where it breaks a rule.
        """
        size = ffi.new("uint64_t *")
        state = lib.tt_rebuild(_u64(self._work), _u8(piece), len(piece), size)
        if state == lib.TT_BAD:
            raise ValueError(size[0])
        return size[0], state == lib.TT_ROOM


def block_keys(data: Bytes, size: int) -> NDArray[np.uint64]:
    """Return the keys (``native/match.h``) of the whole blocks of ``size`` bytes in ``data``."""
    view = ffi.from_buffer("uint8_t[]", data)
    keys = np.empty(len(view) // _block_size(size), np.uint64)
    lib.tt_match_keys(view, len(keys), size, _u64(keys))
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
        self._kept = [_u64(keys), _u64(self._filter), _u32(self._starts)]
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
    count = lib.tt_match(view, len(view), blocks.pointer, at, _u64(offsets), _u32(rows), len(rows))
    return count, at[0]


COLUMNS: Final = 8
"""Columns of a delta (``tt_columns`` in ``native/delta.h``)."""


def anchors(data: Bytes, *, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return keys and places (offsets in bytes) of the anchors of ``data``, one in 2^``bits`` places in the mean.

    ``ValueError`` for less than 1 or more than 16 bits, and for 4 GiB or more.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    if not 1 <= bits <= 16 or len(view) >= 1 << 32:
        raise ValueError(f"{bits} bits (1 to 16) for {len(view)} bytes (less than 4 GiB)")
    room = (len(view) >> bits) * 4 + 64
    keys, places = np.empty(room, np.uint32), np.empty(room, np.uint32)
    count = lib.tt_anchors(view, len(view), bits, _u32(keys), _u32(places), room)
    return keys[:count].copy(), places[:count].copy()


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
    count = lib.tt_delta_find(old, len(old), new, len(new), price, _u32(scratch), _pieces(pieces))
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
    return ffi.cast("tt_piece *", _u64(array))


def _block_size(size: int) -> int:
    if not 16 <= size <= 1 << 24:
        raise ValueError(f"blocks of {size} bytes; 16 to {1 << 24}")
    return size


def _u8(array: NDArray[np.uint8]) -> object:
    return _pointer(array, np.dtype(np.uint8), "uint8_t[]")


def _u32(array: NDArray[np.uint32]) -> object:
    return _pointer(array, np.dtype(np.uint32), "uint32_t[]")


def _u64(array: NDArray[np.uint64]) -> object:
    return _pointer(array, np.dtype(np.uint64), "uint64_t[]")


def _pointer(array: NDArray[Any], dtype: np.dtype[Any], declaration: str) -> object:
    """Return what the C function gets for ``array``, which must have this type (``TypeError``) and no gaps."""
    if array.dtype != dtype:
        raise TypeError(f"an array of {array.dtype} where {dtype} is needed")
    return ffi.from_buffer(declaration, array)


def _select_from_environment() -> None:
    wanted = os.environ.get(VARIABLE, "").strip().upper()
    if not wanted:
        return
    if wanted not in Simd.__members__:
        raise TrimTransferError(f"{VARIABLE}={wanted.lower()}: use scalar, ssse3, neon, avx2 or avx512, or unset it")
    try:
        select(Simd[wanted])
    except ValueError:
        raise TrimTransferError(f"{VARIABLE}={wanted.lower()}: this machine does not have it; unset it") from None


_select_from_environment()
