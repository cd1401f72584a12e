"""The first command of the README, in small: the demonstration end to end, and what it says if something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from medv import cli, demo, sample
from medv.demo import prove
from trimtransfer.errors import IntegrityError

MIB = 1 << 20
PROGRAM = [sys.executable, "-c", "from medv.cli import medv_sync; medv_sync()", "demo"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``medv-sync demo`` in a process of its own."""
    settings = {**os.environ, **environment}
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=settings, timeout=600)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The directory and the JSON object of a small demonstration, behind a proxy that does not exist."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    done = run("--keep", str(folder), "--size", "48", "--json", "-q", HTTPS_PROXY="http://127.0.0.1:9", no_proxy="x")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_results_are_the_published_files(kept: tuple[Path, Any]) -> None:
    folder, values = kept
    assert [proof["source"] == proof["result"] for proof in values["proof"]] == [True, True]
    assert (folder / "demo.img").read_bytes() == (folder / "source-2.img").read_bytes()
    assert (folder / "source-1.img").read_bytes() != (folder / "source-2.img").read_bytes()


def test_what_came_from_where(kept: tuple[Path, Any]) -> None:
    folder, values = kept
    first, update, again = values["sync"]
    size = (folder / "source-1.img").stat().st_size
    for report in (first, update, again):
        assert sum(report["content"].values()) == size
    stored = values["publish"][0]["stored_bytes"]
    assert first["content"]["host"] > 30 * MIB
    assert first["network"]["bytes"] < stored / 4
    assert 0 < update["content"]["fetched"] < update["content"]["unchanged"]
    assert update["network"]["bytes"] < stored / 2
    assert (again["network"]["requests"], again["content"]["unchanged"]) == (1, size)
    assert again["network"]["bytes"] < 1024


def test_the_images_are_sound_file_systems(kept: tuple[Path, Any]) -> None:
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    for name in ("source-1.img", "source-2.img", "demo.img"):
        subprocess.run(["e2fsck", "-f", "-n", kept[0] / name], env={"PATH": path}, capture_output=True, check=True)


def test_text_for_people(tmp_path: Path) -> None:
    done = run("--size", "32", "--no-progress", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "\nFirst download: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert all(len(line) < 80 for line in done.stdout.splitlines() if line.startswith(("MiB", "first", "again")))
    assert "this\n  very host's files" in done.stdout
    assert done.stdout.count("published ") == done.stdout.count("received ") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("--keep", str(tmp_path), "--size", "32")
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sample, "_SEARCH_PATH", str(tmp_path))
    choice = sample.choose(32 * MIB)
    with pytest.raises(sample.SampleFailed, match="mke2fs, debugfs, e2fsck not found: install e2fsprogs"):
        sample.build_first(choice, tmp_path / "image", tmp_path)


def test_too_few_files(tmp_path: Path) -> None:
    with pytest.raises(sample.SampleFailed, match="too few"):
        sample.choose(64 * MIB, folders=[str(tmp_path)])


def test_the_choice_is_the_same_every_time_and_keeps_the_new_files_apart() -> None:
    one, other = sample.choose(48 * MIB), sample.choose(48 * MIB)
    assert one == other
    assert {file.path for file in one.kept}.isdisjoint(file.path for file in one.new)
    total = sum(file.size for file in (*one.kept, *one.new))
    assert 24 * MIB < total <= 48 * MIB
    for file in one.kept:
        assert not any(part.startswith((one.letter, "lib" + one.letter)) for part in file.path.split("/"))


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before, inside in ((None, "127.0.0.1"), ("host", "host,127.0.0.1")):
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        if before is not None:
            monkeypatch.setenv("no_proxy", before)
        with demo._without_proxy():
            assert os.environ["no_proxy"] == inside
        assert os.environ.get("no_proxy") == before


def test_without_its_server_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    done = CliRunner().invoke(cli.medv_sync, ["demo", "--json"])
    assert done.exit_code == 1
    assert "pip install 'trimtransfer[demo]'" in json.loads(done.stdout)["error"]["message"]


def test_copies_are_sparse_and_equal(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(5 * MIB + 3)
        for at in (0, 2 * MIB + 4096, 5 * MIB):
            os.pwrite(file.fileno(), b"data", at if at < 5 * MIB else at - 1)
    sample._copy_sparse(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "b").stat().st_blocks <= (tmp_path / "a").stat().st_blocks


def test_a_difference_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100_000))
    (tmp_path / "b").write_bytes(bytes(99_999) + b"x")
    with pytest.raises(IntegrityError):
        prove("1", tmp_path / "a", tmp_path / "b")
