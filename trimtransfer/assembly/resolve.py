"""Resolving a window: reading its tables, looking its chunks up in every local source, locating the others in packs.

Everything that needs files or the network on the way to a plan happens here; the decisions are those of ``plan.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly import report
from trimtransfer.assembly.bundles import held_frames
from trimtransfer.assembly.deltaplan import DeltaPlan, DeltaSource, Lack
from trimtransfer.assembly.fetchplan import WHOLE_SHARE, FetchPlan, Located, plan_fetch
from trimtransfer.assembly.installed import InstalledImage, WrittenIndex, zero_table
from trimtransfer.assembly.plan import (
    FETCH,
    PLACED,
    SEEDS,
    SELF,
    UNASSIGNED,
    ZERO,
    Groups,
    Mask,
    Numbers,
    Window,
    same_place,
)
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.report import Content
from trimtransfer.bundlestore import BundleStore
from trimtransfer.errors import FormatError
from trimtransfer.index.seed import Seed
from trimtransfer.manifest import Region
from trimtransfer.nearstore import NearStore
from trimtransfer.table import Table

WINDOW_REGIONS: Final = 32
WINDOW_STORED: Final = 16 << 20
"""A window has at most this many regions, and about this many bytes of stored tables and locations; its arrays
stay within 50 MiB."""


class Output(Protocol):
    """What resolving asks of the file being written."""

    def locate(self, offsets: NDArray[np.int64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return positions to read pieces from that are in place."""
        ...


class Nowhere:
    """Stands for a file that is not written: every place is its own position."""

    def locate(self, offsets: NDArray[np.int64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return the offsets."""
        return offsets


Survey = Callable[[Window, Sequence[Region]], Mask]
"""Tells which records of a window are right at their place already."""


@dataclass(slots=True, eq=False)
class WindowPlan:
    """A window with a source for every record.

    ``source`` (numbers of ``plan.py``, one per record) and ``row`` (what the source calls the chunk); ``fetch`` is what
    comes from packs, ``deltas`` what is made by deltas.
    """

    regions: Sequence[Region]
    tables: Sequence[Table]
    window: Window
    groups: Groups
    placed: Mask
    source: NDArray[np.int16]
    row: Numbers
    fetch: FetchPlan
    deltas: DeltaPlan
    located: dict[tuple[int, str], Located] = field(default_factory=dict)

    def reassign(self, groups: Numbers) -> None:
        """Mark groups as fetched after all, because the source that they had lied."""
        members = np.zeros(len(self.groups), dtype=np.bool_)
        members[groups] = True
        records = self.groups.order[np.repeat(members, self.groups.sizes)]
        self.source[records[~self.placed[records]]] = FETCH

    def content(self, seeds: Sequence[Seed]) -> Content:
        """Return the bytes by category."""
        category = np.full(len(self.window), report.FETCHED, dtype=np.uint8)
        category[self.source == SELF] = report.SEED
        for number, seed in enumerate(seeds):
            here = self.source == SEEDS + number
            category[here] = report.HOST if seed.category == "host" else report.SEED
            if seed.category == "previous":
                category[here & (self.row == self.window.offsets)] = report.UNCHANGED
        category[self.source == PLACED] = report.UNCHANGED
        category[self.window.zero] = report.ZERO
        return Content.tally(category, self.window.lengths)


def read_window(
    remote: Remote, regions: Sequence[Region], base: Callable[[int], Table | None] | None
) -> tuple[list[Table], Window]:
    """Read the tables of regions, by difference (``base`` as for :meth:`Remote.tables`), and put them side by side."""
    read = iter(remote.tables([region for region in regions if not region.zero], base))
    tables = [zero_table(region.length) if region.zero else next(read) for region in regions]
    return tables, Window.of([region.index for region in regions], [region.start for region in regions], tables)


class Resolver:
    """Makes plans for windows of one version's regions.

    ``seeds`` in the order in which they are asked, the previous version (an :class:`InstalledImage`) first if there is
    one; ``written`` indexes what earlier windows have fetched; with ``from_parent`` the previous version is the one
    that this version's fresh locations leave out. ``resumed``: an interrupted run has fetched the beginning of packs,
    none of which is fetched whole for a part then: else whoever is always interrupted early would never get further.
    """

    def __init__(
        self,
        remote: Remote,
        seeds: Sequence[Seed],
        written: WrittenIndex,
        output: Output,
        *,
        from_parent: bool,
        deltas: DeltaSource | None = None,
        resumed: bool = False,
    ) -> None:
        self.remote, self.written, self.output, self.deltas = remote, written, output, deltas
        self.seeds: tuple[Seed, ...] = tuple(seeds)
        self._from_parent, self._resumed = from_parent, resumed

    def add(self, seed: Seed) -> None:
        """Ask one more seed, after the others."""
        self.seeds = (*self.seeds, seed)

    def read(self, regions: Sequence[Region]) -> tuple[list[Table], Window]:
        """Read the tables of ``regions`` and put them side by side; raises what :meth:`resolve` raises."""
        return read_window(self.remote, regions, self._base_table if self._from_parent else None)

    def resolve(self, regions: Sequence[Region], survey: Survey) -> WindowPlan:
        """Read the tables of ``regions`` and decide where each record comes from.

        Raises:
            FormatError, IntegrityError: the repository is damaged; and what the store raises.
        """
        tables, window = self.read(regions)
        placed = survey(window, regions)
        groups = Groups.of(window, np.flatnonzero(~window.zero))
        source, row = self._look_up(window, groups, placed)
        plan = WindowPlan(regions, tables, window, groups, placed, source, row, _NOTHING, DeltaPlan.nothing())
        unresolved = groups.any(source == UNASSIGNED)
        source[source == UNASSIGNED] = FETCH
        if self.deltas is not None and unresolved.any():
            wanted = unresolved & ~self._in_bundles(plan, unresolved)
            plan.deltas = self.deltas.plan(Lack(window, regions, tables, groups, wanted, placed))
            unresolved[plan.deltas.fetch.wanted["group"]] = False
        plan.fetch = self.locate(plan, np.flatnonzero(unresolved))
        return plan

    def locate(self, plan: WindowPlan, wanted: Numbers) -> FetchPlan:
        """Plan the fetch of these groups, reading the locations that it takes.

        Raises:
            FormatError: a chunk is nowhere.
        """
        if not len(wanted):
            return _NOTHING
        chosen = np.zeros(len(plan.groups), dtype=np.bool_)
        chosen[wanted] = True
        self._read_locations(plan, wanted, ("fresh",) if self._from_parent else ("fresh", "rest"))
        fetch = self._plan_fetch(plan, chosen)
        if len(fetch.missing):
            self._read_locations(plan, fetch.missing, ("fresh", "rest"))
            fetch = self._plan_fetch(plan, chosen)
        if len(fetch.missing):
            record = int(plan.groups.leaders[fetch.missing[0]])
            digest = plan.window.digests[record].tobytes().hex()
            raise FormatError(
                "locations", f"image byte {plan.window.offsets[record]}", f"chunk {digest[:16]}", "nothing"
            )
        return fetch

    def remember(self, plan: WindowPlan) -> None:
        """Offer what this window fetched, or an earlier run had written, to the windows that follow."""
        records = plan.groups.leaders[plan.groups.any((plan.source == FETCH) | (plan.source == PLACED))]
        window = plan.window
        self.written.add(window.prefixes[records], window.lengths[records], window.offsets[records])

    def _in_bundles(self, plan: WindowPlan, wanted: Mask) -> Mask:
        """Return which groups lie in frames that bundles have: these cost nothing, so no delta is fetched for them."""
        held = np.zeros(len(wanted), dtype=np.bool_)
        if isinstance(self.remote.store, NearStore):
            fetch = self.locate(plan, np.flatnonzero(wanted))
            here = held_frames(self.remote.store, fetch)[fetch.wanted["frame"]]
            held[fetch.wanted["group"][here]] = True
        return held

    def _base_table(self, start: int) -> Table | None:
        previous = self.seeds[0] if self.seeds else None
        return previous.table_at(start) if isinstance(previous, InstalledImage) else None

    def _look_up(self, window: Window, groups: Groups, placed: Mask) -> tuple[NDArray[np.int16], Numbers]:
        """Return source and row of every record; ``UNASSIGNED`` where no local source has it."""
        source = np.full(len(window), UNASSIGNED, dtype=np.int16)
        row = np.full(len(window), -1, dtype=np.int64)
        leaders = groups.leaders
        chosen = np.full(len(groups), UNASSIGNED, dtype=np.int64)
        rows = np.full(len(groups), -1, dtype=np.int64)
        at = self._own_places(window, groups, placed)
        for number, seed in enumerate(self.seeds):
            open_ = np.flatnonzero((chosen == UNASSIGNED) & (at < 0))
            if not len(open_):
                break
            found = seed.find(window.prefixes[leaders[open_]], window.lengths[leaders[open_]])
            hits = open_[found >= 0]
            chosen[hits], rows[hits] = SEEDS + number, found[found >= 0]
        own = np.flatnonzero(at >= 0)
        chosen[own] = SELF
        rows[own] = self.output.locate(at[own], window.lengths[leaders[own]])
        source[groups.order], row[groups.order] = groups.spread(chosen), groups.spread(rows)
        self._prefer_same_place(window, source, row)
        source[placed] = PLACED
        source[window.zero] = ZERO
        return source, row

    def _own_places(self, window: Window, groups: Groups, placed: Mask) -> Numbers:
        """Return where in the output each group's chunk lies already, -1 where nowhere."""
        at = np.full(len(groups), -1, dtype=np.int64)
        members = placed[groups.order]
        at[np.repeat(np.arange(len(groups)), groups.sizes)[members]] = window.offsets[groups.order[members]]
        open_ = np.flatnonzero(at < 0)
        leaders = groups.leaders[open_]
        at[open_] = self.written.find(window.prefixes[leaders], window.lengths[leaders])
        return at

    def _prefer_same_place(self, window: Window, source: NDArray[np.int16], row: Numbers) -> None:
        """Take a chunk from its own place in the previous version where that has it: reads in order, and says so."""
        previous = self.seeds[0] if self.seeds else None
        if not isinstance(previous, InstalledImage):
            return
        for number, first in enumerate(window.first[:-1].tolist()):
            last = int(window.first[number + 1])
            if not (source[first:last] == SEEDS).any():
                continue
            start = int(window.offsets[first])
            old = previous.table_at(start)
            if old is not None:
                same = same_place(window, number, start, old) & (source[first:last] == SEEDS)
                row[first:last][same] = window.offsets[first:last][same]

    def _read_locations(self, plan: WindowPlan, groups: Numbers, parts: Sequence[str]) -> None:
        """Read locations of the regions in which these groups occur first, those not read yet."""
        rows = np.unique(plan.window.region_rows(plan.groups.leaders[groups])).tolist()
        row_of = {plan.regions[n].index: n for n in rows}
        lacking = [(plan.regions[n], part) for n in rows for part in parts]
        lacking = [(region, part) for region, part in lacking if (region.index, part) not in plan.located]
        for key, locations in self.remote.locations(lacking).items():
            n = row_of[key[0]]
            plan.located[key] = Located(int(plan.window.first[n]), plan.tables[n], locations)

    def _plan_fetch(self, plan: WindowPlan, chosen: Mask) -> FetchPlan:
        parts = [plan.located[key] for key in sorted(plan.located)]
        near = isinstance(self.remote.store, NearStore | BundleStore)  # what these have is read frame by frame
        whole = 1.0 if near or self._resumed else WHOLE_SHARE
        return plan_fetch(plan.window, plan.groups, chosen, plan.placed, parts, whole=whole)


_NOTHING: Final = FetchPlan.nothing()
