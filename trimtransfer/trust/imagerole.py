"""What an image's role says: the versions that there are, and the digests of their manifests and delta indexes.

Pure values beside the plain fields in which they are signed; nothing here believes anything. A version says what a head
does, so that who has the role needs no head. FORMAT.md, "Trust".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from trimtransfer.catalogue import Catalogue, Entry, check_published
from trimtransfer.chunk import DIGEST_SIZE, MAX_IMAGE_SIZE
from trimtransfer.errors import FormatError
from trimtransfer.head import Head, check_mirrors
from trimtransfer.names import MAX_DISKS, check_name, disk_name, manifest_name
from trimtransfer.trust.layout import REPOSITORY

FORMAT: Final = 1
_SHA256_SIZE: Final = 32
_LARGEST: Final = (1 << 63) - 1
IMAGE: Final = "x-trim-image"
REPOSITORY_FIELD: Final = "x-trim-repository"
FORMAT_FIELD: Final = "x-trim-format"
MIRRORS: Final = "x-trim-mirrors"
CATALOGUE: Final = "x-trim-catalogue"


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A file that is signed: its ``length`` in bytes, its object ``digest``, and ``sha256``, which TUF knows."""

    length: int
    digest: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class SignedVersion:
    """A version that is signed; fields as of a head and a manifest. ``manifest`` is that of its first disk."""

    version: str
    parent: str
    sequence: int
    created: int
    manifest: SignedFile
    image_digest: bytes
    length: int
    disks: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ImageRole:
    """Versions of an image in order of their sequence numbers, and ``files``: all that is signed of it, by store name.

    ``catalogue``: what is said of them, and channels (:meth:`trimtransfer.catalogue.Catalogue.remarks`).
    """

    repository: str
    image: str
    versions: tuple[SignedVersion, ...]
    files: Mapping[str, SignedFile]
    mirrors: tuple[str, ...] = ()
    catalogue: dict[str, Any] | None = None
    _by_name: dict[str, SignedVersion] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that versions and numbers are distinct, and in order; ``FormatError``."""
        object.__setattr__(self, "_by_name", {one.version: one for one in self.versions})
        numbers = [one.sequence for one in self.versions]
        if len(self._by_name) != len(numbers) or any(a >= b for a, b in pairwise(numbers)):
            raise FormatError(f"role of {self.image}", "targets", "versions with distinct numbers", "some twice")

    def find(self, version: str) -> SignedVersion | None:
        """Return a version by its name; None if it is not signed."""
        return self._by_name.get(version)

    def head(self, version: str | None = None) -> Head | None:
        """Return what a head would say of a version, the newest by default; None if there is none."""
        found = self.find(version) if version is not None else self.versions[-1] if self.versions else None
        if found is None:
            return None
        return Head(
            self.image,
            found.version,
            found.sequence,
            found.manifest.digest,
            found.manifest.length,
            found.image_digest,
            found.length,
            found.disks,
            self.mirrors,
            self.repository,
        )

    def as_catalogue(self) -> Catalogue:
        """Return the catalogue of the versions; ``FormatError`` if what is said of them does not fit."""
        entries = [
            Entry(
                one.version,
                one.sequence,
                one.parent,
                one.manifest.digest,
                one.manifest.length,
                check_published(one.created),
            )
            for one in self.versions
        ]
        if self.catalogue is None:
            return Catalogue(self.image, entries[-1].sequence if entries else 0, tuple(entries))
        return Catalogue.with_remarks(self.image, entries, self.catalogue)

    def to_fields(self) -> dict[str, Any]:
        """Return what is signed, but for what every role has: number, expiry and the like."""
        named = {manifest_name(self.image, one.version): one for one in self.versions}
        extra = {} if self.catalogue is None else {CATALOGUE: self.catalogue}
        return {
            "targets": {name: _target(file, named.get(name)) for name, file in self.files.items()},
            FORMAT_FIELD: FORMAT,
            IMAGE: self.image,
            MIRRORS: list(self.mirrors),
            REPOSITORY_FIELD: self.repository,
            **extra,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ImageRole:
        """Return the role that signed fields describe; unknown ones are ignored.

        Raises:
            FormatError: fields that are missing or wrong; names of other images; a newer format asks to upgrade.
        """
        reader = _Reader(fields, "image role")
        if reader.number(FORMAT_FIELD) != FORMAT:
            raise reader.wrong(FORMAT_FIELD, f"{FORMAT} (a newer one needs a newer program)")
        image = check_name("image", reader.text(IMAGE))
        repository = reader.text(REPOSITORY_FIELD)
        if not REPOSITORY.fullmatch(repository):
            raise reader.wrong(REPOSITORY_FIELD, "the id of a repository")
        files: dict[str, SignedFile] = {}
        versions: list[SignedVersion] = []
        for name, target in reader.mapping("targets").items():
            _check_target_name(image, name)
            found = _Reader(target, f"target {name}"[:120])
            custom = _Reader(found.mapping("custom"), f"target {name}"[:120])
            files[name] = file = SignedFile(
                found.number("length"), custom.digest("blake3"), _Reader(found.mapping("hashes"), name).digest("sha256")
            )
            version = name.split("/")[2]
            if name == manifest_name(image, version):
                versions.append(_version(version, file, custom))
        versions.sort(key=lambda one: one.sequence)
        return cls(repository, image, tuple(versions), files, reader.mirrors(), reader.catalogue())


def _target(file: SignedFile, version: SignedVersion | None) -> dict[str, Any]:
    custom: dict[str, Any] = {"blake3": file.digest.hex()}
    if version is not None:
        custom |= {"created": version.created, "image": version.image_digest.hex(), "length": version.length}
        custom |= {"parent": version.parent, "sequence": version.sequence, "disks": version.disks}
    return {"custom": custom, "hashes": {"sha256": file.sha256.hex()}, "length": file.length}


def _version(name: str, file: SignedFile, custom: _Reader) -> SignedVersion:
    parent = custom.text("parent")
    return SignedVersion(
        check_name("version", name),
        check_name("version", parent) if parent else "",
        custom.number("sequence"),
        custom.number("created"),
        file,
        custom.digest("image"),
        custom.number("length", MAX_IMAGE_SIZE),
        custom.number("disks", MAX_DISKS - 1),
    )


def _check_target_name(image: str, name: str) -> None:
    """Refuse a name that is not that of a file of a version of this image, or of a further disk of one."""
    parts = name.split("/")
    ours = len(parts) == 4 and parts[0] == "images" and len(parts[3]) <= 80
    disk = parts[1].removeprefix(f"{image}.disk") if ours else ""
    if not ours or (parts[1] != image and not (disk.isdecimal() and parts[1] == disk_name(image, int(disk)))):
        raise FormatError(f"role of {image}", "targets", "files of this image", repr(name[:80]))
    check_name("version", parts[2])


class _Reader:
    """Fields of a JSON object, each of its kind or ``FormatError``."""

    def __init__(self, fields: Any, what: str) -> None:
        self._what = what
        if not isinstance(fields, Mapping):
            raise FormatError(what, 0, "an object", type(fields).__name__)
        self._fields = fields

    def wrong(self, name: str, expected: str) -> FormatError:
        """Return the error for a field."""
        return FormatError(self._what, name, expected, repr(self._fields.get(name))[:80])

    def text(self, name: str) -> str:
        """Return a string."""
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def number(self, name: str, limit: int = _LARGEST) -> int:
        """Return a whole number."""
        value = self._fields.get(name)
        if type(value) is not int or not 0 <= value <= limit:
            raise self.wrong(name, f"a whole number up to {limit}")
        return value

    def digest(self, name: str) -> bytes:
        """Return a digest of 32 bytes."""
        value = self.text(name)
        if len(value) != 2 * DIGEST_SIZE or not set(value) <= set("0123456789abcdef"):
            raise self.wrong(name, f"{2 * DIGEST_SIZE} lower-case hexadecimal digits")
        return bytes.fromhex(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return an object."""
        value = self._fields.get(name)
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return value

    def mirrors(self) -> tuple[str, ...]:
        """Return the mirrors, none by default."""
        value = self._fields.get(MIRRORS, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(MIRRORS, "a list of URLs")
        return check_mirrors(value)

    def catalogue(self) -> dict[str, Any] | None:
        """Return what else is signed, None by default."""
        value = self._fields.get(CATALOGUE)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(CATALOGUE, "an object")
        return value
