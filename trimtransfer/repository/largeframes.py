"""Zstd frames too large for a unit, which several threads made in jobs: where their blocks and jobs begin, and what
they contain. Read and decoded piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from trimtransfer import zstdjobs
from trimtransfer.errors import FormatError
from trimtransfer.framed import Framed, zstd_head
from trimtransfer.tool import Kind

Read = Callable[[int, int], bytes]
"""Returns so many bytes of what a frame lies in from an offset on, fewer at its end."""
_WINDOW: Final = 4 << 20
_HEAD: Final = 32
_MAX_BLOCK: Final = 3 + (1 << 17)
_MOST_BLOCKS: Final = 1 << 17
"""Blocks that are looked at: of 4 GiB of content there are some 32,768 to 131,072."""


@dataclass(frozen=True, slots=True, eq=False)
class LargeFrame:
    """A frame, or so much of it as is made of whole jobs, ``size`` bytes; ``whole`` if it reaches its end.

    ``bits`` and ``contents`` (int64, (blocks + 1,)): where blocks begin and the last one ends, in bits from the first
    byte of the frame and in bytes of content. ``jobs`` (int64, (jobs + 1,)): with which blocks jobs begin, and where
    the last one ends."""

    framed: Framed
    size: int
    bits: NDArray[np.int64]
    contents: NDArray[np.int64]
    jobs: NDArray[np.int64]
    whole: bool


def read_large_frame(read: Read, keep: Callable[[memoryview], None], *, most: int) -> LargeFrame | None:
    """Return the frame at offset 0 with up to ``most`` bytes of content, which ``keep`` gets in order; None if there is
    none whose jobs can be decoded each by itself. Nothing is believed: what is damaged ends before the damage.

    Memory: the window of the frame, at most 4 MiB, and twice as much; 16 bytes for each block.
    """
    head = zstd_head(read(0, _HEAD))
    if head is None or not 10 <= head[1] <= zstdjobs.MAX_WINDOW:
        return None
    at, window, option, size = head
    job, rows, jobs, whole = zstdjobs.job_size(window), [(at, 0)], [0], False
    for stored, content, last in _blocks(read, at, window):
        place, done = rows[-1]
        border = job * len(jobs)
        if done + len(content) > border and (done < border or not _alone(stored, len(content), min(done, 1 << window))):
            break  # no jobs, or of another size
        if done == border and content:
            jobs.append(len(rows) - 1)
        rows.append((place + len(stored), done + len(content)))
        keep(memoryview(content))
        whole = last
        if last or done >= most or len(rows) > _MOST_BLOCKS:
            break
    return _frame(Framed(Kind.ZSTD, 0, rows[-1][0], 0, option, window, 0, size), rows, jobs, job, whole=whole)


def _frame(framed: Framed, rows: list[tuple[int, int]], jobs: list[int], job: int, *, whole: bool) -> LargeFrame | None:
    """Return a frame of these blocks; of one that has no end here, what its last job has is left out."""
    table = np.array(rows, dtype=np.int64)
    ended = int(table[-1, 1]) == job * len(jobs)
    if not whole and not ended:
        table = table[: jobs.pop() + 1]
    jobs.append(len(table) - 1)
    if len(jobs) < 2 or jobs[-1] == 0:
        return None
    if whole and ended and table[-1, 1] == table[-2, 1]:
        jobs[-1] -= 1  # the last block is an empty one, behind the last job
    end = int(table[-1, 0]) + 4 * bool(framed.option & 2) * whole
    numbers = np.array(jobs, dtype=np.int64)
    return LargeFrame(framed, end, 8 * table[:, 0], table[:, 1].copy(), numbers, whole)


def _blocks(read: Read, at: int, window: int) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield blocks from offset ``at`` on, each with its content, and whether it is the last; up to a damaged one."""
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << window).decompressobj()
    data, start = read(0, _WINDOW), 0
    try:
        decoder.decompress(data[:at])
        while True:
            if at + _MAX_BLOCK > start + len(data):
                data, start = read(at, _WINDOW), at
            place = at - start
            head = int.from_bytes(data[place : place + 3], "little")
            size = 3 + (1 if head >> 1 & 3 == 1 else head >> 3)
            stored = data[place : place + size]
            if size > _MAX_BLOCK or len(stored) < size:
                return
            yield stored, decoder.decompress(stored), bool(head & 1)
            if head & 1:
                return
            at += size
    except zstandard.ZstdError:
        return


def _alone(stored: bytes, size: int, before: int) -> bool:
    """Tell whether a block can be decoded without any before it."""
    try:
        zstdjobs.decode(stored, 1, size, bytes(before))
    except FormatError:
        return False
    return True
