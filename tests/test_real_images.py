"""Real images over real nginx with TLS: every case a user meets, compared byte by byte, and what it may cost."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from images import PATH, ImageSet
from servers import MISSING_NGINX, Authority, Nginx, has_nginx

from trimtransfer.assembly.report import SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.repository.audit import audit
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.skipif(not has_nginx(), reason=MISSING_NGINX)]

MIB = 1 << 20


@dataclass
class Site:
    """A served repository: image ``disk`` in versions old, new, installed; image ``again`` in version rebuilt."""

    images: ImageSet
    repository: Path
    nginx: Nginx
    cache: Path

    def sync(self, image: str, output: Path, **options: object) -> SyncReport:
        """Sync over TLS; check the report's figures against the server's log and against each other."""
        self.nginx.forget()
        arguments = {"ca_cert": self.nginx.ca_cert, "cache": self.cache, **options}
        report = sync(self.nginx.url, image, output=output, **arguments)  # type: ignore[arg-type]
        served = self.nginx.served(report.network.requests)
        assert report.network.requests == len(served)
        assert report.network.bytes == sum(line.bytes for line in served)
        assert report.content.size == report.length
        assert report.rejected_chunks == report.network.retries == 0
        return report


@pytest.fixture(scope="module")
def site(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("site")
    repository = top / "repository"
    for version in ("old", "new", "installed"):
        publish(repository, getattr(images, version), image="disk", version=version, level=3)
        publish(repository, getattr(images, version), image="trimmed", version=version, level=3, trim=True)
    publish(repository, images.rebuilt, image="again", version="rebuilt", like=["disk"], level=3)
    with Nginx(repository, top, Authority(top)) as nginx:
        yield Site(images, repository, nginx, top / "cache")


def same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def test_the_repository_is_whole_and_deduplicated(site: Site) -> None:
    store = DirectoryStore(site.repository)
    assert audit(store).damage == ()
    packs = sum(path.stat().st_size for path in (site.repository / "packs").rglob("*.bin"))
    published = (site.images.old, site.images.new, site.images.old, site.images.new, site.images.rebuilt)
    images = sum(path.stat().st_blocks * 512 for path in published)
    assert packs < images / 4
    assert VersionReader.open(store, "disk").manifest.version == "installed"


@pytest.mark.parametrize("write", ["new", "in-place"])
def test_first_download_updates_and_nothing_new(site: Site, tmp_path: Path, write: str) -> None:
    output = tmp_path / "disk.img"
    first = site.sync("disk", output, version="old", write=write)
    assert same(output, site.images.old)
    assert first.content.fetched + first.content.zero + first.content.seed == first.length
    update = site.sync("disk", output, version="new", write=write)
    assert same(output, site.images.new)
    assert update.network.bytes < first.network.bytes * 2 / 3
    assert update.network.requests <= 20
    installed = site.sync("disk", output, write=write)
    assert same(output, site.images.installed)
    assert installed.network.bytes < first.network.bytes / 5
    again = site.sync("disk", output, write=write)
    assert (again.wrote, again.network.requests) == ("nothing", 1)
    assert again.network.bytes <= 1024


def test_remains_of_an_upgrade_are_not_fetched(site: Site, tmp_path: Path) -> None:
    """What the upgrade deleted, archives above all, is half of what it changed."""
    output = tmp_path / "trimmed.img"
    site.sync("disk", tmp_path / "disk.img", version="old")
    whole = site.sync("disk", tmp_path / "disk.img", version="new")
    first = site.sync("trimmed", output, version="old")
    update = site.sync("trimmed", output, version="new")
    assert update.network.bytes < whole.network.bytes / 2
    assert update.network.bytes < first.network.bytes / 2
    program = shutil.which("e2fsck", path=PATH)
    assert program is not None
    subprocess.run([program, "-fn", output], check=True, stdout=subprocess.DEVNULL)


def test_going_back_to_an_older_version(site: Site, tmp_path: Path) -> None:
    output = tmp_path / "disk.img"
    site.sync("disk", output, version="new")
    site.sync("disk", output, version="old")
    assert same(output, site.images.old)


def test_a_rebuilt_image_finds_the_files_of_the_old_one(site: Site, tmp_path: Path) -> None:
    whole = site.sync("again", tmp_path / "without.img").network.bytes
    shutil.copyfile(site.images.new, tmp_path / "seed.img")
    report = site.sync("again", tmp_path / "again.img", seeds=[tmp_path / "seed.img"])
    assert same(tmp_path / "again.img", site.images.rebuilt)
    assert report.network.bytes < whole / 10
    assert report.content.seed > 60 * MIB


def test_an_identical_seed_fetches_nothing_but_metadata(site: Site, tmp_path: Path) -> None:
    shutil.copyfile(site.images.installed, tmp_path / "seed.img")
    report = site.sync("disk", tmp_path / "disk.img", seeds=[tmp_path / "seed.img"])
    assert same(tmp_path / "disk.img", site.images.installed)
    assert report.content.fetched == 0
    assert report.network.bytes < MIB


def test_a_tree_of_files_serves_most_of_the_image(site: Site, tmp_path: Path) -> None:
    """The image's own files, unpacked. Missed are file-system metadata, and files' beginnings behind directories."""
    whole = site.sync("disk", tmp_path / "without.img", version="old").network.bytes
    report = site.sync("disk", tmp_path / "disk.img", version="old", seeds=[site.images.tree])
    assert same(tmp_path / "disk.img", site.images.old)
    assert report.network.bytes < whole / 5
    assert report.content.seed > 0.9 * (report.length - report.content.zero)
