"""How much deltas from the parent would save, by making some of them.

Units are cut as a publish cuts them, bases are looked for as there, in compressed files, too, and those of the sample
are encoded, at a low level beside plain frames of the same level: what one saves of the other depends little on it.
Units that look into compressed files save much more than others, so the two sorts are sampled apart (stratified
sampling; W. G. Cochran, Sampling Techniques, chapter 5). Nothing is stored.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.deltaindex import BASE
from trimtransfer.image import Source
from trimtransfer.pack import encode_frame
from trimtransfer.repository.deltas import encode_unit
from trimtransfer.repository.deltaunits import Unit, divided, open_insides, regions_to_scan
from trimtransfer.repository.inside import Insides
from trimtransfer.repository.inventory import IN_PARENT, Inventory
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.rebuild import windows
from trimtransfer.repository.similar import Similar
from trimtransfer.repository.starts import new_starts
from trimtransfer.table import Table
from trimtransfer.unit import is_wrapped
from trimtransfer.watch import Watch

_UNITS: Final = 16
"""Units of about 4 MiB in the sample of each sort."""
_LEVEL: Final = 6
_SLOWER: Final = 2.5
"""What units of a publish take at its level, of the time that they take here."""
_BASE: Final = 8 << 20
"""Most bytes that a unit is made of, as in a publish."""
_MOST: Final = 0.9
"""A unit is kept if it takes at most this share of what plain frames take, as in a publish."""
_FRAME: Final = 1 << 20
_CONFIDENCE: Final = 2.0
"""Standard errors that are told as the error."""


@dataclass(frozen=True, slots=True)
class DeltaEstimate:
    """By a sample of ``units`` with ``sampled_bytes`` of new content: which share of what plain frames take deltas
    save, off by ``error`` or less in 19 of 20 cases; seconds that making all of them takes.

    ``wrapped_units`` of the sample look into compressed files; ``inside_share`` of the new content is in units that
    may do so.
    """

    units: int
    sampled_bytes: int
    saved_share: float
    error: float
    seconds: float
    wrapped_units: int = 0
    inside_share: float = 0.0


class Draft:
    """An image that is not published: its content, and what a survey found of its regions."""

    def __init__(
        self,
        source: Source,
        starts: NDArray[np.int64],
        zero: NDArray[np.bool_],
        table: Callable[[int], Table],
    ) -> None:
        self.source, self.starts, self.zero, self._table = source, starts, zero, table

    def table(self, index: int) -> Table:
        """Return the table of a region that is not all zero."""
        return self._table(index)

    def parts(self, index: int, table: Table) -> Iterator[tuple[int, int, bytearray | None]]:
        """Yield a region's content as :func:`trimtransfer.repository.rebuild.parts` does."""
        for first, last in windows(table):
            if last == first + 1 and table.zero[first]:
                yield first, last, None
                continue
            content = bytearray(int(table.lengths[first:last].sum(dtype=np.int64)))
            self.source.read_into(content, int(self.starts[index] + table.offsets[first]))
            yield first, last, content

    def chunks(self, index: int, table: Table, records: NDArray[np.int64]) -> bytearray:
        """Return the content of records of a region, one after the other."""
        lengths = table.lengths[records].astype(np.int64)
        content, at = bytearray(int(lengths.sum())), 0
        view = memoryview(content)
        offsets = int(self.starts[index]) + table.offsets[records]
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            self.source.read_into(view[at : at + length], offset)
            at += length
        return content


@dataclass(frozen=True, slots=True, eq=False)
class _Planned:
    """A unit to be: records of a region, their bytes, and whether some of them lie in compressed streams."""

    region: int
    records: NDArray[np.int64]
    size: int
    inside: bool


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a unit takes in plain frames, what a delta saves of that, and whether it looks into compressed files."""

    plain: int
    saved: int
    wrapped: bool


def estimate_deltas(
    draft: Draft,
    parent: VersionReader,
    inventory: Inventory,
    regions: Iterable[int],
    directory: Path,
    *,
    new_bytes: int,
    level: int,
    workers: int,
    watch: Watch,
) -> DeltaEstimate | None:
    """Return what deltas from ``parent`` would save of the new content of ``regions``; None if there is nothing new.
    ``directory`` takes temporary files.

    Raises:
        FormatError, IntegrityError, NotFound: the repository is damaged.
        Cancelled: as asked.
    """
    new = {index: records for index in regions if len(records := _new_records(draft, inventory, index))}
    if not new:
        return None
    started = time.monotonic()
    with ExitStack() as stack:
        scan = regions_to_scan(parent.manifest, list(new), new_bytes)
        similar = stack.enter_context(closing(Similar(parent, scan, directory, workers=workers, watch=watch)))
        starts = new_starts(draft, new, workers=workers, watch=watch)
        chunks = ChunkReader(parent)
        insides = open_insides(draft.source, starts, chunks, similar, directory, stack, watch=watch)
        units = list(_planned(draft, new, insides))
        scanned = time.monotonic() - started
        sorts = [_chosen([unit for unit in units if unit.inside == inside]) for inside in (False, True)]
        pending = _units(draft, chunks, similar, insides, [unit for sort in sorts for unit in sort])
        made = list(_made(pending, min(level, _LEVEL), min(workers, 4), watch))
    slower = _SLOWER if level > _LEVEL else 1.0
    seconds = scanned + (time.monotonic() - started - scanned) * slower * len(units) / len(made)
    return _estimate(units, sorts, made, seconds)


def _new_records(draft: Draft, inventory: Inventory, region: int) -> NDArray[np.int64]:
    """Return the records of a region whose chunks are new and occur here first."""
    found = inventory.find(draft.table(region))
    records = np.flatnonzero(found >= 0)
    at = found[records]
    new = (inventory.region[at] == region) & (inventory.record[at] == records)
    return np.compress(new & ((inventory.marks[at] & IN_PARENT) == 0), records)


def _planned(draft: Draft, new: Mapping[int, NDArray[np.int64]], insides: Insides | None) -> Iterator[_Planned]:
    """Yield the units that a publish would make deltas of."""
    for region, records in new.items():
        table, start = draft.table(region), int(draft.starts[region])
        lengths = table.lengths[records].astype(np.int64)
        for part in divided(start, table, records, insides):
            inside = insides is not None and insides.touches(start, table, records[part])
            yield _Planned(region, records[part], int(lengths[part].sum()), inside)


def _chosen(units: list[_Planned]) -> list[_Planned]:
    """Return some of these units, spread evenly."""
    step = max(1.0, len(units) / _UNITS)
    return [units[int(step * (number + 0.5))] for number in range(min(_UNITS, len(units)))]


def _units(
    draft: Draft, chunks: ChunkReader, similar: Similar, insides: Insides | None, planned: Iterable[_Planned]
) -> Iterator[Unit]:
    """Yield units with their bases."""
    for one in planned:
        table = draft.table(one.region)
        target = draft.chunks(one.region, table, one.records)
        base = _base_of(target, similar, chunks)
        inside = None
        if insides is not None and one.inside:
            inside = insides.find(int(draft.starts[one.region]), table, one.records, target)
        yield Unit(one.region, one.records, 0, np.zeros(0, dtype=BASE), target, base, inside)


def _base_of(target: Bytes, similar: Similar, chunks: ChunkReader) -> Bytes:
    """Return what resembles ``target`` in the parent."""
    base, at = memoryview(bytearray(_BASE)), 0
    for index, records in similar.find(target, most=_BASE):
        at += chunks.read(index, records.tolist(), base[at:])
    return base[:at]


def _made(units: Iterable[Unit], level: int, workers: int, watch: Watch) -> Iterator[_Measured]:
    """Yield what comes of each unit, made by several threads."""
    pending: deque[Future[_Measured]] = deque()
    with ThreadPoolExecutor(workers, "estimate") as pool:
        for unit in units:
            watch.check()
            pending.append(pool.submit(_measured, unit, level=level))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _measured(unit: Unit, *, level: int) -> _Measured:
    view = memoryview(unit.target)
    plain = sum(len(encode_frame(view[at : at + _FRAME], level=level)[1]) for at in range(0, len(view), _FRAME))
    delta = encode_unit(replace(unit, plain=plain), level=level).stored
    return _Measured(plain, plain - len(delta) if len(delta) <= _MOST * plain else 0, is_wrapped(delta))


def _estimate(
    units: list[_Planned], sorts: list[list[_Planned]], made: list[_Measured], seconds: float
) -> DeltaEstimate:
    """Add up the two sorts of units, each by its own sample."""
    plain_sum = saved_sum = variance = 0.0
    taken = 0
    for inside, sort in zip((False, True), sorts, strict=True):
        rows, taken = made[taken : taken + len(sort)], taken + len(sort)
        if not rows:
            continue
        sizes = [unit.size for unit in units if unit.inside == inside]
        scale = sum(sizes) / sum(unit.size for unit in sort)
        plain, saved = (np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in ("plain", "saved"))
        plain_sum += scale * float(plain.sum())
        saved_sum += scale * float(saved.sum())
        variance += _variance(plain, saved, len(sizes))
    return DeltaEstimate(
        len(made),
        sum(unit.size for sort in sorts for unit in sort),
        saved_sum / max(1.0, plain_sum),
        min(1.0, _CONFIDENCE * math.sqrt(variance) / max(1.0, plain_sum)),
        seconds,
        sum(row.wrapped for row in made),
        sum(unit.size for unit in units if unit.inside) / max(1, sum(unit.size for unit in units)),
    )


def _variance(plain: NDArray[np.float64], saved: NDArray[np.float64], units: int) -> float:
    """Return the variance of what all ``units`` of a sort save, in bytes squared, by the units of the sample."""
    count = len(plain)
    if count == units:
        return 0.0
    if count < 2:
        return float(plain.mean()) ** 2 * units**2
    share = float(saved.sum() / max(1.0, plain.sum()))
    residuals = float(((saved - share * plain) ** 2).sum()) / (count - 1)
    return units**2 * (1 - count / units) * residuals / count
