"""Making the deltas of a pair: units that rebuild what a version has new out of chunks of another version.

Beside the plain packs, never instead of them: whoever has the other version fetches less, everybody else is not
concerned. A unit is kept only where it is smaller than what its chunks take in plain frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes, object_check, object_digest
from trimtransfer.delta import MAX_LEVEL, decode, encode
from trimtransfer.deltaindex import BASE, TARGET, UNIT, Units, encode_index
from trimtransfer.errors import IntegrityError
from trimtransfer.location import PackRef
from trimtransfer.manifest import Manifest
from trimtransfer.names import deltas_name
from trimtransfer.pack import MAX_PACK, PACK_MAGIC, PackBuilder, pack_name
from trimtransfer.repository.intent import Intent
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.places import ChunkReader, Places
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.similar import Similar
from trimtransfer.store import DISK_REMEDY, DirectoryStore
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_TARGET: Final = 4 << 20
"""Bytes that a unit makes, about: with 8 MiB the deltas of a rebuilt desktop are 3 % smaller, with 2 MiB 9 % larger."""
_BASE: Final = 2 * _TARGET
"""Most bytes that it is made of: more gains nothing."""
_MOST: Final = 0.9
"""A unit is kept if it takes at most this share of what its chunks take in plain frames."""
_LEAST_SCAN: Final = 1 << 30
_SCAN_SHARE: Final = 64
"""What is read of the other version to find what resembles new content: so many times the latter, at least 1 GiB; from
the regions on that changed. So a small change of a large image costs little."""
_WORKERS: Final = 4
"""Threads at most that make deltas, each with up to 110 MiB."""
_AHEAD: Final = 1


@dataclass(frozen=True, slots=True)
class DeltaReport:
    """What the deltas of a pair are: ``stored_bytes`` (packs and index) in ``units``, which make ``content_bytes`` of
    the ``new_bytes`` that the version has and the other one lacks, instead of about ``plain_bytes`` in plain frames."""

    image: str
    version: str
    base: str
    units: int
    new_bytes: int
    content_bytes: int
    stored_bytes: int
    plain_bytes: int
    packs: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A unit to be: target records of a region, what they take in plain frames; base runs; both contents."""

    region: int
    records: NDArray[np.int64]
    plain: int
    runs: NDArray[np.void]
    target: Bytes
    base: Bytes


@dataclass(frozen=True, slots=True)
class _Kept:
    """A unit that is stored: its row (dtype ``UNIT``, ``pack`` numbering all packs), target and base runs."""

    row: NDArray[np.void]
    targets: NDArray[np.void]
    bases: NDArray[np.void]


@dataclass(slots=True)
class _Made:
    """The units kept so far, by region, and the packs that they lie in; bytes they make, and what those take plain."""

    packs: list[PackRef] = field(default_factory=list)
    units: dict[int, list[_Kept]] = field(default_factory=dict)
    content: int = 0
    plain: int = 0
    count: int = 0


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
    with ExitStack() as stack:
        maker = _Maker(store, target, base, intent, stack, level=min(level, MAX_LEVEL), workers=workers, watch=watch)
        made, size = maker.run()
    return DeltaReport(
        image=target.manifest.image,
        version=target.manifest.version,
        base=base.manifest.version,
        units=made.count,
        new_bytes=maker.new_bytes,
        content_bytes=made.content,
        stored_bytes=size + sum(ref.length for ref in made.packs),
        plain_bytes=made.plain,
        packs=len(made.packs),
        seconds=round(time.monotonic() - started, 3),
    )


class _Maker:
    """Makes the deltas of one pair."""

    def __init__(
        self,
        store: DirectoryStore,
        target: VersionReader,
        base: VersionReader,
        intent: Intent,
        stack: ExitStack,
        *,
        level: int,
        workers: int,
        watch: Watch,
    ) -> None:
        self._store, self._intent, self._stack, self._watch = store, intent, stack, watch
        self._target, self._base = ChunkReader(target), ChunkReader(base)
        self._level, self._workers = level, workers
        self._directory = store.scratch()
        self._builder = PackBuilder()
        self._made = _Made()
        self.new_bytes = 0

    def run(self) -> tuple[_Made, int]:
        """Make and store everything; return what was made and the length of the index."""
        changed = _changed_regions(self._target.reader.manifest, self._base.reader.manifest)
        inventory = Inventory(lambda: self._tables(changed), self._directory)
        self._stack.callback(inventory.close)
        self._mark_known(inventory)
        new = {index: records for index in changed if len(records := self._new_records(inventory, index))}
        if not new:
            return self._made, 0
        regions = _regions_to_scan(self._base.reader.manifest, list(new), self.new_bytes)
        similar = self._stack.enter_context(
            closing(Similar(self._base.reader, regions, self._directory, workers=self._workers, watch=self._watch))
        )
        done = 0
        for unit, delta in self._encoded(self._units(new, similar)):
            done += len(unit.target)
            if len(delta) <= min(_MOST * unit.plain, MAX_PACK - len(PACK_MAGIC)):
                self._keep(unit, delta)
            self._watch.report("delta", done, self.new_bytes)
        return self._made, self._finish()

    # ---- what is new

    def _tables(self, regions: Sequence[int]) -> Iterator[tuple[int, Table]]:
        for index in regions:
            yield index, self._target.reader.table(index)
            self._watch.check()

    def _mark_known(self, inventory: Inventory) -> None:
        """Mark the chunks that the base has."""
        for index in self._base.reader.used_regions():
            numbers = inventory.find(self._base.reader.table(index))
            inventory.marks[numbers[numbers >= 0]] = 1
            self._watch.check()

    def _new_records(self, inventory: Inventory, index: int) -> NDArray[np.int64]:
        """Return the records of a region whose chunks the base lacks and that occur here first."""
        table = self._target.reader.table(index)
        numbers = inventory.find(table)
        records = np.flatnonzero(numbers >= 0)
        at = numbers[records]
        first_here = (inventory.region[at] == index) & (inventory.record[at] == records)
        records = np.compress(first_here & (inventory.marks[at] == 0), records)
        self.new_bytes += int(table.lengths[records].sum(dtype=np.int64))
        return records

    # ---- units

    def _units(self, new: dict[int, NDArray[np.int64]], similar: Similar) -> Iterator[_Unit]:
        for index, records in new.items():
            table, places = self._target.region(index)
            plain = _plain_cost(table, places)
            for part in _split(table.lengths[records].astype(np.int64)):
                chosen = records[part]
                content = bytearray(int(table.lengths[chosen].sum(dtype=np.int64)))
                self._target.read(index, chosen.tolist(), memoryview(content))
                runs, base = self._base_of(content, similar)
                yield _Unit(index, chosen, int(plain[chosen].sum()), runs, content, base)

    def _base_of(self, target: Bytes, similar: Similar) -> tuple[NDArray[np.void], Bytes]:
        """Return the runs of the base that resemble ``target``, and their content."""
        buffer = memoryview(bytearray(_BASE))
        at = 0
        runs = [np.zeros(0, dtype=BASE)]
        for index, records in similar.find(target, most=_BASE):
            at += self._base.read(index, records.tolist(), buffer[at:])
            run = _runs(records, BASE)
            run["region"] = index
            runs.append(run)
        return np.concatenate(runs), buffer[:at]

    def _encoded(self, units: Iterator[_Unit]) -> Iterator[tuple[_Unit, bytes]]:
        """Yield units with their deltas, in order, made by several threads."""
        workers = min(self._workers, _WORKERS)
        pending: deque[tuple[_Unit, Future[bytes]]] = deque()
        with ThreadPoolExecutor(workers, "delta") as pool:
            try:
                for unit in units:
                    pending.append((unit, pool.submit(self._encode, unit)))
                    if len(pending) > workers + _AHEAD:
                        ready, job = pending.popleft()
                        yield ready, job.result()
                while pending:
                    ready, job = pending.popleft()
                    yield ready, job.result()
            finally:
                for _, job in pending:
                    job.cancel()

    def _encode(self, unit: _Unit) -> bytes:
        """Return a unit's delta, proven by making the target from it."""
        self._watch.check()
        delta = encode(unit.base, unit.target, level=self._level)
        made = decode(delta, unit.base, limit=len(unit.target))
        if made != unit.target:
            expected, found = object_digest(unit.target), object_digest(made)
            raise IntegrityError(f"delta of region {unit.region}", expected, found, DISK_REMEDY)
        return delta

    # ---- storing

    def _keep(self, unit: _Unit, delta: bytes) -> None:
        if self._builder.full(len(delta)):
            self._close_pack()
        row = np.zeros(1, dtype=UNIT)
        targets = _runs(unit.records, TARGET)
        row["pack"], row["offset"], row["stored"] = len(self._made.packs), self._builder.add(delta), len(delta)
        row["raw"] = len(unit.target)
        row["plain"], row["targets"], row["bases"] = unit.plain, len(targets), len(unit.runs)
        row["check"] = np.frombuffer(object_check(delta), dtype=np.uint8)
        made = self._made
        made.units.setdefault(unit.region, []).append(_Kept(row, targets, unit.runs))
        made.content += len(unit.target)
        made.plain += unit.plain
        made.count += 1

    def _close_pack(self) -> None:
        """Write the pack that is full, durably, read it back and begin another."""
        digest, data = self._builder.finish()
        self._builder = PackBuilder()
        self._made.packs.append(PackRef(digest, len(data)))
        name = pack_name(digest)
        if self._store.exists(name):
            return  # the same deltas were made before; `verify` looks at what is there
        self._intent.add(name)
        self._store.put(name, data)

    def _finish(self) -> int:
        """Write the last pack and the index; return the latter's length."""
        if not self._made.count:
            return 0
        if not self._builder.empty:
            self._close_pack()
        target, base = self._target.reader.manifest, self._base.reader.manifest
        regions = ((index, _units(self._made.units[index], self._made.packs)) for index in sorted(self._made.units))
        data = encode_index(target.digest(), base.digest(), regions)
        name = deltas_name(target.image, target.version, base.version)
        self._intent.add(name)
        self._store.put(name, data)
        return len(data)


def _changed_regions(target: Manifest, base: Manifest) -> list[int]:
    """Return the numbers of regions whose table the base has nowhere."""
    known = {row["table"].tobytes() for row in base.rows}
    numbers = np.flatnonzero(~target.zero).tolist()
    return [index for index, row in zip(numbers, target.rows, strict=True) if row["table"].tobytes() not in known]


def _regions_to_scan(base: Manifest, new: Sequence[int], new_bytes: int) -> list[int]:
    """Return the regions of the base, ascending, that are worth a look: those next to new content, within limits."""
    used = np.flatnonzero(~base.zero)
    if not len(used):
        return []
    at = np.searchsorted(np.array(new), used)
    around = np.pad(np.array(new), 1, mode="edge")
    distance = np.minimum(np.abs(around[at + 1] - used), np.abs(around[at] - used))
    nearest = used[np.argsort(distance, kind="stable")]
    most = max(_LEAST_SCAN, _SCAN_SHARE * new_bytes)
    before = np.cumsum(base.lengths[nearest]) - base.lengths[nearest]
    return sorted(nearest[before < most].tolist())


def _plain_cost(table: Table, places: Places) -> NDArray[np.float64]:
    """Return about what each record of a region takes in plain frames, in stored bytes."""
    cost = np.zeros(len(table))
    located = np.flatnonzero(~table.zero)
    frame = places.frames[places.frame[located]]
    cost[located] = table.lengths[located] * (frame["stored"] / frame["raw"])
    return cost


def _split(lengths: NDArray[np.int64]) -> Iterator[slice]:
    """Yield slices of consecutive chunks of about the same size, none much above what a unit makes."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    count = -(-total // _TARGET)
    borders = np.searchsorted(ends, np.arange(1, count) * (total / count)).tolist()
    for low, high in zip([0, *borders], [*borders, len(lengths)], strict=True):
        if low < high:
            yield slice(low, high)


def _runs(records: NDArray[np.int64], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Return ascending records as runs of neighbours."""
    first = np.flatnonzero(np.concatenate(([True], np.diff(records) != 1)))
    runs = np.zeros(len(first), dtype=dtype)
    runs["record"] = records[first]
    runs["count"] = np.diff(np.append(first, len(records)))
    return runs


def _units(kept: Sequence[_Kept], packs: Sequence[PackRef]) -> Units:
    """Return the units of a region, which refer to their packs only."""
    units = np.concatenate([unit.row for unit in kept])
    used, units["pack"] = np.unique(units["pack"], return_inverse=True)
    targets = np.concatenate([unit.targets for unit in kept])
    bases = np.concatenate([unit.bases for unit in kept])
    return Units.of(tuple(packs[number] for number in used.tolist()), units, targets, bases)
