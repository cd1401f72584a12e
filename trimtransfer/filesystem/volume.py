"""A part of an image that may hold a file system, read with bounds.

Every position that a file system names goes through here: what lies outside of the volume is a ``FormatError``, never
bytes of something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ranges import Column
from trimtransfer.geometry import Read

MAX_READ: Final = 64 << 20
"""Longest piece read at once, in bytes."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes ``start`` to ``start + length`` of an image; ``name`` is for people (``partition 2``)."""

    read: Read
    start: int
    length: int
    name: str

    def bytes(self, what: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` within the volume on; ``what`` they are is said in errors.

        Raises:
            FormatError: they do not all lie within the volume, or in the image.
        """
        if offset < 0 or not 0 <= length <= min(MAX_READ, self.length - offset):
            raise FormatError(
                what, self.start + offset, f"at most {MAX_READ} bytes within the volume", f"{length} bytes"
            )
        found = self.read(self.start + offset, length)
        if len(found) != length:
            raise FormatError(what, self.start + offset, f"{length} bytes", f"{len(found)}, the end of the image")
        return found

    def gather(self, what: str, offsets: Column, size: int) -> NDArray[np.uint8]:
        """Return many pieces of ``size`` bytes, shape (n, size), in the order given; neighbours are read together.

        The caller bounds the memory, ``n * size``.

        Raises:
            FormatError: a piece does not lie within the volume, or in the image.
        """
        found = np.zeros((len(offsets), size), dtype=np.uint8)
        if not len(offsets):
            return found
        order = np.argsort(offsets, kind="stable")
        placed = offsets[order]
        most = max(1, (1 << 20) // size)
        breaks = np.diff(placed) != size
        firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(placed)])).tolist()
        for first, last in pairwise(firsts):
            for at in range(first, last, most):
                count = min(most, last - at)
                piece = self.bytes(what, int(placed[at]), count * size)
                found[order[at : at + count]] = np.frombuffer(piece, dtype=np.uint8).reshape(count, size)
        return found
