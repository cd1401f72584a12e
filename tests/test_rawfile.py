"""Writing to image files."""

from __future__ import annotations

import random
from pathlib import Path

from trimtransfer.assembly.rawfile import RawFile


def test_zeros_are_left_out_of_a_file_of_zeros(tmp_path: Path, rnd: random.Random) -> None:
    for number in range(50):
        size = rnd.choice((0, 1, 4095, 4096, 4097, rnd.randrange(300_000)))
        data = bytearray(size)
        for _ in range(rnd.randrange(4) if size else 0):
            at = rnd.randrange(size)
            part = rnd.randbytes(rnd.choice((1, 9000)))[: size - at]
            data[at : at + len(part)] = part
        offset = rnd.choice((0, 512, 4096, rnd.randrange(10_000)))
        path = tmp_path / str(number)
        with RawFile(path, create=True) as file:
            file.resize(offset + size + 10)
            file.write_sparse(offset, memoryview(data))
        assert path.read_bytes() == bytes(offset) + data + bytes(10)


def test_holes_stay_holes(tmp_path: Path) -> None:
    data = bytearray(1 << 20)
    data[500_000] = 1
    with RawFile(tmp_path / "a", create=True) as file:
        file.write_sparse(0, memoryview(data))
    assert (tmp_path / "a").stat().st_blocks * 512 <= 64 << 10
