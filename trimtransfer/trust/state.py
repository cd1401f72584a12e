"""What a client has come to trust, in a directory: a folder for each repository, and which one is at which place.

A folder is named by the repository's id, so mirrors, moved servers and bundles share what was seen of it. It holds the
roots that were taken, the newest of all other files, and when they were last believed. Deleting it means to begin anew
with a pinned root. FORMAT.md, "Trust".
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from trimtransfer.durable import space_errors, sync_directory
from trimtransfer.errors import FormatError, TargetRefused
from trimtransfer.trust.layout import REPOSITORY, ROOT, max_length, metadata_name
from trimtransfer.trust.strict import encode, read_json

_PLACES: Final = "places.json"
_SEEN: Final = "seen.json"
_LOCK: Final = "lock"
_MOST: Final = 4 << 20


class TrustState:
    """The directory: ``path``, by default in the user's folder for state."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is None:
            from platformdirs import user_state_path

            path = user_state_path("medv") / "trust"
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"TrustState({str(self.path)!r})"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory where missing, for its owner alone, and hold its lock: runs wait for each other."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(self.path)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise TargetRefused(str(self.path), "belongs to another user or can be written to by others")
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def at(self, place: str) -> str | None:
        """Return the id of the repository that was trusted at a place; None if none was."""
        found = self._places().get(place)
        return found if isinstance(found, str) and REPOSITORY.fullmatch(found) else None

    def record(self, place: str, repository: str) -> None:
        """Note which repository is at a place. Hold the lock."""
        places = self._places()
        if places.get(place) != repository:
            _write(self.path / _PLACES, encode({**places, place: repository}))

    def of(self, repository: str) -> RepositoryState:
        """Return what is kept of a repository."""
        return RepositoryState(self.path / repository)

    def _places(self) -> dict[str, Any]:
        """Raises ``FormatError`` or ``TargetRefused`` if the file is damaged or somebody else's: what was trusted must
        not be forgotten."""
        try:
            data = _read(self.path / _PLACES, _MOST)
        except PermissionError as error:
            raise TargetRefused(str(self.path), "cannot be read by this user; name another folder (--state)") from error
        return {} if data is None else read_json(data, str(self.path / _PLACES))


class RepositoryState:
    """What is kept of one repository, in the directory ``path``. To be changed under the lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def root(self, version: int | None = None) -> bytes | None:
        """Return a root that was taken, the newest by default; None if there is none."""
        number = version if version is not None else max(self._numbers(), default=None)
        return _read(self.path / _file(ROOT, number), max_length(ROOT)) if number is not None else None

    def put_root(self, version: int, data: bytes) -> None:
        """Keep a root."""
        if self.root(version) != data:
            self._put(_file(ROOT, version), data)

    def read(self, role: str) -> bytes | None:
        """Return the newest file of another role that was believed; None if there is none."""
        return _read(self.path / _file(role), max_length(role))

    def put(self, role: str, data: bytes) -> None:
        """Keep the newest file of another role."""
        if self.read(role) != data:
            self._put(_file(role), data)

    @property
    def seen(self) -> int:
        """When files were last believed, in seconds since 1970; 0 if never."""
        data = _read(self.path / _SEEN, 100)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return int(json.loads(data or b"")["time"])
        return 0

    def see(self, seconds: int) -> None:
        """Note that they were believed now, by the hour: a sync that finds nothing new writes nothing else."""
        if seconds - self.seen >= 3600:
            self._put(_SEEN, encode({"time": seconds}))

    def _numbers(self) -> list[int]:
        """Return the numbers of the roots that are kept."""
        suffix = f".{ROOT}.json"
        with contextlib.suppress(FileNotFoundError):
            names = (entry.name for entry in os.scandir(self.path) if entry.name.endswith(suffix))
            return [int(number) for name in names if (number := name.removesuffix(suffix)).isdecimal()]
        return []

    def _put(self, name: str, data: bytes) -> None:
        self.path.mkdir(mode=0o700, exist_ok=True)
        _write(self.path / name, data)


def _file(role: str, version: int | None = None) -> str:
    return metadata_name(role, version).rpartition("/")[2]


def _read(path: Path, most: int) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        return None
    if len(data) > most:
        raise FormatError(str(path), most, f"at most {most:,} bytes", "more")
    return data


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with space_errors(path):
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
