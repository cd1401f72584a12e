"""Options of clients: whom to trust."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from trimtransfer.assembly.report import PlanReport, SyncReport
    from trimtransfer.cli.output import Output
    from trimtransfer.trust.options import Trusting

F = TypeVar("F", bound=Callable[..., Any])
ENVIRONMENT: Final = (
    "MEDV_ROOT, MEDV_STATE",
    "As --root and --state.",
)


def trust_options(function: F) -> F:
    """Decorate a command with the options of trust, which become one by :func:`take_trusting`."""
    options = [
        click.option(
            "--root", envvar="MEDV_ROOT", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Root file of a signed repository, got by a safe way: from now on it is never believed without "
            "signatures. Needed once.",
        ),
        click.option(
            "--trust-first", is_flag=True,
            help="Trust a signed repository that is met for the first time as it is, without --root.",
        ),
        click.option(
            "--unsigned", is_flag=True, help="Use the repository as if nothing were signed, whatever was trusted."
        ),
        click.option(
            "--state", envvar="MEDV_STATE", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
            help="Keep what is trusted here.  [default: ~/.local/state/medv/trust]",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def take_trusting(options: dict[str, Any]) -> Trusting:
    """Take the options of trust out of a command's options."""
    from trimtransfer.trust.options import Trusting

    root, first, unsigned, state = (options.pop(name) for name in ("root", "trust_first", "unsigned", "state"))
    if unsigned and (root or first):
        raise click.UsageError("--unsigned stands without --root and --trust-first")
    return Trusting(root, state, first, unsigned)


def warn_unsigned(output: Output, report: SyncReport | PlanReport) -> None:
    """Say so loudly where nobody vouches for what is synced."""
    if report.signed_by:
        return
    if report.offered_by:
        output.warn(
            "the repository is signed, but whom to trust was not said, so its signatures were not looked at: whoever "
            "controls the server or the line decides what the image contains. Get its root file by a safe way and name "
            "it with --root (or --trust-first: trust it as it is now)"
        )
    else:
        output.warn(
            f"nobody vouches for {report.image} {report.version}: whoever controls the repository, or the line to it, "
            "decides what it contains (repositories are signed with `medv-repo keys`)"
        )
