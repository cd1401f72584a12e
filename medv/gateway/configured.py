"""The ways of proving who asks that settings describe, with the secrets that they need, read from their files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import fields

from medv.gateway.certificates import CertificateScheme, Mapping
from medv.gateway.schemes import Scheme, SignedUrlScheme, TokenScheme
from medv.gateway.settings import Settings
from medv.gateway.signedurls import LEAST_KEY
from medv.gateway.tokens import TokenFile
from medv.gateway.trouble import ConfigError


def schemes_of(settings: Settings, refreshers: list[Callable[[], object]]) -> list[Scheme]:
    """Return the schemes, in the order in which they are asked; what looks at their files goes to ``refreshers``.

    Raises:
        ConfigError: a file, or a package, that they need is missing or cannot be used.
    """
    schemes: list[Scheme] = []
    if settings.kerberos.keytab:
        # First among the challenges: nginx before 1.23 hands on one of them, and no other scheme needs its own.
        from medv.gateway.kerberos import KerberosScheme

        kerberos = KerberosScheme.of(settings.kerberos)
        refreshers.append(kerberos.check)
        schemes.append(kerberos)
    if settings.tokens.file:
        tokens = TokenFile(settings.tokens.file)
        tokens.refresh()
        refreshers.append(tokens.refresh)
        schemes.append(TokenScheme(tokens))
    if settings.oidc.issuer:
        from medv.gateway.oidc import JwtScheme, Provider

        oidc = settings.oidc
        schemes.append(JwtScheme(Provider(**{one.name: getattr(oidc, one.name) for one in fields(oidc)})))
    if settings.signed_urls.key_files:
        keys = _Keys(settings.signed_urls.key_files)
        refreshers.append(keys.refresh)
        schemes.append(SignedUrlScheme(lambda: keys.keys))
    if settings.certificates:
        mappings = [
            Mapping(one.field, one.pattern, one.user, one.computer, one.groups) for one in settings.certificates
        ]
        schemes.append(CertificateScheme(mappings))
    elif settings.tls.client_ca:
        remedy = 'add [[certificate]] with field = "cn", pattern = "*", user = "{}", or the like'
        raise ConfigError("configuration", "tls.client_ca", "without any [[certificate]] tells nothing of who", remedy)
    return schemes


def read_secret(path: str, key: str) -> bytes:
    """Return the secret in a file, without white space around it; ``ConfigError`` if it is none, or not secret."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(65_536).strip()
    except OSError as error:
        raise ConfigError("configuration", key, f"{path}: {error.strerror}", "name a file that can be read") from None
    if mode & stat.S_IROTH:
        raise ConfigError("configuration", key, f"{path} can be read by everybody", f"chmod o-rwx {path}")
    if len(secret) < LEAST_KEY:
        problem = f"{path} holds {len(secret)} bytes, at least {LEAST_KEY} are needed"
        raise ConfigError("configuration", key, problem, "make one with `medv-repo sign --new-key FILE`")
    return secret


class _Keys:
    """The keys of signed URLs, read again now and then."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self.refresh()

    def refresh(self) -> None:
        self.keys = tuple(read_secret(path, "signed_urls.key_files") for path in self._paths)
