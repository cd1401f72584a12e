"""Checking what tells of versions: the catalogue of an image against its manifests, and the heads of its channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from trimtransfer.catalogue import Catalogue
from trimtransfer.errors import IntegrityError, TrimTransferError
from trimtransfer.manifest import Manifest
from trimtransfer.names import catalogue_name, channel_name
from trimtransfer.repository.catalogues import is_right, stored_catalogue
from trimtransfer.repository.contents import Damage
from trimtransfer.store import DirectoryStore

_CATALOGUE: Final = (
    "restore it from a copy of the repository; deleted, it is made anew from what is there, without labels, notes, "
    "pins and channels"
)
_CHANNEL: Final = "`medv-repo repair`, or any change of the catalogue, writes it anew"


def check_catalogue(store: DirectoryStore, image: str, manifests: Mapping[str, Manifest]) -> Iterator[Damage]:
    """Yield what is wrong; ``manifests`` are those of the image that could be read, by version."""
    try:
        catalogue = stored_catalogue(store, image)
    except (TrimTransferError, OSError) as error:
        yield Damage(catalogue_name(image), str(error), _CATALOGUE)
        return
    yield from _wrong_entries(catalogue, manifests)
    for channel in catalogue.channels:
        if not is_right(store, catalogue, channel.name):
            problem = f"does not lead to {channel.version}, as the catalogue says"
            yield Damage(channel_name(image, channel.name), problem, _CHANNEL)


def _wrong_entries(catalogue: Catalogue, manifests: Mapping[str, Manifest]) -> Iterator[Damage]:
    for entry in catalogue.versions:
        manifest = manifests.get(entry.version)
        if manifest is not None and manifest.digest() != entry.manifest_digest:
            error = IntegrityError(f"manifest of {entry.version}", entry.manifest_digest, manifest.digest())
            yield Damage(catalogue_name(catalogue.image), str(error), _CATALOGUE)
