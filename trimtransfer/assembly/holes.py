"""Holes of sparse images: how much room writing into them takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtransfer.disk.source import Disk


def hole_bytes(image: Disk, offsets: NDArray[np.int64], lengths: NDArray[np.uint32] | NDArray[np.int64]) -> int:
    """Return how many bytes of these pieces lie in holes of the image, or behind its end; none of a device do."""
    if image.is_device or not len(offsets):
        return 0
    ends = offsets + lengths.astype(np.int64)
    first = int(offsets.min())
    found = np.array(list(image.extents(first, int(ends.max()) - first)), dtype=np.int64).reshape(-1, 2)
    if not len(found):
        return int((ends - offsets).sum())
    starts, sizes = found[:, 0], found[:, 1]
    before = np.cumsum(sizes) - sizes

    def data_before(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        at = np.maximum(np.searchsorted(starts, positions, side="right") - 1, 0)
        count: NDArray[np.int64] = before[at] + np.clip(positions - starts[at], 0, sizes[at])
        return count

    return int((ends - offsets).sum() - (data_before(ends) - data_before(offsets)).sum())
