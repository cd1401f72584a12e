"""The server's side of Kerberos: tokens of `Negotiate` (RFC 4559, SPNEGO) taken in with the keys of a keytab.

The only module here that knows ``gssapi``, which is imported when it is needed. What its calls raise is raised at once:
the convenient classes of that package tell of a bad token only when the result is looked at.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any, Final

from medv.gateway.trouble import ConfigError, Refused

SCHEME: Final = "kerberos"
_KERBEROS: Final = "1.2.840.113554.1.2.2"
_ANONYMOUS: Final = 64
_EXPIRED: Final = "Ticket expired"
_OTHER_KEY: Final = "sealed by another key: the account's password changed since the keytab was made; export it again"
_REASONS: Final = {
    _EXPIRED: "the ticket has expired",
    "Ticket not yet valid": "the clocks of this machine, the client and the KDC differ; set the wrong one by NTP",
    "Clock skew too great": "the clocks of the client and of this machine differ by more than krb5.conf allows "
    "(clockskew, 5 minutes); set the wrong one by NTP",
    "Request is a replay": "a token that was shown before",
    "Decrypt integrity check failed": _OTHER_KEY,
    "Message stream modified": _OTHER_KEY,
    "not found in keytab": "a ticket for another service, or sealed by another version of its key, than the keytab "
    "holds (klist -k); clients must use a name that the keytab has, or it is to be exported again",
    "Cannot find key": "the keytab lacks a key of the ticket's kind of encryption; export it again, with AES keys",
}
"""What the library's words mean for whoever runs the server. Its numbers say nothing: SPNEGO hands on others."""
REMEDY: Final = "pip install 'trimtransfer[kerberos]'; of Debian's packages it needs gcc, python3-dev and libkrb5-dev"


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever sent a token: ``principal`` (with realm), the ``service`` that it was for, the PAC if there is one."""

    principal: str
    service: str
    pac: bytes = b""


@dataclass(frozen=True, slots=True)
class Step:
    """What a token led to: the ``answer`` that goes back, and the ``client``, or (None) a ``context`` to go on with."""

    answer: bytes
    client: Client | None = None
    context: Any = None


class Acceptor:
    """Takes tokens in. Its methods wait for disks, and may be called from any thread.

    Raises ``ConfigError`` where the keytab, or the package, is not there or cannot be used.
    """

    def __init__(self, keytab: str, service: str) -> None:
        self._gssapi = _library()
        self._keytab, self._service = keytab, service
        self.check()

    def __repr__(self) -> str:
        return f"Acceptor({self._keytab!r}, {self._service!r})"

    def check(self) -> None:
        """Raise ``ConfigError`` where the keytab cannot be used, or not any more."""
        _check_secret(self._keytab)
        try:
            self._credentials()
        except self._gssapi.exceptions.GSSError as error:
            problem = f"{self._keytab} cannot be used for {self._service}: {_told(error)}"
            remedy = f"it holds the keys of a service {self._service.partition('@')[0]}/NAME (klist -k {self._keytab})"
            raise ConfigError("configuration", "kerberos.keytab", problem, remedy) from None

    def step(self, token: bytes, context: Any = None) -> Step:
        """Take a token in, with the ``context`` of the step before, if there was one; ``Refused``."""
        raw = self._gssapi.raw
        try:
            done = raw.accept_sec_context(token, self._credentials(), context)
            answer = done.token or b""
            if done.more_steps:
                return Step(answer, context=done.context)
            return Step(answer, self._client(done.context))
        except self._gssapi.exceptions.GSSError as error:
            answer, told = getattr(error, "token", None) or b"", _told(error)
            meaning = next((one for words, one in _REASONS.items() if words in told), "")
            reason = f"{meaning} ({told})" if meaning else told
            raise Refused(SCHEME, reason, expired=_EXPIRED in told, token=answer) from None

    def _client(self, context: Any) -> Client:
        raw = self._gssapi.raw
        known = raw.inquire_context(context)
        flags = int(known.flags)
        if known.mech.dotted_form != _KERBEROS or flags & _ANONYMOUS:
            raise Refused(SCHEME, "by another way than Kerberos, or of nobody")
        names = (known.initiator_name, known.target_name)
        principal, service = (raw.display_name(name, name_type=False).name.decode() for name in names)
        return Client(principal, service, self._pac(known.initiator_name))

    def _pac(self, name: Any) -> bytes:
        """Return the PAC if the ticket has one that the KDC signed for this service."""
        try:
            found = self._gssapi.raw.get_name_attribute(name, b"urn:mspac:")
        except self._gssapi.exceptions.GSSError:
            return b""
        return bytes(found.values[0]) if found.authenticated and found.complete and len(found.values) == 1 else b""

    def _credentials(self) -> Any:
        """Return the keys as they are now: a keytab is replaced when its account's password changes."""
        gssapi = self._gssapi
        name = gssapi.raw.import_name(self._service.encode(), gssapi.NameType.hostbased_service)
        store = {b"keytab": os.fsencode(self._keytab)}
        return gssapi.raw.acquire_cred_from(store, name=name, usage="accept").creds


def _library() -> Any:
    try:
        import gssapi
        import gssapi.raw
    except ImportError:
        raise ConfigError("this installation", "gssapi", "not installed, but [kerberos] needs it", REMEDY) from None
    return gssapi


def _check_secret(keytab: str) -> None:
    try:
        with open(keytab, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        remedy = "export one (ktpass, samba-tool domain exportkeytab, kadmin ktadd) to where this user can read it"
        raise ConfigError("configuration", "kerberos.keytab", f"{keytab}: {error.strerror}", remedy) from None
    if mode & stat.S_IROTH:
        problem = f"{keytab} can be read by everybody"
        raise ConfigError("configuration", "kerberos.keytab", problem, f"chmod o-rwx {keytab}")


def _told(error: Any) -> str:
    """Return what the library says, in one line; the mechanism's own words where there are any."""
    minor = " ".join(error.get_all_statuses(error.min_code, False)) if error.min_code else ""
    return minor or " ".join(error.get_all_statuses(error.maj_code, True))
