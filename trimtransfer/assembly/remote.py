"""Reading a version's tables and locations from a store: neighbours in one request, every piece checked.

A piece whose check fails is asked for once more, past any cache; then the repository is at fault.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

import numpy as np

from trimtransfer.assembly.plan import coalesce
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.bundlestore import AGAIN, BundleStore, part_paths
from trimtransfer.chunk import object_check, object_digest
from trimtransfer.errors import FetchError, FormatError, IntegrityError, NotFound
from trimtransfer.fetch.credentials import Credentials
from trimtransfer.fetch.manners import Conduct, Manners
from trimtransfer.head import Head
from trimtransfer.joint import JointDifference, is_joint
from trimtransfer.location import Locations
from trimtransfer.manifest import Manifest, Region, StoredRef
from trimtransfer.nearstore import behind_bundles, is_offline
from trimtransfer.repository.reading import read_head
from trimtransfer.store import DirectoryStore, Range, Store
from trimtransfer.table import Table, decode_difference, decode_full, encode_full
from trimtransfer.trust.imagerole import ImageRole

_REMEDY: Final = "the repository changed or is damaged; try again later, or have it checked with `medv-repo verify`"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A stored piece and the request that brings it."""

    ref: StoredRef
    name: str
    range: Range


class Remote:
    """One version in a store. ``tables`` keeps the tables that were read."""

    def __init__(self, store: Store, manifest: Manifest, tables: TableFile, signed: ImageRole | None = None) -> None:
        """``signed``: what vouches for files beside the manifest, which come and go; None: nobody does."""
        self.store, self.manifest, self._signed = store, manifest, signed
        self._tables = tables
        self._names = manifest.file_names()
        self.measured = (0, 0.0)
        """Bytes of tables and locations read so far, and the seconds that this took."""

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a file beside the manifest, such as an index of deltas.

        Raises:
            NotFound: there is none, or where files are signed, it is not among these.
            FormatError, IntegrityError: it is too long, or not the one that is signed.
        """
        if self._signed is None:
            return self.store.read(name, limit=limit)
        file = self._signed.files.get(name)
        if file is None:
            raise NotFound(f"{name}, among the files that are signed,", self.store.url)
        data = self.store.read(name, limit=min(limit, file.length))
        if object_digest(data) != file.digest:
            raise IntegrityError(
                name, file.digest, object_digest(data), "it is not the one that is signed; done without"
            )
        return data

    def tables(self, regions: Sequence[Region], base: Callable[[int], Table | None] | None) -> list[Table]:
        """Return the tables of regions that are not all zero: kept ones, else by difference, else whole.

        ``base`` returns a table of the parent version by the absolute start of its region; None: the parent is not
        here, so differences are of no use.

        Raises:
            FormatError, IntegrityError: the repository is damaged.
        """
        found: dict[int, Table] = {}
        bases: dict[int, Table | None] = {}
        for region in regions:
            table = self._tables.get(region.table, size=region.length)
            if table is not None:
                found[region.index] = table
            elif region.difference.length and base is not None:
                bases[region.index] = base(region.start)
        missing = [region for region in regions if region.index not in found]
        stored = self.pieces([region.difference if region.index in bases else region.full for region in missing])
        for region in missing:
            if region.index in bases:
                self._add_difference(region, bases[region.index], stored[region.difference], found)
            else:
                self._add_whole(region, stored[region.full], found)
        whole = [region for region in missing if region.index not in found]
        stored = self.pieces([region.full for region in whole])
        for region in whole:
            self._add_whole(region, stored[region.full], found)
        return [found[region.index] for region in regions]

    def locations(self, wanted: Sequence[tuple[Region, str]]) -> dict[tuple[int, str], Locations]:
        """Return parts (``fresh``, ``rest``) of regions' locations by (number of the region, part): those that exist.

        Raises:
            FormatError, IntegrityError: the repository is damaged.
        """
        refs: dict[tuple[int, str], StoredRef] = {
            (region.index, part): getattr(region, part) for region, part in wanted
        }
        stored = self.pieces([ref for ref in refs.values() if ref.length])
        return {key: Locations.from_bytes(stored[ref]) for key, ref in refs.items() if ref.length}

    def pieces(self, refs: Sequence[StoredRef]) -> dict[StoredRef, bytes]:
        """Return stored pieces, each verified.

        Raises:
            IntegrityError: a piece is not the one that the manifest names, even when asked for twice.
        """
        found: dict[StoredRef, bytes] = {}
        wanted = self._requests(refs)
        self._fetch(wanted, found, again=False)
        damaged = [item for item in wanted if item.ref not in found]
        if damaged:
            self._fetch(self._requests([item.ref for item in damaged]), found, again=True)
        for item in damaged:
            if item.ref not in found:
                where = f"{item.name}, byte {item.ref.offset}, {item.ref.length} bytes"
                raise IntegrityError(where, item.ref.check, bytes(len(item.ref.check)), remedy_for(self.store))
        return found

    def _add_whole(self, region: Region, data: bytes, found: dict[int, Table]) -> None:
        found[region.index] = decode_full(data, size=region.length, digest=region.table)
        self._tables.add(region.table, data)

    def _by_difference(self, region: Region, base: Table | None, data: bytes) -> Table | None:
        if not is_joint(data):
            return decode_difference(data, base, size=region.length, digest=region.table) if base else None
        difference = JointDifference(data)
        bases: list[Table] = []
        for ref in difference.bases:
            found = self._tables.get(ref.digest, size=ref.length)
            if found is None:
                return None
            bases.append(found)
        return difference.table(bases, size=region.length, digest=region.table)

    def _add_difference(self, region: Region, base: Table | None, data: bytes, found: dict[int, Table]) -> None:
        """Add a table made from its difference; nothing if that is one to other bases, then it is read whole."""
        try:
            table = self._by_difference(region, base, data)
        except (FormatError, IntegrityError):
            return
        if table is None:
            return
        found[region.index] = table
        self._tables.add(region.table, encode_full(table))

    def _requests(self, refs: Sequence[StoredRef]) -> list[_Wanted]:
        wanted: list[_Wanted] = []
        for number in sorted({ref.file for ref in refs}):
            name, total = self._names[number], self.manifest.files[number].length
            here = sorted({ref for ref in refs if ref.file == number}, key=lambda ref: (ref.offset, ref.length))
            starts = np.array([ref.offset for ref in here], dtype=np.int64)
            lengths = np.array([ref.length for ref in here], dtype=np.int64)
            for piece in coalesce(starts, lengths):
                whole = piece.start == 0 and piece.end == total
                part = Range(name, piece.start, piece.end - piece.start, total, whole)
                wanted += [_Wanted(ref, name, part) for ref in here[piece.first : piece.last]]
        return wanted

    def _fetch(self, wanted: Sequence[_Wanted], found: dict[StoredRef, bytes], *, again: bool) -> None:
        """Fetch and add the pieces whose check is right."""
        by_range: dict[Range, list[StoredRef]] = {}
        for item in wanted:
            by_range.setdefault(item.range, []).append(item.ref)

        def deliver(part: Range, data: memoryview) -> None:
            for ref in by_range[part]:
                stored = bytes(data[ref.offset - part.start : ref.offset - part.start + ref.length])
                if object_check(stored) == ref.check:
                    found[ref] = stored

        if by_range:
            began = time.monotonic()
            self.store.fetch(list(by_range), deliver, again=again)
            size, seconds = self.measured
            self.measured = size + sum(part.length for part in by_range), seconds + time.monotonic() - began


def open_store(
    url: str | os.PathLike[str],
    *,
    connections: int,
    limit_rate: float | None,
    ca_cert: str | None,
    credentials: Credentials | None = None,
    cancel: threading.Event | None,
    on_bytes: Callable[[int], None],
    manners: Manners | None = None,
    cache: Path | None = None,
) -> Store:
    """Return the store at ``url``: http, https or s3, a ``file:`` URL, or the path of a directory or a bundle.

    ``on_bytes`` is called as body bytes arrive. ``manners`` are those towards servers, ``credentials`` what these are
    shown; what is learnt of them is kept
    in the directory ``cache``.

    Raises:
        ValueError: a scheme that is not supported.
        NotFound: there is no such directory or file.
        FormatError: a file that is no bundle, or one that is damaged or cut off.
    """
    text = os.fspath(url)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in ("http", "https", "s3"):
        from trimtransfer.fetch.mirrored import open_servers

        return open_servers(
            text, manners, limit_rate, cache, connections=connections, ca_cert=ca_cert, credentials=credentials,
            cancel=cancel, on_bytes=on_bytes,
        )  # fmt: skip
    if scheme == "file":
        text = unquote(urlsplit(text).path)
    elif scheme:
        raise ValueError(f"{text}: use http://, https://, s3:// or the path of a directory or bundle")
    if not os.path.isdir(text):
        if part_paths(text):
            return BundleStore(text, connections=connections, on_bytes=on_bytes)
        raise NotFound("the repository", text)
    return _CountedDirectory(text, connections, on_bytes)


def remedy_for(store: Store) -> str:
    """Return what can be done where a version turns out to be damaged in a store."""
    return f"the bundle is damaged: {AGAIN}" if is_offline(store) else _REMEDY


@runtime_checkable
class Servers(Protocol):
    """A store on one or several servers."""

    @property
    def conduct(self) -> Conduct:
        """How the run has behaved towards them."""
        ...

    @property
    def takes_mirrors(self) -> bool:
        """Whether mirrors that a repository names are used."""
        ...

    def offer(self, mirrors: Sequence[str]) -> None:
        """Take mirrors that the repository names."""
        ...


def offer_mirrors(store: Store, head: Head | None) -> None:
    """Tell a store of the mirrors that a head names."""
    store = behind_bundles(store)
    if head is not None and head.mirrors and isinstance(store, Servers):
        store.offer(head.mirrors)


def learn_mirrors(store: Store, image: str) -> None:
    """Have a store read the head of an image for the mirrors alone, in one small request, if it can use them."""
    servers = behind_bundles(store)
    if isinstance(servers, Servers) and servers.takes_mirrors:
        with suppress(NotFound, FormatError, FetchError):
            offer_mirrors(store, read_head(servers, image))


def conduct_of(store: Store) -> Conduct:
    """Return how a run has behaved towards the servers of its store."""
    store = behind_bundles(store)
    return store.conduct if isinstance(store, Servers) else Conduct()


class _CountedDirectory(DirectoryStore):
    """A directory store that tells how many bytes of ranges were read, as they are read."""

    def __init__(self, path: str, connections: int, on_bytes: Callable[[int], None]) -> None:
        super().__init__(path, connections=connections)
        self._on_bytes = on_bytes

    def read_range(self, wanted: Range) -> bytes:
        data = super().read_range(wanted)
        self._on_bytes(len(data))
        return data
