"""What it costs to list and to trim the file systems of images. Prints JSON.

    python benchmarks/bench_filesystem.py [IMAGE ...] [--files 100000] [--gib 4]

Without images, one of ext4 with so many small files, half of which are deleted again, is made (mke2fs, debugfs). Each
step is a process of its own: ``list`` reads names and extents, ``check`` all metadata to tell whether it is clean,
``trim`` is what ``publish --trim`` does before it publishes, the proof among it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import SEARCH_PATH, run

LOOK = """
import json, sys
from trimtransfer.filesystem.volumes import find_file_systems
from trimtransfer.image import ImageSource
with ImageSource(sys.argv[2]) as source:
    found = [one for one in find_file_systems(source.read, source.size) if one.file_system is not None]
    if sys.argv[1] == "list":
        report = {one.kind: sum(1 for _ in one.file_system.files()) for one in found}
    else:
        report = {one.kind: one.file_system.state for one in found}
print(json.dumps(report))
"""
TRIM = """
import dataclasses, json, sys
from trimtransfer.image import ImageSource
from trimtransfer.repository.trim import trim_image
from trimtransfer.watch import Watch
with ImageSource(sys.argv[1]) as source:
    _, volumes = trim_image(source, Watch())
print(json.dumps([dataclasses.asdict(one) for one in volumes]))
"""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help="images to look at")
    parser.add_argument("--files", type=int, default=100_000, help="files of the image that is made")
    parser.add_argument("--gib", type=int, default=4, help="its length")
    parser.add_argument("--scratch", type=Path, help="where to work (default: a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-filesystem-", dir=options.scratch) as scratch:
        work = Path(scratch)
        images = options.images or [make(work, options.files, options.gib)]
        print(json.dumps({image.name: bench(image, work) for image in images}, indent=1))


def bench(image: Path, work: Path) -> dict[str, Any]:
    """Return what each step costs."""
    return {
        "list": program([sys.executable, "-c", LOOK, "list", image], work),
        "check": program([sys.executable, "-c", LOOK, "check", image], work),
        "trim": program([sys.executable, "-c", TRIM, image], work),
    }


def program(command: list[Any], work: Path) -> dict[str, Any]:
    """Run a step; return what it found and what it cost."""
    cost = run(command, log=work / "log")
    return {
        "found": json.loads((work / "log").read_text()),
        "seconds": round(cost.wall_seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "peak_bytes": cost.peak_bytes,
    }


def make(work: Path, files: int, gib: int) -> Path:
    """Make an image with twice as many files, and delete every other one."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(100, 20_000, 2 * files).tolist()
    noise = rng.bytes(40_000)
    for number, size in enumerate(sizes):
        place = work / "tree" / f"{number // 100:05}"
        if number % 100 == 0:
            place.mkdir(parents=True)
        (place / f"file {number}").write_bytes(noise[number % 20_000 : number % 20_000 + size])
    image = work / "ext4.img"
    with open(image, "wb") as file:
        file.truncate(gib << 30)
    environment = {**os.environ, "PATH": SEARCH_PATH}
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", work / "tree", image], log=work / "log", environment=environment)
    script = work / "script"
    script.write_text("".join(f'rm "/{n // 100:05}/file {n}"\n' for n in range(0, 2 * files, 2)))
    run(["debugfs", "-w", "-f", script, image], log=work / "log", environment=environment)
    return image


if __name__ == "__main__":
    main()
