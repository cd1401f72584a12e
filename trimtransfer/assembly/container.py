"""Writing into a container (qcow2, VHD, VHDX): guest bytes go to the places that its layout gives them.

The container's own bytes are written first and again at every opening, and always come out the same, so at any moment
the file is a valid container of what was written to it so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3

from trimtransfer.assembly.rawfile import Piece, RawFile
from trimtransfer.disk.layout import Layout

_NAME: Final = 8


class ContainerFile(RawFile):
    """A file in which a disk lies by ``layout``; offsets of all methods are the guest's.

    What is written where the layout has no place is dropped: by the layout's tables that part is zeros, and whoever
    verifies the disk finds out if it should not be.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(path, create=True)
        self.layout = layout

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write all of ``data`` that has a place."""
        view = memoryview(data)
        for at, length, place in self.layout.place(offset, len(view)):
            super().write(place, view[at - offset : at - offset + length])

    def write_pieces(self, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
        """Write pieces (offset, data); return (offset, length) of each."""
        placed: list[Piece] = []
        for offset, data in pieces:
            for at, length, place in self.layout.place(offset, len(data)):
                placed.append((place, data[at - offset : at - offset + length]))
        super().write_pieces(placed)
        return [(offset, len(data)) for offset, data in pieces]

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zeros, as far as it has a place."""
        for _, size, place in self.layout.place(offset, length):
            self.write_zeros_at(place, size)

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from ``offset`` on, if all of it has a place."""
        done = 0
        for _, length, place in self.layout.place(offset, len(buffer)):
            if not super().read(place, buffer[done : done + length]):
                return False
            done += length
        return done == len(buffer)

    def resize(self, length: int) -> None:
        """Give the file the container's length, and write the container's own bytes."""
        super().resize(self.layout.file_size)
        for place, data in self.layout.metadata():
            super().write(place, data)


def container_mark(layout: Layout) -> bytes:
    """Return 32 bytes that stand for a layout in a journal: the format's name, and a digest of the container's tables.

    What was written by one layout says nothing about a file of another.
    """
    hasher = blake3(layout.file_size.to_bytes(8, "little"))
    for place, data in layout.metadata():
        hasher.update(place.to_bytes(8, "little"))
        hasher.update(data)
    return layout.format.encode().ljust(_NAME, b"\0") + hasher.digest(32 - _NAME)


def marked_format(mark: bytes) -> str:
    """Return the format in the mark of a journal's file; ``raw`` for anything else than the mark of a container."""
    name = mark[:_NAME].rstrip(b"\0")
    return {b"qcow2": "qcow2", b"vhd": "vhd", b"vhdx": "vhdx"}.get(name, "raw")
