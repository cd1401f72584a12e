"""Checking key files: each region's keys are where its manifest says, one for each chunk, and those of its content."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError, TrimTransferError
from trimtransfer.keys import KeyFile
from trimtransfer.manifest import KEYS, Manifest, Region
from trimtransfer.repository.reading import open_keys
from trimtransfer.store import DirectoryStore
from trimtransfer.table import Table

REMEDY: Final = "images are right all the same, only less is found in seeds; restore it from a copy of the repository"


class KeyCheck:
    """Compares key files with tables and content. ``problems`` tells what is wrong with which object.

    Files that cannot be read are left out: whoever compares their digests notes those. Its methods may be called from
    any thread.
    """

    def __init__(self, store: DirectoryStore) -> None:
        self._store = store
        self._files: dict[bytes, KeyFile | None] = {}
        self.problems: dict[str, str] = {}

    def compare_table(self, manifest: Manifest, region: Region, table: Table) -> None:
        """Note it if a region's table has no keys although the version it is from has a key file, or too few."""
        name, file, number = self._find(manifest, region)
        if file is None:
            return
        chunks = int(np.count_nonzero(~table.zero))
        found = file.count(number) if number is not None else 0
        if found != chunks:
            self._note(name, FormatError(name, f"table {region.table.hex()[:16]}", f"{chunks} keys", found))

    def compare_content(self, manifest: Manifest, region: Region, keys: NDArray[np.uint64]) -> None:
        """Note it if a region's keys are others than ``keys``, which its content has."""
        name, file, number = self._find(manifest, region)
        if file is None or number is None:
            return
        found = file.keys(number)
        if len(found) == len(keys) and (found != keys).any():
            chunk = int(np.argmax(found != keys))
            where = f"table {region.table.hex()[:16]}, key {chunk}"
            self._note(name, FormatError(name, where, f"{int(keys[chunk]):#x}", f"{int(found[chunk]):#x}"))

    def _find(self, manifest: Manifest, region: Region) -> tuple[str, KeyFile | None, int | None]:
        """Return the name of the key file that a region's keys are in, the file, and the number of the table in it."""
        version = manifest.files[region.full.file].version
        for name, file in zip(manifest.file_names(), manifest.files, strict=True):
            if file.kind == KEYS and file.version == version:
                if file.digest not in self._files:
                    try:
                        self._files[file.digest] = open_keys(self._store, name, file.length)
                    except (TrimTransferError, OSError):
                        self._files[file.digest] = None
                opened = self._files[file.digest]
                return name, opened, opened.find(region.table) if opened is not None else None
        return "", None, None

    def _note(self, name: str, error: FormatError) -> None:
        self.problems.setdefault(name, str(error))
