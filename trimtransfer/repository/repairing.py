"""Repairing a repository from a copy of it: a mirror, a backup, any store that has the same objects.

From the top down, so that each object is authenticated by what is sound already: catalogue or head tell the digests of
manifests, these those of their files, and packs are named by theirs. Nothing of the copy is believed, and nothing is
replaced but by bytes with the right digest, each object at once: stopped or killed, the next run goes on.

What nothing tells the digest of is not taken from a copy: a catalogue, a host profile. A head is made anew from the
catalogue, and the heads of channels are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from trimtransfer.catalogue import Catalogue, Entry
from trimtransfer.chunk import object_digest, object_hasher
from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex
from trimtransfer.durable import space_errors
from trimtransfer.errors import Cancelled, FetchError, FormatError, IntegrityError, NoSpace, NotFound, TrimTransferError
from trimtransfer.hostdelta import MAX_HOST_DELTA, HostDelta
from trimtransfer.hosts import MAX_HOSTS, parse_hosts
from trimtransfer.location import PackRef
from trimtransfer.manifest import DISK, FileRef, Manifest
from trimtransfer.names import catalogue_name, disk_name, head_name, manifest_name
from trimtransfer.pack import MAX_PACK, check_pack, pack_name
from trimtransfer.repository.catalogues import current, head_of, is_right, read_catalogue, save
from trimtransfer.repository.contents import Damage, in_parallel
from trimtransfer.repository.deltacheck import made_regions
from trimtransfer.repository.intent import clean_up, repository_lock
from trimtransfer.repository.marking import Marker
from trimtransfer.repository.mirrors import read_mirrors
from trimtransfer.repository.reading import (
    MAX_MANIFEST,
    VersionReader,
    delta_bases,
    host_profiles,
    read_head,
    require_repository,
)
from trimtransfer.store import DirectoryStore, Range, Store
from trimtransfer.watch import Progress, Watch

_PIECE: Final = 4 << 20
_WORKERS: Final = 4
_ABSENT: Final = (NotFound, FormatError, IntegrityError)
_NOT_THERE: Final = "nor has the copy it intact; try another copy (a run repairs what it can)"
_PACK: Final = f"{_NOT_THERE}, or publish an image that has its content: what that needs is stored anew"
_DELTA: Final = f"{_NOT_THERE}, or delete it: clients fetch plain packs instead"
_UNKNOWN: Final = "nothing tells what it must be, so it is not taken from a copy; "


@dataclass(frozen=True, slots=True)
class Repaired:
    """An object that was damaged or missing and is whole again; ``bytes`` is its length."""

    name: str
    problem: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was found: how many objects were ``checked``, what was ``repaired``, and what is ``left``, each with its
    problem and what then helps. ``fetched_bytes`` are those that the copy gave."""

    checked: int
    repaired: tuple[Repaired, ...]
    left: tuple[Damage, ...]
    fetched_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def repair(
    repository: str | os.PathLike[str],
    copy: Store,
    *,
    quick: bool = False,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> RepairReport:
    """Find damaged and missing objects of a repository, and take them from a ``copy`` of it.

    ``quick``: of packs only that they are there, and how long they are. Memory: a pack for each of four threads.

    Raises:
        NotFound: there is no repository.
        Locked: another process writes to it. NoSpace: the disk is full.
        FetchError: the copy cannot be reached. Cancelled: as asked. What was repaired by then stays so.
    """
    store = DirectoryStore(repository)
    require_repository(store)
    watch = Watch(progress, cancel, "stopped; run the same command again to continue")
    with space_errors(store.path), repository_lock(store, "repairing"):
        clean_up(store)
        return _Repair(store, copy, watch, quick=quick).run()


class _Repair:
    """One run."""

    def __init__(self, store: DirectoryStore, copy: Store, watch: Watch, *, quick: bool) -> None:
        self._store, self._copy, self._watch, self._quick = store, copy, watch, quick
        self._repaired: list[Repaired] = []
        self._left: list[Damage] = []
        self._seen = set[tuple[str, bytes]]()
        self._checked = 0
        self._marker = Marker(store, watch)

    def run(self) -> RepairReport:
        """Repair images one after the other, then the packs of all of them."""
        folders = self._store.path / "images"
        names = sorted(name for name in os.listdir(folders) if (folders / name).is_dir())
        for image in names:
            if any((folders / image / file).is_file() for file in ("head.json", "catalogue.json")):
                self._image(image)
        self._packs()
        return RepairReport(self._checked, tuple(self._repaired), tuple(self._left), self._copy.stats.bytes)

    @contextmanager
    def _noting(self, name: str, remedy: str) -> Iterator[None]:
        """Take an error in the block for damage of the object ``name`` that is left."""
        try:
            yield
        except (Cancelled, FetchError, NoSpace):
            raise
        except (TrimTransferError, OSError) as error:
            self._left.append(Damage(name, str(error), remedy))

    # ---- from the head down

    def _image(self, image: str) -> None:
        catalogue = self._catalogue(image)
        if catalogue is None:
            return
        versions = list[list[Manifest]]()
        for entry in catalogue.versions:
            self._watch.check()
            manifest = self._manifest(image, entry)
            if manifest is not None:
                versions.append(self._version(manifest))
        known = {(disk.image, disk.version): disk.digest() for disks in versions for disk in disks}
        for disks in versions:
            self._needs(disks, known)
        with self._noting(head_name(image), f"{_UNKNOWN}copy it by hand from where you trust"):
            self._head(catalogue)
        wrong = [one.name for one in catalogue.channels if not is_right(self._store, catalogue, one.name)]
        with self._noting(catalogue_name(image), "repair the versions that channels stand for first"):
            save(self._store, catalogue)
            self._repaired += [Repaired(f"images/{image}/channel-{name}.json", "was wrong", 0) for name in wrong]

    def _catalogue(self, image: str) -> Catalogue | None:
        """Return the catalogue of an image, with what lacks in it as far as the head can be read."""
        self._checked += 2
        try:
            return current(self._store, image)
        except (TrimTransferError, OSError):
            pass
        name = catalogue_name(image)
        remedy = f"{_UNKNOWN}copy it by hand from where you trust; without it labels, notes, pins and channels are lost"
        with self._noting(name, remedy):
            try:
                return read_catalogue(self._store, image)
            except NotFound:
                return self._newest_only(image)
        return None

    def _newest_only(self, image: str) -> Catalogue:
        """Return a catalogue of what the head alone can tell: nothing was removed, but a manifest is damaged."""
        head = read_head(self._store, image)
        known = (head.manifest_digest, head.manifest_length)
        self._object(manifest_name(image, head.version), *known, limit=MAX_MANIFEST)
        return current(self._store, image)

    def _manifest(self, image: str, entry: Entry) -> Manifest | None:
        name = manifest_name(image, entry.version)
        if not self._object(name, entry.manifest_digest, entry.manifest_length, limit=MAX_MANIFEST):
            return None
        return Manifest.from_bytes(self._store.read(name, limit=MAX_MANIFEST))

    def _version(self, manifest: Manifest) -> list[Manifest]:
        """Repair the files of all disks of a version; return the disks whose manifests are sound."""
        whole = [manifest]
        for number, file in enumerate(manifest.disks, 1):
            name = manifest_name(disk_name(manifest.image, number), manifest.version)
            if self._object(name, file.digest, file.length, limit=MAX_MANIFEST):
                whole.append(Manifest.from_bytes(self._store.read(name, limit=MAX_MANIFEST)))
        for disk in whole:
            for name, file in zip(disk.file_names(), disk.files, strict=True):
                if file.kind != DISK:
                    self._file(name, file)
        return whole

    def _needs(self, disks: list[Manifest], known: Mapping[tuple[str, str], bytes]) -> None:
        """Repair the indexes of a version; then learn which packs it needs, if everything that tells of them is sound.
        ``known`` are the digests of all disks by image and version."""
        first, names = disks[0], set[str]()
        for disk in disks:
            names.update(disk.file_names(), self._indexes(disk, known))
        if names.isdisjoint(damage.name for damage in self._left):
            with self._noting(manifest_name(first.image, first.version), _NOT_THERE):
                self._marker.version(first.image, first.version, first.digest())

    def _head(self, catalogue: Catalogue) -> None:
        """Make a head that is damaged or lost anew: the newest version is the catalogue's."""
        try:
            read_head(self._store, catalogue.image)
            return
        except (NotFound, FormatError) as error:
            problem = str(error)
        if catalogue.newest is None:
            raise NotFound("a version", catalogue_name(catalogue.image))
        name = manifest_name(catalogue.image, catalogue.newest.version)
        data = self._store.read(name, limit=MAX_MANIFEST)
        if object_digest(data) != catalogue.newest.manifest_digest:
            raise IntegrityError(name, catalogue.newest.manifest_digest, object_digest(data))
        head = head_of(Manifest.from_bytes(data), mirrors=read_mirrors(self._store)).to_bytes()
        self._store.put(head_name(catalogue.image), head)
        self._repaired.append(Repaired(head_name(catalogue.image), problem, len(head)))

    # ---- objects

    def _object(self, name: str, digest: bytes, length: int, *, limit: int) -> bool:
        """Make sure that a small object is whole; return whether it is."""

        def check(data: bytes) -> None:
            if object_digest(data) != digest:
                raise IntegrityError(name, digest, object_digest(data))

        return self._whole(name, check, min(limit, length))

    def _whole(self, name: str, check: Callable[[bytes], object], limit: int, remedy: str = _NOT_THERE) -> bool:
        """Make sure that an object passes its ``check``; return whether it does."""
        self._checked += 1
        try:
            check(self._store.read(name, limit=limit))
            return True
        except (*_ABSENT, OSError) as error:
            problem = str(error)
        try:
            data = self._copy.read(name, limit=limit)
            check(data)
        except _ABSENT:
            self._left.append(Damage(name, problem, remedy))
            return False
        self._store.put(name, data)
        self._repaired.append(Repaired(name, problem, len(data)))
        return True

    def _file(self, name: str, file: FileRef) -> None:
        """Make sure that a file of a version, of any length, is whole."""
        if (name, file.digest) in self._seen:
            return
        self._seen.add((name, file.digest))
        self._checked += 1
        try:
            self._read(self._store, name, file, lambda data: None)
            return
        except (*_ABSENT, OSError) as error:
            problem = str(error)
        try:
            with self._store.staged(name) as staging:
                self._read(self._copy, name, file, staging.write)
        except _ABSENT:
            self._left.append(Damage(name, problem, _NOT_THERE))
            return
        self._repaired.append(Repaired(name, problem, file.length))

    def _read(self, store: Store, name: str, file: FileRef, take: Callable[[bytes], None]) -> None:
        """Read a file in pieces; ``IntegrityError`` at its end if it is another one."""
        hasher = object_hasher()
        for at in range(0, file.length, _PIECE):
            data = store.read_range(Range(name, at, min(_PIECE, file.length - at), file.length))
            self._watch.report("metadata", at, file.length)
            hasher.update(data)
            take(data)
        if hasher.digest() != file.digest:
            raise IntegrityError(name, file.digest, hasher.digest())

    def _indexes(self, manifest: Manifest, known: Mapping[tuple[str, str], bytes]) -> list[str]:
        """Make sure that indexes of deltas can be read, are of this disk, and start from the one that they are named
        after, if its digest is ``known``: what they name otherwise proves itself. Return the names of all."""
        image, version = manifest.image, manifest.version
        folder = manifest_name(image, version).rpartition("/")[0]
        check = partial(_check_index, VersionReader(self._store, manifest))

        def check_delta(base: bytes | None, data: bytes) -> None:
            index = DeltaIndex(data)
            check(index)
            if base is not None and index.base != base:  # of a version that was removed nothing tells it
                raise IntegrityError("base of a delta index", base, index.base)

        names = list[str]()

        def whole(file: str, check: Callable[[bytes], object], limit: int) -> None:
            names.append(f"{folder}/{file}")
            self._whole(names[-1], check, limit, _DELTA)

        for base in delta_bases(self._store, image, version):
            whole(f"from-{base}.bin", partial(check_delta, known.get((image, base))), MAX_INDEX)
        profiles = host_profiles(self._store, image, version)
        if profiles:
            whole("hosts.bin", parse_hosts, MAX_HOSTS)
        for profile in profiles:
            whole(f"host-{profile}.bin", lambda data: check(HostDelta(data).index), MAX_HOST_DELTA)
        return names

    # ---- packs

    def _packs(self) -> None:
        total, done = sum(ref.length for ref in self._marker.refs), 0
        for ref, outcome in in_parallel(self._pack, self._marker.refs, _WORKERS):
            name = pack_name(ref.digest)
            if isinstance(outcome, FetchError | NoSpace):
                raise outcome
            if isinstance(outcome, Exception):
                self._left.append(Damage(name, str(outcome), _PACK))
            elif outcome:
                self._repaired.append(Repaired(name, outcome, ref.length))
            self._checked += 1
            done += ref.length
            self._watch.report("packs", done, total)

    def _pack(self, ref: PackRef) -> str:
        """Make sure that a pack is whole; return what was wrong with it. Raises that if it cannot be repaired."""
        name = pack_name(ref.digest)
        try:
            if self._store.size(name) != ref.length:
                raise FormatError(name, "its end", f"{ref.length:,} bytes", "another length")
            if not self._quick:
                check_pack(self._store.read(name, limit=MAX_PACK), ref.digest)
            return ""
        except (*_ABSENT, OSError) as error:
            problem = error
        try:
            data = self._copy.read(name, limit=MAX_PACK)
            check_pack(data, ref.digest)
        except _ABSENT:
            raise problem from None
        self._store.put(name, data)
        return str(problem)


def _check_index(reader: VersionReader, index: DeltaIndex) -> None:
    """Check that an index is of a version, and that its units fit the tables of that; what a unit makes is not looked
    at. Raises what is wrong with it; a table that is damaged itself is no fault of an index."""
    digest = reader.manifest.digest()
    if index.target != digest:
        raise IntegrityError("target of a delta index", digest, index.target)
    for region, units in made_regions(index, reader.manifest):
        try:
            table = reader.table(region)
        except (*_ABSENT, OSError):
            continue
        units.pieces(table)
