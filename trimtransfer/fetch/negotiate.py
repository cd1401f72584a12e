"""Proving by Kerberos who asks, and having the server prove who it is (RFC 4559, SPNEGO): tickets of `kinit`, of the
desktop's session, or by a keytab.

The only module here that knows ``gssapi``, which is imported when Kerberos is asked for. A token is made for the
service HTTP at the repository's own host and for one request; an answer counts if the server has shown that it read it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from trimtransfer.errors import AccessDenied
from trimtransfer.fetch.retry import Cause, Failed

ROUNDS: Final = 4
"""Requests that one proof may take; Kerberos needs one."""
_SPNEGO: Final = "1.3.6.1.5.5.2"
_MUTUAL: Final = 2
_LONGEST: Final = 96 << 10
_TOKEN: Final = re.compile(r"(?:^|,)\s*Negotiate(?:[ \t]+([A-Za-z0-9+/]+=*))?\s*(?:,|$)", re.IGNORECASE)
_DRIFT: Final = 240.0
"""Seconds that clocks must differ by to be worth a word; Kerberos allows 300."""
_AGAIN: Final = "then run the same command again: it goes on where it stopped"
_NO_TICKET: Final = f"there is no valid ticket: get one with kinit, or name a keytab with --keytab; {_AGAIN}"
_CLOCKS: Final = "the clock of this machine, of the server or of the KDC is wrong: set it by NTP"
_CANNOT_READ: Final = (
    "the server cannot read the ticket: its keytab is old, or of another service; tell whoever runs it"
)
_REMEDIES: Final = {
    "Ticket expired": _NO_TICKET,
    "No Kerberos credentials available": _NO_TICKET,
    "No credentials cache found": _NO_TICKET,
    "Credential cache is empty": _NO_TICKET,
    "Can't find client principal": _NO_TICKET,
    "Client not found": "the KDC does not know this user or computer: check --principal and --keytab",
    "Server not found": "the KDC knows no service HTTP of this name: use the name that the server is registered by, or "
    "have it registered (setspn, samba-tool spn add)",
    "credentials have been revoked": "the account is disabled, locked or expired; ask your administrator",
    "Password has expired": "change it (kpasswd)",
    "Preauthentication failed": "the keytab's key is not the account's: export it again",
    "Password incorrect": "the keytab's key is not the account's: export it again",
    "Ticket not yet valid": _CLOCKS,
    "Clock skew too great": _CLOCKS,
    "Decrypt integrity check failed": _CANNOT_READ,
    "Message stream modified": _CANNOT_READ,
    "not found in keytab": _CANNOT_READ,
    "Cannot find KDC": "krb5.conf does not say where the realm's KDC is",
}
"""What to do, by the library's words. Its numbers say nothing: SPNEGO hands on others."""
_UNREACHABLE: Final = ("Cannot contact any KDC", "Cannot resolve network address")
PACKAGE: Final = "pip install 'trimtransfer[kerberos]'; of Debian's packages it needs gcc, python3-dev and libkrb5-dev"


class Negotiator:
    """Kerberos for one server at ``url``. ``keytab`` and ``principal`` are of whoever asks; empty: of the session.

    Its methods may be called from any thread and may wait for the KDC. ``AccessDenied``: the package is missing.
    """

    def __init__(self, url: str, *, keytab: str = "", principal: str = "") -> None:
        try:
            import gssapi
            import gssapi.raw
        except ImportError:
            raise AccessDenied(url, f"Kerberos needs one more package: {PACKAGE}") from None
        if keytab and not os.access(keytab, os.R_OK):
            raise AccessDenied(url, f"keytab {keytab} is not there, or not for this user; name one that can be read")
        self.gssapi: Any = gssapi
        self._host = urlsplit(url).hostname or ""
        self.keytab, self._principal = keytab, principal
        # Tickets by a keytab stay in this process, and those of whoever started it as they are.
        self._cache = f"MEMORY:medv-{os.getpid()}-{id(self):x}" if keytab else ""

    def __repr__(self) -> str:
        return f"Negotiator({self._host!r})"

    def begin(self) -> Proof:
        """Begin the proof of one request."""
        return Proof(self)

    def credentials(self) -> Any:
        """Return whose tickets are used, as they are now: they are renewed by others in the middle of a run."""
        gssapi = self.gssapi
        name, store = None, {}
        if self._principal:
            name = gssapi.raw.import_name(self._principal.encode(), gssapi.NameType.kerberos_principal)
        if self.keytab:
            store = {b"client_keytab": os.fsencode(self.keytab), b"ccache": self._cache.encode()}
        if store:
            return gssapi.raw.acquire_cred_from(store, name=name, usage="initiate").creds
        return gssapi.raw.acquire_cred(name, usage="initiate").creds

    def target(self) -> Any:
        """Return the name of the service."""
        return self.gssapi.raw.import_name(f"HTTP@{self._host}".encode(), self.gssapi.NameType.hostbased_service)


class Proof:
    """The proof of one request: a token goes with it, and its answer holds one, too."""

    def __init__(self, negotiator: Negotiator) -> None:
        self._negotiator, self._gssapi = negotiator, negotiator.gssapi
        self._context: Any = None
        self._credentials: Any = None
        self._token = b""
        self._complete = self._mutual = False

    def header(self) -> str:
        """Return the Authorization header of the next request; ``Failed`` where there is no ticket."""
        if self._context is None:
            try:
                self._credentials = self._negotiator.credentials()
                self._step(None)
            except self._gssapi.exceptions.GSSError as error:
                raise self._failed(error, "no ticket for the server can be had") from None
        return "Negotiate " + base64.b64encode(self._token).decode()

    def answered(self, status: int, headers: Mapping[str, str]) -> bool:
        """Take the head of an answer in; False: another request, with another token, must follow.

        Raises:
            Failed: the server does not accept the ticket, or answers without having proven who it is.
        """
        token, more = _token(headers.get("www-authenticate", "")), False
        if token and not self._complete:
            try:
                self._step(token)
                more = bool(self._token)
            except self._gssapi.exceptions.GSSError as error:
                what = "the server does not accept the ticket" if status == 401 else "the server's proof does not count"
                raise self._failed(error, what, headers) from None
        if status == 401:
            if more:
                return False
            raise Failed(Cause.DENIED, _denied(headers), status=status)
        if status < 400 and not (self._complete and self._mutual):
            detail = (
                "the server did not prove by Kerberos who it is: it does not ask for tickets (then leave --kerberos "
                "out), or a proxy takes the WWW-Authenticate of its answers away"
            )
            raise Failed(Cause.DENIED, detail, status=status)
        return True

    def _step(self, token: bytes | None) -> None:
        gssapi = self._gssapi
        done = gssapi.raw.init_sec_context(
            self._negotiator.target(),
            creds=self._credentials,
            context=self._context,
            mech=gssapi.OID.from_int_seq(_SPNEGO),
            flags=[gssapi.RequirementFlag.mutual_authentication],
            input_token=token,
        )
        self._context, self._token = done.context, done.token or b""
        self._complete = not done.more_steps
        self._mutual = bool(int(done.flags) & _MUTUAL)

    def _failed(self, error: Any, what: str, headers: Mapping[str, str] | None = None) -> Failed:
        """Return what an error of the library means, and what to do."""
        told = " ".join(error.get_all_statuses(error.min_code or error.maj_code, not error.min_code))
        if any(words in told for words in _UNREACHABLE):
            return Failed(Cause.CONNECTION, f"{what}: {told}; see [realms] in krb5.conf")
        remedy = next((one for words, one in _REMEDIES.items() if words in told), "see klist, and krb5.conf")
        if remedy == _NO_TICKET and self._negotiator.keytab:
            remedy = f"klist -k {self._negotiator.keytab} shows whose keys it holds; name one with --principal"
        return Failed(Cause.DENIED, f"access denied: {what} ({told}){_drift(headers or {})}; {remedy}")


def _denied(headers: Mapping[str, str]) -> str:
    return (
        f"access denied: the server does not accept the Kerberos ticket{_drift(headers)}; check with klist whose it is "
        f"and that it is for this server, get a new one with kinit, {_AGAIN}"
    )


def _token(value: str) -> bytes:
    """Return the token of a WWW-Authenticate header, which may list several schemes; nothing if there is none."""
    if len(value) > _LONGEST:
        return b""
    found = _TOKEN.search(value)
    try:
        return base64.b64decode(found[1] or "", validate=True) if found else b""
    except binascii.Error:
        return b""


def _drift(headers: Mapping[str, str]) -> str:
    """Return a word on the server's clock, if it differs."""
    try:
        there = parsedate_to_datetime(headers.get("date", ""))
        seconds = (datetime.now(UTC) - there).total_seconds()
    except (ValueError, TypeError):
        return ""
    if abs(seconds) < _DRIFT:
        return ""
    return (
        f"; the clock of this machine is {abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} the server's"
    )
