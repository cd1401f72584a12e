"""The bytes of a version's image, read anywhere from its repository."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trimtransfer.repository.places import ChunkReader


class Piece(NamedTuple):
    """Part of a record: ``length`` bytes from its byte ``start`` on; ``solid`` if it is a chunk, not a zero run."""

    region: int
    record: int
    start: int
    length: int
    solid: bool


class ImageBytes:
    """Reads an image of ``size`` bytes, each chunk compared with its digest. Not for several threads at a time."""

    def __init__(self, chunks: ChunkReader) -> None:
        self._chunks = chunks
        self.manifest = chunks.reader.manifest
        self.size = self.manifest.length

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Yield the parts of records that the bytes from ``offset`` on are, in order; no further than the image goes.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        starts, sizes, at, end = self.manifest.starts, self.manifest.lengths, offset, min(offset + length, self.size)
        region = int(np.searchsorted(starts, offset, side="right")) - 1
        while at < end:
            start, last = int(starts[region]), min(end, int(starts[region]) + int(sizes[region]))
            if self.manifest.zero[region]:
                yield Piece(region, 0, at - start, last - at, solid=False)
            else:
                yield from self._records(region, at - start, last - start)
            at, region = last, region + 1

    def _records(self, region: int, low: int, high: int) -> Iterator[Piece]:
        table = self._chunks.region(region)[0]
        starts = table.offsets
        for record in range(int(np.searchsorted(starts, low, side="right")) - 1, len(table)):
            start = int(starts[record])
            if start >= high:
                break
            first, last = max(low, start) - start, min(high - start, int(table.lengths[record]))
            yield Piece(region, record, first, last - first, solid=not table.zero[record])

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on, fewer at the end of the image; raises what :meth:`pieces` raises."""
        return b"".join(map(self._bytes, self.pieces(offset, length)))

    def _bytes(self, piece: Piece) -> bytes:
        if not piece.solid:
            return bytes(piece.length)
        content = memoryview(bytearray(int(self._chunks.region(piece.region)[0].lengths[piece.record])))
        self._chunks.read(piece.region, [piece.record], content)
        return bytes(content[piece.start : piece.start + piece.length])
