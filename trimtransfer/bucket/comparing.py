"""Whether a directory and a place in an object store have the same under a name, read from neither where possible.

Packs are named by their content. Files of a version are told apart by the manifest's digest in the catalogues of both:
under the same name there may lie those of another version, left by a writer that died, or of one removed since.
All others, and these where the catalogues do not agree, are compared by length and entity tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trimtransfer.bucket.commit import is_lasting
from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.uploading import PART, is_tag, tag_of
from trimtransfer.bucket.wire import Wire
from trimtransfer.catalogue import Catalogue
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.names import catalogue_name, further_disk_of
from trimtransfer.repository.catalogues import stored_catalogue
from trimtransfer.store import DirectoryStore


def objects_of(wire: Wire) -> dict[str, Listed]:
    """Return the objects of the repository by name."""
    return {one.name: one for one in wire.objects() if not one.name.startswith(".")}


class Comparison:
    """Of the directory ``store`` with what a place had when it was listed (``there``). Not for several threads.

    ``least`` is the least length of the parts that files are sent in.
    """

    def __init__(self, wire: Wire, store: DirectoryStore, there: Mapping[str, Listed], *, least: int = PART) -> None:
        self._wire, self._store, self._there, self._least = wire, store, there, least
        self._agreed: dict[str, frozenset[str]] = {}

    def same(self, name: str) -> bool:
        """Tell whether both have the same object of this name; one that cannot be compared is another."""
        one = self._there.get(name)
        if one is None or not self._store.holds(name, one.length):
            return False
        if name.startswith("packs/") or (is_lasting(name) and self._is_agreed(name)):
            return True
        return is_tag(one.etag) and one.etag in (tag_of(self.path(name), least=self._least), tag_of(self.path(name)))

    def path(self, name: str) -> Path:
        """Return where an object is in the directory."""
        return self._store.path.joinpath(*name.split("/"))

    def _is_agreed(self, name: str) -> bool:
        """Tell whether a file is of a version that both have, by the digest of its manifest."""
        _, folder, version, _ = name.split("/")
        image = further_disk_of(folder) or folder
        if image not in self._agreed:
            here, there = _digests(self._here(image)), _digests(self._remote(image))
            self._agreed[image] = frozenset(one for one in here if here[one] == there.get(one))
        return version in self._agreed[image]

    def _here(self, image: str) -> Catalogue:
        try:
            return stored_catalogue(self._store, image)
        except FormatError:
            return Catalogue(image)

    def _remote(self, image: str) -> Catalogue:
        try:
            return Catalogue.from_bytes(self._wire.ask("GET", catalogue_name(image)).body)
        except (NotFound, FormatError):
            return Catalogue(image)


def _digests(catalogue: Catalogue) -> dict[str, bytes]:
    return {entry.version: entry.manifest_digest for entry in catalogue.versions}
