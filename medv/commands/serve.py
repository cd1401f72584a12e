"""The command that serves a repository."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from trimtransfer.cli.output import Output, output_options

NEEDED: Final = ("aiofiles", "cryptography", "joserfc", "prometheus_client", "starlette", "uvicorn")
REMEDY: Final = "the server needs more packages: pip install 'trimtransfer[server]'"
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=str)


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option("--config", metavar="FILE", type=_FILE, envvar="MEDV_SERVE_CONFIG", help="Configuration (TOML).")
@click.option("--listen", metavar="ADDRESS", help="host:port or unix:/path.  [default: 127.0.0.1:8080]")
@click.option("--tls-cert", metavar="FILE", type=_FILE, help="Certificate chain (PEM): serve HTTPS.")
@click.option("--tls-key", metavar="FILE", type=_FILE, help="Its private key.")
@click.option("--tokens", metavar="FILE", type=click.Path(path_type=str), help="Tokens that `medv-repo token` made.")
@click.option("--anonymous", is_flag=True, help="Let everybody who reaches the server read everything.")
@click.option("--print-config", is_flag=True, help="Print an example of a configuration, and end.")
@click.option(
    "--print-nginx",
    type=click.Choice(["auth-request", "accel", "secure-link"]),
    help="Print an example of nginx's configuration for a way to put it in front, and end.",
)
@output_options
def serve(output: Output, /, repository: str, config: str | None, anonymous: bool, **options: Any) -> None:
    """Serve the repository REPO over HTTP or HTTPS, to those who may have it.

    Without any configuration everybody on this machine may read everything. Any web server can serve a repository, as
    it consists of files; this one asks who may have what: by tokens (`medv-repo token`), JWTs of an OpenID provider,
    client certificates, signed URLs (`medv-repo sign`) or Kerberos tickets, and rules for users, groups and computers
    by image. A pack belongs to the images that refer to it. For many clients put nginx in front (--print-nginx): it
    asks this program and sends the bytes itself.

    For Kerberos, give an account of the domain the SPN HTTP/NAME - NAME is what clients call the server - and export
    its keytab (setspn and ktpass; samba-tool spn add and samba-tool domain exportkeytab) for [kerberos] keytab.

    The configuration is a TOML file (--print-config shows everything there is). Each of its keys can be set in the
    environment, too: MEDV_SERVE_LIMITS_RATE=50 is `rate` of [limits]. Options win over the environment, that over the
    file. What may change on disk is looked at every two seconds: the repository, tokens, keys, certificates; all else
    at the start.

    REPO may be in an object store (s3://bucket/prefix): clients are then sent there for packs, each time by a URL that
    is good for one pack and a few minutes; all else comes from a copy, which is looked after every half minute.

    SIGTERM and Ctrl-C end it: running answers get 30 s, a second signal cuts them. Log lines are JSON, on standard
    error or in a file; no token and no signature ever gets into them. /healthz and /readyz are for probes.

    \b
    Examples:
      medv-repo serve /srv/images
      medv-repo serve /srv/images --listen 0.0.0.0:8443 --tls-cert chain.pem --tls-key key.pem --config serve.toml
      medv-repo serve /srv/images --print-config > serve.toml
      medv-repo serve /srv/images --print-nginx auth-request > /etc/nginx/conf.d/images.conf
    """
    printed = _printed(Path(repository), options)
    if printed is not None:
        click.echo(printed, nl=False)
        return
    require_server()
    from medv.gateway.serving import serve as run
    from trimtransfer.fetch.account import is_s3
    from trimtransfer.repository.reading import require_repository
    from trimtransfer.store import DirectoryStore
    from trimtransfer.watch import Watch

    settings = _settings(config, options)
    path, copy = Path(repository), None
    if is_s3(repository):
        from trimtransfer.bucket.mirror import Mirror

        copy = Mirror(repository, watch=Watch(output.progress))
        path = copy.path
    require_repository(DirectoryStore(path))
    _warn_if_open(output, settings, anonymous)

    def started(listening: Any) -> None:
        output.say(f"Serving {repository} at {listening.url}")
        if listening.metrics:
            output.say(f"Metrics at {listening.metrics}")

    run(path.resolve(), settings, copy=copy, started=started)
    output.result({"stopped": True}, "Stopped")


def require_server() -> None:
    """Raise ``ConfigError`` where the packages of the server are missing."""
    from medv.gateway.trouble import ConfigError

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError("this installation", ", ".join(missing), "not installed", REMEDY)


def _printed(repository: Path, options: dict[str, Any]) -> str | None:
    """Return what was asked to be printed, if anything; takes these options away."""
    config, nginx = options.pop("print_config"), options.pop("print_nginx")
    if not config and nginx is None:
        return None
    from medv.gateway.examples import configuration, nginx_configuration

    if config:
        return configuration()
    given = {"UPSTREAM": options["listen"], "CERTIFICATE": options["tls_cert"], "KEY": options["tls_key"]}
    return nginx_configuration(nginx, repository, **{name: value for name, value in given.items() if value})


def _settings(config: str | None, options: dict[str, Any]) -> Any:
    import os

    from medv.gateway.settings import load

    given = {
        "server.listen": options["listen"],
        "tls.cert": options["tls_cert"],
        "tls.key": options["tls_key"],
        "tokens.file": options["tokens"],
    }
    text = ""
    if config is not None:
        with open(config, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    return load(text, name=config or "configuration", environment=os.environ, options=given)


def _warn_if_open(output: Output, settings: Any, anonymous: bool) -> None:
    """Say loudly that everybody may read everything; refuse it beyond this machine unless it was asked for."""
    from medv.gateway.serving import authenticates, is_loopback
    from medv.gateway.trouble import ConfigError

    if settings.rules or authenticates(settings):
        if not (settings.tls.cert or is_loopback(settings.server.listen)):
            output.warn("credentials and images cross the network unencrypted: set --tls-cert and --tls-key")
        return
    if not is_loopback(settings.server.listen) and not anonymous:
        raise ConfigError(
            "configuration",
            "rule",
            f"there is none, so everybody who reaches {settings.server.listen} could read every image",
            "add rules (--print-config), or say --anonymous if that is meant",
        )
    output.warn("NO ACCESS CONTROL: everybody who reaches this server may read every image (see --print-config)")
