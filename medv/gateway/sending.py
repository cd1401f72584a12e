"""Handing an answer to a connection: counted, at the pace that is allowed, and cut where nobody takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from medv.files import Message, Send

_WAKE: float = 1.0
"""Seconds of the longest sleep before it is looked again whether the client is still there."""


class Connection(Protocol):
    """A connection as the server's protocol offers it to the application (``scope["extensions"]``)."""

    certificate: bytes

    def abort(self, cause: str) -> None:
        """Break it at once."""
        ...

    @property
    def closing(self) -> bool:
        """Whether it has ended, or is about to."""
        ...

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet."""
        ...


class Gone(Exception):
    """The client went, or was cut off, before the end of the answer: the ``cause``."""


class Sender:
    """The ``send`` of one request. ``status`` and ``bytes`` are what was sent so far."""

    def __init__(
        self, send: Send, connection: Connection | None, *, timeout: float, spend: Callable[[int], float]
    ) -> None:
        self._send, self._connection, self._timeout, self._spend = send, connection, timeout, spend
        self.status = 0
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        """Send one message, as ASGI has it; ``Gone`` where nobody takes it."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
        size = len(message.get("body", b""))
        if size and (wait := self._spend(size)):
            await self._sleep(wait)
        await self._deliver(message)
        self.bytes += size

    async def _sleep(self, seconds: float) -> None:
        while seconds > 0:
            await asyncio.sleep(min(seconds, _WAKE))
            seconds -= _WAKE
            self._check()

    async def _deliver(self, message: Message) -> None:
        while True:
            self._check()
            before = self._connection.waiting if self._connection else 0
            try:
                # The server waits for room before it takes the message: interrupted there, it has taken nothing of it.
                async with asyncio.timeout(self._timeout):
                    await self._send(message)
                return
            except TimeoutError:
                if self._connection is None or self._connection.waiting >= before:
                    await self.break_off("slow reader")
                    raise Gone("slow reader") from None

    def _check(self) -> None:
        if self._connection is not None and self._connection.closing:
            raise Gone("client went")

    async def break_off(self, cause: str) -> None:
        """Break the connection, so that the client cannot take what it has for the whole."""
        if self._connection is not None:
            self._connection.abort(cause)
            await asyncio.sleep(0.01)  # the loop tells the server that the connection is gone
