"""Rolling through a local file for chunks at any offset."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from trimtransfer.chunk import BLOCK_SIZE, MAX_CHUNK_SIZE, MAX_IMAGE_SIZE
from trimtransfer.finder import ChunkFinder
from trimtransfer.index.catalogue import Location
from trimtransfer.index.seed import Seed
from trimtransfer.localfile import Guard, hanging_devices, next_data, open_local, read_into, size_of
from trimtransfer.watch import Watch

_PIECE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file or block device that the user named as a seed: real path, what it is, and the seed that its scan gave."""

    path: bytes
    found: os.stat_result
    seed: Seed

    @property
    def data_bytes(self) -> int:
        """At most how many bytes of data it holds, holes apart; of a device that is not known."""
        if stat.S_ISBLK(self.found.st_mode):
            return MAX_IMAGE_SIZE
        return min(self.found.st_size, self.found.st_blocks * 512)

    @property
    def location(self) -> Location:
        """Where it is, and its identity."""
        return Location(self.path, (self.found.st_dev, self.found.st_ino), stat.S_ISBLK(self.found.st_mode))


def roll(file: NamedFile, finder: ChunkFinder, watch: Watch) -> None:
    """Let ``finder`` look through a file: to its end, while that is worth it and the file can be read.

    Memory: 4.25 MiB. Raises ``Cancelled``; progress is that of the phase ``scan``.
    """
    with ExitStack() as stack:
        guard = stack.enter_context(Guard()) if file.found.st_dev in hanging_devices() else None
        stack.enter_context(suppress(OSError))  # for a seed, not readable means that no more is found
        place = file.location
        descriptor = open_local(place.path, identity=place.identity, device=place.block_device, guard=guard)
        stack.callback(os.close, descriptor)
        _roll(descriptor, finder, guard, watch)


def _roll(descriptor: int, finder: ChunkFinder, guard: Guard | None, watch: Watch) -> None:
    size = min(size_of(descriptor), MAX_IMAGE_SIZE)
    buffer = memoryview(bytearray(_PIECE + MAX_CHUNK_SIZE))
    at = 0
    while at < size and not finder.exhausted:
        watch.report("scan", at, size)
        if guard is None:
            data = next_data(descriptor, at)
            if data is None:
                break
            at = max(at, data - BLOCK_SIZE + 1)  # a chunk's first bytes may be zeros, and lie in the hole
        got = read_into(descriptor, buffer[: min(len(buffer), size - at)], at, guard=guard)
        if not got:
            break
        held = got
        if at + got >= size:  # zeros fill the last block, as they do where a seed is read
            held = min(len(buffer), got + BLOCK_SIZE - 1)
            buffer[got:held] = bytes(held - got)
        at = finder.search(buffer[:held], at, at + min(_PIECE, got))
    watch.report("scan", size, size)
