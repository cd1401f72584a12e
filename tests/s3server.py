"""A real S3 server (OpenStack Swift, from its package) on loopback, and a proxy before it that does harm on request."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from servers import Listener, free_port

from trimtransfer.fetch.account import Account, Address
from trimtransfer.fetch.s3 import Signer

KEYS = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
"""As ``swiftserver.py`` has them."""
MISSING = "no Swift (pip install swift, and name that Python by MEDV_TEST_SWIFT), or no extended attributes of files"


@cache
def swift_python() -> str | None:
    """Return a Python that has Swift: the one that MEDV_TEST_SWIFT names, that in the environment's folder ``swift``
    (whose packages then do not mix), or this one. None also where files take no extended attributes, which it needs."""
    with tempfile.TemporaryFile() as file:
        try:
            os.setxattr(file.fileno(), "user.swift.metadata", b"x")
        except (OSError, AttributeError):
            return None
    beside = Path(sys.prefix, "swift/bin/python")
    for python in (os.environ.get("MEDV_TEST_SWIFT"), os.fspath(beside) if beside.exists() else None, sys.executable):
        if python and not subprocess.run([python, "-c", "import swift"], stderr=subprocess.DEVNULL).returncode:
            return python
    return None


class S3Server:
    """Swift with its data in ``directory`` and an empty bucket; a context manager. ``url`` is its endpoint."""

    def __init__(self, directory: Path, bucket: str = "images") -> None:
        self.directory, self.bucket, self.port = directory, bucket, free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the variables by which clients find it."""
        nothing = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
        return {**KEYS, **nothing, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint or self.url}

    def __enter__(self) -> S3Server:
        python = swift_python()
        assert python is not None
        program = Path(__file__).with_name("swiftserver.py")
        command = [python, "-W", "ignore", os.fspath(program), os.fspath(self.directory), str(self.port)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, env=environment
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", (self.directory / "log").read_text()
        self.make_bucket(self.bucket)
        return self

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        signer = Signer(Address(name), Account(self.environment()))
        httpx.put(signer.url, headers=signer.headers("PUT", signer.url), timeout=30).raise_for_status()

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass(frozen=True)
class Harm:
    """What is done to a request instead of passing it on; ``cut``: only so many bytes of its body arrive.

    ``deaf``: it is passed on, but the answer never comes back.
    """

    status: int | None = None
    body: bytes = b""
    cut: int | None = None
    deaf: bool = False


@dataclass(frozen=True)
class Seen:
    """A request that came by."""

    method: str
    target: str
    headers: Mapping[str, str]


class HarmfulProxy(Listener):
    """Passes requests on to ``port``; ``script`` is asked for each (with its number) what to do to it."""

    def __init__(self, port: int, script: Callable[[Seen, int], Harm | None] = lambda *_: None) -> None:
        super().__init__()
        self._port, self.script = port, script
        self.seen: list[Seen] = []
        self._lock = threading.Lock()

    def converse(self, client: socket.socket) -> None:
        """Pass a request on, or do harm to it."""
        head = _head(client)
        if head is None:
            return
        seen, data, rest = head
        with self._lock:
            self.seen.append(seen)
            number = len(self.seen) - 1
        harm = self.script(seen, number) or Harm()
        length = int(seen.headers.get("content-length", "0"))
        if harm.status is not None:
            while len(rest) < length and (more := client.recv(1 << 16)):
                rest += more
            lines = f"HTTP/1.1 {harm.status} X\r\nContent-Length: {len(harm.body)}\r\nConnection: close\r\n\r\n"
            client.sendall(lines.encode() + harm.body)
            return
        self._pass_on(client, data, rest, length, harm)

    def _pass_on(self, client: socket.socket, head: bytes, rest: bytes, length: int, harm: Harm) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            server.sendall(head)
            limit = length if harm.cut is None else min(length, harm.cut)
            sent = 0
            while sent < limit:
                piece = rest or client.recv(1 << 16)
                if not piece:
                    return
                rest = b""
                piece = piece[: limit - sent]
                server.sendall(piece)
                sent += len(piece)
            if harm.cut is not None:
                return
            while piece := server.recv(1 << 16):
                if not harm.deaf:
                    client.sendall(piece)


def _head(client: socket.socket) -> tuple[Seen, bytes, bytes] | None:
    """Return a request, its head to pass on (the connection is to be closed after it), and bytes of its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(1 << 16)
        if not piece:
            return None
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, target, _ = first.split()
    kept = [line for line in lines if not re.match(r"(?i)connection:", line)]
    return Seen(method, target, headers), "\r\n".join([first, *kept, "Connection: close", "", ""]).encode(), rest


def use(monkeypatch: Any, server: S3Server, endpoint: str | None = None) -> None:
    """Let this process find the server."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in server.environment(endpoint).items():
        monkeypatch.setenv(name, value)
