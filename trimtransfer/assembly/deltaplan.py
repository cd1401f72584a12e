"""Planning what deltas make: which units are worth fetching for a window, and what they are made of.

Pure, like ``plan.py``. A unit is planned as a frame of a pack whose content is made instead of decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.fetchplan import FetchPlan, FrameTask, Located, plan_fetch
from trimtransfer.assembly.plan import Groups, Mask, Numbers, Window
from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.deltaindex import MAX_BASE, Units
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.manifest import Region
from trimtransfer.table import Table

_LOG: Final = logging.getLogger("trimtransfer.assembly")
BASE_CHUNK: Final = np.dtype([("offset", "<i8"), ("length", "<u4"), ("digest", "u1", (DIGEST_SIZE,))])
"""A chunk that a unit is made of: where it lies in the old image, its length, its digest."""
_BASE_CHUNKS: Final = 1 << 19
"""Most chunks that the units of a window are made of, 22 MiB of rows; units beyond are left to plain packs. Those of 32
regions that all changed have a quarter of it, but an index may say anything."""


class BaseTable(Protocol):
    """Chunks that units are made of, in the columns of a table; a ``zero`` one cannot be had."""

    @property
    def offsets(self) -> Numbers:
        """Where each begins in its region, in bytes; or whatever number names it to who reads it."""
        ...

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Their lengths in bytes."""
        ...

    @property
    def zero(self) -> Mask:
        """Those that cannot be had."""
        ...

    @property
    def digests(self) -> NDArray[np.uint8]:
        """Their digests, as far as known, 32 bytes each."""
        ...

    def __len__(self) -> int: ...


OldTable: TypeAlias = Callable[[int], tuple[int, BaseTable] | None]
"""Returns start and table of a region of the old version, or whatever else units start from, by its number; None if
that is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Lack:
    """What a window lacks: its regions and their tables; its groups of equal chunks, and which of these are ``wanted``
    (one per group); ``placed`` records are right at their place."""

    window: Window
    regions: Sequence[Region]
    tables: Sequence[Table]
    groups: Groups
    wanted: Mask
    placed: Mask


class DeltaSource(Protocol):
    """Deltas that can be used: plans which, and makes content from them."""

    @property
    def solid(self) -> bool:
        """Whether they start from nothing."""
        ...

    def plan(self, lack: Lack) -> DeltaPlan:
        """Plan what of the wanted groups is made."""
        ...

    def make(self, plan: DeltaPlan, task: FrameTask, stored: memoryview) -> bytes:
        """Return the content of a unit; ``IntegrityError`` or ``FormatError`` if it cannot be made."""
        ...


class UnitsOf(NamedTuple):
    """The units of a region and its table; ``first`` is the number of the region's first record in the window."""

    first: int
    table: Table
    units: Units


@dataclass(frozen=True, slots=True, eq=False)
class DeltaPlan:
    """What units make for a window: ``fetch`` with units in the place of frames, and for each the chunks of its base
    (dtype ``BASE_CHUNK``, in order): those of unit u are ``bases[first_base[u]:first_base[u + 1]]``. ``declined`` units
    need tools that are not used here."""

    fetch: FetchPlan
    bases: NDArray[np.void]
    first_base: Numbers
    declined: int = 0

    @classmethod
    def nothing(cls) -> DeltaPlan:
        """Return a plan that makes nothing."""
        return cls(FetchPlan.nothing(), np.zeros(0, dtype=BASE_CHUNK), np.zeros(1, dtype=np.int64))

    def base(self, unit: int) -> NDArray[np.void]:
        """Return the chunks of the base of one unit."""
        return self.bases[self.first_base[unit] : self.first_base[unit + 1]]

    def groups(self, units: Sequence[int]) -> Numbers:
        """Return the groups that some units would make."""
        first = self.fetch.first_wanted
        parts = [self.fetch.wanted["group"][first[unit] : first[unit + 1]] for unit in units]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))


def plan_deltas(
    window: Window,
    groups: Groups,
    wanted: Mask,
    placed: Mask,
    parts: Sequence[UnitsOf],
    old_table: OldTable,
    *,
    only: bool = False,
) -> DeltaPlan:
    """Plan which of the ``wanted`` groups (one per group of ``groups``) are made by units: by those that cost less than
    what they are wanted for takes in plain frames, and whose base is known. ``placed`` records are left alone. With
    ``only`` there may be no plain frames, so every unit counts that makes something wanted.

    Raises:
        FormatError: units do not fit their tables.
    """
    group_of = groups.numbers(len(window))
    worth = [part._replace(units=part.units.select(_worth(part, group_of, wanted, only))) for part in parts]
    bases = _Bases(old_table)
    known = [part._replace(units=part.units.select(bases.add(part.units))) for part in worth if len(part.units.units)]
    offered = np.zeros(len(groups), dtype=np.bool_)
    for part in known:
        offered[group_of[part.first + part.units.pieces(part.table)["record"].astype(np.int64)]] = True
    if not offered.any():
        return DeltaPlan.nothing()
    located = [Located(part.first, part.table, part.units) for part in known]
    fetch = plan_fetch(window, groups, wanted & offered, placed, located)
    return DeltaPlan(fetch, *bases.of(fetch))


UnitsFor: TypeAlias = Callable[[Region, Table, Mask], Units | None]
"""Returns the units of a region, if there are any, by its table and which of its records are lacking."""


def plan_units(
    lack: Lack, units_for: UnitsFor, old_table: OldTable, *, only: bool = False, what: str = "deltas"
) -> DeltaPlan:
    """Plan what of a lack is made by units, as :func:`plan_deltas` does; nothing, with a warning that says ``what`` is
    left aside, if they cannot be read or do not fit."""
    window, groups = lack.window, lack.groups
    group = groups.numbers(len(window))
    lacking = (group >= 0) & lack.wanted[group] if len(groups) else np.zeros(len(window), dtype=np.bool_)
    parts: list[UnitsOf] = []
    try:
        for number, (region, table) in enumerate(zip(lack.regions, lack.tables, strict=True)):
            first, last = (int(at) for at in window.first[number : number + 2])
            units = units_for(region, table, lacking[first:last])
            if units is not None:
                parts.append(UnitsOf(first, table, units))
        return plan_deltas(window, groups, lack.wanted, lack.placed, parts, old_table, only=only)
    except (FormatError, IntegrityError) as error:
        _LOG.warning("%s are left aside: %s", what, error)
        return DeltaPlan.nothing()


def _worth(part: UnitsOf, group_of: Numbers, wanted: Mask, only: bool) -> Numbers:
    """Return the numbers of the units that cost less than plain frames do for what is wanted of them; or, where there
    is nothing else, that make anything of it."""
    units = part.units.units
    pieces = part.units.pieces(part.table)
    group = group_of[part.first + pieces["record"].astype(np.int64)]
    needed = np.bincount(
        pieces["frame"], weights=pieces["length"] * ((group >= 0) & wanted[group]), minlength=len(units)
    )
    if only:
        return np.flatnonzero(needed)
    return np.flatnonzero(needed * units["plain"] > units["raw"].astype(np.float64) * units["stored"])


class _Bases:
    """Collects the chunks of which units are made, for one window."""

    def __init__(self, old_table: OldTable) -> None:
        self._old_table = old_table
        self._found: dict[tuple[bytes, int], NDArray[np.void]] = {}
        self._room = _BASE_CHUNKS

    def add(self, units: Units) -> Numbers:
        """Look the bases of units up, as far as there is room; return the numbers of those that are known whole."""
        few = self._fitting(units)
        units = units.select(few)
        counts = units.bases["count"].astype(np.int64)
        run = np.repeat(np.arange(len(counts)), counts)
        record = units.bases["record"][run].astype(np.int64) + np.arange(len(run)) - (np.cumsum(counts) - counts)[run]
        unit = np.repeat(np.arange(len(units.units)), units.units["bases"])[run]
        chunks = np.zeros(len(run), dtype=BASE_CHUNK)
        regions = units.bases["region"][run]
        bad = np.zeros(len(units.units), dtype=np.bool_)
        for region in np.unique(regions).tolist():
            here = np.flatnonzero(regions == region)
            fits = self._fill(chunks, here, region, record[here])
            bad[unit[here[~fits]]] = True
        bad |= np.bincount(unit, weights=chunks["length"], minlength=len(bad)) > MAX_BASE
        ends = np.searchsorted(unit, np.arange(len(bad)), side="right")
        good = np.flatnonzero(~bad)
        for number in good.tolist():
            row = units.units[number]
            key = units.packs[int(row["pack"])].digest, int(row["offset"])
            self._found[key] = chunks[ends[number - 1] if number else 0 : ends[number]]
        return few[good]

    def of(self, fetch: FetchPlan) -> tuple[NDArray[np.void], Numbers]:
        """Return the chunks of all units of a plan, in its order, and where those of each begin (and the end)."""
        places = zip(fetch.frames["pack"].tolist(), fetch.frames["offset"].tolist(), strict=True)
        parts = [self._found[fetch.packs[pack].digest, offset] for pack, offset in places]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return np.concatenate(parts), np.concatenate((np.zeros(1, dtype=np.int64), ends))

    def _fitting(self, units: Units) -> Numbers:
        """Return the numbers of the first units, as far as there is room for what they are made of, and take it."""
        unit = np.repeat(np.arange(len(units.units)), units.units["bases"])
        sizes = np.bincount(unit, weights=units.bases["count"], minlength=len(units.units)).astype(np.int64)
        few = np.flatnonzero(np.cumsum(sizes) <= self._room)
        self._room -= int(sizes[few].sum())
        return few

    def _fill(self, chunks: NDArray[np.void], here: Numbers, region: int, record: Numbers) -> Mask:
        """Enter chunks of one region of the old version; return which of them there are."""
        found = self._old_table(region)
        if found is None:
            return np.zeros(len(here), dtype=np.bool_)
        start, table = found
        fits = record < len(table)
        at = np.where(fits, record, 0)
        fits &= ~table.zero[at]
        chunks["offset"][here], chunks["length"][here] = start + table.offsets[at], table.lengths[at]
        chunks["digest"][here] = table.digests[at]
        return fits
