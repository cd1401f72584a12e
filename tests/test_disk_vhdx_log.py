"""Logs of VHDX files: what they change is read as if the disk had been repaired, and qemu-img's repair is the judge."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest
from disks import Make, needs_qemu_img, qemu_img, sparse_content, write_sparse
from test_disk_refused import change_headers

from trimtransfer.disk import vhdx, vhdx_log
from trimtransfer.disk.crc32c import crc32c
from trimtransfer.disk.source import open_disk
from trimtransfer.errors import FormatError, SourceRefused

pytestmark = needs_qemu_img
SECTOR = 4096
LOG = bytes(range(1, 17))
START, LENGTH = 1 << 20, 1 << 20
Changes = list[tuple[int, bytes | int]]


def entry(sequence: int, tail: int, changes: Changes, size: int, *, log: bytes = LOG) -> bytes:
    """Return an entry that makes changes (offset, a sector's new bytes or a number of zeros) of a file of ``size``."""
    described = -(-(64 + 32 * len(changes)) // SECTOR) * SECTOR
    raw, data = bytearray(described), b""
    for number, (offset, what) in enumerate(changes):
        if isinstance(what, int):
            fields = (b"zero", 0, what.to_bytes(8, "little"), offset, sequence)
        else:
            fields = (b"desc", int.from_bytes(what[-4:], "little"), what[:8], offset, sequence)
            high, low = divmod(sequence, 1 << 32)
            data += b"data" + high.to_bytes(4, "little") + what[8:-4] + low.to_bytes(4, "little")
        vhdx_log.DESCRIPTOR.pack_into(raw, 64 + 32 * number, *fields)
    whole = raw + data
    vhdx_log.ENTRY.pack_into(whole, 0, b"loge", 0, len(whole), tail, sequence, len(changes), 0, log, size, size)
    struct.pack_into("<I", whole, 4, crc32c(bytes(whole)))
    return bytes(whole)


def write_log(path: Path, first: int, entries: list[tuple[int, Changes]], *, log: bytes = LOG) -> None:
    """Write entries (sequence number, changes) one after the other from byte ``first`` of the log on, and around it."""
    size, place = path.stat().st_size, first
    with open(path, "r+b") as file:
        for sequence, changes in entries:
            raw = entry(sequence, first, changes, size, log=log)
            for at in range(0, len(raw), SECTOR):
                file.seek(START + (place + at) % LENGTH)
                file.write(raw[at : at + SECTOR])
            place += len(raw)


def dirty(header: bytearray) -> None:
    header[48:64] = LOG


@pytest.fixture
def made(tmp_path: Path, rnd: random.Random) -> tuple[Path, bytes, int, bytes]:
    """A VHDX, its content, and place and bytes of the first sector of its block table, which is lost from the file."""
    content = sparse_content(9 << 20, rnd)
    make = Make("vhdx", "vhdx", "block_size=1M,log_size=1M")
    path = make.of(write_sparse(tmp_path / "raw", content), tmp_path / "disk")
    raw = path.read_bytes()
    at = raw.index(vhdx.BAT_REGION, vhdx.REGION_OFFSETS[0])
    table = struct.unpack_from("<Q", raw, at + 16)[0]
    sector = raw[table : table + SECTOR]
    with open(path, "r+b") as file:
        file.seek(table)
        file.write(bytes(SECTOR))
    change_headers(path, dirty)
    return path, bytes(content), table, sector


def repaired(path: Path) -> bytes:
    """Return the content that qemu-img finds in a copy once it has replayed the log."""
    copy, raw = path.with_name("copy"), path.with_name("repaired")
    shutil.copy(path, copy)
    qemu_img("check", "-q", "-f", "vhdx", "-r", "all", copy)
    qemu_img("convert", "-f", "vhdx", "-O", "raw", copy, raw)
    return raw.read_bytes()


@pytest.mark.parametrize("first", [0, 5 * SECTOR, LENGTH - SECTOR, LENGTH - 3 * SECTOR])
def test_replayed_in_memory(made: tuple[Path, bytes, int, bytes], first: int) -> None:
    path, content, table, sector = made
    wrong = bytes(SECTOR // 2) + sector[SECTOR // 2 :]
    entries: list[tuple[int, Changes]] = [
        (7, [(table, wrong), (table + SECTOR, 2 * SECTOR)]),
        (8, [(table, SECTOR)]),
        (9, [(table + SECTOR, bytes(SECTOR)), (table, sector)]),
    ]
    write_log(path, first, entries)
    before = path.read_bytes()
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == content
        assert "5 changes" in disk.detail
    assert repaired(path) == content
    assert path.read_bytes() == before


def test_an_older_sequence_and_entries_of_another_log_do_not_count(made: tuple[Path, bytes, int, bytes]) -> None:
    path, content, table, sector = made
    write_log(path, 0, [(1, [(table, SECTOR)]), (2, [(table, SECTOR)])])
    write_log(path, 20 * SECTOR, [(5, [(table, sector)])])
    write_log(path, 40 * SECTOR, [(90, [(table, SECTOR)])], log=bytes(16))
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == content
    assert repaired(path) == content


def test_a_torn_entry_ends_nothing(made: tuple[Path, bytes, int, bytes]) -> None:
    """The last entry was being written when the power failed: those before it count."""
    path, content, table, sector = made
    write_log(path, 0, [(5, [(table, sector)]), (6, [(table, bytes(SECTOR))])])
    with open(path, "r+b") as file:
        file.seek(START + 3 * SECTOR + 100)
        file.write(b"torn")
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == content
    assert repaired(path) == content


def test_refused(made: tuple[Path, bytes, int, bytes]) -> None:
    path, _, table, sector = made
    with pytest.raises(SourceRefused, match="not understood"):
        open_disk(path)
    write_log(path, 0, [(5, [(table, sector), (path.stat().st_size - SECTOR, bytes(SECTOR))])])
    with pytest.raises(SourceRefused, match="more than its tables"):
        open_disk(path)
    write_log(path, 0, [(5, [(table, sector)])])
    os_size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(os_size - (1 << 20))
    with pytest.raises(FormatError, match="cut short"):
        open_disk(path)


def test_damaged_logs(made: tuple[Path, bytes, int, bytes], rnd: random.Random) -> None:
    path, content, table, sector = made
    write_log(path, LENGTH - SECTOR, [(5, [(table, sector)])])
    whole = path.read_bytes()
    log = [START, START + LENGTH - SECTOR]
    for _ in range(60):
        changed = bytearray(whole)
        changed[rnd.choice(log) + rnd.choice((rnd.randrange(128), rnd.randrange(SECTOR)))] ^= 1 << rnd.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(SourceRefused):
            open_disk(path)
    path.write_bytes(whole)
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == content
