"""Runs: where each piece of a guest disk lies in a container file. Pure arrays.

A format's mapping tells for any range of the guest disk which parts are absent, zero, stored as they are, or packed
(compressed). Neighbours that also lie side by side in the file are one run, so that they are read in one go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

ABSENT: Final = 0
"""Not in this file: what the base disk has there, zeros if there is no base."""
ZERO: Final = 1
"""Zeros, whatever a base has there."""
STORED: Final = 2
"""As it is at ``place`` in the file, a byte offset."""
PACKED: Final = 3
"""Compressed; ``place`` means something to the format alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Pieces of a guest disk, in order and without gaps.

    ``starts`` and ``lengths`` in bytes of the guest (int64, shape (n,)), ``states`` (uint8, (n,)), ``places`` (int64,
    (n,)).
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    states: NDArray[np.uint8]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def stored_end(self) -> int:
        """Return the byte of the file after the last one that a stored run lies in; 0 without any."""
        stored = self.states == STORED
        return int((self.places + self.lengths)[stored].max()) if stored.any() else 0

    def clip(self, offset: int, length: int) -> Runs:
        """Return the runs of a part of the range that these cover."""
        starts = np.maximum(self.starts, offset)
        ends = np.minimum(self.starts + self.lengths, offset + length)
        kept = ends > starts
        shifts = np.where(self.states == STORED, starts - self.starts, 0)
        return Runs(starts[kept], (ends - starts)[kept], self.states[kept], (self.places + shifts)[kept])


def join(start: int, unit: int, states: NDArray[np.uint8], places: NDArray[np.int64]) -> Runs:
    """Return the runs of consecutive units of ``unit`` bytes from ``start`` on; packed ones stay by themselves."""
    starts = start + np.arange(len(states), dtype=np.int64) * unit
    return join_pieces(starts, np.full(len(states), unit, dtype=np.int64), states, places)


def join_pieces(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], states: NDArray[np.uint8], places: NDArray[np.int64]
) -> Runs:
    """Return the runs of consecutive pieces of any lengths."""
    if not len(starts):
        return Runs(starts, lengths, states, places)
    same = states[1:] == states[:-1]
    state = states[1:]
    follows = (state == STORED) & (places[1:] == places[:-1] + lengths[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~(same & ((state < STORED) | follows)))))
    return Runs(starts[first], np.add.reduceat(lengths, first), states[first], places[first])


class Mapping(Protocol):
    """What a format's parsed file offers; its methods may be called from any thread.

    ``size`` of the guest disk in bytes; ``unit``: what is unpacked at a time; ``window``: the most bytes that ``runs``
    may be asked for at once.
    """

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        ...

    @property
    def unit(self) -> int:
        """Bytes that are unpacked at a time."""
        ...

    @property
    def window(self) -> int:
        """The most bytes that :meth:`runs` is asked for."""
        ...

    def runs(self, offset: int, length: int) -> Runs:
        """Return the runs that cover exactly this range, which lies within the disk.

        Raises:
            FormatError: tables that break the format's rules.
        """
        ...

    def unpack(self, place: int, start: int) -> bytes:
        """Return the content of the packed unit at ``place`` that begins at byte ``start`` of the guest disk.

        Raises:
            FormatError: not what the format packs.
        """
        ...


def numbers(raw: bytes, kind: str) -> NDArray[Any]:
    """Return a table's entries, of the byte order in ``kind`` (such as ``>u4``), as uint64."""
    return np.frombuffer(raw, dtype=kind).astype(np.uint64)
