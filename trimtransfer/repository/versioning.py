"""Changing what a repository keeps and what its versions are called: remarks, channels, removal, retention.

Every change is one of the catalogue, made under the repository's lock. A version is removed by taking its name out of
the catalogue; what nobody else needs of it then goes into quarantine (:mod:`trimtransfer.repository.collecting`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trimtransfer.catalogue import Catalogue
from trimtransfer.durable import space_errors
from trimtransfer.errors import NotFound
from trimtransfer.repository.catalogues import current
from trimtransfer.repository.collecting import CollectReport, Garbage, collected_objects, quarantine_unused
from trimtransfer.repository.intent import clean_up, repository_lock
from trimtransfer.repository.marking import Marker
from trimtransfer.repository.reading import image_names, require_repository
from trimtransfer.repository.signer import Keys, Signer, commit_catalogue, known_catalogue
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Progress, Watch


@dataclass(frozen=True, slots=True)
class Policy:
    """What a retention keeps besides pinned versions, the newest, and those that a channel stands for or could roll
    back to: the ``last`` so many of an image, and those published within so many ``days``. None: no such rule."""

    last: int | None = None
    days: float | None = None

    def gives_up(self, catalogue: Catalogue, now: float) -> tuple[str, ...]:
        """Return the names of the versions that are not kept."""
        since = None if self.days is None else int(now - self.days * 86_400)
        return tuple(entry.version for entry in catalogue.disposable(last=self.last, since=since))


@dataclass(frozen=True, slots=True)
class RemovalReport:
    """What was removed - with ``dry_run`` would be -: versions by image, how many are ``kept`` of each, and what they
    leave that nobody else needs."""

    removed: dict[str, tuple[str, ...]]
    kept: dict[str, int]
    freed: Garbage
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def change_catalogue(
    repository: str | os.PathLike[str],
    image: str,
    purpose: str,
    change: Callable[[Catalogue], Catalogue],
    keys: Keys | None = None,
) -> Catalogue:
    """Change the catalogue of an image and return what it has become; ``purpose`` tells others what the lock is for.
    In a repository that is signed, ``keys`` sign it.

    Raises:
        NotFound: there is no such repository or image.
        TargetRefused, Untrusted: keys are not at hand; what is signed is wrong.
        FormatError, IntegrityError: it is damaged.
        Locked: another process writes to the repository. NoSpace: the disk is full; and what ``change`` raises.
    """
    store = DirectoryStore(repository)
    require_repository(store)
    with space_errors(store.path), repository_lock(store, f"{purpose} of {image}"):
        clean_up(store)
        signer = Signer.open(store, image, keys)
        changed = change(known_catalogue(store, signer, image))
        commit_catalogue(store, signer, changed)
        return changed


def annotate(
    repository: str | os.PathLike[str],
    image: str,
    version: str,
    *,
    labels: Sequence[str] = (),
    unlabel: Sequence[str] = (),
    note: str | None = None,
    pinned: bool | None = None,
    keys: Keys | None = None,
) -> Catalogue:
    """Change labels, note and pin of a version (by name or label); see ``Catalogue.annotated`` for what is raised,
    beside what :func:`change_catalogue` raises."""
    remarks: dict[str, Any] = {"labels": labels, "unlabel": unlabel, "note": note, "pinned": pinned}
    return change_catalogue(repository, image, "remarks", lambda one: one.annotated(version, **remarks), keys)


def point_channel(
    repository: str | os.PathLike[str],
    image: str,
    channel: str,
    *,
    version: str | None = None,
    like: str | None = None,
    keys: Keys | None = None,
) -> Catalogue:
    """Let a channel stand for a version (by name or label), or for what another channel, ``like``, stands for; raises
    what :func:`change_catalogue` raises, and ``NotFound`` for a version or channel that is not there."""

    def change(catalogue: Catalogue) -> Catalogue:
        target = version if like is None else catalogue.channel(like).version
        return catalogue.pointed(channel, target or "", int(time.time()))

    return change_catalogue(repository, image, f"channel {channel}", change, keys)


def roll_back_channel(
    repository: str | os.PathLike[str], image: str, channel: str, *, keys: Keys | None = None
) -> Catalogue:
    """Let a channel stand for what it stood for before; raises what :func:`change_catalogue` raises, ``NotFound`` for
    no such channel, ``TargetRefused`` if there is nothing to go back to."""
    return change_catalogue(
        repository, image, f"channel {channel}", lambda one: one.rolled_back(channel, int(time.time())), keys
    )


def remove_channel(
    repository: str | os.PathLike[str], image: str, channel: str, *, keys: Keys | None = None
) -> Catalogue:
    """Remove a channel; clients that follow it fail then. Raises what :func:`change_catalogue` raises, ``NotFound``."""
    return change_catalogue(repository, image, f"channel {channel}", lambda one: one.without_channel(channel), keys)


def remove_versions(
    repository: str | os.PathLike[str],
    image: str,
    versions: Sequence[str],
    *,
    dry_run: bool = False,
    keys: Keys | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> RemovalReport:
    """Remove versions (by name or label) of an image.

    Raises:
        NotFound: there is no such image or version.
        TargetRefused: one is pinned, the newest, or what a channel stands for; none was removed.
        FormatError, IntegrityError: the repository is damaged. Locked: another process writes to it.
        Cancelled: as asked; the versions may be removed already.
    """

    def choose(catalogue: Catalogue) -> tuple[str, ...]:
        return tuple(dict.fromkeys(catalogue.entry(version).version for version in versions))

    return _remove(repository, [image], choose, dry_run, keys, Watch(progress, cancel, "stopped; run `medv-repo gc`"))


def retain(
    repository: str | os.PathLike[str],
    policy: Policy,
    *,
    image: str | None = None,
    dry_run: bool = True,
    keys: Keys | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> RemovalReport:
    """Remove the versions that a policy gives up, of all images or one; raises what :func:`remove_versions` raises."""
    images = image_names(DirectoryStore(repository)) if image is None else [image]
    now = time.time()
    watch = Watch(progress, cancel, "stopped; run `medv-repo gc`")
    return _remove(repository, images, lambda catalogue: policy.gives_up(catalogue, now), dry_run, keys, watch)


def _remove(
    repository: str | os.PathLike[str],
    images: Sequence[str],
    choose: Callable[[Catalogue], tuple[str, ...]],
    dry_run: bool,
    keys: Keys | None,
    watch: Watch,
) -> RemovalReport:
    """Remove the versions that are chosen of each image."""
    store = DirectoryStore(repository)
    require_repository(store)
    if dry_run:
        before = {image: current(store, image) for image in images}
        gone = {image: choose(catalogue) for image, catalogue in before.items()}
        kept = {image: len(catalogue.without(gone[image]).versions) for image, catalogue in before.items()}
        return RemovalReport(_some(gone), kept, _freed(store, gone, watch), dry_run)
    with space_errors(store.path), repository_lock(store, "removing versions"):
        clean_up(store)
        before = {image: current(store, image) for image in images}
        signers = {image: Signer.open(store, image, keys) for image in images if choose(before[image])}
        before |= {image: known_catalogue(store, signer, image) for image, signer in signers.items()}
        gone = {image: choose(catalogue) for image, catalogue in before.items()}
        after = {image: catalogue.without(gone[image]) for image, catalogue in before.items()}
        for image in signers:  # that keys are at hand for all of them is known by now; each commit makes a new snapshot
            watch.check()
            commit_catalogue(store, Signer.open(store, image, keys), after[image])
        left: CollectReport = quarantine_unused(store, watch)
        kept = {image: len(catalogue.versions) for image, catalogue in after.items()}
        return RemovalReport(_some(gone), kept, left.new, dry_run)


def _some(gone: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {image: versions for image, versions in gone.items() if versions}


def _freed(store: DirectoryStore, gone: Mapping[str, tuple[str, ...]], watch: Watch) -> Garbage:
    """Return what versions leave behind that nobody else needs."""
    if not any(gone.values()):
        return Garbage()
    marker, needed, left = Marker(store, watch), set[str](), set[str]()
    for image in image_names(store):
        for needs in marker.image(image):
            names = left if needs.version in gone.get(image, ()) else needed
            names |= needs.files
            names.update(marker.names(needs.all_packs().tolist()))
    sizes = collected_objects(store)
    return Garbage.of(sizes[name] for name in left - needed if name in sizes)


def catalogues_of(repository: str | os.PathLike[str], image: str | None) -> list[Catalogue]:
    """Return the catalogues of all images, or of one; ``NotFound``, ``FormatError``, ``IntegrityError``."""
    store = DirectoryStore(repository)
    require_repository(store)
    images = image_names(store) if image is None else [image]
    if not images:
        raise NotFound("a published image", store.url)
    return [current(store, name) for name in images]
