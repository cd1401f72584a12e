"""Room on the disk: what making an image will take, known before anything is fetched.

A bound from the manifest alone suffices where there is plenty of room, which is the ordinary case and costs nothing.
Otherwise the tables of the regions at hand are read first: they tell zeros and what stays from what is written, so
nothing is refused that would fit. They are kept, so that costs no byte twice.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from trimtransfer.assembly.choice import Choice
from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.holes import hole_bytes, keeps_holes
from trimtransfer.assembly.journal import Base
from trimtransfer.assembly.opening import Opened
from trimtransfer.assembly.plan import Mask, Window
from trimtransfer.assembly.rawfile import free_bytes
from trimtransfer.assembly.resolve import read_window
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.ways import Direct, InPlace, Old, standing
from trimtransfer.assembly.windows import comes_from_parent, windows
from trimtransfer.disk.source import Disk
from trimtransfer.errors import NoSpace
from trimtransfer.manifest import Manifest
from trimtransfer.watch import Watch

ROOM: Final = 1 << 20
"""Bytes kept free for the state and small files of a disk."""
_PER_RECORD: Final = 64
"""Bytes of journal, redo file and temporary indexes for one record of a table, at most."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that are ``written`` to the side directory (new file or redo file), and by which the image itself is
    ``grown`` when a redo file is applied to its holes."""

    written: int = 0
    grown: int = 0

    def __add__(self, other: Needs) -> Needs:
        return Needs(self.written + other.written, self.grown + other.grown)

    @classmethod
    def of(cls, window: Window, placed: Mask, image: Disk | None = None) -> Needs:
        """Return what the records of a window need that are not ``placed``; in place, into the file ``image``."""
        moved = ~(placed | window.zero)
        written = int(window.lengths[moved].sum(dtype=np.int64)) + _PER_RECORD * int(np.count_nonzero(moved))
        grown = 0 if image is None else hole_bytes(image, window.offsets[moved], window.lengths[moved])
        return cls(written, grown)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a disk needs on the file systems of its output and its side directory.

    ``in_place``: what is written is deleted again once the image has it. ``instead`` is what writing in place would
    need, where that is a choice.
    """

    side: SideDirectory
    needs: Needs
    in_place: bool = False
    instead: Needs | None = None


def bound(disk: Opened) -> tuple[Claim, Claim]:
    """Return what a disk needs at most, by its manifest alone, and what reading its tables takes of that."""
    choice, manifest = disk.choice, disk.remote.manifest
    if choice is None or isinstance(choice.way, Direct):
        return Claim(disk.side, Needs()), Claim(disk.side, Needs())
    todo = ~(choice.in_place | choice.copyable)
    tables = Needs(_missing_tables(manifest, disk.tables, todo))
    most = Claim(disk.side, _bound(manifest, choice, todo) + tables, isinstance(choice.way, InPlace))
    return most, replace(most, needs=tables)


def bound_unopened(side: SideDirectory, manifest: Manifest, *, in_place: bool) -> Claim:
    """Return what a disk of which nothing is known needs at most; ``in_place``: if that is how it may be written."""
    size = int(manifest.lengths[~manifest.zero].sum()) if keeps_holes(_device(side.path)[1]) else manifest.length
    tables = int(manifest.rows["full"]["length"].sum(dtype=np.int64))
    return Claim(side, Needs(size + size // 64 + tables, size if in_place else 0), in_place)


def claim(disk: Opened, watch: Watch) -> Claim:
    """Return what a disk needs to be written, by its tables. Raises what reading tables raises."""
    choice, old, manifest = disk.choice, disk.old, disk.remote.manifest
    if choice is None or isinstance(choice.way, Direct):
        return Claim(disk.side, Needs())
    if choice.way.allocated:
        return bound(disk)[0]
    needs, instead = copied(manifest, choice.copyable, old, choice.way.target.done), Needs()
    image = old.source if old is not None else None
    in_place = isinstance(choice.way, InPlace)
    known = old.image if old is not None and comes_from_parent(manifest, old) else None
    done = 0
    for regions in windows(manifest, np.flatnonzero(~(choice.in_place | choice.copyable)).tolist()):
        watch.report("plan", done, 0)
        done += sum(region.length for region in regions)
        _, window = read_window(disk.remote, regions, None if known is None else known.table_at)
        needs += Needs.of(window, choice.way.standing(window, regions), image if in_place else None)
        if not in_place and old is not None and old.image is not None:
            instead += Needs.of(window, standing(window, regions, old), image)
    choosable = instead.written and choice.way.target.base is Base.ZEROS
    return Claim(disk.side, needs, in_place, instead if choosable else None)


def shortage(claims: Sequence[Claim]) -> NoSpace | None:
    """Return the error for claims that the file systems at hand cannot meet together, None if they can.

    The claims are those of a version's disks in their order. All are written before the last takes its place first.
    """
    for place, needed in _peaks(claims).values():
        free = free_bytes(place)
        if needed > free:
            return NoSpace(_outputs(claims, place), needed, free, _remedy(claims, place))
    return None


def _peaks(claims: Sequence[Claim]) -> dict[int, tuple[Path, int]]:
    """Return, for each file system by its device number, a path on it and the most bytes that are needed there."""
    places, used = dict[int, Path](), defaultdict[int, int](int)
    for one in claims:
        device, path = _device(one.side.path)
        places.setdefault(device, path)
        used[device] += one.needs.written + ROOM
    peaks = dict(used)
    for one in reversed(claims):
        device, path = _device(one.side.output)
        if one.needs.grown:
            places.setdefault(device, path)
            used[device] += one.needs.grown
            peaks[device] = max(peaks.get(device, 0), used[device])
        if one.in_place:
            used[_device(one.side.path)[0]] -= one.needs.written
    return {device: (places[device], needed) for device, needed in peaks.items()}


def _device(path: Path) -> tuple[int, Path]:
    """Return the number of the file system on which a path is or will be, and what of the path exists."""
    path = path.absolute()
    there = next(one for one in (path, *path.parents) if one.exists())
    return os.stat(there).st_dev, there


def _outputs(claims: Sequence[Claim], place: Path) -> str:
    """Return the names of the images that need room on the file system of ``place``."""
    device = os.stat(place).st_dev
    names = [
        str(one.side.output)
        for one in claims
        if (one.needs.written and _device(one.side.path)[0] == device)
        or (one.needs.grown and _device(one.side.output)[0] == device)
    ]
    return ", ".join(names or [str(claims[0].side.output)])


def _remedy(claims: Sequence[Claim], place: Path) -> str:
    remedies = ["free some space"]
    if any(one.instead for one in claims):
        others = [one if one.instead is None else Claim(one.side, one.instead, in_place=True) for one in claims]
        peaks = _peaks(others)
        if all(needed <= free_bytes(path) for path, needed in peaks.values()):
            needed = peaks[os.stat(place).st_dev][1] if os.stat(place).st_dev in peaks else 0
            remedies.append(f"write in place (--write in-place), which needs {needed:,}")
    remedies.append("choose an output on another disk (-o)")
    return ", ".join(remedies[:-1]) + f", or {remedies[-1]}"


def copied(manifest: Manifest, regions: Mask, old: Old | None, done: Extents) -> Needs:
    """Return what copying these regions of the old image into a new file takes, where they are not ``done``."""
    numbers = np.flatnonzero(regions)
    if old is None or not len(numbers):
        return Needs()
    starts, lengths = manifest.starts[numbers], manifest.lengths[numbers]
    left = ~done.covers(starts, lengths)
    starts, lengths = starts[left], lengths[left]
    return Needs(int(lengths.sum()) - hole_bytes(old.source, starts, lengths))


def _bound(manifest: Manifest, choice: Choice, todo: Mask) -> Needs:
    """Return what is needed at most, by the manifest alone, ``todo`` being the regions that change."""
    changed = int(manifest.lengths[todo & ~manifest.zero].sum())
    copied = int(manifest.lengths[choice.copyable].sum())
    written = 0 if choice.way.allocated else max(0, changed + copied - choice.way.target.done.size)
    return Needs(written + changed // 64, changed if isinstance(choice.way, InPlace) else 0)


def _missing_tables(manifest: Manifest, tables: TableFile, todo: Mask) -> int:
    """Return the stored bytes of tables that will be read and kept."""
    rows = manifest.rows[todo[~manifest.zero]]
    lengths = zip(rows["table"], rows["full"]["length"].tolist(), strict=True)
    return sum(length for digest, length in lengths if digest.tobytes() not in tables)
