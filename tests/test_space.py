"""Room on the disk: how much writing into holes takes, and what is refused before an image is touched."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.holes import hole_bytes
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.space import ROOM, Claim, Needs, shortage
from trimtransfer.image import ImageSource

BLOCK = 4096


def sparse(path: Path, filled: list[bool], tail: int) -> None:
    """Write a file of blocks with data and holes, and some bytes more than the last one."""
    with open(path, "wb") as file:
        for number, one in enumerate(filled):
            if one:
                os.pwrite(file.fileno(), b"x" * BLOCK, number * BLOCK)
        file.truncate(len(filled) * BLOCK + tail)


def test_hole_bytes_are_counted_as_byte_by_byte(tmp_path: Path, rnd: random.Random) -> None:
    for _ in range(60):
        filled = [rnd.random() < rnd.choice((0.0, 0.3, 0.9, 1.0)) for _ in range(rnd.randrange(1, 40))]
        sparse(tmp_path / "image", filled, tail=rnd.randrange(3))
        with ImageSource(tmp_path / "image") as image:
            data = np.zeros(50 * BLOCK, dtype=np.bool_)
            for start, length in image.extents(0, image.size):
                data[start : start + length] = True
            starts = np.array(sorted(rnd.sample(range(45 * BLOCK), rnd.randrange(8))), dtype=np.int64)
            lengths = np.array([rnd.randrange(1, 5 * BLOCK) for _ in starts], dtype=np.uint32)
            expected = sum(
                int(np.count_nonzero(~data[start : start + length]))
                for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            )
            assert hole_bytes(image, starts, lengths) == expected


def test_extents_of_a_redo_file_can_be_counted(tmp_path: Path) -> None:
    sparse(tmp_path / "image", [True, False, False, True], tail=0)
    pieces = Extents.of(np.array([0, 2 * BLOCK]), np.array([2 * BLOCK, 4 * BLOCK]))
    with ImageSource(tmp_path / "image") as image:
        assert hole_bytes(image, pieces.starts, pieces.ends - pieces.starts) == (1 + 3) * BLOCK
        assert hole_bytes(image, pieces.starts[:0], pieces.ends[:0]) == 0


@pytest.mark.parametrize("instead", [None, Needs(1000, 1000), Needs(1 << 60)])
def test_the_error_names_what_helps(tmp_path: Path, instead: Needs | None) -> None:
    side = SideDirectory(tmp_path / "disk.img")
    assert shortage([Claim(side, Needs(1))]) is None
    error = shortage([Claim(side, Needs(1 << 60, 5), instead=instead)])
    assert error is not None
    assert error.needed == (1 << 60) + 5 + ROOM
    assert f"{error.needed:,} bytes needed, {error.free:,} free; free some space" in str(error)
    assert ("--write in-place" in str(error)) == (instead == Needs(1000, 1000))
    assert str(error).endswith("or choose an output on another disk (-o) and run the same command again")
