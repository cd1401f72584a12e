"""Where chunks end: the cut rule of each kind of content, applied to one region at a time.

Cuts depend on the region's bytes alone, so equal regions have equal records in every image and on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.bytechunker import cut_bytes, final_records
from trimtransfer.chunk import BLOCK_SIZE, DIGEST_SIZE, REGION_SIZE, Bytes, Kind, chunk_digest
from trimtransfer.table import ZERO as ZERO_BIT

ZERO: Final = np.uint32(ZERO_BIT)
"""Set in a record's length if the record is a zero record: a run of zeros, which is not a chunk."""

_PIECE: Final = 2 << 20
"""Bytes that are cut and then hashed while they are still in the processor's cache."""


def cut(kind: Kind, region: Bytes) -> NDArray[np.uint32]:
    """Return the lengths in bytes of a region's records, :data:`ZERO` set for zero records.

    The records cover ``region``, the true bytes of one region, exactly and in order; no bytes, no records.
    Raises ``ValueError`` if it is longer than ``REGION_SIZE`` or not contiguous.
    """
    view = _bytes_of(region)
    if kind is Kind.BYTES:
        return cut_bytes(view)
    mixed, flags = _room_for_hints(view)
    native.hints(view, mixed, flags)
    return _in_bytes(native.cut(mixed, flags), len(view))


def cut_and_digest(
    kind: Kind, region: Bytes, *, content: blake3 | None = None
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Return what :func:`cut` returns and the digests of the chunks among the records, shape (chunks, 32), in order.

    ``content`` is a hasher that gets the region's bytes as well. Everything happens piece by piece while the bytes are
    in the processor's cache, which takes a quarter less time than one pass after the other. Raises as :func:`cut`.
    """
    view = _bytes_of(region)
    lengths: list[NDArray[np.uint32]] = []
    digests: list[bytes] = []
    at = hashed = 0
    for seen, final in _final_records(view) if kind is Kind.DISK else final_records(view, piece=_PIECE):
        if content is not None:
            content.update(view[hashed:seen])
            hashed = seen
        at = _digest_chunks(view, at, final, digests)
        lengths.append(final)
    joined = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE)
    return np.concatenate(lengths) if lengths else np.empty(0, np.uint32), joined


def _bytes_of(region: Bytes) -> memoryview:
    view = memoryview(region)
    if view.nbytes > REGION_SIZE:
        raise ValueError(f"a region of {view.nbytes} bytes; at most {REGION_SIZE}")
    if not view.c_contiguous:
        raise ValueError("a region's bytes must be contiguous")
    return view.cast("B")


def _room_for_hints(view: memoryview) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    blocks = -(-len(view) // BLOCK_SIZE)
    return np.empty(blocks, np.uint32), np.empty(blocks, np.uint8)


def _in_bytes(runs: NDArray[np.uint32], size: int) -> NDArray[np.uint32]:
    """Turn records in blocks, which end where ``size`` bytes end, into records in bytes."""
    # The product loses the flag, which is shifted out of 32 bits, and nothing else: a region has 2^14 blocks of 2^12.
    lengths = runs * np.uint32(BLOCK_SIZE) | runs & ZERO
    if size % BLOCK_SIZE:
        lengths[-1] -= BLOCK_SIZE - size % BLOCK_SIZE
    return lengths


def _final_records(view: memoryview) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield, piece by piece, how many bytes were looked at and the records that are final then, lengths in bytes.

    The cut rule is applied from the last final record on, to what is known:
    - Its last two records may change with what follows (the last may be a run of zeros that goes on, or a run that is
      too short to end the chunk before it); no other record depends on blocks after its end.
    - Cutting may start afresh after any record unless it ends between two zero blocks: the rule judges whole runs.
    """
    mixed, flags = _room_for_hints(view)
    start = 0
    for piece in range(0, len(view), _PIECE):
        seen = min(piece + _PIECE, len(view))
        new = slice(piece // BLOCK_SIZE, -(-seen // BLOCK_SIZE))
        native.hints(view[piece:seen], mixed[new], flags[new])
        runs = native.cut(mixed[start : new.stop], flags[start : new.stop])
        if seen == len(view):
            yield seen, _in_bytes(runs, seen)
            return
        ends = start + np.cumsum(runs & ~ZERO, dtype=np.int64)
        count = max(0, len(runs) - 2)
        while count and flags[ends[count - 1] - 1] & flags[ends[count - 1]] & 1:
            count -= 1
        start = int(ends[count - 1]) if count else start
        yield seen, _in_bytes(runs[:count], 0)


def _digest_chunks(view: memoryview, at: int, lengths: NDArray[np.uint32], digests: list[bytes]) -> int:
    """Append the digests of the chunks among records that begin at byte ``at``; return where they end."""
    for length in lengths.tolist():
        if length < ZERO_BIT:
            digests.append(chunk_digest(view[at : at + length]))
            at += length
        else:
            at += length - ZERO_BIT
    return at
