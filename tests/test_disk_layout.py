"""Layouts: containers written piece by piece, in any order, are valid and hold what was written, says qemu-img."""

from __future__ import annotations

import json
import random
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from disks import info, needs_qemu_img, qemu_img, sparse_content, write_sparse
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.disk import units as units_module
from trimtransfer.disk import vhd
from trimtransfer.disk.layout import Identity, Layout
from trimtransfer.disk.layout_vhd import geometry
from trimtransfer.disk.layouts import WRITABLE, make_layout
from trimtransfer.disk.source import open_disk
from trimtransfer.disk.units import Units

QEMU = {"qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx"}
IDENTITY = Identity(bytes(range(16)), 1_700_000_000)
Ranges = list[tuple[int, int]]


def layout_of(format: str, size: int, ranges: Ranges) -> Layout:
    columns = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    return make_layout(format, size, columns[:, 0], columns[:, 1], IDENTITY)


def filled(content: bytes | bytearray, grain: int = 4096) -> Ranges:
    """Return the ranges of ``content`` that are not zero, in multiples of ``grain``."""
    return [
        (at, min(grain, len(content) - at)) for at in range(0, len(content), grain) if any(content[at : at + grain])
    ]


def write_metadata(path: Path, layout: Layout) -> None:
    with open(path, "wb") as file:
        file.truncate(layout.file_size)
        end = 0
        for at, data in layout.metadata():
            assert at >= end
            end = at + len(data)
            assert len(data) <= 2 << 20
            file.seek(at)
            file.write(data)
        assert end <= layout.file_size


def write_container(path: Path, layout: Layout, content: bytes | bytearray, rnd: random.Random) -> Path:
    """Write pieces of any size in any order."""
    write_metadata(path, layout)
    borders = sorted({0, len(content), *(rnd.randrange(len(content)) for _ in range(60))})
    pieces = list(pairwise(borders))
    rnd.shuffle(pieces)
    with open(path, "r+b") as file:
        for start, end in pieces:
            done = start
            for at, length, place in layout.place(start, end - start):
                assert not any(content[done:at])
                file.seek(place)
                file.write(content[at : at + length])
                done = at + length
            assert not any(content[done:end])
    return path


def check(path: Path, format: str) -> None:
    """Let qemu-img check what it can check."""
    command = ["qemu-img", "check", "-f", QEMU[format], "--output=json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if format == "vhd":
        assert "does not support checks" in done.stderr
        return
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert not any(found.get(name) for name in ("corruptions", "leaks", "check-errors"))


@needs_qemu_img
@pytest.mark.parametrize("size", [512, 5120, 2 << 20, (11 << 20) + 3 * 512, 70 << 20], ids=str)
@pytest.mark.parametrize("format", WRITABLE)
def test_written_in_any_order(format: str, size: int, tmp_path: Path, rnd: random.Random) -> None:
    content = sparse_content(size, rnd)
    raw = write_sparse(tmp_path / "raw", content)
    layout = layout_of(format, size, filled(content, rnd.choice((512, 4096, 65536))))
    path = write_container(tmp_path / "disk", layout, content, rnd)
    assert path.stat().st_size == layout.file_size
    check(path, format)
    qemu_img("compare", "-f", "raw", "-F", QEMU[format], raw, path)
    assert info(path, QEMU[format])["virtual-size"] == size
    with open_disk(path) as disk:
        assert (disk.format, disk.size) == (format, size)
        assert disk.read(0, size) == content
    again = layout_of(format, size, filled(content, 512))
    assert list(again.metadata()) == list(layout.metadata())


@needs_qemu_img
@pytest.mark.parametrize("format", WRITABLE)
def test_empty_and_full_disks(format: str, tmp_path: Path, rnd: random.Random) -> None:
    for name, content in (("empty", bytes(9 << 20)), ("full", rnd.randbytes(9 << 20))):
        raw = write_sparse(tmp_path / name, content)
        path = tmp_path / f"{name}.{format}"
        write_container(path, layout_of(format, 9 << 20, filled(content)), content, rnd)
        check(path, format)
        qemu_img("compare", "-f", "raw", "-F", QEMU[format], raw, path)


@needs_qemu_img
@pytest.mark.parametrize("format", WRITABLE)
def test_others_go_on_writing(format: str, tmp_path: Path, rnd: random.Random) -> None:
    """A guest that writes to where nothing was allocated yet finds the container in order."""
    content = sparse_content(20 << 20, rnd, extents=2)
    path = write_container(tmp_path / "disk", layout_of(format, len(content), filled(content)), content, rnd)
    commands: list[str] = []
    for _ in range(20):
        at, length = rnd.randrange(len(content) // 512 - 300) * 512, rnd.randrange(1, 300) * 512
        content[at : at + length] = b"\x5a" * length
        commands += ["-c", f"write -P 0x5a {at} {length}"]
    subprocess.run(["qemu-io", "-f", QEMU[format], *commands, str(path)], check=True, capture_output=True)
    check(path, format)
    with open_disk(path) as disk:
        assert disk.read(0, len(content)) == content


@needs_qemu_img
@pytest.mark.parametrize(
    ("format", "size"), [("qcow2", 40 << 40), ("vhd", 2040 << 30), ("vhdx", 64 << 40), ("vhdx", 5 << 40)], ids=str
)
def test_large_disks(format: str, size: int, tmp_path: Path, rnd: random.Random) -> None:
    """Many TiB with a few extents: all places beyond what 32 bits address."""
    starts = sorted({rnd.randrange(size // 4096 - 600) * 4096 for _ in range(40)} | {0, size - 512})
    layout = layout_of(format, size, [(at, min(5000, size - at)) for at in starts])
    path = tmp_path / "disk"
    write_metadata(path, layout)
    data = {at: rnd.randbytes(min(5000, size - at)) for at in starts if not 0 < size - at < 5000 or at == size - 512}
    with open(path, "r+b") as file:
        for at, content in data.items():
            for start, length, place in layout.place(at, len(content)):
                file.seek(place)
                file.write(content[start - at : start - at + length])
    check(path, format)
    assert info(path, QEMU[format])["virtual-size"] == size
    with open_disk(path) as disk:
        assert disk.size == size
        for at, content in data.items():
            if all(other == at or abs(other - at) > 5000 for other in data):
                assert disk.read(at, len(content)) == content
                assert sum(length for _, length in disk.extents(at, len(content))) == len(content)


@pytest.mark.parametrize(
    ("format", "size"),
    [("qcow2", 1000), ("vhd", 1000), ("vhdx", 1000), ("vhd", 2041 << 30), ("vhdx", (64 << 40) + 512), ("vmdk", 512)],
)
def test_disks_that_a_format_does_not_have(format: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"has disks|can be written"):
        layout_of(format, size, [])


@needs_qemu_img
@pytest.mark.parametrize("format", WRITABLE)
def test_beyond_the_first_groups_of_tables(format: str, tmp_path: Path, rnd: random.Random) -> None:
    """9 GiB: several L2 tables and blocks of counts, and groups of a VHDX's blocks; made by us, and by qemu-img."""
    size = 9 << 30
    places = {rnd.randrange(size // 4096 - 20) * 4096: rnd.randbytes(70_000) for _ in range(30)}
    places |= {at: rnd.randbytes(70_000) for at in ((4 << 30) - 4096, (8 << 30) - 65536, 0)}
    with open(tmp_path / "raw", "wb") as raw:
        raw.truncate(size)
        for at, data in places.items():
            raw.seek(at)
            raw.write(data)
    layout = layout_of(format, size, sorted((at, 70_000) for at in places))
    write_metadata(tmp_path / "ours", layout)
    with open(tmp_path / "ours", "r+b") as file, open_disk(tmp_path / "raw") as source:
        for at in places:
            for start, length, place in layout.place(at, 70_000):
                file.seek(place)
                file.write(source.read(start, length))
    check(tmp_path / "ours", format)
    qemu_img("compare", "-f", "raw", "-F", QEMU[format], tmp_path / "raw", tmp_path / "ours")
    options = ("-o", "force_size=on") if format == "vhd" else ()
    qemu_img("convert", "-f", "raw", "-O", QEMU[format], *options, tmp_path / "raw", tmp_path / "theirs")
    for name in ("ours", "theirs"):
        with open_disk(tmp_path / name) as disk, open_disk(tmp_path / "raw") as source:
            assert (disk.format, disk.size) == (format, size)
            for at in places:
                assert disk.read(at - min(at, 9999), 90_000) == source.read(at - min(at, 9999), 90_000)
            found = list(disk.extents(0, size))
        assert all(any(at <= place < at + length for at, length in found) for place in places)
        assert sum(length for _, length in found) < len(places) * 4 << 20


RANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), max_size=12)


@given(ranges=RANGES, unit=st.sampled_from([1, 3, 16]), most=st.sampled_from([1, 2, 3, 100]))
def test_units_equal_their_definition(ranges: Ranges, unit: int, most: int) -> None:
    merged = sorted({byte for start, length in ranges for byte in range(start, start + length)})
    columns = np.array([(byte, 1) for byte in merged], dtype=np.int64).reshape(-1, 2)
    wanted = sorted({byte // unit for byte in merged})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units_module, "MAX_RUNS", most)
        units = Units(480, unit, columns[:, 0], columns[:, 1])
    ranks = units.ranks(0, -(-480 // unit))
    used = np.flatnonzero(ranks >= 0).tolist()
    assert len(units.starts) <= most
    assert set(wanted) <= set(used)
    assert used == wanted or len(units.starts) == most
    assert ranks[ranks >= 0].tolist() == list(range(units.total))
    for number in range(-(-480 // unit)):
        rank, end = units.run_of(number)
        assert rank == ranks[number]
        assert all((ranks[at] >= 0) == (rank >= 0) for at in range(number, end))
        assert end == len(ranks) or (ranks[end] >= 0) != (rank >= 0)
    assert set(np.flatnonzero(units.coarse(4).ranks(0, 480 // unit // 4 + 1) >= 0).tolist()) == {n // 4 for n in used}


@needs_qemu_img
@pytest.mark.parametrize("size", [3 << 20, 100 << 20, 300 << 20, 1 << 30, 127 << 30, 2039 << 30], ids=str)
def test_geometry_as_qemu_writes_it(size: int, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "vpc", tmp_path / "disk", str(size))
    footer = vhd.FOOTER.unpack((tmp_path / "disk").read_bytes()[: vhd.FOOTER.size])
    assert geometry(footer[9]) == footer[10:13]
    assert footer[9] >= size
