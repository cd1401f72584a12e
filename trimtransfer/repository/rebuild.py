"""Rebuilding a region's content from a repository, as a client without anything would, to learn its content digest and
its chunks' keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import ZEROS, region_hasher
from trimtransfer.finder import chunk_keys
from trimtransfer.repository.places import NOWHERE, Places
from trimtransfer.repository.reading import VersionReader
from trimtransfer.table import Table

_WINDOW: Final = 4 << 20
"""Bytes of content in memory; a frame that reaches across its end is decoded twice."""


def content_digest(reader: VersionReader, index: int) -> tuple[bytes, NDArray[np.uint64]]:
    """Return the digest of what region ``index``, not all zero, becomes when its chunks are put together; their keys.

    Chunks are not compared with their digests: a wrong one makes the result wrong. Memory: some 5 MiB.

    Raises:
        FormatError, IntegrityError, NotFound: something that is needed for it is damaged or missing.
    """
    table = reader.table(index)
    hasher, keys = region_hasher(), [np.zeros(0, dtype=np.uint64)]
    for first, last, content in parts(reader, index, table):
        if content is None:
            size = int(table.lengths[first])
            for at in range(0, size, len(ZEROS)):
                hasher.update(ZEROS[: size - at])
        else:
            hasher.update(content)
            solid, lengths = ~table.zero[first:last], table.lengths[first:last].astype(np.int64)
            keys.append(chunk_keys(content, (np.cumsum(lengths) - lengths)[solid], lengths[solid]))
    return hasher.digest(), np.concatenate(keys)


def parts(reader: VersionReader, index: int, table: Table) -> Iterator[tuple[int, int, bytearray | None]]:
    """Yield first and end of neighbouring records of region ``index`` and their content, at most 4 MiB at a time.

    A longer zero run comes alone, without content. Chunks are not compared with their digests.

    Raises:
        FormatError, IntegrityError, NotFound: something that is needed for it is damaged or missing.
    """
    places = Places(table, reader.locations(index))
    for first, last in windows(table):
        size = int(table.lengths[first:last].sum(dtype=np.int64))
        zeros = last == first + 1 and bool(table.zero[first])  # it may be as long as the region
        yield first, last, None if zeros else _content(reader, table, places, first, last, size)


def windows(table: Table) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of neighbouring records of at most ``_WINDOW`` bytes together; a longer one stands alone."""
    ends = table.offsets + table.lengths
    first = 0
    while first < len(table):
        start = int(ends[first]) - int(table.lengths[first])
        end = max(first + 1, int(np.searchsorted(ends, start + _WINDOW, side="right")))
        yield first, end
        first = end


def _content(reader: VersionReader, table: Table, places: Places, first: int, last: int, size: int) -> bytearray:
    """Return the content of the records from ``first`` up to ``last``, each of its frames decoded once."""
    content = bytearray(size)
    view = memoryview(content)
    lengths, starts, frames = table.lengths[first:last], places.start[first:last], places.frame[first:last]
    offsets = np.cumsum(lengths, dtype=np.int64) - lengths
    order = np.argsort(frames, kind="stable")
    raw, current = memoryview(b""), NOWHERE
    for row in order[np.count_nonzero(frames == NOWHERE) :].tolist():  # runs of zeros come first, and are there
        if frames[row] != current:
            current = int(frames[row])
            raw = memoryview(places.decode(reader, current))
        at, start, length = int(offsets[row]), int(starts[row]), int(lengths[row])
        view[at : at + length] = raw[start : start + length]
    return content
