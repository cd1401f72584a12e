"""A connection to a web server: one httpx client whose sockets are known, and what its errors mean.

This is the only module that knows httpx. Proxies and certificate authorities come from the environment
(``HTTPS_PROXY``, ``NO_PROXY``, ``SSL_CERT_FILE``, ``SSL_CERT_DIR``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import httpcore
import httpx

from trimtransfer.errors import AccessDenied, FetchError
from trimtransfer.fetch.answer import REMEDIES, content_length
from trimtransfer.fetch.crew import Stopped
from trimtransfer.fetch.line import Line
from trimtransfer.fetch.negotiate import ROUNDS, Negotiator, Proof
from trimtransfer.fetch.reach import NobodyListens, Reach
from trimtransfer.fetch.retry import Cause, Failed
from trimtransfer.fetch.s3 import MOST, Signer, refusal
from trimtransfer.fetch.site import follow, shown

_KEPT_ALIVE: Final = 30.0
"""Seconds that an idle connection is kept: less than the 60 to 75 after which servers close theirs."""
_DRAINED: Final = 16 << 10
"""Longest body of a redirect or an error that is read in order to keep the connection."""
_LEAST_AHEAD: Final = 64 << 10
_MOST_AHEAD: Final = 4 << 20
"""Bounds of a socket's receive buffer under a rate limit: else a sixteenth of a second for each connection. Less than
a large segment (64 KiB on loopback) would make every one of them wait for a timer."""
_NEVER: Final = float("inf")
_BAD_LOCATION: Final = "Invalid URL in location header"
"""How httpx reports a redirect that it cannot parse, although it is not asked to follow it."""
_NOT_TLS: Final = frozenset(("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"))
"""What OpenSSL says when the other side talks, but not TLS."""


class Connection:
    """One httpx client, so that its sockets are known: the watching thread can break them while another one waits.

    Usually one socket; redirects to other hosts add some. These see ``others``, the TLS without a client's certificate,
    where that differs from ``tls``. ``renewed`` tells whether there are new credentials instead of those in a header;
    a ``negotiator`` proves each request to the site's own origin anew, instead of such credentials; so does the
    ``signer`` of an object store.
    """

    def __init__(
        self,
        line: Line,
        tls: ssl.SSLContext,
        reach: Reach,
        *,
        others: ssl.SSLContext | None = None,
        renewed: Callable[[str], bool] | None = None,
        negotiator: Negotiator | None = None,
        signer: Signer | None = None,
    ) -> None:
        self.deadline = _NEVER
        self.aborted = False
        self._failure: Failed | None = None
        self._line, self._options = line, line.options
        self._sockets: list[socket.socket] = []
        self._narrow = self._connected = False
        self._recent = 0
        self._reach = reach
        self._address: str | None = None
        self._client = _client(line, tls)
        _connect_by(self._client, reach)
        self._renewed, self._negotiator, self._signer = renewed, negotiator, signer
        self._others = self._client
        if others is not None and others is not tls:
            self._others = _client(line, others)
            _connect_by(self._others, reach)

    def ask(self, url: str, headers: Mapping[str, str]) -> _Exchange:
        """Send a GET, follow redirects, and return the answer; every hop is a new request with headers of its own."""
        for _ in range(self._options.redirects + 1):
            exchange = self._proven(url, headers)
            if exchange.status not in (301, 302, 303, 307, 308):
                return exchange
            exchange.close()
            url = follow(url, exchange.headers.get("location"), status=exchange.status)
        raise Failed(Cause.REDIRECT, f"more than {self._options.redirects} redirects", status=exchange.status)

    def tell(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> _Exchange:
        """Send a request with a body, and return the answer; a redirect is ``Failed``: bodies go nowhere else."""
        exchange = self._proven(url, headers, method, body)
        if exchange.status in (301, 302, 303, 307, 308):
            exchange.close()
            raise Failed(
                Cause.REDIRECT, "redirect, but uploads go to the server's own URL only", status=exchange.status
            )
        return exchange

    def ask_once(self, url: str, headers: Mapping[str, str]) -> _Exchange:
        """Send a GET and return the answer, a redirect as it is, or a refusal; credentials are shown once."""
        own = self._line.site.is_own(url)
        if self._negotiator is not None and own:
            return self._send(url, headers, self._negotiator.begin().header())
        if self._signer is not None and own:
            return self._send(url, {**headers, **self._signer.headers("GET", url)}, None)
        return self._send(url, headers, self._line.site.authorization(url))

    def proxy(self, url: str) -> str | None:
        """Return the proxy of the environment through which a URL is asked for, without secrets, or None.

        httpx does not tell. Should its insides change one day, none is told of.
        """
        choose = getattr(self._client, "_transport_for_url", lambda url: None)
        pool = getattr(choose(httpx.URL(url)), "_pool", None)
        place = getattr(pool, "_proxy_url", None)
        return None if place is None else f"{place.scheme.decode()}://{place.host.decode()}:{place.port or ''}"

    def received(self, count: int) -> None:
        """Note arrived bytes: real progress moves the deadline."""
        self._recent += count
        if self._recent >= self._options.min_progress:
            self._recent = 0
            self.deadline = time.monotonic() + self._options.stall

    def abort(self, failure: Failed | None) -> None:
        """Break the running exchange, which then ends with ``failure`` or with ``Stopped``."""
        if not self.aborted:
            self._failure = failure
            self.aborted = True
        for sock in list(self._sockets):
            _shut(sock)

    def leave_address(self) -> None:
        """Connect to another address from now on, if the server's name (or the proxy's) has several."""
        if self._address is not None and self._reach.distrust(self._address):
            for sock in self._sockets:
                _shut(sock)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
        self._others.close()

    def check(self) -> None:
        """Raise what :meth:`abort` was called with."""
        if self.aborted:
            raise Stopped if self._failure is None else self._failure

    @contextlib.contextmanager
    def translated(self, *, body: bool) -> Iterator[None]:
        """Turn what httpx raises into ``Failed``; what an aborted socket does, into the reason of the abort."""
        try:
            yield
        except httpx.HTTPError as error:
            self.check()
            raise _failed(error, body=body) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Failed(Cause.REDIRECT, f"malformed URL: {error}") from error
        self.check()

    def _proven(self, url: str, headers: Mapping[str, str], method: str = "GET", body: bytes = b"") -> _Exchange:
        """Send a request with what the server is shown."""
        if self._negotiator is not None and self._line.site.is_own(url):
            return self._negotiated(self._negotiator.begin(), url, headers, method, body)
        if self._signer is not None and self._line.site.is_own(url):
            return self._signed(self._signer, url, headers)
        exchange = self._send(url, headers, self._line.site.authorization(url), method, body)
        if exchange.status == 401 and self._renewed is not None and self._renewed(exchange.authorization or ""):
            exchange.close()
            exchange = self._send(url, headers, self._line.site.authorization(url), method, body)
        return exchange

    def _signed(self, signer: Signer, url: str, headers: Mapping[str, str]) -> _Exchange:
        """Send a GET to an object store, once more if there are new keys; ``Failed`` for refusals that it explains."""
        tried = False
        while True:
            exchange = self._send(url, {**headers, **signer.headers("GET", url)}, None)
            if exchange.status < 300:
                return exchange
            failed = refusal(exchange.status, exchange.headers, exchange.beginning(MOST))
            if failed is None:
                return exchange
            exchange.close()
            if tried or failed.cause is not Cause.DENIED or not signer.renewed():
                raise failed
            tried = True

    def _negotiated(self, proof: Proof, url: str, headers: Mapping[str, str], method: str, body: bytes) -> _Exchange:
        """Send a request, again with each token that the server asks for; ``Failed`` where a side proves nothing."""
        for _ in range(ROUNDS):
            exchange = self._send(url, headers, proof.header(), method, body)
            try:
                done = proof.answered(exchange.status, exchange.headers)
            except BaseException:
                exchange.close()
                raise
            if done:
                return exchange
            exchange.close()
        raise Failed(Cause.DENIED, f"Kerberos came to no end in {ROUNDS} rounds", status=401)

    def _send(
        self, url: str, headers: Mapping[str, str], authorization: str | None, method: str = "GET", body: bytes = b""
    ) -> _Exchange:
        own = dict(headers)
        if authorization is not None:
            own["Authorization"] = authorization
        self._fit_rate()
        self._recent = 0
        self.deadline = time.monotonic() + self._options.stall
        self._connected = False
        with self.translated(body=False):
            client = self._client if self._line.site.is_own(url) else self._others
            content = None if method == "GET" else body
            request = client.build_request(method, url, headers=own, content=content, extensions={"trace": self._trace})
            self._line.stats.count(requests=1)
            begun = time.monotonic()
            response = client.send(request, stream=True)
            if not self._connected:
                self._line.throttle.answered(time.monotonic() - begun)
        return _Exchange(self, response, url, authorization)

    def _trace(self, event: str, facts: Mapping[str, Any]) -> None:
        """Learn of new sockets, from httpcore's trace of what it does."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        self._sockets = [known for known in self._sockets if known.fileno() >= 0]
        sock = facts["return_value"].get_extra_info("socket")
        if isinstance(sock, socket.socket):
            self._sockets.append(sock)
            self._connected = True
            with contextlib.suppress(OSError):
                self._address = str(sock.getpeername()[0])
                self._line.throttle.connected(self._address)
            self._fit_rate()
            if self.aborted:
                _shut(sock)

    def _fit_rate(self) -> None:
        """Under a rate limit, let the kernel take in little ahead of what has been paid for."""
        rate = self._line.bucket.rate
        for sock in self._sockets:
            if rate is not None:
                size = min(_MOST_AHEAD, max(_LEAST_AHEAD, int(rate / 16)))
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            elif self._narrow:
                _shut(sock)  # the kernel does not widen a buffer again by itself: httpx opens a new connection
        self._narrow = rate is not None


class _Exchange:
    """An answer of httpx whose head has arrived."""

    def __init__(self, connection: Connection, response: httpx.Response, url: str, authorization: str | None) -> None:
        self.status, self.authorization = response.status_code, authorization
        self.headers: Mapping[str, str] = dict(response.headers.items())
        self.url = url
        self.protocol, self.opened, self.address = response.http_version, connection._connected, connection._address
        self._connection, self._response = connection, response

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives; iter_raw undoes the transfer coding only."""
        with self._connection.translated(body=True):
            yield from self._response.iter_raw()

    def beginning(self, limit: int) -> bytes:
        """Return the body's first bytes, up to about ``limit``: all there will be of it."""
        data = b""
        for chunk in self.chunks():
            data += chunk
            if len(data) >= limit:
                break
        return data

    def close(self) -> None:
        """End the exchange; the short body of an answer that is no object is read, to keep the connection."""
        length = content_length(self.headers)
        if self.status >= 300 and length is not None and length <= _DRAINED:
            with contextlib.suppress(Failed, Stopped, httpx.StreamError):
                for chunk in self.chunks():
                    self._connection._line.stats.count(bytes=len(chunk))
        self._response.close()
        self._connection.deadline = _NEVER


def _client(line: Line, tls: ssl.SSLContext) -> httpx.Client:
    options = line.options
    timeout = httpx.Timeout(options.stall, connect=options.connect, pool=None)
    try:
        return httpx.Client(
            verify=tls,
            http2=False,
            timeout=timeout,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": f"trimtransfer/{_version()}"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=4, keepalive_expiry=_KEPT_ALIVE),
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise FetchError(line.site.url, f"proxy settings of the environment cannot be used: {error}") from error


def _connect_by(client: httpx.Client, reach: Reach) -> None:
    """Let a client, and its ways by proxies, connect by ``reach``.

    httpx has no option for that. Should its insides change one day, it connects in its own way, only slower.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if isinstance(pool, httpcore.ConnectionPool) and hasattr(pool, "_network_backend"):
            pool._network_backend = reach


def tls_context(ca_cert: str | None, url: str, client_cert: str = "", client_key: str = "") -> ssl.SSLContext:
    """Return a TLS context of a store: believes ``ca_cert``, else the environment's, else the system's authorities.

    With ``client_cert`` it shows that certificate to servers which ask for one. ``FetchError``, ``AccessDenied``.
    """
    context = _believing(ca_cert, url)
    if client_cert:
        try:
            # A password in the key's place would be asked for on the terminal; an encrypted key is refused instead.
            context.load_cert_chain(client_cert, client_key or None, password="")
        except (OSError, ValueError) as error:
            what = f"client certificate {client_cert}" + (f" with key {client_key}" if client_key else "")
            cause = f"{what} cannot be used: {error}; name PEM files that belong together, the key without a password"
            raise AccessDenied(url, cause) from error
    return context


def _believing(ca_cert: str | None, url: str) -> ssl.SSLContext:
    paths = ssl.get_default_verify_paths()
    try:
        if ca_cert is not None:
            folder = os.path.isdir(ca_cert)
            return ssl.create_default_context(cafile=None if folder else ca_cert, capath=ca_cert if folder else None)
        context = ssl.create_default_context()
        if paths.cafile or (paths.capath and os.listdir(paths.capath)) or context.cert_store_stats()["x509_ca"]:
            return context
        return httpx.create_ssl_context()  # systems without a store of their own: the list that comes with httpx
    except OSError as error:
        what = ca_cert or "certificates of the environment (SSL_CERT_FILE, SSL_CERT_DIR)"
        raise FetchError(url, f"{what} cannot be read as certificate authorities: {error}") from error


def _hide_queries(record: logging.LogRecord) -> bool:
    """Take queries, which may be signatures, out of the URLs that httpx logs."""
    if isinstance(record.args, tuple):
        record.args = tuple(shown(str(item)) if isinstance(item, httpx.URL) else item for item in record.args)
    return True


logging.getLogger("httpx").addFilter(_hide_queries)


def _version() -> str:
    try:
        return version("trimtransfer")
    except PackageNotFoundError:
        return "0"


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits for this socket. The method of ``socket``, not of SSLSocket, which would change its state."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _failed(error: httpx.HTTPError, *, body: bool) -> Failed:
    """Return the cause of what httpx reports; ``body`` tells whether the answer's head had arrived."""
    for link in _chain(error):
        if isinstance(link, NobodyListens):
            return Failed(Cause.NOBODY, str(link))
        if isinstance(link, ssl.SSLCertVerificationError):
            return Failed(Cause.CERTIFICATE, _certificate_detail(link))
        if isinstance(link, ssl.SSLError) and link.reason in _NOT_TLS:
            return Failed(Cause.NOT_TLS, "the server does not speak TLS at this port; is it http:// or another port?")
        if isinstance(link, socket.gaierror):
            return Failed(Cause.CONNECTION, f"host name not found ({link.strerror}); check the name and the network")
    text = str(error)[:200] or type(error).__name__
    if isinstance(error, httpx.ProxyError):
        if text.startswith("407"):
            return Failed(Cause.PROXY_DENIED, REMEDIES[Cause.PROXY_DENIED], status=407)
        return Failed(Cause.CONNECTION, f"the proxy did not connect: {text}")
    if text.startswith(_BAD_LOCATION):
        return Failed(Cause.REDIRECT, "redirect to a malformed URL")
    if isinstance(error, httpx.ConnectTimeout):
        return Failed(Cause.CONNECTION, "no connection in time")
    if isinstance(error, httpx.TimeoutException):
        return Failed(Cause.STALL, "no byte in time")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return Failed(Cause.REFUSED, text)
    return Failed(Cause.CUT, f"the answer broke off: {text}") if body else Failed(Cause.CONNECTION, text)


def _certificate_detail(error: ssl.SSLCertVerificationError) -> str:
    return (
        f"the server's certificate is not valid here: {error.verify_message}; if its authority is your own, name its "
        "certificate with --ca-cert (ca_cert=) or SSL_CERT_FILE; if the clock of this machine is wrong, set it"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what led to it."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
