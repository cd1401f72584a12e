"""Signing anew what is there already: timestamps, by a timer, and roles of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from trimtransfer.durable import space_errors
from trimtransfer.errors import NotFound
from trimtransfer.repository.catalogues import current
from trimtransfer.repository.intent import clean_up, intended, repository_lock
from trimtransfer.repository.keyreport import KeysReport, describe_keys, opened, require_signed
from trimtransfer.repository.reading import read_head
from trimtransfer.repository.signed import SignedMetadata, clock
from trimtransfer.repository.signer import Keys, image_role
from trimtransfer.repository.staged import finish, is_signed
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.imagerole import ImageRole
from trimtransfer.trust.layout import role_of
from trimtransfer.trust.ring import Ring


def renew_timestamp(repository: str, *, keys: Keys, beyond: int = 0, now: datetime | None = None) -> KeysReport:
    """Sign the timestamp anew, and the snapshot if it is near its end; numbers will be above ``beyond``.

    Raises:
        TargetRefused: keys are not at hand. NotFound: the repository is not signed. Locked, NoSpace.
    """
    store, now = DirectoryStore(repository), now or clock()
    require_signed(store)
    with space_errors(store.path), repository_lock(store, "renewing the timestamp"):
        clean_up(store)
        metadata = opened(store, keys)
        ring = keys.ring(metadata.repository)
        metadata.require(ring)
        with intended(store, "", None) as intent:
            fresh = metadata.snapshot_is_fresh(now) and not beyond
            metadata.stage(ring, now, intent.add, roles={}, beyond=beyond, keep_snapshot=fresh)
            finish(store)
    return describe_keys(repository, keys, now=now)


def resign_images(repository: str, *, keys: Keys) -> int:
    """Sign the roles of all images anew, after something in them has changed; return how many (0: it is not signed)."""
    store = DirectoryStore(repository)
    if not is_signed(store):
        return 0
    with space_errors(store.path), repository_lock(store, "signing images"):
        clean_up(store)
        metadata = opened(store, keys)
        ring, now = keys.ring(metadata.repository), clock()
        roles = dict(resigned(store, metadata, ring, metadata.images, now))
        with intended(store, "", None) as intent:
            metadata.stage(ring, now, intent.add, roles=roles)
            finish(store)
    return len(roles)


def check_keys(repository: str, *, keys: Keys) -> None:
    """Raise ``TargetRefused`` if a repository is signed and keys for its images are not at hand."""
    store = DirectoryStore(repository)
    if is_signed(store):
        metadata = opened(store, keys)
        ring = keys.ring(metadata.repository)
        for image in metadata.images:
            metadata.require(ring, image)


def new_roles(
    store: DirectoryStore, metadata: SignedMetadata, ring: Ring, images: Sequence[str], now: datetime
) -> Iterator[tuple[str, bytes]]:
    """Yield the first roles of images, with all versions that they have; those whose keys are elsewhere are left."""
    for image in images:
        keys = metadata.keys(role_of(image))
        if keys is None or ring.lacks(keys):
            continue
        try:
            read_head(store, image)
        except NotFound:
            role = ImageRole(metadata.repository, image, (), {})
        else:
            role = image_role(store, None, metadata.repository, image, (), current(store, image))
        yield role_of(image), metadata.signed_image(role, ring, now)


def resigned(
    store: DirectoryStore, metadata: SignedMetadata, ring: Ring, images: Sequence[str], now: datetime
) -> Iterator[tuple[str, bytes]]:
    """Yield the roles of images, signed anew."""
    for image in images:
        before = metadata.image_role(image)
        role = image_role(store, before, metadata.repository, image, ())
        yield role_of(image), metadata.signed_image(role, ring, now)
