"""The assembler: the only writer of images. It carries out the plan of a window.

Content from any source is read into a buffer, verified there, and written from that same buffer to every place where it
belongs. A local source that fails or lies costs a look at other places, then a fetch; a damaged frame is fetched once
more, past any cache; then the repository is at fault. Nothing unverified is ever written.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Final, Protocol, TypeAlias

import numpy as np

from trimtransfer.assembly.elsewhere import Place, other_places
from trimtransfer.assembly.fetchplan import FetchPlan, FrameTask, PackRange, frame_tasks, pieces_of
from trimtransfer.assembly.plan import RUN_BYTES, SEEDS, SELF, ZERO, Numbers, Run, runs
from trimtransfer.assembly.rawfile import Piece
from trimtransfer.assembly.remote import remedy_for
from trimtransfer.assembly.report import Made
from trimtransfer.assembly.resolve import Resolver, WindowPlan
from trimtransfer.assembly.verify import UNREADABLE, read_pieces
from trimtransfer.chunk import DIGEST_SIZE, MAX_CHUNK_SIZE, chunk_digest, region_hasher
from trimtransfer.disk.source import Disk
from trimtransfer.errors import FetchError, FormatError, IntegrityError, NotFound
from trimtransfer.manifest import Region
from trimtransfer.pack import decode_frame, pack_name
from trimtransfer.store import Range, Store
from trimtransfer.watch import Watch

_LOG: Final = logging.getLogger("trimtransfer.assembly")
_THREADS: Final = min(4, os.cpu_count() or 1)

Decode: TypeAlias = Callable[[FrameTask, memoryview], bytes]
"""Returns the content of a frame from its stored bytes; ``IntegrityError`` or ``FormatError`` for damaged ones."""


@dataclass(slots=True)
class _Outcome:
    """What came of frames, by their numbers: those written, and the damaged ones with expected and found digests."""

    written: set[int] = field(default_factory=set)
    damaged: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)


class Target(Protocol):
    """A file being written: takes verified bytes. Safe among threads."""

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write pieces of verified bytes, each at its offset of the image, and remember that they are there."""
        ...

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range of the image zeros."""
        ...

    def read(self, position: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from a position that the target gave; False if that cannot be."""
        ...

    def fetched(self, size: int) -> None:
        """Count stored bytes that were fetched and whose content was written."""
        ...


class RegionTarget(Protocol):
    """A file that also takes whole regions whose digest is known only at their end."""

    def write_raw(self, offset: int, data: memoryview) -> None:
        """Write bytes of a region that is not verified yet."""
        ...

    def region_done(self, offset: int, length: int) -> None:
        """Declare a region verified."""
        ...


class Meter:
    """Adds up what is done and what is known to be to do in one phase, and reports it. Safe among threads.

    What is added while ``paused`` does not count.
    """

    def __init__(self, phase: str, watch: Watch, *, paused: bool = False) -> None:
        self._phase, self._progress = phase, watch.progress
        self._lock = threading.Lock()
        self.done = self.total = 0
        self.paused = paused

    def expect(self, size: int) -> None:
        """Add to what is to be done."""
        with self._lock:
            self.total += size
        self._report()

    def add(self, size: int) -> None:
        """Add to what is done."""
        if self.paused:
            return
        with self._lock:
            self.done += size
        self._report()

    def _report(self) -> None:
        if self._progress is not None and self.total:
            self._progress(self._phase, min(self.done, self.total), self.total)


class Assembler:
    """Carries out window plans on one target. Use it as a context manager: it has a few threads.

    ``rejected`` counts chunks that a local source offered and that were wrong, ``made`` what deltas did. ``reuse``
    counts copied bytes; ``fetching`` is what the store counts bytes with, paused while something else than packs is
    read.
    """

    def __init__(
        self,
        target: Target,
        store: Store,
        resolver: Resolver,
        *,
        reuse: Meter,
        fetching: Meter,
        watch: Watch,
    ) -> None:
        self._target, self._store, self._resolver = target, store, resolver
        self._reuse, self._fetching = reuse, fetching
        self._watch = watch
        self._pool = ThreadPoolExecutor(_THREADS, "assembler")
        self._local = threading.local()
        self.rejected = 0
        self.made = Made()

    def __enter__(self) -> Assembler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def carry_out(self, plan: WindowPlan) -> None:
        """Write everything that the plan says; at the end every record of the window is in the target.

        Raises:
            IntegrityError, FormatError: the repository is damaged.
            Cancelled: on request; and what store and target raise.
        """
        stop = threading.Event()
        local = (plan.source == SELF) | (plan.source >= SEEDS)
        jobs = runs(plan.window, local)
        self._reuse.expect(sum(run.length for run in jobs))
        for run in runs(plan.window, (plan.source == ZERO) & ~plan.placed, limit=1 << 40):
            self._target.write_zeros(run.offset, run.length)
        copies = [self._pool.submit(self._copy, plan, run, stop) for run in jobs]
        try:
            self._make(plan)
            self._fetch(plan, plan.fetch)
            failed = [copy.result() for copy in copies]
        except BaseException:
            stop.set()
            for copy in copies:
                copy.cancel()
            raise
        rejected = [record for records in failed for record in records]
        self.rejected += len(rejected)
        if rejected:
            self._fetch_groups(plan, self._copy_from_elsewhere(plan, np.array(rejected, dtype=np.int64)))

    def _copy(self, plan: WindowPlan, run: Run, stop: threading.Event) -> list[int]:
        """Copy neighbouring records from local sources; return those that could not be had."""
        if stop.is_set():
            return []
        self._watch.check()
        buffer = self._buffer(run.length)
        rows = plan.row[run.first : run.last].tolist()
        sources = plan.source[run.first : run.last].tolist()
        lengths = plan.window.lengths[run.first : run.last].tolist()
        digests = plan.window.digests[run.first : run.last].tobytes()
        failed: list[int] = []
        good = at = 0  # bytes [good, at) of the run are verified and not written yet
        for number, (source, row, length) in enumerate(zip(sources, rows, lengths, strict=True)):
            part = buffer[at : at + length]
            digest = digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
            reader = self._target if source == SELF else self._resolver.seeds[source - SEEDS]
            if not (reader.read(row, part) and chunk_digest(part) == digest):
                failed.append(run.first + number)
                self._write(run.offset + good, buffer[good:at])
                good = at + length
            at += length
        self._write(run.offset + good, buffer[good:at])
        self._reuse.add(run.length)
        return failed

    def _write(self, offset: int, data: memoryview) -> None:
        if data:
            self._target.write([(offset, data)])

    def _copy_from_elsewhere(self, plan: WindowPlan, records: Numbers) -> Numbers:
        """Copy chunks that a local source had wrong from other places; return the groups that no place has."""
        number = plan.groups.numbers(len(plan.window))[records]
        order = np.argsort(number, kind="stable")
        groups, first = np.unique(number[order], return_index=True)
        members = np.split(records[order], first[1:])
        places = other_places(plan, self._resolver.seeds, records[order][first])
        found = list(self._pool.map(self._copy_chunk, itertools.repeat(plan), members, places))
        return groups[~np.array(found, dtype=np.bool_)]

    def _copy_chunk(self, plan: WindowPlan, records: Numbers, places: Sequence[Place]) -> bool:
        """Copy one chunk to these records from the first place that has it; return whether one had."""
        self._watch.check()
        window = plan.window
        part = self._buffer(int(window.lengths[records[0]]))
        digest = window.digests[records[0]].tobytes()
        for number, row in places:
            if self._resolver.seeds[number].read(row, part) and chunk_digest(part) == digest:
                self._target.write([(offset, part) for offset in window.offsets[records].tolist()])
                plan.source[records], plan.row[records] = SEEDS + number, row
                return True
        return False

    def _fetch_groups(self, plan: WindowPlan, groups: Numbers) -> None:
        """Fetch chunks after all."""
        if len(groups):
            plan.reassign(groups)
            self._fetch(plan, self._resolver.locate(plan, groups))

    def _make(self, plan: WindowPlan) -> None:
        """Fetch deltas and write what they make; what they fail to make is fetched plain."""
        deltas, fetch = self._resolver.deltas, plan.deltas.fetch
        self.made += Made(declined=plan.deltas.declined)
        if deltas is None or not fetch.ranges:
            return
        self._fetching.expect(fetch.fetch_bytes)
        outcome = _Outcome()
        try:
            self._fetch_ranges(fetch, fetch.ranges, partial(deltas.make, plan.deltas), outcome, again=False)
        except (NotFound, FormatError, FetchError) as error:  # deltas may be dropped at any time
            if isinstance(error, FetchError) and error.retryable:
                raise  # the network's fault: it will not do for plain packs either
            _LOG.warning("deltas are left aside: %s", error)
        failed = [unit for unit in range(len(fetch.frames)) if unit not in outcome.written]
        lengths = np.bincount(fetch.wanted["frame"], weights=fetch.wanted["length"], minlength=len(fetch.frames))
        count, made = len(outcome.written), int(lengths[sorted(outcome.written)].sum())
        self.made += Made(count, made, len(failed), solid=count * deltas.solid)
        self._fetch_groups(plan, plan.deltas.groups(failed))

    def _fetch(self, plan: WindowPlan, fetch: FetchPlan) -> None:
        """Fetch what the plan says; damaged frames once more."""
        self._fetching.expect(fetch.fetch_bytes)
        outcome, second = _Outcome(), _Outcome()
        self._fetch_ranges(fetch, fetch.ranges, _decoded, outcome, again=False)
        if outcome.damaged:
            self._fetch_ranges(fetch, _ranges_of(fetch, sorted(outcome.damaged)), _decoded, second, again=True)
        if worse := second.damaged:
            frame = fetch.frames[min(worse)]
            name = pack_name(fetch.packs[int(frame["pack"])].digest)
            expected, got = worse[min(worse)]
            raise IntegrityError(
                f"{name}, frame at byte {int(frame['offset'])}", expected, got, remedy_for(self._store)
            )

    def _fetch_ranges(
        self, fetch: FetchPlan, ranges: Sequence[PackRange], decode: Decode, outcome: _Outcome, *, again: bool
    ) -> None:
        """Fetch ranges and write what their frames hold; note the outcome as frames are written or found damaged."""
        requests: dict[Range, PackRange] = {}
        for whole in ranges:
            ref = fetch.packs[whole.pack]
            name = pack_name(ref.digest)
            for part in pieces_of(fetch, whole):
                run = whole.end - part.start
                requests[Range(name, part.start, part.end - part.start, ref.length, whole.whole, run)] = part

        def deliver(request: Range, data: memoryview) -> None:
            self._watch.check()
            part = requests[request]
            pieces: list[Piece] = []
            held = 0
            for task in frame_tasks(fetch, part):
                content = _verified(task, data[task.offset - part.start :][: task.stored], decode, outcome.damaged)
                if content is None:
                    continue
                pieces += [(offset, content[start : start + length]) for start, length, offset in task.writes]
                held += task.raw
                if held >= RUN_BYTES:
                    self._target.write(pieces)
                    pieces, held = [], 0
            self._target.write(pieces)
            self._target.fetched(request.length)
            outcome.written.update(number for number in range(part.first, part.last) if number not in outcome.damaged)

        if requests:
            self._fetching.paused = False
            try:
                self._store.fetch(list(requests), deliver, again=again)
            finally:
                self._fetching.paused = True

    def _buffer(self, length: int) -> memoryview:
        """Return this thread's buffer, long enough for any run."""
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(RUN_BYTES + MAX_CHUNK_SIZE))
        return buffer[:length]


def _decoded(task: FrameTask, stored: memoryview) -> bytes:
    return decode_frame(stored, codec=task.codec, raw=task.raw, check=task.check)


def _verified(
    task: FrameTask, stored: memoryview, decode: Decode, damaged: dict[int, tuple[bytes, bytes]]
) -> memoryview | None:
    """Return a frame's content, its wanted chunks verified; None, and an entry in ``damaged``, if it is wrong."""
    try:
        content = memoryview(decode(task, stored))
    except IntegrityError as error:
        damaged[task.number] = error.expected, error.got
        return None
    except FormatError:
        damaged[task.number] = task.check, bytes(len(task.check))
        return None
    for start, length, digest in task.wanted:
        found = chunk_digest(content[start : start + length])
        if found != digest:
            damaged[task.number] = digest, found
            return None
    return content


def _ranges_of(fetch: FetchPlan, frames: list[int]) -> list[PackRange]:
    """Return one request for each of some frames."""
    ranges: list[PackRange] = []
    for number in frames:
        frame = fetch.frames[number]
        start = int(frame["offset"])
        ranges.append(PackRange(int(frame["pack"]), start, start + int(frame["stored"]), False, number, number + 1))
    return ranges


def copy_region(source: Disk, target: RegionTarget, region: Region) -> bool:
    """Copy a region that both versions have; False if its content turns out to be another (then it is not done).

    It is hashed from the buffer that is written; what lies in the target is only taken for the region once the digest
    was right.
    """
    hasher = region_hasher()
    try:
        for offset, part in read_pieces(source, region.start, region.length):
            hasher.update(part)
            target.write_raw(offset, part)
    except UNREADABLE:
        return False
    if hasher.digest() != region.content:
        return False
    target.region_done(region.start, region.length)
    return True
