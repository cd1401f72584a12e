"""A signed repository in memory whose clock can be set: a store that clients read, with every key at hand.

It says whatever a test makes it say; the honest parts are made by the code that signs real repositories.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from trimtransfer.chunk import object_digest
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.names import manifest_name
from trimtransfer.store import Range, StoreStats
from trimtransfer.trust.client import Vouched, vouch
from trimtransfer.trust.documents import instant
from trimtransfer.trust.imagerole import ImageRole, SignedFile, SignedVersion
from trimtransfer.trust.layout import (
    DAYS,
    PUBLISHER,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    TOP_ROLES,
    metadata_name,
    role_of,
)
from trimtransfer.trust.options import Trusting
from trimtransfer.trust.signing import (
    KeySet,
    PrivateKey,
    image_fields,
    root_fields,
    signed_file,
    snapshot_fields,
    targets_fields,
    timestamp_fields,
)

START = 1_800_000_000
DAY = 86_400
REPOSITORY = "0123456789abcdef"


class Simulator:
    """The repository, and a store of what it serves: ``objects`` by name, which a test may change at will."""

    url = "sim://repository"

    def __init__(self, *images: str, thresholds: dict[str, tuple[int, int]] | None = None) -> None:
        counts = dict.fromkeys((*TOP_ROLES, PUBLISHER), (1, 1)) | (thresholds or {})
        self.keys = {role: [PrivateKey.generate() for _ in range(count)] for role, (count, _) in counts.items()}
        self.threshold = {role: threshold for role, (_, threshold) in counts.items()}
        self.objects: dict[str, bytes] = {}
        self.stats, self.asked = StoreStats(), list[str]()
        self.now = START
        self.number = dict.fromkeys(TOP_ROLES, 0)
        self.repository = REPOSITORY
        self.versions: dict[str, list[SignedVersion]] = {image: [] for image in images or ("desk",)}
        self.files: dict[str, tuple[int, bytes]] = {}
        self.days = dict(DAYS)
        self.old_root_keys: list[PrivateKey] = []
        self.write_root()
        self.write_targets()
        for image in self.versions:
            self.publish(image, "1", commit=False)
        self.commit()

    # ---- a store

    def read(self, name: str, *, limit: int) -> bytes:
        self.asked.append(name)
        if name not in self.objects:
            raise NotFound(name, self.url)
        data = self.objects[name]
        self.stats.count(bytes=min(len(data), limit + 1), requests=1)
        if len(data) > limit:
            raise FormatError(f"object {name}", limit, f"at most {limit:,} bytes", "more")
        return data

    def read_range(self, wanted: Range) -> bytes:
        return self.objects[wanted.name][wanted.start : wanted.start + wanted.length]

    def fetch(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass

    # ---- the repository's work

    @property
    def when(self) -> datetime:
        return instant(self.now)

    def key_set(self, role: str) -> KeySet:
        return KeySet(tuple(key.public for key in self.keys[role]), self.threshold[role])

    def publish(self, image: str, version: str, *, commit: bool = True) -> None:
        data = f"manifest of {image} {version}".encode()
        self.objects[manifest_name(image, version)] = data
        file = SignedFile(len(data), object_digest(data), hashlib.sha256(data).digest())
        before = self.versions.setdefault(image, [])
        parent = before[-1].version if before else ""
        number = before[-1].sequence + 1 if before else 1
        before.append(SignedVersion(version, parent, number, self.now, file, object_digest(data + b"!"), 4096))
        self.write_image(image)
        if commit:
            self.commit()

    def role(self, image: str) -> ImageRole:
        files = {manifest_name(image, one.version): one.manifest for one in self.versions[image]}
        return ImageRole(self.repository, image, tuple(self.versions[image]), files)

    def write_image(self, image: str, change: Callable[[dict[str, Any]], None] = lambda fields: None) -> None:
        role = role_of(image)
        number = self.files[role][0] + 1 if role in self.files else 1
        fields = image_fields(self.repository, number, self.when, self.role(image).to_fields(), self.days[PUBLISHER])
        change(fields)
        self._put(role, number, signed_file(fields, self.keys[PUBLISHER]))

    def write_root(self, change: Callable[[dict[str, Any]], None] = lambda fields: None) -> None:
        self.number[ROOT] += 1
        roles = {role: self.key_set(role) for role in TOP_ROLES}
        fields = root_fields(self.repository, self.number[ROOT], self.when, roles, self.days)
        change(fields)
        signers = {key.public: key for key in (*self.old_root_keys, *self.keys[ROOT])}
        self.old_root_keys = []
        self.objects[metadata_name(ROOT, self.number[ROOT])] = signed_file(fields, signers.values())

    def write_targets(self) -> None:
        self.number[TARGETS] += 1
        roles = {role_of(image): self.key_set(PUBLISHER) for image in self.versions}
        number = self.number[TARGETS]
        fields = targets_fields(self.repository, number, self.when, roles, self.days[TARGETS])
        self._put(TARGETS, number, signed_file(fields, self.keys[TARGETS]))

    def commit(self) -> None:
        """Sign snapshot and timestamp anew."""
        self.number[SNAPSHOT] += 1
        number = self.number[SNAPSHOT]
        fields = snapshot_fields(self.repository, number, self.when, self.files, self.days[SNAPSHOT])
        self.objects[metadata_name(SNAPSHOT, number)] = signed_file(fields, self.keys[SNAPSHOT])
        self.write_timestamp()

    def write_timestamp(self, change: Callable[[dict[str, Any]], None] = lambda fields: None) -> None:
        self.number[TIMESTAMP] += 1
        snapshot = self.number[SNAPSHOT], self.objects[metadata_name(SNAPSHOT, self.number[SNAPSHOT])]
        fields = timestamp_fields(
            self.repository, self.number[TIMESTAMP], self.when, snapshot, self.number[ROOT], self.days[TIMESTAMP]
        )
        change(fields)
        self.objects[metadata_name(TIMESTAMP)] = signed_file(fields, self.keys[TIMESTAMP])

    def rotate(self, *roles: str) -> None:
        """Give roles new keys, and sign what they sign anew."""
        self.old_root_keys = list(self.keys[ROOT])
        for role in roles:
            self.keys[role] = [PrivateKey.generate() for _ in self.keys[role]]
        self.write_root()
        if TARGETS in roles or PUBLISHER in roles:
            self.write_targets()
        if PUBLISHER in roles:
            for image in self.versions:
                self.write_image(image)
        self.commit()

    def pass_days(self, days: float) -> None:
        self.now += int(days * DAY)

    def snapshot_of_everything(self) -> dict[str, bytes]:
        return dict(self.objects)

    def newest(self, role: str) -> str:
        """Return the store name of the newest file of a role."""
        if role == TIMESTAMP:
            return metadata_name(TIMESTAMP)
        return metadata_name(role, self.number[role] if role in self.number else self.files[role][0])

    def resign(self, role: str, keys: list[PrivateKey], change: Callable[[dict[str, Any]], None]) -> None:
        """Change the newest file of a role and sign it with these keys; nothing else is changed."""
        name = self.newest(role)
        fields = json.loads(self.objects[name])["signed"]
        change(fields)
        self.objects[name] = signed_file(fields, keys)
        if role in self.files:
            self.files[role] = fields["version"], self.objects[name]

    def _put(self, role: str, number: int, data: bytes) -> None:
        self.objects[metadata_name(role, number)] = data
        self.files[role] = number, data


class Client:
    """A client with a folder of its own, and the repository's first root pinned."""

    def __init__(self, simulator: Simulator, folder: Path, *, root: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.simulator = simulator
        self.pinned = folder / "root.json"
        self.pinned.write_bytes(simulator.objects[metadata_name(ROOT, root)])
        self.state = folder / "trust"
        self.skew = 0.0

    def sync(self, image: str = "desk", *, pin: bool = True, offline: bool = False, **options: Any) -> Vouched:
        """Learn what there is; ``asked`` of the simulator is what it took."""
        self.simulator.asked.clear()
        trusting = Trusting(self.pinned if pin else None, self.state, **options)
        found = vouch(
            self.simulator,
            None if offline else "place",
            image,
            trusting,
            offline=offline,
            clock=lambda: self.simulator.now + self.skew,
        )
        assert found is not None
        return found

    def newest(self, image: str = "desk", **options: Any) -> str:
        head = self.sync(image, **options).role.head()
        assert head is not None
        return head.version


def days(count: float) -> timedelta:
    return timedelta(days=count)
