"""Room on the disk: what making an image will take, known before anything is fetched.

A bound from the manifest alone suffices where there is plenty of room, which is the ordinary case and costs nothing.
Otherwise the tables of the regions at hand are read first: they tell zeros and what stays from what is written, so
nothing is refused that would fit. They are kept, so that costs no byte twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from trimtransfer.assembly.choice import Choice
from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.holes import hole_bytes
from trimtransfer.assembly.journal import Base
from trimtransfer.assembly.plan import Mask, Window
from trimtransfer.assembly.rawfile import free_bytes
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.resolve import read_window
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.ways import Direct, InPlace, Old, standing
from trimtransfer.disk.source import Disk
from trimtransfer.errors import NoSpace
from trimtransfer.manifest import Manifest, Region
from trimtransfer.watch import Watch

ROOM: Final = 1 << 20
"""Bytes kept free for the state and small files."""
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


def check_room(
    remote: Remote,
    tables: TableFile,
    side: SideDirectory,
    choice: Choice,
    old: Old | None,
    windows: Iterable[Sequence[Region]],
    *,
    from_parent: bool,
    watch: Watch,
) -> None:
    """Raise ``NoSpace`` if what is still to be written does not fit; ``windows`` are the regions that changed.

    Raises what reading tables raises.
    """
    if isinstance(choice.way, Direct):
        return
    todo = ~(choice.in_place | choice.copyable)
    bound, missing = _bound(remote.manifest, choice, todo), Needs(_missing_tables(remote.manifest, tables, todo))
    if shortage(side, bound + missing) is None:
        return
    if shortage(side, missing) is not None and (error := shortage(side, bound + missing)) is not None:
        raise error
    needs, instead = copied(remote.manifest, choice.copyable, old, choice.way.target.done), Needs()
    image = old.source if old is not None else None
    in_place = isinstance(choice.way, InPlace)
    base = old.image.table_at if old is not None and old.image is not None and from_parent else None
    done = 0
    for regions in windows:
        watch.report("plan", done, 0)
        done += sum(region.length for region in regions)
        _, window = read_window(remote, regions, base)
        needs += Needs.of(window, choice.way.standing(window, regions), image if in_place else None)
        if not in_place and old is not None and old.image is not None:
            instead += Needs.of(window, standing(window, regions, old), image)
    error = shortage(side, needs, instead=instead if instead.written and choice.way.target.base is Base.ZEROS else None)
    if error is not None:
        raise error


def shortage(side: SideDirectory, needs: Needs, *, instead: Needs | None = None) -> NoSpace | None:
    """Return the error for needs that the file systems at hand cannot meet, None if they can.

    ``instead`` is what writing in place would need, where that is a choice.
    """
    output, place = _existing(side.output), _existing(side.path)
    together = os.stat(output).st_dev == os.stat(place).st_dev
    needed = needs.written + ROOM + (needs.grown if together else 0)
    free = free_bytes(place)
    if needed > free:
        return NoSpace(str(side.output), needed, free, _remedy(instead, free))
    if not together and needs.grown > (free := free_bytes(output)):
        return NoSpace(str(side.output), needs.grown, free, _remedy(None, free))
    return None


def copied(manifest: Manifest, regions: Mask, old: Old | None, done: Extents) -> Needs:
    """Return what copying these regions of the old image into a new file takes, where they are not ``done``."""
    numbers = np.flatnonzero(regions)
    if old is None or not len(numbers):
        return Needs()
    starts, lengths = manifest.starts[numbers], manifest.lengths[numbers]
    left = ~done.covers(starts, lengths)
    starts, lengths = starts[left], lengths[left]
    return Needs(int(lengths.sum()) - hole_bytes(old.source, starts, lengths))


def _existing(path: Path) -> Path:
    """Return the path, or its nearest ancestor that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def _remedy(instead: Needs | None, free: int) -> str:
    remedies = ["free some space"]
    if instead is not None:
        needed = instead.written + instead.grown + ROOM
        if needed <= free:
            remedies.append(f"write in place (--write in-place), which needs {needed:,}")
    remedies.append("choose an output on another disk (-o)")
    return ", ".join(remedies[:-1]) + f", or {remedies[-1]}"


def _bound(manifest: Manifest, choice: Choice, todo: Mask) -> Needs:
    """Return what is needed at most, by the manifest alone, ``todo`` being the regions that change."""
    changed = int(manifest.lengths[todo & ~manifest.zero].sum())
    copied = int(manifest.lengths[choice.copyable].sum())
    written = max(0, changed + copied - choice.way.target.done.size)
    return Needs(written + changed // 64, changed if isinstance(choice.way, InPlace) else 0)


def _missing_tables(manifest: Manifest, tables: TableFile, todo: Mask) -> int:
    """Return the stored bytes of tables that will be read and kept."""
    rows = manifest.rows[todo[~manifest.zero]]
    lengths = zip(rows["table"], rows["full"]["length"].tolist(), strict=True)
    return sum(length for digest, length in lengths if digest.tobytes() not in tables)
