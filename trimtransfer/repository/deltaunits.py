"""What a version has new against another one, divided into units, each with chunks of the other that resemble it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.deltaindex import BASE, MAX_BASE, MAX_TARGET
from trimtransfer.manifest import Manifest
from trimtransfer.repository.imagebytes import ImageBytes
from trimtransfer.repository.inside import Insides
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.places import ChunkReader, Places
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.similar import Similar, VersionContent
from trimtransfer.repository.starts import new_starts
from trimtransfer.repository.streams import Streams, Whole
from trimtransfer.repository.takes import Inside
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_TARGET: Final = 4 << 20
"""Bytes that a unit makes, about: with 8 MiB the deltas of a rebuilt desktop are 3 % smaller, with 2 MiB 9 % larger."""
_BASE: Final = MAX_BASE
"""Most bytes that it is made of: half as many make the deltas of a desktop's update 4 % larger. Where the file of the
same path is half of it, they are 1 % larger: so names are not looked at."""
_SHIFT: Final = 3 / 8
"""A border between units may move by so much of what a unit makes, so none makes more than it may."""
_LEAST_SCAN: Final = 1 << 30
_SCAN_SHARE: Final = 64
"""What is read of the other version to find what resembles new content: so many times the latter, at least 1 GiB; from
the regions on that changed. So a small change of a large image costs little."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit to be: target records of a region, what they take in plain frames; base runs; both contents; and how it is
    done by looking into compressed files, where there are some."""

    region: int
    records: NDArray[np.int64]
    plain: int
    runs: NDArray[np.void]
    target: Bytes
    base: Bytes
    inside: Inside | None = None


class NewContent:
    """The chunks that ``target`` has and ``base`` lacks, both versions of one image; ``size`` of them in bytes.

    ``directory`` takes temporary files. Not for several threads at a time.
    """

    def __init__(
        self, target: VersionReader, base: VersionReader, directory: Path, *, workers: int, watch: Watch
    ) -> None:
        """Compare the tables of both.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        self._target, self._base = ChunkReader(target), ChunkReader(base)
        self._directory, self._workers, self._watch = directory, workers, watch
        self.size = 0
        changed = changed_regions(target.manifest, base.manifest)
        with closing(Inventory(lambda: self._tables(changed), directory)) as inventory:
            self._mark_known(inventory)
            found = ((index, self._new_records(inventory, index)) for index in changed)
            self._records = {index: records for index, records in found if len(records)}

    def units(self) -> Iterator[Unit]:
        """Yield the units that make all of it, in order; raises what the constructor raises."""
        if not self._records:
            return
        regions = regions_to_scan(self._base.reader.manifest, list(self._records), self.size)
        with ExitStack() as stack:
            similar = Similar(self._base.reader, regions, self._directory, workers=self._workers, watch=self._watch)
            stack.callback(similar.close)
            yield from self._units(similar, self._insides(similar, stack))

    def _insides(self, similar: Similar, stack: ExitStack) -> Insides | None:
        """Return what of the new chunks lies in deflate streams; None if nothing does."""
        starts = new_starts(
            VersionContent(self._target.reader), self._records, workers=self._workers, watch=self._watch
        )
        image = ImageBytes(self._target)
        return open_insides(image, starts, self._base, similar, self._directory, stack, watch=self._watch)

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
        self.size += int(table.lengths[records].sum(dtype=np.int64))
        return records

    def _units(self, similar: Similar, insides: Insides | None) -> Iterator[Unit]:
        for index, records in self._records.items():
            table, places = self._target.region(index)
            plain, start = plain_cost(table, places), int(self._target.reader.manifest.starts[index])
            for part in divided(start, table, records, insides):
                chosen = records[part]
                content = bytearray(int(table.lengths[chosen].sum(dtype=np.int64)))
                self._target.read(index, chosen.tolist(), memoryview(content))
                runs, base = self._base_of(content, similar)
                inside = insides.find(start, table, chosen, content) if insides else None
                yield Unit(index, chosen, int(plain[chosen].sum()), runs, content, base, inside)

    def _base_of(self, target: Bytes, similar: Similar) -> tuple[NDArray[np.void], Bytes]:
        """Return the runs of the base that resemble ``target``, and their content."""
        buffer = memoryview(bytearray(_BASE))
        at = 0
        runs = [np.zeros(0, dtype=BASE)]
        for index, records in similar.find(target, most=_BASE):
            at += self._base.read(index, records.tolist(), buffer[at:])
            run = runs_of(records, BASE)
            run["region"] = index
            runs.append(run)
        return np.concatenate(runs), buffer[:at]


def open_insides(
    image: Whole,
    starts: Sequence[int],
    base: ChunkReader,
    similar: Similar,
    directory: Path,
    stack: ExitStack,
    *,
    watch: Watch,
    framed: bool = True,
) -> Insides | None:
    """Return what of an image lies in compressed streams that may begin at ``starts``; None if nothing does. Without
    ``framed`` only deflate is looked into, which needs no tool.

    Until the stack ends: its temporary files are in ``directory``. Raises:
        FormatError, IntegrityError, NotFound: the repository is damaged.
    """
    targets = Streams(image, starts, directory, watch=watch, framed=framed)
    stack.callback(targets.close)
    if not len(targets):
        return None
    bases = Streams(ImageBytes(base), similar.starts.tolist(), directory, watch=watch)
    stack.callback(bases.close)
    insides = Insides(targets, bases, base, similar, directory)
    stack.callback(insides.close)
    return insides


def changed_regions(target: Manifest, base: Manifest) -> list[int]:
    """Return the numbers of regions whose table the base has nowhere."""
    known = {row["table"].tobytes() for row in base.rows}
    numbers = np.flatnonzero(~target.zero).tolist()
    return [index for index, row in zip(numbers, target.rows, strict=True) if row["table"].tobytes() not in known]


def regions_to_scan(base: Manifest, new: Sequence[int], new_bytes: int) -> list[int]:
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


def plain_cost(table: Table, places: Places) -> NDArray[np.float64]:
    """Return about what each record of a region takes in plain frames, in stored bytes."""
    cost = np.zeros(len(table))
    located = np.flatnonzero(~table.zero)
    frame = places.frames[places.frame[located]]
    cost[located] = table.lengths[located] * (frame["stored"] / frame["raw"])
    return cost


def divided(start: int, table: Table, records: NDArray[np.int64], insides: Insides | None) -> Iterator[slice]:
    """Yield slices of records of a region at ``start`` that are a unit each: jobs of large frames by themselves."""
    if insides is None:
        yield from split(table.lengths[records].astype(np.int64))
        return
    weights, within = insides.weights(start, table, records)
    raw = table.lengths[records].astype(np.int64)
    at = 0
    for jobs in (*insides.jobs(start, table, records), slice(len(records), len(records))):
        for weight, part in ((weights, slice(at, jobs.start)), (raw, jobs)):
            if part.start < part.stop:
                kept = int(raw[part].sum()) <= MAX_TARGET and weight is raw
                pieces = (slice(0, part.stop - part.start),) if kept else split(weight[part], within[part])
                yield from (slice(part.start + one.start, part.start + one.stop) for one in pieces)
        at = jobs.stop


def split(
    lengths: NDArray[np.int64], within: NDArray[np.bool_] | None = None, *, size: int | None = None
) -> Iterator[slice]:
    """Yield slices of consecutive chunks of about the same size, none much above ``size`` (default: what a unit makes);
    none that begins with a chunk ``within`` something that is better left whole, if there is another place near."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    count = -(-total // (size or _TARGET))
    wanted = np.arange(1, count) * (total / count)
    borders = np.searchsorted(ends, wanted)
    if within is not None and within.any():
        good = np.flatnonzero(~within)
        begins = (ends - lengths)[good]
        after = np.minimum(np.searchsorted(begins, wanted), len(good) - 1)
        before = np.maximum(after - 1, 0)
        near = np.where(np.abs(begins[after] - wanted) < np.abs(begins[before] - wanted), after, before)
        borders = np.where(np.abs(begins[near] - wanted) <= _SHIFT * _TARGET, good[near], borders)
    edges = [0, *np.unique(borders).tolist(), len(lengths)]
    for low, high in pairwise(edges):
        if low < high:
            yield slice(low, high)


def runs_of(records: NDArray[np.int64], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Return ascending records as runs of neighbours."""
    first = np.flatnonzero(np.concatenate(([True], np.diff(records) != 1)))
    runs = np.zeros(len(first), dtype=dtype)
    runs["record"] = records[first]
    runs["count"] = np.diff(np.append(first, len(records)))
    return runs
