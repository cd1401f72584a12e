"""What versions need of a repository: the files of each, and the packs, by what these are for.

A version needs files of earlier ones: tables, keys and locations of regions that did not change since. So what a
version that was removed left behind is needed as long as a later one refers to it. Locations are parsed once, however
many versions share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex
from trimtransfer.hostdelta import MAX_HOST_DELTA, HostDelta
from trimtransfer.location import Locations, PackRef
from trimtransfer.manifest import REF, Manifest, stored_ref
from trimtransfer.names import NOTHING, manifest_name
from trimtransfer.pack import pack_name
from trimtransfer.repository.catalogues import current
from trimtransfer.repository.reading import VersionReader, further_disks, read_manifest
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

_NO_PACKS: Final = np.zeros(0, dtype=np.int64)
_INDEXES: Final = ("from-", "host-", "hosts.")


class Use(StrEnum):
    """What packs hold: content of chunks, deltas between versions, deltas from host files, solid units."""

    PLAIN = "packs"
    DELTA = "delta packs"
    HOST = "host delta packs"
    SOLID = "solid packs"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a version needs, all its disks together: names of ``files``, and numbers of packs by their use."""

    image: str
    version: str
    files: frozenset[str]
    packs: dict[Use, NDArray[np.int64]]

    def all_packs(self) -> NDArray[np.int64]:
        """Return the numbers of all packs."""
        return np.unique(np.concatenate([_NO_PACKS, *self.packs.values()]))


class Marker:
    """Finds out what versions need. ``refs`` are the packs, by number. Memory: 100 bytes a pack, and 4 for each pack
    of each stored part of locations."""

    def __init__(self, store: DirectoryStore, watch: Watch = Watch()) -> None:  # noqa: B008 - immutable
        self._store, self._watch = store, watch
        self.refs: list[PackRef] = []
        self._numbers: dict[bytes, int] = {}
        self._parts: dict[tuple[str, int, int], NDArray[np.int64]] = {}

    def names(self, packs: Iterable[int]) -> Iterator[str]:
        """Yield the store names of packs."""
        return (pack_name(self.refs[number].digest) for number in packs)

    def image(self, image: str) -> Iterator[Needs]:
        """Yield the needs of every retained version of an image; raises what :meth:`version` raises."""
        catalogue = current(self._store, image)
        for done, entry in enumerate(catalogue.versions):
            self._watch.report("mark", done, len(catalogue.versions))
            yield self.version(image, entry.version, entry.manifest_digest)

    def version(self, image: str, version: str, digest: bytes) -> Needs:
        """Return the needs of one version.

        Raises:
            NotFound, FormatError, IntegrityError: something that tells of them is missing or damaged.
        """
        manifest = read_manifest(self._store, image, version, digest=digest)
        files, packs = set[str](), dict[Use, set[int]]()
        for reader in (VersionReader(self._store, manifest), *further_disks(self._store, manifest)):
            self._disk(reader, files, packs)
        numbers = {use: np.array(sorted(found), dtype=np.int64) for use, found in packs.items()}
        return Needs(image, version, frozenset(files), numbers)

    def _disk(self, reader: VersionReader, files: set[str], packs: dict[Use, set[int]]) -> None:
        manifest = reader.manifest
        own = manifest_name(manifest.image, manifest.version)
        files.update((own, *manifest.file_names()))
        packs.setdefault(Use.PLAIN, set()).update(self._located(reader).tolist())
        for name, _ in self._store.list(own.rpartition("/")[0]):
            file = name.rpartition("/")[2]
            if file.startswith(_INDEXES):
                files.add(name)
            if file.startswith(_INDEXES[:2]):
                packs.setdefault(_use(file), set()).update(self._indexed(name, file))

    def _located(self, reader: VersionReader) -> NDArray[np.int64]:
        """Return the packs in which the chunks of a disk lie."""
        names, found = reader.manifest.file_names(), [_NO_PACKS]
        for ref in _location_refs(reader.manifest):
            key = names[int(ref["file"])], int(ref["offset"]), int(ref["length"])
            if key not in self._parts:
                self._watch.check()
                self._parts[key] = self._part(reader, ref)
            found.append(self._parts[key])
        return np.unique(np.concatenate(found))

    def _part(self, reader: VersionReader, ref: np.void) -> NDArray[np.int64]:
        stored = reader.piece(stored_ref(ref))
        return self._numbered(Locations.from_bytes(stored).packs)

    def _indexed(self, name: str, file: str) -> Iterator[int]:
        """Yield the packs that an index of deltas names."""
        data = self._store.read(name, limit=max(MAX_INDEX, MAX_HOST_DELTA))
        index = DeltaIndex(data) if file.startswith("from-") else HostDelta(data).index
        for region in index.regions.tolist():
            units = index.units(region)
            yield from self._numbered(units.packs if units is not None else ()).tolist()

    def _numbered(self, refs: Sequence[PackRef]) -> NDArray[np.int64]:
        numbers = [self._numbers.setdefault(ref.digest, len(self._numbers)) for ref in refs]
        for number, ref in zip(numbers, refs, strict=True):
            if number == len(self.refs):
                self.refs.append(ref)
        return np.array(numbers, dtype=np.int64)


def _use(file: str) -> Use:
    if file.startswith("from-"):
        return Use.DELTA
    return Use.SOLID if file == f"host-{NOTHING}.bin" else Use.HOST


def _location_refs(manifest: Manifest) -> NDArray[np.void]:
    """Return the references to stored locations of a manifest (dtype ``REF``), each once."""
    refs = np.concatenate([np.zeros(0, dtype=REF), manifest.rows["fresh"], manifest.rows["rest"]])
    refs = refs[refs["length"] > 0]
    _, first = np.unique(refs[["file", "offset"]], return_index=True)
    return refs[first]
