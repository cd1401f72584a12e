"""The side directory of an image (``IMAGE.img.medv/``): what is installed, whether it is believed, and the lock.

``state.json`` says which version the image file holds and how the file looked when that was recorded. It is believed
only while the file looks exactly so; otherwise its content is hashed before it is relied on. Everything in here may be
deleted at any time: that costs time or bytes, never correctness. FORMAT.md, "Side directory".
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trimtransfer.chunk import DIGEST_SIZE, object_digest
from trimtransfer.disk.layouts import WRITABLE
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, Locked, TargetRefused
from trimtransfer.localfile import hanging_devices
from trimtransfer.manifest import Manifest
from trimtransfer.names import MAX_DISKS, check_name

SUFFIX: Final = ".medv"
RACY_NS: Final = 2_000_000_000
"""A file whose mtime is less than this before the recording is not believed: a later write within the same tick of the
file system's clock would not show."""
_FORMAT: Final = 1
_MAX_STATE: Final = 4096
_MAX_DISKS_FILE: Final = 1 << 20
"""Bytes: room for the paths of all disks that a version may have."""


@dataclass(frozen=True, slots=True)
class FileState:
    """How a file looked: numbers of :func:`os.stat`, times in nanoseconds, and when it was ``recorded``."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    recorded_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """Return the state of a file as it looks now."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, time.time_ns())

    def believed(self, found: os.stat_result) -> bool:
        """Return whether a file that looks like ``found`` must still hold what it held when this was recorded."""
        same = (self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns) == (
            found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )  # fmt: skip
        settled = self.mtime_ns + RACY_NS <= self.recorded_ns
        return same and settled and stat.S_ISREG(found.st_mode) and found.st_dev not in hanging_devices()


@dataclass(frozen=True, slots=True)
class Installed:
    """Which version an image file holds, as recorded: names, digests, how the file looked, the format of the file."""

    image: str
    version: str
    manifest_digest: bytes
    image_digest: bytes
    file: FileState
    disk_format: str = "raw"
    repository: str = ""
    """Id of the signed repository that vouched for it; none if nobody did."""

    def to_bytes(self) -> bytes:
        """Return the bytes of ``state.json``."""
        fields = {
            "format": _FORMAT,
            "image": self.image,
            "version": self.version,
            "manifest_digest": self.manifest_digest.hex(),
            "image_digest": self.image_digest.hex(),
            "disk_format": self.disk_format,
            "file": {name: getattr(self.file, name) for name in FileState.__slots__},
            **({"repository": self.repository} if self.repository else {}),
        }
        return json.dumps(fields, indent=1).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Installed:
        """Parse ``state.json``; ``FormatError`` if it is anything else."""
        try:
            fields = json.loads(data)
            file = FileState(**{name: _number(fields["file"][name]) for name in FileState.__slots__})
            manifest, image = (bytes.fromhex(fields[name]) for name in ("manifest_digest", "image_digest"))
            disk_format = fields.get("disk_format", "raw")
            good = fields["format"] == _FORMAT and len(manifest) == len(image) == DIGEST_SIZE
            repository = fields.get("repository", "")
            good = good and disk_format in ("raw", *WRITABLE) and isinstance(repository, str)
            name, version = check_name("image", fields["image"]), check_name("version", fields["version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError("state.json", 0, "a recorded state", repr(error)[:80]) from error
        if not good:
            raise FormatError("state.json", "format", _FORMAT, str(fields["format"])[:80])
        return cls(name, version, manifest, image, file, disk_format, repository)


class SideDirectory:
    """The side directory of the image ``output``; made by :meth:`locked`."""

    def __init__(self, output: Path, path: Path | None = None) -> None:
        self.output = output
        self.path = path if path is not None else default_path(output)
        self.state = self.path / "state.json"
        self.disks = self.path / "disks.json"
        self.manifest = self.path / "manifest.bin"
        self.target = self.path / "target.bin"
        self.tables = self.path / "tables.bin"
        self.journal = self.path / "journal"
        self.partial = self.path / "new.img"
        self.redo = self.path / "redo"
        self.abandoned = self.path / "abandoned.img"
        self.abandoned_redo = self.path / "abandoned.redo"
        self.abandoned_manifest = self.path / "abandoned.bin"
        self.abandoned_journal = self.path / "abandoned.journal"
        self._lock = self.path / "lock"

    def __repr__(self) -> str:
        return f"SideDirectory({str(self.path)!r})"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory if need be and hold its lock; ``Locked`` if another process does."""
        descriptor = self._lock_file(os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(errors="replace"), 0)
            yield
        finally:
            self._leave_nothing()
            os.close(descriptor)

    def installed(self) -> Installed | None:
        """Return what is recorded of the image; None if nothing is, or nothing readable."""
        data = _read_small(self.state)
        if data is None:
            return None
        with contextlib.suppress(FormatError):
            return Installed.from_bytes(data)
        return None

    def believed(self) -> Installed | None:
        """Return what is recorded of the image if the image looks as it did then."""
        installed = self.installed()
        try:
            found = os.stat(self.output)
        except OSError:
            return None
        return installed if installed is not None and installed.file.believed(found) else None

    def further(self, named: Sequence[Path], count: int) -> list[SideDirectory]:
        """Return those of the further disks of a version, whose first one's this is.

        Their outputs are the ``named`` ones, then those recorded here, then files beside this one named after it.

        Raises:
            TargetRefused: it is not known where a disk belongs.
        """
        recorded = self._recorded_disks()[len(named) :]
        known = [*named, *(self.output.parent / one if one else None for one in recorded), *[None] * count]
        outputs = [one or disk_output(self.output, number) for number, one in enumerate(known[:count], 1)]
        if self.path == default_path(self.output):
            return [SideDirectory(output) for output in outputs]
        beside = [self.path.with_name(f"{self.path.name}.disk{number}") for number in range(1, count + 1)]
        return [SideDirectory(output, path) for output, path in zip(outputs, beside, strict=True)]

    def record_disks(self, further: Sequence[SideDirectory]) -> None:
        """Record where the further disks of a version lie, as far as their names do not tell. Hold the lock."""
        recorded = self._recorded_disks()
        places = [self._place(one.output, number) for number, one in enumerate(further, 1)]
        places += recorded[len(places) :]
        if places == recorded:
            return
        data = json.dumps({"format": _FORMAT, "disks": places}, indent=1).encode("ascii") + b"\n"
        self.write(self.disks, data)

    def left_over(self, disks: int) -> list[SideDirectory]:
        """Return the further disks of the version recorded here that a version with ``disks`` of them does not have."""
        installed = self.installed() if len(self._recorded_disks()) > disks else None
        manifest = self.read_manifest(self.manifest, installed.manifest_digest) if installed is not None else None
        count = len(manifest.disks) if manifest is not None else 0
        with contextlib.suppress(TargetRefused):  # it is not known where they are
            return self.further([], count)[disks:]
        return []

    def _place(self, output: Path, number: int) -> str:
        """Return what is recorded of a disk's output: nothing for the usual one, so that a folder can be renamed."""
        with contextlib.suppress(TargetRefused):
            if output == disk_output(self.output, number):
                return ""
        output, folder = output.absolute(), self.output.absolute().parent
        return str(output.relative_to(folder) if output.is_relative_to(folder) else output)

    def _recorded_disks(self) -> list[str]:
        """Return what :meth:`record_disks` has recorded; nothing if that cannot be read."""
        data = _read_small(self.disks, _MAX_DISKS_FILE)
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            fields = json.loads(data or b"")
            disks = fields["disks"]
            if fields["format"] == _FORMAT and isinstance(disks, list) and len(disks) < MAX_DISKS:
                return [one if isinstance(one, str) and "\0" not in one else "" for one in disks]
        return []

    def read_manifest(self, path: Path, digest: bytes | None = None) -> Manifest | None:
        """Return the manifest kept in a file of this directory; None if missing, damaged, or not that of ``digest``."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if digest is not None and object_digest(data) != digest:
            return None
        with contextlib.suppress(FormatError):
            return Manifest.from_bytes(data)
        return None

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file of this directory, atomically and durably; ``NoSpace`` where the disk is full."""
        temporary = path.with_name(path.name + ".tmp")
        try:
            with space_errors(path), open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def remove(self, *paths: Path) -> None:
        """Delete files of this directory, those that exist, durably."""
        for path in paths:
            path.unlink(missing_ok=True)
        sync_directory(self.path)

    def clear_temporary(self) -> None:
        """Delete what a killed run left behind under temporary names. Hold the lock."""
        for path in self.path.glob("*.tmp"):
            path.unlink(missing_ok=True)

    def _lock_file(self, flags: int) -> int:
        """Open and lock the lock file; again if its last holder deleted it meanwhile."""
        while True:
            self._make()
            try:
                descriptor = os.open(self._lock, flags, 0o644)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), os.stat(self._lock)):
                    return descriptor
            except FileNotFoundError:
                pass
            except BlockingIOError:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise Locked(str(self.output), holder) from None
            os.close(descriptor)

    def _leave_nothing(self) -> None:
        """Delete the directory if there is nothing in it but the lock: a run that failed early."""
        with contextlib.suppress(OSError):
            if {entry.name for entry in os.scandir(self.path)} == {self._lock.name}:
                self._lock.unlink()
                self.path.rmdir()

    def _make(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(parents=self.path.parent != self.output.parent)
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode):
            raise TargetRefused(str(self.path), "is not a directory; it is needed beside the image, move it away")
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
            raise TargetRefused(str(self.path), "belongs to another user or can be written to by everybody")


def default_path(output: Path) -> Path:
    """Return the side directory of an image: beside a file, in the user's state directory for a device.

    Raises:
        TargetRefused: the path names no file at all.
    """
    if not output.name:
        raise TargetRefused(str(output), "is a directory; name a file")
    with contextlib.suppress(OSError):
        if stat.S_ISBLK(os.stat(output).st_mode):
            import platformdirs

            name = str(output.absolute()).strip("/").replace("/", "-")
            return Path(platformdirs.user_state_dir("medv")) / (name + SUFFIX)
    return output.with_name(output.name + SUFFIX)


def disk_output(first: Path, number: int) -> Path:
    """Return where a further disk belongs if nobody says so: ``desk.qcow2`` is followed by ``desk.disk1.qcow2``.

    Raises:
        TargetRefused: the first one is a device.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISBLK(os.stat(first).st_mode):
            raise TargetRefused(str(first), f"is a device; name one more output, for the version's disk {number}")
    return first.with_name(f"{first.stem}.disk{number}{first.suffix}")


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Return who wrote itself into the lock: printable text only."""
    with contextlib.suppress(OSError):
        text = os.pread(descriptor, 200, 0).decode("ascii", errors="replace")
        if text and text.isprintable():
            return text
    return "another process"


def _read_small(path: Path, most: int = _MAX_STATE) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None


def _number(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("not a whole number")
    return value
