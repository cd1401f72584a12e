"""Making a bundle: a file (or parts of one) that holds all that machines need for some versions.

Everything is verified before it is written, and read back from the disk before the bundle gets its name. What an
interrupted run has written is kept beside it and serves the next one. The same repository and arguments give the same
bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from trimtransfer.bundle import BundleVersion, Directory
from trimtransfer.bundlestore import MAX_PARTS, BundleStore, is_bundle, part_path
from trimtransfer.chunk import object_check
from trimtransfer.durable import space_errors, sync_directory
from trimtransfer.errors import FormatError, IntegrityError, Locked, NoSpace, TargetRefused
from trimtransfer.repository.bundleparts import Spill, fetch_parts
from trimtransfer.repository.bundleplan import Contents, Planner, Wanted
from trimtransfer.store import DISK_REMEDY, Store
from trimtransfer.watch import Progress, Watch

FAT_PART: Final = (4 << 30) - (1 << 20)
"""Length of parts in bytes where a file system does not take files that are longer: FAT32 takes less than 4 GiB."""
LEAST_PART: Final = 64 << 10
_ROOM: Final = 1 << 20
_WHOLE: Final = 1 << 62
"""Length of parts where there is one only."""
_PARTIAL: Final = ".partial"
_OUTCOME: Final = "stopped; what was written is kept, run the same command again to continue"


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was made: the files; bytes in all, of packs and of metadata; what was read from the repository, and
    ``resumed_bytes``, which an interrupted run had written."""

    output: str
    files: tuple[str, ...]
    versions: tuple[BundleVersion, ...]
    length: int
    objects: int
    pack_bytes: int
    metadata_bytes: int
    read_bytes: int
    resumed_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def make_bundle(
    store: Store,
    output: str | os.PathLike[str],
    wanted: Sequence[Wanted],
    *,
    files: Sequence[str | os.PathLike[str]] = (),
    split: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> BundleReport:
    """Write versions of a repository to ``output``, or, with parts of ``split`` bytes, to ``output``.001 and so on.

    A file system that takes no file of that length gets parts anyway. With ``files`` (images that machines have, of any
    disk format), or with bases, the bundle holds only what some of these machines lack.

    Raises:
        NotFound: no such image or version.
        FormatError, IntegrityError: the repository is damaged, or the disk returns other bytes than were written.
        FetchError, AccessDenied: it could not be read. Run it again to continue.
        NoSpace: it does not fit. Locked: another process writes it.
        TargetRefused: something else than a bundle has the name. SourceRefused: a file of ``files`` cannot be read.
        Cancelled: as asked. Run it again to continue.
    """
    if split is not None and split < LEAST_PART:
        raise ValueError(f"split={split}: parts of at least {LEAST_PART} bytes")
    started = time.monotonic()
    path, watch = Path(output), Watch(progress, cancel, _OUTCOME)
    _check_output(path)
    with (
        tempfile.TemporaryDirectory(prefix="trimtransfer-") as scratch,
        Planner(store, Path(scratch), watch) as planner,
    ):
        contents = planner.plan(wanted, files)
        with _Writer(path, contents.directory.length, split) as writer:
            work = _Making(store, planner.spill, contents, writer, watch)
            directory, resumed = work.run()
            files = writer.commit(directory, work.read_back)
    return BundleReport(
        output=str(path),
        files=tuple(str(file) for file in files),
        versions=directory.versions,
        length=directory.length,
        objects=len(directory.names),
        pack_bytes=contents.pack_bytes,
        metadata_bytes=directory.length - contents.pack_bytes,
        read_bytes=store.stats.bytes,
        resumed_bytes=resumed,
        seconds=round(time.monotonic() - started, 3),
    )


def fits_in_one_file(descriptor: int, length: int) -> bool:
    """Return whether a file of this length can be on the file system of an open file: seeking that far tells."""
    try:
        os.lseek(descriptor, length, os.SEEK_SET)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG, errno.EOVERFLOW):
            return False
        raise
    return True


class _Making:
    """Fills a bundle."""

    def __init__(self, store: Store, spill: Spill, contents: Contents, writer: _Writer, watch: Watch) -> None:
        self._store, self._spill, self._contents, self._writer, self._watch = store, spill, contents, writer, watch
        self._checks = contents.directory.pieces["check"].copy()
        self._places = contents.directory.positions.tolist()
        self._numbers = {place: number for number, place in enumerate(self._places[:-1])}
        self._lock = threading.Lock()
        self._done = 0

    def run(self) -> tuple[Directory, int]:
        """Write all pieces; return the directory with their checks, and how many bytes were there before."""
        pieces, first_pack = self._contents.pieces, self._contents.first_pack
        for number in range(first_pack):
            part, span = pieces[number]
            data = part.data[span.start :][: span.length] if part.data is not None else self._spill.span(part, span)
            self._write(self._places[number], memoryview(data))
        lacking = [number for number in range(first_pack, len(pieces)) if not self._is_there(number)]
        resumed = self._done - sum(span.length for _, span in pieces[:first_pack])
        jobs = ((*pieces[number], self._places[number]) for number in lacking)
        fetch_parts(self._store, jobs, self._write, self._watch)
        rows = self._contents.directory.pieces.copy()
        rows["check"] = self._checks
        return replace(self._contents.directory, pieces=rows), resumed

    def read_back(self, bundle: BundleStore) -> None:
        """Compare what the disk holds with what was written."""
        done, total = 0, bundle.length
        for number, length in enumerate(bundle.directory.pieces["length"].tolist()):
            try:
                bundle.piece(number)
            except FormatError:
                expected = bundle.directory.pieces["check"][number].tobytes()
                raise IntegrityError(f"{bundle.url}, read back", expected, bytes(16), DISK_REMEDY) from None
            done += length
            self._watch.report("verify", done, total)

    def _is_there(self, number: int) -> bool:
        """Return whether an interrupted run has written a piece."""
        part, span = self._contents.pieces[number]
        data = self._writer.read(self._places[number], span.length)
        if data is None:
            return False
        try:
            part.check(span, data)
        except IntegrityError:
            return False
        self._note(number, data)
        return True

    def _write(self, place: int, data: memoryview) -> None:
        self._writer.write(place, data)
        self._note(self._numbers[place], data)

    def _note(self, number: int, data: memoryview) -> None:
        self._checks[number] = np.frombuffer(object_check(data), dtype=np.uint8)
        with self._lock:
            self._done += len(data)
        self._watch.report("bundle", self._done, self._contents.directory.length)


class _Writer:
    """The files of a bundle while they are written: under other names, locked."""

    def __init__(self, path: Path, length: int, split: int | None) -> None:
        self._path, self._length = path, length
        self._stack = ExitStack()
        self._files: list[int] = []
        try:
            with space_errors(path):
                self._open(split)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def write(self, place: int, data: memoryview) -> None:
        """Write bytes at a place of the bundle, across parts."""
        try:
            with space_errors(self._path):
                while data:
                    number, at = divmod(place, self._part)
                    count = os.pwrite(self._files[number], data[: self._part - at], at)
                    place, data = place + count, data[count:]
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise TargetRefused(str(self._path), "a file cannot be that long here; write parts with --split") from error

    def read(self, place: int, length: int) -> memoryview | None:
        """Return bytes that were written before; None where the files end."""
        found = bytearray()
        while len(found) < length:
            number, at = divmod(place + len(found), self._part)
            data = os.pread(self._files[number], min(length - len(found), self._part - at), at)
            if not data:
                return None
            found += data
        return memoryview(found)

    def commit(self, directory: Directory, read_back: Callable[[BundleStore], None]) -> list[Path]:
        """Write the directory, have everything read back, and give the files their names."""
        self.write(0, memoryview(directory.to_bytes()))
        for number, file in enumerate(self._files):
            os.ftruncate(file, min(self._part, self._length - number * self._part))
            with space_errors(self._path):
                os.fsync(file)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with closing(BundleStore(self._path, parts=self._partial)) as bundle:
            read_back(bundle)
        return self._rename()

    def _open(self, split: int | None) -> None:
        whole = _partial(self._path)
        self._part = split if split is not None and split < self._length else _WHOLE
        if self._part == _WHOLE:
            with tempfile.TemporaryFile(dir=self._path.absolute().parent) as probe:
                self._part = _WHOLE if fits_in_one_file(probe.fileno(), self._length) else FAT_PART
        count = -(-self._length // self._part)
        if count > MAX_PARTS:
            raise TargetRefused(str(self._path), f"takes {count:,} parts of that length; at most {MAX_PARTS} are read")
        self._partial = (
            [whole] if self._part == _WHOLE else [_partial(part_path(self._path, n + 1)) for n in range(count)]
        )
        self._files += [self._open_file(path) for path in self._partial]
        there = sum(os.fstat(file).st_blocks * 512 for file in self._files)
        found = os.statvfs(self._path.absolute().parent)
        free = found.f_bavail * found.f_frsize
        needed = max(0, self._length - there) + _ROOM
        if needed > free:
            raise NoSpace(str(self._path), needed, free, "free some space, or choose another disk")

    def _open_file(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._stack.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(str(path), "another process") from None
        return file

    def _rename(self) -> list[Path]:
        """Rename the first part last: without it there is no bundle. What an earlier one has left is deleted."""
        single = len(self._partial) == 1 and self._part == _WHOLE
        names = [self._path] if single else [part_path(self._path, n + 1) for n in range(len(self._partial))]
        old = [part_path(self._path, n + 1) for n in range(MAX_PARTS)]
        if not single:
            old[0].unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        for path, name in reversed([*zip(self._partial, names, strict=True)]):
            os.replace(path, name)
        unfinished = [_partial(self._path), *(_partial(path) for path in old)]
        for path in (*takewhile(Path.exists, old[0 if single else len(names) :]), *unfinished):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            sync_directory(self._path.absolute().parent)
        return names


def _partial(path: Path) -> Path:
    """Return the name of a file while it is written."""
    return path.with_name(path.name + _PARTIAL)


def _check_output(path: Path) -> None:
    """Refuse to write over something that is no bundle, or where there is no directory."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise TargetRefused(str(path), f"there is no directory {folder}; make it first")
    for one in (path, part_path(path, 1)):
        if (one.exists() or one.is_symlink()) and (one.is_symlink() or not one.is_file() or not is_bundle(one)):
            raise TargetRefused(str(one), "exists and is no bundle; choose another name, or delete it")
