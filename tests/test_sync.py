"""Sync end to end from a directory: every way to write, every state of the old image, every local source."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from syncing import Place, content, make_images, put, write_sparse

from trimtransfer.assembly import windows
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.verify import verify_image
from trimtransfer.chunk import MAX_CHUNK_SIZE, REGION_SIZE, Kind
from trimtransfer.errors import Cancelled, NotFound
from trimtransfer.repository.publish import publish

WRITES = ["auto", "new", "in-place"]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan one region at a time, so that small images have several windows."""
    monkeypatch.setattr(windows, "WINDOW_REGIONS", 1)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Place:
    return Place(tmp_path, make_images(rng))


# ---- versions and ways


@pytest.mark.parametrize("write", WRITES)
def test_first_update_nothing_and_back(place: Place, write: str) -> None:
    first = place.sync("1", write=write)
    assert first.wrote == "new"
    assert first.content.unchanged == first.content.host == 0
    update = place.sync(write=write)
    assert update.wrote == {"auto": update.wrote}.get(write, write)
    assert 0 < update.content.fetched < first.content.fetched
    assert update.content.unchanged > 0
    assert update.content.seed > 0, "moved content comes from the old image"
    again = place.sync(write=write)
    assert (again.wrote, again.network.requests, again.content.unchanged) == ("nothing", 1, again.length)
    assert place.sync("2").network.requests == 1
    back = place.sync("1", write=write)
    assert back.version == "1"
    assert back.wrote != "nothing"


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("sizes", [(5000, 3), (3, REGION_SIZE + 5), (REGION_SIZE + 4096, 4096), (0, 70_000), (9000, 0)])
def test_images_that_grow_and_shrink(
    tmp_path: Path, rng: np.random.Generator, write: str, sizes: tuple[int, int]
) -> None:
    images = []
    for size in sizes:
        image = bytearray(size)
        for at in range(0, size, 20 << 20):
            put(image, at, content(rng, 50_000))
        put(image, max(0, size - 1000), content(rng, 1000))
        images.append(bytes(image))
    place = Place(tmp_path, images)
    place.sync("1", write=write)
    place.sync("2", write=write)
    place.sync("1", write=write)


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_other_files_than_disks(tmp_path: Path, rng: np.random.Generator, write: str) -> None:
    old = content(rng, 700_001)
    new = old[:300_000] + b"inserted" + old[300_000:]
    for number, data in enumerate((old, new), 1):
        (tmp_path / "file").write_bytes(data)
        publish(tmp_path / "repo", tmp_path / "file", image="file", version=str(number), kind=Kind.BYTES)
    output = tmp_path / "out.bin"
    sync(tmp_path / "repo", "file", version="1", output=output)
    report = sync(tmp_path / "repo", "file", output=output, write=write)
    assert output.read_bytes() == new
    assert report.content.fetched < 200_000
    assert report.content.seed > 0


def test_auto_writes_in_place_when_most_stays(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be cloned."""
    for module in ("choice", "ways"):
        monkeypatch.setattr(f"trimtransfer.assembly.{module}.can_clone", lambda side, old: False)
    image = bytearray(3 * REGION_SIZE)
    for at in range(0, len(image), 10 << 20):
        put(image, at, content(rng, 100_000))
    changed = bytearray(image)
    put(changed, 10 << 20, content(rng, 5000))
    other = bytearray(len(image))
    put(other, 5 << 20, content(rng, 100_000))
    place = Place(tmp_path, [bytes(image), bytes(changed), bytes(other)])
    place.sync("1")
    inode = os.stat(place.output).st_ino
    assert place.sync("2").wrote == "in-place"
    assert os.stat(place.output).st_ino == inode
    assert place.sync("3").wrote == "new"


def test_output_is_sparse(place: Place) -> None:
    place.sync("1")
    assert os.stat(place.output).st_blocks * 512 < 16 << 20
    place.sync("2", write="in-place")
    assert os.stat(place.output).st_blocks * 512 < 16 << 20


def test_progress_of_every_phase_reaches_its_end(place: Place) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(phase: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        seen[phase] = done, total

    place.sync("1", progress=progress)
    place.sync("2", progress=progress, write="in-place")
    assert {"fetch", "verify", "write"} <= set(seen)
    for done, total in seen.values():
        assert done == total


# ---- what is known of the old image


def touch(output: Path) -> None:
    """Change nothing but times."""
    os.utime(output)


def damage(output: Path) -> None:
    """Overwrite a byte in the midst of content."""
    output.chmod(0o644)
    data = bytearray(output.read_bytes())
    at = next(n for n in range(0, len(data), 4096) if data[n])
    data[at] ^= 255
    write_sparse(output, bytes(data))


def damage_quietly(output: Path) -> None:
    """The same, and the times set back: only reading finds it."""
    found = os.stat(output)
    damage(output)
    output.chmod(0o444)
    os.utime(output, ns=(found.st_atime_ns, found.st_mtime_ns))


def truncate(output: Path) -> None:
    """Cut the file."""
    output.chmod(0o644)
    os.truncate(output, os.stat(output).st_size // 2)


def lose(name: str) -> Callable[[Path], None]:
    """Return what deletes a file of the side directory."""
    return lambda output: (SideDirectory(output).path / name).unlink()


def spoil(name: str) -> Callable[[Path], None]:
    """Return what damages a file of the side directory."""

    def spoil_it(output: Path) -> None:
        path = SideDirectory(output).path / name
        data = bytearray(path.read_bytes())
        for at in range(20, len(data), 50):
            data[at] ^= 1
        path.write_bytes(data)

    return spoil_it


def lose_all(output: Path) -> None:
    """Delete the side directory."""
    shutil.rmtree(SideDirectory(output).path)


def delete(output: Path) -> None:
    """Delete the image."""
    output.unlink()


MISHAPS: list[Callable[[Path], None]] = [
    touch, damage, damage_quietly, truncate, lose_all, delete,
    *(change(name) for change in (lose, spoil) for name in ("state.json", "manifest.bin", "tables.bin")),
]  # fmt: skip


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda one: one.__qualname__.split(".")[0])
@pytest.mark.parametrize("version", ["1", "2"])
def test_whatever_happened_to_the_old_image(
    place: Place, write: str, mishap: Callable[[Path], None], version: str
) -> None:
    """The result is right, and what is right in the old image is not fetched."""
    place.sync("1")
    undisturbed = plan(place.repository, "disk", version=version, output=place.output).content.fetched
    mishap(place.output)
    report = place.sync(version, write=write)
    if mishap not in (delete, truncate):
        assert report.content.fetched <= undisturbed + (MAX_CHUNK_SIZE if mishap in (damage, damage_quietly) else 0)
    assert place.sync(version).wrote == "nothing"


def test_a_touched_image_is_hashed_and_believed_again(place: Place) -> None:
    place.sync("1")
    touch(place.output)
    report = place.sync("1")
    assert (report.wrote, report.content.fetched) == ("nothing", 0)
    assert place.sync("1").regions == 0, "no manifest was needed"


def test_an_image_that_was_put_there_by_hand_is_taken_as_it_is(place: Place) -> None:
    write_sparse(place.output, place.images[1])
    report = place.sync("2")
    assert (report.wrote, report.content.fetched) == ("nothing", 0)
    place.output.unlink()
    lose_all(place.output)
    write_sparse(place.output, place.images[0])
    report = place.sync("2")
    assert 0 < report.content.fetched < report.content.unchanged + report.content.seed


# ---- seeds


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_seeds(place: Place, tmp_path: Path, write: str, rng: np.random.Generator) -> None:
    """A file, a tree, an image of ours: content that they have is not fetched."""
    whole = place.sync("2", output=tmp_path / "whole.img").content.fetched
    write_sparse(tmp_path / "seed.img", place.images[1])
    report = place.sync("2", output=tmp_path / "a.img", seeds=[tmp_path / "seed.img"], write=write)
    assert (report.content.fetched, report.network.bytes < 200_000) == (0, True)
    assert report.content.seed > 0
    report = place.sync("2", output=tmp_path / "b.img", seeds=[tmp_path / "a.img"], write=write)
    assert (report.content.fetched, report.rejected_chunks) == (0, 0)
    tree = tmp_path / "tree" / "sub"
    tree.mkdir(parents=True)
    at = next(n for n in range(0, len(place.images[1]), 4096) if any(place.images[1][n : n + 4096]))
    (tree / "part").write_bytes(place.images[1][at : at + 60_000])
    report = place.sync("2", output=tmp_path / "c.img", seeds=[tmp_path / "tree"], write=write)
    assert report.content.seed > 0
    assert report.content.fetched < whole
    with pytest.raises(FileNotFoundError):
        place.sync("2", output=tmp_path / "d.img", seeds=[tmp_path / "nothing"])


def test_an_image_of_ours_is_a_seed_without_a_scan(place: Place, tmp_path: Path) -> None:
    place.sync("2")
    phases: set[str] = set()
    place.sync(
        "2", output=tmp_path / "b.img", seeds=[place.output], progress=lambda phase, done, total: phases.add(phase)
    )
    assert "scan" not in phases


# ---- stopping and going on


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("with_old", [False, True])
def test_cancelled_it_goes_on_where_it_stopped(place: Place, write: str, with_old: bool) -> None:
    if with_old:
        place.sync("1")
    whole = plan(place.repository, "disk", output=place.output, write=write).fetch_bytes
    place.interrupt("2", write=write)
    if with_old:
        assert place.output.read_bytes() == place.images[0]
    rest = plan(place.repository, "disk", output=place.output, write=write)
    report = place.sync("2", write=write)
    assert report.resumed_bytes > 0 or with_old
    assert report.network.bytes <= whole
    assert report.content.fetched == rest.content.fetched


def test_without_its_journal_a_half_written_file_is_looked_at(place: Place) -> None:
    place.interrupt("1")
    whole = plan(place.repository, "disk", version="1", output=place.folder / "other.img").content.fetched
    SideDirectory(place.output).journal.unlink()
    report = place.sync("1")
    assert report.content.unchanged > 0
    assert report.content.fetched < whole


def test_a_complete_file_whose_journal_was_lost_is_not_taken_for_the_old_image(place: Place, tmp_path: Path) -> None:
    """Killed just before the rename, and the journal lost: what is complete is the new file, not the image."""
    one, other = (image.ljust(max(map(len, place.images)), b"\0") for image in place.images)
    equal = tmp_path / "equal"
    equal.mkdir()
    place = Place(equal, [one, other])
    place.sync("1")
    event = threading.Event()

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "verify" and done == total:
            event.set()

    with pytest.raises(Cancelled):
        place.sync("2", write="new", cancel=event, progress=progress)
    SideDirectory(place.output).journal.unlink()
    report = place.sync("2", write="new")
    assert (report.wrote, report.content.fetched) == ("new", 0)


def test_a_half_written_file_that_lies_is_found_out(place: Place, rnd: random.Random) -> None:
    """The journal says done, the bytes are others (a disk that lied): the digest at the end finds it."""
    place.interrupt("1")
    partial = SideDirectory(place.output).partial
    data = bytearray(partial.read_bytes())
    filled = [at for at in range(0, len(data) - 4096, 4096) if data[at]]
    for at in rnd.sample(filled, min(10, len(filled))):
        data[at] ^= 1
    write_sparse(partial, bytes(data))
    place.sync("1")


def test_what_an_abandoned_version_left_is_a_seed(place: Place) -> None:
    alone = plan(place.repository, "disk", version="2", output=place.folder / "other.img").content.fetched
    place.interrupt("1")
    report = place.sync("2")
    assert report.content.seed > 0
    assert report.content.fetched < alone
    assert report.rejected_chunks == 0


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("lies", [False, True])
def test_what_an_abandoned_redo_file_holds_is_a_seed(
    tmp_path: Path, rng: np.random.Generator, write: str, lies: bool
) -> None:
    """Version 2 is begun in place and given up for version 3, which has most of the same; a torn file costs a fetch."""
    images = make_images(rng, versions=1)
    for sectors in ((63, 5003), (7506,)):
        image = bytearray(images[-1])
        for start in sectors:  # each in a region of its own
            put(image, start * 512 + 64 * 4096, content(rng, 200_000))
        images.append(bytes(image))
    place = Place(tmp_path, images)
    place.sync("1")
    shutil.copytree(place.folder / "disk.img.medv", place.folder / "alone.img.medv")
    subprocess.run(["cp", "-a", place.output, place.folder / "alone.img"], check=True)
    alone = place.sync("3", output=place.folder / "alone.img", write=write).content.fetched
    place.interrupt("2", write="in-place")
    redo = SideDirectory(place.output).redo
    assert redo.exists()
    if lies:
        data = bytearray(redo.read_bytes())
        for at in range(1000, 50_000, 25_000):
            data[at] ^= 1
        redo.write_bytes(data)
    report = place.sync("3", write=write)
    assert report.content.fetched < alone - 50_000
    assert (report.rejected_chunks > 0) == lies


def test_what_was_abandoned_goes_before_a_disk_is_called_full(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.interrupt("1")
    side = SideDirectory(place.output)
    left = side.partial.stat().st_size
    seen: list[bool] = []

    def free(path: Path) -> int:
        seen.append(side.abandoned.exists())
        return 0 if side.abandoned.exists() else left + (50 << 20)

    monkeypatch.setattr("trimtransfer.assembly.space.free_bytes", free)
    place.sync("2")
    assert seen[0]
    assert not seen[-1]


@pytest.mark.parametrize(("first", "then"), [("new", "in-place"), ("in-place", "new")])
def test_the_other_way_after_an_interrupted_run(place: Place, first: str, then: str) -> None:
    place.sync("1")
    place.interrupt("2", write=first)
    place.sync("2", write=then)


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("phase", ["fetch", "verify", "write"])
def test_the_last_moment_to_cancel_is_before_the_commit(place: Place, write: str, phase: str) -> None:
    """Even when everything is fetched and verified; but once the image is being written in place, it is finished."""
    place.sync("1")
    event = threading.Event()

    def progress(now: str, done: int, total: int) -> None:
        if now == phase and done == total:
            event.set()

    options = {"write": write, "cancel": event, "progress": progress}
    if phase == "write":
        place.sync("2", **options)
        assert event.is_set() == (write == "in-place")
        return
    with pytest.raises(Cancelled):
        place.sync("2", **options)
    assert place.output.read_bytes() == place.images[0]
    report = place.sync("2", write=write)
    assert phase == "fetch" or report.content.fetched == 0
    assert report.wrote == write


# ---- plan and verify


@pytest.mark.parametrize("with_old", [False, True])
def test_a_plan_tells_what_the_sync_then_costs(place: Place, with_old: bool) -> None:
    if with_old:
        place.sync("1")
    before = sorted(os.listdir(place.folder))
    preview = plan(place.repository, "disk", output=place.output, bandwidth=1e6)
    assert sorted(os.listdir(place.folder)) == before
    report = place.sync()
    assert (preview.content, preview.would_write) == (report.content, report.wrote)
    assert (preview.fetch_bytes, preview.fetch_requests) == (report.network.bytes, report.network.requests)
    assert (preview.bandwidth_bytes_per_second, preview.bandwidth_is) == (1e6, "given")
    assert preview.estimate_seconds >= preview.fetch_bytes / 1e6
    unasked = plan(place.repository, "disk", output=place.output.with_name("other.img"))
    assert unasked.bandwidth_is == "assumed", "too little metadata to measure"
    assert unasked.estimate_seconds > 0
    nothing = plan(place.repository, "disk", output=place.output)
    assert (nothing.would_write, nothing.content.fetched) == ("nothing", 0)


def test_verify(place: Place) -> None:
    place.sync("1")
    assert verify_image(place.output).ok
    damage_quietly(place.output)
    report = verify_image(place.output)
    assert not report.ok
    assert len(report.damaged) == 1
    assert report.to_dict()["damaged"][0]["length"] <= REGION_SIZE
    truncate(place.output)
    assert not verify_image(place.output).ok
    with pytest.raises(NotFound):
        verify_image(place.repository / "images" / "disk" / "head.json")


def test_what_is_not_there(place: Place) -> None:
    with pytest.raises(NotFound, match="image nothing"):
        sync(place.repository, "nothing", output=place.output)
    with pytest.raises(NotFound, match="version 9 of image disk"):
        place.sync("9")
    with pytest.raises(NotFound, match="the repository"):
        sync(place.folder / "nowhere", "disk", output=place.output)
    assert not SideDirectory(place.output).path.exists()
