"""What a repository consists of: bytes by kind and by use, what versions share, and how scattered the newest are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.names import disk_name
from trimtransfer.repository.catalogues import current
from trimtransfer.repository.collecting import Garbage, collected_objects, needed_names
from trimtransfer.repository.marking import Marker, Needs, Use
from trimtransfer.repository.quarantine import Moment, read_quarantine
from trimtransfer.repository.reading import VersionDetails, describe, image_names, read_manifest, require_repository
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Progress, Watch

_FILES: Final = {
    "manifest.bin": "manifests",
    "tables.bin": "tables",
    "locations.bin": "locations",
    "keys.bin": "keys",
}


@dataclass(frozen=True, slots=True)
class VersionUse:
    """What a version takes, in bytes: ``length`` of the image, ``stored_bytes`` of what it refers to, ``own_bytes`` of
    that which no other retained version does: what removing it alone would free."""

    version: str
    length: int
    stored_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """An image: its versions, oldest first, and the newest one's fragmentation: what a client with nothing fetches of
    ``packs`` packs in ``frames`` frames, ``frame_bytes`` of ``pack_bytes``."""

    image: str
    versions: tuple[VersionUse, ...]
    packs: int
    pack_bytes: int
    frames: int
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """A repository: objects by kind, of which ``live`` ones are needed, ``unused`` ones are not; of these those in
    ``quarantine`` age already. ``image_bytes`` are the lengths of all versions together, ``ratio`` that divided
    by all live bytes."""

    kinds: dict[str, Garbage]
    live: Garbage
    unused: Garbage
    quarantine: Garbage
    image_bytes: int
    ratio: float
    images: tuple[ImageStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def statistics(
    repository: str | os.PathLike[str], *, image: str | None = None, progress: Progress | None = None
) -> Statistics:
    """Return what a repository consists of; ``image``: versions of this one only. Reads metadata, no content.

    Raises:
        NotFound: there is no repository, or no such image.
        FormatError, IntegrityError: something that tells what is needed is damaged or missing.
    """
    store = DirectoryStore(repository)
    require_repository(store)
    if image is not None:
        current(store, image)
    marker = Marker(store, Watch(progress))
    sizes, needed = collected_objects(store), needed_names(store, marker)
    uses = {name: list(marker.image(name)) for name in image_names(store)}
    counts = _counts(uses)
    images = tuple(_image(store, marker, name, some, sizes, counts) for name, some in uses.items())
    total = sum(version.length for one in images for version in one.versions)
    live = Garbage.of(size for name, size in sizes.items() if name in needed)
    held = read_quarantine(store, Moment.now()).ages
    return Statistics(
        kinds=_kinds(marker, [needs for some in uses.values() for needs in some], sizes),
        live=live,
        unused=Garbage.of(size for name, size in sizes.items() if name not in needed),
        quarantine=Garbage.of(size for name, size in sizes.items() if name not in needed and name in held),
        image_bytes=total,
        ratio=round(total / max(1, live.bytes), 2),
        images=tuple(one for one in images if image in (None, one.image)),
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    """How many versions need each pack (by number) and each file (by name)."""

    packs: NDArray[np.int64]
    files: Counter[str]


def _counts(uses: dict[str, list[Needs]]) -> _Counts:
    every = [needs for some in uses.values() for needs in some]
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *(needs.all_packs() for needs in every)])
    return _Counts(np.bincount(numbers), Counter(name for needs in every for name in needs.files))


def _image(
    store: DirectoryStore,
    marker: Marker,
    image: str,
    uses: Sequence[Needs],
    sizes: dict[str, int],
    counts: _Counts,
) -> ImageStatistics:
    lengths = np.array([ref.length for ref in marker.refs] or [0], dtype=np.int64)
    versions = tuple(_version(store, needs, sizes, lengths, counts) for needs in uses)
    newest = describe(store, image)
    disks: tuple[VersionDetails, ...] = (newest, *newest.disks)

    def total(name: str) -> int:
        return sum(int(getattr(disk, name)) for disk in disks)

    return ImageStatistics(image, versions, total("packs"), total("pack_bytes"), total("frames"), total("frame_bytes"))


def _version(
    store: DirectoryStore, needs: Needs, sizes: dict[str, int], lengths: NDArray[np.int64], counts: _Counts
) -> VersionUse:
    packs = needs.all_packs()
    stored = int(lengths[packs].sum()) + sum(sizes.get(name, 0) for name in needs.files)
    own = int(lengths[packs[counts.packs[packs] == 1]].sum())
    own += sum(sizes.get(name, 0) for name in needs.files if counts.files[name] == 1)
    manifest = read_manifest(store, needs.image, needs.version)
    further = range(1, 1 + len(manifest.disks))
    disks = (read_manifest(store, disk_name(needs.image, number), needs.version) for number in further)
    return VersionUse(needs.version, manifest.length + sum(disk.length for disk in disks), stored, own)


def _kinds(marker: Marker, every: Sequence[Needs], sizes: dict[str, int]) -> dict[str, Garbage]:
    """Return what lives by kind: packs by use (one with several by the first), files by name."""
    found: dict[str, list[int]] = {}
    seen = np.zeros(len(marker.refs), dtype=np.bool_)
    for use in Use:
        for needs in every:
            packs = needs.packs.get(use, np.zeros(0, dtype=np.int64))
            fresh = packs[~seen[packs]]
            found.setdefault(str(use), []).extend(marker.refs[number].length for number in fresh.tolist())
            seen[fresh] = True
    for name in sorted({name for needs in every for name in needs.files}):
        kind = _FILES.get(name.rpartition("/")[2], "delta indexes")
        found.setdefault(kind, []).append(sizes.get(name, 0))
    return {kind: Garbage.of(some) for kind, some in found.items() if some}
