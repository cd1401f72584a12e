"""Plan: what a sync would do and cost, without writing anything or fetching content.

It reads what a sync would read first - head, manifest, and the tables and locations of the regions that differ - and
makes the same plans from them.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from trimtransfer.assembly.assembler import Meter
from trimtransfer.assembly.bundles import saved, set_apart, with_bundles
from trimtransfer.assembly.choice import expected_share, prefers_new, right_in_old
from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.holes import keeps_holes
from trimtransfer.assembly.installed import WrittenIndex
from trimtransfer.assembly.journal import load_journal
from trimtransfer.assembly.offered import add_host_deltas, deltas_that_pay
from trimtransfer.assembly.payoff import ASSUMED_BANDWIDTH, Judge
from trimtransfer.assembly.plan import Mask, Window
from trimtransfer.assembly.rawfile import RawFile
from trimtransfer.assembly.redo import read_header, read_records
from trimtransfer.assembly.remote import Remote, learn_mirrors, open_store
from trimtransfer.assembly.report import Content, Made, Network, PlanReport, estimate_seconds
from trimtransfer.assembly.request import (
    Request,
    going_back_from,
    left_over_warnings,
    make_request,
    misnamed,
    newer_installed,
    newest,
    vouched,
    wanted_manifest,
)
from trimtransfer.assembly.resolve import Nowhere, Resolver, Survey, WindowPlan
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.sources import Sources
from trimtransfer.assembly.space import Claim, Needs, copied, shortage
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.verify import right_records
from trimtransfer.assembly.ways import Old, WriteOption, open_old, standing
from trimtransfer.assembly.windows import comes_from_parent, share_that_stays, untouched, windows
from trimtransfer.fetch.credentials import Credentials
from trimtransfer.fetch.manners import Manners, Pace
from trimtransfer.index.host import HostIndex
from trimtransfer.manifest import Manifest, Region
from trimtransfer.nearstore import bundle_stats
from trimtransfer.store import Store
from trimtransfer.trust.options import NOBODY, Trusting
from trimtransfer.watch import Progress, Watch

_LEAST_MEASURED = 1 << 20
"""Bytes of tables and locations from which on their transfer tells the bandwidth."""


def plan(
    url: str | os.PathLike[str],
    image: str,
    *,
    output: str | os.PathLike[str] | None = None,
    disk_outputs: Sequence[str | os.PathLike[str]] = (),
    version: str | None = None,
    channel: str | None = None,
    seeds: Sequence[str | os.PathLike[str]] = (),
    host_index: HostIndex | None = None,
    refresh_host_index: bool = False,
    write: WriteOption = "auto",
    format: str | None = None,
    bandwidth: float | None = None,
    limit_rate: float | None = None,
    connections: int = 4,
    ca_cert: str | None = None,
    credentials: Credentials | None = None,
    manners: Manners | None = None,
    trusting: Trusting = NOBODY,
    side: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> PlanReport:
    """Return what ``sync`` with the same arguments would do, with its bytes, requests and time.

    ``bandwidth`` in bytes per second is used for the estimate; without it, what reading the metadata measured is, where
    that was enough, else 100 Mbit/s; it heeds ``limit_rate`` and the schedule of ``manners``, for which planning itself
    does not wait. These and ``manners.metered`` count where it is decided whether local reuse pays. Raises what
    ``sync`` raises while it reads and scans.
    """
    seeds, bundles = set_apart(seeds)
    local = seeds, host_index, refresh_host_index, write, side, cache, format, disk_outputs
    request = make_request(image, output, version, *local, channel=channel, trusting=trusting)
    watch = Watch(progress, cancel, "stopped")
    meter = Meter("fetch", watch, paused=True)
    store = open_store(
        url, connections=connections, limit_rate=None, ca_cert=ca_cert, credentials=credentials, cancel=cancel,
        on_bytes=meter.add,
    )  # fmt: skip
    store = with_bundles(store, bundles, image, request.side.output, connections=connections, on_bytes=meter.add)
    with closing(store):
        pace = Pace(limit_rate, manners.schedule if manners is not None else None)
        judge = Judge.of(bandwidth, limit_rate, manners, time.time())
        return _Preview(request, store, watch, bandwidth, connections, judge, pace).run()


class _Preview:
    """One run of :func:`plan`."""

    def __init__(
        self,
        request: Request,
        store: Store,
        watch: Watch,
        bandwidth: float | None,
        connections: int,
        judge: Judge,
        pace: Pace,
    ) -> None:
        self._judge, self._pace = judge, pace
        self._request, self._store, self._watch = request, store, watch
        self._bandwidth, self._connections = bandwidth, connections
        self._started = time.monotonic()
        self._format = request.written_format() or "raw"
        self._content = Content()
        self._bytes = self._requests = self._changed = self._bundle_bytes = 0
        self._read_seconds = 0.0
        self._needs, self._done = Needs(), Extents.none()
        self._claims: list[Claim] = []
        self._disks: tuple[PlanReport, ...] = ()
        self._warnings: tuple[str, ...] = ()
        self._made, self._offered_by = Made(), ""
        self._before = Network(store.stats.bytes, store.stats.requests, store.stats.retries)
        self._bundles_before = bundle_stats(store).bytes

    def run(self) -> PlanReport:
        """Read, resolve and add up, for all disks of the version."""
        report = self._one()
        warnings = (*report.warnings, *self._room())
        return replace(report, warnings=warnings, disks=self._disks)

    def _one(self) -> PlanReport:
        """Do so for one disk, and for those that follow; warnings of room apart."""
        side = self._request.side
        if self._request.manifest_digest is None:
            self._request, self._warnings = vouched(self._store, self._request)
        installed = side.believed()
        head = newest(self._store, self._request) if self._request.version is None else None
        self._offered_by = head.signed if head is not None and self._request.signed is None else ""
        round_trip = time.monotonic() - self._started
        manifest = newer_installed(self._store, self._request, head)
        manifest = manifest or wanted_manifest(self._store, self._request, head)
        round_trip = min(round_trip, time.monotonic() - self._started - round_trip) if head else round_trip
        further = self._request.further(manifest)
        self._warnings += left_over_warnings(side, manifest)
        self._format = self._request.written_format(manifest) or "raw"
        would_write = "nothing"
        self._warnings += misnamed(side.output, self._format) if installed is None else ()
        same_format = installed is not None and installed.disk_format == self._format
        if installed is not None and same_format and manifest.image_digest() == installed.image_digest:
            self._content = Content(unchanged=manifest.length)
        else:
            with ExitStack() as stack:
                would_write = self._resolve(manifest, stack)
        self._claims = [self._claim(manifest, would_write)]
        report = self._report(manifest, would_write, round_trip)
        self._disks = tuple(self._plan_disk(request) for request in further)
        return report

    def _claim(self, manifest: Manifest, would_write: str) -> Claim:
        """Return what the disk needs; a file that cannot have holes all of its length."""
        side, needs = self._request.side, self._needs
        if would_write == "new" and not keeps_holes(side.output.absolute().parent, probe=False):
            there = side.partial.stat().st_size if side.partial.exists() else 0
            needs = Needs(max(0, manifest.length - there) + needs.written // 64)
        return Claim(side, needs, would_write == "in-place")

    def _plan_disk(self, request: Request) -> PlanReport:
        """Plan a further disk of the version."""
        judge, pace = self._judge.again(), self._pace
        disk = _Preview(request, self._store, self._watch, self._bandwidth, self._connections, judge, pace)
        report = disk._one()
        self._claims += disk._claims
        return report

    def _resolve(self, manifest: Manifest, stack: ExitStack) -> str:
        side = self._request.side
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medv-plan-")))
        kept = stack.enter_context(TableFile(side.tables, writable=False)) if side.tables.exists() else None
        tables = stack.enter_context(TableFile(scratch / "tables.bin", fallback=kept))
        self._done = _written_before(side, manifest.digest())
        old = open_old(side, tables)
        if old is not None:
            stack.callback(old.source.close)
        right = manifest.zero.copy() if old is None else right_in_old(manifest, old, self._watch)
        todo = np.flatnonzero(~(right | manifest.zero)).tolist()
        self._content = untouched(manifest, right | manifest.zero)
        self._changed = len(todo)
        remote = Remote(self._store, manifest, tables, self._request.signed)
        if self._request.version is not None and not manifest.disk and self._request.signed is None:
            learn_mirrors(self._store, self._request.image)
        began = time.monotonic()
        would_write = self._would_write(remote, old, right)
        self._read_seconds = time.monotonic() - began
        if todo:
            view = SideDirectory(side.output, scratch)
            sources = stack.enter_context(Sources(view, manifest, tables, self._request.cache, self._watch))
            self._plan_windows(remote, old, todo, sources, scratch, would_write)
            if would_write == "new":
                self._needs += copied(manifest, right & ~manifest.zero, old, self._done)
        elif old is not None and right.all() and old.source.size == manifest.length:
            if old.disk_format == self._format:
                return "nothing"
            self._needs += copied(manifest, ~manifest.zero, old, self._done)
        return would_write

    def _plan_windows(
        self, remote: Remote, old: Old | None, todo: list[int], sources: Sources, scratch: Path, would_write: str
    ) -> None:
        host, refresh = self._request.host_index, self._request.refresh_host_index
        deltas = deltas_that_pay(remote, old, self._judge)
        seeds = sources.open(old, self._request.seeds, None if refresh else host)
        manifest = remote.manifest
        written = WrittenIndex(scratch, kind=int(manifest.kind))
        from_parent = comes_from_parent(manifest, old)
        resolver = Resolver(
            remote, seeds, written, Nowhere(), from_parent=from_parent, deltas=deltas, resumed=self._done.size > 0
        )
        if host is not None and refresh:
            line = self._judge.line(remote.measured)
            refreshed = sources.add_host(host, resolver, windows(manifest, todo), self._done.covers, line)
            self._judge.note(refreshed.decision)
            self._warnings += refreshed.warnings
        sources.add_bundles(resolver)
        done_before = self._done.covers
        self._warnings += sources.search_anywhere(resolver, windows(manifest, todo), done_before, self._judge)
        add_host_deltas(resolver, old, self._judge)
        self._read_seconds += sources.read_seconds
        survey = _survey(self._done, old)
        done, total = 0, int(manifest.lengths[todo].sum())
        for regions in windows(manifest, todo):
            self._watch.report("plan", done, total)
            done += sum(region.length for region in regions)
            began = time.monotonic()
            window = resolver.resolve(regions, survey)
            self._read_seconds += time.monotonic() - began
            resolver.remember(window)
            self._content += window.content(resolver.seeds)
            self._needs += self._needs_of(window, old, would_write)
            made = window.deltas.fetch
            solid = len(made.frames) * (resolver.deltas is not None and resolver.deltas.solid)
            self._made += Made(len(made.frames), int(made.wanted["length"].sum(dtype=np.int64)), solid=solid)
            for fetch in (window.fetch, made):
                near, whole = saved(self._store, fetch)
                self._bundle_bytes += near
                self._bytes += fetch.fetch_bytes - near
                self._requests += len(fetch.ranges) - whole
        self._watch.report("plan", total, total)

    def _needs_of(self, plan: WindowPlan, old: Old | None, would_write: str) -> Needs:
        """Return the room that a window takes; a new file holds what stays, too (where blocks cannot be shared)."""
        window = plan.window
        if would_write == "new" or old is None:
            return Needs.of(window, self._done.covers(window.offsets, window.lengths))
        directly = old.source.is_device and old.manifest is None
        return Needs() if directly else Needs.of(window, plan.placed, old.source)

    def _room(self) -> tuple[str, ...]:
        """Return the warning that all disks together will not fit, if so."""
        claims = [one for one in self._claims if one.needs.written]
        error = shortage(claims)
        if error is None:
            return ()
        shared = not all(one.in_place for one in claims)
        less = " (less where the file system can share unchanged blocks)" if shared else ""
        return (f"{error}{less}",)

    def _would_write(self, remote: Remote, old: Old | None, right: Mask) -> str:
        if old is None or self._format != "raw" or old.disk_format != "raw":
            return "new"
        if old.source.is_device or self._request.write == "in-place":
            return "in-place"
        if not keeps_holes(self._request.side.output.absolute().parent, probe=False):
            return "new"
        share = expected_share(remote.manifest, right, lambda mask: share_that_stays(remote, old, mask))
        return "new" if self._request.write == "new" or prefers_new(share) else "in-place"

    def _report(self, manifest: Manifest, would_write: str, round_trip: float) -> PlanReport:
        counted = self._store.stats
        stats = Network(counted.bytes, counted.requests, counted.retries) - self._before
        bandwidth, known = self._bandwidth or ASSUMED_BANDWIDTH, "given" if self._bandwidth else "assumed"
        if self._bandwidth is None and stats.bytes >= _LEAST_MEASURED and self._read_seconds > 0:
            bandwidth, known = stats.bytes / self._read_seconds, "measured"
        size, requests = self._bytes + stats.bytes, self._requests + stats.requests
        latency = estimate_seconds(
            size=0, requests=requests, round_trip=round_trip, bandwidth=bandwidth, connections=self._connections
        )
        transfer = self._pace.seconds(size, bandwidth, now=time.time())
        estimate = None if transfer is None else transfer + latency
        return PlanReport(
            image=manifest.image,
            version=manifest.version,
            digest=manifest.image_digest(),
            output=str(self._request.side.output),
            length=manifest.length,
            format=self._format,
            would_write=would_write,
            content=self._content,
            network=stats,
            fetch_bytes=size,
            fetch_requests=requests,
            regions=manifest.region_count,
            changed_regions=self._changed,
            round_trip_seconds=round_trip,
            bandwidth_bytes_per_second=bandwidth,
            bandwidth_is=known,
            estimate_seconds=estimate,
            needed_bytes=self._needs.written + self._needs.grown,
            warnings=self._warnings,
            seconds=time.monotonic() - self._started,
            made=self._made,
            bundle_bytes=self._bundle_bytes + bundle_stats(self._store).bytes - self._bundles_before,
            decisions=self._judge.decisions,
            rate=self._pace.rate(time.time()),
            channel=self._request.channel or "",
            back_from=going_back_from(self._request, manifest),
            signed_by=self._request.signed.repository if self._request.signed is not None else "",
            offered_by=self._offered_by,
        )


def _survey(done: Extents, old: Old | None) -> Survey:
    """Return what tells which records are in place: in the old image, or ``done`` by an interrupted run."""

    def look(window: Window, regions: Sequence[Region]) -> Mask:
        mask = done.covers(window.offsets, window.lengths)
        if old is None or old.believed:
            return mask | standing(window, regions, old)
        return mask | right_records(old.source, window, regions)

    return look


def _written_before(side: SideDirectory, target: bytes) -> Extents:
    """Return the extents that an interrupted run has written of this target."""
    loaded = load_journal(side.journal) if side.partial.exists() else None
    if loaded is not None and loaded[0].target == target:
        return loaded[1]
    if not side.redo.exists():
        return Extents.none()
    with RawFile(side.redo, writable=False) as file:
        header = read_header(file)
        if header is None or header[0].target != target:
            return Extents.none()
        found = [(record.offset, record.length) for record in read_records(file, verify=False)]
    columns = np.array(found, dtype=np.int64).reshape(-1, 2)
    return Extents.of(columns[:, 0], columns[:, 1])
