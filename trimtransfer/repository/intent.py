"""What makes a publish all or nothing: a lock on the repository, and a list of what is being written.

The intent file names the version and, before it appears, each new pack. Replacing the head commits; then the intent is
removed. If the process dies before, the next one finds the intent, deletes what it names, and the old state is whole:
nothing that another version refers to is ever named in an intent, because packs that exist already are not.

Deltas that are added to versions later have an intent without a version: only what it names is undone.

Packs that exist already and are used again may be old and of no use to anybody else, about to be deleted: so right
before a commit they are taken out of quarantine and looked at once more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Final

from trimtransfer.durable import sync_directory
from trimtransfer.errors import FormatError, Locked, NotFound, TargetRefused
from trimtransfer.head import MAX_HEAD, Head
from trimtransfer.location import PackRef
from trimtransfer.names import head_name, keys_name, locations_name, manifest_name, tables_name
from trimtransfer.pack import pack_name
from trimtransfer.repository.catalogues import complete, settle
from trimtransfer.repository.quarantine import rescue
from trimtransfer.repository.staged import counts, discard, finish
from trimtransfer.store import PRIVATE, DirectoryStore

_LOCK: Final = "lock"
_INTENT: Final = "intent"
_MAX_INTENT: Final = 1 << 30
_OURS: Final = frozenset((PRIVATE, "images", "metadata", "packs", "profiles"))
"""Directories by which a repository is known."""


def check_target(store: DirectoryStore) -> None:
    """Refuse with ``TargetRefused`` to make a repository among other files: the wrong directory was named."""
    if store.path.exists() and not store.path.is_dir():
        raise TargetRefused(store.url, "is a file; name the repository's directory first, then the file to publish")
    if store.path.is_dir():
        names = set(os.listdir(store.path))
        if names and not names & _OURS:
            raise TargetRefused(store.url, "is neither empty nor a repository; name another directory")


@contextlib.contextmanager
def repository_lock(store: DirectoryStore, purpose: str) -> Iterator[None]:
    """Hold the repository for writing; the kernel lets go of it when the process dies.

    Raises:
        Locked: another process holds it.
    """
    path = store.private(_LOCK)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            raise Locked(str(store.path), holder or "another process") from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({purpose}, {since})".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


class Intent:
    """The intent file of a publish in progress. Its methods may be called from any thread, one at a time."""

    def __init__(self, store: DirectoryStore, image: str, version: str | None) -> None:
        self._path = store.private(_INTENT)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._store, self._needs = store, dict[str, int]()
        self.add(json.dumps([image, version]))
        sync_directory(self._path.parent)

    def add(self, line: str) -> None:
        """Note the name of a pack or a delta index, durably, before it appears."""
        os.write(self._descriptor, line.encode() + b"\n")
        os.fsync(self._descriptor)

    def rely_on(self, packs: Iterable[PackRef]) -> None:
        """Note packs that what is being written refers to; :meth:`secure` looks after them."""
        self._needs.update((pack_name(ref.digest), ref.length) for ref in packs)

    def secure(self) -> None:
        """Right before something is committed: what it relies on is there, and nobody is about to delete it.

        Raises:
            FormatError, NotFound: a pack has another length, or is gone.
        """
        rescue(self._store, self._needs)
        for name, length in self._needs.items():
            if not self._store.holds(name, length):
                raise FormatError(name, "its end", f"{length:,} bytes", f"{self._store.size(name):,}")

    def close(self) -> None:
        """Close the file; it stays until the publish is settled by :func:`clean_up` or committed by :meth:`done`."""
        os.close(self._descriptor)

    def done(self) -> None:
        """The publish is committed: nothing is left to undo."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def intended(store: DirectoryStore, image: str, version: str | None) -> Iterator[Intent]:
    """Hold an intent while something is written, under the lock; what was written is undone if that fails."""
    intent = Intent(store, image, version)
    try:
        yield intent
    except BaseException:
        intent.close()
        with contextlib.suppress(Exception):  # the next command that writes does it, too
            clean_up(store)
        raise
    intent.close()
    intent.done()


def clean_up(store: DirectoryStore) -> list[str]:
    """Undo a publish that died and delete temporary files; return the names of deleted objects.

    The caller holds the lock, so whatever is found belongs to a dead process.
    """
    store.clear_temporary()
    lines = _read(store)
    deleted = _settle_intent(store, lines) if lines is not None else []
    settle(store)
    if lines is not None:
        store.private(_INTENT).unlink()
    return deleted


def _settle_intent(store: DirectoryStore, lines: list[bytes]) -> list[str]:
    """Undo, or finish, what an intent tells of; return the names of deleted objects."""
    begun = len(lines) > 1  # else it died while it wrote the first line, before it did anything
    if begun and (_is_committed(store, lines[0]) or counts(store, _names(lines))):
        finish(store)  # it died before its timestamp was in place
        image, version = _parse(lines[0])
        if version is not None:
            complete(store, image)
        return []
    discard(store)
    return _undo(store, lines) if begun else []


def intended_names(store: DirectoryStore) -> frozenset[str]:
    """Return the names of objects that are being written, or were when their writer died."""
    lines = _read(store) or [b""]
    names = _names(lines)
    if len(lines) < 2 or (version := _parse(lines[0])[1]) is None:
        return frozenset(names)
    return frozenset((*names, *_own_names(_parse(lines[0])[0], version)))


def pending(store: DirectoryStore) -> tuple[str, str] | None:
    """Return image and version of a publish that is in progress, or died: what it wrote counts for nothing yet."""
    lines = _read(store)
    if not lines or len(lines) < 2 or _is_committed(store, lines[0]):
        return None
    image, version = _parse(lines[0])
    return (image, version) if version is not None else None


def _read(store: DirectoryStore) -> list[bytes] | None:
    try:
        with open(store.path / PRIVATE / _INTENT, "rb") as file:
            return file.read(_MAX_INTENT).split(b"\n")
    except FileNotFoundError:
        return None


def _is_committed(store: DirectoryStore, line: bytes) -> bool:
    """Whether the version named in an intent's first line is the newest: it died after its commit.

    Nobody can have published since: whoever does cleans up first.
    """
    image, version = _parse(line)
    if version is None:
        return False
    try:
        return Head.from_bytes(store.read(head_name(image), limit=MAX_HEAD)).version == version
    except NotFound:
        return False


def _undo(store: DirectoryStore, lines: list[bytes]) -> list[str]:
    """Delete what an intent names; a last line without its end was never acted upon, and names nothing that exists."""
    image, version = _parse(lines[0])
    names = _names(lines)
    if version is not None:
        names += _own_names(image, version)
    return [name for name in names if store.delete(name)]


def _own_names(image: str, version: str) -> list[str]:
    return [name(image, version) for name in (manifest_name, tables_name, locations_name, keys_name)]


def _names(lines: list[bytes]) -> list[str]:
    return [line.decode("ascii", "replace") for line in lines[1:-1]]


def _parse(line: bytes) -> tuple[str, str | None]:
    try:
        image, version = json.loads(line)
    except (ValueError, TypeError, RecursionError) as error:
        expected = f"an image and a version (delete {PRIVATE}/{_INTENT}; what it named stays as packs of no use)"
        raise FormatError("intent file", 0, expected, line[:80]) from error
    return str(image), None if version is None else str(version)
