"""Solid units of the parent version whose chunks the new one has, too, side by side as they were: not made again.

Regions need not be equal for that. A unit is taken over if all that it makes occurs first in one region, in the same
order, with little else between; so a version costs about what it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.deltaindex import TARGET, Units
from trimtransfer.errors import FormatError, IntegrityError, NotFound
from trimtransfer.hostdelta import MAX_HOST_DELTA, HostDelta
from trimtransfer.location import PackRef
from trimtransfer.names import NOTHING, host_delta_name
from trimtransfer.repository.deltaunits import runs_of
from trimtransfer.repository.hostreuse import is_there
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore
from trimtransfer.table import Table

_BETWEEN: Final = 16
"""Other content between a unit's chunks, left to plain frames, is at most one of so many bytes that it makes."""
_MADE: Final = 1
"""Mark of a chunk that a unit makes which is taken over."""


class Kept(NamedTuple):
    """A unit that is taken over: its first and last record in its region, and itself."""

    first: int
    last: int
    units: Units


class ParentUnits:
    """The solid units of ``parent``, for a new version ``target``."""

    def __init__(self, store: DirectoryStore, target: VersionReader, parent: VersionReader) -> None:
        self._store, self._target, self._parent = store, target, parent
        self._table: tuple[int, Table] | None = None

    def find(self, inventory: Inventory) -> dict[int, list[Kept]]:
        """Return the units that are taken over, by region, in order, and mark the chunks that they make.

        ``inventory`` are the chunks of the target. Nothing where the index is missing, damaged, or of another version.
        """
        found = dict[int, list[Kept]]()
        try:
            for region, kept in self._kept(inventory, found):
                found.setdefault(region, []).append(kept)
        except (NotFound, FormatError, IntegrityError):
            pass  # those before are good
        for some in found.values():
            some.sort(key=lambda kept: kept.first)
        return found

    def _kept(self, inventory: Inventory, found: dict[int, list[Kept]]) -> Iterator[tuple[int, Kept]]:
        """Yield, with their region, units that are taken over beside those that were ``found`` before."""
        manifest = self._parent.manifest
        name = host_delta_name(manifest.image, manifest.version, NOTHING)
        delta = HostDelta(self._store.read(name, limit=MAX_HOST_DELTA))
        if (delta.index.target, delta.index.base) != (manifest.digest(), bytes(DIGEST_SIZE)) or len(delta.chunks):
            return
        for number in delta.index.regions.tolist():
            units = delta.index.units(number)
            if units is None:
                continue
            table = self._parent.table(number)
            chunks, pieces = inventory.find(table), units.pieces(table)
            for unit in range(len(units.units)):
                made = chunks[pieces["record"][pieces["frame"] == unit]]
                ref = units.packs[int(units.units["pack"][unit])]
                records = self._records(inventory, made)
                if records is None or not is_there(self._store, ref.digest, ref.length):
                    continue
                region, first, last = int(inventory.region[made[0]]), int(records[0]), int(records[-1])
                if any(first <= one.last and one.first <= last for one in found.get(region, ())):
                    continue
                inventory.marks[made] = _MADE
                yield region, Kept(first, last, _moved(units, unit, records))

    def _records(self, inventory: Inventory, chunks: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the records of a region of the target with which chunks occur there first, if that is so."""
        if (chunks < 0).any() or (inventory.marks[chunks] == _MADE).any():
            return None
        regions, records = inventory.region[chunks], inventory.record[chunks].astype(np.int64)
        if (regions != regions[0]).any() or (np.diff(records) <= 0).any():
            return None
        table, part = self._table_of(int(regions[0])), slice(int(records[0]), int(records[-1]) + 1)
        made = int(table.lengths[records].sum(dtype=np.int64))
        span = int(table.lengths[part][~table.zero[part]].sum(dtype=np.int64))
        return records if (span - made) * _BETWEEN <= made else None

    def _table_of(self, region: int) -> Table:
        if self._table is None or self._table[0] != region:
            self._table = region, self._target.table(region)
        return self._table[1]


def _moved(units: Units, unit: int, records: NDArray[np.int64]) -> Units:
    """Return one unit, which starts from nothing, as what makes these records."""
    row, targets = units.units[unit : unit + 1].copy(), runs_of(records, TARGET)
    ref = units.packs[int(row["pack"][0])]
    row["pack"], row["targets"], row["bases"] = 0, len(targets), 0
    return Units.of((ref,), row, targets, units.bases[:0])


def joined(parts: Sequence[Units]) -> Units:
    """Return units of one region together, in the order of the first record of each.

    ``FormatError`` if they make the same record twice, or if what one makes lies within what another one does.
    """
    if len(parts) == 1:
        return parts[0]
    single = [part.select(np.array([unit])) for part in parts for unit in range(len(part.units))]
    single.sort(key=lambda one: int(one.targets["record"][0]))
    packs = dict[PackRef, int]()
    rows = np.concatenate([one.units for one in single])
    for row, one in zip(rows, single, strict=True):
        row["pack"] = packs.setdefault(one.packs[int(one.units["pack"][0])], len(packs))
    targets, bases = (np.concatenate([getattr(one, name) for one in single]) for name in ("targets", "bases"))
    return Units.of(tuple(packs), rows, targets, bases)
