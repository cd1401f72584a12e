"""Other versions in a bundle as a seed: their chunks are found by digest, whatever packs the wanted version lies in.

A bundle that lies near a repository serves the packs that both have. This is for all else: a repository that was
published anew, an image of another repository.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.bundlestore import BundleStore
from trimtransfer.errors import FetchError, FormatError, IntegrityError, NotFound, TrimTransferError
from trimtransfer.index.prefix import IndexWriter, PrefixIndex
from trimtransfer.index.rowfile import Rows
from trimtransfer.index.seed import Category
from trimtransfer.location import FRAME, Locations, PackRef
from trimtransfer.manifest import Manifest
from trimtransfer.nearstore import NearStore
from trimtransfer.pack import decode_frame, pack_name
from trimtransfer.repository.reading import VersionReader, read_manifest
from trimtransfer.store import Range, Store
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_LOG: Final = logging.getLogger("trimtransfer.assembly")
_KEPT: Final = 16 << 20
"""Bytes of frames that are kept decoded: chunks are read nearly in their order."""
_AT_ONCE: Final = 16
"""Frames read at a time, at most; the same frame is read by one thread, and others wait for it."""


class BundleSeed:
    """Chunks of versions in a bundle. Its methods may be called from any thread."""

    def __init__(self, store: BundleStore, index: PrefixIndex, frames: NDArray[np.void], packs: list[PackRef]) -> None:
        """``index`` has for each chunk the number of its frame (dtype ``FRAME``) in the place of a file, and where it
        begins in the frame's content."""
        self.name = store.url
        self.category: Category = "seed"
        self._store, self._index, self._frames, self._packs = store, index, frames, packs
        self._lock = threading.Lock()
        self._reading = [threading.Lock() for _ in range(_AT_ONCE)]
        self._decoded: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0

    def __repr__(self) -> str:
        return f"BundleSeed({self.name!r}, {len(self._index):,} chunks)"

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return for each wanted chunk (first 8 digest bytes, length) a row where it may be, or -1."""
        return self._index.find(prefixes, lengths)

    def read(self, row: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` with the chunk at ``row``; False if it cannot be read. The caller verifies the digest."""
        if not 0 <= row < len(self._index):
            return False
        number, start = self._index.place(row)
        try:
            content = self._content(number)
        except (TrimTransferError, OSError):
            return False
        if start + len(buffer) > len(content):
            return False
        buffer[:] = content[start : start + len(buffer)]
        return True

    def _content(self, number: int) -> bytes:
        with self._reading[number % _AT_ONCE]:
            kept = self._kept(number)
            return self._decode(number) if kept is None else kept

    def _kept(self, number: int) -> bytes | None:
        with self._lock:
            if number in self._decoded:
                self._decoded.move_to_end(number)
            return self._decoded.get(number)

    def _decode(self, number: int) -> bytes:
        """Return the content of a frame, read and decoded, and keep it."""
        frame = self._frames[number]
        pack = self._packs[int(frame["pack"])]
        place = Range(pack_name(pack.digest), int(frame["offset"]), int(frame["stored"]), pack.length)
        stored = self._store.read_range(place)
        content = decode_frame(stored, codec=int(frame["codec"]), raw=int(frame["raw"]), check=frame["check"].tobytes())
        with self._lock:
            self._held += len(content)
            self._decoded[number] = content
            while self._held > _KEPT and len(self._decoded) > 1:
                self._held -= len(self._decoded.popitem(last=False)[1])
        return content


def bundle_seeds(store: Store, wanted: Manifest, directory: Path, watch: Watch) -> Iterator[BundleSeed]:
    """Yield a seed of each bundle near a store that has other versions than the ``wanted`` one, but not that.

    ``directory`` takes a temporary file.
    """
    while isinstance(store, NearStore):
        manifests = list(_manifests(store.near))
        if all(manifest.digest() != wanted.digest() for manifest in manifests):
            alike = [manifest for manifest in manifests if manifest.kind == wanted.kind]
            seed = _Indexing(store.near, watch).run(alike, directory) if alike else None
            if seed is not None:
                yield seed
        store = store.far


def _manifests(store: BundleStore) -> Iterator[Manifest]:
    for version in store.versions:
        try:
            yield read_manifest(store, version.image, version.version)
        except (TrimTransferError, OSError) as error:
            _LOG.warning("the bundle %s is no seed for other versions: %s", store.url, error)


class _Indexing:
    """Makes the index of a bundle's chunks."""

    def __init__(self, store: BundleStore, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self._packs: dict[PackRef, int] = {}
        self._frames = [np.zeros(0, dtype=FRAME)]
        self._count = 0

    def run(self, manifests: list[Manifest], directory: Path) -> BundleSeed | None:
        """Return the seed of some versions; None if their metadata are damaged."""
        target = directory / "bundle-seed.tmp"
        try:
            with IndexWriter(directory, kind=int(manifests[0].kind)) as writer:
                for manifest in manifests:
                    reader = VersionReader(self._store, manifest)
                    for number in reader.used_regions():
                        self._watch.check()
                        table = reader.table(number)
                        for part in reader.locations(number):
                            writer.add(self._rows(table, part))
                writer.finish(target, durable=False)
        except (FetchError, FormatError, IntegrityError, NotFound, OSError) as error:
            _LOG.warning("the bundle %s is no seed for other versions: %s", self._store.url, error)
            return None
        try:
            return BundleSeed(self._store, PrefixIndex.open(target), np.concatenate(self._frames), [*self._packs])
        finally:
            target.unlink()  # what is mapped stays

    def _rows(self, table: Table, part: Locations) -> Rows:
        """Return the chunks of a part that the bundle has, and take their frames up."""
        frames = part.frames.copy()
        numbers = np.array([self._packs.setdefault(ref, len(self._packs)) for ref in part.packs], dtype=np.uint32)
        pieces = part.pieces(table)
        pieces = pieces[self._held(part)[pieces["frame"]]]
        if len(frames):
            frames["pack"] = numbers[frames["pack"]]
        self._frames.append(frames)
        number = pieces["frame"] + np.uint32(self._count)
        self._count += len(frames)
        prefixes = table.prefixes[pieces["record"]]
        return Rows(prefixes, pieces["length"].copy(), number, pieces["start"].astype(np.uint64))

    def _held(self, part: Locations) -> NDArray[np.bool_]:
        """Return which frames the bundle has."""
        held = np.zeros(len(part.frames), dtype=np.bool_)
        columns = zip(*(part.frames[name].tolist() for name in ("pack", "offset", "stored")), strict=True)
        for number, (pack, offset, stored) in enumerate(columns):
            place = Range(pack_name(part.packs[pack].digest), offset, stored, part.packs[pack].length)
            held[number] = sum(length for _, length, _ in self._store.held(place)) == stored
        return held
