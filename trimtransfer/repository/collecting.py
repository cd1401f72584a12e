"""Collecting garbage: objects that no retained version needs go into quarantine, and are deleted when they have been
there for a grace.

Nothing that is needed is ever deleted, and nothing is moved or rewritten: clients that began before a version was
removed find all of it until the grace is over. What is needed is found out anew each time, from every retained version
of every image; whatever cannot be read there ends the run before anything is deleted. Killed at any moment, the next
run goes on.

The repository's lock keeps publishers and collectors apart. Should it not hold, as on some shared file systems, what
others change is noticed: right before each deletion the heads, catalogues, the quarantine and intents are looked at.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, Locked
from trimtransfer.names import channel_name, further_disk_of, head_name
from trimtransfer.repository.catalogues import current, save
from trimtransfer.repository.intent import clean_up, intended_names, repository_lock
from trimtransfer.repository.marking import Marker
from trimtransfer.repository.quarantine import Moment, read_quarantine, state, write_quarantine
from trimtransfer.repository.reading import image_names, require_repository
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Progress, Watch

GRACE: Final = 7 * 86_400
"""Seconds that objects without use are kept: longer than any download takes."""
_NAME: Final = r"[a-z0-9][a-z0-9._-]*"
_COLLECTED: Final = re.compile(
    rf"packs/[0-9a-f]{{2}}/[0-9a-f]{{64}}\.bin"
    rf"|images/{_NAME}/(channel-{_NAME}\.json"
    rf"|{_NAME}/(manifest|tables|locations|keys|hosts|(from|host)-{_NAME})\.bin)"
)
"""Names of what may be collected; of anything else nothing is known, so it stays."""
_ORDER: Final = ("/channel-", "/manifest.bin", "/from-", "/host-", "/hosts.bin", "/keys.bin", "/locations.bin")
"""What is deleted first: whatever leads to other objects. Then tables and packs."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Some objects: how many, and their lengths together in bytes."""

    objects: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Garbage:
        """Return the sum."""
        found = list(sizes)
        return cls(len(found), sum(found))


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection found and did: objects ``live``, ``new`` in quarantine, ``waiting`` there since earlier,
    ``rescued`` from it because they are needed again, and ``deleted`` (with ``dry_run``: that would be).

    ``grace`` in seconds; ``next_due``: seconds until the oldest that waits may be deleted (None: nothing waits).
    """

    live: Garbage
    new: Garbage
    waiting: Garbage
    rescued: Garbage
    deleted: Garbage
    grace: int
    next_due: int | None
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def collect(
    repository: str | os.PathLike[str],
    *,
    grace: int = GRACE,
    dry_run: bool = False,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> CollectReport:
    """Quarantine what no retained version needs, and delete what has been there for ``grace`` seconds.

    ``dry_run`` writes nothing and needs no lock. Time that this machine cannot vouch for - between two boots, or from
    another machine - counts for at most half the grace, whatever the clock says. Memory: 300 bytes an object, and what
    :class:`~trimtransfer.repository.marking.Marker` takes.

    Raises:
        NotFound: there is no repository.
        FormatError, IntegrityError: something that tells what is needed is damaged or missing; nothing was deleted.
        Locked: another process writes to the repository.
        Cancelled: as asked; what was deleted was due.
    """
    store = DirectoryStore(repository)
    watch = Watch(progress, cancel, "stopped; the next run goes on")
    require_repository(store)
    with space_errors(store.path), nullcontext() if dry_run else repository_lock(store, "collecting garbage"):
        if not dry_run:
            clean_up(store)
            for image in image_names(store):
                save(store, current(store, image))  # finishes what a change of a channel that died had begun
        return _Collection(store, grace, Moment.now(), watch).run(write=not dry_run, delete=not dry_run)


def quarantine_unused(store: DirectoryStore, watch: Watch) -> CollectReport:
    """Do what :func:`collect` does, but delete nothing: what a removal left begins to age. Hold the lock."""
    return _Collection(store, GRACE, Moment.now(), watch).run(write=True, delete=False)


def collected_objects(store: DirectoryStore) -> dict[str, int]:
    """Return the lengths of all objects that may be collected, by name."""
    tops = ("images", "packs")
    return {name: size for top in tops for name, size in store.list(top) if _COLLECTED.fullmatch(name)}


def needed_names(store: DirectoryStore, marker: Marker) -> set[str]:
    """Return the names of all objects that retained versions and channels need.

    Raises:
        NotFound, FormatError, IntegrityError: something that tells of them is missing or damaged.
    """
    images, needed = image_names(store), set[str]()
    _check_folders(store, images)
    for image in images:
        for needs in marker.image(image):
            needed |= needs.files
            needed.update(marker.names(needs.all_packs().tolist()))
        needed.update(channel_name(image, channel.name) for channel in current(store, image).channels)
    return needed


def _check_folders(store: DirectoryStore, images: Sequence[str]) -> None:
    """Refuse a folder with versions of which no head tells: it was lost, for no program leaves that for good."""
    written = intended_names(store)
    for name in (name for name, _ in store.list("images") if name not in written):
        folder = name.split("/")[1]
        whole = further_disk_of(folder)
        if name.endswith("/manifest.bin") and folder not in images and whole not in images:
            expected = "the head of an image that has versions (restore it, or move the folder away)"
            raise FormatError(head_name(whole or folder), 0, expected, "no such file")


class _Collection:
    """One run."""

    def __init__(self, store: DirectoryStore, grace: int, now: Moment, watch: Watch) -> None:
        self._store, self._grace, self._now, self._watch = store, grace, now, watch
        self._seen = _state_of(store)
        self._sizes = collected_objects(store)
        needed = needed_names(store, Marker(store, watch)) | intended_names(store)
        self._live = Garbage.of(size for name, size in self._sizes.items() if name in needed)
        self._known = read_quarantine(store, now)
        unused = [name for name in self._sizes if name not in needed]
        self._held = self._known.at(now, unused, grace // 2)

    def run(self, *, write: bool, delete: bool) -> CollectReport:
        """Do it; see :func:`collect`. Without ``write`` nothing is changed, without ``delete`` the quarantine only."""
        held, sizes = self._held, self._sizes
        due = sorted((name for name, age in held.ages.items() if age >= self._grace), key=_rank)
        if write:
            write_quarantine(self._store, held)
            self._delete(due if delete else [])
        waiting = held.without(set(due)) if delete or not write else held
        ages = waiting.ages.values()
        return CollectReport(
            live=self._live,
            new=Garbage.of(sizes[name] for name in waiting.ages if name not in self._known.ages),
            waiting=Garbage.of(sizes[name] for name in waiting.ages if name in self._known.ages),
            rescued=Garbage.of(sizes[name] for name in self._known.ages if name in sizes and name not in held.ages),
            deleted=Garbage.of(sizes[name] for name in held.ages if name not in waiting.ages),
            grace=self._grace,
            next_due=max(0, self._grace - max(ages)) if ages else None,
            dry_run=not delete,
        )

    def _delete(self, due: Sequence[str]) -> None:
        """Delete what is due, as long as nobody else works on the repository; what is gone leaves the quarantine."""
        seen, held = self._seen, state(self._store)
        total, done = sum(self._sizes[name] for name in due), 0
        for name in due:
            self._watch.report("delete", done, total)
            if state(self._store) != held or intended_names(self._store) or _state_of(self._store) != seen:
                raise Locked(self._store.url, "another machine, whose lock is not seen here (see `gc --help`)")
            self._store.delete(name)
            done += self._sizes[name]
        if due:
            self._watch.report("delete", total, total)
            write_quarantine(self._store, self._held.without(set(due)))


def _rank(name: str) -> tuple[int, str]:
    return next((rank for rank, part in enumerate(_ORDER) if part in name), len(_ORDER)), name


def _state_of(store: DirectoryStore) -> dict[str, tuple[int, int, int]]:
    """Return what changes when anything is published or removed, in time that grows with the number of images."""
    found = dict[str, tuple[int, int, int]]()
    images = store.path / "images"
    for folder in os.listdir(images) if images.is_dir() else ():
        for file in ("head.json", "catalogue.json"):
            path = images / folder / file
            with suppress(FileNotFoundError, NotADirectoryError):
                look = os.stat(path)
                found[f"{folder}/{file}"] = look.st_ino, look.st_size, look.st_mtime_ns
    return found
