"""Checking the deltas of versions: their indexes, that their packs are there, and that each unit makes its chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes, chunk_digest, object_check
from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex, Units
from trimtransfer.errors import Cancelled, FormatError, IntegrityError, NotFound, TrimTransferError
from trimtransfer.manifest import Manifest
from trimtransfer.names import deltas_name
from trimtransfer.pack import MAX_PACK, check_pack, pack_name
from trimtransfer.repository.contents import Damage, Sample
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.reading import VersionReader, delta_bases
from trimtransfer.store import DirectoryStore
from trimtransfer.tool import usable
from trimtransfer.unit import make
from trimtransfer.watch import Watch

T = TypeVar("T")

_REMEDY: Final = "delete it, or make it again with `medv-repo delta`: clients fetch plain packs instead"


class DeltaCheck:
    """Checks deltas. ``packs`` are the digests of their packs, ``read`` of those that were read; ``units`` counts what
    was made."""

    def __init__(self, store: DirectoryStore, *, sample: Sample, quick: bool, watch: Watch) -> None:
        """A sample of the units is made; with ``quick`` none."""
        self._store, self._watch = store, watch
        self._sample, self._quick = sample, quick
        self.packs: set[bytes] = set()
        self.read: set[bytes] = set()
        self.damage: list[Damage] = []
        self.units = 0
        self._pack = b"", b""  # the one read last, by its digest: units of a region lie in few

    def run(self, target: Manifest, versions: Mapping[str, Manifest]) -> None:
        """Check all deltas that make ``target``; ``versions`` of its image by name. Of those that start from a version
        that was removed only the index is looked at: they serve clients that have it still."""
        for version in delta_bases(self._store, target.image, target.version):
            name = deltas_name(target.image, target.version, version)
            try:
                index = DeltaIndex(self._store.read(name, limit=MAX_INDEX))
                if version in versions:
                    self._check(index, target, versions[version])
                else:
                    self._note_packs(index)
            except Cancelled:
                raise
            except (TrimTransferError, OSError) as error:
                self.damage.append(Damage(name, str(error), _REMEDY))

    def _note_packs(self, index: DeltaIndex) -> None:
        for number in index.regions.tolist():
            units = index.units(number)
            self.packs.update(ref.digest for ref in (units.packs if units is not None else ()))

    def _check(self, index: DeltaIndex, target: Manifest, base: Manifest) -> None:
        for what, manifest, found in (("target", target, index.target), ("base", base, index.base)):
            if manifest.digest() != found:
                raise IntegrityError(f"{what} of a delta index", manifest.digest(), found)
        old = ChunkReader(VersionReader(self._store, base))
        self.check_index(index, target, lambda runs: _sound(partial(_base, runs, old)))

    def check_index(
        self, index: DeltaIndex, target: Manifest, base: Callable[[NDArray[np.void]], Bytes | None]
    ) -> None:
        """Check units that make ``target``; ``base`` returns what base runs hold, None where that cannot be had. Units
        that need tools which do otherwise here are not made.

        Raises:
            FormatError, IntegrityError, NotFound: they are damaged.
        """
        new, here = ChunkReader(VersionReader(self._store, target)), np.uint32(usable(index.tool_checks()))
        for done, (number, units) in enumerate(made_regions(index, target)):
            for ref in units.packs:
                self.packs.add(ref.digest)
                if self._store.size(pack_name(ref.digest)) != ref.length:
                    raise FormatError(pack_name(ref.digest), "its end", f"{ref.length:,} bytes", "another length")
            region = _sound(partial(new.region, number))
            if region is not None:
                units = units.select(np.flatnonzero((units.units["tools"] & ~here) == 0))
                self._check_units(units, units.pieces(region[0]), region[0].digests, base)
            self._watch.report("deltas", done + 1, len(index.regions))

    def _check_units(
        self,
        units: Units,
        pieces: NDArray[np.void],
        digests: NDArray[np.uint8],
        base_of: Callable[[NDArray[np.void]], Bytes | None],
    ) -> None:
        for number, chosen in self._chosen(units):
            row = units.units[number]
            pack = self._read_pack(units.packs[int(row["pack"])].digest)
            delta = memoryview(pack)[int(row["offset"]) :][: int(row["stored"])]
            if object_check(delta) != row["check"].tobytes():
                raise IntegrityError("delta", row["check"].tobytes(), object_check(delta))
            base = base_of(chosen)
            if base is None:
                continue
            content = memoryview(make(delta, base, limit=int(row["raw"])))
            for piece in pieces[pieces["frame"] == number]:
                start = int(piece["start"])
                found = chunk_digest(content[start : start + int(piece["length"])])
                expected = digests[int(piece["record"])].tobytes()
                if found != expected:
                    raise IntegrityError(f"chunk at byte {start} of what a delta makes", expected, found)
            self.units += 1

    def _read_pack(self, digest: bytes) -> bytes:
        if self._pack[0] != digest:
            data = self._store.read(pack_name(digest), limit=MAX_PACK)
            check_pack(data, digest)
            self._pack = digest, data
            self.read.add(digest)
        return self._pack[1]

    def _chosen(self, units: Units) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Yield units to be made, with their base runs."""
        ends = np.cumsum(units.units["bases"], dtype=np.int64)
        for number, end in enumerate(ends.tolist()):
            if not self._quick and self._sample.takes():
                yield number, units.bases[end - int(units.units["bases"][number]) : end]


def made_regions(index: DeltaIndex, target: Manifest) -> Iterator[tuple[int, Units]]:
    """Yield the regions that an index makes something of, each by number, with its units; ``FormatError`` and
    ``IntegrityError`` if the index is damaged, or they are none of a disk like ``target``."""
    for number in index.regions.tolist():
        units = index.units(number)
        if units is None or number >= target.region_count or target.zero[number]:
            raise FormatError("delta index", "directory", "regions that are not all zero", number)
        yield number, units


def _sound(read: Callable[[], T]) -> T | None:
    """Return what plain clients need, too; None if it is damaged, which is noted elsewhere."""
    try:
        return read()
    except (FormatError, IntegrityError, NotFound, OSError):
        return None


def _base(runs: NDArray[np.void], old: ChunkReader) -> memoryview:
    """Return the content that a unit starts from."""
    parts = [
        (int(run["region"]), list(range(int(run["record"]), int(run["record"]) + int(run["count"])))) for run in runs
    ]
    sizes = [int(old.region(region)[0].lengths[records].sum(dtype=np.int64)) for region, records in parts]
    base = memoryview(bytearray(sum(sizes)))
    at = 0
    for region, records in parts:
        at += old.read(region, records, base[at:])
    return base
