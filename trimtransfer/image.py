"""Reading images: a raw disk image (sparse or not), any other file, or a block device.

Reads are complete or an error, holes are told apart from data where the file system can, and a file that changes
while it is read is detected: by its length and times here, by digests in whoever reads it twice.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from trimtransfer.errors import SourceChanged

_NO_DATA: Final = errno.ENXIO
"""What SEEK_DATA says when only a hole follows (lseek(2))."""
_UNSUPPORTED: Final = frozenset((errno.EINVAL, errno.ENOTSUP, errno.ESPIPE))


class Source(Protocol):
    """What is published: content of ``size`` bytes that lies in the file ``path``. Thread-safe.

    :class:`ImageSource` is the file's own bytes; ``trimtransfer.disk`` has what the guest of a disk image sees.
    """

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the content."""
        ...

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on, fewer only at the end."""
        ...

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts that may hold data, in order; what lies between is zeros."""
        ...

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if it is no longer what was opened."""
        ...


class ImageSource:
    """An open file or block device to read an image from. Its methods may be called from any thread.

    Raises ``OSError`` where it cannot be opened, or is neither a regular file nor a block device.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # O_NONBLOCK: opening a FIFO by mistake must not wait for a writer; it means nothing for files and devices.
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(self._descriptor)
            self.is_device = stat.S_ISBLK(found.st_mode)
            if not (self.is_device or stat.S_ISREG(found.st_mode)):
                raise OSError(errno.EINVAL, "neither a file nor a block device", str(self.path))
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END) if self.is_device else found.st_size
            self._state = _state(found)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ImageSource({str(self.path)!r}, {self.size:,} bytes)"

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on.

        Raises:
            SourceChanged: the file ends before: it shrank since it was opened.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                raise SourceChanged(str(self.path), f"ends at byte {offset + done:,} instead of {self.size:,}")
            done += count

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on: ``length`` of them, fewer only at the end of the image."""
        buffer = bytearray(max(0, min(length, self.size - offset)))
        self.read_into(buffer, offset)
        return bytes(buffer)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts of a range that may hold data, in order; what lies between is holes.

        Where holes cannot be told (devices, some file systems) that is the whole range.
        """
        end = start + length
        at = start
        while at < end:
            data = self._seek_data(at)
            if data is None or data >= end:
                return
            hole = min(self._seek_hole(data), end)
            yield data, hole - data
            at = hole

    def check_unchanged(self) -> None:
        """Raise ``SourceChanged`` if the file's length or times are no longer those it was opened with."""
        if self.is_device:
            found = os.lseek(self._descriptor, 0, os.SEEK_END)
            if found != self.size:
                raise SourceChanged(str(self.path), f"{found:,} bytes instead of {self.size:,}")
            return
        now = os.fstat(self._descriptor)
        if now.st_size != self.size:
            raise SourceChanged(str(self.path), f"{now.st_size:,} bytes instead of {self.size:,}")
        if _state(now) != self._state:
            raise SourceChanged(str(self.path), "its modification time is another one")

    def _seek_data(self, at: int) -> int | None:
        """Return where data begins at or after ``at``; None if only a hole follows; ``at`` where holes are unknown."""
        try:
            return os.lseek(self._descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == _NO_DATA:
                return None
            if error.errno in _UNSUPPORTED:
                return at
            raise

    def _seek_hole(self, at: int) -> int:
        """Return where the data at ``at`` ends: the next hole, or the end of the image."""
        try:
            return os.lseek(self._descriptor, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno in _UNSUPPORTED or error.errno == _NO_DATA:
                return self.size
            raise


def _state(found: os.stat_result) -> tuple[int, int, int]:
    """Return what any write to a file changes: length and times (ctime too: mtime can be set back)."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
