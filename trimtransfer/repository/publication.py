"""One disk of a version on its way into a repository: from its file to its manifest, and of the first disk the commit.

Two passes over the file: the first finds what it consists of, the second stores what the repository lacks. What was
written is read back and checked; then the manifest is written, and last the head, which is the commit.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from trimtransfer.catalogue import Catalogue
from trimtransfer.chunk import Kind, object_digest
from trimtransfer.errors import FormatError
from trimtransfer.geometry import Geometry
from trimtransfer.image import Source
from trimtransfer.manifest import DISK, FileRef, Manifest
from trimtransfer.names import (
    MAX_DISKS,
    check_name,
    disk_name,
    further_disk_of,
    head_name,
    manifest_name,
)
from trimtransfer.repository.advice import Advice
from trimtransfer.repository.again import Deduped, Limits, choose_again
from trimtransfer.repository.catalogues import Wishes, entry_of, head_of
from trimtransfer.repository.dedupe import Packs, find_known, used_packs
from trimtransfer.repository.deltas import try_deltas
from trimtransfer.repository.deltasmade import DeltaReport
from trimtransfer.repository.hazards import compare, shared_content
from trimtransfer.repository.hostdeltas import try_host_deltas
from trimtransfer.repository.intent import Intent
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.metadata import MetadataWriter, Names
from trimtransfer.repository.packing import FIRST_FRAMES, UPDATE_FRAMES, Packer, Stored
from trimtransfer.repository.profiles import OpenProfile
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader, further_disks
from trimtransfer.repository.signer import Signer
from trimtransfer.repository.solid import SOLID_LEVEL, try_solid
from trimtransfer.repository.survey import Survey, survey
from trimtransfer.repository.trim import TrimmedVolume
from trimtransfer.store import DirectoryStore
from trimtransfer.table import Table
from trimtransfer.watch import Watch

DEFAULT_LEVEL: Final = 16
"""Measured on ext4 images of programs (benchmarks/bench_publish.py): 0.3 % more bytes than level 19 for three quarters
of its CPU time; below level 14 frames get 6 % larger at once."""
MAX_LEVEL: Final = 22


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What a publish did; sizes in bytes, digests as hexadecimal digits.

    ``zero_bytes``, ``new_bytes`` (content stored for the first time), ``known_bytes`` (content that known packs have,
    counted once) and ``repeated_bytes`` (further occurrences of either) add up to ``length``. ``again_bytes`` of the
    known content are stored again to keep downloads compact. ``stored_bytes`` in ``packs`` new packs and
    ``metadata_bytes`` are what the repository grew by, but for ``deltas``; ``kept_packs`` it had already. ``trimmed``
    tells what ``trim`` did to each volume of the image (empty: not asked for), ``advice`` what ruins reuse. ``disks``
    are the version's further disks, which all else is not about.
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
    advice: tuple[Advice, ...] = ()
    disks: tuple[PublishReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Job:
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
    profiles: tuple[str, ...]
    solid: bool
    trim: bool
    workers: int
    pack_limit: int
    limits: Limits

    def check(self, disks: int) -> None:
        """Raise ``ValueError`` for a level that zstd does not have or too many disks, ``FormatError`` for a name that
        is none, or is kept for further disks."""
        if not 1 <= self.level <= MAX_LEVEL:
            raise ValueError(f"level {self.level}: zstd has levels 1 to {MAX_LEVEL}")
        if not 1 <= disks <= MAX_DISKS:
            raise ValueError(f"{disks} disks: a version has at most {MAX_DISKS}")
        disk_name(self.image, disks - 1)
        if further_disk_of(self.image) is not None:
            raise FormatError("image name", "name", "one that does not end like that of a further disk", self.image)
        for name in (self.image, *self.like):
            check_name("image", name)
        for name in (self.version, *self.delta_from):
            check_name("version", name)
        if self.version.endswith(".json"):
            raise FormatError("version name", "name", "one that does not end like those of heads", self.version)


@dataclass(frozen=True, slots=True)
class Base:
    """What a disk of the new version, of number ``disk``, starts from."""

    parent: VersionReader | None
    like: tuple[VersionReader, ...]
    deltas: tuple[VersionReader, ...]
    profiles: tuple[OpenProfile, ...]
    sequence: int
    catalogue: Catalogue
    wishes: Wishes
    now: int
    """When it began, in seconds since 1970."""
    mirrors: tuple[str, ...] = ()
    disk: int = 0
    signer: Signer | None = None

    def with_version(self, manifest: Manifest) -> Catalogue:
        """Return the catalogue as it is to be once the new version is published."""
        catalogue = self.catalogue.with_version(entry_of(manifest))
        return self.wishes.granted(catalogue, manifest.version, self.now)

    def further(self, store: DirectoryStore, disk: int, made: Sequence[Manifest]) -> Base:
        """Return what a further disk starts from: those of the same number, and the disks that were made before."""
        parents = _disks_of_number(store, disk, [self.parent] if self.parent else [])
        like = (*self.like, *(VersionReader(store, manifest) for manifest in made))
        deltas = _disks_of_number(store, disk, self.deltas)
        parent = parents[0] if parents else None
        return replace(self, parent=parent, like=like, deltas=tuple(deltas), mirrors=(), disk=disk, signer=None)


class Publication:
    """One publish in progress: its sources, and what is known so far."""

    def __init__(
        self,
        job: Job,
        store: DirectoryStore,
        source: Source,
        format: str,
        base: Base,
        disks: Sequence[Manifest],
        geometry: Geometry,
        intent: Intent,
        watch: Watch,
        trimmed: tuple[TrimmedVolume, ...],
        advice: tuple[Advice, ...],
    ) -> None:
        self._job, self._store, self._source, self._base = job, store, source, base
        self._format, self._disks = format, [_file_of(manifest) for manifest in disks]
        self._geometry, self._intent, self._watch, self._trimmed = geometry, intent, watch, trimmed
        self._advice = advice
        self._directory = store.scratch()
        self._packs = Packs()
        self._open = contextlib.ExitStack()

    def close(self) -> None:
        """Give temporary files back."""
        self._open.close()

    def run(self, started: float) -> tuple[Manifest, PublishReport]:
        """Publish; ``started`` by the monotonic clock. Only the first disk is committed, and with it the others."""
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
        if base.parent is not None:
            there = PublishedImage(base.parent)
            self._advice += compare(self._source, there.read, there.size, shared_content(inventory))
        deduped = choose_again(inventory, self._packs, self._store, found.same, self._directory, job.limits)
        stored = self._store_chunks(found, inventory, deduped)
        self._source.check_unchanged()
        self._intent.rely_on(self._packs[number] for number in used_packs(inventory))
        manifest, metadata = self._store_metadata(found, inventory, deduped)
        deltas = self._make_deltas(manifest)
        metadata += self._commit(manifest)
        return manifest, self._report(manifest, inventory, deduped, stored, metadata, found.bytes_read, deltas, started)

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
        created, disks = _now(), tuple(self._disks)
        names = Names(job.image, job.version, parent, base.sequence, created, self._format, base.disk, disks)
        with MetadataWriter(self._store, names, found, base.parent, self._directory) as writer:
            for index in range(len(found)):
                if found.same[index] and not deduped.again_chunks:
                    writer.add_unchanged(index)
                elif not found.zero[index]:
                    writer.add(index, self._table(found, index), inventory, self._packs)
                self._watch.report("metadata", int(found.starts[index]), self._source.size)
            manifest = writer.finish()
            self._watch.report("metadata", self._source.size, self._source.size)
            return manifest, writer.stored_bytes

    def _make_deltas(self, manifest: Manifest) -> tuple[DeltaReport, ...]:
        """Store the deltas that are asked for, while nobody knows of the version yet; none between kinds of cuts."""
        target, bases = VersionReader(self._store, manifest), self._base
        options: dict[str, Any] = {"level": self._job.level, "workers": self._job.workers, "watch": self._watch}
        solid = {**options, "level": SOLID_LEVEL}
        alike = (base for base in bases.deltas if base.manifest.kind == manifest.kind)
        return (
            *(try_deltas(self._store, target, base, self._intent, **options) for base in alike),
            *(
                try_host_deltas(self._store, target, profile, self._intent, parent=bases.parent, **options)
                for profile in bases.profiles
            ),
            *([try_solid(self._store, target, self._intent, parent=bases.parent, **solid)] if self._job.solid else []),
        )

    def _commit(self, manifest: Manifest) -> int:
        """Write the manifest and then the head; return their length. Up to the very last step nothing is published. In
        a repository that is signed that is the timestamp; should only the head be there, it follows without a key."""
        data = manifest.to_bytes()
        self._store.put(manifest_name(manifest.image, manifest.version), data)
        if manifest.disk:
            return len(data)
        signer, base = self._base.signer, self._base
        if signer is not None:
            signer.stage(self._intent, manifest.image, [manifest.version], catalogue=base.with_version(manifest))
        signed = signer.repository if signer is not None else ""
        head = head_of(manifest, mirrors=base.mirrors, signed=signed).to_bytes()
        self._intent.secure()
        self._store.put(head_name(manifest.image), head)
        if signer is not None:
            signer.finish()
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
            advice=self._advice,
        )


def _file_of(manifest: Manifest) -> FileRef:
    """Return what the first disk's manifest says of another's."""
    data = manifest.to_bytes()
    return FileRef(DISK, manifest.version, len(data), object_digest(data))


def _now() -> int:
    """Return the time of publication in seconds since 1970; reproducible builds set it (reproducible-builds.org)."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def _disks_of_number(store: DirectoryStore, number: int, versions: Sequence[VersionReader]) -> list[VersionReader]:
    """Return the further disk of this number of those versions that have one."""
    found = (further_disks(store, version.manifest) for version in versions)
    return [disks[number - 1] for disks in found if len(disks) >= number]
