"""Where chunks end: the cut rule of each kind of content, applied to one region at a time.

Cuts depend on the region's bytes alone, so equal regions have equal records in every image and on every machine.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import BLOCK_SIZE, REGION_SIZE, Bytes, Kind
from trimtransfer.table import ZERO as ZERO_BIT

ZERO: Final = np.uint32(ZERO_BIT)
"""Set in a record's length if the record is a zero record: a run of zeros, which is not a chunk."""


def cut(kind: Kind, region: Bytes) -> NDArray[np.uint32]:
    """Return the lengths in bytes of a region's records, :data:`ZERO` set for zero records.

    The records cover ``region``, the true bytes of one region, exactly and in order; no bytes, no records.
    Raises ``ValueError`` if it is longer than ``REGION_SIZE``.
    """
    if memoryview(region).nbytes > REGION_SIZE:
        raise ValueError(f"a region of {memoryview(region).nbytes} bytes; at most {REGION_SIZE}")
    return _cut_disk(region)


def _cut_disk(region: Bytes) -> NDArray[np.uint32]:
    runs = native.cut(*native.hints(region))
    # The flag moves out of the way of the multiplication by shifting beyond 32 bits and comes back afterwards.
    lengths = (runs * np.uint32(BLOCK_SIZE)) | (runs & ZERO)
    padding = -memoryview(region).nbytes % BLOCK_SIZE
    if padding:
        lengths[-1] -= padding
    return lengths
