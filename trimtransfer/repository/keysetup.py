"""Setting a repository up to be signed: keys made, and all that is in it signed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from trimtransfer.durable import space_errors
from trimtransfer.errors import TargetRefused
from trimtransfer.names import head_name
from trimtransfer.repository.intent import check_target, clean_up, intended, repository_lock
from trimtransfer.repository.keyreport import KeysReport, describe_keys
from trimtransfer.repository.reading import image_names, read_head
from trimtransfer.repository.renewal import new_roles
from trimtransfer.repository.signed import SignedMetadata, clock
from trimtransfer.repository.signer import PINNED, Keys
from trimtransfer.repository.staged import finish, is_signed
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.documents import open_document
from trimtransfer.trust.layout import DAYS, OFFLINE_ROLES, PUBLISHER, ROOT, TARGETS, TOP_ROLES, role_of
from trimtransfer.trust.ring import Passphrase, Ring, save_key
from trimtransfer.trust.signing import KeySet, PrivateKey, root_fields, signed_file, targets_fields

KEY_ROLES = (*TOP_ROLES, PUBLISHER)
"""Roles that have keys of their own; those of all images share the publisher's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a repository shall be signed: of each role how many keys, and how many of them must sign; for how many days.

    ``protect``: the publisher's keys have a passphrase, too.
    """

    counts: Mapping[str, tuple[int, int]]
    days: Mapping[str, int]
    protect: bool = False

    def of(self, role: str) -> tuple[int, int]:
        """Return number of keys and threshold of a role."""
        return self.counts.get(role, (1, 1))


def init_keys(
    repository: str,
    *,
    keys: Keys,
    offline: Path,
    plan: Plan,
    passphrase: Passphrase | None,
    now: datetime | None = None,
) -> KeysReport:
    """Make keys for a repository and sign all that is in it.

    ``offline`` is where the keys of root and targets go; ``passphrase`` None: these are not encrypted.

    Raises:
        TargetRefused: it is signed already, or no repository. Locked, NoSpace, OSError; FormatError: it is damaged.
    """
    store, now = DirectoryStore(repository), now or clock()
    check_target(store)
    if is_signed(store):
        raise TargetRefused(repository, "is signed already; see `medv-repo keys show`")
    identity = secrets.token_hex(8)
    folder, ring = keys.folders(identity)[0], Ring([], lambda _: b"")
    for place in (folder, offline):
        if place.absolute().is_relative_to(store.path.absolute()):
            raise TargetRefused(str(place), "lies in the repository: a web server would serve the keys")
    sets, written = _make_keys(plan, folder, offline, passphrase, ring)
    store.path.mkdir(parents=True, exist_ok=True)
    with space_errors(store.path), repository_lock(store, "setting up signatures"):
        clean_up(store)
        tops = {role: sets[role] for role in TOP_ROLES}
        days = {**DAYS, **plan.days}
        root = signed_file(root_fields(identity, 1, now, tops, days), ring.of(sets[ROOT]))
        images = image_names(store)
        delegated = {role_of(image): sets[PUBLISHER] for image in images}
        fields = targets_fields(identity, 1, now, delegated, days[TARGETS])
        targets = signed_file(fields, ring.of(sets[TARGETS]))
        metadata = SignedMetadata(store, open_document(ROOT, root), open_document(TARGETS, targets), {})
        roles = {TARGETS: targets, **dict(new_roles(store, metadata, ring, images, now))}
        with intended(store, "", None) as intent:
            metadata.stage(ring, now, intent.add, roles=roles, root=root)
            for image in images:
                head = read_head(store, image)
                store.put(head_name(image), replace(head, signed=identity).to_bytes())
            finish(store)
        for place in (folder, offline):
            (place / PINNED).write_bytes(root)
    return replace(describe_keys(repository, keys), written=tuple(written))


def _make_keys(
    plan: Plan, folder: Path, offline: Path, passphrase: Passphrase | None, ring: Ring
) -> tuple[dict[str, KeySet], list[str]]:
    """Make and write the keys of all roles; return them by role, and their files."""
    sets: dict[str, KeySet] = {}
    written: list[str] = []
    word = once(passphrase)
    for role in KEY_ROLES:
        count, threshold = plan.of(role)
        made = [PrivateKey.generate() for _ in range(count)]
        sets[role] = KeySet(tuple(key.public for key in made), threshold)
        sealed = word if role in OFFLINE_ROLES or (role == PUBLISHER and plan.protect) else None
        where = offline if role in OFFLINE_ROLES else folder
        written += [str(save_key(where, role, key, sealed(role) if sealed else None)) for key in made]
        for key in made:
            ring.add(key)
    return sets, written


def once(passphrase: Passphrase | None) -> Passphrase | None:
    """Return what asks for one passphrase for all keys that are made."""
    if passphrase is None:
        return None
    known: list[bytes] = []

    def tell(what: str) -> bytes:
        if not known:
            known.append(passphrase(what))
        return known[0]

    return tell
