"""Ranges against sets of positions; volumes, streams and trees of directories within their bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import Runs, distinct
from trimtransfer.filesystem.paths import walk
from trimtransfer.filesystem.ranges import (
    Cover,
    Ranges,
    difference,
    intersection,
    joined,
    merged,
    of_bits,
    overlap,
    total,
)
from trimtransfer.filesystem.stream import read_stream
from trimtransfer.filesystem.volume import MAX_READ, Volume

lists = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 15)), max_size=10)
CONTENT = bytes(range(200))


def ranges(rows: list[tuple[int, int]]) -> Ranges:
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def positions(found: Ranges) -> set[int]:
    return {at for start, length in found.tolist() for at in range(start, start + length)}


def check_merged(found: Ranges) -> None:
    assert (found[:, 1] > 0).all()
    assert (found[1:, 0] > found[:-1].sum(axis=1)).all()


@given(lists, lists)
def test_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    one, two = merged(ranges(a)), merged(ranges(b))
    assert positions(one) == positions(ranges(a))
    both, rest = intersection(one, two), difference(one, two)
    assert positions(both) == positions(one) & positions(two)
    assert positions(rest) == positions(one) - positions(two)
    assert total(both) + total(rest) == total(one)
    for found in (one, both, rest):
        check_merged(found)
    assert positions(joined((one, two))) == positions(one) | positions(two)
    assert (overlap(ranges(a)) is None) == (total(ranges(a)) == len(positions(ranges(a))))


@given(lists, st.integers(0, 70), st.integers(0, 30))
def test_parts_in_a_range(rows: list[tuple[int, int]], start: int, length: int) -> None:
    found = Cover(merged(ranges(rows))).within(start, length)
    assert positions(found) == positions(ranges(rows)) & set(range(start, start + length))
    assert (found[:, 1] > 0).all() or not length


@given(st.lists(st.booleans(), max_size=60))
def test_bits(bits: list[bool]) -> None:
    found = of_bits(np.array(bits, dtype=np.bool_))
    assert positions(found) == {at for at, bit in enumerate(bits) if bit}
    check_merged(found)


def volume() -> Volume:
    return Volume(lambda at, length: CONTENT[at : at + length], 50, 120, "part")


@pytest.mark.parametrize(("at", "length"), [(-1, 4), (0, 121), (120, 1), (5, -1), (0, MAX_READ + 1), (1 << 70, 1)])
def test_nothing_outside_of_a_volume_is_read(at: int, length: int) -> None:
    with pytest.raises(FormatError):
        volume().bytes("what", at, length)


def test_an_image_that_ends_within_a_volume() -> None:
    with pytest.raises(FormatError, match="the end of the image"):
        Volume(lambda at, length: CONTENT[at : at + length], 150, 100, "part").bytes("what", 40, 20)


@given(st.lists(st.integers(0, 29), max_size=40))
def test_gathering(blocks: list[int]) -> None:
    places = np.array(blocks, dtype=np.int64) * 4
    found = volume().gather("what", places, 4)
    assert found.tobytes() == b"".join(CONTENT[50 + 4 * block : 54 + 4 * block] for block in blocks)


def test_streams_have_zeros_in_their_holes() -> None:
    extents = np.array([[0, 10, 5], [8, 0, 4], [12, 100, 4]], dtype=np.int64)
    expected = CONTENT[60:65] + bytes(3) + CONTENT[50:54] + CONTENT[150:154] + bytes(4)
    for at in range(20):
        for end in range(at, 20):
            assert read_stream(volume(), "what", extents, at, end - at) == expected[at:end]


def runs(rows: list[tuple[int, int, int, int]]) -> Runs:
    owners, offsets, places, lengths = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Runs(owners, offsets, places, lengths, np.ones(len(rows), dtype=np.bool_))


def test_runs_come_in_order_and_end_with_the_file() -> None:
    found = Runs.of("file", [runs([(7, 10, 300, 10), (3, 0, 50, 4)]), runs([(7, 0, 100, 10), (7, 30, 500, 100)])])
    assert found.extents(7, 35).tolist() == [[0, 100, 10], [10, 300, 10], [30, 500, 5]]
    assert found.extents(7, 10).tolist() == [[0, 100, 10]]
    assert found.extents(5, 10).tolist() == []
    with pytest.raises(FormatError, match="twice"):
        Runs.of("file", [runs([(7, 10, 300, 10), (7, 19, 50, 4)])])
    with pytest.raises(FormatError, match="used twice"):
        distinct("block", np.array([4, 5, 4]))


def test_walking() -> None:
    tree: dict[int, list[tuple[bytes, int]]] = {0: [(b"b", 1), (b"a", 2), (b"c", 3)], 2: [(b"z", 4), (b"y", 3)]}
    assert list(walk(0, tree.get)) == [(b"a/y", 3), (b"a/z", 4), (b"b", 1), (b"c", 3)]


@pytest.mark.parametrize(
    "tree",
    [
        {0: [(b"a", 1)], 1: [(b"b", 0)]},
        {0: [(b"a", 1)], 1: [(b"b", 1)]},
        {0: [(b"a", 1), (b"b", 1)], 1: []},
        {0: [(b"a/b", 1)]},
        {0: [(b"", 1)]},
        {1: []},
    ],
    ids=repr,
)
def test_no_tree(tree: dict[int, list[tuple[bytes, int]]]) -> None:
    with pytest.raises(FormatError):
        list(walk(0, tree.get))


def test_a_deep_tree_ends() -> None:
    with pytest.raises(FormatError, match="within itself"):
        list(walk(0, lambda number: [(b"d", number + 1)]))
