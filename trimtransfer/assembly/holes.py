"""Holes of sparse images: how much room writing into them takes, and file systems that have none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.disk.source import Disk
from trimtransfer.localfile import file_system_of


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


_PROBE: Final = 1 << 20
_BLOCK: Final = 512  # the unit of st_blocks


def keeps_holes(folder: Path, *, probe: bool = True) -> bool:
    """Tell whether files in a folder can have holes; those of FAT and exFAT cannot: they are allocated as a whole.

    Where the name of the file system does not tell, as of those in user space, a file without a name is tried; without
    ``probe`` it is said that they can.
    """
    kind = file_system_of(folder)
    if kind in ("vfat", "msdos", "exfat"):
        return False
    if not probe or not kind.startswith("fuse"):
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        os.ftruncate(file.fileno(), _PROBE)
        return os.fstat(file.fileno()).st_blocks * _BLOCK < _PROBE
