"""What a new version need not store: chunks that its parent, or images named as alike, have in their packs.

Their tables and locations are streamed past the inventory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trimtransfer.location import Locations, PackRef
from trimtransfer.repository.inventory import IN_PARENT, NOWHERE, Inventory
from trimtransfer.repository.reading import VersionReader
from trimtransfer.table import Table
from trimtransfer.watch import Watch


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


def used_packs(inventory: Inventory) -> list[int]:
    """Return the numbers of the packs in which an inventory's chunks lie."""
    parts = [np.unique(inventory.pack[part]) for part in inventory.slices()]
    used = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))
    return [number for number in used.tolist() if number != NOWHERE]


def _find_region(inventory: Inventory, packs: Packs, reader: VersionReader, index: int, mark: int) -> None:
    table = reader.table(index)
    numbers = inventory.find(table)
    found = numbers >= 0
    if mark == IN_PARENT:
        _note_places(inventory, index, numbers)
    inventory.marks[numbers[found]] |= np.uint8(mark)
    wanted = found.copy()
    wanted[found] = inventory.pack[numbers[found]] == NOWHERE
    if wanted.any():
        for part in reader.locations(index):
            _take_places(inventory, packs, table, part, numbers, wanted)


def _note_places(inventory: Inventory, index: int, numbers: NDArray[np.int64]) -> None:
    """Note where the parent has chunks, at the first time: neighbours there are neighbours in what is noted."""
    records = np.flatnonzero(numbers >= 0)
    records = records[(inventory.marks[numbers[records]] & IN_PARENT) == 0][::-1]  # of repetitions the first one stays
    inventory.parent_region[numbers[records]], inventory.parent_record[numbers[records]] = index, records


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
