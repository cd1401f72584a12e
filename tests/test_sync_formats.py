"""Sync to qcow2, VHD and VHDX: valid containers, says qemu-img, updated from what is in them, whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from disks import MAKES, Make, info, needs_qemu_img, qemu_img, write_sparse
from syncing import Place, make_images
from test_disk_layout import QEMU, check

from trimtransfer.assembly import windows
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import SyncReport
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.verify import verify_image
from trimtransfer.cli.sync import medv_sync
from trimtransfer.disk.layouts import WRITABLE
from trimtransfer.disk.source import open_disk
from trimtransfer.errors import FormatError, SourceRefused, TargetRefused
from trimtransfer.repository.publish import publish

pytestmark = needs_qemu_img
FORMATS = ("raw", *WRITABLE)


class FormatPlace(Place):
    """The same, with results that qemu-img compares."""

    halfway = False

    def check(self, report: SyncReport, output: Path, expected: bytes) -> None:
        """Check that the output's guest sees what it should."""
        qemu = QEMU.get(report.format, "raw")
        if report.format != "raw":
            check(output, report.format)
        assert info(output, qemu)["virtual-size"] == len(expected)
        qemu_img("convert", "-f", qemu, "-O", "raw", output, self.folder / "content")
        assert (self.folder / "content").read_bytes() == expected
        assert verify_image(output).ok


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan one region at a time, so that small images have several windows."""
    monkeypatch.setattr(windows, "WINDOW_REGIONS", 1)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> FormatPlace:
    images = make_images(rng, tail=0)
    return FormatPlace(tmp_path, [image.ljust(-(-len(image) // 512) * 512, b"\0") for image in images])


@pytest.mark.parametrize("format", WRITABLE)
def test_first_update_nothing_and_back(place: FormatPlace, format: str) -> None:
    first = place.sync("1", format=format)
    assert (first.wrote, first.format) == ("new", format)
    preview = plan(place.repository, "disk", output=place.output)
    update = place.sync()  # stays in its format
    assert (update.format, update.wrote) == (format, "new")
    assert update.content == preview.content
    assert 0 < update.content.fetched < first.content.fetched
    assert update.content.seed + update.content.unchanged > 0
    again = place.sync(format=format)
    assert (again.wrote, again.network.requests) == ("nothing", 1)
    assert plan(place.repository, "disk", output=place.output).would_write == "nothing"
    assert place.sync("1", write="new").format == format


@pytest.mark.parametrize("then", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
def test_converted_with_nothing_fetched(place: FormatPlace, format: str, then: str) -> None:
    place.sync("1", format=format)
    preview = plan(place.repository, "disk", version="1", output=place.output, format=then)
    report = place.sync("1", format=then)
    assert report.content.fetched == preview.content.fetched == 0
    assert (report.format, report.wrote) == (then, "nothing" if then == format else "new")
    assert preview.would_write == report.wrote


@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize("phase", ["fetch", "verify"])
@pytest.mark.parametrize("format", WRITABLE)
def test_it_goes_on_where_it_stopped(place: FormatPlace, format: str, phase: str, with_old: bool) -> None:
    if with_old:
        place.sync("1", format=format)
    before = place.output.read_bytes() if with_old else b""
    place.interrupt("2", phase, format=format)
    assert (place.output.read_bytes() if with_old else b"") == before
    with open_disk(SideDirectory(place.output).partial, format=format) as disk:
        assert disk.size == len(place.images[1])
    report = place.sync("2", format=format)
    if phase == "verify":
        assert report.content.fetched == 0


@pytest.mark.parametrize(("format", "then"), [("raw", "qcow2"), ("qcow2", "raw"), ("vhd", "vhdx"), ("vhdx", "vhd")])
@pytest.mark.parametrize("lose", [False, True])
def test_another_format_after_an_interrupted_run(place: FormatPlace, format: str, then: str, lose: bool) -> None:
    place.interrupt("1", "verify", format=format)
    if lose:
        SideDirectory(place.output).journal.unlink()
    place.sync("1", format=then)


@pytest.mark.parametrize("format", WRITABLE)
def test_without_its_journal(place: FormatPlace, format: str) -> None:
    place.sync("1", format=format)
    place.interrupt("2", "verify", format=format)
    SideDirectory(place.output).journal.unlink()
    place.sync("2", format=format)


@pytest.mark.parametrize("format", WRITABLE)
def test_without_its_tables(place: FormatPlace, format: str) -> None:
    place.sync("1", format=format)
    SideDirectory(place.output).tables.unlink()
    report = place.sync("2")
    assert report.content.seed + report.content.unchanged > report.content.fetched


@pytest.mark.parametrize("format", WRITABLE)
def test_what_an_abandoned_version_left_is_a_seed(place: FormatPlace, format: str) -> None:
    place.interrupt("1", "verify", format=format)
    report = place.sync("2", format=format)
    assert report.content.seed > 0


@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("version", ["1", "2"])
def test_whatever_happened_to_the_container(place: FormatPlace, format: str, version: str, rnd: random.Random) -> None:
    """Bytes anywhere in it, its tables too, were changed; or it is cut short, or no container any more."""
    place.sync("1", format=format)
    whole = place.output.read_bytes()
    filled = [at for at in range(0, len(whole), 512) if any(whole[at : at + 512])]
    for damage in range(5):
        changed = bytearray(whole)
        for at in rnd.sample(filled, 6) if damage < 3 else []:
            changed[at + rnd.randrange(512)] ^= 1 << rnd.randrange(8)
        os.chmod(place.output, 0o644)
        place.output.write_bytes(changed if damage < 3 else changed[: len(changed) // 2] if damage == 3 else b"none")
        if changed != whole or damage >= 3:
            with contextlib.suppress(FormatError, SourceRefused):
                assert not verify_image(place.output).ok or damage < 3
        assert place.sync(version).format == (format if SideDirectory(place.output).installed() else "raw")
        if version != "1":
            place.sync("1", format=format)


@pytest.mark.parametrize("format", WRITABLE)
def test_a_container_of_ours_is_a_seed(place: FormatPlace, tmp_path: Path, format: str) -> None:
    place.sync("1", format=format)
    other = tmp_path / "other.img"
    assert place.sync("1", output=other, seeds=[place.output]).content.fetched == 0
    other = tmp_path / "third.qcow2"
    assert place.sync("1", output=other, seeds=[place.output], format="qcow2").content.fetched == 0


@pytest.mark.parametrize("make", MAKES[1::3], ids=str)
def test_any_container_is_a_seed(place: FormatPlace, tmp_path: Path, make: Make) -> None:
    """Known to nobody, compressed or not: what its guest sees is found on the block grid."""
    write_sparse(tmp_path / "raw", place.images[0])
    path = make.of(tmp_path / "raw", tmp_path / f"seed.{make.format}")
    report = place.sync("1", seeds=[path])
    alone = "Flat" in str(make) or "twoGb" in str(make)  # a disk in several files is none by itself
    assert alone or report.content.fetched == 0
    assert not list(SideDirectory(place.output).path.glob("*.tmp"))


def test_a_damaged_container_is_a_seed_like_any_file(place: FormatPlace, tmp_path: Path, rnd: random.Random) -> None:
    make = Make("qcow2", "qcow2", "", True)
    path = make.of(write_sparse(tmp_path / "raw", place.images[0]), tmp_path / "seed")
    whole = path.read_bytes()
    for _ in range(4):
        changed = bytearray(whole)
        for at in rnd.sample([at for at in range(4, len(whole)) if whole[at]], 30):
            changed[at] ^= 1 << rnd.randrange(8)
        path.write_bytes(changed)
        place.sync("1", seeds=[path])
        place.output.unlink()


@pytest.mark.parametrize("make", [Make("qcow2", "qcow2"), Make("vhd", "vpc", "force_size=on"), Make("vmdk", "vmdk")])
def test_a_first_image_has_the_published_format(place: FormatPlace, tmp_path: Path, make: Make) -> None:
    """Where it can be written; an image that is there stays what it is, and what is asked for comes first."""
    place.sync("1")
    path = make.of(write_sparse(tmp_path / "raw", place.images[1]), tmp_path / "published")
    report = publish(place.repository, path, image="disk", version="3")
    place.images.append(place.images[1])
    assert report.format == make.format
    assert place.sync().format == "raw"
    expected = make.format if make.format in WRITABLE else "raw"
    preview = plan(place.repository, "disk", output=tmp_path / "first")
    assert (preview.would_write, preview.format, preview.to_dict()["format"]) == ("new", expected, expected)
    assert place.sync(output=tmp_path / "first").format == expected
    assert place.sync(output=tmp_path / "first").wrote == "nothing"
    assert place.sync(output=tmp_path / "second", format="vhdx").format == "vhdx"
    assert place.sync(output=tmp_path / "third", write="in-place").format == "raw"


@pytest.mark.parametrize(
    ("name", "format", "says"),
    [
        ("disk.img", "qcow2", "its name says raw"),
        ("disk.QCOW2", None, "its name says qcow2"),
        ("disk.vmdk", "vhd", "its name says vmdk"),
        ("disk.vhdx", "vhdx", ""),
        ("disk.img", None, ""),
        ("disk", "vhd", ""),
    ],
)
def test_a_name_that_misleads(place: FormatPlace, tmp_path: Path, name: str, format: str | None, says: str) -> None:
    """It is told once, when the file is made."""
    planned = plan(place.repository, "disk", version="1", output=tmp_path / name, format=format)
    first = place.sync("1", output=tmp_path / name, format=format)
    for warnings in (planned.warnings, first.warnings):
        assert [says in warning for warning in warnings] == [True] * bool(says)
    assert place.sync("2", output=tmp_path / name).warnings == ()


def test_refused(place: FormatPlace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="qcow2"):
        sync(place.repository, "disk", output=place.output, format="vmdk")
    place.sync("1", format="qcow2")
    with pytest.raises(TargetRefused, match="in place"):
        place.sync("2", write="in-place")
    odd = tmp_path / "odd"
    odd.mkdir()
    place = FormatPlace(odd, [image + b"x" for image in place.images])
    for format in WRITABLE:
        with pytest.raises(TargetRefused, match="whole sectors"):
            place.sync("1", format=format, output=odd / "disk")
    assert not any(odd.glob("disk.medv/*.img"))


def test_the_command(place: FormatPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(place.repository), "disk", "--format", "vhdx", "--no-progress", "--no-host-index"]
    done = CliRunner().invoke(medv_sync, arguments)
    assert done.exit_code == 0, done.output
    assert "disk.vhdx is now disk 2 in vhdx" in done.stdout
    check(tmp_path / "disk.vhdx", "vhdx")
    done = CliRunner().invoke(medv_sync, ["verify", "disk.vhdx"])
    assert done.exit_code == 0, done.output
