"""Requests that change an object store, and list it: signed, repeated where that may help, in any number of threads.

Bodies are pieces of bounded length in memory, whose SHA-256 is signed: the store refuses what arrives damaged. All
requests but the completion of an upload may be repeated without harm; that one is looked after by who asks for it.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from trimtransfer.bucket.listing import Listed, parse_keys
from trimtransfer.errors import AccessDenied, Cancelled, FetchError, NotFound
from trimtransfer.fetch.account import Account, Address
from trimtransfer.fetch.connection import tls_context
from trimtransfer.fetch.retry import Cause, Failed, cause_of_status, parse_retry_after
from trimtransfer.fetch.s3 import Signer, field, refusal
from trimtransfer.fetch.sigv4 import query_of

_LOG: Final = logging.getLogger("trimtransfer.bucket")
_AGAIN: Final = frozenset((Cause.BUSY, Cause.SERVER, Cause.CONNECTION))
_MOST: Final = 64 << 20
"""Longest answer that is read."""
Query: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and how long, a request is repeated; seconds."""

    attempts: int = 8
    first_delay: float = 0.5
    max_delay: float = 20.0
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; ``headers`` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def etag(self) -> str:
        """The entity tag without its quotes; empty where there is none."""
        return self.headers.get("etag", "").strip('"')

    @property
    def moment(self) -> float:
        """The store's clock, in seconds since 1970; this machine's where it does not tell."""
        try:
            return parsedate_to_datetime(self.headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return datetime.now(UTC).timestamp()


class Wire:
    """The way to the place ``url`` (``s3://bucket/prefix``). A context manager; its methods may be called in threads.

    Raises ``ValueError`` for a URL that is none of S3, ``AccessDenied`` without keys.
    """

    def __init__(
        self,
        url: str,
        *,
        account: Account | None = None,
        patience: Patience = Patience(),
        cancel: threading.Event | None = None,
    ) -> None:
        self.address = Address.parse(url)
        self.url = str(self.address)
        self._signer = Signer(self.address, account)
        self._patience, self._cancel = patience, cancel or threading.Event()
        tls = tls_context(self._signer.account.ca_cert, self._signer.url)
        self._client = httpx.Client(verify=tls, timeout=patience.timeout, follow_redirects=False)
        self.guard: Callable[[], None] = lambda: None
        """Called before every request that changes anything; what it raises ends the call."""

    def __repr__(self) -> str:
        return f"Wire({self.url!r})"

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self,
        method: str,
        name: str,
        *,
        query: Query = (),
        body: bytes | memoryview = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request for an object (the empty name: the bucket), and return its answer: 2xx, 412 or 501.

        Raises:
            NotFound: there is no such object, or upload.
            AccessDenied, FetchError: refused, or no answer within the attempts.
            Cancelled: as asked.
        """
        url, digest = self._locate(name, query), hashlib.sha256(body).hexdigest()
        renewed = False
        for attempt in range(1, self._patience.attempts + 1):
            if self._cancel.is_set():
                raise Cancelled("stopped; the same command goes on where it stopped")
            if method != "GET":
                self.guard()
            try:
                reply = self._send(method, url, digest, body, headers or {})
            except httpx.HTTPError as error:
                failed: Failed | None = Failed(Cause.CONNECTION, f"no answer: {error or type(error).__name__}")
            else:
                if reply.status < 300 or reply.status in (412, 501):
                    return reply
                failed = self._failure(reply)
                if failed is None:
                    raise NotFound(name or "the bucket", self.url)
            assert failed is not None
            if failed.cause is Cause.DENIED and not renewed and self._signer.renewed():
                renewed = True
                continue
            if failed.cause not in _AGAIN or attempt == self._patience.attempts:
                raise self._error(failed, name, attempt)
            self._wait(failed, attempt)
        raise AssertionError("unreachable")

    def objects(self, prefix: str = "") -> Iterator[Listed]:
        """Yield all objects below ``prefix`` (a beginning of names), in order of names; their names without the
        place's own prefix."""
        token = ""
        while True:
            listed, token, _ = self.page(prefix, token)
            yield from listed
            if not token:
                return

    def page(self, prefix: str = "", token: str = "") -> tuple[list[Listed], str, Reply]:
        """Return a page of that list, what asks for the next one (empty: it was the last), and the answer."""
        own = f"{self.address.prefix}/" if self.address.prefix else ""
        query = [("list-type", "2"), ("prefix", own + prefix), *([("continuation-token", token)] if token else [])]
        reply = self.ask("GET", "", query=query)
        listed, following = parse_keys(reply.body, own)
        return listed, following, reply

    def key(self, name: str) -> str:
        """Return an object's key in the bucket."""
        return f"{self.address.prefix}/{name}" if self.address.prefix else name

    def link(self, name: str, seconds: int) -> str:
        """Return a URL with which anybody can GET this object, and nothing else, for so long."""
        return self._signer.link(self._locate(name, ()), seconds)

    # ---- inside

    def _locate(self, name: str, query: Query) -> str:
        parts = urlsplit(self._signer.account.base(Address(self.address.bucket)))
        path = f"{parts.path}/{quote(self.key(name))}" if name else parts.path or "/"
        return urlunsplit(parts._replace(path=path, query=query_of(sorted(query))))

    def _send(self, method: str, url: str, digest: str, body: bytes | memoryview, headers: Mapping[str, str]) -> Reply:
        lines = self._signer.headers(method, url, payload=digest, headers=headers)
        _LOG.debug("%s %s", method, url)
        with self._client.stream(method, url, content=bytes(body), headers=lines) as response:
            data = bytearray()
            for piece in response.iter_raw():
                data += piece
                if len(data) > _MOST:
                    raise FetchError(self.url, f"an answer of more than {_MOST:,} bytes")
            return Reply(response.status_code, dict(response.headers.items()), bytes(data))

    def _failure(self, reply: Reply) -> Failed | None:
        """Return what an answer means that is no success; None: there is no such object."""
        told = refusal(reply.status, reply.headers, reply.body)
        if told is None and reply.status == 404:
            return None
        after = parse_retry_after(reply.headers.get("retry-after"), now=datetime.now(UTC))
        cause = cause_of_status(reply.status) if told is None else told.cause
        code = field(reply.body, "Code")
        own = f"the store refuses, or reports an error of its own{f' [{code}]' if code else ''}"
        detail = str(told) if told is not None else own
        return Failed(cause, detail, status=reply.status, retry_after=after)

    def _error(self, failed: Failed, name: str, attempts: int) -> FetchError:
        kind = AccessDenied if failed.cause is Cause.DENIED else FetchError
        tried = f" ({attempts} attempts)" if attempts > 1 else ""
        place = f"{self.url}/{name}" if name else self.url
        return kind(place, f"{failed}{tried}", status=failed.status, retryable=failed.cause in _AGAIN)

    def _wait(self, failed: Failed, attempt: int) -> None:
        delay = min(self._patience.max_delay, self._patience.first_delay * 2.0 ** (attempt - 1))
        delay *= 1 - random.random() / 2
        if failed.retry_after is not None:
            delay = min(self._patience.max_delay, max(delay, failed.retry_after))
        _LOG.info("%s: %s; trying again in %.1f s", self.url, failed, delay)
        end = time.monotonic() + delay
        while (left := end - time.monotonic()) > 0 and not self._cancel.wait(min(left, 1.0)):
            pass
