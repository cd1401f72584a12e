"""The second pass of a publish, rehearsed: frames are made and compressed as there, most of them only quickly, and
nothing is stored. Their places are entered all the same, so that metadata can be made from them.

The length of every frame at the fastest level is known, and for a sample at the wanted level, too. The two go together
closely, so their ratio in the sample tells the lengths of all within about one per cent (a ratio estimator; W. G.
Cochran, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, object_digest
from trimtransfer.filesystem.ranges import Cover, Ranges, total
from trimtransfer.location import FRAME, PackRef
from trimtransfer.pack import MAX_PACK, PACK_MAGIC, encode_frame
from trimtransfer.repository.dedupe import Packs
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.packing import Chunks, Framer
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_QUICK: Final = 1
SAMPLE: Final = 12 << 20
"""Bytes of content that are compressed at the wanted level, too; of no more than twice that, all is."""
_AHEAD: Final = 4
_CONFIDENCE: Final = 2.0
"""Standard errors that are told as the error: 95 % of samples lie within."""
_TYPICAL: Final = 256 << 10
"""Bytes of a frame, about: so much of the content, spread over it, is worth a place in the sample."""


class _Lengths(NamedTuple):
    """A frame in bytes: content, at the quick and at the ``wanted`` level (0: not in the sample), content in free
    space; seconds that the wanted level took."""

    raw: int
    quick: int
    wanted: int
    spare: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What would be stored, in bytes: frames of ``new`` content and of content stored ``again``, with the ``error`` of
    both together that 95 % of samples stay within; ``spare``: new content in free space, and what its frames take.

    ``seconds`` of one core for all of it, by those of the sample, which has ``sampled`` bytes of content.
    """

    new: int
    again: int
    error: int
    packs: int
    spare_content: int
    spare: int
    sampled: int
    seconds: float

    @property
    def stored(self) -> int:
        """All packs together."""
        return self.new + self.again + self.packs * len(PACK_MAGIC)


class Rehearsal:
    """Compresses what a publish would store. ``free`` (merged) is free space, only to be told."""

    def __init__(
        self, framer: Framer, inventory: Inventory, packs: Packs, free: Ranges, *, level: int, workers: int
    ) -> None:
        self._framer, self._inventory, self._packs = framer, inventory, packs
        self._free = Cover(free)
        self._level, self._workers = level, workers
        self._lengths: list[_Lengths] = []

    def run(self, regions: Iterable[tuple[int, int, Table]], watch: Watch, size: int) -> Rehearsed:
        """Compress what is missing of these regions (number, start in the image, table), ``size`` bytes in all, and
        enter where it would lie; raises what reading the image raises."""
        frames: list[Chunks] = []
        done = passed = 0
        pending: deque[Future[_Lengths]] = deque()
        with ThreadPoolExecutor(self._workers, "estimate") as pool:
            for region, start, table in regions:
                for chunks in self._framer.frames_of(region, start, table):
                    chosen = _is_sampled(passed, chunks.size, size)
                    passed += chunks.size
                    frames.append(chunks)
                    pending.append(pool.submit(self._compress, chunks, chosen))
                    if len(pending) >= self._workers * _AHEAD:
                        done += self._take(pending.popleft())
                        watch.report("estimate", done, size)
            while pending:
                done += self._take(pending.popleft())
                watch.report("estimate", done, size)
        return self._finish(frames)

    def _compress(self, chunks: Chunks, chosen: bool) -> _Lengths:
        """Return the lengths of a frame, and the seconds that the wanted level took (0: it is not in the sample)."""
        raw = self._framer.read(chunks)
        quick = len(encode_frame(raw, level=_QUICK)[1])
        spare = sum(total(self._free.within(at, length)) for at, length in _runs(chunks))
        if not chosen:
            return _Lengths(chunks.size, quick, 0, spare, 0.0)
        started = time.thread_time()
        stored = len(encode_frame(raw, level=self._level)[1])
        return _Lengths(chunks.size, quick, stored, spare, time.thread_time() - started)

    def _take(self, job: Future[_Lengths]) -> int:
        self._lengths.append(job.result())
        return self._lengths[-1].raw

    def _finish(self, frames: list[Chunks]) -> Rehearsed:
        """Estimate all lengths and enter the places."""
        quick = np.array([one.quick for one in self._lengths], dtype=np.float64)
        wanted = np.array([one.wanted for one in self._lengths], dtype=np.float64)
        ratio, error = _ratio(quick, wanted)
        stored = np.where(wanted > 0, wanted, np.maximum(1, np.round(quick * ratio))).astype(np.int64)
        again = np.array([chunks.again for chunks in frames], dtype=np.bool_)
        raw = np.array([one.raw for one in self._lengths], dtype=np.int64)
        spare = np.array([one.spare for one in self._lengths], dtype=np.int64) * ~again
        packs = self._enter(frames, np.minimum(stored, raw).tolist())
        sampled = int(raw[wanted > 0].sum())
        seconds = sum(one.seconds for one in self._lengths) * (int(raw.sum()) / max(1, sampled))
        return Rehearsed(
            new=int(stored[~again].sum()),
            again=int(stored[again].sum()),
            error=round(error),
            packs=packs,
            spare_content=int(spare.sum()),
            spare=round(float((stored * (spare / np.maximum(1, raw))).sum())),
            sampled=sampled,
            seconds=seconds,
        )

    def _enter(self, frames: list[Chunks], stored: list[int]) -> int:
        """Enter the places of all frames in packs that will never be; return how many packs."""
        inventory, first = self._inventory, len(self._packs)
        open_: dict[bool, tuple[int, int]] = {}
        for chunks, length in zip(frames, stored, strict=True):
            number, end = open_.get(chunks.again, (-1, MAX_PACK))
            if end + length > MAX_PACK:
                number, end = self._packs.begin(), len(PACK_MAGIC)
                self._packs.finish(number, PackRef(object_digest(b"pack %d" % number), MAX_PACK))
            row = np.zeros(1, dtype=FRAME)
            row["pack"], row["offset"], row["stored"], row["raw"] = number, end, length, chunks.size
            row["codec"] = 1
            row["check"] = np.frombuffer(object_digest(b"frame %d %d" % (number, end)), np.uint8, CHECK_SIZE)
            inventory.frame[chunks.numbers] = inventory.frames.append(row)
            inventory.pack[chunks.numbers] = number
            inventory.start[chunks.numbers] = np.cumsum(chunks.lengths) - chunks.lengths
            open_[chunks.again] = number, end + length
        return len(self._packs) - first


def _is_sampled(before: int, length: int, size: int) -> bool:
    """Return whether a frame is in the sample: ``length`` bytes of content after ``before`` of ``size``."""
    if size <= 2 * SAMPLE:
        return True
    step = size / (SAMPLE / _TYPICAL)
    return math.floor((before + length + step / 2) / step) > math.floor((before + step / 2) / step)


def _ratio(quick: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ratio of the two lengths, by those that are in the sample (``wanted`` is not 0), and the error in
    bytes of the sum that it gives for all."""
    chosen = wanted > 0
    count = int(np.count_nonzero(chosen))
    if not count:
        return 1.0, float(quick.sum())
    ratio = float(wanted[chosen].sum() / quick[chosen].sum())
    rest = 1 - count / len(quick)
    if count < 2 or rest <= 0:
        return ratio, float(quick.sum()) * ratio * rest
    residuals = wanted[chosen] - ratio * quick[chosen]
    variance = float((residuals**2).sum()) / (count - 1)
    return ratio, _CONFIDENCE * len(quick) * math.sqrt(rest * variance / count)


def _runs(chunks: Chunks) -> list[tuple[int, int]]:
    """Return where the chunks lie, neighbours in one: place and length."""
    ends = chunks.offsets + chunks.lengths
    first = np.flatnonzero(np.concatenate(([True], chunks.offsets[1:] != ends[:-1])))
    last = np.append(first[1:], len(ends)) - 1
    return list(zip(chunks.offsets[first].tolist(), (ends[last] - chunks.offsets[first]).tolist(), strict=True))
