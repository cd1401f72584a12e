"""Ways in which a request proves who sends it, one after the other; each knows nothing of the others.

What is presented decides: an ``Authorization`` header first, then a signature in the query, then the certificate of the
TLS connection. What is presented and does not count is refused, whatever else is there. Without any of them, it is
anybody.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from medv.gateway import signedurls
from medv.gateway.access import ANONYMOUS, Principal, Scope
from medv.gateway.tokens import BadToken, TokenFile
from medv.gateway.trouble import Refused
from medv.ranges import Headers

MAX_AUTHORIZATION: Final = 66 << 10
"""Longest ``Authorization`` that is looked at: a ticket of 48,000 bytes, the most that Windows makes, in base64."""


_BEARER: Final = 'Bearer realm="medv"'


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request carries: the ``authorization`` header, ``query`` and ``path`` as they came, the client's
    ``certificate`` (DER, which TLS has verified) and ``address``. ``connection`` is the same for requests of one
    client, None where others may share it: behind a proxy."""

    authorization: str = ""
    query: str = ""
    path: str = "/"
    certificate: bytes = b""
    address: str = ""
    connection: object | None = None


@dataclass(frozen=True, slots=True)
class Proven:
    """Who it is. ``headers`` go into the answer, whatever it is. ``lasting``: shown again, it would prove the same."""

    principal: Principal
    headers: tuple[tuple[bytes, bytes], ...] = ()
    lasting: bool = True


class Scheme(Protocol):
    """One way. ``challenge`` is its line of ``WWW-Authenticate``, or empty."""

    name: str
    challenge: str

    async def prove(self, presented: Presented, now: float) -> Proven | None:
        """Return who it is; None where nothing of this scheme is presented. ``Refused`` where that does not count."""
        ...


class Authenticator:
    """All schemes of a server, in the order in which they are asked."""

    def __init__(self, schemes: Sequence[Scheme]) -> None:
        self.schemes = tuple(schemes)

    def __repr__(self) -> str:
        return f"Authenticator({', '.join(scheme.name for scheme in self.schemes)})"

    async def prove(self, presented: Presented, now: float) -> Proven:
        """Return who sends this; ``Refused``."""
        if len(presented.authorization) > MAX_AUTHORIZATION:
            raise Refused("authorization", "longer than any credentials")
        for scheme in self.schemes:
            proven = await scheme.prove(presented, now)
            if proven is not None:
                expires = proven.principal.expires
                if expires is not None and now > expires + signedurls.SKEW:
                    raise Refused(scheme.name, "expired", expired=True)
                return proven
        if presented.authorization:
            raise Refused("authorization", "of no scheme of this server")
        return Proven(ANONYMOUS)

    def challenges(self, refused: Refused | None = None) -> Headers:
        """Return the lines of ``WWW-Authenticate`` for an answer 401."""
        error = ""
        if refused is not None:
            why = "expired" if refused.expired else "not valid here"
            error = f', error="invalid_token", error_description="{why}"'
        # An answer 401 has at least one (RFC 9110 section 15.5.2), also where only URLs and certificates count.
        known = dict.fromkeys(scheme.challenge for scheme in self.schemes if scheme.challenge) or {_BEARER: None}
        token = base64.b64encode(refused.token).decode() if refused is not None else ""
        lines = (one + error if one.startswith("Bearer ") else f"{one} {token}".rstrip() for one in known)
        return [(b"www-authenticate", line.encode()) for line in lines]


class TokenScheme:
    """Opaque tokens: ``Authorization: Bearer medv_...``, or the password of ``Basic`` for old programs."""

    name = "token"
    challenge = _BEARER

    def __init__(self, tokens: TokenFile) -> None:
        self.tokens = tokens

    async def prove(self, presented: Presented, now: float) -> Proven | None:
        """Look the token up."""
        kind, _, value = presented.authorization.partition(" ")
        shown = value.strip()
        if kind.lower() == "basic":
            shown = _password(shown)
        elif kind.lower() != "bearer" or not shown.startswith("medv_"):
            return None
        try:
            return Proven(self.tokens.check(shown, now))
        except BadToken as error:
            raise Refused(self.name, str(error), expired=error.expired) from None


class SignedUrlScheme:
    """URLs signed with one of a few keys: the newest, and older ones until their URLs have come to their end."""

    name = "signed url"
    challenge = ""

    def __init__(self, keys: Callable[[], tuple[bytes, ...]]) -> None:
        self._keys = keys

    async def prove(self, presented: Presented, now: float) -> Proven | None:
        """Check the signature in the query, if there is one."""
        if presented.authorization:
            return None
        try:
            permit = signedurls.check(presented.query, presented.path, self._keys(), now)
        except signedurls.BadSignature as error:
            raise Refused(self.name, str(error), expired=error.expired) from None
        if permit is None:
            return None
        scope, end = Scope(permit.images), float(permit.end)
        label = permit.label or "bearer of a signed url"
        return Proven(Principal(self.name, user=label, scope=scope, grants=True, expires=end))


def _password(basic: str) -> str:
    try:
        return base64.b64decode(basic, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise Refused("basic", "not what RFC 7617 says") from None
