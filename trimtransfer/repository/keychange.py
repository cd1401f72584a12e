"""Exchanging keys: who may sign a repository from now on.

A change of root or targets needs the signatures of offline keys. Where not enough of them are at hand it waits as a
draft, which goes to other machines to be signed there, and counts once it has come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from trimtransfer.durable import space_errors
from trimtransfer.errors import NotFound, TargetRefused, Untrusted
from trimtransfer.repository.drafts import Draft, discard_drafts, read_drafts, write_draft
from trimtransfer.repository.intent import clean_up, intended, repository_lock
from trimtransfer.repository.keyreport import KeysReport, describe_keys, opened, require_signed
from trimtransfer.repository.keysetup import once
from trimtransfer.repository.renewal import new_roles, resigned
from trimtransfer.repository.signed import SignedMetadata, clock, lacking
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.staged import finish
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.documents import Document, check_signatures, open_document
from trimtransfer.trust.layout import (
    DAYS,
    OFFLINE_ROLES,
    PUBLISHER,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TOP_ROLES,
    image_of,
    role_of,
)
from trimtransfer.trust.ring import Passphrase, save_key
from trimtransfer.trust.signing import KeySet, PrivateKey, PublicKey, renumbered, root_fields, targets_fields

_NEAR: Final = 0.25
"""Share of the days for which a file is signed that are left when it is renewed."""


def delegate(repository: str, images: Sequence[str], *, keys: Keys, offline: Path | None) -> KeysReport:
    """Let the publisher's keys sign these images, too; what they have already is signed if those keys are at hand."""
    with _change(repository, keys, offline) as change:
        sets = change.publishers()
        publisher = next(iter(sets.values()), None) or change.remembered_publisher()
        change.propose(publishers={**sets, **{role_of(image): publisher for image in images}})
    return change.report()


def rotate_keys(
    repository: str, roles: Sequence[str], *, keys: Keys, offline: Path | None, passphrase: Passphrase | None
) -> KeysReport:
    """Exchange the keys of roles for new ones, as many as there are; the old ones count no more.

    Of snapshot and timestamp it makes everything count anew that is signed offline and by publishers, whatever somebody
    with the old keys has written: clients forget the numbers that they saw.
    """
    online = bool({SNAPSHOT, TIMESTAMP} & set(roles))
    with _change(repository, keys, offline, whatever_is_online=online) as change:
        tops, publishers = change.tops(), change.publishers()
        word = once(passphrase)
        for role in roles:
            old = change.key_set(role)
            made = [PrivateKey.generate() for _ in old.keys]
            fresh = KeySet(tuple(key.public for key in made), old.threshold)
            for key in made:
                change.keep(role, key, word)
            if role == PUBLISHER:
                publishers = dict.fromkeys(publishers, fresh)
            else:
                tops[role] = fresh
        change.propose(tops=tops, publishers=publishers if PUBLISHER in roles else None)
    return change.report()


def change_keys(
    repository: str,
    role: str,
    *,
    keys: Keys,
    offline: Path | None,
    add: Sequence[PublicKey] = (),
    make: int = 0,
    remove: Sequence[str] = (),
    threshold: int | None = None,
    passphrase: Passphrase | None = None,
) -> KeysReport:
    """Add keys to a role (those of others, or ``make`` new ones), ``remove`` some by the beginnings of their ids, or
    set how many must sign."""
    with _change(repository, keys, offline) as change:
        old = change.key_set(role)
        word = once(passphrase)
        made = [PrivateKey.generate() for _ in range(make)]
        for key in made:
            change.keep(role, key, word)
        gone = [key for key in old.keys if any(key.keyid.startswith(one) for one in remove)]
        if len(gone) != len(remove):
            raise TargetRefused(repository, f"has no such {role} key, or several: {', '.join(remove)}")
        kept = tuple(key for key in old.keys if key not in gone)
        try:
            new = KeySet((*kept, *add, *(key.public for key in made)), threshold or old.threshold)
        except ValueError as error:
            raise TargetRefused(repository, f"{role}: {error}; see --threshold") from error
        if role == PUBLISHER:
            change.propose(publishers=dict.fromkeys(change.publishers(), new))
        else:
            change.propose(tops={**change.tops(), role: new})
    return change.report()


def renew(repository: str, *, keys: Keys, offline: Path | None, everything: bool = False) -> KeysReport:
    """Sign root, targets and roles of images anew that are near their end, or ``everything``."""
    with _change(repository, keys, offline) as change:
        change.renew(everything=everything)
    return change.report()


def apply_drafts(repository: str, *, keys: Keys, offline: Path | None) -> KeysReport:
    """Sign the drafts that wait with the keys at hand; let them count if that is enough."""
    with _change(repository, keys, offline) as change:
        change.resume()
    return change.report()


class _Change:
    """A change in progress, under the lock."""

    def __init__(self, store: DirectoryStore, metadata: SignedMetadata, keys: Keys, offline: Path | None) -> None:
        self._store, self._metadata, self._keys, self._offline = store, metadata, keys, offline
        self._ring = keys.ring(metadata.repository, *([offline] if offline is not None else []))
        self._now = clock()
        self._written: list[str] = []

    # ---- how it is

    def tops(self) -> dict[str, KeySet]:
        """Return the keys of the four top roles."""
        return {role: self.key_set(role) for role in TOP_ROLES}

    def publishers(self) -> dict[str, KeySet]:
        """Return the keys of all image roles."""
        roles = [one["name"] for one in self._metadata.targets.fields["delegations"]["roles"]]
        found = ((role, self._metadata.keys(role)) for role in roles)
        return {role: keys for role, keys in found if keys is not None}

    def key_set(self, role: str) -> KeySet:
        """Return the keys of a role; those of the publisher are the first image's."""
        found = self._metadata.keys(role) if role != PUBLISHER else next(iter(self.publishers().values()), None)
        if found is None and role == PUBLISHER:
            return self.remembered_publisher()
        if found is None:
            raise TargetRefused(self._store.url, f"has no role {role}")
        return found

    def remembered_publisher(self) -> KeySet:
        """Return the publisher's keys while no image names any: those in the folders of keys."""
        found = self._ring.named(PUBLISHER)
        if not found:
            raise lacking(self._store, self._ring, PUBLISHER, None)
        return KeySet(tuple(found))

    def keep(self, role: str, key: PrivateKey, word: Passphrase | None) -> None:
        """Write a new key to where keys of its role are kept."""
        if role in OFFLINE_ROLES and self._offline is None:
            raise TargetRefused(self._store.url, f"new {role} keys go to a folder of their own; name it with --offline")
        place = self._offline if role in OFFLINE_ROLES else self._keys.folders(self._metadata.repository)[0]
        assert place is not None
        sealed = word(role) if word is not None and role in OFFLINE_ROLES else None
        self._written.append(str(save_key(place, role, key, sealed)))
        self._ring.add(key)

    # ---- what is to be

    def propose(
        self, *, tops: Mapping[str, KeySet] | None = None, publishers: Mapping[str, KeySet] | None = None
    ) -> None:
        """Make drafts of a root and targets with these keys, and let them count as far as they can."""
        metadata, drafts = self._metadata, list[Draft]()
        if tops is not None:
            days = {kind: metadata.days(kind) for kind in DAYS}
            fields = root_fields(metadata.repository, metadata.root.version + 1, self._now, tops, days)
            drafts.append(self._root_draft(fields, tops[ROOT]))
        targets = (tops or self.tops())[TARGETS]
        if publishers is not None or targets != self.key_set(TARGETS):
            number, days_ = metadata.files[TARGETS][0] + 1, metadata.days(TARGETS)
            named = publishers if publishers is not None else self.publishers()
            fields = targets_fields(metadata.repository, number, self._now, named, days_)
            drafts.append(Draft.of(TARGETS, fields, (targets,)))
        self._settle(drafts)

    def renew(self, *, everything: bool) -> None:
        """Make drafts of what is near its end."""
        metadata, drafts = self._metadata, list[Draft]()
        if everything or self._near(metadata.root, ROOT):
            fields = renumbered(metadata.root.fields, metadata.root.version + 1, self._now, metadata.days(ROOT))
            drafts.append(self._root_draft(fields, self.key_set(ROOT)))
        if everything or self._near(metadata.targets, TARGETS):
            number = metadata.targets.version + 1
            fields = renumbered(metadata.targets.fields, number, self._now, metadata.days(TARGETS))
            drafts.append(Draft.of(TARGETS, fields, (self.key_set(TARGETS),)))
        images = [
            image
            for image in metadata.images
            if (document := metadata.document(role_of(image))) and (everything or self._near(document, PUBLISHER))
        ]
        self._settle(drafts, images)

    def resume(self) -> None:
        """Take up the drafts that wait."""
        found = [draft for _, draft in read_drafts(self._store)]
        if not found:
            raise NotFound("a draft to sign", self._store.url)
        self._settle(found)

    def report(self) -> KeysReport:
        """Return what was done, once it is."""
        return replace(describe_keys(self._store.url, self._keys), written=tuple(self._written))

    # ---- inside

    def _near(self, document: Document, kind: str) -> bool:
        return document.expires - self._now < _NEAR * timedelta(days=self._metadata.days(kind))

    def _root_draft(self, fields: Mapping[str, Any], new: KeySet) -> Draft:
        return Draft.of(ROOT, fields, (self.key_set(ROOT), new))

    def _settle(self, drafts: Sequence[Draft], images: Sequence[str] = ()) -> None:
        """Sign drafts with the keys at hand; let them count if that is enough, else keep them."""
        signed = [draft.signed_by(self._ring) for draft in drafts]
        if any(draft.lacks() for draft in signed):
            for draft in signed:
                write_draft(self._store, draft)
            if images:
                self._apply({}, images)
            return
        self._apply({draft.role: draft.data for draft in signed}, images)
        discard_drafts(self._store)

    def _apply(self, files: Mapping[str, bytes], images: Sequence[str]) -> None:
        """Let new roots and targets count, with all that has to be signed anew because of them."""
        metadata, store = self._metadata, self._store
        if not files and not images:
            return
        root = open_document(ROOT, files[ROOT]) if ROOT in files else metadata.root
        targets = open_document(TARGETS, files[TARGETS]) if TARGETS in files else metadata.targets
        if root.version != metadata.root.version + (ROOT in files) or targets.repository != root.repository:
            raise TargetRefused(store.url, "the draft is of another time; discard it (`keys sign --discard`)")
        if ROOT in files:
            check_signatures(root, metadata.root)
            check_signatures(root, root)
        check_signatures(targets, root)
        metadata.root, metadata.targets = root, targets
        roles: dict[str, bytes] = {TARGETS: files[TARGETS]} if TARGETS in files else {}
        stale = [image for image in metadata.images if image in images or not self._counts(image)]
        roles |= dict(resigned(store, metadata, self._ring, stale, self._now))
        fresh = [image for role in self.publishers() if (image := image_of(role)) and role not in metadata.files]
        roles |= dict(new_roles(store, metadata, self._ring, fresh, self._now))
        metadata.require(self._ring)
        with intended(store, "", None) as intent:
            metadata.stage(self._ring, self._now, intent.add, roles=roles, root=files.get(ROOT))
            finish(store)
        metadata.prune()

    def _counts(self, image: str) -> bool:
        """Tell whether the signatures of an image's role are enough for the keys that count now."""
        document = self._metadata.document(role_of(image))
        try:
            if document is not None:
                check_signatures(document, self._metadata.targets)
        except Untrusted:
            return False
        return True


@contextmanager
def _change(
    repository: str, keys: Keys, offline: Path | None, *, whatever_is_online: bool = False
) -> Iterator[_Change]:
    store = DirectoryStore(repository)
    require_signed(store)
    with space_errors(store.path), repository_lock(store, "changing keys"):
        clean_up(store)
        found = opened(store, keys, offline, whatever_is_online=whatever_is_online)
        yield _Change(store, found, keys, offline)
