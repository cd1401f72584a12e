"""How much deltas from the parent would save, by making some of them.

Units are cut as a publish cuts them, bases are looked for as there, and those of the sample are encoded, at a low level
beside plain frames of the same level: what one saves of the other depends little on it. Nothing is stored.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.delta import encode
from trimtransfer.image import Source
from trimtransfer.pack import encode_frame
from trimtransfer.repository.deltaunits import regions_to_scan, split
from trimtransfer.repository.inventory import IN_PARENT, Inventory
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.similar import Similar
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_UNITS: Final = 16
"""Units of about 4 MiB in the sample."""
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
    save, off by ``error`` or less in 19 of 20 cases; seconds that making all of them takes."""

    units: int
    sampled_bytes: int
    saved_share: float
    error: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Unit:
    """New content of a unit: places in the image and lengths of its chunks."""

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def estimate_deltas(
    source: Source,
    parent: VersionReader,
    inventory: Inventory,
    regions: Iterable[tuple[int, int, Table]],
    directory: Path,
    *,
    new_bytes: int,
    level: int,
    workers: int,
    watch: Watch,
) -> DeltaEstimate | None:
    """Return what deltas from ``parent`` would save of the new content of ``regions`` (number, start, table); None if
    there is nothing new. ``directory`` takes temporary files.

    Raises:
        FormatError, IntegrityError, NotFound: the repository is damaged.
        Cancelled: as asked.
    """
    units, numbers = _units(inventory, regions)
    if not units:
        return None
    step = max(1.0, len(units) / _UNITS)
    chosen = [units[int(step * (number + 0.5))] for number in range(min(_UNITS, len(units)))]
    scan = regions_to_scan(parent.manifest, numbers, new_bytes)
    started = time.monotonic()
    with closing(Similar(parent, scan, directory, workers=workers, watch=watch)) as similar:
        scanned = time.monotonic() - started
        made = list(_made(_pairs(source, parent, similar, chosen), min(level, _LEVEL), min(workers, 4), watch))
    slower = _SLOWER if level > _LEVEL else 1.0
    seconds = scanned + (time.monotonic() - started - scanned) * slower * len(units) / len(chosen)
    plain, saved = np.array(made, dtype=np.float64).T
    share = float(saved.sum() / plain.sum())
    error = _error(plain, saved, share, len(units))
    return DeltaEstimate(len(chosen), int(sum(unit.lengths.sum() for unit in chosen)), share, error, seconds)


def _units(inventory: Inventory, regions: Iterable[tuple[int, int, Table]]) -> tuple[list[_Unit], list[int]]:
    """Return the units that a publish would make deltas of, and the numbers of their regions."""
    units: list[_Unit] = []
    numbers: list[int] = []
    for region, start, table in regions:
        found = inventory.find(table)
        records = np.flatnonzero(found >= 0)
        at = found[records]
        new = (inventory.region[at] == region) & (inventory.record[at] == records)
        records = records[new & ((inventory.marks[at] & IN_PARENT) == 0)]
        if not len(records):
            continue
        numbers.append(region)
        offsets, lengths = start + table.offsets[records], table.lengths[records].astype(np.int64)
        units += [_Unit(offsets[part], lengths[part]) for part in split(lengths)]
    return units, numbers


def _pairs(
    source: Source, parent: VersionReader, similar: Similar, units: Iterable[_Unit]
) -> Iterator[tuple[bytearray, bytearray]]:
    """Yield the content of units and of what resembles it in the parent."""
    chunks = ChunkReader(parent)
    for unit in units:
        target = bytearray(int(unit.lengths.sum()))
        view, at = memoryview(target), 0
        for offset, length in zip(unit.offsets.tolist(), unit.lengths.tolist(), strict=True):
            source.read_into(view[at : at + length], offset)
            at += length
        base = memoryview(bytearray(_BASE))
        at = 0
        for index, records in similar.find(target, most=_BASE):
            at += chunks.read(index, records.tolist(), base[at:])
        yield target, bytearray(base[:at])


def _made(
    pairs: Iterable[tuple[bytearray, bytearray]], level: int, workers: int, watch: Watch
) -> Iterator[tuple[int, int]]:
    """Yield what :func:`_lengths` returns for each unit, made by several threads."""
    pending: deque[Future[tuple[int, int]]] = deque()
    with ThreadPoolExecutor(workers, "estimate") as pool:
        for target, base in pairs:
            watch.check()
            pending.append(pool.submit(_lengths, target, base, level=level))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _lengths(target: bytearray, base: bytearray, *, level: int) -> tuple[int, int]:
    """Return what a unit takes in plain frames, and what a delta saves of it."""
    view = memoryview(target)
    plain = sum(len(encode_frame(view[at : at + _FRAME], level=level)[1]) for at in range(0, len(view), _FRAME))
    delta = len(encode(base, target, level=level))
    return plain, plain - delta if delta <= _MOST * plain else 0


def _error(plain: NDArray[np.float64], saved: NDArray[np.float64], share: float, units: int) -> float:
    """Return the error of the share."""
    count = len(plain)
    if count == units:
        return 0.0
    if count < 2:
        return 1.0
    variance = float(((saved - share * plain) ** 2).sum()) / (count - 1)
    return _CONFIDENCE * math.sqrt((1 - count / units) * variance / count) / float(plain.mean())
