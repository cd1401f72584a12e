"""Copy/add deltas of real files beside other programs: bytes, and speed of making and applying. Prints Markdown.

    python benchmarks/bench_delta.py --packages FOLDER [--json FILE] [--large] [NAME]...

FOLDER holds Debian packages, two versions of each (those that the test images are built from: the cache of the tests
has them). Peers run where they are installed: the Python packages bsdiff4, detools and hdiffpatch, the programs xdelta3
and zstd. What a peer does not compress itself, or could compress better, is compressed by zstd -19. Speeds are the
target's bytes by CPU second of one thread; every delta of ours is applied and compared. ``--large`` adds files above
32 MiB, which take minutes; of these ours also shows what windows cost: 16 MiB of the target at a time, and of the base
the same place with 8 MiB to either side.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from measure import run

from trimtransfer.delta import decode, encode

LIBRARIES = "usr/lib/x86_64-linux-gnu"
MODULES = "lib/modules/*/kernel"
WINDOW = 16 << 20
MARGIN = 8 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A pair of files: ``package`` has versions ``old`` and ``new``, and in each ``pattern`` names files to join."""

    name: str
    package: str
    old: str
    new: str
    pattern: str
    large: bool = False
    limit: int = 1 << 40

    def read(self, folder: Path, version: str) -> bytes:
        """Return the files of one version, in the order of their paths, as far as the limit goes."""
        joined = bytearray()
        for path in sorted(unpacked(folder, self.package, version).glob(self.pattern)):
            if path.is_file() and not path.is_symlink() and len(joined) < self.limit:
                joined += path.read_bytes()
        return bytes(joined)


def _kernel(name: str, pattern: str, limit: int = 1 << 40) -> Case:
    return Case(name, "linux-image-6.1.0-", "50", "56", f"{MODULES}/{pattern}", limit=limit)


CASES = [
    _kernel("xfs.ko", "fs/xfs/xfs.ko"),
    _kernel("i915.ko", "drivers/gpu/drm/i915/i915.ko"),
    _kernel("amdgpu.ko", "drivers/gpu/drm/amd/amdgpu/amdgpu.ko"),
    _kernel("net/netfilter/*.ko, joined", "net/netfilter/*.ko", 8 << 20),
    Case("libcrypto.so.3", "libssl3", "3.0.17", "3.0.22", f"{LIBRARIES}/libcrypto.so.3"),
    Case("libssl.so.3", "libssl3", "3.0.17", "3.0.22", f"{LIBRARIES}/libssl.so.3"),
    Case("libpoppler.so", "libpoppler126", "22.12.0-2+deb12u2", "22.12.0-2+deb12u3", f"{LIBRARIES}/libpoppler.so.*"),
    Case("python3.11", "python3.11-minimal", "3.11.2-6+deb12u8", "3.11.2-6+deb12u9", "usr/bin/python3.11"),
    Case("libmergedlo.so", "libreoffice-core", "u13", "u14", "usr/lib/libreoffice/program/libmergedlo.so", True),
    Case("omni.ja", "firefox-esr", "140.", "153.", "usr/lib/firefox-esr/omni.ja", True),
    Case("browser/omni.ja", "firefox-esr", "140.", "153.", "usr/lib/firefox-esr/browser/omni.ja", True),
    Case("libxul.so", "firefox-esr", "140.", "153.", "usr/lib/firefox-esr/libxul.so", True),
]


def unpacked(folder: Path, package: str, version: str) -> Path:
    """Return where the one package of this version is unpacked, after unpacking it if need be."""
    wanted = f"{package}*{version}*.deb" if package.endswith("-") else f"{package}_*{version}*.deb"
    (found,) = folder.glob(wanted)
    target = Path(tempfile.gettempdir(), "bench_delta", found.stem)
    if not (target / "done").exists():
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", found, target], check=True)
        (target / "done").touch()
    return target


Peer = Callable[[bytes, bytes], tuple[int, float]]
"""Makes a delta of base and target; returns its size and the CPU seconds it took."""


def packed(data: bytes) -> int:
    """Return the size of ``data`` compressed by zstd -19."""
    return len(zstandard.ZstdCompressor(level=19).compress(data))


def timed(work: Callable[[], int]) -> tuple[int, float]:
    """Return what ``work`` returns and the CPU seconds of this process that it took."""
    started = time.process_time()
    size = work()
    return size, time.process_time() - started


def alone(base: bytes, target: bytes) -> tuple[int, float]:
    """zstd -19 without a base."""
    return timed(lambda: packed(target))


def bsdiff(base: bytes, target: bytes) -> tuple[int, float]:
    """bsdiff4: control, difference and extra bytes."""
    core = importlib.import_module("bsdiff4.core")
    return timed(lambda: sum(packed(stream) for stream in core.diff(base, target)))


def hdiffpatch(base: bytes, target: bytes) -> tuple[int, float]:
    """HDiffPatch, its delta not compressed by itself."""
    module = importlib.import_module("hdiffpatch")
    return timed(lambda: packed(module.diff(base, target, validate=False)))


def detools(base: bytes, target: bytes) -> tuple[int, float]:
    """detools: sequential patch, not compressed by itself."""
    module = importlib.import_module("detools")

    def work() -> int:
        patch = io.BytesIO()
        module.create_patch(io.BytesIO(base), io.BytesIO(target), patch, compression="none")
        return packed(patch.getvalue())

    return timed(work)


def program(command: Callable[[Path, Path, Path], Sequence[str | Path]]) -> Peer:
    """Return a peer that is a program: ``command`` of the files of base, target and delta."""

    def work(base: bytes, target: bytes) -> tuple[int, float]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "base").write_bytes(base)
            (folder / "target").write_bytes(target)
            cost = run(command(folder / "base", folder / "target", folder / "delta"), log=folder / "log")
            delta = (folder / "delta").read_bytes()
        size, seconds = timed(lambda: min(packed(delta), len(delta)))
        return size, cost.cpu_seconds + seconds

    return work


def xdelta(base: Path, target: Path, delta: Path) -> Sequence[str | Path]:
    """The command of xdelta3, without its own compression."""
    return ["xdelta3", "-e", "-9", "-S", "none", "-B", str(1 << 28), "-s", base, target, delta]


def patch_from(base: Path, target: Path, delta: Path) -> Sequence[str | Path]:
    """The command of zstd with the base as its dictionary."""
    window = max(27, math.ceil(math.log2(base.stat().st_size + target.stat().st_size)))
    return ["zstd", "-q", "-19", f"--long={min(window, 31)}", f"--patch-from={base}", target, "-o", delta]


def peers() -> Iterator[tuple[str, Peer]]:
    """Yield the peers that are there."""
    yield "zstd -19 alone", alone
    if shutil.which("zstd"):
        yield "zstd --patch-from", program(patch_from)
    if shutil.which("xdelta3"):
        yield "xdelta3", program(xdelta)
    for name, peer in (("bsdiff4", bsdiff), ("hdiffpatch", hdiffpatch), ("detools", detools)):
        if importlib.util.find_spec(name):
            yield name, peer


SLOW = {"bsdiff4", "detools"}
"""Not run on large files: their memory is 9 to 17 times the base, and their time many minutes."""


def windows(base: bytes, target: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Cut a large pair into windows."""
    for at in range(0, len(target), WINDOW):
        middle = at * len(base) // len(target)
        yield base[max(0, middle - MARGIN) : middle + WINDOW + MARGIN], target[at : at + WINDOW]


def ours(pairs: Sequence[tuple[bytes, bytes]], level: int) -> dict[str, Any]:
    """Make, apply and compare our deltas of these pairs; apply five times, and take the best."""
    total, stored, making, applying = 0, 0, 0.0, 0.0
    for base, target in pairs:
        started = time.process_time()
        delta = encode(base, target, level=level)
        making += time.process_time() - started
        times = []
        for _ in range(5):
            started = time.process_time()
            made = decode(delta, base, limit=len(target))
            times.append(time.process_time() - started)
        if made != target:
            raise AssertionError("a delta that does not make its target")
        total, stored, applying = total + len(target), stored + len(delta), applying + min(times)
    return {"bytes": stored, "encode": total / making / 1e6, "decode": total / applying / 1e6}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Return everything measured for one pair."""
    base, target = (case.read(folder, version) for version in (case.old, case.new))
    rows: dict[str, Any] = {"ours": ours([(base, target)], 19), "ours, level 3": ours([(base, target)], 3)}
    if case.large:
        rows["ours, windows"] = ours(list(windows(base, target)), 19)
    for name, peer in peers():
        if not (case.large and name in SLOW):
            size, seconds = peer(base, target)
            rows[name] = {"bytes": size, "encode": len(target) / seconds / 1e6}
    print(f"{case.name}: done", file=sys.stderr, flush=True)
    return {"case": case.name, "base": len(base), "target": len(target), "rows": rows}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown: bytes of every program, then ratios and speeds of ours."""
    names = list(dict.fromkeys(name for result in results for name in result["rows"]))
    lines = ["| file | bytes | " + " | ".join(names) + " |", "|---|--:|" + "--:|" * len(names)]
    for result in results:
        sizes = [f"{result['rows'][name]['bytes']:,}" if name in result["rows"] else "" for name in names]
        lines.append(f"| {result['case']} | {result['target']:,} | " + " | ".join(sizes) + " |")
    lines += ["", "| file | of bsdiff4 | of HDiffPatch | of --patch-from | MB/s: make | zstd -19 | apply |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for result in results:
        rows, mine = result["rows"], result["rows"]["ours"]
        ratios = [
            f"{mine['bytes'] / rows[name]['bytes']:.2f}" if name in rows else ""
            for name in ("bsdiff4", "hdiffpatch", "zstd --patch-from")
        ]
        speeds = [f"{mine['encode']:.1f}", f"{rows['zstd -19 alone']['encode']:.1f}", f"{mine['decode']:.0f}"]
        lines.append(f"| {result['case']} | " + " | ".join(ratios + speeds) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Deltas of real files, ours beside others; prints Markdown.")
    parser.add_argument("names", nargs="*", help="cases to run; all by default")
    parser.add_argument("--packages", type=Path, required=True, help="folder of Debian packages")
    parser.add_argument("--large", action="store_true", help="also files above 32 MiB")
    parser.add_argument("--json", type=Path, help="write everything that was measured there")
    options = parser.parse_args(arguments)
    chosen = [
        case for case in CASES if case.name in options.names or (not options.names and case.large <= options.large)
    ]
    results = [measure(case, options.packages) for case in chosen]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
