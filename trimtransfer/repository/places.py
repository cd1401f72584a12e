"""Places: where each chunk of a region lies in a repository, and reading it from there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import chunk_digest
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.location import FRAME, Locations, PackRef
from trimtransfer.pack import decode_frame, pack_name
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import Range
from trimtransfer.table import Table

NOWHERE: Final = -1
_REGIONS: Final = 32
_FRAME_BYTES: Final = 48 << 20


class Places:
    """Where each record of a region lies: ``frame`` (number in ``frames``, or ``NOWHERE``) and ``start`` in it."""

    def __init__(self, table: Table, parts: list[Locations]) -> None:
        self.packs: list[PackRef] = []
        self.frame = np.full(len(table), NOWHERE, dtype=np.int64)
        self.start = np.zeros(len(table), dtype=np.int64)
        frames = [np.zeros(0, dtype=FRAME)]
        count = 0
        for part in parts:
            pieces = part.pieces(table)
            self.frame[pieces["record"]] = pieces["frame"].astype(np.int64) + count
            self.start[pieces["record"]] = pieces["start"]
            renumbered = part.frames.copy()
            renumbered["pack"] += len(self.packs)
            frames.append(renumbered)
            self.packs += part.packs
            count += len(renumbered)
        self.frames: NDArray[np.void] = np.concatenate(frames)
        missing = ~table.zero & (self.frame == NOWHERE)
        if missing.any():
            raise FormatError("locations", f"record {int(np.argmax(missing))}", "each chunk located", "none")

    def decode(self, reader: VersionReader, number: int) -> bytes:
        """Return the content of a frame, read from its pack."""
        frame = self.frames[number]
        pack = self.packs[int(frame["pack"])]
        wanted = Range(pack_name(pack.digest), int(frame["offset"]), int(frame["stored"]), pack.length)
        stored = reader.store.read_range(wanted)
        return decode_frame(stored, codec=int(frame["codec"]), raw=int(frame["raw"]), check=frame["check"].tobytes())


class ChunkReader:
    """Reads chunks of a version wherever they are asked for, each compared with its digest.

    Keeps what it has decoded: tables and places of 32 regions (at most 1 MiB each, most far less), 48 MiB of frames.
    Not for several threads at a time.
    """

    def __init__(self, reader: VersionReader) -> None:
        self.reader = reader
        self._regions: OrderedDict[int, tuple[Table, Places]] = OrderedDict()
        self._frames: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._held = 0

    def region(self, index: int) -> tuple[Table, Places]:
        """Return table and places of a region that is not all zero; raises what :meth:`read` raises."""
        if index in self._regions:
            self._regions.move_to_end(index)
        else:
            table = self.reader.table(index)
            self._regions[index] = table, Places(table, self.reader.locations(index))
            if len(self._regions) > _REGIONS:
                self._regions.popitem(last=False)
        return self._regions[index]

    def read(self, index: int, records: Sequence[int], into: memoryview) -> int:
        """Put chunk records of region ``index``, one after the other, ``into`` a buffer; return their length in bytes.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        table, places = self.region(index)
        at = 0
        for record in records:
            start, length = int(places.start[record]), int(table.lengths[record])
            part = memoryview(self._frame(places, int(places.frame[record])))[start : start + length]
            expected, found = table.digests[record].tobytes(), chunk_digest(part)
            if found != expected:
                raise IntegrityError(f"record {record} of region {index}", expected, found)
            into[at : at + length] = part
            at += length
        return at

    def _frame(self, places: Places, number: int) -> bytes:
        frame = places.frames[number]
        key = places.packs[int(frame["pack"])].digest, int(frame["offset"])
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        content = self._frames[key] = places.decode(self.reader, number)
        self._held += len(content)
        while self._held > _FRAME_BYTES:
            self._held -= len(self._frames.popitem(last=False)[1])
        return content
