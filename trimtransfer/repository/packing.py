"""Second pass of a publish: read the chunks that must be stored, compress them in frames, write packs.

Every chunk is compared with its digest of the first pass in the very buffer that is compressed, and again in what is
read back from the written pack and decoded, before the pack gets its name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, MAX_CHUNK_SIZE, Bytes, chunk_digest, object_check, object_digest
from trimtransfer.errors import IntegrityError, SourceChanged
from trimtransfer.image import Source
from trimtransfer.location import FRAME, PackRef
from trimtransfer.pack import (
    MAX_PACK,
    PACK_MAGIC,
    Codec,
    PackBuilder,
    decode_frame,
    encode_frame,
    pack_name,
)
from trimtransfer.repository.dedupe import Packs
from trimtransfer.repository.intent import Intent
from trimtransfer.repository.inventory import AGAIN, NOWHERE, Inventory
from trimtransfer.store import DISK_REMEDY, DirectoryStore
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_FRAMES_AHEAD: Final = 4
"""Frames in flight per worker: at most 2.5 MiB each with what they become."""
_FILE_TAIL: Final = bytes(16)
_PACKS_AHEAD: Final = 2
"""Packs being written while the next one fills."""


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Where frames are closed: once they hold ``fill`` bytes of content, and from ``least`` bytes on at a file's end.

    Frames that end with files are seldom fetched for a part of what they hold: with files of the host, once versions
    have replaced half of a pack.
    """

    least: int
    fill: int


FIRST_FRAMES: Final = FrameRule(16 << 10, 256 << 10)
"""For a version without a parent. Against frames of 64 KiB, file ends disregarded, a first version of a desktop is
0.5 % smaller (level 19), what a host of the same release must fetch of it 4.8 %. Frames of up to 1 MiB would have a
host fetch 11 % more of a server's image."""
UPDATE_FRAMES: Final = FrameRule(64 << 10, 1 << 20)
"""For a version with a parent. All clients at the parent fetch all that is new, so longer frames suit it, which
compress better: 4.1 % of a rebuilt desktop against 32 and 256 KiB. From 256 KiB to 2 MiB it would be 9.4 %, at the
expense of fresh clients, who find more of each frame replaced by later versions."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one frame, in order: their numbers in the inventory, place in the image, lengths, digests."""

    numbers: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    digests: NDArray[np.uint8]
    again: bool

    @property
    def size(self) -> int:
        """Bytes of their content."""
        return int(self.lengths.sum())


@dataclass(frozen=True, slots=True)
class Frame:
    """A compressed frame."""

    chunks: Chunks
    codec: Codec
    stored: bytes
    check: bytes


@dataclass(slots=True)
class _OpenPack:
    """A pack being filled, and the frames in it, by offset."""

    number: int
    builder: PackBuilder
    frames: list[tuple[int, Frame]] = field(default_factory=list)


@dataclass(slots=True)
class Stored:
    """What the second pass wrote: packs (those that existed already apart), their bytes."""

    packs: int = 0
    kept_packs: int = 0
    bytes: int = 0


class Framer:
    """Puts the chunks of an inventory that are nowhere yet into frames, and reads their content."""

    def __init__(self, source: Source, inventory: Inventory, rule: FrameRule) -> None:
        self._source, self._inventory, self._rule = source, inventory, rule

    def frames_of(self, region: int, start: int, table: Table) -> Iterator[Chunks]:
        """Yield the frames of what a region must store: chunks that occur here first and are nowhere."""
        inventory = self._inventory
        numbers = inventory.find(table)
        records = np.flatnonzero(numbers >= 0)
        at = numbers[records]
        first_here = (inventory.region[at] == region) & (inventory.record[at] == records)
        records = records[first_here & (inventory.pack[at] == NOWHERE)]
        if not len(records):
            return
        offsets, again = table.offsets, (inventory.marks[numbers[records]] & AGAIN) != 0
        for mark in (False, True):
            chosen = records[again == mark]
            lengths, places = table.lengths[chosen].astype(np.int64), start + offsets[chosen]
            for part in _split(lengths, self._rule, partial(self._ends_file, places + lengths)):
                record = chosen[part]
                yield Chunks(numbers[record], places[part], lengths[part], table.digests[record], mark)

    def _ends_file(self, ends: NDArray[np.int64], number: int) -> bool:
        """Return whether a chunk seems to end a file, as ``native/cut.h`` tells; nothing but framing depends on it."""
        tail = bytearray(len(_FILE_TAIL))
        self._source.read_into(memoryview(tail), int(ends[number]) - len(tail))
        return tail == _FILE_TAIL

    def read(self, chunks: Chunks) -> memoryview:
        """Return the content of a frame, each chunk compared with its digest; ``SourceChanged`` if one differs."""
        raw = memoryview(bytearray(chunks.size))
        ends = chunks.offsets + chunks.lengths
        breaks = np.flatnonzero(chunks.offsets[1:] != ends[:-1]) + 1
        at = 0
        for run in np.split(np.arange(len(ends)), breaks):  # neighbours in the image are read together
            offset, size = int(chunks.offsets[run[0]]), int(ends[run[-1]] - chunks.offsets[run[0]])
            self._source.read_into(raw[at : at + size], offset)
            at += size
        bad = _first_difference(raw, chunks)
        if bad >= 0:
            raise SourceChanged(str(self._source.path), f"other content at byte {int(chunks.offsets[bad]):,}")
        return raw


class Packer:
    """Stores the chunks of an inventory that are nowhere yet, and enters their places.

    Chunks stored again go to packs of their own: a client that comes from the parent version wants none of them.
    """

    def __init__(
        self,
        source: Source,
        store: DirectoryStore,
        intent: Intent,
        inventory: Inventory,
        packs: Packs,
        *,
        level: int,
        workers: int,
        frames: FrameRule,
        pack_limit: int = MAX_PACK,
    ) -> None:
        self._store, self._intent = store, intent
        self._inventory, self._packs = inventory, packs
        self._level, self._workers, self._limit = level, workers, pack_limit
        most = pack_limit - len(PACK_MAGIC) - MAX_CHUNK_SIZE  # so one frame always fits a pack
        self._framer = Framer(source, inventory, FrameRule(min(frames.least, most), min(frames.fill, most)))
        self._open: dict[bool, _OpenPack] = {}
        self._writing: deque[Future[bool]] = deque()
        self.stored = Stored()

    def run(self, regions: Iterable[tuple[int, int, Table]], watch: Watch, total: int) -> Stored:
        """Store what is missing of these regions (number, start in the image, table); ``total`` bytes in all.

        Raises:
            SourceChanged: the image holds other content than in the first pass.
            NoSpace: the store's disk is full.
            IntegrityError: what was written reads back differently.
        """
        done = 0
        pending: deque[Future[Frame]] = deque()
        with ThreadPoolExecutor(self._workers, "compress") as compressors, ThreadPoolExecutor(1, "pack") as writer:
            watch.report("compress", 0, total)
            for region, start, table in regions:
                for chunks in self._framer.frames_of(region, start, table):
                    pending.append(compressors.submit(self._compress, chunks))
                    if len(pending) >= self._workers * _FRAMES_AHEAD:
                        done += self._take(pending.popleft(), writer)
                        watch.report("compress", done, total)
            while pending:
                done += self._take(pending.popleft(), writer)
                watch.report("compress", done, total)
            for again in sorted(self._open):
                self._close(self._open.pop(again), writer)
            self._wait(0)
        return self.stored

    def _compress(self, chunks: Chunks) -> Frame:
        """Read, check and compress a frame's content."""
        codec, stored = encode_frame(self._framer.read(chunks), level=self._level)
        return Frame(chunks, codec, stored, object_check(stored))

    def _take(self, job: Future[Frame], writer: ThreadPoolExecutor) -> int:
        """Put a compressed frame into its pack and enter the places of its chunks; return its content's length."""
        frame = job.result()
        chunks = frame.chunks
        pack = self._open.get(chunks.again)
        if pack is not None and pack.builder.full(len(frame.stored)):
            self._close(pack, writer)
            pack = None
        if pack is None:
            pack = self._open[chunks.again] = _OpenPack(self._packs.begin(), PackBuilder(limit=self._limit))
        offset = pack.builder.add(frame.stored)
        pack.frames.append((offset, frame))
        row = np.zeros(1, dtype=FRAME)
        row["pack"], row["offset"], row["stored"], row["raw"] = pack.number, offset, len(frame.stored), chunks.size
        row["codec"], row["check"] = frame.codec, np.frombuffer(frame.check, dtype=np.uint8, count=CHECK_SIZE)
        inventory = self._inventory
        inventory.frame[chunks.numbers] = inventory.frames.append(row)
        inventory.pack[chunks.numbers] = pack.number
        inventory.start[chunks.numbers] = np.cumsum(chunks.lengths) - chunks.lengths
        return chunks.size

    def _close(self, pack: _OpenPack, writer: ThreadPoolExecutor) -> None:
        """Give a filled pack to the writer, waiting while it is behind."""
        digest, data = pack.builder.finish()
        self._packs.finish(pack.number, PackRef(digest, len(data)))
        self._wait(_PACKS_AHEAD - 1)
        self._writing.append(writer.submit(self._write, digest, data, pack.frames))

    def _wait(self, most: int) -> None:
        while len(self._writing) > most:
            self._writing.popleft().result()

    def _write(self, digest: bytes, data: bytes, frames: list[tuple[int, Frame]]) -> bool:
        """Write a pack, durably, and check what was written; return whether it is new.

        A pack of this name that exists already is kept if it is whole: other versions may refer to it, so it is no
        business of the intent. One that is damaged is replaced.
        """
        name = pack_name(digest)
        exists = self._store.exists(name)
        if exists and self._store.size(name) == len(data) and self._store.read(name, limit=len(data)) == data:
            self.stored.kept_packs += 1  # the publication relies on it, as on all packs that it refers to
            return False
        if not exists:
            self._intent.add(name)
        with self._store.staged(name) as staging:
            staging.write(data)
            staging.sync()
            _check_written(name, digest, staging.read_back(), frames)
        self.stored.packs += 1
        self.stored.bytes += len(data)
        return True


def _split(lengths: NDArray[np.int64], rule: FrameRule, ends_file: Callable[[int], bool]) -> Iterator[slice]:
    """Yield slices of consecutive chunks, one for each frame."""
    start = filled = 0
    for number, length in enumerate(lengths.tolist()):
        filled += length
        if filled >= rule.fill or (filled >= rule.least and ends_file(number)):
            yield slice(start, number + 1)
            start, filled = number + 1, 0
    if filled:
        yield slice(start, len(lengths))


def _first_difference(raw: Bytes, chunks: Chunks) -> int:
    """Return the number of the first chunk in ``raw`` that has not its digest; -1 if all have."""
    view, at = memoryview(raw), 0
    for number, length in enumerate(chunks.lengths.tolist()):
        if chunk_digest(view[at : at + length]) != chunks.digests[number].tobytes():
            return number
        at += length
    return -1


def _check_written(name: str, digest: bytes, data: bytes, frames: list[tuple[int, Frame]]) -> None:
    """Check a pack as it lies on the disk: its digest, every frame, every chunk in them."""
    found = object_digest(data)
    if found != digest:
        raise IntegrityError(f"{name}, read back", digest, found, DISK_REMEDY)
    view = memoryview(data)
    for offset, frame in frames:
        stored = view[offset : offset + len(frame.stored)]
        raw = decode_frame(stored, codec=frame.codec, raw=frame.chunks.size, check=frame.check)
        bad = _first_difference(raw, frame.chunks)
        if bad >= 0:
            expected = frame.chunks.digests[bad].tobytes()
            raise IntegrityError(f"{name}, chunk {bad} of the frame at {offset}", expected, b"", DISK_REMEDY)
