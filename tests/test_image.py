"""Reading images: complete reads, holes, changes; files and what is none."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from trimtransfer.errors import SourceChanged
from trimtransfer.image import ImageSource

MIB = 1 << 20


def sparse_file(path: Path, size: int, parts: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)


def test_reads_are_complete(tmp_path: Path) -> None:
    content = os.urandom(10_000)
    (tmp_path / "a").write_bytes(content)
    with ImageSource(tmp_path / "a") as source:
        assert source.size == 10_000
        buffer = bytearray(500)
        source.read_into(buffer, 9_500)
        assert bytes(buffer) == content[9_500:]
        assert source.read(9_990, 100) == content[9_990:]
        assert source.read(20_000, 100) == b""
        assert b"".join(source.read(at, size) for at, size in source.extents(0, 10_000)) == content
        source.check_unchanged()
    source.close()


def test_extents_cover_all_data(tmp_path: Path, rnd: random.Random) -> None:
    for _ in range(20):
        size = rnd.randrange(1, 16 * MIB)
        parts = {
            at: rnd.randbytes(min(rnd.choice((1, 5000, 300_000)), size - at))
            for at in sorted(rnd.randrange(size) for _ in range(rnd.randrange(6)))
        }
        sparse_file(tmp_path / "a", size, parts)
        content = (tmp_path / "a").read_bytes()
        with ImageSource(tmp_path / "a") as source:
            start = rnd.randrange(size)
            length = rnd.randrange(size - start + 1)
            found = bytearray(length)
            end = start
            for at, count in source.extents(start, length):
                assert end <= at < at + count <= start + length
                end = at + count
                found[at - start : end - start] = source.read(at, count)
            assert bytes(found) == content[start : start + length]


def test_holes_are_not_read(tmp_path: Path) -> None:
    sparse_file(tmp_path / "a", 1 << 40, {1 << 39: b"data"})
    with ImageSource(tmp_path / "a") as source:
        extents = list(source.extents(0, 1 << 40))
        if sum(count for _, count in extents) > MIB:
            pytest.skip("this file system tells no holes")
        assert extents[0][0] <= 1 << 39
        assert list(source.extents(0, 1 << 30)) == []


def test_changes_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(10_000))
    before = path.stat()
    with ImageSource(path) as source:
        source.check_unchanged()
        with open(path, "r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # set back: the change time tells
        with pytest.raises(SourceChanged, match="modification"):
            source.check_unchanged()
        os.truncate(path, 5_000)
        with pytest.raises(SourceChanged, match="5,000 bytes"):
            source.check_unchanged()
        with pytest.raises(SourceChanged, match="ends at byte 5,000"):
            source.read_into(bytearray(8_000), 0)


def test_a_directory_or_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="neither a file nor a block device"):
            ImageSource(path)
    with pytest.raises(FileNotFoundError):
        ImageSource(tmp_path / "none")


def test_block_device(tmp_path: Path) -> None:
    losetup = shutil.which("losetup", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if os.geteuid() != 0 or losetup is None:
        pytest.skip("needs root and losetup")
    content = os.urandom(MIB)
    (tmp_path / "a").write_bytes(content)
    made = subprocess.run([losetup, "-f", "--show", tmp_path / "a"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop devices: {made.stderr}")
    device = made.stdout.strip()
    try:
        with ImageSource(device) as source:
            assert (source.is_device, source.size) == (True, MIB)
            assert list(source.extents(0, MIB)) == [(0, MIB)]
            assert source.read(0, MIB) == content
            source.check_unchanged()
    finally:
        subprocess.run([losetup, "-d", device], check=True)
