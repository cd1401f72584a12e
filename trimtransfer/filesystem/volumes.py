"""The file systems of an image: of the whole of it, or of its partitions.

Nothing is guessed about. A volume with marks of several file systems, partitions that overlap, a GPT that may be an old
one, and all that is not known here have a ``problem`` instead of a file system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import FileSystem
from trimtransfer.filesystem.ext.reader import ExtFileSystem
from trimtransfer.filesystem.fat.reader import FatFileSystem
from trimtransfer.filesystem.lvm import logical_volumes
from trimtransfer.filesystem.ntfs.reader import NtfsFileSystem
from trimtransfer.filesystem.volume import Volume
from trimtransfer.filesystem.xfs.reader import XfsFileSystem
from trimtransfer.geometry import Read, marks, partitions, recognise, table_doubt

_READERS: Final[dict[str, Callable[[Volume], FileSystem]]] = {
    "ext2": ExtFileSystem,
    "ext3": ExtFileSystem,
    "ext4": ExtFileSystem,
    "FAT": FatFileSystem,
    "NTFS": NtfsFileSystem,
    "XFS": XfsFileSystem,
}


@dataclass(frozen=True, slots=True)
class Found:
    """A volume of an image: ``kind`` by its mark (empty if it has none); its file system, or the ``problem``.

    A file system may be unclean: ask its ``state``.
    """

    volume: Volume
    kind: str
    file_system: FileSystem | None
    problem: str


def find_file_systems(read: Read, size: int) -> list[Found]:
    """Return all volumes of an image of ``size`` bytes, in order; ``read`` as for ``geometry.recognise``.

    Only what is needed to open them is read.
    """
    name = recognise(read, size).name
    if name not in ("GPT", "MBR"):
        return _open(Volume(read, 0, size, "whole image"), whole=True)
    if name == "GPT" and (doubt := table_doubt(read)):
        return [Found(Volume(read, 0, size, "whole image"), "", None, doubt)]
    found: list[Found] = []
    end = 0
    table = partitions(read, size, name)
    if not table:
        return [Found(Volume(read, 0, size, "whole image"), "", None, f"its {name} has no partition")]
    for number, (start, stop) in enumerate(table, 1):
        volume = Volume(read, start, max(0, stop - start), f"partition {number}")
        following = table[number][0] if number < len(table) else stop
        if not 0 < start < stop <= size:
            found.append(Found(volume, "", None, "it does not lie within the image"))
        elif start < end or following < stop:
            found.append(Found(volume, "", None, "it overlaps another partition"))
        else:
            found += _open(volume)
        end = max(end, stop)
    return found


def _open(volume: Volume, *, whole: bool = False, logical: bool = False) -> list[Found]:
    """Open the file system of a volume, or those of the logical volumes in it; that of a ``whole`` image must not share
    it with a partition table."""

    def read(offset: int, length: int) -> bytes:
        return volume.read(volume.start + offset, max(0, min(length, volume.length - offset)))

    kinds = marks(read, volume.length)
    if not whole and "MBR" in kinds and len(kinds) > 1:
        kinds.remove("MBR")  # what a boot sector of a partition has there is code
    if len(kinds) > 1:
        return [Found(volume, "", None, f"it has the marks of {' and '.join(kinds)}")]
    kind = kinds[0] if kinds else ""
    reader = _READERS.get(kind)
    try:
        if reader is not None:
            return [Found(volume, kind, reader(volume), "")]
        if kind == "LVM2" and not logical:  # none within another
            return _open_logical(volume)
    except FormatError as error:
        return [Found(volume, kind, None, f"it cannot be read: {error}")]
    reason = f"{kind} is not read here" if kind else "it has no file system that is known here"
    return [Found(volume, kind, None, reason)]


def _open_logical(volume: Volume) -> list[Found]:
    """Open the file systems of logical volumes."""
    found: list[Found] = []
    for one in logical_volumes(volume):
        part = Volume(volume.read, volume.start + one.start, one.length, f"{volume.name}, volume {one.name}")
        found += [Found(part, "", None, one.problem)] if one.problem else _open(part, logical=True)
    return found
