"""Signing a version that is published to a server, with a publisher's key that never leaves his machine.

The publisher reads the repository's signed metadata as a client does, from the root beside his keys on, and signs the
role of the image with the new version in it. The server puts it in place if it says what the server finds itself, and
adds snapshot and timestamp with its own keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from trimtransfer.catalogue import Catalogue
from trimtransfer.errors import AccessDenied, NotFound, TargetRefused
from trimtransfer.repository.catalogues import Wishes, entry_of
from trimtransfer.repository.overlay import OverlayStore
from trimtransfer.repository.reading import read_manifest
from trimtransfer.repository.signed import clock
from trimtransfer.repository.signer import Keys, image_role
from trimtransfer.store import Store
from trimtransfer.trust.chain import Chain
from trimtransfer.trust.documents import instant
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
from trimtransfer.trust.signing import DAYS_FIELD, KeySet, image_fields, key_set, signed_file


def signed_role(
    made: OverlayStore,
    image: str,
    version: str,
    wishes: Wishes,
    now: int,
    *,
    keys: Keys,
    repository: str,
    mirrors: Sequence[str] = (),
) -> bytes:
    """Return the signed role of an image with the version that was ``made`` over a server's repository of this id.

    ``now``: when its channels were set, and from when on it counts, in seconds since 1970; ``mirrors``: those that the
    server names.

    Raises:
        TargetRefused: keys, or the root beside them, are not at hand. Untrusted: what the server has must not be
        believed. FormatError, NotFound, FetchError: as reading raises.
    """
    chain = _chain(made.below, keys, repository)
    before, number = _role(made.below, chain, image)
    wanted = _keys(chain, image, made.url)
    ring = keys.ring(repository)
    if ring.lacks(wanted):
        where = " or ".join(map(str, keys.folders(repository)))
        raise TargetRefused(
            f"image {image}",
            f"is signed, but neither the server has its publisher's key, nor is it in {where}; name its folder: --keys",
        )
    entry = entry_of(read_manifest(made, image, version))
    catalogue = before.as_catalogue() if before is not None else Catalogue(image)
    catalogue = wishes.granted(catalogue.with_version(entry), version, now)
    role = image_role(_Claimed(made, before), before, repository, image, [version], catalogue)
    content = replace(role, mirrors=tuple(mirrors)).to_fields()
    fields = image_fields(repository, number + 1, instant(now), content, _days(chain))
    return signed_file(fields, ring.of(wanted))


class _Claimed(OverlayStore):
    """What was made, and files that are signed already: these are taken to be there still."""

    def __init__(self, made: OverlayStore, before: ImageRole | None) -> None:
        super().__init__(made.path, made.below)
        self._signed = before.files if before is not None else {}

    def exists(self, name: str) -> bool:
        return name in self._signed or super().exists(name)


def _chain(store: Store, keys: Keys, repository: str, now: datetime | None = None) -> Chain:
    """Return what is believed of the server's repository, up to its targets."""
    pinned = keys.pinned(repository)
    if pinned is None:
        where = " or ".join(map(str, keys.folders(repository)))
        reason = f"is signed; a root.json to begin from must be in {where}, beside the publisher's key: name its folder"
        raise TargetRefused("the repository", f"{reason} with --keys")
    chain = Chain(pinned.read_bytes()[: max_length(ROOT)], now or clock())
    if chain.repository != repository:
        raise TargetRefused(str(pinned), f"is the root of repository {chain.repository}, not of {repository}")
    for _ in range(MAX_ROTATIONS):
        try:
            chain.rotate(_read(store, ROOT, chain.root.version + 1))
        except (NotFound, AccessDenied):
            break
    chain.take_timestamp(_read(store, TIMESTAMP, None))
    chain.take_snapshot(_read(store, SNAPSHOT, chain.snapshot_entry[0]))
    chain.take_targets(_read(store, TARGETS, chain.entry(TARGETS)[0]))
    return chain


def _role(store: Store, chain: Chain, image: str) -> tuple[ImageRole | None, int]:
    """Return what is signed of the image, and the number of that file; (None, 0) if nothing is."""
    if not chain.has(role_of(image)):
        return None, 0
    number, _ = chain.entry(role_of(image))
    role, _ = chain.take_image(image, _read(store, role_of(image), number))
    return role, number


def _keys(chain: Chain, image: str, url: str) -> KeySet:
    assert chain.targets is not None
    try:
        return key_set(chain.targets, role_of(image))
    except KeyError:
        reason = f"is signed, and nobody is allowed to sign the image {image} yet; see `medv-repo keys delegate --help`"
        raise TargetRefused(url, reason) from None


def _days(chain: Chain) -> int:
    named = chain.root.fields.get(DAYS_FIELD)
    value = named.get(PUBLISHER) if isinstance(named, dict) else None
    return value if type(value) is int and 0 < value < 36_500 else DAYS[PUBLISHER]


def _read(store: Store, role: str, number: int | None) -> bytes:
    return store.read(metadata_name(role, number), limit=max_length(role))
