"""Arguments that commands read alike: names, rates, paths, repositories. What cannot be one is wrong usage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import click

HELP_OPTIONS: Final = {"help_option_names": ["-h", "--help"]}
VERSION_MESSAGE: Final = "%(prog)s %(version)s"
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def name_of(what: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that refuses what cannot name a ``what``; it takes one name, several, or None."""

    def check(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        from trimtransfer.errors import FormatError
        from trimtransfer.names import check_name

        for name in value if isinstance(value, tuple) else (value,) if value is not None else ():
            try:
                check_name(what, name)
            except FormatError as error:
                raise click.BadParameter(f"{name!r} is no {what} name: it must be {error.expected}") from None
        return value

    return check


def local_paths(context: click.Context, parameter: click.Parameter, value: Iterable[str]) -> tuple[str, ...]:
    """Check that these paths are there; not by click, which would wait for a dead file system."""
    from trimtransfer.localfile import look

    for path in value:
        try:
            look(path)
        except OSError as error:
            raise click.BadParameter(f"{path}: {error.strerror or error}", context, parameter) from None
    return tuple(value)


def rate(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read bytes per second: ``500k``, ``2.5M``, ``1G`` (powers of 1024)."""
    if value is None:
        return None
    from trimtransfer.fetch.schedule import parse_rate

    found = parse_rate(value.strip())
    if not found:
        raise click.BadParameter(f"{value!r}: bytes per second above 0, such as 500k or 2.5M", context, parameter)
    return found


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Read a number of bytes: ``500M``, ``2G`` (powers of 1024)."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r}: a size in bytes above 0, such as 500M or 2G", context, parameter)
    return int(float(match[1]) * _UNITS[match[2].lower()])


def repository_url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check that a client can read from this: http, https, s3, ``file:``, or the path of a directory or bundle."""
    scheme = value.partition("://")[0].lower() if "://" in value else "file"
    if scheme in ("http", "https"):
        from trimtransfer.fetch.site import Site

        try:
            Site(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from None
    elif scheme == "s3":
        from trimtransfer.fetch.account import Address

        try:
            Address.parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from None
    elif scheme != "file":
        raise click.BadParameter(
            f"{value}: use http://, https://, s3:// or the path of a directory", context, parameter
        )
    return value
