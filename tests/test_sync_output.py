"""What is written to: refused outputs, block devices, file systems that share blocks; and the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from syncing import leftovers, make_images, publish_all, write_sparse

from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.verify import verify_image
from trimtransfer.errors import Cancelled, FormatError, TargetRefused
from trimtransfer.trust.options import Trusting

SECTOR = 512


class Place:
    """A repository of two versions."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        self.folder, self.images = folder, images
        self.repository = folder / "repository"
        publish_all(self.repository, images)

    def sync(self, output: Path, **options: Any) -> Any:
        """Sync an output."""
        return sync(self.repository, "disk", output=output, cache=self.folder / "cache", **options)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Place:
    return Place(tmp_path, make_images(rng))


# ---- refused


def test_outputs_that_are_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "real.img").write_bytes(b"real")
    (tmp_path / "link.img").symlink_to(tmp_path / "real.img")
    (tmp_path / "dangling.img").symlink_to(tmp_path / "nothing.img")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    before = sorted(tmp_path.rglob("*"))
    for name, reason in (
        ("folder", "directory"),
        ("link.img", "symbolic link"),
        ("dangling.img", "symbolic link"),
        ("fifo", "neither a file nor a block device"),
        ("nowhere/disk.img", "no directory"),
        ("real.img/disk.img", "directory"),
        ("open/disk.img", "everybody"),
    ):
        with pytest.raises(TargetRefused, match=reason):
            place.sync(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "real.img").read_bytes() == b"real"


def test_arguments_that_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(TargetRefused):
        place.sync(Path("/"))
    with pytest.raises(FormatError):
        sync(place.repository, "../disk")
    with pytest.raises(FormatError):
        place.sync(tmp_path / "x", version="a/b")
    with pytest.raises(ValueError, match="write="):
        place.sync(tmp_path / "x", write="sideways")
    with pytest.raises(ValueError, match="ftp"):
        sync("ftp://host/", "disk", output=tmp_path / "x")


# ---- devices


def attach(path: Path) -> str | None:
    """Return a loop device on a file, or None where that is not possible."""
    if shutil.which("losetup") is None:
        return None
    done = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A block device of 8 MiB and the file behind it, or a skipped test."""
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(range(256)) * (8 << 12))
    name = attach(backing)
    if name is None:
        pytest.skip("attaching a loop device needs root and losetup")
    yield Path(name), backing
    subprocess.run(["losetup", "-d", name], check=True)


def test_a_device(place: Place, device: tuple[Path, Path], tmp_path: Path) -> None:
    """First written directly, then by way of a redo file; its length stays, zeros are really written."""
    path, backing = device
    rest = backing.read_bytes()[len(place.images[0]) :]
    side = tmp_path / "side"
    first = place.sync(path, version="1", side=side)
    assert first.wrote == "in-place"
    assert backing.read_bytes() == place.images[0] + rest
    update = place.sync(path, side=side)
    assert update.content.seed > 0
    assert update.content.fetched < first.content.fetched
    assert backing.read_bytes()[: len(place.images[1])] == place.images[1]
    assert verify_image(path, side=side).ok
    again = place.sync(path, side=side)
    assert (again.wrote, again.content.fetched) == ("nothing", 0)
    assert sorted(os.listdir(side)) == ["lock", "manifest.bin", "state.json", "tables.bin"]
    with pytest.raises(TargetRefused, match="only be written in place"):
        place.sync(path, side=side, version="1", write="new")


def test_a_device_that_is_too_small_or_mounted(
    tmp_path: Path, rng: np.random.Generator, device: tuple[Path, Path]
) -> None:
    path, backing = device
    before = backing.read_bytes()
    large = Place(tmp_path, [bytes(make_images(rng, versions=1)[0]) + rng.bytes(4 << 20)])
    with pytest.raises(TargetRefused, match="are needed"):
        large.sync(path, side=tmp_path / "side")
    assert backing.read_bytes() == before
    with pytest.raises(TargetRefused, match="loop device"):
        large.sync(backing)
    subprocess.run(["mke2fs", "-q", path], check=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", path, mounted], check=True)
    try:
        with pytest.raises(TargetRefused, match="mounted"):
            large.sync(path, side=tmp_path / "side")
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_link_to_a_device(place: Place, device: tuple[Path, Path], tmp_path: Path) -> None:
    path, backing = device
    (tmp_path / "by-name").symlink_to(path)
    place.sync(tmp_path / "by-name", side=tmp_path / "side")
    assert backing.read_bytes()[: len(place.images[1])] == place.images[1]
    assert (tmp_path / "by-name").is_symlink()


# ---- users


@pytest.mark.parametrize("interrupted", [False, True], ids=["straight", "interrupted"])
@pytest.mark.parametrize("write", ["new", "in-place"])
def test_an_ordinary_user_owns_a_read_only_image(place: Place, write: str, interrupted: bool) -> None:
    """The image is marked read-only; its owner's next sync must not stumble over that, nor his interrupted ones."""
    place.sync(place.folder / "warm.img")  # imports everything while this user may read it
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(place.repository, Path(folder) / "repository", dirs_exist_ok=True)
        subprocess.run(["chown", "-R", "65534:65534", folder], check=True)
        os.seteuid(65534)
        try:
            options: dict[str, Any] = {"output": Path(folder) / "disk.img", "cache": Path(folder) / "cache"}
            options["trusting"] = Trusting(state=Path(folder) / "state")
            sync(Path(folder) / "repository", "disk", version="1", **options)
            if interrupted:  # a run that is stopped early has made the image writable already, or not: both must do
                with pytest.raises(Cancelled):
                    sync(Path(folder) / "repository", "disk", write=write, cancel=set_event(), **options)
            report = sync(Path(folder) / "repository", "disk", write=write, **options)
            assert report.wrote == write
            assert report.content.unchanged > 0
            assert options["output"].read_bytes() == place.images[1]
            assert os.stat(options["output"]).st_mode & 0o777 == 0o444
        finally:
            os.seteuid(0)


def test_another_users_image_is_refused_before_anything_is_fetched(place: Place) -> None:
    place.sync(place.folder / "warm.img")
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(place.repository, Path(folder) / "repository", dirs_exist_ok=True)
        subprocess.run(["chown", "-R", "65534:65534", folder], check=True)
        options: dict[str, Any] = {"output": Path(folder) / "disk.img", "cache": Path(folder) / "cache"}
        options["trusting"] = Trusting(state=Path(folder) / "state")
        os.seteuid(65534)
        try:
            sync(Path(folder) / "repository", "disk", version="1", **options)
            before = options["output"].read_bytes()
            os.seteuid(0)
            os.chown(options["output"], 0, 0)
            os.seteuid(65534)
            with pytest.raises(PermissionError):
                sync(Path(folder) / "repository", "disk", write="in-place", **options)
        finally:
            os.seteuid(0)
        assert options["output"].read_bytes() == before
        assert not (Path(folder) / "disk.img.medv" / "redo").exists()


def set_event() -> threading.Event:
    """Return an event that is set."""
    event = threading.Event()
    event.set()
    return event


# ---- file systems that share blocks


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A file system that can clone files, or a skipped test."""
    image, folder = tmp_path / "xfs", tmp_path / "shared"
    folder.mkdir()
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("no mkfs.xfs (Debian: apt install xfsprogs)")
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def used_blocks(path: Path) -> int:
    """Return the bytes in use on a file system."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_clone_is_written_to_where_files_can_share_blocks(place: Place, shared: Path) -> None:
    output = shared / "disk.img"
    place.sync(output, version="1")
    old = output.read_bytes()
    os.link(output, shared / "kept")
    before = used_blocks(shared)
    report = place.sync(output)
    assert report.wrote == "new"
    assert output.read_bytes() == place.images[1]
    assert (shared / "kept").read_bytes() == old == place.images[0]
    assert used_blocks(shared) - before < report.content.fetched + report.content.seed + (1 << 20)
    assert leftovers(output) == set()
    os.utime(output)
    assert place.sync(output).wrote == "nothing"
    output.chmod(0o644)
    write_sparse(output, place.images[0])
    place.sync(output)
    assert output.read_bytes() == place.images[1]


# ---- commands


def run(*arguments: object, code: int = 0, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code."""
    command = [sys.executable, "-m", "trimtransfer", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_commands(place: Place, tmp_path: Path) -> None:
    """Sync, plan and verify: one JSON object, progress on standard error, the documented exit codes."""
    cache = ("--cache", tmp_path / "cache")
    preview = json.loads(run("plan", place.repository, "disk", *cache, "--json", folder=tmp_path).stdout)
    assert preview["fetch"]["bytes"] > 0
    done = run("sync", place.repository, "disk", *cache, "--json", "--version", "1", folder=tmp_path)
    report = json.loads(done.stdout)
    assert sum(report["content"].values()) == report["length"] == len(place.images[0])
    assert {"bytes", "requests"} <= set(report["network"])
    told = [json.loads(line) for line in done.stderr.splitlines()]
    (warning,) = [one["message"] for one in told if one["event"] != "progress"]
    assert warning.startswith("nobody vouches for disk 1")
    assert (tmp_path / "disk.img").read_bytes() == place.images[0]
    text = run("sync", place.repository, "disk", *cache, folder=tmp_path)
    assert "disk.img is now disk 2" in text.stdout
    assert "fetched" in text.stdout
    assert "already" in run("sync", place.repository, "disk", *cache, folder=tmp_path).stdout
    assert run("sync", place.repository, "disk", *cache, "-q", folder=tmp_path).stdout == ""
    assert "is disk 2" in run("verify", "disk.img", folder=tmp_path).stdout
    (tmp_path / "disk.img").chmod(0o644)
    os.truncate(tmp_path / "disk.img", 100_000)
    assert "NOT" in run("verify", "disk.img", folder=tmp_path, code=6).stdout
    run("sync", place.repository, "disk", *cache, folder=tmp_path)
    assert (tmp_path / "disk.img").read_bytes() == place.images[1]


def test_exit_codes(place: Place, tmp_path: Path) -> None:
    failed = run("sync", place.repository, "other", "--json", code=4, folder=tmp_path)
    assert json.loads(failed.stdout)["error"]["exit_code"] == 4
    assert json.loads(failed.stderr)["message"].startswith("image other not found")
    run("sync", "http://localhost:1/", "disk", "--version", "a b", code=2, folder=tmp_path)
    run("sync", place.repository, "disk", "-o", tmp_path, code=1, folder=tmp_path)
    run("sync", place.repository, "disk", "--limit-rate", "fast", code=2, folder=tmp_path)
    run("sync", place.repository, code=2, folder=tmp_path)
    run("verify", place.repository / "images" / "disk" / "head.json", code=4, folder=tmp_path)
    assert [path.name for path in tmp_path.glob("*.medv")] == []


def test_host_files_from_the_command(place: Place, tmp_path: Path) -> None:
    """``--host-index`` uses the index in the cache; ``--no-host-index`` does not."""
    cache = ("--cache", tmp_path / "cache", "--json")
    with tempfile.TemporaryDirectory() as library:  # the index takes only what everybody may read, as this place is
        Path(library).chmod(0o755)
        write_sparse(Path(library) / "program", place.images[1])
        run("index", library, "--no-idle", *cache[:2])
        sync_with_index(place, tmp_path, *cache)


def sync_with_index(place: Place, tmp_path: Path, *cache: object) -> None:
    """Sync with, without and by default with the index in the cache."""
    for option, used in (("--host-index", True), ("--no-host-index", False), (None, True)):
        output = tmp_path / f"disk{option}.img"
        done = run("sync", place.repository, "disk", "-o", output, *cache, *([option] if option else []))
        assert (json.loads(done.stdout)["content"]["host"] > 0) is used
        assert output.read_bytes() == place.images[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "--help"], "what a sync would fetch"),
        (["verify", "--help"], "Compare an image"),
        (["index", "--help"], "index"),
        (["--help"], "COMMAND"),
        (["https://host/", "disk", "--help"], "--limit-rate"),
        (["--json", "https://host/", "disk", "--help"], "--limit-rate"),
    ],
)
def test_names_of_commands_win_over_urls(arguments: list[str], expected: str) -> None:
    from click.testing import CliRunner

    from trimtransfer.cli.sync import medv_sync

    done = CliRunner().invoke(medv_sync, arguments)
    assert (done.exit_code, expected in done.output) == (0, True)
