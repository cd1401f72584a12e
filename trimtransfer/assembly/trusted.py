"""Which tools of a delta index are trusted here: those whose probe tells what the publisher's did, until one of them
has made something else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.fetchplan import FrameTask
from trimtransfer.assembly.plan import Mask
from trimtransfer.chunk import chunk_digest
from trimtransfer.tool import usable
from trimtransfer.unit import tools_of

_LOG: Final = logging.getLogger("trimtransfer.assembly")


class Tools:
    """The tools of an index, each as it is stored and with the check of its probe. Safe among threads."""

    def __init__(self, tools: Sequence[tuple[bytes, bytes]], *, none: bool = False) -> None:
        """With ``none`` none of them is trusted."""
        self._stored = [stored for stored, _ in tools]
        self._here = 0 if none else usable(tools)
        others = len(tools) - self._here.bit_count()
        if others and not none:
            _LOG.warning("%d of %d compressors do otherwise here: their deltas are left aside", others, len(tools))

    def usable(self, needed: NDArray[np.uint32]) -> Mask:
        """Return which units may be fetched that need these tools, bit by bit (uint32, one per unit)."""
        mask: Mask = (needed & ~np.uint32(self._here)) == 0
        return mask

    def leave_all(self) -> None:
        """Trust none from now on."""
        self._here = 0

    def watch(self, stored: memoryview, made: bytes, task: FrameTask) -> None:
        """Trust the tools of a unit no longer if what it made is wrong: plans to come do without them."""
        tools = tools_of(stored)
        if tools and any(chunk_digest(made[start : start + size]) != digest for start, size, digest in task.wanted):
            wrong = sum(1 << self._stored.index(tool.to_bytes()) for tool in tools if tool.to_bytes() in self._stored)
            self._here &= ~wrong
            _LOG.warning("a compressor has made something else here than where the delta was made")
