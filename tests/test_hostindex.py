"""The host index: what is walked, kept up to date, survives kills and damage, and what the command says."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trimtransfer.chunk import BLOCK_SIZE, Kind, chunk_digest
from trimtransfer.chunker import cut_and_digest
from trimtransfer.cli.index import index as index_command
from trimtransfer.errors import Cancelled, FormatError, Locked, TargetRefused
from trimtransfer.index.globs import PathChooser, parse_pattern
from trimtransfer.index.host import MEMORY_CAP, HostIndex, default_directory, default_paths
from trimtransfer.index.prefix import PrefixIndex, PrefixSet
from trimtransfer.index.scan import SMALL
from trimtransfer.index.seed import IndexedSeed
from trimtransfer.index.tree import MAX_RUNS, MAX_STALE, TreeIndex
from trimtransfer.index.update import StopRule, update_index
from trimtransfer.index.walk import MAX_DEPTH, Walk

Holdings = set[tuple[int, int]]
"""The chunks that an index finds and that read back right: (prefix, length)."""


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests write files just before they index them."""
    monkeypatch.setattr("trimtransfer.index.scan.SETTLED_NANOSECONDS", 0)


@pytest.fixture
def tmp_path(public_path: Path) -> Path:
    """Host files are public ones only."""
    return public_path


@pytest.fixture
def tree(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A tree of 60 files."""
    root = tmp_path / "tree"
    for n in range(60):
        path = root / f"d{n % 5}" / f"e{n % 3}" / f"file{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(int(rng.integers(1, 60_000))))
    return root


def holdings(seed: IndexedSeed) -> Holdings:
    """Ask the seed for every chunk of its own indexes; keep what is found and right."""
    held: Holdings = set()
    for part in seed._indexes:
        rows = seed.find(part.columns.prefixes, part.columns.lengths)
        for row, prefix, length in zip(
            rows.tolist(), part.columns.prefixes.tolist(), part.columns.lengths.tolist(), strict=True
        ):
            buffer = bytearray(length)
            if row >= 0 and seed.read(row, memoryview(buffer)) and prefix_of(buffer) == prefix:
                held.add((prefix, length))
    return held


def prefix_of(chunk: bytes | bytearray) -> int:
    return int.from_bytes(chunk_digest(chunk)[:8], "little")


def fresh(paths: list[Path], directory: Path) -> Holdings:
    """What an index made at once finds."""
    shutil.rmtree(directory, ignore_errors=True)
    host = HostIndex(directory)
    host.update(paths)
    with host.seed() as seed:
        return holdings(seed)


def held_by(host: HostIndex) -> Holdings:
    with host.seed() as seed:
        return holdings(seed)


# --- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.so", "/usr/lib/libc.so", True),
        ("*.so", "/usr/lib/libc.so.6", False),
        ("*.so*", "/usr/lib/libc.so.6", True),
        ("/usr/*", "/usr/lib", True),
        ("/usr/*", "/usr/lib/libc.so", True),
        ("/usr/*", "/opt/usr/lib", False),
        ("/usr/*.so", "/usr/lib/libc.so", False),
        ("/usr/**/*.so", "/usr/lib/a/b/libc.so", True),
        ("/usr/**/*.so", "/usr/libc.so", True),
        ("/usr/**", "/usr", True),
        ("doc", "/usr/share/doc/a/b", True),
        ("doc", "/usr/share/docs/a", False),
        ("share/doc", "/usr/share/doc/x", True),
        ("/share/doc", "/usr/share/doc/x", False),
        ("**/doc/**/x", "/doc/x", True),
        ("?.c", "/a.c", True),
        ("?.c", "/ab.c", False),
        ("?.c", "/.c", False),
        ("[ab].c", "/a.c", True),
        ("[!ab].c", "/a.c", False),
        ("*", "/.hidden", True),
        ("A", "/a", False),
        ("a/", "/a/b", True),
        ("a.c", "/abc", False),
        ("f\udcff", os.fsdecode(b"/f\xff"), True),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    raw = os.fsencode(path)
    assert PathChooser(include=[pattern]).chooses(raw) == matches
    assert PathChooser(exclude=[pattern]).chooses(raw) == (not matches)
    assert not PathChooser(include=[pattern], exclude=[pattern]).chooses(raw)


def slow_match(pattern: str, path: str) -> bool:
    """The documented meaning as a regular expression over the whole path and each directory above it."""
    anchored = pattern if pattern.startswith("/") else f"/**/{pattern}"
    expression = ""
    for segment in filter(None, anchored.split("/")):
        if segment == "**":
            expression += "(?:/[^/]+)*"
        else:
            expression += "/" + "".join({"*": "[^/]*", "?": "[^/]"}.get(c, re.escape(c)) for c in segment)
    parts = path.split("/")
    return any(re.fullmatch(expression, "/".join(parts[:n])) for n in range(1, len(parts) + 1) if parts[:n] != [""])


names = st.text("ab.", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
segments = st.one_of(st.just("**"), st.text("ab.*?", min_size=1, max_size=4).filter(lambda s: s.strip("*") or s == "*"))
patterns = st.builds(
    lambda rooted, s: ("/" if rooted else "") + "/".join(s), st.booleans(), st.lists(segments, min_size=1)
)


@given(st.lists(patterns, max_size=3), st.lists(patterns, max_size=3), st.lists(names, min_size=1, max_size=5))
def test_patterns_mean_what_they_say(include: list[str], exclude: list[str], parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    expected = not any(slow_match(p, path) for p in exclude) and (
        not include or any(slow_match(p, path) for p in include)
    )
    assert PathChooser(include, exclude).chooses(os.fsencode(path)) == expected


def test_hostile_patterns_take_little_time() -> None:
    chooser = PathChooser(include=["/".join(["**", "*a*a*a*a*a*a*a*b"] * 100)])
    assert not chooser.chooses(b"/" + b"/".join([b"a" * 200] * 200))


@pytest.mark.parametrize("pattern", ["", "/", "//", "a" * 5000, "a\0b"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        parse_pattern(pattern)


# --- walking --------------------------------------------------------------------------------------------------------


def walked(walk: Walk) -> set[str]:
    return {os.fsdecode(os.path.join(listing.directory, found.name)) for listing in walk for found in listing.files}


def test_a_walk_meets_every_file_once(tree: Path) -> None:
    listed = [
        os.path.join(listing.directory, found.name)
        for listing in Walk(os.fsencode(tree), PathChooser())
        for found in listing.files
    ]
    assert sorted(listed) == sorted(os.fsencode(path) for path in tree.rglob("file*"))


def test_a_walk_passes_over_what_is_no_file(tree: Path) -> None:
    expected = walked(Walk(os.fsencode(tree), PathChooser()))
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "socket", 0o600 | 0o140000)
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "up").symlink_to(tree.parent, target_is_directory=True)
    walk = Walk(os.fsencode(tree), PathChooser())
    assert walked(walk) == expected
    assert walk.skipped.special == 2


def test_only_public_files_are_public(tree: Path) -> None:
    (tree / "d0/e0/file0").chmod(0o600)
    (tree / "d1").chmod(0o750)
    walk = Walk(os.fsencode(tree), PathChooser(), public=True)
    expected = {str(path) for path in tree.rglob("file*")} - {str(path) for path in (tree / "d1").rglob("file*")}
    assert walked(walk) == expected - {str(tree / "d0/e0/file0")}
    assert walk.skipped.private == 2
    tree.parent.chmod(0o700)  # nobody else gets here at all
    assert walked(Walk(os.fsencode(tree), PathChooser(), public=True)) == set()


def test_other_file_systems_are_left_out() -> None:
    if os.stat("/dev").st_dev == os.stat("/dev/shm").st_dev:
        pytest.skip("no file system mounted at /dev/shm")
    walk = Walk(b"/dev", PathChooser())
    assert not any(path.startswith("/dev/shm/") for path in walked(walk))
    assert walk.skipped.other_device >= 1


def test_depth_is_bounded(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(MAX_DEPTH + 5):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    walk = Walk(os.fsencode(tmp_path), PathChooser())
    assert walked(walk) == set()
    assert walk.skipped.too_deep == 1


def test_excluded_folders_are_never_entered_and_nothing_else_is_opened(tree: Path, tmp_path: Path) -> None:
    """Every open() of a process that indexes, as the interpreter's audit hook sees it."""
    (tree / "secret").mkdir()
    (tree / "secret/key").write_text("x" * 5000)
    (tree / "d0/private").write_text("x" * 5000)
    (tree / "d0/private").chmod(0o640)
    (tree / "d0/link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_text("x" * 5000)
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: event in ("open", "os.scandir", "os.listdir") and opened.append(str(args[0])))
from trimtransfer.index.host import HostIndex
HostIndex(sys.argv[2]).update([sys.argv[1]], exclude=["secret"])
print(*opened, sep="\\n")
"""
    command = [sys.executable, "-c", code, str(tree), str(tmp_path / "index")]
    opened = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert str(tree / "d0/e0/file0") in opened
    for forbidden in ("secret", "private", "link", "outside"):
        assert forbidden not in opened


# --- keeping up to date ---------------------------------------------------------------------------------------------


def test_an_index_follows_its_tree(tree: Path, tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> None:
    host = HostIndex(tmp_path / "index")
    for step in range(12):
        report = host.update([tree])
        assert held_by(host) == fresh([tree], tmp_path / "fresh")
        totals = host.totals()
        files = list(tree.rglob("file*"))
        assert (report.files, totals.files) == (len(files), len(files))
        assert totals.runs <= MAX_RUNS
        assert totals.stale_share <= MAX_STALE
        assert step == 0 or report.unchanged >= len(files) - 10
        for path in rnd.sample(files, 10):
            change = rnd.randrange(4)
            if change == 0:
                path.unlink()
            elif change == 1:
                path.write_bytes(rng.bytes(int(rng.integers(1, 3 * SMALL // 2))))
            elif change == 2:
                path.rename(path.with_name(path.name + "x"))
            else:
                path.with_name(path.name + "y").write_bytes(path.read_bytes() + rng.bytes(9000))
    report = host.update([tree])
    report = host.update([tree])
    assert (report.scanned, report.removed, report.bytes) == (0, 0, 0)


def test_other_roots_stay_as_they_are(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree / "d0"])
    host.update([tree / "d1", tree / "d1/e1"])
    expected = fresh([tree / "d0", tree / "d1"], tmp_path / "fresh")
    assert held_by(host) == expected
    (tree / "d0/e0/file0").unlink()
    assert host.update([tree / "d1"]).removed == 0
    assert host.update([tree]).removed == 1


def test_names_of_one_root_may_begin_like_another(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "d0", tree / "d00")
    shutil.copytree(tree / "d0", tree / "d0-")
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    shutil.rmtree(tree / "d00")
    assert host.update([tree / "d0"]).removed == 0
    assert host.update([tree]).removed == len(list((tree / "d0").rglob("file*")))


def test_one_file_alone_is_a_root(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    path = tree / "d0/e0/file0"
    assert host.update([path]).scanned == 1
    assert host.update([tree / "d0/e0"]).unchanged == 1
    path.rename(tree / "elsewhere")
    assert host.update([path]).removed == 0  # it may come back: a disk that is not mounted just now
    assert host.update([tree]).removed == 1


def test_excluded_files_leave_the_index(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    report = host.update([tree], exclude=["d1", "file0"])
    assert report.removed == len(list((tree / "d1").rglob("file*"))) + 1
    assert host.update([tree], include=["file2"]).files == 1
    assert host.totals().files == 1


def test_files_with_two_names_are_read_once(tree: Path, tmp_path: Path) -> None:
    os.link(tree / "d0/e0/file0", tree / "d1/other")
    host = HostIndex(tmp_path / "index")
    assert host.update([tree]).scanned == 60
    for path in (tree / "d0/e0/file0", tree / "d1/other"):
        if path.exists():
            path.unlink()
            host.update([tree])
            if path.name == "file0":
                assert held_by(host) == fresh([tree], tmp_path / "fresh")
    assert host.totals().files == 59


def test_files_that_become_private_are_not_read(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    for path in tree.rglob("file*"):
        path.chmod(0o600)
    assert held_by(host) == set()


def test_host_files_are_cut_with_padding(tmp_path: Path, rng: np.random.Generator) -> None:
    data = padded = b""
    while len(cut_and_digest(Kind.DISK, padded)[0]) != 1:  # the hint of the first block may say that a chunk ends there
        data = rng.bytes(5000)
        padded = data.ljust(2 * BLOCK_SIZE, b"\0")
    (tmp_path / "file").write_bytes(data)
    host = HostIndex(tmp_path / "index")
    host.update([tmp_path / "file"])
    with host.seed() as seed:
        assert seed.category == "host"
        assert holdings(seed) == {(prefix_of(padded), len(padded))}
        assert seed.find(np.array([prefix_of(data)], np.uint64), np.array([5000], np.uint32)).tolist() == [-1]


def test_a_sparse_file_longer_than_any_disk_costs_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write(rng.bytes(100_000))
        try:
            file.truncate((1 << 47) + 1)
        except OSError:
            file.truncate((1 << 43) + 1)  # what ext4 allows
    host = HostIndex(tmp_path / "index")
    assert host.update([tmp_path / "file"]).bytes <= 64 << 20
    assert not host.update([tmp_path / "file"]).rebuilt
    assert len(held_by(host)) > 0


def test_an_index_being_updated_can_be_read(tree: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    expected = held_by(host)
    stop, failures = threading.Event(), list[str]()

    def look() -> None:
        while not stop.is_set():
            if not expected <= held_by(host):
                failures.append("chunks were missing")

    reader = threading.Thread(target=look)
    reader.start()
    for n in range(30):  # a run for each step, so merges too
        (tree / f"new{n}").write_bytes(rng.bytes(5000))
        host.update([tree])
    stop.set()
    reader.join()
    assert failures == []


# --- stopping -------------------------------------------------------------------------------------------------------


def big_tree(root: Path, rng: np.random.Generator, count: int = 40) -> None:
    root.mkdir()
    for n in range(count):
        (root / f"file{n:03}").write_bytes(rng.bytes(200_000))


def test_a_scan_that_does_not_pay_stops(tmp_path: Path, rng: np.random.Generator) -> None:
    big_tree(tmp_path / "poor", rng, 400)
    big_tree(tmp_path / "rich", rng)
    index = TreeIndex(tmp_path / "index", kind=Kind.DISK)
    fresh_index = HostIndex(tmp_path / "fresh")
    fresh_index.update([tmp_path / "rich"])
    with fresh_index.seed() as seed:
        prefixes = np.concatenate([part.columns.prefixes for part in seed._indexes])
    rule = StopRule(PrefixSet(prefixes[::2]), sample=2_000_000, rate=0.2)
    roots = [tmp_path / "poor", tmp_path / "rich"]
    report = update_index(index, roots, chooser=PathChooser(), stop=rule)
    assert report.stopped == [str(tmp_path / "poor")]
    assert 10 <= report.scanned - 40 < 200  # what was on its way to the threads is finished
    assert report.wanted_bytes >= 40 * 200_000 // 4
    report = update_index(index, roots, chooser=PathChooser())
    assert report.removed == 0
    assert index.totals().files == 440


def test_cancelling_keeps_what_was_done(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtransfer.index.update._REPORT_SECONDS", 0.0)
    big_tree(tmp_path / "tree", rng, 300)
    host, cancel = HostIndex(tmp_path / "index"), threading.Event()
    with pytest.raises(Cancelled):
        host.update([tmp_path / "tree"], cancel=cancel, progress=lambda *_: cancel.set())
    kept = host.totals().files
    assert kept < 300
    report = host.update([tmp_path / "tree"])
    assert (report.unchanged, report.scanned) == (kept, 300 - kept)
    assert held_by(host) == fresh([tmp_path / "tree"], tmp_path / "fresh")


_UPDATE = """
import sys
import trimtransfer.index.scan, trimtransfer.index.update
from trimtransfer.index.host import HostIndex
trimtransfer.index.scan.SETTLED_NANOSECONDS = 0
trimtransfer.index.update.COMMIT_FILES = 40
host = HostIndex(sys.argv[1])
print("ready", flush=True)
host.update([sys.argv[2]])
print("done", flush=True)
"""


def test_a_kill_at_any_point_loses_nothing_but_time(tree: Path, tmp_path: Path, rnd: random.Random) -> None:
    rng = np.random.default_rng(rnd.randrange(2**32))
    for n in range(1500):
        (tree / f"d{n % 5}" / f"small{n}").write_bytes(rng.bytes(3000))
    expected = fresh([tree], tmp_path / "fresh")
    killed, longest = 0, 2.0
    for _ in range(20):
        command = [sys.executable, "-c", _UPDATE, str(tmp_path / "index"), str(tree)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(rnd.uniform(0, longest))
            process.kill()
            complete = "done" in process.stdout.read()
            killed += process.wait() == -signal.SIGKILL
        index = TreeIndex(tmp_path / "index", kind=Kind.DISK)
        with HostIndex(tmp_path / "index").seed() as seed:
            assert holdings(seed) <= expected
        with index.locked():
            index.open_catalogue().close()  # sound: no FormatError
        if complete:  # begin anew, and kill sooner: a kill is to meet work
            shutil.rmtree(tmp_path / "index")
            longest /= 2
    assert killed >= 10
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    assert held_by(host) == expected
    runs = {f"run-{number}.bin" for number, _ in host._tree.open_runs()[0].runs()}  # type: ignore[union-attr]
    assert {path.name for path in (tmp_path / "index").iterdir()} >= runs
    assert not list((tmp_path / "index").glob("*.tmp"))


def test_an_interrupted_command_can_be_continued(tmp_path: Path, rng: np.random.Generator) -> None:
    big_tree(tmp_path / "tree", rng, 400)
    code = "from trimtransfer.cli.index import index; index()"
    command = [sys.executable, "-c", code, str(tmp_path / "tree"), "--cache", str(tmp_path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if json.loads(line)["done"]:
                break
        process.send_signal(signal.SIGINT)
        said, progress = process.stdout.read(), process.stderr.read()
    if process.returncode == 0:
        pytest.skip("it was done before it could be interrupted")
    assert process.returncode == 130
    assert json.loads(said)["error"]["exit_code"] == 130
    assert "again" in progress
    host = HostIndex(tmp_path / "index")
    assert host.totals().files > 0
    host.update([tmp_path / "tree"])
    assert host.totals().files == 400


# --- damage and other users -----------------------------------------------------------------------------------------


def test_a_damaged_run_leads_to_a_new_index(tree: Path, tmp_path: Path, rnd: random.Random) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    expected = held_by(host)
    (path,) = (tmp_path / "index").glob("run-*.bin")
    sound = path.read_bytes()
    for damaged in (
        *(sound[:at] + bytes([sound[at] ^ 1 << rnd.randrange(8)]) + sound[at + 1 :] for at in (0, 9, 17, 100, 300)),
        sound[:-1],
        b"",
        None,
    ):
        for old in (tmp_path / "index").glob("run-*.bin"):
            path = old
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert held_by(host) == set()
        report = host.update([tree])
        assert report.rebuilt
        assert held_by(host) == expected


def test_a_damaged_catalogue_costs_a_scan_at_most(tree: Path, tmp_path: Path, rnd: random.Random) -> None:
    """Whatever single bytes are damaged, nothing but errors of the package appears, and a rebuilt index is right."""
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    expected = held_by(host)
    path = tmp_path / "index/catalogue.sqlite"
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint(TRUNCATE)").connection.close()
    shutil.copytree(tmp_path / "index", tmp_path / "sound")
    sound, rebuilt = path.read_bytes(), 0
    cuts = [sound[: rnd.randrange(len(sound))] for _ in range(10)]
    flips = []
    for _ in range(120):
        at = rnd.randrange(len(sound)) if rnd.random() < 0.7 else rnd.randrange(4096)
        flips.append(sound[:at] + bytes([sound[at] ^ rnd.randrange(1, 256)]) + sound[at + 1 :])
    for damaged in (*cuts, *flips, b"", b"x" * 5000):
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(tmp_path / "sound", tmp_path / "index")
        path.write_bytes(damaged)
        assert held_by(host) <= expected
        host.totals()
        report = host.update([tree])
        rebuilt += report.rebuilt
        held = held_by(host)
        assert held <= expected
        if report.rebuilt:
            assert held == expected
    assert rebuilt >= 12


def test_an_index_of_another_version_is_made_anew(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    with sqlite3.connect(tmp_path / "index/catalogue.sqlite") as database:
        database.execute("UPDATE about SET value = 99 WHERE name = 'format'")
    database.close()
    assert held_by(host) == set()
    assert host.update([tree]).rebuilt
    assert host.totals().files == 60


def test_one_update_at_a_time(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    with (
        TreeIndex(tmp_path / "index", kind=Kind.DISK).locked(),
        pytest.raises(Locked, match=f"process {os.getpid()}"),
    ):
        host.update([tree])
    host.update([tree])


def test_a_cleared_index_can_be_made_again(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    host.clear()
    assert host.totals().files == 0
    assert held_by(host) == set()
    assert host.update([tree]).scanned == 60


def test_the_directory_is_private(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    assert (tmp_path / "index").stat().st_mode & 0o777 == 0o700
    (tmp_path / "index").chmod(0o755)
    assert HostIndex(tmp_path / "index").totals().files == 60
    assert (tmp_path / "index").stat().st_mode & 0o777 == 0o700
    (tmp_path / "index").chmod(0o777)  # anybody could have put anything in
    assert HostIndex(tmp_path / "index").totals().files == 0
    (tmp_path / "link").symlink_to(tmp_path / "index")
    with pytest.raises(TargetRefused, match="link"):
        HostIndex(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(tmp_path / "index", 12345, 12345)
        with pytest.raises(TargetRefused, match="another user"):
            HostIndex(tmp_path / "index")


def test_a_poisoned_index_cannot_make_us_read_private_files(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    (tmp_path / "private").write_bytes(b"secret" * 1000)
    (tmp_path / "private").chmod(0o600)
    found = (tmp_path / "private").stat()
    with sqlite3.connect(tmp_path / "index/catalogue.sqlite") as database:
        database.execute("INSERT INTO directories (path) VALUES (?)", (os.fsencode(tmp_path),))
        number = database.execute("SELECT max(id) FROM directories").fetchone()[0]
        database.execute(
            "UPDATE OR REPLACE files SET directory = ?, name = ?, device = ?, inode = ?",
            (number, b"private", found.st_dev, found.st_ino),
        )
    database.close()
    with host.seed() as seed:
        buffer = bytearray(4096)
        assert not any(seed.read(row, memoryview(buffer)) for row in range(len(seed)))
        assert not any(buffer)


# --- defaults, memory, the command ----------------------------------------------------------------------------------


def test_default_paths_are_program_folders_and_no_homes(tmp_path: Path) -> None:
    paths = [str(path) for path in default_paths("linux", {})]
    assert "/usr" in paths
    assert not [path for path in paths if path.startswith(("/home", "/root", "/tmp", "/var"))]
    assert not [path for path in paths if os.path.islink(path)]
    (tmp_path / "Windows").mkdir()
    assert default_paths("win32", {"SystemRoot": str(tmp_path / "Windows")}) == [tmp_path / "Windows"]
    assert default_directory().parts[-2:] == ("medv", "index")


_MEASURE = """
import sys
from trimtransfer.index.host import HostIndex
host = HostIndex(sys.argv[1])
host.update([sys.argv[2]])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program alone
print(host.totals().files, int(peak.split()[1]) * 1024)
"""


def test_memory_stays_below_the_stated_cap(tmp_path: Path, rng: np.random.Generator) -> None:
    root = tmp_path / "tree"
    for n in range(8000):
        if n % 4000 == 0:
            (root / str(n)).mkdir(parents=True)
        (root / str(n // 4000 * 4000) / f"f{n}").write_bytes(b"%d" % n)
    with (root / "large").open("wb") as file:
        for _ in range(40):
            file.write(rng.bytes(4 << 20))
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "index"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    files, peak = map(int, done.stdout.split())
    assert files == 8001
    assert peak <= MEMORY_CAP


def invoke(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(index_command, ["--no-idle", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command(tree: Path, tmp_path: Path) -> None:
    cache = ("--cache", tmp_path)
    code, said, _ = invoke(tree, *cache, "--exclude", "d1")
    assert code == 0
    assert "48 files" in said
    code, said, progress = invoke(tree, *cache, "--json")
    facts = json.loads(said)
    assert (facts["files"], facts["update"]["unchanged"], facts["update"]["scanned"]) == (60, 48, 12)
    assert json.loads(progress.splitlines()[-1])["files"] == 60
    assert json.loads(invoke(*cache, "--status", "--json")[1])["files"] == 60
    assert invoke(*cache, "--status", "-q")[1] == ""
    assert invoke(*cache, "--clear")[0] == 0
    assert not (tmp_path / "index").exists()
    assert "empty" in invoke(*cache, "--status")[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["/nowhere/at/all"], 2),
        (["--exclude", "/"], 2),
        (["--status", "--clear"], 2),
        (["--status", "/usr"], 2),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], code: int) -> None:
    assert invoke("--cache", tmp_path, *arguments)[0] == code


def test_the_command_names_who_is_in_the_way(tree: Path, tmp_path: Path) -> None:
    with TreeIndex(tmp_path / "index", kind=Kind.DISK).locked():
        code, _, said = invoke(tree, "--cache", tmp_path)
    assert code == Locked.exit_code
    assert f"process {os.getpid()}" in said


def test_idle_priority_is_for_the_command_alone(tree: Path, tmp_path: Path) -> None:
    code = """
import os, sys
from trimtransfer.cli.index import index
from trimtransfer.index.host import HostIndex
HostIndex(sys.argv[2] + "/index").update([sys.argv[1]])
assert os.sched_getscheduler(0) == os.SCHED_OTHER
index([sys.argv[1], "--cache", sys.argv[2]], standalone_mode=False)
print(os.sched_getscheduler(0) == os.SCHED_IDLE)
"""
    command = [sys.executable, "-c", code, str(tree), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "idle cpu" in done.stdout
    assert done.stdout.endswith("True\n")


def test_a_full_index_opens_as_one(tree: Path, tmp_path: Path) -> None:
    host = HostIndex(tmp_path / "index")
    host.update([tree])
    (run,) = (tmp_path / "index").glob("run-*.bin")
    assert PrefixIndex.open(run).kind == Kind.DISK
    with pytest.raises(FormatError, match="kind"):
        TreeIndex(tmp_path / "index", kind=Kind.BYTES).open_catalogue()
