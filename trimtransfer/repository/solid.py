"""Solid units of a version: deltas that start from nothing, for first downloads by whoever has nothing.

They are the deltas from a host that holds nothing (:mod:`trimtransfer.repository.hostdeltas`), stored and offered as
those are. Beside the plain packs, which serve updates and all who have parts of an image, they take nearly as much
room again.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

import numpy as np

from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, IntegrityError, NotFound, TargetRefused
from trimtransfer.hosts import encode_hosts
from trimtransfer.names import NOTHING, profile_name
from trimtransfer.profile import FILE, Profile
from trimtransfer.repository.deltas import Maker
from trimtransfer.repository.deltasmade import DeltaReport
from trimtransfer.repository.hostdeltas import read_offers, store_units, withdraw
from trimtransfer.repository.intent import Intent, clean_up, intended, repository_lock
from trimtransfer.repository.profilefiles import ProfileFiles
from trimtransfer.repository.profiles import OpenProfile
from trimtransfer.repository.reading import VersionDetails, VersionReader, further_disks
from trimtransfer.repository.signer import Keys, Signer, resign
from trimtransfer.repository.solidcontent import SolidContent
from trimtransfer.repository.solidreuse import ParentUnits
from trimtransfer.store import DirectoryStore, Store
from trimtransfer.watch import Progress, Watch

_LOG: Final = logging.getLogger("trimtransfer.repository")
SOLID_LEVEL: Final = 19
"""Level of zstd, whatever that of packs is: 16 takes 6 % more, and fewer bytes are all that these are for."""
_MOST: Final = 0.97
"""A unit is kept if it takes at most this share of what its chunks take in plain frames."""


def add_solid(
    repository: str | os.PathLike[str],
    image: str,
    *,
    version: str | None = None,
    level: int = SOLID_LEVEL,
    workers: int | None = None,
    keys: Keys | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> DeltaReport:
    """Make the solid units of ``version`` of an image (the newest by default), published already.

    Those that it has, if there are any, are replaced. ``level`` is zstd's, 1 to 22 (above 19 counts as 19). In a
    repository that is signed, ``keys`` sign.

    Raises:
        NotFound: no such image or version.
        Locked: another process writes to the repository; and what :func:`make_solid` raises.
    """
    store = DirectoryStore(repository)
    watch = Watch(progress, cancel, "stopped; nothing was added")
    target = VersionReader.open(store, image, version)
    with space_errors(store.path), repository_lock(store, f"solid units of {image} {target.manifest.version}"):
        clean_up(store)
        signer = Signer.open(store, image, keys)
        with intended(store, image, None) as intent:
            count = workers or len(os.sched_getaffinity(0))
            report, *further = (
                make_solid(store, disk, intent, level=level, workers=count, watch=watch)
                for disk in (target, *further_disks(store, target.manifest))
            )
            if signer is not None:
                signer.stage(intent, image, [target.manifest.version])
                signer.finish()
    return replace(report, disks=tuple(further))


def remove_solid(
    repository: str | os.PathLike[str], image: str, *, version: str | None = None, keys: Keys | None = None
) -> int:
    """Take the solid units of a version (the newest by default) away; return how many of its disks had some. Their
    packs are of no use then.

    Raises:
        NotFound: no such image or version.
        Locked: another process writes to the repository.
    """
    store = DirectoryStore(repository)
    target = VersionReader.open(store, image, version)
    with space_errors(store.path), repository_lock(store, f"solid units of {image} {target.manifest.version}"):
        clean_up(store)
        signer = Signer.open(store, image, keys)
        disks = [disk.manifest for disk in (target, *further_disks(store, target.manifest))]
        count = sum(withdraw(store, disk.image, disk.version, NOTHING) for disk in disks)
        if count:
            resign(store, signer, image, [target.manifest.version])
        return count


def solid_download(store: Store, details: VersionDetails) -> int | None:
    """Return what a client with nothing at hand fetches for a disk by solid units, in bytes; None if it has none."""
    offers = read_offers(store, details.image, details.version)
    hosts = len(encode_hosts(offers)) if offers else 0
    return next(
        (
            details.download_bytes + hosts + offer.length + offer.stored - offer.plain
            for offer in offers
            if offer.needs_nothing
        ),
        None,
    )


def try_solid(store: DirectoryStore, target: VersionReader, intent: Intent, **options: Any) -> DeltaReport:
    """Do what :func:`make_solid` does, with the same options; but where it cannot, there are no solid units, and the
    report says why."""
    try:
        return make_solid(store, target, intent, **options)
    except (FormatError, IntegrityError, NotFound, TargetRefused) as error:
        _LOG.warning("no solid units: %s", error)
        return DeltaReport(target.manifest.image, target.manifest.version, "", profile=NOTHING, problem=str(error))


def make_solid(
    store: DirectoryStore,
    target: VersionReader,
    intent: Intent,
    *,
    level: int = SOLID_LEVEL,
    workers: int,
    watch: Watch,
    parent: VersionReader | None = None,
) -> DeltaReport:
    """Store all content of ``target`` in solid units, and return what they are.

    Units of ``parent`` whose chunks it has, too, are taken over. Other options as for
    :func:`trimtransfer.repository.deltas.make_deltas`. Where no unit is worth it no index is written.

    Raises:
        TargetRefused: the repository has a profile of the name that stands for nothing, or the version has deltas from
            too many.
        FormatError, IntegrityError, NotFound: the repository is damaged.
        NoSpace: its disk is full. Cancelled: as asked.
    """
    if store.exists(profile_name(NOTHING)):
        raise TargetRefused(NOTHING, "is a host profile here; record it under another name and remove it")
    opened = _nothing()
    with ExitStack() as stack:
        files = stack.enter_context(ProfileFiles(opened))
        there = ParentUnits(store, target, parent) if parent is not None else None
        new = SolidContent(target, store.scratch(), parent=there, workers=workers, watch=watch)
        maker = Maker(store, new, intent, level=level, workers=workers, watch=watch, most=_MOST)
        return store_units(store, target, opened, files, new, maker, new.kept_units(), intent)


def _nothing() -> OpenProfile:
    """Return the profile of a host that holds nothing; zeros are its digest."""
    records, digests = np.zeros(0, dtype=np.uint32), np.zeros((0, DIGEST_SIZE), dtype=np.uint8)
    return OpenProfile(NOTHING, Profile.of(1, np.zeros(0, dtype=FILE), (), records, digests), bytes(DIGEST_SIZE), ())
