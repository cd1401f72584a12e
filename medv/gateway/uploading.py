"""Uploads over HTTP: who may publish an image sends what the repository lacks, and has it checked and committed.

The order is as for everything else: who asks, how much, what he may; only then is a body read. Bodies are short, and
few are in memory at a time. FORMAT.md, "Uploads", has the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

from medv.files import Receive, Scope, Send
from medv.gateway.access import Role
from medv.gateway.application import Exchange, Gateway
from medv.gateway.proxy import value
from medv.gateway.schemes import Presented
from medv.gateway.sending import Gone, Sender
from medv.gateway.trouble import Refused
from medv.gateway.uploadrequest import UploadRequest, body_length, parse_request
from medv.gateway.uploadwork import UploadWork, kind_of, status_of, told
from medv.ranges import BadPath, Headers
from trimtransfer.errors import Locked, TrimTransferError
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.uploads import PIECE, Uploads
from trimtransfer.store import DirectoryStore

_LEAST_RATE: Final = 16 << 10
"""Bytes per second that a body must come with, beyond its first time."""
_SLOTS: Final = 16
"""Bodies that are in memory at a time."""
_SLOTS_EACH: Final = 8
"""The same, of one publisher."""


class Uploading:
    """The ASGI application of all requests of uploads. ``keys`` sign where the repository is signed. Close it."""

    def __init__(self, gateway: Gateway, uploads: Uploads, *, keys: Keys | None = None) -> None:
        store = DirectoryStore(gateway.root)
        self._gateway, self._uploads = gateway, uploads
        self._work = UploadWork(store, gateway.door, uploads, keys)
        self._slots = asyncio.Semaphore(_SLOTS)
        self._bodies = Counter[str]()
        uploads.clear_temporary()

    def __repr__(self) -> str:
        return f"Uploading({str(self._gateway.root)!r})"

    def close(self) -> None:
        """End checks that run; they begin anew when they are asked for again."""
        self._work.close()

    def refresh(self) -> None:
        """Delete uploads that nobody goes on with."""
        self._uploads.expire()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        gateway = self._gateway
        exchange = gateway.exchange(scope)
        sender = gateway.sender(scope, send, exchange)
        try:
            await self._admit(exchange, scope, receive, sender)
        except Gone as gone:
            exchange.reason = str(gone)
        finally:
            gateway.note(exchange, scope, sender, event="upload")

    async def _admit(self, exchange: Exchange, scope: Scope, receive: Receive, sender: Sender) -> None:
        """Find out who asks, how much, and whether he may publish anything; then read the body."""
        gateway, length = self._gateway, 0
        try:
            length = body_length(scope["headers"])
            found = parse_request(scope)
            exchange.name = tuple(scope["raw_path"].decode("ascii").strip("/").split("/"))
            proven = await gateway.door.authenticator.prove(_presented(exchange, scope), time.time())
        except (BadPath, Refused) as error:
            await self._drain(receive, length, sender)
            await gateway.refuse_identity(exchange, sender, error)
            return
        exchange.principal = proven.principal
        exchange.headers += proven.headers
        if wait := gateway.enter(exchange):
            await self._drain(receive, length, sender)
            await gateway.later(exchange, sender, wait)
            return
        try:
            decision = gateway.door.access.anything(exchange.principal, Role.PUBLISH)
            exchange.reason = decision.reason
            if length > PIECE or not decision.allowed:
                await self._drain(receive, length, sender)
                await (self._too_long(sender, exchange) if decision.allowed else self._denied(sender, exchange))
                return
            if self._bodies[exchange.client] >= _SLOTS_EACH:
                await self._drain(receive, length, sender)
                await gateway.later(exchange, sender, 1.0)
                return
            async with self._slot(exchange.client):
                body = await self._body(receive, length, sender)
                request = UploadRequest(exchange.principal, scope["method"], *found, body)
                await self._serve(request, exchange, sender)
        finally:
            gateway.limits.leave(exchange.client)

    async def _serve(self, request: UploadRequest, exchange: Exchange, sender: Sender) -> None:
        lines: Headers = []
        try:
            status, values = await asyncio.to_thread(self._work.answer, request)
        except PermissionError as error:
            exchange.reason = str(error)
            await self._denied(sender, exchange)
            return
        except Locked as error:
            status, values, lines = 503, told("locked", error), [(b"retry-after", b"1")]
        except TrimTransferError as error:
            status, values = status_of(error), told(kind_of(error), error)
        if isinstance(values, dict) and "message" in values:
            exchange.reason = str(values["message"])[:300]
        await self._send(sender, exchange, status, values, lines)

    # ---- bodies

    @contextlib.asynccontextmanager
    async def _slot(self, client: str) -> AsyncIterator[None]:
        self._bodies[client] += 1
        try:
            async with self._slots:
                yield
        finally:
            self._bodies[client] -= 1
            if not self._bodies[client]:
                del self._bodies[client]

    async def _body(self, receive: Receive, length: int, sender: Sender) -> bytes:
        data = bytearray()
        limits = self._gateway.settings.limits
        try:
            async with asyncio.timeout(limits.body_timeout + length / _LEAST_RATE):
                more = True
                while more:
                    async with asyncio.timeout(limits.body_timeout):
                        message = await receive()
                    if message["type"] != "http.request":
                        raise Gone("client went")
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            await sender.break_off("slow body")
            raise Gone("slow body") from None
        if len(data) != length:
            raise Gone("client went")
        return bytes(data)

    async def _drain(self, receive: Receive, length: int, sender: Sender) -> None:
        """Read a body that is of no use, if it is not long, so that the client reads the answer."""
        if not 0 < length <= PIECE:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._gateway.settings.limits.body_timeout):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    # ---- answers

    async def _send(
        self, sender: Sender, exchange: Exchange, status: int, values: dict[str, Any] | bytes, lines: Headers
    ) -> None:
        plain = isinstance(values, bytes)
        body = values if isinstance(values, bytes) else json.dumps(values).encode() + b"\n"
        headers = [
            (b"content-type", b"application/octet-stream" if plain else b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        start = {"type": "http.response.start", "status": status, "headers": headers + exchange.headers + lines}
        await sender(start)
        await sender({"type": "http.response.body", "body": body})

    async def _too_long(self, sender: Sender, exchange: Exchange) -> None:
        values = {"error": "limit", "message": f"a body of more than {PIECE:,} bytes"}
        await self._send(sender, exchange, 413, values, [(b"connection", b"close")])

    async def _denied(self, sender: Sender, exchange: Exchange) -> None:
        """Refuse: whoever proves nothing is asked who he is."""
        authenticator = self._gateway.door.authenticator
        if not exchange.principal.authenticated and authenticator.schemes:
            await self._gateway.refuse(exchange, sender, 401, "credentials are needed", authenticator.challenges())
            return
        message = "these credentials give no right to publish this"
        await self._send(sender, exchange, 403, {"error": "denied", "message": message}, [])


def _presented(exchange: Exchange, scope: Scope) -> Presented:
    told = exchange.told
    return Presented(
        authorization=value(scope["headers"], b"authorization"),
        path="/" + "/".join(exchange.name),
        certificate=told.certificate,
        address=told.address,
        connection=None if told.trusted else scope.get("extensions", {}).get("medv.connection"),
    )
