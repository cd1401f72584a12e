"""Checking a repository: everything that heads lead to is read, decoded and compared with its digest.

Metadata first - heads, manifests, tables, differences, locations, and that locations cover each table - then packs,
each once however many versions use it: its digest, every frame, every chunk; then each region's content is put together
from its chunks, as a client would; and every delta is applied. What versions share is checked once. Damage is
collected, not raised, and named by object, with who needs it and what can be done.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from trimtransfer.chunk import chunk_digest, object_hasher
from trimtransfer.errors import Cancelled, FormatError, IntegrityError, NotFound, TrimTransferError
from trimtransfer.head import Head
from trimtransfer.manifest import KEYS, REFS, Manifest, Region
from trimtransfer.names import further_disk_of, head_name, manifest_name
from trimtransfer.pack import pack_name
from trimtransfer.repository.cataloguecheck import check_catalogue
from trimtransfer.repository.catalogues import kept_names
from trimtransfer.repository.contents import ContentCheck, Damage, Expected, PackCheck, Sample
from trimtransfer.repository.deltacheck import DeltaCheck
from trimtransfer.repository.hostcheck import HostCheck
from trimtransfer.repository.intent import pending
from trimtransfer.repository.keycheck import REMEDY as KEYS_REMEDY
from trimtransfer.repository.keycheck import KeyCheck
from trimtransfer.repository.reading import (
    VersionReader,
    folder_names,
    open_keys,
    read_head,
    read_manifest,
    version_names,
)
from trimtransfer.repository.signedcheck import check_signed
from trimtransfer.store import DirectoryStore, Range
from trimtransfer.watch import Watch

_PIECE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was checked, and the damage found; ``regions`` and ``packs`` are how many different ones there are.

    ``unreferenced`` packs are of no use and no harm. ``not_made`` are indexes of deltas from host files whose units
    could not all be made, for the files of their profile are not here. ``sample`` per cent of packs, contents and
    deltas were looked at, chosen by ``seed``.
    """

    images: int
    versions: int
    regions: int
    chunks: int
    packs: int
    packs_checked: int
    regions_rebuilt: int
    deltas_made: int
    read_bytes: int
    unreferenced: tuple[str, ...]
    damage: tuple[Damage, ...]
    not_made: tuple[str, ...] = ()
    sample: float = 100.0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def audit(
    store: DirectoryStore,
    *,
    image: str | None = None,
    version: str | None = None,
    sample: float = 100.0,
    seed: int | None = None,
    quick: bool = False,
    workers: int = 2,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> AuditReport:
    """Check all images, or one, or one version of it.

    ``sample``: only that many per cent of packs, of regions' contents and of deltas, picked at random: by ``seed``,
    which the report tells, the same ones as long as the repository is the same. ``quick``: of packs only that they are
    there and how long they are, of contents nothing. Memory: a pack and its content for each of ``workers`` threads;
    what is known of chunks lies in temporary files once it is large.

    Raises ``NotFound`` if there is nothing of this image, or version, ``Cancelled`` as asked.
    """
    images = folder_names(store)
    if image is not None:
        _require(store, image, version, images)
        images = [name for name in images if image in (name, further_disk_of(name))]
    some = Sample(sample, secrets.randbits(32) if seed is None else seed)
    deltas = DeltaCheck(store, sample=some, quick=quick, watch=watch)
    with tempfile.TemporaryDirectory(prefix="trimtransfer-") as directory, HostCheck(store, deltas) as hosts:
        keys = KeyCheck(store)
        metadata = _Metadata(store, Path(directory), keys, deltas, hosts, watch)
        if image is None:
            hosts.profiles()
        for name in images:
            metadata.image(name, version)
        expected = metadata.expected
        packs = PackCheck(store, expected, watch)
        contents = ContentCheck(store, expected, packs.damaged, keys, watch)
        if quick:
            packs.look()
        checked, rebuilt = (0, 0) if quick else (packs.run(some, workers), contents.run(some, workers))
        wrong = [Damage(name, problem, KEYS_REMEDY) for name, problem in keys.problems.items()]
        wrong += [*deltas.damage, *check_signed(store, images)]
        damage = (*metadata.damage, *packs.damage(), *contents.damage(), *wrong)
        used = {*expected.packs, *deltas.packs}
        return AuditReport(
            images=metadata.images,
            versions=len(expected.versions),
            regions=metadata.regions,
            chunks=len(expected.chunks),
            packs=len(used),
            packs_checked=checked + len(deltas.read),
            regions_rebuilt=rebuilt,
            deltas_made=deltas.units,
            read_bytes=store.stats.bytes,
            unreferenced=_unreferenced(store, used) if image is None and not damage else (),
            damage=damage,
            not_made=tuple(hosts.not_made),
            sample=sample,
            seed=some.seed,
        )


def audit_new(
    store: DirectoryStore,
    disks: Sequence[Manifest],
    bases: Sequence[Manifest],
    sound: Sequence[Manifest],
    *,
    workers: int = 2,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> tuple[list[Damage], dict[bytes, int]]:
    """Check a version that nobody knows of yet - its ``disks``, from the first on - against what it promises.

    All of it is read, decoded and compared, as :func:`audit` does, but for what it shares with manifests that are
    ``sound`` already: stored pieces, and regions of the same content in the same places. ``bases`` are the versions
    that its deltas start from. Deltas that cannot be made here, from host files, count as damage. Returns the damage,
    and the lengths (0: not told) of all packs that it refers to beyond what is sound.
    """
    deltas = DeltaCheck(store, sample=Sample(100.0, 0), quick=False, watch=watch)
    with tempfile.TemporaryDirectory(prefix="trimtransfer-") as directory, HostCheck(store, deltas) as hosts:
        keys = KeyCheck(store)
        metadata = _Metadata(store, Path(directory), keys, deltas, hosts, watch)
        metadata.trust(sound)
        for manifest in disks:
            known = {one.version: one for one in bases if one.image == manifest.image}
            metadata.version(manifest, known.get(manifest.parent))
            deltas.run(manifest, known)
            hosts.run(manifest)
        packs = PackCheck(store, metadata.expected, watch)
        contents = ContentCheck(store, metadata.expected, packs.damaged, keys, watch)
        packs.run(Sample(100.0, 0), workers)
        contents.run(Sample(100.0, 0), workers)
        wrong = [Damage(name, problem, KEYS_REMEDY) for name, problem in keys.problems.items()]
        problem = "deltas from host files, which are not here, cannot be checked"
        wrong += [Damage(name, problem) for name in hosts.not_made]
        damage = [*metadata.damage, *packs.damage(), *contents.damage(), *deltas.damage, *wrong]
        needed = {digest: ref.length for digest, ref in metadata.expected.packs.items()}
        return damage, needed | {digest: 0 for digest in deltas.packs if digest not in needed}


def _require(store: DirectoryStore, image: str, version: str | None, images: Sequence[str]) -> None:
    """Raise ``NotFound`` for an image or version of which there is no file, and that no head names."""
    if image not in images:
        raise NotFound(f"image {image}", store.url)
    if version is not None and version not in version_names(store, image):
        with suppress(TrimTransferError):
            if read_head(store, image).version == version:
                return
        raise NotFound(f"version {version} of image {image}", store.url)


class _Metadata:
    """Checks heads, manifests, tables and locations, and notes which chunks must be found where."""

    def __init__(
        self,
        store: DirectoryStore,
        directory: Path,
        keys: KeyCheck,
        deltas: DeltaCheck,
        hosts: HostCheck,
        watch: Watch,
    ) -> None:
        self._store, self._keys, self._deltas, self._hosts, self._watch = store, keys, deltas, hosts, watch
        self.damage: list[Damage] = []
        self.images = self.regions = 0
        self.expected = Expected(directory)
        self._seen: set[bytes] = set()
        self._files: set[tuple[str, int, bytes]] = set()
        self._pending = pending(store)

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Take an error in the block for damage of the object ``name``."""
        try:
            yield
        except Cancelled:
            raise
        except (TrimTransferError, OSError) as error:
            self.damage.append(Damage(name, str(error)))

    def image(self, image: str, version: str | None) -> None:
        """Check an image's head and its versions, or one of them; further disks have no head of their own."""
        first = further_disk_of(image)
        whole = first or image
        names = [name for name in version_names(self._store, image) if (whole, name) != self._pending]
        names = self._kept(whole, names, further=first is not None)
        if not names and self._pending and self._pending[0] == whole:
            return  # its first version is being published
        head = None
        if first is None:
            self.images += 1
            with self._noting(head_name(image)):
                head = read_head(self._store, image)
        elif version is not None and version not in names:
            return  # that version has fewer disks
        found: dict[str, Manifest] = {}
        named = {name for name in (version, head.version if head else None) if name is not None}
        for name in sorted({*names} | named):
            with self._noting(manifest_name(image, name)):
                found[name] = read_manifest(self._store, image, name, head=head)
        if head is not None and head.version in found:
            with self._noting(head_name(image)):
                _check_head(head, found[head.version])
        if first is None:
            self.damage += check_catalogue(self._store, image, found)
        for manifest in sorted(found.values(), key=lambda manifest: manifest.sequence):
            if version in (None, manifest.version) and (head is None or manifest.sequence <= head.sequence):
                self.version(manifest, found.get(manifest.parent))
                self._deltas.run(manifest, found)
                self._hosts.run(manifest)

    def _kept(self, whole: str, names: list[str], *, further: bool) -> list[str]:
        """Leave out versions that were removed, and add those that ought to be there; of further disks, which not every
        version has, nothing is added."""
        if not further:
            return kept_names(self._store, whole, names)
        kept = kept_names(self._store, whole, version_names(self._store, whole))
        return [name for name in names if name in kept]

    def trust(self, manifests: Sequence[Manifest]) -> None:
        """Take what these versions consist of as checked."""
        for manifest in manifests:
            for name, file in zip(manifest.file_names(), manifest.files, strict=True):
                self._files.add((name, file.length, file.digest))
            used = np.flatnonzero(~manifest.zero).tolist()
            self._seen.update(_identity(manifest, manifest.region(index)) for index in used)

    def version(self, manifest: Manifest, parent: Manifest | None) -> None:
        """Check what a manifest refers to; regions and files that were seen before are not looked at again."""
        self.expected.versions.append(manifest)
        for name, file in zip(manifest.file_names(), manifest.files, strict=True):
            if (name, file.length, file.digest) not in self._files:
                self._files.add((name, file.length, file.digest))
                with self._noting(name):
                    self._file(name, file.length, file.digest)
                    if file.kind == KEYS:
                        open_keys(self._store, name, file.length)
        reader = VersionReader(self._store, manifest)
        base = VersionReader(self._store, parent) if parent else None
        for index in reader.used_regions():
            region = manifest.region(index)
            key = _identity(manifest, region)
            if key not in self._seen:
                self._seen.add(key)
                with self._noting(f"{manifest_name(manifest.image, manifest.version)}, region {index}"):
                    self._region(reader, base, region)
            self._watch.report("metadata", region.start + region.length, manifest.length)

    def _file(self, name: str, length: int, digest: bytes) -> None:
        """Check a file of tables, locations or keys whole, in pieces."""
        hasher = object_hasher()
        for at in range(0, length, _PIECE):
            hasher.update(self._store.read_range(Range(name, at, min(_PIECE, length - at), length)))
        if hasher.digest() != digest:
            raise IntegrityError(name, digest, hasher.digest())

    def _region(self, reader: VersionReader, base: VersionReader | None, region: Region) -> None:
        """Check a region's table, its difference, and that its locations cover it; note its chunks."""
        self.regions += 1
        table = reader.table(region.index)
        if region.difference.length and base is not None:
            # One taken over with an unchanged region has other bases; it was checked with the version it was made for.
            reader.table_by_difference(region.index, base)
        located = np.zeros(len(table), dtype=np.int64)
        parts = reader.locations(region.index)
        for part in parts:
            np.add.at(located, part.pieces(table)["record"], 1)
        if (located != ~table.zero).any():
            wrong = int(np.argmax(located != ~table.zero))
            raise FormatError("locations", f"record {wrong}", "each chunk located once", f"{located[wrong]} times")
        self.expected.add(table, parts, region)
        self._keys.compare_table(reader.manifest, region, table)


def _check_head(head: Head, manifest: Manifest) -> None:
    if manifest.image_digest() != head.image_digest:
        raise IntegrityError("head", manifest.image_digest(), head.image_digest)
    told = (head.sequence, head.length, head.disks, head.manifest_length)
    true = (manifest.sequence, manifest.length, len(manifest.disks), len(manifest.to_bytes()))
    if told != true:
        raise FormatError("head", "sequence, length, disks, manifest_length", true, told)


def _unreferenced(store: DirectoryStore, used: Collection[bytes]) -> tuple[str, ...]:
    """Return the packs that nothing refers to."""
    names = {pack_name(digest) for digest in used}
    return tuple(name for name, _ in store.list("packs") if name not in names)


def _identity(manifest: Manifest, region: Region) -> bytes:
    """Return what two regions share if they are checked alike: digests, length, and the very same stored pieces."""
    refs = (getattr(region, name) for name in REFS)
    places = b"".join(
        manifest.files[ref.file].digest + ref.offset.to_bytes(8, "little") + ref.check for ref in refs if ref.length
    )
    return chunk_digest(region.content + region.table + region.length.to_bytes(8, "little") + places)
