"""What a small change of a huge image costs: 64 GiB of mostly holes, ten changes of 1 MiB. Prints JSON.

    python benchmarks/bench_sparse.py [--gib 64] [--content-mib 300] [--changes 10] [--level 3]

The image is published and synced from a local directory: the first download, the update, and once more with nothing
changed. Every program is a process of its own; bytes and requests are those of its report. Takes about three times the
content's size on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import PUBLISH, SYNC, run

MIB = 1 << 20


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=64, help="length of the image")
    parser.add_argument("--content-mib", type=int, default=300, help="content, in as many places")
    parser.add_argument("--changes", type=int, default=10, help="changes of 1 MiB each")
    parser.add_argument("--level", type=int, default=3, help="compression level")
    parser.add_argument("--scratch", type=Path, help="where to work (default: a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-sparse-", dir=options.scratch) as scratch:
        print(json.dumps(bench(Path(scratch), options), indent=1))


def bench(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what each step costs."""
    rng = np.random.default_rng(1)
    source = scratch / "source.img"
    with open(source, "wb") as file:
        file.truncate(options.gib << 30)
    report: dict[str, Any] = {}
    write(source, rng, options.content_mib)
    report["publish"] = published(scratch, "1", options.level)
    report["first download"] = synced(scratch)
    write(source, rng, options.changes)
    report["publish update"] = published(scratch, "2", options.level)
    report["update"] = synced(scratch)
    report["unchanged"] = synced(scratch)
    command = [*SYNC, "verify", scratch / "copy.img", "--json", "--no-progress"]
    report["verify"] = run(command, log=scratch / "log").to_dict()
    return report


def write(image: Path, rng: np.random.Generator, count: int) -> None:
    """Write 1 MiB of incompressible content at so many places."""
    with open(image, "r+b") as file:
        for place in rng.choice(image.stat().st_size // MIB, count, replace=False).tolist():
            os.pwrite(file.fileno(), rng.bytes(MIB), place * MIB)


def published(scratch: Path, version: str, level: int) -> dict[str, Any]:
    """Publish the image as the next version and return what that cost."""
    options = ["--image", "huge", "--version", version, "--level", str(level), "--kind", "disk"]
    command = [*PUBLISH, scratch / "repository", scratch / "source.img", *options, "--json", "--no-progress"]
    return run(command, log=scratch / "log").to_dict()


def synced(scratch: Path) -> dict[str, Any]:
    """Sync and return what it cost, with the bytes and requests of its report."""
    command = [*SYNC, scratch / "repository", "huge", "-o", scratch / "copy.img", "--json", "--no-progress"]
    cost = run([*command, "--no-host-index"], log=scratch / "log").to_dict()
    report = json.loads((scratch / "log").read_text())
    return {**report["network"], **cost, "wrote": report["wrote"]}


if __name__ == "__main__":
    main()
