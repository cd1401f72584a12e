"""Base runs of deltas from host files in their two numberings, and units that the parent version has already.

In a repository, base runs number the chunks of a profile's files; in an index, those of its own list. Units of regions
that did not change since the parent are taken over, so that a version costs what it changes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.deltaindex import BASE, Units
from trimtransfer.errors import FormatError, IntegrityError, NotFound
from trimtransfer.hostdelta import GROUP_BITS, MAX_HOST_DELTA, HostDelta
from trimtransfer.names import host_delta_name
from trimtransfer.pack import pack_name
from trimtransfer.repository.deltaunits import runs_of
from trimtransfer.repository.profilefiles import ProfileFiles
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore

_GROUP: Final = 1 << GROUP_BITS


def groups(count: int) -> NDArray[np.int64]:
    """Return the first number of each group of an index's own list of ``count`` chunks, and the end."""
    return np.append(np.arange(0, count, _GROUP), count).astype(np.int64)


def numbers_of(runs: NDArray[np.void], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the chunks of base runs (dtype ``BASE``), in order.

    ``first`` are the numbers at which the runs' regions, or groups, begin, and the end; a run beyond it is a
    ``FormatError``.
    """
    counts = runs["count"].astype(np.int64)
    known = runs["region"] < len(first) - 1
    starts = first[np.where(known, runs["region"], 0)] + runs["record"]
    if not known.all() or (starts + counts > first[-1]).any():
        raise FormatError("delta units", "bases", f"chunks below {int(first[-1])}", "others")
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))


def runs_in(numbers: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.void]:
    """Return ascending numbers as base runs of which each stays within its region or group."""
    parts = [np.zeros(0, dtype=BASE)]
    region = np.searchsorted(first, numbers, side="right") - 1
    for index in np.unique(region).tolist():
        runs = runs_of(numbers[region == index] - first[index], BASE)
        runs["region"] = index
        parts.append(runs)
    return np.concatenate(parts)


def renumbered(units: Units, first: NDArray[np.int64], named: NDArray[np.int64], into: NDArray[np.int64]) -> Units:
    """Return units in another numbering: ``named`` are the new numbers of all chunks, in the same order, and ``into``
    where its regions begin."""
    bases = [np.zeros(0, dtype=BASE)]
    rows, at = units.units.copy(), 0
    for row in rows:
        count = int(row["bases"])
        runs = runs_in(named[numbers_of(units.bases[at : at + count], first)], into)
        at += count
        row["bases"] = len(runs)
        bases.append(runs)
    return Units.of(units.packs, rows, units.targets, np.concatenate(bases))


def units_of_parent(
    store: DirectoryStore, target: VersionReader, parent: VersionReader, files: ProfileFiles, profile: str
) -> dict[int, Units]:
    """Return the units of regions of ``target`` that ``parent`` has, too, made from the very same profile.

    Nothing where the parent's index is missing or damaged, or is of another profile of that name.
    """
    name = host_delta_name(parent.manifest.image, parent.manifest.version, profile)
    try:
        delta = HostDelta(store.read(name, limit=MAX_HOST_DELTA))
        if (delta.index.target, delta.index.base) != (parent.manifest.digest(), files.digest):
            return {}
        named = files.find(delta.chunks.prefixes, delta.chunks.lengths)
        if (named < 0).any():
            return {}
        found: dict[int, Units] = {}
        for digest, index in target.numbers.items():
            units = delta.index.units(parent.numbers.get(digest, -1))
            if units is not None and all(is_there(store, ref.digest, ref.length) for ref in units.packs):
                found[index] = renumbered(units, groups(len(delta.chunks)), named, files.first)
        return found
    except (NotFound, FormatError, IntegrityError):
        return {}


def is_there(store: DirectoryStore, digest: bytes, length: int) -> bool:
    """Tell whether a pack is there, by its length."""
    try:
        return store.size(pack_name(digest)) == length
    except NotFound:
        return False
