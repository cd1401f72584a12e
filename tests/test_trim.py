"""Trim: what is deleted is gone from the published image, all in use is as it was, by the real programs' word."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from filesystems import KIB, MIB, make_tree, mounted_ntfs, mounted_xfs, program, run, sized
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.assembly.sync import sync
from trimtransfer.cli.main import main
from trimtransfer.errors import IntegrityError
from trimtransfer.filesystem.ranges import merged
from trimtransfer.filesystem.volumes import find_file_systems
from trimtransfer.image import ImageSource
from trimtransfer.repository.publication import PublishReport
from trimtransfer.repository.publish import publish
from trimtransfer.repository.trimmed import TrimmedSource

REMAINS = b"THE REMAINS OF A DELETED FILE. "
SECRET = MIB
SIZE = 40 * MIB


@dataclass(frozen=True)
class Case:
    """An image whose file system holds ``files``, and the remains of others."""

    path: Path
    kind: str
    files: dict[bytes, bytes]

    def check(self, path: Path) -> None:
        """Let the file system's own programs look for errors."""
        CHECKS[self.kind](path)

    def extract(self, path: Path, target: Path) -> dict[bytes, bytes]:
        """Return the files as the file system's own programs read them."""
        return EXTRACTIONS[self.kind](self, path, target)


def remains(tmp_path: Path, rnd: random.Random) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"".join(REMAINS + rnd.randbytes(KIB - len(REMAINS)) for _ in range(SECRET // KIB)))
    return path


def make_ext(tmp_path: Path, rnd: random.Random) -> Case:
    files = make_tree(tmp_path / "tree", rnd, names=100)
    path = sized(tmp_path / "image", SIZE)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", tmp_path / "tree", path)
    run("debugfs", "-w", "-R", f"write {remains(tmp_path, rnd)} secret", path)
    run("debugfs", "-w", "-R", "rm secret", path)
    return Case(path, "ext", files)


def extract_ext(case: Case, path: Path, target: Path) -> dict[bytes, bytes]:
    target.mkdir()
    run("debugfs", "-R", f"rdump / {target}", path)
    return read_tree(target)


def read_tree(target: Path) -> dict[bytes, bytes]:
    """Return the regular files of a directory by path."""
    found = {}
    for place, _, names in os.walk(os.fsencode(target)):
        for name in names:
            whole = os.path.join(place, name)
            if os.path.isfile(whole) and not os.path.islink(whole):
                found[os.path.relpath(whole, os.fsencode(target))] = Path(os.fsdecode(whole)).read_bytes()
    return found


def make_ntfs(tmp_path: Path, rnd: random.Random) -> Case:
    files = make_tree(tmp_path / "tree", rnd, names=100, links=False)
    path = sized(tmp_path / "image", SIZE)
    run("mkntfs", "-F", "-q", "-Q", path)
    with mounted_ntfs(path) as place:
        shutil.copytree(tmp_path / "tree", place, dirs_exist_ok=True)
        shutil.copy(remains(tmp_path, rnd), place / "secret")
        (place / "secret").unlink()
    return Case(path, "ntfs", files)


def extract_ntfs(case: Case, path: Path, target: Path) -> dict[bytes, bytes]:
    command = [program("ntfscat"), path]
    return {name: subprocess.run([*command, name], check=True, capture_output=True).stdout for name in case.files}


def make_fat(tmp_path: Path, rnd: random.Random) -> Case:
    files = make_tree(tmp_path / "tree", rnd, names=100, links=False)
    path = sized(tmp_path / "image", SIZE)
    run("mkfs.fat", "-F", "32", path)
    run("mcopy", "-s", "-i", path, *(tmp_path / "tree").iterdir(), "::")
    run("mcopy", "-i", path, remains(tmp_path, rnd), "::")
    run("mdel", "-i", path, "::secret")
    return Case(path, "fat", files)


def extract_fat(case: Case, path: Path, target: Path) -> dict[bytes, bytes]:
    target.mkdir()
    run("mcopy", "-s", "-n", "-i", path, "::*", target)
    return read_tree(target)


def make_xfs(tmp_path: Path, rnd: random.Random) -> Case:
    files = make_tree(tmp_path / "tree", rnd, names=100)
    path = sized(tmp_path / "image", 64 * MIB)
    run("mkfs.xfs", "--unsupported", "-q", "-l", "size=8m", path)
    with mounted_xfs(path) as place:
        run("cp", "-a", *(tmp_path / "tree").iterdir(), place)
        shutil.copy(remains(tmp_path, rnd), place / "secret")
        run("sync", "-f", place)
        (place / "secret").unlink()
    return Case(path, "xfs", files)


def extract_xfs(case: Case, path: Path, target: Path) -> dict[bytes, bytes]:
    with mounted_xfs(path, "ro", "norecovery", "nouuid") as place:
        return read_tree(place)


MAKERS = {"ext": make_ext, "fat": make_fat, "ntfs": make_ntfs, "xfs": make_xfs}
EXTRACTIONS = {"ext": extract_ext, "fat": extract_fat, "ntfs": extract_ntfs, "xfs": extract_xfs}
CHECKS = {
    "ext": lambda path: run("e2fsck", "-fn", path),
    "fat": lambda path: run("fsck.fat", "-n", path),
    "ntfs": lambda path: run("ntfsfix", "-n", path),
    "xfs": lambda path: run("xfs_repair", "-n", path),
}


@pytest.fixture(params=MAKERS)
def case(request: pytest.FixtureRequest, tmp_path: Path, rnd: random.Random) -> Case:
    """One image of each file system."""
    return MAKERS[request.param](tmp_path, rnd)


def published(case: Path, root: Path, *, trim: bool) -> tuple[Path, PublishReport]:
    """Publish an image and return what a client then has."""
    name = "trimmed" if trim else "whole"
    report = publish(root / "r", case, image=name, version="1", level=1, trim=trim)
    output = root / f"{name}.img"
    sync(root / "r", name, output=output)
    return output, report


def holds(path: Path) -> bool:
    return REMAINS in path.read_bytes()


def test_remains_are_gone_and_nothing_else(case: Case, tmp_path: Path) -> None:
    before = case.path.read_bytes()
    whole, untrimmed = published(case.path, tmp_path, trim=False)
    assert untrimmed.trimmed == ()
    assert whole.read_bytes() == before
    assert holds(whole)
    output, report = published(case.path, tmp_path, trim=True)
    assert not holds(output)
    (volume,) = report.trimmed
    assert volume.problem == ""
    assert volume.files == len(case.extract(whole, tmp_path / "one")) - hard_links(case)
    assert volume.blanked_bytes >= SECRET
    sectors = [np.frombuffer(one, dtype=np.uint8).reshape(-1, 512) for one in (before, output.read_bytes())]
    assert volume.blanked_bytes == 512 * int((sectors[0] != sectors[1]).any(axis=1).sum())
    assert volume.free_bytes >= volume.blanked_bytes
    assert report.new_bytes <= untrimmed.new_bytes - SECRET
    case.check(whole)
    case.check(output)
    one, two = case.extract(whole, tmp_path / "again"), case.extract(output, tmp_path / "two")
    assert one == two
    assert {name: one[name] for name in case.files} == case.files
    assert case.path.read_bytes() == before
    check_difference(before, output.read_bytes())


def hard_links(case: Case) -> int:
    return 1 if case.kind in ("ext", "xfs") else 0


def check_difference(before: bytes, after: bytes) -> None:
    """What differs is free and zero; all that is free is zero."""
    (found,) = find_file_systems(lambda at, length: before[at : at + length], len(before))
    assert found.file_system is not None
    kept = np.frombuffer(after, dtype=np.uint8).copy()
    original = np.frombuffer(before, dtype=np.uint8)
    for start, length in found.file_system.free().tolist():
        assert not kept[start : start + length].any()
        kept[start : start + length] = original[start : start + length]
    assert np.array_equal(kept, original)


def test_free_space_is_not_read(case: Case) -> None:
    with ImageSource(case.path) as source:
        (found,) = find_file_systems(source.read, source.size)
        assert found.file_system is not None
        free = found.file_system.free()
        trimmed = TrimmedSource(source, free)
        read = np.zeros(source.size, dtype=np.bool_)
        for start, length in trimmed.extents(0, source.size):
            read[start : start + length] = True
        for start, length in free.tolist():
            assert not read[start : start + length].any()


def test_a_file_system_that_is_not_clean_is_published_as_it_is(tmp_path: Path, rnd: random.Random) -> None:
    case = make_ext(tmp_path, rnd)
    run("debugfs", "-w", "-R", "ssv state 0", case.path)
    output, report = published(case.path, tmp_path, trim=True)
    assert output.read_bytes() == case.path.read_bytes()
    assert "not unmounted" in report.trimmed[0].problem
    (tmp_path / "text").write_bytes(b"no file system at all" * 1000)
    output, report = published(tmp_path / "text", tmp_path / "other", trim=True)
    assert output.read_bytes() == b"no file system at all" * 1000
    assert report.trimmed[0].problem.startswith(
        "it has no file system that is known here; it is published whole; zeros"
    )


def test_an_image_that_is_written_to_is_not_published(tmp_path: Path, rnd: random.Random) -> None:
    case = make_ext(tmp_path, rnd)
    with ImageSource(case.path) as source:
        (found,) = find_file_systems(source.read, source.size)
        assert found.file_system is not None
        big = max(found.file_system.files(), key=lambda file: int(file.extents[:, 2].sum()))
    state = os.stat(case.path)

    def write(phase: str, done: int, total: int) -> None:
        if phase == "prove" and done == 0:
            with open(case.path, "r+b") as file:
                file.seek(int(big.extents[-1, 1]))
                file.write(b"other")
            os.utime(case.path, ns=(state.st_atime_ns, state.st_mtime_ns))

    with pytest.raises(IntegrityError, match="whole image of"):
        publish(tmp_path / "r", case.path, image="a", version="1", level=1, trim=True, progress=write)
    assert not (tmp_path / "r" / "images" / "a").exists()


def command(*arguments: object) -> tuple[str, str]:
    done = CliRunner().invoke(main, ["repo", "publish", *map(str, arguments), "--level", "1", "--no-progress"])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def disk(tmp_path: Path, label: str, parts: list[tuple[int, Path | None]], *, size: int) -> Path:
    """Make a disk with partitions (first sector, image of the partition or 2 MiB of nothing)."""
    path = sized(tmp_path / f"{label}.disk", size)
    lines = [f"label: {label}"]
    for start, part in parts:
        sectors = (part.stat().st_size if part else 2 * MIB) // 512
        lines.append(f"start={start}, size={sectors}")
    run("sfdisk", "--no-reread", "-q", path, text="\n".join(lines) + "\n")
    for start, part in parts:
        if part:
            with open(path, "r+b") as file:
                file.seek(start * 512)
                file.write(part.read_bytes())
    return path


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_partitions(tmp_path: Path, rnd: random.Random, label: str) -> None:
    """Each partition for itself: one that is clean, one that is not, one that is nothing."""
    case = make_ext(tmp_path, rnd)
    dirty = tmp_path / "dirty"
    dirty.write_bytes(case.path.read_bytes())
    run("debugfs", "-w", "-R", "ssv state 0", dirty)
    first, second = 2048, 2048 + SIZE // 512
    path = disk(
        tmp_path, label, [(first, case.path), (second, dirty), (second + SIZE // 512, None)], size=2 * SIZE + 8 * MIB
    )
    out, warnings = command(tmp_path / "r", path, "--image", "a", "--version", "1", "--trim")
    assert "free in partition 1 (ext4), " in out
    assert f"{len(case.files)} files, " in out
    assert "not trimmed: partition 2 (ext4): it is mounted" in warnings
    assert "not trimmed: partition 3: it has no file system that is known here" in warnings
    sync(tmp_path / "r", "a", output=tmp_path / "out")
    found, image = (tmp_path / "out").read_bytes(), path.read_bytes()
    assert found[: first * 512] == image[: first * 512]
    assert found[second * 512 :] == image[second * 512 :]
    assert REMAINS not in found[: second * 512]
    (tmp_path / "part").write_bytes(found[first * 512 : second * 512])
    case.check(tmp_path / "part")
    assert case.extract(tmp_path / "part", tmp_path / "x").items() >= case.files.items()


def test_logical_partitions(tmp_path: Path, rnd: random.Random) -> None:
    case = make_ext(tmp_path, rnd)
    path = sized(tmp_path / "disk", SIZE + 8 * MIB)
    run("sfdisk", "-q", path, text=f"label: dos\nstart=2048, type=5\nstart=4096, size={SIZE // 512}\n")
    with open(path, "r+b") as file:
        file.seek(4096 * 512)
        file.write(case.path.read_bytes())
    with ImageSource(path) as source:
        (found,) = find_file_systems(source.read, source.size)
        assert (found.volume.start, found.kind) == (4096 * 512, "ext4")
        assert found.file_system is not None
        assert found.file_system.state == "clean"


def test_overlapping_partitions_are_left_alone(tmp_path: Path, rnd: random.Random) -> None:
    case = make_ext(tmp_path, rnd)
    path = disk(tmp_path, "dos", [(2048, case.path), (2048 + SIZE // 512, None)], size=SIZE + 8 * MIB)
    with open(path, "r+b") as file:
        file.seek(446 + 16 + 8)
        file.write((2048 + SIZE // 512 - 4096).to_bytes(4, "little"))
    with ImageSource(path) as source:
        found = find_file_systems(source.read, source.size)
    assert [one.problem for one in found] == ["it overlaps another partition"] * 2


def test_tables_that_do_not_count_are_left_alone(tmp_path: Path, rnd: random.Random) -> None:
    """A protective MBR without its GPT; a GPT that an MBR was written over."""
    case = make_ext(tmp_path, rnd)
    path = disk(tmp_path, "gpt", [(2048, case.path)], size=SIZE + 8 * MIB)
    image = bytearray(path.read_bytes())
    assert problems(image) == [""]
    image[450] = 0x83
    assert problems(image) == ["its MBR does not protect its GPT, which may be an old one"]
    image[450] = 0xEE
    image[512:1024] = bytes(512)
    assert problems(image) == ["its MBR has no partition"]


def problems(image: bytes | bytearray) -> list[str]:
    data = bytes(image)
    return [found.problem for found in find_file_systems(lambda at, length: data[at : at + length], len(data))]


def test_a_file_system_over_another_is_left_alone(tmp_path: Path, rnd: random.Random) -> None:
    case = make_ext(tmp_path, rnd)
    with open(case.path, "r+b") as file:
        file.write(b"XFSB")
    with ImageSource(case.path) as source:
        (found,) = find_file_systems(source.read, source.size)
    assert found.problem == "it has the marks of XFS and ext4"


def test_what_the_command_says(tmp_path: Path, rnd: random.Random) -> None:
    case = make_ext(tmp_path, rnd)
    out, warnings = command(tmp_path / "r", case.path, "--image", "a", "--version", "1", "--trim", "--json")
    (volume,) = json.loads(out)["trimmed"]
    assert (volume["name"], volume["file_system"], volume["problem"]) == ("whole image", "ext4", "")
    assert volume["files"] == len(case.files)
    assert warnings == ""
    out, _ = command(tmp_path / "r", case.path, "--image", "b", "--version", "1", "--json")
    assert json.loads(out)["trimmed"] == []


pieces = st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 2000)), max_size=12)


@given(pieces, st.lists(st.tuples(st.integers(0, 5999), st.integers(0, 6000)), min_size=1, max_size=8))
def test_a_trimmed_source_reads_zeros_where_it_is_blank(
    tmp_path_factory: pytest.TempPathFactory, blank: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "trimmed source"
    content = bytes(1 + number % 255 for number in range(6000))
    if not path.exists():
        path.write_bytes(content)
    expected = bytearray(content)
    for start, length in blank:
        expected[start : start + length] = bytes(max(0, min(length, 6000 - start)))
    with ImageSource(path) as source:
        trimmed = TrimmedSource(source, merged(np.array(blank, dtype=np.int64).reshape(-1, 2)))
        for start, length in asked:
            assert trimmed.read(start, length) == bytes(expected[start : start + length])
            check_extents(list(trimmed.extents(start, min(length, 6000 - start))), start, length, expected)


def check_extents(found: list[tuple[int, int]], start: int, length: int, expected: bytearray) -> None:
    """They are in order, and all that is not zero lies in them."""
    at = start
    for offset, size in positive(found):
        assert offset >= at
        assert not any(expected[at:offset])
        assert all(expected[offset : offset + size])
        at = offset + size
    assert not any(expected[at : start + length])


def positive(found: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for offset, size in found:
        assert size > 0
        yield offset, size
