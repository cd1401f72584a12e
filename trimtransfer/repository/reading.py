"""Reading a repository: heads, manifests, and the tables and locations of a version; what ``show`` tells.

Everything read is checked against what refers to it: a manifest against the head where there is one, stored pieces
against their checks, tables against their digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import object_check, object_digest
from trimtransfer.errors import FormatError, IntegrityError, NotFound
from trimtransfer.head import MAX_HEAD, Head
from trimtransfer.joint import JointDifference, is_joint
from trimtransfer.keys import KeyFile
from trimtransfer.location import Locations
from trimtransfer.manifest import KEYS, Manifest, StoredRef
from trimtransfer.names import check_name, disk_name, head_name, manifest_name
from trimtransfer.store import DirectoryStore, Range, Store
from trimtransfer.table import Table, decode_difference, decode_full, difference_base

MAX_MANIFEST: Final = 512 << 20
"""Longest manifest read into memory: more than 150 TiB of data."""
_REMEDY: Final = "the repository is damaged: see `medv-repo verify`"


def read_head(store: Store, image: str) -> Head:
    """Return the head of an image; ``NotFound`` that names the images there are, ``FormatError``."""
    try:
        data = store.read(head_name(image), limit=MAX_HEAD)
    except NotFound as error:
        raise NotFound(f"image {image}", error.url, image_names(store) if isinstance(store, Listed) else ()) from error
    head = Head.from_bytes(data)
    if head.image != image:
        raise FormatError(f"head of {image}", "image", image, head.image)
    return head


def read_manifest(
    store: Store, image: str, version: str, *, head: Head | None = None, digest: bytes | None = None
) -> Manifest:
    """Return the manifest of a version, checked against ``head`` where that names this version, and ``digest``.

    Raises:
        NotFound: there is no such version; it names those there are.
        FormatError: not the manifest of this version.
        IntegrityError: not the manifest that the head names, or that has this digest.
    """
    limit = MAX_MANIFEST
    if head is not None and head.version == version:
        digest, limit = head.manifest_digest, min(limit, head.manifest_length)
    try:
        data = store.read(manifest_name(image, version), limit=limit)
    except NotFound as error:
        there = version_names(store, image) if isinstance(store, Listed) else ()
        raise NotFound(f"version {version} of image {image}", error.url, there) from error
    if digest is not None and object_digest(data) != digest:
        raise IntegrityError(f"manifest of {image} {version}", digest, object_digest(data), _REMEDY)
    manifest = Manifest.from_bytes(data)
    if (manifest.image, manifest.version) != (image, version):
        raise FormatError(
            f"manifest of {image} {version}", "names", f"{image} {version}", f"{manifest.image} {manifest.version}"
        )
    return manifest


def further_disks(store: Store, manifest: Manifest) -> list[VersionReader]:
    """Open the further disks of a version, from number 1 on.

    Raises:
        NotFound, FormatError, IntegrityError: one is missing or damaged.
    """
    found: list[VersionReader] = []
    for number, file in enumerate(manifest.disks, 1):
        name = disk_name(manifest.image, number)
        disk = read_manifest(store, name, manifest.version, digest=file.digest)
        if disk.disk != number:
            raise FormatError(f"manifest of {name} {manifest.version}", "disk", number, disk.disk)
        found.append(VersionReader(store, disk))
    return found


def open_keys(store: Store, name: str, length: int) -> KeyFile:
    """Return a key file of ``length`` bytes; ``FormatError`` if it is none, and what the store raises."""
    return KeyFile(lambda offset, size: store.read_range(Range(name, offset, size, length)), length)


class VersionReader:
    """Reads the stored pieces of one version, each checked."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        self._names = manifest.file_names()

    @classmethod
    def open(cls, store: Store, image: str, version: str | None = None) -> VersionReader:
        """Open a version of an image, the newest by default; raises what reading head and manifest raise."""
        head = read_head(store, image)
        return cls(store, read_manifest(store, image, version or head.version, head=head))

    def piece(self, ref: StoredRef) -> bytes:
        """Return a stored piece; ``IntegrityError`` if it is not the one that the manifest names."""
        file = self.manifest.files[ref.file]
        data = self.store.read_range(Range(self._names[ref.file], ref.offset, ref.length, file.length))
        found = object_check(data)
        if found != ref.check:
            raise IntegrityError(f"{self._names[ref.file]}, byte {ref.offset}", ref.check, found, _REMEDY)
        return data

    def table(self, index: int) -> Table:
        """Return the table of region ``index``, which is not all zero."""
        region = self.manifest.region(index)
        return decode_full(self.piece(region.full), size=region.length, digest=region.table)

    def table_by_difference(self, index: int, parent: VersionReader) -> Table | None:
        """Return the same table, from its stored difference; None if that is one to tables that ``parent`` has not."""
        region = self.manifest.region(index)
        stored = self.piece(region.difference)
        if not is_joint(stored):
            base = parent.numbers.get(difference_base(stored))
            if base is None:
                return None
            return decode_difference(stored, parent.table(base), size=region.length, digest=region.table)
        difference = JointDifference(stored)
        bases = [parent.numbers.get(ref.digest) for ref in difference.bases]
        tables = [parent.table(number) for number in bases if number is not None]
        return difference.table(tables, size=region.length, digest=region.table) if None not in bases else None

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        """The number of a region for every table digest."""
        numbers = zip(self.manifest.rows, self.used_regions(), strict=True)
        return {row["table"].tobytes(): number for row, number in numbers}

    def locations(self, index: int) -> list[Locations]:
        """Return the parts of a region's locations that exist: fresh, rest."""
        region = self.manifest.region(index)
        return [Locations.from_bytes(self.piece(ref)) for ref in (region.fresh, region.rest) if ref.length]

    def key_files(self) -> Iterator[tuple[int, KeyFile]]:
        """Yield the number and the directory of each key file; ``FormatError`` if one is damaged."""
        for number, file in enumerate(self.manifest.files):
            if file.kind == KEYS:
                yield number, open_keys(self.store, self._names[number], file.length)

    def used_regions(self) -> Iterator[int]:
        """Yield the numbers of the regions that are not all zero."""
        yield from np.flatnonzero(~self.manifest.zero).tolist()


# ---- what show tells


@dataclass(frozen=True, slots=True)
class VersionDetails:
    """A version as ``show`` tells it; sizes in bytes.

    ``download_bytes`` is what a client without anything fetches: ``frame_bytes`` (``frames`` of them, in ``packs``
    packs whose lengths sum to ``pack_bytes``) and ``metadata_bytes``. ``format`` is that of the file it was published
    from. ``disks`` are the version's further disks, which all else is not about.
    """

    image: str
    version: str
    parent: str
    sequence: int
    created: int
    newest: bool
    kind: str
    format: str
    length: int
    digest: str
    flat: str
    segments: tuple[tuple[int, int], ...]
    regions: int
    zero_regions: int
    zero_bytes: int
    chunks: int
    packs: int
    pack_bytes: int
    frames: int
    frame_bytes: int
    metadata_bytes: int
    download_bytes: int
    disks: tuple[VersionDetails, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@runtime_checkable
class Listed(Store, Protocol):
    """A store that also tells which objects it has."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, length) of every object below ``prefix``."""
        ...


def image_names(store: Listed) -> list[str]:
    """Return the names of the images that have a head."""
    names = (name.split("/") for name, _ in store.list("images"))
    return sorted({parts[1] for parts in names if len(parts) == 3 and parts[2] == "head.json"})


def folder_names(store: DirectoryStore) -> list[str]:
    """Return the names of the images that have anything: a head, or files of a version."""
    return sorted({name.split("/")[1] for name, _ in store.list("images") if name.count("/") >= 2})


def version_names(store: Listed, image: str) -> list[str]:
    """Return the names of an image's versions that have a manifest, by name."""
    prefix = f"images/{check_name('image', image)}"
    names = (name.split("/") for name, _ in store.list(prefix))
    return sorted({parts[2] for parts in names if len(parts) == 4 and parts[3] == "manifest.bin"})


def delta_bases(store: Listed, image: str, version: str) -> list[str]:
    """Return the versions from which deltas make a version, by name."""
    return _named_files(store, image, version, "from-")


def host_profiles(store: Listed, image: str, version: str) -> list[str]:
    """Return the host profiles from whose files deltas make a version, by name."""
    return _named_files(store, image, version, "host-")


def _named_files(store: Listed, image: str, version: str, kind: str) -> list[str]:
    prefix = f"images/{check_name('image', image)}/{check_name('version', version)}"
    names = (name.rpartition("/")[2] for name, _ in store.list(prefix))
    return sorted(name[len(kind) : -4] for name in names if name.startswith(kind) and name.endswith(".bin"))


def describe(store: Store, image: str, version: str | None = None) -> VersionDetails:
    """Return the details of a version, the newest by default.

    Raises:
        NotFound: there is no such image or version.
        FormatError, IntegrityError: it is damaged.
    """
    head = read_head(store, image)
    reader = VersionReader(store, read_manifest(store, image, version or head.version, head=head))
    disks = tuple(_details(disk, head, ()) for disk in further_disks(store, reader.manifest))
    return _details(reader, head, disks)


def _details(reader: VersionReader, head: Head, disks: tuple[VersionDetails, ...]) -> VersionDetails:
    """Return the details of one disk of a version."""
    manifest = reader.manifest
    chunks, zero_bytes, frames, packs = _survey(reader)
    rows = manifest.rows
    pieces = sum(int(rows[name]["length"].sum()) for name in ("full", "fresh", "rest"))
    metadata = pieces + len(manifest.to_bytes()) + (0 if manifest.disk else len(head.to_bytes()))
    frame_bytes = int(frames["stored"].sum())
    return VersionDetails(
        image=manifest.image,
        version=manifest.version,
        parent=manifest.parent,
        sequence=manifest.sequence,
        created=manifest.created,
        newest=manifest.version == head.version,
        kind=manifest.kind.name.lower(),
        format=manifest.disk_format,
        length=manifest.length,
        digest=manifest.image_digest().hex(),
        flat=manifest.flat.hex() if manifest.flat else "",
        segments=tuple((segment.start, segment.length) for segment in manifest.segments),
        regions=manifest.region_count,
        zero_regions=int(manifest.zero.sum()),
        zero_bytes=zero_bytes,
        chunks=chunks,
        packs=len(packs),
        pack_bytes=sum(packs.values()),
        frames=len(frames),
        frame_bytes=frame_bytes,
        metadata_bytes=metadata,
        download_bytes=frame_bytes + metadata,
        disks=disks,
    )


_PLACE: Final = np.dtype([("pack", "<u4"), ("offset", "<u4"), ("stored", "<u4")])


def _survey(reader: VersionReader) -> tuple[int, int, NDArray[np.void], dict[bytes, int]]:
    """Return chunk records, zero bytes, distinct frames (dtype ``_PLACE``) and packs (digest to length)."""
    numbers: dict[bytes, int] = {}
    packs: dict[bytes, int] = {}
    places = [np.zeros(0, dtype=_PLACE)]
    chunks, zero_bytes = 0, int(reader.manifest.lengths[reader.manifest.zero].sum())
    for index in reader.used_regions():
        table = reader.table(index)
        chunks += int(np.count_nonzero(~table.zero))
        zero_bytes += int(table.lengths[table.zero].sum())
        for part in reader.locations(index):
            packs.update((ref.digest, ref.length) for ref in part.packs)
            number = np.array([numbers.setdefault(ref.digest, len(numbers)) for ref in part.packs], dtype=np.uint32)
            place = np.zeros(len(part.frames), dtype=_PLACE)
            place["pack"] = number[part.frames["pack"]]
            place["offset"], place["stored"] = part.frames["offset"], part.frames["stored"]
            places.append(np.unique(place))
    return chunks, zero_bytes, np.unique(np.concatenate(places)), packs


def require_repository(store: DirectoryStore) -> None:
    """Raise ``NotFound`` if the directory is none or has nothing published in it."""
    if not (store.path / "images").is_dir():
        raise NotFound("a published image" if store.path.is_dir() else "the repository, a directory,", store.url)
