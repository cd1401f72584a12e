"""Chunker 2: cuts at any byte, chosen by the content around them (``native/search.h`` is the specification).

For files that are not disk images: an inserted byte moves the cuts behind it along, so only the chunks around it
change. It is not for disks, whose content moves by whole blocks: see ``chunker.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import isqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import Bytes
from trimtransfer.table import ZERO as ZERO_BIT

MEAN: Final = 64 << 10
"""Mean chunk length of images and seeds; other means are for other uses of the library."""
MEANS: Final = tuple(1 << k for k in range(10, 19))
"""The mean chunk lengths that there are: 1 KiB to 256 KiB."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Numbers of one mean chunk length, as ``tt_rule`` in ``native/search.h`` explains them.

    They follow from the mean by integer arithmetic alone, so every machine has the same. A chunk has mean/4 to 4*mean
    bytes. At a byte of content without pattern it ends with probability 1/(4*mean) before ``norm`` and 4/mean from
    there on (normalised chunking: lengths crowd around the mean).
    """

    mean: int
    min: int = field(init=False)
    norm: int = field(init=False)
    max: int = field(init=False)
    strict: int = field(init=False)
    loose: int = field(init=False)
    level: int = field(init=False)

    def __post_init__(self) -> None:
        if self.mean not in MEANS:
            raise ValueError(f"no rule for a mean of {self.mean} bytes; there are {', '.join(map(str, MEANS))}")
        # Candidates have probability (d/256)^2, d = 127 - level; d is the smallest that reaches 4/mean, so that d*d is
        # at least 2^18/mean. Of the candidates the hash takes what is too many.
        wanted = (1 << 18) // self.mean
        d = isqrt(wanted - 1) + 1
        for name, value in {
            "min": self.mean // 4,
            # Solves min + (1 - e)*4*mean + e*mean/4 = mean for e = exp(-(norm - min)/(4*mean)); rounded once, for good.
            "norm": self.mean * 53897 // 65536,
            "max": self.mean * 4,
            "strict": (wanted << 60) // (d * d) - 1,
            "loose": (wanted << 64) // (d * d) - 1,
            "level": 127 - d,
        }.items():
            object.__setattr__(self, name, value)


_LONGEST: Final = Rule(MEAN).max


@cache
def _native_rule(mean: int) -> tuple[Rule, object]:
    rule = Rule(mean)
    return rule, native.rule(
        least=rule.min, norm=rule.norm, most=rule.max, strict=rule.strict, loose=rule.loose, level=rule.level
    )


def cuts(data: Bytes, *, mean: int = MEAN, final: bool = True) -> NDArray[np.uint64]:
    """Return where the chunks of ``data``, which begins with one, end.

    Without ``final`` more is to follow: the list stops where fewer than ``Rule(mean).max`` bytes are left.
    Raises ``ValueError`` for a mean that is not in :data:`MEANS`.
    """
    rule, by = _native_rule(mean)
    # No chunk but the last is shorter than min.
    found = np.empty(memoryview(data).nbytes // rule.min + 1, np.uint64)
    return found[: native.search(data, by, found, final=final)]


def cut_bytes(region: Bytes) -> NDArray[np.uint32]:
    """Return a region's records as ``chunker.cut`` does: lengths, ``ZERO`` set in those of zero records.

    Chunks that are all zeros become zero records; neighbouring ones are merged.
    """
    found = [records for _, records in final_records(region, piece=max(memoryview(region).nbytes, _LONGEST))]
    return found[0] if found else np.empty(0, np.uint32)


def final_records(region: Bytes, *, piece: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Cut a region piece by piece: yield how many bytes were looked at and the records that are final then.

    Together the records are those of :func:`cut_bytes`. ``piece`` is in bytes, not less than the longest chunk.
    """
    view = memoryview(region).cast("B")
    content = np.frombuffer(view, np.uint8)
    at = held = 0  # where the first chunk without an end begins; length of the zero record that ends there
    for seen in [*range(piece, len(view), piece), len(view)]:
        final = seen == len(view)
        ends = at + cuts(view[at:seen], final=final).astype(np.int64)
        lengths = np.diff(ends, prepend=at)
        zero = _all_zero(content, ends, lengths, final=final)
        if held:
            lengths, zero = np.insert(lengths, 0, held), np.insert(zero, 0, True)
        at, held = int(ends[-1]) if len(ends) else at, 0
        records = _merged(lengths, zero)
        if not final and len(records) and records[-1] >= ZERO_BIT:
            records, held = records[:-1], int(records[-1]) - ZERO_BIT
        if len(view):
            yield seen, records


def _all_zero(
    content: NDArray[np.uint8], ends: NDArray[np.int64], lengths: NDArray[np.int64], *, final: bool
) -> NDArray[np.bool_]:
    """Return which chunks are all zeros; with ``final`` the last one ends the content."""
    zero = np.zeros(len(ends), np.bool_)
    # Zeros have no candidates, so a chunk of them has the greatest length or is cut off by the end.
    possible = lengths == _LONGEST
    possible[-1:] |= final
    for k in np.flatnonzero(possible):
        zero[k] = not content[ends[k] - lengths[k] : ends[k]].any()
    return zero


def _merged(lengths: NDArray[np.int64], zero: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return records of these lengths, neighbouring zero records made one."""
    if not len(lengths):
        return np.empty(0, np.uint32)
    begins = np.flatnonzero(np.concatenate([[True], ~(zero[1:] & zero[:-1])]))
    merged = np.add.reduceat(lengths, begins)
    return merged.astype(np.uint32) | np.where(zero[begins], np.uint32(ZERO_BIT), np.uint32(0))


class ByteChunker:
    """Cuts a stream that comes in pieces; the chunks do not depend on how it was divided.

    Chunks that lie within one piece are views of it: they are valid as long as its owner leaves it alone. At most
    ``Rule(mean).max`` bytes plus what has no whole chunk yet are kept inside.
    """

    def __init__(self, *, mean: int = MEAN) -> None:
        self._rule, _ = _native_rule(mean)
        self._held = bytearray()
        """The start of a chunk whose end is not known yet."""

    def feed(self, data: Bytes) -> list[memoryview]:
        """Take the next piece of the stream and return the chunks that it completes, in order."""
        view = memoryview(data).cast("B")
        chunks: list[memoryview] = []
        if self._held:
            chunks, used = self._feed_held(view)
            view = view[used:]
        start = 0
        if len(view) >= self._rule.max:
            for end in cuts(view, mean=self._rule.mean, final=False).tolist():
                chunks.append(view[start:end])
                start = end
        self._held += view[start:]
        return chunks

    def finish(self) -> list[memoryview]:
        """End the stream and return its last chunks; the next piece begins another stream."""
        rest, self._held = memoryview(bytes(self._held)), bytearray()
        ends = cuts(rest, mean=self._rule.mean).tolist()
        return [rest[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _feed_held(self, view: memoryview) -> tuple[list[memoryview], int]:
        """Complete the chunks that start in the held bytes; return them and how many bytes of ``view`` are used up.

        With ``max`` bytes more every chunk that starts there is decided, so the held bytes are gone afterwards unless
        the piece was shorter than that.
        """
        held = len(self._held)
        taken = view[: self._rule.max]
        self._held += taken
        if len(self._held) < self._rule.max:
            return [], len(taken)
        chunks, start = [], 0
        joined = memoryview(bytes(self._held))
        for end in cuts(joined, mean=self._rule.mean, final=False).tolist():
            if start >= held:
                break
            chunks.append(joined[start:end])
            start = end
        if start < held:
            del self._held[:start]
            return chunks, len(taken)
        self._held.clear()
        return chunks, start - held
