"""Commands that make, list and revoke the tokens of a server."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from trimtransfer.cli.output import Output, count_text, output_options

if TYPE_CHECKING:
    from medv.gateway.tokens import Token

_DURATION: Final = re.compile(r"([0-9]{1,6})\s*([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FILE: Final = click.option(
    "--file",
    "path",
    metavar="FILE",
    required=True,
    envvar="MEDV_SERVE_TOKENS_FILE",
    type=click.Path(path_type=Path),
    help="The file of tokens that the server reads ([tokens] file).",
)


@click.group()
def token() -> None:
    """Make, list and revoke tokens, which clients show to `medv-repo serve`.

    The file holds hashes only: a token is printed once, when it is made. Servers learn of changes within seconds.

    \b
    Examples:
      medv-repo token create --file /etc/medv/tokens.json --user alice --group engineers --expires 90d
      medv-repo token create --file /etc/medv/tokens.json --image 'win*' --expires 8h > branch.token
      medv-sync https://images.example.org/ win10 --token-file branch.token
    """


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read a length of time in seconds: ``90s``, ``15m``, ``8h``, ``90d``, ``2w``."""
    if value is None:
        return None
    found = _DURATION.fullmatch(value.strip())
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{value!r}: a length of time such as 15m, 8h, 90d or 2w", context, parameter)
    return float(int(found[1]) * _SECONDS[found[2]])


@token.command()
@_FILE
@click.option("--user", default="", metavar="NAME", help="Whom it stands for: he has the rights that rules give him.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="A group of this user. May be given several times."
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="PATTERN",
    help="Good for such images only, such as 'win*'. Without --user it is a right in itself, which needs no rule.",
)
@click.option(
    "--role", type=click.Choice(["read", "publish", "admin"]), default="read", help="With --image: up to this."
)
@click.option("--expires", metavar="TIME", callback=duration, help="After 8h, 90d, 2w, ...  [default: never]")
@click.option("--note", default="", metavar="TEXT", help="What it is for; shown by `token list`.")
@output_options
def create(output: Output, /, path: Path, expires: float | None, **facts: Any) -> None:
    """Make a token and print it: now, and never again."""
    from medv.gateway.tokens import TokenFile

    end = None if expires is None else time.time() + expires
    try:
        secret, made = TokenFile(path).create(expires=end, **facts)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    show_secret(output, {"token": secret, **_facts(made)}, secret)


def show_secret(output: Output, values: dict[str, Any], text: str) -> None:
    """Print a result that is a secret: to standard output alone, never into a log."""
    output.stop_progress()
    click.echo(json.dumps(values) if output.json else text)


@token.command("list")
@_FILE
@output_options
def list_tokens(output: Output, path: Path) -> None:
    """List the tokens of FILE: ids, whom they stand for, what they are good for, until when."""
    from medv.gateway.tokens import TokenFile

    tokens = TokenFile(path).list()
    lines = [_line(one) for one in tokens] or ["no tokens"]
    output.result({"tokens": [_facts(one) for one in tokens]}, "\n".join(lines))


@token.command()
@_FILE
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@output_options
def revoke(output: Output, path: Path, ids: tuple[str, ...]) -> None:
    """Make tokens worthless, by their ids (see `token list`; the part of a token between the underscores)."""
    from medv.gateway.tokens import TokenFile

    file = TokenFile(path)
    revoked = [file.revoke(id) for id in ids]
    output.result({"revoked": [one.id for one in revoked]}, f"{count_text(len(revoked), 'token')} revoked")


def _facts(made: Token) -> dict[str, Any]:
    return {
        "id": made.id,
        "user": made.user or None,
        "groups": list(made.groups),
        "images": list(made.images),
        "role": made.role if made.images else None,
        "created": round(made.created),
        "expires": None if made.expires is None else round(made.expires),
        "note": made.note,
    }


def _line(made: Token) -> str:
    whom = made.user + (f" ({', '.join(made.groups)})" if made.groups else "")
    what = f"{made.role} {', '.join(made.images)}" if made.images else "what rules give"
    if made.expires is None:
        end = "never expires"
    else:
        word = "expired" if made.expires <= time.time() else "expires"
        end = f"{word} {time.strftime('%Y-%m-%d %H:%M', time.localtime(made.expires))}"
    return f"{made.id}  {whom or '-'}: {what}; {end}" + (f"; {made.note}" if made.note else "")
