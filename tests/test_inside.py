"""Deltas that look into gzip files, end to end: images by mke2fs, files by GNU gzip; nothing wrong ever comes of it."""

from __future__ import annotations

import gzip
import random
import subprocess
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filesystems import run, sized
from test_similar import edited

from trimtransfer.assembly.report import SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.deltaindex import DeltaIndex
from trimtransfer.pack import pack_name
from trimtransfer.repository import deltas, deltaunits
from trimtransfer.repository.audit import audit
from trimtransfer.repository.deltasmade import DeltaReport
from trimtransfer.repository.imagebytes import ImageBytes
from trimtransfer.repository.places import ChunkReader
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.streams import Streams
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

MIB = 1 << 20
SIZE = 24 * MIB
LIBRARY = Path(sysconfig.get_path("stdlib"))


def gnu_gzip(data: bytes, level: int = 9) -> bytes:
    return subprocess.run(["gzip", "-n", f"-{level}"], input=data, capture_output=True, check=True).stdout


def archive(files: dict[str, bytes]) -> bytes:
    """Return a cpio archive (newc) as boot images have it."""
    out = bytearray()
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")]):
        path = name.encode() + b"\0"
        fields = [number, 0o100644, 0, 0, 1, 1_700_000_000, len(data), 0, 0, 0, 0, len(path), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out) + bytes(-len(out) % 512)


def programs(size: int) -> dict[str, bytes]:
    """Return real files of the machine, so many bytes of them or a little more: of Python, then of its packages."""
    found: dict[str, bytes] = {}
    packages = Path(np.__file__).parent.parent  # some distributions have little more than them
    for path in (*sorted([*LIBRARY.rglob("*.so"), *LIBRARY.glob("*.py")]), *sorted(packages.rglob("*.so*"))):
        if size > 0 and path.name not in found:
            found[path.name] = path.read_bytes()
            size -= len(found[path.name])
    assert size <= 0, "there are not enough programs"
    return found


@pytest.fixture(scope="module")
def archives() -> tuple[bytes, bytes]:
    """A boot image's archive before and after an update: words changed all over, a file more, one less."""
    rnd = random.Random(11)
    old = programs(7 * MIB)
    new = {name: edited(data, rnd, 900) for name, data in old.items()}
    names = sorted(new)
    del new[names[3]]
    return archive(old), archive({"added": b"something that is new\n" * 500, **new})


Maker = Callable[[Path, bytes], None]


def contiguous(path: Path, boot: bytes) -> None:
    """An ext4 image in which the file lies in one place."""
    tree = path.with_suffix(".tree")
    (tree / "boot").mkdir(parents=True, exist_ok=True)
    (tree / "boot" / "initrd.img").write_bytes(boot)
    run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-d", tree, sized(path, SIZE))


def fragmented(path: Path, boot: bytes) -> None:
    """An ext4 image in which it lies in holes that deleted files left."""
    tree = path.with_suffix(".tree")
    (tree / "full").mkdir(parents=True, exist_ok=True)
    for number in range(160):
        (tree / "full" / f"{number:03}").write_bytes(bytes([number + 1]) * (90 << 10))
    (tree / "initrd").write_bytes(b"")
    run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-m", 0, "-d", tree, sized(path, SIZE))
    path.with_suffix(".gz").write_bytes(boot)
    commands = [f"rm /full/{number:03}" for number in range(0, 160, 2)]
    commands += [f"write {path.with_suffix('.gz')} /initrd.img"]
    run("debugfs", "-w", "-f", "-", path, text="\n".join(commands))
    extents = run("debugfs", "-R", "stat /initrd.img", path)
    assert extents[extents.index("EXTENTS") :].count("):") > 3, extents


def bare(path: Path, boot: bytes) -> None:
    """A disk without a file system that anybody knows."""
    with open(sized(path, SIZE), "r+b") as file:
        file.seek(3 * MIB)
        file.write(boot)


def behind_another(path: Path, boot: bytes) -> None:
    """As processors' updates are put in front of a boot image: not compressed, a multiple of 512 bytes."""
    contiguous(path, archive({"kernel/x86/microcode/GenuineIntel.bin": random.Random(1).randbytes(70_000)}) + boot)


LAYOUTS: dict[str, Maker] = {
    "contiguous": contiguous,
    "fragmented": fragmented,
    "bare": bare,
    "behind another": behind_another,
}


@dataclass(frozen=True)
class Pair:
    """A repository of two versions, with deltas from 1 to 2, and the images."""

    folder: Path
    report: DeltaReport

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def image(self, version: str) -> Path:
        """Return the path of the source of a version."""
        return self.folder / f"{version}.img"

    def sync(self, output: Path, version: str = "2") -> SyncReport:
        """Sync and compare."""
        report = sync(self.repository, "disk", version=version, output=output)
        assert output.read_bytes() == self.image(version).read_bytes()
        return report

    def packs(self) -> Iterator[Path]:
        """Yield the packs of the deltas."""
        index = DeltaIndex((self.repository / "images/disk/2/from-1.bin").read_bytes())
        for region in index.regions.tolist():
            units = index.units(region)
            assert units is not None
            yield from (self.repository / pack_name(ref.digest) for ref in units.packs)


def published(folder: Path, make: Callable[[Path, str], None]) -> Pair:
    """Publish two versions that ``make`` writes, and make deltas of units of some 300,000 bytes."""
    for version in ("1", "2"):
        make(folder / f"{version}.img", version)
        publish(
            folder / "repository", folder / f"{version}.img", image="disk", version=version, kind=Kind.DISK, level=1,
            deltas=False,
        )  # fmt: skip
    return Pair(folder, add_deltas(folder))


def add_deltas(folder: Path) -> DeltaReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltaunits, "_TARGET", 300_000)
        return deltas.add_deltas(folder / "repository", "disk", base="1", version="2", level=3, workers=2)


@pytest.fixture(scope="module")
def pair(archives: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    boots = {str(number): gnu_gzip(data) for number, data in enumerate(archives, 1)}
    return published(tmp_path_factory.mktemp("pair"), lambda path, version: contiguous(path, boots[version]))


@pytest.mark.parametrize("level", [9, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_boot_image(layout: str, level: int, archives: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Wherever it lies: what is fetched is a fraction of what ordinary deltas take, and it takes several units."""
    boots = {str(number): gnu_gzip(data, level) for number, data in enumerate(archives, 1)}
    pair = published(tmp_path, lambda path, version: LAYOUTS[layout](path, boots[version]))
    assert pair.report.wrapped_units > 4
    assert pair.report.wrapped_bytes > 0.9 * len(boots["2"])
    assert pair.report.stored_bytes < 0.3 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    report = pair.sync(tmp_path / "out.img")
    assert report.made.failed == 0
    assert report.made.units == pair.report.units
    checked = audit(DirectoryStore(pair.repository))
    assert (checked.damage, checked.deltas_made) == ((), pair.report.units)
    if (layout, level) == ("contiguous", 9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deltaunits.NewContent, "_insides", lambda *_: None)
            without = add_deltas(tmp_path)
        assert without.wrapped_units == 0
        plain = pair.sync(tmp_path / "out.img", "1")
        plain = pair.sync(tmp_path / "out.img")
        assert report.network.bytes < 0.4 * plain.network.bytes


def test_many_small_files(tmp_path: Path) -> None:
    """Manual pages and changelogs: whole members, several in a unit, beside files that are not compressed."""
    rnd = random.Random(4)
    texts = {path.name: path.read_bytes()[:60_000] for path in sorted(LIBRARY.rglob("*.py"))[:250]}
    versions = {"1": texts, "2": {name: b"# changed\n" + edited(data, rnd, 3000) for name, data in texts.items()}}

    def make(path: Path, version: str) -> None:
        tree = path.with_suffix(".tree")
        for name, data in versions[version].items():
            (tree / name[0]).mkdir(parents=True, exist_ok=True)
            (tree / name[0] / f"{name}.gz").write_bytes(gnu_gzip(data, 9 if len(name) % 2 else 6))
            if len(name) % 5 == 0:
                (tree / name[0] / name).write_bytes(data)
        run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-d", tree, sized(path, SIZE))

    pair = published(tmp_path, make)
    assert pair.report.wrapped_units > 2
    assert pair.report.stored_bytes < 0.35 * pair.report.plain_bytes
    pair.sync(tmp_path / "out.img", "1")
    report = pair.sync(tmp_path / "out.img")
    assert report.made.failed == 0
    assert report.made.units == pair.report.units


def test_damaged_units_are_fetched_plain(pair: Pair, tmp_path: Path) -> None:
    """Damage within the wrapped unit, with a check that fits: then only the chunks' digests tell."""
    subprocess.run(["cp", "-a", pair.folder, tmp_path / "copy"], check=True)
    place = Pair(tmp_path / "copy", pair.report)
    place.sync(tmp_path / "out.img", "1")
    for path in place.packs():
        data = bytearray(path.read_bytes())
        for at in range(1000, len(data), 5000):
            data[at] ^= 1
        path.write_bytes(data)
    report = place.sync(tmp_path / "out.img")
    assert report.made.failed > 4
    assert audit(DirectoryStore(place.repository)).damage


def test_units_that_make_something_else(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that lies, or is wrong: every chunk is compared before it counts."""
    from trimtransfer.assembly import units

    real = units.make

    def lying(stored: bytes, base: bytes, *, limit: int) -> bytes:
        made = bytearray(real(stored, base, limit=limit))
        made[len(made) // 2] ^= 1
        return bytes(made)

    pair.sync(tmp_path / "out.img", "1")
    monkeypatch.setattr(units, "make", lying)
    assert pair.sync(tmp_path / "out.img").made.failed > 4


def test_an_old_image_that_somebody_changed(pair: Pair, tmp_path: Path) -> None:
    """What units start from is compared with its digests; those that miss something are left to plain packs."""
    output = tmp_path / "out.img"
    pair.sync(output, "1")
    output.chmod(0o644)
    data = bytearray(output.read_bytes())
    at = data.index(b"\x1f\x8b\x08") + 700_000
    data[at] ^= 1
    output.write_bytes(data)
    report = pair.sync(output)
    assert report.made.units > 2


def reader(folder: Path, data: bytes) -> ImageBytes:
    """Publish an image and return what reads it."""
    (folder / "source.img").write_bytes(data)
    publish(folder / "repository", folder / "source.img", image="disk", version="1", kind=Kind.DISK, level=1)
    return ImageBytes(ChunkReader(VersionReader.open(DirectoryStore(folder / "repository"), "disk")))


def test_any_bytes_of_an_image_are_read(tmp_path: Path, rnd: random.Random) -> None:
    data = rnd.randbytes(300_000) + bytes(200_000) + rnd.randbytes(77_777)
    image = reader(tmp_path, data)
    for _ in range(50):
        start, length = rnd.randrange(len(data)), rnd.choice([0, 1, 5000, 300_000, 1 << 20])
        assert image.read(start, length) == data[start : start + length]
        pieces = list(image.pieces(start, length))
        assert sum(piece.length for piece in pieces) == min(length, len(data) - start)


def test_streams_of_an_image(tmp_path: Path, archives: tuple[bytes, bytes]) -> None:
    """Members one after the other, one that is cut off, and what only looks like one."""
    content = archives[0][: 2 * MIB]
    parts = [gnu_gzip(content) + gzip.compress(content[:9000], mtime=1), gnu_gzip(content[::-1])[:300_000]]
    parts += [b"\x1f\x8b\x08\0" + bytes(range(200)), b"\x1f\x8b\x08" + b"\xff" * 300]
    starts, data = [], bytearray(8192)
    for part in parts:
        starts.append(len(data))
        data += part + bytes(-len(part) % 4096 + 4096)
    image = reader(tmp_path, bytes(data) + random.Random(2).randbytes(8192))
    streams = Streams(image, [*starts, len(data) + 8000], tmp_path, watch=Watch(None, None, ""))
    assert len(streams) == 3
    first, second, cut = (streams[number] for number in range(3))
    assert (first.whole, second.whole, cut.whole) == (True, True, False)
    assert streams.content(first, 0, len(content)) == content
    assert int(first.contents[-1]) == len(content)
    assert streams.read(first, 0, first.size) + streams.read(second, 0, second.size) == parts[0]
    assert streams.content(second, 0, int(second.contents[-1])) == content[:9000]
    known = int(cut.contents[-1])
    assert known > 500_000
    assert streams.content(cut, 0, known) == content[::-1][:known]
    for number in range(3):
        stream = streams[number]
        assert (np.diff(stream.bits) > 0).all()
        assert len(stream.bits) == len(stream.contents) == len(stream.types) + 1
    streams.close()


def test_hostile_streams_are_bounded(tmp_path: Path, rnd: random.Random) -> None:
    """Damaged members of all kinds: decoded as far as they go, or passed over."""
    data, starts = bytearray(4096), []
    for _ in range(40):
        member = bytearray(gzip.compress(rnd.randbytes(3000) * 30 + bytes(50_000), rnd.randint(1, 9), mtime=0))
        for _ in range(rnd.randint(0, 2)):
            member[rnd.randrange(10, len(member))] ^= 1 << rnd.randrange(8)
        starts.append(len(data))
        data += member + bytes(-len(member) % 512)
    image = reader(tmp_path, bytes(data))
    streams = Streams(image, starts, tmp_path, watch=Watch(None, None, ""))
    for number in range(len(streams)):
        stream = streams[number]
        file = streams.read(stream, 0, stream.size)
        made = zlib.decompressobj(-15).decompress(file[stream.head :]) if stream.whole else b""
        assert not stream.whole or streams.content(stream, 0, int(stream.contents[-1])) == made
    streams.close()
