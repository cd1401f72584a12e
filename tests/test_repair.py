"""Repairing a repository from a copy: what is damaged or missing comes back, or is named; nothing wrong comes in."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kills import changes_until
from servers import Nginx

from trimtransfer.chunk import Kind
from trimtransfer.cli.repo import repo
from trimtransfer.errors import Cancelled
from trimtransfer.repository import versioning
from trimtransfer.repository.audit import audit
from trimtransfer.repository.collecting import needed_names
from trimtransfer.repository.marking import Marker
from trimtransfer.repository.publish import publish
from trimtransfer.repository.repairing import RepairReport, repair
from trimtransfer.repository.solid import add_solid
from trimtransfer.store import DirectoryStore

KIB = 1 << 10


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two versions of two disks, deltas, solid units, a removed version, and a channel."""
    root = tmp_path_factory.mktemp("made")
    rnd = random.Random(3)
    text = b"".join(b"%d of a text that repeats itself\n" % number for number in range(15_000))
    second = rnd.randbytes(300 * KIB)
    options: dict[str, Any] = {"level": 1, "kind": Kind.DISK, "workers": 1, "_pack_limit": 16 + (512 << 10)}
    first = rnd.randbytes(1300 * KIB) + text
    for number, version in enumerate("abc"):
        changed = first.replace(b"77", b"%d" % number)[: len(first) - 4096] + rnd.randbytes(40 * KIB)
        (root / "0").write_bytes(changed)
        (root / "1").write_bytes(second + bytes([number]) * 9)
        publish(root / "r", root / "0", disks=[root / "1"], image="desk", version=version, **options)
    versioning.point_channel(root / "r", "desk", "live", version="b")
    versioning.remove_versions(root / "r", "desk", ["a"])
    add_solid(root / "r", "desk", level=1, workers=1)
    report = audit(DirectoryStore(root / "r"))
    assert report.damage == ()
    assert report.deltas_made
    return root / "r"


@pytest.fixture
def broken(made: Path, tmp_path: Path) -> DirectoryStore:
    shutil.copytree(made, tmp_path / "r")
    return DirectoryStore(tmp_path / "r")


def mend(store: DirectoryStore, copy: Path, **options: Any) -> RepairReport:
    return repair(store.path, DirectoryStore(copy), **options)


def harm(path: Path, rnd: random.Random) -> None:
    """Damage a file in one of the ways in which files get damaged."""
    data = bytearray(path.read_bytes())
    way = rnd.choice(["flip", "cut", "delete", "longer", "empty"])
    if way == "delete":
        path.unlink()
        return
    if way == "flip":
        data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
    path.write_bytes({"cut": data[: len(data) // 2], "longer": data + b"x", "empty": b""}.get(way, data))


def needed(store: DirectoryStore) -> list[str]:
    """Return what a repair can bring back: what versions need, and heads; not the catalogue."""
    names = needed_names(store, Marker(store)) | {"images/desk/head.json"}
    return sorted(name for name in names if not name.endswith("hosts.bin"))


def test_nothing_to_do(made: Path, broken: DirectoryStore) -> None:
    report = mend(broken, made)
    assert (report.repaired, report.left, report.fetched_bytes) == ((), (), 0)
    assert report.checked > 10


def test_every_object_alone(made: Path, broken: DirectoryStore, rnd: random.Random) -> None:
    for name in needed(broken):
        harm(broken.path / name, rnd)
        report = mend(broken, made)
        if "/from-" in name or "/host-" in name:  # one that is gone is no damage
            assert report.left == (), name
            shutil.copy(made / name, broken.path / name)
            continue
        assert report.left == (), name
        assert broken.read(name, limit=1 << 22) == DirectoryStore(made).read(name, limit=1 << 22), name
    assert audit(broken, workers=1).damage == ()


def test_everything_at_once(made: Path, broken: DirectoryStore, rnd: random.Random) -> None:
    for name in needed(broken):
        if rnd.random() < 0.5 and not name.endswith("head.json"):
            harm(broken.path / name, rnd)
    report = mend(broken, made)
    assert report.left == ()
    assert audit(broken).damage == ()
    assert mend(broken, made).repaired == ()


def test_every_byte_of_an_index(made: Path, broken: DirectoryStore) -> None:
    path = broken.path / "images/desk.disk1/c/from-b.bin"
    sound = path.read_bytes()
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        assert [one.name for one in mend(broken, made, quick=True).repaired] == ["images/desk.disk1/c/from-b.bin"], at
        assert path.read_bytes() == sound


def test_a_copy_that_is_damaged_too_brings_nothing_wrong(
    made: Path, broken: DirectoryStore, tmp_path: Path, rnd: random.Random
) -> None:
    shutil.copytree(made, tmp_path / "copy")
    names = [name for name in needed(broken) if name.startswith("packs") or name.endswith("tables.bin")]
    for name in names:
        (broken.path / name).unlink()
        data = bytearray((tmp_path / "copy" / name).read_bytes())
        data[rnd.randrange(len(data))] ^= 4
        (tmp_path / "copy" / name).write_bytes(data)
    report = mend(broken, tmp_path / "copy")
    assert report.repaired == ()
    assert report.left
    assert all("copy" in damage.remedy for damage in report.left)
    assert not any((broken.path / name).exists() for name in names)
    again = mend(broken, made)
    assert again.left == ()
    assert audit(broken).damage == ()


def test_a_catalogue_is_not_taken_from_a_copy(made: Path, broken: DirectoryStore) -> None:
    path = broken.path / "images/desk/catalogue.json"
    path.write_bytes(b"{}")
    report = mend(broken, made)
    assert [damage.name for damage in report.left] == ["images/desk/catalogue.json"]
    assert "by hand" in report.left[0].remedy
    assert path.read_bytes() == b"{}"


def test_a_repository_of_an_older_release(made: Path, broken: DirectoryStore) -> None:
    for path in (broken.path / "images/desk").glob("*.json"):
        if path.name != "head.json":
            path.unlink()
    (broken.path / "images/desk/c/manifest.bin").write_bytes(b"x")
    for pack in (broken.path / "packs").rglob("*.bin"):
        pack.unlink()
    report = mend(broken, made)
    assert report.left == ()
    assert audit(broken).damage == ()


def test_quick_looks_only_at_lengths(made: Path, broken: DirectoryStore) -> None:
    packs = sorted((broken.path / "packs").rglob("*.bin"))
    data = bytearray(packs[0].read_bytes())
    data[-1] ^= 1
    packs[0].write_bytes(data)
    packs[1].unlink()
    assert len(mend(broken, made, quick=True).repaired) == 1
    assert len(mend(broken, made).repaired) == 1


def test_who_dies_or_stops_goes_on(made: Path, tmp_path: Path, rnd: random.Random) -> None:
    shutil.copytree(made, tmp_path / "harmed")
    for path in (tmp_path / "harmed/packs").rglob("*.bin"):
        harm(path, rnd)
    for limit in (1, 5, 9, 14, 20, 27):
        shutil.copytree(tmp_path / "harmed", tmp_path / "r")
        store = DirectoryStore(tmp_path / "r")
        changes_until(limit, mend, store, made)
        assert mend(store, made).left == ()
        assert audit(store, workers=1).damage == ()
        shutil.rmtree(tmp_path / "r")

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "packs":
            raise Cancelled("stopped")

    store = DirectoryStore(tmp_path / "harmed")
    with pytest.raises(Cancelled):
        mend(store, made, progress=stop)
    assert mend(store, made).left == ()


@pytest.mark.net
def test_from_a_server(made: Path, broken: DirectoryStore, nginx: Nginx, authority: Any) -> None:
    shutil.copytree(made, nginx.root, dirs_exist_ok=True)
    for path in (broken.path / "packs").rglob("*.bin"):
        path.unlink()
    command = ["repair", str(broken.path), "--from", nginx.url, "--ca-cert", str(authority.file), "--json"]
    done = CliRunner().invoke(repo, command)
    assert done.exit_code == 0, done.output + done.stderr
    assert json.loads(done.stdout)["repaired"]
    assert audit(broken).damage == ()
    done = CliRunner().invoke(repo, [*command[:4], "--ca-cert", str(authority.file)])
    assert "0 repaired, 0 left" in done.stdout


def test_the_command_names_what_is_left(made: Path, broken: DirectoryStore, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    for root in (broken.path, tmp_path / "copy"):
        for path in (root / "packs").rglob("*.bin"):
            path.unlink()
    done = CliRunner().invoke(repo, ["repair", str(broken.path), "--from", str(tmp_path / "copy")])
    assert done.exit_code == 6
    assert "remedy: nor has the copy it intact" in done.stdout


def test_a_sample_can_be_repeated(made: Path) -> None:
    store = DirectoryStore(made)
    report = audit(store, sample=30)
    again = audit(store, sample=30, seed=report.seed)
    assert (again.packs_checked, again.regions_rebuilt, again.deltas_made) == (
        report.packs_checked, report.regions_rebuilt, report.deltas_made,
    )  # fmt: skip
    done = CliRunner().invoke(repo, ["verify", str(made), "--sample", "30%", "--seed", "7"])
    assert "A sample of 30 % of packs, contents and deltas (--seed 7)" in done.stdout
    assert CliRunner().invoke(repo, ["verify", str(made), "--sample", "0%"]).exit_code == 2
