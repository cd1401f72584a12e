"""Redo files: complete or as good as absent, applied as often as it takes, never a wrong byte from a damaged one."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from trimtransfer.assembly import redo as redo_module
from trimtransfer.assembly.journal import Base
from trimtransfer.assembly.rawfile import RawFile
from trimtransfer.assembly.redo import Redo, RedoData, RedoKey, apply, is_committed, read_header, read_records
from trimtransfer.chunk import object_check
from trimtransfer.errors import IntegrityError

LENGTH = 300_000
KEY = RedoKey(bytes(range(32)), LENGTH, 1, 2)


def make_image(path: Path, rng: np.random.Generator) -> bytes:
    """Write an old image."""
    data = rng.integers(1, 256, 200_000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return data


def make_writes(rng: np.random.Generator) -> list[tuple[int, bytes]]:
    """Return some writes, one of zeros."""
    sizes = rng.integers(1, 30_000, 6).tolist()
    writes = [(40_000 * n, rng.integers(0, 256, size, dtype=np.uint8).tobytes()) for n, size in enumerate(sizes)]
    return [*writes, (250_000, bytes(20_000))]


def fill(path: Path, image: Path, writes: list[tuple[int, bytes]], *, commit: bool) -> None:
    """Write a redo file."""
    with RawFile(image) as file:
        redo = Redo(path, file, KEY, base=Base.OLD)
        for offset, data in writes:
            if any(data):
                redo.write([(offset, memoryview(data))])
            else:
                redo.write_zeros(offset, len(data))
        if commit:
            redo.commit()
        redo.close()


def result(old: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    """Return what applying must make of the old image."""
    image = bytearray(old.ljust(LENGTH, b"\0"))
    for offset, data in writes:
        image[offset : offset + len(data)] = data
    return bytes(image)


def test_applied_once_or_often_it_makes_the_same_image(tmp_path: Path, rng: np.random.Generator) -> None:
    path, image = tmp_path / "redo", tmp_path / "image"
    old, writes = make_image(image, rng), make_writes(rng)
    fill(path, image, writes, commit=True)
    assert image.read_bytes() == old
    with RawFile(path) as file, RawFile(image) as target:
        assert read_header(file) is not None
        assert is_committed(file)
        for _ in range(3):
            apply(file, target, length=LENGTH)
            assert image.read_bytes() == result(old, writes)


def test_an_image_that_shrinks_is_cut(tmp_path: Path, rng: np.random.Generator) -> None:
    path, image = tmp_path / "redo", tmp_path / "image"
    old, writes = make_image(image, rng), make_writes(rng)[:2]
    fill(path, image, writes, commit=True)
    with RawFile(path) as file, RawFile(image) as target:
        apply(file, target, length=100_000)
    assert image.read_bytes() == result(old, writes)[:100_000]


def test_every_truncation_is_uncommitted_and_resumes(tmp_path: Path, rng: np.random.Generator) -> None:
    """Whatever is left of a redo file: what it says is there is right, and going on completes it."""
    path, image = tmp_path / "redo", tmp_path / "image"
    old, writes = make_image(image, rng), make_writes(rng)
    fill(path, image, writes, commit=True)
    whole = path.read_bytes()
    expected = result(old, writes)
    for length in [0, 10, *range(84, len(whole), 3001), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with RawFile(path) as file:
            assert not is_committed(file)
        with RawFile(image) as target:
            redo = Redo(path, target, KEY, base=Base.OLD)
            for offset, data in writes:
                if not redo.done.covers(np.array([offset]), np.array([len(data)])).all():
                    redo.write([(offset, memoryview(data))])
            redo.commit()
            redo.close()
        copy = tmp_path / "copy"
        copy.write_bytes(old)
        with RawFile(path) as file, RawFile(copy) as target:
            apply(file, target, length=LENGTH)
        assert copy.read_bytes() == expected


def test_a_damaged_record_never_reaches_the_image(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, image = tmp_path / "redo", tmp_path / "image"
    old, writes = make_image(image, rng), make_writes(rng)
    fill(path, image, writes, commit=True)
    whole = path.read_bytes()
    expected = result(old, writes)
    for at in rng.integers(0, len(whole), 150).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
        copy = tmp_path / "copy"
        copy.write_bytes(old)
        with RawFile(path) as file, RawFile(copy) as target:
            if read_header(file) is None or not is_committed(file):
                continue
            with pytest.raises(IntegrityError):
                apply(file, target, length=LENGTH)
            found = copy.read_bytes().ljust(LENGTH, b"\0")
            before = old.ljust(LENGTH, b"\0")
            differs = np.frombuffer(found, dtype=np.uint8) != np.frombuffer(expected, dtype=np.uint8)
            untouched = np.frombuffer(found, dtype=np.uint8) == np.frombuffer(before, dtype=np.uint8)
            assert (untouched | ~differs).all(), "a byte that is neither the old nor the new one"


@pytest.mark.parametrize("kind", [1, 2], ids=["data", "zeros"])
@pytest.mark.parametrize(("offset", "length"), [(2**64 - 1, 1), (2**63, 1), (2**46, 1), (1, 2**64 - 1), (0, 2**46 + 1)])
def test_records_outside_any_image_end_the_file_though_their_checks_fit(
    tmp_path: Path, rng: np.random.Generator, kind: int, offset: int, length: int
) -> None:
    path, image = tmp_path / "redo", tmp_path / "image"
    make_image(image, rng)
    writes = make_writes(rng)
    fill(path, image, writes, commit=False)
    fields = struct.pack("<4sBxxxQQ16s", b"TTRr", kind, offset, length, object_check(b"x"))
    with open(path, "ab") as file:
        file.write(fields + struct.pack("<I", zlib.crc32(fields)) + b"x")
    with RawFile(path) as file:
        assert len(list(read_records(file, verify=False))) == len(writes)
    RedoData(path, KEY.target).close()
    with RawFile(image) as target:
        Redo(path, target, KEY, base=Base.OLD).close()


def test_after_another_boot_data_are_checked_before_they_count(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records whose data the disk lost end the file; within one boot the page cache is trusted."""
    path, image = tmp_path / "redo", tmp_path / "image"
    make_image(image, rng)
    writes = make_writes(rng)
    fill(path, image, writes, commit=False)
    with RawFile(path) as file:
        third = list(read_records(file, verify=False))[2]
        os.pwrite(file.descriptor, bytes(10), third.position + 5)
    for boot, count in ((redo_module.boot_id(), len(writes)), (b"x" * 16, 2)):
        monkeypatch.setattr(redo_module, "boot_id", lambda boot=boot: boot)
        with RawFile(image) as target:
            redo = Redo(path, target, KEY, base=Base.OLD)
            offsets = np.array([offset for offset, _ in writes])
            lengths = np.array([len(data) for _, data in writes])
            assert np.count_nonzero(redo.done.covers(offsets, lengths)) == count
            redo.close()


def test_a_redo_file_of_another_target_or_image_is_started_anew(tmp_path: Path, rng: np.random.Generator) -> None:
    path, image = tmp_path / "redo", tmp_path / "image"
    make_image(image, rng)
    for key in (RedoKey(bytes(32), LENGTH, 1, 2), RedoKey(KEY.target, LENGTH, 1, 3), RedoKey(KEY.target, 1, 1, 2)):
        fill(path, image, make_writes(rng), commit=True)
        with RawFile(image) as target:
            redo = Redo(path, target, key, base=Base.OLD)
            assert not len(redo.done)
            redo.close()


def test_what_was_written_can_be_read_back(tmp_path: Path, rng: np.random.Generator) -> None:
    """Later windows copy from what earlier ones have put into the redo file, or from the image."""
    path, image = tmp_path / "redo", tmp_path / "image"
    old, writes = make_image(image, rng), make_writes(rng)
    with RawFile(image) as target:
        redo = Redo(path, target, KEY, base=Base.OLD)
        for offset, data in writes[:3]:
            redo.write([(offset, memoryview(data))])
        for offset, length, expected in (
            (writes[1][0], len(writes[1][1][:50]), writes[1][1][:50]),
            (190_000, 100, old[190_000:190_100]),
        ):
            position = int(redo.locate(np.array([offset]), np.array([length], dtype=np.uint32))[0])
            buffer = memoryview(bytearray(length))
            assert redo.read(position, buffer)
            assert buffer == expected
        assert not redo.read(1 << 40, memoryview(bytearray(1)))
        redo.close()
