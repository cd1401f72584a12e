"""The reader of NTFS against what ntfs-3g writes, ntfsinfo counts and ntfscat reads."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from filesystems import KIB, MIB, check_files, content_of, make_tree, mounted_ntfs, program, run, sized, whole

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import CLEAN
from trimtransfer.filesystem.ntfs.reader import NtfsFileSystem
from trimtransfer.filesystem.ranges import total


def make(path: Path, *options: object, size: int = 64 * MIB) -> Path:
    sized(path, size)
    run("mkntfs", "-F", "-q", "-Q", *options, path)
    return path


def free_clusters(path: Path) -> int:
    """Return the number of free clusters as ntfsinfo counts them."""
    (found,) = re.findall(r"Free Clusters: (\d+)", run("ntfsinfo", "-m", path))
    return int(found)


def ntfscat(path: Path, name: bytes) -> bytes:
    return subprocess.run([program("ntfscat"), path, name], check=True, capture_output=True).stdout


def resident(files: dict[bytes, bytes], file_system: NtfsFileSystem) -> tuple[bytes, ...]:
    """Return the names of short files that are stored within their records."""
    short = {entry.path for entry in file_system.files() if entry.size < 800 and not len(entry.extents)}
    assert b"tiny" in short
    return tuple(name for name in files if name in short)


@pytest.mark.parametrize("cluster", [512, 4 * KIB, 64 * KIB])
def test_files_and_free_space(tmp_path: Path, rnd: random.Random, cluster: int) -> None:
    files = make_tree(tmp_path / "tree", rnd, links=False)
    path = make(tmp_path / "image", "-c", cluster)
    with mounted_ntfs(path) as place:
        shutil.copytree(tmp_path / "tree", place, dirs_exist_ok=True)
        (place / "zz hard link").hardlink_to(place / "etc/big")
        for name in ("etc/zeros", "many/name 00003 of a rather crowded directory"):
            (place / name).unlink()
            del files[name.encode()]
        with open(place / "sparse", "wb") as file:
            file.seek(7 * MIB)
            file.write(b"island" * 10_000)
            file.truncate(9 * MIB + 1)
        files[b"sparse"] = (place / "sparse").read_bytes()
    run("ntfsfix", "-n", path)
    file_system = NtfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert (file_system.kind, file_system.block_size) == ("NTFS", cluster)
    assert total(file_system.free()) == free_clusters(path) * cluster
    check_files(file_system, files, elsewhere=resident(files, file_system))
    for name in (b"etc/big", b"tiny", b"sparse"):
        assert ntfscat(path, name) == files[name]


def test_compressed_files_have_no_extents(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    with mounted_ntfs(path, "compression") as place:
        (place / "packed").mkdir()
        os.setxattr(place / "packed", "system.ntfs_attrib_be", struct.pack(">I", 0x800))
        (place / "packed" / "file").write_bytes(b"compress me, please. " * 100_000)
        (place / "plain").write_bytes(b"not me. " * 10_000)
    file_system = NtfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert total(file_system.free()) == free_clusters(path) * 4 * KIB
    packed, plain = file_system.files()
    assert (packed.path, packed.size, len(packed.extents)) == (b"packed/file", 2_100_000, 0)
    assert content_of(plain, file_system.volume.read) == b"not me. " * 10_000


def test_scattered_files_and_streams(tmp_path: Path, rnd: random.Random) -> None:
    """A file in hundreds of pieces has its runs in several records."""
    path = make(tmp_path / "image", "-c", 512, size=12 * MIB)
    with mounted_ntfs(path, "streams_interface=windows") as place:
        count = 0
        while shutil.disk_usage(place).free > 256 * KIB:
            (place / f"{count:05}").write_bytes(rnd.randbytes(1024))
            count += 1
        for number in range(0, count, 2):
            (place / f"{number:05}").unlink()
        size = min(shutil.disk_usage(place).free - 128 * KIB, 900 * count // 2)
        big = rnd.randbytes(size)
        (place / "big").write_bytes(big)
        (place / "00001:stream").write_bytes(rnd.randbytes(5000))
        odd = {f"{number:05}".encode(): (place / f"{number:05}").read_bytes() for number in range(1, count, 2)}
    file_system = NtfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert total(file_system.free()) == free_clusters(path) * 512
    check_files(file_system, odd | {b"big": big})
    assert max(len(entry.extents) for entry in file_system.files()) > 300


def test_a_table_in_many_pieces(tmp_path: Path, rnd: random.Random) -> None:
    """The table of files grows into what is left free in between: its own runs lie in several of its records."""
    path = make(tmp_path / "image", "-c", 512, size=20 * MIB)
    with mounted_ntfs(path) as place:
        count = 0
        while shutil.disk_usage(place).free > MIB:
            (place / f"f{count}").write_bytes(rnd.randbytes(8 * KIB))
            count += 1
        for number in range(0, count, 2):
            (place / f"f{number}").unlink()
        number = 0
        while shutil.disk_usage(place).free > 3 * MIB:
            (place / f"t{number}").write_bytes(b"x")
            number += 1
        files = {os.fsencode(one.name): one.read_bytes() for one in place.iterdir()}
    file_system = NtfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert total(file_system.free()) == free_clusters(path) * 512
    tiny = tuple(name for name, content in files.items() if len(content) < 2)
    check_files(file_system, files, elsewhere=tiny)
    assert len(file_system._extents(0)) > 200


def edit(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def record(path: Path, number: int) -> int:
    """Return where a record of a new volume lies."""
    boot = path.read_bytes()[:512]
    return int.from_bytes(boot[48:56], "little") * 4096 + number * 1024


def test_a_dirty_volume(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    at = record(path, 3)
    data = path.read_bytes()[at : at + 512]
    mark = data.index(b"\x03\x01\x00\x00", data.index(struct.pack("<I", 0x70)))  # version 3.1, flags
    for flags, reason in ((1, "marked dirty"), (0x8, "volume flags 0x8"), (0x4000, "0x4000")):
        edit(path, at + mark + 2, struct.pack("<H", flags))
        assert reason in NtfsFileSystem(whole(path)).state


def restart_page(*, sequence: int, client: int, flags: int, version: int = 1) -> bytes:
    page = bytearray(4096)
    page[:4] = b"RSTR"
    struct.pack_into("<HHQIIHhh", page, 4, 0x1E, 9, 0, 4096, 4096, 0x30, 1 % version, version)
    struct.pack_into("<QHHHH", page, 0x30, sequence, 1, 0xFFFF, client, flags)
    struct.pack_into("<H", page, 0x1E, 7)
    for end in range(512, 4097, 512):
        struct.pack_into("<H", page, end - 2, 7)
    return bytes(page)


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([(5, 0xFFFF, 0), (4, 0, 0)], ""),
        ([(5, 0, 2), (4, 0xFFFF, 0)], ""),
        ([(4, 0xFFFF, 0), (5, 0, 0)], "must be recovered"),
        ([(5, 0, 0), (4, 0, 2)], "must be recovered"),
    ],
)
def test_the_journal(tmp_path: Path, pages: list[tuple[int, int, int]], reason: str) -> None:
    """The newer of two restart areas decides."""
    path = make(tmp_path / "image")
    file_system = NtfsFileSystem(whole(path))
    (first,) = (int(row[1]) for row in file_system._extents(2)[:1])
    for number, (sequence, client, flags) in enumerate(pages):
        page = restart_page(sequence=sequence, client=client, flags=flags)
        edit(path, first + 4096 * number, page)
    state = NtfsFileSystem(whole(path)).state
    assert reason in state if reason else state == CLEAN
    edit(path, first, restart_page(sequence=9, client=0xFFFF, flags=2, version=2))
    assert "in its own memory" in NtfsFileSystem(whole(path)).state
    edit(path, first, b"none" + bytes(508))
    edit(path, first + 4096, b"none")
    assert "restart page" in NtfsFileSystem(whole(path)).state


def test_a_sleeping_windows(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    (tmp_path / "file").write_bytes(b"HIBR" + bytes(40_000))
    run("ntfscp", path, tmp_path / "file", "hiberfil.sys")
    assert "sleeps" in NtfsFileSystem(whole(path)).state
    (entry,) = NtfsFileSystem(whole(path)).files()
    edit(path, int(entry.extents[0, 1]), b"wake")
    assert NtfsFileSystem(whole(path)).state == CLEAN


def test_maps_that_disagree(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    (tmp_path / "file").write_bytes(b"content" * 10_000)
    run("ntfscp", path, tmp_path / "file", "name")
    file_system = NtfsFileSystem(whole(path))
    (entry,) = file_system.files()
    cluster = int(entry.extents[0, 1]) // 4096
    (place,) = (int(row[1]) for row in file_system._extents(6)[:1])
    bits = path.read_bytes()[place + cluster // 8]
    edit(path, place + cluster // 8, bytes([bits & ~(1 << cluster % 8)]))
    assert "in use and marked free" in NtfsFileSystem(whole(path)).state
    edit(path, place + cluster // 8, bytes([bits]))
    assert NtfsFileSystem(whole(path)).state == CLEAN
    edit(path, record(path, 64), bytes(1024))
    assert "map of records" in NtfsFileSystem(whole(path)).state
    edit(path, record(path, 1) + 510, b"??")
    with pytest.raises(FormatError, match="written in whole"):
        list(NtfsFileSystem(whole(path)).files())


def test_a_copy_of_the_table_that_differs(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    mirror = int.from_bytes(path.read_bytes()[56:64], "little") * 4096
    edit(path, mirror + 100, b"other")
    assert "copy of its first file records" in NtfsFileSystem(whole(path)).state
