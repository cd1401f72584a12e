"""Signed files as values: read strictly, their signatures counted by python-tuf. Pure.

Loads python-tuf, so whoever has nothing signed imports this in functions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, Root, Signed, Targets

from trimtransfer.errors import FormatError
from trimtransfer.trust import attacks
from trimtransfer.trust.imagerole import REPOSITORY_FIELD
from trimtransfer.trust.layout import MAX_VERSION, TOP_ROLES, max_length
from trimtransfer.trust.strict import parse

_ALGORITHM: Final = "ed25519"
_SPECIFICATION: Final = "1"
"""Major version of the specification of TUF."""
_KEY_DIGITS: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A signed file of a role: its bytes, its fields, what python-tuf makes of it, and its signatures by key id.

    It is well formed; whether its signatures count is for :func:`check_signatures` to say.
    """

    role: str
    data: bytes
    fields: dict[str, Any]
    signed: Signed
    payload: bytes
    signatures: dict[str, Any]

    @property
    def version(self) -> int:
        """Its number."""
        return self.signed.version

    @property
    def expires(self) -> datetime:
        """Until when it is valid."""
        return self.signed.expires

    @property
    def repository(self) -> str:
        """Id of the repository that it is signed for."""
        return str(self.fields.get(REPOSITORY_FIELD, ""))

    def number(self, name: str) -> int | None:
        """Return one of its whole numbers; None if it has none of that name."""
        value = self.fields.get(name)
        return value if type(value) is int and value >= 0 else None


def open_document(role: str, data: bytes) -> Document:
    """Read a signed file.

    Raises:
        Untrusted: it is not one, is of another kind or a newer format, or names another algorithm.
    """
    try:
        fields = parse(data, role, limit=max_length(role))
    except FormatError as error:
        raise attacks.altered(role, error) from error
    signed = fields["signed"]
    kind = role if role in TOP_ROLES else "targets"
    specification = str(signed.get("spec_version", ""))
    if signed.get("_type") != kind:
        raise attacks.mixed(role, f"it is a file of kind {str(signed.get('_type'))[:40]!r}")
    if specification.partition(".")[0] != _SPECIFICATION:
        raise attacks.newer(role, specification)
    _check_algorithms(role, signed)
    try:
        payload = str(encode_canonical(signed)).encode()
        metadata: Any = Metadata.from_dict(json.loads(data))  # which takes it apart
        same = metadata.signed.to_dict() == signed
    except Exception as error:  # python-tuf lets through whatever its constructors meet
        raise attacks.altered(role, f"{type(error).__name__}: {error}"[:120]) from error
    if not same:
        raise attacks.altered(role, "it means something else than it says")
    if metadata.signed.version > MAX_VERSION:
        raise attacks.fast_forward(role, 0, metadata.signed.version)
    return Document(role, data, signed, metadata.signed, payload, dict(metadata.signatures))


def check_signatures(document: Document, delegator: Document, role: str | None = None) -> None:
    """Check that enough keys have signed which ``delegator`` (a root, or targets) names for the role.

    Raises:
        Untrusted: too few.
    """
    name = role or document.role
    found = signing_keys(document, delegator, name)
    if found is None:
        raise attacks.forged(document.role, f"{delegator.role} {delegator.version} has no keys for it")
    valid, threshold = found
    if len(valid) < threshold:
        raise attacks.forged(document.role, f"{len(valid)} of the {threshold} signatures that it needs are valid")


def signing_keys(document: Document, delegator: Document, role: str) -> tuple[set[str], int] | None:
    """Return the ids of keys of a role that have validly signed, and how many must; None for a role without keys.

    Each key counts once: their ids are distinct, and so are the keys (:func:`open_document`).
    """
    signer = delegator.signed
    if not isinstance(signer, Root | Targets):
        return None
    try:
        result = signer.get_verification_result(role, document.payload, document.signatures)
    except (ValueError, KeyError):
        return None
    return set(result.signed), result.threshold


def is_expired(document: Document, now: datetime) -> bool:
    """Tell whether a file is no longer valid at an instant (UTC)."""
    return document.signed.is_expired(now)


def instant(seconds: float) -> datetime:
    """Return seconds since 1970 as an instant in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _check_algorithms(role: str, signed: dict[str, Any]) -> None:
    """Refuse keys of any kind but the one there is, and one key under two names: it would count twice."""
    holder = signed.get("delegations", signed) if role != "root" else signed
    keys = holder.get("keys", {}) if isinstance(holder, dict) else {}
    if not isinstance(keys, dict) or not all(isinstance(key, dict) for key in keys.values()):
        raise attacks.altered(role, "its keys are none")
    seen: set[str] = set()
    for key in keys.values():
        value = key.get("keyval")
        public = value.get("public") if isinstance(value, dict) else None
        if (key.get("keytype"), key.get("scheme")) != (_ALGORITHM, _ALGORITHM):
            raise attacks.algorithm(role, f"{key.get('keytype')}/{key.get('scheme')}")
        if not isinstance(public, str) or len(public) != _KEY_DIGITS or not set(public) <= set("0123456789abcdef"):
            raise attacks.algorithm(role, "no key of 32 bytes")
        if public in seen:
            raise attacks.forged(role, "one key stands there twice, as if it were two")
        seen.add(public)
