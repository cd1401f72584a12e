"""Checking a bundle: every byte against what was written, and that it has all that its versions need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from trimtransfer.bundle import BundleVersion
from trimtransfer.bundlestore import BundleStore
from trimtransfer.errors import Cancelled, NotFound, TrimTransferError
from trimtransfer.names import manifest_name
from trimtransfer.pack import pack_name
from trimtransfer.repository.contents import Damage
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import Range
from trimtransfer.watch import Watch

_REMEDY: Final = "copy the bundle again, or make it again; what is intact in it still serves as a seed"


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """What was checked in a bundle, and the damage found."""

    bundle: str
    versions: tuple[BundleVersion, ...]
    length: int
    objects: int
    pieces: int
    read_bytes: int
    damage: tuple[Damage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def check_bundle(store: BundleStore, *, quick: bool = False, watch: Watch = Watch()) -> BundleCheck:  # noqa: B008
    """Check a bundle, which may be open as a ``partial`` one; with ``quick`` its versions' metadata only.

    Raises:
        Cancelled: as asked.
    """
    check = _Check(store, watch)
    if store.problem:
        check.damage[store.url] = f"{store.length:,} bytes expected, {store.problem}"
    if not quick:
        check.pieces()
    for version in store.versions:
        check.version(version)
    return BundleCheck(
        bundle=store.url,
        versions=store.versions,
        length=store.length,
        objects=len(store.directory.names),
        pieces=len(store.directory.pieces),
        read_bytes=check.read_bytes,
        damage=tuple(Damage(name, problem, _REMEDY) for name, problem in check.damage.items()),
    )


class _Check:
    """Collects damage by name, of each object the first."""

    def __init__(self, store: BundleStore, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self.damage: dict[str, str] = {}
        self.read_bytes = 0

    def pieces(self) -> None:
        """Compare every piece with its check."""
        directory = self._store.directory
        first = directory.first.tolist()
        for number, name in enumerate(directory.names):
            with self._noting(name):
                for piece in range(first[number], first[number + 1]):
                    self.read_bytes += len(self._store.piece(piece))
            self._watch.report("verify", int(directory.positions[first[number + 1]]), directory.length)

    def version(self, version: BundleVersion) -> None:
        """Check that a version's metadata are there and right, and, unless it starts from others, its frames."""
        with self._noting(manifest_name(version.image, version.version)):
            reader = VersionReader.open(self._store, version.image, version.version)
            for index in reader.used_regions():
                table = reader.table(index)
                parts = reader.locations(index)
                located = sum(len(part.pieces(table)) for part in parts)
                if located < int(np.count_nonzero(~table.zero)):
                    raise NotFound(f"where chunks of region {index} lie", self._store.url)
                for part in parts if version.complete else ():
                    for frame in part.frames[np.unique(part.pieces(table)["frame"])]:
                        pack = part.packs[int(frame["pack"])]
                        place = Range(pack_name(pack.digest), int(frame["offset"]), int(frame["stored"]), pack.length)
                        if sum(length for _, length, _ in self._store.held(place)) != place.length:
                            raise NotFound(f"{place.name}, byte {place.start}", self._store.url)
                self._watch.check()

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Take an error in the block for damage of the object ``name``."""
        try:
            yield
        except Cancelled:
            raise
        except (TrimTransferError, OSError) as error:
            self.damage.setdefault(name, str(error))
