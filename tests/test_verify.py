"""Comparing files with manifests: holes are zeros without being read, and what changes meanwhile is noticed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from syncing import make_images, publish_all

from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.verify import region_is, verify_image
from trimtransfer.chunk import BLOCK_SIZE, REGION_SIZE, ZEROS, region_digest, region_hasher
from trimtransfer.errors import SourceChanged
from trimtransfer.image import ImageSource
from trimtransfer.manifest import Region, StoredRef, zero_region_digest

MIB = 1 << 20


class Counting(ImageSource):
    """An image that counts the bytes that are read of it."""

    count = 0

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        self.count += len(buffer)
        super().read_into(buffer, offset)


def region(start: int, length: int, content: bytes) -> Region:
    nothing = StoredRef(0, 0, 0, b"")
    return Region(0, start, length, False, content, b"", nothing, nothing, nothing, nothing)


def scattered(rnd: random.Random, path: Path) -> bytes:
    """Write a sparse file of some MiB, in an order that lets it have extents of any kind; return its content."""
    size = rnd.randrange(1, 6 * MIB)
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(rnd.randrange(8)):
            at = rnd.randrange(size)
            at -= at % rnd.choice((1, BLOCK_SIZE, 64 << 10))
            os.pwrite(file.fileno(), rnd.randbytes(min(rnd.choice((1, 5000, 70_000, 400_000)), size - at)), at)
        if rnd.random() < 0.3:
            os.posix_fallocate(file.fileno(), 0, size)  # unwritten extents: allocated, and zeros to a reader
    return path.read_bytes()


def test_a_region_is_what_a_reader_would_get(tmp_path: Path, rnd: random.Random) -> None:
    for _ in range(40):
        content = scattered(rnd, tmp_path / "a")
        start = rnd.randrange(len(content))
        part = content[start : start + rnd.randrange(1, len(content) - start + 1)]
        with ImageSource(tmp_path / "a") as source:
            assert region_is(source, region(start, len(part), region_digest(part)))
            if any(part):
                assert not region_is(source, region(start, len(part), zero_region_digest(len(part))))
            changed = bytearray(part)
            changed[rnd.randrange(len(part))] ^= 1
            assert not region_is(source, region(start, len(part), region_digest(changed)))
            assert not region_is(source, region(start, len(part) + len(content), region_digest(part)))


def test_holes_are_not_read(tmp_path: Path, rnd: random.Random) -> None:
    path = tmp_path / "a"
    expected = region_hasher()
    with open(path, "wb") as file:
        file.truncate(REGION_SIZE)
        data = rnd.randbytes(BLOCK_SIZE)
        for at in (3 * MIB, 3 * MIB + 2 * BLOCK_SIZE, 40 * MIB):
            os.pwrite(file.fileno(), data, at)
        os.fsync(file.fileno())
    with open(path, "rb") as file:
        expected.update(file.read())
    with Counting(path) as source:
        if sum(length for _, length in source.extents(0, REGION_SIZE)) == REGION_SIZE:
            pytest.skip("the file system does not tell holes")
        assert region_is(source, region(0, REGION_SIZE, expected.digest()))
        assert source.count == 4 * BLOCK_SIZE  # the short hole is read, the long ones are not


@pytest.mark.parametrize("zeros", [0, 1, BLOCK_SIZE, len(ZEROS) - 1, len(ZEROS), 5 * len(ZEROS) + 77, REGION_SIZE])
def test_a_region_that_begins_with_zeros(zeros: int, rnd: random.Random) -> None:
    for tail in (rnd.randbytes(70_000), rnd.randbytes(5)):  # twice: the hashers that are kept must not be fed
        hasher = region_hasher(zeros)
        assert hasher.digest() == region_digest(bytes(zeros))
        hasher.update(tail)
        assert hasher.digest() == region_digest(bytes(zeros) + tail)


@pytest.fixture
def synced(tmp_path: Path, rng: np.random.Generator) -> Path:
    publish_all(tmp_path / "repository", make_images(rng, versions=1))
    sync(tmp_path / "repository", "disk", output=tmp_path / "out.img")
    return tmp_path / "out.img"


def test_an_image_that_is_written_to_meanwhile(synced: Path) -> None:
    os.chmod(synced, 0o600)

    def write(phase: str, done: int, total: int) -> None:
        if done:
            with open(synced, "r+b") as file:
                file.write(b"x")

    with pytest.raises(SourceChanged, match="stop what writes to it"):
        verify_image(synced, progress=write)
