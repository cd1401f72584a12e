"""What was seen when a server was asked something: one exchange, a certificate, an address. Pure values.

A probe draws no conclusions; whoever asked does. All texts are as servers sent them: not to be believed, and bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trimtransfer.fetch.retry import Cause


@dataclass(frozen=True, slots=True)
class Hop:
    """A redirect: its status, and the URLs without secrets; ``crossed`` if they are of different origins."""

    status: int
    origin: str
    target: str
    crossed: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """One question for an object and what came of it.

    ``asked`` is the range (start, stop) or None. ``status`` is None where no answer came; then, or where its body broke
    off, ``cause`` and ``problem`` tell why. ``headers`` by lower-case name. ``body`` is what was read of it; ``ended``
    whether that is all. ``opened``: a new connection was made for it. Seconds: until the head came, and all the body;
    ``at`` is the wall clock when the head came.
    """

    name: str
    url: str
    asked: tuple[int, int] | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    cause: Cause | None = None
    problem: str = ""
    hops: tuple[Hop, ...] = ()
    protocol: str = "HTTP/1.1"
    opened: bool = True
    address: str = ""
    seconds: float = 0.0
    body_seconds: float = 0.0
    at: float = 0.0

    @property
    def succeeded(self) -> bool:
        """Whether an answer with bytes of an object came, and did not break off."""
        return self.status in (200, 206) and self.cause is None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as its text fields: names it is for, whose it is, who issued it, until when (in seconds
    since 1970)."""

    names: tuple[str, ...] = ()
    subject: str = ""
    issuer: str = ""
    not_after: float | None = None


@dataclass(frozen=True, slots=True)
class TlsSeen:
    """A handshake: the protocol's ``version``; the certificates that were sent, the server's own first, as far as they
    can be told; and how checking them failed (OpenSSL's number and words; 0: it did not)."""

    version: str = ""
    chain: tuple[Certificate, ...] = ()
    error: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AddressSeen:
    """An address of the server's name: what came of asking it alone."""

    address: str
    seen: Seen
