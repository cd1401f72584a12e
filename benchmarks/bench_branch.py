"""A branch behind one Squid: what its clients cost the origin, one of them and fifty. Prints JSON.

    python benchmarks/bench_branch.py [--clients 50] [--mib 32] [--together 5]

nginx as the origin and Squid as the cache run the configurations that `medv-repo doctor --example` prints. An image of
``--mib`` MiB is published, and a next version with a tenth of it changed. Twice, each time with an empty cache: one
client, then ``--clients`` of them, ``--together`` at a time, download the first version and update to the second. Bytes
are all that the origin sent, heads of answers included. ``ratio`` is the origin's bytes for all clients to those for
one; ``saved`` how many times that the clients took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from caches import Origin, Squid  # noqa: E402
from servers import Authority  # noqa: E402
from syncing import content, write_sparse  # noqa: E402

from trimtransfer.assembly.sync import sync  # noqa: E402
from trimtransfer.chunk import Kind  # noqa: E402
from trimtransfer.repository.publish import publish  # noqa: E402


def make_images(mebibytes: int) -> list[bytes]:
    """Return two versions of an image that compresses to about a half; a tenth of the second is new, in ten pieces."""
    rng = np.random.default_rng(7)
    size = mebibytes << 20
    first = bytearray(content(rng, size))
    second = first.copy()
    for start in range(0, size, size // 10):
        at = start >> 12 << 12
        piece = content(rng, min(size // 100 >> 12 << 12, size - at))
        second[at : at + len(piece)] = piece
    return [bytes(first), bytes(second)]


def run_clients(squid: Squid, folder: Path, ca_cert: str, image: bytes, *, count: int, together: int) -> int:
    """Sync ``count`` clients to the newest version; return the bytes that they fetched."""

    def client(number: int) -> int:
        output = folder / f"client-{number}.img"
        report = sync(squid.url, "disk", output=output, ca_cert=ca_cert, cache=folder / f"cache-{number}")
        assert output.read_bytes() == image
        return report.network.bytes

    with ThreadPoolExecutor(together) as pool:
        return sum(pool.map(client, range(count)))


def measure(folder: Path, images: list[bytes], *, count: int, together: int) -> list[dict[str, Any]]:
    """Let ``count`` clients download and update, behind an empty cache; return what each step cost."""
    folder.mkdir(mode=0o755)
    authority = Authority(folder / "authority")
    (folder / "squid").mkdir()
    found = []
    with (
        Origin(folder / "repository", folder, authority) as origin,
        Squid(folder / "squid", origin, authority) as squid,
    ):
        for version, image in enumerate(images, 1):
            source = folder / "source.img"
            write_sparse(source, image)
            publish(folder / "repository", source, image="disk", version=str(version), kind=Kind.DISK, level=3)
            origin.forget()
            begun = time.monotonic()
            fetched = run_clients(squid, folder, authority.file, image, count=count, together=together)
            seconds = round(time.monotonic() - begun, 1)
            time.sleep(0.2)  # nginx writes its log after an answer
            served = {"origin_bytes": origin.wire()[0], "origin_requests": len(origin.served())}
            found.append({**served, "clients_bytes": fetched, "seconds": seconds})
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--together", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    images = make_images(arguments.mib)
    with TemporaryDirectory(prefix="trimtransfer-") as directory:
        os.chmod(directory, 0o755)
        one = measure(Path(directory) / "one", images, count=1, together=1)
        all_of_them = measure(Path(directory) / "all", images, count=arguments.clients, together=arguments.together)
    cases = {}
    for name, single, many in zip(("first download", "update"), one, all_of_them, strict=True):
        ratio = round(many["origin_bytes"] / single["origin_bytes"], 4)
        saved = round(many["clients_bytes"] / many["origin_bytes"], 1)
        cases[name] = {"one": single, "all": many, "ratio": ratio, "saved": saved}
    print(json.dumps({"machine": platform.machine(), "clients": arguments.clients, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
