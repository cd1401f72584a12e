"""Which known chunks are stored again, so that downloads stay compact however many versions came before.

Two kinds of waste grow with every version. Frames get holes: a frame is fetched whole, though only a part of it is
still needed. Packs get thin: another request for little. So chunks are stored again from frames of which less than half
is used - where the region's locations are written anew anyway - and from packs of which less than a quarter is used.
Nothing else ever moves, and no pack is ever rewritten. A budget keeps a single publish from being surprised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtransfer.pack import PACK_MAGIC, pack_name
from trimtransfer.repository.dedupe import Packs
from trimtransfer.repository.inventory import AGAIN, NOWHERE, Inventory
from trimtransfer.spill import large_array
from trimtransfer.store import DirectoryStore


@dataclass(frozen=True, slots=True)
class Limits:
    """When chunks are stored again: shares used of a frame's content and of a pack's stored bytes; and the budget."""

    least_frame_use: float = 0.5
    """A frame used less is fetched for more waste than content, so storing its content again pays with one download."""
    least_pack_use: float = 0.25
    budget: float = 1 / 3
    """Most that is stored again, as a share of what is new. Content must have been replaced before what is left of its
    frames and packs is stored again, so in the long run no more is needed."""
    region_cost: int = 32 << 10
    """What new locations of a region that did not change count for in the budget, in bytes."""


@dataclass(frozen=True, slots=True)
class Deduped:
    """Chunks and bytes of content: new, known, stored again (a part of the known), of each chunk once."""

    new_chunks: int
    new_bytes: int
    known_chunks: int
    known_bytes: int
    again_chunks: int
    again_bytes: int


def choose_again(
    inventory: Inventory,
    packs: Packs,
    store: DirectoryStore,
    unchanged: NDArray[np.bool_],
    directory: Path,
    limits: Limits = Limits(),
) -> Deduped:
    """Decide which known chunks are stored again, and forget their places.

    ``unchanged`` tells for each region whether its locations stay as they are if none of its chunks moves. Chunks in
    packs that are lost are always stored again, which heals them. ``directory`` is for temporary files.
    """
    choice = _Choice(inventory, packs, unchanged, directory)
    lost = _lost(packs, store)
    new_chunks, new_bytes = choice.total(lambda pack, frame: pack == NOWHERE)
    known_chunks, known_bytes = choice.total(lambda pack, frame: pack != NOWHERE)
    budget = int(limits.budget * new_bytes)
    frames, spent = choice.frames(limits, budget)
    chosen = choice.packs(limits, budget - spent, frames, lost) | lost

    def again(pack: NDArray[Any], frame: NDArray[Any]) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = pack != NOWHERE
        mask[mask] = chosen[pack[mask]] | frames[frame[mask]]
        return mask

    again_chunks, again_bytes = choice.total(again)
    for part in inventory.slices():
        mask = again(inventory.pack[part], choice.frame(part))
        inventory.marks[part][mask] |= np.uint8(AGAIN)
        inventory.pack[part][mask] = NOWHERE
    return Deduped(new_chunks, new_bytes, known_chunks, known_bytes, again_chunks, again_bytes)


class _Choice:
    """How well the known frames and packs are used. A frame that several regions named has one number here.

    Columns of a row for each frame: those of large images lie in mapped temporary files.
    """

    def __init__(self, inventory: Inventory, packs: Packs, unchanged: NDArray[np.bool_], directory: Path) -> None:
        self._inventory, self._packs, self._unchanged = inventory, packs, unchanged
        rows = inventory.frames.array()
        self._rows = rows
        self._place = large_array(len(rows), "<u8", directory)
        self._place[:] = rows["pack"]
        self._place <<= np.uint64(32)
        self._place |= rows["offset"]
        self._sorted = large_array(len(rows), "<u8", directory)
        self._sorted[:] = self._place
        self._sorted.sort()
        self._use = large_array(len(rows), "<u8", directory)  # bytes of content used
        self._raw = large_array(len(rows), "<u4", directory)
        self._fixed = large_array(len(rows), "?", directory)  # used by a region that did not change
        for part in inventory.slices():
            self._count(part)

    def frame(self, part: slice) -> NDArray[np.int64]:
        """Return the frame numbers of these chunks; arbitrary for chunks that are nowhere."""
        number = self._inventory.frame[part]
        if not len(self._place):
            return np.zeros(len(number), dtype=np.int64)
        return np.searchsorted(self._sorted, self._place[np.where(number < len(self._place), number, 0)])

    def total(self, chosen: Any) -> tuple[int, int]:
        """Return the number and bytes of the chunks that ``chosen(pack, frame)`` picks."""
        chunks = size = 0
        for part in self._inventory.slices():
            mask = chosen(self._inventory.pack[part], self.frame(part))
            chunks += int(np.count_nonzero(mask))
            size += int(self._inventory.length[part][mask].sum(dtype=np.int64))
        return chunks, size

    def frames(self, limits: Limits, budget: int) -> tuple[NDArray[np.bool_], int]:
        """Return which frames' content is stored again, least used first, and how many bytes that is."""
        chosen = np.zeros(len(self._use), dtype=np.bool_)
        poor = np.flatnonzero((self._use > 0) & (self._use < limits.least_frame_use * self._raw) & ~self._fixed)
        poor = poor[np.argsort(self._use[poor] / self._raw[poor], kind="stable")]
        ends = np.cumsum(self._use[poor])
        count = int(np.searchsorted(ends, budget, side="right"))
        chosen[poor[:count]] = True
        return chosen, int(ends[count - 1]) if count else 0

    def packs(
        self, limits: Limits, budget: int, frames: NDArray[np.bool_], lost: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return which packs' content, apart from those ``frames``, is stored again, least used first."""
        known = self._packs.known
        stored, content = np.zeros(known), np.zeros(known)
        touched = [np.zeros(0, dtype=np.uint64)]  # pairs of a pack and an unchanged region that uses it
        for part in self._inventory.slices():
            pack, frame = self._inventory.pack[part], self.frame(part)
            mask = pack != NOWHERE
            mask[mask] = ~frames[frame[mask]]
            pack, length = pack[mask], self._inventory.length[part][mask].astype(np.float64)
            row = self._rows[self._inventory.frame[part][mask]]
            stored += np.bincount(pack, length * row["stored"] / row["raw"], known)
            content += np.bincount(pack, length, known)
            region = self._inventory.region[part][mask]
            fixed = self._unchanged[region]
            touched.append(np.unique(pack[fixed].astype(np.uint64) << np.uint64(32) | region[fixed]))
        regions = np.bincount((np.unique(np.concatenate(touched)) >> np.uint64(32)).astype(np.int64), minlength=known)
        lengths = np.array([self._packs[number].length for number in range(known)], dtype=np.float64)
        thin = np.flatnonzero((stored > 0) & (stored < limits.least_pack_use * (lengths - len(PACK_MAGIC))) & ~lost)
        thin = thin[np.argsort(stored[thin] / lengths[thin], kind="stable")]
        cost = np.cumsum(content[thin] + limits.region_cost * regions[thin])
        chosen = np.zeros(known, dtype=np.bool_)
        chosen[thin[cost <= budget]] = True
        return chosen

    def _count(self, part: slice) -> None:
        """Add what these chunks use of their frames."""
        placed = self._inventory.pack[part] != NOWHERE
        if not placed.any():
            return
        frame = self.frame(part)[placed]
        np.add.at(self._use, frame, self._inventory.length[part][placed].astype(np.uint64))
        self._raw[frame] = self._rows["raw"][self._inventory.frame[part][placed]]
        fixed = self._unchanged[self._inventory.region[part][placed]]
        self._fixed[frame[fixed]] = True


def _lost(packs: Packs, store: DirectoryStore) -> NDArray[np.bool_]:
    """Return which known packs are missing or have a wrong length."""
    lost = np.zeros(packs.known, dtype=np.bool_)
    for number in range(packs.known):
        lost[number] = not store.holds(pack_name(packs[number].digest), packs[number].length)
    return lost
