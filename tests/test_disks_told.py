"""What commands say of versions of several disks: each disk and the whole, and what becomes of disks that go."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from syncing import make_images, write_sparse

from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import medv_sync
from trimtransfer.errors import TargetRefused
from trimtransfer.names import MAX_DISKS
from trimtransfer.repository.estimate import estimate
from trimtransfer.repository.estimatereport import Estimated
from trimtransfer.repository.publication import PublishReport
from trimtransfer.repository.publish import publish

EXACT = ("length", "zero_bytes", "new_bytes", "known_bytes", "repeated_bytes", "again_bytes")


@pytest.fixture
def sources(tmp_path: Path, rng: np.random.Generator) -> list[list[Path]]:
    """Two versions of two disks."""
    first, second = make_images(rng), make_images(rng)
    found = []
    for number, disks in enumerate(zip(first, second, strict=True), 1):
        paths = [tmp_path / f"v{number}disk{disk}.img" for disk in range(2)]
        for path, data in zip(paths, disks, strict=True):
            write_sparse(path, data)
        found.append(paths)
    return found


def publish_disks(folder: Path, version: str, paths: list[Path], **options: Any) -> PublishReport:
    options = {"kind": Kind.DISK, "level": 1, **options}
    return publish(folder / "r", paths[0], disks=paths[1:], image="desk", version=version, **options)


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(repo, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done


def test_estimates_are_those_of_each_disk_and_of_all(tmp_path: Path, sources: list[list[Path]]) -> None:
    options: dict[str, Any] = {"image": "desk", "kind": Kind.DISK, "level": 1, "deltas": False}
    for number, paths in enumerate(sources, 1):
        found = estimate(tmp_path / "r", paths[0], disks=paths[1:], **options)
        done = publish_disks(tmp_path, str(number), paths, deltas=False)
        for one, report in zip((found, *found.disks), (done, *done.disks), strict=True):
            assert (one.image, one.parent) == (report.image, report.parent)
            assert [getattr(one, name) for name in EXACT] == [getattr(report, name) for name in EXACT]
            assert abs(one.metadata_bytes - report.metadata_bytes) < 4096
            assert abs(one.stored_bytes - report.stored_bytes) <= one.error_bytes + 4096
        whole = found.whole()
        assert whole.disks == 2
        assert whole.error_bytes == round(math.hypot(found.error_bytes, found.disks[0].error_bytes))
        for name in (one.name for one in fields(Estimated) if one.name != "error_bytes"):
            assert getattr(whole, name) == getattr(found, name) + getattr(found.disks[0], name)
        if number == 1:
            sync(tmp_path / "r", "desk", output=tmp_path / "desk.img", version="1")
    planned = plan(tmp_path / "r", "desk", output=tmp_path / "desk.img")
    told = sum(one.fetch_bytes for one in (planned, *planned.disks))
    assert abs(whole.fetched_bytes - told) <= whole.error_bytes + 0.03 * told


def test_the_estimate_of_several_disks_as_text(tmp_path: Path, sources: list[list[Path]]) -> None:
    publish_disks(tmp_path, "1", sources[0][:1])
    arguments = ["estimate", tmp_path / "r", *sources[1], "--image", "desk", "--level", 1, "--kind", "disk"]
    text = run(*arguments).stdout
    assert "Publishing these as desk (2 disks, " in text
    assert "Publishing this as desk.disk1 (" in text
    assert ", a disk that was not there before) would find" in text
    assert text.count("A client with nothing would fetch") == 3
    facts = json.loads(run(*arguments, "--json").stdout)
    assert facts["whole"]["new_bytes"] == facts["new_bytes"] + facts["disks"][0]["new_bytes"]
    alone = run("estimate", tmp_path / "r", sources[1][0], "--image", "desk", "--level", 1, "--kind", "disk")
    assert "Publishing these" not in alone.stdout


def test_too_many_disks_are_not_estimated(tmp_path: Path, sources: list[list[Path]]) -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_DISKS}"):
        estimate(tmp_path / "r", sources[0][0], disks=[sources[0][1]] * MAX_DISKS, image="desk")


def test_publishing_fewer_disks_warns(tmp_path: Path, sources: list[list[Path]]) -> None:
    publish_disks(tmp_path, "1", sources[0])
    arguments = [tmp_path / "r", sources[1][0], "--image", "desk", "--level", 1, "--kind", "disk"]
    for done in (run("estimate", *arguments), run("publish", *arguments, "--version", "2")):
        assert "desk.disk1 of version 1 is not among the disks of this version: clients keep" in done.stderr
    both = publish_disks(tmp_path, "3", sources[1])
    assert "dropped-disks" not in [one.code for one in both.advice]


def sync_command(*arguments: object) -> Result:
    return CliRunner().invoke(medv_sync, [str(one) for one in (*arguments, "--no-host-index")])


@pytest.mark.parametrize("same", [False, True], ids=["another first disk", "the same first disk"])
def test_a_disk_that_goes_is_told_once(tmp_path: Path, sources: list[list[Path]], same: bool) -> None:
    output, gone = tmp_path / "client/desk.img", tmp_path / "client/desk.disk1.img"
    output.parent.mkdir()
    publish_disks(tmp_path, "1", sources[0])
    sync(tmp_path / "r", "desk", output=output)
    publish_disks(tmp_path, "2", sources[not same][:1])
    before = gone.read_bytes()
    for command in ("plan", "sync"):
        done = sync_command(command, tmp_path / "r", "desk", "-o", output)
        assert done.exit_code == 0, done.output
        assert f"{gone} belongs to no disk of desk 2; it stays as it is" in done.stderr
    assert gone.read_bytes() == before
    done = sync_command(tmp_path / "r", "desk", "-o", output)
    assert "is desk 2 already" in done.stdout
    assert "belongs to no disk" not in done.stderr
    gone.unlink()
    assert CliRunner().invoke(medv_sync, ["verify", str(output)]).exit_code == 0


def test_more_outputs_than_disks_are_refused(tmp_path: Path, sources: list[list[Path]]) -> None:
    publish_disks(tmp_path, "1", sources[0][:1])
    sync(tmp_path / "r", "desk", output=tmp_path / "desk.img")
    publish_disks(tmp_path, "2", sources[1])
    outputs = [tmp_path / name for name in ("desk.img", "b.img", "c.img")]
    for version, named, disks in (("1", outputs[:2], "1 disk"), ("2", outputs, "2 disks")):
        for command in ("plan", "sync"):
            names = [part for one in named for part in ("-o", one)]
            done = sync_command(command, tmp_path / "r", "desk", "--version", version, *names)
            assert done.exit_code == 1
            assert f"{named[-1]}: is one output too many: desk {version} has {disks};" in done.stderr
    with pytest.raises(TargetRefused, match="one output too many"):  # also where nothing is to be done
        sync(tmp_path / "r", "desk", output=tmp_path / "desk.img", disk_outputs=outputs[1:])
    assert not (tmp_path / "b.img").exists()


def test_show_tells_each_disks_own_deltas(tmp_path: Path, sources: list[list[Path]]) -> None:
    changed = bytearray(sources[0][0].read_bytes())
    for at in range(0, len(changed), 700):
        if changed[at]:
            changed[at] = changed[at] % 15 + 1
    write_sparse(sources[1][0], bytes(changed))
    publish_disks(tmp_path, "1", sources[0])
    publish_disks(tmp_path, "2", [sources[1][0], sources[0][1]])
    facts = json.loads(run("show", tmp_path / "r", "desk", "--json").stdout)
    assert [one["deltas_from"] for one in (facts, *facts["disks"])] == [["1"], []]
    text = run("show", tmp_path / "r", "desk").stdout
    assert [line.split(None, 1)[1] for line in text.splitlines() if "deltas " in line] == ["from 1", "none"]
