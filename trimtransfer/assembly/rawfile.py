"""Writing to image files and devices: whole writes, zeros as holes, clones, and a full disk as ``NoSpace``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from trimtransfer.durable import space_errors
from trimtransfer.errors import NoSpace, TargetRefused
from trimtransfer.localfile import size_of

_FICLONE: Final = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01  # linux/falloc.h
_ZEROS: Final = memoryview(bytes(1 << 20))
_BLOCK: Final = 4096
_MOST_BUFFERS: Final = 512  # of one pwritev; Linux takes 1024


_LONG: Final = (
    "FAT32 takes less than 4 GiB. Choose an output on another disk (-o), or a format that leaves zeros out "
    "(--format qcow2)"
)
Piece: TypeAlias = tuple[int, memoryview]
"""Offset and bytes."""


class RawFile:
    """A file or block device open for reading and (unless told otherwise) writing. Safe among threads.

    ``NoSpace`` is raised where the disk is full, ``OSError`` for everything else that fails.
    """

    def __init__(self, path: Path, *, create: bool = False, writable: bool = True) -> None:
        self.path = path
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        self.descriptor = _open_writable(path, flags | os.O_RDWR) if writable else os.open(path, flags | os.O_RDONLY)
        found = os.fstat(self.descriptor)
        self.is_device = stat.S_ISBLK(found.st_mode)
        if not (self.is_device or stat.S_ISREG(found.st_mode)):
            os.close(self.descriptor)
            raise OSError(errno.EINVAL, "neither a file nor a block device", str(path))

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Length in bytes now."""
        return size_of(self.descriptor)

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Write all of ``data`` at ``offset``."""
        with space_errors(self.path):
            self._write(offset, memoryview(data))

    def write_pieces(self, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
        """Write pieces (offset, data), neighbours in one go; return (offset, length) of what was written."""
        written: list[tuple[int, int]] = []
        with space_errors(self.path):
            at = 0
            while at < len(pieces):
                first, end = at, pieces[at][0]
                while at < len(pieces) and pieces[at][0] == end and at - first < _MOST_BUFFERS:
                    end += len(pieces[at][1])
                    at += 1
                offset = pieces[first][0]
                self._write_vector(offset, [data for _, data in pieces[first:at]], end - offset)
                written.append((offset, end - offset))
        return written

    def _write(self, offset: int, view: memoryview) -> None:
        while view:
            count = os.pwrite(self.descriptor, view, offset)
            view, offset = view[count:], offset + count

    def _write_vector(self, offset: int, buffers: list[memoryview], length: int) -> None:
        done = os.pwritev(self.descriptor, buffers, offset) if len(buffers) > 1 else 0
        if done == length:
            return
        for data in buffers:  # the rest after a short write; all of a single buffer
            skipped = min(done, len(data))
            self._write(offset + skipped, data[skipped:])
            offset, done = offset + len(data), done - skipped

    def write_sparse(self, offset: int, data: memoryview) -> None:
        """Write ``data`` into a file whose bytes there are zeros: its blocks of zeros are left out."""
        blocks = len(data) // _BLOCK
        words = np.frombuffer(data, dtype=np.uint64, count=blocks * _BLOCK // 8)
        filled = words.reshape(blocks, _BLOCK // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], filled, [False])).astype(np.int8))) * _BLOCK
        for start, end in edges.reshape(-1, 2).tolist():
            self.write(offset + start, data[start:end])
        if len(data) > blocks * _BLOCK:
            self.write(offset + blocks * _BLOCK, data[blocks * _BLOCK :])

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zeros: a hole where the system can, zeros written elsewhere."""
        self.write_zeros_at(offset, length)

    def write_zeros_at(self, place: int, length: int) -> None:
        """Do the same at a place of the file itself."""
        if length <= 0 or _punch_hole(self.descriptor, place, length):
            return
        with space_errors(self.path):
            while length:
                part = _ZEROS[: min(length, len(_ZEROS))]
                self._write(place, part)
                place, length = place + len(part), length - len(part)

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from ``offset`` on; False if the file ends before."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            if not count:
                return False
            done += count
        return True

    def resize(self, length: int) -> None:
        """Set a file's length; a device keeps its own. ``TargetRefused`` where no file can be that long."""
        if self.is_device:
            return
        try:
            with space_errors(self.path):
                os.ftruncate(self.descriptor, length)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise TargetRefused(
                str(self.path), f"its file system takes no file of {length:,} bytes; {_LONG}"
            ) from error

    def check_allocation(self, length: int) -> None:
        """Raise ``NoSpace`` where a file of this length, all of it allocated, will not fit."""
        found = os.fstat(self.descriptor)
        needed, free = length - min(found.st_blocks * 512, found.st_size), free_bytes(self.path.parent)
        if needed > free:
            remedy = "free some space, choose an output on another disk (-o), or one that can leave zeros out"
            raise NoSpace(str(self.path), needed, free, f"{remedy} (--format qcow2)")

    def sync(self) -> None:
        """Bring everything written to the disk."""
        with space_errors(self.path):
            os.fsync(self.descriptor)

    def sync_data(self) -> None:
        """Bring everything written to the disk, times apart."""
        with space_errors(self.path):
            os.fdatasync(self.descriptor)


def clone(source: Path, target: RawFile) -> bool:
    """Let the file ``target`` share all blocks of the file ``source``; False where the file system cannot do that."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(target.descriptor, _FICLONE, descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def free_bytes(path: Path) -> int:
    """Return the bytes that this user can still write to the file system of ``path``."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _open_writable(path: Path, flags: int) -> int:
    """Open a file for writing; one of ours that is marked read-only is made writable first (its owner may)."""
    try:
        return os.open(path, flags, 0o600)
    except PermissionError:
        readable = os.open(path, (flags & ~(os.O_RDWR | os.O_CREAT)) | os.O_RDONLY)
        try:
            found = os.fstat(readable)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise
            os.fchmod(readable, stat.S_IMODE(found.st_mode) | stat.S_IWUSR)
        finally:
            os.close(readable)
        return os.open(path, flags, 0o600)


@functools.cache
def _fallocate() -> Callable[..., Any] | None:
    with contextlib.suppress(OSError, AttributeError):
        function = ctypes.CDLL(None, use_errno=True).fallocate
        function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        function.restype = ctypes.c_int
        return function
    return None


def _punch_hole(descriptor: int, offset: int, length: int) -> bool:
    function = _fallocate()
    return function is not None and function(descriptor, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0
