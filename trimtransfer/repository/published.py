"""The content of a published version, read from the repository at any offset: never the whole image, and each chunk
compared with its digest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.reading import VersionReader


class PublishedImage:
    """A version as a source (``trimtransfer.image.Source``): ``size`` in bytes; ``path`` names it in messages.

    Keeps what was read last: 48 MiB of frames, tables of 32 regions. Its methods may be called from any thread, which
    then wait for each other.
    """

    def __init__(self, reader: VersionReader) -> None:
        self.reader = reader
        self.path = Path(f"{reader.manifest.image} {reader.manifest.version}")
        self.size = reader.manifest.length
        self._chunks = ChunkReader(reader)
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on: ``length`` of them, fewer only at the end; raises as ``read_into``."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        if buffer:
            self.read_into(buffer, offset)
        return bytes(buffer)

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
            ValueError: the range is not within the image.
        """
        view = memoryview(buffer).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"bytes {offset:,} to {offset + len(view):,} of an image of {self.size:,}")
        manifest = self.reader.manifest
        done = 0
        with self._lock:
            while done < len(view):
                index = int(np.searchsorted(manifest.starts, offset + done, side="right")) - 1
                at = offset + done - int(manifest.starts[index])
                count = min(len(view) - done, int(manifest.lengths[index]) - at)
                self._read_region(view[done : done + count], index, at)
                done += count

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts of a range that are no runs of zeros, in order."""
        manifest = self.reader.manifest
        end = min(start + length, self.size)
        first = max(0, int(np.searchsorted(manifest.starts, start, side="right")) - 1)
        for index in range(first, manifest.region_count):
            origin = int(manifest.starts[index])
            if origin >= end:
                return
            if manifest.zero[index]:
                continue
            with self._lock:
                table, _ = self._chunks.region(index)
            offsets = table.offsets[~table.zero] + origin
            ends = np.minimum(offsets + table.lengths[~table.zero], end)
            offsets = np.maximum(offsets, start)
            kept = offsets < ends
            yield from zip(offsets[kept].tolist(), (ends - offsets)[kept].tolist(), strict=True)

    def check_unchanged(self) -> None:
        """A published version never changes."""

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _read_region(self, view: memoryview, index: int, at: int) -> None:
        """Fill ``view`` with bytes of one region, from ``at`` of it on."""
        view[:] = bytes(len(view))
        if self.reader.manifest.zero[index]:
            return
        table, _ = self._chunks.region(index)
        offsets = table.offsets
        first = int(np.searchsorted(offsets, at, side="right")) - 1
        last = int(np.searchsorted(offsets, at + len(view)))
        for record in np.flatnonzero(~table.zero[first:last]).tolist():
            record += first
            start, length = int(offsets[record]), int(table.lengths[record])
            chunk = memoryview(bytearray(length))
            self._chunks.read(index, (record,), chunk)
            low, high = max(start, at), min(start + length, at + len(view))
            view[low - at : high - at] = chunk[low - start : high - start]
