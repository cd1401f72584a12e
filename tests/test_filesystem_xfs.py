"""The reader of XFS against what the kernel writes, xfs_db counts and xfs_repair says of it."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from filesystems import KIB, MIB, check_files, make_tree, mounted_xfs, run, sized, whole

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import CLEAN
from trimtransfer.filesystem.ranges import merged, total
from trimtransfer.filesystem.xfs.reader import XfsFileSystem

VARIANTS = {
    "version 5": "",
    "1 KiB blocks": "-b size=1024",
    "8 groups": "-d agcount=8",
    "2 KiB inodes": "-i size=2048",
    "big directory blocks": "-n size=65536",
    "owners": "-m rmapbt=1,reflink=1",
    "no sharing, no sparse inodes": "-m reflink=0 -i sparse=0",
    "4 KiB sectors": "-s size=4096",
    "many runs": "-i nrext64=1",
}


def make(path: Path, options: str = "", *, size: int = 320 * MIB) -> Path:
    sized(path, size)
    run("mkfs.xfs", "-q", *options.split(), path)
    return path


def free_by_xfs_db(path: Path, groups: int, block_size: int, group_blocks: int) -> np.ndarray:
    """Return the free space as xfs_db dumps it, without the blocks that are kept for the trees themselves."""
    found = []
    for group in range(groups):
        dump = run("xfs_db", "-r", "-c", f"agf {group}", "-c", "addr bnoroot", "-c", "btdump", path)
        for line in re.findall(r"^\d+:\[(\d+,\d+)\]", dump, re.M) or re.findall(r"\d+:\[(\d+,\d+)\]", dump):
            start, length = map(int, line.split(","))
            found.append(((group * group_blocks + start) * block_size, length * block_size))
    return merged(np.array(found, dtype=np.int64).reshape(-1, 2))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_all_variants(tmp_path: Path, rnd: random.Random, options: str) -> None:
    files = make_tree(tmp_path / "tree", rnd, names=1500 if "size=1024" in options else 600)
    path = make(tmp_path / "image", options, size=(1024 if "agcount" in options else 320) * MIB)
    with mounted_xfs(path) as place:
        run("cp", "-a", *(tmp_path / "tree").iterdir(), place)
        run("sync", "-f", place)
        for name in ("many/name 00003 of a rather crowded directory", "etc/zeros"):
            (place / name).unlink()
            del files[name.encode()]
        if "reflink=1" in options:
            run("cp", "--reflink=always", place / "etc/big", place / "shared")
            files[b"shared"] = files[b"etc/big"]
        with open(place / "reserved", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, MIB)
            file.write(b"start")
        files[b"reserved"] = b"start".ljust(MIB, b"\0")
    run("xfs_repair", "-n", path)
    file_system = XfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    block = file_system.superblock
    assert (file_system.kind, file_system.length) == ("XFS", block.blocks * block.block_size)
    expected = free_by_xfs_db(path, block.groups, block.block_size, block.group_blocks)
    assert np.array_equal(file_system.free(), expected)
    check_files(file_system, files)


PROTOTYPE = """/nothing
0 0
d--755 0 0
big ---644 0 0 {tree}/etc/big
tiny ---644 0 0 {tree}/tiny
link l--777 0 0 target
many d--755 0 0
{names}$
$
"""


@pytest.mark.parametrize("options", ["-m crc=0", "-m crc=0 -n ftype=0", "-m crc=0 -b size=512 -i size=256", "-m crc=1"])
def test_without_mounting(tmp_path: Path, rnd: random.Random, options: str) -> None:
    """Version 4, which newer kernels do not mount: files come from mkfs.xfs itself."""
    tree = make_tree(tmp_path / "tree", rnd)
    names = [name.decode() for name in tree if name.startswith(b"many/")]
    lines = [f"n{number} ---644 0 0 {tmp_path / 'many' / str(number)}\n" for number in range(len(names))]
    (tmp_path / "many").mkdir()
    for number, name in enumerate(names):
        shutil.copy(tmp_path / "tree" / name, tmp_path / "many" / str(number))
    (tmp_path / "proto").write_text(PROTOTYPE.format(tree=tmp_path / "tree", names="".join(lines)))
    path = make(tmp_path / "image", f"{options} -p {tmp_path / 'proto'}")
    run("xfs_repair", "-n", path)
    file_system = XfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    block = file_system.superblock
    expected = free_by_xfs_db(path, block.groups, block.block_size, block.group_blocks)
    assert np.array_equal(file_system.free(), expected)
    files = {f"many/n{number}".encode(): tree[name.encode()] for number, name in enumerate(names)}
    check_files(file_system, files | {b"big": tree[b"etc/big"], b"tiny": b"x"})


def test_scattered_files(tmp_path: Path, rnd: random.Random) -> None:
    """Files in thousands of pieces have trees of runs, free space in as many has trees of its own."""
    path = make(tmp_path / "image", "-b size=1024 -d agcount=2")
    files: dict[bytes, bytes] = {}
    with mounted_xfs(path) as place:
        for name in ("a", "b"):
            with open(place / name, "wb") as file:
                for number in range(3000):
                    file.seek(number * 3 * KIB)
                    file.write(rnd.randbytes(KIB))
            files[name.encode()] = (place / name).read_bytes()
        for number in range(4000):
            (place / f"{number:05}").write_bytes(b"x" * 700)
        run("sync", "-f", place)
        for number in range(0, 4000, 2):
            (place / f"{number:05}").unlink()
    files |= {f"{number:05}".encode(): b"x" * 700 for number in range(1, 4000, 2)}
    file_system = XfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    block = file_system.superblock
    assert np.array_equal(file_system.free(), free_by_xfs_db(path, 2, KIB, block.group_blocks))
    check_files(file_system, files)
    assert len(file_system.free()) > 1000


def test_a_log_of_several_rounds(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "--unsupported -l size=1400b", size=64 * MIB)
    with mounted_xfs(path) as place:
        for turn in range(8):
            for number in range(1500):
                (place / f"{turn} {number}").write_bytes(b"")
            run("sync", "-f", place)
            for number in range(1500):
                (place / f"{turn} {number}").unlink()
            run("sync", "-f", place)
        (place / "last").write_bytes(b"content")
        copy = tmp_path / "copy"
        run("sync", "-f", place)
        shutil.copyfile(path, copy)
    assert "log must be recovered" in XfsFileSystem(whole(copy)).state
    file_system = XfsFileSystem(whole(path))
    assert file_system.state == CLEAN
    check_files(file_system, {b"last": b"content"})


def edit(path: Path, at: int, form: str, value: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, value))


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (216, ">I", 0x1B, "need of repair"),
        (144, ">Q", 1234, "free blocks"),
        (128, ">Q", 1234, "inodes"),
        (512 + 52, ">I", 1234, "free blocks"),
        (1024 + 28, ">I", 3, "free inodes"),
        (1024 + 40, ">I", 77, "still to be released"),
        (48, ">Q", 0, "another device"),
    ],
)
def test_what_is_not_clean(tmp_path: Path, at: int, form: str, value: int, reason: str) -> None:
    path = make(tmp_path / "image")
    assert XfsFileSystem(whole(path)).state == CLEAN
    edit(path, at, form, value)
    assert reason in XfsFileSystem(whole(path)).state


def test_trees_of_free_space_that_differ(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    edit(path, 2 * 4096 + 56, ">I", 20)  # the tree by size
    assert "the same free space" in XfsFileSystem(whole(path)).state


@pytest.mark.parametrize(("at", "value"), [(216, 0x200), (212, 0x100), (220, 1)])
def test_unknown_features_are_refused(tmp_path: Path, at: int, value: int) -> None:
    path = make(tmp_path / "image")
    edit(path, at, ">I", value)
    with pytest.raises(FormatError, match="feature"):
        XfsFileSystem(whole(path))


def test_a_realtime_section_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "image", f"-r rtdev={sized(tmp_path / 'rt', 64 * MIB)}")
    with pytest.raises(FormatError, match="no realtime section"):
        XfsFileSystem(whole(path))


def test_what_is_in_use_is_not_free(tmp_path: Path) -> None:
    path = make(tmp_path / "image")
    with mounted_xfs(path) as place:
        (place / "file").write_bytes(b"content" * 10_000)
    file_system = XfsFileSystem(whole(path))
    (entry,) = file_system.files()
    for start, length in file_system.free().tolist():
        assert not (start < entry.extents[0, 1] + entry.extents[0, 2] and entry.extents[0, 1] < start + length)
    assert total(file_system.free()) < 320 * MIB
