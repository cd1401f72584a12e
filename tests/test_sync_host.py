"""The host index in a sync: used as it is by default, brought up to date where asked for and where it pays."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from syncing import BLOCK, STARTS, content, make_images, publish_all

from trimtransfer.assembly import windows
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.cli.sync import medv_sync
from trimtransfer.errors import Cancelled, NoSpace
from trimtransfer.index.host import HostIndex
from trimtransfer.index.update import StopRule


class Place:
    """A repository with two versions, a tree of host files that hold parts of them, and no index yet."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        self.folder, self.images = folder, images
        self.repository, self.files = folder / "repository", folder / "files"
        publish_all(self.repository, images)
        self.files.mkdir()
        self.host = HostIndex(folder / "cache" / "index")
        self.phases: set[str] = set()
        self._outputs = 0

    def hold(self, name: str, image: bytes, share: float = 0.5) -> None:
        """Put the first part of an image's content into host files, one for each stretch of it."""
        starts = [sector * 512 for sector in STARTS]
        for start, end in zip(starts, [*starts[1:], len(image)], strict=True):
            filled = [any(image[at : at + BLOCK]) for at in range(start, end, BLOCK)]
            edges = [n for n, one in enumerate([*filled, False]) if one != ([False, *filled][n])]
            for first, last in zip(edges[::2], edges[1::2], strict=True):
                if start + first * BLOCK < share * len(image):
                    data = image[start + first * BLOCK : min(end, start + last * BLOCK)]
                    (self.files / f"{name}-{start}-{first}").write_bytes(data)

    def sync(self, version: str, **options: Any) -> SyncReport:
        """Sync to a new output and check it."""
        self._outputs += 1
        output = self.folder / f"{self._outputs}.img"
        self.phases.clear()
        options = {"host_index": self.host, "cache": self.folder / "cache", "version": version, **options}
        progress = options.pop("progress", lambda phase, done, total: self.phases.add(phase))
        report = sync(self.repository, "disk", output=output, progress=progress, **options)
        assert output.read_bytes() == self.images[int(version) - 1]
        assert report.content.size == report.length
        return report


@pytest.fixture
def tmp_path(public_path: Path) -> Path:
    """Host files are public ones only."""
    return public_path


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Small windows, little that pays, and a system whose program files are those of the test."""
    made = Place(tmp_path, make_images(rng))
    monkeypatch.setattr(windows, "WINDOW_REGIONS", 1)
    monkeypatch.setattr("trimtransfer.assembly.hostfiles.LEAST", 50_000)
    monkeypatch.setattr("trimtransfer.assembly.payoff.OUT_OF_PROPORTION", 1e6)
    monkeypatch.setattr("trimtransfer.index.host.default_paths", lambda: [made.files])
    monkeypatch.setattr("trimtransfer.index.scan.SETTLED_NANOSECONDS", 0)
    return made


def test_no_index_is_made_unasked(place: Place) -> None:
    place.hold("one", place.images[0])
    report = place.sync("1")
    assert (report.content.host, report.warnings) == (0, ())
    assert "scan" not in place.phases
    assert place.host.totals().files == 0


def test_a_missing_index_is_made_and_an_old_one_brought_up_to_date(place: Place) -> None:
    place.hold("one", place.images[0])
    alone = place.sync("1", host_index=None)
    first = place.sync("1", refresh_host_index=True)
    assert first.content.host > 0
    assert first.content.fetched < alone.content.fetched
    assert first.warnings == ()
    assert {"scan", "fetch"} <= place.phases
    files = place.host.totals().files
    as_it_is = place.sync("2")
    place.hold("two", place.images[1], share=1.0)
    assert place.sync("2").content.host == as_it_is.content.host
    refreshed = place.sync("2", refresh_host_index=True)
    assert refreshed.content.host > as_it_is.content.host
    assert place.host.totals().files > files


def test_plan_and_sync_agree(place: Place) -> None:
    place.hold("one", place.images[0])
    options = {"host_index": place.host, "refresh_host_index": True, "cache": place.folder / "cache", "version": "1"}
    preview = plan(place.repository, "disk", output=place.folder / "other.img", **options)
    report = place.sync("1", refresh_host_index=True)
    assert preview.content == report.content
    assert report.content.host > 0


def test_for_little_nobody_scans(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.hold("one", place.images[0])
    monkeypatch.setattr("trimtransfer.assembly.hostfiles.LEAST", len(place.images[0]))
    assert place.sync("1", refresh_host_index=True).content.host == 0
    assert "scan" not in place.phases


def test_a_scan_that_finds_nothing_ends(
    place: Place, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr("trimtransfer.index.host.StopRule", functools.partial(StopRule, sample=1 << 20))
    for number in range(300):
        (place.files / f"{number:03}").write_bytes(content(rng, 100_000))
    report = place.sync("1", refresh_host_index=True)
    assert report.content.host == 0
    assert len(report.warnings) == 1
    assert str(place.files) in report.warnings[0]
    assert 0 < place.host.totals().files < 300


def test_an_index_that_cannot_be_updated_is_a_warning(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.hold("one", place.images[0])
    place.host.update()
    place.hold("two", place.images[1], share=1.0)
    with place.host._tree.locked():
        report = place.sync("2", refresh_host_index=True)
    assert len(report.warnings) == 1
    assert "another process" in report.warnings[0]
    assert report.content.host > 0, "it was used as it is"

    def full(self: HostIndex, **options: object) -> None:
        raise NoSpace("index", 5, 4)

    monkeypatch.setattr(HostIndex, "update", full)
    report = place.sync("2", refresh_host_index=True)
    assert len(report.warnings) == 1
    assert "5 bytes needed" in report.warnings[0]
    assert report.content.host > 0


def test_a_scan_can_be_cancelled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtransfer.index.update._REPORT_SECONDS", 0.0)
    place.hold("one", place.images[0])
    event = threading.Event()
    with pytest.raises(Cancelled, match="run the same command again"):
        place.sync(
            "1", refresh_host_index=True, cancel=event, progress=lambda phase, *_: phase == "scan" and event.set()
        )
    assert place.sync("1", refresh_host_index=True).content.host > 0


@pytest.mark.parametrize("option", ["--host-index", None, "--no-host-index"])
def test_the_option(place: Place, option: str | None) -> None:
    place.hold("one", place.images[0])
    output = place.folder / "disk.img"
    arguments = [str(place.repository), "disk", "-o", str(output), "--version", "1", "--json"]
    arguments += ["--cache", str(place.folder / "cache"), *([option] if option else [])]
    done = CliRunner().invoke(medv_sync, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["content"]["host"] > 0) == (option == "--host-index")
    assert (place.host.totals().files > 0) == (option == "--host-index")
