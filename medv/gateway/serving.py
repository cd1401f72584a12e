"""Running the server: everything put together from settings, sockets, TLS, and a stop that lets answers end.

The only module, with ``connection``, that knows uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import uvicorn

from medv.gateway.access import ANONYMOUS, Access, Role, Rule
from medv.gateway.application import Gateway
from medv.gateway.configured import read_secret, schemes_of
from medv.gateway.connection import Connections, GuardedProtocol
from medv.gateway.door import Door
from medv.gateway.journal import event, journal
from medv.gateway.limits import Allowance, Limits
from medv.gateway.metrics import CONTENT_TYPE, Metrics
from medv.gateway.packindex import PackIndex
from medv.gateway.proxy import Proxies
from medv.gateway.schemes import Authenticator
from medv.gateway.settings import LimitSettings, Settings, Tls, networks
from medv.gateway.trouble import ConfigError
from medv.gateway.uploading import Uploading
from medv.gateway.uploadrequest import PREFIX
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.uploads import UploadLimits, Uploads
from trimtransfer.store import DirectoryStore

_LOG: Final = logging.getLogger("medv.server")
_BACKLOG: Final = 512
EVERYBODY: Final = Rule(("*",), anyone="anonymous")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a running server is: its ``url``, and the URL of its metrics or nothing."""

    url: str
    metrics: str


def is_loopback(listen: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine only."""
    if listen.startswith("unix:"):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def serve(
    repository: Path,
    settings: Settings,
    *,
    copy: Copy | None = None,
    started: Callable[[Listening], None] = lambda _: None,
    stop: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serve a repository until SIGTERM or SIGINT: a directory, or the ``copy`` of an object store, which sends packs.
    ``started`` is called once it is reachable.

    Outside the main thread there are no signals: ``stop`` is given a function, which ends the server.

    Raises:
        ConfigError: settings that cannot be used.
        OSError: the address is in use, or a file cannot be read.
    """
    with contextlib.ExitStack() as stack:
        waiting = stack.enter_context(journal(settings.log.file, level=settings.log.level))
        gateway = build(repository, settings, copy=copy)
        gateway.metrics.watch("medv_lost_log_lines", "Lines of the log that found no place.", lambda: waiting.dropped)
        if gateway.door.index is not None:
            stack.callback(gateway.door.index.close)
        if settings.upload.enabled:
            stack.callback(accept_uploads(gateway).close)
        server = RepositoryServer(gateway, settings, stack)
        if stop is not None:
            stop(server.stop)
        asyncio.run(server.run_until_stopped(started))


class Copy(Protocol):
    """The directory of a repository in an object store."""

    def refresh(self) -> None:
        """Look whether the store has a newer state."""
        ...

    def link(self, name: str) -> str:
        """Return a URL with which an object can be fetched from the store, and nothing else."""
        ...


def build(repository: Path, settings: Settings, *, copy: Copy | None = None) -> Gateway:
    """Return the gateway that settings describe, its index of packs up to date; raises as :func:`serve`."""
    access = Access(settings.rules or (() if authenticates(settings) else (EVERYBODY,)))
    metrics, refreshers = Metrics(), list[Callable[[], object]]([copy.refresh] if copy else [])
    authenticator = Authenticator(schemes_of(settings, refreshers))
    index = None
    if not access.everything(ANONYMOUS, Role.READ).allowed:
        index = PackIndex(repository, settings.server.index or index_path(repository))
        done = index.refresh()
        event("indexed", packs=index.count(), sources=done.read, damaged=done.damaged)
        refreshers.append(index.refresh)
        metrics.watch("medv_indexed_packs", "Packs that some image refers to.", index.count)
    proxy = settings.proxy
    secret = read_secret(proxy.secret_file, "proxy.secret_file").decode("latin-1") if proxy.secret_file else ""
    return Gateway(
        repository,
        settings,
        Door(access, authenticator, index),
        proxies=Proxies(networks("configuration", proxy), "unix" in proxy.addresses, secret),
        limits=allowance_of(settings.limits),
        metrics=metrics,
        refreshers=refreshers,
        links=copy.link if copy else None,
    )


def accept_uploads(gateway: Gateway) -> Uploading:
    """Let a gateway take uploads; what is returned must be closed."""
    upload = gateway.settings.upload
    limits = UploadLimits(
        bytes=int(upload.max_gigabytes * 1e9),
        each=upload.per_user,
        lifetime=int(upload.keep_days * 86_400),
        free=int(upload.keep_free_gigabytes * 1e9),
    )
    keys = Keys(tuple(map(Path, upload.keys))) if upload.keys else None
    uploading = Uploading(gateway, Uploads(DirectoryStore(gateway.root), limits), keys=keys)
    gateway.further |= {PREFIX: uploading, PREFIX + "/{rest:path}": uploading}
    gateway.refreshers.append(uploading.refresh)
    return uploading


def allowance_of(limits: LimitSettings) -> Limits:
    """Return the limits of one client that are configured."""
    return Limits(Allowance(limits.requests_per_client, limits.rate, limits.burst, limits.bytes_per_second))


def authenticates(settings: Settings) -> bool:
    """Tell whether anybody can prove who he is: then nothing is for everybody unless a rule says so."""
    ways = (settings.tokens.file, settings.oidc.issuer, settings.signed_urls.key_files, settings.certificates)
    return any(ways) or bool(settings.kerberos.keytab)


def index_path(repository: Path) -> Path:
    """Return where the index of a repository is kept if nothing else is said."""
    from platformdirs import user_cache_path

    name = hashlib.sha256(os.fsencode(repository.resolve())).hexdigest()[:16]
    return user_cache_path("medv", appauthor=False) / "serve" / f"{name}.sqlite3"


class RepositoryServer(uvicorn.Server):
    """uvicorn around a gateway: its connections guarded, and a stop that lets answers end."""

    def __init__(self, gateway: Gateway, settings: Settings, stack: contextlib.ExitStack) -> None:
        limits = settings.limits
        super().__init__(
            uvicorn.Config(
                gateway.application(),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=round(limits.keep_alive),
                timeout_graceful_shutdown=round(settings.server.grace),
                h11_max_incomplete_event_size=limits.header_bytes,
            )
        )
        self.config.load()
        self.gateway, self.settings = gateway, settings
        exempt = gateway.proxies.is_proxy
        self.guard = Connections(limits, cut=lambda cause: gateway.metrics.cut.labels(cause).inc(), exempt=exempt)
        gateway.metrics.watch("medv_connections", "Open connections.", lambda: self.guard.total)
        self.config.ssl = self._tls = tls_context(settings.tls) if settings.tls.cert else None
        self._socket = stack.enter_context(_listen(settings.server.listen))
        self._metrics_socket = stack.enter_context(_listen(listen)) if (listen := settings.metrics.listen) else None

    def stop(self) -> None:
        """End the server; what runs is finished, or cut after the grace that is configured."""
        self.gateway.stopping = self.should_exit = True

    async def run_until_stopped(self, started: Callable[[Listening], None]) -> None:
        """Serve until it is stopped."""
        if self._tls is not None:
            loop, watch = asyncio.get_running_loop(), _Certificates(self.settings.tls, self._tls)
            self.gateway.refreshers.append(lambda: watch.look(loop))
        own = None
        if self._metrics_socket is not None:
            own = _MetricsServer(self.gateway.metrics)
            task = asyncio.create_task(own.serve([self._metrics_socket]))
        announcement = asyncio.create_task(self._announce(started))
        await self.serve([self._socket])
        announcement.cancel()
        if own is not None:
            own.should_exit = own.force_exit = True
            await task

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with limits of time for TLS and guarded connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("the application does not start")
        timeout = self.settings.limits.handshake_timeout if self.config.ssl else None
        protocol = partial(
            GuardedProtocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            guard=self.guard,
        )
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                protocol, sock=one, ssl=self.config.ssl, ssl_handshake_timeout=timeout, backlog=_BACKLOG
            )
            for one in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let answers end, cut what does not."""
        event("stopping", requests=len(self.server_state.tasks), connections=self.guard.total)
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        event("stopped", requests=self.server_state.total_requests)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT; at the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; the second time without waiting for anything."""
        self.force_exit = self.force_exit or self.should_exit
        self.stop()

    async def _announce(self, started: Callable[[Listening], None]) -> None:
        while not self.started:
            await asyncio.sleep(0.01)
        own = self._metrics_socket
        listening = Listening(_url(self._socket, tls=self._tls is not None), _url(own) + "/metrics" if own else "")
        event("started", url=listening.url, metrics=listening.metrics or None)
        _notify_systemd()
        started(listening)


class _MetricsServer(uvicorn.Server):
    """Metrics at an address of their own."""

    def __init__(self, metrics: Metrics) -> None:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            found = scope["type"] == "http" and scope["path"] == "/metrics"
            body, kind = (metrics.text(), CONTENT_TYPE) if found else (b"404 not found\n", "text/plain")
            headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        super().__init__(
            uvicorn.Config(
                answer, log_config=None, access_log=False, server_header=False, ws="none", lifespan="off",
                limit_concurrency=32, timeout_graceful_shutdown=1,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the other server's."""
        yield


class _Certificates:
    """The certificate of the server and what it believes of clients, loaded again when the files change."""

    def __init__(self, tls: Tls, context: ssl.SSLContext) -> None:
        self._tls, self._context = tls, context
        self._print = self._fingerprint()

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load again what changed: in the loop's thread, where no handshake runs at the same time."""
        found = self._fingerprint()
        if found != self._print:
            tls_context(self._tls)  # raises where they cannot be used: the old ones stay
            self._print = found
            loop.call_soon_threadsafe(_load, self._tls, self._context)

    def _fingerprint(self) -> tuple[tuple[int, int], ...]:
        names = filter(None, (self._tls.cert, self._tls.key, self._tls.client_ca, self._tls.client_crl))
        return tuple((found.st_ino, found.st_mtime_ns) for found in map(os.stat, names))


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the server's side of TLS; ``ConfigError`` for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(tls, context)
    return context


def _load(tls: Tls, context: ssl.SSLContext) -> None:
    step = "cert"
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.client_ca:
            step = "client_ca"
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(tls.client_ca)
        if tls.client_crl:
            step = "client_crl"
            context.load_verify_locations(tls.client_crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except OSError as error:  # ssl.SSLError is one
        path = getattr(tls, step)
        remedy = "name PEM files that belong together and that the server's user can read"
        raise ConfigError("configuration", f"tls.{step}", f"{path} cannot be used: {error}", remedy) from None


def _listen(listen: str) -> socket.socket:
    """Return a socket that listens; ``ConfigError`` for what is no address, ``OSError`` for one that cannot be had."""
    if listen.startswith("unix:"):
        return _listen_unix(listen.removeprefix("unix:"))
    host, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError("configuration", "listen", f"is {listen!r}", "write address:port, or unix:/path")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen: {error.strerror}", listen) from None


def _listen_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode) and probe.connect_ex(path):
            os.unlink(path)  # nobody is at the other end: left by one that was killed
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o660)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen: {error.strerror}", path) from None
    return listener


def _url(listener: socket.socket, *, tls: bool = False) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


def _notify_systemd() -> None:
    """Tell systemd, where it waits for that (Type=notify), that the server is ready (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)
