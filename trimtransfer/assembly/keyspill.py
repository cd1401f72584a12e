"""A version's key files, fetched whole into temporary files.

They only save bytes, so damage to them is no reason to fail: one that is not what the manifest names, even when caches
are asked to fetch it anew, is done without, and a warning says so. A network that fails is another matter: the sync
needs it anyway, so its error goes up.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

from trimtransfer.chunk import object_hasher
from trimtransfer.errors import FetchError, FormatError, IntegrityError, NotFound
from trimtransfer.keys import KeyFile
from trimtransfer.manifest import KEYS, FileRef, Manifest
from trimtransfer.store import Range, Store

_PIECE: Final = 4 << 20


class KeySpill:
    """Fetches key files of ``manifest`` into unlinked files of ``directory``; a context manager around those."""

    def __init__(self, store: Store, manifest: Manifest, directory: Path) -> None:
        self._store, self._manifest, self._directory = store, manifest, directory
        self._spills: list[IO[bytes]] = []
        self._files: dict[str, KeyFile] = {}
        self.warnings: list[str] = []

    def __enter__(self) -> KeySpill:
        return self

    def __exit__(self, *_: object) -> None:
        for spill in self._spills:
            spill.close()

    def fetch(self, versions: Iterable[str]) -> None:
        """Fetch the key files of these versions; those that cannot be had, or are damaged, give a warning.

        Raises:
            FetchError: the network failed; NoSpace; Cancelled.
        """
        names = self._manifest.file_names()
        for number, file in enumerate(self._manifest.files):
            if file.kind != KEYS or file.version not in versions or file.version in self._files:
                continue
            try:
                self._files[file.version] = self._fetch(names[number], file)
            except FetchError as error:
                if error.retryable:
                    raise
                self._warn(names[number], error)
            except (FormatError, IntegrityError, NotFound) as error:
                self._warn(names[number], error)

    def file(self, version: str) -> KeyFile | None:
        """Return a version's key file, None if it was not fetched."""
        return self._files.get(version)

    def _fetch(self, name: str, file: FileRef) -> KeyFile:
        spill = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - held
        self._spills.append(spill)
        descriptor = spill.fileno()
        starts = range(0, file.length, _PIECE)
        whole = len(starts) == 1
        parts = [Range(name, at, min(_PIECE, file.length - at), file.length, whole) for at in starts]

        def deliver(part: Range, data: memoryview) -> None:
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], part.start + done)

        found = b""
        for again in (False, True):
            self._store.fetch(parts, deliver, again=again)
            found = _digest(descriptor)
            if found == file.digest:
                return KeyFile(lambda offset, length: os.pread(descriptor, length, offset), file.length)
        raise IntegrityError(name, file.digest, found)

    def _warn(self, name: str, error: Exception) -> None:
        self.warnings.append(f"seeds are not searched at every offset as {name} cannot be used: {error}")


def _digest(descriptor: int) -> bytes:
    """Return the object digest of what is in a temporary file."""
    hasher, at = object_hasher(), 0
    while data := os.pread(descriptor, _PIECE, at):
        hasher.update(data)
        at += len(data)
    return hasher.digest()
