"""Rebuilding a region's content from a repository, as a client without anything would, to learn its content digest and
its chunks' keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import ZEROS, region_hasher
from trimtransfer.errors import FormatError
from trimtransfer.finder import chunk_keys
from trimtransfer.location import FRAME, Locations, PackRef
from trimtransfer.pack import decode_frame, pack_name
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import Range
from trimtransfer.table import Table

_WINDOW: Final = 4 << 20
"""Bytes of content in memory; a frame that reaches across its end is decoded twice."""
_NOWHERE: Final = -1


def content_digest(reader: VersionReader, index: int) -> tuple[bytes, NDArray[np.uint64]]:
    """Return the digest of what region ``index``, not all zero, becomes when its chunks are put together; their keys.

    Chunks are not compared with their digests: a wrong one makes the result wrong. Memory: some 5 MiB.

    Raises:
        FormatError, IntegrityError, NotFound: something that is needed for it is damaged or missing.
    """
    table = reader.table(index)
    places = _Places(table, reader.locations(index))
    hasher, keys = region_hasher(), [np.zeros(0, dtype=np.uint64)]
    for first, last in _windows(table):
        size = int(table.lengths[first:last].sum(dtype=np.int64))
        if last == first + 1 and table.zero[first]:  # it may be as long as the region
            for at in range(0, size, len(ZEROS)):
                hasher.update(ZEROS[: size - at])
        else:
            content = _content(reader, table, places, first, last, size)
            hasher.update(content)
            solid, lengths = ~table.zero[first:last], table.lengths[first:last].astype(np.int64)
            keys.append(chunk_keys(content, (np.cumsum(lengths) - lengths)[solid], lengths[solid]))
    return hasher.digest(), np.concatenate(keys)


class _Places:
    """Where each record of a region lies: ``frame`` (number in ``frames``, or ``_NOWHERE``) and ``start`` in it."""

    def __init__(self, table: Table, parts: list[Locations]) -> None:
        self.packs: list[PackRef] = []
        self.frame = np.full(len(table), _NOWHERE, dtype=np.int64)
        self.start = np.zeros(len(table), dtype=np.int64)
        frames = [np.zeros(0, dtype=FRAME)]
        count = 0
        for part in parts:
            pieces = part.pieces(table)
            self.frame[pieces["record"]] = pieces["frame"].astype(np.int64) + count
            self.start[pieces["record"]] = pieces["start"]
            renumbered = part.frames.copy()
            renumbered["pack"] += len(self.packs)
            frames.append(renumbered)
            self.packs += part.packs
            count += len(renumbered)
        self.frames: NDArray[np.void] = np.concatenate(frames)
        missing = ~table.zero & (self.frame == _NOWHERE)
        if missing.any():
            raise FormatError("locations", f"record {int(np.argmax(missing))}", "each chunk located", "none")

    def decode(self, reader: VersionReader, number: int) -> bytes:
        """Return the content of a frame, read from its pack."""
        frame = self.frames[number]
        pack = self.packs[int(frame["pack"])]
        wanted = Range(pack_name(pack.digest), int(frame["offset"]), int(frame["stored"]), pack.length)
        stored = reader.store.read_range(wanted)
        return decode_frame(stored, codec=int(frame["codec"]), raw=int(frame["raw"]), check=frame["check"].tobytes())


def _windows(table: Table) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of neighbouring records of at most ``_WINDOW`` bytes together; a longer one stands alone."""
    ends = table.offsets + table.lengths
    first = 0
    while first < len(table):
        start = int(ends[first]) - int(table.lengths[first])
        end = max(first + 1, int(np.searchsorted(ends, start + _WINDOW, side="right")))
        yield first, end
        first = end


def _content(reader: VersionReader, table: Table, places: _Places, first: int, last: int, size: int) -> bytearray:
    """Return the content of the records from ``first`` up to ``last``, each of its frames decoded once."""
    content = bytearray(size)
    view = memoryview(content)
    lengths, starts, frames = table.lengths[first:last], places.start[first:last], places.frame[first:last]
    offsets = np.cumsum(lengths, dtype=np.int64) - lengths
    order = np.argsort(frames, kind="stable")
    raw, current = memoryview(b""), _NOWHERE
    for row in order[np.count_nonzero(frames == _NOWHERE) :].tolist():  # runs of zeros come first, and are there
        if frames[row] != current:
            current = int(frames[row])
            raw = memoryview(places.decode(reader, current))
        at, start, length = int(offsets[row]), int(starts[row]), int(lengths[row])
        view[at : at + length] = raw[start : start + length]
    return content
