"""Errors name what went wrong in the words of whoever asked, and a remedy; their exit codes are those of the README."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from disks import qemu_img
from filesystems import MIB, run, sized
from syncing import make_images, publish_all, write_sparse

from medv.cli import medv_repo, medv_sync
from trimtransfer.bundlestore import BundleStore
from trimtransfer.disk.source import open_disk
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import make_bundle
from trimtransfer.repository.trim import trim_image
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch


@pytest.fixture
def repository(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Versions 1 and 2 of an image ``disk``."""
    publish_all(tmp_path / "r", make_images(rng))
    return tmp_path / "r"


def fails(command: Any, code: int, *arguments: object) -> str:
    """Run a command that fails with this exit code; return what it says."""
    done = CliRunner().invoke(command, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done.stderr


NO_IMAGE = ("image nope not found (", "; there is: disk")
NO_VERSION = ("version 7 of image disk not found (", "; there is: 1, 2")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("diff", "r", "--image", "nope", "1", "2"), NO_IMAGE),
        (("diff", "r", "--image", "disk", "1", "7"), NO_VERSION),
        (("diff", "r", "--image", "disk", "7", "1"), NO_VERSION),
        (("delta", "r", "--image", "nope", "--from", "1"), NO_IMAGE),
        (("delta", "r", "--image", "disk", "--from", "7"), NO_VERSION),
        (("delta", "r", "--image", "disk", "--solid", "--to", "7"), NO_VERSION),
        (("bundle", "r", "--image", "nope", "-o", "x.bundle"), NO_IMAGE),
        (("bundle", "r", "--image", "disk", "--version", "7", "-o", "x.bundle"), NO_VERSION),
        (("bundle", "r", "--image", "disk", "--from", "7", "-o", "x.bundle"), NO_VERSION),
        (("show", "r", "nope"), NO_IMAGE),
        (("show", "r", "disk", "7"), NO_VERSION),
        (("publish", "r", "file", "--image", "disk", "--version", "3", "--parent", "7"), NO_VERSION),
        (("publish", "r", "file", "--image", "disk", "--version", "3", "--like", "nope"), NO_IMAGE),
        (("estimate", "r", "file", "--image", "disk", "--parent", "7"), NO_VERSION),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, tuple) else "",
)
def test_what_is_not_there_is_named(
    repository: Path, arguments: tuple[str, ...], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    Path("file").write_bytes(b"x")
    text = fails(medv_repo, 4, *arguments)
    assert all(part in text for part in expected)
    assert ".bin" not in text
    assert "head.json not found" not in text


def test_a_sync_names_what_there_is(repository: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "disk.img")
    assert "; there is: disk" in fails(medv_sync, 4, repository, "nope", *output)
    assert "; there is: 1, 2" in fails(medv_sync, 4, repository, "disk", "--version", "7", *output)


def test_many_names_are_not_all_listed() -> None:
    text = str(NotFound("image x", "url", [f"image{number}" for number in range(100)]))
    assert text.endswith("image18, image19, ...")


def test_a_bundle_for_a_folder_that_is_not_there(repository: Path, tmp_path: Path) -> None:
    text = fails(medv_repo, 1, "bundle", repository, "--image", "disk", "-o", tmp_path / "gone" / "x.bundle")
    assert f"{tmp_path}/gone/x.bundle: there is no directory {tmp_path}/gone; make it first" in text


def test_a_damaged_bundle_is_to_be_copied_again(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    make_bundle(DirectoryStore(repository), path, [Wanted("disk")])
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)  # of the last pack
    path.write_bytes(data)
    text = fails(medv_sync, 6, "--from", path, "disk", "-o", tmp_path / "disk.img", "--no-host-index")
    assert "the bundle is damaged: copy the bundle again, or make it again" in text
    assert "the repository changed" not in text
    assert not (tmp_path / "disk.img").exists()


def test_a_part_that_is_missing_is_named_first(repository: Path, tmp_path: Path) -> None:
    make_bundle(DirectoryStore(repository), tmp_path / "f.bundle", [Wanted("disk")], split=1 << 16)
    (tmp_path / "f.bundle.002").unlink()
    with pytest.raises(FormatError, match=r"got [0-9,]+: f\.bundle\.002 missing; copy the bundle again"):
        BundleStore(tmp_path / "f.bundle")
    arguments = ["--seed", tmp_path / "f.bundle.001", "-o", tmp_path / "disk.img", "--no-host-index"]
    done = CliRunner().invoke(medv_sync, [str(one) for one in (repository, "disk", *arguments)])
    assert done.exit_code == 0, done.output
    assert "f.bundle.001: f.bundle.002 missing (" in done.stderr
    assert "bytes are there); what is intact in it serves" in done.stderr


def test_a_vhdx_that_is_cut_short(tmp_path: Path) -> None:
    run("truncate", "-s", "8M", tmp_path / "raw")
    qemu_img("convert", "-f", "raw", "-O", "vhdx", tmp_path / "raw", tmp_path / "disk.vhdx")
    with open(tmp_path / "disk.vhdx", "r+b") as file:
        file.truncate(2 * MIB)
    with pytest.raises(FormatError, match=r"at least [0-9,]+ bytes, .* got 2,097,152: the file is cut short; copy it"):
        open_disk(tmp_path / "disk.vhdx")


def problem(path: Path) -> str:
    """Return why an image is not trimmed."""
    with open_disk(path) as source:
        (volume,) = trim_image(source, Watch())[1]
    return volume.problem


def test_what_is_not_trimmed_is_published_whole(tmp_path: Path) -> None:
    luks = sized(tmp_path / "luks", 8 * MIB)
    with open(luks, "r+b") as file:
        file.write(b"LUKS\xba\xbe\0\2")
    assert problem(luks) == (
        "LUKS is not read here; it is published whole; decrypt it, or open it and publish what is inside"
    )
    btrfs = sized(tmp_path / "btrfs", 8 * MIB)
    with open(btrfs, "r+b") as file:
        file.seek(65536 + 64)
        file.write(b"_BHRfS_M")
    for path, reason in ((btrfs, "btrfs is not read here"), (sized(tmp_path / "x", MIB), "it has no file system that")):
        assert problem(path).startswith(reason)
        assert "; it is published whole; zeros in its free space cost nothing (fstrim" in problem(path)


def test_what_is_wrong_by_itself_is_wrong_usage(repository: Path, tmp_path: Path) -> None:
    text = fails(medv_repo, 2, "delta", repository, "--image", "disk", "--from", "1", "--to", "1")
    assert "--from and --to are both 1" in text
    assert "is the version itself" in fails(medv_repo, 1, "delta", repository, "--image", "disk", "--from", "2")
    write_sparse(tmp_path / "image", bytes(MIB))
    arguments = ("publish", repository, tmp_path / "image", "--image", "disk", "--version", "2")
    assert "published already, or was; choose another version name" in fails(medv_repo, 1, *arguments)
    fails(medv_repo, 2, "publish", repository, tmp_path / "gone", "--image", "disk", "--version", "3")
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    text = fails(medv_sync, 1, repository, "disk", "-o", tmp_path / "gone" / "disk.img")
    assert "there is no directory" in text
