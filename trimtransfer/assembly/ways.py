"""The two ways to write an image - a new file beside the old one, or in place - and the choice between them.

A way owns the file being written (``target``), tells what lies at each place before anything is written (``standing``),
shows what the image will be (``reader``), and makes it the image once that is verified (``commit``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from trimtransfer.assembly.container import container_mark
from trimtransfer.assembly.installed import InstalledImage
from trimtransfer.assembly.journal import Base, JournalKey, load_journal
from trimtransfer.assembly.partial import PartialFile, open_device, open_partial
from trimtransfer.assembly.plan import Mask, Window, same_place
from trimtransfer.assembly.rawfile import RawFile, clone, free_bytes
from trimtransfer.assembly.recovery import mark_image
from trimtransfer.assembly.redo import Redo, RedoKey, apply, is_applied, read_header
from trimtransfer.assembly.side import FileState, Installed, SideDirectory, sync_directory
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.verify import Readable, right_records
from trimtransfer.disk.layout import Layout
from trimtransfer.disk.source import Disk, open_content, open_disk
from trimtransfer.errors import FormatError, NoSpace, SourceChanged, SourceRefused, TargetRefused
from trimtransfer.image import ImageSource
from trimtransfer.manifest import Manifest, Region
from trimtransfer.watch import Watch

WriteOption: TypeAlias = Literal["auto", "new", "in-place"]


@dataclass(slots=True, eq=False)
class Old:
    """What is at the output path now: its open content, what is known of it, whether that is believed, its format."""

    source: Disk
    state: FileState
    image: InstalledImage | None
    believed: bool
    disk_format: str = "raw"

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of the version that it holds, as far as known."""
        return None if self.image is None else self.image.manifest

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if the file is no longer what it was when this run began."""
        if self.source.is_device:
            return
        found = FileState.of(os.stat(self.source.path))
        if (found.device, found.inode, found.size, found.mtime_ns, found.ctime_ns) != (
            self.state.device, self.state.inode, self.state.size, self.state.mtime_ns, self.state.ctime_ns
        ):  # fmt: skip
            raise SourceChanged(str(self.source.path), "its times or its length are others")


def open_old(side: SideDirectory, tables: TableFile) -> Old | None:
    """Open the present image, if there is one."""
    installed = side.installed()
    try:
        source, disk_format = _open_content(side.output, installed)
    except FileNotFoundError:
        return None
    found = os.stat(side.output)
    known = installed is not None and installed.disk_format == disk_format
    manifest = side.read_manifest(side.manifest, installed.manifest_digest) if installed is not None and known else None
    image = None if manifest is None else InstalledImage(source, manifest, tables, side.path)
    believed = image is not None and installed is not None and installed.file.believed(found)
    return Old(source, FileState.of(found), image, believed, disk_format)


def _open_content(path: Path, installed: Installed | None) -> tuple[Disk, str]:
    """Open an image and return its format, as recorded; one that is no such container any more is the file it is."""
    if installed is not None and installed.disk_format != "raw":
        with contextlib.suppress(FormatError, SourceRefused), ExitStack() as undo:
            disk = undo.enter_context(open_disk(path, format=installed.disk_format))
            for _ in disk.extents(0, disk.size):
                pass  # every table is looked at, so what is read later can be relied on
            undo.pop_all()
            return disk, installed.disk_format
    return ImageSource(path), "raw"


def standing(window: Window, regions: Sequence[Region], old: Old | None) -> Mask:
    """Return which records of a window are right in a copy of the ``old`` image (None: in a file of zeros).

    What the old version's tables do not tell is read.
    """
    if old is None or old.image is None:
        return window.zero.copy()
    return standing_in(old.image, old.source, window, regions)


def standing_in(image: InstalledImage, source: Readable, window: Window, regions: Sequence[Region]) -> Mask:
    """Return which records of a window are right in ``source``, the content of ``image``; what its tables do not tell
    is read."""
    mask = np.zeros(len(window), dtype=np.bool_)
    unknown: list[slice] = []
    for row, region in enumerate(regions):
        records = slice(int(window.first[row]), int(window.first[row + 1]))
        table = image.table_at(region.start)
        if table is not None:
            mask[records] = same_place(window, row, region.start, table)
        elif region.start >= source.size:
            mask[records] = window.zero[records]
        else:
            unknown.append(records)
    if unknown:
        looked = right_records(source, window, regions)
        for records in unknown:
            mask[records] = looked[records]
    return mask


class Way(ABC):
    """What both ways share. ``base`` says how far the content under the writes is known."""

    wrote: str

    def __init__(self, side: SideDirectory, manifest: Manifest, old: Old | None, target: PartialFile | Redo) -> None:
        self.side, self.manifest, self.old, self.target = side, manifest, old, target

    @property
    def allocated(self) -> bool:
        """Whether what is written has its room on the disk already."""
        return isinstance(self.target, PartialFile) and self.target.allocated

    def standing(self, window: Window, regions: Sequence[Region]) -> Mask:
        """Return which records of a window are right at their place already (bool, one per record)."""
        done = self.target.done.covers(window.offsets, window.lengths)
        if self.target.base is Base.UNKNOWN:
            return done | self.looked_at(window, regions)
        return done | standing(window, regions, self.old if self.target.base is Base.OLD else None)

    def looked_at(self, window: Window, regions: Sequence[Region]) -> Mask:
        """Return the same by reading every record, whatever is recorded."""
        with self.reader() as source:
            return right_records(source, window, regions)

    @abstractmethod
    def reader(self) -> AbstractContextManager[Readable]:
        """Open what the image will be."""

    def sync(self) -> None:
        """Bring everything that was written to the disk."""
        self.target.sync()

    @abstractmethod
    def commit(self, watch: Watch) -> None:
        """Make what :meth:`reader` shows, complete and verified, the image; raise ``OSError`` if that fails.

        The last moment at which ``Cancelled`` is raised is just before this cannot be undone.
        """

    def close(self) -> None:
        """Close files; what is on the disk stays, for this run's end or the next run."""
        self.target.close()


class NewFile(Way):
    """A new file in the side directory that takes the image's name at the end.

    With a ``layout`` it is a container. ``cloned``: it was just begun as a clone of the old image, so for now it holds
    what that holds.
    """

    wrote = "new"

    def __init__(self, side: SideDirectory, manifest: Manifest, old: Old | None, layout: Layout | None = None) -> None:
        key = JournalKey(manifest.digest(), manifest.length, Base.ZEROS)
        self._format = "raw" if layout is None else layout.format
        shared = None
        if layout is not None:
            key = replace(key, base_manifest=container_mark(layout))
            _remove_other(side, key)
        elif old is not None and can_clone(side, old):
            shared = old.source.path
            if old.believed and old.manifest is not None:
                key = replace(key, base=Base.OLD, base_manifest=old.manifest.digest())
            else:
                key = replace(key, base=Base.UNKNOWN)
        self.cloned = shared is not None and not side.partial.exists()
        target = open_partial(side.partial, side.journal, key, old=shared, layout=layout)
        super().__init__(side, manifest, old, target)

    def reader(self) -> AbstractContextManager[Readable]:
        """Open the half-written file; a container by its own tables, as whoever uses the image will."""
        return open_content(self.side.partial, self._format)

    def commit(self, watch: Watch) -> None:
        """Rename the file over the image."""
        watch.check()
        mark_image(self.side.partial, self.manifest)
        os.replace(self.side.partial, self.side.output)
        sync_directory(self.side.output.absolute().parent)


class InPlace(Way):
    """The image itself, by way of a redo file."""

    wrote = "in-place"

    def __init__(self, side: SideDirectory, manifest: Manifest, old: Old) -> None:
        _check_permission(side.output)
        self._image = RawFile(side.output, writable=False)
        try:
            if self._image.is_device and self._image.size < manifest.length:
                raise TargetRefused(str(side.output), f"has {self._image.size:,} bytes, {manifest.length:,} are needed")
            key = RedoKey(manifest.digest(), manifest.length, old.state.device, old.state.inode)
            redo = Redo(side.redo, self._image, key, base=Base.OLD if old.believed else Base.UNKNOWN)
        except BaseException:
            self._image.close()
            raise
        super().__init__(side, manifest, old, redo)
        self._old, self._redo = old, redo

    def reader(self) -> AbstractContextManager[Readable]:
        """Return the image as it will be."""
        return self._redo.overlay()

    def commit(self, watch: Watch) -> None:
        """Declare the redo file complete, apply it, and read back what was written."""
        self._old.check_unchanged()
        grown, free = self._redo.growth(self._old.source), free_bytes(self.side.output)
        if grown > free:  # a full disk in the midst of it would leave neither version
            raise NoSpace(str(self.side.output), grown, free)
        watch.check()
        self._redo.commit()
        with RawFile(self.side.redo) as file, RawFile(self.side.output) as image:
            apply(file, image, length=self.manifest.length, progress=watch.progress)
            if not is_applied(file, image):
                cause = "the disk does not hold what was written to it; run the same command again"
                raise OSError(errno.EIO, cause, str(self.side.output))
        mark_image(self.side.output, self.manifest)

    def close(self) -> None:
        """Close the files."""
        super().close()
        self._image.close()


class Direct(Way):
    """A block device that holds no version known to us: there is nothing to protect, so it is written at once."""

    wrote = "in-place"

    def __init__(self, side: SideDirectory, manifest: Manifest, old: Old) -> None:
        key = JournalKey(manifest.digest(), manifest.length, Base.UNKNOWN)
        if old.source.size < manifest.length:
            raise TargetRefused(str(side.output), f"has {old.source.size:,} bytes, {manifest.length:,} are needed")
        super().__init__(side, manifest, old, open_device(side.output, side.journal, key))

    def reader(self) -> AbstractContextManager[Readable]:
        """Open the device."""
        return ImageSource(self.side.output)

    def commit(self, watch: Watch) -> None:
        """The device has its content already; only that it has is not recorded yet."""
        watch.check()


def can_clone(side: SideDirectory, old: Old) -> bool:
    """Return whether files in the side directory can share blocks with the old image."""
    probe = side.path / "clone.tmp"
    if old.source.is_device or old.disk_format != "raw":
        return False
    with RawFile(probe, create=True) as file:
        probe.unlink()
        return clone(old.source.path, file)


def _remove_other(side: SideDirectory, key: JournalKey) -> None:
    """Delete a half-written file unless it is the container of ``key``: nothing of another may show through."""
    loaded = load_journal(side.journal)
    if loaded is None or (loaded[0].target, loaded[0].base_manifest) != (key.target, key.base_manifest):
        side.remove(side.partial, side.journal)


def same_regions(new: Manifest, old: Manifest) -> Mask:
    """Return which regions of ``new`` have the same content at the same place of ``old`` (bool, one per region).

    A region of zeros beyond the end of ``old`` counts: there a longer file reads as zeros.
    """
    beyond: Mask = new.zero & (new.starts >= old.length)
    if not old.region_count:
        return beyond
    at = np.minimum(np.searchsorted(old.starts, new.starts), old.region_count - 1)
    same: Mask = (old.starts[at] == new.starts) & (old.lengths[at] == new.lengths) & (old.zero[at] == new.zero)
    filled = np.flatnonzero(same & ~new.zero)
    new_row, old_row = np.cumsum(~new.zero) - 1, np.cumsum(~old.zero) - 1
    contents = new.rows["content"][new_row[filled]], old.rows["content"][old_row[at[filled]]]
    same[filled] = (contents[0] == contents[1]).all(axis=1)
    same |= beyond
    return same


def unchanged_share(manifest: Manifest, right: Mask) -> float:
    """Return which part of the content (regions of zeros apart) lies in regions that stay as they are."""
    filled = manifest.lengths[~manifest.zero]
    same = manifest.lengths[~manifest.zero & right]
    return float(same.sum()) / max(1.0, float(filled.sum()))


def _check_permission(path: os.PathLike[str]) -> None:
    """Raise ``PermissionError`` where :meth:`InPlace.commit` could not open the image, before anything is fetched.

    An image is read-only between syncs, so its owner counts as somebody who may write.
    """
    if os.stat(path).st_uid != os.geteuid() and not os.access(path, os.W_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def pending_way(side: SideDirectory, manifest: Manifest) -> str | None:
    """Return by which way (``new``, ``in-place``) an interrupted run began to write this version; None if none did."""
    target = manifest.digest()
    loaded = load_journal(side.journal) if side.partial.exists() else None
    if loaded is not None and loaded[0].target == target:
        return "new"
    if side.redo.exists():
        with RawFile(side.redo, writable=False) as file:
            header = read_header(file)
        if header is not None and header[0].target == target:
            return "in-place"
    return None
