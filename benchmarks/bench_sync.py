"""Publish and fetch real disk images with this project and its peers, side by side over one nginx.

    python benchmarks/bench_sync.py [--set small|large|desktop] [--peers medv-sync,desync,...] [--cases ...]

The images come from distribution packages (``tests/images.py``). Bytes and requests are what nginx logged while the
client ran, bodies only, everything that a client fetches included; with TLS where the client can be told whom to
trust. CPU seconds, peak memory and wall time are the client's. Every result is compared with the original byte by
byte (with ``--trim``, this project's but for blocks that e2fsprogs calls free, which are zeros). The tables are
Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from compare import same  # noqa: E402
from images import SETS, ImageSet, image_set  # noqa: E402
from measure import Cost, Failed, Nginx  # noqa: E402
from peers import CASES, PEERS, Case, Lab, Peer  # noqa: E402

PUBLISHED = (("old", None), ("new", "old"), ("installed", "new"), ("rebuilt", "old"))
MIB = 1 << 20


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), default="small", help="which images")
    parser.add_argument("--peers", help="names, comma-separated (default: all that are found)")
    parser.add_argument("--cases", help="names, comma-separated (default: all)")
    parser.add_argument("--level", type=int, default=19, help="this project's compression level (default 19)")
    parser.add_argument("--no-delta", action="store_true", help="this project publishes without deltas")
    parser.add_argument("--trim", action="store_true", help="this project publishes with --trim")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a program is stopped")
    parser.add_argument("--scratch", type=Path, help="where to work; kept (default: a temporary directory)")
    parser.add_argument("--json", type=Path, help="write everything that was measured there")
    options = parser.parse_args()
    images = image_set(options.set)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        report = bench(images, scratch, options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(tables(report))


def bench(images: ImageSet, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run every chosen peer through every chosen case; return all figures."""
    served = scratch / "served"
    served.mkdir()
    with Nginx(served, scratch / "nginx") as server:
        lab = Lab(
            images={name: getattr(images, name) for name, _ in PUBLISHED},
            host_tree=images.host, host_tar=make_tar(images.host, scratch / "host.tar"),
            server=server, served=served, scratch=scratch, timeout=options.timeout, level=options.level,
            deltas=not options.no_delta, trim=options.trim,
        )  # fmt: skip
        report: dict[str, Any] = {
            "machine": machine(),
            "images": facts(images),
            "peers": {},
            "publish": [],
            "fetch": [],
        }
        for kind in PEERS:
            if options.peers and kind.name not in options.peers.split(","):
                continue
            if missing := kind.missing():
                report["peers"][kind.name] = {"skipped": f"{', '.join(missing)} not found"}
                say(f"{kind.name}: skipped, {', '.join(missing)} not found")
                continue
            report["peers"][kind.name] = {"version": kind.version(), "tls": kind.tls}
            wanted = [case for case in CASES if not options.cases or case.name in options.cases.split(",")]
            bench_peer(kind(lab), [case for case in wanted if case.name in kind.cases], report)
    return report


def bench_peer(peer: Peer, cases: list[Case], report: dict[str, Any]) -> None:
    """Publish all images with one peer, then run its cases."""
    size = 0
    for image, parent in PUBLISHED:
        row: dict[str, Any] = {"peer": peer.name, "image": image}
        try:
            row |= figures(peer.publish(image, parent))
        except Failed as error:
            row["failed"] = str(error)
        before, (files, size) = size, stored(peer.folder)
        report["publish"].append(row | {"added_bytes": size - before, "files": files})
        say(f"{peer.name}: published {image}: {row}")
    for case in cases:
        report["fetch"].append(row := {"peer": peer.name, "case": case.name, **run_case(peer, case)})
        say(f"{peer.name}: {case.name}: {row}")


def run_case(peer: Peer, case: Case) -> dict[str, Any]:
    """Run one case of one peer; return its figures, or why there are none."""
    lab = peer.lab
    with tempfile.TemporaryDirectory(dir=lab.scratch, prefix="client-") as client:
        output = Path(client, "disk.img")
        try:
            peer.prepare(case, output)
            lab.server.traffic()
            cost = peer.fetch(case, output)
        except Failed as error:
            return {"failed": str(error)}
        traffic = peer.traffic()
        return {
            "bytes": traffic.body_bytes,
            "bytes_with_headers": traffic.sent_bytes,
            "requests": traffic.requests,
            **figures(cost),
            "server_cpu_seconds": round(peer.server_cpu_seconds, 2),
            "identical": same(output, lab.images[case.wanted], trimmed=peer.trims),
        }


def figures(cost: Cost) -> dict[str, float]:
    """Return a cost with few digits."""
    return {
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "wall_seconds": round(cost.wall_seconds, 2),
        "peak_bytes": cost.peak_bytes,
    }


def make_tar(tree: Path, target: Path) -> Path:
    """Pack the host's files into one file, for programs that know files but no trees as seeds."""
    subprocess.run(["tar", "--sort=name", "-C", tree, "-cf", target, "."], check=True)
    return target


def stored(folder: Path) -> tuple[int, int]:
    """Return number and bytes of the files in a folder; a file with two names once, of a sparse one what it takes."""
    files = {status.st_ino: status for path in folder.rglob("*") if path.is_file() for status in (path.stat(),)}
    return len(files), sum(min(status.st_size, status.st_blocks * 512) for status in files.values())


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "commit": commit,
    }


def facts(images: ImageSet) -> dict[str, Any]:
    """Return name, size and bytes in use of the images."""
    used = {name: getattr(images, name).stat().st_blocks * 512 for name, _ in PUBLISHED}
    return {"set": images.name, "size": images.old.stat().st_size, "allocated": used}


def tables(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    names = [case.name for case in CASES]
    lines = ["| MiB fetched (requests) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    costs = ["| CPU-s / MiB of memory / s | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for peer in report["peers"]:
        rows = {row["case"]: row for row in report["fetch"] if row["peer"] == peer}
        if rows:
            lines.append(f"| {peer} | " + " | ".join(_amount(rows.get(name)) for name in names) + " |")
            costs.append(f"| {peer} | " + " | ".join(_effort(rows.get(name)) for name in names) + " |")
    images = [image for image, _ in PUBLISHED]
    added = ["| publish: MiB added (CPU-s) | " + " | ".join(images) + " | files |", "|---" * (len(images) + 2) + "|"]
    for peer in report["peers"]:
        published = [row for row in report["publish"] if row["peer"] == peer]
        if published:
            cells = [f"{row['added_bytes'] / MIB:.1f} ({row.get('cpu_seconds', '-')})" for row in published]
            added.append(f"| {peer} | " + " | ".join(cells) + f" | {published[-1]['files']:,} |")
    skipped = [f"Skipped: {name}: {facts['skipped']}." for name, facts in report["peers"].items() if "skipped" in facts]
    return "\n".join([*lines, "", *costs, "", *added, "", *skipped])


def _amount(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if "failed" in row:
        return "failed"
    wrong = "" if row["identical"] else " WRONG"
    return f"{row['bytes'] / MIB:.2f} ({row['requests']:,}){wrong}"


def _effort(row: dict[str, Any] | None) -> str:
    if row is None or "failed" in row:
        return "-"
    return f"{row['cpu_seconds']:.1f} / {row['peak_bytes'] / MIB:.0f} / {row['wall_seconds']:.1f}"


def say(text: str) -> None:
    """Print what happens to standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
