"""Deltas end to end: who has the version that they start from fetches less, nobody else notices, and nothing that is
wrong with them makes a wrong image or stops a sync."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import BadServer, Fault, Nginx, Request
from syncing import BLOCK, SMALL_PACK, STARTS, Victim, content, leftovers, partition_table, put, write_sparse
from test_similar import edited

from trimtransfer.assembly import sync as sync_module
from trimtransfer.assembly import windows
from trimtransfer.assembly.deltaplan import UnitsOf, plan_deltas
from trimtransfer.assembly.plan import Groups, Window
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import Made, SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind, object_check
from trimtransfer.delta import encode
from trimtransfer.deltaindex import (
    BASE,
    MAX_BASE,
    MAX_INDEX,
    MAX_TARGET,
    TARGET,
    UNIT,
    DeltaIndex,
    Units,
    encode_index,
)
from trimtransfer.errors import Cancelled, FetchError
from trimtransfer.fetch.http import FetchOptions
from trimtransfer.fetch.mirrored import open_servers
from trimtransfer.location import PackRef
from trimtransfer.pack import PackBuilder, pack_name
from trimtransfer.repository import deltas, deltaunits
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore
from trimtransfer.table import MAX_RECORDS, Table

CALM = FetchOptions(first_delay=0.01, max_delay=0.05, retry_after_cap=0.1, attempts=2)
MIB = 1 << 20
FILE = 700_000


def make_versions(rng: np.random.Generator, rnd: random.Random) -> list[bytes]:
    """Three builds of one disk of five regions: words changed all over, bytes put in, files moved; then again."""
    size = STARTS[-1] * 512 + 1_200_000
    places = [start * 512 + BLOCK for start in STARTS[1:]]
    files = [content(rng, FILE) for _ in places]
    images = []
    for turn in range(3):
        image = bytearray(size)
        for at, data in zip(places, files, strict=True):
            put(image, at, data)
        image[:512] = partition_table(size)
        images.append(bytes(image))
        files = [edited(data, rnd, 700) for data in files]
        middle = FILE // 3 + turn
        files[0] = files[0][:middle] + rng.bytes(100) + files[0][middle:]
        files[1], files[2] = files[2], files[1]
    return images


@dataclass(frozen=True)
class Source:
    """A repository of three versions, with deltas from 1 to 2 and from 2 to 3, made once."""

    repository: Path
    images: list[bytes]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("deltas")
    seed = int(os.environ.get("TRIMTRANSFER_SEED") or secrets.randbits(32))
    print(f"TRIMTRANSFER_SEED={seed}")
    images = make_versions(np.random.default_rng(seed), random.Random(seed))
    repository = folder / "repository"
    for number, data in enumerate(images, 1):
        write_sparse(folder / "source.img", data)
        publish(
            repository, folder / "source.img", image="disk", version=str(number), kind=Kind.DISK, level=1,
            deltas=False, _pack_limit=SMALL_PACK,
        )  # fmt: skip
    add_small_deltas(repository, base="1", version="2")
    add_small_deltas(repository, base="2", version="3")
    return Source(repository, images)


class SmallPacks(PackBuilder):
    """Packs of at most four units."""

    def __init__(self) -> None:
        super().__init__()
        self.units = 0

    def full(self, next_size: int) -> bool:
        return self.units >= 4 or super().full(next_size)

    def add(self, stored: Any) -> int:
        offset = super().add(stored)
        self.units += 1
        return offset


def add_small_deltas(repository: Path, *, base: str, version: str) -> None:
    """Make deltas of which each makes some 200,000 bytes, in several packs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltaunits, "_TARGET", 200_000)
        patch.setattr(deltaunits, "_BASE", 400_000)
        patch.setattr(deltas, "PackBuilder", SmallPacks)
        report = deltas.add_deltas(repository, "disk", base=base, version=version, level=3, workers=2)
    assert report.units > 8
    assert report.packs > 2


class Place:
    """A repository with deltas, and an output."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.images = folder, source.images
        self.repository, self.output = folder / "repository", folder / "disk.img"
        subprocess.run(["cp", "-a", source.repository, self.repository], check=True)

    def index(self, version: str = "2", base: str = "1") -> Path:
        """Return the path of the index of a pair."""
        return self.repository / "images" / "disk" / version / f"from-{base}.bin"

    def packs(self, version: str = "2", base: str = "1") -> list[Path]:
        """Return the paths of the packs of deltas of a pair."""
        index = DeltaIndex(self.index(version, base).read_bytes())
        refs = {ref for region in index.regions.tolist() for ref in units_of(index, region).packs}
        return sorted(self.repository / pack_name(ref.digest) for ref in refs)

    def drop(self) -> None:
        """Delete all deltas."""
        packs = {*self.packs(), *self.packs("3", "2")}
        for path in (*self.repository.rglob("from-*.bin"), *packs):
            path.unlink()

    def objects(self) -> dict[str, bytes]:
        """Return everything that the repository serves."""
        files = [path for path in self.repository.rglob("*") if path.is_file() and ".trimtransfer" not in path.parts]
        return {str(path.relative_to(self.repository)): path.read_bytes() for path in files}

    def sync(self, version: str = "2", url: str | None = None, **options: Any) -> SyncReport:
        """Sync, and check what must hold whatever the options are."""
        options = {"output": self.output, "cache": self.folder / "cache", **options}
        report = sync(url or self.repository, "disk", version=version, **options)
        assert Path(options["output"]).read_bytes() == self.images[int(version) - 1]
        assert leftovers(Path(options["output"])) == set()
        assert report.content.size == report.length
        assert report.made.content <= report.content.fetched
        return report

    def at(self, version: str, name: str = "disk.img") -> Path:
        """Return an output that holds a version."""
        output = self.folder / name
        self.sync(version, output=output)
        return output

    def without(self, plain: Path, version: str = "2", base: str | None = "1", **options: Any) -> SyncReport:
        """Return the report of the same sync from the repository ``plain``, which has no deltas."""
        options = {"output": self.folder / "plain.img", "url": str(plain), **options}
        if base is not None:
            self.sync(base, output=options["output"], url=options["url"])
        return self.sync(version, **options)


def units_of(index: DeltaIndex, region: int) -> Units:
    """Return the units of a region that has some."""
    units = index.units(region)
    assert units is not None
    return units


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan one region at a time, and lose no time with retries."""
    real = sync_module.open_store

    def open_store(url: Any, **options: Any) -> Any:
        return open_servers(url, options=CALM, **options) if str(url).startswith("http") else real(url, **options)

    monkeypatch.setattr(windows, "WINDOW_REGIONS", 1)
    monkeypatch.setattr(sync_module, "open_store", open_store)


@pytest.fixture
def place(tmp_path: Path, source: Source) -> Place:
    return Place(tmp_path, source)


@pytest.fixture(scope="module")
def plain(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same repository without deltas."""
    place = Place(tmp_path_factory.mktemp("plain"), source)
    place.drop()
    return place.repository


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as process:
        yield process


# ---- who is concerned


def test_from_a_server_it_is_far_less(place: Place, nginx: Nginx) -> None:
    """By the server's count; with everything that is asked for."""
    nginx.root.rmdir()
    place.repository.rename(nginx.root)
    options = {"url": nginx.url, "ca_cert": nginx.ca_cert}
    costs = []
    for _ in range(2):
        place.sync("1", **options)
        nginx.forget()
        report = place.sync("2", **options)
        served = nginx.served(report.network.requests)
        assert sum(line.bytes for line in served) == report.network.bytes
        costs.append(report.network.bytes)
        if len(costs) == 1:
            assert report.made.units > 8
            assert report.made.failed == 0
            assert report.made.content > 2 * MIB
            shutil.rmtree(nginx.root / "images" / "disk" / "2" / "from-1.bin", ignore_errors=True)
            (nginx.root / "images" / "disk" / "2" / "from-1.bin").unlink()
        else:
            assert report.made == Made()
    assert costs[0] < costs[1] / 3, costs


@pytest.mark.parametrize("write", ["new", "in-place", "auto"])
def test_every_way_of_writing(place: Place, plain: Path, write: str) -> None:
    place.sync("1")
    report = place.sync("2", write=write)
    without = place.without(plain, write=write)
    assert report.wrote == without.wrote
    assert report.content == without.content
    assert report.network.bytes < without.network.bytes / 3
    assert (report.made.failed, report.rejected_chunks) == (0, 0)
    assert report.made.units > 8
    assert report.made.content > 0.9 * report.content.fetched
    again = place.sync("3", write=write)
    assert again.made.units > 8, "from the version that deltas made"
    assert again.made.failed == 0


@pytest.mark.parametrize(("version", "base"), [("1", None), ("2", None), ("3", "1"), ("2", "3"), ("1", "2")])
def test_others_are_not_concerned(place: Place, plain: Path, version: str, base: str | None) -> None:
    """Whoever has nothing, or another version: not a byte more, and nothing is different."""
    if base is not None:
        place.sync(base)
    report = place.sync(version)
    without = place.without(plain, version, base)
    assert report.made == without.made == Made()
    assert report.network.bytes == without.network.bytes
    assert report.content == without.content


@pytest.mark.parametrize("write", ["new", "in-place", "auto"])
@pytest.mark.parametrize("regions", [1, 32])
def test_a_file_without_tables_gets_them(
    place: Place, plain: Path, write: str, regions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that somebody put there: its version is known once it was hashed, its tables come from the repository."""
    monkeypatch.setattr(windows, "WINDOW_REGIONS", regions)
    for output, url in ((place.output, place.repository), (place.folder / "plain.img", plain)):
        write_sparse(output, place.images[0])
        assert place.sync("1", output=output, url=url).content.fetched == 0
    synced = place.sync("2", output=place.at("1", "synced.img"), write=write)
    report = place.sync("2", write=write)
    without = place.sync("2", output=place.folder / "plain.img", url=str(plain), write=write)
    assert report.made == synced.made
    assert report.made.units > 8
    assert report.network.bytes < without.network.bytes / 2


def place_with(tmp_path: Path, *disks: bytearray) -> Place:
    """Publish partitioned disks as versions 1, 2 ... and return a place for them."""
    images = []
    for number, image in enumerate(disks, 1):
        image[:512] = partition_table(len(image))
        images.append(bytes(image))
        write_sparse(tmp_path / "source.img", images[-1])
        publish(tmp_path / "made", tmp_path / "source.img", image="disk", version=str(number), kind=Kind.DISK)
    return Place(tmp_path, Source(tmp_path / "made", images))


def test_tables_are_not_fetched_to_save_less(tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> None:
    """A small change of a file without tables: fetching these would cost more than the delta saves."""
    old = bytearray(STARTS[-1] * 512 + 1_200_000)
    for start in STARTS[1:]:
        put(old, start * 512 + BLOCK, content(rng, 900_000))
    new = bytearray(old)
    at = STARTS[1] * 512 + BLOCK
    put(new, at, edited(bytes(new[at : at + 2000]), rnd, 1000))
    place = place_with(tmp_path, old, new)
    units = units_of(DeltaIndex(place.index().read_bytes()), 1)
    for costly in (False, True):
        if costly:  # the other version's tables take more
            rows = units.units.copy()
            rows["plain"] = rows["stored"] + 500
            index = DeltaIndex(place.index().read_bytes())
            cheap = Units.of(units.packs, rows, units.targets, units.bases)
            place.index().write_bytes(encode_index(index.target, index.base, [(1, cheap)]))
        output = tmp_path / f"{costly}.img"
        write_sparse(output, place.images[0])
        place.sync("1", output=output)
        report = place.sync("2", output=output)
        assert (report.made.units == 0) == costly
        assert report.network.bytes < 30_000
    place.sync("1")
    assert place.sync("2").made.units == 1, "where the tables are there, it is worth it all the same"


@pytest.mark.parametrize("status", [403, 404])
def test_tables_of_the_old_version_that_are_not_to_be_had(place: Place, status: int) -> None:
    """Pruned, and the server says so or, as some do, that it is forbidden."""
    write_sparse(place.output, place.images[0])
    place.sync("1")
    objects = place.objects()

    def script(request: Request, number: int) -> Fault | None:
        return Fault(status=status, body=b"") if "/1/tables.bin" in request.target else None

    # The newer version's own tables must not lie in the older one's file, else nobody could have it.
    with BadServer(objects, script) as server:
        report = place.sync("2", url=server.url)
    assert report.made == Made()


def test_a_chunk_in_several_places_is_made_once(tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> None:
    """New content in two regions, thus in two windows, and twice in one of them."""
    old, files = bytearray(STARTS[-1] * 512 + 1_200_000), [content(rng, 150_000) for _ in range(4)]
    places = [start * 512 + BLOCK for start in STARTS[1:]]
    for at, data in zip(places, files, strict=True):
        put(old, at, data)
    new, changed = bytearray(old), edited(files[0], rnd, 700)
    for at in (places[0], places[0] + 100 * BLOCK, places[2]):
        put(new, at, changed)
    place = place_with(tmp_path, old, new)
    for regions in (1, 32):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(windows, "WINDOW_REGIONS", regions)
            place.sync("1")
            report = place.sync("2")
        assert report.made.units == 1
        assert report.made.failed == 0
        assert 140_000 < report.made.content < 200_000
        assert report.network.bytes < 40_000


def test_publish_makes_them_from_the_parent(tmp_path: Path, source: Source) -> None:
    """What ``publish`` does by itself serves like those of the other tests."""
    for number, data in enumerate(source.images[:2], 1):
        write_sparse(tmp_path / "source.img", data)
        publish(tmp_path / "made", tmp_path / "source.img", image="disk", version=str(number), kind=Kind.DISK, level=3)
    place = Place(tmp_path, Source(tmp_path / "made", source.images))
    place.sync("1")
    report = place.sync("2")
    assert report.made.units > 0
    assert report.made.failed == 0
    assert report.network.bytes < report.made.content / 8


# ---- what plan and --json say


@pytest.mark.parametrize("adopted", [False, True])
def test_plan_says_what_sync_fetches(place: Place, adopted: bool) -> None:
    if adopted:
        write_sparse(place.output, place.images[0])
    place.sync("1")
    preview = plan(place.repository, "disk", version="2", output=place.output)
    report = place.sync("2")
    assert (preview.fetch_bytes, preview.fetch_requests) == (report.network.bytes, report.network.requests)
    assert (preview.content, preview.made) == (report.content, report.made)
    assert report.made.units > 8


def test_json(place: Place) -> None:
    place.sync("1")
    arguments = [
        place.repository,
        "disk",
        "--version",
        "2",
        "-o",
        place.output,
        "--cache",
        place.folder / "c",
        "--json",
    ]
    said = {}
    for command in ("plan", "sync"):
        whole = [sys.executable, "-m", "trimtransfer", command, *map(str, arguments)]
        done = subprocess.run(whole, check=True, capture_output=True, text=True)
        said[command] = json.loads(done.stdout)["deltas"]
    assert said["plan"] == said["sync"]
    assert said["sync"].keys() == {"units", "content", "failed", "declined", "solid"}
    assert said["sync"]["units"] > 8
    assert said["sync"]["content"] > MIB
    assert said["sync"]["failed"] == 0
    assert place.output.read_bytes() == place.images[1]


# ---- indexes that are wrong


def rewritten(place: Place, **changes: bytes) -> bytes:
    """Return the index with other digests of its versions."""
    index = DeltaIndex(place.index().read_bytes())
    units = ((region, units_of(index, region)) for region in index.regions.tolist())
    return encode_index(changes.get("target", index.target), changes.get("base", index.base), units)


def newer(place: Place) -> bytes:
    """Return the index as a program that is not written yet would."""
    data = place.index().read_bytes()
    return data[:8] + b"\2" + data[9:]


def damaged_units(place: Place) -> bytes:
    """Return the index with a byte changed in each region's units."""
    data = bytearray(place.index().read_bytes())
    for at in range(80 + 24 * len(DeltaIndex(bytes(data)).regions), len(data), 20):
        data[at] ^= 1
    return bytes(data)


def of_other_regions(place: Place) -> bytes:
    """Return an index whose units are said to be of the regions after theirs."""
    index = DeltaIndex(place.index().read_bytes())
    units = [(region + 1, units_of(index, region)) for region in index.regions.tolist()]
    return encode_index(index.target, index.base, units)


def of_bases_that_are_not_there(place: Place) -> bytes:
    """Return an index whose units are made of records beyond the old version's tables, or of other records."""
    index = DeltaIndex(place.index().read_bytes())
    found = []
    for number, region in enumerate(index.regions.tolist()):
        units = units_of(index, region)
        bases = units.bases.copy()
        if number % 2:
            bases["record"] += 5000
        else:
            bases["region"] = 1_000_000
        found.append((region, Units.of(units.packs, units.units, units.targets, bases)))
    return encode_index(index.target, index.base, found)


def of_other_bases(place: Place) -> bytes:
    """Return an index whose units are made of the records before theirs."""
    index = DeltaIndex(place.index().read_bytes())
    found = []
    for region in index.regions.tolist():
        units = units_of(index, region)
        bases = units.bases.copy()
        bases["record"] = np.where(bases["record"] > 1, bases["record"] - 1, bases["record"])
        found.append((region, Units.of(units.packs, units.units, units.targets, bases)))
    return encode_index(index.target, index.base, found)


INDEXES: dict[str, Callable[[Place], bytes]] = {
    "of another pair": lambda place: place.index("3", "2").read_bytes(),
    "to another version": lambda place: rewritten(place, target=bytes(32)),
    "from another version": lambda place: rewritten(place, base=bytes(32)),
    "of a newer format": newer,
    "nothing": lambda place: b"",
    "cut short": lambda place: place.index().read_bytes()[:-1],
    "cut within its header": lambda place: place.index().read_bytes()[:50],
    "garbage": lambda place: random.Random(5).randbytes(5000),
    "a login page": lambda place: b"<html>please log in</html>" * 10,
    "damaged units": damaged_units,
    "of other regions": of_other_regions,
    "of bases that are not there": of_bases_that_are_not_there,
    "of other bases": of_other_bases,
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES.keys())
def test_an_index_that_is_wrong(place: Place, plain: Path, index: Callable[[Place], bytes]) -> None:
    """Packs serve instead; planning says so, too."""
    place.sync("1")
    wrong, packs = index(place), sum(path.stat().st_size for path in place.packs())
    place.index().write_bytes(wrong)
    plan(place.repository, "disk", version="2", output=place.output)
    report = place.sync("2")
    without = place.without(plain)
    assert report.made.units == 0 or index is of_other_bases
    assert (report.made.failed > 0) == (index is of_other_bases)
    assert report.content == without.content
    wasted = len(wrong) + packs * (report.made.failed > 0)
    assert report.network.bytes <= without.network.bytes + wasted


def test_an_index_longer_than_any(place: Place) -> None:
    place.sync("1")
    os.truncate(place.index(), MAX_INDEX + 1)
    report = place.sync("2")
    assert report.made == Made()


@pytest.mark.parametrize("status", [401, 403, 404, 410, 416, 503])
@pytest.mark.parametrize("where", ["index", "packs"])
def test_a_server_that_refuses_them(place: Place, plain: Path, where: str, status: int) -> None:
    """Only what the network did is an error: it would do it to plain packs, too."""
    place.sync("1")
    wanted = [path.name for path in ([place.index()] if where == "index" else place.packs())]

    def script(request: Request, number: int) -> Fault | None:
        return Fault(status=status, body=b"no") if request.target.rpartition("/")[2] in wanted else None

    with BadServer(place.objects(), script) as server:
        if status == 503:
            with pytest.raises(FetchError):
                place.sync("2", url=server.url)
            assert place.output.read_bytes() == place.images[0]
            return
        report = place.sync("2", url=server.url)
    assert (report.made.units, report.made.content) == (0, 0)
    assert (report.made.failed > 8) == (where == "packs")
    assert report.content == place.without(plain).content


# ---- packs that are wrong


def flip(path: Path) -> None:
    """Change a byte of every unit."""
    data = bytearray(path.read_bytes())
    for at in range(20, len(data), 50):
        data[at] ^= 1
    path.write_bytes(data)


def exchange(path: Path) -> None:
    """Put another pack in its place."""
    path.write_bytes(PackBuilder().finish()[1])


PACKS: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1000),
    "emptied": lambda path: os.truncate(path, 0),
    "damaged": flip,
    "another": exchange,
}


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("mishap", PACKS.values(), ids=PACKS.keys())
def test_packs_that_are_wrong(place: Place, plain: Path, mishap: Callable[[Path], None], write: str) -> None:
    """All of them, or one: what the others make is made, and plain packs have the rest."""
    without = place.without(plain, write=write)
    packs = place.packs()
    for some in (packs[:1], packs[1:]):
        for path in some:
            mishap(path)
        place.sync("1", write=write)
        report = place.sync("2", write=write)
        assert report.content == without.content
        assert report.made.failed > 0
        assert (report.made.units > 0) == (some == packs[:1])
        assert report.network.bytes < without.network.bytes * 1.5


def test_a_pack_that_a_server_has_damaged_or_not(place: Place) -> None:
    """One is damaged and one is gone: the others count, whatever the order of answers."""
    place.sync("1")
    packs = place.packs()
    flip(packs[0])
    objects = place.objects()
    del objects[str(packs[1].relative_to(place.repository))]
    with BadServer(objects) as server:
        report = place.sync("2", url=server.url)
    assert report.made.failed > 1


def with_lies(place: Place, rng: np.random.Generator) -> int:
    """Let every second unit be a right delta from a right base, of something else; return how many are."""
    store, old = DirectoryStore(place.repository), VersionReader.open(DirectoryStore(place.repository), "disk", "1")
    index = DeltaIndex(place.index().read_bytes())
    found, lies = [], 0
    for region in index.regions.tolist():
        units = units_of(index, region)
        rows, packs, runs = units.units.copy(), list(units.packs), iter(units.bases.tolist())
        for row in rows:
            base = b"".join(content_of(place.images[0], old, *next(runs)) for _ in range(int(row["bases"])))
            if lies % 2:
                delta, builder = encode(base, rng.bytes(int(row["raw"])), level=1), PackBuilder()
                row["offset"], row["stored"] = builder.add(delta), len(delta)
                row["check"] = np.frombuffer(object_check(delta), dtype=np.uint8)
                row["plain"] = min(2**32 - 1, 4 * len(delta))
                digest, data = builder.finish()
                store.put(pack_name(digest), data)
                row["pack"] = len(packs)
                packs.append(PackRef(digest, len(data)))
            lies += 1
        found.append((region, Units.of(tuple(packs), rows, units.targets, units.bases)))
    place.index().write_bytes(encode_index(index.target, index.base, found))
    return lies // 2


def content_of(image: bytes, reader: VersionReader, region: int, record: int, count: int) -> bytes:
    """Return the content of records of a version."""
    table, start = reader.table(region), int(reader.manifest.starts[region])
    low = start + int(table.offsets[record])
    high = start + int(table.offsets[record + count - 1]) + int(table.lengths[record + count - 1])
    return image[low:high]


@pytest.mark.parametrize("gone", [False, True])
def test_units_that_make_something_else(
    place: Place, rng: np.random.Generator, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With right checks everywhere: the chunks' digests tell, and the region that they are in is right at once."""
    truth = place.packs()
    lies = with_lies(place, rng)
    place.sync("1")
    if gone:
        truth[-1].unlink()
    looked: list[int] = []
    real = sync_module.wrong_regions

    def wrong_regions(*arguments: Any, **options: Any) -> list[int]:
        looked.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(sync_module, "wrong_regions", wrong_regions)
    report = place.sync("2")
    assert report.made.failed >= lies
    assert report.made.units > 0
    assert len(looked) == 1, "nothing was wrong when it was verified"


# ---- an old image that is not what it was


@pytest.mark.parametrize("write", ["new", "in-place"])
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_an_old_image_that_lies(place: Place, rnd: random.Random, write: str, share: float) -> None:
    """Bytes of it are others, its times and its length are not."""
    place.sync("1")
    found = os.stat(place.output)
    place.output.chmod(0o644)
    data = bytearray(place.output.read_bytes())
    for at in range(0, len(data) - BLOCK, BLOCK):
        if rnd.random() < share and any(data[at : at + BLOCK]):
            data[at + rnd.randrange(BLOCK)] ^= 1 << rnd.randrange(8)
    write_sparse(place.output, bytes(data))
    place.output.chmod(0o444)
    os.utime(place.output, ns=(found.st_atime_ns, found.st_mtime_ns))
    report = place.sync("2", write=write)
    assert report.made.failed > 0
    assert (report.made.units == 0) == (share == 1.0)


# ---- stopping and going on


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_kills(place: Place, victim: Victim, rnd: random.Random, write: str) -> None:
    total = victim.sync(place.repository, "disk", version="1", output=place.output)
    assert total.error is None
    total = victim.sync(place.repository, "disk", version="2", output=place.output, write=write)
    assert total.result["deltas"]["units"] > 8
    kills = 0
    for number in range(4):
        output = place.folder / f"{number}.img"
        victim.sync(place.repository, "disk", version="1", output=output)
        made = 0
        for _ in range(2):
            at = rnd.randrange(total.calls)
            ended = victim.sync(place.repository, "disk", version="2", output=output, write=write, kill_at=at)
            assert ended.error is None
            kills += ended.killed
            assert write == "in-place" or output.read_bytes() in place.images[:2]
        ended = victim.sync(place.repository, "disk", version="2", output=output, write=write)
        assert ended.error is None
        assert ended.result is not None
        assert output.read_bytes() == place.images[1]
        assert leftovers(output) == set()
        made = ended.result["deltas"]
        assert made["failed"] == 0
        assert made["units"] <= total.result["deltas"]["units"]
        assert ended.result["network"]["bytes"] <= total.result["network"]["bytes"] + 100_000
    assert kills > 2


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_cancelled_it_goes_on_where_it_stopped(place: Place, write: str) -> None:
    place.sync("1")
    event, seen = threading.Event(), set[int]()

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "fetch" and done:
            seen.add(done)
            if len(seen) > 3:
                event.set()

    with pytest.raises(Cancelled):
        sync(
            place.repository, "disk", version="2", output=place.output, cache=place.folder / "cache", write=write,
            connections=1, cancel=event, progress=progress,
        )  # fmt: skip
    assert place.output.read_bytes() == place.images[0]
    whole = plan(place.repository, "disk", version="2", output=place.at("1", "other.img"))
    report = place.sync("2", write=write)
    assert 0 < report.made.units < whole.made.units
    assert report.made.failed == 0
    assert report.network.bytes < whole.fetch_bytes


def test_progress_reaches_its_end(place: Place) -> None:
    """Whether units are made or fail."""
    for spoil in (False, True):
        place.sync("1")
        if spoil:
            for path in place.packs():
                flip(path)
        seen: list[tuple[int, int]] = []

        def progress(phase: str, done: int, total: int, seen: list[tuple[int, int]] = seen) -> None:
            if phase == "fetch":
                seen.append((done, total))

        place.sync("2", progress=progress)
        assert all(done <= total for done, total in seen)
        assert seen[-1][0] == seen[-1][1]


# ---- what is worth it


@pytest.mark.parametrize(("needed", "worth"), [(1, False), (3, False), (4, True), (10, True)])
def test_a_unit_is_made_where_it_costs_less_than_what_is_wanted_of_it(needed: int, worth: bool) -> None:
    """Ten chunks for 3000 bytes, which take 1000 each in plain frames."""
    digests = np.random.default_rng(1).integers(0, 256, (10, 32), dtype=np.uint8)
    table = Table.from_records(np.full(10, 4096, np.uint32), digests)
    units = np.zeros(1, UNIT)
    units["offset"], units["stored"], units["raw"], units["plain"], units["targets"] = 16, 3000, 40_960, 10_000, 1
    made = Units.of((PackRef(bytes(32), 5000),), units, np.array([(0, 10)], TARGET), np.zeros(0, BASE))
    window = Window.of([0], [0], [table])
    groups = Groups.of(window, np.arange(10))
    wanted = np.zeros(10, np.bool_)
    wanted[groups.numbers(10)[:needed]] = True
    parts = [UnitsOf(0, table, made)]
    found = plan_deltas(window, groups, wanted, np.zeros(10, np.bool_), parts, lambda region: None)
    assert len(found.fetch.frames) == worth
    assert found.fetch.wanted["start"].tolist() == [4096 * n for n in range(needed)] * worth


# ---- memory

MEASURED = """
import json, re, sys
from trimtransfer.assembly.sync import sync
report = sync(sys.argv[1], "disk", version="2", output=sys.argv[2], cache=sys.argv[3], connections=16).to_dict()
# Not ru_maxrss: a process inherits that from the one that started it.
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({**report, "peak": peak}))
"""


def measured(place: Place) -> dict[str, Any]:
    """Sync to version 2 in a process of its own and return the report with its peak memory."""
    command = [sys.executable, "-c", MEASURED, str(place.repository), str(place.output), str(place.folder / "cache")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("there", [True, False])
def test_memory_of_planning_is_bounded_whatever_an_index_says(there: bool) -> None:
    """Every unit of a region is said to be made of a whole table."""
    count = 1000
    digests = np.random.default_rng(1).integers(0, 256, (count, 32), dtype=np.uint8)
    table = Table.from_records(np.full(count, 4096, np.uint32), digests)
    old = Table.from_records(np.full(MAX_RECORDS, 1000, np.uint32), np.ones((MAX_RECORDS, 32), np.uint8))
    units, targets, bases = np.zeros(count, UNIT), np.ones(count, TARGET), np.zeros(count, BASE)
    units["offset"], units["stored"], units["raw"], units["plain"] = np.arange(16, 16 + count), 1, 4096, 4096
    units["targets"] = units["bases"] = 1
    targets["record"], bases["count"] = np.arange(count), MAX_RECORDS
    made = Units.of((PackRef(bytes(32), 5000),), units, targets, bases)
    window = Window.of([0], [0], [table])
    groups = Groups.of(window, np.arange(count))
    wanted, placed = np.ones(len(groups), np.bool_), np.zeros(count, np.bool_)
    tracemalloc.start()
    try:
        found = plan_deltas(
            window, groups, wanted, placed, [UnitsOf(0, table, made)], lambda region: (0, old) if there else None
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * MIB
    assert len(found.fetch.frames) == (32 if there else 0)
    assert all(len(found.base(unit)) == MAX_RECORDS for unit in range(len(found.fetch.frames)))


def first_table(place: Place, version: str) -> Table:
    """Return the table of a version's first region."""
    return VersionReader.open(DirectoryStore(place.repository), "disk", version).table(0)


@pytest.mark.slow
def test_memory_with_units_at_their_limits(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units that make nearly 8 MiB out of nearly 16, a pack each, and differ from these everywhere; 16 connections."""
    files = np.frombuffer(rng.bytes(30 * MIB), dtype="<u4")

    def build() -> bytes:
        words = files.copy().reshape(-1, 16)
        words[:, :5] = rng.integers(0, 1 << 32, (len(words), 5), dtype=np.uint32)
        return words.tobytes()

    monkeypatch.setattr(deltaunits, "_TARGET", MAX_TARGET - 300_000)
    monkeypatch.setattr(deltaunits, "_BASE", MAX_BASE)
    images = [build() + build(), build() + bytes(len(files.data.cast("B")))]
    for number, data in enumerate(images, 1):
        (tmp_path / "source.img").write_bytes(data)
        publish(tmp_path / "made", tmp_path / "source.img", image="disk", version=str(number), kind=Kind.DISK, level=1)
    place = Place(tmp_path, Source(tmp_path / "made", images))
    index = DeltaIndex(place.index().read_bytes())
    sizes = [units_of(index, region).units["raw"].tolist() for region in index.regions.tolist()]
    assert min(sizes[0]) > 7 * MIB
    assert len(place.packs()) == len(sizes[0]) == 4
    runs = units_of(index, 0).bases
    assert runs["count"].sum() * (60 * MIB / len(first_table(place, "1"))) > 4 * 14 * MIB
    place.sync("1")
    report = measured(place)
    assert place.output.read_bytes() == place.images[1]
    print(json.dumps({name: report[name] for name in ("peak", "deltas", "network")}))
    assert report["deltas"] == {"units": 4, "content": 30 * MIB, "failed": 0, "declined": 0, "solid": 0}
    assert report["peak"] <= 256 * MIB
