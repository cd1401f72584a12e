"""JWT access tokens of an OpenID provider: checked against its published keys, its name, and what they are meant for.

The only module that knows ``joserfc``. Keys are fetched when they are needed, and again when a token names one that is
not among them, seldom enough that nobody can make this server ask for them all day. While the provider is away, the
keys that are known go on counting for a day.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from medv.gateway.access import Principal
from medv.gateway.schemes import Presented, Proven
from medv.gateway.signedurls import SKEW
from medv.gateway.trouble import Refused
from trimtransfer.errors import TrimTransferError

_LOG: Final = logging.getLogger("medv.oidc")
_MAX_TOKEN: Final = 16 << 10
_MAX_DOCUMENT: Final = 256 << 10
_FRESH: Final = 3600.0
"""Seconds after which keys are fetched again."""
_STALE: Final = 86_400.0
"""Seconds that keys count while the provider cannot be asked."""
_PAUSE: Final = 30.0
"""Seconds between two attempts to fetch keys."""
_REMEMBERED: Final = 4096
"""Tokens whose signature was found right; each is believed until it ends, a minute at most."""
_BELIEVED: Final = 60.0


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenID provider: its ``issuer`` (as ``iss`` has it), the ``audience`` that tokens for this server name.

    ``jwks_url`` is where its keys are; where that is empty, its discovery document says so. The claims that name the
    user, his groups, and the scopes; ``required_scope`` must be among these, unless empty.
    """

    issuer: str
    audience: str
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    user_claim: str = "sub"
    groups_claim: str = "groups"
    required_scope: str = ""
    ca_cert: str = ""


Fetch = Callable[[str], bytes]
"""Fetches a small document by its URL; raises the project's errors."""


class JwtScheme:
    """Bearer tokens that are JWTs of one provider."""

    name = "oidc"
    challenge = 'Bearer realm="medv"'

    def __init__(self, provider: Provider, fetch: Fetch | None = None) -> None:
        self.provider = provider
        self._fetch = fetch or (lambda url: fetch_document(url, provider.ca_cert))
        self._keys: KeySet | None = None
        self._fetched = self._tried = float("-inf")
        self._lock = asyncio.Lock()
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    async def prove(self, presented: Presented, now: float) -> Proven | None:
        """Check signature, issuer, audience and times."""
        kind, _, value = presented.authorization.partition(" ")
        token = value.strip()
        if kind.lower() != "bearer" or token.count(".") != 2:
            return None
        if len(token) > _MAX_TOKEN:
            raise Refused(self.name, "longer than any token")
        digest = hashlib.sha256(token.encode()).digest()
        until, principal = self._known.get(digest, (0.0, None))
        if principal is None or now >= until:
            principal = self._principal(await self._claims(token, now), now)
            self._remember(digest, principal, now)
        return Proven(principal)

    def _remember(self, digest: bytes, principal: Principal, now: float) -> None:
        until = now + _BELIEVED if principal.expires is None else min(now + _BELIEVED, principal.expires)
        self._known[digest] = until, principal
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def _claims(self, token: str, now: float) -> Mapping[str, Any]:
        """Return the claims of a token whose signature is right."""
        key_id = self._key_id(token)
        await self._have_keys(key_id)
        if self._keys is None or time.monotonic() - self._fetched > _STALE:
            raise Refused(self.name, "the provider's keys cannot be had")
        try:
            return jwt.decode(token, self._keys, algorithms=list(self.provider.algorithms)).claims
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Refused(self.name, f"not genuine: {type(error).__name__}") from None

    def _key_id(self, token: str) -> str | None:
        """Return the key that the token names; refuse what names no algorithm of ours before any key is looked at."""
        try:
            header = jws.extract_compact(token.encode()).headers()
        except (JoseError, ValueError, TypeError) as error:
            raise Refused(self.name, f"no token: {type(error).__name__}") from None
        if header.get("alg") not in self.provider.algorithms:
            raise Refused(self.name, f"signed by {str(header.get('alg'))[:20]!r}, which does not count here")
        key_id = header.get("kid")
        return key_id if isinstance(key_id, str) else None

    def _principal(self, claims: Mapping[str, Any], now: float) -> Principal:
        provider = self.provider
        if claims.get("iss") != provider.issuer:
            raise Refused(self.name, f"of another issuer: {str(claims.get('iss'))[:100]!r}")
        audience = claims.get("aud")
        if provider.audience not in (audience if isinstance(audience, list) else [audience]):
            raise Refused(self.name, f"meant for another audience: {str(audience)[:100]!r}")
        expires = _moment(claims, "exp")
        if expires is None:
            raise Refused(self.name, "without an end (exp)")
        if now > expires + SKEW:
            raise Refused(self.name, f"expired {now - expires:.0f} s ago", expired=True)
        for claim in ("nbf", "iat"):
            if (begins := _moment(claims, claim)) is not None and now < begins - SKEW:
                raise Refused(self.name, f"not valid yet ({claim})")
        scopes = claims.get("scope", claims.get("scp", ""))
        if provider.required_scope and provider.required_scope not in _words(scopes):
            raise Refused(self.name, f"without the scope {provider.required_scope}")
        user = claims.get(provider.user_claim)
        if not isinstance(user, str) or not user:
            raise Refused(self.name, f"without the claim {provider.user_claim}")
        groups = frozenset(_words(claims.get(provider.groups_claim, ())))
        return Principal(self.name, user=user[:200], groups=groups, expires=expires)

    async def _have_keys(self, key_id: str | None) -> None:
        """Fetch the keys if there are none, if they are old, or if the named one is not among them."""
        if self._is_known(key_id):
            return
        async with self._lock:
            now = time.monotonic()
            if self._is_known(key_id) or now - self._tried < _PAUSE:
                return
            self._tried = now
            try:
                self._keys = await asyncio.to_thread(self._read_keys)
                self._fetched = time.monotonic()
            except (TrimTransferError, JoseError, ValueError, TypeError, KeyError) as error:
                _LOG.warning("the keys of %s cannot be had: %s", self.provider.issuer, error)

    def _is_known(self, key_id: str | None) -> bool:
        if self._keys is None or time.monotonic() - self._fetched > _FRESH:
            return False
        return key_id is None or any(key.kid == key_id for key in self._keys.keys)

    def _read_keys(self) -> KeySet:
        url = self.provider.jwks_url
        if not url:
            found = json.loads(self._fetch(self.provider.issuer.rstrip("/") + "/.well-known/openid-configuration"))
            if found["issuer"] != self.provider.issuer:
                raise ValueError("its discovery document is of another issuer")
            url = found["jwks_uri"]
            if not isinstance(url, str) or (self.provider.issuer.startswith("https:") and url[:6] != "https:"):
                raise ValueError("its discovery document names no https URL for its keys")
        keys = json.loads(self._fetch(url))["keys"]
        usable = [key for key in keys if key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig"]
        return KeySet.import_key_set({"keys": usable})


def fetch_document(url: str, ca_cert: str = "") -> bytes:
    """Fetch a small document, as a client of a repository would: by HTTPS, with limits of size and time."""
    from trimtransfer.fetch.http import FetchOptions, HttpStore

    base, _, name = url.rpartition("/")
    store = HttpStore(base, ca_cert=ca_cert or None, options=FetchOptions(stall=10.0, connect=5.0, budget=15.0))
    try:
        return store.read(name, limit=_MAX_DOCUMENT)
    finally:
        store.close()


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise Refused("oidc", f"{name} is no time")
    return float(value)


def _words(value: Any) -> list[str]:
    """Return a claim that is a list of words, or one string of them."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
    return [word for word in words if isinstance(word, str)]
