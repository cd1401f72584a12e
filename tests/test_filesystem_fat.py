"""The reader of FAT against what mkfs.fat, mtools and fsck.fat make and say of it."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import pytest
from filesystems import KIB, MIB, check_files, make_tree, run, sized, whole

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import CLEAN
from trimtransfer.filesystem.fat.directory import entries
from trimtransfer.filesystem.fat.reader import FatFileSystem
from trimtransfer.filesystem.ranges import total

VARIANTS = {
    "FAT12": (14 * MIB, "-F 12 -s 8"),
    "FAT12, odd": (14 * MIB, "-F 12 -s 8 -f 1 -r 1024"),
    "FAT16": (64 * MIB, "-F 16"),
    "FAT16, 4 KiB sectors": (64 * MIB, "-F 16 -S 4096 -s 1"),
    "FAT32": (64 * MIB, "-F 32 -s 1"),
    "FAT32, 4 KiB clusters": (300 * MIB, "-F 32 -s 8"),
}


def make(path: Path, options: str, tree: Path | None = None, *, size: int = 64 * MIB) -> Path:
    sized(path, size)
    run("mkfs.fat", *options.split(), path)
    if tree:
        run("mcopy", "-s", "-i", path, *tree.iterdir(), "::")
    return path


def clusters(path: Path) -> tuple[int, int]:
    """Return used and all clusters as fsck.fat counts them."""
    ((used, count),) = re.findall(r" (\d+)/(\d+) clusters", run("fsck.fat", "-n", path))
    return int(used), int(count)


@pytest.mark.parametrize(("size", "options"), VARIANTS.values(), ids=VARIANTS.keys())
def test_all_variants(tmp_path: Path, rnd: random.Random, size: int, options: str) -> None:
    files = make_tree(tmp_path / "tree", rnd, links=False, names=300)
    path = make(tmp_path / "image", options, tmp_path / "tree", size=size)
    for name in ("many/name 00003 of a rather crowded directory", "etc/zeros", "tiny"):
        run("mdel", "-i", path, f"::{name}")
        del files[name.encode()]
    file_system = FatFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert file_system.kind == f"FAT{options.split()[1]}"
    used, count = clusters(path)
    assert total(file_system.free()) == (count - used) * file_system.block_size
    check_files(file_system, files)


def test_scattered_files(tmp_path: Path, rnd: random.Random) -> None:
    path = make(tmp_path / "image", "-F 16 -s 1", size=4 * MIB)
    (tmp_path / "d").mkdir()
    small = rnd.randbytes(512)
    for number in range(1000):
        (tmp_path / "d" / f"{number}.x").write_bytes(small)
    run("mcopy", "-s", "-i", path, tmp_path / "d", "::")
    free = total(FatFileSystem(whole(path)).free())
    (tmp_path / "rest").write_bytes(rnd.randbytes(free))
    run("mcopy", "-i", path, tmp_path / "rest", "::")
    run("mdel", "-i", path, *(f"::d/{number}.x" for number in range(0, 1000, 2)))
    (tmp_path / "big").write_bytes(rnd.randbytes(512 * 400 - 7))
    run("mcopy", "-i", path, tmp_path / "big", "::")
    file_system = FatFileSystem(whole(path))
    assert file_system.state == CLEAN
    used, count = clusters(path)
    assert total(file_system.free()) == (count - used) * 512
    files = {f"d/{number}.x".encode(): small for number in range(1, 1000, 2)}
    check_files(file_system, files | {name: (tmp_path / name.decode()).read_bytes() for name in (b"big", b"rest")})
    assert max(len(entry.extents) for entry in file_system.files()) > 100


def edit(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (65, b"\1", "not unmounted"),
        (65, b"\2", "disk errors"),
        (32 * 512 + 4, struct.pack("<I", 0x07FFFFFF), "not unmounted"),
        (32 * 512 + 400, b"\7", "copies of its table differ"),
        (512 + 488, b"\7", "its summary says"),
    ],
)
def test_what_is_not_clean(tmp_path: Path, at: int, data: bytes, reason: str) -> None:
    path = make(tmp_path / "image", "-F 32 -s 1")
    assert FatFileSystem(whole(path)).state == CLEAN
    edit(path, at, data)
    assert reason in FatFileSystem(whole(path)).state


def chained(tmp_path: Path) -> tuple[Path, int]:
    """Return a FAT16 image with two files of four clusters, from cluster 2 on, and where its only table is."""
    path = make(tmp_path / "image", "-F 16 -s 1 -f 1 -R 1", size=4 * MIB)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 2000)
        run("mcopy", "-i", path, tmp_path / name, "::")
    return path, 512


@pytest.mark.parametrize(
    ("cluster", "following", "reason"),
    [
        (4, 3, "a circle or shared ones"),
        (5, 6, "a chain for 2000 bytes"),
        (3, 8, "a chain for 2000 bytes"),
        (3, 0, "a chain for 2000 bytes"),
        (3, 0xFFF0, "a chain within"),
        (3, 1, "a chain within"),
        (3, 0xFFFF, "a chain for 2000 bytes"),
        (5, 0, "a chain within"),
    ],
)
def test_broken_chains(tmp_path: Path, cluster: int, following: int, reason: str) -> None:
    path, table = chained(tmp_path)
    assert FatFileSystem(whole(path)).state == CLEAN
    edit(path, table + 2 * cluster, struct.pack("<H", following))
    state = FatFileSystem(whole(path)).state
    assert state != CLEAN
    if following != 0 and cluster != 3:
        assert reason in state


def test_too_many_clusters_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-F 32 -s 1")
    edit(path, 32, struct.pack("<I", 0xFFFFFFF))
    with pytest.raises(FormatError, match="a possible size"):
        FatFileSystem(whole(path))


def short(name: bytes, *, kind: int = 0x20, case: int = 0) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name, kind, case, 0, 0, 0, 0, 0, 0, 0, 7, KIB)


def test_names() -> None:
    long = struct.pack(
        "<B10sBBB12sH4s", 0x41, "a b.c".encode("utf-16-le"), 15, 0, 0x9D, b"\0\0" + b"\xff" * 10, 0, b"\xff" * 4
    )
    data = short(b"\x05AB     TXT") + short(b"README  TXT", case=0x18) + short(b"LABEL      ", kind=8)
    data += (
        short(b"\xe5GONE   TXT")
        + short(b"NOEXT      ")
        + long
        + short(b"OTHER      ")
        + bytes(32)
        + short(b"AFTER      ")
    )
    assert [entry.name for entry in entries(data, wide=False)] == [b"\xe5AB.TXT", b"readme.txt", b"NOEXT", b"OTHER"]
    assert [entry.cluster for entry in entries(data, wide=True)] == [7] * 4
