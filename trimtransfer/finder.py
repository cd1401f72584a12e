"""Finding chunks at any offset of other data, by the keys of their first blocks (``native/match.h``).

A key says where a chunk may begin; it is there if the digest of as many bytes as it has is right. Behind a chunk the
one that follows it in the image is looked for first, at the place where it would be: data that holds an image at an odd
offset is rolled through up to its first chunk and hashed from there on.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import BLOCK_SIZE, Bytes, chunk_digest

_STEP: Final = 64 << 10
"""Bytes rolled through in one call of the compiled function: what is behind a chunk found meanwhile was in vain."""
_ROOM: Final = 64
_TWINS: Final = 8
"""Chunks with the same key that are looked for at one place; further ones are found by what precedes them, or not."""
_FAILURES: Final = 32
"""Places with its key but none of its chunks after which a key is no longer looked for."""
_GATHERED: Final = 256
"""Blocks copied together to compute their keys: 1 MiB."""
VAIN: Final = 64 << 20
"""Bytes hashed in vain that are free: see :attr:`ChunkFinder.exhausted`."""
SAMPLE: Final = 256 << 20
LEAST_FOUND: Final = 0.02
"""After this many bytes, data of which less than this share was found is not worth looking through."""
_NOTHING: Final = (-1, -1)
_ZEROS: Final = bytes(_STEP + BLOCK_SIZE)


def chunk_keys(data: Bytes, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the key of the first 4096 bytes of each chunk of ``data``; 0 for a chunk that is shorter."""
    keys = np.zeros(len(offsets), dtype=np.uint64)
    whole = np.flatnonzero(lengths >= BLOCK_SIZE)
    if len(whole):
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, dtype=np.uint8), BLOCK_SIZE)
        for start in range(0, len(whole), _GATHERED):
            part = whole[start : start + _GATHERED]
            keys[part] = native.block_keys(windows[offsets[part]].data, BLOCK_SIZE)
    return keys


class ChunkFinder:
    """Looks for chunks in a stream, which is given piece by piece and in order.

    The chunks' columns, in the order of the image: ``keys`` (0: has none), ``prefixes`` (first eight bytes of the
    digest), ``lengths``, and ``places`` in the image, which rise. :meth:`found` tells what was found. A prefix is
    enough here: whoever reads a chunk compares all of its digest.

    Cost is bounded whatever keys and data are like: see :attr:`exhausted`.
    """

    def __init__(
        self,
        keys: NDArray[np.uint64],
        prefixes: NDArray[np.uint64],
        lengths: NDArray[np.uint32],
        places: NDArray[np.int64],
    ) -> None:
        self.passed = 0
        """Bytes of the stream that were looked at, long runs of zeros apart."""
        self.looks = 0
        """Chunks that were hashed."""
        self.vain = 0
        """Bytes hashed, or work of as much cost done, in vain."""
        self.found_bytes = 0
        self._all_keys, self._prefixes, self._lengths, self._places = keys, prefixes, lengths, places
        # Bytes that are all the same fill long runs, in which every window would have the key.
        usable = np.flatnonzero((keys != 0) & ~np.isin(keys, _uniform_keys()))
        order = usable[np.lexsort((lengths[usable], prefixes[usable], keys[usable]))]
        first = np.ones(len(order), dtype=np.bool_)
        for column in (keys, prefixes, lengths) if len(order) else ():
            first[1:] &= column[order[1:]] == column[order[:-1]]
        first[1:] = ~first[1:]
        self._rows = order[first].astype(np.uint32)
        self._keys = keys[self._rows]
        self._blocks = native.Blocks(self._keys, BLOCK_SIZE)
        self._failures: Counter[int] = Counter()
        self._offset: NDArray[np.int64] = np.full(len(keys), -1, dtype=np.int64)
        self._next = _NOTHING  # row that may follow, and where in the stream
        self._hits, self._hit_rows = np.empty(_ROOM, np.uint64), np.empty(_ROOM, np.uint32)

    @property
    def exhausted(self) -> bool:
        """Whether to go on is not worth it: too little was found in a large sample, or too much hashed in vain.

        In vain may be hashed what is free (:data:`VAIN`) and as many bytes as were passed.
        """
        if self.passed >= SAMPLE and self.found_bytes < LEAST_FOUND * self.passed:
            return True
        return self.vain > VAIN + self.passed

    def found(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which chunks were found (numbers in the columns), and the offset of each in the stream."""
        rows = np.flatnonzero(self._offset >= 0)
        return rows, self._offset[rows]

    def search(self, view: memoryview, base: int, end: int) -> int:
        """Look for chunks that begin in ``view``, but before ``end`` of the stream; return where to go on from.

        ``view`` holds the stream from ``base`` on: for at least a chunk's length behind ``end``, or up to the stream's
        end.
        """
        at = base
        while at < end and not self.exhausted:
            row, expected = self._next
            if at < expected:
                at = self._roll(view, base, at, min(end, at + _STEP, expected))
            elif at == expected and self._follows(view[at - base :], row):
                at = self._take(row, at)
            else:
                self._next = _NOTHING
                at = self._roll(view, base, at, min(end, at + _STEP))
        return at

    def _follows(self, data: memoryview, row: int) -> bool:
        """Tell whether ``data`` begins with the chunk that would follow; where it has a key, that is compared first."""
        key = self._all_keys[row]
        if key and (len(data) < BLOCK_SIZE or native.block_keys(data[:BLOCK_SIZE], BLOCK_SIZE)[0] != key):
            return False
        if self._is(data, row):
            return True
        self.vain += int(self._lengths[row])
        return False

    def _roll(self, view: memoryview, base: int, at: int, end: int) -> int:
        """Look for keys at ``at`` and behind, before ``end``; return where to go on."""
        part = view[at - base : end - base + BLOCK_SIZE - 1]
        if len(part) >= BLOCK_SIZE and not part[0] and part.tobytes() == _ZEROS[: len(part)]:
            return end  # every window is zeros, whose key is not looked for
        count, position = native.match(part, self._blocks, 0, self._hits, self._hit_rows)
        for offset, key_row in zip(self._hits[:count].tolist(), self._hit_rows[:count].tolist(), strict=True):
            row = self._one_of(view[at + offset - base :], key_row)
            if row >= 0:
                self.passed += offset
                return self._take(row, at + offset)
            if self._failed(key_row) or self.exhausted:  # the rows have other numbers now, or it is enough
                position, count = offset + 1, _ROOM
                break
        after = at + position if count == _ROOM else end
        self.passed += after - at
        return after

    def _one_of(self, data: memoryview, key_row: int) -> int:
        """Return the chunk with this key that ``data`` begins with, -1 if it begins with none of them."""
        key = self._keys[key_row]
        for number in range(key_row, min(key_row + _TWINS, len(self._keys))):
            if self._keys[number] != key:
                break
            row = int(self._rows[number])
            if self._is(data, row):
                return row
            self.vain += int(self._lengths[row])
        return -1

    def _is(self, data: memoryview, row: int) -> bool:
        length = int(self._lengths[row])
        if length > len(data):
            return False
        self.looks += 1
        return int.from_bytes(chunk_digest(data[:length])[:8], "little") == int(self._prefixes[row])

    def _take(self, row: int, at: int) -> int:
        """Note a chunk that was found; return where it ends."""
        length = int(self._lengths[row])
        if self._offset[row] < 0:
            self._offset[row] = at
            self.found_bytes += length
        self.passed += length
        following = row + 1 < len(self._places)
        self._next = (row + 1, at + int(self._places[row + 1] - self._places[row])) if following else _NOTHING
        return at + length

    def _failed(self, key_row: int) -> bool:
        """Count a failure of a key; with the last one it may have it is dropped, which numbers the keys anew."""
        key = int(self._keys[key_row])
        self._failures[key] += 1
        if self._failures[key] < _FAILURES:
            return False
        kept = self._keys != np.uint64(key)
        self._keys, self._rows = self._keys[kept], self._rows[kept]
        self._blocks = native.Blocks(self._keys, BLOCK_SIZE)
        self.vain += self._keys.nbytes + (1 << 16)
        return True


@lru_cache(maxsize=1)
def _uniform_keys() -> NDArray[np.uint64]:
    """Return the keys of the blocks that repeat one byte."""
    blocks = np.repeat(np.arange(256, dtype=np.uint8), BLOCK_SIZE)
    return native.block_keys(blocks.data, BLOCK_SIZE)
