"""The further disks of a version, before the first is written: their manifests, and the room that all need together.

All disks lie written on their file systems before the first of them takes its place. So it is known whether they fit
before content of any is fetched.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import cached_property

from trimtransfer.assembly.opening import Opened, aim, at_work, opened
from trimtransfer.assembly.report import Network
from trimtransfer.assembly.request import Request, wanted_manifest
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.sources import discard_abandoned
from trimtransfer.assembly.space import Claim, Needs, bound, bound_unopened, claim, shortage
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.errors import NoSpace
from trimtransfer.manifest import Manifest
from trimtransfer.store import Store
from trimtransfer.watch import Watch


class FurtherDisk:
    """A disk that will be written after another; nothing of it is locked or open between calls."""

    def __init__(self, request: Request, store: Store, watch: Watch) -> None:
        self.request, self._store, self._watch = request, store, watch
        self.network = Network()
        """What was read of the repository for this disk so far."""

    @cached_property
    def manifest(self) -> Manifest:
        """The disk's manifest; raises what reading it raises."""
        before = network_of(self._store)
        manifest = wanted_manifest(self._store, self.request, None)
        self._count(before)
        return manifest

    def bound(self) -> Claim:
        """Return what it needs at most, without looking at its image."""
        side = self.request.side
        if self._is_there() or _is_new_device(side):
            return Claim(side, Needs())
        return bound_unopened(side, self.manifest, in_place=self.request.write != "new" and side.output.exists())

    def claim(self) -> Claim:
        """Return what it needs: it is opened as if it were to be written now, under its lock."""
        side = self.request.side
        with at_work(side, self._watch):
            if self._is_there():
                return Claim(side, Needs())
            aim(side, self.manifest)
            before = network_of(self._store)
            with (
                TableFile(side.tables) as tables,
                opened(self.request, self._store, self.manifest, tables, self._watch) as disk,
            ):
                found = claim(disk, self._watch)
            self._count(before)
            return found

    def discard_abandoned(self) -> bool:
        """Delete what earlier runs left as a seed; return whether there was anything."""
        with self.request.side.locked():
            return discard_abandoned(self.request.side)

    def _is_there(self) -> bool:
        """Tell whether the output is recorded to be this version, in the format that it shall have."""
        installed = self.request.side.believed()
        if installed is None or installed.disk_format != self.request.written_format(self.manifest):
            return False
        return installed.image_digest == self.manifest.image_digest()

    def _count(self, before: Network) -> None:
        self.network -= before - network_of(self._store)


def check_room(disk: Opened, further: Sequence[FurtherDisk], watch: Watch) -> None:
    """Raise ``NoSpace`` if a disk and those that follow it will not fit; leftovers kept as seeds go first.

    Raises what reading manifests and tables raises.
    """
    while True:
        try:
            _check(disk, further, watch)
            return
        except NoSpace:
            discarded = [discard_abandoned(disk.side), *(one.discard_abandoned() for one in further)]
            if not any(discarded):
                raise


def _check(disk: Opened, further: Sequence[FurtherDisk], watch: Watch) -> None:
    most, tables = bound(disk)
    error = shortage([most, *(one.bound() for one in further)])
    if error is None:
        return
    if shortage([tables]) is not None:
        raise error
    error = shortage([claim(disk, watch), *(one.claim() for one in further)])
    if error is not None:
        raise error


def _is_new_device(side: SideDirectory) -> bool:
    """Tell whether the output is a device without a record: it is written at once, with nothing beside it."""
    try:
        return stat.S_ISBLK(os.stat(side.output).st_mode) and side.installed() is None
    except OSError:
        return False


def network_of(store: Store) -> Network:
    """Return what a store has read over the network so far."""
    return Network(store.stats.bytes, store.stats.requests, store.stats.retries)
