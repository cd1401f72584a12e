"""Estimates beside what a publish then really does, and what a client really fetches; and nothing is written."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from filesystems import MIB, run, sized
from hypothesis import given
from hypothesis import strategies as st
from syncing import make_images, write_sparse
from test_inside import archive, contiguous, gnu_gzip, programs
from test_similar import edited

from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.cli.main import main
from trimtransfer.errors import NotFound
from trimtransfer.repository import deltaestimate, rehearsal
from trimtransfer.repository.estimate import estimate
from trimtransfer.repository.estimatereport import EstimateReport
from trimtransfer.repository.publication import PublishReport
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import describe
from trimtransfer.repository.rehearsal import estimate_ratio
from trimtransfer.store import DirectoryStore

EXACT = (
    "length", "format", "kind", "recognised", "parent", "zero_bytes", "new_bytes", "known_bytes", "repeated_bytes",
    "again_bytes",
)  # fmt: skip
TOLERANCE = 0.03
"""What an estimate may be off beside the error that it states."""


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Return all that is in a directory, with lengths and times."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            state = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = state.st_size, state.st_mtime_ns
    return found


def close_to(found: float, expected: float, error: float = 0.0) -> bool:
    return abs(found - expected) <= error + TOLERANCE * expected + 4096


def both(folder: Path, path: Path, version: str, **options: Any) -> tuple[EstimateReport, PublishReport]:
    """Estimate, publish and compare."""
    repository = folder / "r"
    before = snapshot(repository)
    found = estimate(repository, path, image="a", **options)
    assert snapshot(repository) == before
    done = publish(repository, path, image="a", version=version, **options)
    for name in EXACT:
        assert getattr(found, name) == getattr(done, name), name
    assert close_to(found.stored_bytes, done.stored_bytes, found.error_bytes)
    assert abs(found.packs - done.packs) <= 1 + done.packs // 20
    assert close_to(found.metadata_bytes, done.metadata_bytes, 0.03 * done.metadata_bytes)
    assert [one.code for one in found.advice] == [one.code for one in done.advice]
    details = describe(DirectoryStore(repository), "a")
    assert close_to(found.download_bytes, details.download_bytes, found.error_bytes + 0.02 * details.download_bytes)
    return found, done


def fetched(folder: Path, old: str) -> int:
    """Return what a client with an older version is told that it will fetch for the newest."""
    sync(folder / "r", "a", output=folder / f"{old}.img", version=old, cache=folder / "cache")
    return plan(folder / "r", "a", output=folder / f"{old}.img", cache=folder / "cache").fetch_bytes


@pytest.mark.parametrize("sampled", [False, True])
def test_disks(sampled: bool, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampled:
        monkeypatch.setattr(rehearsal, "SAMPLE", 1 << 18)
        monkeypatch.setattr(rehearsal, "_TYPICAL", 1 << 14)
    path = tmp_path / "image"
    for number, data in enumerate(make_images(rng, versions=4)):
        write_sparse(path, data)
        found, _ = both(tmp_path, path, str(number), kind=Kind.DISK, level=3, deltas=False)
        assert (found.sampled_bytes < found.new_bytes) == sampled or number
        if number:
            assert close_to(found.fetched_bytes, fetched(tmp_path, str(number - 1)), found.error_bytes + 2000)
            assert found.with_deltas_bytes == found.fetched_bytes


def test_files_of_any_kind(tmp_path: Path, rnd: random.Random) -> None:
    path = tmp_path / "image"
    words = [rnd.randbytes(5).hex() for _ in range(2000)]
    for number in range(2):
        path.write_bytes(" ".join(rnd.choice(words) for _ in range(600_000)).encode() + rnd.randbytes(3 * MIB))
        found, _ = both(tmp_path, path, str(number), level=3)
        assert found.kind == "bytes"


def test_real_images(images: Any, tmp_path: Path) -> None:
    for number, path in enumerate((images.old, images.new, images.rebuilt)):
        found, done = both(tmp_path, path, str(number), level=3)
        assert found.sampled_bytes < max(found.new_bytes, 30 * MIB)
        if number:
            assert found.deltas is not None
            (deltas,) = done.deltas
            error = found.error_bytes + found.deltas.error * found.fetched_bytes
            assert close_to(found.with_deltas_bytes, fetched(tmp_path, str(number - 1)), error + 200_000)
            assert close_to(
                found.deltas.saved_share * found.fetched_bytes,
                deltas.plain_bytes - deltas.stored_bytes,
                error + 200_000,
            )


def test_what_lies_in_gzip_files_counts(tmp_path: Path, rnd: random.Random) -> None:
    """A boot image after an update: nothing of it is like the old one, all of its content is."""
    before = programs(5 * MIB)
    after = {name: edited(data, rnd, 900) for name, data in before.items()}
    for number, files in enumerate((before, after)):
        contiguous(tmp_path / f"image{number}", gnu_gzip(archive(files)))
    publish(tmp_path / "r", tmp_path / "image0", image="a", version="0", level=3)
    found, done = both(tmp_path, tmp_path / "image1", "1", level=3)
    assert found.deltas is not None
    assert found.deltas.wrapped_units == done.deltas[0].wrapped_units > 0
    assert found.deltas.inside_share > 0.9
    true = fetched(tmp_path, "0")
    assert true < 0.5 * found.fetched_bytes
    assert abs(found.with_deltas_bytes - true) < 0.05 * found.fetched_bytes


def test_trim(tmp_path: Path, rnd: random.Random) -> None:
    path = sized(tmp_path / "image", 64 * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", 4096, path)
    for name in ("kept", "secret"):
        (tmp_path / name).write_bytes(rnd.randbytes(9 * MIB))
        run("debugfs", "-w", "-R", f"write {tmp_path / name} {name}", path)
    run("debugfs", "-w", "-R", "rm secret", path)
    found = estimate(tmp_path / "r", path, image="a", level=1)
    assert [one.code for one in found.advice] == ["remains"]
    assert close_to(found.trim_bytes, 9 * MIB, 64 << 10)
    assert close_to(found.trim_content_bytes, 9 * MIB, 64 << 10)
    trimmed, done = both(tmp_path, path, "1", level=1, trim=True)
    assert trimmed.trimmed == done.trimmed
    assert (trimmed.trim_bytes, trimmed.advice) == (0, ())
    assert close_to(found.stored_bytes - trimmed.stored_bytes, found.trim_bytes, 64 << 10)


def test_content_of_other_images_is_fetched(tmp_path: Path, rng: np.random.Generator) -> None:
    first, second = make_images(rng), make_images(rng)
    for number, (image, data) in enumerate((("a", first[0]), ("b", second[0]))):
        write_sparse(tmp_path / "image", data)
        publish(tmp_path / "r", tmp_path / "image", image=image, version="0", kind=Kind.DISK, level=1)
        assert number < 2
    write_sparse(tmp_path / "image", second[0])
    found, done = both(tmp_path, tmp_path / "image", "1", kind=Kind.DISK, level=1, like=["b"], deltas=False)
    assert done.known_bytes > 0.9 * (done.known_bytes + done.new_bytes)
    assert close_to(found.fetched_bytes, fetched(tmp_path, "0"), 0.1 * found.fetched_bytes)


def test_nothing_new(tmp_path: Path, rng: np.random.Generator) -> None:
    write_sparse(tmp_path / "image", make_images(rng)[0])
    both(tmp_path, tmp_path / "image", "0", kind=Kind.DISK, level=1)
    found, _ = both(tmp_path, tmp_path / "image", "1", kind=Kind.DISK, level=1)
    assert (found.new_bytes, found.stored_bytes, found.error_bytes, found.deltas) == (0, 0, 0, None)
    empty, _ = both(tmp_path, sized(tmp_path / "empty", 0), "2", level=1)
    assert empty.stored_bytes == 0


def test_a_parent_whose_packs_are_lost(tmp_path: Path, rng: np.random.Generator) -> None:
    for number, data in enumerate(make_images(rng)):
        write_sparse(tmp_path / "image", data)
        if number:
            shutil.rmtree(tmp_path / "r/packs")
        found, _ = both(tmp_path, tmp_path / "image", str(number), kind=Kind.DISK, level=1)
    assert found.again_bytes > 0
    assert found.deltas is None


def test_wrong_names(tmp_path: Path, rng: np.random.Generator) -> None:
    write_sparse(tmp_path / "image", make_images(rng)[0])
    with pytest.raises(NotFound, match="version 7 of image a"):
        estimate(tmp_path / "r", tmp_path / "image", image="a", parent="7")
    publish(tmp_path / "r", tmp_path / "image", image="a", version="1", level=1)
    with pytest.raises(NotFound, match="version 7 of image a"):
        estimate(tmp_path / "r", tmp_path / "image", image="a", parent="7")


def test_the_command(tmp_path: Path, rng: np.random.Generator) -> None:
    images = make_images(rng)
    write_sparse(tmp_path / "image", images[0])
    arguments = ["repo", "estimate", str(tmp_path / "r"), str(tmp_path / "image"), "--image", "a", "--level", "1"]
    done = CliRunner().invoke(main, [*arguments, "--kind", "disk"])
    assert done.exit_code == 0, done.output
    assert "as its first version" in done.stdout
    assert not (tmp_path / "r").exists()
    publish(tmp_path / "r", tmp_path / "image", image="a", version="1", level=1, kind=Kind.DISK)
    write_sparse(tmp_path / "image", images[1])
    done = CliRunner().invoke(main, [*arguments, "--kind", "disk", "--json"])
    found = json.loads(done.stdout)
    assert found["parent"] == "1"
    assert found["with_deltas_bytes"] <= found["fetched_bytes"]
    assert found["deltas"]["units"] <= 2 * deltaestimate._UNITS
    done = CliRunner().invoke(main, [*arguments, "--kind", "disk"])
    assert "A client with 1 would fetch" in done.stdout
    assert "with deltas" in done.stdout
    done = CliRunner().invoke(main, [*arguments, "--parent", "9"])
    assert done.exit_code == 4


@given(st.integers(0, 2**32), st.integers(2, 200), st.floats(0.2, 1))
def test_a_ratio_that_holds_is_found(seed: int, count: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    quick = rng.integers(1000, 1_000_000, count).astype(np.float64)
    chosen = rng.random(count) < 0.5
    chosen[:2] = True
    found, error = estimate_ratio(quick, np.where(chosen, quick * ratio, 0.0))
    assert found == pytest.approx(ratio)
    assert error == pytest.approx(0, abs=1e-3 * quick.sum())


def test_the_error_is_stated_honestly(rng: np.random.Generator) -> None:
    within = 0
    for _ in range(2000):
        quick = rng.integers(1000, 1_000_000, 300).astype(np.float64)
        true = quick * rng.normal(0.8, 0.1, 300)
        chosen = rng.random(300) < 0.2
        ratio, error = estimate_ratio(quick, np.where(chosen, true, 0.0))
        within += abs(np.where(chosen, true, quick * ratio).sum() - true.sum()) <= error
    assert within >= 1800
