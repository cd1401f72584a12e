"""Catalogues in a repository: read, made up for what older releases published, and written with the channels' heads.

``catalogue.json`` is the list of an image's versions. Beside it lies for each channel a small head, so that a client
that follows a channel reads as little as one that takes the newest version. The head of the image commits a publish;
the catalogue follows. So a version that lacks in it, with a sequence number above all that the catalogue knows and none
above the head's, belongs to it: it was published by an older release, or its publisher died right then.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from trimtransfer.catalogue import MAX_CATALOGUE, MAX_CHANNELS, MAX_LABELS, Catalogue, Entry, check_published
from trimtransfer.durable import sync_directory
from trimtransfer.errors import FormatError, IntegrityError, NotFound, TrimTransferError
from trimtransfer.fields import Fields
from trimtransfer.head import MAX_HEAD, Head
from trimtransfer.manifest import Manifest
from trimtransfer.names import catalogue_name, channel_name, head_name
from trimtransfer.repository.reading import Listed, read_head, read_manifest, version_names
from trimtransfer.store import DirectoryStore, Store

_LOG: Final = logging.getLogger("trimtransfer.repository")
_WISHES: Final = "wishes.json"
_MAX_WISHES: Final = 1 << 20


def read_catalogue(store: Store, image: str) -> Catalogue:
    """Return the catalogue of an image as it is stored; ``NotFound``, ``FormatError``."""
    catalogue = Catalogue.from_bytes(store.read(catalogue_name(image), limit=MAX_CATALOGUE))
    if catalogue.image != image:
        raise FormatError(f"catalogue of {image}", "image", image, catalogue.image)
    return catalogue


def stored_catalogue(store: Store, image: str) -> Catalogue:
    """Return the same; where there is none one without versions."""
    try:
        return read_catalogue(store, image)
    except NotFound:
        return Catalogue(image)


def current(store: Listed, image: str) -> Catalogue:
    """Return the catalogue with all versions that belong to it.

    Raises:
        NotFound: there is no such image.
        FormatError, IntegrityError: head, catalogue, or the manifest of a version that lacks in it is damaged.
    """
    head = read_head(store, image)
    catalogue = stored_catalogue(store, image)
    for manifest in sorted(_lacking(store, catalogue, head), key=lambda manifest: manifest.sequence):
        other = catalogue.find(manifest.version)
        if other is not None:  # an older release does not know that this is a label
            catalogue = catalogue.annotated(other.version, unlabel=[manifest.version])
        catalogue = catalogue.with_version(entry_of(manifest))
    return catalogue


def _lacking(store: Listed, catalogue: Catalogue, head: Head) -> Iterator[Manifest]:
    """Yield the manifests of versions that belong to a catalogue and lack in it."""
    known = {entry.version for entry in catalogue.versions}
    if catalogue.sequence >= head.sequence and head.version in known:
        return
    for version in {*version_names(store, catalogue.image), head.version} - known:
        manifest = read_manifest(store, catalogue.image, version, head=head)
        if version == head.version or catalogue.sequence < manifest.sequence <= head.sequence:
            yield manifest


def entry_of(manifest: Manifest) -> Entry:
    """Return what a catalogue says of a version."""
    data = manifest.to_bytes()
    created = check_published(manifest.created)
    return Entry(manifest.version, manifest.sequence, manifest.parent, manifest.digest(), len(data), created)


def kept_names(store: Listed, image: str, versions: Iterable[str]) -> list[str]:
    """Return those of an image's ``versions`` that were not removed, and all that its catalogue names.

    Never raises for what is damaged: without a catalogue that can be read all are kept.
    """
    try:
        catalogue = stored_catalogue(store, image)
    except TrimTransferError:
        return sorted(versions)
    if not catalogue.versions:
        return sorted(versions)
    kept = {entry.version for entry in catalogue.versions}
    for version in {*versions} - kept:
        with suppress(TrimTransferError):
            if read_manifest(store, image, version).sequence > catalogue.sequence:
                kept.add(version)
    return sorted(kept)


# ---- writing


def save(store: DirectoryStore, new: Catalogue) -> None:
    """Store a catalogue and the heads of its channels; the caller holds the repository's lock.

    Killed on the way, it is done with the next change: heads of channels may then be those of before, whose versions
    are retained still.
    """
    image, data = new.image, new.to_bytes()
    try:
        same = store.read(catalogue_name(image), limit=MAX_CATALOGUE) == data
    except (NotFound, FormatError):
        same = False
    if not same:
        store.put(catalogue_name(image), data)
    for channel in new.channels:
        if not is_right(store, new, channel.name):
            store.put(channel_name(image, channel.name), channel_head(store, new, channel.name).to_bytes())
    for name in channel_files(store, image):
        if name not in {channel_name(image, channel.name) for channel in new.channels}:
            store.delete(name)


def is_right(store: Store, catalogue: Catalogue, channel: str) -> bool:
    """Tell whether the head of a channel leads to the version that it stands for."""
    entry = catalogue.entry(catalogue.channel(channel).version)
    try:
        head = read_channel_head(store, catalogue.image, channel)
    except (NotFound, FormatError):
        return False
    return (head.version, head.manifest_digest) == (entry.version, entry.manifest_digest)


def read_channel_head(store: Store, image: str, channel: str) -> Head:
    """Return what a channel of an image leads to; ``NotFound``, ``FormatError``."""
    head = Head.from_bytes(store.read(channel_name(image, channel), limit=MAX_HEAD))
    if head.image != image:
        raise FormatError(f"channel {channel} of {image}", "image", image, head.image)
    return head


def channel_files(store: DirectoryStore, image: str) -> list[str]:
    """Return the store names of the heads of channels that there are."""
    folder = os.path.dirname(head_name(image))
    if (directory := store.path / folder).is_dir():
        files = sorted(os.listdir(directory))  # quicker than listing all its versions
    else:
        files = [name.rpartition("/")[2] for name, _ in store.list(folder) if name.count("/") == 2]
    return [f"images/{image}/{file}" for file in files if file.startswith("channel-") and file.endswith(".json")]


def channel_head(store: Store, catalogue: Catalogue, channel: str) -> Head:
    """Return the head of a channel.

    Raises:
        NotFound, FormatError, IntegrityError: there is no such channel, or its version is damaged.
    """
    entry = catalogue.entry(catalogue.channel(channel).version)
    manifest = read_manifest(store, catalogue.image, entry.version, digest=entry.manifest_digest)
    head = read_head(store, catalogue.image)
    return head_of(manifest, mirrors=head.mirrors, signed=head.signed)


def head_of(manifest: Manifest, *, mirrors: tuple[str, ...] = (), signed: str = "") -> Head:
    """Return a head that leads to a version; ``signed``: id of the repository, where it is signed."""
    return Head(
        image=manifest.image,
        version=manifest.version,
        sequence=manifest.sequence,
        manifest_digest=manifest.digest(),
        manifest_length=len(manifest.to_bytes()),
        image_digest=manifest.image_digest(),
        length=manifest.length,
        disks=len(manifest.disks),
        mirrors=mirrors,
        signed=signed,
    )


# ---- what a version that is being published is to be called


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a version that is being published gets: labels, a note, and channels that shall stand for it."""

    labels: tuple[str, ...] = ()
    note: str = ""
    channels: tuple[str, ...] = ()

    def granted(self, catalogue: Catalogue, version: str, now: int) -> Catalogue:
        """Return a catalogue with them; raises what the changes of a catalogue raise."""
        if self.labels or self.note:
            catalogue = catalogue.annotated(version, labels=self.labels, note=self.note or None)
        for channel in self.channels:
            catalogue = catalogue.pointed(channel, version, now)
        return catalogue


def record_wishes(store: DirectoryStore, image: str, version: str, wishes: Wishes, now: int) -> None:
    """Note durably what a version is to get once it is published, whatever happens then: see :func:`settle`."""
    fields = {"image": image, "version": version, "labels": wishes.labels, "note": wishes.note, "now": now}
    path = store.private(_WISHES)
    staged = path.with_name(_WISHES + ".new")
    with open(staged, "wb") as file:
        file.write(json.dumps({**fields, "channels": wishes.channels}).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_directory(path.parent)


def complete(store: DirectoryStore, image: str) -> None:
    """Enter a version that was published, and whose publisher died right then, into its catalogue; hold the
    repository's lock. As long as the catalogue is damaged that waits."""
    try:
        save(store, current(store, image))
    except (NotFound, FormatError, IntegrityError) as error:
        _LOG.warning("the catalogue of %s was not brought up to date: %s", image, error)


def settle(store: DirectoryStore) -> None:
    """Give a version that was published what was noted for it, and forget the note; hold the repository's lock.

    As long as its catalogue is damaged the note stays.
    """
    path = store.private(_WISHES)
    try:
        fields = Fields.parse("noted wishes", path.read_bytes(), _MAX_WISHES)
    except FileNotFoundError:
        return
    image, version = fields.text("image"), fields.text("version")
    wishes = Wishes(fields.texts("labels", MAX_LABELS), fields.text("note"), fields.texts("channels", MAX_CHANNELS))
    try:
        catalogue = current(store, image)
    except NotFound:
        catalogue = Catalogue(image)
    except (FormatError, IntegrityError) as error:
        _LOG.warning("%s has not got its labels and channels yet: %s", version, error)
        return
    if any(entry.version == version for entry in catalogue.versions):
        save(store, wishes.granted(catalogue, version, fields.number("now")))
    path.unlink()


def enrol(store: DirectoryStore, catalogue: Catalogue) -> None:
    """Store the catalogue with a version that was just committed, and forget what was noted for it; hold the
    repository's lock."""
    save(store, catalogue)
    store.private(_WISHES).unlink(missing_ok=True)
