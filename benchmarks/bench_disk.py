"""How fast disk images of each format are read, and what it costs to sync to them. Prints JSON.

    python benchmarks/bench_disk.py [--mib 512] [--gib 8]

Reading: content of ``--mib``, from the page cache, as publishing reads it (``extents`` and ``read_into`` by regions),
the best of three rounds; compressed formats hold content of which a half compresses. Writing: a first sync of a sparse
image of ``--gib`` with as much content, from a local directory, each in a process of its own. Needs qemu-img.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import PUBLISH, SYNC, run

from trimtransfer.disk.source import open_disk

MIB = 1 << 20
REGION = 64 * MIB
PLAIN = {"qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
COMPRESSED = {
    "qcow2 zlib": ["-O", "qcow2", "-c"],
    "qcow2 zstd": ["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
    "vmdk stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="content that is read, and written")
    parser.add_argument("--gib", type=int, default=8, help="length of the image that is synced")
    parser.add_argument("--scratch", type=Path, help="where to work (default: a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-disk-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        report = {"read MB/s": reading(folder, options.mib), "sync": writing(folder, options.mib, options.gib)}
        print(json.dumps(report, indent=1))


def reading(folder: Path, mib: int) -> dict[str, int]:
    """Return MB/s of the guest's bytes for each format."""
    rng = np.random.default_rng(1)
    raw, half = folder / "raw", folder / "half"
    raw.write_bytes(rng.bytes(mib * MIB))
    half.write_bytes(b"".join(rng.bytes(2048) + bytes(range(256)) * 8 for _ in range(mib * MIB // 4096)))
    found = {"raw": speed(raw)}
    for name, qemu in PLAIN.items():
        found[name] = speed(converted(raw, folder / "disk", ["-O", qemu]))
    for name, options in COMPRESSED.items():
        found[name] = speed(converted(half, folder / "disk", options))
    for path in (raw, half, folder / "disk"):
        path.unlink()
    return found


def converted(raw: Path, path: Path, options: list[str]) -> Path:
    """Convert a raw image."""
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, path], check=True)
    return path


def speed(path: Path) -> int:
    """Return the best of three rounds in MB/s."""
    best, buffer = 0.0, memoryview(bytearray(REGION))
    for _ in range(3):
        with open_disk(path) as disk:
            started = time.perf_counter()
            for start in range(0, disk.size, REGION):
                for at, length in disk.extents(start, min(REGION, disk.size - start)):
                    disk.read_into(buffer[at - start : at - start + length], at)
            best = max(best, disk.size / (time.perf_counter() - started) / 1e6)
    return round(best)


def writing(folder: Path, mib: int, gib: int) -> dict[str, Any]:
    """Return seconds, CPU seconds and peak memory of a first sync to each format."""
    rng = np.random.default_rng(2)
    source = folder / "source"
    with open(source, "wb") as file:
        file.truncate(gib << 30)
        for place in rng.choice((gib << 10) // 16, mib // 16, replace=False).tolist():
            file.seek(place * 16 * MIB)
            file.write(rng.bytes(16 * MIB))
    repository = folder / "repository"
    named = ["--image", "disk", "--version", "1", "--kind", "disk", "--level", "1", "-q", "--no-progress"]
    run([*PUBLISH, repository, source, *named], log=folder / "log")
    found = {}
    for format in ("raw", "qcow2", "vhd", "vhdx"):
        command = [*SYNC, repository, "disk", "-o", folder / "copy", "--format", format, "-q", "--no-host-index"]
        cost = run(command, log=folder / "log")
        found[format] = {
            "seconds": round(cost.wall_seconds, 2),
            "cpu_seconds": round(cost.cpu_seconds, 2),
            "peak_bytes": cost.peak_bytes,
        }
        for path in (folder / "copy", *(folder / "copy.medv").iterdir()):
            path.unlink()
    return found


if __name__ == "__main__":
    main()
