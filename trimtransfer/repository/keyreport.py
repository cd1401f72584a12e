"""How a repository is signed, as commands on keys tell it; and reading its signed metadata for these."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trimtransfer.errors import NotFound
from trimtransfer.repository.drafts import read_drafts
from trimtransfer.repository.signed import SignedMetadata, clock
from trimtransfer.repository.signer import PINNED, Keys
from trimtransfer.repository.staged import is_signed, metadata_numbers
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.client import expiry_warnings
from trimtransfer.trust.documents import Document, open_document
from trimtransfer.trust.layout import (
    PUBLISHER,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    max_length,
    metadata_name,
    role_of,
)
from trimtransfer.trust.ring import Ring


@dataclass(frozen=True, slots=True)
class RoleState:
    """A role as ``keys show`` tells it: its number, until when it is signed, its key ids, and how many must sign."""

    role: str
    number: int
    expires: str
    keyids: tuple[str, ...]
    threshold: int
    here: int


@dataclass(frozen=True, slots=True)
class KeysReport:
    """What a command on keys did: ``applied`` or waiting for signatures in ``drafts`` (path and what is lacking);
    key files ``written``; how the roles are now."""

    repository: str
    root: str
    applied: bool = True
    drafts: tuple[tuple[str, str], ...] = ()
    written: tuple[str, ...] = ()
    roles: tuple[RoleState, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def describe_keys(repository: str, keys: Keys, *, now: datetime | None = None) -> KeysReport:
    """Return how a repository is signed; ``NotFound`` if it is not."""
    store = DirectoryStore(repository)
    metadata = opened(store, keys)
    ring = keys.ring(metadata.repository)
    documents = [(ROOT, metadata.root), (TARGETS, metadata.targets)]
    documents += [
        (role, found) for role, found in ((SNAPSHOT, metadata.snapshot), (TIMESTAMP, metadata.timestamp)) if found
    ]
    documents += [(PUBLISHER, found) for image in metadata.images if (found := metadata.document(role_of(image)))]
    drafts = tuple((str(path), draft.lacks_text()) for path, draft in read_drafts(store))
    return KeysReport(
        metadata.repository,
        str(store.path / metadata_name(ROOT, metadata.root.version)),
        applied=not drafts,
        drafts=drafts,
        roles=tuple(_state(metadata, ring, document) for _, document in documents),
        warnings=tuple(expiry_warnings(metadata.root, tuple(documents), now or clock())),
    )


def opened(
    store: DirectoryStore, keys: Keys, offline: Path | None = None, *, whatever_is_online: bool = False
) -> SignedMetadata:
    """Read and check the signed metadata, from the root on that lies beside the keys: whoever can write to the
    repository must not have keys sign what he has put there.

    Raises:
        NotFound: there are none. Untrusted: they are not what they should be.
    """
    found = SignedMetadata.open(store, pinned=_pinned(store, keys, offline), whatever_is_online=whatever_is_online)
    if found is None:
        raise NotFound("signed metadata (see `medv-repo keys init`)", store.url)
    return found


def require_signed(store: DirectoryStore) -> None:
    """Raise ``NotFound`` for a repository that is not signed."""
    if not is_signed(store):
        raise NotFound("signed metadata (see `medv-repo keys init`)", store.url)


def _pinned(store: DirectoryStore, keys: Keys, offline: Path | None) -> Path | None:
    if offline is not None and (offline / PINNED).exists():
        return offline / PINNED
    numbers = metadata_numbers(store, ROOT)
    if not numbers:
        return None
    root = open_document(ROOT, store.read(metadata_name(ROOT, max(numbers)), limit=max_length(ROOT)))
    return keys.pinned(root.repository)


def _state(metadata: SignedMetadata, ring: Ring, document: Document) -> RoleState:
    keys = metadata.keys(document.role)
    assert keys is not None
    ids = tuple(key.keyid for key in keys.keys)
    here = sum(key in ring for key in keys.keys)
    return RoleState(
        document.role, document.version, f"{document.expires:%Y-%m-%d %H:%M} UTC", ids, keys.threshold, here
    )
