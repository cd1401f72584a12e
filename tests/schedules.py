"""Random schedules of everything that happens to a repository: a clock that lies, processes that die, slow readers.

A :class:`World` is a repository on a simulated machine. What is done to it is done by the real functions; only the
clock is simulated, and a death is an exception after which no change reaches the file system any more.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtransfer.catalogue import Catalogue
from trimtransfer.chunk import Kind
from trimtransfer.errors import NotFound, TargetRefused
from trimtransfer.manifest import Manifest
from trimtransfer.repository import versioning
from trimtransfer.repository.audit import audit
from trimtransfer.repository.catalogues import current
from trimtransfer.repository.collecting import GRACE, collect, collected_objects, needed_names
from trimtransfer.repository.deltas import add_deltas
from trimtransfer.repository.marking import Marker
from trimtransfer.repository.publish import publish
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.quarantine import Moment
from trimtransfer.repository.reading import VersionReader, image_names, read_manifest
from trimtransfer.store import DirectoryStore

PACK_LIMIT = 16 + (512 << 10)
PIECE = 90_000
CHANGES = ("write", "fsync", "replace", "unlink", "mkdir", "ftruncate")


class Died(BaseException):
    """The process is dead."""


@contextlib.contextmanager
def dying(change: int) -> Iterator[None]:
    """Let nothing that this block does to the file system happen from its ``change``-th change on."""
    count, lock = 0, threading.Lock()
    originals = {name: getattr(os, name) for name in CHANGES}

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                if count >= change:
                    raise Died
            return original(*arguments, **options)

        return call

    try:
        for name, original in originals.items():
            setattr(os, name, mortal(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


@dataclass
class Machine:
    """Its clock, which may be set, and its uptime; ``true`` is the time that really passed."""

    true: int = 0
    clock: int = 1_700_000_000
    uptime: int = 5_000
    boot: int = 0

    def now(self) -> Moment:
        """Return what the machine believes."""
        return Moment(max(0, self.clock), f"boot {self.boot}", self.uptime)

    def pass_time(self, seconds: int) -> None:
        """Let time pass."""
        self.true, self.clock, self.uptime = self.true + seconds, self.clock + seconds, self.uptime + seconds

    def reboot(self) -> None:
        """Start again."""
        self.pass_time(60)
        self.boot, self.uptime = self.boot + 1, 20


@dataclass
class Reader:
    """A client at work: what it began with, and when."""

    manifest: Manifest
    content: bytes
    began: int


@dataclass
class World:
    """A repository, the machine it is on, what was published, and clients at work."""

    root: Path
    rnd: random.Random
    machine: Machine = field(default_factory=Machine)
    contents: dict[tuple[str, str], bytes] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    jumped: bool = False
    number: int = 0

    def __post_init__(self) -> None:
        self.store = DirectoryStore(self.root / "r")
        self.pieces = [self.rnd.randbytes(PIECE) for _ in range(9)]

    def run(self, steps: int) -> None:
        """Do something so many times, and then check that nothing was lost and nothing is left over."""
        self.publish()
        for _ in range(steps):
            act, mortal = self.rnd.choices(*zip(*self._acts(), strict=True))[0]
            self.log.append(act.__name__)
            if mortal and self.rnd.random() < 0.3:
                self._die(act)
            else:
                act()
            if act == self.collect:
                self.read()
            self._check_needed()
        self._end()

    def _acts(self) -> list[tuple[tuple[Callable[[], None], bool], int]]:
        return [
            ((self.publish, True), 5), ((self.remove, True), 4), ((self.retain, True), 2), ((self.collect, True), 6),
            ((self.channel, True), 2), ((self.add_deltas, True), 1), ((self.start_readers, False), 5),
            ((self.read, False), 3), ((self.wait, False), 5), ((self.set_clock, False), 3), ((self.reboot, False), 2),
        ]  # fmt: skip

    def _die(self, act: Callable[[], None]) -> None:
        self.log[-1] += " dies"
        with contextlib.suppress(Died), dying(self.rnd.randrange(1, 60)):
            act()

    # ---- what publishers do

    def publish(self) -> None:
        """Publish a version, often of content that was there before."""
        self.number += 1
        image, version = self.rnd.choice("aab"), f"v{self.number}"
        chosen = self.rnd.sample(self.pieces, self.rnd.randrange(3, 8))
        if self.rnd.random() < 0.3 and self.contents:
            content = self.rnd.choice(list(self.contents.values()))  # the very same packs, if they are gone or not
        else:
            content = b"".join(piece[: self.rnd.choice((PIECE, PIECE - 4096))] for piece in chosen)
        (self.root / "image").write_bytes(content)
        self.contents[image, version] = content  # if its publisher dies nobody asks for it
        channels = ["live"] if self.rnd.random() < 0.3 else []
        options: dict[str, Any] = {"deltas": self.rnd.random() < 0.3, "channels": channels, "labels": [f"l-{version}"]}
        publish(
            self.root / "r", self.root / "image", image=image, version=version, level=1, kind=Kind.DISK, workers=1,
            _pack_limit=PACK_LIMIT, **options,
        )  # fmt: skip

    def _some(self) -> Catalogue | None:
        images = image_names(self.store)
        return current(self.store, self.rnd.choice(images)) if images else None

    def remove(self) -> None:
        """Remove a version, if that may be."""
        catalogue = self._some()
        if catalogue is not None:
            with contextlib.suppress(TargetRefused):
                name = self.rnd.choice(catalogue.versions).version
                versioning.remove_versions(self.root / "r", catalogue.image, [name])

    def retain(self) -> None:
        """Keep the last ones."""
        if image_names(self.store):
            policy = versioning.Policy(last=self.rnd.randrange(1, 4))
            versioning.retain(self.root / "r", policy, dry_run=self.rnd.random() < 0.2)

    def channel(self) -> None:
        """Point a channel somewhere, or back."""
        catalogue = self._some()
        if catalogue is None:
            return
        if self.rnd.random() < 0.5:
            with contextlib.suppress(NotFound, TargetRefused):
                versioning.roll_back_channel(self.root / "r", catalogue.image, "live")
        else:
            name = self.rnd.choice(catalogue.versions).version
            versioning.point_channel(self.root / "r", catalogue.image, "live", version=name)

    def add_deltas(self) -> None:
        """Make the deltas of a pair."""
        catalogue = self._some()
        if catalogue is not None and len(catalogue.versions) > 1:
            base, target = self.rnd.sample(catalogue.versions, 2)
            pair = {"base": base.version, "version": target.version}
            add_deltas(self.root / "r", catalogue.image, level=1, workers=1, **pair)

    def collect(self) -> None:
        """Collect garbage."""
        if image_names(self.store):
            collect(self.root / "r", dry_run=self.rnd.random() < 0.1)

    # ---- what clients do

    def start_readers(self) -> None:
        """Begin to read the versions of an image that are kept."""
        catalogue = self._some()
        for entry in catalogue.versions if catalogue is not None else ():
            manifest = read_manifest(self.store, catalogue.image, entry.version, digest=entry.manifest_digest)
            content = self.contents[catalogue.image, entry.version]
            self.readers.append(Reader(manifest, content, self.machine.true))

    def read(self) -> None:
        """Read on, as long as the grace allows; whatever is read must be right."""
        self.readers = [reader for reader in self.readers if self.machine.true - reader.began < GRACE]
        for reader in self.readers:
            offset = self.rnd.randrange(len(reader.content))
            found = PublishedImage(VersionReader(self.store, reader.manifest)).read(offset, 20_000)
            assert found == reader.content[offset : offset + 20_000]

    # ---- what happens to the machine

    def wait(self) -> None:
        """Let hours or days pass."""
        self.machine.pass_time(self.rnd.choice((3_600, 86_400, 3 * 86_400, GRACE - 60)))

    def set_clock(self) -> None:
        """Set the clock, wherever."""
        self.machine.clock += self.rnd.choice((-1, 1)) * self.rnd.choice((3_600, 40 * 86_400, 3_000 * 86_400))

    def reboot(self) -> None:
        """Start again; once the clock comes up wrong."""
        self.machine.reboot()
        if not self.jumped and self.rnd.random() < 0.5:
            self.jumped = True
            self.machine.clock += 1_000 * 86_400

    # ---- what must hold

    def _check_needed(self) -> None:
        missing = needed_names(self.store, Marker(self.store)) - set(collected_objects(self.store))
        assert not {name for name in missing if "/channel-" not in name}, missing  # written next time

    def _end(self) -> None:
        self.read()
        if not image_names(self.store):
            return
        collect(self.root / "r")
        self.machine.pass_time(GRACE + 1)
        collect(self.root / "r")
        left = set(collected_objects(self.store)) - needed_names(self.store, Marker(self.store))
        assert not left, left
        report = audit(self.store, workers=1)
        assert report.damage == ()
        assert report.unreferenced == ()
        for image in image_names(self.store):
            for entry in current(self.store, image).versions:
                found = PublishedImage(VersionReader.open(self.store, image, entry.version))
                assert found.read(0, found.size) == self.contents[image, entry.version]
