"""Making the deltas of a pair: units that rebuild what a version has new out of chunks of another version.

Beside the plain packs, never instead of them: whoever has the other version fetches less, everybody else is not
concerned. A unit is kept only where it is smaller than what its chunks take in plain frames.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from trimtransfer.chunk import Bytes, object_check, object_digest
from trimtransfer.delta import MAX_LEVEL, decode, encode
from trimtransfer.deltaindex import MAX_BASES, MAX_TOOLS, TARGET, UNIT
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, IntegrityError, NotFound, TargetRefused
from trimtransfer.location import PackRef
from trimtransfer.names import deltas_name
from trimtransfer.pack import MAX_PACK, PACK_MAGIC, PackBuilder, pack_name
from trimtransfer.repository.deltasmade import DeltaReport, Kept, Made
from trimtransfer.repository.deltaunits import NewContent, Unit, runs_of
from trimtransfer.repository.intent import Intent, clean_up, intended, repository_lock
from trimtransfer.repository.reading import VersionReader, further_disks
from trimtransfer.repository.signer import Keys, Signer
from trimtransfer.repository.takes import Inside, unwrap_unit
from trimtransfer.store import DISK_REMEDY, DirectoryStore
from trimtransfer.tool import Tool
from trimtransfer.unit import inflated, is_wrapped, make, wrap
from trimtransfer.watch import Progress, Watch

_LOG: Final = logging.getLogger("trimtransfer.repository")
_MOST: Final = 0.9
"""A unit is kept if it takes at most this share of what its chunks take in plain frames; a wrapped one, if it takes at
most this share of the delta, too."""
_LEAST_GAIN: Final = 50_000
"""Bytes that one with tools must save for each second that these take on a core: a client, which accepts 20 times the
time that it saves on the line (``assembly/payoff.py``), uses it then on lines of up to 8 Mbit/s."""
_EDGE: Final = 1 << 20
"""Bytes of plain frames that are fetched at its edges all the same if its neighbours are not kept, as may well be where
tools make only some members: so much of what its chunks take in plain frames it must save."""
_WORKERS: Final = 4
"""Threads at most that make deltas, each with up to 200 MiB: half of it is zstd's, at level 19."""
_AHEAD: Final = 1
_large = threading.Lock()
"""Units with jobs of large frames, which have up to 20 MiB of content, are made one at a time."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A unit as it is stored; tools that it needs, and seconds that these take on a core."""

    stored: bytes
    tools: frozenset[Tool] = frozenset()
    seconds: float = 0.0


def add_deltas(
    repository: str | os.PathLike[str],
    image: str,
    *,
    base: str,
    version: str | None = None,
    level: int,
    workers: int | None = None,
    keys: Keys | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> DeltaReport:
    """Make the deltas from version ``base`` of an image to ``version`` (the newest by default), both published already.

    Those of the same pair, if there are any, are replaced. ``level`` is zstd's, 1 to 22 (above 19 counts as 19). In a
    repository that is signed, ``keys`` sign.

    Raises:
        NotFound: no such image or version.
        TargetRefused: it is the same version twice; keys to sign with are not at hand.
        Locked: another process writes to the repository; and what :func:`make_deltas` raises.
    """
    store = DirectoryStore(repository)
    watch = Watch(progress, cancel, "stopped; nothing was added")
    target = VersionReader.open(store, image, version)
    source = VersionReader.open(store, image, base)
    if target.manifest.version == base:
        raise TargetRefused(f"{image} {base}", "is the version itself; name another one to start from")
    with space_errors(store.path), repository_lock(store, f"deltas of {image} {target.manifest.version}"):
        clean_up(store)
        signer = Signer.open(store, image, keys)
        with intended(store, image, None) as intent:
            count = workers or len(os.sched_getaffinity(0))
            report, *further = (
                make_deltas(store, *pair, intent, level=level, workers=count, watch=watch)
                for pair in _pairs(store, target, source)
            )
            if signer is not None:
                signer.stage(intent, image, [target.manifest.version])
                signer.finish()
    return replace(report, disks=tuple(further))


def _pairs(
    store: DirectoryStore, target: VersionReader, base: VersionReader
) -> list[tuple[VersionReader, VersionReader]]:
    """Return the pairs of disks of the same number of two versions that are cut alike; the first is always there."""
    further = zip(further_disks(store, target.manifest), further_disks(store, base.manifest), strict=False)
    return [(target, base), *(pair for pair in further if pair[0].manifest.kind == pair[1].manifest.kind)]


def try_deltas(
    store: DirectoryStore, target: VersionReader, base: VersionReader, intent: Intent, **options: Any
) -> DeltaReport:
    """Do what :func:`make_deltas` does, with the same options; but if content that it needs is damaged, there are no
    deltas, and the report says why. What a new version needs itself was read back already."""
    try:
        return make_deltas(store, target, base, intent, **options)
    except (FormatError, IntegrityError, NotFound) as error:
        _LOG.warning("no deltas from %s: %s", base.manifest.version, error)
        names = target.manifest.image, target.manifest.version, base.manifest.version
        return DeltaReport(*names, problem=str(error))


def make_deltas(
    store: DirectoryStore,
    target: VersionReader,
    base: VersionReader,
    intent: Intent,
    *,
    level: int,
    workers: int,
    watch: Watch,
) -> DeltaReport:
    """Store the deltas that make ``target`` out of ``base``, both versions of one image, and return what they are.

    ``level`` is zstd's; ``workers`` threads read and compress, at most 4 of them at a time. Where nothing is worth a
    delta no index is written. The intent names what is written before it appears.

    Raises:
        FormatError, IntegrityError, NotFound: the repository is damaged.
        NoSpace: its disk is full.
        Cancelled: as asked.
    """
    started = time.monotonic()
    new = NewContent(target, base, store.scratch(), workers=workers, watch=watch)
    maker = Maker(store, new, intent, level=level, workers=workers, watch=watch)
    try:
        made = maker.run()
        data = made.index(target.manifest.digest(), base.manifest.digest()) if made.count else b""
        name = deltas_name(target.manifest.image, target.manifest.version, base.manifest.version)
        replace_index(store, intent, name, data)
    except BaseException:
        maker.discard()
        raise
    report = DeltaReport(target.manifest.image, target.manifest.version, base.manifest.version)
    return made.report(report, new.size, data, started)


def replace_index(store: DirectoryStore, intent: Intent, name: str, data: bytes) -> None:
    """Store an index in the place of the one before; where there is nothing to store there is none any more."""
    if data:
        intent.add(name)
        intent.secure()
        store.put(name, data)
    else:
        store.delete(name)


class Work(Protocol):
    """What deltas are made for: ``size`` in bytes of what the base lacks."""

    size: int

    def units(self) -> Iterator[Unit]:
        """Yield the units that make it, region by region."""
        ...


class Maker:
    """Makes units and stores them in packs: those that take at most the share ``most`` of what plain frames take.

    ``level`` is zstd's; ``workers`` threads compress, at most 4 of them.
    """

    def __init__(
        self,
        store: DirectoryStore,
        new: Work,
        intent: Intent,
        *,
        level: int,
        workers: int,
        watch: Watch,
        most: float = _MOST,
    ) -> None:
        self._store, self._intent, self._watch = store, intent, watch
        self._level, self._workers, self._most = min(level, MAX_LEVEL), min(workers, _WORKERS), most
        self._new = new
        self._builder = PackBuilder()
        self._made = Made()
        self._written: list[str] = []

    def discard(self) -> None:
        """Delete the packs that were written: nothing refers to them."""
        for name in self._written:
            with contextlib.suppress(OSError):
                self._store.delete(name)

    def run(self) -> Made:
        """Make and store everything, and return what was made.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
            NoSpace: its disk is full. Cancelled: as asked.
        """
        done = 0
        for unit, made in self._encoded(self._new.units()):
            done += len(unit.target)
            most = min(self._most * unit.plain, MAX_PACK - len(PACK_MAGIC))
            if len(made.stored) <= most and self._fits(unit) and len(made.tools | self._made.tools.keys()) <= MAX_TOOLS:
                self._keep(unit, made)
            self._watch.report("delta", done, self._new.size)
        if not self._builder.empty:
            self._close_pack()
        return self._made

    def _encoded(self, units: Iterator[Unit]) -> Iterator[tuple[Unit, Encoded]]:
        """Yield units with their deltas, in order, made by several threads."""
        pending: deque[tuple[Unit, Future[Encoded]]] = deque()
        with ThreadPoolExecutor(self._workers, "delta") as pool:
            try:
                for unit in units:
                    pending.append((unit, pool.submit(self._encode, unit)))
                    if len(pending) > self._workers + _AHEAD:
                        ready, job = pending.popleft()
                        yield ready, job.result()
                while pending:
                    ready, job = pending.popleft()
                    yield ready, job.result()
            finally:
                for _, job in pending:
                    job.cancel()

    def _encode(self, unit: Unit) -> Encoded:
        self._watch.check()
        return encode_unit(unit, level=self._level)

    # ---- storing

    def _fits(self, unit: Unit) -> bool:
        """Tell whether an index can hold the base runs of all units of the region."""
        most = max(len(unit.runs), len(unit.inside.runs) if unit.inside else 0)
        return most + sum(len(kept.bases) for kept in self._made.units.get(unit.region, ())) <= MAX_BASES

    def _keep(self, unit: Unit, encoded: Encoded) -> None:
        made, delta = self._made, encoded.stored
        if self._builder.full(len(delta)):
            self._close_pack()
        row, wrapped = np.zeros(1, dtype=UNIT), is_wrapped(delta)
        targets, bases = runs_of(unit.records, TARGET), unit.inside.runs if wrapped and unit.inside else unit.runs
        row["pack"], row["offset"], row["stored"] = len(self._made.packs), self._builder.add(delta), len(delta)
        row["raw"] = len(unit.target)
        row["plain"], row["targets"], row["bases"] = unit.plain, len(targets), len(bases)
        row["check"] = np.frombuffer(object_check(delta), dtype=np.uint8)
        for tool in sorted(encoded.tools, key=Tool.to_bytes):
            row["tools"] |= 1 << made.tools.setdefault(tool, len(made.tools))
        row["work"] = round(1000 * encoded.seconds)
        made.units.setdefault(unit.region, []).append(Kept(row, targets, bases))
        made.content += len(unit.target)
        made.plain += unit.plain
        made.count += 1
        made.wrapped += wrapped
        made.wrapped_content += len(unit.target) * wrapped
        made.tool_units += bool(encoded.tools)
        made.tool_seconds += encoded.seconds

    def _close_pack(self) -> None:
        """Write the pack that is full, durably, read it back and begin another."""
        digest, data = self._builder.finish()
        self._builder = PackBuilder()
        self._made.packs.append(PackRef(digest, len(data)))
        self._intent.rely_on(self._made.packs[-1:])
        name = pack_name(digest)
        exists = self._store.exists(name)
        if exists and self._store.size(name) == len(data) and self._store.read(name, limit=len(data)) == data:
            return  # the same deltas were made before
        if not exists:
            self._intent.add(name)
            self._written.append(name)
            self._made.added += len(data)
        self._store.put(name, data)


def encode_unit(unit: Unit, *, level: int) -> Encoded:
    """Return a unit's delta, or a wrapped unit that is worth more, proven by making the target from it.

    Raises:
        IntegrityError: what comes of it is something else.
    """
    delta = encode(unit.base, unit.target, level=level)
    made = decode(delta, unit.base, limit=len(unit.target))
    if made != unit.target:
        expected, found = object_digest(unit.target), object_digest(made)
        raise IntegrityError(f"delta of region {unit.region}", expected, found, DISK_REMEDY)
    wrapped = _wrap(unit.inside, unit.target, level) if unit.inside else None
    if wrapped is None or len(wrapped.stored) > _MOST * len(delta):
        return Encoded(delta)
    gain = min(unit.plain, len(delta)) - len(wrapped.stored)
    edge = min(0.5, _EDGE / len(unit.target)) * unit.plain if wrapped.tools else 0
    return wrapped if gain >= max(edge, _LEAST_GAIN * wrapped.seconds) else Encoded(delta)


def _wrap(inside: Inside, target: Bytes, level: int) -> Encoded | None:
    """Return a wrapped unit, proven in the same way; None if there is none that makes the target."""
    with _large if inside.large else contextlib.nullcontext():
        return _wrapped(inside, target, level)


def _wrapped(inside: Inside, target: Bytes, level: int) -> Encoded | None:
    unwrapped = unwrap_unit(target, inside)
    if unwrapped is None:
        return None
    try:
        given = inflated(inside.spans, inside.base, large=inside.large)
        delta = encode(given, unwrapped.unwrapped.content, level=level)
        stored = wrap(inside.spans, unwrapped.unwrapped.record, delta, base=len(inside.base), large=inside.large)
        compress = unwrapped.proven.compress
        made = make(stored, inside.base, limit=len(target), compress=compress)
        return Encoded(stored, unwrapped.tools, unwrapped.seconds) if made == target else None
    except FormatError as error:  # a limit of the format: too many parts or spans
        _LOG.info("compressed files are not looked into: %s", error)
        return None
