"""Bundles end to end: made from directories and servers, carried in parts, cut off, damaged, and synced from."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filesystems
import numpy as np
import pytest
from click.testing import CliRunner, Result
from filesystems import make_tree, program, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import BadServer, Fault, Nginx, Request
from syncing import Victim, leftovers, make_images, publish_all, write_sparse
from test_deltas import add_small_deltas, make_versions

from medv.cli import medv_repo, medv_sync
from trimtransfer.assembly.bundleseed import bundle_seeds
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.bundle import HEADER_SIZE, BundleVersion, Directory, Header
from trimtransfer.bundlestore import BundleStore
from trimtransfer.chunk import Kind
from trimtransfer.errors import Cancelled, FormatError, IntegrityError, Locked, NoSpace, NotFound, TargetRefused
from trimtransfer.fetch.http import HttpStore
from trimtransfer.names import manifest_name
from trimtransfer.nearstore import NearStore
from trimtransfer.repository.bundlecheck import check_bundle
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import FAT_PART, BundleReport, fits_in_one_file, make_bundle
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import read_manifest
from trimtransfer.store import DirectoryStore, Range
from trimtransfer.watch import Watch

KIB, MIB = 1 << 10, 1 << 20


def repo(*arguments: object, code: int = 0) -> Result:
    return invoked(medv_repo, "medv-repo", *arguments, code=code)


def client(*arguments: object, code: int = 0) -> Result:
    return invoked(medv_sync, "medv-sync", *arguments, code=code)


def invoked(command: Any, name: str, *arguments: object, code: int) -> Result:
    done = CliRunner().invoke(command, [str(one) for one in arguments], prog_name=name)
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


@dataclass
class Place:
    """A repository of three versions of one image, whose bytes are ``images``."""

    folder: Path
    images: list[bytes]

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def bundle(self, name: str = "x.bundle", *bases: str, versions: tuple[str, ...] = (), **options: Any) -> Path:
        """Make a bundle in a folder of its own."""
        self.make(name, *bases, versions=versions, **options)
        return self.folder / "stick" / name

    def make(self, name: str, *bases: str, versions: tuple[str, ...] = (), **options: Any) -> BundleReport:
        (self.folder / "stick").mkdir(exist_ok=True)
        wanted = [Wanted("disk", versions, bases)]
        return make_bundle(DirectoryStore(self.repository), self.folder / "stick" / name, wanted, **options)

    def sync(self, url: Path | str, output: str = "disk.img", **options: Any) -> Any:
        """Sync an output in a folder of its own."""
        return sync(url, "disk", output=self.output(output), cache=self.folder / "cache", **options)

    def output(self, name: str = "disk.img") -> Path:
        (self.folder / "machine").mkdir(exist_ok=True)
        return self.folder / "machine" / name


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Place:
    images = make_images(rng, versions=3)
    publish_all(tmp_path / "repository", images)
    return Place(tmp_path, images)


# ---- the commands, on real file systems


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A repository with two versions of an ext4 image."""
    folder = tmp_path_factory.mktemp("disks")
    files = make_tree(folder / "tree", random.Random(9), names=60)
    images = []
    for version in (1, 2):
        images.append(folder / f"{version}.img")
        run("mke2fs", "-q", "-F", "-t", "ext4", "-U", "6d656476-0000-4000-8000-000000000001", "-d", folder / "tree",
            images[-1], "32M")  # fmt: skip
        publish(folder / "repository", images[-1], image="ext", version=str(version), level=1)
        (folder / "tree" / "etc" / "more").write_bytes(random.Random(10).randbytes(MIB))
    assert len(files) > 60
    return folder / "repository", images


def test_a_stick_brings_a_machine_to_a_version(disks: tuple[Path, list[Path]], tmp_path: Path) -> None:
    repository, images = disks
    stick = tmp_path / "stick" / "ext.bundle"
    stick.parent.mkdir()
    made = json.loads(repo("bundle", repository, "--image", "ext", "-o", stick, "--json", "--no-progress").stdout)
    assert made["length"] == stick.stat().st_size == made["pack_bytes"] + made["metadata_bytes"]
    assert made["files"] == [str(stick)]
    output = tmp_path / "out" / "ext.img"
    output.parent.mkdir()
    done = json.loads(client("--from", stick, "-o", output, "--json", "--no-progress", "--no-host-index").stdout)
    assert output.read_bytes() == images[1].read_bytes()
    assert run("e2fsck", "-fn", output)
    assert [done["network"][name] for name in ("bytes", "requests", "retries")] == [0, 0, 0]
    assert sum(done["content"].values()) == done["length"] == 32 * MIB
    assert 0 < done["bundle"]["bytes"] <= made["length"]
    direct = json.loads(
        client(repository, "ext", "-o", tmp_path / "d.img", "--json", "--no-host-index", "--no-progress").stdout
    )
    assert done["bundle"]["bytes"] <= 1.02 * direct["network"]["bytes"]  # as fast as from a directory
    assert (
        "0 B over the network"
        in client("--from", stick, "ext", "-o", tmp_path / "t.img", "--no-host-index", "--no-progress").stdout
    )


def test_an_update_for_machines_that_have_a_version(disks: tuple[Path, list[Path]], tmp_path: Path) -> None:
    repository, images = disks
    stick, full = tmp_path / "up.bundle", tmp_path / "full.bundle"
    text = repo("bundle", repository, "--image", "ext", "--from", "1", "-o", stick, "--no-progress").stdout
    assert "ext 2: for machines that have 1" in text
    repo("bundle", repository, "--image", "ext", "-o", full, "-q")
    assert stick.stat().st_size < 0.7 * full.stat().st_size
    listed = json.loads(repo("ls", stick, "--json").stdout)
    assert listed["bundle"]["versions"] == [{"image": "ext", "version": "2", "from": ["1"], "deltas": False}]
    assert "for machines that have 1" in repo("show", stick, "ext").stdout
    assert "No damage" in repo("verify", stick).stdout
    output = tmp_path / "out" / "ext.img"
    output.parent.mkdir()
    lacking = client("--from", stick, "-o", output, "--no-host-index", "--no-progress", code=4)
    assert "does not have ext 1, from which this bundle starts" in lacking.output
    assert not output.exists()
    client(repository, "ext", "--version", "1", "-o", output, "-q", "--no-host-index")
    assert output.read_bytes() == images[0].read_bytes()
    client("--from", stick, "-o", output, "-q", "--no-host-index")
    assert output.read_bytes() == images[1].read_bytes()
    client("verify", output)


def test_what_the_commands_refuse(disks: tuple[Path, list[Path]], tmp_path: Path) -> None:
    repository, _ = disks
    path = tmp_path / "x.bundle"
    base = ("bundle", repository, "--image", "ext")
    for arguments, code, message in (
        ((*base, "-o", path, "--version", "9"), 4, "version 9 of image ext not found"),
        (("bundle", repository, "--image", "none", "-o", path), 4, "image none not found"),
        (("bundle", tmp_path / "none", "--image", "ext", "-o", path), 4, "not found"),
        ((*base, "-o", path, "--from", "9"), 4, "version 9 of image ext not found"),
        ((*base, "--image", "other", "--version", "1", "-o", path), 2, "need a single --image"),
        ((*base, "-o", path, "--split", "none"), 2, "a size in bytes"),
        ((*base, "-o", tmp_path), 1, "exists and is no bundle"),
    ):
        assert message in repo(*arguments, "--no-progress", code=code).output
    assert list(tmp_path.iterdir()) == []
    repo(*base, "-o", path, "-q")
    for options, code, message in (
        (("https://localhost/x", "ext", "--from", path), 2, "a URL or --from"),
        ((), 2, "Missing argument 'URL'"),
        (("https://localhost/x",), 2, "Missing argument 'IMAGE'"),
        (("gopher://x", "ext"), 2, "use http://"),
        (("--from", path, "../x"), 2, "no image name"),
        (("--from", path, "other"), 4, "image other not found"),
        (("--from", path, "ext", "--version", "1"), 4, "version 1 of image ext not found"),
        (("--from", tmp_path / "none", "ext"), 4, "not found"),
    ):
        assert message in client("sync", *options, "--no-progress", "-o", tmp_path / "o.img", code=code).output
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (("sync", "--from", path), ("sync", "--from", path, "ext"), ("plan", "--from", path)):
        done = client(*arguments, "--no-progress", "-o", tmp_path / "o.img", code=6)
        assert "cut off" in done.output
        assert "copy the bundle again" in done.output
    found = repo("verify", path, "--no-progress", code=6).stdout
    assert "DAMAGED" in found
    assert "cut off" in found
    assert not (tmp_path / "o.img").exists()


# ---- what a bundle holds


def test_the_same_bytes_from_a_server_as_from_a_directory(place: Place, nginx: Nginx) -> None:
    shutil.copytree(place.repository, nginx.root, dirs_exist_ok=True)
    for bases in ((), ("1",)):
        first = place.bundle("a", *bases).read_bytes()
        assert place.bundle("b", *bases).read_bytes() == first
        with closing(HttpStore(nginx.url, ca_cert=nginx.ca_cert)) as store:
            report = make_bundle(store, place.folder / "stick" / "c", [Wanted("disk", (), bases)])
        assert (place.folder / "stick" / "c").read_bytes() == first
        assert report.read_bytes <= 1.1 * len(first) + 100_000
    assert sorted(os.listdir(place.folder / "stick")) == ["a", "b", "c"]


def test_several_versions_and_starts(place: Place, tmp_path: Path) -> None:
    newest = place.make("newest")
    both = place.make("both", versions=("2", "3"))
    update = place.make("update", "1", "2", versions=("3",))
    one = place.make("one", "2", versions=("3",))
    assert one.length < update.length < newest.length < both.length
    assert [str(version) for version in both.versions] == ["disk 2", "disk 3"]
    stick = place.folder / "stick"
    for version in ("2", "3"):
        place.sync(stick / "both", f"{version}.img", version=version)
        assert place.output(f"{version}.img").read_bytes() == place.images[int(version) - 1]
    for start in ("1", "2"):
        place.sync(place.repository, f"from{start}.img", version=start)
        place.sync(stick / "update", f"from{start}.img")
        assert place.output(f"from{start}.img").read_bytes() == place.images[2]
    place.sync(place.repository, "old.img", version="1")
    with pytest.raises(NotFound, match="does not have disk 2"):
        place.sync(stick / "one", "old.img")
    assert place.output("old.img").read_bytes() == place.images[0]
    # What the old version lacks may come from anywhere else on the machine.
    place.sync(stick / "one", "old.img", seeds=[place.output("2.img")])
    assert place.output("old.img").read_bytes() == place.images[2]
    for name in ("newest", "both", "update", "one"):
        with closing(BundleStore(stick / name)) as store:
            assert check_bundle(store).damage == ()


def test_several_images(place: Place) -> None:
    (place.folder / "other.img").write_bytes(place.images[0][: 3 * MIB])
    publish(place.repository, place.folder / "other.img", image="other", version="a", kind=Kind.DISK, level=1)
    stick = place.folder / "two"
    repo("bundle", place.repository, "--image", "disk", "--image", "other", "-o", stick, "-q")
    output = place.output("other.img")
    assert "name one: disk, other" in client("--from", stick, "-o", output, "--no-progress", code=1).output
    client("--from", stick, "other", "-o", output, "-q", "--no-host-index")
    assert output.read_bytes() == place.images[0][: 3 * MIB]


def test_what_machines_lack_that_have_an_image_file(place: Place) -> None:
    raw, disk = place.folder / "have.img", place.folder / "have.qcow2"
    write_sparse(raw, place.images[1])
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk)
    by_version = place.make("v", "2")
    for path in (raw, disk):
        name = f"for-{path.suffix[1:]}"
        repo("bundle", place.repository, "--image", "disk", "--from-image-file", path, "-o",
             place.folder / "stick" / name, "-q")  # fmt: skip
        assert (place.folder / "stick" / name).stat().st_size == by_version.length - len("2") - 1
        with pytest.raises(NotFound, match="the image file that it was made for"):
            place.sync(place.folder / "stick" / name, f"{name}.img")
        place.sync(place.folder / "stick" / name, f"{name}.img", seeds=[path])
        assert place.output(f"{name}.img").read_bytes() == place.images[2]


def test_deltas_are_not_fetched_for_what_a_bundle_has(place: Place, nginx: Nginx) -> None:
    shutil.copytree(place.repository, nginx.root, dirs_exist_ok=True)
    stick = place.bundle("up", "2")
    for name in ("plain.img", "near.img"):
        place.sync(place.repository, name, version="2")
    plain = place.sync(nginx.url, "plain.img", ca_cert=nginx.ca_cert)
    foreseen = plan(nginx.url, "disk", output=place.output("near.img"), seeds=[stick], ca_cert=nginx.ca_cert)
    done = place.sync(nginx.url, "near.img", seeds=[stick], ca_cert=nginx.ca_cert)
    assert place.output("near.img").read_bytes() == place.images[2]
    assert plain.network.bytes > 50_000
    assert done.network.bytes < 8_000  # head, manifest, index of deltas
    assert done.made.units == 0
    assert foreseen.fetch_bytes <= done.network.bytes
    assert foreseen.bundle_bytes >= done.bundle_bytes > 50_000
    assert done.content.size == done.length


@pytest.fixture
def edited_disk(tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> Place:
    """Three versions with words changed all over, and deltas from each to the next."""
    images = make_versions(rng, rnd)
    publish_all(tmp_path / "repository", images)
    for version in ("2", "3"):
        add_small_deltas(tmp_path / "repository", base=str(int(version) - 1), version=version)
    return Place(tmp_path, images)


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_deltas_in_a_bundle(edited_disk: Place, rnd: random.Random, write: str) -> None:
    place, stick = edited_disk, edited_disk.folder / "stick"
    plain = place.make("plain", "2")
    arguments = ("--image", "disk", "--from", "2", "--deltas", "-o", stick / "deltas", "--no-progress")
    assert "have it as it was" in repo("bundle", place.repository, *arguments).stdout
    assert (stick / "deltas").stat().st_size < 0.5 * plain.length
    with closing(BundleStore(stick / "deltas")) as store:
        assert check_bundle(store).damage == ()
    with Victim() as victim:
        for _ in range(4):
            shutil.rmtree(place.output().parent)
            place.sync(place.repository, version="2")
            total = 200
            for _ in range(2):  # what is left of a unit is made by it, however little that is
                ended = victim.sync(
                    stick / "deltas", "disk", output=place.output(), write=write, kill_at=rnd.randrange(total)
                )
                assert ended.error is None
            ended = victim.sync(stick / "deltas", "disk", output=place.output(), write=write)
            assert ended.error is None
            assert place.output().read_bytes() == place.images[2]
    shutil.rmtree(place.output().parent)
    place.sync(place.repository, version="2")
    foreseen = plan(stick / "deltas", "disk", output=place.output(), write=write)  # type: ignore[arg-type]
    report = place.sync(stick / "deltas", write=write)
    assert (foreseen.fetch_bytes, foreseen.made.units) == (0, report.made.units)
    assert abs(foreseen.bundle_bytes - report.bundle_bytes) < 1_000 + 0.1 * report.bundle_bytes
    assert place.output().read_bytes() == place.images[2]
    assert report.made.units > 8
    assert report.made.failed == 0
    assert report.content.size == report.length


def test_deltas_in_a_bundle_need_the_very_version(edited_disk: Place, nginx: Nginx) -> None:
    place = edited_disk
    stick = place.folder / "stick" / "deltas"
    stick.parent.mkdir()
    make_bundle(DirectoryStore(place.repository), stick, [Wanted("disk", (), ("2",), deltas=True)])
    place.sync(place.repository, version="2")
    with open(place.output(), "r+b") as file:
        os.pwrite(file.fileno(), bytes(200_000), 63 * 512 + 300_000)  # part of what the deltas start from
    before = place.output().read_bytes()
    with pytest.raises(NotFound, match="does not have disk 2, from which this bundle starts"):
        place.sync(stick)
    assert place.output().read_bytes() == before
    with pytest.raises(NotFound, match="does not have disk 2"):
        place.sync(stick, "new.img")
    shutil.copytree(place.repository, nginx.root, dirs_exist_ok=True)
    report = place.sync(nginx.url, seeds=[stick], ca_cert=nginx.ca_cert)  # a server has what is lacking
    assert place.output().read_bytes() == place.images[2]
    assert report.network.bytes > 0
    assert report.resumed_bytes > 0  # what the deltas made before
    base = ("bundle", place.repository, "--image", "disk", "-o", place.folder / "x")
    assert "needs one --from" in repo(*base, "--deltas", code=2).output
    assert "needs one --from" in repo(*base, "--deltas", "--from", "1", "--from", "2", code=2).output
    lacking = repo(*base, "--deltas", "--from", "1", "--no-progress", code=4)
    assert "deltas of disk 3 from 1 (see `medv-repo delta`) not found" in lacking.output


# ---- ways to the machine


def test_parts_on_a_stick(place: Place) -> None:
    whole = place.bundle().read_bytes()
    report = place.make("x.bundle", split=100 * KIB)
    files = [Path(file) for file in report.files]
    assert [file.name for file in files] == [f"x.bundle.{n:03}" for n in range(1, len(files) + 1)]
    assert len(files) > 1
    assert b"".join(file.read_bytes() for file in files) == whole
    assert not (place.folder / "stick" / "x.bundle").exists()
    for number, named in enumerate((files[0], place.folder / "stick" / "x.bundle")):
        client("--from", named, "-o", place.output(f"{number}.img"), "-q", "--no-host-index")
        assert place.output(f"{number}.img").read_bytes() == place.images[2]
    files[1].rename(place.folder / "away")
    done = client("--from", files[0], "-o", place.output("n.img"), "--no-progress", code=6)
    assert "x.bundle.002" in done.output
    (place.folder / "away").rename(files[1])
    fewer = place.make("x.bundle", split=len(whole) - 1)
    assert sorted(os.listdir(place.folder / "stick")) == [Path(file).name for file in fewer.files]
    place.make("x.bundle", split=len(whole))
    assert os.listdir(place.folder / "stick") == ["x.bundle"]
    with pytest.raises(ValueError, match="parts of at least"):
        place.make("x.bundle", split=10)


def test_files_too_long_for_the_file_system_are_known_before(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        assert fits_in_one_file(file.fileno(), FAT_PART)
        assert not fits_in_one_file(file.fileno(), 1 << 62)
    assert FAT_PART < 1 << 32


def test_a_limit_that_shows_only_when_it_is_met(place: Place) -> None:
    (place.folder / "stick").mkdir()
    arguments = ["bundle", place.repository, "--image", "disk", "-o", place.folder / "stick" / "x", "-q"]
    command = [Path(sys.executable).with_name("medv-repo"), *arguments]
    limited = ["prlimit", "--fsize=150000", *map(str, command)]
    done = subprocess.run([program(limited[0]), *limited[1:]], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "write parts with --split" in done.stderr
    assert os.listdir(place.folder / "stick") == ["x.partial"]
    done = subprocess.run([program(limited[0]), *limited[1:], "--split", "100k"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((place.folder / "stick").glob("*.partial"))
    place.sync(place.folder / "stick" / "x")
    assert place.output().read_bytes() == place.images[2]


def test_a_read_only_medium(place: Place) -> None:
    stick = place.bundle()
    stick.chmod(0o444)
    stick.parent.chmod(0o555)
    if subprocess.run(["mount", "--bind", "-r", stick.parent, stick.parent], capture_output=True).returncode == 0:
        try:
            place.sync(stick)
        finally:
            subprocess.run(["umount", stick.parent], check=True)
    else:
        place.sync(stick)
    assert place.output().read_bytes() == place.images[2]
    assert os.listdir(stick.parent) == ["x.bundle"]
    stick.parent.chmod(0o755)


def test_bundles_beside_the_image_count(place: Place, nginx: Nginx) -> None:
    shutil.copytree(place.repository, nginx.root, dirs_exist_ok=True)
    shutil.copy(place.bundle(), place.output("prestaged.bundle"))
    place.output("other.bundle").write_bytes(b"something else")
    report = place.sync(nginx.url, ca_cert=nginx.ca_cert)
    assert place.output().read_bytes() == place.images[2]
    assert report.network.bytes < 5_000
    assert report.bundle_bytes > 100_000
    place.output("prestaged.bundle").unlink()
    place.make("p.bundle", split=100 * KIB)
    for path in (place.folder / "stick").glob("p.bundle.*"):
        shutil.copy(path, place.output(path.name))
    assert place.sync(nginx.url, "again.img", ca_cert=nginx.ca_cert).network.bytes < 5_000
    assert place.output("again.img").read_bytes() == place.images[2]


def test_threads_share_the_frames_of_a_bundle(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many want chunks of a frame at a time, it is read once."""
    wanted = read_manifest(DirectoryStore(place.repository), "disk", "3")
    read: list[Range] = []
    real = BundleStore.read_range

    def slowly(store: BundleStore, asked: Range) -> bytes:
        read.append(asked)
        time.sleep(0.02)
        return real(store, asked)

    with closing(BundleStore(place.bundle("one", versions=("1",)))) as near:
        store = NearStore(near, DirectoryStore(place.repository))
        (seed,) = bundle_seeds(store, wanted, place.folder, Watch())
        monkeypatch.setattr(BundleStore, "read_range", slowly)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: seed.read(0, memoryview(bytearray(16))), range(8)))
    assert len(read) == 1


def test_a_prestaged_version_serves_the_next_one(place: Place, nginx: Nginx) -> None:
    """A full bundle of version 2 is all that a new machine has; the server has version 3."""
    shutil.copytree(place.repository, nginx.root, dirs_exist_ok=True)
    stick = place.bundle("two", versions=("2",))
    alone = place.sync(nginx.url, "alone.img", ca_cert=nginx.ca_cert)
    before = len(nginx.served())
    report = place.sync(nginx.url, seeds=[stick], ca_cert=nginx.ca_cert)
    assert place.output().read_bytes() == place.images[2]
    assert (report.version, report.content.size) == ("3", report.length)
    assert report.network.bytes < 0.7 * alone.network.bytes
    # What both versions have is not fetched: nothing else is in between, no pack for the sake of its last frames.
    fetched = [one for one in nginx.served()[before:] if one.uri.startswith("/packs/")]
    assert fetched
    with closing(BundleStore(stick)) as bundle:
        for one in fetched:
            first, last = one.range.removeprefix("bytes=").split("-") if one.range != "-" else ("0", str(one.bytes - 1))
            assert bundle.held(Range(one.uri[1:], int(first), int(last) - int(first) + 1)) == [], one


@pytest.mark.parametrize("hurt", [False, True])
def test_other_versions_of_another_repository_are_found_by_digest(
    place: Place, nginx: Nginx, rnd: random.Random, hurt: bool
) -> None:
    """The image was published anew, with other packs; the bundle is of the old repository."""
    stick = place.bundle("two", versions=("1", "2"))
    data = bytearray(stick.read_bytes())
    begin = len(data) - 100_000
    for _ in range(3 * hurt):
        data[rnd.randrange(begin, len(data))] ^= 1
    stick.write_bytes(data)
    publish(nginx.root, write_new(place), image="fresh", version="1", kind=Kind.DISK, level=5)
    options: dict[str, Any] = {"ca_cert": nginx.ca_cert, "cache": place.folder / "cache"}
    alone = sync(nginx.url, "fresh", output=place.output("alone.img"), **options)
    foreseen = plan(nginx.url, "fresh", output=place.output("new.img"), seeds=[stick], **options)
    report = sync(nginx.url, "fresh", output=place.output("new.img"), seeds=[stick], **options)
    assert place.output("new.img").read_bytes() == place.images[2]
    assert report.content.size == report.length
    assert report.content.seed > 200_000
    assert report.network.bytes < (0.9 if hurt else 0.7) * alone.network.bytes
    assert report.rejected_chunks == 0 or hurt
    assert hurt or abs(foreseen.fetch_bytes - report.network.bytes) < 20_000
    assert leftovers(place.output("new.img")) == set()


def write_new(place: Place) -> Path:
    path = place.folder / "new-source.img"
    write_sparse(path, place.images[2])
    return path


def test_a_machine_that_is_ahead_stays_there(place: Place) -> None:
    stick = place.bundle("old", versions=("2",))
    place.sync(place.repository)
    report = place.sync(stick)
    assert (report.wrote, report.version, report.content.size) == ("nothing", "3", report.length)
    assert "newer than what the bundle has" in report.warnings[0]
    assert place.output().read_bytes() == place.images[2]
    assert place.sync(stick, version="2").version == "2"
    assert place.output().read_bytes() == place.images[1]
    assert place.sync(stick).wrote == "nothing"
    assert place.sync(place.bundle("new")).version == "3"


# ---- damage


def test_what_is_intact_serves_beside_a_server(place: Place, nginx: Nginx, rnd: random.Random) -> None:
    shutil.copytree(place.repository, nginx.root, dirs_exist_ok=True)
    whole = place.bundle().read_bytes()
    alone = place.sync(nginx.url, "alone.img", ca_cert=nginx.ca_cert).network.bytes
    begin = HEADER_SIZE + Header.from_bytes(whole).directory
    for number in range(6):
        data = bytearray(whole)
        if number % 2:
            del data[rnd.randrange((begin + len(whole)) // 2, len(whole)) :]
        for _ in range(3):
            data[rnd.randrange(begin, len(data))] ^= rnd.randrange(1, 256)
        (place.folder / "stick" / "hurt").write_bytes(data)
        report = place.sync(nginx.url, f"{number}.img", seeds=[place.folder / "stick" / "hurt"], ca_cert=nginx.ca_cert)
        assert place.output(f"{number}.img").read_bytes() == place.images[2]
        assert report.network.bytes < 0.9 * alone
        assert report.content.size == report.length
    for data in (whole[: begin - 1], whole[:3] + b"?" + whole[4:], whole[:100] + b"?" + whole[101:]):
        (place.folder / "stick" / "hurt").write_bytes(data)  # nothing of it can be used
        place.output("n.img").unlink(missing_ok=True)
        shutil.rmtree(place.output("n.img.medv"), ignore_errors=True)
        place.sync(nginx.url, "n.img", seeds=[place.folder / "stick" / "hurt"], ca_cert=nginx.ca_cert)
        assert place.output("n.img").read_bytes() == place.images[2]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 30), st.integers(1, 255), st.booleans())
def test_a_damaged_bundle_alone_never_makes_a_wrong_image(place: Place, at: int, flip: int, cut: bool) -> None:
    path = place.folder / "stick" / "x.bundle"
    whole = (path if path.exists() else place.bundle()).read_bytes()
    data = bytearray(whole)
    data[at % len(data)] ^= flip
    path.with_name("hurt").write_bytes(data[: at % len(data)] if cut else data)
    shutil.rmtree(place.output().parent)
    try:
        place.sync(path.with_name("hurt"))
    except (FormatError, IntegrityError, NotFound):
        assert not place.output().exists()
    else:
        assert place.output().read_bytes() == place.images[2]


def test_damage_of_the_repository_gets_into_no_bundle(place: Place, rnd: random.Random) -> None:
    good = place.bundle().read_bytes()
    packs = sorted((place.repository / "packs").rglob("*.bin"))
    files = [*packs[:3], place.repository / "images/disk/3/tables.bin", place.repository / "images/disk/3/keys.bin"]
    for path in files:
        sound = path.read_bytes()
        at = rnd.randrange(16, len(sound))
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        try:
            assert place.bundle("bad").read_bytes() == good  # what is damaged is not needed
            (place.folder / "stick" / "bad").unlink()
        except (IntegrityError, FormatError):
            assert not (place.folder / "stick" / "bad").exists()
        path.write_bytes(sound)
    with closing(BundleStore(place.folder / "stick" / "x.bundle")) as store:
        pack = place.repository / store.directory.names[-1]
    pack.rename(pack.with_suffix(".away"))
    with pytest.raises(NotFound):
        place.bundle("lacking")


def test_what_arrives_damaged_is_asked_for_again(place: Place) -> None:
    good = place.bundle().read_bytes()
    objects = {
        str(path.relative_to(place.repository)): path.read_bytes()
        for path in place.repository.rglob("*")
        if path.is_file() and ".trimtransfer" not in path.parts
    }
    with closing(BundleStore(place.folder / "stick" / "x.bundle")) as store:
        names = [*store.directory.names[-2:], "images/disk/3/tables.bin"]
    asked: Counter[str] = Counter()

    def script(request: Request, number: int) -> Fault | None:
        name = request.target.lstrip("/")
        asked[name] += 1
        if name in names and asked[name] > 1:
            server.objects[name] = objects[name]
        return None

    with BadServer(objects, script) as server:
        for name in names:  # all of it: which parts of a pack go into the bundle is a matter of chance
            server.objects[name] = bytes(byte ^ 1 for byte in objects[name])
        with closing(HttpStore(server.url, connections=1)) as store:
            make_bundle(store, place.folder / "stick" / "y", [Wanted("disk")])
    assert (place.folder / "stick" / "y").read_bytes() == good
    assert asked[names[0]] > 1


def test_a_bundle_that_lacks_what_it_promises_is_found_out(place: Place) -> None:
    place.make("part", "2")
    data = (place.folder / "stick" / "part").read_bytes()
    end = HEADER_SIZE + Header.from_bytes(data).directory
    found = Directory.from_bytes(data[:end])
    whole = replace(found, versions=(BundleVersion("disk", "3"),))
    (place.folder / "stick" / "part").write_bytes(whole.to_bytes() + data[end:])
    with closing(BundleStore(place.folder / "stick" / "part")) as store:
        (damage,) = check_bundle(store).damage
        assert damage.name == manifest_name("disk", "3")
        assert "packs/" in damage.problem
        assert check_bundle(store, quick=True).damage == (damage,)


# ---- interrupted


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_a_sync_from_a_stick_that_is_killed_goes_on(place: Place, rnd: random.Random, write: str) -> None:
    stick = place.bundle("up", "2")
    with Victim() as victim:
        for _ in range(6):
            shutil.rmtree(place.output().parent)
            place.sync(place.repository, version="2")
            total = 400
            for _ in range(2):
                ended = victim.sync(stick, "disk", output=place.output(), write=write, kill_at=rnd.randrange(total))
                assert ended.error is None
                total = ended.calls or total
            assert ended.killed or ended.result["version"] == "3"
            ended = victim.sync(stick, "disk", output=place.output(), write=write)
            assert ended.error is None
            assert place.output().read_bytes() == place.images[2]
            assert leftovers(place.output()) == set()
            assert ended.result["network"]["bytes"] == 0


@pytest.mark.parametrize("split", [None, 100 * KIB])
def test_making_a_bundle_goes_on_where_it_stopped(place: Place, split: int | None) -> None:
    good = place.make("good", split=split)
    stop = threading.Event()
    for share in (0.3, 0.6, 0.9):
        stop.clear()

        def progress(phase: str, done: int, total: int, share: float = share) -> None:
            if phase == "bundle" and done > share * total:
                stop.set()

        with pytest.raises(Cancelled):
            place.make("x", split=split, progress=progress, cancel=stop)
        names = [name for name in os.listdir(place.folder / "stick") if name.startswith("x")]
        assert names
        assert all(name.endswith(".partial") for name in names)
    report = place.make("x", split=split)
    assert report.resumed_bytes > 0.2 * report.pack_bytes
    assert report.read_bytes < good.read_bytes - report.resumed_bytes + 100_000
    for one, other in zip(good.files, report.files, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()
    assert not [name for name in os.listdir(place.folder / "stick") if name.endswith(".partial")]


def test_an_unfinished_one_of_something_else_is_written_over(place: Place) -> None:
    good = place.bundle("good").read_bytes()
    (place.folder / "stick" / "x.partial").write_bytes(os.urandom(2 * len(good)))
    assert place.bundle("x").read_bytes() == good


def test_a_bundle_is_replaced_whole_or_not_at_all(place: Place) -> None:
    path = place.bundle("x", versions=("1",))
    old = path.read_bytes()
    with open(path, "rb") as reader:
        place.make("x")
        assert reader.read() == old
    assert path.read_bytes() != old
    with closing(BundleStore(path)) as store:
        pack = place.repository / store.directory.names[-1]
    pack.rename(pack.with_suffix(".away"))
    now = path.read_bytes()
    with pytest.raises(NotFound):
        place.make("x")
    assert path.read_bytes() == now


def test_outputs_that_are_refused(place: Place) -> None:
    stick = place.folder / "stick"
    stick.mkdir()
    (stick / "file").write_bytes(b"mine")
    (stick / "link").symlink_to(stick / "nothing")
    (stick / "part.001").write_bytes(b"mine")
    (stick / "folder").mkdir()
    before = sorted(stick.rglob("*"))
    for name in ("file", "link", "part", "folder"):
        with pytest.raises(TargetRefused, match="no bundle"):
            place.make(name)
    assert sorted(stick.rglob("*")) == before
    with open(stick / "x.partial", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Locked):
            place.make("x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with filesystems.small_disk(tmp_path / "stick", "400k") as folder:
        yield folder


def test_a_stick_that_is_too_small_is_refused_before_anything_is_written(place: Place, small_disk: Path) -> None:
    with pytest.raises(NoSpace, match="choose another disk") as refused:
        place.make("x")
    assert refused.value.needed > 400 * KIB
    assert sum(path.stat().st_blocks for path in small_disk.iterdir()) == 0


def test_a_bundle_of_another_repository_is_of_no_use_and_no_harm(place: Place, rng: np.random.Generator) -> None:
    """The same names of image and versions, other content: the server's manifest decides."""
    other = Place(place.folder / "elsewhere", make_images(rng, versions=3))
    other.folder.mkdir()
    publish_all(other.repository, other.images)
    foreign = other.bundle()
    report = place.sync(place.repository, seeds=[foreign])
    assert place.output().read_bytes() == place.images[2]
    assert report.content.size == report.length
    assert (place.repository / manifest_name("disk", "3")).exists()
