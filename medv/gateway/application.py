"""The server as an ASGI application: objects to those who may have them, answers to a proxy that asks, health, metrics.

Every request ends in exactly one line of the log. The order is: a name that can be one, who asks, how much he asks,
what he may; only then is anything looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from medv import files
from medv.files import Receive, Scope, Send
from medv.gateway.access import ANONYMOUS, Decision, Principal, Role
from medv.gateway.door import Door
from medv.gateway.journal import REQUESTS, redact
from medv.gateway.limits import Limits, client_of
from medv.gateway.metrics import CONTENT_TYPE, Metrics
from medv.gateway.proxy import Proxies, Told, certificate_of, value
from medv.gateway.schemes import Presented, Proven
from medv.gateway.sending import Gone, Sender
from medv.gateway.settings import Settings
from medv.gateway.trouble import Refused
from medv.objects import Kind, Named, cache_control, identify
from medv.ranges import BadPath, Headers, object_name

AUTHORISE: Final = "/_medv/authorise"
"""Where a proxy asks; nobody else finds anything there."""
_LOG: Final = logging.getLogger("medv.server")
_MAX_QUERY: Final = 4096
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


@dataclass(slots=True)
class Exchange:
    """One request on its way through: what it says, what became of it, and what the log will tell."""

    told: Told
    id: str
    started: float
    principal: Principal = ANONYMOUS
    name: tuple[str, ...] = ()
    named: Named | None = None
    headers: Headers = field(default_factory=list)
    """Lines that belong into the answer whatever it is."""
    reason: str = ""

    @property
    def client(self) -> str:
        """What its limits are counted for."""
        principal = self.principal
        known = principal.authenticated and not principal.grants
        return f"{principal.how}:{principal.name}" if known else client_of(self.told.address)


class Gateway:
    """A repository directory behind a door. ``links`` returns the URL from which a pack is to be fetched instead.
    ``refreshers`` are called now and then in a thread: they look at files that may have changed."""

    def __init__(
        self,
        root: Path,
        settings: Settings,
        door: Door,
        *,
        proxies: Proxies,
        limits: Limits,
        metrics: Metrics,
        refreshers: list[Callable[[], object]],
        links: Callable[[str], str] | None = None,
    ) -> None:
        self.root, self.settings, self.door = root.resolve(strict=True), settings, door
        self.proxies, self.limits, self.metrics = proxies, limits, metrics
        self.refreshers, self._links = refreshers, links
        self.further: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {}
        """Further ASGI applications, by path."""
        self._problem = ""
        self.stopping = False

    def __repr__(self) -> str:
        return f"Gateway({str(self.root)!r})"

    def application(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            Route(AUTHORISE, _Raw(self._authorise)),
            *(Route(path, _Raw(further)) for path, further in self.further.items()),
            Mount("/", app=self._objects),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    # ---- objects

    async def _objects(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = self.exchange(scope)
        sender = self.sender(scope, send, exchange)
        self.metrics.running.inc()
        try:
            await self._admit(exchange, scope, sender)
        except Gone as gone:
            exchange.reason = str(gone)
        except files.Shrunk as error:
            exchange.reason = str(error)
            await sender.break_off("file shrank")
        finally:
            self.metrics.running.dec()
            self.note(exchange, scope, sender)

    async def _admit(self, exchange: Exchange, scope: Scope, sender: Sender) -> None:
        """Find out who asks, and how much; then serve."""
        raw_path, query = scope["raw_path"], scope["query_string"].decode("latin-1")
        try:
            proven = await self._identify(exchange, scope, raw_path, query)
        except (BadPath, Refused) as error:
            if wait := self.enter(exchange):
                await self.later(exchange, sender, wait)
                return
            try:
                await self.refuse_identity(exchange, sender, error)
            finally:
                self.limits.leave(exchange.client)
            return
        exchange.principal = proven.principal
        exchange.headers += proven.headers
        if wait := self.enter(exchange):
            await self.later(exchange, sender, wait)
            return
        client = exchange.client
        try:
            await self._serve(exchange, scope, sender)
        finally:
            self.limits.leave(client)

    async def _identify(self, exchange: Exchange, scope: Scope, raw_path: bytes, query: str) -> Proven:
        """Return who asks for what; the name is noted. ``BadPath``, ``Refused``."""
        lines = scope["headers"]
        if len(query) > _MAX_QUERY:
            raise BadPath("a query longer than any signature")
        if any(name == b"transfer-encoding" or (name == b"content-length" and size != b"0") for name, size in lines):
            raise BadPath("a body, which nothing here wants")  # nor doubt where it ends, which smuggles requests in
        if sum(name == b"authorization" for name, _ in lines) > 1:
            raise BadPath("two sets of credentials")
        exchange.name = object_name(raw_path)
        exchange.named = identify(exchange.name)
        told = exchange.told
        presented = Presented(
            authorization=value(scope["headers"], b"authorization"),
            query=query,
            path="/" + "/".join(exchange.name),
            certificate=told.certificate,
            address=told.address,
            connection=None if told.trusted else scope.get("extensions", {}).get("medv.connection"),
        )
        return await self.door.authenticator.prove(presented, time.time())

    async def _serve(self, exchange: Exchange, scope: Scope, sender: Sender) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await self.refuse(exchange, sender, 405, "method not allowed", [(b"allow", b"GET, HEAD")])
            return
        decision = await self.door.decide(exchange.principal, exchange.named, exchange.name)
        exchange.reason = decision.reason
        self._count_decision(exchange.principal, decision)
        if not decision.allowed:
            refusal = self.door.refusal(exchange.principal, exchange.named)
            challenges = self.door.authenticator.challenges() if refusal.status == 401 else []
            await self.refuse(exchange, sender, refusal.status, refusal.text, challenges)
            return
        caching = self._caching(exchange.name, decision)
        if exchange.told.trusted and self.settings.proxy.accel:
            await self._hand_over(exchange, sender, caching)
            return
        if self._links is not None and exchange.named is not None and exchange.named.kind is Kind.PACK:
            await self._lead_away(exchange, sender, self._links("/".join(exchange.name)))
            return
        try:
            reading = await files.begin(self.root, exchange.name, scope["method"], scope["headers"])
        except OSError as error:
            if error.errno not in files.NO_SUCH_FILE:
                _LOG.error("%s cannot be read: %s", "/".join(exchange.name), error)
                await self.refuse(exchange, sender, 503, "unavailable", [(b"retry-after", b"5")])
                return
            await self.refuse(exchange, sender, 404, "not found")
            return
        lines = files.fields(exchange.name, reading.facts, reading.answer, caching)
        await reading.send(sender, lines + exchange.headers)

    async def _lead_away(self, exchange: Exchange, sender: Sender, link: str) -> None:
        """Let an object store send the bytes: by a URL that is good for this object only, and not for long."""
        headers = [(b"location", link.encode()), (b"cache-control", b"no-store"), (b"content-length", b"0")]
        await sender({"type": "http.response.start", "status": 307, "headers": headers + exchange.headers})
        await sender({"type": "http.response.body", "body": b""})

    async def _hand_over(self, exchange: Exchange, sender: Sender, caching: str) -> None:
        """Let nginx send the bytes: it answers ranges and conditions itself."""
        kind = "application/json" if exchange.name[-1].endswith(".json") else "application/octet-stream"
        headers = [
            (b"x-accel-redirect", (self.settings.proxy.accel + "/".join(exchange.name)).encode()),
            (b"content-type", kind.encode()),
            (b"x-medv-cache-control", caching.encode()),  # nginx would add its own to a Cache-Control
            (b"content-length", b"0"),
        ]
        await sender({"type": "http.response.start", "status": 200, "headers": headers + exchange.headers})
        await sender({"type": "http.response.body", "body": b""})

    # ---- the answer to a proxy that asks

    async def _authorise(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self.exchange(scope)
        sender = self.sender(scope, send, exchange)
        try:
            if not exchange.told.trusted or self.settings.proxy.accel:
                await self.refuse(exchange, sender, 404, "not found")
                return
            proven = await self._identify(exchange, scope, exchange.told.path, exchange.told.query)
            exchange.principal = proven.principal
            exchange.headers += proven.headers
            decision = await self.door.decide(exchange.principal, exchange.named, exchange.name)
            exchange.reason = decision.reason
            self._count_decision(exchange.principal, decision)
            await self._tell(exchange, sender, decision, proven)
        except (BadPath, Refused) as error:
            await self.refuse_identity(exchange, sender, error)
        except Gone as gone:
            exchange.reason = str(gone)
        finally:
            self.note(exchange, scope, sender, event="authorise")

    async def _tell(self, exchange: Exchange, sender: Sender, decision: Decision, proven: Proven) -> None:
        """Answer 204, 401 or 403, the only ones that nginx's auth_request knows, and how long that may be believed."""
        remember = min(self.settings.proxy.remember, (proven.principal.expires or 1e12) - time.time())
        keep = str(max(0, int(remember)) if proven.lasting else 0).encode()
        if decision.allowed:
            lines = [
                (b"x-medv-cache-control", self._caching(exchange.name, decision).encode()),
                (b"x-medv-user", _UNPRINTABLE.sub("?", exchange.principal.name).encode()),
                (b"x-accel-expires", keep),
            ]
            await sender({"type": "http.response.start", "status": 204, "headers": lines + exchange.headers})
            await sender({"type": "http.response.body", "body": b""})
            return
        refusal = self.door.refusal(exchange.principal, exchange.named)
        status = 401 if refusal.status == 401 else 403
        challenges = self.door.authenticator.challenges() if status == 401 else []
        await self.refuse(exchange, sender, status, refusal.text, [*challenges, (b"x-accel-expires", b"0")])

    # ---- refusals

    async def refuse_identity(self, exchange: Exchange, sender: Sender, error: BadPath | Refused) -> None:
        """Answer a request that names nothing, or whose credentials do not count."""
        exchange.reason = str(error)
        if isinstance(error, BadPath):
            await self.refuse(exchange, sender, 400, "bad request", [(b"connection", b"close")])
            return
        exchange.reason = f"{error.scheme}: {error.reason}"
        self.metrics.decisions.labels(error.scheme, "expired" if error.expired else "not valid").inc()
        text = "the credentials have expired" if error.expired else "the credentials are not valid here"
        await self.refuse(exchange, sender, 401, text, self.door.authenticator.challenges(error))

    async def later(self, exchange: Exchange, sender: Sender, seconds: float) -> None:
        """Answer that it is too much for now."""
        self.metrics.limited.inc()
        exchange.reason = "over the limits of one client"
        wait = str(max(1, round(seconds))).encode()
        await self.refuse(exchange, sender, 429, "too many requests", [(b"retry-after", wait)])

    async def refuse(
        self, exchange: Exchange, sender: Sender, status: int, text: str, headers: Headers | None = None
    ) -> None:
        """Answer with a status and a line of text."""
        body = f"{status} {text}\n".encode()
        lines = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        start = {"type": "http.response.start", "status": status, "headers": lines + exchange.headers + (headers or [])}
        await sender(start)
        await sender({"type": "http.response.body", "body": body})

    # ---- health, metrics

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"}, headers={"cache-control": "no-store"})

    async def _readyz(self, request: Request) -> Response:
        problem = "stopping" if self.stopping else self._problem
        values = {"status": "not ready" if problem else "ready"}
        return JSONResponse(values, status_code=503 if problem else 200, headers={"cache-control": "no-store"})

    async def _metrics(self, request: Request) -> Response:
        """Metrics for administrators; to all others there is nothing here."""
        scope, plain = request.scope, {"cache-control": "no-store"}
        with contextlib.suppress(Refused):
            told = self.proxies.read(scope["client"], scope["headers"], certificate_of(scope))
            client = client_of(told.address)
            if wait := self.limits.enter(client, time.monotonic()):
                later = {"retry-after": str(max(1, round(wait)))}
                return PlainTextResponse("429 too many requests\n", status_code=429, headers=plain | later)
            try:
                shown = value(scope["headers"], b"authorization")
                presented = Presented(shown, certificate=told.certificate, path="/metrics", address=told.address)
                proven = await self.door.authenticator.prove(presented, time.time())
            finally:
                self.limits.leave(client)
            if self.door.access.everything(proven.principal, Role.ADMIN).allowed:
                return Response(self.metrics.text(), media_type=CONTENT_TYPE, headers=plain)
        return PlainTextResponse("404 not found\n", status_code=404, headers=plain)

    @contextlib.asynccontextmanager
    async def _lifespan(self, application: Any) -> AsyncIterator[None]:
        watcher = asyncio.create_task(self._look())
        try:
            yield
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _look(self) -> None:
        """Look now and then at what may have changed on disk; trouble makes the server not ready, until it passes."""
        while True:
            await asyncio.sleep(self.settings.server.refresh)
            problem = ""
            for refresher in (self._check_root, *self.refreshers):
                try:
                    await asyncio.to_thread(refresher)
                except Exception as error:
                    problem = str(error) or type(error).__name__
            if problem != self._problem:
                _LOG.error("not ready: %s", problem) if problem else _LOG.warning("ready again")
            self._problem = problem

    def _check_root(self) -> None:
        (self.root / "images").stat()

    def exchange(self, scope: Scope) -> Exchange:
        """Return a request as it begins."""
        started = time.monotonic()
        certificate = certificate_of(scope)
        try:
            told = self.proxies.read(scope.get("client"), scope["headers"], certificate)
        except Refused:
            # A proxy that hands on a broken certificate: as if one had been shown that nobody knows.
            told = Told(True, "unknown", b"\0", path=value(scope["headers"], b"x-original-uri").encode("latin-1"))
        id = told.id or secrets.token_hex(8)
        return Exchange(told, id, started, headers=[(b"x-request-id", id.encode())])

    def sender(self, scope: Scope, send: Send, exchange: Exchange) -> Sender:
        """Return what its answer goes through."""
        return Sender(
            send,
            scope.get("extensions", {}).get("medv.connection"),
            timeout=self.settings.limits.send_timeout,
            spend=lambda size: self.limits.spend(exchange.client, size, time.monotonic()),
        )

    def enter(self, exchange: Exchange) -> float:
        """Let a request in: 0.0, and ``limits.leave`` must follow; or return the seconds after which it may come."""
        return self.limits.enter(exchange.client, time.monotonic())

    def _caching(self, name: tuple[str, ...], decision: Decision) -> str:
        return cache_control(name, public=decision.public or self.settings.server.shared_caches)

    def _count_decision(self, principal: Principal, decision: Decision) -> None:
        self.metrics.decisions.labels(principal.how, "allowed" if decision.allowed else "refused").inc()

    def note(self, exchange: Exchange, scope: Scope, sender: Sender, *, event: str = "request") -> None:
        """Write the line of the log, and count."""
        seconds = time.monotonic() - exchange.started
        kind = exchange.named.kind.value if exchange.named else "other"
        self.metrics.requests.labels(kind, str(sender.status)).inc()
        self.metrics.bytes.inc(sender.bytes)
        self.metrics.seconds.labels(kind).observe(seconds)
        facts = {
            "id": exchange.id,
            "client": exchange.told.address,
            "user": exchange.principal.name,
            "how": exchange.principal.how,
            "method": scope["method"][:16],
            "object": redact("/".join(exchange.name)) or None,
            "image": (exchange.named.image if exchange.named else "") or None,
            "range": value(scope["headers"], b"range")[:80] or None,
            "status": sender.status,
            "bytes": sender.bytes,
            "seconds": round(seconds, 4),
            "reason": exchange.reason,
        }
        REQUESTS.info(event, extra={"facts": facts})


class _Raw:
    """An ASGI application as the end of a route, which otherwise takes functions of requests."""

    def __init__(self, application: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)
