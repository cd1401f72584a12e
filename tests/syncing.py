"""What the tests of sync share: small images with everything in them that real ones have, and a process to kill.

The images are a few MiB long, and yet have several regions: each partition that is off the block grid begins one. So
one sync takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.errors import Cancelled
from trimtransfer.head import Head
from trimtransfer.manifest import KEYS, REFS, Manifest
from trimtransfer.names import head_name, manifest_name
from trimtransfer.repository.publish import publish

SMALL_PACK = 16 + (512 << 10)
"""Smallest limit of a pack: many packs from little data."""
BLOCK = 4096


STARTS = (0, 63, 2500, 5003, 7506)
"""Sectors at which segments begin: partitions off the block grid. Small segments make small regions."""
SEGMENT_BYTES = 1_200_000


def make_images(rng: np.random.Generator, *, pieces: int = 10, tail: int = 1000, versions: int = 2) -> list[bytes]:
    """Return versions of a disk of five regions: scattered content; later versions change, move, repeat, clear some."""
    size = STARTS[-1] * 512 + SEGMENT_BYTES
    image = bytearray(size + tail)
    image[:512] = partition_table(size)
    places = [place(rng, size) for _ in range(pieces)]
    for at in places:
        put(image, at, content(rng, int(rng.integers(100_000, 300_000))))
    image[:512] = partition_table(size)
    images = [bytes(image)]
    for _ in range(versions - 1):
        image = bytearray(images[-1])
        if rng.random() < 0.5:
            image.extend(bytes(int(rng.integers(1, 200_000))))
        change(rng, image, places)
        image[:512] = partition_table(size)
        images.append(bytes(image))
    return images


def partition_table(size: int) -> bytes:
    """Return a master boot record with partitions at ``STARTS``, up to byte ``size``."""
    ends = [*STARTS[2:], size // 512]
    entries = b"".join(
        struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, end - start)
        for start, end in zip(STARTS[1:], ends, strict=True)
    )
    return bytes(446) + entries + b"\x55\xaa"


def place(rng: np.random.Generator, size: int) -> int:
    """Return a place on the block grid of some segment, clear of the ends."""
    start = STARTS[int(rng.integers(1, len(STARTS)))] * 512
    end = min(start + SEGMENT_BYTES, size) - 300_000
    return start + int(rng.integers(1, max(2, (end - start) // BLOCK))) * BLOCK


def change(rng: np.random.Generator, image: bytearray, places: list[int]) -> None:
    """Change an image in place: overwrite, move, repeat, clear, and write anew."""
    one, two, three = (places[int(n)] for n in rng.choice(len(places), 3, replace=False))
    put(image, one + 5 * BLOCK, content(rng, 50_000))
    moved = bytes(image[two : two + 200_000])
    put(image, two, bytes(200_000))
    repeated = content(rng, 80_000)
    put(image, three, repeated)
    put(image, place(rng, len(image)), repeated)
    while abs((target := place(rng, len(image))) - two) < 300_000:
        pass
    put(image, target, moved)
    put(image, len(image) - 700, content(rng, 700))


def content(rng: np.random.Generator, size: int) -> bytes:
    """Return bytes that compress to about a half and look like files of 40 KiB: chunks end where those end."""
    data = rng.integers(1, 16, size, dtype=np.uint8)
    for end in range(10 * BLOCK, size, 10 * BLOCK):
        data[end - 16 : end] = 0
    return data.tobytes()


def put(image: bytearray, at: int, data: bytes) -> None:
    """Overwrite part of an image, without changing its length."""
    data = data[: len(image) - at]
    image[at : at + len(data)] = data


def write_sparse(path: Path, data: bytes) -> None:
    """Write a file with holes for its blocks of zeros."""
    blocks = np.frombuffer(data, dtype=np.uint8, count=len(data) // BLOCK * BLOCK).reshape(-1, BLOCK).any(axis=1)
    with open(path, "wb") as file:
        for block in np.flatnonzero(blocks).tolist():
            os.pwrite(file.fileno(), data[block * BLOCK : (block + 1) * BLOCK], block * BLOCK)
        tail = len(data) % BLOCK
        if tail:
            os.pwrite(file.fileno(), data[-tail:], len(data) - tail)
        file.truncate(len(data))


def publish_all(repository: Path, images: list[bytes], *, image: str = "disk", small_packs: bool = True) -> None:
    """Publish images as versions 1, 2, ... of one image."""
    limit = {"_pack_limit": SMALL_PACK} if small_packs else {}
    source = repository.with_name(repository.name + "-source.img")
    for number, data in enumerate(images, 1):
        write_sparse(source, data)
        publish(repository, source, image=image, version=str(number), kind=Kind.DISK, level=1, **limit)  # type: ignore[arg-type]
    source.unlink()


def forget_keys(repository: Path, image: str = "disk") -> None:
    """Make the newest version one that a program published which knew no key files."""
    head = Head.from_bytes((repository / head_name(image)).read_bytes())
    path = repository / manifest_name(image, head.version)
    manifest = Manifest.from_bytes(path.read_bytes())
    files = tuple(file for file in manifest.files if file.kind != KEYS)
    numbers = np.cumsum([file.kind != KEYS for file in manifest.files]) - 1
    rows = manifest.rows.copy()
    for name in REFS:
        rows[name]["file"] = np.where(rows[name]["length"] > 0, numbers[rows[name]["file"]], 0)
    old = replace(manifest, files=files, rows=rows)
    path.write_bytes(old.to_bytes())
    size = len(old.to_bytes())
    changed = replace(head, manifest_digest=old.digest(), manifest_length=size)
    (repository / head_name(image)).write_bytes(changed.to_bytes())
    (path.parent / "keys.bin").unlink(missing_ok=True)


def leftovers(output: Path) -> set[str]:
    """Return the names in an image's side directory that a finished sync does not leave there."""
    return set(os.listdir(output.with_name(output.name + ".medv"))) - {
        "state.json",
        "manifest.bin",
        "tables.bin",
        "lock",
        "disks.json",
    }


class Place:
    """A repository with versions 1, 2, ... of an image, a cache, and an output."""

    halfway = True
    """Whether an interrupted transfer has fetched half of its content, or hardly anything."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        self.folder, self.images = folder, images
        self.repository, self.output = folder / "repository", folder / "disk.img"
        publish_all(self.repository, images)

    def sync(self, version: str | None = None, **options: Any) -> SyncReport:
        """Sync, and check everything that must hold whatever the options are."""
        options = {"output": self.output, "cache": self.folder / "cache", **options}
        report = sync(self.repository, "disk", version=version, **options)
        expected = self.images[int(report.version) - 1]
        assert report.content.size == report.length == len(expected)
        assert leftovers(Path(options["output"])) == set()
        self.check(report, Path(options["output"]), expected)
        return report

    def check(self, report: SyncReport, output: Path, expected: bytes) -> None:
        """Check that the output holds what it should."""
        assert output.read_bytes() == expected
        assert stat.S_IMODE(os.stat(output).st_mode) == 0o444

    def interrupt(self, version: str | None = None, phase: str = "fetch", **options: Any) -> None:
        """Sync and stop in the midst of fetching, or at the end of another phase.

        One connection: what arrived before is written then, and no chance or thread decides.
        """
        options = {"output": self.output, "cache": self.folder / "cache", **options}
        event, seen, last = threading.Event(), set[int](), 1
        if self.halfway:
            preview = plan(self.repository, "disk", version=version, **options)
            last += (preview.fetch_requests - preview.network.requests) // 2

        def progress(now: str, done: int, total: int) -> None:
            if now == phase and done and (phase == "fetch" or done == total):
                seen.add(done)
                if len(seen) >= last or phase != "fetch":
                    event.set()

        with pytest.raises(Cancelled, match="run the same command again"):
            sync(self.repository, "disk", version=version, connections=1, cancel=event, progress=progress, **options)


@dataclass(frozen=True)
class Ended:
    """How a call in the other process ended: ``killed``, or its result or error."""

    killed: bool
    result: Any = None
    error: str | None = None
    calls: int = 0


class Victim:
    """A process that runs syncs in forked children, which can be killed at any call into the operating system."""

    def __enter__(self) -> Victim:
        script = Path(__file__).with_name("victim.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(30)

    def sync(
        self,
        *arguments: Any,
        kill_at: int | None = None,
        cut: int | None = None,
        boot: str | None = None,
        fail: tuple[int, int, bool] | None = None,
        quick: bool = False,
        **options: Any,
    ) -> Ended:
        """Run ``sync(*arguments, **options)`` and return how it ended.

        ``kill_at``: die at that call that changes files. With ``cut`` (a seed) some writes since the last fsync are
        undone at that moment, as a power cut would. ``boot`` is the boot id that it sees. ``fail``: (call, errno,
        for good) that call fails, or all from it on. ``quick``: an HTTP store that loses no time with retries.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "arguments": [str(one) for one in arguments],
            "kill_at": kill_at,
            "cut": cut,
            "boot": boot,
            "fail": fail,
        }
        order["quick"] = quick
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        self._process.stdin.write(json.dumps({**order, "options": options}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        killed = answer["status"] == -signal.SIGKILL
        return Ended(killed, answer.get("result"), answer.get("error"), answer.get("calls", 0))
