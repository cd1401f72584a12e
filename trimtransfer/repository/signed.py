"""The signed metadata of a repository as its publisher sees them: read and checked, staged, and committed.

A commit writes the files that are named by numbers first - roles of images, targets, snapshot -, which nobody reads
yet, and stages the timestamp in private. Then the caller commits whatever else there is (heads), then a new root and
the timestamp take their places. A process that dies in between leaves the old state, or a staged timestamp that
:func:`trimtransfer.repository.intent.clean_up` puts in its place: no key is needed for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from trimtransfer.errors import FormatError, NotFound, TargetRefused, Untrusted
from trimtransfer.repository.staged import STAGED, metadata_numbers, stage_timestamp
from trimtransfer.store import DirectoryStore
from trimtransfer.trust import attacks
from trimtransfer.trust.documents import Document, check_signatures, instant, open_document
from trimtransfer.trust.imagerole import ImageRole
from trimtransfer.trust.layout import (
    DAYS,
    MAX_VERSION,
    PUBLISHER,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    image_of,
    max_length,
    metadata_name,
    role_of,
)
from trimtransfer.trust.ring import Ring
from trimtransfer.trust.signing import (
    DAYS_FIELD,
    KeySet,
    image_fields,
    key_set,
    signed_file,
    snapshot_fields,
    timestamp_fields,
)

__all__ = ["STAGED", "SignedMetadata"]

_KEPT: Final = 16
"""Files of each role that stay when newer ones are there: for clients that are reading them."""
_NEAR: Final = 0.25
"""Share of its days that a snapshot may have left before it is signed anew with a timestamp."""


class SignedMetadata:
    """The signed files of a repository, all of one state; to be used under the repository's lock."""

    def __init__(
        self, store: DirectoryStore, root: Document, targets: Document, files: Mapping[str, tuple[int, bytes]]
    ) -> None:
        self.store, self.root, self.targets = store, root, targets
        self.files = dict(files)
        self.snapshot_number = self.timestamp_number = 0
        self.timestamp: Document | None = None
        self.snapshot: Document | None = None

    @classmethod
    def open(
        cls, store: DirectoryStore, *, pinned: Path | None = None, whatever_is_online: bool = False
    ) -> SignedMetadata | None:
        """Read and check everything; None for a repository that is not signed.

        ``pinned`` is a root that this machine knows to be right. ``whatever_is_online``: take no notice of snapshot and
        timestamp, which whoever stole their keys may have written.

        Raises:
            Untrusted: signatures or digests are wrong: somebody else writes to the repository.
        """
        numbers = metadata_numbers(store, ROOT)
        if not numbers:
            return None
        root = _root(store, numbers, pinned)
        snapshot = timestamp = None
        if not whatever_is_online:
            timestamp = _read(store, TIMESTAMP, None)
            check_signatures(timestamp, root)
            snapshot = _read(store, SNAPSHOT, timestamp.fields["meta"]["snapshot.json"]["version"])
            check_signatures(snapshot, root)
            files = _files_of(store, snapshot)
        else:
            files = _newest_files(store, root)
        targets = open_document(TARGETS, files[TARGETS][1])
        check_signatures(targets, root)
        found = cls(store, root, targets, files)
        found.timestamp, found.snapshot = timestamp, snapshot
        if timestamp is not None and snapshot is not None:
            found.snapshot_number, found.timestamp_number = snapshot.version, timestamp.version
        else:
            sane = [number for number in metadata_numbers(store, SNAPSHOT) if number < MAX_VERSION // 2]
            found.snapshot_number = found.timestamp_number = max(sane, default=0)
            with contextlib.suppress(Untrusted, FormatError):
                number = _read(store, TIMESTAMP, None).version
                found.timestamp_number = max(found.timestamp_number, number if number < MAX_VERSION // 2 else 0)
        return found

    @property
    def repository(self) -> str:
        """Id of the repository."""
        return self.root.repository

    @property
    def images(self) -> list[str]:
        """Images whose roles there are."""
        return sorted(image for role in self.files if (image := image_of(role)) is not None)

    def days(self, kind: str) -> int:
        """Return for how many days files of a kind are signed."""
        named = self.root.fields.get(DAYS_FIELD)
        value = named.get(kind) if isinstance(named, dict) else None
        return value if type(value) is int and 0 < value < 36_500 else DAYS[kind]

    def keys(self, role: str) -> KeySet | None:
        """Return the keys of a role, a top one or that of an image; None if it has none."""
        with contextlib.suppress(KeyError):
            return key_set(self.targets if image_of(role) is not None else self.root, role)
        return None

    def document(self, role: str) -> Document | None:
        """Return the newest file of a role that is in the snapshot; None if there is none."""
        return open_document(role, self.files[role][1]) if role in self.files else None

    def image_role(self, image: str) -> ImageRole | None:
        """Return what is signed of an image; None if nothing is."""
        document = self.document(role_of(image))
        return ImageRole.from_fields(document.fields) if document is not None else None

    def require(self, ring: Ring, image: str | None = None) -> None:
        """Refuse work that could not be signed in the end.

        Raises:
            TargetRefused: keys are not at hand, or an image has none yet; the reason has the remedy.
        """
        roles = [SNAPSHOT, TIMESTAMP]
        if image is not None:
            if self.keys(role_of(image)) is None:
                raise TargetRefused(
                    self.store.url,
                    f"is signed, and nobody is allowed to sign the image {image} yet; whoever has the targets key runs "
                    f"`medv-repo keys delegate {self.store.url} {image} --offline DIR`",
                )
            roles.insert(0, role_of(image))
        for role in roles:
            wanted = self.keys(role)
            if wanted is None or ring.lacks(wanted):
                raise lacking(self.store, ring, PUBLISHER if image_of(role) is not None else role, wanted)

    # ---- staging

    def signed_image(self, role: ImageRole, ring: Ring, now: datetime) -> bytes:
        """Return a new file of an image's role, which :meth:`stage` will put there."""
        name = role_of(role.image)
        keys = self.keys(name)
        if keys is None or ring.lacks(keys):
            raise lacking(self.store, ring, PUBLISHER, keys)
        number = self.files[name][0] + 1 if name in self.files else 1
        fields = image_fields(self.repository, number, now, role.to_fields(), self.days(PUBLISHER))
        return signed_file(fields, ring.of(keys))

    def accepted_image(self, role: ImageRole, data: bytes, now: datetime) -> bytes:
        """Return a new file of an image's role that somebody else has signed, if it says what ``role`` does.

        Raises:
            Untrusted: too few of the image's keys have signed it. TargetRefused: it says something else.
        """
        name = role_of(role.image)
        document = open_document(name, data)
        check_signatures(document, self.targets)
        number, days = self.files[name][0] + 1 if name in self.files else 1, self.days(PUBLISHER)
        expected: dict[str, Any] = image_fields(self.repository, number, now, role.to_fields(), days)
        wrong = [key for key in sorted({*expected, *document.fields}) if expected.get(key) != document.fields.get(key)]
        left = (document.expires - now).total_seconds() / 86_400
        if wrong not in ([], ["expires"]) or not 0 < left <= days + 1:
            problem = f"says something else than what there is ({', '.join(wrong)}): that changed meanwhile"
            raise TargetRefused(f"the signed role of {role.image}", f"{problem}; run the same command again")
        return data

    def stage(
        self,
        ring: Ring,
        now: datetime,
        note: Callable[[str], None],
        *,
        roles: Mapping[str, bytes],
        root: bytes | None = None,
        beyond: int = 0,
        keep_snapshot: bool = False,
    ) -> None:
        """Write new files of ``roles``, and a snapshot that names them; stage a timestamp. ``note`` is told the name of
        each file before it appears. ``root`` is a new one, whose keys sign; ``beyond``: numbers are above this.
        """
        if root is not None:
            self.root = open_document(ROOT, root)
        for role, data in roles.items():
            document = open_document(role, data)
            self.files[role] = document.version, data
            self._put(note, metadata_name(role, document.version), data)
        if TARGETS in roles:
            self.targets = open_document(TARGETS, roles[TARGETS])
        if not (keep_snapshot and self.snapshot is not None):
            self._stage_snapshot(ring, now, note, beyond)
        assert self.snapshot is not None
        self.timestamp_number = max(self.timestamp_number, beyond) + 1
        fields = timestamp_fields(
            self.repository,
            self.timestamp_number,
            now,
            (self.snapshot.version, self.snapshot.data),
            self.root.version,
            self.days(TIMESTAMP),
        )
        data = signed_file(fields, self._signers(ring, TIMESTAMP))
        self.timestamp = open_document(TIMESTAMP, data)
        check_signatures(self.timestamp, self.root)
        stage_timestamp(self.store, data)
        if root is not None:
            self._put(note, metadata_name(ROOT, self.root.version), root)

    def prune(self) -> None:
        """Delete files that nobody can be reading any more."""
        for role, newest in {
            **{role: number for role, (number, _) in self.files.items()},
            SNAPSHOT: self.snapshot_number,
        }.items():
            for number in metadata_numbers(self.store, role):
                if number <= newest - _KEPT:
                    self.store.delete(metadata_name(role, number))

    def snapshot_is_fresh(self, now: datetime) -> bool:
        """Tell whether the snapshot need not be signed anew yet."""
        if self.snapshot is None:
            return False
        return (self.snapshot.expires - now).total_seconds() > _NEAR * 86_400 * self.days(SNAPSHOT)

    # ---- inside

    def _stage_snapshot(self, ring: Ring, now: datetime, note: Callable[[str], None], beyond: int) -> None:
        self.snapshot_number = max(self.snapshot_number, beyond) + 1
        days = self.days(SNAPSHOT)
        fields: dict[str, Any] = snapshot_fields(self.repository, self.snapshot_number, now, self.files, days)
        data = signed_file(fields, self._signers(ring, SNAPSHOT))
        self.snapshot = open_document(SNAPSHOT, data)
        check_signatures(self.snapshot, self.root)
        self._put(note, metadata_name(SNAPSHOT, self.snapshot_number), data)

    def _signers(self, ring: Ring, role: str) -> list[Any]:
        wanted = self.keys(role)
        if wanted is None or ring.lacks(wanted):
            raise lacking(self.store, ring, role, wanted)
        return ring.of(wanted)

    def _put(self, note: Callable[[str], None], name: str, data: bytes) -> None:
        note(name)
        self.store.put(name, data)


def lacking(store: DirectoryStore, ring: Ring, role: str, wanted: KeySet | None) -> TargetRefused:
    """Return the refusal for want of keys."""
    where = " or ".join(str(directory) for directory in ring.directories)
    ids = ", ".join(key.keyid[:8] for key in wanted.keys) if wanted is not None else "none"
    count = wanted.threshold if wanted is not None else 1
    return TargetRefused(
        store.url,
        f"is signed, but of its {role} keys ({ids}; {count} must sign) too few are in {where}; name their folder with "
        "--keys, or copy the .pem file there",
    )


def clock() -> datetime:
    """Return now."""
    return instant(time.time())


def _root(store: DirectoryStore, numbers: list[int], pinned: Path | None) -> Document:
    """Return the newest root, reached step by step from the one that is known here, or from the first."""
    if pinned is not None and pinned.exists():
        root = open_document(ROOT, pinned.read_bytes()[: max_length(ROOT)])
        if root.version in numbers and _read(store, ROOT, root.version).data != root.data:
            raise attacks.forged(ROOT, f"root {root.version} is another one than {pinned}, beside the keys")
    else:
        root = _read(store, ROOT, min(numbers))
    check_signatures(root, root)
    for number in range(root.version + 1, max(numbers) + 1):
        newer = _read(store, ROOT, number)
        check_signatures(newer, root)
        check_signatures(newer, newer)
        if (newer.version, newer.repository) != (number, root.repository):
            raise attacks.gap(ROOT, f"root {number} is another one")
        root = newer
    return root


def _read(store: DirectoryStore, role: str, number: int | None) -> Document:
    name = metadata_name(role, number)
    try:
        return open_document(role, store.read(name, limit=max_length(role)))
    except NotFound as error:
        raise FormatError("signed metadata", name, "a file", "none; see `medv-repo keys rotate --help`") from error


def _files_of(store: DirectoryStore, snapshot: Document) -> dict[str, tuple[int, bytes]]:
    """Return number and bytes of all files that a snapshot names, each of the digest that it says."""
    found: dict[str, tuple[int, bytes]] = {}
    for name, meta in snapshot.fields["meta"].items():
        role = name.removesuffix(".json")
        data = store.read(metadata_name(role, meta["version"]), limit=max_length(role))
        if hashlib.sha256(data).hexdigest() != meta.get("hashes", {}).get("sha256"):
            raise attacks.mixed(role, f"it is not the file that snapshot {snapshot.version} names")
        found[role] = meta["version"], data
    return found


def _newest_files(store: DirectoryStore, root: Document) -> dict[str, tuple[int, bytes]]:
    """Return the newest file of each role that its own keys have signed, whatever a snapshot says."""
    targets = _newest(store, TARGETS, root)
    if targets is None:
        raise attacks.forged(TARGETS, "no file of it is signed")
    found = {TARGETS: (targets.version, targets.data)}
    for delegated in targets.fields["delegations"]["roles"]:
        document = _newest(store, delegated["name"], targets)
        if document is not None:
            found[document.role] = document.version, document.data
    return found


def _newest(store: DirectoryStore, role: str, delegator: Document) -> Document | None:
    for number in sorted(metadata_numbers(store, role), reverse=True):
        with contextlib.suppress(Untrusted, FormatError):
            document = _read(store, role, number)
            check_signatures(document, delegator)
            return document
    return None
