"""Real file systems for tests: trees to put into them, the programs that make and check them, and what a reader of
ours found in them put together for comparison."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from trimtransfer.filesystem.contents import FileEntry, FileSystem
from trimtransfer.filesystem.volume import Volume
from trimtransfer.image import ImageSource

KIB, MIB = 1 << 10, 1 << 20
PATH = os.pathsep.join((os.environ["PATH"], "/sbin", "/usr/sbin"))
LONG = "a name of some length, as documents have it, with ümläuts " * 3


def program(name: str) -> str:
    """Return the path of a program, or skip the test."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: object, codes: tuple[int, ...] = (0,), text: str | None = None) -> str:
    """Run a program; return its output, which is the message if its exit code is another one."""
    line = [program(str(command[0])), *map(str, command[1:])]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(line, capture_output=True, input=text.encode() if text else None, env=environment)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode in codes, f"{' '.join(line)}: {done.returncode}\n{output}"
    return output


def sized(path: Path, size: int, *, keep: bool = False) -> Path:
    """Make an empty sparse file, or ``keep`` the content of one and change its length."""
    with open(path, "r+b" if keep else "wb") as file:
        file.truncate(size)
    return path


def make_tree(root: Path, rnd: random.Random, *, links: bool = True, names: int = 600) -> dict[bytes, bytes]:
    """Make a tree of files of many kinds; return what they hold by path. ``links``: hard and symbolic ones, too."""
    files: dict[str, bytes] = {
        "empty": b"",
        "tiny": b"x",
        "inline": rnd.randbytes(50),
        "block": rnd.randbytes(4096),
        "etc/conf.d/" + LONG[:200].strip(): rnd.randbytes(5000),
        "etc/big": rnd.randbytes(3 * MIB + 123),
        "etc/text.txt": b"some line of text\n" * 9000,
        "etc/zeros": bytes(200_000),
        "a/b/c/d/e/f/deep": rnd.randbytes(70_000),
    }
    for number in range(names):
        files[f"many/name {number:05} of a rather crowded directory"] = rnd.randbytes(number * 3)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if links:
        with open(root / "sparse", "wb") as file:
            for at in (0, 5 * MIB, 9 * MIB + 4096):
                file.seek(at)
                file.write(b"island" * 1000)
            file.truncate(11 * MIB + 7)
        files["sparse"] = (root / "sparse").read_bytes()
        (root / "link").symlink_to("etc/big")
        (root / "long link").symlink_to("x/" * 100)
        (root / "etc/zz hard link").hardlink_to(root / "etc/big")
        os.mkfifo(root / "fifo")
    return {os.fsencode(name): content for name, content in files.items()}


def content_of(entry: FileEntry, read: Callable[[int, int], bytes]) -> bytes:
    """Return a file's content as its extents say."""
    found = bytearray(entry.size)
    for offset, place, length in entry.extents.tolist():
        found[offset : offset + length] = read(place, length)
    return bytes(found)


def check_files(file_system: FileSystem, expected: dict[bytes, bytes], *, elsewhere: tuple[bytes, ...] = ()) -> None:
    """Check that the file system holds these files and no others; those of ``elsewhere`` have no extents."""
    found = list(file_system.files())
    assert {entry.path for entry in found} == set(expected)
    assert len(found) == len(expected)
    assert [entry.path.split(b"/") for entry in found] == sorted(entry.path.split(b"/") for entry in found)
    for entry in found:
        assert entry.size == len(expected[entry.path]), entry.path
        if entry.path in elsewhere:
            assert len(entry.extents) == 0, entry.path
        else:
            assert content_of(entry, file_system.volume.read) == expected[entry.path], entry.path


def whole(path: Path) -> Volume:
    """Return an image as one volume."""
    source = ImageSource(path)
    return Volume(source.read, 0, source.size, "whole image")


@contextmanager
def mounted_ntfs(path: Path, *options: str) -> Iterator[Path]:
    """Mount an NTFS image, or skip the test where that cannot be done; what is written is in it afterwards."""
    if not os.access("/dev/fuse", os.W_OK) or os.getuid():
        pytest.skip("mounting NTFS needs root and /dev/fuse")
    place = path.with_suffix(".mounted")
    place.mkdir()
    command = [program("ntfs-3g"), "-o", ",".join(("no_detach", *options)), str(path), str(place)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as driver:
        try:
            while not os.path.ismount(place):
                if driver.poll() is not None:
                    assert driver.stderr is not None
                    pytest.skip(f"ntfs-3g: {driver.stderr.read().decode(errors='replace')[:200]}")
                time.sleep(0.01)
            yield place
        finally:
            if os.path.ismount(place):
                run("umount", place)
            driver.wait()  # umount comes back before the driver has written everything
    place.rmdir()


@contextmanager
def mounted(kind: str, path: Path, *options: str) -> Iterator[Path]:
    """Let the kernel mount an image, or skip the test where it does not; what is written is in it afterwards."""
    if os.getuid():
        pytest.skip(f"mounting {kind} needs root")
    place = path.with_suffix(".mounted")
    place.mkdir()
    command = [program("mount"), "-t", kind, "-o", ",".join(("loop", *options)), path, place]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        pytest.skip(f"{kind} cannot be mounted: {done.stderr.decode(errors='replace')[:200]}")
    try:
        yield place
    finally:
        run("umount", place)
        place.rmdir()


@contextmanager
def mounted_xfs(path: Path, *options: str) -> Iterator[Path]:
    """Mount an XFS image, or skip the test where that cannot be done."""
    with mounted("xfs", path, *options) as place:
        yield place


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory that has room for ``size`` (``4m``), or skip the test where that cannot be done."""
    path.mkdir()
    command = [program("mount"), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"needs mount: {made.stderr.strip()}")
    try:
        yield path
    finally:
        run("umount", path)


def fill(folder: Path, *, leave: int) -> None:
    """Fill a file system with a file until only about so many bytes are free."""
    found = os.statvfs(folder)
    with open(folder / "ballast", "ab", buffering=0) as ballast, suppress(OSError):  # full, before it was said to be
        ballast.write(bytes(max(0, found.f_bavail * found.f_frsize - leave)))
