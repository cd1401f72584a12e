"""What a sync may cost, by counting: bytes, requests, memory. (CPU time is measured in ``benchmarks/``.)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import MISSING_NGINX, Authority, Nginx, has_nginx
from syncing import content, make_images, publish_all, put, write_sparse

from trimtransfer.assembly.fetchplan import PIECE_BYTES
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.repository.publish import publish

MIB = 1 << 20
HUGE = 64 << 30


class Site:
    """A repository behind nginx with TLS; requests and bytes are what nginx counted."""

    def __init__(self, nginx: Nginx, folder: Path) -> None:
        self.nginx, self.folder = nginx, folder

    def sync(self, image: str, output: Path, **options: Any) -> tuple[Any, list[str], int]:
        """Sync; return the report, the paths that were asked for, and the bytes that came."""
        self.nginx.forget()
        report = sync(
            self.nginx.url, image, output=output, ca_cert=self.nginx.ca_cert, cache=self.folder / "cache", **options
        )
        served = self.nginx.served(report.network.requests)
        assert len(served) == report.network.requests
        assert sum(line.bytes for line in served) == report.network.bytes
        return report, [line.uri for line in served], report.network.bytes


@pytest.fixture
def site(nginx: Nginx, tmp_path: Path) -> Site:
    return Site(nginx, tmp_path)


def test_what_each_case_asks_for(site: Site, rng: np.random.Generator, tmp_path: Path) -> None:
    """Nothing that is here; nothing twice; few requests."""
    images = make_images(rng)
    publish_all(site.nginx.root, images, small_packs=False)
    output = tmp_path / "disk.img"
    report, asked, _ = site.sync("disk", output, version="1")
    assert sum("packs/" in uri for uri in asked) == 1, "a first download of one pack"
    assert len(asked) <= 6, "the manifest, the head for its mirrors, index of host deltas, tables, locations, pack"
    report, asked, size = site.sync("disk", output)
    assert report.content.fetched > 0
    assert len(asked) <= 8, "head, manifest, tables, locations, pack; index of deltas, packs of deltas"
    new = sum(path.stat().st_size for path in site.nginx.root.rglob("packs/*/*.bin"))
    assert size < new / 2
    report, asked, size = site.sync("disk", output)
    assert asked == ["/images/disk/head.json"]
    assert size <= 1024
    os.utime(output)
    report, asked, _ = site.sync("disk", output)
    assert asked == ["/images/disk/head.json"], "the manifest is kept"
    write_sparse(tmp_path / "seed.img", images[1])
    report, asked, _ = site.sync("disk", tmp_path / "other.img", seeds=[tmp_path / "seed.img"])
    assert not [uri for uri in asked if "packs/" in uri or "locations" in uri], "an identical seed fetches no content"
    assert report.content.fetched == 0


def test_equal_content_is_fetched_once(site: Site, rng: np.random.Generator, tmp_path: Path) -> None:
    image = bytearray(3 * MIB)
    piece = content(rng, 200_000)
    for at in range(0, len(image), 256 << 10):
        put(image, at, piece)
    publish_all(site.nginx.root, [bytes(image)], small_packs=False)
    report, _, size = site.sync("disk", tmp_path / "disk.img")
    assert report.content.fetched > 10 * 190_000
    assert size < 300_000
    assert (tmp_path / "disk.img").read_bytes() == image


@pytest.mark.slow
@pytest.mark.parametrize("write", ["new", "in-place"])
def test_a_kill_costs_at_most_24_mib_with_all_connections(
    tmp_path: Path, rng: np.random.Generator, authority: Authority, write: str
) -> None:
    """By the server's count: whole packs in 16 connections at a time."""
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    (tmp_path / "root").mkdir()
    output = tmp_path / "disk.img"
    write_sparse(output, bytes(80 * MIB))
    publish_all(tmp_path / "root", [rng.bytes(80 * MIB)], small_packs=False)
    with Nginx(tmp_path / "root", tmp_path, authority, server="limit_rate 6m;") as nginx:
        command = [sys.executable, "-m", "trimtransfer", "sync", nginx.url, "disk", "-o", output, "--write", write]
        command += ["--connections", "16", "--ca-cert", authority.file, "--cache", tmp_path / "cache"]

        def from_packs() -> int:
            return sum(line.bytes for line in nginx.served() if "/packs/" in line.uri)

        for target in (20 * MIB, 40 * MIB):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while from_packs() < target:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
            process.wait()
        subprocess.run(command, check=True, capture_output=True)
        fetched = from_packs()
    needed = sum(path.stat().st_size for path in (tmp_path / "root").rglob("packs/*/*.bin"))
    print(json.dumps({"needed": needed, "again": fetched - needed}))
    assert fetched - needed <= 2 * 24 * MIB


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_on_a_slow_line_pieces_of_requests_are_kept(
    tmp_path: Path, rng: np.random.Generator, authority: Authority, end: signal.Signals
) -> None:
    """Packs are asked for whole, 64 seconds each; of every connection one piece is lost, and what lies unwritten."""
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    (tmp_path / "root").mkdir()
    publish_all(tmp_path / "root", [rng.bytes(16 * MIB)], small_packs=False)
    command = [sys.executable, "-m", "trimtransfer", "sync", "", "disk", "-o", tmp_path / "disk.img"]
    command += ["--ca-cert", authority.file, "--cache", tmp_path / "cache"]
    with Nginx(tmp_path / "root", tmp_path, authority, server="limit_rate 64k;") as nginx:
        command[4] = nginx.url
        process = subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for line in process.stderr:
            said = json.loads(line)
            if said.get("phase") == "fetch" and said["done"] > 3 * MIB:
                break
        process.send_signal(end)
        process.stderr.read()
        assert process.wait() == (130 if end == signal.SIGINT else -end)
        time.sleep(1)  # the server notes what it sent when it sees that nobody is there
        sent = sum(line.bytes for line in nginx.served() if "/packs/" in line.uri)
    with Nginx(tmp_path / "root", tmp_path, authority) as nginx:
        command[4] = nginx.url
        subprocess.run([*command, "--quiet"], check=True)
        rest = sum(line.bytes for line in nginx.served() if "/packs/" in line.uri)
    again = sent + rest - sum(path.stat().st_size for path in (tmp_path / "root").rglob("packs/*/*.bin"))
    print(f"{again:,} of {sent:,} bytes fetched again")
    assert sent > 2 * MIB
    assert again <= 4 * PIECE_BYTES + MIB < sent


def huge_image(path: Path, rng: np.random.Generator) -> None:
    """Write 64 GiB of holes with a hundred pieces of content."""
    with open(path, "wb") as file:
        file.truncate(HUGE)
        for at in rng.choice(HUGE >> 20, 100, replace=False).tolist():
            os.pwrite(file.fileno(), rng.bytes(100_000), at << 20)


MEASURED = """
import json, re, sys, time
from trimtransfer.assembly.fetchplan import PIECE_BYTES
from trimtransfer.assembly.sync import sync
report = sync(sys.argv[1], "huge", output=sys.argv[2], cache=sys.argv[3], write=sys.argv[4]).to_dict()
# Not ru_maxrss: a process inherits that from the one that started it.
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({**report, "peak": peak, "cpu": time.process_time()}))
"""


def measured(repository: Path, output: Path, write: str) -> dict[str, Any]:
    """Sync in a process of its own and return the report with its peak memory."""
    command = [sys.executable, "-c", MEASURED, str(repository), str(output), str(output.parent / "cache"), write]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("write", ["auto", "new"])
def test_ten_changes_in_64_gib(tmp_path: Path, rng: np.random.Generator, write: str) -> None:
    """Ten changes of 1 MiB: at most 12 MiB fetched in all; peak memory at most 256 MiB, first download included."""
    source, output = tmp_path / "source.img", tmp_path / "huge.img"
    huge_image(source, rng)
    publish(tmp_path / "repository", source, image="huge", version="1", kind=Kind.DISK, level=1)
    first = measured(tmp_path / "repository", output, write)
    assert first["peak"] <= 256 * MIB
    with open(source, "r+b") as file:
        for at in rng.choice(HUGE >> 20, 10, replace=False).tolist():
            os.pwrite(file.fileno(), rng.bytes(MIB), at << 20)
    publish(tmp_path / "repository", source, image="huge", version="2", kind=Kind.DISK, level=1)
    update = measured(tmp_path / "repository", output, write)
    print(json.dumps({name: update[name] for name in ("network", "cpu", "peak", "wrote")}))
    assert update["network"]["bytes"] <= 12 * MIB
    assert update["network"]["requests"] <= 20
    assert update["peak"] <= 256 * MIB
    assert same_sparse(source, output)
    again = measured(tmp_path / "repository", output, write)
    assert (again["wrote"], again["network"]["requests"]) == ("nothing", 1)


def same_sparse(one: Path, other: Path) -> bool:
    """Compare two large files without reading what is a hole in both."""
    with open(one, "rb") as first, open(other, "rb") as second:
        if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
            return False
        for file, opposite in ((first, second), (second, first)):
            for start, end in data_extents(file.fileno()):
                for at in range(start, end, MIB):
                    length = min(MIB, end - at)
                    if os.pread(file.fileno(), length, at) != os.pread(opposite.fileno(), length, at):
                        return False
    return True


def data_extents(descriptor: int) -> list[tuple[int, int]]:
    """Return where a file has data."""
    found, at, size = [], 0, os.fstat(descriptor).st_size
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, at))
    return found
