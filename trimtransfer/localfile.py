"""Reading local files that others may change, swap, truncate or take away at any time.

Nothing but regular files is ever opened (and the block devices that a user named), symbolic links are not followed, no
read goes through a memory map (a truncated file would kill the process), and files on network or user-space file
systems are read through a :class:`Guard`, so that a dead share costs five seconds once instead of for ever.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias, TypeVar

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds after which a call into a file system that may hang is given up."""
OPEN_FILES: Final = 64
"""Descriptors that :class:`OpenFiles` keeps."""
_GUARDED_READ: Final = 1 << 20
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_MAY_HANG: Final = (
    *("9p", "afs", "autofs", "ceph", "cifs", "coda", "davfs", "fuse", "fuseblk", "gfs2", "glusterfs", "lustre"),
    *("ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
)
"""File systems whose server may be away; ``fuse.anything`` counts as ``fuse``."""


_Answers: TypeAlias = SimpleQueue[tuple[object, BaseException | None]]


class Guard:
    """Calls into a file system that may hang, made in a thread of their own and given up after ``patience`` seconds.

    After the first call that was given up every other one fails at once: a dead server does not come back because many
    ask for it. A thread that hangs stays behind until its call returns; it never touches a caller's buffer. Use it as a
    context manager, or close it, to end the thread.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._calls: SimpleQueue[tuple[Callable[[], object], _Answers] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.dead = False

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()``, or raise what it raises; ``TimeoutError`` (an ``OSError``) if it takes too long."""
        with self._lock:
            if self.dead:
                raise TimeoutError(errno.ETIMEDOUT, "the file system does not answer")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="guarded-reads", daemon=True)
                self._thread.start()
            answers: _Answers = SimpleQueue()
            self._calls.put((function, answers))
            try:
                result, error = answers.get(timeout=self._patience)
            except Empty:
                self.dead = True
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self._patience:g} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # what function() returned

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread once it is free; every call from now on fails."""
        with self._lock:
            self.dead = True
            self._calls.put(None)

    def _serve(self) -> None:
        while call := self._calls.get():
            function, answers = call
            try:
                answers.put((function(), None))
            except BaseException as error:
                answers.put((None, error))


def open_local(
    path: str | bytes,
    *,
    identity: tuple[int, int] | None = None,
    device: bool = False,
    public: bool = False,
    guard: Guard | None = None,
) -> int:
    """Open a regular file (with ``device`` a block device too) and return its descriptor.

    ``identity`` is the (device, inode) that it must have: a directory on the way may have been replaced by a link. With
    ``public`` every user must be allowed to read it. Raises ``OSError`` for anything else, also for a symbolic link, a
    FIFO, a socket.
    """
    if guard is not None:
        return guard.call(lambda: open_local(path, identity=identity, device=device, public=public))

    def check(found: os.stat_result) -> None:
        if not (stat.S_ISREG(found.st_mode) or (device and stat.S_ISBLK(found.st_mode))):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        if identity is not None and identity != (found.st_dev, found.st_ino):
            raise OSError(errno.ESTALE, "not the file that it was", os.fsdecode(path))
        if public and not found.st_mode & stat.S_IROTH:
            raise PermissionError(errno.EACCES, "not readable by every user", os.fsdecode(path))

    # A look before the open as well as after it: opening some device nodes does something.
    check(os.stat(path, follow_symlinks=False))
    descriptor = os.open(path, _FLAGS)
    try:
        check(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def size_of(descriptor: int) -> int:
    """Return the length in bytes of an open file or block device."""
    found = os.fstat(descriptor)
    return os.lseek(descriptor, 0, os.SEEK_END) if stat.S_ISBLK(found.st_mode) else found.st_size


def next_data(descriptor: int, at: int) -> int | None:
    """Return where data begins at or after ``at``; None if only a hole follows; ``at`` where holes are unknown."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        return None if error.errno == errno.ENXIO else at


def read_into(descriptor: int, buffer: memoryview, offset: int, *, guard: Guard | None = None) -> int:
    """Fill ``buffer`` with the bytes from ``offset`` on; return how many there were, fewer only at the file's end."""
    done = 0
    while done < len(buffer):
        if guard is None:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        else:
            wanted, at = min(_GUARDED_READ, len(buffer) - done), offset + done
            part = guard.call(lambda wanted=wanted, at=at: os.pread(descriptor, wanted, at))  # type: ignore[misc]
            count = len(part)
            buffer[done : done + count] = part
        if count == 0:
            break
        done += count
    return done


class OpenFiles:
    """Descriptors kept open for repeated reads, the least recently used closed first. Safe among threads."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, list[int]] = OrderedDict()  # key -> [descriptor, present users]
        self._closed = False

    def use(self, key: int, open_file: Callable[[], int], function: Callable[[int], T]) -> T:
        """Return ``function(descriptor)`` for the file ``key``, which is opened by ``open_file`` if need be."""
        entry = self._acquire(key, open_file)
        try:
            return function(entry[0])
        finally:
            with self._lock:
                entry[1] -= 1
                if self._open.get(key) is not entry and entry[1] == 0:
                    os.close(entry[0])

    def close(self) -> None:
        """Close all descriptors that are not in use; those in use are closed when their use ends."""
        with self._lock:
            self._closed = True
            for key in list(self._open):
                self._evict(key)

    def _acquire(self, key: int, open_file: Callable[[], int]) -> list[int]:
        with self._lock:
            if entry := self._open.get(key):
                self._open.move_to_end(key)
                entry[1] += 1
                return entry
        descriptor = open_file()  # not under the lock: it may take a while
        with self._lock:
            entry = self._open.get(key)
            if entry is not None:
                os.close(descriptor)
            else:
                entry = [descriptor, 0]
                if not self._closed:
                    self._open[key] = entry
                    if len(self._open) > self._limit:
                        self._evict(next(iter(self._open)))
            entry[1] += 1
            return entry

    def _evict(self, key: int) -> None:
        entry = self._open.pop(key)
        if entry[1] == 0:
            os.close(entry[0])


def look(path: str | bytes | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """Return the real path (no symbolic links in it) of what a user named, and what it is.

    Raises ``OSError`` if it is not there, and ``TimeoutError``, which is one, if its file system does not answer.
    """

    def find() -> tuple[bytes, os.stat_result]:
        real = os.path.realpath(os.fsencode(path))
        return real, os.stat(real, follow_symlinks=False)

    with Guard() as guard:
        return guard.call(find)


def hanging_mounts() -> dict[bytes, int]:
    """Return where file systems are mounted whose server may be away, with their device numbers (proc(5), mountinfo).

    Empty where the system does not tell. Nothing is asked of the file systems themselves.
    """
    found: dict[bytes, int] = {}
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            fields, _, rest = line.partition(b" - ")
            if rest.split()[0].split(b".")[0].decode("ascii", "replace") in _MAY_HANG:
                _, _, device, _, point, *_ = fields.split()
                major, _, minor = device.partition(b":")
                path = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), point)
                found[path] = os.makedev(int(major), int(minor))
    return found


def hanging_devices() -> frozenset[int]:
    """Return the device numbers of :func:`hanging_mounts`."""
    return frozenset(hanging_mounts().values())


def file_system_of(path: str | os.PathLike[str]) -> str:
    """Return the kind of file system that a path lies on, as the system names it (``ext4``, ``vfat``, ``fuseblk``);
    empty where it does not tell (proc(5), mountinfo)."""
    with suppress(OSError, ValueError, IndexError):
        device = os.stat(path).st_dev
        name = f"{os.major(device)}:{os.minor(device)}".encode()
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            fields, _, rest = line.partition(b" - ")
            if fields.split()[2] == name:
                return rest.split()[0].split(b".")[0].decode("ascii", "replace")
    return ""
