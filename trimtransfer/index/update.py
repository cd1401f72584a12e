"""One update of an index of files: walk, scan what changed, commit in steps, forget what is gone.

The calling thread walks, talks to the catalogue and scans large files; two threads scan small ones. A commit is a run
file and then one transaction, so whatever is interrupted is at most one step of work.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import Cancelled, FormatError
from trimtransfer.index.catalogue import Catalogue, Entry
from trimtransfer.index.globs import PathChooser
from trimtransfer.index.prefix import IndexWriter, PrefixSet
from trimtransfer.index.roots import Root, find_roots, without_nested
from trimtransfer.index.rowfile import MAX_FILES, Rows
from trimtransfer.index.scan import SMALL, Job, Scanned, Scanner
from trimtransfer.index.tree import Progress, TreeIndex
from trimtransfer.index.walk import Found, Listing, Skipped, Walk
from trimtransfer.localfile import Guard, hanging_mounts

WORKERS: Final = 2
COMMIT_BYTES: Final = 256 << 20
COMMIT_FILES: Final = 16_384
COMMIT_SECONDS: Final = 5.0
"""A step is committed after this many bytes read, files, or seconds, whichever comes first."""
_BATCH_FILES: Final = 128
_BATCHES: Final = 2 * WORKERS
_REPORT_SECONDS: Final = 0.1
_MAX_LINKS: Final = 100_000
"""Files with several names that are remembered so as to scan them once; beyond that they are scanned for each name."""


SAMPLE: Final = 256 << 20
"""Bytes of each root that are scanned for the sake of a transfer before it is judged whether that pays."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a scan for the sake of one transfer no longer pays.

    ``wanted`` holds the chunks looked for. Of each root, ``sample`` bytes are scanned; from then on the scan of this
    root ends as soon as the wanted chunks met in it, counted once, are less than ``rate`` of the bytes scanned in it.
    """

    wanted: PrefixSet
    sample: int = SAMPLE
    rate: float = 0.02


@dataclass(slots=True)
class UpdateReport:
    """What an update has done so far, and at its end in all."""

    files: int = 0
    """Files that the walk listed."""
    unchanged: int = 0
    """Of these, files that were as the index knows them."""
    scanned: int = 0
    """Files read."""
    bytes: int = 0
    """Bytes read."""
    rows: int = 0
    """Index rows made."""
    wanted_bytes: int = 0
    """Bytes of chunks that a stop rule looks for, found in the files read."""
    removed: int = 0
    """Files that the index knew and that are gone, or no longer chosen."""
    changing: int = 0
    """Files that were being changed: read again at the next update."""
    seconds: float = 0.0
    rebuilt: bool = False
    """The index was damaged, or of another version, and was made anew."""
    stopped: list[str] = field(default_factory=list)
    """Roots whose scan was ended by the stop rule."""
    skipped: Skipped = field(default_factory=Skipped)


def update_index(
    index: TreeIndex,
    roots: Sequence[str | os.PathLike[str]],
    *,
    chooser: PathChooser,
    images: int | None = None,
    public: bool = False,
    stop: StopRule | None = None,
    report: UpdateReport | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> UpdateReport:
    """Bring an index up to date with the files at or below ``roots``; entries elsewhere stay as they are.

    ``images``: files of at least so many bytes are cut as images too. ``public``: only files that every user may read.
    ``report`` is filled while the update goes on.

    Raises:
        Locked: another process updates the index.
        NoSpace: no room for it; what was committed stays.
        Cancelled: ``cancel`` was set; what was scanned so far is committed, as it is on KeyboardInterrupt.
    """
    report = report if report is not None else UpdateReport()
    started = time.monotonic()
    with index.locked():
        for attempt in range(2):
            try:
                with index.open_catalogue() as catalogue:
                    with _Update(index, catalogue, chooser, images, public, stop, report, progress, cancel) as update:
                        update.run(find_roots(roots, report.skipped))
                    break
            except FormatError:
                if attempt:
                    raise
                index.wipe()
                report.rebuilt = True
    report.seconds = time.monotonic() - started
    return report


class _Batch:
    """Small files that one thread scans together."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.bytes = 0
        self.outcome: Future[tuple[Rows, list[Scanned | None]]] | None = None

    @property
    def full(self) -> bool:
        return len(self.jobs) >= _BATCH_FILES or self.bytes >= SMALL


class _Update:
    """The state of an update. Use it as a context manager: what was scanned is committed at the end, come what may."""

    def __init__(
        self,
        index: TreeIndex,
        catalogue: Catalogue,
        chooser: PathChooser,
        images: int | None,
        public: bool,
        stop: StopRule | None,
        report: UpdateReport,
        progress: Progress | None,
        cancel: threading.Event | None,
    ) -> None:
        self._index, self._catalogue, self._chooser, self._public = index, catalogue, chooser, public
        self._stop, self._report, self._progress, self._cancel = stop, report, progress, cancel
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="scan")
        self._scanner = Scanner(index.kind, images=images, executor=self._pool)
        self._writer = IndexWriter(index.directory, kind=index.kind)
        self._first_new = self._next = catalogue.next_number()
        if self._next > MAX_FILES - (1 << 24):
            raise FormatError(f"catalogue {index.catalogue_path}", "next file", "numbers left", "none")  # made anew
        self._seen: NDArray[np.bool_] = np.zeros(self._first_new, dtype=np.bool_)
        self._links: set[tuple[int, int]] = set()
        self._batch, self._batches = _Batch(), deque[_Batch]()
        self._done: list[tuple[bytes, Scanned]] = []
        self._hanging = hanging_mounts()
        self._committed = self._reported = time.monotonic()
        self._committed_bytes = self._root_bytes = self._root_wanted = self._total = 0

    def __enter__(self) -> _Update:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._scanner.close()
        try:
            if error is None or not isinstance(error, FormatError):
                self._commit()
        finally:
            self._writer.close()

    def run(self, roots: list[Root]) -> None:
        """Update all roots, one after the other, then put the index in order."""
        if all(stat.S_ISREG(root.found.st_mode) for root in roots):  # otherwise only the walk will tell
            self._total = sum(root.found.st_size for root in roots)
        for root in without_nested(roots):
            self._update_root(root)
        self._commit()
        if self._report.removed:
            self._catalogue.forget_directories()
        self._index.put_in_order(self._catalogue, added=self._report.rows)
        self._tell(last=True)

    def _update_root(self, root: Root) -> None:
        guard = Guard() if root.found.st_dev in self._hanging.values() else None
        avoid = frozenset(self._hanging) - {root.path}
        self._root_bytes = self._root_wanted = 0
        whole = True
        try:
            for listing in Walk(root.path, self._chooser, self._public, guard, avoid, self._report.skipped):
                self._take(listing, guard)
                if self._ends_here():
                    whole = False
                    break
            self._send_batch(guard)
            while self._batches:
                self._collect()
            whole = whole and not (guard is not None and guard.dead)
        finally:
            if guard is not None:
                guard.close()
        if self._pays_no_more():
            self._report.stopped.append(os.fsdecode(root.path))
        if whole:
            self._commit()  # replaces the entries of changed files, which were not seen either
            self._forget_unseen(root.path)

    def _take(self, listing: Listing, guard: Guard | None) -> None:
        """Compare the files of a listing with the catalogue and scan those that are new or changed."""
        known = self._catalogue.known(listing)
        self._report.files += len(listing.files)
        for found in listing.files:
            entry = known.get(found.name)
            if not self._is_first_link(found):
                continue
            if entry is not None and _is_unchanged(entry, found):
                self._report.unchanged += 1
                if entry.number < self._first_new:
                    self._seen[entry.number] = True
            elif found.size or found.block_device:
                self._scan(Job(self._next, os.path.join(listing.directory, found.name), found), guard)
            if self._ends_here():
                return
        self._tell()

    def _is_first_link(self, found: Found) -> bool:
        """Tell whether a file was not met under another name already."""
        identity = found.device, found.inode
        if found.links < 2 or len(self._links) >= _MAX_LINKS:
            return identity not in self._links
        known = identity in self._links
        self._links.add(identity)
        return not known

    def _scan(self, job: Job, guard: Guard | None) -> None:
        self._next += 1
        if job.found.size > SMALL or job.found.block_device:
            self._scan_large(job, guard)
            return
        self._batch.jobs.append(job)
        self._batch.bytes += job.found.size
        if self._batch.full:
            self._send_batch(guard)

    def _scan_large(self, job: Job, guard: Guard | None) -> None:
        try:
            for part in self._scanner.scan_large(job, guard):
                if isinstance(part, Scanned):
                    self._note(job, part)
                    continue
                rows, read = part
                self._add(rows, read)
                self._tell()
                if self._ends_here():
                    break
        except OSError:
            self._report.skipped.unreadable += 1
        self._commit_if_due()

    def _send_batch(self, guard: Guard | None) -> None:
        """Hand the batch to the threads; wait for the oldest one when there are enough on the way."""
        batch, self._batch = self._batch, _Batch()
        if batch.jobs:
            batch.outcome = self._pool.submit(self._scanner.scan_small, batch.jobs, guard)
            self._batches.append(batch)
        if len(self._batches) > _BATCHES:
            self._collect()

    def _collect(self) -> None:
        batch = self._batches.popleft()
        if batch.outcome is None:
            return
        rows, outcomes = batch.outcome.result()
        self._add(rows, sum(outcome.bytes for outcome in outcomes if outcome is not None))
        for job, outcome in zip(batch.jobs, outcomes, strict=True):
            if outcome is None:
                self._report.skipped.unreadable += 1
            else:
                self._note(job, outcome)
        self._commit_if_due()
        self._tell()

    def _note(self, job: Job, outcome: Scanned) -> None:
        self._done.append((os.path.dirname(job.path), outcome))
        self._report.scanned += 1
        self._report.changing += not outcome.settled

    def _add(self, rows: Rows, read: int) -> None:
        """Take rows into the index and count them, and what a stop rule looks for in them."""
        self._writer.add(rows)
        self._report.rows += len(rows)
        self._report.bytes += read
        self._root_bytes += read
        if self._stop is not None:
            met = int(rows.lengths[self._stop.wanted.meet(rows.prefixes)].sum(dtype=np.int64))
            self._report.wanted_bytes += met
            self._root_wanted += met

    def _ends_here(self) -> bool:
        """Tell whether the scan of this root ends; raise ``Cancelled`` if it was cancelled."""
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("stopped; what was indexed so far is kept, and the next run goes on from there")
        return self._stop is not None and (self._pays_no_more() or self._stop.wanted.met == len(self._stop.wanted))

    def _pays_no_more(self) -> bool:
        stop = self._stop
        return stop is not None and self._root_bytes >= stop.sample and self._root_wanted < stop.rate * self._root_bytes

    def _forget_unseen(self, root: bytes) -> None:
        """Remove the files below a root, all of which was walked, that the walk did not meet."""
        unseen: list[int] = []
        for numbers in self._catalogue.below(root):
            unseen += [n for n in numbers if n < self._first_new and not self._seen[n]]
            if len(unseen) >= COMMIT_FILES:
                self._remove(unseen)
                unseen = []
        self._remove(unseen)

    def _remove(self, numbers: list[int]) -> None:
        if numbers:
            self._catalogue.remove(numbers)
            self._report.removed += len(numbers)

    def _commit_if_due(self) -> None:
        due = (
            self._report.bytes - self._committed_bytes >= COMMIT_BYTES
            or len(self._done) >= COMMIT_FILES
            or time.monotonic() - self._committed >= COMMIT_SECONDS
        )
        if due:
            self._commit()

    def _commit(self) -> None:
        """Write the rows gathered so far as a run, then enter it and the scanned files in one transaction."""
        if self._done:
            run = self._catalogue.next_run()
            rows = self._writer.finish(self._index.run_path(run)) if len(self._writer) else 0
            self._catalogue.commit_scan(self._done, run=run, rows=rows, next_number=self._next)
            self._done.clear()
            self._index.merge_if_many(self._catalogue)
        self._committed, self._committed_bytes = time.monotonic(), self._report.bytes

    def _tell(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._progress is not None and (last or now - self._reported >= _REPORT_SECONDS):
            self._reported = now
            done = self._report.bytes
            self._progress("scan", done, done if last else max(self._total, done) if self._total else 0)


def _is_unchanged(entry: Entry, found: Found) -> bool:
    old = entry.found
    return entry.settled and (old.device, old.inode, old.size, old.mtime, old.ctime) == (
        *(found.device, found.inode, found.size),
        *(found.mtime, found.ctime),
    )
