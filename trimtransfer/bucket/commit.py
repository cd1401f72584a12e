"""The commit of a push: what readers start from is replaced, all of it or nothing, whatever dies on the way.

One object, ``commit.json``, is written first, in one request: it holds what heads, catalogues and the timestamp are to
be. Then these are put in place, and the commit is noted as done. Whoever finds one that is not done does it first: the
same bytes again, in the same order. Its id tells working copies whether they know the newest state.

It also remembers since when objects lack in the working copy: they are deleted only once that was long enough.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trimtransfer.bucket.uploading import send_bytes
from trimtransfer.bucket.wire import Wire
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.store import PRIVATE
from trimtransfer.trust.layout import TIMESTAMP, metadata_name

COMMIT: Final = f"{PRIVATE}/commit.json"
FORMAT: Final = 1
_TIMESTAMP: Final = metadata_name(TIMESTAMP)
_POINTER: Final = re.compile(r"images/[^/]+/(head|catalogue|channel-[^/]+)\.json")
_LASTING: Final = re.compile(r"packs/.*|images/[^/]+/[^/]+/(manifest|tables|locations|keys)\.bin")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){1,4}")
_ID: Final = re.compile(r"[0-9a-f]{32}")
_YEAR: Final = 31_536_000


@dataclass(frozen=True, slots=True)
class Commit:
    """A state of the repository: its ``id``; if it is not ``done``, what is to be ``put`` and which pointers are to be
    deleted (``drop``); and ``unused``: since when, by the store's clock, objects lack in the working copy."""

    id: str
    done: bool = True
    put: Mapping[str, bytes] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def new(cls, put: Mapping[str, bytes], drop: tuple[str, ...], unused: Mapping[str, int]) -> Commit:
        """Return one that is to be done, with an id of its own."""
        return cls(secrets.token_hex(16), False, put, drop, unused)

    def to_bytes(self) -> bytes:
        """Return the object's bytes."""
        put = {name: base64.b64encode(data).decode("ascii") for name, data in self.put.items()}
        fields = {"format": FORMAT, "id": self.id, "done": self.done, "put": put, "drop": self.drop}
        return json.dumps({**fields, "unused": dict(self.unused)}, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Commit:
        """Parse the object's bytes; ``FormatError``."""
        try:
            fields: Any = json.loads(data)
            if fields["format"] != FORMAT:
                raise FormatError(COMMIT, "format", FORMAT, repr(fields["format"])[:40])
            put = {_name(name): base64.b64decode(text, validate=True) for name, text in fields["put"].items()}
            unused = {_name(name): int(since) for name, since in fields["unused"].items()}
            drop = tuple(_name(name) for name in fields["drop"])
            if not _ID.fullmatch(fields["id"]) or not isinstance(fields["done"], bool):
                raise ValueError("id, done")
            return cls(fields["id"], fields["done"], put, drop, unused)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
            raise FormatError(COMMIT, 0, "a commit", f"{type(error).__name__}: {error}"[:100]) from None


def is_pointer(name: str) -> bool:
    """Tell whether this is what readers start from, and replaced by a commit only."""
    return name == _TIMESTAMP or _POINTER.fullmatch(name) is not None


def is_lasting(name: str) -> bool:
    """Tell whether an object never changes once it is there."""
    return _LASTING.fullmatch(name) is not None


def headers_of(name: str) -> dict[str, str]:
    """Return what servers and caches are told of an object."""
    cache = f"max-age={_YEAR}, immutable" if is_lasting(name) else "no-cache"
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    return {"cache-control": cache, "content-type": kind}


def read_commit(wire: Wire) -> Commit | None:
    """Return the last commit; None where there never was one."""
    try:
        return Commit.from_bytes(wire.ask("GET", COMMIT).body)
    except NotFound:
        return None


def write_commit(wire: Wire, commit: Commit) -> None:
    """Store a commit as it is."""
    send_bytes(wire, COMMIT, commit.to_bytes(), headers={"cache-control": "no-store"})


def do_commit(wire: Wire, commit: Commit) -> Commit:
    """Put in place what a stored commit says, and note that; hold the claim. May be done any number of times.

    Heads come first and what is signed after them, as in a directory: a head that nobody has signed counts for nothing.
    """
    for name in sorted(commit.put, key=_rank):
        send_bytes(wire, name, commit.put[name], headers=headers_of(name))
    for name in commit.drop:
        wire.ask("DELETE", name)
    done = replace(commit, done=True, put={}, drop=())
    write_commit(wire, done)
    return done


def settle(wire: Wire) -> Commit | None:
    """Return the last commit, which is done then; hold the claim."""
    commit = read_commit(wire)
    return commit if commit is None or commit.done else do_commit(wire, commit)


def _rank(name: str) -> tuple[int, str]:
    if name.endswith("/head.json"):
        return 0, name
    return (1 if name == _TIMESTAMP else 2), name


def _name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"no object's name: {name!r}"[:80])
    return name
