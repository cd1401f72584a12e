"""All content of a version divided into solid units: long stretches compressed as a whole, made of nothing.

For first downloads by whoever has nothing. Units are as long as the format allows, so that what is alike in a stretch
is found however far apart it lies; what lies in gzip and zip files is compressed by its content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import MAX_CHUNK_SIZE
from trimtransfer.deltaindex import BASE, MAX_TARGET, Units
from trimtransfer.repository.deltaunits import Unit, open_insides, plain_cost, split
from trimtransfer.repository.imagebytes import ImageBytes
from trimtransfer.repository.inside import Insides
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.similar import Similar, VersionContent
from trimtransfer.repository.solidreuse import ParentUnits
from trimtransfer.repository.starts import new_starts
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_SIZE: Final = MAX_TARGET - MAX_CHUNK_SIZE
"""Bytes that a unit makes, at most but for a part of a chunk."""
_PLAIN: Final = 2.1
"""A unit takes so many times less than that in plain frames: it must fit into a pack, and takes no more when solid."""
_SHRUNK: Final = 1.4
"""A unit has at most about so many times as much content of compressed files as it makes: there is a limit of that."""


class SolidContent:
    """The chunks of ``target``, each once, that no unit of its parent makes: ``size`` of them in bytes.

    ``known`` chunks of a profile there are none. ``directory`` takes temporary files. Memory: 8 bytes a chunk. Not for
    several threads at a time.
    """

    def __init__(
        self, target: VersionReader, directory: Path, *, parent: ParentUnits | None, workers: int, watch: Watch
    ) -> None:
        """Read the target's tables, and take units of ``parent`` over.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        self._target, self._directory, self._workers, self._watch = ChunkReader(target), directory, workers, watch
        self.known = np.zeros(0, dtype=np.bool_)
        self.size = 0
        used = list(target.used_regions())
        with closing(Inventory(lambda: self._tables(used), directory)) as inventory:
            self._kept = parent.find(inventory) if parent is not None else {}
            found = ((index, self._first_records(inventory, index)) for index in used)
            self._records = {index: records for index, records in found if len(records)}

    def kept_units(self) -> list[tuple[int, Units]]:
        """Return the parent's units that are taken over, with their regions."""
        return [(region, one.units) for region, kept in self._kept.items() for one in kept]

    def units(self) -> Iterator[Unit]:
        """Yield the units that make all of it, in order; raises what the constructor raises."""
        if not self._records:
            return
        with ExitStack() as stack:
            insides = self._insides(stack)
            for index in self._records:
                yield from self._units(index, insides)

    def _tables(self, regions: list[int]) -> Iterator[tuple[int, Table]]:
        for index in regions:
            yield index, self._target.reader.table(index)
            self._watch.check()

    def _first_records(self, inventory: Inventory, index: int) -> NDArray[np.int64]:
        """Return the records of a region whose chunks occur here first, and not within what a unit makes that is taken
        over: there is no order of units in which another one could make them."""
        table = self._target.reader.table(index)
        numbers = inventory.find(table)
        records = np.flatnonzero(numbers >= 0)
        at = numbers[records]
        first_here = (inventory.region[at] == index) & (inventory.record[at] == records)
        records = np.compress(first_here & (inventory.marks[at] == 0), records)
        for kept in self._kept.get(index, ()):
            records = records[(records < kept.first) | (records > kept.last)]
        self.size += int(table.lengths[records].sum(dtype=np.int64))
        return records

    def _insides(self, stack: ExitStack) -> Insides | None:
        """Return what of the chunks lies in deflate streams, with nothing that resembles it; None if nothing does."""
        target, watch = self._target, self._watch
        starts = new_starts(VersionContent(target.reader), self._records, workers=self._workers, watch=watch)
        nothing = Similar(target.reader, [], self._directory, workers=1, watch=watch)
        stack.callback(nothing.close)
        image = ImageBytes(target)
        return open_insides(image, starts, target, nothing, self._directory, stack, watch=watch, framed=False)

    def _units(self, index: int, insides: Insides | None) -> Iterator[Unit]:
        """Yield the units of a region."""
        records = self._records[index]
        table, places = self._target.region(index)
        plain, start = plain_cost(table, places), int(self._target.reader.manifest.starts[index])
        weights = np.maximum(table.lengths[records].astype(np.int64), (_PLAIN * plain[records]).astype(np.int64))
        if insides is not None:
            weights = np.maximum(weights, insides.weights(start, table, records, shrunk=_SHRUNK)[0])
        borders = np.searchsorted(records, [kept.first for kept in self._kept.get(index, ())])
        stretches = [0, *np.unique(borders[borders > 0]).tolist(), len(records)]
        for chosen in _divided(records, weights, stretches):
            content = bytearray(int(table.lengths[chosen].sum(dtype=np.int64)))
            self._target.read(index, chosen.tolist(), memoryview(content))
            inside = insides.find(start, table, chosen, content) if insides else None
            yield Unit(index, chosen, int(plain[chosen].sum()), np.zeros(0, dtype=BASE), content, b"", inside)


def _divided(
    records: NDArray[np.int64], weights: NDArray[np.int64], stretches: Sequence[int]
) -> Iterator[NDArray[np.int64]]:
    """Yield the records of each unit, none of which reaches from one stretch into another."""
    for low, high in pairwise(stretches):
        if low < high:
            for part in split(weights[low:high], size=_SIZE):
                yield records[low:high][part]
