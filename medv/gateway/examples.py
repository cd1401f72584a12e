"""Configurations to begin with: the server's own, and nginx's for each way to put it in front. Tests run them as they
are printed."""

from __future__ import annotations

import re
from importlib.resources import files as resources
from pathlib import Path
from typing import Final

from medv.gateway.trouble import ConfigError

_PLAIN: Final = re.compile(r"[^\"$\\{};\x00-\x1f\x7f]+")
"""What can stand in nginx's quotes and mean itself."""
DEFAULTS: Final = {
    "UPSTREAM": "unix:/run/medv/serve.sock",
    "LISTEN": "443 ssl",
    "NAME": "images.example.org",
    "CERTIFICATE": "/etc/medv/chain.pem",
    "KEY": "/etc/medv/key.pem",
    "CACHE": "/run/medv-decisions",
    "LOG": "/var/log/nginx/medv.log",
    "ERRORS": "/var/log/nginx/medv-error.log",
    "SECRET": "",
}


def configuration() -> str:
    """Return the example of the server's configuration."""
    return _read("example.toml")


def nginx_configuration(kind: str, repository: Path, **values: str) -> str:
    """Return nginx's configuration of a ``kind`` (``auth-request``, ``accel``, ``secure-link``) for a repository.

    ``values`` take the place of ``DEFAULTS``. Raises ``ConfigError`` for what nginx would take for something else.
    """
    given = {**DEFAULTS, **values, "REPOSITORY": str(repository.resolve())}
    if kind == "secure-link" and not given["SECRET"]:
        given["SECRET"] = "THE-SECRET-OF-THE-KEY-FILE"
    for name, value in given.items():
        if value and not _PLAIN.fullmatch(value):
            remedy = "use a path without quotes, dollar signs, braces, semicolons and backslashes"
            raise ConfigError("nginx", name.lower(), f"{value!r} cannot be written into its configuration", remedy)
    given["SERVER"] = given["UPSTREAM"]
    text = _read(f"nginx-{kind}.conf")
    for name in ("http", "tls", "common"):
        text = text.replace(f"@{name.upper()}@\n", _read(f"nginx-{name}.conf"))
    return re.sub(r"@([A-Z]+)@", lambda found: given[found[1]], text)


def _read(name: str) -> str:
    return resources("medv.gateway").joinpath(name).read_text(encoding="utf-8")
