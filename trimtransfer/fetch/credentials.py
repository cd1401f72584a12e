"""What a client shows to servers, and to which: each origin gets what was meant for it, and no other anything.

Secrets stay in files, which are read when they are needed and again when a server does not accept them any more, so a
token that another program renews is taken up in the middle of a run. A file of credentials tells what is for which
origin - a repository's own server as well as its mirrors:

    ["https://images.example.org"]
    token_file = "/etc/medv/images.token"

    ["https://mirror.example.net:8443"]
    client_cert = "/etc/medv/client.pem"
    client_key = "/etc/medv/client.key"
    ca_cert = "/etc/medv/ca.pem"

    ["https://branch.example.org"]
    kerberos = true
    keytab = "/etc/krb5.keytab"         # of this computer; without it, the ticket of whoever runs the command
    principal = "PC1$@EXAMPLE.ORG"
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from trimtransfer.errors import AccessDenied
from trimtransfer.fetch.negotiate import Negotiator
from trimtransfer.fetch.site import origin_of

FILE: Final = "credentials.toml"
"""Name of the file of credentials in the configuration directory of ``medv``."""
_MAX_FILE: Final = 1 << 20
_MAX_TOKEN: Final = 32 << 10
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Credential:
    """What is shown to one origin, as paths of files; empty: nothing. ``client_key`` may be in ``client_cert``.

    ``ca_cert`` are the authorities to believe of that server instead of the system's. ``kerberos``: a ticket is shown,
    that of the environment or one by a ``keytab``, of the ``principal`` named or the first one there.
    """

    token_file: str = ""
    client_cert: str = ""
    client_key: str = ""
    ca_cert: str = ""
    kerberos: bool = False
    keytab: str = ""
    principal: str = ""

    def __post_init__(self) -> None:
        if self.token_file and self.kerberos:
            raise ValueError("a token or Kerberos: a request can show one of them")
        if (self.keytab or self.principal) and not self.kerberos:
            raise ValueError("keytab and principal go with kerberos")

    def over(self, other: Credential) -> Credential:
        """Return this one, with what it leaves empty from another."""
        given = {one.name: value for one in fields(self) if (value := getattr(self, one.name))}
        if "client_cert" in given:
            other = replace(other, client_key="")  # a key belongs to its certificate
        if "token_file" in given:
            other = replace(other, kerberos=False, keytab="", principal="")
        if "kerberos" in given:
            other = replace(other, token_file="", keytab="", principal="")  # whose ticket it is, is told at one place
        return replace(other, **given)


NOTHING: Final = Credential()


@dataclass(frozen=True, slots=True)
class Credentials:
    """``own`` is for the repository's own server, whatever its origin; ``known`` is by origin (scheme, host, port)."""

    own: Credential = NOTHING
    known: Mapping[tuple[str, str, int], Credential] = field(default_factory=dict)

    def of(self, url: str, *, own: bool = False) -> Credential:
        """Return what is for the server at ``url``; ``own``: the repository's own."""
        known = self.known.get(origin_of(url), NOTHING)
        return self.own.over(known) if own else known


def load(path: str | os.PathLike[str], own: Credential = NOTHING) -> Credentials:
    """Return the credentials of a file, none if it does not exist; ``AccessDenied`` for one that cannot be used."""
    try:
        with open(path, "rb") as file:
            data = tomllib.loads(file.read(_MAX_FILE).decode("utf-8"))
        known = {_origin(name): _credential(values, Path(path).parent) for name, values in data.items()}
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError) as error:
        raise AccessDenied(str(path), f"no file of credentials: {error}; correct it") from None
    return Credentials(own, known)


class Bearer:
    """The token in a file, for one server. Its methods may be called from any thread."""

    def __init__(self, path: str, url: str) -> None:
        self._path, self._url = path, url
        self._lock = threading.Lock()
        self._token = ""

    def __repr__(self) -> str:
        return f"Bearer({self._path!r})"

    def header(self) -> str:
        """Return the Authorization header; ``AccessDenied`` where the file holds no token."""
        with self._lock:
            self._token = self._token or self._read()
            return f"Bearer {self._token}"

    def renewed(self, sent: str) -> bool:
        """Tell whether there is another token by now than the one that was sent in this header."""
        with self._lock:
            if sent == f"Bearer {self._token}":
                self._token = self._read()
            return sent != f"Bearer {self._token}"

    def _read(self) -> str:
        try:
            with open(self._path, encoding="utf-8") as file:
                token = file.read(_MAX_TOKEN + 1).strip()
        except (OSError, ValueError) as error:
            detail = error.strerror if isinstance(error, OSError) else "not text"
            raise AccessDenied(self._url, f"token file {self._path}: {detail}; name one that can be read") from None
        if not _TOKEN.fullmatch(token) or len(token) > _MAX_TOKEN:
            raise AccessDenied(self._url, f"token file {self._path} holds no token: one line of it is needed")
        return token


def bearer_for(credential: Credential, url: str) -> Bearer | None:
    """Return the token of a credential for a server, if it has one.

    Raises:
        AccessDenied: it would cross a network unencrypted.
    """
    if not credential.token_file:
        return None
    _check_encrypted(url, "a token")
    return Bearer(credential.token_file, url)


def negotiator_for(credential: Credential, url: str) -> Negotiator | None:
    """Return the Kerberos side of a credential for a server, if it has one.

    Raises:
        AccessDenied: its tokens would cross a network unencrypted, or a package is missing.
    """
    if not credential.kerberos:
        return None
    _check_encrypted(url, "a Kerberos ticket")
    return Negotiator(url, keytab=credential.keytab, principal=credential.principal)


def _check_encrypted(url: str, what: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise AccessDenied(url, f"{what} is not sent unencrypted: use https://")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _origin(name: str) -> tuple[str, str, int]:
    origin = origin_of(name)
    if origin[0] not in ("http", "https") or not origin[1] or urlsplit(name).path not in ("", "/"):
        raise ValueError(f'{name[:100]!r} is no origin such as ["https://images.example.org"]')
    return origin


def _credential(values: Any, directory: Path) -> Credential:
    """Return the credential of a table; paths in it are relative to the file's directory."""
    known = [one.name for one in fields(Credential)]
    if not isinstance(values, dict) or not all(map(_fits, values, values.values())):
        raise ValueError(f"there are only {', '.join(known)}: kerberos = true or false, each other a text in quotes")
    plain = ("kerberos", "principal")
    given: dict[str, Any] = {
        key: one if key in plain else str(directory / Path(one).expanduser()) for key, one in values.items()
    }
    return Credential(**given)


def _fits(key: str, value: Any) -> bool:
    return key in Credential.__dataclass_fields__ and isinstance(value, bool if key == "kerberos" else str)
