"""Which images refer to a pack: because a pack may be fetched only by those who may read one of these.

Built from what the repository says itself - the locations that manifests name, the units of delta indexes - and kept in
an SQLite file, which is a cache: a lost or damaged one is made again. Only what appeared since is read, every stored
piece once, so that a new version costs what is new in it. In memory is one piece at a time.

A reader is told of a version by its head, manifest or delta index; so before one of these is handed out,
:meth:`PackIndex.ensure` makes certain that what it refers to is known.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from medv.objects import owner_of
from trimtransfer.chunk import object_check
from trimtransfer.deltaindex import MAX_INDEX, DeltaIndex
from trimtransfer.errors import IntegrityError, TrimTransferError
from trimtransfer.hostdelta import MAX_HOST_DELTA, HostDelta
from trimtransfer.location import Locations
from trimtransfer.manifest import LOCATIONS, Manifest
from trimtransfer.names import manifest_name
from trimtransfer.repository.reading import MAX_MANIFEST
from trimtransfer.store import DirectoryStore, Range

_LOG: Final = logging.getLogger("medv.packs")
_SCHEMA: Final = """
PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS source(id INTEGER PRIMARY KEY, image TEXT, name TEXT, print TEXT, UNIQUE(image, name));
CREATE TABLE IF NOT EXISTS piece(source INTEGER, start INTEGER, PRIMARY KEY(source, start)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ref(pack BLOB, source INTEGER, PRIMARY KEY(pack, source)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ref_source ON ref(source);
"""
_VERSION: Final = "1"
_SETTLED_NS: Final = 2_000_000_000
"""A directory that was changed within so long may change again without its time showing it."""
_BUSY_SECONDS: Final = 60.0
"""Wait so long for another process that brings the same file up to date."""

_Print = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh did: sources that were read, those that are gone, and those that could not be read."""

    read: int = 0
    gone: int = 0
    damaged: int = 0

    def __add__(self, other: Refreshed) -> Refreshed:
        return Refreshed(self.read + other.read, self.gone + other.gone, self.damaged + other.damaged)


class PackIndex:
    """The index of a repository directory in the SQLite file ``path``. Its methods may be called from any thread.

    ``generation`` grows with every change, so that what was decided before can be forgotten.
    """

    def __init__(self, repository: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
        self.store = DirectoryStore(repository)
        self.path = Path(path)
        self.generation = 0
        self._writing = threading.Lock()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._settled: dict[str, _Print] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._prepare()

    def __repr__(self) -> str:
        return f"PackIndex({self.store.url!r}, {str(self.path)!r})"

    def images(self, pack: bytes) -> frozenset[str]:
        """Return the images that refer to a pack; further disks count as the image that they belong to."""
        found = self._connection().execute(
            "SELECT DISTINCT image FROM ref JOIN source ON source.id = ref.source WHERE pack = ?", (pack,)
        )
        return frozenset(owner_of(image) for (image,) in found)

    def ensure(self, image: str) -> None:
        """Bring one image (and its further disks) up to date if anything in its folders changed."""
        for folder in self._folders():
            if owner_of(folder) == image:
                self._refresh_folder(folder)

    def refresh(self) -> Refreshed:
        """Bring all images up to date, and forget those that are gone."""
        folders = self._folders()
        done = Refreshed()
        for folder in folders:
            done += self._refresh_folder(folder)
        known = {image for (image,) in self._connection().execute("SELECT DISTINCT image FROM source")}
        for image in sorted(known.difference(folders)):
            with self._changing() as connection:
                done += Refreshed(gone=_drop(connection, _sources(connection, image).values()))
        return done

    def count(self) -> int:
        """Return the number of packs that are referred to."""
        return int(self._connection().execute("SELECT COUNT(DISTINCT pack) FROM ref").fetchone()[0])

    def close(self) -> None:
        """Close the file; all threads must be done with it."""
        with self._writing:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    # ---- inside

    def _prepare(self) -> None:
        """Open the file; one that is none, of another release or of another repository is made anew."""
        wanted = {"version": _VERSION, "repository": str(self.store.path.resolve())}
        for attempt in range(2):
            try:
                connection = self._connection()
                connection.executescript(_SCHEMA)
                found = dict(connection.execute("SELECT key, value FROM meta"))
                if found and found != wanted:
                    raise sqlite3.DatabaseError("of another release or repository")
                with connection:
                    connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", wanted.items())
                return
            except sqlite3.DatabaseError as error:
                if attempt or isinstance(error, sqlite3.OperationalError):
                    raise
                _LOG.warning("%s: %s; it is made anew", self.path, error)
                self.close()
                self._local = threading.local()
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{self.path}{suffix}")

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        known = getattr(self._local, "connection", None)
        if known is None:
            known = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None)
            self._connections.append(known)
            self._local.connection = known
        connection: sqlite3.Connection = known
        return connection

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the only writer, of all threads and processes."""
        connection = self._connection()
        with self._writing:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            self.generation += 1

    def _folders(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.store.path / "images") as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        return []

    def _refresh_folder(self, image: str) -> Refreshed:
        try:
            state = _state(self.store.path / "images" / image)
            if self._settled.get(image) == state:
                return Refreshed()
            files = _files(self.store.path / "images" / image)
        except FileNotFoundError:
            return Refreshed()  # it went at this moment; the next refresh sees that
        done = Refreshed()
        if files != {name: known[1] for name, known in _sources(self._connection(), image).items()}:
            with self._changing() as connection:
                done = _Reader(self.store, connection, image).bring_up(files)
        newest = max((mtime for _, mtime, _ in state), default=0)
        if newest < time.time_ns() - _SETTLED_NS:
            self._settled[image] = state
        return done


class _Reader:
    """Reads the sources of one image within a transaction."""

    def __init__(self, store: DirectoryStore, connection: sqlite3.Connection, image: str) -> None:
        self._store, self._connection, self._image = store, connection, image

    def bring_up(self, files: dict[str, str]) -> Refreshed:
        """Make the index that of these files, by name below the image's folder with a fingerprint each."""
        known = _sources(self._connection, self._image)
        lost = [known[name] for name in known if files.get(name) != known[name][1]]
        if any(name.endswith("/locations.bin") for name in known if known[name] in lost):
            # Pieces of a file are learnt from any manifest that names it: all are asked again.
            lost = [known[name] for name in known if known[name] in lost or name.endswith("/manifest.bin")]
        _drop(self._connection, lost)
        known = _sources(self._connection, self._image)
        read = damaged = 0
        for name in sorted(files.keys() - known.keys(), key=lambda name: not name.endswith("/locations.bin")):
            source = self._add_source(name, files[name])
            try:
                self._read(name, source)
                read += 1
            except (TrimTransferError, OSError) as error:
                damaged += 1
                _LOG.warning("%s of %s cannot be read, so nobody is given packs for it: %s", name, self._image, error)
        return Refreshed(read, len(lost), damaged)

    def _add_source(self, name: str, fingerprint: str) -> int:
        row = self._connection.execute(
            "INSERT INTO source(image, name, print) VALUES (?, ?, ?)", (self._image, name, fingerprint)
        )
        return int(row.lastrowid or 0)

    def _read(self, name: str, source: int) -> None:
        version, _, file = name.partition("/")
        if file == "manifest.bin":
            self._read_manifest(version)
        elif file.startswith("from-"):
            self._read_deltas(DeltaIndex(self._store.read(self._full(name), limit=MAX_INDEX)), source)
        elif file.startswith("host-"):
            self._read_deltas(HostDelta(self._store.read(self._full(name), limit=MAX_HOST_DELTA)).index, source)

    def _full(self, name: str) -> str:
        return f"images/{self._image}/{name}"

    def _read_deltas(self, index: DeltaIndex, source: int) -> None:
        for region in index.regions.tolist():
            units = index.units(region)
            if units is not None:
                self._add_refs((ref.digest for ref in units.packs), source)

    def _read_manifest(self, version: str) -> None:
        data = self._store.read(manifest_name(self._image, version), limit=MAX_MANIFEST)
        manifest = Manifest.from_bytes(data)
        names, sources = manifest.file_names(), _sources(self._connection, self._image)
        rows = manifest.rows
        for number, file in enumerate(manifest.files):
            known = sources.get(f"{file.version}/locations.bin")
            if file.kind != LOCATIONS or known is None:
                continue
            refs = np.concatenate([rows[part][rows[part]["file"] == number] for part in ("fresh", "rest")])
            refs = refs[refs["length"] > 0]
            _, first = np.unique(refs["offset"], return_index=True)
            self._read_pieces(names[number], file.length, known[0], refs[first])

    def _read_pieces(self, name: str, total: int, source: int, refs: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        """Read the pieces of a file of locations that were not read before."""
        done = {start for (start,) in self._connection.execute("SELECT start FROM piece WHERE source = ?", (source,))}
        for ref in refs:
            start, length, check = int(ref["offset"]), int(ref["length"]), ref["check"].tobytes()
            if start in done:
                continue
            data = self._store.read_range(Range(name, start, length, total))
            if object_check(data) != check:
                raise IntegrityError(f"{name}, byte {start}", check, object_check(data))
            self._add_refs((pack.digest for pack in Locations.from_bytes(data).packs), source)
            self._connection.execute("INSERT INTO piece VALUES (?, ?)", (source, start))

    def _add_refs(self, packs: Iterable[bytes], source: int) -> None:
        self._connection.executemany("INSERT OR IGNORE INTO ref VALUES (?, ?)", ((pack, source) for pack in packs))


def _sources(connection: sqlite3.Connection, image: str) -> dict[str, tuple[int, str]]:
    """Return the sources of an image as they were read: name to (id, fingerprint)."""
    found = connection.execute("SELECT name, id, print FROM source WHERE image = ?", (image,))
    return {name: (number, fingerprint) for name, number, fingerprint in found}


def _drop(connection: sqlite3.Connection, sources: Iterable[tuple[int, str]]) -> int:
    numbers = [(number,) for number, _ in sources]
    for table, column in (("ref", "source"), ("piece", "source"), ("source", "id")):
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", numbers)
    return len(numbers)


def _state(folder: Path) -> _Print:
    """Return what shows that anything in an image's folder, or in one of its versions', came or went."""
    found = os.stat(folder)
    state = [("", found.st_mtime_ns, found.st_ino)]
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner = entry.stat(follow_symlinks=False)
                state.append((entry.name, inner.st_mtime_ns, inner.st_ino))
    return tuple(sorted(state))


def _files(folder: Path) -> dict[str, str]:
    """Return the files of an image's versions that name packs, or lead to such: name to a fingerprint."""
    files = {}
    for version in os.scandir(folder):
        if not version.is_dir(follow_symlinks=False) or version.name.startswith("."):
            continue
        for entry in os.scandir(version.path):
            if _names_packs(entry.name) and entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                files[f"{version.name}/{entry.name}"] = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
    return files


def _names_packs(name: str) -> bool:
    return name in ("manifest.bin", "locations.bin") or (name.startswith(("from-", "host-")) and name.endswith(".bin"))
