"""Objects of an object store into a directory: each one whole, checked, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from typing import Final

from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.uploading import is_tag
from trimtransfer.bucket.wire import Wire
from trimtransfer.chunk import object_digest
from trimtransfer.errors import IntegrityError
from trimtransfer.fetch.http import HttpStore
from trimtransfer.store import DirectoryStore, Range
from trimtransfer.watch import Watch

_PIECE: Final = 8 << 20
_REMEDY: Final = "the store's copy is damaged: run `medv-repo verify` on it"


def fetch_objects(wire: Wire, store: DirectoryStore, objects: Sequence[Listed], *, threads: int, watch: Watch) -> None:
    """Fetch these objects. Packs are compared with their names, others with their entity tags where these are MD5s.

    Raises:
        IntegrityError: an object is not what it should be. Else what reading and writing raise.
    """
    total, done, lock = sum(one.length for one in objects), 0, threading.Lock()

    def count(length: int) -> None:
        nonlocal done
        with lock:
            done += length
            watch.report("pull", done, total)

    small = {one.name: one for one in objects if 0 < one.length <= _PIECE}

    def deliver(wanted: Range, data: memoryview) -> None:
        _check(small[wanted.name], data)
        store.put(wanted.name, data)
        count(wanted.length)

    with contextlib.closing(HttpStore(wire.url, connections=threads, cancel=watch.cancel)) as http:
        ranges = (Range(one.name, 0, one.length, one.length, whole=True, run=one.length) for one in small.values())
        http.fetch(ranges, deliver)
        for one in objects:
            if one.length == 0:
                store.put(one.name, b"")
            elif one.name not in small:
                _fetch_large(http, store, one)
                count(one.length)


def _fetch_large(http: HttpStore, store: DirectoryStore, one: Listed) -> None:
    hasher = hashlib.md5(usedforsecurity=False)
    with store.staged(one.name) as staging:
        for start in range(0, one.length, _PIECE):
            data = http.read_range(Range(one.name, start, min(_PIECE, one.length - start), one.length))
            hasher.update(data)
            staging.write(data)
        if is_tag(one.etag) and "-" not in one.etag:
            _compare(one, hasher.hexdigest())


def _check(one: Listed, data: memoryview) -> None:
    if one.name.startswith("packs/"):
        expected, found = one.name.rpartition("/")[2].removesuffix(".bin"), object_digest(data).hex()
        if expected != found:
            raise IntegrityError(one.name, expected.encode(), found.encode(), _REMEDY)
    elif is_tag(one.etag) and "-" not in one.etag:
        _compare(one, hashlib.md5(data, usedforsecurity=False).hexdigest())


def _compare(one: Listed, found: str) -> None:
    if found != one.etag:
        raise IntegrityError(one.name, one.etag.encode(), found.encode(), _REMEDY)
