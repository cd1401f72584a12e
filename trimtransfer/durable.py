"""Files that are whole and on the disk once they have their name: directories, fsync, and what a full disk means.

An object is written to a temporary file, synced, and renamed; then the directory is synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trimtransfer.chunk import object_hasher
from trimtransfer.errors import NoSpace

_PIECE: Final = 4 << 20
_NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


class StagedObject:
    """An object being written: ``write`` appends; leaving the ``with`` block cleanly commits, else it vanishes."""

    def __init__(self, temporary: Path, final: Path, root: Path) -> None:
        self._temporary, self._final, self._root = temporary, final, root
        self._descriptor = -1
        self.length = 0

    def __enter__(self) -> StagedObject:
        with space_errors(self._final):
            make_directories(self._temporary.parent, self._root)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._temporary, flags, 0o644)
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; ``NoSpace`` where the disk is full."""
        view = memoryview(data).cast("B")
        with space_errors(self._final):
            while view:
                written = os.write(self._descriptor, view)
                self.length += written
                view = view[written:]

    def sync(self) -> None:
        """Bring what was written to the disk (before it is read back)."""
        with space_errors(self._final):
            os.fsync(self._descriptor)

    def read_back(self) -> bytes:
        """Return what the file now holds, read again from it, past the page cache where the system allows that."""
        self._drop_cache()
        return read_at(self._descriptor, self.length + 1, 0)

    def read_back_digest(self) -> bytes:
        """Return the object digest of what the file now holds, read again in the same way but in pieces."""
        self._drop_cache()
        hasher, at = object_hasher(), 0
        while data := read_at(self._descriptor, _PIECE, at):
            hasher.update(data)
            at += len(data)
        return hasher.digest()

    def _drop_cache(self) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            os.close(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()

    def _commit(self) -> None:
        with space_errors(self._final):
            os.fsync(self._descriptor)
            make_directories(self._final.parent, self._root)
            os.replace(self._temporary, self._final)
            sync_directory(self._final.parent)


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return up to ``length`` bytes from ``offset`` on: fewer only at the file's end."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length or not data:
        return data
    parts, got = [data], len(data)
    while got < length and (data := os.pread(descriptor, length - got, offset + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def make_directories(directory: Path, root: Path) -> None:
    """Make a directory below ``root`` and its parents, each one durable in its own parent."""
    if directory.is_dir():
        return
    if directory != root:
        make_directories(directory.parent, root)
    directory.mkdir(exist_ok=True, parents=directory == root)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to the disk; systems that cannot (Windows) order them by themselves."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def space_errors(path: Path) -> Iterator[None]:
    """Turn "disk full" and "quota exceeded" into ``NoSpace`` that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpace(str(path), None, None) from error
        raise
