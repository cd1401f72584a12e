"""The branch cache as it is shipped, with real nginx and Squid: what the origin pays, who may, what is fresh."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from caches import MISSING_SQUID, Origin, Squid, has_squid, objects_of, only_ipv4
from servers import MISSING_NGINX, Authority, has_nginx
from syncing import make_images, publish_all, write_sparse

from medv.doctor.examination import examine
from medv.doctor.finding import Severity
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.errors import AccessDenied, FetchError
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.repository.publish import publish
from trimtransfer.store import Range

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.skipif(not has_nginx(), reason=MISSING_NGINX),
    pytest.mark.skipif(not has_squid(), reason=MISSING_SQUID),
]
QUICK = FetchOptions(first_delay=0.02, max_delay=0.1, budget=2, first_budget=2)


@pytest.fixture(autouse=True)
def plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    only_ipv4(monkeypatch)


class Branch:
    """A repository with one version, its origin, and the cache of a branch."""

    def __init__(self, folder: Path, authority: Authority, rng: np.random.Generator) -> None:
        self.folder, self.authority, self.root = folder, authority, folder / "repository"
        self.images = make_images(rng, versions=3)
        self.clients = 0
        publish_all(self.root, self.images[:1], small_packs=False)
        self.origin = Origin(self.root, folder, authority)

    def publish_next(self, number: int) -> None:
        """Publish version ``number``."""
        source = self.folder / "source.img"
        write_sparse(source, self.images[number - 1])
        publish(self.root, source, image="disk", version=str(number), kind=Kind.DISK, level=1)

    def client(self, output: Path | None = None) -> tuple[Path, int]:
        """Sync a client of its own (or ``output`` again); return the image and the bytes that it fetched."""
        self.clients += 1
        output = output or self.folder / f"client-{self.clients}.img"
        report = sync(
            self.squid.url,
            "disk",
            output=output,
            ca_cert=self.authority.file,
            cache=self.folder / f"cache-{self.clients}",
        )
        assert output.read_bytes() == self.images[int(report.version) - 1]
        time.sleep(0.2)  # logs are written after answers
        return output, report.network.bytes

    def forget(self) -> None:
        """Empty both logs."""
        self.origin.forget()
        self.squid.forget()


@pytest.fixture
def branch(authority: Authority, rng: np.random.Generator) -> Iterator[Branch]:
    with TemporaryDirectory(prefix="trimtransfer-") as directory:
        os.chmod(directory, 0o755)
        folder = Path(directory)
        own = Authority(folder / "authority")  # one that Squid's own user can read
        place = Branch(folder, own, rng)
        (folder / "squid").mkdir()
        with place.origin, Squid(folder / "squid", place.origin, own) as squid:
            place.squid = squid
            yield place


def test_the_second_client_costs_the_origin_nothing(branch: Branch) -> None:
    """But for the head, which is asked for each time, and for asking whether what may change has changed."""
    first, fetched = branch.client()
    served = branch.origin.served()
    assert branch.origin.wire()[1] == {"branch"}, "the origin sees the branch, never its clients"
    assert fetched > 100_000
    assert all(line.range == "-" for line in served), "misses fetch whole objects"
    assert sum(line.bytes for line in served) <= 1.2 * fetched
    paths = [line.uri for line in served if line.uri.endswith(".bin") and line.status == 200]
    assert len(paths) == len(set(paths)), "nothing twice"
    branch.forget()
    branch.client()
    again = branch.origin.served()
    assert {line.uri.rpartition("/")[2] for line in again if line.status == 200} == {"head.json"}
    assert {line.status for line in again} <= {200, 304, 404}
    assert sum(line.bytes for line in again) < 2000
    assert branch.origin.wire()[0] < 4000, "heads of answers included"
    assert {one.how for one in objects_of(branch.squid.passed(), "packs/")} <= {"TCP_MEM_HIT", "TCP_HIT"}
    branch.forget()
    branch.client(first)
    assert sum(line.bytes for line in branch.origin.served()) < 500, "an image that is up to date"


def test_squid_has_nothing_to_say_about_its_configuration(branch: Branch) -> None:
    parsed = subprocess.run(
        ["squid", "-k", "parse", "-f", str(branch.squid.work / "squid.conf")],
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in parsed.stderr.splitlines() if re.search("WARNING|ERROR|FATAL|UPGRADE|deprecated", line)]
    assert all("in 'refresh_pattern' violates HTTP" in line for line in told), told  # as reverse proxies may
    log = (branch.squid.work / "log/cache.log").read_text()
    assert not re.search("WARNING|ERROR|FATAL", log), log


def test_a_new_version_is_seen_at_once(branch: Branch) -> None:
    output, _ = branch.client()
    other, _ = branch.client()
    for number in (2, 3):
        branch.publish_next(number)
        branch.forget()
        branch.client(output)
        paid = sum(line.bytes for line in branch.origin.served())
        branch.client(other)
        assert sum(line.bytes for line in branch.origin.served()) - paid < 1000, "deltas, too, are fetched once"
    report = examine(branch.squid.url, "disk", ca_cert=branch.authority.file)
    assert report.exit_code == 0


def test_who_is_not_known_gets_nothing_and_costs_nothing(branch: Branch) -> None:
    branch.client()
    branch.forget()
    head = "images/disk/head.json"
    for credentials in ("", "client:wrong@", "branch:origin%20pass@", "nobody:client%3Ap%40ss@"):
        store = HttpStore(f"https://{credentials}{branch.squid.place}", ca_cert=branch.authority.file, options=QUICK)
        with pytest.raises(AccessDenied) as caught:
            store.read(head, limit=1024)
        assert caught.value.status == 401
        for path in sorted(branch.root.rglob("packs/*/*.bin"))[:1]:
            wanted = Range(path.relative_to(branch.root).as_posix(), 0, 16, path.stat().st_size)
            with pytest.raises(AccessDenied):
                store.read_range(wanted)
        store.close()
    assert branch.origin.served() == []
    assert {one.how for one in branch.squid.passed()} == {"TCP_DENIED"}


def test_what_begins_with_a_dot_is_refused(branch: Branch) -> None:
    store = HttpStore(branch.squid.url, ca_cert=branch.authority.file, options=QUICK)
    with pytest.raises(AccessDenied):
        store.read(".trimtransfer/lock", limit=1024)
    store.close()
    assert branch.origin.served() == []


def test_a_cold_range_brings_the_whole_pack_once(branch: Branch) -> None:
    """Ranges of one pack by many at once: the origin sends it once."""
    path = max(branch.root.rglob("packs/*/*.bin"), key=lambda path: path.stat().st_size)
    data, name = path.read_bytes(), path.relative_to(branch.root).as_posix()
    middle = len(data) // 2
    starts = [0, 16, middle, middle + 70_000, len(data) - 5000, len(data) - 16]

    def read(start: int) -> bytes:
        store = HttpStore(branch.squid.url, ca_cert=branch.authority.file)
        try:
            return store.read_range(Range(name, start, min(5000, len(data) - start), len(data)))
        finally:
            store.close()

    with ThreadPoolExecutor(6) as pool:
        for start, found in zip(starts, pool.map(read, starts), strict=True):
            assert found == data[start : start + 5000]
    assert [(line.status, line.bytes, line.range) for line in branch.origin.served(1)] == [(200, len(data), "-")]
    branch.forget()
    assert read(1000) == data[1000:6000]
    assert branch.origin.served() == []


def test_what_is_kept_is_served_while_the_origin_is_gone(branch: Branch) -> None:
    branch.client()
    branch.origin.stop()
    store = HttpStore(branch.squid.url, ca_cert=branch.authority.file, options=QUICK)
    for path in branch.root.rglob("packs/*/*.bin"):
        name, data = path.relative_to(branch.root).as_posix(), path.read_bytes()
        assert store.read_range(Range(name, 0, len(data), len(data), whole=True)) == data
        assert store.read_range(Range(name, 100, 900, len(data))) == data[100:1000]
    manifest = "images/disk/1/manifest.bin"
    assert store.read(manifest, limit=1 << 20) == (branch.root / manifest).read_bytes()
    with pytest.raises(FetchError):
        store.read("images/disk/2/manifest.bin", limit=1 << 20)
    store.close()


def test_a_damaged_pack_in_the_cache_is_fetched_anew(branch: Branch) -> None:
    """Clients ask past the cache for what came damaged, and the cache takes the right bytes then."""
    path = max(branch.root.rglob("packs/*/*.bin"), key=lambda path: path.stat().st_size)
    right = path.read_bytes()
    path.write_bytes(bytes(byte ^ 0x55 for byte in right))
    name = path.relative_to(branch.root).as_posix()
    store = HttpStore(branch.squid.url, ca_cert=branch.authority.file, options=QUICK)
    assert store.read_range(Range(name, 0, 100, len(right))) != right[:100]
    assert [line.bytes for line in branch.origin.served(1)] == [len(right)], "nginx is done with the file"
    path.write_bytes(right)
    assert store.read_range(Range(name, 0, 100, len(right))) != right[:100], "kept"
    store.close()
    branch.client()
    branch.forget()
    branch.client()
    assert {line.uri.rpartition("/")[2] for line in branch.origin.served() if line.status == 200} == {"head.json"}


def test_the_doctor_finds_nothing_wrong_with_what_is_shipped(branch: Branch) -> None:
    direct = branch.origin.url.replace("://", "://branch:origin%20pass@")
    for url in (direct, branch.squid.url):
        for _ in range(2):
            report = examine(url, "disk", ca_cert=branch.authority.file)
            found = {one.code: one.seen for one in report.findings if one.severity is not Severity.NOTE}
            assert found == {}
            assert report.requests < 40
            assert report.bytes < 1 << 20
    assert "squid" in report.servers


def test_a_cache_that_keeps_no_ranges_is_found(branch: Branch) -> None:
    """The same configuration without the line that is about ranges."""
    work = branch.folder / "other"
    work.mkdir()

    class Forgetful(Squid):
        def _write_config(self) -> None:
            super()._write_config()
            path = self.work / "squid.conf"
            path.write_text(path.read_text().replace("range_offset_limit none objects", ""))

    with Forgetful(work, branch.origin, branch.authority) as squid:
        report = examine(squid.url, "disk", ca_cert=branch.authority.file)
        assert "not-kept" in {one.code for one in report.findings}
    shutil.rmtree(work, ignore_errors=True)


def test_a_proxy_of_the_environment(branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squid as the proxy through which a company's machines reach the world, with passwords."""
    work = branch.folder / "proxy"
    work.mkdir()

    class Proxy(Squid):
        def _write_config(self) -> None:
            (self.work / "squid.conf").write_text(f"""
                visible_hostname proxy
                http_port 127.0.0.1:{self.port}
                auth_param basic program /usr/lib/squid/basic_ncsa_auth {self.work}/passwd
                acl known proxy_auth REQUIRED
                http_access allow known
                http_access deny all
                cache deny all
                access_log stdio:{self.work}/log/access.log
                cache_log {self.work}/log/cache.log
                coredump_dir {self.work}
                pid_filename {self.work}/squid.pid
                shutdown_lifetime 0 seconds
                pinger_enable off
            """)
            self._own()

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    url = branch.origin.url.replace("://", "://branch:origin%20pass@")
    with Proxy(work, branch.origin, branch.authority) as proxy:
        for words, expected in (("client:wrong", {"proxy-denied"}), ("client:client%3Ap%40ss", set())):
            monkeypatch.setenv("https_proxy", f"http://{words}@localhost:{proxy.port}")
            report = examine(url, "disk", ca_cert=branch.authority.file)
            found = {one.code for one in report.findings if one.severity is Severity.ERROR}
            assert found == expected
            assert "proxy-environment" in {one.code for one in report.findings}
            assert report.exit_code == (8 if expected else 0)
            assert "wrong" not in str(report.to_dict())
