"""Running programs and knowing what they cost: CPU seconds, peak memory, wall time; and a web server that counts.

Light on purpose: the memory of the process that starts a program counts as that program's until it has started.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class Failed(Exception):
    """A program that ended badly or took too long; the message holds the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a program with its children took: CPU and wall seconds, and the largest resident memory in bytes."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int

    def __add__(self, other: Cost) -> Cost:
        """The cost of one after the other."""
        return Cost(
            self.cpu_seconds + other.cpu_seconds,
            self.wall_seconds + other.wall_seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 3600,
    accepted: Sequence[int] = (0,),
) -> Cost:
    """Run a program to its end, what it prints going to ``log``; return what it cost. Raises :class:`Failed`."""
    started = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": SEARCH_PATH, **(environment or {})},
            start_new_session=True,
        )
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            stop()
            raise
        finally:
            timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if expired.is_set():
        raise Failed(f"{command[0]}: stopped after {timeout:.0f} s")
    if process.returncode not in accepted:
        raise Failed(f"{' '.join(map(str, command))}: exit code {process.returncode}: {log.read_text()[-400:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss * 1024)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a server sent: requests, bytes of bodies, and bytes of bodies and headers together."""

    requests: int
    body_bytes: int
    sent_bytes: int


class Nginx:
    """nginx on loopback for one directory, without and with TLS; its access log tells what a client fetched."""

    def __init__(self, root: Path, scratch: Path) -> None:
        program = shutil.which("nginx", path=SEARCH_PATH)
        if program is None:
            raise Failed("nginx not found: install nginx-light")
        self._scratch, self._position = scratch, 0
        scratch.mkdir(parents=True, exist_ok=True)
        self.log = scratch / "access.log"
        self.ca_file = scratch / "client.pem"  # the name that trustme gives to the authority
        self._make_certificate()
        ports = free_ports(2)
        self.url, self.tls_url = f"http://127.0.0.1:{ports[0]}", f"https://127.0.0.1:{ports[1]}"
        (scratch / "nginx.conf").write_text(self._configuration(root, *ports))
        command = [program, "-p", str(scratch), "-e", str(scratch / "error.log"), "-c", str(scratch / "nginx.conf")]
        self._process = subprocess.Popen(command)
        await_port(ports[1])

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()

    def traffic(self) -> Traffic:
        """Return what was sent since the last call. Waits until the log is at rest."""
        size = -1
        while size != (size := self.log.stat().st_size):
            time.sleep(0.2)
        with open(self.log) as log:
            log.seek(self._position)
            rows = [line.split() for line in log]
            self._position = log.tell()
        return Traffic(len(rows), sum(int(row[1]) for row in rows), sum(int(row[2]) for row in rows))

    def _configuration(self, root: Path, plain: int, tls: int) -> str:
        scratch = self._scratch
        temporary = "".join(
            f"{name}_temp_path {scratch}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
daemon off; pid {scratch}/nginx.pid; worker_processes 1; {"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 256; }}
http {{
    log_format counts '$status $body_bytes_sent $bytes_sent $request_method $uri';
    access_log {self.log} counts; {temporary}
    default_type application/octet-stream; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root {root};
        ssl_certificate {scratch}/server.pem; ssl_certificate_key {scratch}/server.key;
    }}
}}
"""

    def _make_certificate(self) -> None:
        # In a process of its own: what this one has loaded would be counted as memory of every program it starts.
        command = [sys.executable, "-m", "trustme", "-q", "-d", str(self._scratch), "-i", "127.0.0.1", "localhost"]
        subprocess.run(command, check=True)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody uses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def await_port(port: int) -> None:
    """Wait until somebody listens on a port of 127.0.0.1. Raises :class:`Failed` after ten seconds."""
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise Failed(f"nobody listens on port {port}")
