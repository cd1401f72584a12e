"""Authorised range requests: nginx that asks the server, nginx that is told by it, and the server alone - beside nginx
that serves the same files without us, in one run. Prints JSON.

    python benchmarks/bench_serve.py [--seconds 3] [--processes 2] [--connections 4]

Plain HTTP on loopback, so that what is compared is not TLS. Clients are processes of their own on raw sockets, which
throw the bytes away and ask for the next range as soon as one is there: single ranges of 64 KiB at random places of
packs, and whole packs of 4,000,000 bytes. Each request shows a token; the packs belong to an image that its user may
read. ``cpu`` are CPU seconds of all server processes for each 1,000 requests. What is called ``asked`` remembers no
decisions, ``asked, remembered`` those of the last ten seconds, as the printed configuration does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from gateways import Front, free_port, packs_of, program  # noqa: E402
from servers import Authority, Nginx, has_nginx  # noqa: E402

from medv.gateway.tokens import TokenFile  # noqa: E402
from trimtransfer.repository.publish import publish  # noqa: E402

SMALL = 64 << 10
_TICKS = os.sysconf("SC_CLK_TCK")
RULES = """
[[rule]]
images = ["alpha"]
users = ["bench"]
[[rule]]
images = ["beta"]
users = ["other"]
[limits]
rate = 0
connections_per_client = 1000
requests_per_client = 1000
[log]
level = "{level}"
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask: its port, and the processes that it consists of."""

    port: int
    processes: tuple[int, ...]


class PlainFront(Front):
    """nginx as it is printed, without TLS and without limits."""

    def _write_config(self) -> None:
        super()._write_config()
        path = self.work / "nginx.conf"
        text = path.read_text().replace(f"listen 127.0.0.1:{self.port} ssl", f"listen 127.0.0.1:{self.port}")
        lines = [line for line in text.splitlines() if "limit_req zone" not in line and "limit_conn medv" not in line]
        path.write_text("\n".join(lines) + "\n")


def ask(port: int, requests: list[bytes], until: float, results: Any, connections: int) -> None:
    """A client process: one thread, several connections, each with one request at a time."""
    import selectors

    selector = selectors.DefaultSelector()
    buffer = bytearray(1 << 20)
    chance = random.Random(os.getpid())
    done = size = 0

    def start(sock: socket.socket) -> None:
        sock.sendall(chance.choice(requests))
        selector.modify(sock, selectors.EVENT_READ, [b"", -1])

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        selector.register(sock, selectors.EVENT_READ, None)
        start(sock)

    for _ in range(connections):
        connect()
    while time.monotonic() < until:
        for key, _ in selector.select(0.2):
            state, got = key.data, key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
            if not got and state == [b"", -1]:  # after as many requests as a server takes on one
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                connect()
                continue
            if not got:
                raise RuntimeError("the server closed the connection")
            if state[1] < 0:
                state[0] += bytes(buffer[:got])
                head, found, rest = state[0].partition(b"\r\n\r\n")
                if not found:
                    continue
                if head.split(b" ", 2)[1] not in (b"200", b"206"):
                    raise RuntimeError(head.decode("latin-1"))
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
                state[1], got = length, len(rest)
            state[1] -= got
            size += got
            if state[1] == 0:
                done += 1
                start(key.fileobj)  # type: ignore[arg-type]
    results.put((done, size))


def measure(target: Target, requests: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    """Let all client processes ask for a while; return rates."""
    results: Any = multiprocessing.Queue()
    before, begun = cpu(target), time.monotonic()
    arguments = (target.port, requests, begun + options.seconds, results, options.connections)
    clients = [multiprocessing.Process(target=ask, args=arguments) for _ in range(options.processes)]
    for client in clients:
        client.start()
    counts = [results.get(timeout=options.seconds + 60) for _ in clients]
    for client in clients:
        client.join()
    seconds = time.monotonic() - begun
    done, size = (sum(column) for column in zip(*counts, strict=True))
    return {
        "requests_per_second": round(done / seconds, 1),
        "mib_per_second": round(size / seconds / (1 << 20), 1),
        "cpu_seconds_per_1000": round((cpu(target) - before) / max(1, done) * 1000, 3),
    }


def cpu(target: Target) -> float:
    """Return the CPU seconds that the processes of a server have taken."""
    total = 0
    for process in target.processes:
        if not Path(f"/proc/{process}").exists():
            continue  # nginx's loader of its cache, which ends after a minute
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


@contextmanager
def serving(root: Path, work: Path, text: str, tokens: Path) -> Iterator[tuple[int, int]]:
    """Run the server as a process; (port, process)."""
    port = free_port()
    config = work / f"{port}.toml"
    config.write_text(text)
    arguments = ["serve", str(root), "--config", str(config), "--listen", f"127.0.0.1:{port}", "--tokens", str(tokens)]
    environment = {
        "MEDV_SERVE_LOG_FILE": str(work / "log.json"),
        "MEDV_SERVE_SERVER_INDEX": str(work / "index.sqlite3"),
    }
    with program(*arguments, **environment) as process:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server does not start: {process.communicate()}") from None
                time.sleep(0.05)
        yield port, process.pid


def targets(stack: ExitStack, root: Path, work: Path, tokens: Path) -> dict[str, Target]:
    """Start all servers."""
    authority = Authority(work / "authority")
    plain = stack.enter_context(Nginx(root, work))
    assert plain._process is not None
    found = {"nginx alone": Target(plain.port, tuple(plain.workers()))}
    for name, kind, proxy in (
        ("asked", "auth-request", "remember = 0\n"),
        ("asked, remembered", "auth-request", ""),
        ("told (X-Accel-Redirect)", "accel", 'accel = "/medv-objects/"\n'),
    ):
        text = RULES.format(level="info") + f'[proxy]\naddresses = ["127.0.0.1"]\n{proxy}'
        port, process = stack.enter_context(serving(root, work, text, tokens))
        front = stack.enter_context(PlainFront(kind, root, work, authority, upstream=f"127.0.0.1:{port}"))
        found[name] = Target(front.port, (*front.workers(), process))
    port, process = stack.enter_context(serving(root, work, RULES.format(level="info"), tokens))
    return {**found, "embedded": Target(port, (process,))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--connections", type=int, default=4)
    options = parser.parse_args()
    if not has_nginx():
        raise SystemExit("nginx is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder, ExitStack() as stack:
        work = Path(folder)
        os.chmod(work, 0o755)
        source = work / "source.img"
        source.write_bytes(random.Random(1).randbytes(64 << 20))
        publish(work / "repository", source, image="alpha", version="1", level=1)
        secret, _ = TokenFile(work / "tokens.json").create(user="bench")
        names = sorted(packs_of(work / "repository", "alpha", "1"))
        head = f"Host: x\r\nAuthorization: Bearer {secret}\r\n"
        chance = random.Random(2)
        sizes = {name: (work / "repository" / name).stat().st_size for name in names}
        small = [
            f"GET /{name} HTTP/1.1\r\n{head}Range: bytes={at}-{at + SMALL - 1}\r\n\r\n".encode()
            for name in names
            for at in (chance.randrange(sizes[name] - SMALL) for _ in range(20) if sizes[name] > SMALL)
        ]
        whole = [f"GET /{name} HTTP/1.1\r\n{head}\r\n".encode() for name in names if sizes[name] > 3_000_000]
        servers = targets(stack, work / "repository", work, work / "tokens.json")
        result = {
            shape: {name: measure(target, requests, options) for name, target in servers.items()}
            for shape, requests in (("64 KiB ranges", small), ("whole packs", whole))
        }
        print(json.dumps({"machine": platform.machine(), "cpus": os.cpu_count(), **vars(options), **result}, indent=1))


if __name__ == "__main__":
    main()
