"""Running programs and knowing what they cost: CPU seconds, peak memory, wall time; and a web server that counts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PUBLISH = (sys.executable, "-c", "from trimtransfer.cli.repo import repo; repo()", "publish")
SYNC = (sys.executable, "-c", "from trimtransfer.cli.sync import medv_sync; medv_sync()")
"""The programs of this checkout, whatever is installed."""
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class Failed(Exception):
    """A program that ended badly or took too long; the message holds the end of what it printed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a program with its children took: CPU and wall seconds, and the largest resident memory in bytes."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON, with few digits."""
        seconds = {"seconds": round(self.wall_seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}
        return {**seconds, "peak_bytes": self.peak_bytes}

    def __add__(self, other: Cost) -> Cost:
        """The cost of one after the other."""
        return Cost(
            self.cpu_seconds + other.cpu_seconds,
            self.wall_seconds + other.wall_seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


_LAUNCHER = """
import json, os, subprocess, sys, time
started = time.monotonic()
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
wall = time.monotonic() - started
with open(sys.argv[1], "w") as report:
    json.dump([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024], report)
"""


def run(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None, timeout: float = 3600
) -> Cost:
    """Run a program to its end, what it prints going to ``log``; return what it cost. Raises :class:`Failed`.

    It is started by a small process of its own: to the kernel the memory of whoever starts a program is that program's
    peak until it needs more. So figures below some 10 MiB are the launcher's.
    """
    words = [str(part) for part in command]
    report = log.with_suffix(".json")
    with open(log, "wb") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, report, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": SEARCH_PATH, **(environment or {})},
            start_new_session=True,
        )
        try:
            launcher.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{words[0]}: stopped after {timeout:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()
    if launcher.returncode:
        raise Failed(f"{words[0]} could not be started: {log.read_text(errors='replace')[-400:]}")
    exit_code, cpu, wall, peak = json.loads(report.read_text())
    if exit_code:
        raise Failed(f"{' '.join(words)}: exit code {exit_code}: {log.read_text(errors='replace')[-400:]}")
    return Cost(cpu, wall, peak)


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
        requests = body = sent = 0
        with open(self.log, "rb") as log:
            log.seek(self._position)
            for line in log:
                fields = line.split()
                requests, body, sent = requests + 1, body + int(fields[1]), sent + int(fields[2])
            self._position = log.tell()
        return Traffic(requests, body, sent)

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
    default_type application/octet-stream; sendfile on; keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root {root};
        ssl_certificate {scratch}/server.pem; ssl_certificate_key {scratch}/server.key;
    }}
}}
"""

    def _make_certificate(self) -> None:
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
