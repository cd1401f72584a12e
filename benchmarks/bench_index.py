"""What indexing many files costs: files and bytes a second, CPU, peak memory against the stated cap. Prints JSON.

    python benchmarks/bench_index.py [--files 500000] [--in /dev/shm] [PATH]...

Without PATH a tree is made in the directory ``--in``: small files of many sizes (median 2 KiB, every hundredth up to
256 KiB), 100 to a folder, and one of 1 GiB. It is indexed twice, each time by a process of its own: everything is new,
then nothing is. ``lookups`` is how many chunks a second are looked up in batches of 4,096, half of them there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import run

from trimtransfer.index.host import MEMORY_CAP, HostIndex

PROGRAM = (sys.executable, "-c", "from trimtransfer.cli.index import index; index()")
LARGE = 1 << 30


def make_tree(root: Path, files: int) -> None:
    """Make the tree. Its content is random, so hardly any chunk occurs twice: the largest index for so many files."""
    rng = np.random.default_rng(1)
    sizes = np.minimum(rng.lognormal(np.log(2048), 1.0, files), 32768).astype(np.int64) + 1
    sizes[::100] = rng.integers(32768, 262144, len(sizes[::100]))
    pool = rng.bytes(1 << 20)
    for n, size in enumerate(sizes.tolist()):
        if n % 100 == 0:
            folder = root / f"{n // 10000:03}" / f"{n // 100:05}"
            folder.mkdir(parents=True)
        at = n * 977 % (len(pool) - size)
        (folder / f"{n}").write_bytes(n.to_bytes(8, "little") + pool[at : at + size - 8])
    with (root / "large").open("wb") as file:
        for _ in range(LARGE >> 20):
            file.write(rng.bytes(1 << 20))
    root.chmod(0o755)


def update(paths: list[str], cache: Path, scratch: Path) -> dict[str, Any]:
    """Run the command once and return what it did and cost."""
    log = scratch / "index.log"
    cost = run([*PROGRAM, *paths, "--cache", cache, "--no-idle", "--no-progress", "--json"], log=log)
    done = json.loads(log.read_text())["update"]
    return {
        "files": done["files"],
        "scanned": done["scanned"],
        "bytes": done["bytes"],
        "rows": done["rows"],
        "seconds": round(cost.wall_seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "files_per_second": round(done["files"] / cost.wall_seconds),
        "files_per_cpu_second": round(done["files"] / cost.cpu_seconds),
        "peak_bytes": cost.peak_bytes,
        "within_cap": cost.peak_bytes <= MEMORY_CAP,
    }


def look_up(host: HostIndex) -> dict[str, Any]:
    """Measure opening the index and looking chunks up in it."""
    started = time.perf_counter()
    with host.seed() as seed:
        opened = time.perf_counter() - started
        rng = np.random.default_rng(2)
        known = seed._indexes[-1].columns
        batches = []
        for _ in range(50):
            chosen = rng.integers(0, len(known), 2048)
            prefixes = np.concatenate([known.prefixes[chosen], rng.integers(0, 2**63, 2048).astype(np.uint64)])
            batches.append((prefixes, np.concatenate([known.lengths[chosen], known.lengths[chosen]])))
        started = time.perf_counter()
        found = sum(int((seed.find(*batch) >= 0).sum()) for batch in batches)
        seconds = time.perf_counter() - started
    return {"open_seconds": round(opened, 3), "lookups": round(50 * 4096 / seconds), "found": found}


def main() -> None:
    """Make the tree, index it twice, print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", metavar="PATH")
    parser.add_argument("--files", type=int, default=500_000)
    parser.add_argument("--in", dest="place", default="/dev/shm" if os.path.isdir("/dev/shm") else None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        scratch = Path(name)
        scratch.chmod(0o755)  # only what every user may read is indexed
        paths = options.paths
        if not paths:
            make_tree(scratch / "tree", options.files)
            paths = [str(scratch / "tree")]
        result: dict[str, Any] = {"memory_cap": MEMORY_CAP}
        for step in ("new", "unchanged"):
            if step == "unchanged":
                time.sleep(2.5)  # what was changed shortly before it was read is read again
                update(paths, scratch, scratch)
            result[step] = update(paths, scratch, scratch)
        host = HostIndex(scratch / "index")
        result["index_bytes"] = sum(path.stat().st_size for path in host.directory.iterdir())
        result["runs"] = host.totals().runs
        result |= look_up(host)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
