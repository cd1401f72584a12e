"""Deltas from host files at work: which profile of a version fits this machine, where what its deltas start from lies
here, and making content from units.

A client that has host files but no version of the image asks for them. A host that differs from the profile uses those
units whose base it has, chunk by chunk in any of its seeds; for all else the plain packs serve.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.deltaplan import DeltaPlan, Lack, plan_units
from trimtransfer.assembly.fetchplan import FrameTask
from trimtransfer.assembly.plan import Mask, Numbers
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.turns import Turns
from trimtransfer.chunk import DIGEST_SIZE, chunk_digest, object_check
from trimtransfer.deltaindex import Units
from trimtransfer.errors import FetchError, FormatError, IntegrityError, NotFound
from trimtransfer.hostdelta import GROUP_BITS, MAX_HOST_DELTA, HostDelta
from trimtransfer.hosts import MAX_HOSTS, Offer, parse_hosts
from trimtransfer.index.seed import IndexedSeed, Seed
from trimtransfer.manifest import Region
from trimtransfer.names import host_delta_name, hosts_name
from trimtransfer.table import Table
from trimtransfer.unit import is_large, make

T = TypeVar("T")

_LOG: Final = logging.getLogger("trimtransfer.assembly")
_LEAST_SHARE: Final = 0.25
"""A profile of which this machine holds less, judged by the sample, is not looked at: half of what is fetched to find
out would be in vain."""
_LEAST_LACK: Final = 1 / 16
"""A client with files is taken to lack at least so much of an image: the index of solid units is so short that it is
looked at all the same."""
_WHOLE: Final = 1.25
"""Where some of what a solid unit makes is here, frames are fetched whole for the others, and more requests are made.
Measured on a first download with host files: between 1.2 and 2 it is fewest bytes, 2 % fewer than without."""
_AT_ONCE: Final = 2
"""Units made at a time, as of other deltas: each takes 8 MiB for its content, 16 for its base, 24 for its columns."""
_PREFIX: Final = 8
_TRIES: Final = 4
"""Places of a chunk that are tried before its unit is given up."""


class BasePlaces:
    """Where the chunks that deltas start from lie here: for each its seed and row, as far as one has it."""

    def __init__(self, delta: HostDelta, seeds: Sequence[Seed]) -> None:
        self.chunks, self._seeds = delta.chunks, tuple(seeds)
        self._seed, self._row = find_chunks(self._seeds, delta.chunks.prefixes, delta.chunks.lengths)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._row >= 0))

    def group(self, number: int) -> tuple[int, BaseGroup] | None:
        """Return a group of chunks as the table that :func:`plan_deltas` asks for: a chunk's offset is its number."""
        first = number << GROUP_BITS
        part = slice(first, first + (1 << GROUP_BITS))
        lengths = self.chunks.lengths[part]
        if not len(lengths):
            return None
        digests = np.zeros((len(lengths), DIGEST_SIZE), dtype=np.uint8)
        digests[:, :_PREFIX] = (
            np.ascontiguousarray(self.chunks.prefixes[part], "<u8").view(np.uint8).reshape(-1, _PREFIX)
        )
        return first, BaseGroup(np.arange(len(lengths)), lengths, self._row[part] < 0, digests)

    def read(self, number: int, into: memoryview) -> bool:
        """Fill a buffer of its length with a chunk, wherever it is; False if no place has it any more."""
        prefix = int(self.chunks.prefixes[number]).to_bytes(_PREFIX, "little")
        for seed, row in islice(self._places(number), _TRIES):
            if seed.read(row, into) and chunk_digest(into)[:_PREFIX] == prefix:
                return True
        return False

    def _places(self, number: int) -> Iterator[tuple[Seed, int]]:
        """Yield where a chunk may be: the place that was found first, then others."""
        first = self._seeds[int(self._seed[number])], int(self._row[number])
        yield first
        prefix, length = self.chunks.prefixes[number : number + 1], self.chunks.lengths[number : number + 1]
        for seed in self._seeds:
            if isinstance(seed, IndexedSeed):
                rows = seed.rows(int(prefix[0]), int(length[0]), limit=_TRIES)
            else:
                rows = seed.find(prefix, length)
            yield from ((seed, row) for row in rows.tolist() if row >= 0 and (seed, row) != first)


@dataclass(frozen=True, slots=True, eq=False)
class BaseGroup:
    """Some chunks that deltas start from, in the columns of a table; ``zero``: those that are nowhere here."""

    offsets: Numbers
    lengths: NDArray[np.uint32]
    zero: Mask
    digests: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.lengths)


class HostDeltas:
    """The deltas that make a version out of host files. Safe among threads, but for planning."""

    def __init__(self, delta: HostDelta, seeds: Sequence[Seed]) -> None:
        self._index, self._places = delta.index, BasePlaces(delta, seeds)
        self.solid = not len(delta.chunks)
        self._turns = Turns(_AT_ONCE)

    def __repr__(self) -> str:
        here, all_ = len(self._places), len(self._places.chunks)
        return f"HostDeltas({len(self._index.regions)} regions, {here:,} of {all_:,} base chunks)"

    def plan(self, lack: Lack) -> DeltaPlan:
        """Plan what of the wanted groups is made."""
        return plan_units(lack, self._units, self._places.group, what="deltas from host files")

    def _units(self, region: Region, table: Table, lacking: Mask) -> Units | None:
        units = self._index.units(region.index)
        if units is None:
            return None
        return frames_count_whole(units) if self.solid else fairly_priced(units, table, lacking)

    def make(self, plan: DeltaPlan, task: FrameTask, stored: memoryview) -> bytes:
        """Return the content of a unit, not compared with the digests of its chunks yet.

        Raises:
            IntegrityError: it arrived damaged, or a chunk of its base is no longer here.
            FormatError: it is no delta for this base.
        """
        found = object_check(stored)
        if found != task.check:
            raise IntegrityError("delta", task.check, found)
        with self._turns.taken(alone=is_large(stored)):
            return make(stored, self._base(plan.base(task.number)), limit=task.raw)

    def _base(self, chunks: NDArray[np.void]) -> memoryview:
        """Return the content of chunks, one after the other, each compared with what is known of its digest."""
        lengths = chunks["length"].tolist()
        base, at = memoryview(bytearray(sum(lengths))), 0
        for number, length in zip(chunks["offset"].tolist(), lengths, strict=True):
            if not self._places.read(number, base[at : at + length]):
                raise IntegrityError("base of a delta", chunks["digest"][0].tobytes(), b"")
            at += length
        return base


def frames_count_whole(units: Units) -> Units:
    """Return solid units with about what frames take that are fetched for some of their chunks, not for all."""
    rows = units.units.copy()
    rows["plain"] = np.minimum(rows["plain"] * _WHOLE, 0xFFFFFFFF)
    return Units(units.packs, rows, units.targets, units.bases)


def fairly_priced(units: Units, table: Table, lacking: Mask) -> Units:
    """Return units with what their chunks really take in plain frames here; ``lacking`` are the records to be fetched.

    What an index says holds for a host that has everything else: frames are then fetched for these chunks alone. What
    this one lacks between them is fetched in the same frames, so it bears its part.
    """
    pieces = units.pieces(table)
    record = pieces["record"].astype(np.int64)
    lengths = np.where(lacking, table.lengths, 0).astype(np.float64)
    made = np.bincount(pieces["frame"], weights=lengths[record], minlength=len(units.units))
    lengths[record] = 0
    before = np.concatenate(([0.0], np.cumsum(lengths)))
    begin = np.searchsorted(pieces["frame"], np.arange(len(units.units)))
    end = np.searchsorted(pieces["frame"], np.arange(len(units.units)), side="right") - 1
    beside = before[record[end] + 1] - before[record[begin]]
    rows = units.units.copy()
    rows["plain"] = rows["plain"] * (made / np.maximum(made + beside, 1))
    return Units(units.packs, rows, units.targets, units.bases)


def read_offers(remote: Remote) -> Sequence[Offer]:
    """Return what the version has for hosts, and for whoever has nothing: one small object.

    Raises what fetching raises, unless it only says that there is none.
    """
    name = hosts_name(remote.manifest.image, remote.manifest.version)
    return _read(lambda: parse_hosts(remote.read(name, limit=MAX_HOSTS))) or ()


def open_host_deltas(remote: Remote, offer: Offer, seeds: Sequence[Seed]) -> HostDeltas | None:
    """Return the deltas of an offer; None where they cannot be used.

    Raises what fetching raises, unless it only says that there are none.
    """
    manifest = remote.manifest
    name = host_delta_name(manifest.image, manifest.version, offer.profile)
    delta = _read(lambda: HostDelta(remote.read(name, limit=MAX_HOST_DELTA)))
    if delta is None:
        return None
    if delta.index.target != manifest.digest():
        _LOG.warning("deltas from host files are left aside: %s is of another version", name)
        return None
    if offer.needs_nothing and len(delta.chunks):
        _LOG.warning("deltas from host files are left aside: %s needs more than is said of it", name)
        return None
    found = HostDeltas(delta, seeds)
    _LOG.info("the profile %s serves: %r", offer.profile, found)
    return found


def fitting(offers: Sequence[Offer], seeds: Sequence[Seed]) -> Offer | None:
    """Return the profile of which ``seeds`` hold most, and enough to save more than its index takes."""
    best, most = None, 0.0
    for offer in offers if has_files(seeds) else ():
        _, rows = find_chunks(seeds, offer.sample["prefix"].astype(np.uint64), offer.sample["length"].astype(np.uint32))
        share = float(np.mean(rows >= 0)) if not offer.needs_nothing else 0.0
        _LOG.info("the profile %s: %d of %d chunks of its sample are here", offer.profile, (rows >= 0).sum(), len(rows))
        saved = share * (offer.plain - offer.stored) - offer.length
        if share >= _LEAST_SHARE and saved > most:
            best, most = offer, saved
    return best


def solid_of(offers: Sequence[Offer], seeds: Sequence[Seed]) -> Offer | None:
    """Return the offer that needs nothing, if it saves more than its index takes, even where files hold most."""
    share = _LEAST_LACK if has_files(seeds) else 1.0
    solid = (offer for offer in offers if offer.needs_nothing and share * (offer.plain - offer.stored) > offer.length)
    return next(solid, None)


def has_files(seeds: Sequence[Seed]) -> bool:
    """Tell whether any seed is an index of files."""
    return any(isinstance(seed, IndexedSeed) and len(seed) for seed in seeds)


def find_chunks(
    seeds: Sequence[Seed], prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]
) -> tuple[NDArray[np.int16], Numbers]:
    """Return for each chunk the number of the first seed that may have it and the row there; -1 where none has."""
    seed_of = np.full(len(prefixes), -1, dtype=np.int16)
    rows = np.full(len(prefixes), -1, dtype=np.int64)
    for number, seed in enumerate(seeds):
        open_ = np.flatnonzero(rows < 0)
        if not len(open_):
            break
        found = seed.find(prefixes[open_], lengths[open_])
        seed_of[open_[found >= 0]], rows[open_] = number, found
    return seed_of, rows


def _read(read: Callable[[], T]) -> T | None:
    """Return what is read; None if it is not there or not what it should be."""
    try:
        return read()
    except NotFound:
        return None
    except (FormatError, IntegrityError, FetchError) as error:
        if isinstance(error, FetchError) and error.retryable:
            raise  # the network's fault: it will not do for plain packs either
        _LOG.warning("deltas from host files are left aside: %s", error)
        return None
