"""Reading what lies in pieces: a file, or a map, by its extents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.volume import MAX_READ, Volume


def read_stream(volume: Volume, what: str, extents: NDArray[np.int64], offset: int, length: int) -> bytes:
    """Return ``length`` bytes from ``offset`` on of what has these extents (n, 3: offset in it, in the volume, length;
    in order); zeros where it has none.

    Raises:
        FormatError: more than ``MAX_READ`` bytes are asked for, or they do not lie within the volume.
    """
    if not 0 <= length <= MAX_READ:
        raise FormatError(what, volume.start, f"at most {MAX_READ} bytes", f"{length} bytes")
    found = bytearray(length)
    ends = extents[:, 0] + extents[:, 2]
    first = int(np.searchsorted(ends, offset, side="right"))
    last = int(np.searchsorted(extents[:, 0], offset + length, side="left"))
    for start, place, size in extents[first:last].tolist():
        low, high = max(start, offset), min(start + size, offset + length)
        if low < high:
            found[low - offset : high - offset] = volume.bytes(what, place + low - start, high - low)
    return bytes(found)
