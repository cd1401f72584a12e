"""The inventory of chunks: the same as a dictionary would give, in buckets and mapped files too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trimtransfer import spill
from trimtransfer.repository import inventory as inventory_module
from trimtransfer.repository.inventory import NOWHERE, Inventory
from trimtransfer.spill import Pieces, Rows, large_array
from trimtransfer.table import ZERO, Table


def make_tables(rng: np.random.Generator, regions: int, chunks: int, distinct: int) -> dict[int, Table]:
    """Tables of some regions whose chunks are drawn from ``distinct`` ones, a zero run before each third chunk."""
    digests = rng.integers(0, 256, (distinct, 32), dtype=np.uint8)
    digests[1::7, :8] = digests[0, :8]  # some share the first eight bytes: nobody can rely on these alone
    found = {}
    for region in sorted(rng.permutation(3 * regions)[:regions].tolist()):
        drawn = rng.integers(0, distinct, chunks)
        records = np.insert((1000 + drawn).astype(np.uint32), np.arange(0, chunks, 3), 4096 | ZERO)
        found[region] = Table.from_records(records, digests[drawn])
    return found


def check(inventory: Inventory, tables: dict[int, Table]) -> None:
    """Compare with a dictionary of first occurrences."""
    first: dict[bytes, tuple[int, int, int]] = {}
    occurrences = 0
    for region, table in tables.items():
        for record in np.flatnonzero(~table.zero).tolist():
            occurrences += 1
            first.setdefault(table.digests[record].tobytes(), (region, record, int(table.lengths[record])))
    assert (len(inventory), inventory.occurrences) == (len(first), occurrences)
    for table in tables.values():
        numbers = inventory.find(table)
        assert ((numbers < 0) == table.zero).all()
        for record in np.flatnonzero(~table.zero).tolist():
            number = numbers[record]
            found = (int(inventory.region[number]), int(inventory.record[number]), int(inventory.length[number]))
            assert found == first[table.digests[record].tobytes()]
    assert (inventory.pack == NOWHERE).all()
    assert inventory.missing_regions().tolist() == sorted({region for region, _, _ in first.values()})


@pytest.mark.parametrize("bucket", [1 << 20, 300])
@pytest.mark.parametrize("in_memory", [4 << 20, 1000])
def test_as_a_dictionary(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, bucket: int, in_memory: int
) -> None:
    monkeypatch.setattr(inventory_module, "_BUCKET", bucket)
    monkeypatch.setattr(spill.large_array, "__kwdefaults__", {"in_memory": in_memory})
    tables = make_tables(rng, 20, 200, 900)
    inventory = Inventory(lambda: tables.items(), tmp_path)
    check(inventory, tables)
    unknown = make_tables(rng, 1, 50, 50)
    for table in unknown.values():
        assert (inventory.find(table) == -1).all()
    inventory.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing(tmp_path: Path) -> None:
    inventory = Inventory(list, tmp_path)
    check(inventory, {})
    zero = Table.from_records(np.array([4096 | ZERO], dtype=np.uint32), np.zeros((0, 32), dtype=np.uint8))
    assert inventory.find(zero).tolist() == [-1]


@pytest.mark.slow
def test_millions(tmp_path: Path, rng: np.random.Generator) -> None:
    """As many chunks as 60 GiB of programs have: sorted in buckets, in mapped files."""
    seeds = rng.integers(0, 1 << 62, 250)

    def tables() -> Iterator[tuple[int, Table]]:
        for region, seed in enumerate(seeds):
            digests = np.random.default_rng(int(seed)).integers(0, 256, (8192, 32), dtype=np.uint8)
            yield region, Table.from_records(np.full(8192, 8192, dtype=np.uint32), digests)

    inventory = Inventory(tables, tmp_path)
    assert len(inventory) == 250 * 8192
    for region, table in tables():
        numbers = inventory.find(table)
        assert (inventory.region[numbers] == region).all()
        assert (inventory.record[numbers] == np.arange(8192)).all()


@pytest.mark.parametrize("in_memory", [0, 100, 1 << 20])
def test_growing_rows(tmp_path: Path, rng: np.random.Generator, in_memory: int) -> None:
    rows = Rows("<u4", tmp_path, in_memory=in_memory)
    expected: list[int] = []
    for _ in range(50):
        part = rng.integers(0, 1 << 32, int(rng.integers(0, 20)), dtype=np.uint32)
        assert rows.append(part) == len(expected)
        expected += part.tolist()
        if rng.random() < 0.3:
            assert rows.array().tolist() == expected
    assert len(rows) == len(expected)
    assert rows.array().tolist() == expected
    rows.close()
    assert list(tmp_path.iterdir()) == []


def test_pieces_and_large_arrays(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path)
    data = [b"one", b"", b"three" * 1000]
    assert [pieces.append(piece) for piece in data] == [0, 1, 2]
    assert [pieces[number] for number in (2, 0, 1)] == [data[2], data[0], data[1]]
    assert len(pieces) == 3
    pieces.close()
    for in_memory in (0, 1 << 20):
        array = large_array(10_000, "<u8", tmp_path, in_memory=in_memory)
        assert not array.any()
        array[5000] = 7
        assert array.sum() == 7
    assert len(large_array(0, "<u8", tmp_path, in_memory=0)) == 0
    assert list(tmp_path.iterdir()) == []
