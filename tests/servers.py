"""Real servers for tests: nginx over TLS, and a bad server that does to each request what a script says.

Both listen on free ports of the loopback interface, with certificates of an authority made for the test run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trustme

HOST = "localhost"


class Authority:
    """A certificate authority of the test's own; ``file`` is its certificate, for ``ca_cert=`` or SSL_CERT_FILE."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.file = str(directory / "ca.pem")
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, **options: Any) -> tuple[str, str]:
        """Return the files of a certificate (chain) and its key for host names; ``not_after=`` passes through."""
        certificate = self._authority.issue_cert(*(names or (HOST, "127.0.0.1")), **options)
        stem = self.directory / f"server-{time.monotonic_ns()}"
        chain, key = f"{stem}.pem", f"{stem}.key"
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(chain, append=number > 0)
        certificate.private_key_pem.write_to_path(key)
        return chain, key

    def context(self, *names: str, **options: Any) -> ssl.SSLContext:
        """Return a server-side TLS context with such a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(*names, **options))
        return context


# ---- nginx

MISSING_NGINX = "nginx is not installed (Debian: apt install nginx-light); CI installs it"

_CONFIG = """
daemon off;
{user}
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
    uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
    log_format counted '$status $body_bytes_sent $request_method $request_uri "$http_range" "$http_user_agent"';
    access_log {work}/access.log counted;
    types {{ }}
    default_type application/octet-stream;
    keepalive_requests 100000;
    sendfile on;
    {http}
    server {{
        listen 127.0.0.1:{port}{ssl};
        {tls}
        root {root};
        {server}
    }}
}}
"""


@dataclass(frozen=True)
class Served:
    """A line of the access log: what one request cost."""

    status: int
    bytes: int
    method: str
    uri: str
    range: str
    agent: str


class Nginx:
    """nginx serving the directory ``root``; a context manager.

    ``http`` and ``server`` are further lines of its configuration. Without ``authority`` it speaks plain HTTP.
    """

    def __init__(
        self, root: Path, work: Path, authority: Authority | None = None, *, http: str = "", server: str = ""
    ) -> None:
        self.work = work / f"nginx-{time.monotonic_ns()}"
        self.work.mkdir(parents=True)
        self.root, self._extra, self._authority = root, (http, server), authority
        self.ca_cert = authority.file if authority else None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The URL of ``root``, without a slash at its end."""
        return f"{'https' if self._authority else 'http'}://{HOST}:{self.port}"

    def __enter__(self) -> Nginx:
        # The port is free when it is chosen; should somebody else take it first, another one is chosen.
        for _ in range(5):
            self.port = free_port()
            self._write_config()
            command = ["nginx", "-p", str(self.work), "-e", str(self.work / "error.log"), "-c", "nginx.conf"]
            self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
            if self._is_up():
                return self
            self.stop()
        raise RuntimeError(f"nginx does not start: {(self.work / 'error.log').read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.work, ignore_errors=True)

    def stop(self) -> None:
        """Stop it at once."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def workers(self) -> list[int]:
        """Return the process numbers of its workers."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(number) for number in children.read_text().split()]

    def pause(self) -> None:
        """Let it fall silent: connections stay, nothing is answered."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def served(self, requests: int | None = None) -> list[Served]:
        """Return the access log; with ``requests`` wait until it has so many lines: it is written after the answer."""
        deadline = time.monotonic() + 10
        while True:
            lines = self._parse()
            if requests is None or len(lines) >= requests or time.monotonic() > deadline:
                return lines
            time.sleep(0.01)

    def forget(self) -> None:
        """Empty the access log."""
        os.truncate(self.work / "access.log", 0)

    def _parse(self) -> list[Served]:
        with contextlib.suppress(FileNotFoundError):
            pattern = re.compile(r'(\d+) (\d+) (\S+) (\S+) "(.*)" "(.*)"')
            found = map(pattern.fullmatch, (self.work / "access.log").read_text().splitlines())
            return [Served(int(m[1]), int(m[2]), *m.groups()[2:]) for m in found if m]
        return []

    def _write_config(self) -> None:
        tls = ""
        if self._authority:
            chain, key = self._authority.issue()
            tls = f"ssl_certificate {chain}; ssl_certificate_key {key};"
        config = _CONFIG.format(
            user="user root;" if os.geteuid() == 0 else "",
            work=self.work,
            port=self.port,
            root=self.root,
            ssl=" ssl" if self._authority else "",
            tls=tls,
            http=self._extra[0],
            server=self._extra[1],
        )
        (self.work / "nginx.conf").write_text(config)

    def _is_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self._process.poll() is None
            time.sleep(0.01)
        return False


def has_nginx() -> bool:
    """Tell whether nginx can be started here."""
    return shutil.which("nginx") is not None


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- the bad server


@dataclass(frozen=True)
class Request:
    """A request as it arrived: every header line, in order, names in lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    connection: int

    def all(self, name: str) -> list[str]:
        """Return the values of all header lines of that name."""
        return [value for known, value in self.headers if known == name]

    def get(self, name: str) -> str | None:
        """Return the value of the only header line of that name, or None."""
        values = self.all(name)
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte asked for, or None."""
        value = self.get("range")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", value) if value else None
        return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class Fault:
    """What is done to one request; the default is a right answer. Seconds and bytes."""

    status: int | None = None
    """Status instead of the right one."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Header lines to set, or (None) to leave out."""
    body: bytes | None = None
    """Body instead of the right one; Content-Length follows it unless ``headers`` say otherwise."""
    ignore_range: bool = False
    """Answer 200 with the whole object."""
    mask: int = 0
    """Send every byte of the body changed by this (exclusive or)."""
    shift: int = 0
    """Send bytes from so far behind the right place, Content-Range included."""
    chunked: bool = False
    """Chunked transfer coding, without Content-Length."""
    cut: int | None = None
    """Send only so many bytes of the body, then close."""
    reset: bool = False
    """Close with a reset: after ``cut`` bytes of the body, or without an answer."""
    stall: int | None = None
    """Send only so many bytes of the body, then nothing more (-1: not even the head)."""
    drip: float | None = None
    """Send the body byte by byte, so many seconds apart."""
    drip_head: float | None = None
    """Send the head byte by byte."""
    extra: bytes = b""
    """Bytes sent after the body, beyond Content-Length."""
    longer: int = 0
    """So many bytes of the object beyond the asked ones, Content-Length included, Content-Range not."""
    raw: bytes | None = None
    """Sent instead of an answer, then the connection is closed."""
    endless: bytes | None = None
    """Sent again and again instead of an answer, until the client goes."""
    delay: float = 0.0
    """Wait before answering."""


Script = Callable[[Request, int], Fault | None]


class BadServer:
    """A server of ``objects`` (target without slash -> bytes) on raw sockets; a context manager.

    ``script`` is asked for every request with its number, from 0: what it returns is done. A list is used up request
    by request; afterwards all goes right. ``requests`` is what arrived.
    """

    def __init__(
        self,
        objects: Mapping[str, bytes],
        script: Script | list[Fault | None] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.objects = dict(objects)
        self.requests: list[Request] = []
        self.connections = 0
        self._script: Script = _list_script(script) if isinstance(script, list) else script or (lambda *_: None)
        self._tls = tls
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self._address = address
        self._listener = socket.create_server((address, port), backlog=64)
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The URL below which the objects are."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    def __enter__(self) -> BadServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        # A blocked accept() does not see the listener being closed; a last connection wakes it.
        with contextlib.suppress(OSError), socket.create_connection((self._address, self.port), 1):
            pass
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open.add(sock)
            threading.Thread(target=self._converse, args=(sock, number), daemon=True).start()

    def _converse(self, raw: socket.socket, number: int) -> None:
        sock = raw
        with contextlib.suppress(OSError, ssl.SSLError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
            stream = sock.makefile("rb")
            while (request := _read_request(stream, number)) is not None:
                with self._lock:
                    self.requests.append(request)
                    turn = len(self.requests) - 1
                fault = self._script(request, turn) or Fault()
                if not _Reply(sock, request, fault, self.objects, self._closing).send():
                    break
            stream.close()
        with self._lock:
            self._open.discard(raw)
        sock.close()


class _Reply:
    """One answer, with its fault."""

    def __init__(
        self,
        sock: socket.socket,
        request: Request,
        fault: Fault,
        objects: Mapping[str, bytes],
        closing: threading.Event,
    ) -> None:
        self._sock, self._request, self._fault = sock, request, fault
        self._closing = closing
        self._object = objects.get(request.target.partition("?")[0].lstrip("/"))

    def send(self) -> bool:
        """Send it; tell whether the connection goes on."""
        fault = self._fault
        self._closing.wait(fault.delay)
        if fault.endless is not None:
            while not self._closing.is_set():
                self._sock.sendall(fault.endless)
        if fault.raw is not None:
            self._sock.sendall(fault.raw)
            return False
        if fault.reset and fault.cut is None:
            return self._reset()
        if fault.stall == -1:
            self._closing.wait()
            return False
        status, headers, body = self._compose()
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        self._drip(head.encode("latin-1"), fault.drip_head)
        return self._send_body(body)

    def _compose(self) -> tuple[int, dict[str, str], bytes]:
        fault, data, asked = self._fault, self._object, self._request.range
        headers: dict[str, str] = {"Content-Type": "application/octet-stream"}
        if self._request.method == "BAD":
            status, body = 400, b"what?"
        elif data is None:
            status, body = 404, b"no such object"
        elif asked is None or fault.ignore_range:
            status, body = 200, data
        elif asked[0] >= len(data):
            status, body = 416, b""
            headers["Content-Range"] = f"bytes */{len(data)}"
        else:
            first, last = asked[0] + fault.shift, min(asked[1] + fault.shift, len(data) - 1)
            status, body = 206, data[first : last + 1 + fault.longer]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if fault.status is not None:
            status = fault.status
        if fault.body is not None:
            body = fault.body
        body = body.translate(bytes(byte ^ fault.mask for byte in range(256)))
        headers["Transfer-Encoding" if fault.chunked else "Content-Length"] = (
            "chunked" if fault.chunked else str(len(body))
        )
        for name, value in fault.headers.items():
            headers.pop(name, None)
            if value is not None:
                headers[name] = value
        return status, headers, body

    def _send_body(self, body: bytes) -> bool:
        fault = self._fault
        if fault.chunked:
            middle = len(body) // 2
            parts = [part for part in (body[:middle], body[middle:]) if part]
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        limit = fault.cut if fault.cut is not None else fault.stall
        self._drip(body if limit is None else body[:limit], fault.drip)
        if fault.stall is not None:
            self._closing.wait()
            return False
        if fault.reset:
            return self._reset()
        if fault.extra:
            self._sock.sendall(fault.extra)
        return fault.cut is None and "Content-Length" not in {k for k, v in fault.headers.items() if v is None}

    def _drip(self, data: bytes, pause: float | None) -> None:
        if pause is None:
            self._sock.sendall(data)
            return
        for offset in range(len(data)):
            self._sock.sendall(data[offset : offset + 1])
            if self._closing.wait(pause):
                return

    def _reset(self) -> bool:
        # Linger of zero seconds: close sends RST instead of FIN. What the peer has not read yet may be lost.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


def _list_script(faults: list[Fault | None]) -> Script:
    return lambda request, turn: faults[turn] if turn < len(faults) else None


def _read_request(stream: Any, connection: int) -> Request | None:
    line = stream.readline(65536).decode("latin-1").split()
    if not line:
        return None
    if len(line) != 3:
        return Request("BAD", "", (), connection)
    headers = []
    while text := stream.readline(65536).decode("latin-1").rstrip("\r\n"):
        name, _, value = text.partition(":")
        headers.append((name.strip().lower(), value.strip()))
    return Request(line[0], line[1], tuple(headers), connection)


# ---- proxies


class Listener(ABC):
    """Serves each connection to a port of this machine by :meth:`converse`, in a thread; a context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @abstractmethod
    def converse(self, client: socket.socket) -> None:
        """Serve a connection; it is closed afterwards, and errors of it are nobody's."""

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            self.converse(client)


class ConnectProxy(Listener):
    """A proxy that tunnels CONNECT to servers on this machine, whatever the host name; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def converse(self, client: socket.socket) -> None:
        """Tunnel."""
        request = _read_request(client.makefile("rb", buffering=0), 0)
        if request is None:
            return
        self.targets.append(f"{request.method} {request.target}")
        with socket.create_connection(("127.0.0.1", int(request.target.rpartition(":")[2]))) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
