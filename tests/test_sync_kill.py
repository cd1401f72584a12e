"""Killed at any moment: the image is the old version or the new one, and the next run finishes with few bytes twice."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from syncing import Victim, leftovers, make_images, publish_all, write_sparse

from trimtransfer.assembly.rawfile import RawFile
from trimtransfer.assembly.redo import is_committed
from trimtransfer.assembly.side import FileState, SideDirectory

KILLS = 14
BOOTS = ("00" * 16, "11" * 16)


@dataclass
class Scene:
    """A repository of two versions, and an image of the first that was synced from it."""

    repository: Path
    old: bytes
    new: bytes
    start: Path
    folder: Path

    def fresh(self, *, with_old: bool = True) -> Path:
        """Return the output in a folder of its own: version 1 as synced, or nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if with_old:
            for path in self.start.iterdir():
                subprocess.run(["cp", "-a", "--sparse=always", path, self.folder], check=True)
            self._record(self.folder / "disk.img")
        return self.folder / "disk.img"

    def _record(self, image: Path) -> None:
        """Let the copy be believed like the original: its state names other inode and times."""
        side = SideDirectory(image)
        installed = side.installed()
        assert installed is not None
        side.write(side.state, replace(installed, file=FileState.of(os.stat(image))).to_bytes())


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as process:
        yield process


@pytest.fixture
def scene(tmp_path: Path, rng: np.random.Generator, victim: Victim) -> Scene:
    old, new = make_images(rng)
    publish_all(tmp_path / "repository", [old, new])
    start = tmp_path / "start"
    start.mkdir()
    ended = victim.sync(tmp_path / "repository", "disk", output=start / "disk.img", version="1")
    assert ended.error is None
    return Scene(tmp_path / "repository", old, new, start, tmp_path / "work")


def check_after_kill(scene: Scene, output: Path, *, had_old: bool) -> None:
    """Whatever happened, the image is whole - unless it was being written in place, and then the redo file is."""
    redo = output.with_name(output.name + ".medv") / "redo"
    if redo.exists():
        with RawFile(redo) as file:
            if is_committed(file):
                return
    if not output.exists():
        assert not had_old
        return
    assert output.read_bytes() in (scene.old, scene.new)


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("with_old", [True, False], ids=["update", "first"])
def test_kills(scene: Scene, victim: Victim, rnd: random.Random, write: str, with_old: bool) -> None:
    """Kill a run, its successor, and so on at random points; the last one, left alone, finishes."""
    output = scene.fresh(with_old=with_old)
    total = victim.sync(scene.repository, "disk", output=output, write=write)
    assert total.error is None
    assert output.read_bytes() == scene.new
    kills = 0
    while kills < KILLS:
        output = scene.fresh(with_old=with_old)
        for _ in range(rnd.randint(1, 3)):
            ended = victim.sync(
                scene.repository, "disk", output=output, write=write, kill_at=rnd.randrange(total.calls)
            )
            assert ended.error is None
            kills += ended.killed
            check_after_kill(scene, output, had_old=with_old)
        offline = victim.sync(scene.repository.with_name("gone"), "disk", output=output, write=write)
        assert offline.error is not None
        ended = victim.sync(scene.repository, "disk", output=output, write=write)
        assert ended.error is None
        assert output.read_bytes() == scene.new
        assert leftovers(output) == set()
        assert ended.result["content"]["fetched"] <= total.result["content"]["fetched"]
        again = victim.sync(scene.repository, "disk", output=output, write=write)
        assert (again.result["wrote"], again.result["network"]["requests"]) == ("nothing", 1)


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_power_cuts(scene: Scene, victim: Victim, rnd: random.Random, write: str) -> None:
    """The same when writes that no fsync has secured are lost or torn, and the machine boots anew."""
    output = scene.fresh()
    total = victim.sync(scene.repository, "disk", output=output, write=write)
    kills = 0
    for _ in range(KILLS):
        output = scene.fresh()
        for boot in BOOTS:
            ended = victim.sync(
                scene.repository,
                "disk",
                output=output,
                write=write,
                kill_at=rnd.randrange(total.calls),
                cut=rnd.randrange(1 << 30),
                boot=boot,
            )
            assert ended.error is None
            kills += ended.killed
            check_after_kill(scene, output, had_old=True)
        ended = victim.sync(scene.repository, "disk", output=output, write=write)
        assert ended.error is None
        assert output.read_bytes() == scene.new
    assert kills >= KILLS  # the first of each round at least, as it has everything to do


def test_in_place_is_finished_without_the_repository(scene: Scene, victim: Victim) -> None:
    """Once the redo file is complete, every kill leaves an image that the next run finishes offline."""
    output = scene.fresh()
    total = victim.sync(scene.repository, "disk", output=output, write="in-place")
    finished = 0
    for kill_at in range(total.calls - 1, 0, -2):
        output = scene.fresh()
        victim.sync(scene.repository, "disk", output=output, write="in-place", kill_at=kill_at)
        redo = output.with_name("disk.img.medv") / "redo"
        if not redo.exists():
            continue
        with RawFile(redo) as file:
            committed = is_committed(file)
        victim.sync(scene.repository.with_name("gone"), "disk", output=output)
        if not committed:
            assert output.read_bytes() == scene.old
            break
        assert output.read_bytes() == scene.new
        finished += 1
    assert finished > 3


def test_a_new_file_that_lost_its_journal_is_not_taken_for_the_old_image(
    tmp_path: Path, rng: np.random.Generator, victim: Victim
) -> None:
    """Killed before there was a journal, and again when the new file was complete: it is what takes the name."""
    old, new = (image[:4_000_000] for image in make_images(rng))  # of one length
    publish_all(tmp_path / "repository", [old, new])
    output = tmp_path / "work" / "disk.img"
    side = SideDirectory(output)

    def killed(*moments: int) -> int:
        """Kill runs that update a new copy of the old version; return the calls of the last one."""
        shutil.rmtree(output.parent, ignore_errors=True)
        output.parent.mkdir()
        victim.sync(tmp_path / "repository", "disk", version="1", output=output)
        for moment in moments:
            ended = victim.sync(tmp_path / "repository", "disk", output=output, write="new", kill_at=moment)
        return ended.calls

    total = killed(1 << 30)
    for early in range(total):
        killed(early)
        if side.partial.exists() and not side.journal.exists():
            break
    for late in range(total, 0, -1):
        killed(early, late)
        if side.partial.exists():
            break
    assert output.read_bytes() == old
    ended = victim.sync(tmp_path / "repository", "disk", output=output, write="new")
    assert ended.error is None
    assert output.read_bytes() == new
    assert leftovers(output) == set()


def test_an_image_swapped_while_a_redo_file_waits_is_not_mixed(scene: Scene, victim: Victim) -> None:
    """A redo file belongs to one file; another one that took its name is left alone and looked at."""
    output = scene.fresh()
    total = victim.sync(scene.repository, "disk", output=output, write="in-place")
    for kill_at in range(total.calls - 6, 0, -1):  # how many calls a run takes depends on its threads
        output = scene.fresh()
        victim.sync(scene.repository, "disk", output=output, write="in-place", kill_at=kill_at)
        redo = output.with_name("disk.img.medv") / "redo"
        if redo.exists():
            break
    with RawFile(redo) as file:
        assert is_committed(file)
    output.unlink()
    write_sparse(output, scene.old[: len(scene.old) // 2])
    ended = victim.sync(scene.repository, "disk", output=output, write="in-place")
    assert ended.error is None
    assert output.read_bytes() == scene.new
