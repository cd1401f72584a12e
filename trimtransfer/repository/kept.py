"""Packs of a server that stay on a publisher's machine: those that he sent, and those that he once had to read.

Deltas are made of the version before, and a publisher's machine has published that one most often itself. A pack that
it has not is fetched whole, checked, and kept; what is kept is given up, the longest unused first, beyond a limit. Once
in a run each is compared with its digest, before anything of it is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from trimtransfer.errors import FormatError, IntegrityError, NoSpace
from trimtransfer.pack import MAX_PACK, check_pack
from trimtransfer.store import DirectoryStore, Range, Store, StoreStats, in_threads

LIMIT: Final = 20_000_000_000
"""Bytes of packs that are kept of one server."""
_THREADS: Final = 4


class KeptPacks:
    """The read side of ``remote``, with packs kept in ``folder``. Its methods may be called from any thread."""

    def __init__(self, folder: Path, remote: Store) -> None:
        self._kept, self._remote = DirectoryStore(folder), remote
        self._sound: set[str] = set()

    def __repr__(self) -> str:
        return f"KeptPacks({self._kept.url!r}, {self._remote!r})"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._remote.url

    @property
    def stats(self) -> StoreStats:
        """What has crossed the wire so far."""
        return self._remote.stats

    def read(self, name: str, *, limit: int) -> bytes:
        """Return an object whole; longer than ``limit``: ``FormatError``."""
        return self._pack(name)[:limit] if _is_pack(name) else self._remote.read(name, limit=limit)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes."""
        if not _is_pack(wanted.name):
            return self._remote.read_range(wanted)
        if wanted.name in self._sound:
            with contextlib.suppress(FileNotFoundError):
                return self._range(wanted)
        data = self._pack(wanted.name)
        if wanted.total not in (None, len(data)) or wanted.end > len(data):
            raise FormatError(f"object {wanted.name}", "length", f"{wanted.total or wanted.end:,} bytes", len(data))
        return data[wanted.start : wanted.end]

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Deliver each range once from a few threads."""
        in_threads(ranges, lambda wanted: deliver(wanted, memoryview(self.read_range(wanted))), _THREADS)

    def close(self) -> None:
        """Nothing is held open between calls."""

    def keep(self, store: DirectoryStore, names: Iterable[str]) -> None:
        """Keep packs that were made in a folder of the same file system; they are taken from there."""
        for name in names:
            path = self._kept.path / name
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(store.path / name, path)

    def prune(self, limit: int = LIMIT) -> None:
        """Give up packs beyond a limit in bytes."""
        found = []
        for name, size in self._kept.list("packs"):
            with contextlib.suppress(FileNotFoundError):
                found.append((os.stat(self._kept.path / name).st_mtime_ns, size, name))
        total = sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            if total <= limit:
                return
            self._kept.delete(name)
            total -= size

    def _range(self, wanted: Range) -> bytes:
        """Return a range of a pack that is kept; ``FileNotFoundError``, also where it is not what it should be."""
        with open(self._kept.path / wanted.name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if wanted.total not in (None, size) or wanted.end > size:
                raise FileNotFoundError(wanted.name)
            return os.pread(file.fileno(), wanted.length, wanted.start)

    def _pack(self, name: str) -> bytes:
        digest = bytes.fromhex(Path(name).stem)
        with contextlib.suppress(FileNotFoundError, FormatError, IntegrityError):
            data = (self._kept.path / name).read_bytes()
            check_pack(data, digest)
            os.utime(self._kept.path / name)
            self._sound.add(name)
            return data
        data = self._remote.read(name, limit=MAX_PACK)
        check_pack(data, digest)
        with contextlib.suppress(NoSpace, OSError):
            self._kept.put(name, data)
            self._sound.add(name)
        return data


def _is_pack(name: str) -> bool:
    return name.startswith("packs/") and len(Path(name).stem) == 64
