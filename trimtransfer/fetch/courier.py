"""Sending to a server: requests with bodies, each repeated until it is answered or patience ends.

Every request may be sent twice: what it asks for is the same the second time. Credentials go to the repository's own
origin only, and no redirect is followed. :class:`Courier` is what whoever sends needs; its way is the connections' own.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from trimtransfer.errors import AccessDenied, Cancelled, FetchError
from trimtransfer.fetch.answer import check_status, content_length
from trimtransfer.fetch.approach import Approach
from trimtransfer.fetch.credentials import NOTHING, Credential
from trimtransfer.fetch.line import Connection as AnyConnection
from trimtransfer.fetch.line import Line
from trimtransfer.fetch.reach import Reach
from trimtransfer.fetch.retry import Attempts, Cause, Failed, FetchOptions
from trimtransfer.fetch.site import shown
from trimtransfer.fetch.throttle import Throttle

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_MAX_ANSWER: Final = 16 << 20
_PATIENCE: Final = 120.0
"""Seconds without an answer after which it gives up: long enough for a server to be started anew."""
MARK: Final = "X-Medv-Upload"
"""A header that every request carries: no web page can make a browser send it to another origin unasked."""
_AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its ``status`` and ``body``."""

    status: int
    body: bytes


class Courier:
    """Sends requests to a repository's server at ``url``, from any threads.

    Raises ``ValueError`` for a malformed URL, ``FetchError`` and ``AccessDenied`` for unusable credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_cert: str | None = None,
        credential: Credential = NOTHING,
        cancel: threading.Event | None = None,
        options: FetchOptions | None = None,
    ) -> None:
        approach, reach = Approach(url, ca_cert=ca_cert, credential=credential), Reach()
        self._cancel = cancel or threading.Event()
        self._line = Line(
            approach.site,
            lambda line: approach.connection(line, reach),
            connections=1,
            throttle=Throttle(None),
            options=options or FetchOptions(budget=_PATIENCE),
            cancel=self._cancel,
            on_bytes=None,
        )
        self._lock = threading.Lock()
        self.sent = 0
        """Bytes of bodies that were sent, those that were sent again included."""

    def __repr__(self) -> str:
        return f"Courier({self.url!r})"

    @property
    def url(self) -> str:
        """The repository's URL without secrets, for messages."""
        return self._line.site.url

    def send(self, method: str, name: str, body: bytes = b"", *, query: str = "") -> Reply:
        """Send a request for ``name`` and return what it is answered, whatever that says.

        Raises:
            AccessDenied: 401. FetchError: no answer that counts in time. Cancelled: as asked.
        """
        url = self._line.site.locate(name) + (f"?{query}" if query else "")
        attempts = Attempts(self._line.options, now=time.monotonic())
        while not self._cancel.is_set():
            try:
                return self._attempt(method, url, body)
            except Failed as failed:
                failure = failed
            decision = attempts.failed(failure, now=time.monotonic(), jitter=random.random(), proven=self._line.proven)
            if decision.give_up:
                raise self._error(failure, shown(url), decision.reason) from failure
            _LOG.warning("%s: %s; trying again in %.1f seconds", shown(url), failure, decision.delay)
            if self._cancel.wait(decision.delay):
                break
        raise self._cancelled()

    def close(self) -> None:
        """Close all connections; no thread may be sending."""
        self._line.close()

    def _attempt(self, method: str, url: str, body: bytes) -> Reply:
        connection = self._line.take_connection()
        try:
            reply = _ask(connection, method, url, body)
        except BaseException:
            connection.close()
            raise
        self._line.give_connection(connection)
        self._line.proven = True
        with self._lock:
            self.sent += len(body)
        return reply

    def _cancelled(self) -> Cancelled:
        return Cancelled("stopped on request while sending; the same command goes on")

    def _error(self, failure: Failed, url: str, reason: str) -> FetchError:
        cause = f"{failure}" + (f"; gave up: {reason}" if reason else "")
        kind = AccessDenied if failure.cause in (Cause.DENIED, Cause.PROXY_DENIED) else FetchError
        return kind(url, cause, status=failure.status, retryable=not reason)


def _ask(connection: AnyConnection, method: str, url: str, body: bytes) -> Reply:
    """Send a request once; ``Failed`` where repeating it, or other credentials, could help."""
    exchange = connection.tell(method, url, {MARK: "1"}, body)
    try:
        if exchange.status in (401, 407) or exchange.status in _AGAIN:
            check_status(exchange.status, exchange.headers, now=datetime.now(UTC))
        length = content_length(exchange.headers)
        if length is None or length > _MAX_ANSWER:
            raise Failed(Cause.TOO_LARGE, "an answer without a length, or one too long", status=exchange.status)
        data = b"".join(exchange.chunks())
        if len(data) != length:
            raise Failed(Cause.CUT, "the answer broke off")
        return Reply(exchange.status, data)
    finally:
        exchange.close()
