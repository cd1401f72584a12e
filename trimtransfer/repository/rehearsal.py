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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, object_digest
from trimtransfer.filesystem.ranges import Cover, Ranges, total
from trimtransfer.location import FRAME, PackRef
from trimtransfer.pack import MAX_PACK, PACK_MAGIC, Codec, encode_frame
from trimtransfer.repository.dedupe import Packs
from trimtransfer.repository.inventory import Inventory
from trimtransfer.repository.packing import Chunks, Framer
from trimtransfer.spill import Rows
from trimtransfer.table import Table
from trimtransfer.watch import Watch

_QUICK: Final = 1
SAMPLE: Final = 24 << 20
"""Bytes of content that are compressed at the wanted level, too; of no more than twice that, all is."""
_AHEAD: Final = 4
_CONFIDENCE: Final = 2.0
"""Standard errors that are told as the error: 95 % of samples lie within."""
_TYPICAL: Final = 256 << 10
"""Bytes of a frame, about: so much of the content, spread over it, is worth a place in the sample."""


_LENGTHS: Final = np.dtype(
    [("raw", "<u4"), ("quick", "<u4"), ("wanted", "<u4"), ("spare", "<u4"), ("again", "?"), ("seconds", "<f4")]
)
"""A frame in bytes: content, stored at the quick and at the wanted level (0: not in the sample), content in free space;
whether it is stored again; seconds that the wanted level took."""
_USUAL: Final = 0.85
"""What the wanted level makes of the quick one's length, about: good enough for where frames lie in packs."""


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
    """Compresses what a publish would store. ``free`` (merged) is free space, only to be told; ``directory`` takes
    temporary files, 21 bytes for each frame."""

    def __init__(
        self,
        framer: Framer,
        inventory: Inventory,
        packs: Packs,
        free: Ranges,
        directory: Path,
        *,
        level: int,
        workers: int,
    ) -> None:
        self._framer, self._inventory, self._packs = framer, inventory, packs
        self._free, self._lengths = Cover(free), Rows(_LENGTHS, directory)
        self._level, self._workers = level, workers
        self._open: dict[bool, tuple[int, int]] = {}
        self._first = len(packs)

    def run(self, regions: Iterable[tuple[int, int, Table]], watch: Watch, size: int) -> Rehearsed:
        """Compress what is missing of these regions (number, start in the image, table), ``size`` bytes in all, and
        enter where it would lie; raises what reading the image raises."""
        done = passed = 0
        pending: deque[tuple[Chunks, Future[NDArray[np.void]]]] = deque()
        with ThreadPoolExecutor(self._workers, "estimate") as pool, closing(self._lengths):
            for region, start, table in regions:
                for chunks in self._framer.frames_of(region, start, table):
                    chosen = _is_sampled(passed, chunks.size, size)
                    passed += chunks.size
                    pending.append((chunks, pool.submit(self._compress, chunks, chosen)))
                    if len(pending) >= self._workers * _AHEAD:
                        done += self._take(*pending.popleft())
                        watch.report("estimate", done, size)
            while pending:
                done += self._take(*pending.popleft())
                watch.report("estimate", done, size)
            return self._finish(self._lengths.array())

    def _compress(self, chunks: Chunks, chosen: bool) -> NDArray[np.void]:
        """Return the lengths of a frame (one row)."""
        row = np.zeros(1, dtype=_LENGTHS)
        raw = self._framer.read(chunks)
        row["raw"], row["again"] = chunks.size, chunks.again
        row["quick"] = len(encode_frame(raw, level=_QUICK)[1])
        row["spare"] = 0 if chunks.again else sum(total(self._free.within(*run)) for run in _runs(chunks))
        if chosen:
            started = time.thread_time()
            row["wanted"] = len(encode_frame(raw, level=self._level)[1])
            row["seconds"] = time.thread_time() - started
        return row

    def _take(self, chunks: Chunks, job: Future[NDArray[np.void]]) -> int:
        """Keep a frame's lengths, and enter its place in a pack that will never be; return its content's length."""
        row = job.result()
        self._lengths.append(row)
        stored = int(row["wanted"][0]) or max(1, round(float(row["quick"][0]) * _USUAL))
        number, end = self._open.get(chunks.again, (-1, MAX_PACK))
        if end + stored > MAX_PACK:
            number, end = self._packs.begin(), len(PACK_MAGIC)
            self._packs.finish(number, PackRef(object_digest(b"pack %d" % number), MAX_PACK))
        frame = np.zeros(1, dtype=FRAME)
        frame["pack"], frame["offset"], frame["stored"], frame["raw"] = number, end, stored, chunks.size
        frame["codec"] = Codec.ZSTD
        frame["check"] = np.frombuffer(object_digest(b"frame %d %d" % (number, end)), np.uint8, CHECK_SIZE)
        inventory = self._inventory
        inventory.frame[chunks.numbers] = inventory.frames.append(frame)
        inventory.pack[chunks.numbers] = number
        inventory.start[chunks.numbers] = np.cumsum(chunks.lengths) - chunks.lengths
        self._open[chunks.again] = number, end + stored
        return chunks.size

    def _finish(self, rows: NDArray[Any]) -> Rehearsed:
        """Estimate all lengths."""
        quick, wanted, raw = (rows[name].astype(np.float64) for name in ("quick", "wanted", "raw"))
        ratio, error = estimate_ratio(quick, wanted)
        stored = np.where(wanted > 0, wanted, np.minimum(np.round(quick * ratio), raw))
        again, sampled = rows["again"], int(raw[wanted > 0].sum())
        sizes = [int(stored[chosen].sum()) for chosen in (~again, again)]
        return Rehearsed(
            new=sizes[0],
            again=sizes[1],
            error=round(error),
            packs=sum(-(-size // (MAX_PACK - len(PACK_MAGIC))) for size in sizes),
            spare_content=int(rows["spare"].sum(dtype=np.int64)),
            spare=round(float((stored * (rows["spare"] / np.maximum(1, raw))).sum())),
            sampled=sampled,
            seconds=float(rows["seconds"].sum()) * float(raw.sum()) / max(1, sampled),
        )


def _is_sampled(before: int, length: int, size: int) -> bool:
    """Return whether a frame is in the sample: ``length`` bytes of content after ``before`` of ``size``."""
    if size <= 2 * SAMPLE:
        return True
    step = size / (SAMPLE / _TYPICAL)
    return math.floor((before + length + step / 2) / step) > math.floor((before + step / 2) / step)


def estimate_ratio(quick: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
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
