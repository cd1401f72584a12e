"""Boot images by zstd with several threads, end to end: published, synced, compared; images by mke2fs, boot images by
the real program. Whoever's library does otherwise gets the same by plain packs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from filesystems import run, sized
from test_deltas import Place, Source, measured
from test_inside import MIB, Pair, archive, fragmented, programs
from test_inside_tools import otherwise, piped  # noqa: F401 - a fixture
from test_similar import edited

from trimtransfer import systemzstd
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Bytes, Kind
from trimtransfer.deltaindex import DeltaIndex
from trimtransfer.errors import FormatError
from trimtransfer.repository import deltas
from trimtransfer.repository.audit import audit
from trimtransfer.repository.deltasmade import DeltaReport
from trimtransfer.repository.estimate import estimate
from trimtransfer.repository.publish import publish
from trimtransfer.store import DirectoryStore
from trimtransfer.tool import Kind as ToolKind
from trimtransfer.tool import Tool, Zstd

SIZE = 48 * MIB
SAME_RELEASE = systemzstd.is_there() and Tool(ToolKind.SYSTEM_ZSTD, 3, 0, Zstd.CHECKSUM).compress(bytes(999)) == piped(
    "zstd", "-q", "-c"
)(bytes(999))
pytestmark = pytest.mark.skipif(not SAME_RELEASE, reason="no library of the program's release")


@pytest.fixture(scope="module")
def archives() -> tuple[bytes, bytes]:
    """A boot image's archive before and after an update: words changed all over, a file more, one less."""
    rnd, old = random.Random(11), programs(37 * MIB)
    new = {name: edited(data, rnd, 900) for name, data in old.items()}
    del new[sorted(new)[3]]
    return archive(old), archive({"added": b"something that is new\n" * 500, **new})


def image(path: Path, boot: bytes) -> None:
    """An ext4 image with the file between others that do not change."""
    tree = path.with_suffix(".tree")
    (tree / "boot").mkdir(parents=True)
    (tree / "boot" / "config").write_bytes(random.Random(1).randbytes(70_000))
    early = archive({"kernel/x86/microcode/GenuineIntel.bin": random.Random(2).randbytes(90_001)})
    (tree / "boot" / "initrd.img").write_bytes(early + boot)
    run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-d", tree, sized(path, SIZE))


def published(folder: Path, make: Callable[[Path, bytes], None], boots: tuple[bytes, bytes]) -> Pair:
    """Publish two versions and make deltas."""
    for version, boot in zip("12", boots, strict=True):
        make(folder / f"{version}.img", boot)
        publish(
            folder / "repository", folder / f"{version}.img", image="disk", version=version, kind=Kind.DISK, level=1,
            deltas=False,
        )  # fmt: skip
    return Pair(folder, add_deltas(folder))


def add_deltas(folder: Path) -> DeltaReport:
    return deltas.add_deltas(folder / "repository", "disk", base="1", version="2", level=3, workers=2)


def packed(archives: tuple[bytes, bytes], *options: str) -> tuple[bytes, bytes]:
    first, second = (piped("zstd", "-q", "-c", *options)(data) for data in archives)
    return first, second


@pytest.fixture(scope="module")
def pair(archives: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """As Debian's and Ubuntu's mkinitramfs have it made."""
    return published(tmp_path_factory.mktemp("pair"), image, packed(archives, "-9", "-T0"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-9", "-T0"), ("-1", "-T0"), ("-3", "-T2")], ids=" ".join)
def test_a_boot_image(
    options: tuple[str, ...], archives: tuple[bytes, bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What is fetched is a fraction of what deltas take that compare the file as it is."""
    nine = options == ("-9", "-T0")
    pair = request.getfixturevalue("pair") if nine else published(tmp_path, image, packed(archives, *options))
    assert pair.report.tool_units > 1
    assert pair.report.stored_bytes < 0.3 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    report = pair.sync(tmp_path / "out.img")
    assert (report.made.units, report.made.failed, report.made.declined) == (pair.report.units, 0, 0)
    assert report.network.bytes < 0.32 * pair.report.plain_bytes
    checked = audit(DirectoryStore(pair.repository))
    assert (checked.damage, checked.deltas_made) == ((), pair.report.units)
    tools = [Tool.from_bytes(stored) for stored, _ in DeltaIndex(index_of(pair)).tool_checks()]
    assert all(tool.option & Zstd.JOBS for tool in tools)
    assert any(tool.before for tool in tools)


def index_of(pair: Pair) -> bytes:
    return (pair.repository / "images/disk/2/from-1.bin").read_bytes()


@pytest.mark.slow
def test_where_it_lies_in_pieces(archives: tuple[bytes, bytes], tmp_path: Path) -> None:
    """A file system tells how it goes on; jobs that lie in several places are made once."""
    boots = packed((archives[0][: 14 * MIB], archives[1][: 14 * MIB]), "-1", "-T0")
    pair = published(tmp_path, fragmented, boots)
    assert pair.report.tool_units > 0
    assert pair.report.stored_bytes < 0.5 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    assert pair.sync(tmp_path / "out.img").made.failed == 0


@pytest.mark.slow
def test_another_release(pair: Pair, tmp_path: Path, otherwise: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Its probe tells: nothing is fetched in vain, and the image is the same."""
    pair.sync(tmp_path / "out.img", "1")
    report = pair.sync(tmp_path / "out.img")
    assert report.made.failed == 0
    assert report.made.declined == pair.report.tool_units
    assert report.network.bytes < 1.1 * pair.report.plain_bytes


@pytest.mark.slow
def test_a_program_that_knows_no_jobs(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One from before: such a tool is none to it."""
    real = Tool.from_bytes.__func__  # type: ignore[attr-defined]  # a class method

    def before(cls: type[Tool], stored: bytes) -> Tool:
        tool: Tool = real(cls, stored)
        if tool.kind is not ToolKind.LZMA2 and (tool.option >= Zstd.JOBS or tool.window):
            raise FormatError("tool", 0, "a tool", stored.hex())
        return tool

    pair.sync(tmp_path / "out.img", "1")
    monkeypatch.setattr(Tool, "from_bytes", classmethod(before))
    report = pair.sync(tmp_path / "out.img")
    assert (report.made.failed, report.made.declined) == (0, pair.report.tool_units)


@pytest.mark.slow
def test_a_probe_that_did_not_tell(
    pair: Pair,
    tmp_path: Path,
    otherwise: pytest.MonkeyPatch,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Units fail, and the plain packs serve."""
    pair.sync(tmp_path / "out.img", "1")
    otherwise.setattr("trimtransfer.assembly.trusted.usable", lambda checks: (1 << len(checks)) - 1)
    report = pair.sync(tmp_path / "out.img")
    assert report.made.failed == pair.report.tool_units
    assert "a compressor has made something else" in caplog.text


@pytest.mark.slow
def test_what_nothing_makes_again_is_compared_as_it_is(
    archives: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(tool: Tool, content: Bytes) -> bytes:
        return bytes(len(content) // 4)

    monkeypatch.setattr(Tool, "compress", wrong)
    boots = packed((archives[0][: 14 * MIB], archives[1][: 14 * MIB]), "-1", "-T0")
    pair = published(tmp_path, image, boots)
    assert pair.report.tool_units == 0
    pair.sync(tmp_path / "out.img", "1")
    pair.sync(tmp_path / "out.img")


@pytest.mark.slow
def test_memory(pair: Pair, tmp_path: Path) -> None:
    """A job of level 9 has 16 MiB of content; a unit of one is made alone."""
    place = Place(tmp_path, Source(pair.repository, []))
    sync(place.repository, "disk", version="1", output=place.output)
    report = measured(place)
    assert place.output.read_bytes() == pair.image("2").read_bytes()
    assert report["deltas"]["failed"] == 0
    assert report["deltas"]["units"] == pair.report.units
    print("peak", report["peak"] >> 20)
    assert report["peak"] <= 256 * MIB


@pytest.mark.slow
def test_an_estimate_knows_it(pair: Pair, tmp_path: Path) -> None:
    """Units are planned there as they are made."""
    found = estimate(pair.repository, pair.image("2"), image="disk", parent="1", level=3)
    assert found.deltas is not None
    assert found.deltas.wrapped_units > 0
    assert found.deltas.saved_share > 0.5
