"""The parts of a check that read content: each pack against the chunks that are located in it, each region's content
against its manifest. What must be found where is given as :class:`Expected`; damage is collected.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import DIGEST_SIZE, chunk_digest
from trimtransfer.errors import FormatError, IntegrityError, TrimTransferError
from trimtransfer.location import FRAME, Locations, PackRef
from trimtransfer.manifest import Manifest, Region
from trimtransfer.names import manifest_name
from trimtransfer.pack import MAX_PACK, check_pack, decode_frame, pack_name
from trimtransfer.repository.keycheck import KeyCheck
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.rebuild import content_digest
from trimtransfer.spill import Rows, large_array, scatter
from trimtransfer.store import DirectoryStore
from trimtransfer.table import Table
from trimtransfer.watch import Watch

T = TypeVar("T")
R = TypeVar("R")
Needed: TypeAlias = dict[str, tuple[int, ...]]
"""Versions ("image version"), and in each the numbers of regions."""

_FRAME_FIELDS: Final = ["offset", "stored", "raw", "codec", "check"]
CHUNK: Final = np.dtype(
    [
        *FRAME.descr,
        ("start", "<u4"),
        ("length", "<u4"),
        ("digest", "u1", (DIGEST_SIZE,)),
    ]
)
"""A chunk as locations describe it: the frame, the place in its content, the digest it must have."""
_PIECE: Final = 4 << 20
_ROWS: Final = 1 << 18
"""Rows in memory while they are grouped by pack: 20 MiB."""
_AHEAD: Final = 2
"""Jobs that wait for each thread."""
RESTORE: Final = "restore it from a copy of the repository"
_PACK_REMEDY: Final = (
    "restore it from a copy of the repository, or publish an image that has its content: what that needs is stored anew"
)
_CONTENT_REMEDY: Final = "nobody can sync this version; publish the image again as a new one"


@dataclass(frozen=True, slots=True)
class Damage:
    """Something wrong: the object's name, what is wrong with it, what can be done, and for packs and regions who needs
    them."""

    name: str
    problem: str
    remedy: str = RESTORE
    needed: Needed = field(default_factory=dict)


class Sample:
    """``share`` per cent of things, picked at random: the same ones each time the same things are asked for with the
    same ``seed``, so what was found can be looked at again."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed = share, seed
        self._random = random.Random(seed)

    def of(self, items: Sequence[T]) -> list[T]:
        """Return some of the items, at least one, in order."""
        if self.share >= 100 or not items:
            return list(items)
        count = min(len(items), max(1, round(len(items) * self.share / 100)))
        return [items[number] for number in sorted(self._random.sample(range(len(items)), count))]

    def takes(self) -> bool:
        """Tell whether the next thing is among them."""
        return self.share >= 100 or self._random.random() < self.share / 100


class Expected:
    """What metadata say about content: packs, and chunks in them; and one region for each different content."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.versions: list[Manifest] = []
        self.packs: dict[bytes, PackRef] = {}  # in the order of the numbers in ``chunks``
        self.chunks = Rows(CHUNK, directory)
        self._regions: dict[bytes, tuple[int, int]] = {}
        self._numbers: dict[bytes, int] = {}

    @property
    def regions(self) -> list[tuple[int, int]]:
        """The different contents: (number in ``versions``, number of the region)."""
        return list(self._regions.values())

    def region(self, place: tuple[int, int]) -> Region:
        """Return a region by its place in ``regions``."""
        return self.versions[place[0]].region(place[1])

    def add(self, table: Table, parts: Sequence[Locations], region: Region) -> None:
        """Add a sound region of the version that was added last."""
        for part in parts:
            numbers = np.array([self._number(ref) for ref in part.packs], dtype=np.uint32)
            self.chunks.append(_chunk_rows(table, part.frames, part.pieces(table), numbers))
        self._regions.setdefault(content_key(region), (len(self.versions) - 1, region.index))

    def _number(self, ref: PackRef) -> int:
        known = self.packs.setdefault(ref.digest, ref)
        if known != ref:
            raise FormatError("locations", pack_name(ref.digest), f"{known.length} bytes", f"{ref.length} bytes")
        return self._numbers.setdefault(ref.digest, len(self._numbers))


class PackCheck:
    """Checks packs, each against all chunks that are located in it."""

    def __init__(self, store: DirectoryStore, expected: Expected, watch: Watch) -> None:
        self._store, self._expected, self._watch = store, expected, watch
        self._packs = list(expected.packs.values())
        self.damaged: dict[bytes, str] = {}

    def look(self) -> None:
        """Check that all packs are there and of the right length; none is read."""
        for ref in self._packs:
            name = pack_name(ref.digest)
            try:
                size = self._store.size(name)
                if size != ref.length:
                    raise FormatError(name, "its end", f"{ref.length:,} bytes", f"{size:,}")
            except (TrimTransferError, OSError) as error:
                self.damaged[ref.digest] = str(error)

    def run(self, sample: Sample, workers: int) -> int:
        """Check a sample of the packs; return how many."""
        self._rows, self._ends = self._group()
        chosen = sample.of(range(len(self._packs)))
        total, done = sum(self._packs[number].length for number in chosen), 0
        for number, outcome in in_parallel(self._check, chosen, workers):
            if isinstance(outcome, Exception):
                self.damaged[self._packs[number].digest] = str(outcome)
            done += self._packs[number].length
            self._watch.report("packs", done, total)
        return len(chosen)

    def damage(self) -> Iterator[Damage]:
        """Yield the damaged packs with the versions and regions that need them."""
        needed: dict[bytes, dict[str, list[int]]] = {digest: {} for digest in self.damaged}
        for manifest in self._expected.versions if needed else ():
            reader = VersionReader(self._store, manifest)
            for index in reader.used_regions():
                try:
                    parts = reader.locations(index)
                except (TrimTransferError, OSError):
                    continue  # noted as damage already
                for digest in {ref.digest for part in parts for ref in part.packs} & needed.keys():
                    needed[digest].setdefault(_title(manifest), []).append(index)
        for digest, problem in self.damaged.items():
            yield Damage(pack_name(digest), problem, _PACK_REMEDY, _frozen(needed[digest]))

    def _group(self) -> tuple[NDArray[Any], list[int]]:
        """Return all chunk rows grouped by pack, and where each group ends."""
        rows = self._expected.chunks.array()
        parts = [rows[at : at + _ROWS] for at in range(0, len(rows), _ROWS)]
        sizes = np.zeros(len(self._packs), dtype=np.int64)
        for part in parts:
            sizes += np.bincount(part["pack"], minlength=len(sizes))
        ends = np.cumsum(sizes)
        grouped, following = large_array(len(rows), CHUNK, self._expected.directory), ends - sizes
        for part in parts:
            scatter(part, part["pack"].astype(np.int64), following, grouped)
        return grouped, ends.tolist()

    def _check(self, number: int) -> None:
        """Check one pack: digest, frames, chunks."""
        ref = self._packs[number]
        data = self._store.read(pack_name(ref.digest), limit=MAX_PACK)
        check_pack(data, ref.digest)
        rows = np.unique(self._rows[self._ends[number - 1] if number else 0 : self._ends[number]])
        frames = rows[_FRAME_FIELDS]
        for group in np.split(rows, np.flatnonzero(frames[1:] != frames[:-1]) + 1):
            if len(group):
                _check_frame(memoryview(data), group)


class ContentCheck:
    """Puts together each different content of a region, and compares it with what the manifests promise."""

    def __init__(
        self, store: DirectoryStore, expected: Expected, damaged: Container[bytes], keys: KeyCheck, watch: Watch
    ) -> None:
        """Regions that need a pack of ``damaged`` (by digest) are not looked at; of the others keys are compared."""
        self._store, self._expected, self._damaged, self._watch = store, expected, damaged, watch
        self._keys = keys
        self._wrong: dict[bytes, tuple[tuple[int, int], str, str]] = {}

    def run(self, sample: Sample, workers: int) -> int:
        """Check a sample of the contents; return how many."""
        chosen = sample.of(self._expected.regions)
        total, done = sum(self._expected.region(place).length for place in chosen), 0
        for place, outcome in in_parallel(self._rebuild, chosen, workers):
            region = self._expected.region(place)
            if isinstance(outcome, Exception):
                self._wrong[content_key(region)] = place, str(outcome), RESTORE
            elif outcome not in (None, region.content):
                error = IntegrityError("content put together from its chunks", region.content, outcome)
                self._wrong[content_key(region)] = place, str(error), _CONTENT_REMEDY
            done += region.length
            self._watch.report("contents", done, total)
        return len(chosen)

    def damage(self) -> Iterator[Damage]:
        """Yield the regions found wrong, with all versions and regions that have the same content."""
        needed: dict[bytes, dict[str, list[int]]] = {key: {} for key in self._wrong}
        for manifest in self._expected.versions if needed else ():
            for index in np.flatnonzero(~manifest.zero).tolist():
                key = content_key(manifest.region(index))
                if key in needed:
                    needed[key].setdefault(_title(manifest), []).append(index)
        for key, ((number, index), problem, remedy) in self._wrong.items():
            manifest = self._expected.versions[number]
            name = f"{manifest_name(manifest.image, manifest.version)}, region {index}"
            yield Damage(name, problem, remedy, _frozen(needed[key]))

    def _rebuild(self, place: tuple[int, int]) -> bytes | None:
        """Return the digest of a region's content; None if it needs a damaged pack."""
        reader = VersionReader(self._store, self._expected.versions[place[0]])
        if any(ref.digest in self._damaged for part in reader.locations(place[1]) for ref in part.packs):
            return None
        digest, keys = content_digest(reader, place[1])
        region = reader.manifest.region(place[1])
        if digest == region.content:
            self._keys.compare_content(reader.manifest, region, keys)
        return digest


def content_key(region: Region) -> bytes:
    """Return what regions share that become the same content from the same chunks."""
    return region.content + region.table


def in_parallel(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[T, R | TrimTransferError | OSError]]:
    """Yield each item, in order, with what ``function`` returned or raised for it; a few at a time."""
    pending: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(workers, "audit") as pool:
        try:
            waiting = iter(items)
            while True:
                for item in islice(waiting, workers * _AHEAD - len(pending)):
                    pending.append((item, pool.submit(function, item)))
                if not pending:
                    return
                ended = _ended(pending)
                yield ended
        finally:
            for _, job in pending:
                job.cancel()


def _ended(pending: deque[tuple[T, Future[R]]]) -> tuple[T, R | TrimTransferError | OSError]:
    """Take the first job, when it has ended, with its outcome."""
    item, job = pending.popleft()
    try:
        return item, job.result()
    except (TrimTransferError, OSError) as error:
        return item, error


def _title(manifest: Manifest) -> str:
    return f"{manifest.image} {manifest.version}"


def _frozen(needed: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    return {version: tuple(regions) for version, regions in sorted(needed.items())}


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


def _chunk_rows(
    table: Table, frames: NDArray[np.void], pieces: NDArray[np.void], numbers: NDArray[np.uint32]
) -> NDArray[Any]:
    frame = frames[pieces["frame"]]
    rows = np.zeros(len(pieces), dtype=CHUNK)
    for name in _FRAME_FIELDS:
        rows[name] = frame[name]
    rows["pack"] = numbers[frame["pack"]]
    rows["start"], rows["length"] = pieces["start"], pieces["length"]
    rows["digest"] = table.digests[pieces["record"]]
    return rows
