"""Drafts: roots and targets that lack signatures, as files that can be carried to where the keys are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trimtransfer.errors import FormatError, TargetRefused, Untrusted
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.documents import open_document
from trimtransfer.trust.layout import OFFLINE_ROLES, ROOT
from trimtransfer.trust.ring import Ring
from trimtransfer.trust.signing import KeySet, PublicKey, signed_file
from trimtransfer.trust.strict import encode

_FOLDER: Final = "drafts"
_MOST: Final = 6 << 20


@dataclass(frozen=True, slots=True)
class Draft:
    """A file of a ``role`` with the signatures that it has so far; enough of each of ``sets`` must sign."""

    role: str
    data: bytes
    sets: tuple[KeySet, ...]

    @classmethod
    def of(cls, role: str, fields: Mapping[str, Any], sets: Sequence[KeySet]) -> Draft:
        """Return a draft without signatures."""
        return cls(role, signed_file(fields, ()), tuple(dict.fromkeys(sets)))

    def signed_by(self, ring: Ring) -> Draft:
        """Return it with the signatures of all keys at hand that count."""
        fields = json.loads(self.data)
        keys = [key for one in self.sets for key in ring.of(one)]
        return replace(self, data=signed_file(fields["signed"], keys, fields["signatures"]))

    def lacks(self) -> int:
        """Return how many signatures are lacking, in the set that lacks most."""
        have = {one["keyid"] for one in json.loads(self.data)["signatures"]}
        return max(one.threshold - len(have & {key.keyid for key in one.keys}) for one in self.sets)

    def lacks_text(self) -> str:
        """Tell whose signatures are lacking."""
        have = {one["keyid"] for one in json.loads(self.data)["signatures"]}
        missing = {key.keyid[:8] for one in self.sets for key in one.keys} - {keyid[:8] for keyid in have}
        return f"{max(0, self.lacks())} more signatures of the {self.role} keys {', '.join(sorted(missing))}"

    def describe(self) -> list[str]:
        """Tell what it says, for whoever is about to sign it."""
        document = open_document(self.role, self.data)
        lines = [
            f"{self.role} {document.version} of repository {document.repository}, until {document.expires:%Y-%m-%d}"
        ]
        roles = document.fields["roles"] if self.role == ROOT else document.fields["delegations"]["roles"]
        named = roles.items() if isinstance(roles, dict) else ((one["name"], one) for one in roles)
        for name, one in named:
            keys = ", ".join(keyid[:8] for keyid in one["keyids"])
            lines.append(f"  {name:<20} {one['threshold']} of the keys {keys}")
        return lines

    def to_bytes(self) -> bytes:
        """Return the bytes of its file."""
        sets = [{"keys": [key.public for key in one.keys], "threshold": one.threshold} for one in self.sets]
        return encode({"draft": self.role, "file": json.loads(self.data), "sets": sets})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Draft:
        """Parse its file; ``FormatError`` if it is none."""
        try:
            fields = json.loads(data)
            role = fields["draft"]
            sets = tuple(KeySet(tuple(map(PublicKey, one["keys"])), one["threshold"]) for one in fields["sets"])
            found = cls(role, encode(fields["file"]), sets)
            open_document(role, found.data)
        except (ValueError, KeyError, TypeError, RecursionError, Untrusted) as error:
            raise FormatError(f"draft {where}", 0, "what `medv-repo keys` has drafted", str(error)[:80]) from error
        if role not in OFFLINE_ROLES:
            raise FormatError(f"draft {where}", "draft", " or ".join(OFFLINE_ROLES), repr(role)[:40])
        return found


def read_draft(path: Path) -> Draft:
    """Return the draft in a file; ``FormatError``, ``OSError``."""
    with open(path, "rb") as file:
        return Draft.from_bytes(file.read(_MOST), str(path))


def sign_file(path: Path, ring: Ring) -> Draft:
    """Sign the draft in a file with the keys at hand, in the same file; return it.

    Raises:
        TargetRefused: none of its keys is at hand, or has not signed yet. FormatError, OSError.
    """
    draft = read_draft(path)
    signed = draft.signed_by(ring)
    if signed.data == draft.data:
        where = ", ".join(map(str, ring.directories))
        raise TargetRefused(str(path), f"no key in {where} has to sign it (still lacking: {draft.lacks_text()})")
    path.write_bytes(signed.to_bytes())
    return signed


def read_drafts(store: DirectoryStore) -> Iterator[tuple[Path, Draft]]:
    """Yield the drafts that wait in a repository, with their files."""
    for role in OFFLINE_ROLES:
        path = _path(store, role)
        if path.exists():
            yield path, read_draft(path)


def write_draft(store: DirectoryStore, draft: Draft) -> Path:
    """Let a draft wait in a repository; return its file."""
    path = _path(store, draft.role)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(draft.to_bytes())
    temporary.replace(path)
    return path


def discard_drafts(store: DirectoryStore, roles: Iterable[str] = OFFLINE_ROLES) -> int:
    """Delete drafts that wait; return how many there were."""
    paths = [path for role in roles if (path := _path(store, role)).exists()]
    for path in paths:
        path.unlink()
    return len(paths)


def _path(store: DirectoryStore, role: str) -> Path:
    return store.private(_FOLDER) / f"{role}.draft.json"
