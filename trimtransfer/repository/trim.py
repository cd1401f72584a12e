"""Trim: publish an image with the free blocks of its clean file systems blanked, and prove that nothing else changed.

What is blanked is what a file system marks free, and only if its reader finds it clean: nothing that is reached from its
root or its structures is marked free. The proof comes in two parts. By construction a :class:`TrimmedSource` differs
from its image in the blanked ranges alone. And what the reader makes of the trimmed image, from scratch, is what it made
of the image: the same paths, sizes and extents, the same free space, and the same bytes in everything in use, hashed in
the image's order. That costs two readings of what is in use, wherever it lies, and none of what is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from blake3 import blake3

from trimtransfer.errors import IntegrityError
from trimtransfer.filesystem.contents import CLEAN, FileSystem
from trimtransfer.filesystem.ranges import Ranges, intersection, joined, merged, no_ranges, overlapping, total
from trimtransfer.filesystem.volumes import Found, find_file_systems
from trimtransfer.geometry import Read
from trimtransfer.image import ImageSource
from trimtransfer.watch import Watch

_PIECE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class TrimmedVolume:
    """What trim did to one volume, sizes and positions in bytes.

    ``problem`` says why it was left as it is (empty: it was trimmed). ``free_bytes`` were blanked; ``blanked_bytes`` of
    them were data of the image file, not holes. ``files`` and ``kept_bytes`` (files and structures in use) were proven
    to be unchanged.
    """

    name: str
    file_system: str
    start: int
    length: int
    problem: str = ""
    free_bytes: int = 0
    blanked_bytes: int = 0
    files: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The trimmed image to publish, and what was done to each of its volumes."""

    source: ImageSource
    volumes: tuple[TrimmedVolume, ...]


@dataclass(frozen=True, slots=True)
class _Print:
    """All that a file system is: a digest of its listing, its free space and its bytes in use; their number."""

    digest: bytes
    files: int
    kept_bytes: int


class TrimmedSource(ImageSource):
    """An image source of which some ranges (merged) read as zeros and count as holes; they are never read.

    It takes the source over: closing it closes that.
    """

    def __init__(self, source: ImageSource, blank: Ranges) -> None:
        self._source, self._blank = source, blank
        self.path, self.size, self.is_device = source.path, source.size, source.is_device

    def close(self) -> None:
        """Close the image; harmless when closed already."""
        self._source.close()

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on; raises as the image does."""
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
        """Raise ``SourceChanged`` if the image changed since it was opened, as far as that can be told."""
        self._source.check_unchanged()


def trim(source: ImageSource, watch: Watch) -> Trimmed:
    """Return an image with the free space of its clean file systems blanked; it takes ``source`` over.

    Raises:
        IntegrityError: something in use would change: the image was written to meanwhile.
        Cancelled: as asked.
    """
    volumes: list[TrimmedVolume] = []
    chosen: list[tuple[Found, TrimmedVolume, _Print]] = []
    blank: list[Ranges] = []
    for found in find_file_systems(source.read, source.size):
        facts = TrimmedVolume(found.volume.name, found.kind, found.volume.start, found.volume.length, found.problem)
        if found.file_system is not None:
            free, print_, problem = _examine(found.file_system, source.read, watch)
            blank.append(free)
            facts = _facts(found, source, free, print_, problem)
        volumes.append(facts)
        ...
    raise NotImplementedError
