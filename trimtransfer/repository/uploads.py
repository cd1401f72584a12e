"""Uploads: versions on their way to a repository from another machine, piece by piece, until they are committed.

Each has a folder in the private directory, which no reader sees and no collection looks at: what it is for, and a tree
like that of a repository with the packs and files that came. A pack is there once it was written, read back, and found
to have the digest that names it. A file of the version grows at its end. So whatever dies, upload goes on from there;
what nobody has gone on with for a while is deleted.

A known digest is no permission: whether an upload may refer to a pack that the repository has is for its caller to say.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trimtransfer.durable import space_errors, sync_directory
from trimtransfer.errors import FormatError, Locked, NoSpace, NotFound, TargetRefused
from trimtransfer.fields import Fields
from trimtransfer.names import MAX_DISKS, check_name, disk_name, version_name
from trimtransfer.pack import check_pack, pack_name
from trimtransfer.repository.overlay import OverlayStore
from trimtransfer.store import DirectoryStore

FORMAT: Final = 1
PIECE: Final = 4_000_000
"""Most bytes that are sent at once: a pack, or a piece of a file."""
_FOLDER: Final = "uploads"
_TREE: Final = "tree"
_FACTS: Final = "upload.json"
_OUTCOME: Final = "outcome.json"
_LOCK: Final = "lock"
_ID: Final = re.compile(r"[0-9a-f]{32}")
ROLE: Final = "role.json"
"""The signed role of the image, which goes with the files of a version's first disk."""
_FILE: Final = re.compile(
    r"(?:(?:manifest|tables|locations|keys|hosts)|(?:from|host)-[a-z0-9][a-z0-9._-]{0,63})\.bin|role\.json"
)
"""Names of the files that a version can have."""
_MOST_FILES: Final = 1024
_MAX_FACTS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What uploads may take: ``bytes`` of each, how many (``each``) a publisher has at a time, seconds (``lifetime``)
    after which one that nobody goes on with is deleted, and bytes of the disk that stay ``free``."""

    bytes: int = 1 << 40
    each: int = 4
    lifetime: int = 7 * 86_400
    free: int = 1 << 30


class UploadTooLarge(TargetRefused):
    """An upload with more bytes than the server takes."""


class Upload:
    """One upload. Its methods may be called from any thread, under :meth:`held`."""

    def __init__(
        self, store: DirectoryStore, path: Path, facts: Fields, limits: UploadLimits, taken: dict[str, int]
    ) -> None:
        self._store, self._path, self._limits, self._taken = store, path, limits, taken
        self.id = path.name
        self.image = check_name("image", facts.text("image"))
        self.version = check_name("version", facts.text("version"))
        self.owner = facts.text("owner")

    def __repr__(self) -> str:
        return f"Upload({self.id}, {self.image} {self.version})"

    def tree(self, may: Callable[[str], bool] = lambda name: False) -> OverlayStore:
        """Return what was uploaded, over what of the repository ``may`` be read; by default nothing."""
        return OverlayStore(self._path / _TREE, self._store, may=may)

    @contextlib.contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Hold the upload while it is written to, ``alone`` or with others who add packs.

        Raises:
            Locked: it is being written to, or checked. NotFound: it is gone.
        """
        try:
            descriptor = os.open(self._path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("upload", self.id) from None
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"upload {self.id}", "another request") from None
            if not os.fstat(descriptor).st_nlink:
                raise NotFound("upload", self.id)
            os.utime(self._path / _LOCK)
            yield
        finally:
            os.close(descriptor)

    # ---- what there is

    def to_dict(self) -> dict[str, Any]:
        """Return what its publisher may know, for JSON: ``files`` with their lengths, by disk and name."""
        facts: dict[str, Any] = {"upload": self.id, "image": self.image, "version": self.version, "piece": PIECE}
        return {**facts, "files": {f"{disk}/{file}": size for disk, file, size in self.files()}, **self.outcome()}

    def files(self) -> list[tuple[int, str, int]]:
        """Return disk, name and length of the version's files that came, complete or not."""
        found = []
        for name, size in self.tree().list_own("images"):
            _, image, _, file = name.split("/")
            found.append((int(image.removeprefix(self.image).removeprefix(".disk") or 0), file, size))
        return sorted(found)

    def lacking(self, digests: Iterable[bytes], may: Callable[[str], bool]) -> list[bytes]:
        """Return the packs, of those of these ``digests``, that must be uploaded: neither came, nor are in the
        repository for whoever ``may`` refer to them there."""
        tree = self.tree(may)
        return [digest for digest in dict.fromkeys(digests) if not tree.exists(pack_name(digest))]

    def outcome(self) -> dict[str, Any]:
        """Return how it ended; nothing while it is open."""
        try:
            found = json.loads((self._path / _OUTCOME).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    # ---- what comes

    def put_pack(self, digest: bytes, data: bytes) -> None:
        """Store a pack; what is read back has its digest.

        Raises:
            FormatError, IntegrityError: not this pack. NoSpace, UploadTooLarge: no room for it.
        """
        check_pack(data, digest)
        self._check_room(len(data))
        self.tree().put(pack_name(digest), data)

    def put_file(self, disk: int, file: str, offset: int, data: bytes) -> int:
        """Store bytes of a file of the version at its end; what is there from ``offset`` on already must be the same.
        Return where they end.

        Raises:
            FormatError: a name that no file of a version has; a gap, or other bytes (see :meth:`clear_files`).
            NoSpace, UploadTooLarge: no room for it.
        """
        if not _FILE.fullmatch(file) or not 0 <= disk < MAX_DISKS:
            raise FormatError("upload", "file", "a file of a version", f"{disk}/{file}"[:80])
        path = self.tree().path / version_name(disk_name(self.image, disk), self.version, file)
        known = self.files()
        length = next((size for *name, size in known if name == [disk, file]), 0)
        if offset > length or (len(known) >= _MOST_FILES and not length):
            raise FormatError(f"{disk}/{file}", offset, f"its end, {length:,}, of at most {_MOST_FILES} files", offset)
        self._check_room(len(data))
        with space_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with open(descriptor, "r+b") as stream:
                stream.seek(offset)
                there = stream.read(len(data))
                if there != data[: len(there)]:
                    raise FormatError(f"{disk}/{file}", offset, "the bytes that came before", "others")
                stream.write(data[len(there) :])
                stream.flush()
                os.fsync(descriptor)
        return offset + len(data)

    def clear_files(self) -> None:
        """Delete the version's files; packs stay. It is open again."""
        (self._path / _OUTCOME).unlink(missing_ok=True)
        shutil.rmtree(self.tree().path / "images", ignore_errors=True)

    def end(self, outcome: dict[str, Any], *, drop: bool) -> None:
        """Note durably how it ended; ``drop`` what was uploaded."""
        _write(self._path / _OUTCOME, outcome)
        if drop:
            shutil.rmtree(self._path / _TREE, ignore_errors=True)

    def delete(self) -> None:
        """Delete everything."""
        self._taken.pop(self.id, None)
        (self._path / _LOCK).unlink(missing_ok=True)
        shutil.rmtree(self._path, ignore_errors=True)

    def _check_room(self, size: int) -> None:
        if self.id not in self._taken:
            self._taken[self.id] = sum(length for _, length in self.tree().list_own())
        self._taken[self.id] += size
        if self._taken[self.id] > self._limits.bytes:
            raise UploadTooLarge(f"{self.image} {self.version}", f"more than the {self._limits.bytes:,} bytes allowed")
        free = shutil.disk_usage(self._path).free
        if free - size < self._limits.free:
            raise NoSpace("the upload on the server", size, max(0, free - self._limits.free), "make room there")


class Uploads:
    """The uploads of a repository. Its methods may be called from any thread."""

    def __init__(self, store: DirectoryStore, limits: UploadLimits = UploadLimits()) -> None:
        self._store, self._limits = store, limits
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Uploads({self._store.url!r})"

    def begin(self, owner: str, image: str, version: str) -> Upload:
        """Begin an upload.

        Raises:
            FormatError: a name that is none. TargetRefused: the publisher has too many already.
        """
        for kind, name in (("image", image), ("version", version)):
            check_name(kind, name)
        with self._lock:
            if (
                sum(one.owner == owner and one.outcome().get("state") != "committed" for one in self)
                >= self._limits.each
            ):
                reason = (
                    f"{self._limits.each} uploads are open already; go on with one of them, or wait until they expire"
                )
                raise TargetRefused(f"uploads of {owner}", reason)
            path = self._store.private(_FOLDER) / secrets.token_hex(16)
            path.mkdir(parents=True)
            (path / _TREE).mkdir()
            (path / _LOCK).touch()
            _write(path / _FACTS, {"format": FORMAT, "image": image, "version": version, "owner": owner})
            sync_directory(path.parent)
        return self._open(path)

    def open(self, id: str, owner: str) -> Upload:
        """Return an upload of this owner; ``NotFound``, also for somebody else's."""
        if not _ID.fullmatch(id):
            raise NotFound("upload", id[:40])
        found = self._open(self._store.private(_FOLDER) / id)
        if found.owner != owner:
            raise NotFound("upload", id)
        return found

    def __iter__(self) -> Iterator[Upload]:
        folder = self._store.private(_FOLDER)
        for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
            with contextlib.suppress(NotFound, FormatError):
                yield self._open(folder / name)

    def clear_temporary(self) -> None:
        """Delete what writers that died left behind; of uploads that somebody writes to nothing."""
        for upload in self:
            with contextlib.suppress(NotFound, Locked), upload.held(alone=True):
                upload.tree().clear_temporary()

    def expire(self, now: float | None = None) -> int:
        """Delete uploads that nobody has gone on with for their lifetime, whatever is in them; return how many."""
        folder, count = self._store.private(_FOLDER), 0
        for name in os.listdir(folder) if folder.is_dir() else []:
            path = folder / name
            with contextlib.suppress(NotFound, Locked, FileNotFoundError):
                used = max((path / one).stat().st_mtime for one in (".", _LOCK) if (path / one).exists())
                if (now or time.time()) - used < self._limits.lifetime:
                    continue
                with contextlib.suppress(FormatError, NotFound):
                    upload = self._open(path)
                    with upload.held(alone=True):
                        upload.delete()
                        count += 1
                shutil.rmtree(path, ignore_errors=True)
        return count

    def _open(self, path: Path) -> Upload:
        try:
            facts = Fields.parse("upload", (path / _FACTS).read_bytes(), _MAX_FACTS)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("upload", path.name) from None
        facts.format(FORMAT)
        return Upload(self._store, path, facts, self._limits, self._taken)


def _write(path: Path, values: dict[str, Any]) -> None:
    """Replace a small file durably."""
    staged = path.with_name(path.name + ".new")
    with space_errors(path), open(staged, "wb") as file:
        file.write(json.dumps(values).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_directory(path.parent)
