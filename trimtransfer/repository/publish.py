"""Publishing: make a file the next version of an image in a repository, all or nothing.

Two passes over the file: the first finds what it consists of, the second stores what the repository lacks. What was
written is read back and checked; then the manifest is written, and last the head, which is the commit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from trimtransfer.chunk import Kind
from trimtransfer.disk.source import DiskSource, open_disk
from trimtransfer.errors import NotFound, TargetRefused, VersionExists
from trimtransfer.geometry import Geometry, recognise
from trimtransfer.head import Head
from trimtransfer.image import Source
from trimtransfer.manifest import Manifest
from trimtransfer.names import check_name, head_name, manifest_name
from trimtransfer.pack import MAX_PACK
from trimtransfer.repository.again import Deduped, Limits, choose_again
from trimtransfer.repository.dedupe import Packs, find_known
from trimtransfer.repository.deltas import DeltaReport, try_deltas
from trimtransfer.repository.intent import Intent, clean_up, repository_lock
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.metadata import MetadataWriter, Names
from trimtransfer.repository.mirrors import read_mirrors
from trimtransfer.repository.packing import FIRST_FRAMES, UPDATE_FRAMES, Packer, Stored
from trimtransfer.repository.reading import VersionReader, read_head, read_manifest
from trimtransfer.repository.survey import Survey, survey
from trimtransfer.repository.trim import TrimmedVolume, trim_image
from trimtransfer.store import DirectoryStore, space_errors
from trimtransfer.table import Table
from trimtransfer.watch import Progress, Watch

DEFAULT_LEVEL: Final = 16
"""Measured on ext4 images of programs (benchmarks/bench_publish.py): 0.3 % more bytes than level 19 for three quarters
of its CPU time; below level 14 frames get 6 % larger at once."""
MAX_LEVEL: Final = 22
_OURS: Final = frozenset((".trimtransfer", "images", "metadata", "packs"))
"""Directories by which a repository is known."""


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What a publish did; sizes in bytes, digests as hexadecimal digits.

    ``zero_bytes``, ``new_bytes`` (content stored for the first time), ``known_bytes`` (content that known packs have,
    counted once) and ``repeated_bytes`` (further occurrences of either) add up to ``length``. ``again_bytes`` of the
    known content are stored again to keep downloads compact. ``stored_bytes`` in ``packs`` new packs and
    ``metadata_bytes`` are what the repository grew by, but for ``deltas``; ``kept_packs`` it had already. ``trimmed``
    tells what ``trim`` did to each volume of the image (empty: not asked for).
    """

    image: str
    version: str
    parent: str
    sequence: int
    digest: str
    flat: str
    length: int
    format: str
    kind: str
    recognised: str
    zero_bytes: int
    new_bytes: int
    known_bytes: int
    repeated_bytes: int
    again_bytes: int
    new_chunks: int
    known_chunks: int
    again_chunks: int
    packs: int
    kept_packs: int
    stored_bytes: int
    metadata_bytes: int
    read_bytes: int
    seconds: float
    deltas: tuple[DeltaReport, ...] = ()
    trimmed: tuple[TrimmedVolume, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is asked for; ``pack_limit`` and ``limits`` are for measurements on small images."""

    image: str
    version: str
    parent: str | None
    like: tuple[str, ...]
    kind: Kind | None
    level: int
    flat: bool
    deltas: bool
    delta_from: tuple[str, ...]
    trim: bool
    workers: int
    pack_limit: int
    limits: Limits

    def check(self) -> None:
        """Raise ``ValueError`` for a level that zstd does not have, ``FormatError`` for a name that is none."""
        if not 1 <= self.level <= MAX_LEVEL:
            raise ValueError(f"level {self.level}: zstd has levels 1 to {MAX_LEVEL}")
        for name in (self.image, *self.like):
            check_name("image", name)
        for name in (self.version, *self.delta_from):
            check_name("version", name)


@dataclass(frozen=True, slots=True)
class _Base:
    """What the new version starts from."""

    parent: VersionReader | None
    like: tuple[VersionReader, ...]
    deltas: tuple[VersionReader, ...]
    sequence: int
    mirrors: tuple[str, ...]


def publish(
    repository: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    image: str,
    version: str,
    parent: str | None = None,
    like: Sequence[str] = (),
    kind: Kind | None = None,
    format: str | None = None,
    level: int = DEFAULT_LEVEL,
    flat: bool = False,
    deltas: bool = True,
    delta_from: Sequence[str] = (),
    trim: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    _pack_limit: int = MAX_PACK,
    _limits: Limits = Limits(),  # noqa: B008 - immutable
) -> PublishReport:
    """Publish the file or block device ``path`` as ``version`` of ``image`` and return what was done.

    Of a disk image, the guest's content is published: ``format`` is ``raw``, ``vhd``, ``vhdx``, ``qcow2`` or ``vmdk``;
    None: recognised (``trimtransfer.disk.source``). ``raw`` publishes any file as it is.

    The repository is a directory, made where missing. ``parent`` is the version that content is compared with (the
    newest by default), ``like`` names further images whose content is not stored again. ``kind`` None: recognised.
    ``level`` is zstd's (1 to 22). ``flat`` adds the digest that ``b3sum`` prints. ``trim`` blanks what clean file
    systems mark free, see ``trim_image``; else every byte is published. ``deltas`` are made from the parent, and from
    the versions of ``delta_from``. ``workers`` threads compress (all cores by default). Memory: two regions of 64 MiB,
    4 MiB a column for what is known of chunks (more lies in temporary files in the repository), and about 5 MiB per
    worker; with ``trim`` before that 200 bytes per file; then for deltas 200 MiB, and as much for each of at most four
    workers.

    Raises:
        FormatError: a name that is none; a damaged repository or disk image.
        SourceRefused: a disk image that cannot be read with certainty.
        VersionExists: versions never change.
        NotFound: no such parent or ``like`` image.
        Locked: another process writes to the repository.
        SourceChanged: the file changed meanwhile.
        NoSpace: the repository's disk is full. Nothing was published, and nothing is left over.
        TargetRefused: the directory holds other things than a repository.
        Cancelled: as asked; nothing was published.
    """
    workers = workers or len(os.sched_getaffinity(0))
    job = _Job(
        image, version, parent, tuple(like), kind, level, flat, deltas, tuple(delta_from), trim, workers, _pack_limit,
        _limits,
    )  # fmt: skip
    job.check()
    watch = Watch(progress, cancel, "stopped; nothing was published")
    store = DirectoryStore(repository)
    with open_disk(path, format=format) as source, space_errors(store.path):
        _check_target(store)
        with repository_lock(store, f"publishing {image} {version}"):
            clean_up(store)
            return _publish(job, store, source, watch)


def _check_target(store: DirectoryStore) -> None:
    """Refuse to make a repository among other files: the wrong directory was named."""
    if store.path.exists() and not store.path.is_dir():
        raise TargetRefused(store.url, "is a file; name the repository's directory first, then the file to publish")
    if store.path.is_dir():
        names = set(os.listdir(store.path))
        if names and not names & _OURS:
            raise TargetRefused(store.url, "is neither empty nor a repository; name another directory")


def _publish(job: _Job, store: DirectoryStore, source: DiskSource, watch: Watch) -> PublishReport:
    started = time.monotonic()
    base = _open_base(job, store)
    content: Source = source
    trimmed: tuple[TrimmedVolume, ...] = ()
    if job.trim:
        content, trimmed = trim_image(source, watch)
    geometry = recognise(content.read, content.size, kind=job.kind)
    intent = Intent(store, job.image, job.version)
    try:
        publication = _Publication(job, store, content, source.format, base, geometry, intent, watch, trimmed)
        try:
            report = publication.run(started)
        finally:
            publication.close()
    except BaseException:
        intent.close()
        with contextlib.suppress(Exception):  # the next publish does it, too
            clean_up(store)
        raise
    intent.close()
    intent.done()
    return report


def _open_base(job: _Job, store: DirectoryStore) -> _Base:
    """Find parent and alike images; raise ``VersionExists`` or ``NotFound``."""
    if store.exists(manifest_name(job.image, job.version)):
        raise VersionExists(job.image, job.version)
    try:
        head: Head | None = read_head(store, job.image)
    except NotFound:
        head = None
    name = job.parent or (head.version if head else None)
    parent = _open_version(store, job.image, name, head) if name else None
    like = tuple(VersionReader.open(store, image) for image in job.like)
    names = [name for name in (parent.manifest.version if job.deltas and parent else None, *job.delta_from) if name]
    deltas = tuple(_open_version(store, job.image, name, head) for name in sorted({*names}))
    return _Base(parent, like, deltas, head.sequence + 1 if head else 1, read_mirrors(store))


def _open_version(store: DirectoryStore, image: str, version: str, head: Head | None) -> VersionReader:
    """Open a version that was named; ``NotFound`` says so in the words of whoever named it."""
    try:
        return VersionReader(store, read_manifest(store, image, version, head=head))
    except NotFound as error:
        raise NotFound(f"version {version} of image {image}", error.url) from error


class _Publication:
    """One publish in progress: its sources, and what is known so far."""

    def __init__(
        self,
        job: _Job,
        store: DirectoryStore,
        source: Source,
        format: str,
        base: _Base,
        geometry: Geometry,
        intent: Intent,
        watch: Watch,
        trimmed: tuple[TrimmedVolume, ...],
    ) -> None:
        self._job, self._store, self._source, self._base = job, store, source, base
        self._format = format
        self._geometry, self._intent, self._watch, self._trimmed = geometry, intent, watch, trimmed
        self._directory = store.scratch()
        self._packs = Packs()
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """Give temporary files back."""
        self._open.close()

    def run(self, started: float) -> PublishReport:
        """Publish; ``started`` by the monotonic clock."""
        job, base = self._job, self._base
        found = survey(
            self._source,
            kind=self._geometry.kind,
            segments=self._geometry.segments,
            parent=base.parent.manifest if base.parent else None,
            directory=self._directory,
            workers=job.workers,
            flat=job.flat,
            watch=self._watch,
        )
        self._open.callback(found.close)
        inventory = Inventory(lambda: self._tables(found), self._directory)
        self._open.callback(inventory.close)
        find_known(inventory, self._packs, base.parent, base.like, self._watch)
        deduped = choose_again(inventory, self._packs, self._store, found.same, self._directory, job.limits)
        stored = self._store_chunks(found, inventory, deduped)
        self._source.check_unchanged()
        manifest, metadata = self._store_metadata(found, inventory, deduped)
        deltas = self._make_deltas(manifest)
        metadata += self._commit(manifest)
        return self._report(manifest, inventory, deduped, stored, metadata, found.bytes_read, deltas, started)

    def _table(self, found: Survey, index: int) -> Table:
        if found.same[index] and self._base.parent is not None:
            return self._base.parent.table(index)
        return found.table(index)

    def _tables(self, found: Survey) -> Iterator[tuple[int, Table]]:
        """Yield the tables of all regions that are not all zero; the chunks of those that are the same count too."""
        done = 0
        for index in range(len(found)):
            if not found.zero[index]:
                yield index, self._table(found, index)
            done += int(found.lengths[index])
            self._watch.report("compare", done, self._source.size)

    def _store_chunks(self, found: Survey, inventory: Inventory, deduped: Deduped) -> Stored:
        packer = Packer(
            self._source,
            self._store,
            self._intent,
            inventory,
            self._packs,
            level=self._job.level,
            workers=self._job.workers,
            frames=UPDATE_FRAMES if self._base.parent else FIRST_FRAMES,
            pack_limit=self._job.pack_limit,
        )
        missing = inventory.missing_regions().tolist()
        regions = ((index, int(found.starts[index]), self._table(found, index)) for index in missing)
        return packer.run(regions, self._watch, deduped.new_bytes + deduped.again_bytes)

    def _store_metadata(self, found: Survey, inventory: Inventory, deduped: Deduped) -> tuple[Manifest, int]:
        """Write tables and locations; return the manifest, not written yet, and the bytes written."""
        job, base = self._job, self._base
        parent = base.parent.manifest.version if base.parent else ""
        names = Names(job.image, job.version, parent, base.sequence, _now(), self._format)
        with MetadataWriter(self._store, found, base.parent, self._directory) as writer:
            for index in range(len(found)):
                if found.same[index] and not deduped.again_chunks:
                    writer.add_unchanged(index)
                elif not found.zero[index]:
                    writer.add(index, self._table(found, index), inventory, self._packs)
                self._watch.report("metadata", int(found.starts[index]), self._source.size)
            manifest = writer.finish(names)
            self._watch.report("metadata", self._source.size, self._source.size)
            return manifest, writer.stored_bytes

    def _make_deltas(self, manifest: Manifest) -> tuple[DeltaReport, ...]:
        """Store the deltas that are asked for, while nobody knows of the version yet; none between kinds of cuts."""
        job, target = self._job, VersionReader(self._store, manifest)
        return tuple(
            try_deltas(self._store, target, base, self._intent, level=job.level, workers=job.workers, watch=self._watch)
            for base in self._base.deltas
            if base.manifest.kind == manifest.kind
        )

    def _commit(self, manifest: Manifest) -> int:
        """Write the manifest and then the head; return their length. Up to the very last step nothing is published."""
        data = manifest.to_bytes()
        head = Head(
            image=manifest.image,
            version=manifest.version,
            sequence=manifest.sequence,
            manifest_digest=manifest.digest(),
            manifest_length=len(data),
            image_digest=manifest.image_digest(),
            length=manifest.length,
            mirrors=self._base.mirrors,
        ).to_bytes()
        self._store.put(manifest_name(manifest.image, manifest.version), data)
        self._store.put(head_name(manifest.image), head)
        return len(data) + len(head)

    def _report(
        self,
        manifest: Manifest,
        inventory: Inventory,
        deduped: Deduped,
        stored: Stored,
        metadata_bytes: int,
        surveyed_bytes: int,
        deltas: tuple[DeltaReport, ...],
        started: float,
    ) -> PublishReport:
        return PublishReport(
            image=manifest.image,
            version=manifest.version,
            parent=manifest.parent,
            sequence=manifest.sequence,
            digest=manifest.image_digest().hex(),
            flat=manifest.flat.hex() if manifest.flat else "",
            length=manifest.length,
            format=self._format,
            kind=manifest.kind.name.lower(),
            recognised=self._geometry.name,
            zero_bytes=manifest.length - inventory.occurrence_bytes,
            new_bytes=deduped.new_bytes,
            known_bytes=deduped.known_bytes,
            repeated_bytes=inventory.occurrence_bytes - deduped.new_bytes - deduped.known_bytes,
            again_bytes=deduped.again_bytes,
            new_chunks=deduped.new_chunks,
            known_chunks=deduped.known_chunks,
            again_chunks=deduped.again_chunks,
            packs=stored.packs,
            kept_packs=stored.kept_packs,
            stored_bytes=stored.bytes,
            metadata_bytes=metadata_bytes,
            read_bytes=surveyed_bytes + deduped.new_bytes + deduped.again_bytes,
            seconds=round(time.monotonic() - started, 3),
            deltas=deltas,
            trimmed=self._trimmed,
        )


def _now() -> int:
    """Return the time of publication in seconds since 1970; reproducible builds set it (reproducible-builds.org)."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
