"""Disk formats: whatever qemu-img writes is read as the raw disk it came from, with qemu-img as the judge."""

from __future__ import annotations

import random
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from disks import MAKES, Make, data_map, info, needs_qemu_img, qemu_img, sparse_content, write_sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtransfer.disk.source import DiskSource, open_disk

pytestmark = needs_qemu_img
LARGEST_CLUSTER = 2 << 20


def mask(extents: list[tuple[int, int]], size: int, unit: int = 1) -> np.ndarray:
    """Return for each byte whether it lies in an extent, extents widened to multiples of ``unit``."""
    found = np.zeros(size, dtype=bool)
    for start, length in extents:
        found[start // unit * unit : -(-(start + length) // unit) * unit] = True
    return found


def unit_of(path: Path, make: Make) -> int:
    """Return the bytes of a unit of allocation, as qemu-img states it."""
    return int(info(path, make.qemu).get("cluster-size", 65536))


@pytest.mark.parametrize("size", [9 << 20, (3 << 20) + 7 * 512, 5120], ids=["9M", "odd", "5K"])
@pytest.mark.parametrize("make", MAKES, ids=str)
def test_same_content_size_and_holes_as_qemu(make: Make, size: int, tmp_path: Path, rnd: random.Random) -> None:
    content = sparse_content(size, rnd)
    path = make.of(write_sparse(tmp_path / "raw", content), tmp_path / f"disk.{make.format}")
    with open_disk(path, format=make.format) as disk:
        assert disk.size == info(path, make.qemu)["virtual-size"]
        assert disk.format == make.format
        content += bytes(disk.size - size)
        assert disk.read(0, disk.size) == content
        extents = list(disk.extents(0, disk.size))
        disk.check_unchanged()
    ours = mask(extents, disk.size)
    assert not np.frombuffer(content, dtype=np.uint8)[~ours].any()
    theirs = mask(data_map(path, make.qemu), disk.size, unit_of(path, make))
    assert not (ours & ~theirs).any()
    assert all(length > 0 for _, length in extents)
    assert all(a + b < c for (a, b), (c, _) in pairwise(extents))


@pytest.mark.parametrize(
    "make", [make for make in MAKES if "Flat" not in str(make) and "twoGb" not in str(make)], ids=str
)
def test_recognised_by_content(make: Make, tmp_path: Path, rnd: random.Random) -> None:
    raw = write_sparse(tmp_path / "raw", sparse_content(1 << 20, rnd))
    with open_disk(raw) as disk:
        assert disk.format == "raw"
    path = make.of(raw, tmp_path / "disk")
    with open_disk(path) as disk, open_disk(path, format="raw") as whole:
        assert disk.format == make.format
        assert whole.size == path.stat().st_size
        assert whole.read(0, whole.size) == path.read_bytes()


@pytest.mark.parametrize("make", [MAKES[0], MAKES[2], MAKES[9], MAKES[11], *MAKES[18:]], ids=str)
@settings(max_examples=60)
@given(data=st.data())
def test_any_range_reads_like_the_original(
    opened: dict[Make, tuple[bytes, DiskSource]], make: Make, data: st.DataObject
) -> None:
    content, disk = opened[make]
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.one_of(st.integers(0, 5000), st.integers(0, len(content) - start)))
    length = min(length, len(content) - start)
    buffer = bytearray(b"x" * length)
    disk.read_into(buffer, start)
    assert buffer == content[start : start + length]
    found = mask(list(disk.extents(start, length)), len(content))
    assert not found[:start].any()
    assert not found[start + length :].any()
    assert not np.frombuffer(buffer, dtype=np.uint8)[~found[start : start + length]].any()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[Make, tuple[bytes, DiskSource]]:
    """Every kind of container of one image, opened."""
    folder = tmp_path_factory.mktemp("opened")
    content = sparse_content(6 << 20, random.Random(7))
    raw = write_sparse(folder / "raw", content)
    found = {}
    for number, make in enumerate(MAKES):
        disk = open_disk(make.of(raw, folder / f"{number}.{make.format}"), format=make.format)
        found[make] = (bytes(content) + bytes(disk.size - len(content)), disk)
    return found


@pytest.mark.parametrize("options", ["", "compat=0.10,", "extended_l2=on,", "cluster_size=512,"], ids=str)
@pytest.mark.parametrize("base", [Make("raw", "raw"), *(make for make in MAKES if make.format != "vmdk")][::4], ids=str)
def test_backing_file(options: str, base: Make, tmp_path: Path, rnd: random.Random) -> None:
    """Written over a base that is shorter: what was not written is the base's, then zeros."""
    content = sparse_content(2 << 20, rnd)
    base.of(write_sparse(tmp_path / "raw", content), tmp_path / "base")
    backing = f"{options}backing_file=base,backing_fmt={base.qemu}"
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", backing, top, str(3 << 20))
    write_through(top, rnd)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", top, tmp_path / "flat")
    with open_disk(top, format="qcow2") as disk, open(tmp_path / "flat", "rb") as flat:
        assert disk.read(0, disk.size) == flat.read()
        assert [path.name for path in disk.files] == ["top.qcow2", "base"]
        extents = list(disk.extents(0, disk.size))
        theirs = mask(data_map(top, "qcow2"), disk.size, LARGEST_CLUSTER)
        assert not (mask(extents, disk.size) & ~theirs).any()


def write_through(path: Path, rnd: random.Random) -> None:
    """Write, zero and discard parts of a disk through qemu-io."""
    commands: list[str] = []
    for _ in range(12):
        verb = rnd.choice(("write -P 7", "write -z", "discard", "write -P 9"))
        commands += ["-c", f"{verb} {rnd.randrange(4096) * 512} {rnd.randrange(1, 200) * 512}"]
    run_qemu_io(path, commands)


def run_qemu_io(path: Path, commands: list[str]) -> None:
    done = subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_extents_in_several_files(tmp_path: Path) -> None:
    """A disk of 5 GiB in parts of 2 GiB: content across their borders."""
    with open(tmp_path / "raw", "wb") as file:
        for at in ((2 << 30) - 70_000, (4 << 30) - (1 << 20), (5 << 30) - 512):
            file.seek(at)
            file.write(random.Random(at).randbytes(min(140_000, (5 << 30) - at)))
    for kind in ("Sparse", "Flat"):
        path = Make("vmdk", "vmdk", f"subformat=twoGbMaxExtent{kind}").of(tmp_path / "raw", tmp_path / f"{kind}.vmdk")
        with open_disk(path, format="vmdk") as disk, open(tmp_path / "raw", "rb") as raw:
            assert len(disk.files) == 4
            assert disk.size == 5 << 30
            found = list(disk.extents(0, disk.size))
            assert sum(size for _, size in found) < 2 << 20
            for at, size in found:
                raw.seek(at)
                assert disk.read(at, size) == raw.read(size)
            for at in (2 << 30, 4 << 30):
                raw.seek(at - 100_000)
                assert disk.read(at - 100_000, 200_000) == raw.read(200_000)


def test_internal_snapshots_are_left_aside(tmp_path: Path, rnd: random.Random) -> None:
    content = sparse_content(1 << 20, rnd)
    path = Make("qcow2", "qcow2").of(write_sparse(tmp_path / "raw", content), tmp_path / "disk")
    qemu_img("snapshot", "-c", "before", path)
    run_qemu_io(path, ["-c", "write -P 5 0 256k"])
    content[: 256 << 10] = b"\5" * (256 << 10)
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == content


def test_memory_and_time_do_not_grow_with_the_disk(tmp_path: Path) -> None:
    """64 TiB (VHD: 2 TiB) of nothing are opened, and looked at in places, at once."""
    for name, qemu, size in (("qcow2", "qcow2", 63 << 40), ("vhdx", "vhdx", 63 << 40), ("vhd", "vpc", 2039 << 30)):
        path = tmp_path / name
        options = "force_size=on" if qemu == "vpc" else "cluster_size=2M" if qemu == "qcow2" else "block_size=256M"
        qemu_img("create", "-q", "-f", qemu, "-o", options, path, str(size))
        with open_disk(path) as disk:
            assert disk.size == size
            assert list(disk.extents(size // 3, 64 << 20)) == []
            assert disk.read(size - 4096, 8192) == bytes(4096)
