"""Publishing: make a file the next version of an image in a repository, all or nothing.

Here is the order of work for all disks of a version; ``publication.py`` does it for each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from trimtransfer.catalogue import Catalogue, Entry
from trimtransfer.chunk import DIGEST_SIZE, Kind
from trimtransfer.disk.source import DiskSource, open_disk
from trimtransfer.durable import space_errors
from trimtransfer.errors import NotFound, TrimTransferError, VersionExists
from trimtransfer.geometry import recognise
from trimtransfer.head import Head
from trimtransfer.image import Source
from trimtransfer.manifest import Manifest
from trimtransfer.names import (
    deltas_name,
    disk_name,
    keys_name,
    locations_name,
    manifest_name,
    tables_name,
)
from trimtransfer.pack import MAX_PACK
from trimtransfer.repository.again import Limits
from trimtransfer.repository.catalogues import Wishes, enrol, record_wishes
from trimtransfer.repository.hazards import dropped_disks, examine
from trimtransfer.repository.intent import Intent, check_target, clean_up, intended, repository_lock
from trimtransfer.repository.mirrors import read_mirrors
from trimtransfer.repository.profiles import open_profile
from trimtransfer.repository.publication import DEFAULT_LEVEL, Base, Job, Publication, PublishReport
from trimtransfer.repository.reading import VersionReader, read_head, read_manifest
from trimtransfer.repository.signer import Keys, Signer, known_catalogue
from trimtransfer.repository.trim import TrimmedVolume, trim_image
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Progress, Watch

_LOG: Final = logging.getLogger("trimtransfer.repository")


def publish(
    repository: str | os.PathLike[str] | DirectoryStore,
    path: str | os.PathLike[str],
    *,
    image: str,
    version: str,
    disks: Sequence[str | os.PathLike[str]] = (),
    parent: str | None = None,
    like: Sequence[str] = (),
    kind: Kind | None = None,
    format: str | None = None,
    level: int = DEFAULT_LEVEL,
    flat: bool = False,
    deltas: bool = True,
    delta_from: Sequence[str] = (),
    profiles: Sequence[str] = (),
    solid: bool = False,
    trim: bool = False,
    labels: Sequence[str] = (),
    note: str = "",
    channels: Sequence[str] = (),
    workers: int | None = None,
    keys: Keys | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    _pack_limit: int = MAX_PACK,
    _limits: Limits = Limits(),  # noqa: B008 - immutable
) -> PublishReport:
    """Publish the file or block device ``path`` as a ``version`` of ``image``; ``disks`` are the machine's others.

    Of a disk image, the guest's content is published: ``format`` is ``raw``, ``vhd``, ``vhdx``, ``qcow2`` or ``vmdk``;
    None: recognised (``trimtransfer.disk.source``). ``raw`` publishes any file as it is. The repository is a directory,
    made where missing; if it is signed, ``keys`` sign. ``parent`` is the version that content is compared with (the
    newest by default), ``like`` names further images whose content is not stored again. ``kind`` None: recognised.
    ``level`` is zstd's (1 to 22). ``flat`` adds the digest that ``b3sum`` prints. ``trim`` blanks what clean file
    systems mark free (``trim_image``); else every byte is published. ``deltas`` are made from the parent, the versions
    of ``delta_from`` and the files of host ``profiles``; with ``solid``, units for first downloads hold all of it once
    more. It gets ``labels`` and a ``note``, and ``channels`` stand for it. ``workers`` threads compress (all cores by
    default). Memory: two regions of 64 MiB, 4 MiB a column for what is known of chunks, 5 MiB per worker; before that
    200 bytes per file of clean file systems; then for deltas 200 MiB, and as much for each of at most four workers,
    with a profile 160 bytes a chunk; where jobs of large zstd frames are looked into, 900.

    Raises:
        FormatError: a name that is none, or taken; a damaged repository or disk image. SourceRefused, SourceChanged:
        a disk image that cannot be read with certainty; it changed meanwhile. VersionExists: versions never change.
        NotFound: no such parent, ``like`` image or profile. Locked: somebody else writes. TargetRefused, Untrusted: no
        repository, no keys, bad signatures. NoSpace, Cancelled: the disk is full; as asked; nothing is left over.
    """
    named = tuple(like), kind, level, flat, deltas, tuple(delta_from), tuple(profiles), solid, trim
    job = Job(image, version, parent, *named, workers or len(os.sched_getaffinity(0)), _pack_limit, _limits)
    job.check(1 + len(disks))
    watch = Watch(progress, cancel, "stopped; nothing was published")
    store = repository if isinstance(repository, DirectoryStore) else DirectoryStore(repository)
    with contextlib.ExitStack() as opened, space_errors(store.path):
        sources = [opened.enter_context(open_disk(one, format=format)) for one in (path, *disks)]
        check_target(store)
        with repository_lock(store, f"publishing {image} {version}"):
            clean_up(store)
            wishes = Wishes(tuple(labels), note, tuple(channels))
            return _publish(job, store, sources, wishes, Signer.open(store, image, keys), watch)


def _publish(
    job: Job,
    store: DirectoryStore,
    sources: Sequence[DiskSource],
    wishes: Wishes,
    signer: Signer | None,
    watch: Watch,
) -> PublishReport:
    """Publish the further disks, which nobody knows of yet, then the first, which names them."""
    base = _open_base(job, store, len(sources), wishes, signer)
    made: list[Manifest] = []
    reports: list[PublishReport] = []
    with intended(store, job.image, job.version) as intent:
        if wishes != Wishes():
            record_wishes(store, job.image, job.version, wishes, base.now)
        for number, source in enumerate(sources[1:], 1):
            further = replace(job, image=disk_name(job.image, number))
            for name in (manifest_name, tables_name, locations_name, keys_name):
                intent.add(name(further.image, further.version))
            manifest, report = _publish_disk(
                further, store, source, base.further(store, number, made), (), intent, watch
            )
            made.append(manifest)
            reports.append(report)
        manifest, report = _publish_disk(job, store, sources[0], base, made, intent, watch)
        _enrol(store, base.with_version(manifest), wishes)
    dropped = dropped_disks(base.parent.manifest, len(sources)) if base.parent is not None else ()
    return replace(report, disks=tuple(reports), advice=(*report.advice, *dropped))


def _enrol(store: DirectoryStore, catalogue: Catalogue, wishes: Wishes) -> None:
    """Enter the version, which is published, into its catalogue. If that fails nothing is lost: it is made up for by
    whatever writes next; but who has wishes is told."""
    try:
        enrol(store, catalogue)
    except (TrimTransferError, OSError) as error:
        if wishes != Wishes():
            raise
        _LOG.warning("published, but the catalogue was not written: %s; the next command that writes does it", error)


def _publish_disk(
    job: Job,
    store: DirectoryStore,
    source: DiskSource,
    base: Base,
    disks: Sequence[Manifest],
    intent: Intent,
    watch: Watch,
) -> tuple[Manifest, PublishReport]:
    """Publish one disk; the first one commits, with the manifests of all others."""
    started = time.monotonic()
    content: Source = source
    trimmed: tuple[TrimmedVolume, ...] = ()
    if job.trim:
        content, trimmed = trim_image(source, watch)
    geometry = recognise(content.read, content.size, kind=job.kind)
    advice = examine(content, geometry, watch)
    publication = Publication(job, store, content, source.format, base, disks, geometry, intent, watch, trimmed, advice)
    try:
        return publication.run(started)
    finally:
        publication.close()


def _open_base(job: Job, store: DirectoryStore, disks: int, wishes: Wishes, signer: Signer | None) -> Base:
    """Find parent and alike images; raise ``VersionExists`` or ``NotFound``, and what wishes that cannot be granted
    raise."""
    try:
        head: Head | None = read_head(store, job.image)
        catalogue = known_catalogue(store, signer, job.image)
    except NotFound:
        head, catalogue = None, Catalogue(job.image)
    check_free(store, job.image, job.version, disks, catalogue)
    sequence = 1 + max(head.sequence if head else 0, catalogue.sequence)
    wishes.granted(catalogue.with_version(Entry(job.version, sequence, "", bytes(DIGEST_SIZE), 0, 0)), job.version, 0)
    name = job.parent or (head.version if head else None)
    parent = _open_version(store, catalogue, name, head) if name else None
    like = tuple(VersionReader.open(store, image) for image in job.like)
    names = [name for name in (parent.manifest.version if job.deltas and parent else None, *job.delta_from) if name]
    deltas = tuple(_open_version(store, catalogue, name, head) for name in sorted({*names}))
    profiles = tuple(open_profile(store, name) for name in sorted({*job.profiles}))
    return Base(
        parent,
        like,
        deltas,
        profiles,
        sequence,
        catalogue,
        wishes,
        int(time.time()),
        read_mirrors(store),
        signer=signer,
    )


def check_free(store: DirectoryStore, image: str, version: str, disks: int, catalogue: Catalogue) -> None:
    """Raise ``VersionExists`` for a version that is there, or was: later versions may refer to its files, or have
    deltas from it."""
    images = [disk_name(image, number) for number in range(disks)]
    own = [name(one, version) for one in images for name in (manifest_name, tables_name, locations_name, keys_name)]
    later = [deltas_name(image, entry.version, version) for entry in catalogue.versions]
    named = any(entry.version == version for entry in catalogue.versions)
    if named or any(store.exists(name) for name in (*own, *later)):
        raise VersionExists(image, version)


def _open_version(store: DirectoryStore, catalogue: Catalogue, version: str, head: Head | None) -> VersionReader:
    """Open a version that was named; ``NotFound`` says so in the words of whoever named it. What a version that was
    removed consists of may be deleted any time: nothing is built upon it."""
    entry = catalogue.find(version)
    if entry is None:
        there = [one.version for one in catalogue.versions]
        raise NotFound(f"version {version} of image {catalogue.image}", store.url, there)
    return VersionReader(store, read_manifest(store, catalogue.image, entry.version, head=head))
