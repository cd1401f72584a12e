"""Refusals of signed metadata: for each kind of attack what it looks like, and what whoever sees it can do."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from trimtransfer.errors import FormatError, Untrusted

_TELL: Final = "Tell whoever runs the repository"
_THEN_TELL: Final = "tell whoever runs the repository"


def forged(what: str, detail: str) -> Untrusted:
    """Return the refusal of a file without enough signatures of keys that count."""
    return Untrusted(
        what,
        detail,
        "a forgery (or signatures by a key that was revoked)",
        f"{_TELL}; if its keys were made anew, get its new root file from them and name it with --root",
    )


def altered(what: str, error: FormatError | str) -> Untrusted:
    """Return the refusal of bytes that are not what a signer writes."""
    detail = str(error).removeprefix(f"{what}: ")
    return Untrusted(what, detail, "data altered or damaged on the way", f"Try again; if it stays so: {_THEN_TELL}")


def algorithm(what: str, found: str) -> Untrusted:
    """Return the refusal of another algorithm than the one there is."""
    detail = f"a key or signature is of kind {found[:60]}, not ed25519"
    return Untrusted(what, detail, "an exchange of the algorithm for a weaker one", _TELL)


def newer(what: str, found: str) -> Untrusted:
    """Return the refusal of a format that this program does not know."""
    return Untrusted(
        what,
        f"format {found[:40]} is newer than this program",
        "no attack, but a newer repository",
        "Upgrade medv-sync",
    )


def rollback(what: str, seen: int, offered: int) -> Untrusted:
    """Return the refusal of something older than what was seen before."""
    online = what in ("timestamp", "snapshot")
    after = f"timestamp REPO --beyond {seen}" if online else "keys rotate REPO snapshot timestamp"
    return Untrusted(
        what,
        f"number {offered} is offered, number {seen} was seen here before",
        "a rollback attack: an old state is passed off as the newest (or the repository was restored from a backup)",
        f"{_TELL}; after a restore they run `medv-repo {after}`",
    )


def missing(what: str, seen: int) -> Untrusted:
    """Return the refusal of a snapshot that lacks a role that it had before."""
    return Untrusted(
        what,
        f"it is gone, number {seen} was seen here before",
        "a rollback attack: something is withheld",
        _TELL,
    )


def fast_forward(what: str, seen: int, offered: int) -> Untrusted:
    """Return the refusal of a number that no honest repository reaches."""
    return Untrusted(
        what,
        f"number {offered} is offered" + (f", number {seen} was seen here before" if seen else ""),
        "a fast-forward attack: later honest numbers would all be refused",
        f"{_TELL}: somebody has its online keys; they run `medv-repo keys rotate REPO snapshot timestamp`",
    )


def frozen(what: str, expired: datetime, now: datetime) -> Untrusted:
    """Return the refusal of what has expired."""
    return Untrusted(
        what,
        f"it was valid until {_text(expired)}; this machine's clock says {_text(now)}",
        "a freeze attack: what is new is withheld (or nobody renewed the signatures, or the clock is ahead)",
        f"Check this machine's clock; if it is right: {_THEN_TELL} (`medv-repo timestamp REPO`, best by a timer)",
    )


def clock_behind(what: str, other: str, then: datetime, now: datetime) -> Untrusted:
    """Return the refusal of a clock that says a time before one that was."""
    return Untrusted(
        what,
        f"this machine's clock says {_text(now)}, but {other} {_text(then)}",
        "a clock that was set back, with which what has expired would seem valid",
        "Set this machine's clock",
    )


def mixed(what: str, detail: str) -> Untrusted:
    """Return the refusal of a file that does not belong to the others."""
    return Untrusted(
        what,
        detail,
        "a mix-and-match attack: files of different times or origins (or a cache that serves old ones)",
        f"Try again in a minute; if it stays so: {_THEN_TELL}",
    )


def endless(what: str, limit: int) -> Untrusted:
    """Return the refusal of more bytes than there may be."""
    detail = f"more than the {limit:,} bytes that it may have are sent"
    return Untrusted(what, detail, "an endless data attack (or a page of a proxy in its place)", _TELL)


def wrong_image(what: str, expected: str, found: str) -> Untrusted:
    """Return the refusal of what is signed for something else."""
    return Untrusted(
        what,
        f"it is signed for {found[:100]}, not for {expected}",
        "an exchange of one image or tenant for another",
        _TELL,
    )


def unsigned(what: str) -> Untrusted:
    """Return the refusal of a repository that has lost its signatures."""
    return Untrusted(
        what,
        "it has no signed metadata, but it had when it was trusted here",
        "an attempt to get around the signatures",
        f"{_TELL}; to use what is not signed all the same, name --unsigned",
    )


def withdrawn(what: str) -> Untrusted:
    """Return the refusal of a version in a bundle that is signed no more, or never was."""
    return Untrusted(
        what,
        "it is not among the versions that are signed, as far as is known here",
        "a rollback attack: a version that was withdrawn, or none of this repository",
        f"Make the bundle again; {_THEN_TELL} if that does not help",
    )


def gap(what: str, detail: str) -> Untrusted:
    """Return the refusal of a chain of roots that does not hold."""
    return Untrusted(
        what, detail, "a broken chain of roots", f"{_TELL}; they can give you a newer root file to name with --root"
    )


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")
