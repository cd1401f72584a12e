"""What an update costs a client that has exactly one other version, byte by byte: where in the image the content lies
that it must fetch, and what that takes. Nothing but metadata is read; the plan is the one that a sync would make.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.fetchplan import FetchPlan
from trimtransfer.assembly.installed import InstalledImage, WrittenIndex
from trimtransfer.assembly.plan import Mask, Numbers, Window
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.resolve import Nowhere, Resolver, WindowPlan
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.units import open_deltas
from trimtransfer.assembly.ways import same_regions, standing_in
from trimtransfer.assembly.windows import windows
from trimtransfer.filesystem.ranges import Ranges
from trimtransfer.manifest import Manifest, Region
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

_TABLES: Final = 32
PIECE: Final = np.dtype([("offset", "<i8"), ("length", "<i8"), ("plain", "<f8"), ("delta", "<f8")])
"""New content: where it lies in the image (one place of it), its length in bytes; its share of the frames, or of the
units of deltas, that are fetched for it."""


@dataclass(frozen=True, slots=True, eq=False)
class UpdateCost:
    """What a client fetches: ``pieces`` (dtype ``PIECE``, by offset, none over another), whose shares add up to
    ``plain_bytes`` and ``delta_bytes``; ``gap_bytes`` that lie between within the same requests; ``metadata_bytes``
    (head, manifest, tables, locations, index of the deltas). ``deltas``: there are some for this pair.
    """

    pieces: NDArray[np.void]
    plain_bytes: int
    delta_bytes: int
    gap_bytes: int
    metadata_bytes: int
    requests: int
    deltas: bool

    @property
    def fetched_bytes(self) -> int:
        """All of it: what crosses the wire."""
        return self.plain_bytes + self.delta_bytes + self.gap_bytes + self.metadata_bytes


class Curve:
    """Amounts spread evenly over ranges that do not overlap, to be asked how much lies in other ranges."""

    def __init__(self, starts: Numbers, lengths: Numbers, amounts: NDArray[np.float64]) -> None:
        """Take ranges in ascending order."""
        self._at = np.stack((starts, starts + lengths), axis=1).reshape(-1).astype(np.float64)
        ends = np.cumsum(amounts)
        self._sums = np.stack((ends - amounts, ends), axis=1).reshape(-1)

    def within(self, ranges: Ranges) -> NDArray[np.float64]:
        """Return the amount in each of some ranges (start, length)."""
        if not len(self._at):
            return np.zeros(len(ranges))
        starts = np.interp(ranges[:, 0], self._at, self._sums)
        ends = np.interp(ranges[:, 0] + ranges[:, 1], self._at, self._sums)
        found: NDArray[np.float64] = np.maximum(ends - starts, 0.0)
        return found


def update_cost(
    client: DirectoryStore, manifest: Manifest, old: VersionReader | None, *, spare: Ranges, watch: Watch
) -> UpdateCost:
    """Return what a client with the disk ``old``, and nothing else, fetches to have that of ``manifest``.

    Without ``old`` it is one that has nothing. ``client`` is the store from which the manifest was read, and nothing
    else: what crosses the wire is counted there. Content that lies in several places counts for one that is not in
    ``spare`` (merged ranges, free space), so what is counted there would not be fetched if that were blank.

    Raises:
        NotFound, FormatError, IntegrityError: the repository is damaged.
        Cancelled: as asked.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medv-diff-")))
        tables = stack.enter_context(TableFile(scratch / "tables.bin"))
        there = None
        if old is not None:
            _take_tables(DirectoryStore(client.path), old.manifest, tables, watch)
            content = PublishedImage(old)
            there = _There(content, InstalledImage(content, old.manifest, tables, scratch))
        return _Costing(client, manifest, there, tables, scratch, spare, watch).run()


class _There(NamedTuple):
    """What the client has: the old disk's content, which is read from the repository, and what is known of it."""

    content: PublishedImage
    image: InstalledImage


def _take_tables(store: DirectoryStore, manifest: Manifest, tables: TableFile, watch: Watch) -> None:
    """Keep all tables of the old version, as its client does."""
    remote = Remote(store, manifest, tables)
    used = [manifest.region(index) for index in np.flatnonzero(~manifest.zero).tolist()]
    for at in range(0, len(used), _TABLES):
        watch.check()
        remote.tables(used[at : at + _TABLES], None)


class _Costing:
    """One run of :func:`update_cost`."""

    def __init__(
        self,
        store: DirectoryStore,
        manifest: Manifest,
        there: _There | None,
        tables: TableFile,
        scratch: Path,
        spare: Ranges,
        watch: Watch,
    ) -> None:
        self._store, self._manifest, self._there, self._watch = store, manifest, there, watch
        self._remote = Remote(store, manifest, tables)
        self._scratch = scratch
        self._spare = Curve(spare[:, 0], spare[:, 1], spare[:, 1].astype(np.float64))
        self._pieces = [np.zeros(0, dtype=PIECE)]
        self._plain = self._delta = self._gaps = self._requests = 0

    def run(self) -> UpdateCost:
        manifest, there = self._manifest, self._there.image if self._there else None
        todo = self._changed_regions()
        deltas = open_deltas(self._remote, there) if todo and there is not None else None
        parent = None if there is None else (there.manifest.image, there.manifest.version)
        resolver = Resolver(
            self._remote,
            [there] if there is not None and there.manifest.kind == manifest.kind else [],
            WrittenIndex(self._scratch, kind=int(manifest.kind)),
            Nowhere(),
            from_parent=parent == (manifest.image, manifest.parent),
            deltas=deltas,
        )
        done, total = 0, int(manifest.lengths[todo].sum())
        for regions in windows(manifest, todo):
            self._watch.report("plan", done, total)
            done += sum(region.length for region in regions)
            plan = resolver.resolve(regions, self._standing)
            resolver.remember(plan)
            self._add(plan, plan.fetch, "plain")
            self._add(plan, plan.deltas.fetch, "delta")
        self._watch.report("plan", total, total)
        pieces = np.concatenate(self._pieces)
        stats = self._store.stats
        return UpdateCost(
            pieces[np.argsort(pieces["offset"], kind="stable")],
            self._plain,
            self._delta,
            self._gaps,
            stats.bytes,
            self._requests + stats.requests,
            deltas is not None,
        )

    def _changed_regions(self) -> list[int]:
        """Return the regions that are not there as they are, and not zero."""
        manifest, there = self._manifest, self._there.image if self._there else None
        if there is None:
            return np.flatnonzero(~manifest.zero).tolist()
        if manifest.image_digest() == there.manifest.image_digest():
            return []
        return np.flatnonzero(~(same_regions(manifest, there.manifest) | manifest.zero)).tolist()

    def _standing(self, window: Window, regions: Sequence[Region]) -> Mask:
        if self._there is None:
            return window.zero.copy()
        return standing_in(self._there.image, self._there.content, window, regions)

    def _add(self, plan: WindowPlan, fetch: FetchPlan, name: str) -> None:
        """Count a plan's requests, and share what its frames take out among the chunks that they are fetched for."""
        frames = int(fetch.frames["stored"].sum(dtype=np.int64))
        self._gaps += fetch.fetch_bytes - frames
        self._requests += len(fetch.ranges)
        if name == "plain":
            self._plain += frames
        else:
            self._delta += frames
        if not len(fetch.wanted):
            return
        wanted = fetch.wanted
        lengths = wanted["length"].astype(np.int64)
        in_frame = np.bincount(wanted["frame"], weights=lengths, minlength=len(fetch.frames))
        pieces = np.zeros(len(wanted), dtype=PIECE)
        pieces["offset"] = self._places(plan)[wanted["group"]]
        pieces["length"] = lengths
        pieces[name] = fetch.frames["stored"][wanted["frame"]] * (lengths / in_frame[wanted["frame"]])
        self._pieces.append(pieces)

    def _places(self, plan: WindowPlan) -> Numbers:
        """Return for each group of equal chunks one place in the image: the first of those that are spare the least."""
        groups, window = plan.groups, plan.window
        records = groups.order
        offsets, lengths = window.offsets[records], window.lengths[records].astype(np.int64)
        spared = self._spare.within(np.stack((offsets, lengths), axis=1))
        number = np.repeat(np.arange(len(groups), dtype=np.int64), groups.sizes)
        order = np.lexsort((records, spared, number))
        return offsets[order][groups.starts[:-1]]
