"""A repository over HTTP(S) without a web server: an ASGI application for a directory, and a server on loopback.

For demonstrations, tests and small sites. It serves what nginx would serve and nothing more: GET and HEAD of plain
files, single ranges, conditions. No listing, no hidden files, no symbolic links, no file outside the directory. Needs
the extra ``demo``.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from medv import files, ranges
from medv.files import Receive, Scope, Send
from medv.objects import cache_control

if TYPE_CHECKING:
    from uvicorn import Server

MAX_REQUESTS: Final = 64
"""Requests served at the same time on loopback; further ones are told to come again (503)."""
_START_SECONDS: Final = 20.0
_REASONS: Final = {400: "bad request", 404: "not found", 405: "method not allowed", 503: "unavailable"}


class StaticRepository:
    """ASGI application that serves the files below ``root``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).resolve(strict=True)

    def __repr__(self) -> str:
        return f"StaticRepository({str(self.root)!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (the ASGI protocol)."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, send: Send) -> None:
        method = scope["method"]
        if method not in ("GET", "HEAD"):
            await _refuse(send, 405, allow=True)
            return
        try:
            name = ranges.object_name(scope["raw_path"])
        except ranges.BadPath:
            await _refuse(send, 400)
            return
        try:
            reading = await files.begin(self.root, name, method, scope["headers"])
        except OSError as error:
            await _refuse(send, 404 if error.errno in files.NO_SUCH_FILE else 503)
            return
        await reading.send(send, files.fields(name, reading.facts, reading.answer, cache_control(name)))


class LoopbackServer:
    """Serves a repository directory on 127.0.0.1, on a free port, in a thread of its own.

    With ``tls`` it makes a certificate for 127.0.0.1 under an authority of its own, valid while the server runs;
    ``ca_file`` is that authority for the client to trust. Use it as a context manager::

        with LoopbackServer("repository") as server:
            httpx.get(server.url + "/images/x/head.json", verify=ssl.create_default_context(cafile=server.ca_file))
    """

    def __init__(self, root: str | os.PathLike[str], *, tls: bool = True) -> None:
        self.application = StaticRepository(root)
        self.tls = tls
        self.url = ""
        self.ca_file = ""
        self._stack = ExitStack()

    def __enter__(self) -> LoopbackServer:
        import uvicorn

        with ExitStack() as stack:
            context = self._make_certificate(stack) if self.tls else None
            config = uvicorn.Config(
                self.application,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="off",
                limit_concurrency=MAX_REQUESTS,
                h11_max_incomplete_event_size=32 << 10,
            )
            config.load()
            config.ssl = context
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
            server = uvicorn.Server(config)
            thread = threading.Thread(
                target=server.run, kwargs={"sockets": [listener]}, name="loopback-server", daemon=True
            )
            thread.start()
            stack.callback(_stop, server, thread)
            _await_start(server, thread)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _make_certificate(self, stack: ExitStack) -> ssl.SSLContext:
        import trustme

        authority = trustme.CA()
        self.ca_file = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="medv-")), "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        return context


def _await_start(server: Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the loopback server did not start")
        time.sleep(0.005)


def _stop(server: Server, thread: threading.Thread) -> None:
    """End the server without waiting for clients that keep idle connections open."""
    server.should_exit = server.force_exit = True
    thread.join()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _refuse(send: Send, status: int, *, allow: bool = False) -> None:
    body = f"{status} {_REASONS[status]}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if allow:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
