"""Deltas from host files: units that rebuild what a version has and a profile's files lack, out of chunks of these.

For first downloads on hosts like the one that was recorded. What such a host has itself is taken from its files, so a
unit holds exactly the chunks that it lacks (:mod:`trimtransfer.repository.hostcontent`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Kind
from trimtransfer.deltaindex import Units, encode_index
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, IntegrityError, NotFound, TargetRefused
from trimtransfer.hostdelta import BaseChunks, encode_host_delta
from trimtransfer.hosts import MAX_HOSTS, MAX_OFFERS, MAX_SAMPLE, SAMPLE, Offer, encode_hosts, parse_hosts
from trimtransfer.manifest import Manifest
from trimtransfer.names import further_disk_of, host_delta_name, hosts_name
from trimtransfer.repository.deltas import Maker, Work, replace_index
from trimtransfer.repository.deltasmade import DeltaReport, Made
from trimtransfer.repository.hostcontent import HostContent
from trimtransfer.repository.hostreuse import groups, numbers_of, renumbered, units_of_parent
from trimtransfer.repository.intent import Intent, clean_up, intended, repository_lock
from trimtransfer.repository.profilefiles import ProfileFiles
from trimtransfer.repository.profiles import OpenProfile, forget_profile, is_tree, open_profile
from trimtransfer.repository.reading import VersionReader, folder_names, further_disks, image_names, version_names
from trimtransfer.repository.signer import Keys, Signer, resign
from trimtransfer.repository.solidreuse import joined
from trimtransfer.store import DirectoryStore, Store
from trimtransfer.watch import Progress, Watch

_LOG: Final = logging.getLogger("trimtransfer.repository")
_MOST: Final = 0.97
"""A unit is kept if it takes at most this share of what a host of the profile would fetch for it in plain frames."""


def add_host_deltas(
    repository: str | os.PathLike[str],
    image: str,
    *,
    profile: str,
    trees: Sequence[str | os.PathLike[str]] = (),
    version: str | None = None,
    level: int,
    workers: int | None = None,
    keys: Keys | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> DeltaReport:
    """Make the deltas from the files of ``profile`` to ``version`` of an image (the newest by default).

    Those of the same profile, if there are any, are replaced. ``trees`` are where its trees are now (default: where
    they were recorded). ``level`` is zstd's, 1 to 22 (above 19 counts as 19). In a repository that is signed, ``keys``
    sign.

    Raises:
        NotFound: no such image, version or profile.
        TargetRefused: a tree is not there, the image is not a disk, or keys to sign with are not at hand.
        Locked: another process writes to the repository; and what :func:`make_host_deltas` raises.
    """
    store = DirectoryStore(repository)
    watch = Watch(progress, cancel, "stopped; nothing was added")
    target = VersionReader.open(store, image, version)
    opened = open_profile(store, profile, trees)
    with space_errors(store.path), repository_lock(store, f"deltas of {image} {target.manifest.version}"):
        clean_up(store)
        signer = Signer.open(store, image, keys)
        with intended(store, image, None) as intent:
            count = workers or len(os.sched_getaffinity(0))
            report, *further = (
                make_host_deltas(store, disk, opened, intent, level=level, workers=count, watch=watch)
                for disk in (target, *further_disks(store, target.manifest))
            )
            if signer is not None:
                signer.stage(intent, image, [target.manifest.version])
                signer.finish()
    return replace(report, disks=tuple(further))


def remove_profile(repository: str | os.PathLike[str], name: str, *, keys: Keys | None = None) -> int:
    """Delete a profile and the deltas from it; return how many versions had some. Their packs are of no use then. In a
    repository that is signed, ``keys`` sign.

    Raises:
        NotFound: there is neither.
        Locked: another process writes to the repository.
    """
    store, versions = DirectoryStore(repository), 0
    if not store.path.is_dir():
        raise NotFound("the repository, a directory,", store.url)
    with space_errors(store.path), repository_lock(store, f"removing the profile {name}"):
        clean_up(store)
        if Signer.open(store, None, keys) is not None:
            for image in image_names(store):
                Signer.open(store, image, keys)  # or nothing is removed
        for image in folder_names(store):
            found = [version for version in version_names(store, image) if withdraw(store, image, version, name)]
            versions += len(found)
            if found:
                whole = further_disk_of(image) or image
                resign(store, Signer.open(store, whole, keys), whole, found)
        try:
            forget_profile(store, name)
        except NotFound:
            if not versions:
                raise
    return versions


def withdraw(store: DirectoryStore, image: str, version: str, profile: str) -> bool:
    """Take the deltas from a profile away from a version; return whether it had any."""
    offers = read_offers(store, image, version)
    kept = [offer for offer in offers if offer.profile != profile]
    if len(kept) < len(offers):
        _store_offers(store, image, version, kept)
    return store.delete(host_delta_name(image, version, profile))


def try_host_deltas(
    store: DirectoryStore, target: VersionReader, opened: OpenProfile, intent: Intent, **options: Any
) -> DeltaReport:
    """Do what :func:`make_host_deltas` does, with the same options; but where it cannot, there are no deltas, and the
    report says why."""
    try:
        return make_host_deltas(store, target, opened, intent, **options)
    except (FormatError, IntegrityError, NotFound, TargetRefused) as error:
        _LOG.warning("no deltas from the profile %s: %s", opened.name, error)
        return DeltaReport(target.manifest.image, target.manifest.version, "", profile=opened.name, problem=str(error))


def make_host_deltas(
    store: DirectoryStore,
    target: VersionReader,
    opened: OpenProfile,
    intent: Intent,
    *,
    level: int,
    workers: int,
    watch: Watch,
    parent: VersionReader | None = None,
) -> DeltaReport:
    """Store the deltas that make ``target`` out of a profile's files, and return what they are.

    Units of regions that ``parent`` has, too, are taken over from its deltas if these are from the same profile. Other
    options as for :func:`trimtransfer.repository.deltas.make_deltas`. Memory: what that takes, and 160 bytes for each
    chunk of the profile. Where nothing is worth a delta no index is written.

    Raises:
        TargetRefused: a tree is not there, the version is not a disk, or has deltas from too many profiles.
        FormatError, IntegrityError, NotFound: the repository is damaged.
        NoSpace: its disk is full. Cancelled: as asked.
    """
    _check(target.manifest, opened)
    with ExitStack() as stack:
        files = stack.enter_context(ProfileFiles(opened))
        kept = units_of_parent(store, target, parent, files, opened.name) if parent is not None else {}
        new = HostContent(target, files, store.scratch(), kept=kept, workers=workers, watch=watch)
        stack.callback(new.close)
        maker = Maker(store, new, intent, level=level, workers=workers, watch=watch, most=_MOST)
        return store_units(store, target, opened, files, new, maker, list(kept.items()), intent)


class HostWork(Work, Protocol):
    """What host deltas are made for; ``known``: chunks of the profile that the version has, too."""

    known: NDArray[np.bool_]


def store_units(
    store: DirectoryStore,
    target: VersionReader,
    opened: OpenProfile,
    files: ProfileFiles,
    new: HostWork,
    maker: Maker,
    kept: Sequence[tuple[int, Units]],
    intent: Intent,
) -> DeltaReport:
    """Make the units of ``new`` and store them with those that are ``kept``, an index, and an offer; return what they
    are. Raises what :func:`make_host_deltas` raises."""
    started = time.monotonic()
    manifest = target.manifest
    image, version = manifest.image, manifest.version
    offers = [offer for offer in read_offers(store, image, version) if offer.profile != opened.name]
    if len(offers) >= MAX_OFFERS:
        raise TargetRefused(f"{image} {version}", f"has deltas from {MAX_OFFERS} profiles already")
    try:
        made = maker.run()
        regions = _together([*made.regions(), *kept])
        data, used = _encode(manifest, opened, files, regions)
        intent.rely_on(ref for _, units in regions for ref in units.packs)
        replace_index(store, intent, host_delta_name(image, version, opened.name), data)
        new_bytes = new.size + sum(int(units.units["raw"].sum(dtype=np.int64)) for _, units in kept)
        begun = DeltaReport(image, version, "", new_bytes=new_bytes, profile=opened.name)
        report = _report(begun, made, regions, data, started)
        if regions:
            stored = report.stored_bytes - len(data)
            offers.append(Offer(opened.name, len(data), report.plain_bytes, stored, _sample(files, used | new.known)))
        if offers and not store.exists(hosts_name(image, version)):
            intent.add(hosts_name(image, version))  # else it stays: an index that it names may be missing
        _store_offers(store, image, version, offers)
    except BaseException:
        maker.discard()
        raise
    return report


def _together(units: Sequence[tuple[int, Units]]) -> list[tuple[int, Units]]:
    """Return the units of each region in one, by region."""
    parts = dict[int, list[Units]]()
    for region, some in units:
        parts.setdefault(region, []).append(some)
    return [(region, joined(parts[region])) for region in sorted(parts)]


def _report(
    begun: DeltaReport, made: Made, regions: Sequence[tuple[int, Units]], data: bytes, started: float
) -> DeltaReport:
    """Return a report with all units and their index, and with those that were ``made`` now."""

    def total(name: str) -> int:
        return sum(int(units.units[name].sum(dtype=np.int64)) for _, units in regions)

    return replace(
        begun,
        units=sum(len(units.units) for _, units in regions),
        content_bytes=total("raw"),
        stored_bytes=total("stored") + len(data),
        plain_bytes=total("plain"),
        packs=len({ref.digest for _, units in regions for ref in units.packs}),
        added_bytes=made.added + len(data),
        wrapped_units=made.wrapped,
        wrapped_bytes=made.wrapped_content,
        seconds=round(time.monotonic() - started, 3),
    )


def _check(manifest: Manifest, opened: OpenProfile) -> None:
    """Raise ``TargetRefused`` where deltas cannot be made."""
    if manifest.kind is not Kind.DISK:
        raise TargetRefused(
            f"{manifest.image} {manifest.version}", "is not a disk image, so host files hold none of it"
        )
    if not opened.trees:
        raise TargetRefused(opened.name, "where the trees of this profile are is not known here; name them with --tree")
    for tree in opened.trees:
        if not is_tree(tree):
            raise TargetRefused(tree, f"this tree of the profile {opened.name} is not there; name it with --tree")


# ---- what a version offers


def read_offers(store: Store, image: str, version: str) -> list[Offer]:
    """Return the profiles that a version has deltas from; none where what tells of them is missing or damaged."""
    try:
        return parse_hosts(store.read(hosts_name(image, version), limit=MAX_HOSTS))
    except (NotFound, FormatError):
        return []


def _store_offers(store: DirectoryStore, image: str, version: str, offers: list[Offer]) -> None:
    """Replace what tells of them: after the indexes that it names, before any of them is taken away."""
    if offers:
        store.put(hosts_name(image, version), encode_hosts(sorted(offers, key=lambda offer: offer.profile)))
    else:
        store.delete(hosts_name(image, version))


def _sample(files: ProfileFiles, held: NDArray[np.bool_]) -> NDArray[np.void]:
    """Return some of the chunks that hosts of the profile hold and the version needs: those whose digests are least."""
    numbers = np.flatnonzero(held)
    prefixes = files.prefixes[numbers]
    least = np.argsort(prefixes, kind="stable")[:MAX_SAMPLE]
    sample = np.zeros(len(least), dtype=SAMPLE)
    sample["prefix"], sample["length"] = prefixes[least], files.lengths[numbers[least]]
    return sample


# ---- the index


def _encode(
    manifest: Manifest, opened: OpenProfile, files: ProfileFiles, regions: list[tuple[int, Units]]
) -> tuple[bytes, NDArray[np.bool_]]:
    """Return the index (nothing for no units), and which chunks of the profile its deltas start from."""
    used = np.zeros(len(files), dtype=np.bool_)
    for _, units in regions:
        used[numbers_of(units.bases, files.first)] = True
    if not regions:
        return b"", used
    named, own = np.cumsum(used) - 1, groups(int(np.count_nonzero(used)))
    renamed = ((index, renumbered(units, files.first, named, own)) for index, units in regions)
    index = encode_index(manifest.digest(), opened.digest, renamed)
    return encode_host_delta(BaseChunks(files.lengths[used], files.prefixes[used]), index), used
