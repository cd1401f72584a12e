"""Options that say what servers are shown: tokens, certificates, and the file that knows them by server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from trimtransfer.fetch.credentials import Credentials

F = TypeVar("F", bound=Callable[..., Any])

ENVIRONMENT: Final = (
    "MEDV_TOKEN_FILE, MEDV_CLIENT_CERT, MEDV_CLIENT_KEY, MEDV_KERBEROS, MEDV_KEYTAB, MEDV_PRINCIPAL, MEDV_CREDENTIALS",
    "As the options of these names. What servers are shown can also be told once for all, by server, in "
    "$XDG_CONFIG_HOME/medv/credentials.toml.",
)
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=str)


def credential_options(function: F) -> F:
    """Decorate a command with these options."""
    options = [
        click.option(
            "--token-file", metavar="FILE", type=_FILE, envvar="MEDV_TOKEN_FILE",
            help="Show the token in this file to the repository's own server (https only; read again when it expires).",
        ),
        click.option(
            "--client-cert", metavar="FILE", type=_FILE, envvar="MEDV_CLIENT_CERT",
            help="Show this certificate (PEM) to the repository's own server.",
        ),
        click.option(
            "--client-key", metavar="FILE", type=_FILE, envvar="MEDV_CLIENT_KEY",
            help="The certificate's key, without a password.  [default: in the certificate's file]",
        ),
        click.option(
            "--kerberos", is_flag=True, envvar="MEDV_KERBEROS",
            help="Show a Kerberos ticket to the repository's own server: of kinit or the session, or by --keytab.",
        ),
        click.option(
            "--keytab", metavar="FILE", type=_FILE, envvar="MEDV_KEYTAB",
            help="Get the ticket by the key in this file, such as /etc/krb5.keytab of a computer in a domain.",
        ),
        click.option(
            "--principal", metavar="NAME", envvar="MEDV_PRINCIPAL",
            help="Whose ticket it is, such as PC1$@EXAMPLE.ORG.  [default: of the session, or the keytab's first]",
        ),
        click.option(
            "--credentials", "credentials_file", metavar="FILE", type=_FILE, envvar="MEDV_CREDENTIALS",
            help="What each server, mirrors too, is shown (TOML).  [default: $XDG_CONFIG_HOME/medv/credentials.toml]",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def take_credentials(options: dict[str, Any]) -> Credentials:
    """Take the values of these options out of a command's and return them; ``AccessDenied``, wrong usage."""
    from trimtransfer.fetch.credentials import FILE, Credential, load

    path = options.pop("credentials_file")
    given = {name: options.pop(name) or "" for name in ("token_file", "client_cert", "client_key")}
    if given["client_key"] and not given["client_cert"]:
        raise click.UsageError("--client-key goes with --client-cert")
    ticket = {name: options.pop(name) or "" for name in ("keytab", "principal")}
    kerberos = bool(options.pop("kerberos") or ticket["keytab"] or ticket["principal"])
    if kerberos and given["token_file"]:
        raise click.UsageError("either --token-file or --kerberos: a request can show one of them")
    if path is None:
        from platformdirs import user_config_path

        path = os.fspath(user_config_path("medv", appauthor=False) / FILE)
    return load(path, Credential(kerberos=kerberos, **given, **ticket))
