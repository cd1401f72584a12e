"""Deltas that look into xz, zstd and zip files and into packages, end to end: files by the real programs, images by
mke2fs. A client whose library compresses otherwise gets the same image by plain packs."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from filesystems import run, sized
from hypothesis import given
from hypothesis import strategies as st
from test_deltas import Place, Source, measured
from test_inside import LIBRARY, MIB, Pair, fragmented, gnu_gzip, programs, published
from test_similar import edited

from trimtransfer import systemzstd
from trimtransfer.assembly import payoff
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Bytes, Kind
from trimtransfer.deltaindex import MAX_TARGET, DeltaIndex
from trimtransfer.repository import deltas
from trimtransfer.repository.audit import audit
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import make_bundle
from trimtransfer.repository.deltaunits import split
from trimtransfer.repository.publish import publish
from trimtransfer.store import DirectoryStore
from trimtransfer.tool import Kind as ToolKind
from trimtransfer.tool import Tool, Zstd, probe, usable

SIZE = 24 * MIB
LICENCE = (LIBRARY / "LICENSE.txt").read_bytes() if (LIBRARY / "LICENSE.txt").exists() else b"text" * 999
Files = dict[str, bytes]


def piped(*command: str) -> Callable[[bytes], bytes]:
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


def by_library(level: int) -> Callable[[bytes], bytes]:
    """What a zstd of the release that this library has makes."""
    how = {"write_checksum": True, "write_content_size": True}
    return lambda data: zstandard.ZstdCompressor(level=level, **how).compress(data)


MAKERS = {
    "kernel's xz": piped("xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"),
    "xz -9e, x86": piped("xz", "--x86", "--lzma2=preset=9e", "-c"),
    "xz in blocks": piped("xz", "-T2", "--block-size=60000", "-c", "-1"),
    "zstd 3": by_library(3),
    "zstd 19": by_library(19),
    "zstd -1": by_library(1),
}


@pytest.fixture(scope="module")
def versions() -> tuple[Files, Files]:
    """Some forty programs before and after an update."""
    rnd, old = random.Random(3), dict[str, bytes]()
    for path in sorted([*LIBRARY.rglob("*.so"), *LIBRARY.glob("*.py")])[:70]:
        old[path.name] = path.read_bytes()[:150_000]
    new = {name: data[:100] + edited(data, rnd, 900) for name, data in old.items()}
    del new[sorted(new)[3]]
    return old, {"added.py": b"something that is new\n" * 500, **new}


def image(path: Path, files: Files, *, size: int = SIZE) -> None:
    """Make an ext4 image with these files in folders."""
    tree = path.with_suffix(".tree")
    for name, data in files.items():
        (tree / name[0]).mkdir(parents=True, exist_ok=True)
        (tree / name[0] / name).write_bytes(data)
    run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-d", tree, sized(path, size))


def pair_of(folder: Path, versions: tuple[Files, Files], make: Callable[[bytes], bytes]) -> Pair:
    packed = [{f"{name}.c": make(data) for name, data in files.items()} for files in versions]
    return published(folder, lambda path, version: image(path, packed[int(version) - 1]))


@pytest.fixture(scope="module")
def modules(versions: tuple[Files, Files], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("modules"), versions, MAKERS["kernel's xz"])


@pytest.mark.parametrize("maker", MAKERS)
def test_files_packed_one_by_one(maker: str, versions: tuple[Files, Files], tmp_path: Path) -> None:
    """As kernels' modules and firmware are: what is fetched is a fraction of what plain packs take."""
    pair = pair_of(tmp_path, versions, MAKERS[maker])
    assert pair.report.tool_units == pair.report.units > 3
    assert pair.report.tool_seconds > 0
    assert pair.report.stored_bytes < 0.35 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    report = pair.sync(tmp_path / "out.img")
    assert (report.made.units, report.made.failed, report.made.declined) == (pair.report.units, 0, 0)
    assert report.network.bytes < 0.4 * pair.report.plain_bytes
    assert [decision.what for decision in report.decisions] == ["compressing again", "deltas"]
    checked = audit(DirectoryStore(pair.repository))
    assert (checked.damage, checked.deltas_made) == ((), pair.report.units)


def test_what_the_program_zstd_makes(versions: tuple[Files, Files], tmp_path: Path) -> None:
    """Its release and that of a library may agree or not: where they do not, nothing is lost."""
    make = piped("zstd", "-q", "-c", "-T0")
    pair = pair_of(tmp_path, versions, make)
    pair.sync(tmp_path / "out.img", "1")
    assert pair.sync(tmp_path / "out.img").made.failed == 0
    if systemzstd.is_there() and Tool(ToolKind.SYSTEM_ZSTD, 3, 0, Zstd.CHECKSUM).compress(bytes(999)) == make(
        bytes(999)
    ):
        assert pair.report.tool_units > 3
        assert pair.report.stored_bytes < 0.35 * pair.report.plain_bytes


def test_a_large_member_is_made_of_several_units(versions: tuple[Files, Files], tmp_path: Path) -> None:
    """Each takes what it has of it; where a file lies in pieces, its file system tells how it goes on."""
    packed = [piped("xz", "-1", "-c")(b"".join(files.values())) for files in versions]
    assert len(packed[1]) > 350_000
    pair = published(tmp_path, lambda path, version: fragmented(path, packed[int(version) - 1]))
    assert pair.report.tool_units > 1
    assert pair.report.stored_bytes < 0.6 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    assert pair.sync(tmp_path / "out.img").made.failed == 0


@pytest.mark.parametrize("compression", ["xz", "gzip"])
def test_packages(compression: str, versions: tuple[Files, Files], tmp_path: Path) -> None:
    """What dpkg-deb makes: members in an ``ar`` archive, at any byte."""

    def package(version: int) -> bytes:
        tree = tmp_path / f"package{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: x\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
        )
        for name, data in list(versions[version - 1].items())[:30]:
            (tree / name).write_bytes(data)
        command = ["dpkg-deb", f"-Z{compression}", "-b", tree, tmp_path / f"{version}.deb"]
        subprocess.run(command, check=True, capture_output=True)
        return (tmp_path / f"{version}.deb").read_bytes()

    debs = {version: package(int(version)) for version in "12"}
    pair = published(tmp_path, lambda path, version: image(path, {"x.deb": debs[version]}))
    assert (pair.report.tool_units > 0) == (compression == "xz")
    if compression == "xz":
        assert pair.report.stored_bytes < 0.6 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    assert pair.sync(tmp_path / "out.img").made.failed == 0


@pytest.mark.parametrize("level", [6, 9])
def test_zip_files(level: int, versions: tuple[Files, Files], tmp_path: Path) -> None:
    """Programs' archives: their entries are deflate, so nothing of the client's machine is needed."""

    def archive(version: str) -> bytes:
        folder = tmp_path / f"zip{version}"
        folder.mkdir()
        for name, data in versions[int(version) - 1].items():
            (folder / name).write_bytes(data)
        subprocess.run(["zip", "-q", "-X", f"-{level}", "-r", "../x.zip", "."], cwd=folder, check=True)
        return (tmp_path / "x.zip").rename(tmp_path / f"{version}.zip").read_bytes()

    if shutil.which("zip") is None:
        pytest.skip("zip is not installed")
    zips = {version: archive(version) for version in "12"}
    pair = published(tmp_path, lambda path, version: image(path, {"x.jar": b"#!/bin/sh\n" + zips[version]}))
    assert pair.report.wrapped_units > 1
    assert pair.report.tool_units == 0
    assert pair.report.stored_bytes < 0.35 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    assert pair.sync(tmp_path / "out.img").made.failed == 0


def test_all_sorts_beside_each_other(versions: tuple[Files, Files], tmp_path: Path) -> None:
    makers = [*MAKERS.values(), gnu_gzip, bytes]
    packed = [{f"{name}.c": makers[len(name) % 8](data) for name, data in files.items()} for files in versions]
    pair = published(tmp_path, lambda path, version: image(path, packed[int(version) - 1]))
    assert pair.report.stored_bytes < 0.4 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    assert pair.sync(tmp_path / "out.img").made.failed == 0


@pytest.mark.slow
def test_memory_with_members_at_their_limits(tmp_path: Path, rnd: random.Random) -> None:
    """Two packages of nearly 12 MiB of content each: liblzma takes 94 MiB for each of them."""
    first = b"".join(programs(12 * MIB).values())[: 12 * MIB - 100_000]
    old = {"a.xz": first, "b.xz": edited(first[::-1], rnd, 4000)}
    new = {name: edited(data, rnd, 5000) for name, data in old.items()}
    pack = piped("xz", "--lzma2=preset=4,dict=8MiB", "-c")
    packed = [{name: pack(data) for name, data in files.items()} for files in (old, new)]
    for number, files in enumerate(packed, 1):
        image(tmp_path / f"{number}.img", files, size=64 * MIB)
        publish(
            tmp_path / "made", tmp_path / f"{number}.img", image="disk", version=str(number), kind=Kind.DISK,
            level=1, deltas=False,
        )  # fmt: skip
    made = deltas.add_deltas(tmp_path / "made", "disk", base="1", version="2", level=1, workers=2)
    assert made.tool_units > 1
    place = Place(tmp_path, Source(tmp_path / "made", []))
    sync(place.repository, "disk", version="1", output=place.output)
    report = measured(place)
    assert place.output.read_bytes() == (tmp_path / "2.img").read_bytes()
    print(report["peak"], report["deltas"], made)
    assert report["deltas"]["units"] == made.units
    assert report["deltas"]["failed"] == 0
    assert report["peak"] <= 256 * MIB


@given(st.lists(st.tuples(st.integers(4096, 256 << 10), st.booleans()), min_size=1, max_size=200))
def test_units_begin_beside_members(records: list[tuple[int, bool]]) -> None:
    """All records are in one unit each, none too large for one; and a member is not cut where another place is near."""
    lengths, within = (np.array(column) for column in zip(*records, strict=True))
    parts = list(split(lengths.astype(np.int64), within.astype(np.bool_)))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(len(records)))
    assert all(0 < lengths[part].sum() <= MAX_TARGET for part in parts)
    few = np.zeros(len(records), np.bool_)
    few[1::2] = True
    assert not any(few[part.start] for part in split(lengths.astype(np.int64), few))


# ---- another library


@pytest.fixture
def otherwise(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A library that compresses otherwise, and whose probe says so."""
    real = Tool.compress

    def compress(tool: Tool, content: Bytes) -> bytes:
        made = bytearray(real(tool, content))
        made[len(made) // 2] ^= 1
        return bytes(made)

    probe.cache_clear()
    monkeypatch.setattr(Tool, "compress", compress)
    monkeypatch.setattr("trimtransfer.unit.make.__kwdefaults__", {"compress": compress})
    yield monkeypatch
    probe.cache_clear()


def test_a_library_that_compresses_otherwise(modules: Pair, tmp_path: Path, otherwise: pytest.MonkeyPatch) -> None:
    """Nothing is fetched in vain."""
    modules.sync(tmp_path / "out.img", "1")
    report = modules.sync(tmp_path / "out.img")
    assert (report.made.units, report.made.failed, report.made.declined) == (0, 0, modules.report.units)
    assert report.network.bytes < 1.1 * modules.report.plain_bytes
    checked = audit(DirectoryStore(modules.repository))
    assert (checked.damage, checked.deltas_made) == ((), 0)


def test_a_probe_that_did_not_tell(
    modules: Pair, tmp_path: Path, otherwise: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Units fail, and the plain packs serve."""
    modules.sync(tmp_path / "out.img", "1")
    otherwise.setattr("trimtransfer.assembly.trusted.usable", lambda checks: (1 << len(checks)) - 1)
    report = modules.sync(tmp_path / "out.img")
    assert report.made.units == 0
    assert report.made.failed == modules.report.units
    assert "a compressor has made something else" in caplog.text


def test_a_fast_line(modules: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressing again is left aside where it is out of proportion to the time it saves; other deltas are not."""
    modules.sync(tmp_path / "out.img", "1")
    monkeypatch.setattr(payoff, "NEGLIGIBLE", 0.01)
    report = sync(modules.repository, "disk", version="2", output=tmp_path / "out.img", bandwidth=1.25e9)
    (decision,) = report.decisions
    assert (decision.what, decision.used) == ("compressing again", False)
    assert (report.made.units, report.made.declined) == (0, modules.report.units)
    assert (tmp_path / "out.img").read_bytes() == modules.image("2").read_bytes()


def test_a_bundle_relies_on_no_library(modules: Pair, tmp_path: Path, otherwise: pytest.MonkeyPatch) -> None:
    """In the place of frames it has only deltas that work everywhere."""
    modules.sync(tmp_path / "out.img", "1")
    wanted = [Wanted("disk", (), ("1",), deltas=True)]
    made = make_bundle(DirectoryStore(modules.repository), tmp_path / "x.bundle", wanted)
    report = sync(tmp_path / "x.bundle", "disk", output=tmp_path / "out.img")
    assert report.made.units == 0
    assert (tmp_path / "out.img").read_bytes() == modules.image("2").read_bytes()
    assert made is not None


def test_the_index_names_what_units_need(modules: Pair) -> None:
    index = DeltaIndex((modules.repository / "images/disk/2/from-1.bin").read_bytes())
    checks = index.tool_checks()
    assert 0 < len(checks) <= 4
    assert usable(checks) == (1 << len(checks)) - 1
    for region in index.regions.tolist():
        units = index.units(region)
        assert units is not None
        assert (units.units["tools"] > 0).all()
        assert (units.units["work"] > 10).all()
        assert units.select(np.flatnonzero(units.units["tools"] == 0)).units.size == 0
