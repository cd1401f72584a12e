"""What a new version need not store: chunks that its parent, or images named as alike, have in their packs.

Their tables and locations are streamed past the inventory. Then it is decided which known packs are used too little: a
pack of which this version uses less than a quarter makes every client fetch from one more place for little, so the
chunks it would serve are stored again. That keeps fresh downloads compact and makes repacking unnecessary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.location import Locations, PackRef
from trimtransfer.pack import PACK_MAGIC, pack_name
from trimtransfer.repository.inventory import AGAIN, IN_PARENT, NOWHERE, Inventory
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore
from trimtransfer.table import Table
from trimtransfer.watch import Watch

LEAST_USE: Final = 0.25
"""Share of a pack's stored bytes below which its chunks are stored again."""
AGAIN_SHARE: Final = 1 / 3
"""Most that is stored again, as a share of what is new: a pack loses three quarters of its content before its last
quarter is stored again, so in the long run no more is needed, and no single publish is surprised."""


class Packs:
    """The packs that locations refer to, numbered: known ones, and those being written."""

    def __init__(self) -> None:
        self._refs: list[PackRef] = []
        self._numbers: dict[bytes, int] = {}
        self.known = 0
        """Packs with numbers below this existed before this publish."""

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, number: int) -> PackRef:
        return self._refs[number]

    def number(self, ref: PackRef) -> int:
        """Return the number of a known pack, given a new one at first sight."""
        number = self._numbers.setdefault(ref.digest, len(self._refs))
        if number == len(self._refs):
            self._refs.append(ref)
            self.known = len(self._refs)
        return number

    def begin(self) -> int:
        """Return the number of a pack about to be written."""
        self._refs.append(PackRef(bytes(32), 0))
        return len(self._refs) - 1

    def finish(self, number: int, ref: PackRef) -> None:
        """Tell which pack it has become."""
        self._refs[number] = ref


@dataclass(frozen=True, slots=True)
class Deduped:
    """Chunks and bytes of content: new, known, stored again (a part of the known), of each chunk once."""

    new_chunks: int
    new_bytes: int
    known_chunks: int
    known_bytes: int
    again_chunks: int
    again_bytes: int


def find_known(
    inventory: Inventory, packs: Packs, parent: VersionReader | None, like: Iterable[VersionReader], watch: Watch
) -> None:
    """Enter into the inventory where parent and alike images have its chunks, and which of them the parent has."""
    readers = ([(parent, IN_PARENT)] if parent else []) + [(reader, 0) for reader in like]
    total = sum(reader.manifest.length for reader, _ in readers)
    done = 0
    for reader, mark in readers:
        for index in reader.used_regions():
            _find_region(inventory, packs, reader, index, mark)
            watch.report("reuse", done + int(reader.manifest.starts[index]), total)
        done += reader.manifest.length
        watch.report("reuse", done, total)


def _find_region(inventory: Inventory, packs: Packs, reader: VersionReader, index: int, mark: int) -> None:
    table = reader.table(index)
    numbers = inventory.find(table)
    found = numbers >= 0
    inventory.marks[numbers[found]] |= np.uint8(mark)
    wanted = found.copy()
    wanted[found] = inventory.pack[numbers[found]] == NOWHERE
    if wanted.any():
        for part in reader.locations(index):
            _take_places(inventory, packs, table, part, numbers, wanted)


def _take_places(
    inventory: Inventory,
    packs: Packs,
    table: Table,
    part: Locations,
    numbers: NDArray[np.int64],
    wanted: NDArray[np.bool_],
) -> None:
    """Enter the places that one part of a region's locations has for wanted records."""
    pieces = part.pieces(table)
    pieces = pieces[wanted[pieces["record"]]]
    if not len(pieces):
        return
    used, frame = np.unique(pieces["frame"], return_inverse=True)
    frames = part.frames[used]
    own = np.array([packs.number(ref) for ref in part.packs], dtype=np.uint32)
    frames["pack"] = own[frames["pack"]]
    first = inventory.frames.append(frames)
    at = numbers[pieces["record"]]
    inventory.pack[at] = frames["pack"][frame]
    inventory.frame[at] = first + frame
    inventory.start[at] = pieces["start"]


def choose_again(inventory: Inventory, packs: Packs, store: DirectoryStore, *, least_use: float = LEAST_USE) -> Deduped:
    """Decide which known chunks are stored again - their packs are used too little, or lost - and forget their places.

    ``least_use`` is for measurements.
    """
    use, content = _pack_use(inventory, packs)
    new_chunks, new_bytes = _total(inventory, np.zeros(packs.known, dtype=np.bool_), nowhere=True)
    lengths = np.array([packs[number].length for number in range(packs.known)], dtype=np.float64)
    lost = _lost(packs, store)
    spare = (use > 0) & (use < least_use * (lengths - len(PACK_MAGIC))) & ~lost
    order = np.flatnonzero(spare)[np.argsort(use[spare] / lengths[spare], kind="stable")]
    affordable = np.cumsum(content[order]) <= AGAIN_SHARE * new_bytes
    again = lost
    again[order[affordable]] = True
    known_chunks, known_bytes = _total(inventory, np.ones(packs.known, dtype=np.bool_))
    again_chunks, again_bytes = _total(inventory, again)
    _forget(inventory, again)
    return Deduped(new_chunks, new_bytes, known_chunks, known_bytes, again_chunks, again_bytes)


def _pack_use(inventory: Inventory, packs: Packs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each known pack how many of its stored bytes, and of content, this version uses.

    A chunk counts with its share of its frame: a frame that is fetched for a part of it is not well used.
    """
    use, content = np.zeros(packs.known), np.zeros(packs.known)
    frames = inventory.frames.array()
    for part in inventory.slices():
        pack = inventory.pack[part]
        placed = pack != NOWHERE
        frame = frames[inventory.frame[part][placed]]
        length = inventory.length[part][placed].astype(np.float64)
        use += np.bincount(pack[placed], length * frame["stored"] / frame["raw"], packs.known)
        content += np.bincount(pack[placed], length, packs.known)
    return use, content


def _lost(packs: Packs, store: DirectoryStore) -> NDArray[np.bool_]:
    """Return which known packs are missing or have a wrong length: their chunks are stored again, which heals them."""
    lost = np.zeros(packs.known, dtype=np.bool_)
    for number in range(packs.known):
        name = pack_name(packs[number].digest)
        lost[number] = not store.exists(name) or store.size(name) != packs[number].length
    return lost


def _total(inventory: Inventory, chosen: NDArray[np.bool_], *, nowhere: bool = False) -> tuple[int, int]:
    """Return chunks and bytes of content in the chosen packs, or with ``nowhere`` of chunks that are in no pack."""
    chunks = size = 0
    for part in inventory.slices():
        mask = inventory.pack[part] == NOWHERE if nowhere else _in_packs(inventory.pack[part], chosen)
        chunks += int(np.count_nonzero(mask))
        size += int(inventory.length[part][mask].sum(dtype=np.int64))
    return chunks, size


def _forget(inventory: Inventory, again: NDArray[np.bool_]) -> None:
    for part in inventory.slices():
        mask = _in_packs(inventory.pack[part], again)
        inventory.marks[part][mask] |= np.uint8(AGAIN)
        inventory.pack[part][mask] = NOWHERE


def _in_packs(pack: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pack != NOWHERE
    mask[mask] = chosen[pack[mask]]
    return mask
