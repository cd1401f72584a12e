"""What a version has and a host profile lacks, divided into units, each with chunks of the profile that resemble it.

All of it is in units, whether anything resembles it or not: compressed together, and without what lies beside it in
frames and is on the host already, it takes less. That is what the price of a unit says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.deltaindex import BASE
from trimtransfer.hostdelta import MAX_BASE_CHUNKS
from trimtransfer.repository.deltaunits import Unit, runs_of, split
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.places import ChunkReader, Places
from trimtransfer.repository.profilefiles import ProfileFiles
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.similar import Similar
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_BASE: Final = 8 << 20
"""Most bytes that a unit is made of."""


class HostContent:
    """The chunks that ``target`` has and a profile lacks, outside the regions ``kept``: ``size`` of them in bytes.
    ``known``: chunks of the profile that the target has, too.

    ``directory`` takes temporary files. Not for several threads at a time.
    """

    def __init__(
        self,
        target: VersionReader,
        files: ProfileFiles,
        directory: Path,
        *,
        kept: Collection[int],
        workers: int,
        watch: Watch,
    ) -> None:
        """Compare the target's tables with the profile.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        self._target, self._files = ChunkReader(target), files
        self._directory, self._workers, self._watch = directory, workers, watch
        self._used, self._kept = list(target.used_regions()), frozenset(kept)
        self._room = MAX_BASE_CHUNKS
        self._taken = np.zeros(len(files), dtype=np.bool_)
        self.known = np.zeros(len(files), dtype=np.bool_)
        self._inventory = Inventory(self._tables, directory)
        self._mark_known()
        self.size = sum(map(self._size, self._inventory.slices()))

    def close(self) -> None:
        """Give temporary files back."""
        self._inventory.close()

    def units(self) -> Iterator[Unit]:
        """Yield the units that make all of it, in order; raises what the constructor raises."""
        if not self.size:
            return
        similar = Similar(self._files, self._files.regions, self._directory, workers=self._workers, watch=self._watch)
        try:
            for index in self._used:
                if index not in self._kept:
                    yield from self._units(index, similar)
        finally:
            similar.close()

    def _tables(self) -> Iterator[tuple[int, Table]]:
        for index in self._used:
            yield index, self._target.reader.table(index)
            self._watch.check()

    def _size(self, part: slice) -> int:
        """Return the bytes of some chunks that are lacking, those that kept regions have first left out."""
        inventory = self._inventory
        lacking = (inventory.marks[part] == 0) & ~np.isin(inventory.region[part], list(self._kept))
        return int(inventory.length[part][lacking].sum(dtype=np.int64))

    def _mark_known(self) -> None:
        """Mark the chunks that the profile has, on both sides."""
        for region in self._files.regions:
            numbers = self._inventory.find(self._files.table(region))
            first = int(self._files.first[region])
            self.known[first : first + len(numbers)] = numbers >= 0
            self._inventory.marks[numbers[numbers >= 0]] = 1
            self._watch.check()

    def _units(self, index: int, similar: Similar) -> Iterator[Unit]:
        """Yield the units of a region."""
        table, places = self._target.region(index)
        records, lacking = self._new_records(index, table)
        if not len(records):
            return
        plain = _plain_cost(table, places, lacking)
        for part in split(table.lengths[records].astype(np.int64)):
            chosen = records[part]
            content = bytearray(int(table.lengths[chosen].sum(dtype=np.int64)))
            self._target.read(index, chosen.tolist(), memoryview(content))
            runs, base = self._base_of(content, similar)
            yield Unit(index, chosen, int(plain[chosen].sum()), runs, content, base)

    def _new_records(self, index: int, table: Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the records of a region whose chunks the profile lacks: those that occur here first, and all."""
        inventory = self._inventory
        numbers = inventory.find(table)
        records = np.flatnonzero(numbers >= 0)
        lacking = records[inventory.marks[numbers[records]] == 0]
        at = numbers[lacking]
        first_here = (inventory.region[at] == index) & (inventory.record[at] == lacking)
        return np.compress(first_here, lacking), lacking

    def _base_of(self, target: Bytes, similar: Similar) -> tuple[NDArray[np.void], Bytes]:
        """Return the runs of the profile's chunks that resemble ``target``, and their content."""
        buffer = memoryview(bytearray(_BASE))
        at = 0
        runs = [np.zeros(0, dtype=BASE)]
        for region, records in similar.find(target, most=_BASE):
            first = int(self._files.first[region])
            good = []
            for record in records.tolist():
                length = int(self._files.lengths[first + record])
                new = not self._taken[first + record]
                if (self._room or not new) and self._files.read(first + record, buffer[at : at + length]):
                    good.append(record)
                    at += length
                    self._taken[first + record] = True
                    self._room -= new
            run = runs_of(np.array(good, dtype=np.int64), BASE) if good else np.zeros(0, dtype=BASE)
            run["region"] = region
            runs.append(run)
        return np.concatenate(runs), buffer[:at]


def _plain_cost(table: Table, places: Places, lacking: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return about what each of the ``lacking`` records takes in plain frames, in stored bytes: all of a frame is
    fetched for what of it is lacking."""
    cost = np.zeros(len(table))
    frame = places.frame[lacking]
    lengths = table.lengths[lacking].astype(np.float64)
    wanted = np.bincount(frame, weights=lengths, minlength=len(places.frames))
    cost[lacking] = lengths * places.frames["stored"][frame] / wanted[frame]
    return cost
