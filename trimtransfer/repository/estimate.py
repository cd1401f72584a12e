"""An estimate of what a publish would store, and of what clients would fetch, before anything is published.

The image is surveyed and compared with the repository exactly as a publish does; only compression is sampled. Nothing
is written but temporary files, elsewhere: a repository that must not be written to will do.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from trimtransfer.chunk import Kind
from trimtransfer.disk.source import open_disk
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, IntegrityError, NotFound
from trimtransfer.filesystem.contents import CLEAN
from trimtransfer.filesystem.ranges import Ranges, joined, merged
from trimtransfer.filesystem.volumes import find_file_systems
from trimtransfer.geometry import recognise
from trimtransfer.head import MAX_HEAD
from trimtransfer.image import Source
from trimtransfer.manifest import Manifest
from trimtransfer.names import MAX_DISKS, check_name, disk_name, further_disk_of
from trimtransfer.repository.again import Deduped, choose_again
from trimtransfer.repository.dedupe import Packs, find_known
from trimtransfer.repository.deltaestimate import DeltaEstimate, Draft, estimate_deltas
from trimtransfer.repository.estimatereport import EstimateReport
from trimtransfer.repository.hazards import compare, dropped_disks, examine, shared_content
from trimtransfer.repository.inventory import IN_PARENT, NOWHERE, Inventory
from trimtransfer.repository.metadata import MetadataWriter, Names
from trimtransfer.repository.packing import FIRST_FRAMES, UPDATE_FRAMES, Framer
from trimtransfer.repository.publication import DEFAULT_LEVEL
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader, further_disks, read_head, read_manifest
from trimtransfer.repository.rehearsal import Rehearsal, Rehearsed
from trimtransfer.repository.survey import Survey, survey
from trimtransfer.repository.trim import TrimmedVolume, trim_image
from trimtransfer.store import DirectoryStore
from trimtransfer.table import Table
from trimtransfer.watch import Progress, Watch

_LOG: Final = logging.getLogger("trimtransfer.repository")
_VERSION: Final = "estimate"
"""Name of a version that will never be; its length is a usual one."""


def estimate(
    repository: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    image: str,
    disks: Sequence[str | os.PathLike[str]] = (),
    parent: str | None = None,
    like: Sequence[str] = (),
    kind: Kind | None = None,
    format: str | None = None,
    level: int = DEFAULT_LEVEL,
    deltas: bool = True,
    trim: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> EstimateReport:
    """Return what ``publish`` with the same arguments would store of ``path``, and what a client would then fetch;
    ``disks`` are further disks of the machine. What two of these have in common counts for each.

    ``repository`` may not exist yet. Temporary files go to the system's folder for them: some 60 bytes for each chunk.

    Raises:
        FormatError: a name that is none; a damaged repository or disk image.
        SourceRefused: a disk image that cannot be read with certainty.
        NotFound: no such parent or ``like`` image.
        SourceChanged: the file changed meanwhile.
        NoSpace: no room for temporary files.
        Cancelled: as asked.
    """
    if len(disks) >= MAX_DISKS:
        raise ValueError(f"{1 + len(disks)} disks: a version has at most {MAX_DISKS}")
    for name in (image, disk_name(image, len(disks)), *like):
        check_name("image", name)
    watch = Watch(progress, cancel, "stopped")
    store = DirectoryStore(repository)
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="medv-estimate-")))
        opened.enter_context(space_errors(scratch))
        sources = [opened.enter_context(open_disk(one, format=format)) for one in (path, *disks)]
        base = _parent(store, image, parent)
        others = tuple(VersionReader.open(store, name) for name in like)
        bases = [base, *(further_disks(store, base.manifest) if base is not None else ())]
        reports: list[EstimateReport] = []
        for number, source in enumerate(sources):
            started = time.monotonic()
            with ExitStack() as stack:
                content: Source = source
                trimmed: tuple[TrimmedVolume, ...] = ()
                if trim:
                    content, trimmed = trim_image(source, watch)
                before = bases[number] if number < len(bases) else None
                name, count = disk_name(image, number), workers or len(os.sched_getaffinity(0))
                run = _Estimation(store, content, name, before, others, scratch, level, count, watch, stack)
                reports.append(run.run(kind, source.format, trimmed, deltas=deltas, started=started))
        dropped = dropped_disks(base.manifest, len(sources)) if base is not None else ()
    return replace(reports[0], disks=tuple(reports[1:]), advice=(*reports[0].advice, *dropped))


def _parent(store: DirectoryStore, image: str, version: str | None) -> VersionReader | None:
    """Return the version to compare with: the one named, else the newest; None for an image's first version."""
    try:
        head = read_head(store, image)
    except NotFound:
        if version is None:
            return None
        raise NotFound(f"version {version} of image {image}", store.url) from None
    return VersionReader(store, read_manifest(store, image, version or head.version, head=head))


class _Estimation:
    """One run of :func:`estimate`."""

    def __init__(
        self,
        store: DirectoryStore,
        source: Source,
        image: str,
        parent: VersionReader | None,
        like: tuple[VersionReader, ...],
        scratch: Path,
        level: int,
        workers: int,
        watch: Watch,
        stack: ExitStack,
    ) -> None:
        self._store, self._source, self._image, self._parent, self._like = store, source, image, parent, like
        self._scratch, self._level, self._workers = scratch, level, workers
        self._watch, self._stack = watch, stack
        self._packs = Packs()

    def run(
        self, kind: Kind | None, format: str, trimmed: tuple[TrimmedVolume, ...], *, deltas: bool, started: float
    ) -> EstimateReport:
        source, parent = self._source, self._parent
        geometry = recognise(source.read, source.size, kind=kind)
        advice = examine(source, geometry, self._watch)
        manifest = parent.manifest if parent else None
        found = survey(
            source,
            kind=geometry.kind,
            segments=geometry.segments,
            parent=manifest,
            directory=self._scratch,
            workers=self._workers,
            flat=False,
            watch=self._watch,
        )
        self._stack.callback(found.close)
        inventory = self._stack.enter_context(closing(Inventory(lambda: self._tables(found), self._scratch)))
        find_known(inventory, self._packs, parent, self._like, self._watch)
        if parent is not None:
            there = PublishedImage(parent)
            advice += compare(source, there.read, there.size, shared_content(inventory))
        deduped = choose_again(inventory, self._packs, self._store, found.same, self._scratch)
        passed = time.monotonic() - started
        known, foreign = self._known_frames(inventory)
        sampled = self._deltas(inventory, found, deduped) if deltas and parent is not None else None
        rehearsed = self._rehearse(found, inventory, deduped)
        source.check_unchanged()
        made, metadata = self._metadata(found, inventory, deduped, format)
        fetched = rehearsed.new + foreign + _client_metadata(made, found, updated=parent is not None)
        saved = 0 if sampled is None else round(sampled.saved_share * rehearsed.new)
        return EstimateReport(
            image=self._image,
            parent=manifest.version if manifest else "",
            length=source.size,
            format=format,
            kind=geometry.kind.name.lower(),
            recognised=geometry.name,
            zero_bytes=source.size - inventory.occurrence_bytes,
            new_bytes=deduped.new_bytes,
            known_bytes=deduped.known_bytes,
            repeated_bytes=inventory.occurrence_bytes - deduped.new_bytes - deduped.known_bytes,
            again_bytes=deduped.again_bytes,
            stored_bytes=rehearsed.stored,
            error_bytes=rehearsed.error,
            sampled_bytes=rehearsed.sampled,
            packs=rehearsed.packs,
            metadata_bytes=metadata,
            fetched_bytes=fetched,
            with_deltas_bytes=fetched - saved,
            download_bytes=rehearsed.new + rehearsed.again + known + _client_metadata(made, found, updated=False),
            trim_content_bytes=rehearsed.spare_content,
            trim_bytes=rehearsed.spare,
            publish_seconds=passed + rehearsed.seconds / self._workers + (sampled.seconds if sampled else 0.0),
            seconds=round(time.monotonic() - started, 3),
            deltas=sampled,
            trimmed=trimmed,
            advice=advice,
        )

    def _table(self, found: Survey, index: int) -> Table:
        return self._parent.table(index) if found.same[index] and self._parent is not None else found.table(index)

    def _tables(self, found: Survey) -> Iterator[tuple[int, Table]]:
        for index in np.flatnonzero(~found.zero).tolist():
            yield index, self._table(found, index)
            self._watch.report("compare", int(found.starts[index] + found.lengths[index]), self._source.size)

    def _known_frames(self, inventory: Inventory) -> tuple[int, int]:
        """Return the stored bytes of known frames that the version uses; and of those that the parent does not."""
        rows = inventory.frames.array()
        used, foreign = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.bool_)
        for part in inventory.slices():
            placed = inventory.pack[part] != NOWHERE
            used[inventory.frame[part][placed]] = True
            foreign[inventory.frame[part][placed & ((inventory.marks[part] & IN_PARENT) == 0)]] = True
        sums = []
        for chosen in (used, foreign):
            frames = np.unique(rows[chosen][["pack", "offset", "stored"]])  # several regions may name the same
            sums.append(int(frames["stored"].sum(dtype=np.int64)))
        return sums[0], sums[1]

    def _missing(self, found: Survey, inventory: Inventory) -> Iterator[tuple[int, int, Table]]:
        for index in inventory.missing_regions().tolist():
            yield index, int(found.starts[index]), self._table(found, index)

    def _deltas(self, inventory: Inventory, found: Survey, deduped: Deduped) -> DeltaEstimate | None:
        assert self._parent is not None  # there is nothing to make deltas from else
        if self._parent.manifest.kind != found.kind:
            return None
        try:
            draft = Draft(self._source, found.starts, found.zero, lambda index: self._table(found, index))
            return estimate_deltas(
                draft,
                self._parent,
                inventory,
                inventory.missing_regions().tolist(),
                self._scratch,
                new_bytes=deduped.new_bytes,
                level=self._level,
                workers=self._workers,
                watch=self._watch,
            )
        except (FormatError, IntegrityError, NotFound) as error:  # a publish makes none then, either
            _LOG.warning("deltas are not estimated: %s", error)
            return None

    def _rehearse(self, found: Survey, inventory: Inventory, deduped: Deduped) -> Rehearsed:
        framer = Framer(self._source, inventory, UPDATE_FRAMES if self._parent else FIRST_FRAMES)
        free = _free_space(self._source)
        options = {"level": self._level, "workers": self._workers}
        rehearsal = Rehearsal(framer, inventory, self._packs, free, self._scratch, **options)
        return rehearsal.run(self._missing(found, inventory), self._watch, deduped.new_bytes + deduped.again_bytes)

    def _metadata(self, found: Survey, inventory: Inventory, deduped: Deduped, format: str) -> tuple[Manifest, int]:
        """Make tables and locations in a place of their own; return the manifest, and the length of all."""
        parent = self._parent.manifest if self._parent else None
        sequence = parent.sequence + 1 if parent else 1
        names = Names(self._image, _VERSION, parent.version if parent else "", sequence, int(time.time()), format)
        store = DirectoryStore(self._scratch / "r")
        with MetadataWriter(store, names, found, self._parent, self._scratch) as writer:
            for index in range(len(found)):
                if found.same[index] and not deduped.again_chunks:
                    writer.add_unchanged(index)
                elif not found.zero[index]:
                    writer.add(index, self._table(found, index), inventory, self._packs)
            manifest = writer.finish()
            return manifest, writer.stored_bytes + len(manifest.to_bytes()) + _head_size(self._image)


def _client_metadata(manifest: Manifest, found: Survey, *, updated: bool) -> int:
    """Return what a client reads of a version's metadata: one with the parent, or one with nothing."""
    rows = manifest.rows
    size = len(manifest.to_bytes()) + _head_size(manifest.image)
    if not updated:
        return size + sum(int(rows[name]["length"].sum()) for name in ("full", "fresh", "rest"))
    rows = rows[~found.same[~found.zero]]
    by_difference = rows["difference"]["length"] > 0
    tables = np.where(by_difference, rows["difference"]["length"], rows["full"]["length"])
    return size + int(tables.sum()) + int(rows["fresh"]["length"].sum())


def _head_size(image: str) -> int:
    """Return the usual length of an image's head; further disks have none."""
    return MAX_HEAD // 2 if further_disk_of(image) is None else 0


def _free_space(source: Source) -> Ranges:
    """Return what the clean file systems of an image mark free; one of them in memory at a time."""
    found = find_file_systems(source.read, source.size)
    free: list[Ranges] = []
    while found:
        file_system = found.pop(0).file_system
        if file_system is not None and file_system.state == CLEAN:
            free.append(file_system.free())
    return merged(joined(free))
