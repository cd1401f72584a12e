"""A repository in an object store, to be read: what a directory store reads, from a bucket."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from trimtransfer.bucket.commit import is_lasting
from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.wire import Wire
from trimtransfer.durable import StagedObject
from trimtransfer.errors import FormatError, NotFound, TargetRefused
from trimtransfer.fetch.http import HttpStore
from trimtransfer.store import DirectoryStore, Range

_BLOCK: Final = 1 << 20
_CACHED: Final = 64
"""Blocks in memory."""


class BucketStore(DirectoryStore):
    """The objects below ``url`` (``s3://bucket/prefix``), as they are listed when that is first asked for.

    Its directory is an empty one for temporary files, until it is closed. Nothing can be written. Ranges of packs and
    of files of versions are read a MiB at a time, of which 64 are kept: a request costs more than its bytes.
    """

    def __init__(self, url: str, *, connections: int = 8, cancel: threading.Event | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="trimtransfer-")
        super().__init__(self._temporary.name, connections=connections)
        self._wire = Wire(url, cancel=cancel)
        self._http = HttpStore(url, connections=connections, cancel=cancel)
        self.url, self.stats = self._wire.url, self._http.stats
        self._listed: dict[str, Listed] | None = None
        self._listing, self._caching = threading.Lock(), threading.Lock()
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def __repr__(self) -> str:
        return f"BucketStore({self.url!r})"

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole; longer than ``limit``: ``FormatError``."""
        return self._http.read(name, limit=limit)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes; ``FormatError`` where the object has another length: it is damaged."""
        length = self.size(wanted.name)
        if wanted.total not in (None, length):
            raise FormatError(f"object {wanted.name}", "length", f"{wanted.total:,} bytes", f"{length:,}")
        if wanted.end > length:
            raise FormatError(f"object {wanted.name}", length, f"{wanted.end:,} bytes", "its end")
        if not is_lasting(wanted.name):
            return self._http.read_range(wanted) if wanted.length else b""
        parts = [self._block(wanted.name, number, length) for number in _blocks(wanted)]
        first = wanted.start // _BLOCK * _BLOCK
        return b"".join(parts)[wanted.start - first : wanted.end - first]

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Deliver each range exactly once, complete, in any order, from worker threads."""
        self._http.fetch(ranges, deliver, again=again)

    def exists(self, name: str) -> bool:
        """Return whether the object exists."""
        return name in self.objects()

    def size(self, name: str) -> int:
        """Return the object's length in bytes."""
        found = self.objects().get(name)
        if found is None:
            raise NotFound(name, self.url)
        return found.length

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, length) of every object below ``prefix``."""
        start = f"{prefix}/" if prefix else ""
        for name, one in self.objects().items():
            if name.startswith(start) and not name.startswith("."):
                yield name, one.length

    def objects(self) -> dict[str, Listed]:
        """Return all objects by name, in order."""
        with self._listing:
            if self._listed is None:
                self._listed = {one.name: one for one in self._wire.objects()}
            return self._listed

    def _block(self, name: str, number: int, length: int) -> bytes:
        """Return a block of an object that never changes: whoever reads a piece reads those beside it next."""
        with self._caching:
            if (name, number) in self._cache:
                self._cache.move_to_end((name, number))
                return self._cache[name, number]
        start = number * _BLOCK
        data = self._http.read_range(Range(name, start, min(_BLOCK, length - start), length))
        with self._caching:
            self._cache[name, number] = data
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return data

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._wire.close()
        self._temporary.cleanup()

    def staged(self, name: str) -> StagedObject:
        """Nothing can be written; ``TargetRefused``."""
        raise TargetRefused(self.url, "is read only here")

    def delete(self, name: str) -> bool:
        """Nothing can be deleted; ``TargetRefused``."""
        raise TargetRefused(self.url, "is read only here")


def _blocks(wanted: Range) -> range:
    """Return the numbers of the blocks that a range lies in."""
    return range(wanted.start // _BLOCK, -(-wanted.end // _BLOCK) if wanted.length else wanted.start // _BLOCK)
