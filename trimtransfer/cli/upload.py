"""Publishing to a server instead of a directory: the part of `publish` that talks to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trimtransfer.cli.credentials import credential_options, take_credentials
from trimtransfer.cli.output import Output, count_text, size_text
from trimtransfer.cli.signing import take_keys

if TYPE_CHECKING:
    from trimtransfer.repository.publication import PublishReport
    from trimtransfer.repository.sending import SendReport

F = TypeVar("F", bound=Callable[..., Any])
_OWN: Final = ("ca_cert", "staging", "connections")
_CREDENTIALS: Final = ("token_file", "client_cert", "client_key", "kerberos", "keytab", "principal", "credentials_file")


def upload_options(function: F) -> F:
    """Decorate a command with the options of uploads."""
    options = [
        click.option(
            "--ca-cert", metavar="FILE", type=click.Path(exists=True),
            help="If REPO is a server: certificate authorities to believe instead of the system's.",
        ),
        click.option(
            "--staging", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), envvar="MEDV_STAGING",
            help="If REPO is a server: where the version is made and kept until it is published.  "
            "[default: below the user's cache directory]",
        ),
        click.option(
            "--connections", type=click.IntRange(1, 8), default=4, show_default=True,
            help="If REPO is a server: packs sent at a time.",
        ),
        credential_options,
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def is_server(repository: str) -> bool:
    """Tell whether a repository is named by the URL of a server."""
    return repository.partition("://")[0].lower() in ("http", "https") and "://" in repository


def drop_upload_options(options: dict[str, Any]) -> None:
    """Take the options of uploads out of a command's, where the repository is a directory; they are wrong usage there
    if they were given on the command line."""
    from click.core import ParameterSource

    context = click.get_current_context()
    for name in (*_OWN, *_CREDENTIALS):
        options.pop(name)
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(one.opts[0] for one in context.command.params if one.name == name)
            raise click.UsageError(f"{option} is for repositories on a server, named by a URL")


def publish_to_server(
    output: Output,
    url: str,
    image: str,
    version: str,
    files: tuple[str, ...],
    options: dict[str, Any],
    tell: Callable[[PublishReport], str],
) -> None:
    """Publish to the server at ``url``; ``tell`` puts into words what was made."""
    from trimtransfer.fetch.courier import Courier
    from trimtransfer.fetch.http import HttpStore
    from trimtransfer.repository.sending import Wanted, send_version

    if options["profiles"]:
        raise click.UsageError("--profile needs the repository itself: make these deltas there (`medv-repo delta`)")
    keys = take_keys(options)
    credential = take_credentials(options).of(url, own=True)
    ca_cert, staging, connections = (options.pop(name) for name in _OWN)
    called = {name: options.pop(name) for name in ("labels", "note", "channels")}
    wanted = Wanted(image, version, tuple(map(Path, files)), options, **called)
    made: list[PublishReport] = []
    remote = HttpStore(url, connections=connections, ca_cert=ca_cert, credential=credential)
    courier = Courier(url, ca_cert=ca_cert, credential=credential)
    try:
        folder = staging or _staging(remote.url, image, version)
        report = send_version(
            remote,
            courier,
            folder,
            wanted,
            keys=keys,
            made=made.append,
            connections=connections,
            progress=output.progress,
        )
    finally:
        courier.close()
        remote.close()
    for advice in (advice for one in made for disk in (one, *one.disks) for advice in disk.advice):
        output.warn(str(advice))
    facts = {**report.to_dict(), "made": made[0].to_dict() if made else None}
    output.result(facts, "\n".join([*map(tell, made), _sent(report)]))


def _staging(url: str, image: str, version: str) -> Path:
    import hashlib

    from platformdirs import user_cache_path

    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return user_cache_path("medv", appauthor=False) / "sending" / name / f"{image}-{version}"


def _sent(report: SendReport) -> str:
    went_on = ", went on with what an earlier run had sent" if report.resumed else ""
    return (
        f"Published {report.image} {report.version} to {report.url}: sent {size_text(report.sent_bytes)}, "
        f"{report.sent_packs:,} of {count_text(report.packs, 'new pack')}{went_on}"
    )
