"""Signing what a command changes in a repository that is signed: opened before any work is done, used as it commits.

A repository without signed metadata needs none of this and loads none of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trimtransfer.catalogue import Catalogue
from trimtransfer.chunk import object_hasher
from trimtransfer.errors import FormatError, NotFound, TargetRefused
from trimtransfer.manifest import Manifest
from trimtransfer.names import disk_name, manifest_name
from trimtransfer.repository.catalogues import current, save
from trimtransfer.repository.intent import Intent, intended
from trimtransfer.repository.mirrors import read_mirrors
from trimtransfer.repository.reading import read_head, read_manifest
from trimtransfer.repository.staged import finish, is_signed
from trimtransfer.store import DirectoryStore, Range
from trimtransfer.trust.imagerole import ImageRole, SignedFile, SignedVersion
from trimtransfer.trust.layout import role_of

if TYPE_CHECKING:
    from trimtransfer.repository.signed import SignedMetadata
    from trimtransfer.trust.ring import Ring

KEYS: Final = "MEDV_KEYS"
PASSPHRASES: Final = (("MEDV_KEY_PASSPHRASE", "text"), ("MEDV_KEY_PASSPHRASE_FILE", "file"))
"""Variables of the environment that name folders of keys, and tell the passphrase of those that have one."""
PINNED: Final = "root.json"
"""File in a folder of keys: the root that their owner knows to be right."""
_PIECE: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Keys:
    """Where private keys are: folders (none: those of the environment, or the user's), and who is ``ask``\\ ed for
    passphrases that the environment does not tell."""

    directories: tuple[Path, ...] = ()
    ask: Callable[[str], bytes] | None = None

    def folders(self, repository: str) -> list[Path]:
        """Return the folders to look in for keys of a repository."""
        if self.directories:
            return list(self.directories)
        named = [Path(one) for one in os.environ.get(KEYS, "").split(os.pathsep) if one]
        return named or [default_folder(repository)]

    def ring(self, repository: str, *further: Path) -> Ring:
        """Return the keys."""
        from trimtransfer.trust.ring import Ring, passphrase_from

        return Ring([*self.folders(repository), *further], passphrase_from(PASSPHRASES, self.ask or _nobody))

    def pinned(self, repository: str) -> Path | None:
        """Return the root that the owner of the keys knows to be right, if it is there."""
        paths = (folder / PINNED for folder in self.folders(repository))
        return next((path for path in paths if path.exists()), None)


def default_folder(repository: str) -> Path:
    """Return the folder of a repository's keys: never in the repository, which a web server serves."""
    from platformdirs import user_config_path

    return user_config_path("medv") / "keys" / repository


class Signer:
    """Signs the versions of images as a command commits them. Hold the repository's lock."""

    def __init__(self, store: DirectoryStore, metadata: SignedMetadata, ring: Ring) -> None:
        self._store, self._metadata, self._ring = store, metadata, ring

    @classmethod
    def open(cls, store: DirectoryStore, image: str | None, keys: Keys | None) -> Signer | None:
        """Return what signs for an image; None for a repository that is not signed.

        Raises:
            TargetRefused: keys are not at hand, or the image has none; nothing was done yet.
            Untrusted, FormatError: the signed metadata that are there are wrong.
        """
        if not is_signed(store):
            return None
        from trimtransfer.repository.signed import SignedMetadata

        keys = keys or Keys()
        first = SignedMetadata.open(store)
        assert first is not None
        pinned = keys.pinned(first.repository)
        metadata = SignedMetadata.open(store, pinned=pinned) if pinned is not None else first
        assert metadata is not None
        ring = keys.ring(metadata.repository)
        metadata.require(ring, image)
        return cls(store, metadata, ring)

    @property
    def repository(self) -> str:
        """Id of the repository."""
        return self._metadata.repository

    def stage(
        self,
        intent: Intent,
        image: str,
        versions: Sequence[str],
        *,
        catalogue: Catalogue | None = None,
        signed: bytes | None = None,
    ) -> None:
        """Write the role of an image in which these ``versions`` are as they are now, all others as they were signed,
        and stage the timestamp that will make it count. Files that are gone are signed no more. ``catalogue`` has the
        versions that are kept, and what is said of them (None: as it was). ``signed`` is that role if its publisher has
        signed it already."""
        from trimtransfer.repository.signed import clock

        now = clock()
        role = image_role(self._store, self._metadata.image_role(image), self.repository, image, versions, catalogue)
        if signed is None:
            data = self._metadata.signed_image(role, self._ring, now)
        else:
            data = self._metadata.accepted_image(role, signed, now)
        self._metadata.stage(self._ring, now, intent.add, roles={role_of(image): data})

    def finish(self) -> None:
        """Let what was staged count: the commit."""
        finish(self._store)
        self._metadata.prune()

    def catalogue(self, image: str) -> Catalogue | None:
        """Return the catalogue of an image as it is signed; None if nothing of the image is."""
        role = self._metadata.image_role(image)
        return None if role is None else role.as_catalogue()


def known_catalogue(store: DirectoryStore, signer: Signer | None, image: str) -> Catalogue:
    """Return the catalogue of an image to go on from: what is signed of it, not what lies beside, which anybody may
    have written, or damaged; in a repository that is not signed what is stored. Raises what reading it raises,
    ``NotFound``."""
    read_head(store, image)
    signed = signer.catalogue(image) if signer is not None else None
    return current(store, image) if signed is None else signed


def commit_catalogue(store: DirectoryStore, signer: Signer | None, catalogue: Catalogue) -> None:
    """Store a catalogue that was changed, signed before in a repository that is signed. Hold the lock.

    Killed in between, what is signed counts, and the next change writes the rest.
    """
    if signer is not None:
        with intended(store, catalogue.image, None) as intent:
            signer.stage(intent, catalogue.image, [], catalogue=catalogue)
            signer.finish()
    save(store, catalogue)


def resign(store: DirectoryStore, signer: Signer | None, image: str, versions: Sequence[str]) -> None:
    """Sign versions of an image anew, whose delta indexes have changed; nothing in a repository that is not signed.
    Hold the lock."""
    if signer is None:
        return
    with intended(store, image, None) as intent:
        signer.stage(intent, image, versions)
        signer.finish()


def image_role(
    store: DirectoryStore,
    before: ImageRole | None,
    repository: str,
    image: str,
    versions: Sequence[str],
    catalogue: Catalogue | None = None,
) -> ImageRole:
    """Return what is to be signed of an image: these versions as they are in the store, others as ``before``, if their
    files are still there; and those only that the ``catalogue`` names, and what it says of them (None: as before).

    Raises:
        FormatError: a manifest is damaged, or one is not there of whose version something is said.
    """
    kept = None if catalogue is None else {entry.version for entry in catalogue.versions}
    known = {one.version: one for one in before.versions} if before is not None else {}
    again = set(versions) | ((kept or set()) - set(known))
    files: dict[str, SignedFile] = {}
    found: dict[str, SignedVersion] = {}
    for name, file in before.files.items() if before is not None else ():
        if name.split("/")[2] not in again and store.exists(name):
            files[name] = file
    for version in known.keys() - again if kept is None else known.keys() & kept - again:
        if manifest_name(image, version) in files:
            found[version] = known[version]
    for version in sorted(again):
        manifest = _manifest(store, image, version)
        if manifest is not None:
            files |= {name: signed_file(store, name) for name in _names(store, manifest)}
            found[version] = _signed_version(manifest, files[manifest_name(image, version)])
    files = {name: file for name, file in files.items() if name.split("/")[2] in found}
    ordered = tuple(sorted(found.values(), key=lambda one: one.sequence))
    said = catalogue.remarks() if catalogue is not None else before.catalogue if before is not None else None
    role = ImageRole(repository, image, ordered, files, read_mirrors(store), said)
    role.as_catalogue()  # or it would not be believed
    return role


def _manifest(store: DirectoryStore, image: str, version: str) -> Manifest | None:
    try:
        return read_manifest(store, image, version)
    except NotFound:
        return None


def _names(store: DirectoryStore, manifest: Manifest) -> Iterator[str]:
    """Yield the names of the files of a version that are signed: manifests, and what comes and goes beside them."""
    for disk in range(1 + len(manifest.disks)):
        folder = f"images/{disk_name(manifest.image, disk)}/{manifest.version}"
        for name, _ in store.list(folder):
            file = name.rpartition("/")[2]
            if file in ("manifest.bin", "hosts.bin") or file.startswith(("from-", "host-")):
                yield name


def signed_file(store: DirectoryStore, name: str) -> SignedFile:
    """Return length and digests of a file in a store, read in pieces; ``OSError``, or what reading it raises."""
    ours, theirs, length = object_hasher(), hashlib.sha256(), store.size(name)
    for start in range(0, length, _PIECE):
        data = store.read_range(Range(name, start, min(_PIECE, length - start), length))
        ours.update(data)
        theirs.update(data)
    return SignedFile(length, ours.digest(), theirs.digest())


def _signed_version(manifest: Manifest, file: SignedFile) -> SignedVersion:
    if file.digest != manifest.digest():
        raise FormatError(f"manifest of {manifest.image} {manifest.version}", 0, "what was read before", "other bytes")
    return SignedVersion(
        manifest.version,
        manifest.parent,
        manifest.sequence,
        manifest.created,
        file,
        manifest.image_digest(),
        manifest.length,
        len(manifest.disks),
    )


def _nobody(what: str) -> bytes:
    names = " or ".join(name for name, _ in PASSPHRASES)
    raise TargetRefused(what, f"is encrypted; its passphrase comes from {names}, or is asked for on a terminal")
