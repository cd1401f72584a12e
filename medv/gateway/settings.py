"""The server's configuration: what can be set, where it came from, and what is wrong with it.

A TOML file, over which variables of the environment win (``MEDV_SERVE_LIMITS_CONNECTIONS`` for ``connections`` of
``[limits]``), over which options of the command line win. Whatever is odd is refused, with the key and what to do.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, TypeVar

from medv.gateway.access import ROLE_NAMES, Role, Rule, check_pattern
from medv.gateway.trouble import ConfigError

T = TypeVar("T")
ENVIRONMENT: Final = "MEDV_SERVE_"
ALGORITHMS: Final = (*(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)), "EdDSA", "Ed25519")
"""Signatures of JWTs with a public key: what this server knows cannot make a token."""
CERTIFICATE_FIELDS: Final = ("subject", "cn", "o", "ou", "dns", "email", "uri", "upn")
"""What a mapping of certificates can look at: the subject as RFC 4514 writes it, parts of it, alternative names."""
Network = IPv4Network | IPv6Network
_SID: Final = re.compile(r"S-1-\d+(-\d+){1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Server:
    """``[server]``"""

    listen: str = "127.0.0.1:8080"
    """Address and port, or unix:/run/medv.sock."""
    index: str = ""
    """File of the index from packs to images; empty: below the cache directory of the user."""
    refresh: float = 2.0
    """Seconds between two looks at what changed: the repository, tokens, keys, certificates."""
    grace: float = 30.0
    """Seconds that running requests get at a stop."""
    shared_caches: bool = False
    """Let caches that serve others keep what is not for everybody: only where they check access themselves."""


@dataclass(frozen=True, slots=True)
class Tls:
    """``[tls]``"""

    cert: str = ""
    """Certificate chain (PEM). With it the server speaks HTTPS."""
    key: str = ""
    client_ca: str = ""
    """Authorities (PEM) whose certificates clients may show."""
    client_crl: str = ""
    """Revoked certificates (PEM) of all these authorities."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """``[tokens]``"""

    file: str = ""
    """The file that `medv-repo token` keeps."""


@dataclass(frozen=True, slots=True)
class SignedUrls:
    """``[signed_urls]``"""

    key_files: tuple[str, ...] = ()
    """Keys that count: the newest first, older ones until their URLs have ended; `medv-repo sign --new-key`."""


@dataclass(frozen=True, slots=True)
class Oidc:
    """``[oidc]``"""

    issuer: str = ""
    audience: str = ""
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    user_claim: str = "sub"
    groups_claim: str = "groups"
    required_scope: str = ""
    ca_cert: str = ""


@dataclass(frozen=True, slots=True)
class Kerberos:
    """``[kerberos]``"""

    keytab: str = ""
    """Keys of HTTP/NAME, where NAME is what clients call the server."""
    service: str = "HTTP"
    """HTTP@NAME: only tickets for this one of the keytab's services."""
    realms: tuple[str, ...] = ()
    """Realms of clients that count; empty: the service's own."""
    groups: tuple[str, ...] = ()
    """Names for groups of the directory: "engineers=S-1-5-21-...-1105". Rules can name a SID as well."""
    pac: bool = True
    """Accounts and groups are in the tickets, as Active Directory makes them; false: a KDC of another kind."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """``[proxy]``"""

    addresses: tuple[str, ...] = ()
    """Addresses or networks of proxies whose word counts; "unix" for whoever reaches the unix socket."""
    secret_file: str = ""
    """A secret that the proxy sends in X-Medv-Proxy; needed where others share its address."""
    accel: str = ""
    """Internal location of nginx to which it is sent for bytes (X-Accel-Redirect), such as /medv-objects/."""
    remember: float = 10.0
    """Seconds for which a proxy may remember a decision."""


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """``[upload]``"""

    enabled: bool = False
    """Whoever has the role `publish` on an image publishes versions of it over HTTPS."""
    keys: tuple[str, ...] = ()
    """Folders of the keys of snapshot and timestamp, where the repository is signed; with those of the publisher,
    nobody else must sign."""
    max_gigabytes: float = 1024.0
    """Of one upload."""
    per_user: int = 4
    """Uploads that a publisher has open at a time."""
    keep_days: float = 7.0
    """After so long an upload that nobody goes on with is deleted."""
    keep_free_gigabytes: float = 1.0
    """So much of the disk is not filled."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """``[limits]``"""

    connections: int = 1024
    connections_per_client: int = 64
    requests_per_client: int = 32
    """At the same time."""
    rate: float = 200.0
    """Requests per second of one client; 0: any number."""
    burst: int = 400
    bytes_per_second: float = 0.0
    """Of one client; 0: any number."""
    handshake_timeout: float = 10.0
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    """For bodies that nobody asked for."""
    send_timeout: float = 30.0
    """A client that takes less than 256 KiB in so long is cut off."""
    keep_alive: float = 65.0
    header_bytes: int = 81_920
    """Request line and headers together."""


@dataclass(frozen=True, slots=True)
class Log:
    """``[log]``"""

    file: str = ""
    """Empty: standard error."""
    level: str = "info"


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """``[metrics]``"""

    listen: str = ""
    """A separate address for /metrics, such as 127.0.0.1:9464. Without it only administrators get them, at /metrics."""


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """``[[certificate]]``"""

    field: str = "cn"
    pattern: str = "*"
    user: str = ""
    computer: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set."""

    server: Server = field(default_factory=Server)
    tls: Tls = field(default_factory=Tls)
    tokens: Tokens = field(default_factory=Tokens)
    signed_urls: SignedUrls = field(default_factory=SignedUrls)
    oidc: Oidc = field(default_factory=Oidc)
    kerberos: Kerberos = field(default_factory=Kerberos)
    proxy: Proxy = field(default_factory=Proxy)
    upload: UploadSettings = field(default_factory=UploadSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    log: Log = field(default_factory=Log)
    metrics: MetricSettings = field(default_factory=MetricSettings)
    certificates: tuple[CertificateRule, ...] = ()
    rules: tuple[Rule, ...] = ()


_SECTIONS: Final[Mapping[str, type[Any]]] = {
    "server": Server, "tls": Tls, "tokens": Tokens, "signed_urls": SignedUrls, "oidc": Oidc,
    "kerberos": Kerberos, "proxy": Proxy, "upload": UploadSettings, "limits": LimitSettings, "log": Log,
    "metrics": MetricSettings,
}  # fmt: skip
_RULE_KEYS: Final = ("images", "users", "groups", "computers", "anyone", "role")


def load(
    text: str = "",
    *,
    name: str = "configuration",
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings of a TOML ``text``, variables of the environment and ``options`` (``{"tls.cert": ...}``).

    Raises:
        ConfigError: what cannot be used, with the key and what to do.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, "the file", f"is not TOML: {error}", "correct it") from None
    _known(name, "", data, (*_SECTIONS, "certificate", "rule"))
    settings = {
        section: _section(name, section, kind, data.get(section, {}), environment or {}, options or {})
        for section, kind in _SECTIONS.items()
    }
    rules = tuple(_rule(name, number, one) for number, one in _tables(name, "rule", data))
    certificates = tuple(
        _values(name, f"[[certificate]] {number}", CertificateRule, one)
        for number, one in _tables(name, "certificate", data)
    )
    loaded = Settings(**settings, certificates=certificates, rules=rules)
    _check(name, loaded)
    return loaded


def group_names(name: str, kerberos: Kerberos) -> dict[str, str]:
    """Return the names of groups by their SIDs; ``ConfigError``."""
    names = {}
    for text in kerberos.groups:
        label, _, sid = text.rpartition("=")
        if not label or not _SID.fullmatch(sid) or _SID.fullmatch(label):
            remedy = 'write "engineers=S-1-5-21-...": `samba-tool group show`, Get-ADGroup and wbinfo -n tell it'
            raise ConfigError(name, "kerberos.groups", f"{text[:100]!r} is no name and SID", remedy)
        names[sid] = label
    return names


def networks(name: str, proxy: Proxy) -> tuple[Network, ...]:
    """Return the networks of the proxies whose word counts; ``ConfigError``."""
    try:
        return tuple(ip_network(one) for one in proxy.addresses if one != "unix")
    except ValueError as error:
        raise ConfigError(
            name, "proxy.addresses", str(error), 'write addresses such as "10.0.0.5" or "10.0.0.0/24"'
        ) from None


def _section(
    name: str, section: str, kind: type[T], table: Any, environment: Mapping[str, str], options: Mapping[str, Any]
) -> T:
    if not isinstance(table, dict):
        raise ConfigError(name, section, "is no table", f"write [{section}] and its keys below it")
    values = _converted(name, section, kind, table)
    for one in fields(kind):  # type: ignore[arg-type]  # all sections are dataclasses
        variable = f"{ENVIRONMENT}{section}_{one.name}".upper()
        if variable in environment:
            values[one.name] = _from_text(variable, one.type, environment[variable])
        given = options.get(f"{section}.{one.name}")
        if given is not None and given != ():
            values[one.name] = given
    return kind(**values)


def _values(name: str, place: str, kind: type[T], table: dict[str, Any]) -> T:
    return kind(**_converted(name, place, kind, table))


def _converted(name: str, place: str, kind: type[Any], table: dict[str, Any]) -> dict[str, Any]:
    types = {one.name: str(one.type) for one in fields(kind)}
    _known(name, place, table, types)
    return {key: _converters[types[key]](name, f"{place}.{key}", value) for key, value in table.items()}


def _known(name: str, place: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    known = tuple(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(name, f"{place}.{key}" if place else key, "is not known", remedy)


def _text(name: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(name, key, f"is {value!r}", 'write a text in quotes: "..."')
    return value


def _flag(name: str, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(name, key, f"is {value!r}", "write true or false")
    return value


def _whole(name: str, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ConfigError(name, key, f"is {value!r}", "write a whole number above 0")
    return value


def _number(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ConfigError(name, key, f"is {value!r}", "write a number, 0 or more")
    return float(value)


def _list(name: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ConfigError(name, key, f"is {value!r}", 'write a list of texts: ["...", "..."]')
    return tuple(value)


_converters: Final[Mapping[str, Callable[[str, str, Any], Any]]] = {
    "str": _text, "bool": _flag, "int": _whole, "float": _number, "tuple[str, ...]": _list,
}  # fmt: skip


def _from_text(variable: str, kind: Any, text: str) -> Any:
    """Convert a variable of the environment: lists with commas between their elements."""
    where = "environment"
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind == "bool":
        return _flag(where, variable, {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text))
    if kind in ("int", "float"):
        try:
            value: Any = int(text) if kind == "int" else float(text)
        except ValueError:
            value = text
        return _converters[kind](where, variable, value)
    return text


def _tables(name: str, key: str, data: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConfigError(name, key, "is no list of tables", f"write [[{key}]], with two brackets, for each")
    return list(enumerate(found, 1))


def _rule(name: str, number: int, table: dict[str, Any]) -> Rule:
    place = f"[[rule]] {number}"
    _known(name, place, table, _RULE_KEYS)
    lists = {
        key: _list(name, f"{place}.{key}", table.get(key, [])) for key in ("images", "users", "groups", "computers")
    }
    anyone, role = (
        _text(name, f"{place}.{key}", table.get(key, default)) for key, default in (("anyone", ""), ("role", "read"))
    )
    if not lists["images"]:
        raise ConfigError(name, f"{place}.images", "is missing", 'name images or patterns: images = ["win*"]')
    for pattern in lists["images"]:
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise ConfigError(name, f"{place}.images", str(error), "correct it") from None
    if anyone not in ("", "authenticated", "anonymous"):
        raise ConfigError(name, f"{place}.anyone", f"is {anyone!r}", 'write "authenticated" or "anonymous"')
    if not (anyone or lists["users"] or lists["groups"] or lists["computers"]):
        raise ConfigError(name, place, "is for nobody", "add users, groups, computers or anyone")
    if role not in ROLE_NAMES:
        raise ConfigError(name, f"{place}.role", f"is {role!r}", f"write one of {', '.join(ROLE_NAMES)}")
    if anyone == "anonymous" and role != "read":
        raise ConfigError(name, f"{place}.role", f"gives {role} to everybody", 'only "read" can be for everybody')
    users, groups, computers = (frozenset(lists[key]) for key in ("users", "groups", "computers"))
    return Rule(lists["images"], users, groups, computers, anyone, Role.of(role))


def _check(name: str, settings: Settings) -> None:
    """Refuse what does not go together."""
    tls, oidc = settings.tls, settings.oidc
    if bool(tls.cert) != bool(tls.key):
        raise ConfigError(name, "tls", "has only one of cert and key", "set both, or neither")
    if tls.client_ca and not tls.cert:
        raise ConfigError(name, "tls.client_ca", "needs HTTPS", "set tls.cert and tls.key, too")
    if tls.client_crl and not tls.client_ca:
        raise ConfigError(name, "tls.client_crl", "needs tls.client_ca", "set that, too")
    if bool(oidc.issuer) != bool(oidc.audience):
        raise ConfigError(
            name, "oidc", "needs issuer and audience", "set both: a token for another service must not count"
        )
    if strange := [one for one in oidc.algorithms if one not in ALGORITHMS]:
        remedy = f"write some of {', '.join(ALGORITHMS)}"
        raise ConfigError(name, "oidc.algorithms", f"names {', '.join(strange)}", remedy)
    if settings.log.level not in ("debug", "info", "warning", "error"):
        raise ConfigError(name, "log.level", f"is {settings.log.level!r}", "write debug, info, warning or error")
    if settings.proxy.accel and not (settings.proxy.accel.startswith("/") and settings.proxy.accel.endswith("/")):
        raise ConfigError(name, "proxy.accel", f"is {settings.proxy.accel!r}", "it begins and ends with a slash")
    for number, one in enumerate(settings.certificates, 1):
        if not (one.user or one.computer):
            raise ConfigError(name, f"[[certificate]] {number}", "names nobody", 'add user = "{}" or computer = "{}"')
        if one.field not in CERTIFICATE_FIELDS:
            place, remedy = f"[[certificate]] {number}.field", f"write one of {', '.join(CERTIFICATE_FIELDS)}"
            raise ConfigError(name, place, f"is {one.field!r}", remedy)
    if settings.kerberos.service.partition("@")[0] != "HTTP":
        remedy = 'write "HTTP", or "HTTP@" and the name that clients call the server'
        raise ConfigError(name, "kerberos.service", f"is {settings.kerberos.service!r}", remedy)
    group_names(name, settings.kerberos)
    networks(name, settings.proxy)
