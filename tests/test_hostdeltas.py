"""Host profiles end to end: a host like the one that was recorded fetches less, another one uses what fits it, and
nothing that is wrong with profiles or with the deltas from them makes a wrong image or stops a sync."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from images import make_ext4
from kills import changes_until
from stopping import objects_below, stopped_in
from syncing import STARTS, content, leftovers, partition_table, put, write_sparse
from test_deltas import SmallPacks
from test_publish import tree as objects
from test_similar import edited

from trimtransfer.assembly.hostunits import BasePlaces, fairly_priced, fitting
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import Made, SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import BLOCK_SIZE, Kind
from trimtransfer.cli.repo import repo
from trimtransfer.deltaindex import BASE, TARGET, UNIT, Units, encode_index
from trimtransfer.errors import Cancelled, NotFound, SourceRefused, TargetRefused
from trimtransfer.fetch.manners import Manners
from trimtransfer.hostdelta import BaseChunks, HostDelta, encode_host_delta
from trimtransfer.hosts import Offer, encode_hosts, parse_hosts
from trimtransfer.index.host import HostIndex
from trimtransfer.index.seed import seed_from_path
from trimtransfer.location import PackRef
from trimtransfer.pack import pack_name
from trimtransfer.profile import Profile
from trimtransfer.repository import deltas, deltaunits, hostcontent
from trimtransfer.repository.audit import audit
from trimtransfer.repository.hostdeltas import add_host_deltas, remove_profile
from trimtransfer.repository.profiles import list_profiles, record_profile
from trimtransfer.repository.publish import publish
from trimtransfer.store import DirectoryStore
from trimtransfer.table import ZERO, Table

KILLS = 12
MKE2FS = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin")
pytestmark = pytest.mark.skipif(MKE2FS is None, reason="needs mke2fs (package e2fsprogs)")


def real_files(count: int) -> list[Path]:
    """Return libraries or other files of this machine, some hundred KiB each, all different."""
    found: dict[int, Path] = {}
    for folder, folders, names in os.walk("/usr/lib"):
        folders.sort()
        for path in (Path(folder, name) for name in sorted(names)):
            if not path.is_symlink() and path.is_file() and 250_000 < path.stat().st_size < 500_000:
                found.setdefault(path.stat().st_size, path)
        if len(found) >= 4 * count:
            break
    if len(found) < count:
        pytest.skip("this machine has few files in /usr/lib")
    return [found[size] for size in sorted(found)[:count]]


@dataclass(frozen=True)
class Source:
    """A repository with a profile and deltas from it, the image, and the reference host's tree."""

    repository: Path
    image: bytes
    tree: Path
    plain: int
    """Bytes that a host of the profile fetches without the deltas."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Of an image's files three are the host's, four are like files of it, and one is like nothing."""
    folder = tmp_path_factory.mktemp("hosts")
    seed = int(os.environ.get("TRIMTRANSFER_SEED") or secrets.randbits(32))
    print(f"TRIMTRANSFER_SEED={seed}")
    rnd = random.Random(seed)
    host, guest = folder / "host", folder / "guest"
    for number, path in enumerate(real_files(8)):
        data = path.read_bytes()
        for tree, held in ((host, data), (guest, data if number < 3 else edited(data, rnd, 1500))):
            if tree is host and number == 7:
                continue
            target = tree / f"usr/{number % 2}" / f"file{number}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(held)
            target.chmod(0o644)
    for path in (host, *host.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    make_ext4(guest, folder / "disk.img", size=16 << 20)
    repository = folder / "repository"
    publish(repository, folder / "disk.img", image="disk", version="1", kind=Kind.DISK, level=3)
    plain = sync(repository, "disk", output=folder / "plain.img", seeds=[host], cache=folder / "cache").network.bytes
    record_profile(repository, "deb", [host])
    make_small_deltas(repository)
    return Source(repository, (folder / "disk.img").read_bytes(), host, plain)


def make_small_deltas(repository: Path, **options: Any) -> None:
    """Make deltas of which each makes some 200,000 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltaunits, "_TARGET", 200_000)
        patch.setattr(hostcontent, "_BASE", 400_000)
        patch.setattr(deltas, "PackBuilder", SmallPacks)
        report = add_host_deltas(repository, "disk", profile="deb", **{"level": 3, "workers": 2, **options})
    assert report.units > 4
    assert (report.profile, report.base, report.problem) == ("deb", "", "")
    assert report.stored_bytes < report.plain_bytes
    assert report.content_bytes <= report.new_bytes


class Place:
    """A copy of the repository and of the host's files, and an output."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.image, self.plain = folder, source.image, source.plain
        self.repository, self.output, self.host = folder / "repository", folder / "disk.img", folder / "host"
        subprocess.run(["cp", "-a", source.repository, self.repository], check=True)
        subprocess.run(["cp", "-a", source.tree, self.host], check=True)
        self.files = sorted(path for path in self.host.rglob("*") if path.is_file())

    @property
    def folder_of_version(self) -> Path:
        return self.repository / "images/disk/1"

    @property
    def index(self) -> Path:
        return self.folder_of_version / "host-deb.bin"

    @property
    def hosts(self) -> Path:
        return self.folder_of_version / "hosts.bin"

    def sync(self, **options: Any) -> SyncReport:
        """Sync with the host's files as a seed, and check what must hold whatever the options are."""
        options = {"output": self.output, "cache": self.folder / "cache", "seeds": [self.host], **options}
        report = sync(self.repository, "disk", version="1", **options)
        assert Path(options["output"]).read_bytes() == self.image
        assert leftovers(Path(options["output"])) == set()
        assert report.content.size == report.length
        assert report.made.content <= report.content.fetched
        return report

    def packs(self) -> list[Path]:
        """Return the packs of the deltas."""
        index = HostDelta(self.index.read_bytes()).index
        units = [units for region in index.regions.tolist() if (units := index.units(region)) is not None]
        return sorted({self.repository / pack_name(ref.digest) for one in units for ref in one.packs})


@pytest.fixture
def place(public_path: Path, source: Source) -> Place:
    """Where every user may read the files: an index of host files has no others."""
    return Place(public_path, source)


# ---- who fetches what


def test_a_host_of_the_profile_fetches_less(place: Place) -> None:
    options: dict[str, Any] = {"output": place.output, "seeds": [place.host], "cache": place.folder / "cache"}
    preview = plan(place.repository, "disk", version="1", **options)
    report = place.sync()
    assert report.network.bytes < 0.7 * place.plain
    assert report.made.units > 4
    assert (report.made.failed, report.rejected_chunks) == (0, 0)
    assert (preview.fetch_bytes, preview.fetch_requests) == (report.network.bytes, report.network.requests)
    assert (preview.content, preview.made) == (report.content, report.made)
    offer = parse_hosts(place.hosts.read_bytes())[0]
    assert offer.length == place.index.stat().st_size
    assert 10 < len(offer.sample) <= 32


@pytest.mark.parametrize("refresh", [False, True])
def test_from_the_index_of_host_files(place: Place, refresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtransfer.index.host.default_paths", lambda: [place.host])
    monkeypatch.setattr("trimtransfer.assembly.hostfiles.LEAST", 1000)
    host = HostIndex(place.folder / "index")
    if not refresh:
        host.update([place.host])
    manners = Manners(metered=True)  # every byte counts, whatever a scan takes
    report = place.sync(seeds=(), host_index=host, refresh_host_index=refresh, manners=manners)
    assert report.network.bytes < 0.7 * place.plain
    assert report.made.failed == 0


def test_a_host_that_differs_uses_what_fits(place: Place) -> None:
    """A file that the deltas start from is gone, and one changed in the middle."""
    place.files[4].unlink()
    data = bytearray(place.files[5].read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50_000] = bytes(50_000)
    place.files[5].write_bytes(data)
    report = place.sync()
    assert report.made.units > 0
    assert report.made.failed == 0, "what is not here is known before anything is fetched"
    shutil.rmtree(place.folder / "cache")
    place.hosts.unlink()
    without = place.sync(output=place.folder / "other.img")
    assert without.made == Made()
    assert report.network.bytes < without.network.bytes


def test_a_host_unlike_the_profile_spends_one_small_request(place: Place, rnd: random.Random) -> None:
    for path in place.files:
        path.write_bytes(rnd.randbytes(100_000))
    report = place.sync()
    hosts = place.hosts.stat().st_size
    shutil.move(place.hosts, place.folder / "hosts.bin")
    without = place.sync(output=place.folder / "other.img")
    assert report.made == Made()
    assert report.network.bytes - without.network.bytes == hosts < 1000


@pytest.mark.parametrize("seeds", [True, False])
def test_who_has_no_files_or_a_version_asks_for_no_index(place: Place, seeds: bool) -> None:
    """Without seeds, only whether there is something for whoever has nothing; an update, which is no first download,
    not even that."""
    if seeds:
        place.sync()
        with open(place.output, "r+b") as image:
            image.write(b"changed")
    asked: list[str] = []
    real = DirectoryStore.read

    def read(self: DirectoryStore, name: str, **options: Any) -> bytes:
        asked.append(name)
        return real(self, name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectoryStore, "read", read)
        report = place.sync(seeds=[place.host] if seeds else ())
    assert report.made == Made()
    assert asked
    assert [name for name in asked if "host" in name] == ([] if seeds else ["images/disk/1/hosts.bin"])


def test_publish_makes_them(place: Place, public_path: Path) -> None:
    """By itself, beside the version; where the tree is gone, the version is published all the same and says why."""
    again = public_path / "again"
    record_profile(again, "deb", [place.host])
    (public_path / "source.img").write_bytes(place.image)
    report = publish(
        again, public_path / "source.img", image="disk", version="1", kind=Kind.DISK, level=3, profiles=["deb"]
    )
    (made,) = report.deltas
    assert made.units > 0
    assert not made.problem
    place.repository = again
    assert place.sync().network.bytes < 0.8 * place.plain
    shutil.move(place.host, public_path / "moved")
    with open(public_path / "source.img", "r+b") as file:
        file.write(b"other")
    report = publish(
        again, public_path / "source.img", image="disk", version="2", kind=Kind.DISK, level=3, profiles=["deb"]
    )
    assert "is not there" in report.deltas[-1].problem
    assert not (again / "images/disk/2/hosts.bin").exists()
    with pytest.raises(NotFound, match="profile"):
        publish(again, public_path / "source.img", image="disk", version="3", profiles=["other"])


def test_a_new_version_takes_over_what_did_not_change(
    public_path: Path, rng: np.random.Generator, rnd: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units of regions that the parent has, too, are not made again; those whose packs are gone are."""
    monkeypatch.setattr(deltaunits, "_TARGET", 300_000)
    monkeypatch.setattr(deltas, "PackBuilder", SmallPacks)
    repository, host = public_path / "repository", public_path / "host"
    host.mkdir()
    image = bytearray(STARTS[-1] * 512 + 1_200_000)
    image[:512] = partition_table(len(image))
    for number, start in enumerate(STARTS[1:]):
        data = content(rng, 700_000)
        put(image, start * 512 + BLOCK_SIZE, edited(data, rnd, 1500))
        (host / f"file{number}").write_bytes(data)
        (host / f"file{number}").chmod(0o644)
    host.chmod(0o755)
    record_profile(repository, "deb", [host])
    made = []
    for version in ("1", "2", "3"):
        write_sparse(public_path / "source.img", bytes(image))
        options: dict[str, Any] = {"image": "disk", "version": version, "kind": Kind.DISK, "level": 3}
        report = publish(repository, public_path / "source.img", deltas=False, profiles=["deb"], **options)
        made.append(report.deltas[0])
        output = public_path / f"{version}.img"
        synced = sync(repository, "disk", output=output, seeds=[host], cache=public_path / "cache")
        assert output.read_bytes() == bytes(image)
        assert synced.made.units == made[-1].units > 8
        assert synced.made.failed == 0
        put(image, STARTS[2] * 512 + 50 * BLOCK_SIZE, content(rng, 40_000))
        if version == "2":
            path = repository / "images/disk/2/host-deb.bin"
            units = HostDelta(path.read_bytes()).index.units(1)
            assert units is not None
            for ref in units.packs:
                (repository / pack_name(ref.digest)).unlink()
    first, second, third = (set(units_in(repository, version)) for version in "123")
    assert len(first & second) > len(first) / 2
    assert len(first & third) < len(first & second)
    assert made[0].new_bytes <= made[1].new_bytes
    assert audit(DirectoryStore(repository)).not_made == ()


def units_in(repository: Path, version: str) -> list[tuple[bytes, int]]:
    """Return where the units of a version lie."""
    index = HostDelta((repository / f"images/disk/{version}/host-deb.bin").read_bytes()).index
    found = [units for region in index.regions.tolist() if (units := index.units(region)) is not None]
    return [(units.packs[int(row["pack"])].digest, int(row["offset"])) for units in found for row in units.units]


# ---- what goes wrong on the way


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_run_goes_on(place: Place, at: int) -> None:
    cancel, calls = threading.Event(), 0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal calls
        calls += phase == "fetch" and done > 0
        if calls > at:
            cancel.set()

    with pytest.raises(Cancelled):
        sync(
            place.repository, "disk", output=place.output, seeds=[place.host], cache=place.folder / "cache",
            cancel=cancel, progress=progress,
        )  # fmt: skip
    report = place.sync()
    assert report.made.failed == 0
    assert report.network.bytes < 0.7 * place.plain


def test_files_that_changed_since_they_were_indexed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that lies costs the units that start from it, and a look at other places."""
    seed_from_path(place.host, Kind.DISK, scratch=place.folder / "cache" / "seeds").close()
    shutil.copy(place.files[3], place.host / "copy")
    seed_from_path(place.host, Kind.DISK, scratch=place.folder / "cache" / "seeds").close()
    before = {path: path.stat() for path in place.files}
    monkeypatch.setattr("trimtransfer.index.update._is_unchanged", lambda entry, found: True)
    for path in place.files[3:5]:
        data = bytearray(path.read_bytes())
        data[20_000:60_000] = bytes(40_000)
        path.write_bytes(data)
        os.utime(path, ns=(before[path].st_atime_ns, before[path].st_mtime_ns))
    report = place.sync()
    assert report.made.units > 0
    assert report.made.failed > 0


def damaged(data: bytes) -> bytes:
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


def of_another_version(data: bytes) -> bytes:
    delta = HostDelta(data)
    units = [(region, units) for region in delta.index.regions.tolist() if (units := delta.index.units(region))]
    return encode_host_delta(delta.chunks, encode_index(bytes(32), delta.index.base, units))


def of_bases_that_are_not_there(data: bytes) -> bytes:
    delta = HostDelta(data)
    units = [(region, units) for region in delta.index.regions.tolist() if (units := delta.index.units(region))]
    few = BaseChunks(delta.chunks.lengths[:1], delta.chunks.prefixes[:1])
    return encode_host_delta(few, encode_index(delta.index.target, delta.index.base, units))


def of_other_bases(data: bytes) -> bytes:
    """Return an index whose deltas start from other chunks than they were made for, of the same length."""
    delta = HostDelta(data)
    units = [(region, units) for region in delta.index.regions.tolist() if (units := delta.index.units(region))]
    prefixes = delta.chunks.prefixes.copy()
    for length in np.unique(delta.chunks.lengths).tolist():
        same = np.flatnonzero(delta.chunks.lengths == length)
        prefixes[same] = np.roll(prefixes[same], 1)
    chunks = BaseChunks(delta.chunks.lengths, prefixes)
    return encode_host_delta(chunks, encode_index(delta.index.target, delta.index.base, units))


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (damaged, False),
        (of_another_version, False),
        (of_bases_that_are_not_there, True),
        (of_other_bases, True),
        (lambda data: data[:100], False),
        (lambda data: b"", False),
    ],
)
def test_an_index_that_is_wrong(place: Place, change: Callable[[bytes], bytes], used: bool) -> None:
    place.index.write_bytes(change(place.index.read_bytes()))
    report = place.sync()
    assert used or report.made == Made()


def test_what_is_missing_or_damaged_costs_plain_packs(place: Place) -> None:
    packs = place.packs()
    data = bytearray(packs[0].read_bytes())
    data[len(data) // 2 :: 5000] = bytes(len(data[len(data) // 2 :: 5000]))
    packs[0].write_bytes(data)
    assert place.sync().made.failed > 0
    for number, path in enumerate(packs):
        path.unlink()
        assert place.sync(output=place.folder / f"{number}.img").made.failed > 0
    place.index.unlink()
    assert place.sync(output=place.folder / "none.img").made == Made()
    for number, wrong in enumerate((b"", b"TrimHost", damaged(place.hosts.read_bytes()), bytes(20_000))):
        place.hosts.write_bytes(wrong)
        assert place.sync(output=place.folder / f"hosts{number}.img").made == Made()


def test_the_profile_that_fits_best_is_taken(place: Place) -> None:
    """Of those that would save something; none of which too little is here."""
    own = parse_hosts(place.hosts.read_bytes())[0]
    with seed_from_path(place.host, Kind.DISK, scratch=place.folder / "cache") as seed:
        strange = own.sample.copy()
        strange["prefix"] += 1
        half = own.sample.copy()
        half["prefix"][::2] += 1
        offers = {
            name: Offer(name, length, plain, 1000, sample)
            for name, length, plain, sample in (
                ("strange", 100, 10**9, strange),
                ("half", 100, 10**6, half),
                ("all", 100, 10**6, own.sample),
                ("costly", 10**6, 10**6, own.sample),
                ("empty", 100, 10**6, own.sample[:0]),
            )
        }
        best = fitting(list(offers.values()), [seed])
        assert best is not None
        assert best.profile == "all"
        assert fitting([offers["strange"], offers["half"]], [seed]) is offers["half"]
        assert fitting([offers["strange"], offers["costly"], offers["empty"]], [seed]) is None
        assert fitting(parse_hosts(encode_hosts(list(offers.values()))), [seed]) is not None


def test_prices_are_those_of_this_host() -> None:
    """What a host lacks beside the chunks of a unit bears its part of the frames."""
    table = Table.from_records(np.array([100] * 9 + [50 | ZERO], np.uint32), np.zeros((9, 32), np.uint8))
    rows = np.zeros(2, dtype=UNIT)
    rows["offset"], rows["stored"], rows["targets"], rows["plain"] = 16, 1, [2, 1], 60
    rows["raw"] = [200, 100]
    targets = np.array([(0, 1), (3, 1), (6, 1)], dtype=TARGET)
    units = Units.of((PackRef(bytes(32), 100),), rows, targets, np.zeros(0, dtype=BASE))
    lacking = np.zeros(10, dtype=np.bool_)
    lacking[[0, 3, 6]] = True
    assert fairly_priced(units, table, lacking).units["plain"].tolist() == [60, 60]
    lacking[[1, 2, 4, 5, 7]] = True
    assert fairly_priced(units, table, lacking).units["plain"].tolist() == [30, 60]
    lacking[:] = False
    assert fairly_priced(units, table, lacking).units["plain"].tolist() == [0, 0]


# ---- profiles


def test_a_profile_is_cut_as_the_index_of_host_files_is(public_path: Path, rng: np.random.Generator) -> None:
    """Small and large files, holes, several names, links; and nothing that not every user may read."""
    tree, files = public_path / "tree", {"a": 1, "b": 4096, "c/d": 700_001, "c/e": 5_000_000}
    for name, size in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(rng.integers(0, 3, size, dtype=np.uint8).tobytes())
        (tree / name).chmod(0o644)
    with open(tree / "sparse", "wb") as file:
        file.truncate(200 << 20)
        os.pwrite(file.fileno(), rng.bytes(10_000), 130 << 20)
    (tree / "private").write_bytes(rng.bytes(9000))
    (tree / "private").chmod(0o600)
    (tree / "empty").touch()
    os.link(tree / "c/d", tree / "c/same")
    os.symlink("c/d", tree / "link")
    os.mkfifo(tree / "fifo")
    for path in (tree, tree / "c", tree / "sparse"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    report = record_profile(public_path / "repository", "p", [tree])
    profile = Profile.from_bytes((public_path / "repository/profiles/p.bin").read_bytes())
    assert set(profile.paths) == {b"a", b"b", b"c/d", b"c/e", b"sparse"}
    assert (report.files, report.private, report.unreadable) == (5, 1, 0)
    assert report.bytes == sum(files.values()) + (200 << 20)
    host = HostIndex(public_path / "index")
    totals_before = host.totals()
    host.update([tree])
    chunks = profile.records < ZERO
    prefixes = np.ascontiguousarray(profile.digests[:, :8]).view("<u8").reshape(-1)
    with host.seed() as seed:
        assert len(seed) == host.totals().rows == int(chunks.sum()) > totals_before.rows
        assert (seed.find(prefixes, profile.records[chunks]) >= 0).all()


def test_a_profile_of_several_trees_and_of_files_that_change(place: Place, rnd: random.Random) -> None:
    """What is not as it was recorded is left out of the deltas, and what is elsewhere now can be named."""
    moved = place.folder / "moved"
    shutil.copytree(place.host / "usr/0", moved / "0")
    shutil.copytree(place.host / "usr/1", moved / "1")
    record_profile(place.repository, "deb", [moved / "0", moved / "1"])
    (moved / "0/file4").unlink()
    (moved / "1/file5").write_bytes(rnd.randbytes(300_000))
    make_small_deltas(place.repository)
    assert place.sync().made.failed == 0
    shutil.move(moved, place.folder / "elsewhere")
    with pytest.raises(TargetRefused, match="is not there"):
        add_host_deltas(place.repository, "disk", profile="deb", level=3)
    with pytest.raises(SourceRefused, match="2 trees"):
        add_host_deltas(place.repository, "disk", profile="deb", level=3, trees=[place.folder])
    make_small_deltas(place.repository, trees=[place.folder / "elsewhere/0", place.folder / "elsewhere/1"])
    assert place.sync(output=place.folder / "other.img").made.failed == 0


def test_nothing_is_recorded_of_an_empty_tree(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(SourceRefused, match="no file"):
        record_profile(tmp_path / "repository", "p", [tmp_path / "tree"])
    assert list_profiles(DirectoryStore(tmp_path / "repository")) == []
    with pytest.raises(NotFound):
        list_profiles(DirectoryStore(tmp_path / "nothing"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(TargetRefused, match="neither empty nor a repository"):
        record_profile(tmp_path / "other", "p", [tmp_path / "tree"])


def test_deltas_that_are_not_finished_leave_nothing(place: Place) -> None:
    """Those before stay good as long as nothing replaced them."""
    before = objects_below(place.repository)
    with pytest.raises(Cancelled):
        make_small_deltas(place.repository, level=4, **stopped_in("delta"))
    assert objects_below(place.repository) == before


# ---- verify, and the commands


def test_verify(place: Place) -> None:
    store = DirectoryStore(place.repository)
    report = audit(store)
    assert (report.damage, report.not_made, report.unreferenced) == ((), (), ())
    made = report.deltas_made
    assert made > 4
    record_profile(place.repository, "deb", [place.host])
    assert audit(store).deltas_made == made, "the same files elsewhere"
    place.files[5].unlink()
    report = audit(store)
    assert (report.damage, report.not_made) == ((), ("images/disk/1/host-deb.bin",))
    assert report.deltas_made < made
    packs = place.packs()
    for path in (place.hosts, place.repository / "profiles/deb.bin"):
        path.write_bytes(damaged(path.read_bytes()))
    report = audit(store)
    assert {one.name for one in report.damage} == {"images/disk/1/hosts.bin", "profiles/deb.bin"}
    packs[0].unlink()
    assert "images/disk/1/host-deb.bin" in {one.name for one in audit(store, quick=True).damage}
    place.index.write_bytes(of_another_version(place.index.read_bytes()))
    assert "images/disk/1/host-deb.bin" in {one.name for one in audit(store).damage}


def test_verify_finds_units_that_make_something_else(place: Place) -> None:
    place.index.write_bytes(of_other_bases(place.index.read_bytes()))
    (place.folder_of_version / "hosts.bin").unlink()
    record_profile(place.repository, "deb", [place.host])
    assert {one.name for one in audit(DirectoryStore(place.repository)).damage} == {"images/disk/1/host-deb.bin"}


def test_removing_a_profile(place: Place) -> None:
    assert remove_profile(place.repository, "deb") == 1
    assert not place.hosts.exists()
    assert not place.index.exists()
    report = audit(DirectoryStore(place.repository))
    assert report.damage == ()
    assert len(report.unreferenced) > 0
    assert place.sync().made == Made()
    with pytest.raises(NotFound):
        remove_profile(place.repository, "deb")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(repo, [str(one) for one in arguments])


def test_commands(place: Place) -> None:
    done = run("profile", place.repository, "mine", place.host, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == len(place.files)
    done = run("profile", place.repository, "--list")
    assert "mine" in done.stdout
    assert str(place.host) in done.stdout
    done = run("delta", place.repository, "--image", "disk", "--profile", "mine", "--level", "3")
    assert done.exit_code == 0, done.output
    assert "Deltas from the profile mine" in done.stdout
    shown = json.loads(run("show", place.repository, "disk", "--json").stdout)
    assert shown["deltas_from_profiles"] == ["deb", "mine"]
    assert [one.profile for one in parse_hosts(place.hosts.read_bytes())] == ["deb", "mine"]
    assert "No damage" in run("verify", place.repository).stdout
    done = run("profile", place.repository, "deb", "--remove")
    assert done.exit_code == 0, done.output
    assert [one.profile for one in parse_hosts(place.hosts.read_bytes())] == ["mine"]
    for wrong in (
        ("profile", place.repository),
        ("profile", place.repository, "mine"),
        ("profile", place.repository, "mine", "--list"),
        ("profile", place.repository, "mine", place.host, "--remove"),
        ("profile", place.repository, "no name", place.host),
        ("profile", place.repository, "mine", place.folder / "nothing"),
        ("delta", place.repository, "--image", "disk"),
        ("delta", place.repository, "--image", "disk", "--from", "1", "--profile", "mine"),
        ("delta", place.repository, "--image", "disk", "--from", "1", "--tree", place.host),
    ):
        assert run(*wrong).exit_code == 2, wrong


def test_base_chunks_are_read_from_wherever_they_are(place: Place) -> None:
    """Of several places the first that has it; none if all lie."""
    delta = HostDelta(place.index.read_bytes())
    shutil.copytree(place.host, place.folder / "second")
    with (
        seed_from_path(place.host, Kind.DISK, scratch=place.folder / "cache") as one,
        seed_from_path(place.folder / "second", Kind.DISK, scratch=place.folder / "cache") as two,
    ):
        places = BasePlaces(delta, [one, two])
        assert len(places) == len(delta.chunks)
        buffer = memoryview(bytearray(int(delta.chunks.lengths[0])))
        assert places.read(0, buffer)
        expected = bytes(buffer)
        assert len(buffer) % BLOCK_SIZE == 0
        for path in place.files:
            path.write_bytes(bytes(path.stat().st_size))
        assert places.read(0, buffer)
        assert bytes(buffer) == expected
        for path in (place.folder / "second").rglob("file*"):
            path.write_bytes(bytes(path.stat().st_size))
        assert not places.read(0, buffer)


# ---- kills


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_killed_at_any_moment(place: Place, before: bool, rnd: random.Random) -> None:
    """With deltas of another level there before or none: the repository is right, clients get the right image with
    what there is, and the next run comes to the same end as if nothing had happened."""
    if not before:
        remove_profile(place.repository, "deb")
        record_profile(place.repository, "deb", [place.host])
    start, expected = place.folder / "start", place.folder / "expected"
    for copy in (start, expected):
        subprocess.run(["cp", "-a", place.repository, copy], check=True)
    total = changes_until(0, make_small_deltas, expected, level=1)
    assert total > 10
    for limit in sorted({1, total, *rnd.sample(range(1, total + 1), min(KILLS, total))}):
        shutil.rmtree(place.repository)
        subprocess.run(["cp", "-a", start, place.repository], check=True)
        assert changes_until(limit, make_small_deltas, place.repository, level=1) == 0
        assert audit(DirectoryStore(place.repository)).damage == ()
        report = place.sync(output=place.folder / f"{limit}.img")
        assert report.network.bytes <= 1.1 * place.plain
        if before:
            assert report.made.units > 0  # those from before, or the new ones
        make_small_deltas(place.repository, level=1)
        assert objects(place.repository) == objects(expected)
