"""Journals and the small files of a side directory: damaged, torn or foreign ones cost work, never correctness."""

from __future__ import annotations

import multiprocessing
import os
import random
import stat
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.journal import Base, Journal, JournalKey, boot_id, load_journal
from trimtransfer.assembly.partial import BATCH_BYTES, MAX_UNSYNCED, Batches
from trimtransfer.assembly.side import RACY_NS, FileState, Installed, SideDirectory
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.chunk import object_digest
from trimtransfer.errors import FormatError, Locked, TargetRefused
from trimtransfer.table import Table, encode_full

KEY = JournalKey(bytes(range(32)), 1 << 30, Base.ZEROS)
HERE, ELSEWHERE = b"a" * 16, b"b" * 16


def pairs(extents: Extents) -> list[tuple[int, int]]:
    """Return (start, end) of extents."""
    return list(zip(extents.starts.tolist(), extents.ends.tolist(), strict=True))


def write_journal(path: Path) -> None:
    """Write a journal with two extents before a barrier and two after it."""
    journal = Journal.create(path, KEY, boot=HERE)
    journal.add(np.array([0, 5000]), np.array([100, 50]))
    journal.barrier(journal.position)
    journal.add_one(100, 100)
    journal.add_one(9000, 1)
    journal.close()


def test_within_a_boot_everything_counts_after_it_what_a_barrier_covers(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    assert load_journal(path, boot=HERE) is not None
    key, extents = load_journal(path, boot=HERE) or pytest.fail("unreadable")
    assert (key, pairs(extents)) == (KEY, [(0, 200), (5000, 5050), (9000, 9001)])
    key, extents = load_journal(path, boot=ELSEWHERE) or pytest.fail("unreadable")
    assert pairs(extents) == [(0, 100), (5000, 5050)]


def test_a_barrier_covers_only_what_was_written_before_its_sync_began(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal", KEY, boot=HERE)
    journal.add_one(0, 10)
    position = journal.position
    journal.add_one(20, 10)
    journal.barrier(position)
    journal.close()
    _, extents = load_journal(tmp_path / "journal", boot=ELSEWHERE) or pytest.fail("unreadable")
    assert pairs(extents) == [(0, 10)]


def test_what_an_earlier_run_did_starts_a_new_journal(tmp_path: Path) -> None:
    done = Extents.of(np.array([5, 100]), np.array([5, 10]))
    Journal.create(tmp_path / "journal", KEY, done=done, boot=HERE).close()
    _, extents = load_journal(tmp_path / "journal", boot=ELSEWHERE) or pytest.fail("unreadable")
    assert pairs(extents) == [(5, 10), (100, 110)]
    assert os.listdir(tmp_path) == ["journal"]


def test_every_truncation_is_a_shorter_journal_or_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    whole = path.read_bytes()
    _, all_of_it = load_journal(path, boot=HERE) or pytest.fail("unreadable")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = load_journal(path, boot=HERE)
        if found is not None:
            assert all_of_it.covers(found[1].starts, found[1].ends - found[1].starts).all()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    whole = path.read_bytes()
    _, all_of_it = load_journal(path, boot=HERE) or pytest.fail("unreadable")
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = load_journal(path, boot=HERE)
        if found is not None:
            assert found[0] == KEY
            assert all_of_it.covers(found[1].starts, found[1].ends - found[1].starts).all()


def test_random_bytes_and_other_files_are_no_journal(tmp_path: Path, rnd: random.Random) -> None:
    path = tmp_path / "journal"
    assert load_journal(path) is None
    for size in (0, 1, 79, 112, 5000):
        path.write_bytes(rnd.randbytes(size))
        assert load_journal(path) is None


@pytest.mark.parametrize(("kind", "count", "payload"), [(2, 2, bytes(16)), (3, 1, bytes(8)), (1, 1, b"\xff" * 16)])
def test_blocks_that_break_a_rule_never_count_though_their_checks_fit(
    tmp_path: Path, kind: int, count: int, payload: bytes
) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    before = load_journal(path, boot=HERE) or pytest.fail("unreadable")
    fields = struct.pack("<4sBxxxI", b"TTJb", kind, count)
    with open(path, "ab") as file:
        file.write(fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload)
    found = load_journal(path, boot=HERE)
    assert found is None or pairs(found[1]) == pairs(before[1])


def test_boot_id_is_this_boot() -> None:
    assert len(boot_id()) == 16
    if Path("/proc/sys/kernel/random/boot_id").exists():
        assert boot_id() == boot_id()


def test_batches_are_synced_by_size() -> None:
    synced: list[int] = []
    batches = Batches(lambda: synced.append(1))
    for _ in range(64):
        batches.fetched(1 << 20)
    assert 64 * (1 << 20) // MAX_UNSYNCED <= len(synced) <= 64 * (1 << 20) // BATCH_BYTES


# ---- tables


def sample_tables(count: int) -> list[Table]:
    """Return tables of one chunk each."""
    return [
        Table.from_records(np.array([4096], dtype=np.uint32), np.full((1, 32), number, dtype=np.uint8))
        for number in range(count)
    ]


def test_tables_are_kept_and_damage_is_absence(tmp_path: Path) -> None:
    tables = sample_tables(5)
    with TableFile(tmp_path / "tables.bin") as file:
        for table in tables:
            file.add(table.digest(), encode_full(table))
            file.add(table.digest(), encode_full(table))
        assert len(file) == 5
    whole = (tmp_path / "tables.bin").read_bytes()
    for length in [*range(0, len(whole), 7), len(whole)]:
        (tmp_path / "tables.bin").write_bytes(whole[:length])
        with TableFile(tmp_path / "tables.bin") as file:
            known = [table for table in tables if file.get(table.digest(), size=4096) is not None]
            assert known == tables[: len(known)]
            for table in tables:
                file.add(table.digest(), encode_full(table))
            assert all(file.get(table.digest(), size=4096) is not None for table in tables)
    for at in range(16, len(whole)):
        (tmp_path / "tables.bin").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with TableFile(tmp_path / "tables.bin", writable=False) as file:
            for table in tables:
                found = file.get(table.digest(), size=4096)
                assert found is None or found.to_bytes() == table.to_bytes()


def test_compacting_keeps_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtransfer.assembly.tablefile._SLACK", 0)
    tables = sample_tables(20)
    with TableFile(tmp_path / "tables.bin") as file:
        for table in tables:
            file.add(table.digest(), encode_full(table))
        before = (tmp_path / "tables.bin").stat().st_size
        file.compact([tables[3].digest(), tables[4].digest()])
        assert len(file) == 2
        assert file.get(tables[3].digest(), size=4096) is not None
        file.add(tables[0].digest(), encode_full(tables[0]))
    assert (tmp_path / "tables.bin").stat().st_size < before / 4
    with TableFile(tmp_path / "tables.bin") as file:
        assert [table.digest() in file for table in tables[:5]] == [True, False, False, True, True]


# ---- state and lock


def installed(path: Path) -> Installed:
    """Return a recorded state of a file."""
    return Installed("disk", "1", bytes(32), bytes(32), FileState.of(os.stat(path)))


def aged(path: Path) -> Path:
    """Write a file that is some seconds old."""
    path.write_bytes(b"image")
    os.utime(path, ns=(0, time.time_ns() - 10 * RACY_NS))
    return path


def test_a_file_is_believed_while_it_looks_the_same(tmp_path: Path) -> None:
    path = aged(tmp_path / "disk.img")
    state = installed(path).file
    assert state.believed(os.stat(path))
    changes: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(b"other"),
        lambda path: os.utime(path, ns=(0, time.time_ns() - 10 * RACY_NS)),
        lambda path: path.chmod(0o600),
        lambda path: (path.rename(tmp_path / "x"), aged(path)),
    ]
    for change in changes:
        path = aged(tmp_path / "disk.img")
        state = installed(path).file
        time.sleep(0.02)  # ctime has the resolution of the kernel's clock tick
        change(path)
        assert not state.believed(os.stat(path))


def test_a_file_written_just_before_the_recording_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"image")
    assert not installed(path).file.believed(os.stat(path))


def test_a_device_is_never_believed(tmp_path: Path) -> None:
    found = os.stat("/dev/null")
    state = replace(FileState.of(found), recorded_ns=found.st_mtime_ns + 10 * RACY_NS)
    assert not stat.S_ISREG(found.st_mode)
    assert not state.believed(found)


def test_state_is_read_strictly(tmp_path: Path, rnd: random.Random) -> None:
    state = installed(aged(tmp_path / "disk.img"))
    data = state.to_bytes()
    assert Installed.from_bytes(data) == state
    for length in range(len(data) - 1):
        with pytest.raises(FormatError):
            Installed.from_bytes(data[:length])
    for _ in range(500):
        damaged = bytearray(data)
        damaged[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
        try:
            Installed.from_bytes(bytes(damaged))
        except FormatError:
            continue
    for bad in (b"[]", b"{}", b"null", b'"x"', data.replace(b'"1"', b'"../1"'), b"[" * 100_000):
        with pytest.raises(FormatError):
            Installed.from_bytes(bad)


def test_kept_manifests_count_only_with_their_digest(tmp_path: Path) -> None:
    side = SideDirectory(tmp_path / "disk.img")
    with side.locked():
        side.manifest.write_bytes(b"no manifest")
        assert side.read_manifest(side.manifest) is None
        assert side.read_manifest(side.manifest, object_digest(b"no manifest")) is None
        assert side.read_manifest(side.target) is None


def _hold(path: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with SideDirectory(path).locked():
        ready.set()
        done.wait(30)


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "disk.img", ready, done))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(Locked, match=f"process {process.pid}"), SideDirectory(tmp_path / "disk.img").locked():
            pass
    finally:
        done.set()
        process.join(30)
    with SideDirectory(tmp_path / "disk.img").locked():
        pass
    assert os.listdir(tmp_path) == [], "a directory with nothing but the lock in it goes away"


def test_a_side_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    side = tmp_path / "disk.img.medv"
    side.mkdir()
    side.chmod(0o777)
    with pytest.raises(TargetRefused, match="everybody"), SideDirectory(tmp_path / "disk.img").locked():
        pass
    side.rmdir()
    (tmp_path / "real").mkdir()
    side.symlink_to(tmp_path / "real")
    with pytest.raises(TargetRefused, match="not a directory"), SideDirectory(tmp_path / "disk.img").locked():
        pass
