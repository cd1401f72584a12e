"""Deltas at work: the index of a pair, what the old image has to offer for it, and making content from units.

Deltas are a short cut: whatever is wrong with one - an index of another pair, a unit that is gone or damaged, a base
that is no longer what it was - is told as such an error, and the plain packs serve instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.deltaplan import DeltaPlan, Lack, plan_units
from trimtransfer.assembly.fetchplan import FrameTask
from trimtransfer.assembly.installed import InstalledImage
from trimtransfer.assembly.payoff import Decision, Line, decide_deltas, decide_tools
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.trusted import Tools
from trimtransfer.assembly.turns import Turns
from trimtransfer.chunk import chunk_digest, object_check
from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex, Units
from trimtransfer.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    NotFound,
    SourceChanged,
)
from trimtransfer.manifest import Region
from trimtransfer.names import deltas_name
from trimtransfer.nearstore import is_offline
from trimtransfer.table import Table
from trimtransfer.unit import is_large, make

_LOG: Final = logging.getLogger("trimtransfer.assembly")
_TABLES: Final = 32
"""Tables fetched at a time: some 8 MiB at most."""
_SUMS: Final = ("raw", "plain", "stored", "work")
_AT_ONCE: Final = 2
"""Units made at a time: each takes up to 8 MiB for what it makes, 16 MiB for its base and 24 MiB for its columns; a
wrapped one 16 MiB for its base, 16 MiB for what is inside of that, 12 MiB for content and 36 MiB for the columns. A
tool takes up to 104 MiB, above 24 one at a time, but when content is there, and columns and spans are not any more. One
with jobs takes up to 20 MiB for content and 24 MiB for spans: it is made alone."""


class Deltas:
    """The deltas that make a version out of what ``old`` holds; ``only``: there may be no plain packs beside them.

    Safe among threads, but for planning.
    """

    solid: Final = False

    def __init__(self, index: DeltaIndex, old: InstalledImage, *, only: bool = False) -> None:
        self._index, self._old, self._only = index, old, only
        self._turns = Turns(_AT_ONCE)
        self._tools = Tools(index.tool_checks(), none=only)
        self._known_sums: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"Deltas({len(self._index.regions)} regions, from {self._old!r})"

    def decision(self, line: Line) -> Decision:
        """Decide whether using all of them pays on a line."""
        made, plain, stored, _ = self._sums().sum(axis=0).tolist()
        return decide_deltas(made=made, plain=plain, stored=stored, line=line)

    def decision_to_compress(self, line: Line) -> Decision | None:
        """Decide whether using those pays on a line that compress content again; None if there are none."""
        _, plain, stored, work = self._sums()[1].tolist()
        cores = min(_AT_ONCE, len(os.sched_getaffinity(0)))
        return decide_tools(plain=plain, stored=stored, seconds=work / 1000 / cores, line=line) if work else None

    @property
    def usable(self) -> bool:
        """Whether there are any that can be used."""
        return bool(self._sums().any())

    def leave_tools(self) -> None:
        """Use no units that compress content again."""
        self._tools.leave_all()
        self._known_sums = None

    def _sums(self) -> NDArray[np.int64]:
        """Return the sums over all units that can be used of bytes made, plain and stored, and of work: those without
        tools, those with tools (int64, (2, 4))."""
        if self._known_sums is None:
            sums = np.zeros((2, 4), dtype=np.int64)
            for number in self._index.regions.tolist():
                with contextlib.suppress(FormatError, IntegrityError):  # left aside later, with a warning
                    units = self._index.units(number)
                    if units is not None:
                        rows = units.units[self._tools.usable(units.units["tools"])]
                        for which, chosen in enumerate((rows[rows["tools"] == 0], rows[rows["tools"] > 0])):
                            sums[which] += [int(chosen[name].sum(dtype=np.int64)) for name in _SUMS]
            self._known_sums = sums
        return self._known_sums

    def plan(self, lack: Lack) -> DeltaPlan:
        """Plan what of the wanted groups is made."""
        declined = 0

        def usable(region: Region, *_: object) -> Units | None:
            nonlocal declined
            units = self._index.units(region.index)
            if units is None:
                return None
            chosen = np.flatnonzero(self._tools.usable(units.units["tools"]))
            declined += len(units.units) - len(chosen)
            return units.select(chosen)

        plan = plan_units(lack, usable, self._old_table, only=self._only)
        return replace(plan, declined=declined)

    def make(self, plan: DeltaPlan, task: FrameTask, stored: memoryview) -> bytes:
        """Return the content of a unit, not compared with the digests of its chunks yet.

        Raises:
            IntegrityError: it arrived damaged, or a chunk of its base is no longer in the old image.
            FormatError: it is no delta for this base.
        """
        found = object_check(stored)
        if found != task.check:
            raise IntegrityError("delta", task.check, found)
        with self._turns.taken(alone=is_large(stored)):
            made = make(stored, self._base(plan.base(task.number)), limit=task.raw)
        self._tools.watch(stored, made, task)
        return made

    def _base(self, chunks: NDArray[np.void]) -> memoryview:
        """Return the content of chunks of the old image, one after the other, each compared with its digest."""
        offsets, lengths = chunks["offset"].tolist(), chunks["length"].tolist()
        digests = chunks["digest"].tobytes()
        base = memoryview(bytearray(sum(lengths)))
        at = 0
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            part = base[at : at + length]
            expected = digests[32 * number : 32 * number + 32]
            try:
                self._old.source.read_into(part, offset)
            except (OSError, SourceChanged):
                raise IntegrityError("base of a delta", expected, b"") from None
            found = chunk_digest(part)
            if found != expected:
                raise IntegrityError("base of a delta", expected, found)
            at += length
        return base

    def _old_table(self, number: int) -> tuple[int, Table] | None:
        manifest = self._old.manifest
        if number >= manifest.region_count:
            return None
        start = int(manifest.starts[number])
        table = self._old.table_at(start)
        return None if table is None else (start, table)


def open_deltas(remote: Remote, old: InstalledImage) -> Deltas | None:
    """Return the deltas from the version in ``old``; None where the repository has none that can be used.

    Tables of that version which are not known are fetched where that is worth it, for a file that was found to be this
    version has none yet. Raises what fetching raises, unless it only says that there are none.
    """
    target, base = remote.manifest, old.manifest
    if target.image != base.image or target.kind != base.kind:
        return None
    name = deltas_name(target.image, target.version, base.version)
    try:
        index = DeltaIndex(remote.read(name, limit=MAX_INDEX))
    except NotFound:
        _LOG.info("the repository has no deltas from %s", base.version)
        return None
    except (FormatError, IntegrityError, FetchError) as error:
        if isinstance(error, FetchError) and error.retryable:
            raise
        _LOG.warning("deltas are left aside: %s", error)
        return None
    if (index.target, index.base) != (target.digest(), base.digest()):
        _LOG.warning("deltas are left aside: %s is of another pair of versions", name)
        return None
    if not old.is_complete() and not _complete(remote, old, index):
        return None
    _LOG.info("deltas from %s serve %d regions", base.version, len(index.regions))
    return Deltas(index, old, only=is_offline(remote.store))


def _complete(remote: Remote, old: InstalledImage, index: DeltaIndex) -> bool:
    """Fetch the tables of the old version that units need and that are not known; return whether all are now.

    Where they are more than the units can save, nothing is fetched.
    """
    try:
        lacking, saved = _lacking(old, index)
        cost = sum(region.full.length for region in lacking)
        if cost >= saved:
            _LOG.info("no deltas from %s: its tables take %d bytes, to save %d", old.manifest.version, cost, saved)
            return False
        for at in range(0, len(lacking), _TABLES):
            Remote(remote.store, old.manifest, old.tables).tables(lacking[at : at + _TABLES], None)
    except (NotFound, FormatError, IntegrityError, FetchError) as error:
        if isinstance(error, FetchError) and error.retryable:
            raise
        _LOG.info("no deltas from %s: %s", old.manifest.version, error)
        return False
    return True


def _lacking(old: InstalledImage, index: DeltaIndex) -> tuple[list[Region], int]:
    """Return the regions of the old version whose tables are needed and not known, and what all units save in bytes."""
    needed = np.zeros(old.manifest.region_count, dtype=np.bool_)
    saved = 0
    for number in index.regions.tolist():
        units = index.units(number)
        if units is not None:
            regions = units.bases["region"]
            needed[regions[regions < len(needed)]] = True
            saved += int(units.units["plain"].sum(dtype=np.int64)) - int(units.units["stored"].sum(dtype=np.int64))
    regions_needed = (old.manifest.region(number) for number in np.flatnonzero(needed & ~old.manifest.zero).tolist())
    return [region for region in regions_needed if region.table not in old.tables], saved
