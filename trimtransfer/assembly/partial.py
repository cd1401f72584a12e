"""A new image being written beside the old one (or a device being filled), with its journal.

What the journal calls done is kept over kills; everything else is written again. The file becomes the image by a
rename, at the very end, by whoever has verified it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.container import ContainerFile, marked_format
from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.holes import keeps_holes
from trimtransfer.assembly.journal import Base, Journal, JournalKey, load_journal
from trimtransfer.assembly.rawfile import Piece, RawFile, clone
from trimtransfer.disk.layout import Layout

BATCH_BYTES: Final = 4 << 20
"""Fetched bytes after which what was written is brought to the disk ..."""
BATCH_SECONDS: Final = 2.0
"""... or seconds, whichever comes first."""
MAX_UNSYNCED: Final = 8 << 20
"""Fetched bytes that may wait for the disk; beyond that, fetching waits. A power cut costs these and what is on its way
(``FetchOptions.in_flight``): 24 MiB at most, however many connections there are."""


class Batches:
    """Decides when fetched bytes are brought to the disk, by ``sync``. Called by the threads that write them."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync = sync
        self._pending = 0
        self._since = time.monotonic()
        self._count = threading.Lock()
        self._busy = threading.Lock()

    def fetched(self, size: int) -> None:
        """Count ``size`` bytes that were fetched and written; may bring them to the disk, or wait for who does."""
        with self._count:
            self._pending += size
            pending = self._pending
            due = pending >= BATCH_BYTES or time.monotonic() - self._since >= BATCH_SECONDS
        if due and self._busy.acquire(blocking=pending >= MAX_UNSYNCED):
            try:
                self._flush()
            finally:
                self._busy.release()

    def _flush(self) -> None:
        with self._count:
            covered, self._since = self._pending, time.monotonic()
        if covered:
            self._sync()
            with self._count:
                self._pending -= covered


class PartialFile:
    """The half-written file: takes verified bytes, remembers what it has. Methods may be called from several threads.

    ``base`` says what lies where nothing was written, ``done`` what an earlier run had written. ``allocated``: the file
    has its room on the disk already, as on file systems without holes.
    """

    def __init__(
        self, file: RawFile, journal: Journal, base: Base, done: Extents, *, wrote: str, allocated: bool = False
    ) -> None:
        self.file, self.base, self.done, self.wrote, self.allocated = file, base, done, wrote, allocated
        self._journal = journal
        self._batches = Batches(self.sync)
        self._sparse = base is Base.ZEROS

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write verified bytes."""
        written = self.file.write_pieces(pieces)
        if written:
            columns = np.array(written, dtype=np.int64)
            self._journal.add(columns[:, 0], columns[:, 1])

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        self.file.write_zeros(offset, length)
        self._journal.add_one(offset, length)

    def write_raw(self, offset: int, data: memoryview) -> None:
        """Write bytes of a region that is verified as a whole when all of it is written; see :meth:`region_done`."""
        if self._sparse:
            self.file.write_sparse(offset, data)
        else:
            self.file.write(offset, data)

    def region_done(self, offset: int, length: int) -> None:
        """Record that a region written with :meth:`write_raw` had the right digest."""
        self._journal.add_one(offset, length)

    def locate(self, offsets: NDArray[np.int64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return positions for :meth:`read` of pieces that are in place."""
        return offsets

    def read(self, position: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with what lies at ``position``; False if that cannot be."""
        return self.file.read(position, buffer)

    def fetched(self, size: int) -> None:
        """Count bytes that came over the network and were written."""
        self._batches.fetched(size)

    def sync(self) -> None:
        """Bring what was written, and the journal of it, to the disk."""
        position = self._journal.position
        self.file.sync_data()
        self._journal.barrier(position)

    def close(self) -> None:
        """Close file and journal; both stay on the disk."""
        self._journal.close()
        self.file.close()


def open_partial(
    path: Path, journal: Path, key: JournalKey, *, old: Path | None = None, layout: Layout | None = None
) -> PartialFile:
    """Open the half-written file of this target, or start one.

    ``key.base`` is the base of a new one; it is a clone of the file ``old`` if one is given (``OSError`` where the file
    system cannot do that). A file whose journal is lost, or belongs to another target, is
    taken with base ``UNKNOWN``: its content is looked at, not believed. With a ``layout`` it is a container.

    Raises:
        NoSpace: the file system has no holes, and no room for all of it. TargetRefused: it takes no file so long.
    """
    fresh = not path.exists()
    file = RawFile(path, create=True) if layout is None else ContainerFile(path, layout)
    try:
        loaded = None if fresh else load_journal(journal)
        if loaded is not None and _same_target(loaded[0], key):
            known = loaded[0].base is not Base.OLD or loaded[0].base_manifest == key.base_manifest
            base, done = loaded[0].base if known else Base.UNKNOWN, loaded[1]
        elif fresh:
            base, done = key.base, Extents.none()
            if old is not None and not clone(old, file):
                raise OSError(errno.ENOTSUP, "the file system cannot clone files", str(old))
        else:
            base, done = Base.UNKNOWN, Extents.none()
        allocated = not keeps_holes(path.parent)
        if allocated:
            file.check_allocation(key.length if layout is None else layout.file_size)
        file.resize(key.length)
        file.sync()
        opened = Journal.create(journal, replace(key, base=base), done=done)
        return PartialFile(file, opened, base, done, wrote="new", allocated=allocated)
    except BaseException:
        file.close()
        if fresh:
            path.unlink(missing_ok=True)
        raise


def open_device(path: Path, journal: Path, key: JournalKey) -> PartialFile:
    """Open a block device (or file) to be written directly: only what its journal says is known of it."""
    file = RawFile(path)
    loaded = load_journal(journal)
    done = loaded[1] if loaded is not None and _same_target(loaded[0], key) else Extents.none()
    try:
        opened = Journal.create(journal, replace(key, base=Base.UNKNOWN), done=done)
    except BaseException:
        file.close()
        raise
    return PartialFile(file, opened, Base.UNKNOWN, done, wrote="in-place")


def _same_target(one: JournalKey, other: JournalKey) -> bool:
    marks = [key.base_manifest if marked_format(key.base_manifest) != "raw" else b"" for key in (one, other)]
    return (one.target, one.length, marks[0]) == (other.target, other.length, marks[1])
