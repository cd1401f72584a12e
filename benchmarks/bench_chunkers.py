"""How fast the chunkers are on one core, beside reading the memory, BLAKE3 and a peer; prints one JSON object.

    python benchmarks/bench_chunkers.py [--mib 1024] [--rounds 3] [--data FILE]

The data is the machine's own /usr laid out as in a disk image (every file from a 4 KiB border on, padded with zeros),
or FILE, in one large buffer, visited 64 MiB (a region) at a time. The kernels take turns, each on another region, so
that none finds in a cache what it is going to read. Time is the thread's CPU time: other work on the machine hardly
matters, and ratios within one run are what counts. The peer of chunker 2 is FastCDC (the package pyfastcdc), with the
nominal size that makes its mean chunk on this data as long as ours. ``TRIMTRANSFER_SIMD`` sets the instruction set of
the rows that name none.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from pyfastcdc import FastCDC

from trimtransfer import native
from trimtransfer.bytechunker import MEAN, Rule, cuts
from trimtransfer.chunk import BLOCK_SIZE, REGION_SIZE, Kind, chunk_digest, region_digest, region_hasher
from trimtransfer.chunker import ZERO, cut, cut_and_digest

HUGE_PAGE = 2 << 20
READ_LOOP = """
#include <stdint.h>
uint64_t read_all(const uint64_t *p, uint64_t n)
{
    uint64_t bits = 0;
    for (uint64_t i = 0; i < n; i++)
        bits |= p[i];
    return bits;
}
"""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A row: something done to one region, given its number and its bytes."""

    name: str
    run: Callable[[int, memoryview], object]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed of one row as a share of another's; ``at_least`` is the project's own bar, if it has one."""

    row: str
    of: str
    at_least: float | None = None


def reading() -> list[Kernel]:
    """The physical limit: a loop that reads every byte and does next to nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "read.c"), Path(folder, "read.so")
        source.write_text(READ_LOOP)
        subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
        read_all = ctypes.CDLL(str(library)).read_all
    read_all.argtypes, read_all.restype = [ctypes.c_void_p, ctypes.c_uint64], ctypes.c_uint64
    return [Kernel("read", lambda _, view: read_all(np.frombuffer(view, np.uint8).ctypes.data, len(view) // 8))]


def hashing() -> list[Kernel]:
    """BLAKE3 over whole regions, one thread."""
    return [Kernel("blake3", lambda _, view: blake3(view).digest())]


def disk(regions: Sequence[memoryview]) -> list[Kernel]:
    """Chunker 1 on every instruction set, and together with the digests of its chunks."""
    lists = [cut(Kind.DISK, region).tolist() for region in regions]
    return [
        *(Kernel(f"chunker 1, {path.name.lower()}", on(path, cut_disk)) for path in native.available()),
        Kernel("chunker 1", lambda _, view: cut(Kind.DISK, view)),
        Kernel("blake3 of chunker 1's chunks", lambda number, view: digest_list(view, lists[number])),
        Kernel("chunker 1 + blake3 of its chunks", lambda _, view: cut_and_digest(Kind.DISK, view)),
        Kernel("... one after the other", lambda _, view: digest_list(view, cut(Kind.DISK, view).tolist())),
        Kernel(
            "blake3 of regions and chunks", lambda number, view: (region_digest(view), digest_list(view, lists[number]))
        ),
        Kernel(
            "chunker 1 + blake3 of regions and chunks",
            lambda _, view: cut_and_digest(Kind.DISK, view, content=region_hasher()),
        ),
    ]


def cut_disk(view: memoryview) -> object:
    """Chunker 1."""
    return cut(Kind.DISK, view)


def on(path: native.Simd, function: Callable[[memoryview], object]) -> Callable[[int, memoryview], object]:
    """A function on one instruction set."""

    def run(_: int, view: memoryview) -> object:
        before = native.selected()
        native.select(path)
        result = function(view)
        native.select(before)
        return result

    return run


def digest_list(view: memoryview, lengths: list[int]) -> list[bytes]:
    """The digests of a known list of chunks, zero records left out."""
    found, at = [], 0
    for length in lengths:
        end = at + (length & ~int(ZERO))
        if length == end - at:
            found.append(chunk_digest(view[at:end]))
        at = end
    return found


CALL = 16 << 20
"""Bytes in one call of the byte-wise chunkers."""


def byte_wise(regions: Sequence[memoryview], peer_size: int) -> list[Kernel]:
    """Chunker 2 on every instruction set, the peer at the same mean, and chunker 2 with the digests of its chunks."""
    lists = [cut(Kind.BYTES, region).tolist() for region in regions]
    return [
        *(Kernel(f"chunker 2, {path.name.lower()}", on(path, search)) for path in native.available()),
        Kernel("chunker 2", lambda _, view: search(view)),
        Kernel("pyfastcdc", lambda _, view: peer_mean([view], peer_size)),
        Kernel("blake3 of chunker 2's chunks", lambda number, view: digest_list(view, lists[number])),
        Kernel("chunker 2 + blake3 of its chunks", lambda _, view: cut_and_digest(Kind.BYTES, view)),
        Kernel("... after the whole search", lambda _, view: digest_list(view, cut(Kind.BYTES, view).tolist())),
    ]


def search(view: memoryview) -> int:
    """Chunker 2, one call after the other; returns the number of chunks."""
    return sum(len(cuts(view[start : start + CALL])) for start in range(0, len(view), CALL))


def peer_mean(regions: Sequence[memoryview], size: int) -> float:
    """FastCDC with normalisation level 2 and the limits of chunker 2; returns the realised mean."""
    rule = Rule(MEAN)
    chunker = FastCDC(size, min_size=rule.min, max_size=rule.max, normalized_chunking=2)
    calls = [region[start : start + CALL] for region in regions for start in range(0, len(region), CALL)]
    return sum(map(len, calls)) / sum(1 for call in calls for _ in chunker.cut_buf(call))


def peer_size_for(regions: Sequence[memoryview], mean: float) -> int:
    """The nominal size with which the peer's realised mean is ``mean``."""
    low, high = 32 << 10, 96 << 10
    while high - low > 256:
        size = (low + high) // 2
        low, high = (size, high) if peer_mean(regions, size) < mean else (low, size)
    return high


BAR = {native.Simd.AVX2: 3.5, native.Simd.AVX512: 4.5}
RATIOS = [
    *(Ratio(f"chunker 1, {path.name.lower()}", "blake3", 2.0) for path in native.available() if path > 0),
    Ratio("chunker 1", "read"),
    Ratio("chunker 1", "blake3", 2.0),
    Ratio("chunker 1 + blake3 of its chunks", "blake3 of chunker 1's chunks", 0.75),
    Ratio("... one after the other", "blake3 of chunker 1's chunks"),
    Ratio("chunker 1 + blake3 of regions and chunks", "blake3 of regions and chunks"),
    *(Ratio(f"chunker 2, {path.name.lower()}", "pyfastcdc", BAR.get(path)) for path in native.available()),
    Ratio("chunker 2", "read"),
    Ratio("chunker 2 + blake3 of its chunks", "blake3 of chunker 2's chunks", 0.75),
    Ratio("... after the whole search", "blake3 of chunker 2's chunks"),
]


def disk_like(root: Path, size: int) -> Iterator[bytes]:
    """The files below ``root`` as a disk image holds them, until there are ``size`` bytes."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            data = path.read_bytes()
            yield data + bytes(-len(data) % BLOCK_SIZE)
            size -= len(data)
            if size <= 0:
                return


def fill(source: Path, size: int) -> list[memoryview]:
    """Put ``source``, a file or a directory, into a buffer on huge pages and return its regions."""
    # Private: shared memory would not get huge pages.
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(memory, np.uint8)
    buffer = buffer[-buffer.ctypes.data % HUGE_PAGE :][:size]
    at = 0
    for data in disk_like(source, size) if source.is_dir() else [source.read_bytes()]:
        part = np.frombuffer(data, np.uint8)[: size - at]
        buffer[at : at + len(part)] = part
        at += len(part)
    return [memoryview(buffer)[start : start + REGION_SIZE] for start in range(0, at - REGION_SIZE + 1, REGION_SIZE)]


def measure(kernels: Sequence[Kernel], regions: Sequence[memoryview], rounds: int) -> dict[str, list[float]]:
    """Return GB per CPU second of every kernel on every region."""
    speeds: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    for step in range(rounds * len(regions)):
        for turn, kernel in enumerate(kernels):
            number = (step + 3 * turn) % len(regions)
            before = time.thread_time()
            kernel.run(number, regions[number])
            speeds[kernel.name].append(len(regions[number]) / (time.thread_time() - before) / 1e9)
    return speeds


def report(speeds: dict[str, list[float]], ratios: Sequence[Ratio]) -> dict[str, Any]:
    """Medians, best tenths, and ratios of medians."""
    median = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "rows": [
            {
                "name": name,
                "GB_per_s": round(median[name], 2),
                "best_tenth_GB_per_s": round(float(np.percentile(values, 90)), 2),
            }
            for name, values in speeds.items()
        ],
        "ratios": [
            {"row": r.row, "of": r.of, "ratio": round(median[r.row] / median[r.of], 3), "at_least": r.at_least}
            for r in ratios
        ],
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "processor": processor[0].split(": ")[1] if processor else platform.machine(),
        "simd": native.selected().name.lower(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of the chunkers; prints JSON.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the data")
    parser.add_argument("--rounds", type=int, default=3, help="how often every kernel sees every region")
    parser.add_argument("--data", type=Path, default=Path("/usr"), help="a file, or a directory of files")
    options = parser.parse_args(arguments)
    regions = fill(options.data, options.mib << 20)
    if not regions:
        parser.error(f"{options.data} holds less than {REGION_SIZE >> 20} MiB")
    mean = len(regions) * REGION_SIZE / sum(map(search, regions))
    peer_size = peer_size_for(regions, mean)
    kernels = [*reading(), *hashing(), *disk(regions), *byte_wise(regions, peer_size)]
    lengths = np.concatenate([cut(Kind.DISK, region) for region in regions])
    result = {"benchmark": "chunkers", "machine": machine(), "data_MiB": len(regions) * REGION_SIZE >> 20}
    result["mean_chunk"] = {"chunker 1": int(lengths[lengths < ZERO].mean()), "chunker 2": int(mean)}
    result["mean_chunk"]["pyfastcdc"] = int(peer_mean(regions, peer_size))
    result |= report(measure(kernels, regions, options.rounds), RATIOS)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
