"""Where the bytes of an update go: the sums are those of the plan that a client makes, the files those that changed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from filesystems import MIB, make_tree, mounted_ntfs, mounted_xfs, run, sized
from hypothesis import given
from hypothesis import strategies as st
from syncing import make_images, publish_all

from trimtransfer.assembly.difference import difference_of
from trimtransfer.assembly.differencereport import DifferenceReport, apportion
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.assembly.updatecost import Curve
from trimtransfer.chunk import MAX_CHUNK_SIZE
from trimtransfer.cli.main import main
from trimtransfer.image import ImageSource
from trimtransfer.repository.contentkind import KINDS, is_packed, kind_of_content, kind_of_file
from trimtransfer.repository.deltas import add_deltas
from trimtransfer.repository.publish import publish
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader, read_head
from trimtransfer.store import DirectoryStore

CHUNKS = 2 * MAX_CHUNK_SIZE
"""What chunks that are cut anew at the ends of new content come to."""


def planned(repository: Path, image: str, old: str, new: str, folder: Path) -> int:
    """Return the bytes that a client with the old version and nothing else is told that it will fetch."""
    output = folder / f"{old}-{new}.img"
    sync(repository, image, output=output, version=old, cache=folder / "cache")
    newest = read_head(DirectoryStore(repository), image).version == new
    found = plan(repository, image, output=output, version=None if newest else new, cache=folder / "cache")
    return found.fetch_bytes


def checked(repository: Path, image: str, old: str, new: str, folder: Path, **options: Any) -> DifferenceReport:
    """Return a report whose sums are right."""
    report = difference_of(DirectoryStore(repository), image, old, new, **options)
    if old != new:
        assert report.fetched_bytes == planned(repository, image, old, new, folder)
    parts = report.plain_bytes, report.delta_bytes, report.gap_bytes, report.metadata_bytes
    assert sum(parts) == report.fetched_bytes
    assert sum(part.content for part in report.kinds) == report.content_bytes
    assert sum(part.fetched for part in report.kinds) == report.plain_bytes + report.delta_bytes
    assert sum(part.delta for part in report.kinds) == report.delta_bytes
    assert {part.kind for part in report.kinds} <= set(KINDS)
    return report


def write(path: Path, image: Path, name: str) -> None:
    """Put a file into an ext4 image."""
    run("debugfs", "-w", "-R", f"write {path} {name}", image)


@pytest.fixture
def ext(tmp_path: Path, rnd: random.Random) -> Path:
    """A repository: ext4 in two versions, the second with other files, and the remains of one."""
    make_tree(tmp_path / "tree", rnd, names=50)
    (tmp_path / "tree/app").mkdir()
    (tmp_path / "tree/app/old.so").write_bytes(b"\x7fELF" + rnd.randbytes(2 * MIB))
    image = sized(tmp_path / "image", 64 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", 4096, "-d", tmp_path / "tree", image)
    publish(tmp_path / "r", image, image="a", version="1", level=1)
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF" + rnd.randbytes(3 * MIB))
    write(program, image, "app/new")
    program.write_bytes(b"".join(b"line %d of some words\n" % rnd.getrandbits(20) for _ in range(50_000)))
    write(program, image, "app/notes")
    program.write_bytes(rnd.randbytes(5 * MIB))
    write(program, image, "secret")
    run("debugfs", "-w", "-R", "rm secret", image)
    run("e2fsck", "-fn", image)
    publish(tmp_path / "r", image, image="a", version="2", level=1)
    return tmp_path


def test_files_kinds_and_remains(ext: Path) -> None:
    report = checked(ext / "r", "a", "1", "2", ext)
    kinds = {part.kind: part for part in report.kinds}
    assert abs(kinds["free"].content - 5 * MIB) < CHUNKS
    assert abs(kinds["program"].content - 3 * MIB) < CHUNKS
    assert kinds["text"].fetched < kinds["text"].content
    assert 0 < kinds["structure"].content < MIB
    assert {part.name for part in report.files[:3]} >= {"app/new", "app/notes"}  # the last chunk of another is cut anew
    assert report.folders[0].name == "app/"
    (volume,) = report.volumes
    assert (volume.file_system, volume.problem, volume.content) == ("ext4", "", report.content_bytes)
    assert [advice.code for advice in report.advice] == ["remains"]
    assert "--trim" in report.advice[0].remedy
    publish(ext / "r", ext / "image", image="b", version="1", level=1, like=["a"])
    publish(ext / "r", ext / "image", image="a", version="3", level=1, parent="1", trim=True)
    trimmed = checked(ext / "r", "a", "1", "3", ext)
    assert "free" not in {part.kind for part in trimmed.kinds if part.content}
    assert abs(report.content_bytes - trimmed.content_bytes - kinds["free"].content) < CHUNKS


def test_an_unclean_file_system_is_told_by_place(ext: Path) -> None:
    run("debugfs", "-w", "-R", "feature needs_recovery", ext / "image")
    publish(ext / "r", ext / "image", image="a", version="3", level=1)
    report = checked(ext / "r", "a", "1", "3", ext)
    (volume,) = report.volumes
    assert volume.problem
    assert report.files == ()
    assert {part.kind for part in report.kinds} >= {"program", "random", "text"}
    assert sum(part.content for part in report.stretches) == pytest.approx(report.content_bytes, abs=8)
    assert "unread-volume" in {advice.code for advice in report.advice}


def test_without_file_systems_and_without_deltas(tmp_path: Path, rng: np.random.Generator) -> None:
    publish_all(tmp_path / "r", make_images(rng, versions=4))
    for old, new in (("1", "2"), ("1", "3"), ("2", "4"), ("4", "1")):
        report = checked(tmp_path / "r", "disk", old, new, tmp_path)
        assert report.content_bytes > 0
        assert len(report.volumes) == 4
    assert not checked(tmp_path / "r", "disk", "1", "3", tmp_path).deltas
    add_deltas(tmp_path / "r", "disk", base="1", version="3", level=1)
    same = checked(tmp_path / "r", "disk", "3", "3", tmp_path)
    assert (same.content_bytes, same.plain_bytes) == (0, 0)


def test_empty_and_other_files(tmp_path: Path, rnd: random.Random) -> None:
    for number, content in enumerate((b"", b"some words\n" * 300_000, rnd.randbytes(3 * MIB), b"")):
        (tmp_path / "image").write_bytes(content)
        publish(tmp_path / "r", tmp_path / "image", image="a", version=str(number), level=1)
    for old, new, kinds in (("0", "1", {"text"}), ("1", "2", {"random"}), ("2", "3", set()), ("0", "2", {"random"})):
        report = checked(tmp_path / "r", "a", old, new, tmp_path)
        assert {part.kind for part in report.kinds} == kinds


def test_partitions(tmp_path: Path, rnd: random.Random) -> None:
    image = sized(tmp_path / "image", 96 * MIB)
    run("sfdisk", "-q", image, text="label: gpt\n2048,65536\n67584,65536\n")
    for start, kind in ((1, "ext4"), (33, "vfat")):
        part = sized(tmp_path / kind, 32 * MIB)
        run(*(("mke2fs", "-q", "-t", "ext4") if kind == "ext4" else ("mkfs.vfat",)), part)
        run("dd", f"if={part}", f"of={image}", "bs=1M", f"seek={start}", "conv=notrunc", "status=none")
    publish(tmp_path / "r", image, image="a", version="1", level=1)
    part = tmp_path / "ext4"
    shutil.copy(part, tmp_path / "file")
    (tmp_path / "file").write_bytes(rnd.randbytes(2 * MIB))
    write(tmp_path / "file", part, "one")
    run("mcopy", "-i", tmp_path / "vfat", tmp_path / "file", "::two.zip")
    for start, kind in ((1, "ext4"), (33, "vfat")):
        run("dd", f"if={tmp_path / kind}", f"of={image}", "bs=1M", f"seek={start}", "conv=notrunc", "status=none")
    publish(tmp_path / "r", image, image="a", version="2", level=1)
    report = checked(tmp_path / "r", "a", "1", "2", tmp_path)
    assert [volume.name for volume in report.volumes] == ["partition 1", "partition 2"]
    assert {part.volume for part in report.files} <= {"partition 1", "partition 2"}
    assert sum(part.content for part in report.files) >= 2 * MIB


def test_what_files_share_counts_once(tmp_path: Path, rnd: random.Random) -> None:
    image = sized(tmp_path / "image", 320 * MIB)
    run("mkfs.xfs", "-q", "-m", "reflink=1", image)
    publish(tmp_path / "r", image, image="a", version="1", level=1)
    with mounted_xfs(image) as place:
        (place / "one").write_bytes(rnd.randbytes(4 * MIB))
        run("cp", "--reflink=always", place / "one", place / "two")
        run("sync", "-f", place)
    publish(tmp_path / "r", image, image="a", version="2", level=1)
    report = checked(tmp_path / "r", "a", "1", "2", tmp_path)
    assert {part.name for part in report.files} == {"one", "two"}
    assert sum(part.content for part in report.files) == 4 * MIB
    assert next(part.content for part in report.kinds if part.kind == "structure") < 3 * MIB  # its log


def test_ntfs(tmp_path: Path, rnd: random.Random) -> None:
    image = sized(tmp_path / "image", 64 * MIB)
    run("mkntfs", "-F", "-q", "-Q", image)
    publish(tmp_path / "r", image, image="a", version="1", level=1)
    with mounted_ntfs(image) as place:
        (place / "Windows").mkdir()
        (place / "Windows/new.dll").write_bytes(b"MZ" + rnd.randbytes(3 * MIB))
        (place / "pagefile.sys").write_bytes(rnd.randbytes(2 * MIB))
    publish(tmp_path / "r", image, image="a", version="2", level=1)
    report = checked(tmp_path / "r", "a", "1", "2", tmp_path)
    assert [part.name for part in report.files[:2]] == ["Windows/new.dll", "pagefile.sys"]
    assert [part.kind for part in report.files[:2]] == ["program", "swap"]
    assert [advice.code for advice in report.advice] == ["swap-file"]


def test_real_images(images: Any, tmp_path: Path) -> None:
    for number, path in enumerate((images.old, images.new, images.rebuilt), 1):
        publish(tmp_path / "r", path, image="a", version=str(number), level=1, deltas=number == 2)
    for old, new in (("1", "2"), ("1", "3")):
        report = checked(tmp_path / "r", "a", old, new, tmp_path)
        known = sum(part.content for part in report.kinds if part.kind not in ("structure", "free"))
        assert len(report.files) == 20
        assert known > 0.5 * (report.content_bytes - sum(p.content for p in report.kinds if p.kind == "free"))


def test_the_command(ext: Path) -> None:
    done = CliRunner().invoke(main, ["repo", "diff", str(ext / "r"), "--image", "a", "1", "2", "--top", "1"])
    assert done.exit_code == 0, done.output
    assert "remains of deleted files" in done.stdout
    assert "app/new" in done.stdout
    assert "app/notes" not in done.stdout
    done = CliRunner().invoke(main, ["repo", "diff", str(ext / "r"), "--image", "a", "1", "2", "--json"])
    found = json.loads(done.stdout)
    assert found["files"][0]["name"] == "app/new"
    assert found["fetched_bytes"] > 8 * MIB
    assert found["advice"][0]["code"] == "remains"
    done = CliRunner().invoke(main, ["repo", "diff", str(ext / "r"), "--image", "a", "1", "9"])
    assert done.exit_code == 4


def test_published_content_reads_as_the_image(ext: Path, rnd: random.Random) -> None:
    published = PublishedImage(VersionReader.open(DirectoryStore(ext / "r"), "a"))
    with ImageSource(ext / "image") as source:
        assert published.size == source.size
        for _ in range(200):
            at = rnd.randrange(source.size)
            length = rnd.choice((1, 100, 4096, 300_000))
            assert published.read(at, length) == source.read(at, length)
        data = bytearray(source.size)
        for at, length in published.extents(0, source.size):
            data[at : at + length] = source.read(at, length)
        assert data == (ext / "image").read_bytes()
    assert published.read(published.size + 5, 10) == b""
    with pytest.raises(ValueError, match="of an image"):
        published.read_into(bytearray(2), published.size - 1)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50), st.integers(-3, 3))
def test_apportioned_amounts_add_up(amounts: list[float], more: int) -> None:
    total = max(0, round(sum(amounts)) + more)
    found = apportion(np.array(amounts), total)
    assert int(found.sum()) == total
    assert np.abs(found - np.array(amounts)).max() <= 1 + abs(more) + 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.floats(0, 100)), max_size=20), st.data())
def test_curve_against_sums_of_bytes(pieces: list[tuple[int, int, float]], data: st.DataObject) -> None:
    slots = np.zeros(400)
    rows, at = [], 0
    for gap, length, amount in pieces:
        at += gap
        rows.append((at, length, amount))
        slots[at : at + length] = amount / length
        at += length
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    curve = Curve(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2])
    low = data.draw(st.integers(0, 300))
    length = data.draw(st.integers(0, 100))
    (found,) = curve.within(np.array([[low, length]], dtype=np.int64))
    assert found == pytest.approx(slots[low : low + length].sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "start", "kind"),
    [
        ("usr/bin/ls", b"\x7fELF\2", "program"),
        ("lib/modules/6/kernel/a.ko.xz", b"\xfd7zXZ\0", "module"),
        ("boot/initrd.img-6.1", b"\x1f\x8b", "initrd"),
        ("usr/share/man/man1/a.1.gz", b"\x1f\x8b", "compressed"),
        ("var/lib/apt/lists/deb_Packages", b"Package: a", "lists"),
        ("Windows/System32/a.dll", b"MZ", "program"),
        ("pagefile.sys", b"", "swap"),
        ("var/log/syslog.1", b"Nov", "log"),
        ("home/a/notes", b"some words and\nanother line", "text"),
        ("etc/passwd", b"#!/bin/sh", "text"),
        ("data.sqlite", b"SQLite format 3\0", "database"),
        ("empty", b"", "data"),
    ],
)
def test_kinds_of_files(path: str, start: bytes, kind: str) -> None:
    assert kind_of_file(path, start) == kind


def test_kinds_of_content(rnd: random.Random) -> None:
    assert kind_of_content(rnd.randbytes(64 << 10)) == "random"
    assert kind_of_content(b"words and words\n" * 1000) == "text"
    assert kind_of_content(bytes(5000)) == "data"
    assert kind_of_content(bytes(range(32)) * 1000) == "data"
    assert is_packed(rnd.randbytes(4096))
    assert not is_packed(b"ab" * 4000)
