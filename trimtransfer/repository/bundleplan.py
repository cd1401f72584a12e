"""Planning a bundle: which objects of a repository, and which parts of them, machines need for some versions.

Of each version all metadata - manifest, tables, differences, locations, keys - so that it can be synced in every way;
of packs only the frames that the version needs, or, where the bundle starts from other versions, that machines with one
of those lack. The metadata are fetched into a temporary file on the way: the frames follow from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.bundle import PIECE, BundleVersion, Directory, piece_array
from trimtransfer.chunk import CHECK_SIZE, Kind
from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex, Units
from trimtransfer.disk.source import open_disk
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.index.disk import seed_from_disk
from trimtransfer.location import Locations, PackRef
from trimtransfer.manifest import KEYS, REFS, Manifest
from trimtransfer.names import deltas_name, head_name, manifest_name
from trimtransfer.pack import PACK_MAGIC, pack_name
from trimtransfer.repository.bundlemetadata import signed_files
from trimtransfer.repository.bundleparts import Part, Span, Spill
from trimtransfer.repository.catalogues import head_of
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.reading import further_disks, read_head, read_manifest
from trimtransfer.spill import Rows
from trimtransfer.store import Store
from trimtransfer.table import Table, decode_full
from trimtransfer.watch import Watch

WHOLE_SHARE: Final = 0.95
"""A pack of which this share or more is needed goes into the bundle whole: one request, one piece, one digest."""
_FRAME: Final = np.dtype([("pack", "<u4"), ("offset", "<u4"), ("stored", "<u4"), ("check", "u1", (CHECK_SIZE,))])

Lacks: TypeAlias = Callable[[Table], NDArray[np.bool_]]
"""Tells which records of a table a machine lacks that has something else."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Versions of an image that go into a bundle (none: the newest), and those of which machines have one; ``deltas``:
    take deltas from these instead of what they make."""

    image: str
    versions: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    deltas: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What goes into a bundle: its directory, whose checks are not known yet, and where each piece comes from.

    ``pieces`` has one (part, span) for each piece of the directory; from ``first_pack`` on they are of packs.
    """

    directory: Directory
    pieces: list[tuple[Part, Span]]
    first_pack: int

    @property
    def pack_bytes(self) -> int:
        """Bytes of packs."""
        return int(self.directory.pieces["length"][self.first_pack :].sum(dtype=np.int64))


class Planner:
    """Reads the metadata of versions and finds what goes into a bundle. A context manager: ``spill`` is its file."""

    def __init__(self, store: Store, directory: Path, watch: Watch) -> None:
        self._store, self._directory, self._watch = store, directory, watch
        self._stack = ExitStack()
        self.spill = self._stack.enter_context(closing(Spill(store, directory, watch)))
        self._objects: dict[str, Part] = {}
        self._versions: list[BundleVersion] = []
        self._signed = False
        self._packs: dict[PackRef, int] = {}
        self._frames = self._stack.enter_context(closing(Rows(_FRAME, directory)))
        self._done = self._total = 0

    def __enter__(self) -> Planner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def plan(self, wanted: Sequence[Wanted], files: Sequence[str | os.PathLike[str]] = ()) -> Contents:
        """Return what goes into the bundle; ``files`` are images of which machines have one.

        Raises:
            NotFound: no such image or version.
            FormatError, IntegrityError: the repository is damaged, or one of the files.
        SourceRefused, OSError: a file cannot be read.
        """
        for one in wanted:
            self._image(one, files)
        if self._signed:
            for name, data in signed_files(self._store, dict.fromkeys(one.image for one in wanted)):
                self._add_data(name, data)
        metadata = list(self._objects.values())
        return _contents(self._versions, metadata, list(self._pack_parts()))

    def _image(self, wanted: Wanted, files: Sequence[str | os.PathLike[str]]) -> None:
        head = read_head(self._store, wanted.image)
        names = dict.fromkeys(wanted.versions or (head.version,))
        manifests = [read_manifest(self._store, wanted.image, name, head=head) for name in names]
        newest = max(manifests, key=lambda manifest: manifest.sequence)
        self._signed |= bool(head.signed)
        self._add_data(head_name(wanted.image), head_of(newest, signed=head.signed).to_bytes())
        names = dict.fromkeys(wanted.bases)
        bases = [read_manifest(self._store, wanted.image, name, head=head) for name in names]
        for manifest in manifests:
            self._versions.append(
                BundleVersion(wanted.image, manifest.version, tuple(names), bool(files), wanted.deltas)
            )
        for number in range(1 + max(len(manifest.disks) for manifest in manifests)):
            disks = [disk for one in manifests if (disk := self._disk(one, number)) is not None]
            before = [self._disk(base, number) for base in bases]
            self._disks(disks, before, files, deltas=wanted.deltas)

    def _disk(self, manifest: Manifest, number: int) -> Manifest | None:
        """Return the manifest of a disk of a version, by number; None if it has no such disk."""
        disks = [manifest, *(disk.manifest for disk in further_disks(self._store, manifest))]
        return disks[number] if number < len(disks) else None

    def _disks(
        self,
        manifests: Sequence[Manifest],
        bases: Sequence[Manifest | None],
        files: Sequence[str | os.PathLike[str]],
        *,
        deltas: bool,
    ) -> None:
        """Add the same disk of versions; ``bases`` are what machines have in its place, None: nothing."""
        known = [base for base in bases if base is not None]
        with ExitStack() as stack:
            lacks: list[Lacks] = []
            if len(known) == len(bases):  # else all of it is lacking somewhere
                lacks += [self._base(base, stack) for base in known]
                lacks += [self._file(path, manifests[0].kind, stack) for path in files]
            for manifest in manifests:
                self._add_data(manifest_name(manifest.image, manifest.version), manifest.to_bytes())
                parts = list(_metadata(manifest))
                self._add(parts)
                self.spill.fetch(parts)
                index = self._deltas(manifest, known[0]) if deltas and known else None
                self._find_frames(manifest, lacks, index)

    def _base(self, manifest: Manifest, stack: ExitStack) -> Lacks:
        """Return what a machine lacks that has a version."""
        self.spill.fetch(_metadata(manifest, refs=("full",), keys=False))
        tables = stack.enter_context(closing(Inventory(lambda: self._tables(manifest), self._directory)))
        return lambda table: tables.find(table) < 0

    def _file(self, path: str | os.PathLike[str], kind: Kind, stack: ExitStack) -> Lacks:
        """Return what a machine lacks that has the image in a file."""
        watch = self._watch
        seed = seed_from_disk(
            open_disk(path), kind, directory=self._directory, progress=watch.progress, cancel=watch.cancel
        )
        stack.callback(seed.close)
        return lambda table: seed.find(table.prefixes, table.lengths) < 0

    def _tables(self, manifest: Manifest) -> Iterator[tuple[int, Table]]:
        names = manifest.file_names()
        for number in np.flatnonzero(~manifest.zero).tolist():
            region = manifest.region(number)
            self._watch.report("plan", region.start + region.length, manifest.length)
            stored = self.spill.piece(names[region.full.file], region.full)
            yield number, decode_full(stored, size=region.length, digest=region.table)

    def _deltas(self, manifest: Manifest, base: Manifest) -> DeltaIndex | None:
        """Take the index of the deltas from a version along and return it; None for a further disk that has none."""
        name = deltas_name(manifest.image, manifest.version, base.version)
        try:
            data = self._store.read(name, limit=MAX_INDEX)
        except NotFound as error:
            if manifest.disk:
                return None
            what = f"deltas of {manifest.image} {manifest.version} from {base.version} (see `medv-repo delta`)"
            raise NotFound(what, error.url) from error
        index = DeltaIndex(data)
        if (index.target, index.base) != (manifest.digest(), base.digest()):
            raise FormatError(name, "header", "the digests of these versions", "others")
        self._add_data(name, data)
        return index

    def _find_frames(self, manifest: Manifest, lacks: Sequence[Lacks], deltas: DeltaIndex | None) -> None:
        """Note the frames in which chunks of a version lie, those that some machine lacks; or deltas that make them."""
        names = manifest.file_names()
        for number, table in self._tables(manifest):
            needed = ~table.zero
            if lacks:
                needed &= np.logical_or.reduce([lack(table) for lack in lacks])
            units = deltas.units(number) if deltas is not None else None
            if units is not None:
                units = units.select(np.flatnonzero(units.units["tools"] == 0))  # others may not work where it is used
                needed[units.pieces(table)["record"]] = False
                self._add_frames(units, np.arange(len(units.units)))
            region = manifest.region(number)
            located = np.zeros(len(table), dtype=np.bool_)
            for ref in (region.fresh, region.rest):
                if ref.length:
                    part = Locations.from_bytes(self.spill.piece(names[ref.file], ref))
                    pieces = part.pieces(table)
                    located[pieces["record"]] = True
                    self._add_frames(part, np.unique(pieces["frame"][needed[pieces["record"]]]))
            if (needed & ~located).any():
                where = f"{manifest.version}, region {number}"
                raise FormatError("locations", where, "each chunk located", "none")

    def _add_frames(self, part: Locations | Units, chosen: NDArray[Any]) -> None:
        frames = part.frames[chosen]
        used = np.unique(frames["pack"]).tolist()
        numbers = np.zeros(len(part.packs), dtype=np.uint32)
        for pack in used:
            numbers[pack] = self._packs.setdefault(part.packs[pack], len(self._packs))
        rows = np.zeros(len(frames), dtype=_FRAME)
        for name in ("offset", "stored", "check"):
            rows[name] = frames[name]
        rows["pack"] = numbers[frames["pack"]]
        self._frames.append(rows)

    def _pack_parts(self) -> Iterator[Part]:
        """Yield what is needed of packs, in the order in which the versions use them."""
        rows = self._frames.array()
        rows = rows[np.lexsort((rows["stored"], rows["offset"], rows["pack"]))]
        fresh = np.ones(len(rows), dtype=np.bool_)
        fresh[1:] = (rows["pack"][1:] != rows["pack"][:-1]) | (rows["offset"][1:] != rows["offset"][:-1])
        rows = rows[fresh]
        ends = np.searchsorted(rows["pack"], np.arange(len(self._packs)), side="right").tolist()
        for ref, first, last in zip(self._packs, [0, *ends], ends, strict=False):
            name, frames = pack_name(ref.digest), rows[first:last]
            stored = int(frames["stored"].sum(dtype=np.int64))
            if stored >= WHOLE_SHARE * ref.length or stored + len(PACK_MAGIC) >= ref.length:
                yield Part.whole(name, ref.length, ref.digest)
                continue
            pieces = np.zeros(len(frames), dtype=PIECE)
            pieces["start"], pieces["length"], pieces["check"] = frames["offset"], frames["stored"], frames["check"]
            yield Part(name, ref.length, pieces)

    def _add(self, parts: Iterable[Part]) -> None:
        for part in parts:
            known = self._objects.get(part.name)
            self._objects[part.name] = part if known is None or part.digest is not None else _joined(known, part)

    def _add_data(self, name: str, data: bytes) -> None:
        self._objects[name] = Part.of(name, data)


def _metadata(manifest: Manifest, *, refs: Sequence[str] = REFS, keys: bool = True) -> Iterator[Part]:
    """Yield what a version's manifest names: stored pieces of files of tables and locations, and whole key files."""
    rows = [manifest.rows[name] for name in refs]
    named = np.concatenate([row[row["length"] > 0] for row in rows])
    for number, (file, name) in enumerate(zip(manifest.files, manifest.file_names(), strict=True)):
        if file.kind == KEYS:
            if keys:
                yield Part.whole(name, file.length, file.digest)
            continue
        here = named[named["file"] == number]
        if len(here):
            pieces = np.zeros(len(here), dtype=PIECE)
            pieces["start"], pieces["length"], pieces["check"] = here["offset"], here["length"], here["check"]
            yield Part(name, file.length, _distinct(pieces))


def _joined(one: Part, other: Part) -> Part:
    """Return what either part needs of an object."""
    return Part(one.name, one.length, _distinct(np.concatenate((one.pieces, other.pieces))))


def _distinct(pieces: NDArray[np.void]) -> NDArray[np.void]:
    """Return pieces in order, each once."""
    pieces = pieces[np.lexsort((pieces["length"], pieces["start"]))]
    fresh = np.ones(len(pieces), dtype=np.bool_)
    fresh[1:] = (pieces["start"][1:] != pieces["start"][:-1]) | (pieces["length"][1:] != pieces["length"][:-1])
    return pieces[fresh]


def _contents(versions: Sequence[BundleVersion], metadata: Sequence[Part], packs: Sequence[Part]) -> Contents:
    parts = (*metadata, *packs)
    spans = [part.spans() for part in parts]
    first = np.cumsum([0, *(len(found) for found in spans)], dtype=np.int64)
    directory = Directory(
        tuple(versions),
        tuple(part.name for part in parts),
        np.array([part.length for part in parts], dtype=np.int64),
        first,
        piece_array([(span.start, span.length) for found in spans for span in found]),
    )
    pieces = [(part, span) for part, found in zip(parts, spans, strict=True) for span in found]
    return Contents(directory, pieces, int(first[len(metadata)]))
