"""Walking directory trees politely: regular files only, no symbolic link followed, one file system, bounded memory.

What cannot be read is counted and passed over. The walk holds a slice of :data:`SLICE` entries for each level of depth,
however large a directory is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from trimtransfer.index.globs import PathChooser, Scope
from trimtransfer.localfile import Guard

T = TypeVar("T")

SLICE: Final = 512
"""Entries of a directory that are taken at a time."""
_GUARDED_SLICE: Final = 64  # each may cost a round trip to a server, and all of them must fit into the guard's patience
MAX_DEPTH: Final = 128
"""Directories nested deeper are passed over: each level holds a descriptor open."""


@dataclass(slots=True)
class Skipped:
    """How many files and directories were passed over, by reason."""

    unreadable: int = 0
    """Gone, refused, or not answering."""
    private: int = 0
    """Not readable by everybody, or in a directory that not everybody may pass."""
    other_device: int = 0
    """Directories where another file system is mounted."""
    too_deep: int = 0
    excluded: int = 0
    special: int = 0
    """Neither file, directory nor symbolic link."""

    @property
    def total(self) -> int:
        """All of them together, symbolic links and special files apart."""
        return self.unreadable + self.private + self.other_device + self.too_deep


@dataclass(frozen=True, slots=True)
class Found:
    """A file that the walk came across: its name and what ``lstat`` says (times in nanoseconds)."""

    name: bytes
    device: int
    inode: int
    size: int
    mtime: int
    ctime: int
    links: int
    block_device: bool = False

    @classmethod
    def of(cls, name: bytes, found: os.stat_result) -> Found:
        """Make one from a stat result."""
        return cls(
            name,
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_nlink,
            stat.S_ISBLK(found.st_mode),
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """Some files of one directory, at most :data:`SLICE`."""

    directory: bytes
    files: list[Found]


@dataclass(slots=True)
class Walk:
    """One walk through a tree; iterate over it once for its listings, then read ``skipped``.

    ``root`` is an absolute path without symbolic links (``os.path.realpath``). A root that is a file, or a block
    device, gives one listing. With ``public`` only files that every user may read are listed. ``avoid`` are mount
    points that are not even looked at, since their file systems may not answer.
    """

    root: bytes
    chooser: PathChooser
    public: bool = False
    guard: Guard | None = None
    avoid: frozenset[bytes] = frozenset()
    skipped: Skipped = field(default_factory=Skipped)

    def __iter__(self) -> Iterator[Listing]:
        try:
            found = self._call(lambda: os.stat(self.root, follow_symlinks=False))
        except OSError:
            self.skipped.unreadable += 1
            return
        scope = self.chooser.scope(self.root)
        if scope is None:
            self.skipped.excluded += 1
        elif self.public and not (_open_to_all(found) and self._reachable()):
            self.skipped.private += 1
        elif stat.S_ISDIR(found.st_mode):
            yield from self._descend(found.st_dev, found.st_ino, scope)
        elif stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode):
            yield Listing(os.path.dirname(self.root), [Found.of(os.path.basename(self.root), found)])
        else:
            self.skipped.special += 1

    def _reachable(self) -> bool:
        """Tell whether everybody may pass through the directories above the root."""
        above = os.path.dirname(self.root)
        while True:
            try:
                if not self._call(partial(os.stat, above)).st_mode & stat.S_IXOTH:
                    return False
            except OSError:
                return False
            if above == os.path.dirname(above):
                return True
            above = os.path.dirname(above)

    def _descend(self, device: int, inode: int, scope: Scope) -> Iterator[Listing]:
        """Depth first, with a level for each directory on the way: its entries, and subdirectories yet to enter."""
        levels = self._open_level(self.root, device, inode, scope)
        try:
            while levels:
                level = levels[-1]
                if level.directories:
                    if len(levels) == MAX_DEPTH:
                        self.skipped.too_deep += len(level.directories)
                        level.directories.clear()
                    else:
                        path, child, entered = level.directories.pop()
                        levels += self._open_level(path, device, child, entered)
                elif entries := self._next_slice(level):
                    files = [found for entry in entries if (found := self._sort_in(level, device, *entry))]
                    if files:
                        yield Listing(level.path, files)
                else:
                    self._close(levels.pop())
        finally:
            for level in levels:
                self._close(level)

    def _open_level(self, path: bytes, device: int, inode: int, scope: Scope) -> list[_Level]:
        """Return the level of a directory, or none if it is not, or no longer, the one with this device and inode."""
        try:
            return [self._call(partial(_Level.open, path, (device, inode), scope))]
        except OSError:
            self.skipped.unreadable += 1
            return []

    def _next_slice(self, level: _Level) -> list[tuple[bytes, os.stat_result | None]]:
        """Return the next entries of a directory with what ``lstat`` says of them; none at its end."""
        count = SLICE if self.guard is None else _GUARDED_SLICE
        try:
            return self._call(partial(_read_entries, level, count, self.avoid))
        except OSError:
            self.skipped.unreadable += 1
            return []

    def _sort_in(self, level: _Level, device: int, name: bytes, found: os.stat_result | None) -> Found | None:
        """Return a file that is to be listed; remember a directory that is to be entered; count anything else."""
        skipped = self.skipped
        if found is None:
            skipped.unreadable += 1
        elif stat.S_ISDIR(found.st_mode):
            scope = level.scope.enter(name)
            if scope is None:
                skipped.excluded += 1
            elif found.st_dev != device:
                skipped.other_device += 1
            elif self.public and not found.st_mode & stat.S_IXOTH:
                skipped.private += 1
            else:
                level.directories.append((os.path.join(level.path, name), found.st_ino, scope))
        elif stat.S_ISREG(found.st_mode):
            if not level.scope.chooses(name):
                skipped.excluded += 1
            elif self.public and not found.st_mode & stat.S_IROTH:
                skipped.private += 1
            else:
                return Found.of(name, found)
        elif not stat.S_ISLNK(found.st_mode):
            skipped.special += 1
        return None

    def _close(self, level: _Level) -> None:
        if self.guard is None or not self.guard.dead:  # a thread that hangs may still be reading the directory
            level.close()

    def _call(self, function: Callable[[], T]) -> T:
        return function() if self.guard is None else self.guard.call(function)


@dataclass(slots=True)
class _Level:
    """A directory being walked: what is left of its entries, and the subdirectories of the last slice."""

    path: bytes
    scope: Scope
    descriptor: int
    entries: Iterator[os.DirEntry[str]]
    directories: list[tuple[bytes, int, Scope]] = field(default_factory=list)

    @classmethod
    def open(cls, path: bytes, identity: tuple[int, int], scope: Scope) -> _Level:
        """Open a directory; raises ``OSError`` if it is not the one with this (device, inode)."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != identity:
                raise OSError(errno.ESTALE, "not the directory that it was", os.fsdecode(path))
            return cls(path, scope, descriptor, os.scandir(descriptor))
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Close the directory."""
        self.entries.close()  # type: ignore[attr-defined]  # os.scandir's iterator
        os.close(self.descriptor)


def _read_entries(level: _Level, count: int, avoid: frozenset[bytes]) -> list[tuple[bytes, os.stat_result | None]]:
    """Take up to ``count`` entries; None instead of the stat result of one that is gone, or to be avoided."""
    taken: list[tuple[bytes, os.stat_result | None]] = []
    for entry in islice(level.entries, count):
        name, found = os.fsencode(entry.name), None
        if not (avoid and os.path.join(level.path, name) in avoid):
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
        taken.append((name, found))
    return taken


def _open_to_all(found: os.stat_result) -> bool:
    wanted = stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else stat.S_IROTH
    return bool(found.st_mode & wanted)
