"""Seeds from paths: everything that is there is found, whatever the file becomes later, and nothing is ever raised."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import cut_disk

from trimtransfer.chunk import BLOCK_SIZE, REGION_SIZE, Kind, chunk_digest
from trimtransfer.chunker import ZERO, cut
from trimtransfer.errors import Cancelled
from trimtransfer.index.prefix import PrefixSet
from trimtransfer.index.scan import SMALL
from trimtransfer.index.seed import IndexedSeed, open_seed, seed_from_path
from trimtransfer.index.tree import TreeIndex
from trimtransfer.index.update import StopRule
from trimtransfer.localfile import Guard, OpenFiles, open_local, read_into
from trimtransfer.table import Table

Chunk = bytes


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests write files just before they scan them."""
    monkeypatch.setattr("trimtransfer.index.scan.SETTLED_NANOSECONDS", 0)


def chunks_of(data: bytes, *, padded: bool = False) -> list[Chunk]:
    """The chunks of a region as the specification has them: of an image, or of a host file (padded)."""
    if padded:
        data = data.ljust(-(-len(data) // BLOCK_SIZE) * BLOCK_SIZE, b"\0")
    found, at = [], 0
    for record in cut_disk(data):
        if not record.zero:
            found.append(data[at : at + record.length])
        at += record.length
    return found


def key(chunk: Chunk) -> tuple[int, int]:
    digest = blake3(chunk, derive_key_context="trimtransfer 1 chunk").digest()
    return int.from_bytes(digest[:8], "little"), len(chunk)


def look_up(seed: IndexedSeed, chunks: list[Chunk]) -> list[int]:
    keys = [key(chunk) for chunk in chunks]
    return seed.find(
        np.array([prefix for prefix, _ in keys], dtype=np.uint64),
        np.array([length for _, length in keys], dtype=np.uint32),
    ).tolist()


def read(seed: IndexedSeed, row: int, length: int) -> bytes | None:
    buffer = bytearray(b"\xa5" * length)
    return bytes(buffer) if seed.read(row, memoryview(buffer)) else None


def assert_holds(seed: IndexedSeed, chunks: list[Chunk]) -> None:
    """Every chunk is found and reads back byte for byte."""
    for chunk, row in zip(chunks, look_up(seed, chunks), strict=True):
        assert row >= 0
        assert read(seed, row, len(chunk)) == chunk


def content(rng: np.random.Generator, size: int) -> bytes:
    """Bytes that have everything the cut rule looks at: random blocks, zero runs short and long, file ends."""
    data = bytearray(rng.bytes(size))
    for at in range(0, size, 3 * BLOCK_SIZE):
        choice = int(rng.integers(6))
        if choice < 2:
            length = int(rng.integers(1, 8)) * BLOCK_SIZE
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif choice == 2:
            end = min(size, at + BLOCK_SIZE)
            data[end - 100 : end] = bytes(100)
    return bytes(data[:size])


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(("random", "zero", "tail", "text")), min_size=1, max_size=40),
    st.integers(0, BLOCK_SIZE - 1),
    st.integers(0, 2**32 - 1),
)
def test_a_file_holds_its_chunks(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[str], short: int, number: int
) -> None:
    rng = np.random.default_rng(number)
    made = {"random": rng.bytes(BLOCK_SIZE), "zero": bytes(BLOCK_SIZE), "text": b"text" * 1024}
    made["tail"] = rng.bytes(BLOCK_SIZE - 16) + bytes(16)
    data = b"".join(made[name] for name in blocks)[: len(blocks) * BLOCK_SIZE - short]
    directory = tmp_path_factory.mktemp("seed")
    (directory / "image").write_bytes(data)
    with seed_from_path(directory / "image", Kind.DISK, scratch=directory) as seed:
        assert seed.category == "seed"
        assert_holds(seed, chunks_of(data))
        assert_holds(seed, chunks_of(data, padded=True))
        assert look_up(seed, [b"not there"]) == [-1]


def test_a_tree_holds_small_and_large_files(tmp_path: Path, rng: np.random.Generator) -> None:
    sizes = (1, 4096, 5000, 70_001, (1 << 20) + 17, SMALL, SMALL + 1, 3 * SMALL + 5)
    data = {f"a/{'b/' * n}file{n}": content(rng, size) for n, size in enumerate(sizes)}
    for name, value in data.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(value)
    (tmp_path / "tree/empty").touch()
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        for value in data.values():
            assert_holds(seed, chunks_of(value, padded=True))
            if len(value) >= 1 << 20:
                assert_holds(seed, chunks_of(value))
        assert seed.report is not None
        assert (seed.report.scanned, seed.report.bytes) == (len(data), sum(sizes))


def test_regions_begin_anew_and_holes_are_not_read(tmp_path: Path, rng: np.random.Generator) -> None:
    first, second = content(rng, 100_000), content(rng, 50_001)
    with (tmp_path / "sparse").open("wb") as file:
        file.write(first)
        file.seek(5 * REGION_SIZE)
        file.write(second)
    with seed_from_path(tmp_path / "sparse", Kind.DISK, scratch=tmp_path) as seed:
        assert_holds(seed, chunks_of(first.ljust(REGION_SIZE // 16, b"\0")))
        assert_holds(seed, chunks_of(second))
        assert_holds(seed, chunks_of(second, padded=True))
        assert seed.report is not None
        assert seed.report.bytes <= REGION_SIZE + len(second)


def test_an_old_partition_has_a_grid_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    start = 63 * 512
    inside = content(rng, 3 << 20)
    table = bytearray(start)
    entry = struct.pack("<B3xB3xII", 0x80, 0x83, 63, len(inside) // 512)
    table[446 : 446 + 16] = entry
    table[510:512] = b"\x55\xaa"
    (tmp_path / "disk").write_bytes(bytes(table) + inside)
    with seed_from_path(tmp_path / "disk", Kind.DISK, scratch=tmp_path) as seed:
        assert_holds(seed, chunks_of(bytes(table)))
        assert_holds(seed, chunks_of(inside))


def test_other_files_are_cut_at_any_byte(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.bytes(1_234_567)
    (tmp_path / "file").write_bytes(data)
    chunks, at = [], 0
    for length in cut(Kind.BYTES, data).tolist():
        chunks.append(data[at : at + length])
        at += length
    with seed_from_path(tmp_path / "file", Kind.BYTES, scratch=tmp_path) as seed:
        assert len(chunks) > 5
        assert_holds(seed, chunks)
        assert len(seed) == len(chunks)


def test_known_tables_need_no_scan(tmp_path: Path, rng: np.random.Generator) -> None:
    data = content(rng, 500_000)
    records = cut(Kind.DISK, data)
    digests = b"".join(chunk_digest(chunk) for chunk in chunks_of(data))
    table = Table.from_records(records, np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32))
    (tmp_path / "image").write_bytes(b"\xee" * 8192 + data)
    with seed_from_path(tmp_path / "image", Kind.DISK, scratch=tmp_path, known_tables=[(8192, table)]) as seed:
        assert_holds(seed, chunks_of(data))
        assert len(seed) == int((records < ZERO).sum())


def test_only_what_changed_is_scanned_again(tmp_path: Path, rng: np.random.Generator) -> None:
    tree, scratch = tmp_path / "tree", tmp_path / "scratch"
    for n in range(20):
        (tree / str(n % 3)).mkdir(exist_ok=True, parents=True)
        (tree / str(n % 3) / str(n)).write_bytes(content(rng, 20_000))
    for scanned in (20, 0, 1):
        if scanned == 1:
            (tree / "0/0").write_bytes(content(rng, 20_000))
        with seed_from_path(tree, Kind.DISK, scratch=scratch) as seed:
            assert seed.report is not None
            assert (seed.report.scanned, seed.report.unchanged, seed.report.removed) == (scanned, 20 - scanned, 0)
            for path in tree.rglob("*/*"):
                assert_holds(seed, chunks_of(path.read_bytes(), padded=True))


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "file").write_bytes(b"one" * 1000)
    for _ in range(2):
        with seed_from_path(tmp_path / "file", Kind.DISK, scratch=tmp_path / "scratch") as seed:
            assert seed.report is not None
            assert (seed.report.scanned, seed.report.changing) == (1, 1)


def test_a_copy_is_at_hand_where_the_first_lies(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.bytes(BLOCK_SIZE - 20) + bytes(20)
    (tmp_path / "tree").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name).write_bytes(data)
    (chunk,) = chunks_of(data)
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        rows = seed.rows(*key(chunk)).tolist()
        assert len(rows) == 3
        assert look_up(seed, [chunk])[0] in rows
        (tmp_path / "tree/a").write_bytes(bytes(len(data)))
        (tmp_path / "tree/b").unlink()
        assert [read(seed, row, len(chunk)) for row in rows].count(chunk) == 1


def test_the_order_of_reads_is_by_file_and_offset(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "tree").mkdir()
    chunks = []
    for n in range(3):
        data = content(rng, 400_000)
        chunks += chunks_of(data, padded=True)
        (tmp_path / "tree" / str(n)).write_bytes(data)
    rng.shuffle(chunks)  # type: ignore[arg-type]  # a list will do
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        rows = np.array(look_up(seed, chunks))
        columns = seed._indexes[0].columns
        sorted_rows = rows[seed.order(rows)]
        places = list(zip(columns.files[sorted_rows].tolist(), columns.offsets[sorted_rows].tolist(), strict=True))
        assert places == sorted(places)
        assert sorted(seed.order(rows).tolist()) == list(range(len(rows)))


def _truncate(path: Path) -> None:
    os.truncate(path, 5000)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\x01" * path.stat().st_size)


def _replace_by_file(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def _replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _replace_parent_by_link(path: Path) -> None:
    other = path.parent.with_name("elsewhere")
    shutil.copytree(path.parent, other)
    shutil.rmtree(path.parent)
    path.parent.symlink_to(other)


LIES = [
    *(_truncate, _empty, _overwrite, Path.unlink, _replace_by_file, _replace_by_fifo, _replace_by_link),
    *(_replace_by_directory, _replace_by_socket, _replace_by_device, _replace_parent_by_link),
]


@pytest.mark.parametrize("change", LIES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("opened", [False, True], ids=["unopened", "opened"])
def test_nothing_is_raised_and_nothing_hangs_whatever_becomes_of_a_file(
    tmp_path: Path, rng: np.random.Generator, change: Callable[[Path], object], opened: bool
) -> None:
    path = tmp_path / "tree/inner/file"
    path.parent.mkdir(parents=True)
    data = content(rng, 73 * BLOCK_SIZE)
    path.write_bytes(data)
    chunks = chunks_of(data)
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        rows = look_up(seed, chunks)
        if opened:
            assert_holds(seed, chunks)
        change(path)
        answers = [read(seed, row, len(chunk)) for row, chunk in zip(rows, chunks, strict=True)]
        if not opened and change not in (_truncate, _overwrite):
            assert answers == [None] * len(chunks)  # not the file that was indexed: not even looked into
            assert seed.unreadable == len(chunks)
        elif change is _truncate:
            assert answers[-1] is None
        elif change is _overwrite:
            assert all(answer != chunk for answer, chunk in zip(answers, chunks, strict=True))


def test_rows_that_never_were_are_unreadable(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "file").write_bytes(rng.bytes(10_000))
    with seed_from_path(tmp_path / "file", Kind.DISK, scratch=tmp_path) as seed:
        for row in (-1, len(seed), 2**63 - 1):
            assert read(seed, row, 4096) is None
    assert read(seed, 0, 4096) is None  # closed


def test_what_is_not_there_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        seed_from_path(tmp_path / "nothing", Kind.DISK, scratch=tmp_path)


def test_a_fifo_as_seed_is_empty_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with seed_from_path(tmp_path / "fifo", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        assert len(seed) == 0
        assert seed.report is not None
        assert seed.report.skipped.special == 1


def test_a_named_link_is_followed(tmp_path: Path, rng: np.random.Generator) -> None:
    data = content(rng, 100_000)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with seed_from_path(tmp_path / "link", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        assert_holds(seed, chunks_of(data))


def test_two_processes_may_scan_the_same_seed(tmp_path: Path, rng: np.random.Generator) -> None:
    data = content(rng, 100_000)
    (tmp_path / "file").write_bytes(data)
    scratch = tmp_path / "scratch"
    seed_from_path(tmp_path / "file", Kind.DISK, scratch=scratch).close()
    (directory,) = scratch.iterdir()
    with (
        TreeIndex(directory, kind=Kind.DISK).locked(),
        seed_from_path(tmp_path / "file", Kind.DISK, scratch=scratch) as seed,
    ):
        assert_holds(seed, chunks_of(data))
    assert len(list(scratch.iterdir())) == 2


def test_old_indexes_of_seeds_are_deleted(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for number in range(20):
        path = tmp_path / str(number)
        path.write_bytes(b"x" * 5000)
        seed_from_path(path, Kind.DISK, scratch=scratch).close()
    assert len(list(scratch.iterdir())) == 16


def test_a_cancelled_scan_goes_on_where_it_stopped(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "tree").mkdir()
    data = [content(rng, SMALL + 1) for _ in range(6)]
    for n, value in enumerate(data):
        (tmp_path / "tree" / str(n)).write_bytes(value)
    cancel = threading.Event()

    def progress(phase: str, done: int, total: int) -> None:
        assert phase == "scan"
        assert total in (0, done)  # unknown, until the end
        cancel.set()

    scratch = tmp_path / "scratch"

    def scan_until_cancelled() -> None:
        while True:  # progress is not reported more often than every tenth of a second
            shutil.rmtree(scratch, ignore_errors=True)
            seed_from_path(tmp_path / "tree", Kind.DISK, scratch=scratch, cancel=cancel, progress=progress)

    with pytest.raises(Cancelled):
        scan_until_cancelled()
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=scratch) as seed:
        for value in data:
            assert_holds(seed, chunks_of(value))


def test_a_scan_that_found_everything_ends(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "tree").mkdir()
    for n in range(4):
        (tmp_path / "tree" / str(n)).write_bytes(rng.bytes(SMALL + 1))
    first = next(iter(os.scandir(tmp_path / "tree")))
    wanted = PrefixSet(np.array([key(c)[0] for c in chunks_of(Path(first).read_bytes())], dtype=np.uint64))
    stop = StopRule(wanted)
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch", stop=stop) as seed:
        assert seed.report is not None
        assert seed.report.scanned < 4
        assert (wanted.met, seed.report.stopped) == (len(wanted), [])


def test_many_threads_share_few_descriptors(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "tree").mkdir()
    chunks = [rng.bytes(BLOCK_SIZE) for _ in range(200)]
    for n, chunk in enumerate(chunks):
        (tmp_path / "tree" / str(n)).write_bytes(chunk)
    with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch") as seed:
        seed._open = OpenFiles(limit=4)
        rows = look_up(seed, chunks)
        before = len(os.listdir("/proc/self/fd"))
        wrong: list[int] = []

        def work(order: list[int]) -> None:
            wrong.extend(n for n in order if read(seed, rows[n], BLOCK_SIZE) != chunks[n])

        threads = [threading.Thread(target=work, args=(rng.permutation(200).tolist(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def block_device(tmp_path: Path, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """A real block device with known content, or a skipped test where none can be made."""
    data = content(rng, 5 << 20)
    (tmp_path / "backing").write_bytes(data)
    losetup = shutil.which("losetup", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    made = losetup and subprocess.run(
        [losetup, "--find", "--show", "--read-only", tmp_path / "backing"], capture_output=True, text=True
    )
    if not losetup or not made or made.returncode:
        pytest.skip("no loop device can be made here (needs root and loop devices)")
    device = made.stdout.strip()
    yield device, data
    subprocess.run([losetup, "--detach", device], check=True)


def test_a_block_device_is_a_seed(tmp_path: Path, block_device: tuple[str, bytes]) -> None:
    device, data = block_device
    for _ in range(2):  # a device does not tell whether it changed, so it is read every time
        with seed_from_path(device, Kind.DISK, scratch=tmp_path / "scratch") as seed:
            assert_holds(seed, chunks_of(data))
            assert seed.report is not None
            assert seed.report.bytes == len(data)


def test_a_file_system_that_does_not_answer_is_given_up_once() -> None:
    guard = Guard(patience=0.05)
    blocked = threading.Event()
    assert guard.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        guard.call(lambda: 1 // 0)
    with pytest.raises(TimeoutError):
        guard.call(blocked.wait)
    assert guard.dead
    started = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            guard.call(lambda: 7)
    assert time.monotonic() - started < 5  # the hundred calls do not wait at all
    blocked.set()


class DeadMount:
    """A file system that never answers: FUSE without anybody at the other end."""

    def __init__(self, point: Path) -> None:
        self._point = os.fsencode(point)
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._descriptor},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if self._library.mount(b"dead", self._point, b"fuse.dead", 0, options):
            os.close(self._descriptor)
            raise OSError(ctypes.get_errno(), "cannot mount")

    def close(self) -> None:
        """Take it away: whoever waits for it gets an error."""
        self._library.umount2(self._point, 2)
        os.close(self._descriptor)


@pytest.fixture
def bury(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mount a dead file system over a directory, or skip the test where that is not allowed."""
    mounts: list[DeadMount] = []

    def mount(point: Path) -> None:
        try:
            mounts.append(DeadMount(point))
        except OSError as reason:
            pytest.skip(f"no file system can be mounted here: {reason}")

    yield mount
    for dead in mounts:
        dead.close()


def finish(function: Callable[[], object]) -> bool:
    """Tell whether a function returns, if not soon; then its thread ends when the dead file system is taken away."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


def test_a_dead_share_does_not_hang_a_scan(
    tmp_path: Path, rng: np.random.Generator, bury: Callable[[Path], None]
) -> None:
    (tmp_path / "tree/a share").mkdir(parents=True)
    data = content(rng, 50_000)
    (tmp_path / "tree/file").write_bytes(data)
    bury(tmp_path / "tree/a share")

    def scan() -> None:
        with pytest.raises(TimeoutError):
            seed_from_path(tmp_path / "tree/a share", Kind.DISK, scratch=tmp_path / "scratch")
        with pytest.raises(TimeoutError):
            seed_from_path(tmp_path / "tree/a share/file", Kind.DISK, scratch=tmp_path / "scratch")
        with seed_from_path(tmp_path / "tree", Kind.DISK, scratch=tmp_path / "scratch") as seed:
            assert_holds(seed, chunks_of(data, padded=True))
            assert seed.report is not None
            assert seed.report.skipped.unreadable == 1
        done.append(True)

    done: list[bool] = []
    assert finish(scan)
    assert done


def test_a_share_that_died_does_not_hang_a_sync(
    tmp_path: Path, rng: np.random.Generator, bury: Callable[[Path], None]
) -> None:
    (tmp_path / "share").mkdir()
    data = content(rng, 50 * BLOCK_SIZE)
    (tmp_path / "share/file").write_bytes(data)
    chunks = chunks_of(data)
    seed_from_path(tmp_path / "share", Kind.DISK, scratch=tmp_path / "scratch").close()
    (directory,) = (tmp_path / "scratch").iterdir()
    bury(tmp_path / "share")
    answers: list[bytes | None] = []

    def use() -> None:
        with open_seed(TreeIndex(directory, kind=Kind.DISK), "share", "seed") as seed:
            answers.extend(
                read(seed, row, len(chunk)) for row, chunk in zip(look_up(seed, chunks), chunks, strict=True)
            )

    assert finish(use)
    assert answers == [None] * len(chunks)


def test_guarded_reads_are_the_same_reads(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.bytes(3_000_001)
    (tmp_path / "file").write_bytes(data)
    guard = Guard()
    descriptor = open_local(str(tmp_path / "file"), guard=guard)
    buffer = bytearray(4_000_000)
    assert read_into(descriptor, memoryview(buffer), 1, guard=guard) == len(data) - 1
    assert buffer[: len(data) - 1] == data[1:]
    os.close(descriptor)
