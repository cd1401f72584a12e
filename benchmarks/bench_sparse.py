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
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import run

MIB = 1 << 20
PUBLISH = (sys.executable, "-c", "from trimtransfer.cli.repo import repo; repo()", "publish")
SYNC = (sys.executable, "-c", "from trimtransfer.cli.sync import medv_sync; medv_sync()")


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
    report["publish"] = program([*PUBLISH, scratch / "repository", source, *published("1", options.level)], scratch)
    report["first download"] = synced(scratch)
    write(source, rng, options.changes)
    report["publish update"] = program(
        [*PUBLISH, scratch / "repository", source, *published("2", options.level)], scratch
    )
    report["update"] = synced(scratch)
    report["unchanged"] = synced(scratch)
    report["verify"] = program([*SYNC, "verify", scratch / "copy.img", "--json", "--no-progress"], scratch)
    return report


def write(image: Path, rng: np.random.Generator, count: int) -> None:
    """Write 1 MiB of incompressible content at so many places."""
    with open(image, "r+b") as file:
        for place in rng.choice(image.stat().st_size // MIB, count, replace=False).tolist():
            os.pwrite(file.fileno(), rng.bytes(MIB), place * MIB)


def published(version: str, level: int) -> list[str]:
    """Return the options of a publish."""
    common = ["--image", "huge", "--kind", "disk", "--json", "--no-progress"]
    return ["--version", version, "--level", str(level), *common]


def synced(scratch: Path) -> dict[str, Any]:
    """Sync and return what it cost, with the bytes and requests of its report."""
    command = [*SYNC, scratch / "repository", "huge", "-o", scratch / "copy.img", "--json", "--no-progress"]
    cost = program([*command, "--no-host-index"], scratch)
    report = json.loads((scratch / "log").read_text())
    return {**report["network"], **cost, "wrote": report["wrote"]}


def program(command: list[Any], scratch: Path) -> dict[str, Any]:
    """Run a program and return what it cost."""
    cost = run(command, log=scratch / "log")
    return {
        "seconds": round(cost.wall_seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "peak_bytes": cost.peak_bytes,
    }


if __name__ == "__main__":
    main()
