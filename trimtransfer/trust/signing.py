"""Keys, and signed files made of plain fields. Pure: where keys lie is for :mod:`trimtransfer.trust.ring` to know."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from securesystemslib.formats import encode_canonical

from trimtransfer.trust.chain import MADE_FIELD, ROOT_FIELD
from trimtransfer.trust.documents import Document
from trimtransfer.trust.imagerole import REPOSITORY_FIELD
from trimtransfer.trust.layout import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, image_of, image_paths
from trimtransfer.trust.strict import encode

_SPECIFICATION: Final = "1.0.31"
DAYS_FIELD: Final = "x-trim-days"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with: ``public`` as 64 hexadecimal digits."""

    public: str

    @property
    def fields(self) -> dict[str, Any]:
        """The key as signed files name it."""
        return {"keytype": "ed25519", "keyval": {"public": self.public}, "scheme": "ed25519"}

    @property
    def keyid(self) -> str:
        """Its id: the SHA-256 of its fields, as in all TUF repositories."""
        return hashlib.sha256(_canonical(self.fields)).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class PrivateKey:
    """A key that signs."""

    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> PrivateKey:
        """Return a new key."""
        return cls(Ed25519PrivateKey.generate())

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.keyid[:8]}...)"

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        return PublicKey(self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex())

    def to_der(self) -> bytes:
        """Return it in PKCS#8, not encrypted."""
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def signature(self, payload: bytes) -> dict[str, str]:
        """Return its signature as signed files have it."""
        return {"keyid": self.public.keyid, "sig": self.key.sign(payload).hex()}


def signed_file(
    fields: Mapping[str, Any], keys: Iterable[PrivateKey], others: Iterable[Mapping[str, str]] = ()
) -> bytes:
    """Return a file of these fields, signed by ``keys``, with ``others``: signatures that it has already."""
    payload = _canonical(fields)
    signatures = {one["keyid"]: dict(one) for one in others}
    signatures |= {one["keyid"]: one for one in (key.signature(payload) for key in keys)}
    ordered = [signatures[keyid] for keyid in sorted(signatures)]
    return encode({"signatures": ordered, "signed": dict(fields)})


# ---- what roles say


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of a role, and how many of them must sign."""

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    @property
    def fields(self) -> dict[str, Any]:
        """Ids and threshold as signed files have them."""
        return {"keyids": [key.keyid for key in self.keys], "threshold": self.threshold}

    def __post_init__(self) -> None:
        """Check that there are enough keys; ``ValueError``."""
        if not 1 <= self.threshold <= len(set(self.keys)) == len(self.keys):
            raise ValueError(f"{self.threshold} signatures of {len(self.keys)} keys: there must be as many keys")


def key_set(document: Document, role: str) -> KeySet:
    """Return the keys that a root, or targets, name for a role; ``KeyError`` if they name none."""
    if document.role == ROOT:
        holder, named = document.fields, document.fields["roles"]
    else:
        holder = document.fields["delegations"]
        named = {one["name"]: one for one in holder["roles"]}
    found = named[role]
    keys = tuple(PublicKey(holder["keys"][keyid]["keyval"]["public"]) for keyid in found["keyids"])
    return KeySet(keys, found["threshold"])


def root_fields(
    repository: str, version: int, now: datetime, roles: Mapping[str, KeySet], days: Mapping[str, int]
) -> dict[str, Any]:
    """Return what a root says: the keys of the four top roles, and for how many ``days`` files are signed."""
    keys = {key.keyid: key.fields for one in roles.values() for key in one.keys}
    return {
        **_common(ROOT, repository, version, now, days[ROOT]),
        "consistent_snapshot": True,
        "keys": keys,
        "roles": {role: one.fields for role, one in roles.items()},
        DAYS_FIELD: dict(days),
    }


def targets_fields(
    repository: str, version: int, now: datetime, roles: Mapping[str, KeySet], days: int
) -> dict[str, Any]:
    """Return what targets say: whose keys sign which image's versions (``roles`` by the names of image roles)."""
    keys = {key.keyid: key.fields for one in roles.values() for key in one.keys}
    delegated = [
        {"name": role, "paths": image_paths(image_of(role) or ""), "terminating": True, **roles[role].fields}
        for role in sorted(roles)
    ]
    return {
        **_common(TARGETS, repository, version, now, days),
        "delegations": {"keys": keys, "roles": delegated},
        "targets": {},
    }


def image_fields(repository: str, version: int, now: datetime, content: Mapping[str, Any], days: int) -> dict[str, Any]:
    """Return what an image's role says; ``content`` as of :meth:`trimtransfer.trust.imagerole.ImageRole.to_fields`."""
    return {**_common(TARGETS, repository, version, now, days), **content}


def snapshot_fields(
    repository: str, version: int, now: datetime, files: Mapping[str, tuple[int, bytes]], days: int
) -> dict[str, Any]:
    """Return what a snapshot says: number and bytes of the newest file of each role."""
    meta = {f"{role}.json": _entry(number, data) for role, (number, data) in files.items()}
    return {**_common(SNAPSHOT, repository, version, now, days), "meta": meta}


def timestamp_fields(
    repository: str, version: int, now: datetime, snapshot: tuple[int, bytes], root: int, days: int
) -> dict[str, Any]:
    """Return what a timestamp says: number and bytes of the newest snapshot, and the number of the newest root."""
    return {
        **_common(TIMESTAMP, repository, version, now, days),
        "meta": {"snapshot.json": _entry(*snapshot)},
        MADE_FIELD: int(now.timestamp()),
        ROOT_FIELD: root,
    }


def renumbered(snapshot: Mapping[str, Any], version: int, now: datetime, days: int) -> dict[str, Any]:
    """Return the fields of a signed file with another number, signed anew for so many days."""
    return {**snapshot, "version": version, "expires": _expiry(now, days)}


def meta_entry(version: int, data: bytes) -> dict[str, Any]:
    """Return how a snapshot or a timestamp names a file."""
    return _entry(version, data)


def missing_keys(wanted: KeySet, have: Sequence[PrivateKey]) -> int:
    """Return how many more of the wanted keys must sign."""
    return max(0, wanted.threshold - len({key.public for key in have} & set(wanted.keys)))


def _common(kind: str, repository: str, version: int, now: datetime, days: int) -> dict[str, Any]:
    return {
        "_type": kind,
        "expires": _expiry(now, days),
        "spec_version": _SPECIFICATION,
        "version": version,
        REPOSITORY_FIELD: repository,
    }


def _expiry(now: datetime, days: int) -> str:
    return (now + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _entry(version: int, data: bytes) -> dict[str, Any]:
    return {"hashes": {"sha256": hashlib.sha256(data).hexdigest()}, "length": len(data), "version": version}


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return str(encode_canonical(dict(fields))).encode()
