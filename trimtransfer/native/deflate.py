"""Deflate streams: their blocks and content, what explains how they were made, and making them again."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.native.wall import ffi, lib, u8, u64

CONTENT_MOST: Final[int] = lib.TT_CONTENT_MOST
"""Bytes of content in a deflate stream that can be explained and rebuilt."""
REBUILD_ROOM: Final[int] = lib.TT_REBUILD_ROOM
COMPRESSOR_SIZE: Final = 3


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
    lib.tt_inflate_start(u64(work), view, len(view))
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
    state: int = lib.tt_inflate(u64(work), u8(content), len(content), u64(flushes), len(flushes), u64(sizes))
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
        u64(work), view, len(view), bit, u8(out), context, len(out), u64(ends), len(ends), state
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
        u64(work), view, len(view), bit, blocks, whole, len(whole), context, u64(flushes), len(flushes), compressor,
        u8(record), room, sizes,
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
    content, flushes = (u8(by.content), len(by.content)), (u64(by.flushes), len(by.flushes))
    state = lib.tt_explain(u64(work), view, len(view), *content, *flushes, compressor, stop, u8(record), room, sizes)
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
            state = lib.tt_rebuild_start(u64(self._work), self._kept[0], sizes[0], compressor, *record_of)
        elif known and bit is not None and 0 <= context <= sizes[0] and 0 <= bit <= 7:
            slice_of = self._kept[0], sizes[0], context, bit
            state = lib.tt_rebuild_slice_start(u64(self._work), *slice_of, compressor, *record_of)
        else:
            state = lib.TT_BAD
        if state != lib.TT_DONE:
            raise ValueError(f"compressor {compressor.hex()}, {sizes[0]} bytes of content")

    def write(self, piece: NDArray[np.uint8]) -> tuple[int, bool]:
        """Write what comes next, and return its size and whether there is more; at least ``REBUILD_ROOM`` is needed.

        Raises ``ValueError``, whose first argument is the place in the record, where it breaks a rule.
        """
        size = ffi.new("uint64_t *")
        state = lib.tt_rebuild(u64(self._work), u8(piece), len(piece), size)
        if state == lib.TT_BAD:
            raise ValueError(size[0])
        return size[0], state == lib.TT_ROOM
