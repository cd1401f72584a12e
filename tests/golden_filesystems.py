"""Tiny file systems kept in ``golden``, one of each kind, with deleted files, and what a reader must find in them.

``python tests/golden_filesystems.py`` makes those that are not there yet, with the file systems' own programs (it needs
root); what is there is never changed.
"""

from __future__ import annotations

import json
import lzma
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blake3 import blake3
from filesystems import KIB, MIB, content_of, mounted_ntfs, mounted_xfs, run, sized

from trimtransfer.filesystem.contents import FileSystem
from trimtransfer.filesystem.volumes import find_file_systems

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("ext2", "ext4", "fat12", "fat32", "ntfs", "xfs")


def load(name: str) -> bytes:
    """Return the image of a kept file system."""
    return lzma.decompress((GOLDEN / f"filesystem_{name}.img.xz").read_bytes())


def open_image(image: bytes) -> FileSystem:
    """Return the file system of an image in memory."""
    (found,) = find_file_systems(lambda at, length: image[at : at + length], len(image))
    assert found.file_system is not None, found.problem
    return found.file_system


def facts(image: bytes) -> dict[str, object]:
    """Return what a reader finds: state, free bytes, digests of the free ranges and of all files, by path."""
    file_system = open_image(image)
    free = file_system.free()
    files = {
        entry.path.decode(): [entry.size, len(entry.extents), _digest(content_of(entry, file_system.volume.read))]
        for entry in file_system.files()
    }
    return {
        "kind": file_system.kind,
        "state": file_system.state,
        "free": int(free[:, 1].sum()),
        "ranges": _digest(free.astype("<i8").tobytes()),
        "files": files,
    }


def _digest(data: bytes) -> str:
    return blake3(data).hexdigest()[:16]


def _fill(place: Path, rnd: random.Random) -> None:
    """Write some files, and files that are deleted again in between."""
    (place / "directory" / "inner").mkdir(parents=True)
    for number in range(40):
        (place / "directory" / f"file {number}").write_bytes(rnd.randbytes(number * 20))
    for number in range(0, 40, 3):
        (place / "directory" / f"file {number}").unlink()
    (place / "directory" / "inner" / "text").write_bytes(b"a line of text\n" * 3000)
    with open(place / "scattered", "wb") as file:
        for number in range(12):
            file.seek(number * 8 * KIB)
            file.write(rnd.randbytes(100))


def _ext(path: Path, tree: Path, options: str) -> None:
    sized(path, 4 * MIB)
    run("mke2fs", "-q", "-F", *options.split(), "-d", tree, path)
    commands = [f'rm "directory/file {number}"' for number in range(1, 40, 6)]
    run("debugfs", "-w", "-f", "-", path, text="\n".join(commands) + "\n")


def _fat(path: Path, tree: Path, options: str, size: int) -> None:
    sized(path, size)
    run("mkfs.fat", *options.split(), path)
    run("mcopy", "-s", "-i", path, *tree.iterdir(), "::")
    run("mdel", "-i", path, *(f"::directory/file {number}" for number in range(1, 40, 6)))


def _ntfs(path: Path, rnd: random.Random) -> None:
    sized(path, 4 * MIB)
    run("mkntfs", "-F", "-q", "-Q", "-c", "1024", path)
    with mounted_ntfs(path) as place:
        _fill(place, rnd)


def _xfs(path: Path, rnd: random.Random) -> None:
    sized(path, 20 * MIB)
    run("mkfs.xfs", "--unsupported", "-q", "-b", "size=1024", "-l", "size=4m", path)
    with mounted_xfs(path) as place:
        _fill(place, rnd)


def _compress(data: bytes) -> bytes:
    """Compress; differences of 16-bit numbers make NTFS's table of capital letters small."""
    plain = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
    filters = ([plain], [{"id": lzma.FILTER_DELTA, "dist": 2}, plain | {"lp": 1, "pb": 1}])
    return min((lzma.compress(data, filters=one) for one in filters), key=len)


def make() -> None:
    """Make the images that are not there, and the list of what is in them."""
    rnd = random.Random(20261121)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "tree").mkdir()
        _fill(work / "tree", rnd)
        makers: dict[str, Callable[[Path], None]] = {
            "ext2": lambda path: _ext(path, work / "tree", "-t ext2"),
            "ext4": lambda path: _ext(path, work / "tree", "-t ext4 -O inline_data -I 256 -J size=1"),
            "fat12": lambda path: _fat(path, work / "tree", "-F 12", MIB),
            "fat32": lambda path: _fat(path, work / "tree", "-F 32 -s 1", 36 * MIB),
            "ntfs": lambda path: _ntfs(path, rnd),
            "xfs": lambda path: _xfs(path, rnd),
        }
        for name in NAMES:
            target = GOLDEN / f"filesystem_{name}.img.xz"
            if not target.exists():
                makers[name](work / name)
                target.write_bytes(_compress((work / name).read_bytes()))
    found = {name: facts(load(name)) for name in NAMES}
    (GOLDEN / "filesystems.json").write_text(json.dumps(found, indent=1) + "\n")


def metadata(image: bytes) -> np.ndarray:
    """Return which bytes of an image (bool) belong to structures: in use, but not the content of a file."""
    file_system = open_image(image)
    found = np.zeros(len(image), dtype=np.bool_)
    for start, length in file_system.reached().tolist():
        found[start : start + length] = True
    for entry in file_system.files():
        for _, start, length in entry.extents.tolist():
            found[start : start + length] = False
    return found


if __name__ == "__main__":
    make()
