"""VHDs that qemu-img does not write: differencing disks, and blocks of which only some sectors were written."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from disks import Make, needs_qemu_img, sparse_content, write_sparse

from trimtransfer.disk import vhd
from trimtransfer.disk.source import open_disk
from trimtransfer.errors import FormatError, SourceRefused

SIZE = 3 << 20
BLOCK = 2 << 20
OWN, PARENT = b"the disk's own id", b"its parents own id"


def footer(kind: int, unique: bytes, size: int = SIZE, data_offset: int = 512) -> bytes:
    """Return a footer with a right checksum."""
    fields = [
        vhd.COOKIE, 2, 0x10000, data_offset, 0, b"test", 0, b"test", size, size,
        65535, 16, 255, kind, 0, unique[:16], 0,
    ]  # fmt: skip
    fields[14] = vhd.checksum(vhd.FOOTER.pack(*fields), 64)
    return vhd.FOOTER.pack(*fields)


def sparse_vhd(
    path: Path, sectors: dict[int, bytes], *, kind: int = vhd.DYNAMIC, parent: str = "", rest: bytes = b"\0"
) -> Path:
    """Write a dynamic or differencing VHD by the book: these sectors are written, the others of their blocks not."""
    used = sorted({number * 512 // BLOCK for number in sectors})
    table, first, stride = 1536, 2048, 512 + BLOCK
    fields = [
        vhd.SPARSE_COOKIE, (1 << 64) - 1, table, 0x10000, 2, BLOCK, 0, PARENT[:16], 0, 0,
        parent.encode("utf-16-be").ljust(512, b"\0"), bytes(192),
    ]  # fmt: skip
    fields[6] = vhd.checksum(vhd.SPARSE.pack(*fields), 36)
    entries = [(first + used.index(block) * stride) // 512 if block in used else vhd.UNUSED for block in range(2)]
    body = bytearray(footer(kind, OWN) + vhd.SPARSE.pack(*fields) + np.array(entries, dtype=">u4").tobytes().ljust(512))
    for block in used:
        written = np.zeros(BLOCK // 512, dtype=np.uint8)
        data = bytearray(rest * BLOCK)
        for number, content in sectors.items():
            if number * 512 // BLOCK == block:
                at = number * 512 % BLOCK
                written[at // 512] = 1
                data[at : at + 512] = content
        body += np.packbits(written).tobytes() + data
    path.write_bytes(bytes(body) + footer(kind, OWN))
    return path


def some_sectors(rnd: random.Random) -> dict[int, bytes]:
    chosen = {0, 1, 2, *rnd.sample(range(SIZE // 512), 40), SIZE // 512 - 1}
    return {number: rnd.randbytes(512) for number in sorted(chosen)}


def with_sectors(content: bytes, sectors: dict[int, bytes]) -> bytes:
    changed = bytearray(content)
    for number, data in sectors.items():
        changed[number * 512 : number * 512 + 512] = data
    return bytes(changed)


def test_sectors_that_were_never_written_are_zeros(tmp_path: Path, rnd: random.Random) -> None:
    sectors = some_sectors(rnd)
    with open_disk(sparse_vhd(tmp_path / "disk.vhd", sectors)) as disk:
        content = with_sectors(bytes(SIZE), sectors)
        assert disk.read(0, SIZE) == content
        assert sum(size for _, size in disk.extents(0, SIZE)) == 512 * len(sectors)


def test_data_in_sectors_that_were_never_written_is_a_contradiction(tmp_path: Path, rnd: random.Random) -> None:
    path = sparse_vhd(tmp_path / "disk.vhd", some_sectors(rnd))
    raw = bytearray(path.read_bytes())
    raw[2048 + 512 + 300 * 512 + 7] |= 1
    raw[2048 + 300 // 8] &= 0xFF ^ 0x80 >> 300 % 8
    path.write_bytes(raw)
    with open_disk(path) as disk:
        for look in (lambda: disk.read(0, SIZE), lambda: list(disk.extents(0, SIZE))):
            with pytest.raises(SourceRefused, match="nothing was written"):
                look()
        assert disk.read(BLOCK, 512) is not None


@pytest.mark.parametrize("written", ["parent.vhd", ".\\parent.vhd", "C:\\vm disks\\parent.vhd"])
def test_differencing_disk_over_each_kind_of_parent(written: str, tmp_path: Path, rnd: random.Random) -> None:
    below, above = some_sectors(rnd), some_sectors(rnd)
    child = sparse_vhd(tmp_path / "child.vhd", above, kind=vhd.DIFFERENCING, parent=written, rest=b"\xee")
    content = with_sectors(bytes(SIZE), below)
    (tmp_path / "parent.vhd").write_bytes(content + footer(vhd.FIXED, PARENT, data_offset=(1 << 64) - 1))
    with open_disk(child, format="vhd") as disk:
        assert disk.read(0, SIZE) == with_sectors(content, above)
        assert len(disk.files) == 2
    with pytest.raises(SourceRefused, match="--format vhd"):
        open_disk(child)
    (tmp_path / "parent.vhd").write_bytes(content + footer(vhd.FIXED, OWN, data_offset=(1 << 64) - 1))
    with pytest.raises(SourceRefused, match="its id is another"):
        open_disk(child, format="vhd")
    (tmp_path / "parent.vhd").unlink()
    with pytest.raises(SourceRefused, match="not beside it"):
        open_disk(child, format="vhd")


def test_the_parent_s_sectors_show_through(tmp_path: Path, rnd: random.Random) -> None:
    """A differencing disk whose parent is dynamic and has holes itself."""
    below, above = some_sectors(rnd), {5: rnd.randbytes(512)}
    parent = sparse_vhd(tmp_path / "parent.vhd", below)
    raw = bytearray(parent.read_bytes())
    raw[:512] = raw[-512:] = footer(vhd.DYNAMIC, PARENT)
    parent.write_bytes(raw)
    child = sparse_vhd(tmp_path / "child.vhd", above, kind=vhd.DIFFERENCING, parent="parent.vhd")
    with open_disk(child, format="vhd") as disk:
        assert disk.read(0, SIZE) == with_sectors(with_sectors(bytes(SIZE), below), above)
        extents = list(disk.extents(0, SIZE))
    assert sum(size for _, size in extents) == 512 * len({*below, *above})


def test_the_current_size_counts(tmp_path: Path) -> None:
    """Not what cylinders, heads and sectors give; and a fixed disk must have exactly that size."""
    path = tmp_path / "disk.vhd"
    path.write_bytes(bytes(70_000 // 512 * 512) + footer(vhd.FIXED, OWN, size=70_000 // 512 * 512))
    with open_disk(path) as disk:
        assert (disk.size, disk.format, disk.detail) == (70_000 // 512 * 512, "vhd", "fixed")
    path.write_bytes(bytes(4096) + footer(vhd.FIXED, OWN, size=8192))
    with pytest.raises(FormatError, match="fixed disk of 4,096 bytes"):
        open_disk(path)


@needs_qemu_img
def test_footers_that_contradict_each_other(tmp_path: Path, rnd: random.Random) -> None:
    path = Make("vhd", "vpc").of(write_sparse(tmp_path / "raw", sparse_content(1 << 20, rnd)), tmp_path / "disk")
    whole = path.read_bytes()
    path.write_bytes(footer(vhd.DYNAMIC, OWN) + whole[512:])
    with pytest.raises(FormatError, match="at the start, too"):
        open_disk(path)
    path.write_bytes(whole[:-512])
    with pytest.raises(FormatError, match="cut short"):
        open_disk(path)
    path.write_bytes(bytes(512) + whole[512:])
    with open_disk(path) as disk:  # the one at the end is in force
        assert disk.format == "vhd"
