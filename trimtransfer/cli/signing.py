"""Options of commands that sign: where keys are, and passphrases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from trimtransfer.repository.signer import Keys

F = TypeVar("F", bound=Callable[..., Any])


def keys_option(function: F) -> F:
    """Decorate a command with ``--keys``, which becomes ``keys`` (:func:`take_keys`)."""
    return click.option(
        "--keys", "key_folders", multiple=True, metavar="DIR", type=click.Path(exists=True, file_okay=False),
        help="If REPO is signed: folder of keys to sign with; may be given several times.  "
        "[default: MEDV_KEYS, else ~/.config/medv/keys/ID]",
    )(function)  # fmt: skip


def take_keys(options: dict[str, Any]) -> Keys:
    """Take ``--keys`` out of a command's options, and return the keys."""
    from trimtransfer.repository.signer import Keys

    return Keys(tuple(Path(one) for one in options.pop("key_folders")), ask_passphrase)


def ask_passphrase(what: str) -> bytes:
    """Ask for the passphrase of a key, on a terminal; ``TargetRefused`` where there is none."""
    import sys

    if not sys.stdin.isatty():
        from trimtransfer.errors import TargetRefused

        raise TargetRefused(what, "has a passphrase; set MEDV_KEY_PASSPHRASE_FILE, or run this on a terminal")
    return str(click.prompt(f"Passphrase of {what}", hide_input=True, err=True)).encode()


def new_passphrase(what: str) -> bytes:
    """Return the passphrase for new keys: that of the environment, else one that is asked for, twice."""
    from trimtransfer.repository.signer import PASSPHRASES
    from trimtransfer.trust.ring import passphrase_from

    def ask(what: str) -> bytes:
        import sys

        if not sys.stdin.isatty():
            return ask_passphrase(what)
        text = f"New passphrase for the {what} key (and others made now)"
        return str(click.prompt(text, hide_input=True, confirmation_prompt=True, err=True)).encode()

    return passphrase_from(PASSPHRASES, ask)(what)
