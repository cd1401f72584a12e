"""Damaged and hostile file systems: only our errors or a verdict, in bounded time and memory; golden images.

A verdict of ``clean`` on a damaged file system is right only if nothing that its files occupy is then blanked.
"""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from golden_filesystems import GOLDEN, NAMES, facts, load, metadata
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import CLEAN, FileSystem
from trimtransfer.filesystem.ranges import intersection, joined, merged
from trimtransfer.filesystem.volumes import find_file_systems

SECONDS = 10
"""Most CPU seconds for an image of some MiB; usual is a hundredth of it."""
MEMORY = 200 << 20
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WIDE = (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def extreme(value: int, order: Literal["little", "big"]) -> bytes:
    """Return an extreme number of four or eight bytes."""
    if value % 3:
        return NUMBERS[value % len(NUMBERS)].to_bytes(4, order)
    return WIDE[value % len(WIDE)].to_bytes(8, order)


@cache
def places(name: str) -> tuple[bytes, np.ndarray]:
    """Return an image and the positions of the bytes of its structures that are not zero, and of some that are."""
    image = load(name)
    inside = metadata(image)
    filled = np.frombuffer(image, dtype=np.uint8) != 0
    near = filled.copy()
    for step in (1, 2, 3, 4):
        near[step:] |= filled[:-step]
    return image, np.flatnonzero(inside & near)


def survive(image: bytes | bytearray) -> list[str]:
    """Look at an image in every way; return the states of its file systems."""
    data = bytes(image)
    started = time.process_time()
    states = []
    for found in find_file_systems(lambda at, length: data[at : at + length] if at >= 0 else b"", len(data)):
        if found.file_system is not None:
            states.append(look(found.file_system))
    assert time.process_time() - started < SECONDS
    return states


def look(file_system: FileSystem) -> str:
    state = file_system.state
    files = []
    try:
        for entry in file_system.files():
            files.append(entry.extents[:, 1:])
            assert entry.size >= 0
            if len(entry.extents):
                assert entry.extents[:, 1].min() >= 0
        file_system.reached()
        free = file_system.free()
    except FormatError:
        assert state != CLEAN
        return state
    if state == CLEAN:
        assert len(intersection(merged(joined(files)), free)) == 0
        assert not len(free) or (free[0, 0] >= 0 and free[-1].sum() <= file_system.length)
    return state


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    expected: dict[str, Any] = json.loads((GOLDEN / "filesystems.json").read_text())[name]
    assert facts(load(name)) == expected
    assert expected["state"] == CLEAN
    assert len(expected["files"]) > 20


Change = tuple[float, str, int]
changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(("bit", "byte", "number", "big", "zeros", "copy")),
        st.integers(0, (1 << 32) - 1),
    ),
    min_size=1,
    max_size=6,
)


def damaged(name: str, wanted: list[Change]) -> bytearray:
    """Return an image with changes in its structures."""
    original, positions = places(name)
    image = bytearray(original)
    for where, kind, value in wanted:
        at = int(positions[int(where * len(positions))])
        if kind == "bit":
            image[at] ^= 1 << value % 8
        elif kind == "byte":
            image[at] = value % 256
        elif kind in ("number", "big"):
            number = extreme(value, "little" if kind == "number" else "big")
            image[at : at + len(number)] = number[: len(image) - at]
        elif kind == "zeros":
            image[at // 512 * 512 : at // 512 * 512 + 512] = bytes(512)
        else:
            other = int(positions[value % len(positions)]) // 512 * 512
            image[at // 512 * 512 : at // 512 * 512 + 512] = original[other : other + 512]
    return image


@pytest.mark.parametrize("name", NAMES)
@given(wanted=changes)
def test_damage(name: str, wanted: list[Change]) -> None:
    survive(damaged(name, wanted))


@pytest.mark.parametrize("name", NAMES)
def test_every_field_at_the_start(name: str, rnd: random.Random) -> None:
    """The first structures decide about sizes: extreme values in them must not cost time or memory."""
    original, positions = places(name)
    early = positions[: int(np.searchsorted(positions, positions[0] + 4096))]
    for at in rnd.sample(early.tolist(), min(60, len(early))):
        image = bytearray(original)
        value = extreme(rnd.randrange(1 << 16), "big" if name == "xfs" else "little")
        image[at : at + len(value)] = value
        survive(image)


@pytest.mark.parametrize("name", NAMES)
def test_truncation(name: str, rnd: random.Random) -> None:
    image, _ = places(name)
    for length in (0, 1, 511, 512, 1024, 2048, *(rnd.randrange(len(image)) for _ in range(20))):
        assert CLEAN not in survive(image[:length])


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded(name: str, rnd: random.Random) -> None:
    places(name)
    tracemalloc.start()
    try:
        for _ in range(8):
            where = rnd.random() ** 3  # rather near the start
            survive(damaged(name, [(where, rnd.choice(("number", "big")), rnd.randrange(1 << 32))]))
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
