"""A short set of benchmarks for every change: each a second or two, on real files of this Python's own library.

    python -m pytest -o addopts= --benchmark-only benchmarks/test_short.py

They show trends and assert no times; the claims of the README have scripts of their own beside this file.
"""

from __future__ import annotations

import itertools
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import BLOCK_SIZE, Kind, region_digest
from trimtransfer.chunker import cut, cut_and_digest
from trimtransfer.repository.publish import publish
from trimtransfer.table import Table, decode_difference, decode_full, encode_difference, encode_full

REGION = 32 << 20


@pytest.fixture(scope="module")
def region() -> bytes:
    """Real files one after the other, each padded to whole blocks, as a file system lays them out."""
    laid_out = bytearray()
    for path in itertools.cycle(sorted(Path(sysconfig.get_path("stdlib")).rglob("*"))):
        if path.is_file() and path.stat().st_size < 4 << 20:
            laid_out += path.read_bytes()
            laid_out += bytes(-len(laid_out) % BLOCK_SIZE)
            if len(laid_out) >= REGION:
                return bytes(laid_out[:REGION])
    raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def table(region: bytes) -> Table:
    """The region's table."""
    return table_of(region)


def table_of(region: bytes) -> Table:
    """Cut a region and return its table."""
    records, digests = cut_and_digest(Kind.DISK, region)
    return Table.from_records(records, digests)


def note(benchmark: BenchmarkFixture, size: int) -> None:
    """Record the amount of data, so that times can be read as speeds."""
    benchmark.extra_info["bytes"] = size


def test_read(benchmark: BenchmarkFixture, region: bytes) -> None:
    """The speed of memory: what no chunker can exceed."""
    words: NDArray[np.uint64] = np.frombuffer(region, np.uint64)
    note(benchmark, len(region))
    benchmark(np.bitwise_or.reduce, words)


def test_blake3(benchmark: BenchmarkFixture, region: bytes) -> None:
    """The digest that every byte needs anyway."""
    note(benchmark, len(region))
    benchmark(region_digest, region)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())
def test_cut(benchmark: BenchmarkFixture, region: bytes, kind: Kind) -> None:
    """Cutting alone."""
    note(benchmark, len(region))
    records = benchmark(cut, kind, region)
    assert int((records & 0x7FFFFFFF).sum()) == len(region)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())
def test_cut_and_digest(benchmark: BenchmarkFixture, region: bytes, kind: Kind) -> None:
    """Cutting together with the digests of the chunks."""
    note(benchmark, len(region))
    benchmark(cut_and_digest, kind, region)


def test_table_full(benchmark: BenchmarkFixture, table: Table) -> None:
    """Storing and reading a table."""
    digest = table.digest()
    note(benchmark, len(table.to_bytes()))
    read = benchmark(lambda: decode_full(encode_full(table), size=table.size, digest=digest))
    assert read.to_bytes() == table.to_bytes()


def test_table_difference(benchmark: BenchmarkFixture, region: bytes, table: Table) -> None:
    """Storing and reading a table as a difference to an earlier one."""
    changed = bytearray(region)
    changed[8 << 20 : 9 << 20] = changed[20 << 20 : 21 << 20]
    after = table_of(bytes(changed))
    digest = after.digest()
    note(benchmark, len(encode_difference(after, table)))
    read = benchmark(lambda: decode_difference(encode_difference(after, table), table, size=after.size, digest=digest))
    assert read.to_bytes() == after.to_bytes()


def test_publish_and_sync(benchmark: BenchmarkFixture, region: bytes, tmp_path: Path) -> None:
    """Both verbs, end to end from a directory."""
    image = tmp_path / "image"
    image.write_bytes(region)
    runs = itertools.count()

    def both() -> Path:
        folder = tmp_path / str(next(runs))
        publish(folder / "repository", image, image="disk", version="1", level=3)
        sync(str(folder / "repository"), "disk", output=folder / "disk.img")
        return folder / "disk.img"

    note(benchmark, len(region))
    result = benchmark.pedantic(both, rounds=3)
    assert result.read_bytes() == region
