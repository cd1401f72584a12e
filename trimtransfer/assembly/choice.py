"""Choosing how to write an image, and which regions are right already where they are or can be copied whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtransfer.assembly.holes import keeps_holes
from trimtransfer.assembly.journal import Base
from trimtransfer.assembly.plan import Mask
from trimtransfer.assembly.rawfile import free_bytes
from trimtransfer.assembly.redo import discard_redo
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.verify import Readable, wrong_regions
from trimtransfer.assembly.ways import (
    Direct,
    InPlace,
    NewFile,
    Old,
    Way,
    WriteOption,
    can_clone,
    pending_way,
    same_regions,
    unchanged_share,
)
from trimtransfer.disk.layout import Layout
from trimtransfer.errors import TargetRefused
from trimtransfer.manifest import Manifest
from trimtransfer.watch import Watch

_LOG: Final = logging.getLogger("trimtransfer.assembly")
_HALF: Final = 0.5
"""``auto`` writes in place if at least this part of the content stays where it is and nothing can be cloned."""


@dataclass(slots=True, eq=False)
class Choice:
    """A way to write, and which regions (bool, one per region) are ``in_place`` in the file being written, or
    ``copyable`` from the old image after a look at their content."""

    way: Way
    in_place: Mask
    copyable: Mask


def choose(
    write: WriteOption,
    side: SideDirectory,
    manifest: Manifest,
    old: Old | None,
    watch: Watch,
    stays: Callable[[Mask], float],
    disk_format: str = "raw",
    layout: Callable[[], Layout] | None = None,
) -> Choice | None:
    """Open the way to write ``manifest``'s image; None if the old image is that already, unknown to its side directory.

    ``stays`` estimates, for regions that changed, which part of their content stays at its place all the same.
    ``layout`` makes that of a container in the format ``disk_format``, where that is not ``raw``.

    Raises:
        TargetRefused: the output cannot be written this way.
    """
    if disk_format != "raw" or (old is not None and old.disk_format != "raw"):
        choice = _convert(write, side, manifest, old, watch, disk_format, layout)
    else:
        choice = _choose(write, side, manifest, old, watch, stays)
    if choice is None:
        _LOG.info("%s holds %s %s already", side.output, manifest.image, manifest.version)
        return None
    where = "in place" if choice.way.wrote == "in-place" else "as a new file"
    stay, copied = (int(np.count_nonzero(mask & ~manifest.zero)) for mask in (choice.in_place, choice.copyable))
    _LOG.info(
        "writing %s %s: of %d regions that are not all zeros %d stay as they are, %d are copied whole",
        side.output, where, np.count_nonzero(~manifest.zero), stay, copied,
    )  # fmt: skip
    return choice


def _choose(
    write: WriteOption,
    side: SideDirectory,
    manifest: Manifest,
    old: Old | None,
    watch: Watch,
    stays: Callable[[Mask], float],
) -> Choice | None:
    if old is None:
        return _new_file(side, manifest, None, np.zeros(manifest.region_count, dtype=np.bool_), watch)
    if old.source.is_device:
        return _device(write, side, manifest, old, watch)
    if not keeps_holes(side.path):
        return _without_holes(write, side, manifest, old, watch)
    pending = pending_way(side, manifest) if write == "auto" else None
    if write != "in-place" and pending != "in-place" and can_clone(side, old):
        known = same_regions(manifest, old.manifest) if old.manifest is not None else np.zeros_like(manifest.zero)
        return _new_file(side, manifest, old, known, watch)
    right = right_in_old(manifest, old, watch)
    if right.all() and old.source.size == manifest.length:
        old.check_unchanged()
        return None
    if write == "new" or (write == "auto" and _prefers_new(side, manifest, right, pending, stays)):
        return _new_file(side, manifest, old, right, watch)
    side.remove(side.partial, side.journal)
    return Choice(InPlace(side, manifest, old), right, np.zeros_like(right))


def _without_holes(
    write: WriteOption, side: SideDirectory, manifest: Manifest, old: Old, watch: Watch
) -> Choice | None:
    """On FAT and exFAT there is no journal and no lasting number of a file, so what was begun in place could not be
    finished after a power cut: it is always a new file."""
    if write == "in-place":
        raise TargetRefused(
            str(side.output), "cannot be written in place safely on FAT and exFAT; leave --write in-place away"
        )
    right = right_in_old(manifest, old, watch)
    if right.all() and old.source.size == manifest.length:
        old.check_unchanged()
        return None
    return _new_file(side, manifest, old, right, watch)


def _convert(
    write: WriteOption,
    side: SideDirectory,
    manifest: Manifest,
    old: Old | None,
    watch: Watch,
    disk_format: str,
    layout: Callable[[], Layout] | None,
) -> Choice | None:
    """A container, or what takes the place of one, is always written as a new file: every part has another place."""
    if old is not None and old.source.is_device:
        raise TargetRefused(str(side.output), f"is a block device, which holds a raw disk, not {disk_format}")
    if write == "in-place":
        raise TargetRefused(str(side.output), "cannot be written in place: only a raw image that stays raw can")
    right = np.zeros(manifest.region_count, dtype=np.bool_) if old is None else right_in_old(manifest, old, watch)
    if old is not None and old.disk_format == disk_format and right.all() and old.source.size == manifest.length:
        old.check_unchanged()
        return None
    return _new_file(side, manifest, old, right, watch, None if layout is None else layout())


def right_in_old(manifest: Manifest, old: Old, watch: Watch) -> Mask:
    """Return which regions the old image holds at their place: by its manifest if believed, else by hashing it."""
    if old.believed and old.manifest is not None:
        return same_regions(manifest, old.manifest)
    return right_in(old.source, manifest, watch)


def right_in(source: Readable, manifest: Manifest, watch: Watch) -> Mask:
    """Return which regions a file holds at their place, by hashing them."""
    right = np.ones(manifest.region_count, dtype=np.bool_)
    right[wrong_regions(source, manifest, range(manifest.region_count), watch, phase="scan")] = False
    return right


def prefers_new(share: float) -> bool:
    """Return whether so small a share of the content stays at its place that a new file costs no more."""
    return share < _HALF


def expected_share(manifest: Manifest, right: Mask, stays: Callable[[Mask], float]) -> float:
    """Return about which share of the content stays at its place: regions that are ``right``, and parts of others."""
    share = unchanged_share(manifest, right)
    return share + (1 - share) * stays(~right & ~manifest.zero) if prefers_new(share) else share


def _prefers_new(
    side: SideDirectory, manifest: Manifest, right: Mask, pending: str | None, stays: Callable[[Mask], float]
) -> bool:
    if pending is not None:
        return pending == "new"
    share = expected_share(manifest, right, stays)
    needed = int(manifest.lengths[~manifest.zero].sum())
    return prefers_new(share) and free_bytes(side.path) > needed


def _new_file(
    side: SideDirectory, manifest: Manifest, old: Old | None, in_old: Mask, watch: Watch, layout: Layout | None = None
) -> Choice | None:
    discard_redo(side.redo)
    way = NewFile(side, manifest, old, layout)
    try:
        nothing = np.zeros_like(in_old)
        if way.target.base is Base.ZEROS:
            return Choice(way, manifest.zero, in_old & ~manifest.zero)
        if way.target.base is Base.OLD:
            return Choice(way, in_old, nothing)
        with way.reader() as source:
            right = right_in(source, manifest, watch)
        if old is None or not way.cloned or not right.all() or old.source.size != manifest.length:
            return Choice(way, right, in_old & ~right)
        way.close()
        old.check_unchanged()  # its clone turned out to be this version already, so it is, too
        side.remove(side.partial, side.journal)
        return None
    except BaseException:
        way.close()
        raise


def _device(write: WriteOption, side: SideDirectory, manifest: Manifest, old: Old, watch: Watch) -> Choice | None:
    """A device is never believed; one that holds a version of ours is protected by a redo file, another is not."""
    if write == "new":
        raise TargetRefused(str(side.output), "is a block device and can only be written in place")
    right = right_in(old.source, manifest, watch)
    if right.all() and old.source.size >= manifest.length:
        return None
    way = InPlace(side, manifest, old) if old.manifest is not None else Direct(side, manifest, old)
    return Choice(way, right, np.zeros_like(right))
