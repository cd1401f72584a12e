"""Garbage collection: nothing that anybody needs is lost, whatever happens, and all else goes after the grace."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from schedules import World

from trimtransfer.repository.quarantine import Moment

SCHEDULES = int(os.environ.get("TRIMTRANSFER_SCHEDULES", "1000"))


@pytest.fixture
def quick_root() -> Iterator[Path]:
    """A directory in memory where there is one: schedules sync their files thousands of times."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(prefix="trimtransfer-", dir=shared) as directory:
        yield Path(directory)


def follow(root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the schedule of a seed in a directory of its own."""
    world = World(root / str(seed), random.Random(seed))
    world.root.mkdir()
    monkeypatch.setattr(Moment, "now", world.machine.now)
    try:
        world.run(14)
    except BaseException:
        print(f"schedule {seed}: {', '.join(world.log)}")
        raise
    shutil.rmtree(world.root)


def test_some_schedules(quick_root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        follow(quick_root, seed + number, monkeypatch)


@pytest.mark.slow
def test_schedules(quick_root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(SCHEDULES):
        follow(quick_root, seed + number, monkeypatch)
