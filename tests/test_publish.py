"""Publishing: an independent reader reads back what was published; it costs what it must; it is all or nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kills import changes_until
from reference import read_image

from trimtransfer.assembly.fetchplan import WHOLE_SHARE
from trimtransfer.chunk import MAX_CHUNK_SIZE, REGION_SIZE, Kind
from trimtransfer.errors import (
    Cancelled,
    FormatError,
    IntegrityError,
    Locked,
    NoSpace,
    NotFound,
    SourceChanged,
    TargetRefused,
    VersionExists,
)
from trimtransfer.names import deltas_name
from trimtransfer.repository import metadata
from trimtransfer.repository.again import Limits
from trimtransfer.repository.audit import audit
from trimtransfer.repository.deltas import add_deltas
from trimtransfer.repository.intent import repository_lock
from trimtransfer.repository.packing import FIRST_FRAMES
from trimtransfer.repository.publication import PublishReport
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader, describe
from trimtransfer.store import PRIVATE, DirectoryStore

KIB, MIB = 1 << 10, 1 << 20
SMALL_PACK = 16 + (512 << 10)


def write_sparse(path: Path, content: bytes | np.ndarray) -> Path:
    """Write a file whose zero MiB are holes."""
    view = memoryview(content).cast("B")
    zeros = bytes(MIB)
    with open(path, "wb") as file:
        file.truncate(len(view))
        for at in range(0, len(view), MIB):
            piece = view[at : at + MIB]
            if piece != zeros[: len(piece)]:
                file.seek(at)
                file.write(piece)
    return path


def publish_bytes(root: Path, content: bytes, version: str, **options: Any) -> PublishReport:
    """Publish content as a version of the image ``a`` and check the report's sums and the repository."""
    path = write_sparse(root / "image", content)
    report = publish(root / "r", path, image="a", version=version, **{"level": 1, **options})
    parts = (report.zero_bytes, report.new_bytes, report.known_bytes, report.repeated_bytes)
    assert sum(parts) == report.length == len(content)
    return report


def check_whole(root: Path) -> None:
    """The repository is sound and holds nothing that no version needs."""
    store = DirectoryStore(root / "r")
    report = audit(store)
    assert (report.damage, report.unreferenced) == ((), ())
    assert sorted(os.listdir(store.private("."))) == ["lock", "tmp"]
    assert os.listdir(store.scratch()) == []


def tree(root: Path) -> dict[str, bytes]:
    """All objects of a repository."""
    store = DirectoryStore(root)
    return {name: store.read(name, limit=1 << 30) for name, _ in store.list()}


# ---- content

PART = st.one_of(
    st.tuples(st.just("zero"), st.integers(1, 300_000)),
    st.tuples(st.just("random"), st.integers(1, 300_000)),
    st.tuples(st.just("text"), st.integers(1, 300_000)),
    st.tuples(st.just("copy"), st.integers(0, 10)),
)


def build(parts: list[tuple[str, int]], seed: int) -> bytes:
    """Make an image of parts; each random part depends on its size and the seed, a copy repeats an earlier part."""
    made: list[bytes] = []
    for kind, size in parts:
        if kind == "copy":
            made.append(made[size % len(made)] if made else b"")
        elif kind == "zero":
            made.append(bytes(size))
        else:
            noise = random.Random(seed * 1_000_003 + size).randbytes(size)
            made.append(noise if kind == "random" else noise[:777] * (size // 777) + noise[: size % 777])
    return b"".join(made)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    images=st.lists(st.tuples(st.lists(PART, max_size=8), st.integers(0, 3)), min_size=1, max_size=3),
    kind=st.sampled_from([None, Kind.DISK, Kind.BYTES]),
    flat=st.booleans(),
)
def test_what_is_published_is_read_back(
    tmp_path: Path, images: list[tuple[list[tuple[str, int]], int]], kind: Kind | None, flat: bool
) -> None:
    shutil.rmtree(tmp_path / "r", ignore_errors=True)
    contents = [build(parts, seed) for parts, seed in images]
    for number, content in enumerate(contents):
        report = publish_bytes(tmp_path, content, str(number), kind=kind, flat=flat)
        assert report.flat == (blake3(content).hexdigest() if flat else "")
        assert report.sequence == number + 1
    for number, content in enumerate(contents):
        assert read_image(tmp_path / "r", "a", str(number)) == content
    assert read_image(tmp_path / "r", "a") == contents[-1]
    check_whole(tmp_path)


SIZES = [0, 1, 4095, 4096, 4097, 3 * MIB + 17, REGION_SIZE - 1, REGION_SIZE, REGION_SIZE + 1, 2 * REGION_SIZE + 5000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [Kind.DISK, Kind.BYTES])
def test_sizes(tmp_path: Path, size: int, kind: Kind, rnd: random.Random) -> None:
    content = bytearray(size)
    for at in {0, size // 2, size - 1, REGION_SIZE - 5, REGION_SIZE}:
        piece = rnd.randbytes(10_000)[: max(0, size - at)]
        content[max(0, at) : max(0, at) + len(piece)] = piece
    content = content[:size]
    report = publish_bytes(tmp_path, bytes(content), "1", kind=kind, flat=True)
    assert report.flat == blake3(content).hexdigest()
    assert read_image(tmp_path / "r", "a") == content
    check_whole(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 5000, 3 * REGION_SIZE + 1])
def test_zeros_are_not_stored(tmp_path: Path, size: int) -> None:
    report = publish_bytes(tmp_path, bytes(size), "1")
    assert (report.zero_bytes, report.new_bytes, report.packs, report.read_bytes) == (size, 0, 0, 0)
    with open(tmp_path / "image", "wb") as file:  # the same as data
        file.write(bytes(size))
    written = publish(tmp_path / "r", tmp_path / "image", image="b", version="1")
    assert (written.zero_bytes, written.packs, written.digest) == (size, 0, report.digest)
    assert read_image(tmp_path / "r", "b") == bytes(size)
    check_whole(tmp_path)


def test_a_misaligned_partition_has_a_grid_of_its_own(tmp_path: Path, rnd: random.Random) -> None:
    inside = rnd.randbytes(2 * MIB)
    boot = (bytes(446) + struct.pack("<B3xB3xII", 0, 7, 63, 4096)).ljust(510, b"\0") + b"\x55\xaa"
    disk = boot.ljust(63 * 512, b"\0") + inside + bytes(100_000)
    first = publish_bytes(tmp_path, disk, "1")
    assert first.recognised == "MBR"
    assert read_image(tmp_path / "r", "a") == disk
    assert describe(DirectoryStore(tmp_path / "r"), "a").segments == ((0, 63 * 512), (63 * 512, len(disk) - 63 * 512))
    path = write_sparse(tmp_path / "other", inside)  # the same content at the start of an image
    other = publish(tmp_path / "r", path, image="b", version="1", like=["a"], kind=Kind.DISK)
    assert other.new_bytes < 300_000
    assert read_image(tmp_path / "r", "b") == inside


def test_an_unchanged_image_adds_next_to_nothing(tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(3 * MIB) + bytes(2 * REGION_SIZE) + rnd.randbytes(MIB)
    publish_bytes(tmp_path, content, "1")
    before = set(tree(tmp_path / "r"))
    report = publish_bytes(tmp_path, content, "2")
    assert (report.new_bytes, report.packs, report.stored_bytes) == (0, 0, 0)
    assert report.metadata_bytes < 2000
    assert set(tree(tmp_path / "r")) - before == {"images/a/2/manifest.bin"}
    assert read_image(tmp_path / "r", "a", "2") == content


def test_a_change_costs_what_it_changes(tmp_path: Path, rnd: random.Random) -> None:
    content = bytearray(rnd.randbytes(8 * MIB) + bytes(REGION_SIZE) + rnd.randbytes(8 * MIB) + bytes(REGION_SIZE))
    first = publish_bytes(tmp_path, bytes(content), "1")
    content[2 * MIB : 3 * MIB] = rnd.randbytes(MIB)
    report = publish_bytes(tmp_path, bytes(content), "2")
    assert MIB <= report.new_bytes <= MIB + 2 * 256 * KIB
    most_frame = FIRST_FRAMES.fill + MAX_CHUNK_SIZE
    assert report.again_bytes < most_frame  # less than half of each of the two frames at the borders
    assert report.stored_bytes <= report.new_bytes + report.again_bytes + 10_000
    assert report.metadata_bytes < first.metadata_bytes  # the other regions keep theirs
    reader = VersionReader.open(DirectoryStore(tmp_path / "r"), "a")
    row = reader.manifest.region(0)
    assert 0 < row.difference.length < row.full.length
    assert len(reader.manifest.files) == 4
    assert read_image(tmp_path / "r", "a") == content
    check_whole(tmp_path)


@pytest.mark.slow
def test_ten_mebibytes_in_a_large_image_add_at_most_sixteen(tmp_path: Path) -> None:
    """64 GiB with data in 110 regions; ten changes of 1 MiB each, spread over the image."""
    path = tmp_path / "image"
    rng = np.random.default_rng(1)
    with open(path, "wb") as file:
        file.truncate(64 << 30)
        for at in range(0, 64 << 30, 10 * REGION_SIZE):
            file.seek(at + REGION_SIZE // 2)
            file.write(rng.bytes(50 * KIB if at % (100 * REGION_SIZE) else 3 * MIB))
        publish_options: dict[str, Any] = {"image": "a", "level": 1, "kind": Kind.DISK}
        publish(tmp_path / "r", path, version="1", **publish_options)
        for at in range(0, 10 * 100 * REGION_SIZE, 100 * REGION_SIZE):
            file.seek(at + REGION_SIZE // 2 + MIB)
            file.write(rng.bytes(MIB))
        file.flush()
    before = sum(size for _, size in DirectoryStore(tmp_path / "r").list())
    report = publish(tmp_path / "r", path, version="2", **publish_options)
    grown = sum(size for _, size in DirectoryStore(tmp_path / "r").list()) - before
    deltas = sum(made.stored_bytes for made in report.deltas)
    assert report.new_bytes >= 10 * MIB
    assert grown - deltas <= 16 * MIB
    assert deltas <= 0.9 * report.stored_bytes  # kept only where they are smaller than plain frames
    # the head replaces the one before it
    assert abs(grown - report.stored_bytes - report.metadata_bytes - deltas) < 1024


@pytest.mark.slow
def test_too_many_files_are_not_referred_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rnd: random.Random
) -> None:
    """Each version changes one region, so the others' tables lie in ever more files; beyond a limit they are copied."""
    monkeypatch.setattr(metadata, "MAX_FILES", 5)
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 6 * REGION_SIZE)
    for version in range(6):
        with open(path, "r+b") as file:
            file.seek(version * REGION_SIZE + 5000)
            file.write(rnd.randbytes(300_000))
        publish(tmp_path / "r", path, image="a", version=str(version), level=1, kind=Kind.DISK)
        manifest = VersionReader.open(DirectoryStore(tmp_path / "r"), "a").manifest
        assert len(manifest.files) <= 5
    assert read_image(tmp_path / "r", "a") == path.read_bytes()
    check_whole(tmp_path)


def test_images_alike_share_content(tmp_path: Path, rnd: random.Random) -> None:
    shared = rnd.randbytes(4 * MIB)
    publish_bytes(tmp_path, shared, "1", kind=Kind.DISK)
    path = write_sparse(tmp_path / "other", rnd.randbytes(MIB) + shared)
    alone = publish(tmp_path / "r", path, image="b", version="1", kind=Kind.DISK)
    like = publish(tmp_path / "r", path, image="c", version="1", like=["a"], kind=Kind.DISK)
    assert alone.new_bytes > 4 * MIB
    assert like.new_bytes < 1.5 * MIB
    assert read_image(tmp_path / "r", "c") == path.read_bytes()
    with pytest.raises(NotFound):
        publish(tmp_path / "r", path, image="d", version="1", like=["nothing"])
    check_whole(tmp_path)


def test_growing_shrinking_and_another_kind(tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(2 * MIB) + bytes(REGION_SIZE)
    contents = [content, content + content, content[: MIB + 1], content[MIB:], b"", content]
    for number, kind in enumerate([Kind.DISK, Kind.DISK, Kind.DISK, Kind.BYTES, None, Kind.DISK]):
        publish_bytes(tmp_path, contents[number], str(number), kind=kind)
    for number, expected in enumerate(contents):
        assert read_image(tmp_path / "r", "a", str(number)) == expected
    check_whole(tmp_path)


def test_another_parent(tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(MIB)
    publish_bytes(tmp_path, content, "1")
    publish_bytes(tmp_path, b"", "2")
    assert publish_bytes(tmp_path, content, "3").new_bytes == MIB  # version 2, the newest, has none of it
    report = publish_bytes(tmp_path, content, "4", parent="1")
    assert (report.parent, report.sequence, report.new_bytes) == ("1", 4, 0)
    with pytest.raises(NotFound):
        publish_bytes(tmp_path, content, "5", parent="none")
    check_whole(tmp_path)


def test_equal_publishes_make_equal_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name, workers in (("x", 1), ("y", 3)):
        (tmp_path / name).mkdir()
        for version in ("1", "2"):
            content = random.Random(version).randbytes(MIB) + random.Random(7).randbytes(3 * MIB)
            publish_bytes(tmp_path / name, content, version, workers=workers)
    assert tree(tmp_path / "x/r") == tree(tmp_path / "y/r")


@pytest.mark.slow
def test_real_images(tmp_path: Path, images: Any) -> None:
    for version, path in (("1", images.old), ("2", images.new)):
        report = publish(tmp_path / "r", path, image="a", version=version, level=1, flat=True, deltas=False)
        assert report.recognised == "ext4"
        assert report.flat == blake3(path.read_bytes()).hexdigest()
    assert report.new_bytes < 0.7 * (report.length - report.zero_bytes)
    assert read_image(tmp_path / "r", "a", "1") == images.old.read_bytes()
    assert read_image(tmp_path / "r", "a", "2") == images.new.read_bytes()
    check_whole(tmp_path)


def test_block_device(tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(MIB) + bytes(MIB)
    (tmp_path / "disk").write_bytes(content)
    with LoopDevice(tmp_path / "disk") as device:
        publish(tmp_path / "r", device, image="a", version="1", level=1)
    assert read_image(tmp_path / "r", "a") == content


class LoopDevice:
    """A block device made of a file."""

    def __init__(self, path: Path) -> None:
        self._program = shutil.which("losetup", path=f"{os.environ['PATH']}:/sbin:/usr/sbin") or ""
        if os.geteuid() != 0 or not self._program:
            pytest.skip("needs root and losetup")
        made = subprocess.run([self._program, "-f", "--show", path], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no loop devices: {made.stderr}")
        self._device = made.stdout.strip()

    def __enter__(self) -> str:
        return self._device

    def __exit__(self, *_: object) -> None:
        subprocess.run([self._program, "-d", self._device], check=True)


# ---- refusals


def test_versions_never_change(tmp_path: Path) -> None:
    publish_bytes(tmp_path, b"one", "1")
    before = tree(tmp_path / "r")
    with pytest.raises(VersionExists):
        publish_bytes(tmp_path, b"two", "1")
    assert tree(tmp_path / "r") == before


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", ".a", "nul", "con.1", "a" * 65, "a/b", "é"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "image").write_bytes(b"x")
    for names in ({"image": name, "version": "1"}, {"image": "a", "version": name}):
        with pytest.raises(FormatError):
            publish(tmp_path / "r", tmp_path / "image", **names)
    assert not (tmp_path / "r").exists()


def test_only_an_empty_directory_becomes_a_repository(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x")
    for target in (tmp_path, tmp_path / "image"):
        with pytest.raises(TargetRefused):
            publish(target, tmp_path / "image", image="a", version="1")
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "r", tmp_path / "none", image="a", version="1")
    with pytest.raises(ValueError, match="level"):
        publish(tmp_path / "r", tmp_path / "image", image="a", version="1", level=0)
    assert os.listdir(tmp_path) == ["image"]


def test_two_publishers(tmp_path: Path) -> None:
    publish_bytes(tmp_path, b"one", "1")
    with repository_lock(DirectoryStore(tmp_path / "r"), "publishing x 2"):
        with pytest.raises(Locked, match=f"process {os.getpid()} on .* \\(publishing x 2"):
            publish_bytes(tmp_path, b"two", "2")
        assert read_image(tmp_path / "r", "a") == b"one"
    publish_bytes(tmp_path, b"two", "2")


def interfere(phase: str, action: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Return a progress function that does something once, when a phase has begun."""
    done: list[bool] = []

    def progress(now: str, _done: int, _total: int) -> None:
        if now == phase and not done:
            done.append(True)
            action()

    return progress


@pytest.mark.parametrize("phase", ["scan", "compare", "compress"])
@pytest.mark.parametrize("change", ["content", "length", "time"])
def test_a_source_that_changes(tmp_path: Path, phase: str, change: str, rnd: random.Random) -> None:
    publish_bytes(tmp_path, b"one", "1")
    before = tree(tmp_path / "r")
    path = tmp_path / "image"
    content = rnd.randbytes(MIB)

    def act() -> None:
        if change == "content":
            with open(path, "r+b") as file:
                file.write(b"another beginning")
        elif change == "length":
            os.truncate(path, 1000)
        else:
            os.utime(path)

    with pytest.raises(SourceChanged):
        publish_bytes(tmp_path, content, "2", progress=interfere(phase, act))
    assert tree(tmp_path / "r") == before
    check_whole(tmp_path)


def test_changed_content_is_found_even_where_no_time_tells(tmp_path: Path, rnd: random.Random) -> None:
    """A device has no modification time: what is compressed is compared with what was cut."""
    (tmp_path / "disk").write_bytes(rnd.randbytes(MIB))
    with LoopDevice(tmp_path / "disk") as device:

        def act() -> None:
            with open(device, "r+b") as file:
                file.seek(500_000)
                file.write(b"changed")
                os.fsync(file.fileno())

        with pytest.raises(SourceChanged, match="other content at byte"):
            publish(tmp_path / "r", device, image="a", version="1", level=1, progress=interfere("compress", act))


@pytest.mark.parametrize("phase", ["scan", "compare", "compress", "metadata"])
def test_cancelling(tmp_path: Path, phase: str, rnd: random.Random) -> None:
    publish_bytes(tmp_path, b"one", "1")
    before = tree(tmp_path / "r")
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        publish_bytes(tmp_path, rnd.randbytes(MIB), "2", cancel=cancel, progress=interfere(phase, cancel.set))
    assert tree(tmp_path / "r") == before
    check_whole(tmp_path)


# ---- faults


@pytest.mark.slow
@pytest.mark.parametrize(
    "intent", [b"5\n\n", b"xx\n\n", b"[1]\n\n", b'["a", "9"]\n../../victim\n', b'["a", "9"]\n\xff\xfe\n']
)
def test_a_hostile_intent_deletes_nothing_outside(tmp_path: Path, intent: bytes) -> None:
    root = tmp_path / "base"
    root.mkdir()
    publish_bytes(root, b"x" * 5000, "1")
    before = tree(root / "r")
    (tmp_path / "victim").write_bytes(b"here")
    (root / "r" / PRIVATE / "intent").write_bytes(intent)
    with pytest.raises((FormatError, VersionExists)):
        publish_bytes(root, b"x" * 5000, "1")
    assert (tmp_path / "victim").read_bytes() == b"here"
    assert tree(root / "r") == before


def test_a_killed_publish_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rnd: random.Random
) -> None:
    """Killed before every single change it makes; what follows then is as if it had never run."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    old = rnd.randbytes(MIB)
    new = old[: 300 * KIB] + rnd.randbytes(900 * KIB)
    (tmp_path / "base").mkdir()
    publish_bytes(tmp_path / "base", old, "1", _pack_limit=SMALL_PACK)
    shutil.copytree(tmp_path / "base", tmp_path / "clean")
    total = changes_until(0, publish_bytes, tmp_path / "clean", new, "2", _pack_limit=SMALL_PACK)
    expected = tree(tmp_path / "clean/r")
    committed = 0
    assert total > 30
    for limit in range(1, total + 1):
        root = tmp_path / "killed"
        shutil.copytree(tmp_path / "base", root)
        assert changes_until(limit, publish_bytes, root, new, "2", _pack_limit=SMALL_PACK) == 0
        found = read_image(root / "r", "a")
        committed += found == new
        assert found in ((old,) if not committed else (new,))  # the commit is one step, after which it stays
        try:
            publish_bytes(root, new, "2", _pack_limit=SMALL_PACK)
        except VersionExists:
            assert found == new
        assert tree(root / "r") == expected
        check_whole(root)
        shutil.rmtree(root)
    assert committed >= 1


@pytest.mark.slow
def test_kills_at_random_times(tmp_path: Path, rnd: random.Random) -> None:
    contents = [rnd.randbytes(300 * KIB)]
    publish_bytes(tmp_path, contents[0], "0")
    context = multiprocessing.get_context("fork")
    for number in range(1, 13):
        content = contents[-1][: 100 * KIB] + rnd.randbytes(4 * MIB)
        write_sparse(tmp_path / "next", content)
        options = {"image": "a", "version": str(number), "level": 16, "kind": Kind.DISK}
        process = context.Process(target=publish, args=(tmp_path / "r", tmp_path / "next"), kwargs=options)
        process.start()
        process.join(rnd.random() * 0.7)
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = read_image(tmp_path / "r", "a")
        assert found in (contents[-1], content)
        contents.append(found)
    publish_bytes(tmp_path, b"end", "end")
    check_whole(tmp_path)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs: {made.stderr}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk(tmp_path: Path, tiny_disk: Path, rnd: random.Random) -> None:
    one, two, three = rnd.randbytes(MIB), rnd.randbytes(8 * MIB), rnd.randbytes(MIB)
    path = write_sparse(tmp_path / "image", one)
    publish(tiny_disk, path, image="a", version="1", level=1)
    before = tree(tiny_disk)
    for _ in range(2):
        write_sparse(path, two)
        with pytest.raises(NoSpace):
            publish(tiny_disk, path, image="a", version="2", level=1)
        assert tree(tiny_disk) == before
    write_sparse(path, three)
    publish(tiny_disk, path, image="a", version="2", level=1)
    assert read_image(tiny_disk, "a", "1") == one
    assert read_image(tiny_disk, "a", "2") == three


def test_a_lost_or_damaged_pack_heals(tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(2 * MIB)
    publish_bytes(tmp_path, content, "1", _pack_limit=SMALL_PACK)
    store = DirectoryStore(tmp_path / "r")
    packs = [name for name, _ in store.list("packs")]
    os.truncate(store.path / packs[0], 1000)
    store.delete(packs[1])
    assert {damage.name for damage in audit(store).damage} == set(packs[:2])
    report = publish_bytes(tmp_path, content + b"more", "2", _pack_limit=SMALL_PACK)
    assert report.again_bytes > 0
    assert read_image(tmp_path / "r", "a", "2") == content + b"more"


def test_a_damaged_pack_that_would_be_written_again_is_replaced(tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(MIB)
    publish_bytes(tmp_path, content, "1")
    store = DirectoryStore(tmp_path / "r")
    ((pack, size),) = store.list("packs")
    with open(store.path / pack, "r+b") as file:
        file.seek(size // 2)
        file.write(b"damage")
    path = write_sparse(tmp_path / "image", content)
    report = publish(tmp_path / "r", path, image="b", version="1", level=1)
    assert (report.packs, report.kept_packs) == (1, 0)
    assert audit(store).damage == ()
    report = publish(tmp_path / "r", path, image="c", version="1", level=1)
    assert (report.packs, report.kept_packs) == (0, 1)


def publish_on_a_bad_disk(root: Path, content: bytes, limit: int, result: Any) -> None:
    """Publish version 2 while one bit of the ``limit``-th write is lost; report how many writes there are."""
    count = 0
    original = os.write

    def write(descriptor: int, data: Any) -> int:
        nonlocal count
        count += 1
        if count == limit:
            changed = bytearray(data)
            changed[len(changed) // 2] ^= 1
            data = changed
        return original(descriptor, data)

    os.write = write
    try:
        publish_bytes(root, content, "2", _pack_limit=SMALL_PACK, workers=1)
        outcome = "published"
    except (IntegrityError, FormatError) as error:
        outcome = str(error)
    result.put((count, outcome))


@pytest.mark.slow
def test_a_disk_that_loses_bits(tmp_path: Path, rnd: random.Random) -> None:
    """Each write in turn is damaged: either that is noticed and nothing published, or it was of no importance."""
    old = rnd.randbytes(MIB)
    new = old[: 300 * KIB] + rnd.randbytes(700 * KIB)
    (tmp_path / "base").mkdir()
    publish_bytes(tmp_path / "base", old, "1", _pack_limit=SMALL_PACK)
    context = multiprocessing.get_context("fork")
    total, noticed = 1000, 0
    for limit in range(1000):  # the first time nothing is damaged
        if limit > total:
            break
        root = tmp_path / "bad"
        shutil.copytree(tmp_path / "base", root)
        result = context.SimpleQueue()
        process = context.Process(target=publish_on_a_bad_disk, args=(root, new, limit, result))
        process.start()
        writes, outcome = result.get()
        process.join()
        total = total if limit else writes
        assert read_image(root / "r", "a") == (new if outcome == "published" else old), f"write {limit}: {outcome}"
        noticed += outcome != "published"
        shutil.rmtree(root)
    assert noticed >= 6


# ---- fragmentation


def fetched_bytes(store: DirectoryStore) -> tuple[int, int]:
    """Return what a client without anything fetches - most of a pack: all of it - and the frames alone."""
    packs: dict[bytes, tuple[int, set[tuple[int, int]]]] = {}
    reader = VersionReader.open(store, "a")
    for index in reader.used_regions():
        for part in reader.locations(index):
            for frame in part.frames:
                ref = part.packs[int(frame["pack"])]
                packs.setdefault(ref.digest, (ref.length, set()))[1].add((int(frame["offset"]), int(frame["stored"])))
    needed = {digest: sum(stored for _, stored in frames) for digest, (_, frames) in packs.items()}
    fetched = sum(packs[pack][0] if size >= WHOLE_SHARE * packs[pack][0] else size for pack, size in needed.items())
    return fetched, sum(needed.values())


@pytest.mark.slow
def test_fragmentation_stays_bounded(tmp_path: Path, seed: int) -> None:
    """50 versions in which files make up 15 % of the content are replaced: fresh downloads stay compact."""
    rng = np.random.default_rng(seed)
    blocks = 16 * 256
    data = rng.integers(0, 256, (blocks, 4096), dtype=np.uint8)
    ends = np.cumsum(np.exp(rng.uniform(0, np.log(32), blocks)).astype(int))
    ends = ends[ends < blocks]
    data[ends - 1, -16:] = 0  # files end in zeros, so chunks follow files
    options: dict[str, Any] = {"level": 1, "kind": Kind.DISK, "_pack_limit": SMALL_PACK}
    for version in range(50):
        left = 0.15 * blocks if version else 0
        for number in rng.permutation(len(ends) - 1):
            if left <= 0:
                break
            size = int(ends[number + 1] - ends[number])
            data[ends[number] : ends[number + 1]] = rng.integers(0, 256, (size, 4096), dtype=np.uint8)
            data[ends[number + 1] - 1, -16:] = 0
            left -= size
        report = publish_bytes(tmp_path, data.tobytes(), str(version), **options)
        assert report.again_bytes <= report.new_bytes * Limits().budget
    (tmp_path / "fresh").mkdir()
    publish_bytes(tmp_path / "fresh", data.tobytes(), "1", **options)
    fetched, frames = fetched_bytes(DirectoryStore(tmp_path / "r"))  # 1.61 for frames alone if nothing is stored again
    live = fetched_bytes(DirectoryStore(tmp_path / "fresh/r"))[1]
    print(f"fetched {fetched / live:.3f}, frames {frames / live:.3f} of {live:,} live bytes")
    assert fetched <= 1.25 * live
    data[: blocks // 10] = rng.integers(0, 256, (blocks // 10, 4096), dtype=np.uint8)
    report = publish_bytes(tmp_path, data.tobytes(), "last", **options)
    changed = blocks // 10 * 4096
    assert report.stored_bytes + report.metadata_bytes <= 1.6 * changed  # however fragmented what is left has become
    assert read_image(tmp_path / "r", "a") == data.tobytes()


def test_deltas_that_are_made_again_replace_the_others(tmp_path: Path, rnd: random.Random) -> None:
    for version, data in (("1", rnd.randbytes(MIB)), ("2", rnd.randbytes(MIB))):
        publish_bytes(tmp_path, data, version)
    index = tmp_path / "r" / deltas_name("a", "2", "1")
    assert not index.exists(), "noise resembles nothing"
    index.write_bytes(b"an index of long ago")
    assert add_deltas(tmp_path / "r", "a", base="1", level=1).units == 0
    assert not index.exists()


def test_a_version_that_deltas_should_start_from_is_named_when_it_is_not_there(tmp_path: Path) -> None:
    publish_bytes(tmp_path, b"x" * 5000, "1")
    asked: tuple[dict[str, Any], ...] = ({"delta_from": ["9"]}, {"parent": "9"})
    for options in asked:
        with pytest.raises(NotFound, match="version 9 of image a"):
            publish_bytes(tmp_path, b"y" * 5000, "2", **options)
