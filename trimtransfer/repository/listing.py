"""Which images and versions a repository, or a bundle, has: what ``ls`` tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trimtransfer.errors import TrimTransferError
from trimtransfer.head import Head
from trimtransfer.repository.catalogues import kept_names
from trimtransfer.repository.reading import Listed, image_names, read_head, read_manifest, version_names


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A version as ``ls`` shows it; sizes in bytes, ``created`` in seconds since 1970. ``problem``: cannot be read."""

    version: str
    parent: str = ""
    sequence: int = 0
    created: int = 0
    length: int = 0
    digest: str = ""
    newest: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """An image with its versions in order of publication."""

    image: str
    newest: str
    versions: tuple[VersionSummary, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def list_images(store: Listed) -> list[ImageSummary]:
    """Return all images with their versions. What cannot be read is listed with its problem."""
    return [_summarise(store, image) for image in image_names(store)]


def _summarise(store: Listed, image: str) -> ImageSummary:
    try:
        head = read_head(store, image)
    except TrimTransferError as error:
        return ImageSummary(image, "", (VersionSummary("", problem=str(error)),))
    names = kept_names(store, image, version_names(store, image))
    versions = [_summarise_version(store, image, version, head) for version in names]
    kept = [version for version in versions if version.sequence <= head.sequence]  # else of a publish not committed
    return ImageSummary(image, head.version, tuple(sorted(kept, key=lambda version: version.sequence)))


def _summarise_version(store: Listed, image: str, version: str, head: Head) -> VersionSummary:
    try:
        manifest = read_manifest(store, image, version, head=head)
    except TrimTransferError as error:
        return VersionSummary(version, problem=str(error))
    return VersionSummary(
        version=version,
        parent=manifest.parent,
        sequence=manifest.sequence,
        created=manifest.created,
        length=manifest.length,
        digest=manifest.image_digest().hex(),
        newest=version == head.version,
    )
