"""Opening a disk of any format, and reading what its guest sees.

Files that a container names (base, parent, extents) are followed only within its own directory, only to regular files,
only where the caller has stated the format, and only to a bounded depth.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, TypeAlias

from trimtransfer.disk import qcow2, vhd, vhdx, vmdk
from trimtransfer.disk.layers import FileLayer, JoinedLayer, Layer, MappedLayer, ZeroLayer
from trimtransfer.disk.recognise import FORMATS, NAMES, recognise_format
from trimtransfer.disk.reference import Reference
from trimtransfer.errors import FormatError, SourceRefused
from trimtransfer.image import ImageSource

MAX_CHAIN: Final = 16
"""Disks over one another; a chain in a circle ends here, too."""


class DiskSource:
    """An open disk: its guest's bytes, whatever the format of the file. Methods may be called from any thread.

    ``path`` of the file, ``size`` in bytes of the guest's disk, ``format`` (one of ``FORMATS``), ``detail`` for people,
    ``files`` that it is read from, the first being the one that was opened.
    """

    def __init__(self, files: list[ImageSource], top: Layer, format: str, detail: str) -> None:
        self._files, self._top = files, top
        self.path, self.is_device, self.size = files[0].path, files[0].is_device, top.size
        self.format, self.detail = format, detail
        self.files = tuple(file.path for file in files)

    def __enter__(self) -> DiskSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DiskSource({str(self.path)!r}, {self.format}, {self.size:,} bytes)"

    def close(self) -> None:
        """Close the files; harmless when closed already."""
        for file in self._files:
            file.close()

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` with the guest's bytes from ``offset`` on.

        Raises:
            FormatError: the file breaks its format's rules.
            SourceRefused: it is not certain what the guest sees.
            SourceChanged: a file shrank since it was opened.
            ValueError: the range is not within the disk.
        """
        view = memoryview(buffer).cast("B")
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"bytes {offset:,} to {offset + len(view):,} of a disk of {self.size:,}")
        self._top.read_into(view, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return the guest's bytes from ``offset`` on: ``length`` of them, fewer only at the end of the disk."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        if buffer:
            self.read_into(buffer, offset)
        return bytes(buffer)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts of a range that may hold data, in order; what lies between is zeros."""
        end = min(start + length, self.size)
        return self._top.extents(start, end - start) if start < end else iter(())

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if length or times of a file are no longer those it was opened with."""
        for file in self._files:
            file.check_unchanged()


Disk: TypeAlias = ImageSource | DiskSource
"""A file's own bytes, or a guest's."""


def open_content(path: str | os.PathLike[str], format: str) -> Disk:
    """Open a file that is known to have this format; raises what :func:`open_disk` raises."""
    return ImageSource(path) if format == "raw" else open_disk(path, format=format)


def open_disk(path: str | os.PathLike[str], *, format: str | None = None) -> DiskSource:
    """Open a disk image and return its guest's content.

    ``format``: one of ``FORMATS``; None: recognised by the content (a device is raw). Where it is recognised, a
    disk that depends on other files is refused: a guest may have written what was recognised.

    Raises:
        FormatError: the file is not a valid one of its format.
        SourceRefused: it cannot be read here, or not with certainty; the message says what can be done.
        OSError: it cannot be opened, or is neither a regular file nor a block device.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format {format!r}: known are {', '.join(FORMATS)}")
    with ExitStack() as undo:
        opening = _Opening(undo, follow=format is not None)
        top = opening.open(Path(path), format, depth=0)
        undo.pop_all()
        return DiskSource(opening.files, top, opening.format, opening.detail)


class _Opening:
    """One call of ``open_disk``: the files opened so far, and what the first one is."""

    def __init__(self, undo: ExitStack, *, follow: bool) -> None:
        self._undo, self._follow = undo, follow
        self.files: list[ImageSource] = []
        self.format = self.detail = ""

    def open(self, path: Path, format: str | None, *, depth: int, identity: bytes = b"") -> Layer:
        """Return the layer of a file, and of what it depends on."""
        if depth > MAX_CHAIN:
            raise SourceRefused(str(path), f"is the end of a chain of more than {MAX_CHAIN} disks; merge some of them")
        file = self._open_file(path)
        name = str(path)
        if format is None:
            format = "raw" if file.is_device else recognise_format(file.read, file.size)
            name = f"{path} (recognised as {format}; as it is with format raw)"
        if not self.format:
            self.format = format
        layer, described = self._layer(file, format, name, depth, identity)
        if depth == 0:
            self.detail = described
        return layer

    def _open_file(self, path: Path) -> ImageSource:
        file = self._undo.enter_context(ImageSource(path))
        self.files.append(file)
        return file

    def _layer(self, file: ImageSource, format: str, name: str, depth: int, identity: bytes) -> tuple[Layer, str]:
        if format == "raw":
            return FileLayer(file, 0, file.size), ""
        if format == "vhd":
            return self._vhd(file, name, depth, identity)
        if format == "vmdk":
            return self._vmdk(file, name)
        if format == "vhdx":
            disk = vhdx.Vhdx(file.read, file.size, name)
            return MappedLayer(disk, file, None), disk.detail
        layered = qcow2.Qcow2(file.read, file.size, name)
        base = self._base(file, layered.base, name, depth)
        return MappedLayer(layered, file, base), layered.detail

    def _vhd(self, file: ImageSource, name: str, depth: int, identity: bytes) -> tuple[Layer, str]:
        footer = vhd.read_footer(file.read, file.size, name)
        if identity and footer.unique != identity:
            raise SourceRefused(name, "is not the parent that the differencing disk was made from: its id is another")
        if footer.type == vhd.FIXED:
            return FileLayer(file, 0, footer.size), "fixed"
        disk = vhd.DynamicVhd(file.read, file.size, name, footer)
        base = self._base(file, disk.base, name, depth)
        return MappedLayer(disk, file, base), disk.detail

    def _vmdk(self, file: ImageSource, name: str) -> tuple[Layer, str]:
        start = file.read(0, len(vmdk.DESCRIPTOR_MARK))
        if start == vmdk.DESCRIPTOR_MARK:
            extents = vmdk.parse_descriptor(file.read(0, vmdk.MAX_DESCRIPTOR), name)
            parts = [self._extent(file, extent, name) for extent in extents]
            return JoinedLayer(parts), f"{len(parts)} extents"
        disk = _sparse(file, name)
        if not disk.descriptor:
            raise SourceRefused(name, "is one part of a disk; name the file with the disk's descriptor")
        extents = vmdk.parse_descriptor(disk.descriptor, name)
        if len(extents) != 1 or extents[0].kind != "SPARSE" or extents[0].size != disk.size:
            raise FormatError(name, "descriptor", f"one sparse extent of {disk.size:,} bytes", extents[0])
        return MappedLayer(disk, file, None), disk.detail

    def _extent(self, file: ImageSource, extent: vmdk.Extent, name: str) -> Layer:
        if extent.kind == "ZERO":
            return ZeroLayer(extent.size)
        part = self._open_file(self._beside(file, extent.name, name))
        if extent.kind == "FLAT":
            return FileLayer(part, extent.offset, extent.size)
        disk = _sparse(part, str(part.path))
        if disk.size != extent.size:
            raise FormatError(str(part.path), 12, f"an extent of {extent.size:,} bytes", f"{disk.size:,}")
        return MappedLayer(disk, part, None)

    def _base(self, file: ImageSource, base: Reference | None, name: str, depth: int) -> Layer | None:
        if base is None:
            return None
        format = NAMES.get(base.format, base.format)
        if format not in FORMATS:
            raise SourceRefused(name, f"is based on a disk of format {base.format!r}, which is not known here")
        path = self._beside(file, base.name, name)
        return self.open(path, format, depth=depth + 1, identity=base.identity)

    def _beside(self, file: ImageSource, other: str, name: str) -> Path:
        """Return the path of a file that is named in another: a regular one in the same directory, or it is refused."""
        if not self._follow:
            raise SourceRefused(
                name, f"depends on another file, {other!r}; if that is meant, state the format (--format {self.format})"
            )
        directory = os.path.abspath(file.path.parent)
        path = os.path.normpath(os.path.join(directory, other))
        if os.path.dirname(path) != directory or "\0" in other:
            raise SourceRefused(name, f"depends on {other!r}, outside its directory; put that file beside it")
        try:
            found = os.lstat(path)
        except OSError as error:
            raise SourceRefused(name, f"depends on {other!r}, which is not beside it ({error.strerror})") from None
        if not stat.S_ISREG(found.st_mode):
            raise SourceRefused(name, f"depends on {other!r}, which is not a regular file")
        return Path(path)


def _sparse(file: ImageSource, name: str) -> vmdk.SparseExtent:
    mark = file.read(0, 4)
    if mark in vmdk.REFUSED:
        raise SourceRefused(name, f"is {vmdk.REFUSED[mark]}; convert it with: qemu-img convert, or vmkfstools -i")
    return vmdk.SparseExtent(file.read, file.size, name)
