"""Sticks as they are bought: bundles on FAT and exFAT, and images synced to them. Real file systems, mounted by root.

They have no holes, no links, no nameless files, no modes; FAT32 takes no file of 4 GiB; times count by two seconds,
names are the same in upper and lower case, and files have other numbers each time that the disk is mounted. Where the
kernel at hand knows no FAT, these tests run under one that does: Linux as a program (``user-mode-linux``).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import syncing
from filesystems import MIB, fill, mounted, program, run, sized
from syncing import Victim, leftovers, make_images

from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.verify import verify_image
from trimtransfer.bundlestore import BundleStore
from trimtransfer.chunk import Kind
from trimtransfer.errors import NoSpace, TargetRefused
from trimtransfer.repository.bundlecheck import check_bundle
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import FAT_PART, BundleReport, _Writer, fits_in_one_file, make_bundle
from trimtransfer.repository.publish import publish
from trimtransfer.store import DirectoryStore

GIB = 1 << 30
KILLS = 8
IN_UML = os.environ.get("TRIMTRANSFER_UML") == "1"
MODULES = (
    "drivers/block/loop", "fs/nls/nls_cp437", "fs/nls/nls_ascii", "fs/nls/nls_iso8859-1", "fs/nls/nls_utf8",
    "fs/fat/fat", "fs/fat/vfat",
)  # fmt: skip


@dataclass
class Stick:
    """A file system in a file, and where it is mounted."""

    kind: str
    image: Path
    folder: Path

    @contextmanager
    def again(self) -> Iterator[None]:
        """Unmount it meanwhile."""
        run("umount", self.folder)
        try:
            yield
        finally:
            run("mount", "-t", self.kind, "-o", "loop,umask=022", self.image, self.folder)


def known_to_the_kernel(kind: str) -> bool:
    return f"\t{kind}\n" in Path("/proc/filesystems").read_text()


@pytest.fixture(params=["vfat", "exfat"])
def stick(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stick]:
    """An empty stick of 64 MiB; exFAT also by a driver in user space."""
    kind = str(request.param)
    if kind == "exfat" and not known_to_the_kernel(kind):
        program("mount.exfat-fuse")
        kind = "exfat-fuse"
    image = sized(tmp_path / "stick", 64 * MIB)
    run(*(("mkfs.vfat", "-F", "32") if kind == "vfat" else ("mkfs.exfat",)), image)
    with mounted(kind, image, "umask=022") as folder:
        yield Stick(kind, image, folder)


class Place(syncing.Place):
    """A repository of two versions of a disk."""

    def bundle(self, path: Path, split: int | None = None) -> BundleReport:
        """Bundle the newest version."""
        return make_bundle(DirectoryStore(self.repository), path, [Wanted("disk", ())], split=split)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Place:
    return Place(tmp_path, make_images(rng))


@pytest.mark.parametrize("split", [None, 1 << 18])
def test_a_bundle_on_a_stick(place: Place, stick: Stick, split: int | None) -> None:
    report = place.bundle(stick.folder / "disk.bundle", split)
    assert (len(report.files) > 1) == bool(split)
    with stick.again():
        pass
    with closing(BundleStore(stick.folder / "disk.bundle")) as store:
        assert check_bundle(store).damage == ()
    output = place.folder / "out.img"
    sync(stick.folder / "disk.bundle", "disk", output=output, cache=place.folder / "cache")
    assert output.read_bytes() == place.images[1]
    assert place.bundle(stick.folder / "disk.bundle", split).length == report.length  # over the one that is there
    left = [path for path in stick.folder.iterdir() if not path.name.startswith(".fuse_hidden")]
    assert sorted(map(str, left)) == sorted(report.files)


def test_what_fat_takes_no_file_of_comes_in_parts(stick: Stick) -> None:
    with open(stick.folder / "x", "wb") as file:
        assert fits_in_one_file(file.fileno(), FAT_PART)
        assert fits_in_one_file(file.fileno(), 5 * GIB) == (stick.kind != "vfat")
    with pytest.raises(NoSpace, match="another disk") as refused:
        _Writer(stick.folder / "long.bundle", 5 * GIB, None)
    assert (refused.value.needed or 0) > 5 * GIB - 64 * MIB
    found = sorted(path.name for path in stick.folder.glob("long*"))
    assert found == [f"long.bundle{part}.partial" for part in ([".001", ".002"] if stick.kind == "vfat" else [""])]
    assert sum(path.stat().st_blocks for path in stick.folder.glob("long*")) == 0


def test_a_stick_that_becomes_full(place: Place, stick: Stick) -> None:
    """What was written is kept; the same command goes on when there is room, and makes the same bytes."""
    whole = place.bundle(place.folder / "whole.bundle")
    path, calls = stick.folder / "disk.bundle", 0

    def meanwhile(phase: str, done: int, total: int) -> None:
        nonlocal calls
        calls += phase == "bundle" and done > total // 2
        if calls == 1:
            fill(stick.folder, leave=0)

    fill(stick.folder, leave=whole.length + 3 * MIB)
    wanted = [Wanted("disk", ())]
    try:
        make_bundle(DirectoryStore(place.repository), path, wanted, progress=meanwhile)
    except NoSpace:
        assert not path.exists()
        (stick.folder / "ballast").unlink()
        assert make_bundle(DirectoryStore(place.repository), path, wanted).resumed_bytes > 0
    assert path.read_bytes() == (place.folder / "whole.bundle").read_bytes()


def test_an_image_on_a_stick(place: Place, stick: Stick) -> None:
    output, options = stick.folder / "disk.img", {"cache": place.folder / "cache"}
    sync(place.repository, "disk", output=output, version="1", **options)  # type: ignore[arg-type]
    assert output.read_bytes() == place.images[0]
    preview = plan(place.repository, "disk", output=output, **options)  # type: ignore[arg-type]
    assert preview.would_write == "new" or stick.kind == "exfat-fuse"
    report = sync(place.repository, "disk", output=output, **options)  # type: ignore[arg-type]
    assert report.wrote == "new"
    if preview.would_write == "new":  # in place, what stays where it is counts otherwise
        assert report.content == preview.content
    assert output.read_bytes() == place.images[1]
    assert leftovers(output) == set()
    assert verify_image(output).ok
    again = sync(place.repository, "disk", output=output, **options)  # type: ignore[arg-type]
    assert (again.wrote, again.network.requests) == ("nothing", 1)
    with stick.again():
        pass  # numbers of files are others now: the image is looked at, and right
    assert sync(place.repository, "disk", output=output, **options).wrote == "nothing"  # type: ignore[arg-type]
    with pytest.raises(TargetRefused, match="in place safely"):
        sync(place.repository, "disk", output=output, version="1", write="in-place", **options)  # type: ignore[arg-type]
    assert output.read_bytes() == place.images[1]


def test_killed_at_any_moment(place: Place, stick: Stick, rnd: random.Random) -> None:
    output, cache = stick.folder / "disk.img", place.folder / "cache"
    with Victim() as victim:
        assert victim.sync(place.repository, "disk", output=output, cache=cache, version="1").error is None
        calls = victim.sync(place.repository, "disk", output=place.folder / "other.img", cache=cache).calls
        for kill_at in sorted(rnd.sample(range(calls), min(KILLS, calls))):
            ended = victim.sync(place.repository, "disk", output=output, cache=cache, kill_at=kill_at)
            assert output.read_bytes() in place.images
            if not ended.killed:
                break
            if rnd.random() < 0.5:
                with stick.again():
                    pass
        assert victim.sync(place.repository, "disk", output=output, cache=cache).error is None
    assert output.read_bytes() == place.images[1]
    assert verify_image(output).ok


def test_a_file_has_all_its_room_at_once(place: Place, stick: Stick) -> None:
    """There are no holes, so zeros count: what does not fit is refused before anything is fetched, and fits then."""
    output, options, seen = stick.folder / "disk.img", {"cache": place.folder / "cache"}, set[str]()
    fill(stick.folder, leave=len(place.images[1]) - 64_000)
    with pytest.raises(NoSpace, match="--format qcow2"):
        sync(place.repository, "disk", output=output, progress=lambda phase, *_: seen.add(phase), **options)  # type: ignore[arg-type]
    assert not {"fetch", "reuse"} & seen
    if stick.kind != "exfat-fuse":
        assert len(plan(place.repository, "disk", output=output, **options).warnings) == 1  # type: ignore[arg-type]
    (stick.folder / "ballast").unlink()
    fill(stick.folder, leave=len(place.images[1]) + 3 * MIB)
    assert plan(place.repository, "disk", output=output, **options).warnings == ()  # type: ignore[arg-type]
    sync(place.repository, "disk", output=output, **options)  # type: ignore[arg-type]
    assert output.read_bytes() == place.images[1]


def test_an_image_that_is_too_long(place: Place, stick: Stick, rnd: random.Random) -> None:
    """5 GiB, nearly all zeros: FAT32 takes no such file, and no stick of 64 MiB; in qcow2 there are no zeros."""
    with open(sized(place.folder / "long.img", 5 * GIB), "r+b") as file:
        file.seek(3 * GIB)
        file.write(rnd.randbytes(MIB))
    publish(place.repository, place.folder / "long.img", image="long", version="1", kind=Kind.DISK, level=1)
    options = {"cache": place.folder / "cache"}
    with pytest.raises((TargetRefused, NoSpace), match="--format qcow2") as refused:
        sync(place.repository, "long", output=stick.folder / "long.img", **options)  # type: ignore[arg-type]
    assert sum(path.stat().st_size for path in stick.folder.rglob("*.img")) == 0
    assert refused.value.exit_code in (1, 7)
    output = stick.folder / "long.qcow2"
    sync(place.repository, "long", output=output, format="qcow2", **options)  # type: ignore[arg-type]
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", place.folder / "long.img", output)


def test_names_are_the_same_in_upper_and_lower_case(place: Place, stick: Stick) -> None:
    options = {"cache": place.folder / "cache"}
    sync(place.repository, "disk", output=stick.folder / "Disk.IMG", **options)  # type: ignore[arg-type]
    assert sync(place.repository, "disk", output=stick.folder / "disk.img", **options).wrote == "nothing"  # type: ignore[arg-type]
    sources = [place.folder / "a.img", place.folder / "b.img"]
    for path, data in zip(sources, place.images, strict=True):
        path.write_bytes(data)
    publish(place.repository, sources[0], disks=sources[1:], image="two", version="1", kind=Kind.DISK, level=1)
    with pytest.raises(TargetRefused, match="two disks"):
        sync(place.repository, "two", output=stick.folder / "X.img", disk_outputs=[stick.folder / "x.img"], **options)  # type: ignore[arg-type]
    assert not (stick.folder / "X.img").exists()


def test_indexes_on_a_stick(place: Place, stick: Stick) -> None:
    """A cache there is slow, and serves."""
    seed = place.folder / "seeds"
    seed.mkdir()
    (seed / "old.img").write_bytes(place.images[0])
    for number in range(2):
        output = place.folder / f"{number}.img"
        report = sync(place.repository, "disk", output=output, seeds=[seed], cache=stick.folder / "cache")
        assert report.content.seed > 0
        assert output.read_bytes() == place.images[1]


@pytest.mark.slow
def test_under_a_kernel_that_knows_fat(tmp_path: Path) -> None:
    """Run all of the above under Linux as a program, where the kernel at hand knows no FAT."""
    if IN_UML or known_to_the_kernel("vfat") or os.getuid():
        pytest.skip("the tests run under this kernel, or need root")
    linux, insmod = program("linux.uml"), program("insmod")
    kernels = sorted(Path("/usr/lib/uml/modules").glob("*/kernel"))
    if not kernels or not kernels[-1].joinpath("fs/fat/vfat.ko").exists():
        pytest.skip("user-mode-linux has no module vfat")
    lines = ["#!/bin/sh", "mount -t proc proc /proc", "mount -t sysfs sys /sys", "mount -t devtmpfs dev /dev"]
    lines += [f"{insmod} {kernels[-1] / module}.ko" for module in MODULES]
    pytest_in = f"{sys.executable} -m pytest -q -p no:cacheprovider -o addopts= tests/test_fat.py -rs -k vfat"
    lines += [
        f"export PATH={os.environ['PATH']}:/usr/sbin:/sbin HOME={tmp_path} TMPDIR={tmp_path}",
        f"export PYTHONPATH={os.pathsep.join(filter(None, sys.path))} TRIMTRANSFER_UML=1",
        f"cd {Path(__file__).parent.parent}",
        f"{pytest_in} > {tmp_path}/log 2>&1",
        f"echo $? > {tmp_path}/code",
        "exec /sbin/halt -f",
    ]
    script = tmp_path / "init"
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)
    command = [linux, "quiet", "mem=1G", "rootfstype=hostfs", "rootflags=/", "rw", f"init={script}", "con=null"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=900)
    if not (tmp_path / "log").exists():  # not every machine lets a program trace another
        pytest.skip(f"user-mode-linux does not run here: {ran.stderr[-200:].decode(errors='replace')}")
    log = (tmp_path / "log").read_text()
    assert (tmp_path / "code").exists(), log
    assert (tmp_path / "code").read_text().strip() == "0", log
    assert " passed" in log
    assert " skipped" not in log, log
