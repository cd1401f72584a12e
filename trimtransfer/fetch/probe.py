"""Asking a server one thing at a time, as a client would, and telling all that was seen.

The same connections as those of a store, so the same proxies, authorities, addresses and headers. Nothing is tried
again, nothing is believed, and no more is read than the ``budget`` allows: an answer is left where enough has come.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from trimtransfer.errors import TrimTransferError
from trimtransfer.fetch.approach import Approach
from trimtransfer.fetch.connection import Connection
from trimtransfer.fetch.line import Exchange, Line
from trimtransfer.fetch.reach import Reach, addresses_of
from trimtransfer.fetch.retry import Cause, Failed, FetchOptions
from trimtransfer.fetch.seen import Certificate, Hop, Seen, TlsSeen
from trimtransfer.fetch.site import follow, shown
from trimtransfer.fetch.throttle import Throttle

PATIENCE: Final = 20.0
"""Seconds for a whole question: what takes longer for some KiB is a finding."""
_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_NARROW: Final = 1 << 20
"""A rate for which the kernel takes in little ahead: of an answer that is left halfway, little has come."""
_MOST_CERTIFICATES: Final = 10
_LONGEST: Final = 300
"""Characters of a text of the server's that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to ask: bytes ``start`` to ``stop`` (None: no Range header), further ``headers``, a ``query`` for the URL.

    At most ``limit`` bytes of the answer are read. ``fresh`` asks caches for a fresh copy; ``anew`` opens a new
    connection; ``address`` asks that address of the name; ``narrow``: most of the answer will not be read.
    """

    start: int | None = None
    stop: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    limit: int = 64 << 10
    fresh: bool = False
    anew: bool = False
    address: str | None = None
    narrow: bool = False

    def to_headers(self) -> dict[str, str]:
        """Return the headers of the request, beside those that each has."""
        sent = dict(self.headers)
        if self.start is not None:
            sent["Range"] = f"bytes={self.start}-{self.stop - 1}"
        if self.fresh:
            sent["Cache-Control"] = "no-cache"
        return sent


class Probe:
    """Asks the server of a repository. A context manager; for one thread.

    ``budget`` is the most bytes of bodies that are read, of all questions together. ``tell`` is called with each
    answer. Raises what an :class:`Approach` raises.
    """

    def __init__(
        self,
        server: str | Approach,
        *,
        budget: int,
        patience: float = PATIENCE,
        tell: Callable[[Seen], None] = lambda seen: None,
    ) -> None:
        self._approach = server if isinstance(server, Approach) else Approach(server)
        self.site = self._approach.site
        self.left = budget
        self.requests = 0
        self._tell, self._patience = tell, patience
        self._options = FetchOptions(connect=min(10.0, patience), stall=patience)
        self._connection: Connection | None = None

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    @property
    def has_credentials(self) -> bool:
        """Whether the server is shown any."""
        return self._approach.is_shown_something

    @property
    def has_query(self) -> bool:
        """Whether the URL has a query, such as a signature."""
        return self._approach.has_query

    def without_credentials(self) -> Probe:
        """Return a probe of the same server that shows no credentials. It counts by itself: see ``charge``."""
        return Probe(self._approach.without_credentials(), budget=self.left, patience=self._patience, tell=self._tell)

    def elsewhere(self, url: str) -> Probe:
        """Return a probe of another server, as this one is but for credentials. It counts by itself, too."""
        return Probe(self._approach.elsewhere(url), budget=self.left, patience=self._patience, tell=self._tell)

    def charge(self, other: Probe) -> None:
        """Count what a probe of :meth:`elsewhere` has cost."""
        self.requests += other.requests
        self.left = min(self.left, other.left)

    def proxy(self) -> str | None:
        """Return the proxy of the environment through which the server is reached, or None."""
        return self._connect().proxy(self.site.locate("x"))

    def addresses(self) -> list[str]:
        """Return the addresses of the server's name; none if it has none."""
        host, port = self._place()
        try:
            return addresses_of(host, port)
        except (OSError, UnicodeError):
            return []

    def ask(self, name: str, question: Question | None = None) -> Seen:
        """Ask for an object, follow redirects, and return what was seen; never raises for what a server does."""
        question = question or Question()
        asked = None if question.start is None else (question.start, question.stop)
        url = self.site.locate(name)
        if question.query:
            url += ("&" if urlsplit(url).query else "?") + question.query
        try:
            seen = self._ask(Seen(name, shown(url), asked), url, question)
        except TrimTransferError as error:
            seen = Seen(name, shown(url), asked, cause=Cause.CONNECTION, problem=str(error))
        self._tell(seen)
        return seen

    def look_at_tls(self, address: str) -> TlsSeen | None:
        """Shake hands with one address of the server twice: checking its certificate, and to read it in any case.

        None if it does not even accept connections.
        """
        host, port = self._place()
        error, problem, version = 0, "", ""
        try:
            with self._handshake(self._approach.tls, address, host, port) as sock:
                version = sock.version() or ""
        except ssl.SSLCertVerificationError as failed:
            error, problem = failed.verify_code, failed.verify_message
        except ssl.SSLError as failed:
            return TlsSeen(error=-1, problem=str(failed)[:_LONGEST])
        except OSError:
            return None
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE  # to look at it; nothing is sent or believed
        try:
            with self._handshake(bare, address, host, port) as sock:
                return TlsSeen(version or sock.version() or "", _chain(sock), error, problem)
        except OSError:
            return TlsSeen(version, (), error, problem)

    # ---- inside

    def _ask(self, seen: Seen, url: str, question: Question) -> Seen:
        hops: list[Hop] = []
        facts: dict[str, Any] = {}
        if question.anew or question.address or question.narrow:
            self._drop()
        connection = self._connect(question)
        timer = threading.Timer(self._patience, connection.abort, [_too_slow(self._patience)])
        timer.daemon = True
        timer.start()
        try:
            while True:
                begun = time.monotonic()
                self.requests += 1
                exchange = connection.ask_once(url, question.to_headers())
                facts = _facts(exchange, time.monotonic() - begun)
                if exchange.status not in _REDIRECTS:
                    break
                url = self._follow(url, exchange, hops)
                exchange.close()
            body, ended, seconds = self._read(exchange, question)
            facts |= {"body": body, "ended": ended, "body_seconds": seconds}
            exchange.close()
            if not ended or question.address or question.narrow:
                self._drop()
        except Failed as failed:
            facts |= {"cause": failed.cause, "problem": str(failed)[:_LONGEST]}
            self._drop()
        finally:
            timer.cancel()
        return Seen(seen.name, seen.url, seen.asked, hops=tuple(hops), **facts)

    def _follow(self, url: str, exchange: Exchange, hops: list[Hop]) -> str:
        target = follow(url, exchange.headers.get("location"), status=exchange.status)
        one, other = urlsplit(url), urlsplit(target)
        crossed = (one.scheme, one.netloc) != (other.scheme, other.netloc)
        hops.append(Hop(exchange.status, shown(url), shown(target), crossed))
        if len(hops) > self._options.redirects:
            raise Failed(Cause.REDIRECT, f"more than {self._options.redirects} redirects", status=exchange.status)
        return target

    def _read(self, exchange: Exchange, question: Question) -> tuple[bytes, bool, float]:
        """Return a body as far as it may be read, whether that is all of it, and the seconds it took."""
        body, begun = bytearray(), time.monotonic()
        limit = max(0, min(question.limit, self.left))
        ended = True
        for chunk in exchange.chunks():
            body += chunk
            self.left -= len(chunk)
            if len(body) > limit or self.left <= 0:
                ended = False
                break
        return bytes(body[:limit]), ended, time.monotonic() - begun

    def _connect(self, question: Question | None = None) -> Connection:
        if self._connection is not None and self._connection.aborted:
            self._drop()
        if self._connection is None:
            question = question or Question()
            reach = Reach(question.address)
            line = Line(
                self.site,
                lambda line: self._approach.connection(line, reach),
                connections=1,
                throttle=Throttle(_NARROW if question.narrow else None),
                options=self._options,
                cancel=threading.Event(),
                on_bytes=None,
            )
            self._connection = self._approach.connection(line, reach)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _place(self) -> tuple[str, int]:
        parts = urlsplit(self.site.locate("x"))
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def _handshake(self, context: ssl.SSLContext, address: str, host: str, port: int) -> ssl.SSLSocket:
        raw = socket.create_connection((address, port), self._options.connect)
        try:
            return context.wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise


def _too_slow(seconds: float) -> Failed:
    return Failed(Cause.STALL, f"not done within {seconds:g} seconds")


def _facts(exchange: Any, seconds: float) -> dict[str, Any]:
    return {
        "status": exchange.status,
        "headers": {name: value[:_LONGEST] for name, value in exchange.headers.items()},
        "protocol": exchange.protocol,
        "opened": exchange.opened,
        "address": exchange.address or "",
        "seconds": seconds,
        "at": time.time(),
    }


def _chain(sock: ssl.SSLSocket) -> tuple[Certificate, ...]:
    """Return the certificates that a server sent. Python tells of unchecked ones by its insides alone: should those
    change, there are none to tell of."""
    try:
        sent = sock._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
        return tuple(_certificate(one.get_info()) for one in sent[:_MOST_CERTIFICATES])
    except (AttributeError, TypeError, ValueError, ssl.SSLError):
        return ()


def _certificate(info: Mapping[str, Any]) -> Certificate:
    names = tuple(
        str(name)[:_LONGEST] for kind, name in info.get("subjectAltName", ()) if kind in ("DNS", "IP Address")
    )
    try:
        not_after: float | None = float(ssl.cert_time_to_seconds(str(info["notAfter"])))
    except (KeyError, ValueError):
        not_after = None
    return Certificate(names[:20], _name(info.get("subject", ())), _name(info.get("issuer", ())), not_after)


def _name(parts: Any) -> str:
    """Return a distinguished name as one line."""
    return ", ".join(f"{key}={value}" for part in parts for key, value in part)[:_LONGEST]
