"""What a proxy in front says of a request: believed only from the addresses, and with the secret, that were configured.

Pure. From anybody else these headers are as if they were not there.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final

from medv.gateway.certificates import from_escaped
from medv.gateway.settings import Network
from medv.ranges import Headers

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]{2,45}")


@dataclass(frozen=True, slots=True)
class Told:
    """What counts of a request: whether a ``trusted`` proxy sent it, the client's ``address``, ``certificate`` (DER),
    an ``id`` (empty: none), and what the proxy asks about: ``path``, ``query`` and ``method``."""

    trusted: bool
    address: str
    certificate: bytes = b""
    id: str = ""
    path: bytes = b""
    query: str = ""
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies whose word counts: by network, ``unix`` for whoever reaches the unix socket, with a ``secret``."""

    networks: Sequence[Network] = ()
    unix: bool = False
    secret: str = ""

    def read(self, client: tuple[str, int] | None, headers: Headers, certificate: bytes) -> Told:
        """Return what counts of a request from ``client`` (None: over a unix socket) that showed a ``certificate``.

        Raises:
            Refused: a trusted proxy handed on a certificate that is none.
        """
        address = client[0] if client else "unix"
        if not self._trusts(client, headers):
            return Told(False, address, certificate)
        told = value(headers, b"x-real-ip")
        shown = value(headers, b"x-client-cert") if value(headers, b"x-client-verify") == "SUCCESS" else ""
        id = value(headers, b"x-request-id")
        return Told(
            True,
            told if _ADDRESS.fullmatch(told) else address,
            from_escaped(shown) if shown else b"",
            id if _REQUEST_ID.fullmatch(id) else "",
            value(headers, b"x-original-uri").encode("latin-1"),
            value(headers, b"x-original-args"),
            value(headers, b"x-original-method") or "GET",
        )

    def is_proxy(self, address: str) -> bool:
        """Tell whether connections from an address (or ``unix``) are a proxy's: they are not counted by client."""
        return self.unix if address == "unix" else _within(address, tuple(self.networks))

    def _trusts(self, client: tuple[str, int] | None, headers: Headers) -> bool:
        if not (self.unix if client is None else _within(client[0], tuple(self.networks))):
            return False
        return not self.secret or hmac.compare_digest(value(headers, b"x-medv-proxy").encode(), self.secret.encode())


def value(headers: Headers, name: bytes) -> str:
    """Return the value of a header that is there once; empty: it is not, or several times."""
    found = [one for key, one in headers if key == name]
    return found[0].decode("latin-1") if len(found) == 1 else ""


def certificate_of(scope: Any) -> bytes:
    """Return the client's certificate of the TLS connection of an ASGI scope (DER), or nothing."""
    connection = scope.get("extensions", {}).get("medv.connection")
    return connection.certificate if connection is not None else b""


@lru_cache(maxsize=1024)
def _within(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed.version == network.version and parsed in network for network in networks)
