"""Slow twins of the compiled functions, written from the specification alone: what they say is right by reading.

Nothing here shares code with the package; tests compare the two.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import xxhash

BLOCK = 4096


class Block(NamedTuple):
    """What the cut rule knows of one 4 KiB block."""

    mixed: int
    zero: bool
    zero_tail: bool


class Record(NamedTuple):
    """A record of a region: a chunk or a zero record, ``length`` in blocks or bytes as the function says."""

    length: int
    zero: bool


def blocks_of(data: bytes) -> list[Block]:
    """Return what the cut rule knows of every block of ``data``; a short last one is padded with zeros."""
    found = []
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK].ljust(BLOCK, b"\0")
        h = xxhash.xxh3_64_intdigest(block)
        mixed = ((h ^ (h >> 31)) * 0x9E3779B97F4A7C15 % 2**64) >> 32
        zero = not any(block)
        found.append(Block(mixed, zero, not zero and block.endswith(bytes(16))))
    return found


def divide(blocks: list[Block], *, least: int) -> list[Record]:
    """Divide a region's blocks into records, cuts by file end or hint allowed from ``least`` blocks on."""
    records: list[Record] = []
    n = 0  # blocks in the open chunk
    groups = [list(group) for _, group in groupby(blocks, key=lambda block: block.zero)]
    for number, group in enumerate(groups):
        at_border = number in (0, len(groups) - 1)
        if group[0].zero and (len(group) >= 4 or n == 0 or at_border):
            if n > 0:
                records.append(Record(n, False))
            records.append(Record(len(group), True))
            n = 0
            continue
        for block in group:
            n += 1
            below = 2**32 // 48 if n < 18 else 2**32 // 12
            if n == 64 or (n >= least and (block.zero_tail or block.mixed < below)):
                records.append(Record(n, False))
                n = 0
    if n > 0:
        records.append(Record(n, False))
    return records


def cut_blocks(blocks: list[Block]) -> list[Record]:
    """Divide a region's blocks into records, lengths in blocks."""
    records = divide(blocks, least=1)
    if sum(not record.zero for record in records) > 8192:
        records = divide(blocks, least=4)
    return records


def cut_disk(region: bytes) -> list[Record]:
    """Divide a region into records, lengths in true bytes (chunker 1)."""
    records, end = [], 0
    for record in cut_blocks(blocks_of(region)):
        start, end = end, end + record.length * BLOCK
        records.append(Record(min(end, len(region)) - start, record.zero))
    return records
