"""How many bytes of a new version lie in chunks that the old one has: chunker 2 beside FastCDC at an equal mean.

    python benchmarks/bench_shared_bytes.py [--mib 512] [--seeds 2] [--packages DIR] [--images DIR]

Prints a JSON line for each pair of versions and one for the largest differences. Pairs are

- edits of the machine's own /usr (its files one after the other, as in an archive), about one to a MiB: ``insert`` (one
  byte), ``mixed`` (1 to 64 bytes inserted, deleted or overwritten), ``block`` (an aligned 4 KiB block overwritten);
- real releases: the content of every Debian package of which ``--packages`` holds two versions, as archives;
- real images: ``old.img`` with ``new.img`` and with ``rebuilt.img`` of ``--images``, holes and zero blocks left out.
  (``tests/images.py`` makes both directories; without them these rows are missing.)

The peer is the package pyfastcdc with normalisation level 2, the same limits and, for each pair, the nominal size that
gives its chunks of the old version the mean of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray
from pyfastcdc import FastCDC

from trimtransfer.bytechunker import MEAN, Rule, cuts

Array: TypeAlias = NDArray[np.uint8]
Cutter: TypeAlias = Callable[[Array], list[int]]
"""Content -> ends of its chunks."""

CACHE = Path(os.environ.get("TRIMTRANSFER_TEST_CACHE") or Path(__file__).parent.parent / "tests" / ".cache")


def ours(data: Array) -> list[int]:
    """Chunker 2."""
    ends: list[int] = cuts(memoryview(data)).tolist()
    return ends


def peer(size: int) -> Cutter:
    """FastCDC with normalisation level 2 and the limits of chunker 2."""
    rule = Rule(MEAN)
    chunker = FastCDC(size, min_size=rule.min, max_size=rule.max, normalized_chunking=2)
    return lambda data: [chunk.offset + chunk.length for chunk in chunker.cut_buf(memoryview(data))]


def peer_like(ends: list[int], data: Array) -> Cutter:
    """The peer with the nominal size that gives as many chunks as there are ``ends``."""
    low, high = 24 << 10, 128 << 10
    while high - low > 128:
        size = (low + high) // 2
        low, high = (size, high) if len(peer(size)(data)) > len(ends) else (low, size)
    return peer(high)


def digests(data: Array, ends: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Yield digest and length of every chunk."""
    view, start = memoryview(data), 0
    for end in ends:
        yield xxhash.xxh3_128_digest(view[start:end]), end - start
        start = end


def shared(cutter: Cutter, old: Array, new: Array) -> float:
    """Return which part of ``new`` lies in chunks of ``old``, in per cent."""
    known = {digest for digest, _ in digests(old, cutter(old))}
    found = sum(length for digest, length in digests(new, cutter(new)) if digest in known)
    return 100 * found / len(new)


def compare(name: str, old: Array, new: Array) -> dict[str, object]:
    """Measure one pair."""
    ends = ours(old)
    other = peer_like(ends, old)
    values = shared(ours, old, new), shared(other, old, new)
    return {
        "pair": name,
        "MiB": len(new) >> 20,
        "mean": len(old) // len(ends),
        "peer_mean": len(old) // len(other(old)),
        "shared": round(values[0], 2),
        "peer_shared": round(values[1], 2),
        "difference": round(values[0] - values[1], 2),
    }


def files_in_order(root: Path, size: int) -> Array:
    """The files below ``root`` one after the other, ``size`` bytes of them at most."""
    parts, total = [], 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            parts.append(np.frombuffer(path.read_bytes(), np.uint8))
            total += len(parts[-1])
            if total >= size:
                return np.concatenate(parts)[:size]
    return np.concatenate(parts)


def edited(data: Array, kind: str, rng: np.random.Generator) -> Array:
    """A copy with about one edit in each MiB."""
    parts: list[Array] = []
    at = 0
    for place in np.sort(rng.integers(0, len(data) - 8192, len(data) >> 20)).tolist():
        if place < at:
            continue
        count = int(rng.integers(1, 65))
        way = kind if kind != "mixed" else str(rng.choice(["insert", "delete", "overwrite"]))
        if kind == "insert":
            count = 1
        elif kind == "block":
            place, count = -(-place // 4096) * 4096, 4096
        new = rng.integers(0, 256, 0 if way == "delete" else count, dtype=np.uint8)
        parts += [data[at:place], new]
        at = place + (0 if way == "insert" else count)
    return np.concatenate([*parts, data[at:]])


def edits(size: int, seeds: int) -> Iterator[dict[str, object]]:
    """Compare on edited data."""
    data = files_in_order(Path("/usr"), size)
    for seed in range(seeds):
        for kind in ("insert", "mixed", "block"):
            yield compare(f"edit: {kind}, seed {seed}", data, edited(data, kind, np.random.default_rng([seed, size])))


def archive(package: Path) -> Array:
    """The content of a Debian package as an uncompressed archive."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8)


def releases(folder: Path) -> Iterator[dict[str, object]]:
    """Compare on packages of which there are two versions, each and all together."""
    versions: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.deb")):
        versions.setdefault(path.name.split("_")[0], []).append(path)
    pairs = {name: sorted(found, key=_version) for name, found in versions.items() if len(found) == 2}
    contents = {name: [archive(path) for path in pair] for name, pair in pairs.items()}
    for name, (old, new) in contents.items():
        if len(new) >= 16 << 20:
            yield compare(f"release: {name}", old, new)
    if contents:
        yield compare("release: all packages", *(np.concatenate(side) for side in zip(*contents.values(), strict=True)))


def _version(path: Path) -> tuple[object, ...]:
    """Good enough to order two versions of one package: the numbers in its name."""
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in path.name.split("_")[1]).split())


def occupied(image: Path) -> Array:
    """The blocks of an image that are not zero."""
    data = np.fromfile(image, np.uint8)
    blocks = data[: len(data) // 4096 * 4096].reshape(-1, 4096)
    return np.ascontiguousarray(blocks[blocks.view(np.uint64).any(axis=1)]).ravel()


def disk_images(folder: Path) -> Iterator[dict[str, object]]:
    """Compare on real images."""
    if (folder / "old.img").exists():
        old = occupied(folder / "old.img")
        for name in ("new", "rebuilt"):
            yield compare(f"image: {folder.name}, {name}", old, occupied(folder / f"{name}.img"))


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Bytes shared by versions, beside FastCDC; prints JSON lines.")
    parser.add_argument("--mib", type=int, default=512, help="size of the edited data")
    parser.add_argument("--seeds", type=int, default=2, help="how many times each kind of edit is made")
    parser.add_argument("--packages", type=Path, default=CACHE / "packages")
    parser.add_argument("--images", type=Path, default=CACHE / "large")
    options = parser.parse_args(arguments)
    rows = []
    for source in (edits(options.mib << 20, options.seeds), releases(options.packages), disk_images(options.images)):
        for row in source:
            print(json.dumps(row), flush=True)
            rows.append(row)
    summary = {}
    for kind in sorted({str(row["pair"]).split(":")[0] for row in rows}):
        differences = [float(str(row["difference"])) for row in rows if str(row["pair"]).startswith(kind)]
        summary[kind] = {"mean": round(float(np.mean(differences)), 2), "least": min(differences)}
    print(json.dumps({"benchmark": "shared bytes", "difference_in_points": summary, "at_least": -0.5}))


if __name__ == "__main__":
    main(sys.argv[1:])
