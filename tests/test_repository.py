"""What ls, show and verify tell of a repository, damage of every kind of object included; and the commands."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trimtransfer.chunk import Kind, object_digest, region_digest
from trimtransfer.cli import repo as repo_module
from trimtransfer.cli import verify as verify_module
from trimtransfer.cli.repo import repo
from trimtransfer.errors import FormatError, IntegrityError, NotFound
from trimtransfer.head import Head
from trimtransfer.keys import directory
from trimtransfer.manifest import KEYS, FileRef, Manifest
from trimtransfer.names import (
    catalogue_name,
    deltas_name,
    head_name,
    keys_name,
    locations_name,
    manifest_name,
    tables_name,
)
from trimtransfer.repository import publication, rebuild
from trimtransfer.repository.audit import audit
from trimtransfer.repository.intent import Intent, clean_up
from trimtransfer.repository.listing import list_images
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader, describe
from trimtransfer.store import DirectoryStore

KIB, MIB = 1 << 10, 1 << 20


def make(root: Path) -> Path:
    """Make a repository with images a (two versions) and b in several packs; return its directory."""
    rnd = random.Random(5)
    one = rnd.randbytes(900 * KIB) + bytes(300 * KIB) + b"text " * 100_000
    two = one[: 200 * KIB] + rnd.randbytes(100 * KIB) + one[300 * KIB :] + b"end"
    for image, version, content in (("a", "1.0", one), ("a", "1.1", two), ("b", "x", rnd.randbytes(50_000))):
        (root / "image").write_bytes(content)
        publish(
            root / "r",
            root / "image",
            image=image,
            version=version,
            level=1,
            kind=Kind.DISK,
            flat=version == "x",
            _pack_limit=600_000,
        )
    return root / "r"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> DirectoryStore:
    shutil.copytree(made, tmp_path / "r")
    return DirectoryStore(tmp_path / "r")


def test_listing(made: Path) -> None:
    a, b = list_images(DirectoryStore(made))
    assert (a.image, a.newest, b.image, b.newest) == ("a", "1.1", "b", "x")
    assert [(v.version, v.parent, v.sequence, v.newest) for v in a.versions] == [
        ("1.0", "", 1, False),
        ("1.1", "1.0", 2, True),
    ]
    assert [v.length for v in a.versions] == [1_728_800, 1_728_803]
    assert json.loads(json.dumps(a.to_dict()))["versions"][1]["digest"] == a.versions[1].digest


def test_details(made: Path) -> None:
    store = DirectoryStore(made)
    details = describe(store, "a")
    assert (details.version, details.kind, details.regions, details.zero_regions) == ("1.1", "disk", 1, 0)
    assert details.zero_bytes > 290 * KIB
    assert details.packs >= 2
    assert 700 * KIB < details.frame_bytes < details.pack_bytes
    assert details.download_bytes == details.frame_bytes + details.metadata_bytes
    assert describe(store, "a", "1.0").newest is False
    assert len(describe(store, "b").flat) == 64
    for image, version in (("c", None), ("a", "2")):
        with pytest.raises(NotFound):
            describe(store, image, version)


def test_a_sound_repository(made: Path) -> None:
    store = DirectoryStore(made)
    report = audit(store)
    assert (report.images, report.versions, report.damage, report.unreferenced) == (2, 3, (), ())
    assert report.packs == report.packs_checked == len(list(store.list("packs")))
    assert audit(store, image="a", version="1.0").versions == 1
    assert 1 <= audit(store, sample=30).packs_checked < report.packs


def test_what_a_dead_publish_left_is_no_damage(made: Path, copy: DirectoryStore) -> None:
    for image, version in (("a", "1.2"), ("c", "1")):
        Intent(copy, image, version).close()
        shutil.copy(copy.path / manifest_name("a", "1.1"), copy.path / "left")
        copy.put(manifest_name(image, version), (copy.path / "left").read_bytes())
        report = audit(copy)
        assert (report.images, report.versions, report.damage) == (2, 3, ())
        assert [image.image for image in list_images(copy)] == ["a", "b"]
        assert clean_up(copy) == [manifest_name(image, version)]
    copy.put(manifest_name("c", "1"), b"")
    assert {damage.name for damage in audit(copy).damage} == {head_name("c"), manifest_name("c", "1")}


def test_packs_of_no_use_are_told(copy: DirectoryStore) -> None:
    copy.put(f"packs/00/{'0' * 64}.bin", b"left over")
    report = audit(copy)
    assert (report.damage, len(report.unreferenced)) == ((), 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 5),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": flip,
}
OBJECTS = {
    "head": lambda store: head_name("a"),
    "manifest": lambda store: manifest_name("a", "1.1"),
    "old manifest": lambda store: manifest_name("a", "1.0"),
    "tables": lambda store: tables_name("a", "1.1"),
    "locations": lambda store: locations_name("a", "1.0"),
    "keys": lambda store: keys_name("a", "1.1"),
    "pack": lambda store: next(name for name, _ in store.list("packs")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", OBJECTS)
def test_damage_is_found_and_named(copy: DirectoryStore, what: str, damage: str) -> None:
    name = OBJECTS[what](copy)
    DAMAGES[damage](copy.path / name)
    report = audit(copy)
    assert report.damage
    assert any(name in found.name or name in found.problem for found in report.damage)
    if what == "pack":
        assert set(report.damage[0].needed) <= {"a 1.0", "a 1.1", "b x"}
        assert set(report.damage[0].needed.values()) == {(0,)}
    shown = list_images(copy)
    assert "b" in {image.image for image in shown}  # and what else can be told


def recommit(store: DirectoryStore, manifest: Manifest) -> None:
    """Make a manifest the newest of its image, as a publisher with such a fault would; it has no deltas."""
    store.delete(deltas_name(manifest.image, manifest.version, manifest.parent))
    data = manifest.to_bytes()
    store.put(manifest_name(manifest.image, manifest.version), data)
    digests = object_digest(data), len(data), manifest.image_digest()
    store.put(
        head_name(manifest.image),
        Head(manifest.image, manifest.version, manifest.sequence, *digests, manifest.length).to_bytes(),
    )
    store.delete(catalogue_name(manifest.image))  # it would tell that the manifest is another one


def test_a_content_digest_that_is_wrong_although_all_chunks_are_right(copy: DirectoryStore) -> None:
    manifest = VersionReader.open(copy, "a").manifest
    rows = manifest.rows.copy()
    rows["content"][0, 0] ^= 1
    recommit(copy, replace(manifest, rows=rows))
    assert audit(copy, quick=True).damage == ()
    (damage,) = audit(copy).damage
    assert damage.name == f"{manifest_name('a', '1.1')}, region 0"
    assert "put together" in damage.problem
    assert "publish the image again" in damage.remedy
    assert damage.needed == {"a 1.1": (0,)}
    shown = run("verify", copy.path, exit_code=6).stdout
    assert "needed by a 1.1, region 0" in shown
    assert "remedy: nobody can sync this version" in shown


def recommit_keys(store: DirectoryStore, data: bytes) -> None:
    """Make ``data`` the key file of the newest version, as a publisher with such a fault would."""
    manifest = VersionReader.open(store, "a").manifest
    store.put(keys_name("a", "1.1"), data)
    new = FileRef(KEYS, "1.1", len(data), object_digest(data))
    files = [new if (file.kind, file.version) == (KEYS, "1.1") else file for file in manifest.files]
    recommit(store, replace(manifest, files=tuple(files)))


def test_keys_that_are_those_of_other_chunks(copy: DirectoryStore) -> None:
    data = bytearray((copy.path / keys_name("a", "1.1")).read_bytes())
    data[-1] ^= 1
    recommit_keys(copy, bytes(data))
    assert audit(copy, quick=True).damage == ()
    (damage,) = audit(copy).damage
    assert damage.name == keys_name("a", "1.1")
    assert "images are right all the same" in damage.remedy


def test_keys_that_are_too_few_for_their_table(copy: DirectoryStore) -> None:
    region = VersionReader.open(copy, "a").manifest.region(0)
    recommit_keys(copy, directory([(region.table, 1)]) + bytes(8))
    (damage,) = audit(copy, quick=True).damage
    assert damage.name == keys_name("a", "1.1")
    recommit_keys(copy, directory([(bytes(32), 1)]) + bytes(8))
    assert audit(copy, quick=True).damage[0].name == keys_name("a", "1.1")
    recommit_keys(copy, b"TrimKeys of another format")
    assert audit(copy, quick=True).damage[0].name == keys_name("a", "1.1")


def test_a_quick_check_reads_no_content(copy: DirectoryStore) -> None:
    full, quick = audit(DirectoryStore(copy.path)), audit(copy, quick=True)
    assert (quick.damage, quick.packs_checked, quick.regions_rebuilt) == ((), 0, 0)
    assert full.regions_rebuilt == quick.regions == full.regions == 3
    assert full.read_bytes > 1000 * KIB > 20 * quick.read_bytes
    (one, _), (two, _), (three, _), *_ = copy.list("packs")
    copy.delete(one)
    os.truncate(copy.path / two, copy.size(two) - 1)
    flip(copy.path / three)
    damage = audit(copy, quick=True).damage
    assert {found.name for found in damage} == {one, two}
    assert all(found.needed for found in damage)
    assert {found.name for found in audit(copy).damage} == {one, two, three}
    assert run_json("verify", copy.path, "--quick", exit_code=6)["packs_checked"] == 0
    run("verify", copy.path, "--quick", "--sample", "5", exit_code=2)


@pytest.mark.parametrize("window", [1, 100 * KIB, 4 * MIB])
def test_a_region_is_rebuilt(tmp_path: Path, rnd: random.Random, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(rebuild, "_WINDOW", window)
    shared = rnd.randbytes(150 * KIB)
    parts = [bytes(5 * MIB), shared, rnd.randbytes(700 * KIB), bytes(20 * KIB), shared, b"", bytes(3 * MIB), b"end"]
    store = DirectoryStore(tmp_path / "r")
    for version in ("1", "2"):
        rnd.shuffle(parts)
        (tmp_path / "image").write_bytes(b"".join(parts))
        publish(store.path, tmp_path / "image", image="a", version=version, level=1, kind=Kind.DISK)
        reader = VersionReader.open(store, "a")
        assert (
            rebuild.content_digest(reader, 0)[0] == region_digest(b"".join(parts)) == reader.manifest.region(0).content
        )


def test_numbers_of_regions() -> None:
    assert [verify_module._numbers(one) for one in ((4,), (0, 1, 2), (1, 3, 4, 9))] == [
        "region 4",
        "regions 0 to 2",
        "regions 1, 3 to 4, 9",
    ]


def test_each_flipped_bit_is_found(copy: DirectoryStore, rnd: random.Random) -> None:
    for name, size in list(copy.list()):
        path = copy.path / name
        original = path.read_bytes()
        for at in rnd.sample(range(8 * size), 3):
            changed = bytearray(original)
            changed[at // 8] ^= 1 << at % 8
            path.write_bytes(changed)
            if name.endswith("catalogue.json"):
                continue  # nothing tells what its notes, dates and pins must be
            if name.endswith("head.json") and json_equal(original, bytes(changed)):
                continue
            assert audit(copy).damage, f"{name}, bit {at}"
        path.write_bytes(original)
    assert audit(copy).damage == ()


def test_each_bit_of_a_head_counts(copy: DirectoryStore) -> None:
    path = copy.path / head_name("b")
    original = path.read_bytes()
    for at in range(8 * len(original)):
        changed = bytearray(original)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        assert json_equal(original, bytes(changed)) or audit(copy, image="b", quick=True).damage, at


def json_equal(one: bytes, other: bytes) -> bool:
    """Whether a changed head still means the same: white space, or a field that nobody reads."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_reading_checks_what_it_reads(copy: DirectoryStore) -> None:
    flip(copy.path / tables_name("a", "1.1"))
    reader = VersionReader.open(copy, "a")
    region = reader.manifest.region(0)
    damaged, other = region.full, region.difference  # the damage is in the middle of the file, where the larger one is
    assert 0 < other.length < damaged.length
    with pytest.raises(IntegrityError, match=r"tables\.bin"):
        reader.piece(damaged)
    assert len(reader.piece(other)) == other.length
    shutil.copy(copy.path / manifest_name("a", "1.0"), copy.path / manifest_name("a", "1.1"))
    with pytest.raises(IntegrityError):
        VersionReader.open(copy, "a")
    shutil.copy(copy.path / head_name("b"), copy.path / head_name("a"))
    with pytest.raises(FormatError):
        VersionReader.open(copy, "a")


# ---- commands


def run(*arguments: str | Path, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(repo, [str(argument) for argument in arguments], prog_name="medv-repo")
    assert result.exit_code == exit_code, result.output
    return result


def run_json(*arguments: str | Path, exit_code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", exit_code=exit_code).stdout)


def test_commands(tmp_path: Path, rnd: random.Random) -> None:
    (tmp_path / "disk").write_bytes(rnd.randbytes(100_000))
    target = (tmp_path / "r", tmp_path / "disk", "--image", "a", "--version")
    published = run_json("publish", *target, "1", "--flat", "--kind", "disk")
    assert (published["new_bytes"], published["kind"], len(published["flat"])) == (100_000, "disk", 64)
    text = run("publish", *target, "2", "--level", "1", "--workers", "2").stdout
    assert "Published a 2" in text
    listed = run_json("ls", tmp_path / "r")
    assert [version["version"] for version in listed["images"][0]["versions"]] == ["1", "2"]
    assert "2" in run("ls", tmp_path / "r").stdout
    assert run_json("show", tmp_path / "r", "a")["version"] == "2"
    assert published["flat"] in run("show", tmp_path / "r", "a", "1").stdout
    assert run_json("verify", tmp_path / "r")["damage"] == []
    assert "No damage found" in run("verify", tmp_path / "r", "a", "--version", "1", "--sample", "50").stdout


def test_damage_makes_verify_fail(copy: DirectoryStore) -> None:
    (name, _), *_ = copy.list("packs")
    copy.delete(name)
    assert run_json("verify", copy.path, exit_code=6)["damage"][0]["name"] == name
    assert f"DAMAGED {name}" in run("verify", copy.path, exit_code=6).stdout


def test_errors_and_exit_codes(made: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")
    names = ("--image", "a", "--version", "1.0")
    assert "published already" in run("publish", made, disk, *names, exit_code=1).stderr
    assert "'A' is no image name" in run("publish", made, disk, "--image", "A", "--version", "1", exit_code=2).stderr
    assert "is no version name" in run("publish", made, disk, "--image", "a", "--version", "1/2", exit_code=2).stderr
    assert "--image" in run("publish", made, disk, "--version", "1", exit_code=2).stderr
    assert "is a directory" in run("publish", disk, made, *names, exit_code=2).stderr
    assert "is a file" in run("publish", disk, disk, *names, exit_code=1).stderr
    assert run_json("publish", made, disk, *names, exit_code=1)["error"]["type"] == "VersionExists"
    assert "the repository" in run("ls", tmp_path / "none", exit_code=4).stderr
    assert "a published image not found" in run("ls", tmp_path, exit_code=4).stderr
    for command in ("show", "verify"):
        version = ("--version", "none") if command == "verify" else ("none",)
        assert "image none not found" in run(command, made, "none", exit_code=4).stderr
        assert "version none of image a not found" in run(command, made, "a", *version, exit_code=4).stderr
    run("verify", made, "--version", "1.0", exit_code=2)


@pytest.mark.parametrize("command", [[], ["publish"], ["ls"], ["show"], ["verify"]])
def test_help_teaches(command: list[str]) -> None:
    text = run(*command, "--help").stdout
    assert "REPO" in text or "repository" in text
    assert len(text.splitlines()) > 8


def test_the_commands_defaults_are_the_librarys() -> None:
    assert repo_module._LEVEL == publication.DEFAULT_LEVEL
    assert repo_module._MAX_LEVEL == publication.MAX_LEVEL
    assert (verify_module.EXIT_DAMAGED, IntegrityError.exit_code) == (6, 6)
