"""Sync: make a local file or device exactly one version of an image, with as few bytes from the repository as possible.

Read :func:`sync` and :meth:`_Sync.run` from top to bottom: they are the order of work. Whatever stops it - a kill, a
full disk, Ctrl-C, a broken network - the image is the old version or the new one, and the same call goes on where it
stopped.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final

import numpy as np

from trimtransfer.assembly.assembler import Assembler, Meter, copy_region
from trimtransfer.assembly.bundles import set_apart, with_bundles
from trimtransfer.assembly.choice import Choice
from trimtransfer.assembly.installed import WrittenIndex
from trimtransfer.assembly.offered import add_host_deltas, deltas_that_pay
from trimtransfer.assembly.opening import aim, at_work, opened
from trimtransfer.assembly.partial import PartialFile
from trimtransfer.assembly.payoff import Judge
from trimtransfer.assembly.rawfile import free_bytes
from trimtransfer.assembly.recovery import mark_image, record_installed
from trimtransfer.assembly.refusal import check_outputs
from trimtransfer.assembly.remote import Remote, conduct_of, learn_mirrors, offer_mirrors, open_store, remedy_for
from trimtransfer.assembly.report import Content, Made, Network, SyncReport
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
from trimtransfer.assembly.resolve import Resolver, Survey
from trimtransfer.assembly.side import Installed
from trimtransfer.assembly.sources import Sources, discard_unfinished
from trimtransfer.assembly.space import ROOM
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.together import FurtherDisk, check_room, network_of
from trimtransfer.assembly.verify import in_parallel, wrong_regions
from trimtransfer.assembly.ways import Direct, Old, Way, WriteOption
from trimtransfer.assembly.windows import bytes_to_write, comes_from_parent, untouched, windows
from trimtransfer.errors import IntegrityError, NoSpace
from trimtransfer.fetch.credentials import Credentials
from trimtransfer.fetch.manners import Manners
from trimtransfer.index.host import HostIndex
from trimtransfer.manifest import Manifest
from trimtransfer.nearstore import bundle_stats
from trimtransfer.store import Store
from trimtransfer.trust.options import NOBODY, Trusting
from trimtransfer.watch import Progress, Watch

_OUTCOME: Final = "stopped; what was done is kept, run the same command again to continue"


def sync(
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
    limit_rate: float | None = None,
    bandwidth: float | None = None,
    connections: int = 4,
    ca_cert: str | None = None,
    credentials: Credentials | None = None,
    manners: Manners | None = None,
    trusting: Trusting = NOBODY,
    side: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    confirm: Callable[[], None] | None = None,
) -> SyncReport:
    """Make ``output`` (default: ``IMAGE.img`` here) the newest version of ``image``, ``channel``'s, or ``version``.

    ``version`` is a name or a label. Further disks of a version become ``disk_outputs``, else what they became before,
    else ``IMAGE.disk1.img`` and so on; all are complete and verified before any takes its place, the first one last.
    ``url`` is a repository: http, https, a local directory, or a bundle. ``seeds`` are files, directory trees, devices
    or bundles that may hold parts of the image; bundles of the image in the folder of ``output`` that are named
    ``*.bundle`` count, too. ``write``: ``new`` file and rename, ``in-place``, or ``auto``. ``format``: ``raw``,
    ``qcow2``, ``vhd`` or ``vhdx`` (default: as the image is now; of a first one, as it was published). ``limit_rate``
    in bytes per second; ``manners``: other limits. ``side`` is another side directory than ``OUTPUT.medv``; ``cache``
    keeps indexes of scanned seeds. ``host_index`` is used as it is, or with ``refresh_host_index`` made or brought up
    to date first, as far as that pays: decided (:mod:`trimtransfer.assembly.payoff`) by ``bandwidth`` in bytes per
    second, else what was measured. ``credentials``: what servers are shown; ``trusting``: whose signatures count.
    ``confirm`` is called before content is fetched or written; what it raises ends the sync. Memory: 256 MiB at most.

    Raises:
        NotFound: no such image or version. Locked: another process syncs this output. Untrusted: bad signatures.
        TargetRefused: the output must not be written to. SourceChanged: somebody writes to it.
        FormatError, IntegrityError: the repository is damaged or changed. FetchError, AccessDenied: it cannot be read.
        LimitReached: that is more than the manners allow. Cancelled: ``cancel`` was set before the new image was
        complete, verified and about to take the old one's place; set later it changes nothing.
    """
    seeds, bundles = set_apart(seeds)
    local = seeds, host_index, refresh_host_index, write, side, cache, format, disk_outputs
    request = make_request(image, output, version, *local, channel=channel, trusting=trusting)
    watch = Watch(progress, cancel, _OUTCOME)
    meter = Meter("fetch", watch, paused=True)
    reading: dict[str, Any] = {"ca_cert": ca_cert, "credentials": credentials, "manners": manners}
    reading |= {"connections": connections, "limit_rate": limit_rate, "cancel": cancel, "on_bytes": meter.add}
    with at_work(request.side, watch):  # before anything is asked of the network
        store = open_store(url, cache=request.cache, **reading)
        store = with_bundles(store, bundles, image, request.side.output, connections=connections, on_bytes=meter.add)
        with closing(store):
            judge = Judge.of(bandwidth, limit_rate, manners, time.time())
            return _Sync(request, store, watch, meter, judge, confirm).run()


class _Sync:
    """One run of :func:`sync` for one disk, under the lock and with nothing left half-applied."""

    def __init__(
        self,
        request: Request,
        store: Store,
        watch: Watch,
        fetching: Meter,
        judge: Judge,
        confirm: Callable[[], None] | None,
        known: FurtherDisk | None = None,
        further: Sequence[FurtherDisk] = (),
    ) -> None:
        self._judge, self._confirm = judge, confirm
        self._request, self._store, self._side, self._watch = request, store, request.side, watch
        self._known, self._further, self._disks = known, further, tuple[SyncReport, ...]()
        self._before = network_of(store)
        for disk in (*(() if known is None else (known,)), *further):
            self._before -= disk.network  # was read for these before this run
        self._bundles_before = bundle_stats(store).bytes
        self._fetching, self._reusing = fetching, Meter("reuse", watch)
        self._started = time.monotonic()
        self._content = Content()
        self._resumed_bytes = self._rejected = self._changed = 0
        self._seed_seconds = 0.0
        self._format = request.written_format() or "raw"
        self._warnings: tuple[str, ...] = ()
        self._made, self._offered_by = Made(), ""
        self._back_from = ""

    def run(self) -> SyncReport:
        """Do everything, in this order."""
        side = self._side
        if self._known is None:
            self._request, self._warnings = vouched(self._store, self._request)
        installed = side.believed()
        if installed is not None and installed.disk_format != self._format:
            installed = None
        head = newest(self._store, self._request) if self._request.version is None else None
        self._offered_by = head.signed if head is not None and self._request.signed is None else ""
        offer_mirrors(self._store, head)
        left = self._request.disk_outputs or side.left_over(0)
        alone = head is not None and not head.disks and not left
        same = installed is not None and head is not None and head.image_digest == installed.image_digest
        if same and installed is not None and head is not None and alone and self._recorded(installed):
            return self._up_to_date(head.version, installed.image_digest, head.length)
        newer = newer_installed(self._store, self._request, head)
        if newer is not None and installed is not None:
            self._warnings += (
                f"{side.output} is {newer.version} already, newer than what the bundle has: "
                "name the version to go back",
            )
            content = Content(unchanged=newer.length)
            return self._finished(newer.version, installed.image_digest, newer.length, "nothing", content, 0)
        manifest = self._known.manifest if self._known else wanted_manifest(self._store, self._request, head)
        self._back_from = going_back_from(self._request, manifest)
        self._warnings += left_over_warnings(side, manifest)
        if not manifest.disk:
            requests = self._request.further(manifest)
            check_outputs([side.output, *(request.side.output for request in requests)])
            side.record_disks([request.side for request in requests])
            self._further = [FurtherDisk(request, self._store, self._watch) for request in requests]
        if installed is not None and manifest.image_digest() == installed.image_digest:
            self._make_further()
            several = manifest.disks or manifest.disk or left
            if not self._recorded(installed) or (several and manifest.digest() != installed.manifest_digest):
                self._record(manifest)  # all disks are of one version
            return self._up_to_date(manifest.version, installed.image_digest, manifest.length)
        self._format = self._request.written_format(manifest) or "raw"
        self._warnings += misnamed(side.output, self._format) if installed is None else ()
        aim(side, manifest)
        if head is None and not manifest.disk and self._request.signed is not None:
            offer_mirrors(self._store, self._request.signed.head())
        elif head is None and not manifest.disk:
            learn_mirrors(self._store, self._request.image)
        if self._confirm is not None:
            self._confirm()
            self._confirm = None
        with TableFile(side.tables) as tables:
            wrote = self._make(manifest, tables)
            tables.sync()
            self._record(manifest)
            discard_unfinished(side)
            tables.compact(digest.tobytes() for digest in manifest.rows["table"])
        return self._report(manifest, wrote)

    def _recorded(self, installed: Installed) -> bool:
        """Tell whether it is recorded who vouches for the image."""
        signed = self._request.signed
        return signed is None or installed.repository == signed.repository

    def _record(self, manifest: Manifest) -> None:
        signed = self._request.signed
        repository = signed.repository if signed is not None else ""
        record_installed(self._side, manifest, disk_format=self._format, repository=repository)

    def _make(self, manifest: Manifest, tables: TableFile) -> str:
        """Make the output this version, complete and verified; return how it was written."""
        with opened(self._request, self._store, manifest, tables, self._watch) as disk:
            if disk.choice is None:
                self._content = untouched(manifest, np.ones(manifest.region_count, dtype=np.bool_))
                self._watch.check()
                self._make_further()
                mark_image(self._side.output, manifest)
                return "nothing"
            choice, old = disk.choice, disk.old
            self._content = untouched(manifest, choice.in_place)
            check_room(disk, self._further, self._watch)
            todo = self._copy_regions(manifest, choice, old)
            self._changed = len(todo)
            if todo:
                with Sources(self._side, manifest, tables, self._request.cache, self._watch) as sources:
                    self._fill(disk.remote, choice, old, todo, sources)
            else:
                choice.way.sync()
            self._make_further()
            choice.way.commit(self._watch)
            return choice.way.wrote

    def _make_further(self) -> None:
        """Make the disks that follow this one: they are ready before it takes its place, and take theirs first."""
        for disk in self._further[:1]:
            with at_work(disk.request.side, self._watch):
                run = _Sync(
                    disk.request, self._store, self._watch, self._fetching, self._judge.again(), self._confirm,
                    disk, self._further[1:],
                )  # fmt: skip
                self._disks = run.run(), *run._disks

    def _copy_regions(self, manifest: Manifest, choice: Choice, old: Old | None) -> list[int]:
        """Copy regions that stay as they are into a new file, hashing them; return all that are still to be done."""
        todo = np.flatnonzero(~(choice.in_place | choice.copyable)).tolist()
        target = choice.way.target
        if old is None or not choice.copyable.any() or not isinstance(target, PartialFile):
            return todo
        numbers = np.flatnonzero(choice.copyable)
        done = target.done.covers(manifest.starts[numbers], manifest.lengths[numbers])
        self._resumed_bytes += int(manifest.lengths[numbers[done]].sum())
        regions = [manifest.region(index) for index in numbers[~done].tolist()]
        self._reusing.expect(sum(region.length for region in regions))
        source = old.source
        for region, right in in_parallel(lambda region: copy_region(source, target, region), regions):
            self._watch.report("reuse", self._reusing.done, self._reusing.total)
            self._reusing.add(region.length)
            if not right:
                choice.copyable[region.index] = False
        self._content += untouched(manifest, choice.copyable)
        return np.flatnonzero(~(choice.in_place | choice.copyable)).tolist()

    def _fill(self, remote: Remote, choice: Choice, old: Old | None, todo: list[int], sources: Sources) -> None:
        """Write all regions of ``todo`` and verify them; what is wrong then is looked at record by record, once."""
        started = time.monotonic()
        use_old = not isinstance(choice.way, Direct)
        host, refresh = self._request.host_index, self._request.refresh_host_index
        deltas = deltas_that_pay(remote, old, self._judge) if use_old else None
        seeds = sources.open(old if use_old else None, self._request.seeds, None if refresh else host)
        manifest = remote.manifest
        written = WrittenIndex(self._side.path, kind=int(manifest.kind))
        from_parent = use_old and comes_from_parent(manifest, old)
        target = choice.way.target
        resolver = Resolver(
            remote, seeds, written, target, from_parent=from_parent, deltas=deltas, resumed=target.done.size > 0
        )
        done = target.done.covers
        if host is not None and refresh:
            refreshed = sources.add_host(
                host, resolver, windows(manifest, todo), done, self._judge.line(remote.measured)
            )
            self._judge.note(refreshed.decision)
            self._warnings += refreshed.warnings
        sources.add_bundles(resolver)
        self._warnings += sources.search_anywhere(resolver, windows(manifest, todo), done, self._judge)
        add_host_deltas(resolver, old, self._judge)
        self._seed_seconds = time.monotonic() - started
        self._content += self._write(resolver, choice.way, todo, choice.way.standing)
        wrong = self._find_wrong(manifest, choice.way, todo)
        if wrong:
            self._write(resolver, choice.way, wrong, choice.way.looked_at)
            wrong = self._find_wrong(manifest, choice.way, wrong)
        if wrong:
            region = manifest.region(wrong[0])
            raise IntegrityError(
                f"{self._side.output}, byte {region.start}", region.content, bytes(32), remedy_for(self._store)
            )

    def _write(self, resolver: Resolver, way: Way, numbers: Sequence[int], survey: Survey) -> Content:
        """Write regions, some at a time; return where their content came from."""
        content = Content()
        assembler = Assembler(
            way.target,
            self._store,
            resolver,
            reuse=self._reusing,
            fetching=self._fetching,
            watch=self._watch,
        )
        with assembler:
            for regions in windows(resolver.remote.manifest, numbers):
                plan = resolver.resolve(regions, survey)
                if not isinstance(way, Direct):
                    self._check_space(0 if way.allocated else bytes_to_write(plan))
                assembler.carry_out(plan)
                resolver.remember(plan)
                content += plan.content(resolver.seeds)
                resumed = way.target.done.covers(plan.window.offsets, plan.window.lengths) & ~plan.window.zero
                self._resumed_bytes += int(plan.window.lengths[resumed].sum(dtype=np.int64))
        self._rejected += assembler.rejected
        self._made += assembler.made
        return content

    def _find_wrong(self, manifest: Manifest, way: Way, numbers: list[int]) -> list[int]:
        """Bring everything to the disk, read the regions back, and return those whose content is wrong."""
        way.sync()
        with way.reader() as source:
            return wrong_regions(source, manifest, numbers, self._watch)

    def _check_space(self, needed: int) -> None:
        free = free_bytes(self._side.path)
        if needed + ROOM // 2 > free:  # the other half is for what small files took since room was looked for
            raise NoSpace(str(self._side.output), needed + ROOM, free)

    def _up_to_date(self, version: str, digest: bytes, length: int) -> SyncReport:
        discard_unfinished(self._side)
        return self._finished(version, digest, length, "nothing", Content(unchanged=length), 0)

    def _report(self, manifest: Manifest, wrote: str) -> SyncReport:
        regions, digest = manifest.region_count, manifest.image_digest()
        return self._finished(manifest.version, digest, manifest.length, wrote, self._content, regions)

    def _finished(
        self, version: str, digest: bytes, length: int, wrote: str, content: Content, regions: int
    ) -> SyncReport:
        stats, elsewhere = self._store.stats, (self._before, *(disk.network for disk in self._disks))
        network = Network(stats.bytes, stats.requests, stats.retries)
        for other in elsewhere:
            network -= other
        bundled = self._bundles_before + sum(disk.bundle_bytes for disk in self._disks)
        return SyncReport(
            image=self._request.image,
            version=version,
            digest=digest,
            output=str(self._side.output),
            length=length,
            format=self._format,
            wrote=wrote,
            content=content,
            network=network,
            regions=regions,
            changed_regions=self._changed,
            resumed_bytes=self._resumed_bytes,
            rejected_chunks=self._rejected,
            seconds=time.monotonic() - self._started,
            seed_seconds=self._seed_seconds,
            warnings=self._warnings,
            made=self._made,
            bundle_bytes=bundle_stats(self._store).bytes - bundled,
            decisions=self._judge.decisions,
            conduct=conduct_of(self._store),
            disks=self._disks,
            channel=self._request.channel or "",
            back_from=self._back_from,
            signed_by=self._request.signed.repository if self._request.signed is not None else "",
            offered_by=self._offered_by,
        )
