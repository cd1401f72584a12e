"""Rolling match: blocks of known content found at any offset of other data, as rsync does.

For local data that holds wanted content at odd places, where cutting it by a chunker's rule finds nothing. A rolling
sum says where a block may be (``native/match.h``); only a block whose digest is right is reported. Digests are those
of chunks, so a block is known by the name that a chunk with the same bytes has. Whole blocks of one size are found by
:class:`Matcher`; ``finder.py`` finds chunks by their first blocks' keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import DIGEST_SIZE, Bytes, chunk_digest

_ROOM: Final = 64
"""Places that one call of the compiled function reports at most: where every window has the sum of a block, all but the
first are found in vain."""
_REFUTED_FREE: Final = 16
"""Places with the sum of a block but other content that are looked at before they have to be paid for: see Matcher."""


@dataclass(frozen=True, slots=True)
class Match:
    """The block with this ``index`` in the table begins at this ``offset`` of the data."""

    offset: int
    index: int


class BlockTable:
    """What to look for: blocks of one size, numbered from 0. Of blocks with equal content the first is reported."""

    def __init__(self, keys: NDArray[np.uint64], digests: NDArray[np.uint8], block_size: int) -> None:
        """Make a table from the blocks' keys (:func:`native.block_keys`) and digests, shape (blocks, 32).

        Raises ``ValueError`` if the shapes differ, and for sizes that :class:`native.Blocks` refuses.
        """
        if digests.shape != (len(keys), DIGEST_SIZE):
            raise ValueError(f"{len(keys)} keys and digests of shape {digests.shape}")
        prefixes = np.ascontiguousarray(digests[:, :8]).view("<u8").astype(np.uint64).ravel()
        order = np.lexsort((np.arange(len(keys)), prefixes, keys))
        self.block_size = block_size
        self._index, self._keys, self._prefixes, self._digests = order, keys[order], prefixes[order], digests[order]
        self._blocks = native.Blocks(self._keys, block_size)

    @classmethod
    def of(cls, data: Bytes, block_size: int) -> BlockTable:
        """Make a table of the whole blocks of ``data``; what is left behind the last one is not looked for."""
        view = memoryview(data).cast("B")
        keys = native.block_keys(view, block_size)
        starts = range(0, len(keys) * block_size, block_size)
        digests = b"".join(chunk_digest(view[start : start + block_size]) for start in starts)
        return cls(keys, np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_SIZE), block_size)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._keys)

    def find(self, data: Bytes) -> list[Match]:
        """Return where blocks lie in ``data``: see :class:`Matcher`."""
        return Matcher(self).feed(data)

    def places(
        self, view: memoryview, position: int, offsets: NDArray[np.uint64], rows: NDArray[np.uint32]
    ) -> tuple[int, int]:
        """Look for sums of blocks: :func:`native.match`."""
        return native.match(view, self._blocks, position, offsets, rows)

    def index_of(self, row: int, window: memoryview) -> int | None:
        """Return the first block that has the content of ``window``, whose sum is the one in ``row``."""
        digest = chunk_digest(window)
        if self._digests[row].tobytes() == digest:
            return int(self._index[row])
        # Other blocks may have the same sum; they are in the order of their digests' first bytes.
        end = row + int(np.searchsorted(self._keys[row:], self._keys[row], side="right"))
        prefix = np.uint64(int.from_bytes(digest[:8], "little"))
        for other in range(row + int(np.searchsorted(self._prefixes[row:end], prefix)), end):
            if self._prefixes[other] != prefix:
                break
            if self._digests[other].tobytes() == digest:
                return int(self._index[other])
        return None


class Matcher:
    """Finds a table's blocks in a stream that comes in pieces; what it finds does not depend on how it was divided.

    Matches do not overlap: after one, the search goes on behind it. Data made so that every window has the sum of some
    block but none its content costs no more than to be hashed once: after a few free ones, one such window is looked at
    per block's length of data, and the others are passed over, so that a match may be missed there.
    """

    def __init__(self, table: BlockTable) -> None:
        self.refuted = 0
        """Windows so far that had the sum of a block but other content."""
        self._table = table
        self._held = b""
        """The last bytes of the stream, too few for a block."""
        self._fed = 0
        self._free = 0
        """Where the next window may begin that is looked at, in the stream."""
        self._offsets, self._rows = np.empty(_ROOM, np.uint64), np.empty(_ROOM, np.uint32)

    def feed(self, data: Bytes) -> list[Match]:
        """Take the next piece and return the matches that end in it, offsets counted from the stream's start."""
        view = memoryview(data).cast("B")
        overlap = self._table.block_size - 1
        found: list[Match] = []
        if self._held:
            # Every window that begins in the held bytes and no other.
            joined = memoryview(self._held + bytes(view[:overlap]))
            found += self._scan(joined, self._fed - len(self._held))
        found += self._scan(view, self._fed)
        self._held = (self._held + bytes(view[-overlap:]))[-overlap:]
        self._fed += len(view)
        return found

    def _scan(self, view: memoryview, base: int) -> list[Match]:
        """Look at every window of ``view``, which begins at ``base`` of the stream."""
        size, found = self._table.block_size, []
        position = max(0, self._free - base)
        while position <= len(view) - size:
            count, position = self._table.places(view, position, self._offsets, self._rows)
            for offset, row in zip(self._offsets[:count].tolist(), self._rows[:count].tolist(), strict=True):
                if base + offset < self._free:
                    continue
                index = self._table.index_of(row, view[offset : offset + size])
                if index is None:
                    self.refuted += 1
                    self._free = max(self._free, (self.refuted - _REFUTED_FREE) * size)
                else:
                    found.append(Match(base + offset, index))
                    self._free = base + offset + size
            position = max(position, self._free - base)
        return found
