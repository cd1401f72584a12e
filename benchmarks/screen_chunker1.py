"""What a client would fetch under other parameters of chunker 1: the measurement behind the constants in native/cut.c.

    python benchmarks/screen_chunker1.py OLD NEW [REBUILT] [--and OLD NEW [REBUILT]]... [--level 3]

OLD and NEW are images of a machine before and after an upgrade in place, REBUILT the upgraded machine built from
scratch. For every set of parameters the table gives MiB of

    first     a first download of NEW: all its chunks and its tables;
    update    what NEW has and OLD has not, with the tables of the regions that changed;
    rebuilt   the same for REBUILT, coming from OLD;
    seeded    REBUILT (or NEW) published by itself and fetched by a client that has OLD as a seed: the frames that hold
              anything it lacks, whole, and all tables: what files of the host save at a first download;

chunks grouped into frames as packs group them (new chunks of a region in order, a frame closed at 64 KiB or more), each
frame compressed with zstd, 36 bytes for each record of a table. "chunks" counts those of NEW for each GiB in use,
"write" is the mean size in KiB of the chunk that a write to a random block makes new, "frame" that of the frames of a
first download before compression.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import zstandard
from blake3 import blake3
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import BLOCK_SIZE, REGION_SIZE
from trimtransfer.repository.packing import FIRST_FRAMES

MIB = 1 << 20
RECORD_BYTES = 36
COLUMNS = ("first", "update", "rebuilt", "seeded")


@dataclass(frozen=True, slots=True)
class Parameters:
    """One cut rule; the defaults are the frozen ones."""

    rare: float = 48
    frequent: float = 12
    switch: int = 18
    longest: int = 64
    tail: int = 16
    zero_run: int = 4
    limit: int = REGION_SIZE
    least_again: int = 4
    least: int = 1
    fill: int = FIRST_FRAMES.fill

    def __str__(self) -> str:
        """Only what differs from the frozen rule."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        changed = [f"{name} {value:g}" for name, value in fields.items() if value != getattr(FROZEN, name)]
        return ", ".join(changed) or "frozen: 48/12 from 18, at most 64, tail 16"


FROZEN = Parameters()
SETS = [
    FROZEN,
    replace(FROZEN, rare=24, frequent=24),
    replace(FROZEN, rare=48, frequent=48),
    replace(FROZEN, rare=32, frequent=8, switch=12),
    replace(FROZEN, rare=64, frequent=16, switch=24),
    replace(FROZEN, rare=96, frequent=24, switch=36),
    replace(FROZEN, longest=32),
    replace(FROZEN, tail=8),
    replace(FROZEN, tail=32),
    replace(FROZEN, tail=128),
    replace(FROZEN, tail=BLOCK_SIZE),
    replace(FROZEN, zero_run=1),
    replace(FROZEN, least=2),
    replace(FROZEN, limit=8192),
    replace(FROZEN, limit=8192, least_again=2),
    replace(FROZEN, fill=FIRST_FRAMES.fill // 2),
    replace(FROZEN, fill=FIRST_FRAMES.fill * 2),
]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A region's bytes, and what the rule needs to know of its blocks."""

    data: memoryview
    mixed: NDArray[np.uint32]
    zero: NDArray[np.bool_]
    tail: NDArray[np.uint16]
    """Zero bytes at the end of each block."""


def regions_of(path: Path) -> list[Region]:
    """Map an image and look at its blocks."""
    data = memoryview(np.memmap(path, np.uint8, "r"))
    return [examine(data[start : start + REGION_SIZE]) for start in range(0, len(data), REGION_SIZE)]


def examine(data: memoryview) -> Region:
    """Return what the rule needs to know; a short last block is padded."""
    blocks = -(-len(data) // BLOCK_SIZE)
    mixed, flags = np.empty(blocks, np.uint32), np.empty(blocks, np.uint8)
    native.hints(data, mixed, flags)
    tail = np.zeros(blocks, np.uint16)
    for block in np.flatnonzero(flags == 2):
        text = bytes(data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]).ljust(BLOCK_SIZE, b"\0")
        tail[block] = BLOCK_SIZE - len(text.rstrip(b"\0"))
    short = np.flatnonzero(flags == 0)
    ends = np.minimum((short + 1) * BLOCK_SIZE, len(data))
    eight = [not any(data[end - 8 : end]) for end in ends.tolist()]
    tail[short[np.array(eight, np.bool_)]] = 8
    return Region(data, mixed, flags == 1, tail)


def divide(region: Region, p: Parameters, least: int) -> Iterator[tuple[int, bool]]:
    """Yield number of blocks and whether it is a zero record, for every record."""
    rare, frequent = int(2**32 / p.rare), int(2**32 / p.frequent)
    mixed, zero = region.mixed.tolist(), region.zero.tolist()
    tail = (region.tail >= p.tail).tolist()
    edges = np.flatnonzero(np.diff(region.zero, prepend=False, append=False)).reshape(-1, 2)
    runs = dict(edges.tolist())
    start = at = 0
    while at < len(mixed):
        end = runs.get(at, 0) if zero[at] else 0
        if end and (end - at >= p.zero_run or at == start or end == len(mixed)):
            if start < at:
                yield at - start, False
            yield end - at, True
            start = at = end
            continue
        at += 1
        n = at - start
        below = rare if n < p.switch else frequent
        if n == p.longest or (n >= least and (tail[at - 1] or mixed[at - 1] < below)):
            yield n, False
            start = at
    if start < at:
        yield at - start, False


@dataclass(frozen=True, slots=True)
class Table:
    """A region's table as far as it matters here: digest (empty for zeros) and length in bytes of every record."""

    records: list[tuple[bytes, int]]
    data: memoryview

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return sum(1 for digest, _ in self.records if digest)


def table_of(region: Region, p: Parameters) -> Table:
    """Cut a region, again with longer chunks if there are too many, and hash the chunks."""
    runs = list(divide(region, p, p.least))
    if sum(not zero for _, zero in runs) > p.limit:
        runs = list(divide(region, p, p.least_again))
    records, at = [], 0
    for blocks, zero in runs:
        part = region.data[at : at + blocks * BLOCK_SIZE]
        records.append((b"" if zero else blake3(part).digest(), len(part)))
        at += len(part)
    return Table(records, region.data)


@dataclass(slots=True)
class Frame:
    """Chunks that are compressed together: their bytes and digests."""

    parts: list[memoryview] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes before compression."""
        return sum(map(len, self.parts))


def frames(tables: Sequence[Table], known: set[bytes], fill: int) -> Iterator[Frame]:
    """Yield the frames of the chunks that are not ``known``, each chunk once."""
    known = set(known)
    for table in tables:
        frame, at = Frame(), 0
        for digest, length in table.records:
            if digest and digest not in known:
                known.add(digest)
                frame.parts.append(table.data[at : at + length])
                frame.digests.append(digest)
            at += length
            if frame.size >= fill:
                yield frame
                frame = Frame()
        if frame.parts:
            yield frame


def stored_sizes(found: Sequence[Frame], level: int) -> list[int]:
    """Return the size of every frame in a pack."""
    compressor = zstandard.ZstdCompressor(level=level)
    return [min(frame.size, len(compressor.compress(b"".join(frame.parts)))) for frame in found]


def fetched(tables: Sequence[Table], old: Sequence[Table], level: int, fill: int) -> int:
    """Return the bytes that a client with the image of ``old`` fetches if that is the parent."""
    known = {digest for table in old for digest, _ in table.records}
    changed = (
        table for number, table in enumerate(tables) if number >= len(old) or table.records != old[number].records
    )
    return sum(stored_sizes(list(frames(tables, known, fill)), level)) + table_bytes(changed)


def table_bytes(tables: Iterable[Table]) -> int:
    """Return about what these tables take."""
    return sum(RECORD_BYTES * len(table.records) for table in tables)


def seeded(tables: Sequence[Table], old: Sequence[Table], level: int, fill: int) -> int:
    """Return the bytes that a client with the image of ``old`` fetches if the publisher knew nothing of it."""
    known = {digest for table in old for digest, _ in table.records}
    needed = [frame for frame in frames(tables, set(), fill) if not known.issuperset(frame.digests)]
    return sum(stored_sizes(needed, level)) + table_bytes(tables)


def screen(images: list[list[Region]], level: int, p: Parameters) -> list[float]:
    """Return a row of the table; without a REBUILT its figure is zero."""
    old, new, *rebuilt = ([table_of(region, p) for region in image] for image in images)
    lengths = np.array([length for table in new for digest, length in table.records if digest], np.float64)
    shape = [len(lengths) / lengths.sum() * (1 << 30), (lengths**2).sum() / lengths.sum() / 1024]
    figures = [
        fetched(new, [], level, p.fill),
        fetched(new, old, level, p.fill),
        fetched(rebuilt[0], old, level, p.fill) if rebuilt else 0,
        seeded((rebuilt or [new])[0], old, level, p.fill),
    ]
    mean_frame = lengths.sum() / len(list(frames(new, set(), p.fill))) / 1024
    return [*shape, mean_frame, *(figure / MIB for figure in figures)]


def groups(arguments: Sequence[str]) -> Iterator[list[Path]]:
    """Split image names at ``--and``."""
    group: list[Path] = []
    for argument in arguments:
        if argument == "--and":
            yield group
            group = []
        else:
            group.append(Path(argument))
    yield group


def main(arguments: Sequence[str]) -> None:
    """Print one table for each group of images and one of the sums."""
    parser = argparse.ArgumentParser(description="Bytes fetched under other parameters of chunker 1.")
    parser.add_argument("--level", type=int, default=3, help="zstd level")
    options, rest = parser.parse_known_args(arguments)
    sums = np.zeros((len(SETS), 7))
    for group in groups(rest):
        began = time.monotonic()
        images = [regions_of(path) for path in group]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = list(pool.map(partial(screen, images, options.level), SETS))
        print_table(" ".join(map(str, group)), rows)
        print(f"{time.monotonic() - began:.0f} s\n", flush=True)
        sums += rows
    sums[:, :3] /= len(list(groups(rest)))
    print_table("all: means, and sums of bytes", sums.tolist())


def print_table(title: str, rows: Sequence[Sequence[float]]) -> None:
    """Print figures, and those of the bytes relative to the first row."""
    print(title)
    print(f"{'':44} {'chunks':>7} {'write':>5} {'frame':>5}" + "".join(f"{name:>16}" for name in COLUMNS))
    for p, row in zip(SETS, rows, strict=True):
        pairs = zip(row[3:], rows[0][3:], strict=True)
        figures = "".join(f"{value:8.2f} {value / base - 1 if base else 0:+7.2%}" for value, base in pairs)
        print(f"{p!s:44} {row[0]:7.0f} {row[1]:5.0f} {row[2]:5.0f}{figures}")


if __name__ == "__main__":
    main(sys.argv[1:])
