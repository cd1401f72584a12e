"""Screening of chunker 2's byte map: how often data of many shapes has candidates, against what chance would give.

The byte map is two tables of 16 bytes (``native/search_scan.h``). This script draws such tables from seeds, counts the
candidates that they give on each shape of ``shapes.py``, and prints a JSON line for each: ``score`` is the sum over the
shapes of the squared natural logarithm of count / expected, so too few candidates (then chunks grow to the maximum)
weigh as much as too many. The same is computed for a Gear hash over 64 bytes, for comparison, and for the frozen
tables. On data of few values any fast hash is off by some factor; a good table is one that is not far off on any shape.

    python benchmarks/screen_chunker2.py                    the frozen tables and Gear, shape by shape
    python benchmarks/screen_chunker2.py --draw 40          tables from 40 seeds, best first
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapes import SHAPES, Array

HEADER = Path(__file__).parent.parent / "native" / "search_scan.h"
LEVELS = (123, 125)
"""Of the rules for means of 16 and 64 KiB: one candidate in 4,096 and 16,384 bytes."""


def earlier(values: np.ndarray, k: int) -> np.ndarray:
    """Return the value k positions earlier at every position (zeros before the first)."""
    shifted = np.zeros_like(values)
    shifted[k:] = values[:-k]
    return shifted


def first_step(data: Array) -> Array:
    """Return what the byte map is applied to; it does not depend on the tables."""
    return (data - earlier(data, 1)) ^ (earlier(data, 2) + earlier(data, 3))


def grown(a: Array, byte_map: Array) -> NDArray[np.int8]:
    """Return x of every position, as signed bytes (``native/search.h``)."""
    t = byte_map[a]
    u = t - earlier(t, 5)
    v = u ^ earlier(u, 10)
    w = v + earlier(v, 32)
    return (w ^ earlier(w, 64)).view(np.int8)


def candidates(x: NDArray[np.int8], level: int) -> int:
    """Count positions at which x is above the level, there and 11 positions earlier."""
    marked = x > level
    return int(np.count_nonzero(marked & earlier(marked, 11)))


def gear_candidates(data: Array, bits: int) -> int:
    """Count positions at which the top bits of a 64-byte Gear hash are zero; doubled instead of rolled."""
    h = np.random.default_rng(0).integers(0, 1 << 64, 256, dtype=np.uint64)[data]
    for k in (1, 2, 4, 8, 16, 32):
        h += earlier(h, k) << np.uint64(k)
    return int(np.count_nonzero(h >> np.uint64(64 - bits) == 0))


def tables_from(seed: int) -> tuple[Array, Array]:
    """Draw the two tables of a seed."""
    drawn = np.random.default_rng([64, seed]).integers(0, 256, (2, 16), dtype=np.uint8)
    return drawn[0], drawn[1]


def frozen_tables() -> tuple[Array, Array]:
    """Read the tables that the chunker uses."""
    found = re.findall(r"TT_(?:LOW|HIGH)\[16\] = \{([^}]*)\}", HEADER.read_text())
    low, high = (np.array([int(value, 16) for value in row.split(",") if value.strip()], np.uint8) for row in found)
    return low, high


def combined(low: Array, high: Array) -> Array:
    """Return the byte map of two tables."""
    every = np.arange(256)
    return low[every & 15] ^ high[every >> 4]


def expected(size: int, level: int) -> float:
    """Return the number of candidates that chance gives in ``size`` bytes."""
    return size * ((127 - level) / 256) ** 2


def ratios(steps: dict[str, Array], byte_map: Array) -> dict[str, list[float]]:
    """Return count / expected on every shape, for each of :data:`LEVELS`."""
    found = {}
    for name, a in steps.items():
        x = grown(a, byte_map)
        found[name] = [candidates(x, level) / expected(len(a), level) for level in LEVELS]
    return found


def score(found: Iterable[Iterable[float]]) -> float:
    """Return the sum of squared logarithms; no candidate at all counts as one in a hundred of the expected."""
    return sum(math.log(max(ratio, 0.01)) ** 2 for row in found for ratio in row) / len(LEVELS)


def draws(count: int, steps: dict[str, Array]) -> Iterator[tuple[float, int, dict[str, list[float]]]]:
    """Yield score, seed and ratios of ``count`` seeds."""
    for seed in range(count):
        found = ratios(steps, combined(*tables_from(seed)))
        yield score(found.values()), seed, found


def report(name: str, found: dict[str, list[float]]) -> None:
    """Print one row: the score and what is furthest off."""
    rounded = {shape: [round(ratio, 2) for ratio in row] for shape, row in found.items()}
    print(json.dumps({"tables": name, "score": round(score(found.values()), 3), "ratios": rounded}))


def main() -> None:
    """Read the arguments and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, default=0, metavar="SEEDS", help="screen the tables of this many seeds")
    parser.add_argument("--mib", type=int, default=16, help="MiB of each shape")
    parser.add_argument("--data-seed", type=int, default=1, help="seed of the data")
    arguments = parser.parse_args()
    data = {
        name: shape(arguments.mib << 20, np.random.default_rng(arguments.data_seed)) for name, shape in SHAPES.items()
    }
    steps = {name: first_step(content) for name, content in data.items()}
    if arguments.draw:
        for _, seed, found in sorted(draws(arguments.draw, steps), key=lambda row: row[:2]):
            report(f"seed {seed}", found)
        return
    report("frozen", ratios(steps, combined(*frozen_tables())))
    gear = {
        name: [gear_candidates(content, bits) / (len(content) / 2**bits) for bits in (12, 14)]
        for name, content in data.items()
    }
    report("gear", gear)


if __name__ == "__main__":
    main()
