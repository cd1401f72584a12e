"""One connection of the embedded server: uvicorn's, which cannot be held for ever by who is slow on purpose.

Heads of requests, bodies that nobody asked for, and the last bytes of answers each have their time. Connections are
counted, all and by client, before anything is read from them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medv.gateway.limits import client_of
from medv.gateway.settings import LimitSettings

_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 26\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\n503 too many connections.\n"
)


class Connections:
    """The connections of a server: how many, and of whom; ``cut`` is called with the cause when one is broken.

    Addresses that ``exempt`` holds true for - proxies - may have any number.
    """

    def __init__(
        self, limits: LimitSettings, *, cut: Callable[[str], None], exempt: Callable[[str], bool] = lambda _: False
    ) -> None:
        self.limits, self.cut, self._exempt = limits, cut, exempt
        self.total = 0
        self._of: Counter[str] = Counter()

    def open(self, client: str) -> bool:
        """Count a connection; False: there are too many already, it is not counted."""
        if self.total >= self.limits.connections:
            return False
        if not self._exempt(client) and self._of[client] >= self.limits.connections_per_client:
            return False
        self.total += 1
        self._of[client] += 1
        return True

    def close(self, client: str) -> None:
        """A counted connection has ended."""
        self.total -= 1
        self._of[client] -= 1
        if not self._of[client]:
            del self._of[client]


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with these limits; offers itself to the application as a ``Connection``."""

    guard: Connections

    def __init__(self, *arguments: Any, guard: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.guard = guard
        self.certificate = b""
        self._counted_as = ""
        self._timer: asyncio.TimerHandle | None = None
        self._timed = ""
        self._application = self.app
        self.app = self._with_connection

    # ---- what the application sees

    @property
    def closing(self) -> bool:
        """Whether the connection has ended, or is about to."""
        return self.transport.is_closing()

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    def abort(self, cause: str) -> None:
        """Break the connection at once."""
        if not self._aborted():
            self.guard.cut(cause)
            self.transport.abort()

    async def _with_connection(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})["medv.connection"] = self
        await self._application(scope, receive, send)

    # ---- what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or refuse it."""
        peer = transport.get_extra_info("peername")
        client = client_of(str(peer[0])) if isinstance(peer, tuple) else "unix"
        if not self.guard.open(client):
            self.guard.cut("too many connections")
            transport.write(_BUSY)
            transport.close()
            self.transport = transport
            self._arm("refused", self.guard.limits.header_timeout)
            return
        self._counted_as = client
        tls = transport.get_extra_info("ssl_object")
        if isinstance(tls, ssl.SSLObject):
            self.certificate = tls.getpeercert(binary_form=True) or b""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection as ended."""
        self._disarm()
        if self._counted_as:
            self.guard.close(self._counted_as)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and watch for what is still to come."""
        if self._counted_as and not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request; what is still to be taken has its time."""
        super().on_response_complete()
        self._watch()

    # ---- timers

    def _watch(self) -> None:
        """Arm the timer for what the client owes now: a head, the rest of a body, taking the answer."""
        limits = self.guard.limits
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()  # the application has its own time for sending
        elif self.transport.get_write_buffer_size():
            self._arm("slow reader", limits.send_timeout, at_least=self.transport.get_write_buffer_size())
        elif self.conn.their_state is h11.SEND_BODY:
            self._arm("slow body", limits.body_timeout)
        elif self.cycle is None or self.conn.trailing_data[0]:
            self._arm("slow head", limits.header_timeout)
        else:
            self._disarm()  # idle between requests: uvicorn's own timer

    def _arm(self, cause: str, seconds: float, *, at_least: int = 0) -> None:
        """Set the timer; one that runs for the same cause goes on."""
        if self._timer is not None and self._timed == cause:
            return
        self._disarm()
        self._timed = cause
        self._timer = self.loop.call_later(seconds, self._expired, cause, at_least)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self, cause: str, waiting: int) -> None:
        self._timer = None
        left = self.transport.get_write_buffer_size()
        if cause == "slow reader" and left < waiting:
            if left:
                self._arm(cause, self.guard.limits.send_timeout, at_least=left)
            elif not self.transport.is_closing():
                self._watch()
            return
        if not self._aborted():
            self.guard.cut(cause)
            self.transport.abort()

    def _aborted(self) -> bool:
        """Whether nothing is left to break: closing with bytes that nobody takes is not the end yet."""
        return self.transport.is_closing() and not self.transport.get_write_buffer_size()
