"""Taking bytes off the front of a structure of ours: whatever is not there is a ``FormatError`` that says where."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError


class FrontReader:
    """Takes ``data`` off from its front; ``what`` it is, and that it lies ``offset`` bytes behind the beginning of
    that, is said in errors."""

    def __init__(self, data: memoryview, what: str, *, offset: int = 0) -> None:
        self._data, self._what, self._offset, self._at = data, what, offset, 0

    def take(self, size: int) -> memoryview:
        """Return the next ``size`` bytes."""
        left = len(self._data) - self._at
        if size > left:
            raise FormatError(self._what, self._offset + self._at, f"{size} more bytes", left)
        self._at += size
        return self._data[self._at - size : self._at]

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Return the next fields."""
        return layout.unpack(self.take(layout.size))

    def text(self) -> str:
        """Return ASCII text with its length, a byte, in front of it."""
        return self.ascii(self.take(1)[0])

    def ascii(self, size: int) -> str:
        """Return ASCII text of ``size`` bytes."""
        at, raw = self._at, bytes(self.take(size))
        if not raw.isascii():
            raise FormatError(self._what, self._offset + at, "ASCII text", raw[:80])
        return raw.decode("ascii")

    def bitmap(self, bits: int) -> NDArray[np.bool_]:
        """Return so many bits, the lowest of each byte first; those that fill up the last byte must be zeros."""
        at = self._at
        packed = np.frombuffer(self.take(-(-bits // 8)), dtype=np.uint8)
        unpacked = np.unpackbits(packed, bitorder="little").astype(np.bool_)
        if unpacked[bits:].any():
            raise FormatError(self._what, self._offset + at, f"{bits} bits, then zeros", "more bits")
        return unpacked[:bits]

    def column(self, dtype: str, count: int, width: int = 1) -> NDArray[Any]:
        """Return ``count`` times ``width`` numbers."""
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(kind.itemsize * count * width), dtype=kind)

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            left = len(self._data) - self._at
            raise FormatError(self._what, self._offset + self._at, "its end", f"{left} more bytes")
