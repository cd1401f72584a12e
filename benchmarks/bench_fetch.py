"""The HTTP store beside curl: the same single ranges from one nginx over TLS on loopback. Prints JSON.

    python benchmarks/bench_fetch.py [--mib 512] [--requests 2000] [--rounds 3]

Two shapes: pack-sized ranges (4,000,000 bytes) and small ones (64 KiB at random places), with 1 and 4 connections.
Both clients are processes of their own that throw the bytes away; what starting them costs (Python and its imports,
curl's start) is measured with a single request and taken off. nginx's log tells that they fetched the same.
``ratio`` is our rate to curl's, ``cpu_ratio`` our CPU seconds to curl's, the best round of each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from measure import run  # noqa: E402
from servers import Authority, Nginx  # noqa: E402

OBJECT = "object.bin"
OBJECT_SIZE = 64_000_000
LARGE = 4_000_000
SMALL = 64 << 10
CLIENT = """
import json, sys
from trimtransfer.fetch.http import HttpStore
from trimtransfer.store import Range
url, ca_cert, connections, ranges = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.load(open(sys.argv[4]))
store = HttpStore(url, ca_cert=ca_cert, connections=connections)
store.fetch((Range(%r, start, length, %d) for start, length in ranges), lambda wanted, data: None)
store.close()
""" % (OBJECT, OBJECT_SIZE)  # noqa: UP031


@dataclass(frozen=True, slots=True)
class Cost:
    """What a client needed: seconds and CPU seconds, its start taken off."""

    seconds: float
    cpu_seconds: float

    def less(self, start: Cost) -> Cost:
        """Return the cost without that of a start."""
        return Cost(max(self.seconds - start.seconds, 1e-3), max(self.cpu_seconds - start.cpu_seconds, 1e-3))


class Bench:
    """One nginx, one object, two clients."""

    def __init__(self, nginx: Nginx, scratch: Path) -> None:
        self._nginx, self._scratch = nginx, scratch

    def ours(self, ranges: list[tuple[int, int]], connections: int) -> Cost:
        """Fetch with the HTTP store."""
        plan = self._scratch / "ranges.json"
        plan.write_text(json.dumps(ranges))
        assert self._nginx.ca_cert is not None
        return self._run(
            [sys.executable, "-c", CLIENT, self._nginx.url, self._nginx.ca_cert, str(connections), str(plan)], ranges
        )

    def curl(self, ranges: list[tuple[int, int]], connections: int) -> Cost:
        """Fetch with curl: one process, kept connections, transfers in parallel where there are several."""
        assert self._nginx.ca_cert is not None
        each = (
            f'url = "{self._nginx.url}/{OBJECT}"\nrange = "{start}-{start + length - 1}"\noutput = "/dev/null"\n'
            f'cacert = "{self._nginx.ca_cert}"\nhttp1.1\nsilent\nfail\n'
            for start, length in ranges
        )
        config = self._scratch / "curl.conf"
        config.write_text("next\n".join(each))
        parallel = ["--parallel", "--parallel-immediate", "--parallel-max", str(connections)] if connections > 1 else []
        return self._run(["curl", "-q", *parallel, "--config", str(config)], ranges)

    def _run(self, command: list[str], ranges: list[tuple[int, int]]) -> Cost:
        self._nginx.forget()
        spent = run(command, log=self._scratch / "client.log")
        served = self._nginx.served(len(ranges))
        wanted = sum(length for _, length in ranges)
        fetched = sum(line.bytes for line in served if line.status == 206)
        if (len(served), fetched) != (len(ranges), wanted):
            raise RuntimeError(
                f"{command[0]}: {len(served)} requests, {fetched:,} bytes; {len(ranges)}, {wanted:,} asked"
            )
        return Cost(spent.wall_seconds, spent.cpu_seconds)

    def row(self, ranges: list[tuple[int, int]], connections: int, rounds: int) -> dict[str, Any]:
        """Let the clients take turns and return their best rounds."""
        clients = {"ours": self.ours, "curl": self.curl}
        start = {name: client(ranges[:1], 1) for name, client in clients.items()}
        costs: dict[str, list[Cost]] = {name: [] for name in clients}
        for _ in range(rounds):
            for name, client in clients.items():
                costs[name].append(client(ranges, connections).less(start[name]))
        seconds = {name: min(cost.seconds for cost in found) for name, found in costs.items()}
        cpu = {name: min(cost.cpu_seconds for cost in found) for name, found in costs.items()}
        total = sum(length for _, length in ranges)
        return {
            "length": ranges[0][1],
            "connections": connections,
            "requests": len(ranges),
            "mb_per_second": {name: round(total / 1e6 / value, 1) for name, value in seconds.items()},
            "requests_per_second": {name: round(len(ranges) / value) for name, value in seconds.items()},
            "cpu_seconds_per_gib": {name: round(value * 2**30 / total, 2) for name, value in cpu.items()},
            "ratio": round(seconds["curl"] / seconds["ours"], 2),
            "cpu_ratio": round(cpu["ours"] / cpu["curl"], 2),
        }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="bytes in pack-sized ranges, for each run")
    parser.add_argument("--requests", type=int, default=2000, help="number of small ranges, for each run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rnd = random.Random(1)
    large = [(number % 16 * LARGE, LARGE) for number in range(max(1, options.mib * 2**20 // LARGE))]
    small = [(rnd.randrange(OBJECT_SIZE - SMALL), SMALL) for _ in range(options.requests)]
    with tempfile.TemporaryDirectory(prefix="bench-fetch-") as directory:
        scratch = Path(directory)
        (scratch / "root").mkdir()
        (scratch / "root" / OBJECT).write_bytes(rnd.randbytes(OBJECT_SIZE))
        with Nginx(scratch / "root", scratch, Authority(scratch / "authority")) as nginx:
            bench = Bench(nginx, scratch)
            rows = [bench.row(ranges, count, options.rounds) for ranges in (large, small) for count in (1, 4)]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
