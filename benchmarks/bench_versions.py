"""What the number of versions costs: publishing and syncing version 200 beside version 10; 1,000 versions listed.

    python benchmarks/bench_versions.py [--versions 200] [--catalogue 1000] [--content 1024]

The image has 8 regions with so many KiB of content each; every version changes a tenth of two of them. Each figure is
the median of five neighbouring versions; deltas are made of these alone. ``update`` is a client that has the version
before, ``first`` one that has nothing. Of the catalogue it is told what a client reads to learn which version its
channel stands for, and what moving the channel takes. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtransfer.assembly.sync import sync
from trimtransfer.catalogue import Catalogue, Entry
from trimtransfer.chunk import REGION_SIZE, Kind
from trimtransfer.names import catalogue_name
from trimtransfer.repository.catalogues import current, read_catalogue, read_channel_head, save
from trimtransfer.repository.publish import publish
from trimtransfer.repository.versioning import point_channel
from trimtransfer.store import DirectoryStore

REGIONS = 8
NEIGHBOURS = 5


def costs(work: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, dict[str, float]]:
    """Do it; return what it returned, and its seconds and CPU seconds."""
    wall, cpu = time.monotonic(), time.process_time()
    result = work(*arguments, **options)
    return result, {"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}


class Image:
    """An image file that changes from version to version."""

    def __init__(self, path: Path, size: int, seed: int) -> None:
        """``size`` in bytes is that of a region's content."""
        self._path, self._size, self._random = path, size, random.Random(seed)
        with open(path, "wb") as file:
            file.truncate(REGIONS * REGION_SIZE)
            for region in range(REGIONS):
                file.seek(region * REGION_SIZE)
                file.write(self._content(size))

    def change(self) -> None:
        """Write other content at two places."""
        size = self._size // 10
        with open(self._path, "r+b") as file:
            for region in self._random.sample(range(REGIONS), 2):
                file.seek(region * REGION_SIZE + self._random.randrange((self._size - size) >> 12) * 4096)
                file.write(self._content(size))

    def _content(self, size: int) -> bytes:
        """Return bytes of which half compresses away."""
        return b"".join(self._random.randbytes(512) + b"x" * 512 for _ in range(size >> 10))


def measure(scratch: Path, count: int, content: int, marks: list[int]) -> dict[int, dict[str, dict[str, float]]]:
    """Publish versions; sync those around each mark, and return the medians."""
    image, repository = Image(scratch / "image", content, 1), scratch / "repository"
    options: dict[str, Any] = {"image": "bench", "level": 3, "kind": Kind.DISK}
    rows: dict[int, list[dict[str, dict[str, float]]]] = {mark: [] for mark in marks}
    for number in range(1, count + 1):
        image.change()
        near = [mark for mark in marks if mark - NEIGHBOURS <= number <= mark]
        options |= {"version": f"v{number}", "deltas": bool(near)}
        report, cost = costs(publish, repository, scratch / "image", **options)
        deltas = sum(made.stored_bytes for made in report.deltas)
        cost["bytes"] = report.stored_bytes + report.metadata_bytes + deltas
        for mark in near:
            update, first = client(repository, scratch / "copy.img"), client(repository, scratch / f"{number}.img")
            (scratch / f"{number}.img").unlink()
            if number > mark - NEIGHBOURS:
                rows[mark].append({"publish": cost, "update": update, "first": first})
        print(f"\r{number} of {count}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {mark: medians(found) for mark, found in rows.items()}


def client(repository: Path, output: Path) -> dict[str, float]:
    """Sync the newest version and return what that cost."""
    report, cost = costs(sync, repository, "bench", output=output, cache=output.parent / "cache")
    return {**cost, "bytes": report.network.bytes, "requests": report.network.requests}


def medians(rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure."""
    return {
        what: {name: round(statistics.median(row[what][name] for row in rows), 3) for name in rows[0][what]}
        for what in rows[0]
    }


def ratios(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return how many times the one figures the others are."""
    return {
        what: {name: round(other[what][name] / value, 3) for name, value in figures.items() if value}
        for what, figures in one.items()
    }


def catalogue(repository: Path, count: int) -> dict[str, Any]:
    """Return what a catalogue of so many versions costs a client, and the publisher of one more."""
    store = DirectoryStore(repository)
    there = current(store, "bench")
    newest = there.versions[-1]
    rows = tuple(
        Entry(f"old-{number}", number, f"old-{number - 1}", bytes(32), 10_000, newest.published)
        for number in range(1, count)
    )
    last = Entry(newest.version, count, "", newest.manifest_digest, newest.manifest_length, newest.published)
    save(store, Catalogue("bench", count, (*rows, last)))
    _, pointing = costs(point_channel, repository, "bench", "live", version=newest.version)
    client = DirectoryStore(repository)
    _, learning = costs(lambda: [read_channel_head(client, "bench", "live") for _ in range(100)])
    _, listing = costs(read_catalogue, store, "bench")
    return {
        "versions": count,
        "catalogue_bytes": store.size(catalogue_name("bench")),
        "client_bytes": client.stats.bytes // 100,
        "client_requests": client.stats.requests // 100,
        "client_seconds": round(learning["seconds"] / 100, 5),
        "catalogue_seconds": round(listing["seconds"], 4),
        "point_seconds": round(pointing["seconds"], 3),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--catalogue", type=int, default=1000)
    parser.add_argument("--content", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-versions-") as directory:
        scratch = Path(directory)
        found = measure(scratch, options.versions, options.content << 10, [10, options.versions])
        listed = catalogue(scratch / "repository", options.catalogue)
    machine = {"cpus": len(os.sched_getaffinity(0)), "machine": platform.machine(), "python": platform.python_version()}
    times = ratios(found[10], found[options.versions])
    print(json.dumps({"benchmark": "versions", **machine, "at": found, "ratios": times, "catalogue": listed}, indent=1))


if __name__ == "__main__":
    main()
