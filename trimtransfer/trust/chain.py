"""The chain of trust: bytes in, belief out. No files, no network, and a clock that is handed in.

Order: the root that is pinned, newer roots one by one, the timestamp, the snapshot that it names, the targets and the
image's role that the snapshot names (the workflow of a client in TUF's specification, section 5). What was seen in
earlier runs is :meth:`remembered <Chain.remember>`, so that nothing older is taken; what was signed with keys that a
newer root revokes counts no more, which is how a repository recovers from numbers that an attacker raised.

One step differs from the specification: which root is the newest, the timestamp says (``x-trim-root``), so a client
need not ask for the next one each time. It asks where a timestamp is not believed; whoever can withhold a root from a
client that asks could so there, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from trimtransfer.errors import FormatError, Untrusted
from trimtransfer.trust import attacks
from trimtransfer.trust.documents import Document, check_signatures, instant, is_expired, open_document, signing_keys
from trimtransfer.trust.imagerole import FORMAT_FIELD, ImageRole
from trimtransfer.trust.layout import MAX_JUMP, REPOSITORY, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, role_of

ROOT_FIELD: Final = "x-trim-root"
MADE_FIELD: Final = "x-trim-made"
TOLERANCE: Final = timedelta(days=1)
"""By how much clocks may differ."""
RELEASED: Final = instant(1_793_491_200)
"""When this program did not yet exist (1 November 2026): a clock before it is wrong."""


class Chain:
    """What is believed of a repository, from its ``root`` on. With ``offline`` nobody can say what is newest by now: an
    expired timestamp or snapshot counts, everything else holds."""

    def __init__(self, root: bytes, now: datetime, *, offline: bool = False) -> None:
        """Begin with a root that is trusted already: only whether it is one is checked.

        Raises:
            Untrusted: it is not the root of a repository, or the clock is wrong.
        """
        if now < RELEASED - TOLERANCE:
            raise attacks.clock_behind("this machine's clock", "this program was made after", RELEASED, now)
        self.now, self.offline = now, offline
        self.root = open_document(ROOT, root)
        check_signatures(self.root, self.root)
        if not REPOSITORY.fullmatch(self.root.repository) or self.root.fields.get("consistent_snapshot") is not True:
            raise attacks.wrong_image(ROOT, "a repository of this kind", "something else")
        self.repository = self.root.repository
        self.timestamp: Document | None = None
        self.snapshot: Document | None = None
        self.targets: Document | None = None
        self._seen_timestamp: Document | None = None
        self._seen_snapshot: Document | None = None

    def remember(self, timestamp: bytes | None, snapshot: bytes | None) -> None:
        """Recall what was believed last: nothing older will be. What does not count under this root is forgotten."""
        self._seen_timestamp = self._recalled(TIMESTAMP, timestamp)
        self._seen_snapshot = self._recalled(SNAPSHOT, snapshot)

    # ---- the root

    def rotate(self, data: bytes) -> None:
        """Take the next root: the number after this one's, signed by the keys of both.

        Raises:
            Untrusted: it is not; the root stays as it is.
        """
        new = open_document(ROOT, data)
        if new.version != self.root.version + 1:
            raise attacks.gap(ROOT, f"root {self.root.version + 1} was to come, not {new.version}")
        self._check_repository(new)
        check_signatures(new, self.root)
        check_signatures(new, new)
        self._check_every_signature(new, self.root, new)
        self.root = new
        seen = self._seen_timestamp, self._seen_snapshot
        self.remember(*(one.data if one is not None else None for one in seen))

    # ---- what changes

    def take_timestamp(self, data: bytes) -> Document:
        """Take the newest timestamp; raises ``Untrusted``."""
        seen = self._seen_timestamp
        new = seen if seen is not None and seen.data == data else self._checked(TIMESTAMP, data, self.root)
        self._check_every_signature(new, self.root)
        self._check_numbers(new)
        made = new.number(MADE_FIELD)
        if made is not None and not self.offline and self.now < instant(made) - TOLERANCE:
            raise attacks.clock_behind(TIMESTAMP, "it was signed on", instant(made), self.now)
        self._check_fresh(self.root)
        if not self.offline:
            self._check_fresh(new)
        self.timestamp = new
        return new

    @property
    def newest_root(self) -> int:
        """Number of the newest root as the timestamp says; that of this one if it does not."""
        return max(self.root.version, (self._timestamp.number(ROOT_FIELD) or 0))

    @property
    def snapshot_entry(self) -> tuple[int, int]:
        """Number and length in bytes of the snapshot that the timestamp names."""
        return _entry(self._timestamp, SNAPSHOT)

    def take_snapshot(self, data: bytes) -> Document:
        """Take the snapshot that the timestamp names; raises ``Untrusted``."""
        new = self._named(SNAPSHOT, data, self._timestamp, self.root)
        seen = self._seen_snapshot
        if seen is not None and not self.offline:
            _check_none_older(seen.fields["meta"], new.fields["meta"])
        if not self.offline:
            self._check_fresh(new)
        self.snapshot = new
        return new

    # ---- what is signed offline, or by publishers

    def entry(self, role: str) -> tuple[int, int]:
        """Return number and length in bytes of a role's file that the snapshot names; ``Untrusted`` if it does not."""
        return _entry(self._snapshot, role)

    def has(self, role: str) -> bool:
        """Tell whether the snapshot names a role."""
        return f"{role}.json" in self._snapshot.fields["meta"]

    def take_targets(self, data: bytes) -> Document:
        """Take the targets that the snapshot names; raises ``Untrusted``."""
        new = self._named(TARGETS, data, self._snapshot, self.root)
        self._check_fresh(new)
        self.targets = new
        return new

    def recall_targets(self, data: bytes | None) -> None:
        """Let targets that were believed before say whose signatures count, if they are newer than those of a bundle:
        keys that were revoked since sign nothing any more."""
        known = self._recalled(TARGETS, data)
        if known is not None and self.targets is not None and known.version > self.targets.version:
            self.targets = known

    def take_image(self, image: str, data: bytes) -> tuple[ImageRole, Document]:
        """Take the role of an image that the snapshot names; raises ``Untrusted``."""
        if self.targets is None:
            raise RuntimeError("targets come first")
        role = role_of(image)
        new = self._named(role, data, self._snapshot, self.targets)
        if new.number(FORMAT_FIELD) not in (None, 1):
            raise attacks.newer(role, str(new.fields[FORMAT_FIELD]))
        try:
            found = ImageRole.from_fields(new.fields)
        except FormatError as error:
            raise attacks.altered(role, error) from error
        if found.image != image:
            raise attacks.wrong_image(role, f"image {image}", f"image {found.image}")
        self._check_fresh(new)
        return found, new

    # ---- inside

    @property
    def _timestamp(self) -> Document:
        if self.timestamp is None:
            raise RuntimeError("the timestamp comes first")
        return self.timestamp

    @property
    def _snapshot(self) -> Document:
        if self.snapshot is None:
            raise RuntimeError("the snapshot comes first")
        return self.snapshot

    def _checked(self, role: str, data: bytes, delegator: Document) -> Document:
        document = open_document(role, data)
        check_signatures(document, delegator)
        self._check_repository(document)
        return document

    def _recalled(self, role: str, data: bytes | None) -> Document | None:
        if data is None:
            return None
        try:
            return self._checked(role, data, self.root)
        except Untrusted:
            return None

    def _named(self, role: str, data: bytes, parent: Document, delegator: Document) -> Document:
        """Return a file that ``parent`` names by number, length and digest, and ``delegator`` by its keys."""
        _, length = _entry(parent, role)
        meta = parent.fields["meta"][f"{role}.json"]
        if len(data) != length or hashlib.sha256(data).hexdigest() != meta["hashes"]["sha256"]:
            raise attacks.mixed(role, f"it is not the file that {parent.role} {parent.version} names")
        document = self._checked(role, data, delegator)
        if document.version != meta["version"]:
            raise attacks.mixed(role, f"it has number {document.version} where {parent.role} says {meta['version']}")
        return document

    def _check_numbers(self, new: Document) -> None:
        """Refuse a timestamp that goes back behind what was seen, or ahead as no honest one does."""
        seen = self._seen_timestamp
        version = _entry(new, SNAPSHOT)[0]
        if seen is None or self.offline:
            return
        if new.version < seen.version:
            raise attacks.rollback(TIMESTAMP, seen.version, new.version)
        if new.version > seen.version + MAX_JUMP:
            raise attacks.fast_forward(TIMESTAMP, seen.version, new.version)
        if new.version == seen.version and new.data != seen.data:
            raise attacks.mixed(TIMESTAMP, f"it is another one than was seen here before with number {seen.version}")
        before = _entry(seen, SNAPSHOT)[0]
        if version < before:
            raise attacks.rollback(SNAPSHOT, before, version)
        if version > before + MAX_JUMP:
            raise attacks.fast_forward(SNAPSHOT, before, version)

    def _check_repository(self, document: Document) -> None:
        if document.repository != self.repository:
            found = f"repository {document.repository or '(none)'}"
            raise attacks.wrong_image(document.role, f"repository {self.repository}", found)

    def _check_fresh(self, document: Document) -> None:
        if is_expired(document, self.now):
            raise attacks.frozen(document.role, document.expires, self.now)

    def _check_every_signature(self, document: Document, *delegators: Document) -> None:
        """Refuse signatures that count for nothing: no digest protects this file, and none of its bits may be free."""
        found = [signing_keys(document, delegator, document.role) for delegator in delegators]
        valid = set[str]().union(*(keys for keys, _ in filter(None, found)))
        if valid != set(document.signatures):
            raise attacks.forged(document.role, "one of its signatures is not valid")


def _entry(parent: Document, role: str) -> tuple[int, int]:
    """Return number and length of the file that a timestamp or a snapshot names for a role."""
    meta: Mapping[str, Any] | None = parent.fields["meta"].get(f"{role}.json")
    if meta is None:
        raise attacks.mixed(parent.role, f"it does not name {role}")
    hashes = meta.get("hashes")
    if "length" not in meta or not isinstance(hashes, Mapping) or not isinstance(hashes.get("sha256"), str):
        raise attacks.altered(parent.role, f"length or digest of {role} is missing")
    return int(meta["version"]), int(meta["length"])


def _check_none_older(seen: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a snapshot in which a file is gone or older than in the one that was seen before."""
    for name, meta in seen.items():
        what = name.removesuffix(".json")
        if name not in new:
            raise attacks.missing(what, meta["version"])
        if new[name]["version"] < meta["version"]:
            raise attacks.rollback(what, meta["version"], new[name]["version"])
        if new[name]["version"] > meta["version"] + MAX_JUMP:
            raise attacks.fast_forward(what, meta["version"], new[name]["version"])
