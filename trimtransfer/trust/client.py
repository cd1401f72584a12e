"""What a client does to know what a repository has: fetch signed files, check them, keep them.

One small request where nothing is new (the timestamp), three where a version is (the snapshot and the image's role,
too). Metadata come from the repository's own store, every one within its limit of bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from trimtransfer.errors import AccessDenied, FormatError, NotFound, Untrusted
from trimtransfer.store import Store
from trimtransfer.trust import attacks
from trimtransfer.trust.chain import TOLERANCE, Chain
from trimtransfer.trust.documents import Document, instant, open_document
from trimtransfer.trust.imagerole import ImageRole
from trimtransfer.trust.layout import (
    DAYS,
    MAX_ROTATIONS,
    PUBLISHER,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    max_length,
    metadata_name,
    role_of,
)
from trimtransfer.trust.options import Trusting
from trimtransfer.trust.signing import DAYS_FIELD
from trimtransfer.trust.state import RepositoryState, TrustState
from trimtransfer.trust.strict import read_json

_LOG: Final = logging.getLogger("trimtransfer.trust")
_WARN: Final = 0.25
"""Share of the days for which a file is signed that are left when it is time to warn."""
_FIRST: Final = 1
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class Vouched:
    """What a repository has of an image, vouched for by its signatures; ``warnings`` for people."""

    role: ImageRole
    warnings: tuple[str, ...] = ()


def vouch(
    store: Store,
    place: str | None,
    image: str,
    trusting: Trusting,
    *,
    installed: str = "",
    offline: bool = False,
    clock: Clock = time.time,
) -> Vouched | None:
    """Return what is signed of an image; None for a repository that nobody told to trust.

    ``place`` names where the repository is (None: a file that may be anywhere); ``installed`` is the id of the one that
    the image here came from. ``offline``: the store is a bundle. ``clock`` tells seconds since 1970.

    Raises:
        Untrusted: what must not be believed. NotFound: the repository has no such image.
        FetchError, AccessDenied: it could not be read. OSError, NoSpace: what was learnt cannot be kept.
    """
    if trusting.unsigned:
        return None
    state = TrustState(trusting.state)
    known = (state.at(place) if place is not None else None) or installed
    if trusting.root is None and not known and not trusting.first:
        return None
    with state.locked():
        now = instant(clock())
        root = _anchor(state, store, trusting, known)
        if root is None:
            return None
        chain = Chain(root, now, offline=offline)
        visit = _Visit(store, chain, state.of(chain.repository))
        found = visit.image(image)
        if place is not None:
            state.record(place, chain.repository)
    return found


def _anchor(state: TrustState, store: Store, trusting: Trusting, known: str) -> bytes | None:
    """Return the root to begin with; None for a repository without one, which nobody has trusted yet."""
    if trusting.root is not None:
        return _pinned(state, trusting.root)
    if known:
        root = state.of(known).root()
        if root is None:
            raise Untrusted(
                f"repository {known}",
                f"what was trusted of it is gone from {state.path}",
                "a loss of that folder, not an attack",
                "Name its root file with --root again",
            )
        return root
    try:
        root = store.read(metadata_name(ROOT, _FIRST), limit=max_length(ROOT))
    except NotFound:
        return None
    repository = open_document(ROOT, root).repository
    kept = state.of(repository).root(_FIRST)
    if kept is not None and kept != root:
        raise attacks.forged(ROOT, f"it is not the root by which repository {repository} is trusted here")
    _LOG.warning("repository %s is trusted as it is, because it was met for the first time", repository)
    return state.of(repository).root() or root


def _pinned(state: TrustState, path: Path) -> bytes:
    """Return the newest root that is trusted: the one that was named, unless later ones were taken already."""
    with open(path, "rb") as file:
        data = file.read(max_length(ROOT) + 1)
    pinned = open_document(ROOT, data)
    kept = state.of(pinned.repository)
    same = kept.root(pinned.version)
    if same is not None and same != data:
        where = kept.path
        raise attacks.forged(
            str(path), f"it is not the root {pinned.version} that is trusted here already (see {where})"
        )
    newest = kept.root()
    if newest is None or open_document(ROOT, newest).version < pinned.version:
        return data
    return newest


class _Visit:
    """One visit to a repository, under the lock of what is kept of it."""

    def __init__(self, store: Store, chain: Chain, state: RepositoryState) -> None:
        self._store, self._chain, self._state = store, chain, state
        self._keeps = not chain.offline

    def image(self, image: str) -> Vouched:
        """Fetch and check everything, from the root to the image's role."""
        chain, state = self._chain, self._state
        seen = instant(state.seen)
        if state.seen and chain.now < seen - TOLERANCE:
            raise attacks.clock_behind("this machine's clock", "a sync was made here on", seen, chain.now)
        state.put_root(chain.root.version, chain.root.data)
        chain.remember(state.read(TIMESTAMP), state.read(SNAPSHOT))
        self._take_timestamp()
        number, length = chain.snapshot_entry
        snapshot = self._take(SNAPSHOT, number, length, chain.take_snapshot)
        role = role_of(image)
        targets = self._take(TARGETS, *chain.entry(TARGETS), chain.take_targets)
        if chain.offline:
            chain.recall_targets(state.read(TARGETS))
        if not chain.has(role):
            raise NotFound(f"image {image}", self._store.url)
        found, document = self._take_image(image)
        if self._keeps:
            state.see(int(chain.now.timestamp()))
        else:
            found = self._not_withdrawn(found, document)
        timestamp = chain.timestamp
        assert timestamp is not None
        documents = ((ROOT, chain.root), (TARGETS, targets), (PUBLISHER, document), (SNAPSHOT, snapshot))
        warnings = [*expiry_warnings(chain.root, (*documents, (TIMESTAMP, timestamp)), chain.now)]
        return Vouched(found, tuple(warnings))

    # ---- in order

    def _take_timestamp(self) -> None:
        chain, data = self._chain, self._read(TIMESTAMP, None)
        before = chain.root.version
        try:
            chain.take_timestamp(data)
        except Untrusted:
            self._walk()
            if chain.root.version == before:
                raise
            chain.take_timestamp(self._read(TIMESTAMP, None))
        if chain.newest_root > chain.root.version:
            self._walk()
            if chain.newest_root > chain.root.version:
                raise attacks.gap(ROOT, f"the timestamp names root {chain.newest_root}, which is not there")
            data = self._read(TIMESTAMP, None)
            chain.take_timestamp(data)
        assert chain.timestamp is not None
        if self._keeps:
            self._state.put(TIMESTAMP, chain.timestamp.data)

    def _walk(self) -> None:
        """Take newer roots, one by one; each is kept once it is believed."""
        chain = self._chain
        for _ in range(MAX_ROTATIONS):
            try:
                data = self._read(ROOT, chain.root.version + 1)
            except (NotFound, AccessDenied):  # some stores deny what is not there
                return
            chain.rotate(data)
            self._state.put_root(chain.root.version, data)
        raise attacks.gap(ROOT, f"there are more than {MAX_ROTATIONS} newer ones")

    def _take(self, role: str, number: int, length: int, take: Callable[[bytes], Document]) -> Document:
        """Take a file that its parent names: the one that is kept, if it is that one, else the repository's."""
        kept = self._state.read(role)
        if kept is not None:
            try:
                return take(kept)
            except Untrusted as error:
                _LOG.debug("the %s that is kept is another one: %s", role, error)
        data = self._read(role, number, length)
        taken = take(data)
        if self._keeps:
            self._state.put(role, data)
        return taken

    def _take_image(self, image: str) -> tuple[ImageRole, Document]:
        roles: list[ImageRole] = []

        def take(data: bytes) -> Document:
            role, document = self._chain.take_image(image, data)
            roles.append(role)
            return document

        document = self._take(role_of(image), *self._chain.entry(role_of(image)), take)
        return roles[-1], document

    def _not_withdrawn(self, found: ImageRole, document: Document) -> ImageRole:
        """Return what a bundle has of an image, but for versions that are no longer signed as far as is known here."""
        kept = self._state.read(document.role)
        if kept is None:
            return found
        fields = read_json(kept, document.role)["signed"]
        if fields["version"] <= document.version:
            return found
        newer = ImageRole.from_fields(fields)
        versions = tuple(one for one in found.versions if newer.find(one.version) == one)
        return ImageRole(found.repository, found.image, versions, found.files, found.mirrors, newer.catalogue)

    def _read(self, role: str, number: int | None, length: int | None = None) -> bytes:
        """Return a file; never more than its limit and one byte are read."""
        limit = min(length, max_length(role)) if length is not None else max_length(role)
        try:
            return self._store.read(metadata_name(role, number), limit=limit)
        except FormatError as error:
            if error.where == limit:
                raise attacks.endless(role, limit) from error
            raise attacks.altered(role, error) from error
        except NotFound as error:
            if role == ROOT:
                raise
            if role == TIMESTAMP:
                raise attacks.unsigned(self._store.url) from error
            raise attacks.mixed(role, f"number {number} of it is not there") from error


def expiry_warnings(root: Document, documents: tuple[tuple[str, Document], ...], now: datetime) -> list[str]:
    """Return what to tell people of files that will expire soon, or have: by how long each kind is signed for."""
    named = root.fields.get(DAYS_FIELD)
    days = {**DAYS, **(named if isinstance(named, dict) else {})}
    warnings = []
    for kind, document in documents:
        left = document.expires - now
        period = days[kind] if isinstance(days[kind], int) else DAYS[kind]
        if left <= timedelta(0):
            warnings.append(f"{document.role} was valid until {document.expires:%Y-%m-%d}: what is newer is not known")
        elif left < min(_WARN * timedelta(days=period), timedelta(days=30)):
            how = "medv-repo timestamp" if kind in (SNAPSHOT, TIMESTAMP) else "medv-repo keys renew"
            warnings.append(
                f"{document.role} is valid until {document.expires:%Y-%m-%d %H:%M} UTC only: "
                f"whoever runs the repository should renew it (`{how}`)"
            )
    return warnings
