"""Layouts: where each byte of a guest disk goes in a container that is yet to be written, and its own bytes.

A layout is made beforehand from the disk's size and the parts that are not zero, and always comes out the same: so
content can be written in any order, by several runs of a program, and the container's tables at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from trimtransfer.disk.units import Units

SECTOR: Final = 512
PIECE: Final = 1 << 20
"""The most bytes of tables that are made at once."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a container the same again: 16 bytes that serve as its unique id, its time (seconds since 1970)."""

    unique: bytes
    created: int


class Layout(Protocol):
    """How a disk of ``size`` bytes lies in a container of ``file_size`` bytes in the format ``format``."""

    @property
    def format(self) -> str:
        """Name of the format."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        ...

    @property
    def file_size(self) -> int:
        """Bytes of the container."""
        ...

    def place(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return (offset, length, place in the file) of the parts of a range of the disk that have a place, in order.

        What is left out reads as zeros: nothing of it was among the parts that the layout was made for.
        """
        ...

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset in the file, bytes) of everything else, in order; what lies between is zeros."""
        ...


def place_units(units: Units, offset: int, length: int, data: int, stride: int) -> list[tuple[int, int, int]]:
    """Return what :meth:`Layout.place` does, where used unit number n lies at ``data + n * stride``."""
    found: list[tuple[int, int, int]] = []
    end = offset + length
    while offset < end:
        number = offset // units.unit
        rank, last = units.run_of(number)
        if rank >= 0 and stride != units.unit:
            last = number + 1
        until = min(end, last * units.unit)
        if rank >= 0:
            found.append((offset, until - offset, data + rank * stride + offset % units.unit))
        offset = until
    return found
