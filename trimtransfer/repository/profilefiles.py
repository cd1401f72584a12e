"""The files of a profile as content that deltas start from: read where they are now, each chunk compared with its
digest.

A chunk that several files have is taken from the first of them. What is gone or changed since it was recorded is left
out, chunk by chunk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import REGION_SIZE, chunk_digest
from trimtransfer.localfile import OpenFiles, open_local, read_into
from trimtransfer.repository.profiles import OpenProfile, path_in
from trimtransfer.table import MAX_RECORDS, ZERO, Table

_WINDOW: Final = 4 << 20


class ProfileFiles:
    """The distinct chunks of a profile in the order of its files, put into regions as those of an image are.

    ``lengths``, ``digests`` and ``prefixes`` (the first eight bytes of these, as numbers) of the chunks; ``first``: the
    number of each region's first chunk, and of the end; ``usable``: those not found wrong so far. Its methods may be
    called from any thread. Memory: 68 bytes a chunk.
    """

    def __init__(self, opened: OpenProfile) -> None:
        self.profile, self.digest = opened.profile, opened.digest
        self._trees = [os.fsencode(tree) for tree in opened.trees]
        self._open = OpenFiles()
        self._lock = threading.Lock()
        file, offset, length = _chunks_of(opened.profile.files, opened.profile.records)
        keys = np.ascontiguousarray(opened.profile.digests).view("V32").reshape(-1)
        _, once = np.unique(keys, return_index=True)
        once.sort()
        self.lengths, self.digests = length[once], opened.profile.digests[once]
        self.prefixes = np.ascontiguousarray(self.digests[:, :8]).view("<u8").reshape(-1).astype(np.uint64)
        self._file, self._offset = file[once], offset[once]
        self.usable = np.ones(len(once), dtype=np.bool_)
        self.first = _borders(self.lengths)

    def __enter__(self) -> ProfileFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def regions(self) -> range:
        """The numbers of the regions."""
        return range(len(self.first) - 1)

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the number of each chunk with these first bytes of its digest and this length, -1 where there is none.

        Of two that share both it is one of them.
        """
        if not len(self):
            return np.full(len(prefixes), -1, dtype=np.int64)
        order = np.argsort(self.prefixes, kind="stable")
        at = order[np.minimum(np.searchsorted(self.prefixes, prefixes, sorter=order), len(order) - 1)]
        return np.where((self.prefixes[at] == prefixes) & (self.lengths[at] == lengths), at, -1)

    def size(self, index: int) -> int:
        """Return the bytes of a region."""
        return int(self.lengths[self.first[index] : self.first[index + 1]].sum(dtype=np.int64))

    def table(self, index: int) -> Table:
        """Return the table of a region: its chunks."""
        part = slice(int(self.first[index]), int(self.first[index + 1]))
        return Table.from_records(self.lengths[part], self.digests[part])

    def parts(self, index: int, table: Table) -> Iterator[tuple[int, int, bytearray | None]]:
        """Yield first and end of neighbouring records of a region and their content, at most 4 MiB at a time.

        Zeros stand for chunks that cannot be had any more.
        """
        base = int(self.first[index])
        ends = np.cumsum(table.lengths, dtype=np.int64)
        first = 0
        while first < len(table):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _WINDOW, side="right")))
            content = bytearray(int(ends[last - 1]) - before)
            view, at = memoryview(content), 0
            for number in range(base + first, base + last):
                length = int(self.lengths[number])
                self.read(number, view[at : at + length])
                at += length
            yield first, last, content
            first = last

    def read(self, number: int, into: memoryview) -> bool:
        """Fill a buffer of its length with a chunk; False, and zeros, if its file does not hold it any more."""
        if self.usable[number]:
            file = int(self._file[number])
            try:
                good = self._open.use(file, lambda: self._open_file(file), lambda one: self._fill(one, number, into))
            except (OSError, ValueError):
                good = False
            if good:
                return True
            with self._lock:
                self.usable[number] = False
        into[:] = bytes(len(into))
        return False

    def _open_file(self, file: int) -> int:
        tree = int(self.profile.files["tree"][file])
        if tree >= len(self._trees):
            raise FileNotFoundError("where the tree is, is not known")
        return open_local(path_in(self._trees[tree], self.profile.paths[file]))

    def _fill(self, descriptor: int, number: int, into: memoryview) -> bool:
        got = read_into(descriptor, into, int(self._offset[number]))
        into[got:] = bytes(len(into) - got)
        expected: bytes = self.digests[number].tobytes()
        return chunk_digest(into) == expected


def _chunks_of(
    files: NDArray[np.void], records: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Return file, offset in it and length of every chunk of a profile."""
    lengths = (records & np.uint32(ZERO - 1)).astype(np.uint32)
    file = np.repeat(np.arange(len(files)), files["records"])
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    begins = np.cumsum(files["records"], dtype=np.int64) - files["records"]
    offset = starts - starts[begins][file] if len(file) else starts
    chunk = records < ZERO
    return file[chunk], offset[chunk], lengths[chunk]


def _borders(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return where regions begin, as many chunks in each as a region takes, and the end."""
    ends = np.cumsum(lengths, dtype=np.int64)
    borders, at = [0], 0
    while at < len(lengths):
        before = int(ends[at - 1]) if at else 0
        at = min(at + MAX_RECORDS, int(np.searchsorted(ends, before + REGION_SIZE, side="right")))
        borders.append(at)
    return np.array(borders, dtype=np.int64)
