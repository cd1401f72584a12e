"""How a repository's server is approached: where it is, which authorities are believed, and what it is shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from trimtransfer.fetch.account import Address, is_s3
from trimtransfer.fetch.connection import Connection, tls_context
from trimtransfer.fetch.credentials import NOTHING, Credential, bearer_for, negotiator_for
from trimtransfer.fetch.line import Line
from trimtransfer.fetch.reach import Reach
from trimtransfer.fetch.s3 import Signer
from trimtransfer.fetch.site import Site


class Approach:
    """The server of a repository at ``url``, which is believed by ``ca_cert`` and shown a ``credential``.

    ``site`` is its address; ``tls`` what it is spoken to with, ``others`` what other servers are.

    Raises ``ValueError`` for a malformed URL, ``FetchError`` and ``AccessDenied`` for unusable certificates and
    credentials.
    """

    def __init__(self, url: str, *, ca_cert: str | None = None, credential: Credential = NOTHING) -> None:
        self._signer: Signer | None = None
        if is_s3(url):
            self._signer, credential = Signer(Address.parse(url)), NOTHING
            url, ca_cert = self._signer.url, ca_cert or self._signer.account.ca_cert
        plain = Site(url).url
        self._bearer, self._negotiator = bearer_for(credential, plain), negotiator_for(credential, plain)
        self.site = Site(url, self._bearer.header if self._bearer else None)
        self._url, self._believed = url, ca_cert or credential.ca_cert or None
        self.tls = tls_context(self._believed, plain, credential.client_cert, credential.client_key)
        self.others = tls_context(self._believed, plain) if credential.client_cert else self.tls

    def __repr__(self) -> str:
        return f"Approach({self.site.url!r})"

    @property
    def is_shown_something(self) -> bool:
        """Whether the server is shown credentials: those within the URL, such as a signature, among them."""
        shown = self._signer or self._bearer or self._negotiator or self.tls is not self.others
        return bool(shown) or self.has_query or "@" in urlsplit(self._url).netloc

    @property
    def has_query(self) -> bool:
        """Whether the URL has a query, such as a signature."""
        return bool(urlsplit(self._url).query)

    def connection(self, line: Line, reach: Reach) -> Connection:
        """Return a connection to the server."""
        return Connection(
            line,
            self.tls,
            reach,
            others=self.others,
            renewed=self._bearer.renewed if self._bearer else None,
            negotiator=self._negotiator,
            signer=self._signer,
        )

    def without_credentials(self) -> Approach:
        """Return the way to the same server on which it is shown nothing."""
        parts = urlsplit(self._url)
        return self.elsewhere(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")))

    def elsewhere(self, url: str) -> Approach:
        """Return the way to another server, which is shown nothing; the same authorities are believed."""
        return Approach(url, ca_cert=self._believed)
