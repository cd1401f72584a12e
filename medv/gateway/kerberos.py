"""Who sends a Kerberos ticket: users, computers and their groups, by the ticket itself; no directory is asked.

Names are those of the account in the directory (from the PAC), never those that the client chose: Active Directory
gives a computer PC1$ a ticket as "PC1", and a user ALICE one in any spelling. So a computer is one because its account
is a computer's.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from medv.gateway.acceptor import SCHEME, Acceptor, Client
from medv.gateway.access import Principal
from medv.gateway.pac import Account, read
from medv.gateway.schemes import Presented, Proven
from medv.gateway.settings import Kerberos, group_names
from medv.gateway.trouble import Refused
from trimtransfer.errors import FormatError

_AT_ONCE: Final = 4
"""Tokens that are looked at at the same time: each occupies a thread, which answers need, too."""
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f/@]{1,256}")
_CAPITALS: Final = {one: one + 32 for one in range(ord("A"), ord("Z") + 1)}
"""Active Directory does not tell cases apart; letters beyond ASCII stay as they are, so that no two names meet."""


class KerberosScheme:
    """`Authorization: Negotiate`. Every request is proven anew, as each token counts once.

    ``realms``: those of clients that count; none: the service's own. ``groups``: names by SID. Without ``pac`` (a KDC
    other than Active Directory) names are the principals', and there are no groups.
    """

    name = SCHEME
    challenge = "Negotiate"

    def __init__(
        self,
        acceptor: Acceptor,
        *,
        realms: Sequence[str] = (),
        groups: Mapping[str, str] | None = None,
        pac: bool = True,
    ) -> None:
        self._acceptor, self._realms, self._groups, self._pac = acceptor, frozenset(realms), dict(groups or {}), pac
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._begun: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @classmethod
    def of(cls, settings: Kerberos) -> KerberosScheme:
        """Return the scheme that settings describe; ``ConfigError`` where the keytab or the package is missing."""
        acceptor, groups = Acceptor(settings.keytab, settings.service), group_names("configuration", settings)
        return cls(acceptor, realms=settings.realms, groups=groups, pac=settings.pac)

    def check(self) -> None:
        """Raise ``ConfigError`` where the keytab cannot be used any more."""
        self._acceptor.check()

    async def prove(self, presented: Presented, now: float) -> Proven | None:
        """Take the token in; ``Refused`` with an answer where the client has to send another one."""
        kind, _, value = presented.authorization.partition(" ")
        if kind.lower() != "negotiate":
            return None
        try:
            token = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise Refused(self.name, "not what RFC 4559 says") from None
        begun = self._begun.pop(presented.connection, None) if presented.connection is not None else None
        async with self._turns:
            step = await asyncio.to_thread(self._acceptor.step, token, begun)
        if step.client is None:
            if presented.connection is None:
                raise Refused(self.name, "wants a second round, which a proxy may hand to another connection")
            self._begun[presented.connection] = step.context
            raise Refused(self.name, "goes on", token=step.answer)
        line = b"Negotiate " + base64.b64encode(step.answer) if step.answer else b""
        principal = self._principal(step.client)
        return Proven(principal, ((b"www-authenticate", line),) if line else (), lasting=False)

    def _principal(self, client: Client) -> Principal:
        name, _, realm = client.principal.rpartition("@")
        allowed = self._realms or {client.service.rpartition("@")[2]}
        if not name or realm not in allowed:
            known = ", ".join(sorted(allowed))
            raise Refused(self.name, f"{client.principal[:200]!r} is of another realm than {known}")
        if not self._pac:
            return self._by_name(name, realm)
        try:
            return self._by_account(read(client.pac), realm)
        except FormatError as error:
            reason = f"the ticket of {client.principal[:200]!r} tells no account ({error})"
            raise Refused(self.name, f"{reason}; [kerberos] pac = false if the KDC is no Active Directory") from None

    def _by_account(self, account: Account, realm: str) -> Principal:
        name = account.name.translate(_CAPITALS)
        if not _NAME.fullmatch(name) or account.trust or account.disabled:
            raise Refused(self.name, f"{account.name[:200]!r} is no account of a user or a computer")
        groups = frozenset(self._groups.get(sid, sid) for sid in account.groups) | account.groups
        if not account.computer:
            return Principal(self.name, user=f"{name}@{realm}", groups=groups)
        if not name.endswith("$"):
            # Whoever may create computers can call one as another is called, without the dollar.
            raise Refused(self.name, f"the computer account {account.name[:200]!r} is called as no computer is")
        return Principal(self.name, computer=f"{name[:-1]}@{realm}", groups=groups)

    def _by_name(self, name: str, realm: str) -> Principal:
        service, _, host = name.rpartition("/")
        if not all(_NAME.fullmatch(part) for part in name.split("/")) or service == "WELLKNOWN":
            raise Refused(self.name, f"{name[:200]!r} is no user or computer")
        if service == "host":
            return Principal(self.name, computer=f"{host}@{realm}")
        return Principal(self.name, user=f"{name}@{realm}")
