"""An image with some ranges blanked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from trimtransfer.filesystem.ranges import Cover, Ranges
from trimtransfer.image import Source

_LEFT_OUT: Final = 64 << 10
"""Bytes that are worth a reading of their own on either side."""


class TrimmedSource:
    """A source of which some ranges (merged) read as zeros and count as holes.

    Who goes by ``extents`` reads nothing of them; else only small ones are read with what lies around them.
    Its methods may be called from any thread, as those of ``source``, which stays the caller's to close.
    """

    def __init__(self, source: Source, blank: Ranges) -> None:
        self._source, self._blank = source, Cover(blank)

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
        blank = self._blank.within(offset, len(view))
        blank[:, 0] -= offset
        done = 0
        for at, length in blank[blank[:, 1] >= _LEFT_OUT].tolist():
            if at > done:
                self._source.read_into(view[done:at], offset + done)
            done = at + length
        if done < len(view):
            self._source.read_into(view[done:], offset + done)
        for at, length in blank.tolist():
            array[at : at + length] = 0

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on: ``length`` of them, fewer only at the end."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(buffer, offset)
        return bytes(buffer)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts of a range that may hold data, in order: no hole, nothing blanked."""
        for offset, size in self._source.extents(start, length):
            at, end = offset, offset + size
            for low, count in self._blank.within(offset, size).tolist():
                if low > at:
                    yield at, low - at
                at = low + count
            if at < end:
                yield at, end - at

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if the source changed since it was opened, as far as that can be told."""
        self._source.check_unchanged()
