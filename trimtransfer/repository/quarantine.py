"""Objects that nothing refers to, and for how long that has been so: what is old enough may be deleted.

They stay where they are, for clients that began before may need them. A private file lists them with their ages. Ages
grow by what this machine's uptime vouches for, whatever happens to its clock: see :func:`elapsed`. Who refers to one of
them again takes it out first, durably (:func:`rescue`).

A file that is damaged, or lost, counts for nothing: all ages begin anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trimtransfer.durable import sync_directory
from trimtransfer.errors import FormatError
from trimtransfer.fields import Fields
from trimtransfer.store import PRIVATE, DirectoryStore

FORMAT: Final = 1
_FILE: Final = "quarantine"
_MOST: Final = 1 << 30
_HEADER: Final = 1024
_RESCUED: Final = "rescued "


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: the clock's seconds since 1970, and seconds of uptime in the boot of this id ("": unknown)."""

    clock: int
    boot: str = ""
    uptime: int = 0

    @classmethod
    def now(cls) -> Moment:
        """Return the present moment."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            boot = ""
        uptime = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
        return cls(int(time.time()), boot, int(uptime))


def elapsed(then: Moment, now: Moment, most: int) -> int:
    """Return the seconds between two moments as far as they are certain.

    Within a boot the uptime tells, whatever the clock does. Else there is only the clock, which may have been wrong
    before or be wrong now: then at most ``most`` seconds count, and none if it went back.
    """
    if then.boot and then.boot == now.boot:
        return max(0, now.uptime - then.uptime)
    return max(0, min(most, now.clock - then.clock))


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Ages in seconds, by the name of the object, as they were at ``moment``."""

    moment: Moment
    ages: dict[str, int] = field(default_factory=dict)

    def at(self, now: Moment, names: Iterable[str], most: int) -> Quarantine:
        """Return it as it is ``now``, when these names are without use: known ones are older, others new."""
        passed = elapsed(self.moment, now, most)
        return Quarantine(now, {name: self.ages[name] + passed if name in self.ages else 0 for name in names})

    def without(self, names: Collection[str]) -> Quarantine:
        """Return it without some."""
        return Quarantine(self.moment, {name: age for name, age in self.ages.items() if name not in names})

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        moment = {"clock": self.moment.clock, "boot": self.moment.boot, "uptime": self.moment.uptime}
        head = json.dumps({"format": FORMAT, **moment, "objects": len(self.ages)})
        return "\n".join([head, *(f"{age} {name}" for name, age in self.ages.items()), ""]).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Quarantine:
        """Parse the file's bytes; ``FormatError``. A last line without its end was never acted upon."""
        head, *lines = data.split(b"\n")
        fields = Fields.parse("quarantine", head, _HEADER)
        fields.format(FORMAT)
        count = fields.number("objects")
        if len(lines) <= count:
            raise FormatError("quarantine", 0, f"{count} objects", f"{len(lines)} lines")
        moment = Moment(fields.number("clock"), fields.text("boot"), fields.number("uptime"))
        ages = dict(_age(line) for line in lines[:count])
        for line in lines[count:-1]:
            ages.pop(_rescued(line), None)
        return cls(moment, ages)


def _age(line: bytes) -> tuple[str, int]:
    age, _, name = line.partition(b" ")
    if not age.isdigit() or len(age) > 18 or not name or not name.isascii():
        raise FormatError("quarantine", "line", "an age and a name", repr(line[:80]))
    return name.decode("ascii"), int(age)


def _rescued(line: bytes) -> str:
    text = line.decode("ascii", "replace")
    return text[len(_RESCUED) :] if text.startswith(_RESCUED) else ""


def read_quarantine(store: DirectoryStore, now: Moment) -> Quarantine:
    """Return the repository's quarantine; an empty one where there is none, or it is damaged."""
    try:
        with open(store.path / PRIVATE / _FILE, "rb") as file:
            return Quarantine.from_bytes(file.read(_MOST))
    except (FileNotFoundError, FormatError):
        return Quarantine(now)


def write_quarantine(store: DirectoryStore, quarantine: Quarantine) -> None:
    """Replace the repository's quarantine, durably; hold its lock."""
    path = store.private(_FILE)
    staged = path.with_name(_FILE + ".new")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb", closefd=True) as file:
        file.write(quarantine.to_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_directory(path.parent)


def rescue(store: DirectoryStore, names: Collection[str]) -> int:
    """Take objects out of the quarantine, durably, before something refers to them; return how many were in it."""
    path = store.path / PRIVATE / _FILE
    if not names or not path.exists():
        return 0
    held = read_quarantine(store, Moment(0)).ages
    lines = [f"\n{_RESCUED}{name}" for name in names if name in held]
    if lines:  # each begins a line: what is before may be cut off
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, ("".join(lines) + "\n").encode("ascii"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return len(lines)


def state(store: DirectoryStore) -> tuple[int, ...]:
    """Return what changes when the quarantine's file does."""
    try:
        found = os.stat(store.path / PRIVATE / _FILE)
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
