"""What ruins reuse is found, in disks as the real programs make them; and nothing is found where nothing is wrong."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filesystems import MIB, make_tree, mounted, mounted_ntfs, run, sized

from trimtransfer.cli.main import main
from trimtransfer.disk.source import open_disk
from trimtransfer.filesystem.marks import compression, encryption, identity, packed_file, sleeps
from trimtransfer.filesystem.volume import Volume
from trimtransfer.geometry import recognise
from trimtransfer.image import ImageSource
from trimtransfer.repository.advice import Advice
from trimtransfer.repository.hazards import examine
from trimtransfer.repository.publish import publish
from trimtransfer.repository.trim import trim_image
from trimtransfer.watch import Watch


def advice(path: Path) -> dict[str, Advice]:
    """Return the advice on an image, by code."""
    with open_disk(path) as source:
        found = examine(source, recognise(source.read, source.size), Watch())
    assert len({one.code for one in found}) == len(found)
    assert all(one.text and one.remedy and one.remedy in str(one) for one in found)
    return {one.code: one for one in found}


def volume(path: Path) -> Volume:
    """Return an image as a volume."""
    source = ImageSource(path)
    return Volume(source.read, 0, source.size, "whole image")


def ext(path: Path, tree: Path, *options: object, size: int = 96 * MIB) -> Path:
    """Make ext4 of a tree."""
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", 4096, *options, "-d", tree, sized(path, size))
    return path


CONTAINERS = (
    ("parallels", "Parallels disk"),
    ("qed", "QED disk"),
    ("vdi", "VirtualBox disk (VDI)"),
)


@pytest.mark.parametrize(("format", "name"), CONTAINERS)
def test_containers_that_are_not_read(format: str, name: str, tmp_path: Path, rnd: random.Random) -> None:
    run("qemu-img", "convert", "-f", "raw", "-O", format, filled(tmp_path / "raw", MIB, rnd), tmp_path / "disk")
    found = advice(tmp_path / "disk")["unread-container"]
    assert found.text == f"the file is a {name}, which is not read here: it is published as a file, not as a disk"
    assert found.remedy == "convert it first: qemu-img convert -O qcow2"
    assert "unread-container" not in advice(tmp_path / "raw")


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [
        (b"EVF\x09\x0d\x0a\xff\0", b"", "EnCase"),
        (b"EVF2\x0d\x0a\x81\0", b"", "EnCase"),
        (b"x", b"koly" + bytes(508), "Apple"),
        (b"Bochs Virtual HD Image", b"", "Bochs"),
        (b"VMA\0", b"", "Proxmox"),
        (b"partclone-image", b"", "Partclone"),
    ],
)
def test_containers_by_their_marks(start: bytes, end: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(start.ljust(2048, b"\1") + end)
    assert f"the file is a{'n' if name[0] in 'AE' else ''} {name}" in advice(tmp_path / "disk")["unread-container"].text
    (tmp_path / "short").write_bytes(b"V")
    assert "unread-container" not in advice(tmp_path / "short")


def filled(path: Path, size: int, rnd: random.Random) -> Path:
    """Make a file of noise."""
    path.write_bytes(rnd.randbytes(size))
    return path


@pytest.fixture
def tree(tmp_path: Path, rnd: random.Random) -> Path:
    """Files of many kinds, most of them of noise."""
    make_tree(tmp_path / "tree", rnd, names=50, links=False)
    filled(tmp_path / "tree/noise", 20 * MIB, rnd)
    return tmp_path / "tree"


# ---- nothing wrong


def make_ntfs(path: Path, tree: Path) -> None:
    run("mkntfs", "-F", "-q", "-Q", sized(path, 96 * MIB))
    with mounted_ntfs(path) as place:
        shutil.copytree(tree, place, dirs_exist_ok=True)


def make_fat(path: Path, tree: Path) -> None:
    run("mkfs.fat", "-F", "32", "-s", "8", sized(path, 400 * MIB))
    run("mcopy", "-s", "-i", path, *tree.iterdir(), "::")


def make_xfs(path: Path, tree: Path) -> None:
    run("mkfs.xfs", "-q", sized(path, 320 * MIB))
    with mounted("xfs", path) as place:
        shutil.copytree(tree, place, dirs_exist_ok=True)


def make_btrfs(path: Path, tree: Path) -> None:
    run("mkfs.btrfs", "-q", "-r", tree, sized(path, 300 * MIB))


def make_parts(path: Path, tree: Path) -> None:
    ext(path.with_suffix(".part"), tree, size=64 * MIB)
    run("sfdisk", "-q", sized(path, 80 * MIB), text="label: dos\n63,131072\n")  # off the grid, but with one of its own
    run("dd", f"if={path.with_suffix('.part')}", f"of={path}", "bs=512", "seek=63", "conv=notrunc", "status=none")


SOUND: dict[str, Callable[[Path, Path], object]] = {
    "ext4": ext,
    "ntfs": make_ntfs,
    "fat": make_fat,
    "xfs": make_xfs,
    "partition": make_parts,
}


@pytest.mark.parametrize("kind", SOUND)
def test_nothing_is_found_in_a_sound_disk(kind: str, tmp_path: Path, tree: Path) -> None:
    SOUND[kind](tmp_path / "image", tree)
    assert advice(tmp_path / "image") == {}


def test_nothing_is_found_in_real_images(images: Any) -> None:
    assert advice(images.old) == {}
    assert advice(images.rebuilt) == {}
    assert set(advice(images.new)) == {"remains"}


def test_fresh_swap_and_small_files_are_no_hazards(tmp_path: Path, rnd: random.Random) -> None:
    run("mkswap", "-q", sized(tmp_path / "swap", 64 * MIB))
    assert advice(tmp_path / "swap") == {}
    (tmp_path / "small.gz").write_bytes(gzip.compress(rnd.randbytes(MIB)))
    assert advice(tmp_path / "small.gz") == {}
    (tmp_path / "text").write_bytes(b"many lines of text\n" * MIB)
    assert advice(tmp_path / "text") == {}
    assert advice(sized(tmp_path / "empty", 0)) == {}
    assert advice(sized(tmp_path / "hole", 1 << 40)) == {}


# ---- compressed and encrypted


@pytest.mark.parametrize("option", ["zstd", "lzo"])
def test_btrfs_that_compresses(option: str, tmp_path: Path, tree: Path) -> None:
    make_btrfs(tmp_path / "image", tree)
    assert "compressed-file-system" not in advice(tmp_path / "image")
    with mounted("btrfs", tmp_path / "image", f"compress={option}") as place:
        (place / "words").write_bytes(b"words and words\n" * 100_000)
        run("sync", "-f", place)
    found = advice(tmp_path / "image")["compressed-file-system"]
    assert f"btrfs ({option})" in found.text


def test_ntfs_that_compresses(tmp_path: Path, tree: Path) -> None:
    run("mkntfs", "-F", "-q", "-Q", sized(tmp_path / "image", 96 * MIB))
    with mounted_ntfs(tmp_path / "image", "compression") as place:
        (place / "folder").mkdir()
        os.setxattr(place / "folder", "system.ntfs_attrib", struct.pack("<I", 0x810))
        rest = random.Random(1)
        words = b"".join(b"line %d of words that compress\n" % rest.getrandbits(60) for _ in range(800_000))
        (place / "folder/words").write_bytes(words)
    found = advice(tmp_path / "image")
    assert found["compressed-file-system"].bytes >= 8 * MIB
    assert "compact" in found["compressed-file-system"].remedy


def squashfs(flags: int) -> bytes:
    """Return a squashfs superblock of version 4 (Linux, Documentation/filesystems/squashfs)."""
    return struct.pack("<4sIIIIHHHHHH", b"hsqs", 1, 0, 1 << 17, 0, 6, 17, flags, 1, 4, 0).ljust(96, b"\0")


def luks(version: int) -> bytes:
    """Return the beginning of a LUKS header."""
    return (b"LUKS\xba\xbe" + struct.pack(">H", version) + b"aes").ljust(168, b"\0") + b"0" * 36


def test_compressed_file_systems(tmp_path: Path, rnd: random.Random) -> None:
    noise = rnd.randbytes(10 * MIB)
    path = tmp_path / "image"
    for start, name in (
        (squashfs(0), "squashfs (zstd)"),
        (b"\x45\x3d\xcd\x28", "cramfs"),
        (bytes(1024) + struct.pack("<I76xI", 0xE0F5E1E2, 1), "EROFS"),
    ):
        path.write_bytes(start + noise)
        assert name in advice(path)["compressed-file-system"].text
    path.write_bytes(squashfs(2) + b"plain words" * MIB)
    assert advice(path) == {}
    path.write_bytes(bytes(1024) + struct.pack("<I76xI", 0xE0F5E1E2, 0) + b"plain words" * MIB)
    assert compression(volume(path), "") == ""


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (luks(1), "LUKS"),
        (luks(2), "LUKS"),
        (b"\xeb\x58\x90-FVE-FS-", "BitLocker"),
        (b"\xeb\x58\x90MSWIN4.1".ljust(424, b"\0") + bytes.fromhex("3bd66749292ed84a8399f6a339e3d001"), "BitLocker"),
    ],
)
def test_encrypted_disks(start: bytes, name: str, tmp_path: Path, rnd: random.Random) -> None:
    (tmp_path / "image").write_bytes(start.ljust(512, b"\0") + rnd.randbytes(9 * MIB))
    found = advice(tmp_path / "image")
    assert set(found) == {"encrypted"}
    assert name in found["encrypted"].text
    run("sfdisk", "-q", sized(tmp_path / "disk", 12 * MIB), text="label: gpt\n2048,20000\n")
    with open(tmp_path / "disk", "r+b") as file:
        file.seek(MIB)
        file.write((tmp_path / "image").read_bytes())
    assert "partition 1" in advice(tmp_path / "disk")["encrypted"].text


def test_luks_as_its_program_makes_it(tmp_path: Path) -> None:
    path = sized(tmp_path / "image", 32 * MIB)
    (tmp_path / "key").write_text("secret")
    run("cryptsetup", "luksFormat", "-q", "--pbkdf-force-iterations", 4, "--pbkdf-memory", 32, path, tmp_path / "key")
    assert set(advice(path)) == {"encrypted"}


def test_noise_is_told_where_no_file_system_is_known(tmp_path: Path, rnd: random.Random) -> None:
    assert set(advice(filled(tmp_path / "image", 12 * MIB, rnd))) == {"noise"}
    half = rnd.randbytes(6 * MIB) + b"words " * MIB
    (tmp_path / "image").write_bytes(half)
    assert advice(tmp_path / "image") == {}
    with open(sized(tmp_path / "image", 1 << 30), "r+b") as file:
        file.seek(500 * MIB)
        file.write(rnd.randbytes(MIB))
    assert advice(tmp_path / "image") == {}


@pytest.mark.parametrize(("program", "name"), [("gzip", "gzip"), ("xz", "xz"), ("zstd", "zstd"), ("bzip2", "bzip2")])
def test_compressed_images(program: str, name: str, tmp_path: Path, rnd: random.Random) -> None:
    run(program, "-q", "-1", filled(tmp_path / "image", 9 * MIB, rnd))
    (path,) = tmp_path.glob("image.*")
    found = advice(path)
    assert set(found) == {"compressed-image"}
    assert name in found["compressed-image"].text
    assert packed_file(path.read_bytes()[:64]) == name


# ---- content that nobody needs


def test_remains_of_deleted_files(tmp_path: Path, tree: Path, rnd: random.Random) -> None:
    path = ext(tmp_path / "image", tree)
    run("debugfs", "-w", "-R", f"write {filled(tmp_path / 'secret', 16 * MIB, rnd)} secret", path)
    assert advice(path) == {}
    run("debugfs", "-w", "-R", "rm secret", path)
    found = advice(path)["remains"]
    assert abs(found.bytes - 16 * MIB) < 2 * MIB
    assert "--trim" in found.remedy
    with open_disk(path) as source:
        trimmed, _ = trim_image(source, Watch())
        assert examine(trimmed, recognise(trimmed.read, trimmed.size), Watch()) == ()


@pytest.mark.parametrize("name", ["swapfile", "swap.img", "Pagefile.SYS", "hiberfil.sys"])
def test_swap_files(name: str, tmp_path: Path, tree: Path, rnd: random.Random) -> None:
    filled(tree / name, 10 * MIB, rnd)
    found = advice(ext(tmp_path / "image", tree))
    assert set(found) == {"swap-file"}
    assert name in found["swap-file"].text
    (tree / name).write_bytes(bytes(10 * MIB))
    assert advice(ext(tmp_path / "image", tree)) == {}
    (tree / name).unlink()
    (tree / "etc/conf.d").mkdir(exist_ok=True)
    filled(tree / "etc/conf.d" / name, 10 * MIB, rnd)
    assert advice(ext(tmp_path / "image", tree)) == {}


def test_swap_space(tmp_path: Path, rnd: random.Random) -> None:
    path = sized(tmp_path / "image", 64 * MIB)
    run("mkswap", "-q", "-U", "6d656476-0000-4000-8000-000000000001", path)
    with open(path, "r+b") as file:
        file.seek(20 * MIB)
        file.write(rnd.randbytes(10 * MIB))
    assert set(advice(path)) == {"swap"}
    found = identity(volume(path), "swap")
    assert found is not None
    assert found.identity.hex() == "6d656476000040008000000000000001"
    with open(path, "r+b") as file:
        file.seek(4086)
        file.write(b"S1SUSPEND\0")
    assert sleeps(volume(path))
    assert set(advice(path)) == {"hibernation"}


# ---- what hides known content


def test_small_blocks(tmp_path: Path, tree: Path) -> None:
    found = advice(ext(tmp_path / "image", tree, "-b", 1024))
    assert set(found) == {"off-grid"}
    assert "1024 bytes" in found["off-grid"].text


def test_made_anew_with_another_identity(tmp_path: Path, tree: Path) -> None:
    seed = "hash_seed=6d656476-0000-4000-8000-000000000001"
    uuids = ["6d656476-0000-4000-8000-00000000000" + digit for digit in "12"]
    path = tmp_path / "image"
    reports = []
    for number, options in enumerate(
        (("-U", uuids[0], "-E", seed), ("-U", uuids[1], "-E", seed), ("-U", uuids[1], "-E", seed[:-1] + "2"))
    ):
        ext(path, tree, *options)
        reports.append(publish(tmp_path / "r", path, image="a", version=str(number), level=1, deltas=False))
    (found,) = reports[1].advice
    assert found.code == "new-identity"
    assert "UUID" in found.text
    assert "seed" not in found.text
    (found,) = reports[2].advice
    assert "hash seed" in found.text
    assert "UUID" not in found.text
    assert publish(tmp_path / "r", path, image="a", version="same", level=1).advice == ()
    (tree / "noise").write_bytes(os.urandom(20 * MIB))
    shutil.rmtree(tree / "etc")
    ext(path, tree)  # another image
    assert publish(tmp_path / "r", path, image="a", version="other", level=1, deltas=False).advice == ()


def test_a_moved_disk(tmp_path: Path, rnd: random.Random) -> None:
    noise = b"".join(rnd.randbytes(2000) * 2 + bytes(96) for _ in range(5000))
    codes = []
    for number, at in enumerate((1, 80)):
        path = sized(tmp_path / "image", 160 * MIB)
        run("sfdisk", "-q", path, text="label: dos\n2048,\n")
        with open(path, "r+b") as file:
            file.seek(at * MIB)
            file.write(noise)
        report = publish(tmp_path / "r", path, image="a", version=str(number), level=1)
        codes.append({one.code for one in report.advice})
    assert codes == [set(), {"moved"}]


# ---- as it is shown


def test_the_command_warns(tmp_path: Path, tree: Path) -> None:
    image = ext(tmp_path / "image", tree, "-b", 1024)
    arguments = ["repo", "publish", str(tmp_path / "r"), str(image), "--image", "a", "--level", "1", "--version"]
    done = CliRunner().invoke(main, [*arguments, "1"])
    assert "warning: 17 MiB" in done.stderr or "warning: 18 MiB" in done.stderr
    assert "mke2fs -b 4096" in done.stderr
    assert "warning" not in done.stdout
    done = CliRunner().invoke(main, [*arguments, "2", "--json"])
    found = json.loads(done.stdout)["advice"]
    assert [one["code"] for one in found] == ["off-grid"]
    assert all(one["text"] and one["remedy"] and one["bytes"] for one in found)
    assert [json.loads(line)["level"] for line in done.stderr.splitlines() if "warning" in line] == ["warning"]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("mke2fs", "-q", "-F", "-t", "ext4", "-U", "6d656476-0000-4000-8000-000000000001"), "ext4"),
        (("mkfs.xfs", "-q", "-m", "uuid=6d656476-0000-4000-8000-000000000001"), "XFS"),
        (("mkfs.btrfs", "-q", "-U", "6d656476-0000-4000-8000-000000000001"), "btrfs"),
        (("mkfs.fat", "-i", "6d656476"), "FAT"),
        (("mkfs.fat", "-F", "32", "-s", "1", "-i", "6d656476"), "FAT"),
    ],
)
def test_identities(command: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    path = sized(tmp_path / "image", 320 * MIB)
    run(*command, path)
    found = identity(volume(path), kind)
    assert found is not None
    expected = "7664656d" if kind == "FAT" else "6d656476000040008000000000000001"
    assert found.identity.hex() == expected
    assert encryption(volume(path), kind) == ""
    assert identity(volume(path), "unknown") is None


def test_marks_of_short_and_random_volumes(tmp_path: Path, rnd: random.Random) -> None:
    for size in (0, 1, 100, 512, 1100, 70_000):
        one = volume(filled(tmp_path / "image", size, rnd))
        for kind in ("", "ext4", "btrfs", "swap", "FAT", "LUKS", "NTFS"):
            identity(one, kind), compression(one, kind)
            assert sleeps(one) is False
            assert encryption(one, "") == ""


def test_a_parent_that_ends_before(tmp_path: Path, rnd: random.Random) -> None:
    """A volume beyond the parent's end has nothing to be compared with there."""
    path = sized(tmp_path / "image", 20 * MIB)
    filled(tmp_path / "noise", 12 * MIB, rnd)
    part = sized(tmp_path / "part", 30 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", 4096, part)
    for number, (size, text) in enumerate(((20, "2048,\n"), (60, "2048,38000\n61440,\n"))):
        run("sfdisk", "-q", sized(path, size * MIB, keep=True), text="label: dos\n" + text)
        run("dd", f"if={tmp_path / 'noise'}", f"of={path}", "bs=1M", "seek=2", "conv=notrunc", "status=none")
        if number:
            run("dd", f"if={part}", f"of={path}", "bs=1M", "seek=30", "conv=notrunc", "status=none")
        report = publish(tmp_path / "r", path, image="a", version=str(number), level=1)
        assert {one.code for one in report.advice} == {"noise"}


def test_a_parent_whose_packs_are_lost_is_healed(tmp_path: Path, tree: Path) -> None:
    path = ext(tmp_path / "image", tree)
    publish(tmp_path / "r", path, image="a", version="1", level=1)
    shutil.rmtree(tmp_path / "r/packs")
    for version in "23":
        report = publish(tmp_path / "r", path, image="a", version=version, level=1, deltas=False)
        assert report.advice == ()
        assert bool(report.again_bytes) == (version == "2")
