"""Sync among servers, disks, seeds and repositories that fail or lie: the right image, or an error naming the cause.

The old image is never touched by a run that fails.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filesystems
import numpy as np
import pytest
from numpy.typing import NDArray
from servers import BadServer, Fault, Nginx, Request
from syncing import SMALL_PACK, Victim, content, leftovers, make_images, publish_all, put, write_sparse

from trimtransfer.assembly import sync as sync_module
from trimtransfer.assembly import windows
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sources import Sources
from trimtransfer.assembly.space import ROOM
from trimtransfer.assembly.sync import sync
from trimtransfer.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    NoSpace,
    NotFound,
    SourceChanged,
)
from trimtransfer.fetch.http import FetchOptions
from trimtransfer.fetch.mirrored import open_servers

CALM = FetchOptions(first_delay=0.01, max_delay=0.05, retry_after_cap=0.1, attempts=4)
QUICK = replace(CALM, stall=0.5)
"""For servers that fall silent; elsewhere a busy machine must not look like one."""


class Place:
    """A repository of two versions and an output that holds the first."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        self.folder, self.images = folder, images
        self.repository, self.output = folder / "repository", folder / "disk.img"
        publish_all(self.repository, images)
        self.sync(version="1")

    def objects(self) -> dict[str, bytes]:
        """Return everything that the repository serves."""
        files = [path for path in self.repository.rglob("*") if path.is_file() and ".trimtransfer" not in path.parts]
        return {str(path.relative_to(self.repository)): path.read_bytes() for path in files}

    def sync(self, url: str | None = None, **options: Any) -> Any:
        """Sync the output."""
        return sync(url or self.repository, "disk", output=self.output, cache=self.folder / "cache", **options)

    def check_new(self) -> None:
        """The output is the second version, and nothing is left over."""
        assert self.output.read_bytes() == self.images[1]
        assert leftovers(self.output) == set()

    def check_old(self) -> None:
        """The output is still the first version."""
        assert self.output.read_bytes() == self.images[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Plan small windows, and lose no time with retries."""
    real = sync_module.open_store
    fault = request.node.callspec.params.get("fault") if hasattr(request.node, "callspec") else None
    patience = QUICK if isinstance(fault, Fault) and fault.stall is not None else CALM

    def open_store(url: Any, **options: Any) -> Any:
        return open_servers(url, options=patience, **options) if str(url).startswith("http") else real(url, **options)

    monkeypatch.setattr(windows, "WINDOW_REGIONS", 1)
    monkeypatch.setattr(sync_module, "open_store", open_store)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Place:
    return Place(tmp_path, make_images(rng))


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as process:
        yield process


# ---- servers

FAULTS: dict[str, Fault] = {
    "200 instead of 206": Fault(ignore_range=True),
    "earlier bytes": Fault(shift=-7),
    "cut": Fault(cut=500),
    "reset": Fault(reset=True, cut=300),
    "stalled": Fault(stall=100),
    "silent": Fault(stall=-1),
    "gzip": Fault(headers={"Content-Encoding": "gzip"}),
    "chunked": Fault(chunked=True),
    "404": Fault(status=404, body=b"gone"),
    "403": Fault(status=403, body=b"no"),
    "416": Fault(status=416, body=b""),
    "429": Fault(status=429, headers={"Retry-After": "0"}, body=b""),
    "503": Fault(status=503, body=b"busy"),
    "a login page": Fault(status=200, body=b"<html>please log in</html>"),
    "a corrupt body": Fault(body=None, headers={"X-Corrupt": "yes"}),
}


def corrupting(fault: Fault, objects: dict[str, bytes], request: Request) -> Fault:
    """Return the fault, or for the corrupt body one of the right length with one byte changed."""
    data = objects.get(request.target.lstrip("/"))
    if "X-Corrupt" not in fault.headers or data is None:
        return fault
    first, last = request.range or (0, len(data) - 1)
    body = bytearray(data[first : last + 1])
    body[len(body) // 2] ^= 1
    headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if request.range else {}
    return Fault(status=206 if request.range else 200, body=bytes(body), headers=headers)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("where", ["head", "manifest", "tables", "locations", "packs"])
def test_one_fault_at_each_stage(place: Place, fault: Fault, where: str, rnd: random.Random) -> None:
    """One bad answer is survived, or is an error that names the cause; then the next run finishes."""
    objects = place.objects()
    wanted = {"head": "head.json", "manifest": "manifest.bin", "tables": "tables.bin", "locations": "locations.bin"}
    done: list[Request] = []
    turn = rnd.randrange(2) if where == "packs" else 0

    def script(request: Request, number: int) -> Fault | None:
        if wanted.get(where, "packs/") not in request.target or len(done) > turn:
            return None
        done.append(request)
        return corrupting(fault, objects, request) if len(done) > turn else None

    with BadServer(objects, script) as server:
        try:
            place.sync(server.url)
        except (FetchError, NotFound, FormatError, IntegrityError):
            # No blind retry: the first three say that asking again is no use, and heads are never asked for twice.
            assert fault.status in (403, 404, 416) or where in ("head", "manifest")
            place.check_old()
            place.sync(server.url)
        place.check_new()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_packs_that_never_come_right(place: Place, fault: Fault) -> None:
    """Every answer for a pack is bad: an error in bounded time, the old image is whole, and it can be gone on with."""
    objects = place.objects()

    def script(request: Request, number: int) -> Fault | None:
        return corrupting(fault, objects, request) if "packs/" in request.target else None

    with BadServer(objects, script) as server:
        if fault in (FAULTS["200 instead of 206"], FAULTS["chunked"]):
            place.sync(server.url)
        else:
            with pytest.raises((FetchError, IntegrityError, NotFound)) as caught:
                place.sync(server.url)
            assert "packs/" in str(caught.value)
            place.check_old()
    place.sync()
    place.check_new()


def test_a_corrupt_answer_is_asked_for_again_past_caches(place: Place) -> None:
    objects = place.objects()
    bad: list[Request] = []

    def script(request: Request, number: int) -> Fault | None:
        if "packs/" in request.target and request.get("cache-control") is None:
            bad.append(request)
            return corrupting(FAULTS["a corrupt body"], objects, request)
        return None

    with BadServer(objects, script) as server:
        place.sync(server.url)
        again = [request for request in server.requests if request.get("cache-control") == "no-cache"]
    assert bad
    assert again
    place.check_new()


def test_kills_over_tls_fetch_little_twice(
    tmp_path: Path, rng: np.random.Generator, rnd: random.Random, nginx: Nginx, victim: Victim
) -> None:
    """What all runs together fetched, counted by the server: the content once, and what was under way at each kill."""
    images = make_images(rng, pieces=14)
    publish_all(tmp_path / "repository", images)
    nginx.root.rmdir()
    (tmp_path / "repository").rename(nginx.root)
    options = {"ca_cert": nginx.ca_cert, "version": "1", "quick": True, "connections": 2}
    whole = victim.sync(nginx.url, "disk", output=tmp_path / "whole.img", **options)
    assert whole.error is None, whole.error
    for write in ("new", "in-place"):
        nginx.forget()
        output, kills = tmp_path / f"{write}.img", 0
        for _ in range(5):
            ended = victim.sync(
                nginx.url, "disk", output=output, write=write, kill_at=rnd.randrange(20, whole.calls), **options
            )
            assert ended.error is None
            kills += ended.killed
        last = victim.sync(nginx.url, "disk", output=output, write=write, **options)
        assert last.error is None
        assert output.read_bytes() == images[0]
        time.sleep(0.2)
        packs = sum(line.bytes for line in nginx.served() if "/packs/" in line.uri)
        needed = sum(path.stat().st_size for path in nginx.root.rglob("packs/*/*.bin"))
        assert packs <= needed + kills * 2 * SMALL_PACK


# ---- repositories


def damaged(data: bytes, rnd: random.Random) -> bytes:
    """Return data with one bit changed, cut, or emptied."""
    choice = rnd.randrange(4)
    if choice == 0:
        return data[: rnd.randrange(len(data))]
    at = rnd.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rnd.randrange(8))]) + data[at + 1 :]


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_any_damage_to_the_repository(place: Place, rnd: random.Random, write: str) -> None:
    """Each file of it damaged or gone: a right image or an error, and the old image as it was."""
    whole = place.objects()
    start = place.folder / "start"
    start.mkdir()
    subprocess.run(["cp", "-a", place.output, f"{place.output}.medv", start], check=True)
    for name in [name for name in sorted(whole) if "/1/manifest" not in name]:
        for data in (damaged(whole[name], rnd), damaged(whole[name], rnd), None):
            path = place.repository / name
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            try:
                place.sync(version="2", write=write)
                place.check_new()
            except (FormatError, IntegrityError, FetchError, NotFound):
                place.check_old()
            path.unlink(missing_ok=True)
            path.write_bytes(whole[name])
            place.output.unlink()
            shutil.rmtree(f"{place.output}.medv")
            subprocess.run(["cp", "-a", *start.iterdir(), place.folder], check=True)


def test_content_that_differs_from_its_digest_is_an_error_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks right, the region's digest another (AS7): the image is not switched."""
    monkeypatch.setattr(sync_module, "wrong_regions", lambda source, manifest, numbers, watch: list(numbers))
    with pytest.raises(IntegrityError, match="byte"):
        place.sync()
    place.check_old()
    monkeypatch.undo()
    place.sync()
    place.check_new()


# ---- seeds


class Liar:
    """A seed that has everything and is wrong about most of it."""

    name, category = "liar", "seed"

    def __init__(self, rnd: random.Random, mood: str, image: bytes) -> None:
        self._rnd, self._mood, self._image = rnd, mood, image
        self.asked = 0

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return some row for every chunk."""
        return np.arange(len(prefixes), dtype=np.int64)

    def read(self, row: int, buffer: memoryview) -> bool:
        """Fill the buffer with something, or not."""
        self.asked += 1
        if self._mood == "gone":
            return False
        if self._mood == "zeros":
            buffer[:] = bytes(len(buffer))
        elif self._mood == "other":
            at = self._rnd.randrange(len(self._image) - len(buffer) + 1)
            buffer[:] = self._image[at : at + len(buffer)]
        return self._rnd.random() < 0.8


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("mood", ["gone", "zeros", "other", "silent"])
def test_a_lying_seed_costs_a_fetch(
    place: Place, rnd: random.Random, mood: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = place.sync(version="2")
    place.sync(version="1")
    liar = Liar(rnd, mood, place.images[1])
    real = Sources.open
    monkeypatch.setattr(Sources, "open", lambda self, *arguments: [liar, *real(self, *arguments)])
    report = place.sync(version="2", write=write)
    place.check_new()
    assert liar.asked > 0
    assert report.rejected_chunks > 0
    assert report.content.fetched >= honest.content.fetched
    assert report.content.size == report.length


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("together", [True, False], ids=["one tree", "two seeds"])
def test_a_lying_copy_is_made_good_by_another_one(place: Place, write: str, together: bool) -> None:
    """Two copies of everything; whichever changes after the scan, nothing is fetched."""
    copies = [place.folder / "seeds" / name for name in ("one.img", "two.img")]
    seeds = [place.folder / "seeds"] if together else copies
    rejected = 0
    for number, liar in enumerate(copies):
        place.folder.joinpath("seeds").mkdir(exist_ok=True)
        for path in copies:
            write_sparse(path, place.images[1])

        def progress(phase: str, done: int, total: int, liar: Path = liar) -> None:
            if phase == "reuse":
                write_sparse(liar, place.images[1][:4096] + bytes(byte ^ 1 for byte in place.images[1][4096:]))

        output = place.folder / f"{number}.img"
        options = {"output": output, "seeds": seeds, "cache": place.folder / f"cache{number}", "progress": progress}
        report = sync(place.repository, "disk", **options, write=write)
        assert output.read_bytes() == place.images[1]
        assert report.content.fetched == 0
        assert report.content.size == report.length
        rejected += report.rejected_chunks
    assert rejected > 0


@pytest.mark.parametrize("change", ["overwritten", "truncated", "deleted", "replaced by a fifo"])
def test_a_seed_that_changes_after_it_was_scanned(place: Place, change: str) -> None:
    seed = place.folder / "seed.img"
    write_sparse(seed, place.images[1])

    def progress(phase: str, done: int, total: int) -> None:
        if phase not in ("reuse", "fetch") or not seed.exists() or seed.is_fifo():
            return
        if change == "overwritten":
            write_sparse(seed, bytes(255 - byte for byte in place.images[1][:100_000]) + place.images[0][100_000:])
        elif change == "truncated":
            os.truncate(seed, 5000)
        else:
            seed.unlink()
            if change != "deleted":
                os.mkfifo(seed)

    output = place.folder / "other.img"
    sync(place.repository, "disk", output=output, seeds=[seed], cache=place.folder / "cache", progress=progress)
    assert output.read_bytes() == place.images[1]


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_an_old_image_that_changes_meanwhile(place: Place, write: str) -> None:
    """In place that is refused; a new file is built around it."""
    changed: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "fetch" and not changed:
            changed.append(phase)
            place.output.chmod(0o644)
            with open(place.output, "r+b") as file:
                file.seek(60_000)
                file.write(b"somebody writes here")

    if write == "in-place":
        with pytest.raises(SourceChanged):
            place.sync(write=write, progress=progress)
        assert place.output.read_bytes()[60_000:60_020] == b"somebody writes here"
    else:
        place.sync(write=write, progress=progress)
    place.sync(write=write)
    place.check_new()


# ---- disks


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=lambda one: errno.errorcode[one])
def test_every_tenth_call_fails(place: Place, victim: Victim, rnd: random.Random, write: str, number: int) -> None:
    """Once, or from then on: an error, never a wrong image; when the disk is well again the next run finishes."""
    start = place.folder / "start"
    start.mkdir()
    subprocess.run(["cp", "-a", place.output, f"{place.output}.medv", start], check=True)
    arguments = (place.repository, "disk")
    total = victim.sync(*arguments, output=place.output, write=write)
    assert total.error is None
    for call in range(rnd.randrange(10), total.calls, 10):
        place.output.unlink()
        shutil.rmtree(f"{place.output}.medv")
        subprocess.run(["cp", "-a", *start.iterdir(), place.folder], check=True)
        ended = victim.sync(*arguments, output=place.output, write=write, fail=(call, number, rnd.random() < 0.5))
        assert not ended.killed
        if ended.error is None:
            place.check_new()
        elif number != errno.EIO:
            assert "NoSpace" in ended.error
        ended = victim.sync(*arguments, output=place.output, write=write)
        assert ended.error is None
        place.check_new()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB, or a skipped test where none can be mounted."""
    with filesystems.small_disk(tmp_path / "small", "6m") as folder:
        yield folder


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_a_full_disk_is_foreseen_and_gone_on_after(
    place: Place, small_disk: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = small_disk / "disk.img"
    options = {"output": output, "cache": place.folder / "cache", "write": write}
    sync(place.repository, "disk", output=output, cache=place.folder / "cache", version="1")
    filesystems.fill(small_disk, leave=ROOM + 50_000)
    seen: set[str] = set()
    with pytest.raises(NoSpace, match=r"bytes needed, .* free; free some space.* on another disk \(-o\)") as foreseen:
        sync(place.repository, "disk", progress=lambda phase, *_: seen.add(phase), **options)
    assert not {"fetch", "reuse"} & seen, "nothing was fetched or copied"
    preview = plan(place.repository, "disk", **options)
    assert len(preview.warnings) == 1
    assert "bytes needed" in preview.warnings[0]
    with monkeypatch.context() as patch:
        for module in ("sync", "space", "ways"):
            patch.setattr(f"trimtransfer.assembly.{module}.free_bytes", lambda path: 1 << 40)
        filesystems.fill(small_disk, leave=100_000)
        with pytest.raises(NoSpace, match="free some space"):
            sync(place.repository, "disk", **options)
    assert output.read_bytes() == place.images[0]
    (small_disk / "ballast").unlink()
    filesystems.fill(small_disk, leave=ROOM + 50_000)
    with pytest.raises(NoSpace) as again:  # what is there of it already is not needed again
        sync(place.repository, "disk", **options)
    assert again.value.needed is not None
    assert foreseen.value.needed is not None
    assert again.value.needed <= foreseen.value.needed
    (small_disk / "ballast").unlink()
    filesystems.fill(small_disk, leave=again.value.needed + 8192)  # what the error asks for is enough
    assert plan(place.repository, "disk", **options).warnings == ()
    sync(place.repository, "disk", **options)
    assert output.read_bytes() == place.images[1]


def test_zeros_are_no_reason_to_refuse(place: Place, small_disk: Path) -> None:
    """Regions are much longer than their content; the tables tell."""
    filled = sum(1 for at in range(0, len(place.images[1]), 4096) if any(place.images[1][at : at + 4096])) * 4096
    filesystems.fill(small_disk, leave=filled + ROOM + 200_000)
    assert filled + 500_000 < len(place.images[1])
    sync(place.repository, "disk", output=small_disk / "disk.img", cache=place.folder / "cache")
    assert (small_disk / "disk.img").read_bytes() == place.images[1]


def test_the_other_way_is_named_where_it_fits(place: Place, small_disk: Path) -> None:
    options = {"output": small_disk / "disk.img", "cache": place.folder / "cache"}
    sync(place.repository, "disk", version="1", **options)
    filesystems.fill(small_disk, leave=ROOM + 20_000)
    with pytest.raises(NoSpace) as least:
        sync(place.repository, "disk", write="in-place", **options)
    assert least.value.needed is not None
    (small_disk / "ballast").unlink()
    filesystems.fill(small_disk, leave=least.value.needed + 16_384)
    with pytest.raises(NoSpace, match=r"write in place \(--write in-place\), which needs [0-9,]+, or choose an output"):
        sync(place.repository, "disk", write="new", **options)
    sync(place.repository, "disk", write="in-place", **options)
    assert (small_disk / "disk.img").read_bytes() == place.images[1]


def test_an_image_in_place_is_not_begun_where_it_could_not_be_finished(
    place: Place, small_disk: Path, rng: np.random.Generator
) -> None:
    """The disk fills up after everything is collected and verified: the image is as it was, and nothing is lost."""
    old, new = bytearray(place.images[1]), bytearray(place.images[1])
    put(old, 63 * 512, bytes(1_000_000))  # a hole where the new version has content
    put(new, 63 * 512 + 64 * 4096, content(rng, 300_000))
    publish_all(place.repository, [bytes(old), bytes(new)], image="sparse")
    options = {"output": small_disk / "disk.img", "cache": place.folder / "cache"}
    sync(place.repository, "sparse", version="1", **options)

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "verify" and done == total:
            filesystems.fill(small_disk, leave=16_384)

    with pytest.raises(NoSpace, match="bytes needed"):
        sync(place.repository, "sparse", write="in-place", progress=progress, **options)
    assert (small_disk / "disk.img").read_bytes() == bytes(old)
    (small_disk / "ballast").unlink()
    report = sync(place.repository, "sparse", write="in-place", **options)
    assert report.content.fetched == 0
    assert (small_disk / "disk.img").read_bytes() == bytes(new)


# ---- people


def start_command(*arguments: object) -> subprocess.Popen[str]:
    """Start the command as a user would."""
    command = [sys.executable, "-m", "trimtransfer", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_control_c_and_a_second_run(place: Place) -> None:
    """A run that waits for a server: a second one is told, Ctrl-C stops it, and what it had is not fetched again."""
    objects = place.objects()
    packs: list[Request] = []

    def script(request: Request, number: int) -> Fault | None:
        if "packs/" not in request.target:
            return None
        packs.append(request)
        return Fault(stall=10) if len(packs) > 2 else None

    output = place.folder / "new.img"
    with BadServer(objects, script) as server:
        arguments = (
            "sync",
            server.url,
            "disk",
            "-o",
            output,
            "--json",
            "--connections",
            1,
            "--cache",
            place.folder / "c",
        )
        first = start_command(*arguments)
        wait_for(lambda: len(packs) > 2)
        second = start_command(*arguments)
        out, err = second.communicate(timeout=30)
        assert second.returncode == 9
        assert json.loads(out)["error"]["type"] == "Locked"
        assert f"process {first.pid}" in err
        first.send_signal(signal.SIGINT)
        out, err = first.communicate(timeout=30)
        assert first.returncode == 130
        assert "run the same command again" in json.loads(out)["error"]["message"]
        assert "Traceback" not in err
    assert not output.exists()
    report = sync(place.repository, "disk", output=output, cache=place.folder / "c")
    assert report.resumed_bytes > 0
    assert output.read_bytes() == place.images[1]
