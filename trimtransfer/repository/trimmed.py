"""An image with some ranges blanked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trimtransfer.filesystem.ranges import Ranges, overlapping
from trimtransfer.image import Source


class TrimmedSource:
    """A source of which some ranges (merged) read as zeros and count as holes; they are never read.

    Its methods may be called from any thread, as those of ``source``, which stays the caller's to close.
    """

    def __init__(self, source: Source, blank: Ranges) -> None:
        self._source, self._blank = source, blank

    @property
    def path(self) -> Path:
        """The file."""
        return self._source.path

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self._source.size

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on; raises as the source does."""
        view = memoryview(buffer).cast("B")
        array = np.frombuffer(view, dtype=np.uint8)
        done = 0
        for start, length in overlapping(self._blank, offset, len(view)).tolist():
            at = start - offset
            if at > done:
                self._source.read_into(view[done:at], offset + done)
            array[at : at + length] = 0
            done = at + length
        if done < len(view):
            self._source.read_into(view[done:], offset + done)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on: ``length`` of them, fewer only at the end."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(buffer, offset)
        return bytes(buffer)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts of a range that may hold data, in order: no hole, nothing blanked."""
        for offset, size in self._source.extents(start, length):
            at, end = offset, offset + size
            for low, count in overlapping(self._blank, offset, size).tolist():
                if low > at:
                    yield at, low - at
                at = low + count
            if at < end:
                yield at, end - at

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if the source changed since it was opened, as far as that can be told."""
        self._source.check_unchanged()
