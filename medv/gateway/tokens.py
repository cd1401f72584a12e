"""Opaque tokens: secrets that stand for somebody, or are a right in themselves. The file holds their hashes only.

A token reads ``medv_<id>_<secret>``; the id finds its entry, and the SHA-256 of the secret, which has 256 random bits,
is compared in constant time. The file is JSON, replaced whole under a lock; a server reads it again when it changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from medv.gateway.access import Principal, Role, Scope, check_pattern
from medv.gateway.trouble import ConfigError
from trimtransfer.errors import NotFound

PREFIX: Final = "medv"
_TOKEN: Final = re.compile(r"medv_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_MAX_FILE: Final = 16 << 20
_NOBODY: Final = hashlib.sha256(b"").hexdigest()
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Token:
    """An entry of the file. ``user`` and ``groups``: whom it stands for; ``images`` and ``role``: its scope, a right in
    itself where there is no user. Times in seconds since 1970; ``expires`` None: never."""

    id: str
    hash: str
    created: float
    expires: float | None = None
    user: str = ""
    groups: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    role: str = "read"
    note: str = ""

    def principal(self) -> Principal:
        """Return whoever shows it."""
        scope = Scope(self.images, Role.of(self.role)) if self.images else None
        return Principal(
            "token",
            user=self.user or f"token {self.id}",
            groups=frozenset(self.groups),
            scope=scope,
            grants=not self.user,
            expires=self.expires,
        )


class BadToken(ValueError):
    """What was shown is no token that counts; ``expired``: it was one."""

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.expired = expired


class TokenFile:
    """The tokens of a server. Without a file there are none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._print: tuple[int, int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r})"

    def list(self) -> list[Token]:
        """Return all entries, those that expired as well; ``ConfigError`` for a file that is none."""
        self.refresh()
        return list(self._tokens.values())

    def refresh(self) -> None:
        """Read the file again if it changed; ``ConfigError``."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self._tokens, self._print = {}, None
            return
        fingerprint = (found.st_ino, found.st_mtime_ns, found.st_size)
        if fingerprint != self._print:
            self._tokens = _load(self.path)
            self._print = fingerprint

    def check(self, shown: str, now: float) -> Principal:
        """Return whoever shows a token; ``BadToken``. Asks no disk: :meth:`refresh` does."""
        found = _TOKEN.fullmatch(shown)
        entry = self._tokens.get(found[1]) if found else None
        hashed = hashlib.sha256((found[2] if found else "").encode()).hexdigest()
        fits = hmac.compare_digest(hashed, entry.hash if entry else _NOBODY)
        if entry is None or not fits:
            raise BadToken("no token that is known here: wrong, or revoked")
        if entry.expires is not None and now >= entry.expires:
            raise BadToken(f"token {entry.id} expired {now - entry.expires:.0f} s ago", expired=True)
        return entry.principal()

    def create(self, **facts: Any) -> tuple[str, Token]:
        """Make a token of the facts of :class:`Token`; return it, which is known now and never again, and its entry.

        Raises:
            ValueError: neither a user nor images, or a name or pattern that is none.
        """
        _check(**facts)
        id = "".join(secrets.choice(_LETTERS) for _ in range(12))
        secret = secrets.token_urlsafe(32)
        token = Token(id, hashlib.sha256(secret.encode()).hexdigest(), time.time(), **facts)
        self._change(lambda tokens: {**tokens, id: token})
        return f"{PREFIX}_{id}_{secret}", token

    def revoke(self, id: str) -> Token:
        """Take a token's entry away, by its id; ``NotFound``."""
        known: list[Token] = []

        def without(tokens: dict[str, Token]) -> dict[str, Token]:
            if id not in tokens:
                raise NotFound(f"token {id[:40]}", str(self.path))
            known.append(tokens[id])
            return {name: token for name, token in tokens.items() if name != id}

        self._change(without)
        return known[0]

    def _change(self, change: Callable[[dict[str, Token]], dict[str, Token]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path):
            self.refresh()
            data = {"format": _FORMAT, "tokens": [asdict(token) for token in change(dict(self._tokens)).values()]}
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                self._keep_owner(descriptor)
                json.dump(data, file, indent=1)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, self.path)
            self.refresh()

    def _keep_owner(self, descriptor: int) -> None:
        """A server of another user still reads the file that root changes."""
        with contextlib.suppress(FileNotFoundError):
            before = os.stat(self.path)
            os.fchmod(descriptor, before.st_mode & 0o640)
            if os.geteuid() == 0:
                os.fchown(descriptor, before.st_uid, before.st_gid)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _load(path: Path) -> dict[str, Token]:
    remedy = "restore it, or delete it and make the tokens anew with `medv-repo token create`"
    with open(path, "rb") as file:
        raw = file.read(_MAX_FILE + 1)
    try:
        data = json.loads(raw) if len(raw) <= _MAX_FILE else None
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError("not a file of tokens of this release")
        return {token.id: token for token in map(_entry, data["tokens"])}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(str(path), "tokens", f"cannot be read: {error}", remedy) from None


def _entry(values: dict[str, Any]) -> Token:
    lists = {name: tuple(map(str, values.get(name, ()))) for name in ("groups", "images")}
    token = Token(**{**values, **lists})
    if not re.fullmatch("[a-z0-9]{12}", token.id) or not re.fullmatch("[0-9a-f]{64}", token.hash):
        raise ValueError("an id or a hash is none")
    for moment in (token.created, token.expires):
        if moment is not None and (isinstance(moment, bool) or not isinstance(moment, int | float)):
            raise ValueError("a time is none")
    _check(user=token.user, groups=token.groups, images=token.images, role=token.role, note=token.note)
    return token


def _check(
    *,
    user: str = "",
    groups: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    role: str = "read",
    note: str = "",
    expires: float | None = None,
) -> None:
    Role.of(role)
    if not user and not images:
        raise ValueError("a token stands for a user, or is for images, or both")
    if groups and not user:
        raise ValueError("groups are those of a user")
    for pattern in images:
        check_pattern(pattern)
    for text in (user, note, *groups):
        if text and not _NAME.fullmatch(text):
            raise ValueError(f"{text[:40]!r}: 1 to 100 printable characters")
