"""Disks that are damaged, hostile, or of a sort that cannot be read with certainty: only our errors, soon, cheaply."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import Make, needs_qemu_img, qemu_img, sparse_content, write_sparse

from trimtransfer.disk import qcow2, vhdx, vmdk
from trimtransfer.disk.crc32c import crc32c
from trimtransfer.disk.source import MAX_CHAIN, open_disk
from trimtransfer.errors import FormatError, SourceRefused

pytestmark = needs_qemu_img
KIB = 1 << 10

SMALL = (
    Make("qcow2", "qcow2"),
    Make("qcow2", "qcow2", "cluster_size=512", True),
    Make("qcow2", "qcow2", "compression_type=zstd,cluster_size=4096", True),
    Make("qcow2", "qcow2", "extended_l2=on"),
    Make("vhd", "vpc"),
    Make("vhd", "vpc", "subformat=fixed"),
    Make("vhdx", "vhdx", "block_size=1M,log_size=1M"),
    Make("vmdk", "vmdk"),
    Make("vmdk", "vmdk", "subformat=streamOptimized", True),
)


def read_some(path: Path, format: str | None) -> bool:
    """Read start, middle and end of a disk as a publisher would; False if it was refused by one of our errors."""
    try:
        with open_disk(path, format=format) as disk:
            for start in {0, max(0, disk.size // 2 - KIB), max(0, disk.size - 256 * KIB)}:
                length = min(256 * KIB, disk.size - start)
                for at, size in disk.extents(start, length):
                    assert start <= at < at + size <= start + length
                    disk.read(at, size)
                disk.read(start, length)
    except (FormatError, SourceRefused):
        return False
    return True


def places(path: Path, rnd: random.Random) -> list[int]:
    """Return where to damage a file: bytes that are not zero in its first and last KiB, and some elsewhere."""
    raw = path.read_bytes()
    ends = [at for at in (*range(KIB), *range(len(raw) - KIB, len(raw))) if raw[at]]
    others = [at for at in range(0, len(raw), 8) if any(raw[at : at + 8])]
    return sorted({*rnd.sample(ends, min(200, len(ends))), *rnd.sample(others, min(100, len(others)))})


@pytest.mark.parametrize("make", SMALL, ids=str)
def test_bytes_of_headers_and_tables_damaged(make: Make, tmp_path: Path, rnd: random.Random) -> None:
    raw = write_sparse(tmp_path / "raw", sparse_content(256 * KIB, rnd, extents=4))
    path = make.of(raw, tmp_path / "disk")
    with open(path, "r+b", buffering=0) as file:
        for at in places(path, rnd):
            (was,) = os.pread(file.fileno(), 1, at)
            for value in {was ^ 0xFF, was ^ 1 << rnd.randrange(8)}:
                os.pwrite(file.fileno(), bytes([value]), at)
                read_some(path, make.format)
            os.pwrite(file.fileno(), bytes([was]), at)
    assert read_some(path, make.format)


@pytest.mark.parametrize("make", SMALL, ids=str)
def test_memory_is_bounded_whatever_the_sizes_claim(make: Make, tmp_path: Path, rnd: random.Random) -> None:
    """Every group of four bytes of the headers that is not zero becomes a large number."""
    path = make.of(write_sparse(tmp_path / "raw", rnd.randbytes(64 * KIB)), tmp_path / "disk")
    headers = [*range(8, 128, 4), *range(512, 640, 4)] if make.format != "vhdx" else [*range(65536, 65664, 4)]
    tracemalloc.start()
    with open(path, "r+b", buffering=0) as file:
        for at in headers:
            was = os.pread(file.fileno(), 4, at)
            for value in (b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"):
                os.pwrite(file.fileno(), value, at)
                read_some(path, make.format)
            os.pwrite(file.fileno(), was, at)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("make", SMALL, ids=str)
def test_cut_short(make: Make, tmp_path: Path, rnd: random.Random) -> None:
    content = rnd.randbytes(256 * KIB)
    path = make.of(write_sparse(tmp_path / "raw", content), tmp_path / "disk")
    size = path.stat().st_size
    for length in sorted(
        {0, 1, 511, 512, size - 1, size - 512, *(rnd.randrange(size) for _ in range(60))}, reverse=True
    ):
        os.truncate(path, length)
        try:
            with open_disk(path, format=make.format) as disk:
                assert disk.read(0, 256 * KIB) == content
        except (FormatError, SourceRefused):
            continue
        assert size - length <= 1024, "a disk that lacks its end reads as if nothing was wrong"


@pytest.mark.parametrize("make", SMALL, ids=str)
def test_random_bytes_behind_the_mark(make: Make, tmp_path: Path, rnd: random.Random) -> None:
    path = make.of(write_sparse(tmp_path / "raw", rnd.randbytes(8 * KIB)), tmp_path / "disk")
    whole = bytearray(path.read_bytes())
    for _ in range(40):
        start = rnd.randrange(8, len(whole))
        damaged = whole[:]
        damaged[start : start + 200] = rnd.randbytes(200)
        path.write_bytes(damaged)
        read_some(path, make.format)
        read_some(path, None)


def refused(path: Path, *words: str, format: str | None = None) -> None:
    with pytest.raises(SourceRefused) as caught, open_disk(path, format=format):
        pass
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def create(path: Path, format: str, *options: str, size: str = "1M") -> Path:
    qemu_img("create", "-q", "-f", format, *options, path, size)
    return path


def test_encrypted_and_external_qcow2(tmp_path: Path) -> None:
    for method in (1, 2):  # AES, LUKS; to make one, qemu-img wants a machine that is not busy
        path = create(tmp_path / "encrypted", "qcow2")
        with open(path, "r+b") as file:
            file.seek(32)
            file.write(method.to_bytes(4, "big"))
        refused(path, "encrypted", "qemu-img convert")
    refused(create(tmp_path / "outside", "qcow2", "-o", f"data_file={tmp_path}/data"), "external data file")


@pytest.mark.parametrize(("bit", "words"), [(0, "not closed cleanly"), (1, "corrupt"), (9, "not known")])
def test_feature_bits_of_qcow2(bit: int, words: str, tmp_path: Path) -> None:
    path = create(tmp_path / "disk", "qcow2")
    with open(path, "r+b") as file:
        file.seek(72)
        file.write((1 << bit).to_bytes(8, "big"))
    refused(path, words)


def test_the_remedy_helps(tmp_path: Path) -> None:
    """A qcow2 file whose machine died is refused, and read once it is repaired."""
    path = create(tmp_path / "disk.qcow2", "qcow2", "-o", "lazy_refcounts=on")
    died = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 64k", "-c", "abort", path], check=False)
    assert died.returncode
    refused(path, "not closed cleanly", "qemu-img check -r all")
    qemu_img("check", "-q", "-f", "qcow2", "-r", "all", path)
    with open_disk(path) as disk:
        assert disk.read(64 * KIB, 64 * KIB) == b"\7" * (64 * KIB)


def test_first_qcow(tmp_path: Path) -> None:
    refused(create(tmp_path / "disk", "qcow"), "version 1", "convert")


def test_a_base_is_followed_only_where_that_is_meant(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"secret" * 1000)
    (folder / "base").write_bytes(bytes(1 << 20))
    (folder / "link").symlink_to(outside)
    (folder / "folder").mkdir()
    top = folder / "top"

    def based(name: str, *format: str) -> Path:
        return create(top, "qcow2", "-u", *format, "-b", name)

    refused(based("base", "-F", "raw"), "depends on", "--format qcow2")
    with open_disk(top, format="qcow2") as disk:
        assert disk.files == (top, folder / "base")
    with open_disk(based(str(folder / "base"), "-F", "raw"), format="qcow2") as disk:
        assert disk.files == (top, folder / "base")
    for name in (str(outside), "../outside", "/dev/zero", "folder/../../outside", "nbd://host/export"):
        refused(based(name, "-F", "raw"), "outside its directory", format="qcow2")
    refused(based("link", "-F", "raw"), "not a regular file", format="qcow2")
    refused(based("folder", "-F", "raw"), "not a regular file", format="qcow2")
    refused(based("none", "-F", "raw"), "not beside it", format="qcow2")
    refused(based("base", "-F", "qed"), "'qed'", format="qcow2")
    without = bytearray(based("base", "-F", "raw").read_bytes())
    at = without.index(struct.pack(">I", qcow2.BACKING_FORMAT))
    without[at : at + 4] = b"\1\1\1\1"
    top.write_bytes(without)
    refused(top, "qemu-img rebase", format="qcow2")


def test_chains_end(tmp_path: Path) -> None:
    """A base that is based on its own child, and one disk more than may lie over one another."""
    create(tmp_path / "a", "qcow2", "-u", "-F", "qcow2", "-b", "b")
    create(tmp_path / "b", "qcow2", "-u", "-F", "qcow2", "-b", "a")
    with pytest.raises(SourceRefused, match=f"more than {MAX_CHAIN}"):
        open_disk(tmp_path / "a", format="qcow2")
    (tmp_path / "0").write_bytes(bytes(1 << 20))
    for number in range(1, MAX_CHAIN + 2):
        below = "raw" if number == 1 else "qcow2"
        create(tmp_path / str(number), "qcow2", "-u", "-F", below, "-b", str(number - 1))
    with open_disk(tmp_path / str(MAX_CHAIN), format="qcow2") as disk:
        assert len(disk.files) == MAX_CHAIN + 1
    with pytest.raises(SourceRefused):
        open_disk(tmp_path / str(MAX_CHAIN + 1), format="qcow2")


def test_descriptors_of_vmdk(tmp_path: Path) -> None:
    path = create(tmp_path / "flat.vmdk", "vmdk", "-o", "subformat=monolithicFlat")
    refused(path, "depends on", "flat-flat.vmdk")
    text = path.read_bytes()
    for was, becomes, words in (
        (b"flat-flat.vmdk", b"../outside.vmdk", "outside its directory"),
        (b"RW 2048 FLAT", b'RW 2048 FLAT "/dev/sda" 0\nRW 2048 FLAT', "outside its directory"),
        (b"RW 2048 FLAT", b"RW 2048 VMFSRDM", "VMFSRDM"),
        (b"parentCID=ffffffff", b"parentCID=12345678", "snapshot"),
    ):
        path.write_bytes(text.replace(was, becomes))
        refused(path, words, format="vmdk")
    for damaged in (text[:21], text.replace(b"RW 2048", b"RW 20x48"), text.replace(b"RW 2048", b"RW 2049")):
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            open_disk(path, format="vmdk")
    path.write_bytes(text + b'RW 1 FLAT "flat-flat.vmdk" 0\n' * vmdk.MAX_EXTENTS)
    with pytest.raises(FormatError):
        open_disk(path, format="vmdk")


def test_parts_and_snapshots_of_vmdk(tmp_path: Path) -> None:
    create(tmp_path / "split.vmdk", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
    refused(tmp_path / "split-s001.vmdk", "one part of a disk")
    base = create(tmp_path / "base.vmdk", "vmdk")
    top = tmp_path / "top.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base, top)
    refused(top, "snapshot")
    for mark, name in ((b"COWD", "ESX sparse"), (b"\xbe\xba\xfe\xca", "SESparse")):
        (tmp_path / "esx.vmdk").write_bytes(mark + bytes(4096))
        refused(tmp_path / "esx.vmdk", name)
    with open(base, "r+b") as file:
        file.seek(72)
        file.write(b"\1")
    refused(base, "not closed cleanly")


def test_stream_whose_directory_is_at_its_end(tmp_path: Path, rnd: random.Random) -> None:
    """As VMware writes it: the header at the start says "at the end", where there is another one."""
    content = sparse_content(3 << 20, rnd)
    make = Make("vmdk", "vmdk", "subformat=streamOptimized", True)
    path = make.of(write_sparse(tmp_path / "raw", content), tmp_path / "disk")
    raw = bytearray(path.read_bytes())
    raw += bytes(-len(raw) % 512)
    last = bytes(raw[:512])
    raw[56:64] = b"\xff" * 8
    marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")  # one sector follows, and it is a footer
    path.write_bytes(bytes(raw) + marker + last + bytes(512))
    with open_disk(path) as disk:
        assert disk.read(0, disk.size) == content
    path.write_bytes(raw)
    with pytest.raises(FormatError):
        open_disk(path)


def test_vhdx_of_sectors_of_4_kib(tmp_path: Path, rnd: random.Random) -> None:
    content = sparse_content(9 << 20, rnd)
    path = Make("vhdx", "vhdx", "block_size=1M").of(write_sparse(tmp_path / "raw", content), tmp_path / "disk")
    raw = bytearray(path.read_bytes())
    entry = raw.index(vhdx.LOGICAL_SECTOR)
    region = raw.rindex(b"metadata", 0, entry)
    at = region + struct.unpack_from("<I", raw, entry + 16)[0]
    assert raw[at : at + 4] == (512).to_bytes(4, "little")
    for size, fine in ((4096, True), (1024, False), (0, False)):
        raw[at : at + 4] = size.to_bytes(4, "little")
        path.write_bytes(raw)
        if fine:
            with open_disk(path) as disk:
                assert disk.read(0, disk.size) == content
                assert "sectors of 4096" in disk.detail
        else:
            with pytest.raises(FormatError, match="logical sector"):
                open_disk(path)


def change_headers(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change both headers of a VHDX, their checksums kept right."""
    with open(path, "r+b") as file:
        for at in vhdx.HEADER_OFFSETS:
            file.seek(at)
            header = bytearray(file.read(vhdx.HEADER_SIZE))
            change(header)
            header[4:8] = bytes(4)
            header[4:8] = crc32c(bytes(header)).to_bytes(4, "little")
            file.seek(at)
            file.write(header)


def test_vhdx_with_a_lost_log_or_a_parent(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.vhdx", "vhdx")

    def dirty(header: bytearray) -> None:
        header[48:64] = bytes(range(1, 17))

    change_headers(path, dirty)
    refused(path, "log", "qemu-img check -r all")
    path = create(tmp_path / "other.vhdx", "vhdx")
    raw = bytearray(path.read_bytes())
    at = raw.index(vhdx.FILE_PARAMETERS)
    region = at - vhdx.METADATA_HEADER.size
    while raw[region : region + 8] != b"metadata":
        region -= vhdx.METADATA_ENTRY.size
    raw[region + struct.unpack_from("<I", raw, at + 16)[0] + 4] |= 2
    path.write_bytes(raw)
    refused(path, "differencing", "Merge-VHD")


def test_one_damaged_header_of_vhdx_does_no_harm(tmp_path: Path, rnd: random.Random) -> None:
    content = sparse_content(1 << 20, rnd)
    path = Make("vhdx", "vhdx").of(write_sparse(tmp_path / "raw", content), tmp_path / "disk")
    for at in (vhdx.HEADER_OFFSETS[0], vhdx.REGION_OFFSETS[0]):
        with open(path, "r+b") as file:
            file.seek(at + 100)
            file.write(b"damage")
    with open_disk(path) as disk:
        assert disk.read(0, disk.size)[: len(content)] == content


def test_what_a_guest_writes_into_a_raw_disk(tmp_path: Path) -> None:
    """Raw stays raw where that is stated, whatever its first or last sector holds; else it is said what was found."""
    fake = create(tmp_path / "fake", "qcow2").read_bytes()
    (tmp_path / "raw").write_bytes(fake)
    with open_disk(tmp_path / "raw", format="raw") as disk:
        assert disk.read(0, disk.size) == fake
    with open_disk(tmp_path / "raw") as disk:
        assert disk.format == "qcow2"
    fixed = create(tmp_path / "fixed", "vpc", "-o", "subformat=fixed,force_size=on").read_bytes()
    (tmp_path / "raw").write_bytes(bytes(4096) + fixed[-512:])
    with pytest.raises(FormatError, match=r"recognised as vhd.*format raw"):
        open_disk(tmp_path / "raw")


def test_names_of_formats(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="known are"):
        open_disk(tmp_path / "raw", format="vdi")
    for format in ("vhd", "vhdx", "qcow2", "vmdk"):
        with pytest.raises(FormatError):
            open_disk(tmp_path / "raw", format=format)
    with open_disk(tmp_path / "raw") as disk:
        assert disk.read(900, 5000) == b"x" * 100
        with pytest.raises(ValueError, match="of a disk"):
            disk.read_into(bytearray(200), 900)


@pytest.mark.parametrize("length", [0, 1, 4, 255, 256, 257, 4096, 65536])
def test_crc32c_equals_the_definition(length: int, rnd: random.Random) -> None:
    data = rnd.randbytes(length)
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    assert crc32c(data) == value ^ 0xFFFFFFFF
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's catalogue value
