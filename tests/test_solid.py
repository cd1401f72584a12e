"""Solid units end to end: who has nothing fetches less, and who has something what it needs; whatever is wrong with
them, the image is right and the plain packs serve."""

from __future__ import annotations

import gzip
import json
import os
import random
import secrets
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from images import make_ext4
from kills import changes_until
from servers import Nginx
from stopping import objects_below, stopped_in
from syncing import STARTS, content, leftovers, partition_table, put, write_sparse
from test_deltas import SmallPacks
from test_hostdeltas import MKE2FS, damaged, of_another_version, real_files
from test_publish import tree as objects

from trimtransfer.assembly.hostunits import fitting, solid_of
from trimtransfer.assembly.payoff import Line, decide_solid
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import Made, SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import BLOCK_SIZE, Kind
from trimtransfer.cli.repo import repo
from trimtransfer.deltaindex import BASE, TARGET, UNIT, Units, encode_index
from trimtransfer.errors import Cancelled, FormatError, NotFound, TargetRefused
from trimtransfer.hostdelta import BaseChunks, HostDelta, encode_host_delta
from trimtransfer.hosts import SAMPLE, Offer, encode_hosts, parse_hosts
from trimtransfer.location import PackRef
from trimtransfer.names import NOTHING
from trimtransfer.pack import pack_name
from trimtransfer.repository import deltas, deltaunits, solidcontent
from trimtransfer.repository.audit import audit
from trimtransfer.repository.hostdeltas import add_host_deltas
from trimtransfer.repository.profiles import record_profile
from trimtransfer.repository.publish import publish
from trimtransfer.repository.solid import add_solid, remove_solid
from trimtransfer.repository.solidreuse import joined
from trimtransfer.store import DirectoryStore
from trimtransfer.unit import is_wrapped

KILLS = 6
pytestmark = pytest.mark.skipif(MKE2FS is None, reason="needs mke2fs (package e2fsprogs)")


@dataclass(frozen=True)
class Source:
    """A repository with solid units, the image, a tree with some of its files, and what plain packs take."""

    repository: Path
    image: bytes
    tree: Path
    plain: int
    some: int
    """Bytes in plain packs for who has the tree."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """An image of real files, of what gzip and zip made of some, and of one that is like nothing."""
    folder = tmp_path_factory.mktemp("solid")
    seed = int(os.environ.get("TRIMTRANSFER_SEED") or secrets.randbits(32))
    print(f"TRIMTRANSFER_SEED={seed}")
    rnd = random.Random(seed)
    guest, tree = folder / "guest", folder / "tree"
    guest.mkdir()
    tree.mkdir()
    files = real_files(24)
    for number, path in enumerate(files):
        shutil.copyfile(path, guest / f"file{number}")
    with gzip.GzipFile(guest / "packed.gz", "wb", 9, mtime=0) as packed:
        packed.write(b"".join(path.read_bytes() for path in files[4:12]))
    with zipfile.ZipFile(guest / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(files[12])
    (guest / "noise").write_bytes(rnd.randbytes(100_000))
    for number in range(16, 24):
        shutil.copyfile(files[number], tree / f"file{number}")
    make_ext4(guest, folder / "disk.img", size=32 << 20)
    repository = folder / "repository"
    publish(repository, folder / "disk.img", image="disk", version="1", kind=Kind.DISK, level=19)
    options: dict[str, Any] = {"cache": folder / "cache"}
    plain = sync(repository, "disk", output=folder / "plain.img", **options).network.bytes
    some = sync(repository, "disk", output=folder / "some.img", seeds=[tree], **options).network.bytes
    make_small_units(repository)
    return Source(repository, (folder / "disk.img").read_bytes(), tree, plain, some)


def make_small_units(repository: Path, **options: Any) -> None:
    """Make solid units of which each makes some 1,500,000 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solidcontent, "_SIZE", 1_500_000)
        patch.setattr(deltas, "PackBuilder", SmallPacks)
        report = add_solid(repository, "disk", **{"workers": 2, **options})
    assert report.units > 3
    assert (report.profile, report.base, report.problem) == (NOTHING, "", "")
    assert report.stored_bytes < 0.97 * report.plain_bytes
    assert report.content_bytes <= report.new_bytes
    assert report.wrapped_units > 0, "what gzip made is looked into"


class Place:
    """A copy of the repository and an output."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.folder, self.source = folder, source
        self.repository, self.output = folder / "repository", folder / "disk.img"
        subprocess.run(["cp", "-a", source.repository, self.repository], check=True)

    @property
    def index(self) -> Path:
        return self.repository / "images/disk/1" / f"host-{NOTHING}.bin"

    @property
    def hosts(self) -> Path:
        return self.repository / "images/disk/1/hosts.bin"

    def sync(self, url: str | Path | None = None, **options: Any) -> SyncReport:
        """Sync, and check what must hold whatever the options are."""
        options = {"output": self.output, "cache": self.folder / "cache", **options}
        report = sync(url or self.repository, "disk", version="1", **options)
        assert Path(options["output"]).read_bytes() == self.source.image
        assert leftovers(Path(options["output"])) == set()
        assert report.content.size == report.length
        assert report.made.content <= report.content.fetched
        return report

    def packs(self) -> list[Path]:
        """Return the packs of the units."""
        index = HostDelta(self.index.read_bytes()).index
        units = [units for region in index.regions.tolist() if (units := index.units(region)) is not None]
        return sorted({self.repository / pack_name(ref.digest) for one in units for ref in one.packs})


@pytest.fixture
def place(tmp_path: Path, source: Source) -> Place:
    return Place(tmp_path, source)


# ---- who fetches what


def test_who_has_nothing_fetches_less(place: Place, nginx: Nginx) -> None:
    """Over a real server; what is planned is what happens."""
    nginx.root.rmdir()
    subprocess.run(["cp", "-a", place.repository, nginx.root], check=True)
    options: dict[str, Any] = {"output": place.output, "cache": place.folder / "cache", "ca_cert": nginx.ca_cert}
    preview = plan(nginx.url, "disk", version="1", **options)
    nginx.forget()
    report = place.sync(nginx.url, ca_cert=nginx.ca_cert)
    served = nginx.served(report.network.requests)
    assert sum(one.bytes for one in served) == report.network.bytes < 0.9 * place.source.plain
    assert report.made.units > 3
    assert (report.made.failed, report.rejected_chunks) == (0, 0)
    assert (preview.fetch_bytes, preview.fetch_requests) == (report.network.bytes, report.network.requests)
    assert (preview.content, preview.made) == (report.content, report.made)
    assert report.made.solid == report.made.units
    (decision,) = preview.decisions
    assert (decision.what, decision.used) == ("solid units", True)


def test_who_has_some_fetches_what_it_needs(place: Place) -> None:
    """With files that equal some of the image's: units of which enough is needed, frames for the rest."""
    report = place.sync(seeds=[place.source.tree])
    assert report.content.seed > 300_000
    assert report.made.units > 0
    assert report.network.bytes < place.source.some


def test_an_update_asks_for_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a version of the image has use for deltas from that alone."""
    place.sync()
    with open(place.output, "r+b") as image:
        image.write(b"changed")
    asked: list[str] = []
    real = DirectoryStore.read
    monkeypatch.setattr(
        DirectoryStore, "read", lambda self, name, **options: (asked.append(name), real(self, name, **options))[1]
    )
    assert place.sync().made == Made()
    assert asked
    assert not any("host" in name for name in asked)


def test_a_profile_that_fits_goes_first(public_path: Path, source: Source) -> None:
    place, host = Place(public_path, source), public_path / "host"
    shutil.copytree(source.tree, host)
    for path in (host, *host.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    record_profile(place.repository, "deb", [host])
    add_host_deltas(place.repository, "disk", profile="deb", level=3)
    offers = parse_hosts(place.hosts.read_bytes())
    assert [(one.profile, one.needs_nothing) for one in offers] == [("deb", False), (NOTHING, True)]
    asked: list[str] = []
    real = DirectoryStore.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DirectoryStore, "read", lambda self, name, **options: (asked.append(name), real(self, name, **options))[1]
        )
        report = place.sync(seeds=[host])
    assert report.made.units > 0
    assert [name.rpartition("/")[2] for name in asked if "host-" in name] == ["host-deb.bin"]


def test_offers_that_need_nothing() -> None:
    """No profile fits who has no files, and an index that may cost more than it saves is not asked for."""
    empty, full = np.zeros(0, dtype=SAMPLE), np.ones(1, dtype=SAMPLE)
    good, host = Offer(NOTHING, 100, 10**6, 10**5, empty), Offer("host", 100, 10**6, 10**5, full)
    costly = Offer(NOTHING, 10**6, 10**6, 10**5, empty)
    assert solid_of([host, good], []) is good
    assert solid_of([host, costly], []) is None
    assert fitting([host, good], []) is None
    (parsed,) = parse_hosts(encode_hosts([good]))
    assert parsed.needs_nothing
    line = Line(12.5e6, "given")
    assert decide_solid(plain=100_000_000, stored=80_000_000, line=line).used
    assert not decide_solid(plain=100, stored=100, line=line).used


def test_what_is_no_disk_image(tmp_path: Path) -> None:
    """Solid units serve any content, however it is cut."""
    data = b"".join(path.read_bytes() for path in real_files(6))
    (tmp_path / "file").write_bytes(data)
    publish(tmp_path / "r", tmp_path / "file", image="file", version="1", kind=Kind.BYTES, level=3)
    before = sync(tmp_path / "r", "file", output=tmp_path / "before").network.bytes
    assert add_solid(tmp_path / "r", "file").units > 0
    report = sync(tmp_path / "r", "file", output=tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == data
    assert report.made.failed == 0
    assert report.network.bytes < 0.95 * before


# ---- publishing


def test_publish_makes_them_and_new_versions_take_over(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units of regions that did not change are not made again; with gone packs they are. All disks have some."""
    monkeypatch.setattr(solidcontent, "_SIZE", 600_000)
    monkeypatch.setattr(deltas, "PackBuilder", SmallPacks)
    repository = tmp_path / "repository"
    image = bytearray(STARTS[-1] * 512 + 1_200_000)
    image[:512] = partition_table(len(image))
    files = iter(real_files(4 * len(STARTS)))
    for start in STARTS[1:]:
        put(image, start * 512 + BLOCK_SIZE, b"".join(next(files).read_bytes() for _ in range(4)))
    made, added = [], []
    for version in ("1", "2", "3"):
        write_sparse(tmp_path / "source.img", bytes(image))
        options: dict[str, Any] = {"image": "disk", "version": version, "kind": Kind.DISK, "level": 3}
        disks = [tmp_path / "source.img"]
        report = publish(repository, tmp_path / "source.img", disks=disks, deltas=False, solid=True, **options)
        made.append(report.deltas[0])
        added.append(report.deltas[0].added_bytes + report.disks[0].deltas[0].added_bytes)
        assert report.disks[0].deltas[0].profile == NOTHING
        output = tmp_path / f"{version}.img"
        synced = sync(repository, "disk", output=output, cache=tmp_path / "cache")
        assert output.read_bytes() == bytes(image)
        assert synced.made.units == made[-1].units > 3
        assert synced.made.failed == 0
        put(image, STARTS[2] * 512 + 50 * BLOCK_SIZE, content(rng, 40_000))
        if version == "2":
            found = HostDelta((repository / f"images/disk/2/host-{NOTHING}.bin").read_bytes()).index
            units = found.units(int(found.regions[-1]))
            assert units is not None
            for ref in units.packs:
                (repository / pack_name(ref.digest)).unlink()
    assert added[1] < added[0] < 2 * made[0].stored_bytes, "two disks that are alike take room once"
    assert made[1].stored_bytes > added[1]
    assert audit(DirectoryStore(repository)).not_made == ()


def test_a_region_that_changed_keeps_what_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit of several is made again, and what is new between others is left to plain frames or made."""
    monkeypatch.setattr(solidcontent, "_SIZE", 600_000)
    repository, files = tmp_path / "repository", [path.read_bytes() for path in real_files(16)]
    start, image = 2048 * 512, bytearray(8 << 20)
    image[:512] = partition_table(len(image))
    put(image, start, b"".join(data + bytes(-len(data) % BLOCK_SIZE) for data in files[:15]))
    found = []
    for version in ("1", "2", "3"):
        write_sparse(tmp_path / "source.img", bytes(image))
        options: dict[str, Any] = {"image": "disk", "version": version, "kind": Kind.DISK, "level": 3}
        report = publish(repository, tmp_path / "source.img", deltas=False, solid=True, **options).deltas[0]
        output = tmp_path / f"{version}.img"
        synced = sync(repository, "disk", output=output)
        assert output.read_bytes() == bytes(image)
        assert synced.made.units == report.units > 4
        assert synced.made.failed == 0
        index = HostDelta((repository / f"images/disk/{version}/host-{NOTHING}.bin").read_bytes()).index
        parts = [units for region in index.regions.tolist() if (units := index.units(region)) is not None]
        places = {(one.packs[int(row["pack"])].digest, int(row["offset"])) for one in parts for row in one.units}
        found.append((places, report.added_bytes))
        put(image, start + (2 << 20), files[15][: 3 * BLOCK_SIZE])
        if version == "2":
            image[start : start + (3 << 20)] = image[start + (1 << 20) : start + (4 << 20)]
    (first, added), (second, added_then), (third, _) = found
    assert len(first & second) >= len(first) - 2
    assert added_then < added / 2
    assert len(first & third) > 0
    report = audit(DirectoryStore(repository))
    assert (report.damage, report.not_made, report.unreferenced) == ((), (), ())


def test_units_are_joined_in_the_order_of_what_they_make() -> None:
    def units(pack: int, *runs: tuple[int, int]) -> Units:
        rows = np.zeros(len(runs), dtype=UNIT)
        rows["offset"], rows["stored"], rows["targets"], rows["raw"] = 16, 1, 1, 100
        refs = (PackRef(bytes([pack]) * 32, 100),)
        return Units.of(refs, rows, np.array(list(runs), dtype=TARGET), np.zeros(0, dtype=BASE))

    made = joined([units(1, (4, 2), (9, 1)), units(2, (0, 3)), units(1, (7, 1))])
    assert made.targets["record"].tolist() == [0, 4, 7, 9]
    assert [made.packs[number].digest[0] for number in made.units["pack"].tolist()] == [2, 1, 1, 1]
    assert len(made.packs) == 2
    with pytest.raises(FormatError):
        joined([units(1, (4, 2)), units(2, (5, 1))])


def test_names_and_limits(place: Place) -> None:
    """The name is no profile's; a repository that has one of that name keeps it."""
    with pytest.raises(FormatError, match="another one"):
        record_profile(place.repository, NOTHING, [place.source.tree])
    (place.repository / "profiles").mkdir()
    (place.repository / f"profiles/{NOTHING}.bin").write_bytes(b"of long ago")
    with pytest.raises(TargetRefused, match="host profile"):
        add_solid(place.repository, "disk")
    with pytest.raises(NotFound):
        add_solid(place.repository, "other")


def test_units_that_are_not_finished_leave_nothing(place: Place) -> None:
    before = objects_below(place.repository)
    with pytest.raises(Cancelled):
        make_small_units(place.repository, level=4, **stopped_in("delta"))
    assert objects_below(place.repository) == before


def test_verify_and_remove(place: Place) -> None:
    store = DirectoryStore(place.repository)
    report = audit(store)
    assert (report.damage, report.not_made, report.unreferenced) == ((), (), ())
    assert report.deltas_made > 3
    pack = place.packs()[0]
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert audit(store).damage
    assert remove_solid(place.repository, "disk") == 1
    assert not place.index.exists()
    assert not place.hosts.exists()
    report = audit(store)
    assert report.damage == ()
    assert len(report.unreferenced) > 0
    assert place.sync().made == Made()
    assert remove_solid(place.repository, "disk") == 0


def run(*arguments: object) -> Result:
    return CliRunner().invoke(repo, [str(one) for one in arguments])


def test_commands(place: Place) -> None:
    shown = run("show", place.repository, "disk")
    assert "nothing (solid units)" in shown.stdout
    assert "by solid units" in shown.stdout
    told = json.loads(run("show", place.repository, "disk", "--json").stdout)
    fetched = place.sync(output=place.folder / "shown.img").network.bytes
    assert told["solid_download_bytes"] == pytest.approx(fetched, rel=0.01)
    assert fetched < 0.9 * told["download_bytes"]
    done = run("delta", place.repository, "--image", "disk", "--solid", "--remove")
    assert done.exit_code == 0, done.output
    assert "Removed" in done.stdout
    assert "no solid units" in run("delta", place.repository, "--image", "disk", "--solid", "--remove").stdout
    done = run("delta", place.repository, "--image", "disk", "--solid", "--level", "3")
    assert done.exit_code == 0, done.output
    assert "Deltas from nothing (solid units)" in done.stdout
    assert "The repository takes" in done.stdout
    done = run("delta", place.repository, "--image", "disk", "--solid", "--json")
    assert json.loads(done.stdout)["added_bytes"] > 0
    assert place.sync().made.units > 0
    for wrong in (
        ("delta", place.repository, "--image", "disk", "--solid", "--from", "1"),
        ("delta", place.repository, "--image", "disk", "--solid", "--profile", "p"),
        ("delta", place.repository, "--image", "disk", "--remove", "--profile", "p"),
        ("profile", place.repository, NOTHING, place.source.tree),
    ):
        assert run(*wrong).exit_code == 2, wrong


def test_publish_command(place: Place) -> None:
    (place.folder / "source.img").write_bytes(place.source.image)
    again = place.folder / "again"
    done = run(
        "publish", again, place.folder / "source.img", "--image", "disk", "--version", "1", "--level", "3", "--solid"
    )
    assert done.exit_code == 0, done.output
    assert "Deltas from nothing (solid units)" in done.stdout
    assert place.sync(again).made.units > 0


# ---- what goes wrong


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
            place.repository, "disk", output=place.output, cache=place.folder / "cache", cancel=cancel,
            progress=progress,
        )  # fmt: skip
    report = place.sync()
    assert report.made.failed == 0
    assert report.network.bytes < 0.9 * place.source.plain


def of_chunks(data: bytes) -> bytes:
    """Return an index that is said to need nothing, and does."""
    delta = HostDelta(data)
    units = [(region, units) for region in delta.index.regions.tolist() if (units := delta.index.units(region))]
    chunks = BaseChunks(np.array([4096], np.uint32), np.array([1], np.uint64))
    return encode_host_delta(chunks, encode_index(delta.index.target, delta.index.base, units))


@pytest.mark.parametrize("change", [damaged, of_another_version, of_chunks, lambda data: data[:60], lambda data: b""])
def test_an_index_that_is_wrong(place: Place, change: Callable[[bytes], bytes]) -> None:
    place.index.write_bytes(change(place.index.read_bytes()))
    assert place.sync().made == Made()


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
    for number, wrong in enumerate((b"", b"TrimHost", damaged(place.hosts.read_bytes() * 9), bytes(20_000))):
        place.hosts.write_bytes(wrong)
        assert place.sync(output=place.folder / f"hosts{number}.img").made == Made()


def test_units_fit_into_packs_and_limits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """At their full size: what a unit makes and what it takes stay within the format, compressible or not."""
    assert place.packs()
    kept: list[int] = []
    real = deltas.encode_unit

    def encode(unit: deltaunits.Unit, *, level: int) -> deltas.Encoded:
        made = real(unit, level=1)
        kept.append(len(made.stored))
        assert len(unit.target) <= 8 << 20
        assert not made.tools
        assert made.stored[:8] in (b"TrimDelt", b"TrimWrap")
        assert is_wrapped(made.stored) == (unit.inside is not None and made.stored[:8] == b"TrimWrap")
        return made

    monkeypatch.setattr(deltas, "encode_unit", encode)
    report = add_solid(place.repository, "disk")
    assert len(kept) >= 2
    assert max(kept) <= 4_000_000 - 8
    assert report.content_bytes <= report.new_bytes


# ---- kills


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_killed_at_any_moment(place: Place, before: bool, rnd: random.Random) -> None:
    """With units of another level there before or none: the repository is right, clients get the right image with what
    there is, and the next run comes to the same end as if nothing had happened."""
    if not before:
        remove_solid(place.repository, "disk")
    start, expected = place.folder / "start", place.folder / "expected"
    for copy in (start, expected):
        subprocess.run(["cp", "-a", place.repository, copy], check=True)
    total = changes_until(0, make_small_units, expected, level=15)
    assert total > 5
    for limit in sorted({1, total, *rnd.sample(range(1, total + 1), min(KILLS, total))}):
        shutil.rmtree(place.repository)
        subprocess.run(["cp", "-a", start, place.repository], check=True)
        assert changes_until(limit, make_small_units, place.repository, level=15) == 0
        assert audit(DirectoryStore(place.repository)).damage == ()
        report = place.sync(output=place.folder / f"{limit}.img")
        if before:
            assert report.made.units > 0  # those from before, or the new ones
        make_small_units(place.repository, level=15)
        assert objects(place.repository) == objects(expected)
