"""What publishing costs at each compression level: bytes, seconds, CPU seconds, peak memory. Prints JSON.

    python benchmarks/bench_publish.py [--levels 3,12,19] [--set small] [OLD NEW]

OLD is published into an empty repository, then NEW as its next version; without them, the images of a set that the
tests build are used. Every publish is a process of its own. ``rate`` is MB of stored content per CPU second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
PROGRAM = (sys.executable, "-c", "from trimtransfer.cli.repo import repo; repo()")


def publish(repository: Path, file: Path, version: str, level: int, scratch: Path) -> dict[str, Any]:
    """Publish a file as a version and return what it cost."""
    log = scratch / "publish.log"
    options = ("--image", "bench", "--version", version, "--level", str(level), "--json", "--no-progress")
    cost = run([*PROGRAM, "publish", repository, file, *options], log=log)
    report = json.loads(log.read_text())
    content = report["new_bytes"] + report["again_bytes"]
    return {
        "stored_bytes": report["stored_bytes"],
        "metadata_bytes": report["metadata_bytes"],
        "content_bytes": content,
        "seconds": round(cost.wall_seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "rate": round(content / 1e6 / cost.cpu_seconds, 1),
        "peak_bytes": cost.peak_bytes,
    }


def measure(old: Path, new: Path, levels: list[int]) -> list[dict[str, Any]]:
    """Publish both images at each level, each time into an empty repository."""
    rows = []
    for level in levels:
        with tempfile.TemporaryDirectory(prefix="bench-publish-") as directory:
            scratch, repository = Path(directory), Path(directory) / "repository"
            first = publish(repository, old, "1", level, scratch)
            update = publish(repository, new, "2", level, scratch)
        rows.append({"level": level, "first": first, "update": update})
        print(f"level {level}: {first['stored_bytes']:,} and {update['stored_bytes']:,} bytes", file=sys.stderr)
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path, metavar="OLD NEW")
    parser.add_argument("--levels", default="3,6,9,12,15,19")
    parser.add_argument("--set", default="small", choices=("small", "large"))
    options = parser.parse_args()
    if len(options.images) not in (0, 2):
        parser.error("give OLD and NEW, or neither")
    if options.images:
        old, new = options.images
    else:
        from images import image_set

        found = image_set(options.set)
        old, new = found.old, found.new
    rows = measure(old, new, [int(level) for level in options.levels.split(",")])
    machine = {"cpus": len(os.sched_getaffinity(0)), "machine": platform.machine(), "python": platform.python_version()}
    images = {"old_bytes": old.stat().st_size, "new_bytes": new.stat().st_size}
    print(json.dumps({"benchmark": "publish", **machine, **images, "levels": rows}, indent=1))


if __name__ == "__main__":
    main()
