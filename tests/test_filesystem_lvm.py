"""Logical volumes.

``golden/volumes_lvm.img.xz`` is the first MiB of a physical volume of 100 MiB as LVM2's own programs wrote it
(pvcreate, vgcreate, vgcfgrestore): ``root`` of two segments side by side, ``split`` of two that are not, and ``data``.
"""

from __future__ import annotations

import lzma
import random
import struct
from functools import cache
from pathlib import Path

import pytest
from filesystems import MIB, make_tree, run, sized
from golden_filesystems import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import CLEAN
from trimtransfer.filesystem.lvm import Logical, _check, logical_volumes
from trimtransfer.filesystem.volume import Volume
from trimtransfer.filesystem.volumes import find_file_systems

AREA = 4096
"""Where the metadata area of the physical volume starts."""
EXTENT = 4 * MIB
SIZE = 100 * MIB


@cache
def original() -> bytes:
    return lzma.decompress((GOLDEN / "volumes_lvm.img.xz").read_bytes())


def opened(image: bytes | bytearray) -> list[Logical]:
    data = bytes(image)
    return logical_volumes(Volume(lambda at, length: data[at : at + length], 0, SIZE, "whole image"))


def with_text(change: bytes, to: bytes) -> bytearray:
    """Return the physical volume with other metadata, its checksums right."""
    image = bytearray(original())
    offset, length = struct.unpack_from("<QQ", image, AREA + 40)
    text = bytes(image[AREA + offset : AREA + offset + length])
    assert change in text
    text = text.replace(change, to, 1)
    image[AREA + 512 : AREA + 512 + len(text)] = text
    struct.pack_into("<QQI", image, AREA + 40, 512, len(text), _check(text))
    struct.pack_into("<I", image, AREA, _check(bytes(image[AREA + 4 : AREA + 512])))
    return image


def test_what_the_programs_wrote() -> None:
    assert opened(original()) == [
        Logical("split", problem="it does not lie in one piece"),
        Logical("root", MIB, 3 * EXTENT),
        Logical("data", MIB + 5 * EXTENT, 4 * EXTENT),
    ]
    assert opened(with_text(b"vg0 {", b"vg1 {")) == opened(original())


@pytest.mark.parametrize(
    ("change", "to", "reason"),
    [
        (b'type = "striped"', b'type = "snapshot"', "linear volumes only"),
        (b'type = "striped"', b'type = "thin-pool"', "linear volumes only"),
        (b"stripe_count = 1", b"stripe_count = 2", "linear volumes only"),
        (b'["READ", "WRITE", "VISIBLE"]', b'["READ", "WRITE"]', "a part of another"),
        (b"start_extent = 0", b"start_extent = -1", "a possible number"),
        (b"extent_count = 4", b"extent_count = 5000", "got others"),
        (b'"pv0", 5', b'"pv0", 1', "got others"),
        (b"extent_size = 8192", b'extent_size = "x"', "expected int"),
        (b"physical_volumes {", b"others {", "in its group"),
        (b"vg0 {", b"vg0 { } vg1 {", "one volume group"),
        (b"vg0 {", b"vg0 { ; ", "text of LVM2"),
        (b"vg0 {", b"}", "within each other"),
        (b"vg0 {", b"{" * 30, "within each other"),
    ],
)
def test_what_is_refused(change: bytes, to: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        opened(with_text(change, to))


@pytest.mark.parametrize("at", [512, 530, 600, AREA + 10, AREA + 60, AREA + 48])
def test_damage(at: int) -> None:
    image = bytearray(original())
    image[at] ^= 1
    with pytest.raises(FormatError):
        opened(image)


@given(st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=6)), min_size=1, max_size=5))
def test_any_text_is_harmless(changes: list[tuple[int, bytes]]) -> None:
    image = bytearray(original())
    offset, length = struct.unpack_from("<QQ", image, AREA + 40)
    text = bytearray(image[AREA + offset : AREA + offset + length])
    for at, new in changes:
        text[at % len(text) : at % len(text) + len(new)] = new
    image[AREA + 512 : AREA + 512 + len(text)] = text
    struct.pack_into("<QQI", image, AREA + 40, 512, len(text), _check(bytes(text)))
    struct.pack_into("<I", image, AREA, _check(bytes(image[AREA + 4 : AREA + 512])))
    try:
        opened(image)
    except FormatError:
        return


def test_a_file_system_in_a_logical_volume(tmp_path: Path, rnd: random.Random) -> None:
    files = make_tree(tmp_path / "tree", rnd, names=10)
    part = sized(tmp_path / "part", 4 * EXTENT)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tmp_path / "tree", part)
    data = original() + bytes(5 * EXTENT) + part.read_bytes() + bytes(SIZE - MIB - 9 * EXTENT)
    split, root, found = find_file_systems(lambda at, length: data[at : at + length], len(data))
    assert split.problem == "it does not lie in one piece"
    assert (root.volume.name, root.file_system) == ("whole image, volume root", None)
    assert (found.volume.name, found.kind) == ("whole image, volume data", "ext4")
    assert found.file_system is not None
    assert found.file_system.state == CLEAN
    assert {entry.path for entry in found.file_system.files()} == set(files)
    free = found.file_system.free()
    assert free[0, 0] >= MIB + 5 * EXTENT
    assert free[-1].sum() <= MIB + 9 * EXTENT
