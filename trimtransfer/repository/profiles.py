"""Host profiles of a repository: recording which chunks the files of a reference host consist of, listing, removing.

A profile has digests and paths, never content, and only of files that every user of the host may read: others are not
in the index of a client's host files either, and are nobody's business. Where its trees are on this machine is
remembered in the private directory, which is not served.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, MAX_IMAGE_SIZE, REGION_SIZE, Kind, object_digest
from trimtransfer.chunker import cut_and_digest
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, NotFound, SourceRefused, TrimTransferError
from trimtransfer.index.globs import PathChooser
from trimtransfer.index.walk import Found, Walk
from trimtransfer.localfile import look, next_data, open_local, read_into
from trimtransfer.names import NOTHING, check_name, profile_name
from trimtransfer.profile import FILE, MAX_PROFILE, Profile
from trimtransfer.repository.intent import check_target, clean_up, repository_lock
from trimtransfer.store import PRIVATE, DirectoryStore
from trimtransfer.table import ZERO
from trimtransfer.watch import Progress, Watch

_TREES: Final = "profiles.json"
_WORKERS: Final = 2
"""Threads that read files, each with a buffer of up to a region."""
_AHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """A profile that was recorded: its ``files`` with their ``bytes`` and distinct chunks, the ``stored_bytes`` that it
    takes. Left out were files that not every user may read (``private``), and what was ``unreadable`` or changed."""

    profile: str
    trees: tuple[str, ...]
    files: int
    bytes: int
    chunks: int
    stored_bytes: int
    private: int
    unreadable: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ProfileSummary:
    """A profile as it is listed; ``trees`` as far as they are known here. ``problem``: it cannot be read."""

    profile: str
    files: int = 0
    bytes: int = 0
    trees: tuple[str, ...] = ()
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


class OpenProfile(NamedTuple):
    """A profile of a repository: its name, value and digest, and where its trees are, as far as that is known."""

    name: str
    profile: Profile
    digest: bytes
    trees: tuple[str, ...]


def record_profile(
    repository: str | os.PathLike[str],
    name: str,
    trees: Sequence[str | os.PathLike[str]],
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> ProfileReport:
    """Record the files below ``trees`` as the profile ``name``, in place of one of that name; return what it holds.

    Deltas that were made with the other one stay good. Memory: two regions of 64 MiB, 80 bytes a chunk, 300 a file.

    Raises:
        FormatError: a name that is none, or more files than a profile takes.
        FileNotFoundError: a tree that is not there.
        SourceRefused: no file that every user may read is in them.
        TargetRefused: the directory holds other things than a repository; Locked: another process writes to it.
        NoSpace: its disk is full. Cancelled: as asked. Then nothing is recorded.
    """
    started = time.monotonic()
    check_name("profile", name)
    if name == NOTHING:
        raise FormatError("profile name", "name", "another one: this is that of what needs no host", name)
    watch = Watch(progress, cancel, "stopped; nothing was recorded")
    roots = [look(tree)[0] for tree in trees]
    store = DirectoryStore(repository)
    check_target(store)
    with space_errors(store.path), repository_lock(store, f"recording the profile {name}"):
        clean_up(store)
        scan = _Scan(watch)
        profile = scan.run(roots)
        data = profile.to_bytes()
        store.put(profile_name(name), data)
        _remember(store, name, [os.fsdecode(root) for root in roots])
    return ProfileReport(
        profile=name,
        trees=tuple(map(os.fsdecode, roots)),
        files=len(profile.files),
        bytes=profile.size,
        chunks=len(np.unique(np.ascontiguousarray(profile.digests[:, :8]).view("<u8"))),
        stored_bytes=len(data),
        private=scan.private,
        unreadable=scan.unreadable,
        seconds=round(time.monotonic() - started, 3),
    )


def open_profile(store: DirectoryStore, name: str, trees: Sequence[str | os.PathLike[str]] = ()) -> OpenProfile:
    """Return a profile; ``trees`` are where its trees are now, in their order (default: where they were recorded).

    Raises:
        NotFound: there is no such profile; FormatError: it is damaged.
        SourceRefused: other trees than were recorded, by their number.
    """
    try:
        data = store.read(profile_name(name), limit=MAX_PROFILE)
    except NotFound as error:
        raise NotFound(f"profile {name} (record it with `medv-repo profile`)", error.url) from error
    profile = Profile.from_bytes(data)
    known = tuple(str(os.fspath(tree)) for tree in trees) or _remembered(store).get(name, ())
    if known and len(known) != profile.trees:
        raise SourceRefused(str(known[0]), f"the profile {name} is of {profile.trees} trees; name as many")
    return OpenProfile(name, profile, object_digest(data), known)


def list_profiles(store: DirectoryStore) -> list[ProfileSummary]:
    """Return all profiles by name; one that cannot be read with its problem. ``NotFound`` if there is no repository."""
    if not store.path.is_dir():
        raise NotFound("the repository, a directory,", store.url)
    names = (name.rpartition("/")[2] for name, _ in store.list("profiles"))
    found = []
    for name in sorted(name[:-4] for name in names if name.endswith(".bin")):
        try:
            opened = open_profile(store, name)
            found.append(ProfileSummary(name, len(opened.profile.files), opened.profile.size, opened.trees))
        except TrimTransferError as error:
            found.append(ProfileSummary(name, problem=str(error)))
    return found


def forget_profile(store: DirectoryStore, name: str) -> None:
    """Delete a profile, under the repository's lock; ``NotFound`` if there is none. Deltas are another matter."""
    if not store.delete(profile_name(name)):
        raise NotFound(f"profile {name}", store.url)
    _remember(store, name, [])


def _remembered(store: DirectoryStore) -> dict[str, tuple[str, ...]]:
    """Return where the trees of profiles are on this machine; nothing where that is not known any more."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((store.path / PRIVATE / _TREES).read_bytes())
        if isinstance(found, dict):
            return {str(name): tuple(map(str, trees)) for name, trees in found.items() if isinstance(trees, list)}
    return {}


def _remember(store: DirectoryStore, name: str, trees: list[str]) -> None:
    known = {**_remembered(store), name: tuple(trees)}
    path = store.private(_TREES)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({name: trees for name, trees in sorted(known.items()) if trees}, indent=1) + "\n")
    temporary.replace(path)


# ---- reading trees


class _Job(NamedTuple):
    """A file to be cut: number of its tree, path within it, and what the walk saw."""

    tree: int
    path: bytes
    found: Found


class _Cut(NamedTuple):
    """A file's size, records, and the digests of its chunks."""

    size: int
    records: NDArray[np.uint32]
    digests: NDArray[np.uint8]


class _Tree(Walk):
    """A walk through what every user may read below a root, wherever that is."""

    def _reachable(self) -> bool:
        return True


class _Scan:
    """Cuts all files of some trees. ``private`` and ``unreadable`` count what was left out."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.private = self.unreadable = 0

    def run(self, roots: Sequence[bytes]) -> Profile:
        """Return the profile of the files at or below ``roots``."""
        files: list[tuple[int, int, int, int]] = []
        paths: list[bytes] = []
        records, digests = [np.zeros(0, dtype=np.uint32)], [np.zeros((0, 32), dtype=np.uint8)]
        done = 0
        for job, cut in self._cut(roots):
            if cut is None:
                self.unreadable += 1
                continue
            files.append((job.tree, cut.size, len(cut.records), len(job.path)))
            paths.append(job.path)
            records.append(cut.records)
            digests.append(cut.digests)
            done += cut.size
            self._watch.report("scan", done, 0)
        if not files:
            raise SourceRefused(os.fsdecode(roots[0]), "has no file that every user may read")
        rows = np.array(files, dtype=FILE)
        return Profile.of(len(roots), rows, paths, np.concatenate(records), np.concatenate(digests))

    def _cut(self, roots: Sequence[bytes]) -> Iterator[tuple[_Job, _Cut | None]]:
        """Yield the files in the order of their paths with their records; None if one cannot be read, or changes."""
        pending: deque[tuple[_Job, Future[_Cut | None]]] = deque()
        with ThreadPoolExecutor(_WORKERS, "profile") as pool:
            try:
                for job in self._jobs(roots):
                    pending.append((job, pool.submit(_cut_file, roots[job.tree], job)))
                    if len(pending) > _AHEAD:
                        ready, outcome = pending.popleft()
                        yield ready, outcome.result()
                while pending:
                    ready, outcome = pending.popleft()
                    yield ready, outcome.result()
            finally:
                for _, outcome in pending:
                    outcome.cancel()

    def _jobs(self, roots: Sequence[bytes]) -> Iterator[_Job]:
        """Yield the files; one of several names once."""
        links: set[tuple[int, int]] = set()
        for tree, root in enumerate(roots):
            walk = _Tree(root, PathChooser(), public=True)
            found = [
                (os.path.join(listing.directory, file.name), file)
                for listing in walk
                for file in listing.files
                if file.size and not file.block_device
            ]
            for path, file in sorted(found, key=lambda one: one[0]):
                if (file.device, file.inode) not in links:
                    links.add((file.device, file.inode))
                    yield _Job(tree, os.path.relpath(path, root) if path != root else os.path.basename(path), file)
            self.private += walk.skipped.private
            self.unreadable += walk.skipped.unreadable + walk.skipped.too_deep


def path_in(root: bytes, path: bytes) -> bytes:
    """Return where a file of a tree is; a tree may be that one file."""
    return os.path.join(root, path) if os.path.isdir(root) else root


def _cut_file(root: bytes, job: _Job) -> _Cut | None:
    """Cut a file as the index of host files does: filled up with zeros to whole blocks, in regions from its start."""
    try:
        descriptor = open_local(path_in(root, job.path), identity=(job.found.device, job.found.inode), public=True)
    except OSError:
        return None
    try:
        size = min(os.fstat(descriptor).st_size, MAX_IMAGE_SIZE)
        parts = [_cut_region(descriptor, at, min(REGION_SIZE, size - at)) for at in range(0, size, REGION_SIZE)]
        changed = Found.of(job.found.name, os.fstat(descriptor)) != job.found
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if changed or not parts:
        return None
    return _Cut(size, np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


def _cut_region(descriptor: int, at: int, length: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    padded = -(-length // BLOCK_SIZE) * BLOCK_SIZE
    data = next_data(descriptor, at)
    if data is None or data >= at + length:
        return np.array([ZERO | padded], dtype=np.uint32), np.zeros((0, 32), dtype=np.uint8)
    buffer = bytearray(padded)
    if read_into(descriptor, memoryview(buffer)[:length], at) != length:
        raise OSError("shrank")
    return cut_and_digest(Kind.DISK, buffer)


def is_tree(path: str) -> bool:
    """Tell whether a tree of a profile is there, or the file that stands for one."""
    with suppress(OSError):
        return bool(stat.S_IFMT(look(path)[1].st_mode) in (stat.S_IFDIR, stat.S_IFREG))
    return False
