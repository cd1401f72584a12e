"""Containers being written while the process is killed or the power fails: the old disk or the new one, never a mix."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from disks import needs_qemu_img
from syncing import Victim, leftovers, make_images, publish_all
from test_disk_layout import check

from trimtransfer.assembly.side import FileState, SideDirectory
from trimtransfer.disk.layouts import WRITABLE
from trimtransfer.disk.source import open_disk

pytestmark = needs_qemu_img
ROUNDS = 6
BOOTS = ("00" * 16, "11" * 16)


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as process:
        yield process


def content_of(path: Path, format: str) -> bytes:
    with open_disk(path, format=format) as disk:
        return disk.read(0, disk.size)


def put_back(start: Path, work: Path) -> Path:
    """Copy an image with its side directory; its state names the copy."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(start, work, copy_function=lambda a, b: subprocess.run(["cp", "-a", a, b], check=True))
    side = SideDirectory(work / "disk")
    installed = side.installed()
    assert installed is not None
    side.write(side.state, replace(installed, file=FileState.of(os.stat(work / "disk"))).to_bytes())
    return work / "disk"


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
@pytest.mark.parametrize("format", WRITABLE)
def test_old_or_new(
    format: str, power: bool, tmp_path: Path, rng: np.random.Generator, rnd: random.Random, victim: Victim
) -> None:
    images = [image.ljust(-(-len(image) // 512) * 512, b"\0") for image in make_images(rng, tail=0)]
    repository, start = tmp_path / "repository", tmp_path / "start"
    publish_all(repository, images)
    start.mkdir()
    ended = victim.sync(repository, "disk", output=start / "disk", version="1", format=format)
    assert ended.error is None
    total = victim.sync(repository, "disk", output=put_back(start, tmp_path / "work"))
    assert content_of(tmp_path / "work" / "disk", format) == images[1]
    kills = 0
    for _ in range(ROUNDS):
        output = put_back(start, tmp_path / "work")
        for boot in BOOTS:
            options = {"cut": rnd.randrange(1 << 30), "boot": boot} if power else {}
            ended = victim.sync(repository, "disk", output=output, kill_at=rnd.randrange(total.calls), **options)
            assert ended.error is None
            kills += ended.killed
            assert content_of(output, format) in images
        ended = victim.sync(repository, "disk", output=output)
        assert ended.error is None
        assert content_of(output, format) == images[1]
        assert leftovers(output) == set()
        check(output, format)
    assert kills >= ROUNDS
