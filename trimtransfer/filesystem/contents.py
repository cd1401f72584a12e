"""What every reader of a file system gives: its state, its free space, its files and where their content lies.

The state decides whether anything else may be relied on: ``CLEAN``, or why not. A file system is clean if it says so
itself, everything in it can be read, its counts agree with its maps, and nothing that is in use is marked free.

Limits: ``MAX_FILES`` files and ``MAX_RUNS`` runs of blocks, some 200 bytes of memory each, so at most about 1 GB; a
file system with more counts as one that cannot be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.ranges import Column, Ranges, intersection, merged, overlap, ranges_of
from trimtransfer.filesystem.volume import Volume

CLEAN: Final = "clean"
MAX_FILES: Final = 2_000_000
MAX_RUNS: Final = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class FileEntry:
    """A regular file: ``path`` from the root on (no leading slash; parts joined by ``/``), ``size`` in bytes, and
    ``extents`` (int64, shape (n, 3): offset in the file, offset in the image, length) in the file's order.

    What no extent covers is not stored as such: a hole or an unwritten part (it reads as zeros), or content that is
    stored within metadata or compressed - then there are no extents at all.
    """

    path: bytes
    size: int
    extents: NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # no slots: the table of extents is made once
class Runs:
    """Pieces of allocated space in order of owner and position in it; all columns of shape (n,), in bytes.

    ``owners`` numbers what they belong to, ``offsets`` is where in it they lie, ``places`` where in the image.
    ``plain`` marks content as it reads; else it is allocated only (unwritten, compressed, not a file's content).
    """

    owners: Column
    offsets: Column
    places: Column
    lengths: Column
    plain: NDArray[np.bool_]

    @classmethod
    def of(cls, what: str, parts: Sequence[Runs]) -> Runs:
        """Join parts.

        Raises:
            FormatError: pieces of one owner overlap in it, or there are more than ``MAX_RUNS``.
        """
        check_count(what, sum(len(part.owners) for part in parts), MAX_RUNS)
        nothing = np.zeros(0, dtype=np.int64)
        columns = [
            np.concatenate([getattr(part, name) for part in parts]) if parts else nothing
            for name in ("owners", "offsets", "places", "lengths", "plain")
        ]
        order = np.lexsort((columns[1], columns[0]))
        owners, offsets, places, lengths, plain = (column[order] for column in columns)
        wrong = (owners[1:] == owners[:-1]) & (offsets[1:] < offsets[:-1] + lengths[:-1])
        if wrong.any():
            at = int(np.argmax(wrong)) + 1
            raise FormatError(what, int(places[at]), "pieces one after the other", f"offset {int(offsets[at])} twice")
        return cls(owners, offsets, places, lengths, plain.astype(np.bool_))

    def space(self) -> Ranges:
        """Return where in the image all pieces lie, in the owners' order."""
        return ranges_of(self.places, self.lengths)

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        return np.stack((self.offsets, self.places, self.lengths), axis=1)

    def extents(self, owner: int, size: int) -> NDArray[np.int64]:
        """Return the extents (n, 3) of the plain content of ``owner``, up to its length ``size``."""
        first, last = int(self.owners.searchsorted(owner)), int(self.owners.searchsorted(owner, side="right"))
        found = self._table[first:last].copy()
        np.minimum(found[:, 2], size - found[:, 0], out=found[:, 2])
        kept = self.plain[first:last] & (found[:, 2] > 0)
        return found if kept.all() else found[kept]


class FileSystem(ABC):
    """One file system of an image.

    ``kind`` is its name for people, ``start`` and ``length`` where it lies in the image (it may end before its
    volume), ``block_size`` its unit of allocation; all in bytes. Made by its reader's constructor, which raises
    ``FormatError`` where it cannot be read at all.
    """

    def __init__(self, volume: Volume, *, kind: str, length: int, block_size: int) -> None:
        self.volume, self.kind, self.start, self.length = volume, kind, volume.start, length
        self.block_size = block_size
        self._directory_bytes = 0
        if not 0 < length <= volume.length:
            raise FormatError(kind, volume.start, f"a file system of at most {volume.length} bytes", length)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind}, {self.start:,} + {self.length:,})"

    @cached_property
    def state(self) -> str:
        """``CLEAN``, or why it is not: its own marks, or what is wrong in it. Reads all metadata, no file content."""
        try:
            return self._doubt() or self._contradiction() or CLEAN
        except FormatError as error:
            return f"damaged: {error}"

    @abstractmethod
    def files(self) -> Iterator[FileEntry]:
        """Yield the regular files in the order of their paths, directory by directory; one with several names once,
        by the first of them. What is deleted, and the file system's own files, are left out.

        Raises:
            FormatError: a directory or a file's map of blocks cannot be read.
        """

    @abstractmethod
    def free(self) -> Ranges:
        """Return what the file system marks free: merged ranges of the image, in bytes.

        Raises:
            FormatError: its maps cannot be read, or contradict its counts.
        """

    @abstractmethod
    def reached(self) -> Ranges:
        """Return what is in use as far as it is known to be: own structures, directories, all files; in any order.

        Raises:
            FormatError: a structure cannot be read.
        """

    def packed(self) -> int:
        """Return how many bytes of its space hold content that it compresses or encrypts itself, as far as known.

        Raises:
            FormatError: a structure cannot be read.
        """
        return 0

    @abstractmethod
    def _doubt(self) -> str:
        """Return why the file system itself says that it is not clean, or nothing."""

    def _contradiction(self) -> str:
        """Return what of the content contradicts the map of free space, or nothing; names are read, too."""
        reached = self.reached()
        if not self._shares and (twice := overlap(reached)) is not None:
            return f"damaged: byte {twice:,} of the image belongs to two of its files or structures"
        used = merged(reached)
        if len(used) and not (self.start <= used[0, 0] and used[-1].sum() <= self.start + self.volume.length):
            return "damaged: it uses space beyond its end"
        if len(lost := intersection(used, self.free())):
            return f"damaged: byte {int(lost[0, 0]):,} of the image is in use and marked free"
        for _ in self.files():
            pass
        return ""

    def _spend(self, length: int) -> None:
        """Count bytes of directories that are read for one listing.

        Raises:
            FormatError: more than the volume has: directories share blocks.
        """
        self._directory_bytes += length
        if self._directory_bytes > self.volume.length:
            raise FormatError("directories", "their blocks", f"at most {self.volume.length} bytes", "more")

    @property
    def _shares(self) -> bool:
        """Whether files may share blocks."""
        return False


def check_count(what: str, count: int, most: int) -> None:
    """Raise ``FormatError`` if there are more of something than are looked at."""
    if count > most:
        raise FormatError(what, "its size", f"at most {most:,}", f"{count:,}")


def distinct(what: str, places: Column) -> Column:
    """Return places in ascending order.

    Raises:
        FormatError: one occurs twice, so what leads there is a circle or shared.
    """
    found = np.sort(places)
    twice = np.flatnonzero(found[1:] == found[:-1])
    if len(twice):
        raise FormatError(what, int(found[twice[0]]), "used once", "used twice")
    return found
