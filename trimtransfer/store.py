"""Where a repository's objects lie: the read interface that every transport offers, and a directory as a store.

Object names are relative paths with ``/`` (``packs/ab/abcd.bin``); they never leave the store. Objects are immutable
except ``head.json`` and its like, which are replaced whole: a reader sees the old bytes or the new, never a mixture.
The write side (:meth:`DirectoryStore.put`) is durable on return: temporary file, fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from trimtransfer.chunk import object_digest
from trimtransfer.durable import StagedObject, make_directories, read_at, space_errors, sync_directory
from trimtransfer.errors import FormatError, IntegrityError, NotFound

PRIVATE: Final = ".trimtransfer"
"""Directory in the root of a directory store for what readers must not see: locks, temporary files, intents."""
DISK_REMEDY: Final = "the disk or memory of this machine damages data"
_PIECE: Final = 4 << 20
_TEMPORARY: Final = f"{PRIVATE}/tmp"
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``start`` to ``start + length`` of the object ``name``.

    ``total`` is the object's length where it is known. ``run``: so many bytes from ``start`` on are wanted in a row, by
    this range and those that follow it in the same call; one request may ask for all of them, though each range is
    delivered as soon as it is complete. ``whole`` asks for the object in one piece (a plain GET, which caches like
    best), by a run from 0 to ``total``.
    """

    name: str
    start: int
    length: int
    total: int | None = None
    whole: bool = False
    run: int = 0

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.length

    @property
    def run_end(self) -> int:
        """Where the run ends that it belongs to, which may be it alone."""
        return self.start + max(self.run, self.length)


class StoreStats:
    """Counters of what really crossed the wire: body ``bytes``, ``requests`` and ``retries``. Safe among threads."""

    __slots__ = ("_lock", "bytes", "requests", "retries")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        self.requests = 0
        self.retries = 0

    def count(self, *, bytes: int = 0, requests: int = 0, retries: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self.bytes += bytes
            self.requests += requests
            self.retries += retries

    def __repr__(self) -> str:
        return f"StoreStats(bytes={self.bytes}, requests={self.requests}, retries={self.retries})"


class Store(Protocol):
    """The read side of a store; ``url`` names it in messages.

    All methods raise ``NotFound`` for an object that does not exist and ``FetchError`` for a transfer that failed.
    """

    @property
    def url(self) -> str:
        """The store's address, as messages show it."""
        ...

    @property
    def stats(self) -> StoreStats:
        """What has crossed the wire so far."""
        ...

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole. One longer than ``limit`` raises ``FormatError``, at most limit + 1 are read."""
        ...

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes."""
        ...

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Deliver each range exactly once, complete, in any order, from worker threads.

        The buffer is valid during ``deliver`` only. Memory is bounded: a fixed number of ranges is in flight. The
        first fatal error, or an exception of ``deliver``, ends the rest and is raised. ``again`` asks caches on the way
        for a fresh copy.
        """
        ...

    def close(self) -> None:
        """Release connections and threads; the store must not be used afterwards."""
        ...


class DirectoryStore:
    """A store in a local directory, with the write side that publishing needs.

    ``connections`` is the number of threads (and ranges in flight) of :meth:`fetch`.
    """

    def __init__(self, path: str | os.PathLike[str], *, connections: int = 4) -> None:
        self.path = Path(path)
        self.url = str(self.path)
        self.stats = StoreStats()
        self._connections = connections
        self._temporary_number = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"DirectoryStore({self.url!r})"

    # ---- read side

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole; longer than ``limit``: ``FormatError``."""
        with self._open(name) as descriptor:
            data = read_at(descriptor, limit + 1, 0)
        self.stats.count(bytes=len(data), requests=1)
        if len(data) > limit:
            raise FormatError(f"object {name}", limit, f"at most {limit:,} bytes", "more")
        return data

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes; ``FormatError`` where the object has another length: it is damaged."""
        with self._open(wanted.name) as descriptor:
            self._check_total(wanted, descriptor)
            data = read_at(descriptor, wanted.length, wanted.start)
        self.stats.count(bytes=len(data), requests=1)
        if len(data) != wanted.length:
            end = wanted.start + len(data)
            raise FormatError(f"object {wanted.name}", end, f"{wanted.start + wanted.length:,} bytes", "its end")
        return data

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Deliver each range once from a few threads; ``again`` means nothing here: a directory has no cache."""
        runs = self._runs(ranges)
        in_threads(runs, lambda wanted: deliver(wanted, memoryview(self.read_range(wanted))), self._connections)

    def _runs(self, ranges: Iterable[Range]) -> Iterator[Range]:
        """Yield the ranges; one that goes on with a run counts as no request of its own: over HTTP it would be none."""
        next_name, next_start = "", 0
        for wanted in ranges:
            if (wanted.name, wanted.start) == (next_name, next_start):
                self.stats.count(requests=-1)
            next_name = wanted.name if wanted.run > wanted.length else ""
            next_start = wanted.start + wanted.length
            yield wanted

    def close(self) -> None:
        """Nothing is held open between calls."""

    def exists(self, name: str) -> bool:
        """Return whether the object exists."""
        return self._locate(name).is_file()

    def size(self, name: str) -> int:
        """Return the object's length in bytes."""
        try:
            return self._locate(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(name, self.url) from None

    def holds(self, name: str, length: int) -> bool:
        """Tell whether an object is there, as long as it should be."""
        try:
            return self.size(name) == length
        except NotFound:
            return False

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, length) of every object below the directory ``prefix``, sorted by name within a directory."""
        yield from self._walk(self._locate(prefix) if prefix else self.path, prefix)

    # ---- write side

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object atomically and durably, replacing one of that name, once it reads back as it was written.

        Raises:
            NoSpace: the disk is full.
            IntegrityError: it reads back differently; nothing was replaced.
        """
        with self.staged(name) as staging:
            staging.write(data)
            staging.sync()
            expected, found = object_digest(data), staging.read_back_digest()
            if found != expected:
                raise IntegrityError(f"{name}, read back", expected, found, DISK_REMEDY)

    def staged(self, name: str) -> StagedObject:
        """Return an object being written: a context manager that commits on a clean exit and leaves nothing else."""
        with self._lock:
            self._temporary_number += 1
            number = self._temporary_number
        temporary = self.path / _TEMPORARY / f"{os.getpid()}-{id(self):x}-{number}"
        return StagedObject(temporary, self._locate(name), self.path)

    def take(self, file: Path, name: str) -> None:
        """Make a complete and durable file of the scratch directory an object, replacing one of that name."""
        path = self._locate(name)
        with space_errors(path):
            make_directories(path.parent, self.path)
            os.replace(file, path)
            sync_directory(path.parent)

    def delete(self, name: str) -> bool:
        """Delete an object; return whether it existed. Directories left empty are removed up to the root."""
        path = self._locate(name)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        with contextlib.suppress(OSError):
            for parent in path.parents:
                if parent == self.path:
                    break
                parent.rmdir()
        return True

    def private(self, name: str) -> Path:
        """Return the path of a file in the private directory, which is made where missing."""
        directory = self.path / PRIVATE
        make_directories(directory, self.path)
        return directory / name

    def scratch(self) -> Path:
        """Return the directory for temporary files on the store's disk, which is made where missing."""
        directory = self.path / _TEMPORARY
        make_directories(directory, self.path)
        return directory

    def clear_temporary(self) -> int:
        """Delete temporary files of writers that died; return their number. The caller holds the repository's lock."""
        count = 0
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.path / _TEMPORARY):
                os.unlink(entry.path)
                count += 1
        return count

    # ---- inside

    def _locate(self, name: str) -> Path:
        """Return the path of an object; names that could leave the store, or reach private files, are refused."""
        parts = name.split("/")
        if not all(_SEGMENT.fullmatch(part) for part in parts):
            raise FormatError("object name", repr(name), "relative path of plain names", "something else")
        return self.path.joinpath(*parts)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = self._locate(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(name, self.url) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotFound(name, self.url)
            yield descriptor
        finally:
            os.close(descriptor)

    def _check_total(self, wanted: Range, descriptor: int) -> None:
        """Refuse an object whose length is not the promised one, as a server's Content-Range would reveal it."""
        length = os.fstat(descriptor).st_size
        if wanted.total is not None and wanted.total != length:
            raise FormatError(f"object {wanted.name}", "length", f"{wanted.total:,} bytes", f"{length:,}")

    def _walk(self, directory: Path, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if not _SEGMENT.fullmatch(entry.name):
                continue
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), name)
            elif entry.is_file():
                yield name, entry.stat().st_size


def in_threads(ranges: Iterable[Range], call: Callable[[Range], None], threads: int) -> None:
    """Call a function for each range from a few threads; the first exception ends the rest and is raised."""
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(threads, "store") as pool:
        for wanted in ranges:
            if len(running) >= threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            running.add(pool.submit(call, wanted))
        for future in running:
            future.result()
