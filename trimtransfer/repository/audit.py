"""Checking a repository: everything that heads lead to is read, decoded and compared with its digest.

Metadata first - heads, manifests, tables, differences, locations, and that locations cover each table - then packs,
each once however many versions use it: its digest, every frame, every chunk. What versions share is checked once.
Damage is collected, not raised, and named by object.
"""

from __future__ import annotations

import random
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, DIGEST_SIZE, chunk_digest, object_hasher
from trimtransfer.errors import Cancelled, FormatError, IntegrityError, TrimTransferError
from trimtransfer.head import Head
from trimtransfer.location import PackRef
from trimtransfer.manifest import REFS, Manifest, Region
from trimtransfer.names import head_name, manifest_name
from trimtransfer.pack import MAX_PACK, check_pack, decode_frame, pack_name
from trimtransfer.repository.intent import pending
from trimtransfer.repository.reading import VersionReader, folder_names, read_head, read_manifest, version_names
from trimtransfer.spill import Rows, large_array, scatter
from trimtransfer.store import DirectoryStore, Range
from trimtransfer.table import Table, difference_base
from trimtransfer.watch import Watch

_FRAME_FIELDS: Final = ["offset", "stored", "raw", "codec", "check"]
_CHUNK: Final = np.dtype(
    [
        ("pack", "<u4"),
        ("offset", "<u4"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("codec", "u1"),
        ("check", "u1", (CHECK_SIZE,)),
        ("start", "<u4"),
        ("length", "<u4"),
        ("digest", "u1", (DIGEST_SIZE,)),
    ]
)
"""A chunk as locations describe it: the frame, the place in its content, the digest it must have."""
_PIECE: Final = 4 << 20
_ROWS: Final = 1 << 18
"""Rows in memory while they are grouped by pack: 20 MiB."""
_PACKS_AHEAD: Final = 2


@dataclass(frozen=True, slots=True)
class Damage:
    """Something wrong: the object's name, what is wrong with it, and for packs which versions need it."""

    name: str
    problem: str
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was checked, and the damage found. ``unreferenced`` packs are of no use and no harm."""

    images: int
    versions: int
    regions: int
    chunks: int
    packs: int
    packs_checked: int
    read_bytes: int
    unreferenced: tuple[str, ...]
    damage: tuple[Damage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def audit(
    store: DirectoryStore,
    *,
    image: str | None = None,
    version: str | None = None,
    sample: float = 100.0,
    workers: int = 2,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> AuditReport:
    """Check all images, or one, or one version of it; ``sample`` per cent of the packs, picked at random.

    Memory: a pack and its content for each of ``workers`` threads; what is known of chunks lies in temporary files
    once it is large.

    Raises:
        Cancelled: as asked.
    """
    with tempfile.TemporaryDirectory(prefix="trimtransfer-") as directory:
        metadata = _Metadata(store, Path(directory), watch)
        for name in [image] if image else folder_names(store):
            metadata.image(name, version)
        packs = _Packs(store, metadata, Path(directory), watch)
        checked = packs.run(sample, workers)
        damage = (*metadata.damage, *packs.damage)
        return AuditReport(
            images=metadata.images,
            versions=len(metadata.versions),
            regions=metadata.regions,
            chunks=len(metadata.chunks),
            packs=len(metadata.refs),
            packs_checked=checked,
            read_bytes=store.stats.bytes,
            unreferenced=_unreferenced(store, metadata) if image is None and not damage else (),
            damage=damage,
        )


class _Metadata:
    """Checks heads, manifests, tables and locations, and notes which chunks must be found where."""

    def __init__(self, store: DirectoryStore, directory: Path, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self.damage: list[Damage] = []
        self.images = self.regions = 0
        self.versions: list[Manifest] = []
        self.refs: dict[bytes, PackRef] = {}  # in the order of the numbers in ``chunks``
        self.chunks = Rows(_CHUNK, directory)
        self._numbers: dict[bytes, int] = {}
        self._seen: set[bytes] = set()
        self._files: set[tuple[str, bytes]] = set()
        self._pending = pending(store)

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Take an error in the block for damage of the object ``name``."""
        try:
            yield
        except Cancelled:
            raise
        except (TrimTransferError, OSError) as error:
            self.damage.append(Damage(name, str(error)))

    def image(self, image: str, version: str | None) -> None:
        """Check an image's head and its versions, or one of them."""
        names = [name for name in version_names(self._store, image) if (image, name) != self._pending]
        if not names and self._pending and self._pending[0] == image:
            return  # its first version is being published
        self.images += 1
        head = None
        with self._noting(head_name(image)):
            head = read_head(self._store, image)
        found: dict[str, Manifest] = {}
        named = {name for name in (version, head.version if head else None) if name is not None}
        for name in sorted({*names} | named):
            with self._noting(manifest_name(image, name)):
                found[name] = read_manifest(self._store, image, name, head=head)
        if head is not None and head.version in found:
            with self._noting(head_name(image)):
                _check_head(head, found[head.version])
        for manifest in sorted(found.values(), key=lambda manifest: manifest.sequence):
            if version in (None, manifest.version) and (head is None or manifest.sequence <= head.sequence):
                self._version(manifest, found.get(manifest.parent))

    def _version(self, manifest: Manifest, parent: Manifest | None) -> None:
        self.versions.append(manifest)
        for name, file in zip(manifest.file_names(), manifest.files, strict=True):
            if (name, file.digest) not in self._files:
                self._files.add((name, file.digest))
                with self._noting(name):
                    self._file(name, file.length, file.digest)
        reader = VersionReader(self._store, manifest)
        base = VersionReader(self._store, parent) if parent else None
        for index in reader.used_regions():
            region = manifest.region(index)
            key = _identity(manifest, region)
            if key not in self._seen:
                self._seen.add(key)
                with self._noting(f"{manifest_name(manifest.image, manifest.version)}, region {index}"):
                    self._region(reader, base, region)
            self._watch.report("metadata", region.start + region.length, manifest.length)

    def _file(self, name: str, length: int, digest: bytes) -> None:
        """Check a file of tables or locations whole, in pieces."""
        hasher = object_hasher()
        for at in range(0, length, _PIECE):
            hasher.update(self._store.read_range(Range(name, at, min(_PIECE, length - at), length)))
        if hasher.digest() != digest:
            raise IntegrityError(name, digest, hasher.digest())

    def _region(self, reader: VersionReader, base: VersionReader | None, region: Region) -> None:
        """Check a region's table, its difference, and that its locations cover it; note its chunks."""
        self.regions += 1
        table = reader.table(region.index)
        if region.difference.length:
            _check_difference(reader, base, region)
        located = np.zeros(len(table), dtype=np.int64)
        for part in reader.locations(region.index):
            pieces = part.pieces(table)
            np.add.at(located, pieces["record"], 1)
            numbers = np.array([self._number(ref) for ref in part.packs], dtype=np.uint32)
            self.chunks.append(_chunk_rows(table, part.frames, pieces, numbers))
        if (located != ~table.zero).any():
            wrong = int(np.argmax(located != ~table.zero))
            raise FormatError("locations", f"record {wrong}", "each chunk located once", f"{located[wrong]} times")

    def _number(self, ref: PackRef) -> int:
        known = self.refs.setdefault(ref.digest, ref)
        if known != ref:
            raise FormatError("locations", pack_name(ref.digest), f"{known.length} bytes", f"{ref.length} bytes")
        return self._numbers.setdefault(ref.digest, len(self._numbers))


class _Packs:
    """Checks packs, each against all chunks that are located in it."""

    def __init__(self, store: DirectoryStore, metadata: _Metadata, directory: Path, watch: Watch) -> None:
        self._store, self._metadata, self._directory, self._watch = store, metadata, directory, watch
        self._refs = list(metadata.refs.values())
        self._rows, self._ends = self._group()
        self.damage: list[Damage] = []

    def run(self, sample: float, workers: int) -> int:
        """Check ``sample`` per cent of the packs; return how many."""
        chosen = list(range(len(self._refs)))
        if sample < 100:
            chosen = sorted(random.sample(chosen, min(len(chosen), max(1, round(len(chosen) * sample / 100)))))
        total = sum(self._refs[number].length for number in chosen)
        damaged: dict[bytes, str] = {}
        pending: deque[tuple[PackRef, Future[None]]] = deque()
        done = 0
        with ThreadPoolExecutor(workers, "audit") as pool:
            for number in (*chosen, *[None] * workers * _PACKS_AHEAD):
                if number is not None:
                    pending.append((self._refs[number], pool.submit(self._check, number)))
                if pending and (number is None or len(pending) >= workers * _PACKS_AHEAD):
                    ref, job = pending.popleft()
                    try:
                        job.result()
                    except (TrimTransferError, OSError) as error:
                        damaged[ref.digest] = str(error)
                    done += ref.length
                    self._watch.report("packs", done, total)
        self._note(damaged)
        return len(chosen)

    def _group(self) -> tuple[NDArray[Any], list[int]]:
        """Return all chunk rows grouped by pack, and where each group ends."""
        rows = self._metadata.chunks.array()
        parts = [rows[at : at + _ROWS] for at in range(0, len(rows), _ROWS)]
        sizes = np.zeros(len(self._refs), dtype=np.int64)
        for part in parts:
            sizes += np.bincount(part["pack"], minlength=len(sizes))
        ends = np.cumsum(sizes)
        grouped, following = large_array(len(rows), _CHUNK, self._directory), ends - sizes
        for part in parts:
            scatter(part, part["pack"].astype(np.int64), following, grouped)
        return grouped, ends.tolist()

    def _check(self, number: int) -> None:
        """Check one pack: digest, frames, chunks."""
        ref = self._refs[number]
        data = self._store.read(pack_name(ref.digest), limit=MAX_PACK)
        check_pack(data, ref.digest)
        rows = np.unique(self._rows[self._ends[number - 1] if number else 0 : self._ends[number]])
        frames = rows[_FRAME_FIELDS]
        for group in np.split(rows, np.flatnonzero(frames[1:] != frames[:-1]) + 1):
            if len(group):
                _check_frame(memoryview(data), group)

    def _note(self, damaged: dict[bytes, str]) -> None:
        """Add damaged packs with the versions that need them."""
        needed: dict[bytes, set[str]] = {digest: set() for digest in damaged}
        for manifest in self._metadata.versions if damaged else ():
            reader = VersionReader(self._store, manifest)
            for index in reader.used_regions():
                try:
                    parts = reader.locations(index)
                except (TrimTransferError, OSError):
                    continue  # noted as damage already
                for digest in {ref.digest for part in parts for ref in part.packs} & needed.keys():
                    needed[digest].add(f"{manifest.image} {manifest.version}")
        self.damage += [
            Damage(pack_name(digest), problem, tuple(sorted(needed[digest]))) for digest, problem in damaged.items()
        ]


def _check_head(head: Head, manifest: Manifest) -> None:
    if manifest.image_digest() != head.image_digest:
        raise IntegrityError("head", manifest.image_digest(), head.image_digest)
    found = (head.sequence, head.length)
    if (manifest.sequence, manifest.length) != found:
        raise FormatError("head", "sequence, length", (manifest.sequence, manifest.length), found)


def _check_difference(reader: VersionReader, base: VersionReader | None, region: Region) -> None:
    """Check a difference to the parent's table. One taken over with an unchanged region has another base; it was
    checked with the version it was made for."""
    stored = reader.piece(region.difference)
    if base is not None and region.index < base.manifest.region_count:
        before = base.manifest.region(region.index)
        if not before.zero and before.table == difference_base(stored):
            reader.table_by_difference(region.index, base.table(region.index))


def _check_frame(pack: memoryview, rows: NDArray[Any]) -> None:
    """Check a frame of a pack and the chunks in it; all ``rows`` describe the same frame."""
    frame = rows[0]
    stored = pack[int(frame["offset"]) : int(frame["offset"]) + int(frame["stored"])]
    raw = decode_frame(stored, codec=int(frame["codec"]), raw=int(frame["raw"]), check=frame["check"].tobytes())
    for row in rows:
        start, expected = int(row["start"]), row["digest"].tobytes()
        found = chunk_digest(memoryview(raw)[start : start + int(row["length"])])
        if found != expected:
            raise IntegrityError(f"chunk at byte {start} of the frame at {int(frame['offset'])}", expected, found)


def _unreferenced(store: DirectoryStore, metadata: _Metadata) -> tuple[str, ...]:
    """Return the packs that no version refers to."""
    used = {pack_name(digest) for digest in metadata.refs}
    return tuple(name for name, _ in store.list("packs") if name not in used)


def _identity(manifest: Manifest, region: Region) -> bytes:
    """Return what two regions share if they are checked alike: digests, length, and the very same stored pieces."""
    refs = (getattr(region, name) for name in REFS)
    places = b"".join(
        manifest.files[ref.file].digest + ref.offset.to_bytes(8, "little") + ref.check for ref in refs if ref.length
    )
    return chunk_digest(region.content + region.table + region.length.to_bytes(8, "little") + places)


def _chunk_rows(
    table: Table, frames: NDArray[np.void], pieces: NDArray[np.void], numbers: NDArray[np.uint32]
) -> NDArray[Any]:
    frame = frames[pieces["frame"]]
    rows = np.zeros(len(pieces), dtype=_CHUNK)
    for name in _FRAME_FIELDS:
        rows[name] = frame[name]
    rows["pack"] = numbers[frame["pack"]]
    rows["start"], rows["length"] = pieces["start"], pieces["length"]
    rows["digest"] = table.digests[pieces["record"]]
    return rows
