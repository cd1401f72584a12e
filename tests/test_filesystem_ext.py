"""The reader of ext2, ext3 and ext4 against what mke2fs, debugfs and dumpe2fs say of real file systems."""

from __future__ import annotations

import random
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from filesystems import KIB, MIB, check_files, make_tree, mounted, run, sized, whole

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import CLEAN
from trimtransfer.filesystem.ext.reader import ExtFileSystem
from trimtransfer.filesystem.ranges import Ranges, merged, total

VARIANTS = {
    "ext2": "-t ext2",
    "ext2 of 1995": "-t ext2 -r 0 -b 1024",
    "ext2, copies of the superblock everywhere": "-t ext2 -b 1024 -O ^sparse_super,^resize_inode",
    "ext3": "-t ext3",
    "ext3, 1 KiB": "-t ext3 -b 1024 -g 1024",
    "ext4": "-t ext4",
    "ext4, 1 KiB": "-t ext4 -b 1024",
    "ext4, 2 KiB, small inodes": "-t ext4 -b 2048 -I 128",
    "ext4, 64 KiB": "-t ext4 -b 65536",
    "ext4, 32 bits": "-t ext4 -O ^64bit,^metadata_csum,uninit_bg",
    "ext4, no lazy groups": "-t ext4 -O ^metadata_csum,^uninit_bg",
    "ext4, meta_bg": "-t ext4 -b 1024 -g 256 -O meta_bg,^resize_inode",
    "ext4, meta_bg, no flex_bg": "-t ext4 -b 1024 -g 512 -O meta_bg,^resize_inode,^flex_bg",
    "ext4, no flex_bg": "-t ext4 -b 1024 -O ^flex_bg",
    "ext4, sparse_super2": "-t ext4 -b 1024 -O sparse_super2,^resize_inode",
    "ext4, inline data": "-t ext4 -I 512 -O inline_data",
    "ext4, no extents": "-t ext4 -O ^extent,^64bit",
    "ext4, no journal": "-t ext4 -O ^has_journal",
    "ext4, quota": "-t ext4 -O quota,project -I 256",
    "ext4, large_dir and more": "-t ext4 -O large_dir,ea_inode,metadata_csum_seed,orphan_file,fast_commit",
}


def make(path: Path, options: str, tree: Path | None = None, *, size: int = 96 * MIB) -> Path:
    """Make a file system with a tree in it."""
    sized(path, size)
    known = run("mke2fs", "-V").split()[1]
    if "orphan_file" in options and known < "1.47":
        options = options.replace(",orphan_file", "")
    run("mke2fs", "-q", "-F", *(("-d", tree) if tree else ()), *options.split(), path, text="y\n")
    return path


def debugfs(path: Path, *commands: str) -> None:
    output = run("debugfs", "-w", "-f", "-", path, text="\n".join(commands) + "\n")
    assert "rror" not in output, output


def free_by_dumpe2fs(path: Path, block_size: int) -> Ranges:
    """Return the free space as dumpe2fs lists it, in bytes."""
    found = []
    for line in re.findall(r"^  Free blocks: (.+)$", run("dumpe2fs", path), re.M):
        for piece in line.split(", "):
            first, _, last = piece.partition("-")
            found.append((int(first) * block_size, (int(last or first) - int(first) + 1) * block_size))
    return merged(np.array(found, dtype=np.int64).reshape(-1, 2))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_all_variants(tmp_path: Path, rnd: random.Random, options: str) -> None:
    root = tmp_path / "tree"
    files = make_tree(root, rnd)
    path = make(tmp_path / "image", options, root)
    for name in ("many/name 00003 of a rather crowded directory", "etc/zeros", "a/b/c/d/e/f/deep"):
        debugfs(path, f'rm "{name}"')
        del files[name.encode()]
    debugfs(path, f'write "{root}/etc/text.txt" again')
    files[b"again"] = files[b"etc/text.txt"]
    if "quota" in options:  # neither program counts for quotas
        run("e2fsck", "-fy", path, codes=(0, 1))
    run("e2fsck", "-fn", path)
    file_system = ExtFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert file_system.kind == options.split()[1]
    assert file_system.length <= 96 * MIB
    assert np.array_equal(file_system.free(), free_by_dumpe2fs(path, file_system.block_size))
    elsewhere: tuple[bytes, ...] = ()
    if "inline" in options:
        elsewhere = tuple(entry.path for entry in file_system.files() if entry.size < 400 and not len(entry.extents))
        assert b"inline" in elsewhere
        run("debugfs", "-R", f"dump sparse {tmp_path}/sparse", path)  # mke2fs leaves out the hole at its end
        files[b"sparse"] = (tmp_path / "sparse").read_bytes()
    check_files(file_system, files, elsewhere=elsewhere)


@pytest.mark.parametrize("options", ["-t ext4 -b 1024", "-t ext3 -b 1024"])
def test_scattered_files(tmp_path: Path, rnd: random.Random, options: str) -> None:
    """A file in a thousand pieces needs a tree of extents, or blocks of pointers."""
    path = make(tmp_path / "image", options + " -m 0 -O ^resize_inode", size=16 * MIB)
    (tmp_path / "one").write_bytes(rnd.randbytes(KIB))
    free = total(ExtFileSystem(whole(path)).free()) // KIB
    count = min(free - 300, 3000)
    debugfs(path, *(f"write {tmp_path}/one {number}" for number in range(count)))
    (tmp_path / "rest").write_bytes(rnd.randbytes((free - count - 200) * KIB))
    debugfs(path, f"write {tmp_path}/rest rest", *(f"rm {number}" for number in range(1, count, 2)))
    big = rnd.randbytes(min(total(ExtFileSystem(whole(path)).free()) - 100 * KIB, 1200 * KIB))
    (tmp_path / "big").write_bytes(big)
    debugfs(path, "rm 0", f"write {tmp_path}/big big")
    run("e2fsck", "-fn", path)
    file_system = ExtFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert np.array_equal(file_system.free(), free_by_dumpe2fs(path, KIB))
    one, rest = (tmp_path / "one").read_bytes(), (tmp_path / "rest").read_bytes()
    files = {str(number).encode(): one for number in range(2, count, 2)} | {b"big": big, b"rest": rest}
    check_files(file_system, files)
    assert max(len(entry.extents) for entry in file_system.files()) > 500


@pytest.mark.parametrize("options", ["-t ext2 -b 1024", "-t ext4 -b 1024"])
def test_far_into_a_file(tmp_path: Path, rnd: random.Random, options: str) -> None:
    """Behind 64 MiB a block map of 1 KiB blocks has three levels."""
    (tmp_path / "tree").mkdir()
    with open(tmp_path / "tree" / "far", "wb") as file:
        for at in (0, 11 * KIB, 13 * KIB, 300 * KIB, 68 * MIB, 69 * MIB + 512):
            file.seek(at)
            file.write(rnd.randbytes(3 * KIB))
    path = make(tmp_path / "image", options, tmp_path / "tree")
    file_system = ExtFileSystem(whole(path))
    assert file_system.state == CLEAN
    check_files(file_system, {b"far": (tmp_path / "tree" / "far").read_bytes()})


@pytest.mark.parametrize("options", ["-t ext4", "-t ext4 -b 1024", "-t ext3", "-t ext2"])
def test_what_the_kernel_writes(tmp_path: Path, rnd: random.Random, options: str) -> None:
    """While it is mounted nothing is said about it; afterwards all is as the kernel left it."""
    files = make_tree(tmp_path / "tree", rnd)
    path = make(tmp_path / "image", options)
    with mounted("ext4", path) as place:
        run("cp", "-a", *(tmp_path / "tree").iterdir(), place)
        run("sync", "-f", place)
        for name in ("many/name 00003 of a rather crowded directory", "etc/zeros"):
            (place / name).unlink()
            del files[name.encode()]
        (place / "removed").mkdir()
        for number in range(300):
            (place / "removed" / str(number)).write_bytes(b"content" * number)
        run("sync", "-f", place)
        shutil.rmtree(place / "removed")
        copy = tmp_path / "copy"
        run("sync", "-f", place)
        shutil.copyfile(path, copy)
    assert "not unmounted" in ExtFileSystem(whole(copy)).state
    run("e2fsck", "-fn", path)
    file_system = ExtFileSystem(whole(path))
    assert file_system.state == CLEAN
    assert np.array_equal(file_system.free(), free_by_dumpe2fs(path, file_system.block_size))
    check_files(file_system, files)


def test_the_last_group_is_shorter_and_the_image_longer(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-t ext4 -b 1024", size=20_000 * KIB)
    sized(path, 32 * MIB, keep=True)
    file_system = ExtFileSystem(whole(path))
    assert file_system.length == 20_000 * KIB
    assert file_system.state == CLEAN
    assert np.array_equal(file_system.free(), free_by_dumpe2fs(path, KIB))


def edit(path: Path, at: int, form: str, value: int | bytes) -> None:
    """Overwrite a number of the image."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, value))


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (1024 + 96, "<I", 0x2C6, "journal must be recovered"),
        (1024 + 58, "<H", 3, "errors were found"),
        (1024 + 58, "<H", 0, "not unmounted; unmount it (shut its guest down), or run e2fsck"),
        (1024 + 232, "<I", 12, "still to be released"),
        (1024 + 100, "<I", 0x1046B, "still to be released"),
        (1024 + 12, "<I", 1234, "free blocks"),
        (1024 + 16, "<I", 1234, "free inodes"),
        (1024 + 224, "<I", 0, "another device"),
    ],
)
def test_what_is_not_clean(tmp_path: Path, at: int, form: str, value: int, reason: str) -> None:
    path = make(tmp_path / "image", "-t ext4")
    edit(path, at, form, value)
    assert reason in ExtFileSystem(whole(path)).state


@pytest.mark.parametrize(("feature", "bit"), [("bigalloc", "0x200"), ("mmp", "0x100")])
def test_unknown_features_are_refused_by_name(tmp_path: Path, feature: str, bit: str) -> None:
    path = make(tmp_path / "image", f"-t ext4 -O {feature}")
    with pytest.raises(FormatError, match=rf"features that are known here, got {feature} \({bit}\)"):
        ExtFileSystem(whole(path))


def test_features_without_a_name_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-t ext4")
    edit(path, 1024 + 100, "<I", 0x4200_0200)
    with pytest.raises(FormatError, match=r"bigalloc \(0x200\), unknown ones \(0x2000000\), unknown ones \(0x40"):
        ExtFileSystem(whole(path))


def test_a_journal_with_content(tmp_path: Path) -> None:
    """debugfs writes a transaction into the journal, as a crash leaves it."""
    path = make(tmp_path / "image", "-t ext4")
    debugfs(path, "jo", "jw -b 333 /dev/zero", "jc")
    assert "journal must be recovered" in ExtFileSystem(whole(path)).state


def test_what_is_in_use_and_marked_free(tmp_path: Path, rnd: random.Random) -> None:
    root = tmp_path / "tree"
    files = make_tree(root, rnd, names=1)
    path = make(tmp_path / "image", "-t ext4", root)
    (entry,) = (entry for entry in ExtFileSystem(whole(path)).files() if entry.path == b"etc/big")
    assert content_length(entry.extents) == len(files[b"etc/big"])
    file_system = ExtFileSystem(whole(path))
    block = int(entry.extents[0, 1]) // file_system.block_size
    debugfs(path, f"freeb {block} 1")
    assert "free blocks" in ExtFileSystem(whole(path)).state  # and the counts are wrong
    group = (block - file_system.superblock.first_block) // file_system.superblock.blocks_per_group
    count = int(file_system.groups.free_blocks[group]) + 1
    counts = (
        f"set_bg {group} free_blocks_count {count}",
        f"ssv free_blocks_count {file_system.superblock.free_blocks + 1}",
    )
    debugfs(path, *counts)
    assert "in use and marked free" in ExtFileSystem(whole(path)).state


def content_length(extents: np.ndarray) -> int:
    return int(extents[:, 2].sum())


def test_encrypted_names_and_content(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-t ext4 -O encrypt")
    (tmp_path / "content").write_bytes(b"not to be read" * 1000)
    debugfs(path, "mkdir d", f"write {tmp_path}/content d/NAME", "sif d flags 0x80800", "sif d/NAME flags 0x80800")
    edit(path, path.read_bytes().index(b"NAME"), "<4s", b"N/\0E")
    file_system = ExtFileSystem(whole(path))
    assert file_system.state == CLEAN
    (entry,) = file_system.files()
    assert (entry.path, entry.size, len(entry.extents)) == (b"d/" + b"N/\0E".hex().encode(), 14_000, 0)


def test_two_files_with_one_block(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-t ext2")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"content" * 2000)
        debugfs(path, f"write {tmp_path / name} {name}")
    file_system = ExtFileSystem(whole(path))
    first = [int(entry.extents[0, 1]) // file_system.block_size for entry in file_system.files()]
    debugfs(path, f"sif b block[1] {first[0]}")
    assert "belongs to two" in ExtFileSystem(whole(path)).state


def test_a_name_of_a_free_inode(tmp_path: Path) -> None:
    path = make(tmp_path / "image", "-t ext4")
    debugfs(path, "ln <100> lost")
    state = ExtFileSystem(whole(path)).state
    assert "inode 100" in state
    assert "a free one" in state
