"""Last part of a publish: the version's tables, their keys, and locations, stored where the parent's do not serve, and
its manifest.

A file holds first what a fresh client reads, in region order, then what only some clients read: whole tables, then
differences; fresh locations, then the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import object_check, object_hasher
from trimtransfer.durable import StagedObject
from trimtransfer.errors import IntegrityError
from trimtransfer.joint import MAX_BASES, BaseRef, encode_joint
from trimtransfer.keys import KEY_SIZE, KeyFile, directory
from trimtransfer.location import RUN, Locations
from trimtransfer.manifest import KEYS, LOCATIONS, MAX_FILES, REF, REFS, ROW, TABLES, FileRef, Manifest, StoredRef
from trimtransfer.names import keys_name, locations_name, tables_name
from trimtransfer.repository.dedupe import Packs
from trimtransfer.repository.inventory import AGAIN, IN_PARENT, Inventory
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.survey import Survey, comparable
from trimtransfer.spill import Pieces, Rows
from trimtransfer.store import DISK_REMEDY, DirectoryStore
from trimtransfer.table import Table, encode_difference, encode_full

_OWN: Final = {TABLES: 0, LOCATIONS: 1}
"""Numbers of the version's own files of pieces among the files of its manifest, while it is made."""
_OWN_KEYS: Final = 2


@dataclass(frozen=True, slots=True)
class Names:
    """What a version is called, when it was made (sequence number, seconds since 1970), from what format of file."""

    image: str
    version: str
    parent: str
    sequence: int
    created: int
    disk_format: str = "raw"
    disk: int = 0
    disks: tuple[FileRef, ...] = ()
    """Its number in a version of several disks; the manifests of the others, if it is the first."""


class _Keys:
    """Keys of the tables that are stored in this version, each table's once, until they are written."""

    def __init__(self, parent: VersionReader | None, directory: Path) -> None:
        self._parent, self._pieces = parent, Pieces(directory)
        self._tables: dict[bytes, int] = {}
        self._known: list[KeyFile] | None = None

    def add(self, table: bytes, keys: bytes) -> None:
        """Add the keys of the chunks of a table, named by its digest."""
        if keys and table not in self._tables:
            self._tables[table] = len(keys) // KEY_SIZE
            self._pieces.append(keys)

    def copy(self, table: bytes) -> None:
        """Add the keys that an earlier version has for a table; none if there are none."""
        if self._known is None:
            self._known = [file for _, file in self._parent.key_files()] if self._parent is not None else []
        for file in self._known:
            number = file.find(table)
            if number is not None:
                self.add(table, file.keys(number).astype("<u8").tobytes())

    def parts(self) -> Iterator[bytes]:
        """Yield what the key file consists of; nothing if there are no keys."""
        if self._tables:
            yield directory(list(self._tables.items()))
        for number in range(len(self._pieces)):
            yield self._pieces[number]

    def close(self) -> None:
        """Give the temporary file back."""
        self._pieces.close()


class MetadataWriter:
    """Writes tables and locations of a version, region by region; a context manager around its temporary files."""

    def __init__(
        self, store: DirectoryStore, names: Names, survey: Survey, parent: VersionReader | None, directory: Path
    ) -> None:
        self._store, self._names, self._survey, self._parent = store, names, survey, parent
        self._rows = Rows(ROW, directory)
        self._early = {kind: Pieces(directory) for kind in _OWN}
        self._late = {kind: Pieces(directory) for kind in _OWN}
        self._placed = {kind: [0, 0] for kind in _OWN}  # bytes in the early and the late part of each file
        self._keys = _Keys(parent, directory)
        self._key_bytes = 0
        self._files: list[FileRef | None] = [None, None, None]
        self._numbers: dict[int, int] = {}  # file number in the parent's manifest -> file number here
        self._full: dict[bytes, Any] = {}  # table digest -> reference of the whole table, stored in this version
        manifest = parent.manifest if parent else None
        self._comparable = comparable(manifest, survey.kind, survey.starts)
        self._known = _known_tables(manifest)
        self._row_of = np.cumsum(~manifest.zero) - 1 if manifest else np.zeros(0, dtype=np.int64)

    def __enter__(self) -> MetadataWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._rows.close()
        for pieces in (*self._early.values(), *self._late.values()):
            pieces.close()
        self._keys.close()

    def add(self, index: int, table: Table, inventory: Inventory, packs: Packs) -> None:
        """Add region ``index`` with this table; its chunks must all have their places in the inventory."""
        row = self._new_row(index)
        numbers = inventory.find(table)
        parent_row = self._parent_row(index)
        same = bool(self._survey.same[index])
        unmoved = not (inventory.marks[numbers[~table.zero]] & AGAIN).any()
        if same:
            self._refer(row, parent_row, ("full", "difference"))
        else:
            self._add_table(row, index, table, self._differences(index, table, parent_row, numbers, inventory))
        if same and unmoved:
            self._refer(row, parent_row, ("fresh", "rest"))
        else:
            self._add_locations(row, table, numbers, inventory, packs)
        self._rows.append(row.reshape(1))

    def add_unchanged(self, index: int) -> None:
        """Add a region that is the same as in the parent, and whose chunks all stay where they are."""
        row = self._new_row(index)
        self._refer(row, self._parent_row(index), REFS)
        self._rows.append(row.reshape(1))

    def finish(self) -> Manifest:
        """Write the files and return the manifest."""
        rows, names = self._rows.array(), self._names
        for kind, number in _OWN.items():
            name = (tables_name if kind == TABLES else locations_name)(names.image, names.version)
            self._files[number] = self._write_file(kind, name, names.version, self._parts(kind))
        name = keys_name(names.image, names.version)
        keys = self._files[_OWN_KEYS] = self._write_file(KEYS, name, names.version, self._keys.parts())
        self._key_bytes = keys.length if keys else 0
        self._settle(rows)
        survey = self._survey
        return Manifest(
            image=names.image,
            version=names.version,
            parent=names.parent,
            sequence=names.sequence,
            created=names.created,
            disk_format=names.disk_format,
            kind=survey.kind,
            length=int(survey.lengths.sum()),
            segments=survey.segments,
            files=(*(file for file in self._files if file is not None), *names.disks),
            disk=names.disk,
            zero=survey.zero,
            rows=rows,
            flat=survey.flat,
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes of the version's own tables, keys and locations."""
        return sum(sum(parts) for parts in self._placed.values()) + self._key_bytes

    def _new_row(self, index: int) -> Any:
        row = np.zeros((), dtype=ROW)
        row["content"], row["table"] = self._survey.content[index], self._survey.digests[index]
        return row

    def _parent_row(self, index: int) -> Any:
        """Return the parent's row of the same region, None where there is none that compares."""
        if self._parent is None or not self._comparable[index] or self._parent.manifest.zero[index]:
            return None
        return self._parent.manifest.rows[self._row_of[index]]

    def _differences(
        self, index: int, table: Table, parent_row: Any, numbers: NDArray[np.int64], inventory: Inventory
    ) -> Iterator[bytes]:
        """Yield the forms of a table that make use of the parent's tables."""
        if self._parent is None:
            return
        if parent_row is not None:
            yield encode_difference(table, self._parent.table(index))
        joint = _joint(table, numbers, inventory, self._parent.manifest)
        if joint is not None:
            yield joint

    def _add_table(self, row: Any, index: int, table: Table, differences: Iterator[bytes]) -> None:
        """Store a table whole, unless this version or the parent has it, and as a difference if that is smaller."""
        digest = row["table"].tobytes()
        if digest in self._full:
            row["full"] = self._full[digest]
            return
        if digest in self._known and self._parent is not None:
            self._refer(row, self._parent.manifest.rows[self._known[digest]], ("full",))
        else:
            row["full"] = self._store_piece(TABLES, encode_full(table))
            self._keys.add(digest, self._survey.keys(index))
            least = min(differences, key=len, default=b"")
            if 0 < len(least) < int(row["full"]["length"]):
                row["difference"] = self._store_piece(TABLES, least, late=True)
        self._full[digest] = row["full"].copy()

    def _add_locations(
        self, row: Any, table: Table, numbers: NDArray[np.int64], inventory: Inventory, packs: Packs
    ) -> None:
        records = np.flatnonzero(~table.zero)
        fresh = (inventory.marks[numbers[records]] & IN_PARENT) == 0
        for name, part in (("fresh", records[fresh]), ("rest", records[~fresh])):
            if len(part):
                located = _locate(table, part, numbers[part], inventory, packs)
                row[name] = self._store_piece(LOCATIONS, located.to_bytes(), late=name == "rest")

    def _refer(self, row: Any, parent_row: Any, names: tuple[str, ...]) -> None:
        """Let a row refer to the parent's stored pieces; copy them where too many files are referred to already."""
        for name in names:
            ref = parent_row[name]
            if not int(ref["length"]):
                continue
            number = self._file_number(int(ref["file"]))
            if number is None:
                row[name] = self._copy_piece(name, ref)
                if name == "full":
                    self._keys.copy(row["table"].tobytes())
            else:
                row[name] = ref
                row[name]["file"] = number

    def _file_number(self, number: int) -> int | None:
        """Return the number here of a file of the parent's manifest; None if there is no room for one more.

        With tables comes the key file of the same version.
        """
        if self._parent is not None and number not in self._numbers:
            files = self._parent.manifest.files
            keys = _key_file(files, files[number])
            if len(self._files) + len(self._names.disks) + 1 + (keys is not None) <= MAX_FILES:
                self._numbers[number] = len(self._files)
                self._files += [files[number]] if keys is None else [files[number], keys]
        return self._numbers.get(number)

    def _copy_piece(self, name: str, ref: Any) -> Any:
        assert self._parent is not None  # references come from there
        place = StoredRef(int(ref["file"]), int(ref["offset"]), int(ref["length"]), ref["check"].tobytes())
        kind = TABLES if name in ("full", "difference") else LOCATIONS
        return self._store_piece(kind, self._parent.piece(place), late=name in ("difference", "rest"))

    def _store_piece(self, kind: int, data: bytes, *, late: bool = False) -> Any:
        """Keep a piece for one of the version's own files and return its reference.

        Late pieces have offsets in the late part until :meth:`_settle` adds the early part's length.
        """
        ref = np.zeros((), dtype=REF)
        ref["file"], ref["length"], ref["offset"] = _OWN[kind], len(data), self._placed[kind][late]
        ref["check"] = np.frombuffer(object_check(data), dtype=np.uint8)
        (self._late if late else self._early)[kind].append(data)
        self._placed[kind][late] += len(data)
        return ref

    def _parts(self, kind: int) -> Iterator[bytes]:
        for pieces in (self._early[kind], self._late[kind]):
            for number in range(len(pieces)):
                yield pieces[number]

    def _write_file(self, kind: int, name: str, version: str, parts: Iterator[bytes]) -> FileRef | None:
        """Write one of the version's own files; return None if there is nothing to be in it."""
        first = next(parts, None)
        if first is None:
            return None
        hasher = object_hasher()
        with self._store.staged(name) as staging:
            for part in chain((first,), parts):
                _append(staging, hasher, part)
            staging.sync()
            found = staging.read_back_digest()
            if found != hasher.digest():
                raise IntegrityError(f"{name}, read back", hasher.digest(), found, DISK_REMEDY)
            return FileRef(kind, version, staging.length, found)

    def _settle(self, rows: NDArray[Any]) -> None:
        """Give late pieces their offsets and files their numbers, now that both are known."""
        present = [file is not None for file in self._files]
        final = np.cumsum(present) - 1
        for name in REFS:
            ref = rows[name]
            own = ref["file"] == _OWN[TABLES if name in ("full", "difference") else LOCATIONS]
            if name in ("difference", "rest"):
                kind = TABLES if name == "difference" else LOCATIONS
                ref["offset"][own & (ref["length"] > 0)] += np.uint64(self._placed[kind][0])
            ref["file"] = np.where(ref["length"] > 0, final[ref["file"]], 0)


def _append(staging: StagedObject, hasher: Any, data: bytes) -> None:
    staging.write(data)
    hasher.update(data)


def _joint(table: Table, numbers: NDArray[np.int64], inventory: Inventory, parent: Manifest) -> bytes | None:
    """Return a table as a joint difference to those tables of the parent that have most of it; None if none has any."""
    known = np.flatnonzero(numbers >= 0)
    known = known[(inventory.marks[numbers[known]] & IN_PARENT) != 0]
    if not len(known):
        return None
    region = inventory.parent_region[numbers[known]].astype(np.int64)
    used, count = np.unique(region, return_counts=True)
    bases = np.sort(used[np.argsort(-count, kind="stable")[:MAX_BASES]])
    at = np.minimum(np.searchsorted(bases, region), len(bases) - 1)
    chosen = bases[at] == region
    base = np.full(len(table), -1, dtype=np.int64)
    start = np.zeros(len(table), dtype=np.int64)
    base[known[chosen]] = at[chosen]
    start[known[chosen]] = inventory.parent_record[numbers[known[chosen]]]
    regions = [parent.region(number) for number in bases.tolist()]
    return encode_joint(table, [BaseRef(found.table, found.length) for found in regions], base, start)


def _key_file(files: Sequence[FileRef], tables: FileRef) -> FileRef | None:
    """Return the key file of the version that a file of tables belongs to."""
    if tables.kind != TABLES:
        return None
    return next((file for file in files if file.kind == KEYS and file.version == tables.version), None)


def _known_tables(manifest: Manifest | None) -> dict[bytes, int]:
    """Return the parent's row number for every table digest."""
    if manifest is None:
        return {}
    return {row["table"].tobytes(): number for number, row in enumerate(manifest.rows)}


def _locate(
    table: Table, records: NDArray[np.int64], numbers: NDArray[np.int64], inventory: Inventory, packs: Packs
) -> Locations:
    """Return the locations of some chunk records of a table, given their numbers in the inventory."""
    rows = inventory.frames.array()[inventory.frame[numbers]]
    place = rows["pack"].astype(np.uint64) << np.uint64(32) | rows["offset"]
    _, first, frame = np.unique(place, return_index=True, return_inverse=True)
    frames = rows[first]
    pack_numbers, own = np.unique(frames["pack"], return_inverse=True)
    frames["pack"] = own
    start = inventory.start[numbers].astype(np.int64)
    lengths = table.lengths[records].astype(np.int64)
    begins = np.ones(len(records), dtype=np.bool_)
    begins[1:] = (
        (records[1:] != records[:-1] + 1) | (frame[1:] != frame[:-1]) | (start[1:] != start[:-1] + lengths[:-1])
    )
    at = np.flatnonzero(begins)
    runs = np.zeros(len(at), dtype=RUN)
    runs["record"], runs["frame"], runs["start"] = records[at], frame[at], start[at]
    runs["count"] = np.diff(np.append(at, len(records)))
    return Locations.of(tuple(packs[int(number)] for number in pack_numbers), frames, runs)
