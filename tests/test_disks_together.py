"""Versions of several disks: published together, synced together, and never the first without the others."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filesystems
import numpy as np
import pytest
from click.testing import CliRunner
from syncing import BLOCK, Ended, Victim, content, leftovers, make_images, put, write_sparse

from trimtransfer.assembly.difference import difference_of
from trimtransfer.assembly.fetchplan import WHOLE_SHARE
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import Content, SyncReport
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.space import ROOM
from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.verify import verify_image
from trimtransfer.bundlestore import BundleStore
from trimtransfer.chunk import Kind
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import medv_sync
from trimtransfer.errors import FormatError, IntegrityError, Locked, NoSpace, NotFound, TargetRefused
from trimtransfer.manifest import DISK, FileRef, Manifest
from trimtransfer.names import MAX_DISKS, disk_name, manifest_name
from trimtransfer.repository import publication
from trimtransfer.repository.audit import audit
from trimtransfer.repository.bundlecheck import check_bundle
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import make_bundle
from trimtransfer.repository.deltas import add_deltas
from trimtransfer.repository.listing import list_images
from trimtransfer.repository.publication import PublishReport
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import describe, read_head, read_manifest
from trimtransfer.store import DirectoryStore

KILLS = 12


@dataclass
class Place:
    """A repository in which a machine of two disks has two versions, and a folder for a client."""

    root: Path
    repository: Path
    versions: list[list[bytes]]
    reports: list[PublishReport]

    def output(self) -> Path:
        """Return the first output in an empty folder."""
        shutil.rmtree(self.root / "client", ignore_errors=True)
        (self.root / "client").mkdir()
        return self.root / "client" / "desk.img"

    def holds(self, output: Path, version: int) -> bool:
        """Tell whether both files are those of a version."""
        return [output.read_bytes(), second(output).read_bytes()] == self.versions[version - 1]


def second(output: Path) -> Path:
    return output.with_name("desk.disk1.img")


def publish_disks(root: Path, version: str, disks: list[bytes], **options: object) -> PublishReport:
    """Publish a version of an image ``desk``."""
    paths = [root / f"source{number}.img" for number in range(len(disks))]
    for path, data in zip(paths, disks, strict=True):
        write_sparse(path, data)
    return publish(
        root / "repository", paths[0], disks=paths[1:], image="desk", version=version, kind=Kind.DISK, level=1,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def one_byte_more(data: bytes, rnd: random.Random, every: int = 700) -> bytes:
    """Return similar content: deltas make it."""
    changed = bytearray(data)
    for at in range(3 * BLOCK, len(data), every):
        if changed[at]:
            changed[at] = changed[at] % 15 + 1
    return bytes(changed)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> Place:
    system, data = make_images(rng), make_images(rng, versions=1)
    data.append(one_byte_more(data[0], rnd))
    versions = [list(pair) for pair in zip(system, data, strict=True)]
    reports = [publish_disks(tmp_path, str(number), disks) for number, disks in enumerate(versions, 1)]
    return Place(tmp_path, tmp_path / "repository", versions, reports)


def test_all_disks_follow_the_version(place: Place) -> None:
    output = place.output()
    first = sync(place.repository, "desk", output=output, version="1")
    assert place.holds(output, 1)
    assert [(one.image, one.version, one.output) for one in (first, *first.disks)] == [
        ("desk", "1", str(output)),
        ("desk.disk1", "1", str(second(output))),
    ]
    planned = plan(place.repository, "desk", output=output)
    then = sync(place.repository, "desk", output=output)
    assert place.holds(output, 2)
    assert then.disks[0].made.units > 0  # deltas are made for every disk
    for report, preview in zip((then, *then.disks), (planned, *planned.disks), strict=True):
        assert report.content == preview.content
        assert report.content.size == report.length
        assert preview.fetch_bytes >= preview.network.bytes > 0
        assert leftovers(Path(report.output)) == set()
    again = sync(place.repository, "desk", output=output)
    assert [one.wrote for one in (again, *again.disks)] == ["nothing", "nothing"]
    assert again.network.requests == 1  # the head; manifests are known
    assert again.disks[0].network.requests == 0


def test_network_figures_are_of_each_disk_alone(place: Place) -> None:
    counted = DirectoryStore(place.repository)
    report = sync(place.repository, "desk", output=place.output())
    assert all(one.network.bytes > 0 for one in (report, *report.disks))
    sizes = [describe(counted, "desk").download_bytes, describe(counted, "desk").disks[0].download_bytes]
    for one, most in zip((report, *report.disks), sizes, strict=True):
        assert one.network.bytes <= most / WHOLE_SHARE  # a pack is fetched whole if so much of it is needed


def test_a_disk_that_stays_costs_nothing(place: Place, rng: np.random.Generator) -> None:
    """Only the second disk changes; the first one is recorded as the new version all the same."""
    changed = bytearray(place.versions[1][1])
    put(changed, 70 * 512, content(rng, 50_000))
    publish_disks(place.root, "3", [place.versions[1][0], bytes(changed)])
    output = place.output()
    sync(place.repository, "desk", output=output, version="2")
    report = sync(place.repository, "desk", output=output)
    assert report.wrote == "nothing"
    assert report.version == "3"
    assert report.content == Content(unchanged=len(place.versions[1][0]))
    assert report.disks[0].wrote != "nothing"
    assert second(output).read_bytes() == changed
    assert verify_image(output).ok
    assert verify_image(output).version == "3"


def test_nothing_takes_its_place_before_all_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second disk cannot be had: the first one is the old one still, and what was fetched for it is kept."""
    output = place.output()
    sync(place.repository, "desk", output=output, version="1")
    tables = place.repository / "images/desk.disk1/2/tables.bin"
    tables.rename(tables.with_suffix(".away"))
    with pytest.raises(NotFound):
        sync(place.repository, "desk", output=output, write="new")
    assert place.holds(output, 1)
    tables.with_suffix(".away").rename(tables)
    report = sync(place.repository, "desk", output=output, write="new")
    assert place.holds(output, 2)
    assert report.resumed_bytes > 0
    assert report.content.fetched == 0


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as process:
        yield process


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_killed_at_any_moment(place: Place, write: str, rnd: random.Random, victim: Victim) -> None:
    """Each file is old or new, the first is new only if the second is, and the next run brings both to the end."""
    output = place.output()
    assert victim.sync(place.repository, "desk", output=output, version="1").error is None
    start = place.root / "start"
    shutil.copytree(output.parent, start)

    def run(kill_at: int | None) -> Ended:
        shutil.rmtree(output.parent)
        subprocess.run(["cp", "-a", "--sparse=always", start, output.parent], check=True)
        return victim.sync(place.repository, "desk", output=output, write=write, kill_at=kill_at)

    calls = run(None).calls
    for kill_at in sorted(rnd.sample(range(calls), min(KILLS, calls))):
        if not run(kill_at).killed:  # threads differ: this run had fewer calls than the one that was counted
            assert run(kill_at // 2).killed
        if write == "new":
            found = [output.read_bytes(), second(output).read_bytes()]
            assert all(one in pair for one, pair in zip(found, zip(*place.versions, strict=True), strict=True))
            assert found[0] != place.versions[1][0] or found[1] == place.versions[1][1]
        assert victim.sync(place.repository, "desk", output=output, write=write).error is None
        assert place.holds(output, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which both disks fit once, and not much more."""
    with filesystems.small_disk(tmp_path / "small", "16m") as folder:
        yield folder


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_room_is_there_for_all_disks_together(place: Place, small_disk: Path, write: str) -> None:
    """Each disk would fit, and not both: nothing is fetched; with what the error asks for, both are written."""
    output, options = small_disk / "desk.img", {"write": write}
    sync(place.repository, "desk", output=output, version="1")
    filesystems.fill(small_disk, leave=0)
    with pytest.raises(NoSpace) as alone:
        sync(place.repository, "desk", output=output, disk_outputs=[place.root / "other.img"], **options)  # type: ignore[arg-type]
    (small_disk / "ballast").unlink()
    filesystems.fill(small_disk, leave=(alone.value.needed or 0) + 8192)
    seen = set[str]()
    with pytest.raises(NoSpace, match=f"{output}, {second(output)}: .*on another disk") as together:
        sync(place.repository, "desk", output=output, progress=lambda phase, *_: seen.add(phase), **options)  # type: ignore[arg-type]
    assert not {"fetch", "reuse"} & seen
    assert (together.value.needed or 0) > (alone.value.needed or 0) + ROOM
    assert place.holds(output, 1)
    warnings = plan(place.repository, "desk", output=output, **options).warnings  # type: ignore[arg-type]
    assert [str(second(output)) in one for one in warnings] == [True]
    (small_disk / "ballast").unlink()
    filesystems.fill(small_disk, leave=(together.value.needed or 0) + 16384)
    assert plan(place.repository, "desk", output=output, **options).warnings == ()  # type: ignore[arg-type]
    report = sync(place.repository, "desk", output=output, **options)  # type: ignore[arg-type]
    assert place.holds(output, 2)
    assert [one.wrote for one in (report, *report.disks)] == [write, write]


def test_each_file_system_is_asked_for_its_disks(place: Place, small_disk: Path) -> None:
    output = small_disk / "desk.img"
    sync(place.repository, "desk", output=output, version="1", disk_outputs=[place.root / "other.img"])
    filesystems.fill(small_disk, leave=500_000)
    with pytest.raises(NoSpace) as refused:
        sync(place.repository, "desk", output=output, disk_outputs=[place.root / "other.img"])
    assert refused.value.path == str(output)
    (small_disk / "ballast").unlink()
    filesystems.fill(small_disk, leave=(refused.value.needed or 0) + 8192)
    sync(place.repository, "desk", output=output, disk_outputs=[place.root / "other.img"])
    assert output.read_bytes() == place.versions[1][0]
    assert (place.root / "other.img").read_bytes() == place.versions[1][1]


def test_a_disk_in_use_is_found_before_anything_is_fetched(place: Place, small_disk: Path) -> None:
    """Where room is short all disks are looked at first, each under its lock."""
    output = small_disk / "desk.img"
    sync(place.repository, "desk", output=output, version="1")
    filesystems.fill(small_disk, leave=500_000)
    side = SideDirectory(second(output))
    with side.locked(), pytest.raises(Locked, match=r"desk\.disk1\.img"):
        sync(place.repository, "desk", output=output)
    assert place.holds(output, 1)


def test_disks_come_and_go(place: Place, rng: np.random.Generator) -> None:
    one, two = place.versions[1]
    publish_disks(place.root, "3", [one])
    publish_disks(place.root, "4", [one, two, two])
    output = place.output()
    assert sync(place.repository, "desk", output=output, version="3").disks == ()
    assert not second(output).exists()
    report = sync(place.repository, "desk", output=output)
    assert [disk.image for disk in report.disks] == ["desk.disk1", "desk.disk2"]
    assert output.with_name("desk.disk2.img").read_bytes() == two
    assert place.reports[1].disks[0].parent == "1"
    assert describe(DirectoryStore(place.repository), "desk").disks[1].parent == ""
    stored = [path for path in (place.repository / "packs").rglob("*.bin") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) < 3 * sum(map(len, place.versions[0]))  # what repeats is shared


def test_the_difference_is_told_of_each_disk_and_of_the_whole(place: Place) -> None:
    """Each disk's bytes are those of a client's plan; a disk that the old version has not is new as a whole."""
    publish_disks(place.root, "3", [*place.versions[0], place.versions[1][1]])
    for old, new in (("1", "2"), ("2", "3"), ("1", "3")):
        output = place.output()
        sync(place.repository, "desk", output=output, version=old)
        planned = plan(place.repository, "desk", output=output, version=None if new == "3" else new)
        report = difference_of(DirectoryStore(place.repository), "desk", old, new)
        reports, plans = (report, *report.disks), (planned, *planned.disks)
        assert [one.fetched_bytes for one in reports] == [one.fetch_bytes for one in plans]
        assert [one.image for one in reports] == [one.image for one in plans]
        whole = report.whole()
        assert whole.fetched_bytes == sum(one.fetched_bytes for one in reports)
        assert (whole.disks, whole.length) == (len(plans), sum(one.length for one in plans))
        assert report.to_dict()["whole"]["fetched_bytes"] == whole.fetched_bytes
    text = CliRunner().invoke(repo, ["diff", str(place.repository), "--image", "desk", "2", "3"]).stdout
    assert text.startswith("desk 2 to 3, 3 disks: ")
    assert "\ndesk.disk1 2 to 3: " in text
    assert "\ndesk.disk2 3, a disk that was not there before: " in text
    code, found, _ = run(repo, "diff", place.repository, "--image", "desk", "3", "1")
    assert code == 0
    assert [one["image"] for one in found["disks"]] == ["desk.disk1"]  # type: ignore[attr-defined]
    assert all("--image desk " in one["remedy"] for one in found["advice"] if one["code"] == "no-deltas")  # type: ignore[attr-defined]


def test_the_repository_is_sound(place: Place) -> None:
    store = DirectoryStore(place.repository)
    assert [image.image for image in list_images(store)] == ["desk"]
    report = audit(store)
    assert report.damage == ()
    assert report.unreferenced == ()
    assert (report.images, report.versions) == (1, 4)
    assert audit(store, image="desk", version="2").versions == 2
    assert len(add_deltas(place.repository, "desk", base="1", level=1).disks) == 1
    assert audit(store).damage == ()


@pytest.mark.parametrize("file", ["manifest.bin", "tables.bin", "locations.bin"])
def test_damage_of_a_further_disk_is_found(place: Place, file: str) -> None:
    path = place.repository / "images/desk.disk1/2" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damage = audit(DirectoryStore(place.repository)).damage
    assert any("desk.disk1/2" in one.name for one in damage)
    path.unlink()
    damage = audit(DirectoryStore(place.repository)).damage
    assert any("desk.disk1/2" in one.name for one in damage)


def test_a_manifest_of_another_disk_is_refused(place: Place) -> None:
    """The first disk's manifest names the others by digest."""
    path = place.repository / manifest_name("desk.disk1", "2")
    shutil.copy(place.repository / manifest_name("desk.disk1", "1"), path)
    output = place.output()
    with pytest.raises(IntegrityError):
        sync(place.repository, "desk", output=output)
    assert not output.exists()


def test_a_publish_that_fails_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path for path in place.repository.rglob("*") if path.is_file() and ".trimtransfer" not in path.parts}

    class Dies(RuntimeError):
        pass

    def die(*arguments: object) -> None:
        raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(publication, "head_name", die)
        with pytest.raises(Dies):
            publish_disks(place.root, "3", [place.versions[0][1], place.versions[0][0]])
    after = {path for path in place.repository.rglob("*") if path.is_file() and ".trimtransfer" not in path.parts}
    assert after == before
    publish_disks(place.root, "3", [place.versions[0][1], place.versions[0][0]])
    assert audit(DirectoryStore(place.repository)).damage == ()


def test_names_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(BLOCK))
    with pytest.raises(FormatError, match="further disk"):
        publish(tmp_path / "r", tmp_path / "a.img", image="desk.disk1", version="1")
    with pytest.raises(ValueError, match=str(MAX_DISKS)):
        publish(tmp_path / "r", tmp_path / "a.img", disks=[tmp_path / "a.img"] * MAX_DISKS, image="a", version="1")
    with pytest.raises(FormatError):
        publish(tmp_path / "r", tmp_path / "a.img", disks=[tmp_path / "a.img"], image="a" * 60, version="1")
    assert not (tmp_path / "r" / "images").exists()


def test_manifests_of_several_disks(place: Place) -> None:
    store = DirectoryStore(place.repository)
    head = read_head(store, "desk")
    manifest = read_manifest(store, "desk", "2", head=head)
    assert (head.disks, manifest.format, len(manifest.disks)) == (1, 3, 1)
    assert Manifest.from_bytes(manifest.to_bytes()).disks == manifest.disks
    other = read_manifest(store, disk_name("desk", 1), "2", digest=manifest.disks[0].digest)
    assert (other.disk, other.sequence, other.disks) == (1, manifest.sequence, ())
    for wrong in (
        FileRef(DISK, "1", 9, bytes(32)),  # of another version
        FileRef(5, "2", 9, bytes(32)),
    ):
        with pytest.raises(FormatError):
            replace(manifest, files=(*manifest.files, wrong))
    with pytest.raises(FormatError):
        replace(manifest, disk=1)  # only the first names others
    with pytest.raises(FormatError):
        replace(manifest, files=(*manifest.files, *manifest.disks * MAX_DISKS))


def run(program: object, *arguments: object) -> tuple[int, dict[str, object], str]:
    """Run a command with ``--json``; return its exit code, object and messages."""
    done = CliRunner().invoke(program, [*map(str, arguments), "--json"])  # type: ignore[arg-type]
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_commands(place: Place, tmp_path: Path) -> None:
    sources = [tmp_path / "source0.img", tmp_path / "source1.img"]
    code, published, _ = run(repo, "publish", tmp_path / "other", *sources, "--image", "pair", "--version", "1")
    assert code == 0
    assert [one["image"] for one in published["disks"]] == ["pair.disk1"]  # type: ignore[attr-defined]
    named = [tmp_path / "c.img", tmp_path / "d.img"]
    arguments = (tmp_path / "other", "pair", "-o", named[0], "-o", named[1], "--no-host-index")
    code, synced, _ = run(medv_sync, *arguments)
    assert code == 0
    assert [path.read_bytes() for path in named] == place.versions[1]
    assert [one["output"] for one in synced["disks"]] == [str(named[1])]  # type: ignore[attr-defined]
    code, verified, _ = run(medv_sync, "verify", named[0])
    assert code == 0
    assert [one["path"] for one in verified["disks"]] == [str(named[1])]  # type: ignore[attr-defined]
    code, shown, _ = run(repo, "show", tmp_path / "other", "pair")
    assert len(shown["disks"]) == 1  # type: ignore[arg-type]
    text = CliRunner().invoke(medv_sync, ["verify", str(named[1])]).stdout
    assert "pair.disk1 1" in text


def test_a_damaged_or_older_second_disk_is_told(place: Place) -> None:
    output = place.output()
    sync(place.repository, "desk", output=output, version="1")
    older = place.root / "older"
    shutil.copytree(output.parent, older, copy_function=shutil.copy2)
    sync(place.repository, "desk", output=output)
    assert verify_image(output).ok
    shutil.rmtree(second(output).with_name("desk.disk1.img.medv"))
    second(output).unlink()
    shutil.copy2(older / "desk.disk1.img", second(output))
    shutil.copytree(older / "desk.disk1.img.medv", second(output).with_name("desk.disk1.img.medv"))
    report = verify_image(output)
    assert report.disks[0].intact
    assert not report.ok  # it is a whole disk, but of version 1
    done = CliRunner().invoke(medv_sync, ["verify", str(output)])
    assert done.exit_code == 6
    assert f"{second(output)} is NOT the disk of that version: it is desk.disk1 1; run the sync again" in done.stdout
    assert sync(place.repository, "desk", output=output).wrote == "nothing"
    assert verify_image(output).ok


def test_disks_that_lie_elsewhere_are_found_where_the_sync_put_them(place: Place) -> None:
    """Verify, plan and the next sync know without being told; a folder of both can be moved."""
    output, far = place.output(), place.output().parent / "data" / "far.img"
    far.parent.mkdir()
    sync(place.repository, "desk", output=output, disk_outputs=[far], version="1")
    assert [disk.path for disk in verify_image(output).disks] == [str(far)]
    moved = place.root / "moved"
    shutil.rmtree(moved, ignore_errors=True)
    output.parent.rename(moved)
    output, far = moved / output.name, moved / "data" / "far.img"
    assert verify_image(output).ok
    assert plan(place.repository, "desk", output=output).disks[0].output == str(far)
    report = sync(place.repository, "desk", output=output)
    assert [disk.output for disk in report.disks] == [str(far)]
    assert far.read_bytes() == place.versions[1][1]
    assert not second(output).exists()
    report = sync(place.repository, "desk", output=output, disk_outputs=[second(output)])  # another place from now on
    assert [disk.path for disk in verify_image(output).disks] == [str(second(output))]


def test_a_missing_disk_is_named_with_what_to_type(place: Place) -> None:
    output = place.output()
    sync(place.repository, "desk", output=output)
    far = place.root / "far.img"
    second(output).rename(far)
    done = CliRunner().invoke(medv_sync, ["verify", str(output)])
    assert done.exit_code == 4
    assert f"desk.disk1 2 is MISSING: no image that was synced at {second(output)}\n" in done.stdout
    assert f"medv-sync verify {output} -o PATH_OF_desk.disk1\n" in done.stdout
    far.with_name("far.img.medv").unlink(missing_ok=True)
    shutil.move(str(second(output)) + ".medv", str(far) + ".medv")
    for arguments in ((output, "-o", far), ("-o", output, "-o", far)):
        code, verified, _ = run(medv_sync, "verify", *arguments)
        assert (code, verified["ok"], verified["missing"]) == (0, True, [])
    code, verified, _ = run(medv_sync, "verify", output)
    assert (code, verified["missing"]) == (4, [{"image": "desk.disk1", "path": str(second(output))}])
    assert CliRunner().invoke(medv_sync, ["verify"]).exit_code == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "disks": [5, "a\\u0000b"]}'])
def test_a_record_of_disks_that_cannot_be_read_is_none(place: Place, data: bytes) -> None:
    output = place.output()
    sync(place.repository, "desk", output=output, disk_outputs=[place.root / "far.img"])
    SideDirectory(output).disks.write_bytes(data)
    assert [one.output for one in SideDirectory(output).further([], 1)] == [second(output)]
    assert verify_image(output).missing[0].path == str(second(output))


@pytest.mark.parametrize("options", [{}, {"bases": ("1",)}, {"bases": ("1",), "deltas": True}])
def test_bundles(place: Place, options: dict[str, Any]) -> None:
    """A bundle has all disks of its versions; one from a version what machines with that version lack of each."""
    output = place.output()
    if options:
        sync(place.repository, "desk", output=output, version="1")
    bundle = place.root / "desk.bundle"
    make_bundle(DirectoryStore(place.repository), bundle, [Wanted("desk", (), **options)])
    report = sync(bundle, "desk", output=output)
    assert place.holds(output, 2)
    assert report.disks[0].bundle_bytes > 0
    assert report.bundle_bytes + report.disks[0].bundle_bytes <= bundle.stat().st_size
    with closing(BundleStore(bundle)) as store:
        assert check_bundle(store).damage == ()


def test_outputs_must_differ_and_be_writable(place: Place) -> None:
    output = place.output()
    with pytest.raises(TargetRefused, match="two disks"):
        sync(place.repository, "desk", output=output, disk_outputs=[output])
    second(output).mkdir()
    with pytest.raises(TargetRefused, match="directory"):
        sync(place.repository, "desk", output=output)
    assert not output.exists()


def test_containers(place: Place) -> None:
    """Each disk has the format that is asked for."""
    disks = [data + bytes(-len(data) % 512) for data in place.versions[1]]  # formats have whole sectors
    publish_disks(place.root, "3", disks)
    output = place.output().with_suffix(".qcow2")
    report = sync(place.repository, "desk", output=output, format="qcow2")
    files = [Path(one.output) for one in (report, *report.disks)]
    assert [file.name for file in files] == ["desk.qcow2", "desk.disk1.qcow2"]
    for file, data in zip(files, disks, strict=True):
        raw = file.with_suffix(".raw")
        subprocess.run(["qemu-img", "convert", "-O", "raw", file, raw], check=True)
        assert raw.read_bytes() == data


def test_the_side_directory_of_further_disks_follows(place: Place) -> None:
    output = place.output()
    report: SyncReport = sync(place.repository, "desk", output=output, side=place.root / "kept")
    assert (place.root / "kept.disk1" / "state.json").exists()
    assert not second(output).with_name("desk.disk1.img.medv").exists()
    assert sync(place.repository, "desk", output=output, side=place.root / "kept").wrote == "nothing"
    assert report.disks[0].version == "2"
