"""Publishing containers: a version is the same whatever the format of the file that it was published from."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from disks import Make, needs_qemu_img, qemu_img

import trimtransfer as tt
from trimtransfer.cli.repo import repo
from trimtransfer.errors import SourceChanged, SourceRefused

pytestmark = needs_qemu_img
FORMATS = (
    Make("qcow2", "qcow2"),
    Make("qcow2", "qcow2", "compression_type=zstd", True),
    Make("vhd", "vpc", "force_size=on"),
    Make("vhd", "vpc", "subformat=fixed,force_size=on"),
    Make("vhdx", "vhdx"),
    Make("vmdk", "vmdk", "subformat=streamOptimized", True),
    Make("vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system of 96 MiB with some files."""
    if not shutil.which("mke2fs"):
        pytest.skip("needs mke2fs (package e2fsprogs)")
    folder = tmp_path_factory.mktemp("raw")
    (folder / "tree").mkdir()
    rnd = random.Random(1)
    for number in range(40):
        (folder / "tree" / f"{number}").write_bytes(rnd.randbytes(rnd.randrange(1, 400_000)))
    image = folder / "raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(folder / "tree"), str(image), "96M"], check=True)
    return image


def test_same_version_from_every_format(raw: Path, tmp_path: Path) -> None:
    first = tt.publish(tmp_path / "repo", raw, image="desk", version="raw")
    assert (first.format, first.recognised) == ("raw", "ext4")
    for number, make in enumerate(FORMATS):
        path = make.of(raw, tmp_path / f"disk{number}.{make.format}")
        report = tt.publish(tmp_path / "repo", path, image="desk", version=f"v{number}", format=make.format)
        assert (report.format, report.recognised) == (make.format, "ext4")
        assert (report.digest, report.length, report.new_bytes) == (first.digest, first.length, 0)
        if "twoGb" not in str(make):
            again = tt.publish(tmp_path / "repo", path, image="desk", version=f"auto{number}")
            assert (again.format, again.digest) == (make.format, first.digest)
    report = tt.publish(tmp_path / "repo", tmp_path / "disk0.qcow2", image="file", version="1", format="raw")
    assert (report.format, report.recognised) == ("raw", "file")
    assert report.length == (tmp_path / "disk0.qcow2").stat().st_size


def test_first_publish_reads_no_holes_and_syncs(raw: Path, tmp_path: Path) -> None:
    path = Make("qcow2", "qcow2", "", True).of(raw, tmp_path / "disk.qcow2")
    report = tt.publish(tmp_path / "repo", path, image="desk", version="1", flat=True)
    assert report.new_bytes > 5 << 20
    assert report.read_bytes < 64 << 20
    done = tt.sync(tmp_path / "repo", "desk", output=tmp_path / "copy.img", format="raw")
    assert done.digest.hex() == report.digest
    assert (tmp_path / "copy.img").read_bytes() == raw.read_bytes()


def test_a_base_that_changes_meanwhile(raw: Path, tmp_path: Path) -> None:
    """What a disk is read from is watched as a whole."""
    shutil.copy(raw, tmp_path / "base")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", tmp_path / "top")

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "compress":
            with open(tmp_path / "base", "r+b") as file:
                file.write(b"other")

    with pytest.raises(SourceChanged, match="base"):
        tt.publish(tmp_path / "repo", tmp_path / "top", image="a", version="1", format="qcow2", progress=progress)
    with pytest.raises(SourceRefused, match="depends on another file"):
        tt.publish(tmp_path / "repo", tmp_path / "top", image="a", version="1")


def test_the_command_names_the_format(raw: Path, tmp_path: Path) -> None:
    path = Make("vhdx", "vhdx").of(raw, tmp_path / "disk.vhdx")
    command = ["publish", str(tmp_path / "repo"), str(path), "--image", "a", "--no-progress", "--level", "1"]
    done = CliRunner().invoke(repo, [*command, "--version", "1", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["format"] == "vhdx"
    done = CliRunner().invoke(repo, [*command, "--version", "2"])
    assert "(vhdx: ext4, 96.0 MiB, after 1)" in done.stdout
    done = CliRunner().invoke(repo, [*command, "--version", "3", "--format", "qcow2"])
    assert done.exit_code == 6
    assert "the header of a qcow2 file" in done.output
