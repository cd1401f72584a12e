"""Checking the signed metadata of a repository: signatures, that they have not expired, and the files they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from trimtransfer.errors import TrimTransferError
from trimtransfer.names import catalogue_name, further_disk_of
from trimtransfer.repository.catalogues import stored_catalogue
from trimtransfer.repository.contents import Damage
from trimtransfer.repository.reading import image_names
from trimtransfer.repository.signer import signed_file
from trimtransfer.repository.staged import is_signed
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.layout import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, metadata_name, role_of

if TYPE_CHECKING:
    from trimtransfer.repository.signed import SignedMetadata

_RESTORE: Final = "restore it from a copy; deltas can be made again (`medv-repo delta`), which signs them"
_CATALOGUE: Final = (
    "any change of it (`medv-repo annotate`) writes what is signed; only clients that check no signatures read it"
)
_AGAIN: Final = "sign it again (`medv-repo keys renew --all`), or restore it from a copy"


def check_signed(store: DirectoryStore, images: Sequence[str], now: datetime | None = None) -> Iterator[Damage]:
    """Yield what is wrong with the signatures of some images; nothing in a repository that is not signed.

    Delta indexes that are gone, or are not those that are signed, are told: clients do without them.
    """
    if not is_signed(store):
        return
    from trimtransfer.repository.signed import SignedMetadata, clock

    try:
        metadata = SignedMetadata.open(store)
        if metadata is None:
            return
    except (TrimTransferError, OSError) as error:
        yield Damage(metadata_name(TIMESTAMP), str(error), _AGAIN)
        return
    for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP, *map(role_of, metadata.images)):
        document = {ROOT: metadata.root, SNAPSHOT: metadata.snapshot, TIMESTAMP: metadata.timestamp}.get(role)
        document = document or metadata.document(role)
        if document is not None and document.expires <= (now or clock()):
            name = metadata_name(role, None if role == TIMESTAMP else document.version)
            remedy = "renew it (`medv-repo timestamp`, or `medv-repo keys renew`): clients refuse it"
            yield Damage(name, f"valid until {document.expires:%Y-%m-%d %H:%M} UTC only", remedy)
    heads = set(image_names(store))
    for image in (name for name in images if further_disk_of(name) is None):
        yield from _check_image(store, metadata, image, image in heads)


def _check_image(store: DirectoryStore, metadata: SignedMetadata, image: str, published: bool) -> Iterator[Damage]:
    role = metadata.image_role(image)
    if role is None:
        if published:
            yield Damage(role_of(image), "nothing of it is signed", f"`medv-repo keys delegate` with {image}")
        return
    try:
        if stored_catalogue(store, image) != role.as_catalogue():
            yield Damage(catalogue_name(image), "it is not what is signed", _CATALOGUE)
    except (TrimTransferError, OSError) as error:
        yield Damage(catalogue_name(image), str(error), _CATALOGUE)
    for name, file in role.files.items():
        try:
            if store.exists(name) and signed_file(store, name) != file:
                yield Damage(name, "it is not the file that is signed", _RESTORE)
        except (TrimTransferError, OSError) as error:
            yield Damage(name, str(error), _RESTORE)
