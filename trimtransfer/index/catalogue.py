"""The catalogue of an index of files: which files were indexed in which state, and which run files hold their rows.

One SQLite database; each change is one transaction, so a kill at any instant leaves the state before or after it. A
file gets a new number whenever it is scanned, so rows of an earlier scan are known to be stale by their number alone.

Not a source of truth about content: a wrong entry costs a scan or a fetch. Damage shows as :class:`FormatError`;
whoever owns the catalogue then starts a new one.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError, Locked, NoSpace
from trimtransfer.index.rowfile import MAX_FILES
from trimtransfer.index.scan import Scanned
from trimtransfer.index.walk import Found, Listing

FORMAT: Final = 1
_CACHE_KIB: Final = 8192
_BUSY_SECONDS: Final = 5.0
_SIGNED: Final = 1 << 63
_SCHEMA: Final = """
CREATE TABLE about (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE directories (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, directory INTEGER NOT NULL, name BLOB NOT NULL,
    device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
    ctime INTEGER NOT NULL, rows INTEGER NOT NULL, settled INTEGER NOT NULL, block_device INTEGER NOT NULL,
    UNIQUE (directory, name));
CREATE TABLE runs (id INTEGER PRIMARY KEY, rows INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the catalogue: its number, and whether its state then makes a new scan unnecessary."""

    number: int
    found: Found
    settled: bool


@dataclass(frozen=True, slots=True)
class Location:
    """Where an indexed file is: its path, (device, inode), and whether it is a block device."""

    path: bytes
    identity: tuple[int, int]
    block_device: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """What a catalogue holds: number of files, their bytes, rows that stand for files, rows in all runs, runs."""

    files: int
    bytes: int
    rows: int
    stored_rows: int
    runs: int

    @property
    def stale_share(self) -> float:
        """Share of the stored rows that no longer stand for a file, from 0 to 1."""
        return 1 - self.rows / self.stored_rows if self.stored_rows else 0.0


class Catalogue:
    """An open catalogue. Its methods may be called from any thread; only one process at a time should write.

    ``kind`` is the chunker of the index; a catalogue of another one counts as damaged.

    Raises:
        FormatError: not a catalogue of this version and kind, or damaged.
        NoSpace: the disk is full.
        Locked: another process holds it for more than five seconds.
    """

    def __init__(self, path: str | os.PathLike[str], *, kind: int, create: bool) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        if not create and not self.path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no index", str(self.path))
        with self._errors():
            self._database = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._errors():
                self._prepare(kind, create)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        with self._lock, suppress(sqlite3.Error):
            self._database.close()

    def known(self, listing: Listing) -> dict[bytes, Entry]:
        """Return the entries of a listing's files that are in the catalogue, by name."""
        with self._lock, self._errors():
            directory = self._directory(listing.directory)
            if directory is None:
                return {}
            names = [found.name for found in listing.files]
            marks = ",".join("?" * len(names))
            rows = self._database.execute(
                "SELECT id, name, device, inode, size, mtime, ctime, settled, block_device FROM files "
                f"WHERE directory = ? AND name IN ({marks})",
                (directory, *names),
            )
            return {bytes(row[1]): _entry(row) for row in rows}

    def locate(self, number: int) -> Location | None:
        """Return where the file with this number is, or None if it is no longer in the catalogue."""
        with self._lock, self._errors():
            row = self._database.execute(
                "SELECT path, name, device, inode, block_device FROM files JOIN directories "
                "ON directories.id = files.directory WHERE files.id = ?",
                (number,),
            ).fetchone()
            if row is None:
                return None
            return Location(os.path.join(bytes(row[0]), bytes(row[1])), _identity(row[2], row[3]), bool(row[4]))

    def numbers(self) -> NDArray[np.uint32]:
        """Return the numbers of all files, ascending."""
        with self._lock, self._errors():
            rows = self._database.execute("SELECT id FROM files WHERE id BETWEEN 0 AND ? ORDER BY id", (MAX_FILES,))
            return np.fromiter((row[0] for row in rows), dtype=np.uint32)

    def runs(self) -> list[tuple[int, int]]:
        """Return (number, rows) of all runs, the newest first."""
        with self._lock, self._errors():
            return [(int(n), int(rows)) for n, rows in self._database.execute("SELECT * FROM runs ORDER BY id DESC")]

    def next_number(self) -> int:
        """Return the number that the next file to be scanned gets."""
        return self._about("next_file", 0)

    def next_run(self) -> int:
        """Return the number that the next run gets."""
        return self._about("next_run", 1)

    def totals(self) -> Totals:
        """Count what the catalogue holds."""
        with self._lock, self._errors():
            files = self._database.execute("SELECT count(*), total(size), total(rows) FROM files").fetchone()
            runs = self._database.execute("SELECT total(rows), count(*) FROM runs").fetchone()
            return Totals(int(files[0]), int(files[1]), int(files[2]), int(runs[0]), int(runs[1]))

    def commit_scan(self, scanned: Iterable[tuple[bytes, Scanned]], *, run: int, rows: int, next_number: int) -> None:
        """Enter scanned files, each with its directory, and the run that holds their rows, in one transaction.

        An entry of the same path is replaced. Without rows no run is entered.
        """
        with self._transaction() as database:
            for directory, outcome in scanned:
                database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    _values(outcome, self._directory_made(directory)),
                )
            if rows:
                database.execute("INSERT INTO runs VALUES (?, ?)", (run, rows))
            self._set("next_file", next_number)
            self._set("next_run", run + 1)

    def commit_merge(self, merged: Sequence[int], *, run: int, rows: int) -> None:
        """Replace the ``merged`` runs by a new one, in one transaction."""
        with self._transaction() as database:
            database.executemany("DELETE FROM runs WHERE id = ?", [(number,) for number in merged])
            if rows:
                database.execute("INSERT INTO runs VALUES (?, ?)", (run, rows))
            self._set("next_run", run + 1)

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove files, in one transaction."""
        with self._transaction() as database:
            database.executemany("DELETE FROM files WHERE id = ?", [(number,) for number in numbers])

    def forget_directories(self) -> None:
        """Remove directories without files."""
        with self._transaction() as database:
            database.execute("DELETE FROM directories WHERE id NOT IN (SELECT directory FROM files)")

    def below(self, root: bytes) -> Iterator[list[int]]:
        """Yield the numbers of the files at or below a path, directory by directory."""
        inside = (os.path.join(root, b""), os.path.join(root, b"")[:-1] + b"0")  # "/" is followed by "0"
        with self._lock, self._errors():
            directories = self._database.execute(
                "SELECT id FROM directories WHERE path = ? OR (path >= ? AND path < ?)", (root, *inside)
            ).fetchall()
            for (directory,) in directories:
                yield [
                    int(row[0])
                    for row in self._database.execute("SELECT id FROM files WHERE directory = ?", (directory,))
                ]
            yield [
                int(row[0])
                for row in self._database.execute(
                    "SELECT files.id FROM files JOIN directories ON directories.id = files.directory "
                    "WHERE path = ? AND name = ?",
                    os.path.split(root),
                )
            ]

    def _prepare(self, kind: int, create: bool) -> None:
        database = self._database
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        database.execute("PRAGMA trusted_schema = OFF")
        if create:
            database.execute("PRAGMA journal_mode = WAL")  # readers are not kept out while an update commits
            database.execute("PRAGMA synchronous = NORMAL")
        empty = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if create and empty:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                self._set("format", FORMAT)
                self._set("kind", kind)
        found = (self._about("format", 0), self._about("kind", 0))
        if found != (FORMAT, kind):
            raise FormatError(self._what, "format and kind", (FORMAT, kind), found)

    @property
    def _what(self) -> str:
        return f"catalogue {self.path}"

    def _about(self, name: str, default: int) -> int:
        with self._lock, self._errors():
            row = self._database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
            return default if row is None else int(row[0])

    def _set(self, name: str, value: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))

    def _directory(self, path: bytes) -> int | None:
        row = self._database.execute("SELECT id FROM directories WHERE path = ?", (path,)).fetchone()
        return None if row is None else int(row[0])

    def _directory_made(self, path: bytes) -> int:
        number = self._directory(path)
        if number is None:
            number = self._database.execute("INSERT INTO directories (path) VALUES (?)", (path,)).lastrowid or 0
        return number

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite raises, and values of a wrong type in a damaged database, into errors of this package."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise NoSpace(str(self.path), None, None) from error
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                raise PermissionError(errno.EACCES, str(error), str(self.path)) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Locked(str(self.path), "another process") from error
            raise FormatError(self._what, "database", "a sound database", str(error)) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise FormatError(self._what, "database", "values of the right types", str(error)) from error


def _signed(value: int) -> int:
    """Inodes and devices may use all 64 bits; SQLite's integers are signed."""
    value &= (_SIGNED << 1) - 1
    return value - (_SIGNED << 1) if value >= _SIGNED else value


def _identity(device: int, inode: int) -> tuple[int, int]:
    mask = (_SIGNED << 1) - 1
    return int(device) & mask, int(inode) & mask


def _entry(row: Sequence[int | bytes]) -> Entry:
    number, name, device, inode, size, mtime, ctime, settled, block_device = row
    device, inode = _identity(int(device), int(inode))
    found = Found(
        bytes(name), device, inode, int(size), int(mtime), int(ctime), links=0, block_device=bool(block_device)
    )
    return Entry(int(number), found, bool(settled))


def _values(outcome: Scanned, directory: int) -> tuple[int | bytes, ...]:
    found = outcome.found
    state = (_signed(found.device), _signed(found.inode), found.size, found.mtime, found.ctime)
    return (
        *(outcome.number, directory, found.name),
        *state,
        *(outcome.rows, outcome.settled, found.block_device),
    )
