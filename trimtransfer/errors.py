"""The exception tree: one root, each class named for what went wrong and carrying the facts as attributes.

Misuse of the library (a wrong argument) stays ``ValueError`` or ``TypeError``; a local ``OSError`` that is not about
space passes through untouched. Every class states the exit code that the commands return for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_MOST_NAMES: Final = 20
"""Names that a message lists."""


class TrimTransferError(Exception):
    """Root of all errors of this package. ``exit_code`` is what a command returns for it."""

    exit_code = 1


class FormatError(TrimTransferError):
    """Bytes that are not what they claim to be: ``what`` they claim, ``where`` in them, ``expected``, ``got``."""

    exit_code = 6

    def __init__(self, what: str, where: int | str, expected: object, got: object) -> None:
        self.what, self.where, self.expected, self.got = what, where, expected, got
        at = f"byte {where}" if isinstance(where, int) else where
        super().__init__(f"{what}: at {at}: expected {expected}, got {got}")


class IntegrityError(TrimTransferError):
    """Content whose digest is not the promised one: ``what``, ``expected`` and ``got`` as digests."""

    exit_code = 6

    def __init__(self, what: str, expected: bytes, got: bytes, remedy: str = "") -> None:
        self.what, self.expected, self.got = what, expected, got
        cut = got[:8] != expected[:8]  # or they would look the same
        found, wanted = (f"{digest.hex()[:16]}..." if cut else digest.hex() for digest in (got, expected))
        super().__init__(f"{what}: digest {found} instead of {wanted}" + (f"; {remedy}" if remedy else ""))


class NotFound(TrimTransferError):
    """An image, version or object that the repository does not have; ``url`` is where it was looked for, ``there``
    what else there is of the kind, as far as known."""

    exit_code = 4

    def __init__(self, what: str, url: str, there: Sequence[str] = ()) -> None:
        self.what, self.url, self.there = what, url, tuple(there)
        names = [*there[:_MOST_NAMES], *(["..."] if len(there) > _MOST_NAMES else [])]
        super().__init__(f"{what} not found ({url})" + (f"; there is: {', '.join(names)}" if names else ""))


class FetchError(TrimTransferError):
    """A transfer that failed: ``url``, HTTP ``status`` (None below HTTP), ``cause``; ``retryable`` if it may heal."""

    exit_code = 5

    def __init__(self, url: str, cause: str, *, status: int | None = None, retryable: bool = False) -> None:
        self.url, self.cause, self.status, self.retryable = url, cause, status, retryable
        super().__init__(f"{url}: {cause}" + (f" (HTTP {status})" if status is not None else ""))


class AccessDenied(FetchError):
    """The server or a proxy refused: 401, 403 or 407."""

    exit_code = 8


class NoSpace(TrimTransferError):
    """Not enough room: ``path``, bytes ``needed`` and ``free`` (None where unknown). What is done already is kept.

    ``remedy`` is what can be done about it.
    """

    exit_code = 7

    def __init__(self, path: str, needed: int | None, free: int | None, remedy: str = "free some space") -> None:
        self.path, self.needed, self.free = path, needed, free
        detail = f"{needed:,} bytes needed, {free:,} free" if needed is not None and free is not None else "disk full"
        super().__init__(f"no space for {path}: {detail}; {remedy} and run the same command again")


class Locked(TrimTransferError):
    """Another process works on the same image or repository: ``path`` of the lock, ``holder`` as far as known."""

    exit_code = 9

    def __init__(self, path: str, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(f"{path} is in use by {holder}; wait for it to finish, or stop it, and try again")


class SourceChanged(TrimTransferError):
    """A file that changed while it was being published, synced to, or verified: ``path``, and what changed."""

    def __init__(self, path: str, detail: str) -> None:
        self.path, self.detail = path, detail
        super().__init__(f"{path} changed while it was read ({detail}); stop what writes to it and try again")


class VersionExists(TrimTransferError):
    """A version that is published already; versions never change."""

    def __init__(self, image: str, version: str) -> None:
        self.image, self.version = image, version
        super().__init__(f"{image} {version} is published already, or was; choose another version name")


class TargetRefused(TrimTransferError):
    """An output that must not be written to: ``path`` and the reason."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


class SourceRefused(TrimTransferError):
    """A disk that cannot be read as it is, or not with certainty: ``path``, and the reason with its remedy."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


class LimitReached(TrimTransferError):
    """More bytes to fetch than may be: the ``limit``, and what is ``needed`` where that is known.

    ``metered``: the limit is one for connections that cost by the byte.
    """

    exit_code = 10

    def __init__(self, limit: int, needed: int | None = None, *, metered: bool = False) -> None:
        self.limit, self.needed, self.metered = limit, needed, metered
        more = "more" if needed is None else f"{needed:,} bytes"
        where = " on a metered connection" if metered else ""
        super().__init__(
            f"{more} to fetch, at most {limit:,} bytes are allowed{where}; allow more with --max-bytes, or run the "
            f"same command again {'in another network' if metered else 'later'}: it goes on where it stopped"
        )


class Untrusted(TrimTransferError):
    """Signed metadata that must not be believed: ``what`` it is, ``detail`` why not, which ``attack`` that looks like,
    and the ``remedy``. An installed image stays as it is."""

    exit_code = 11

    def __init__(self, what: str, detail: str, attack: str, remedy: str) -> None:
        self.what, self.detail, self.attack, self.remedy = what, detail, attack, remedy
        super().__init__(
            f"{what}: {detail}; it is not believed. This looks like {attack}. {remedy}. "
            "What is installed stays as it is and can be used"
        )


class Cancelled(TrimTransferError):
    """Stopped on request; what is on disk can be resumed."""

    exit_code = 130
