"""Whether local reuse pays: the rule, on its own, and at work in plans and syncs."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from syncing import BLOCK, make_images, publish_all

from trimtransfer.assembly.payoff import (
    ASSUMED_BANDWIDTH,
    NEGLIGIBLE,
    OUT_OF_PROPORTION,
    Decision,
    Judge,
    Line,
    decide,
    decide_deltas,
    decide_scan,
)
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.cli.sync import decision_text, medv_sync
from trimtransfer.fetch.manners import Manners
from trimtransfer.index.host import HostIndex

MB = 1_000_000
GIGABIT = Line(125 * MB, "given")
SLOW = Line(1 * MB, "given")
RATES = st.floats(1e3, 1e10)
SIZES = st.integers(0, 1 << 45)


def scan(line: Line, wanted: int, **options: Any) -> Decision:
    """Decide about an index of a usual system."""
    return decide_scan(**{"files": 300_000, "size": 4_000 * MB, "sample": 0, "wanted": wanted, "rate": None, **options}, line=line)  # fmt: skip # noqa: E501


def test_little_on_a_fast_line_is_not_worth_a_walk() -> None:
    assert not scan(GIGABIT, 5 * MB).used
    assert not scan(GIGABIT, 5 * MB, rate=30 * MB).used
    assert scan(SLOW, 5 * MB).used
    assert scan(GIGABIT, 500 * MB).used
    assert scan(Line(ASSUMED_BANDWIDTH, "assumed"), 50 * MB).used
    assert scan(Line(125 * MB, "given", metered=True), 5 * MB).used
    assert scan(GIGABIT, 5 * MB, files=20_000, size=100 * MB).used, "it takes next to no time"
    assert not scan(Line(125 * MB, "given", metered=True), 0).used


def test_a_slow_disk_counts() -> None:
    fast, slow = scan(GIGABIT, 100 * MB, rate=500 * MB), scan(GIGABIT, 100 * MB, rate=5 * MB)
    assert fast.used
    assert not slow.used
    assert slow.costs_seconds > fast.costs_seconds


def test_an_index_that_does_not_exist_costs_a_sample() -> None:
    none = scan(GIGABIT, 100 * MB, files=0, size=0, sample=768 << 20, rate=100 * MB)
    assert none.costs_seconds == pytest.approx((768 << 20) / (100 * MB))


def test_deltas_pay_but_on_very_fast_lines() -> None:
    usual = {"made": 250 * MB, "plain": 80 * MB, "stored": 20 * MB}
    assert decide_deltas(**usual, line=GIGABIT).used
    assert decide_deltas(**usual, line=SLOW).used
    assert not decide_deltas(**usual, line=Line(5_000 * MB, "given")).used
    assert not decide_deltas(made=MB, plain=1000, stored=1000, line=SLOW).used


@given(SIZES, st.floats(0, 1e9), RATES, st.booleans())
def test_the_rule(saves: int, costs: float, rate: float, metered: bool) -> None:
    found = decide("something", saves_bytes=saves, costs_seconds=costs, line=Line(rate, "given", metered))
    in_proportion = costs <= max(NEGLIGIBLE, OUT_OF_PROPORTION * (saves / rate))
    assert found.used == (saves > 0 and (metered or in_proportion))
    assert found.reason
    assert found.saves_seconds == saves / rate
    more = decide("something", saves_bytes=saves * 2, costs_seconds=costs, line=Line(rate, "given", metered))
    slower = decide("something", saves_bytes=saves, costs_seconds=costs, line=Line(rate / 2, "given", metered))
    assert more.used >= found.used
    assert slower.used >= found.used
    assert json.loads(json.dumps(found.to_dict()))["used"] == found.used
    assert found.reason in decision_text(found)


@given(st.none() | RATES, st.none() | RATES, SIZES, st.floats(0, 1e6))
def test_what_is_known_of_the_line(given_: float | None, limit: float | None, size: int, seconds: float) -> None:
    line = Line.of(given_, limit, (size, seconds))
    assert line.bytes_per_second > 0
    if limit is not None:
        assert line.bytes_per_second <= limit
    elif given_ is not None:
        assert (line.bytes_per_second, line.known) == (given_, "given")
    elif size < 1 << 20 or not seconds:
        assert (line.bytes_per_second, line.known) == (ASSUMED_BANDWIDTH, "assumed")
    else:
        assert line.known == "measured"
        assert line.bytes_per_second == min(125 * MB, size / seconds)


def test_a_judge_remembers() -> None:
    judge = Judge(None, 1e6, metered=True)
    assert judge.line((0, 0.0)) == Line(1e6, "given", True)
    decision = decide("one", saves_bytes=1, costs_seconds=1e9, line=judge.line((0, 0.0)))
    assert judge.note(decision)
    assert judge.decisions == (decision,)


# ---- at work


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is negligible: what is done here is small."""
    monkeypatch.setattr("trimtransfer.assembly.payoff.NEGLIGIBLE", 0.0)


@pytest.fixture
def repository(public_path: Path, rng: np.random.Generator) -> tuple[Path, list[bytes]]:
    """Two versions, with deltas between them: many blocks of the first are similar in the second, not equal."""
    images = make_images(rng, versions=1)
    image = bytearray(images[0])
    blocks = np.frombuffer(image, np.uint8, len(image) // BLOCK * BLOCK).reshape(-1, BLOCK)
    for block in np.flatnonzero(blocks.any(axis=1))[1::3].tolist():
        image[block * BLOCK + 100] ^= 1
    del blocks
    images.append(bytes(image))
    publish_all(public_path / "r", images)
    return public_path, images


@pytest.mark.usefixtures("hurry")
def test_deltas_are_left_aside_where_they_do_not_pay(repository: tuple[Path, list[bytes]]) -> None:
    folder, images = repository
    for bandwidth, metered, used in ((None, False, True), (1e12, False, False), (1e12, True, True)):
        output = folder / "image.img"
        options: dict[str, Any] = {
            "output": output,
            "cache": folder / "cache",
            "bandwidth": bandwidth,
            "manners": Manners(metered=metered),
        }
        for path in (output, *output.parent.glob("image.img.medv/*")):
            path.unlink(missing_ok=True)
        sync(folder / "r", "disk", version="1", **options)
        told = plan(folder / "r", "disk", **options)
        done = sync(folder / "r", "disk", **options)
        assert output.read_bytes() == images[1]
        assert [one.used for one in told.decisions] == [one.used for one in done.decisions] == [used]
        assert [one.what for one in done.decisions] == ["deltas"]
        assert (done.made.units > 0) == (told.made.units > 0) == used


@pytest.mark.usefixtures("hurry")
def test_the_host_index_is_not_updated_where_that_does_not_pay(
    repository: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images = repository
    files = folder / "files"
    files.mkdir()
    (files / "one").write_bytes(images[0])
    monkeypatch.setattr("trimtransfer.index.host.default_paths", lambda: [files])
    monkeypatch.setattr("trimtransfer.assembly.hostfiles.default_paths", lambda: [files])
    monkeypatch.setattr("trimtransfer.assembly.hostfiles.LEAST", 50_000)
    host = HostIndex(folder / "cache" / "index")
    options: dict[str, Any] = {
        "host_index": host, "refresh_host_index": True, "cache": folder / "cache", "version": "1",
    }  # fmt: skip
    fast = sync(folder / "r", "disk", output=folder / "1.img", bandwidth=1e9, **options)
    assert not fast.decisions[0].used
    assert (fast.content.host, host.totals().files) == (0, 0)
    slow = sync(folder / "r", "disk", output=folder / "2.img", bandwidth=1e4, **options)
    assert slow.decisions[0].used
    assert slow.content.host > 0
    assert slow.network.bytes < fast.network.bytes


def test_little_is_not_looked_for(repository: tuple[Path, list[bytes]]) -> None:
    folder, _ = repository
    host = HostIndex(folder / "cache" / "index")
    options: dict[str, Any] = {"host_index": host, "refresh_host_index": True, "cache": folder / "cache"}
    found = plan(folder / "r", "disk", output=folder / "1.img", bandwidth=1.0, **options)
    assert found.content.fetched < 4 << 20
    assert not found.decisions[0].used
    assert "less than 4 MiB" in found.decisions[0].reason


def test_the_rate_of_a_scan_is_remembered(public_path: Path) -> None:
    host = HostIndex(public_path / "index")
    assert host.scan_rate() is None
    (public_path / "files").mkdir()
    (public_path / "files/one").write_bytes(os.urandom(70 << 20))
    report = host.update([public_path / "files"])
    assert host.scan_rate() == pytest.approx(report.bytes / report.seconds, rel=0.01)
    host.update([public_path / "files"])
    assert host.scan_rate() is not None
    for wrong in ("", "nan", "-1", "inf", "x" * 100):
        (public_path / "index/scan-rate").write_text(wrong)
        assert host.scan_rate() is None


@pytest.mark.usefixtures("hurry")
def test_plan_tells_what_is_decided(repository: tuple[Path, list[bytes]]) -> None:
    folder, _ = repository
    output = folder / "image.img"
    common = ["--cache", str(folder / "cache"), "-o", str(output)]
    sync(folder / "r", "disk", output=output, version="1", cache=folder / "cache")
    done = CliRunner().invoke(medv_sync, ["plan", str(folder / "r"), "disk", "--no-host-index", *common])
    assert done.exit_code == 0, done.output
    assert "The deltas are used: saves at most" in done.stdout
    fast = CliRunner().invoke(
        medv_sync, ["plan", str(folder / "r"), "disk", "--no-host-index", *common, "--bandwidth", "900G", "--json"]
    )
    (decision,) = json.loads(fast.stdout)["decisions"]
    assert (decision["what"], decision["used"]) == ("deltas", False)
    assert "out of proportion" in decision["reason"]
    done = CliRunner().invoke(
        medv_sync, [str(folder / "r"), "disk", "--no-host-index", *common, "--bandwidth", "900G", "-v"]
    )
    assert done.exit_code == 0, done.output
    assert "The deltas are not used" in done.stderr


@pytest.mark.usefixtures("hurry")
def test_a_file_is_searched_at_any_offset_only_where_that_pays(
    repository: tuple[Path, list[bytes]], rnd: random.Random
) -> None:
    folder, images = repository
    seed = folder / "container"
    seed.write_bytes(rnd.randbytes(777) + images[1] + rnd.randbytes(5000))
    found = {}
    for bandwidth in (1e6, 1e12):
        options: dict[str, Any] = {"seeds": [seed], "cache": folder / "cache", "bandwidth": bandwidth}
        report = sync(folder / "r", "disk", output=folder / f"{bandwidth}.img", **options)
        (decision,) = report.decisions
        assert decision.what == "search of container at any offset"
        found[decision.used] = report.content.fetched
    assert found[True] < 0.1 * found[False]
