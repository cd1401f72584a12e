"""Seeds off the block grid: an image inside a named file, at any offset, is found and used; or done without."""

from __future__ import annotations

import io
import os
import random
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_format_manifest
from servers import BadServer, Fault, Nginx, Request
from syncing import content, forget_keys, leftovers, make_images, publish_all, put, write_sparse

from trimtransfer import localfile
from trimtransfer.assembly import anywhere, keyspill, sources, windows
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.report import SyncReport
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import Kind
from trimtransfer.errors import Cancelled, FetchError
from trimtransfer.finder import ChunkFinder
from trimtransfer.names import keys_name
from trimtransfer.repository.publish import publish
from trimtransfer.watch import Watch

SHIFTS = [1, 777, 4095, 3 * 512, 63 * 512 + 5 * 4096]


class Place:
    """A repository of two versions, and somewhere to sync to without an old image."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        self.folder, self.images = folder, images
        self.repository, self.output = folder / "repository", folder / "disk.img"
        publish_all(self.repository, images, small_packs=False)
        self.content = sum(1 for at in range(0, len(images[1]), 4096) if any(images[1][at : at + 4096])) * 4096

    def seed(self, data: bytes, name: str = "container") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def sync(self, *seeds: Path, url: str | None = None, **options: Any) -> SyncReport:
        """Sync, and check that the image is right."""
        options = {"output": self.output, "cache": self.folder / "cache", "seeds": seeds, **options}
        report = sync(url or self.repository, "disk", **options)
        assert self.output.read_bytes() == self.images[int(report.version) - 1]
        assert leftovers(self.output) == set()
        return report

    def spoil_keys(self, change: Callable[[bytearray], object]) -> None:
        """Damage every key file."""
        for path in self.repository.rglob("keys.bin"):
            data = bytearray(path.read_bytes())
            change(data)
            path.write_bytes(data)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_REGIONS", 1)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Place:
    return Place(tmp_path, make_images(rng))


@pytest.mark.parametrize("shift", SHIFTS)
def test_an_image_inside_another_file(place: Place, shift: int, rnd: random.Random) -> None:
    seed = place.seed(rnd.randbytes(shift) + place.images[1] + rnd.randbytes(5000))
    told = plan(place.repository, "disk", output=place.output, seeds=[seed], cache=place.folder / "cache")
    report = place.sync(seed)
    assert report.content.fetched <= 0.02 * place.content
    assert report.network.bytes < 20_000
    assert (report.warnings, report.rejected_chunks) == ((), 0)
    assert (told.content, told.fetch_bytes) == (report.content, report.network.bytes)


def test_an_older_version_inside_another_file(place: Place, rnd: random.Random) -> None:
    aligned = place.sync(place.seed(place.images[0]), output=place.folder / "disk.img")
    place.output.unlink()
    report = place.sync(place.seed(rnd.randbytes(777) + place.images[0], "other"))
    assert report.content.fetched <= aligned.content.fetched + 0.02 * place.content


@pytest.mark.parametrize("pass_chunks", [1, 7, 50])
def test_chunks_too_many_for_one_pass(
    place: Place, rnd: random.Random, pass_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anywhere, "_PASS", pass_chunks)
    report = place.sync(place.seed(rnd.randbytes(777) + place.images[1]))
    assert report.content.fetched <= 0.02 * place.content


def test_pieces_in_several_files(place: Place, rnd: random.Random) -> None:
    image = place.images[1]
    half = len(image) // 2
    seeds = place.seed(b"x" + image[:half], "one"), place.seed(b"yz" + image[half:], "two")
    report = place.sync(*seeds)
    assert report.content.fetched <= 0.02 * place.content + 2 * 256 * 1024


def test_a_sparse_container(place: Place, rnd: random.Random) -> None:
    path = place.folder / "container"
    write_sparse(path, bytes(100 * 4096 + 777) + place.images[1] + bytes(64 << 20))
    report = place.sync(path)
    assert report.content.fetched <= 0.02 * place.content


def test_an_archive_of_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """Files lie on blocks in the image, on multiples of 512 in the archive; only their last chunks may differ."""
    files = [content(rng, int(rng.integers(50, 200)) * 4096 - 16) + bytes(16) for _ in range(20)]
    image = bytes(8192) + b"".join(data + bytes(4096 * int(rng.integers(0, 9))) for data in files)
    place = Place(tmp_path, [image, image])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number in rng.permutation(len(files)).tolist():
            member = tarfile.TarInfo(f"file{number}")
            member.size = len(files[number])
            archive.addfile(member, io.BytesIO(files[number]))
    report = place.sync(place.seed(packed.getvalue()))
    assert report.content.fetched <= 0.05 * place.content


def test_an_image_on_the_grid_costs_no_keys(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, [content(rng, 1 << 20), content(rng, 2 << 20)])
    monkeypatch.setattr(keyspill.KeySpill, "fetch", lambda *_: pytest.fail("fetched keys"))
    assert place.sync(place.seed(place.images[1])).content.fetched == 0
    place.output.unlink()
    assert place.sync(place.seed(bytes(5 * 4096) + place.images[1], "header")).content.fetched <= 0.02 * place.content


def test_folders_and_small_files_are_not_looked_through(
    place: Place, rnd: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyspill.KeySpill, "fetch", lambda *_: pytest.fail("fetched keys"))
    (place.folder / "folder").mkdir()
    place.seed(b"x" + place.images[1], "folder/container")
    place.sync(place.folder / "folder", place.seed(rnd.randbytes(9000), "small"))


def test_an_update_fetches_the_keys_of_what_is_missing_only(place: Place, rnd: random.Random) -> None:
    """Nothing is missing but what version 2 has changed: keys of version 1 are of no use."""
    place.sync(version="1")
    seen: list[str] = []

    def script(request: Request, number: int) -> Fault | None:
        seen.append(request.target)
        return None

    seed = place.seed(rnd.randbytes(777) + place.images[1] + rnd.randbytes(100))
    with BadServer(objects(place.repository), script) as server:
        report = place.sync(seed, url=server.url)
    assert report.version == "2"
    assert not [target for target in seen if target.endswith("/1/keys.bin")]


def objects(repository: Path) -> dict[str, bytes]:
    files = [path for path in repository.rglob("*") if path.is_file() and ".trimtransfer" not in path.parts]
    return {str(path.relative_to(repository)): path.read_bytes() for path in files}


@pytest.mark.net
def test_over_tls(nginx: Nginx, authority: Any, tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> None:
    place = Place(tmp_path, make_images(rng))
    place.repository.rename(nginx.root / "repository")
    seed = place.seed(rnd.randbytes(777) + place.images[1])
    report = place.sync(seed, url=f"{nginx.url}/repository", ca_cert=authority.file)
    assert report.content.fetched <= 0.02 * place.content
    served = nginx.served(report.network.requests)
    assert len([line for line in served if line.uri.endswith("/2/keys.bin")]) == 1
    assert report.network.bytes < 20_000


# ---- keys that are missing, damaged or lie


def test_a_repository_without_keys(place: Place, rnd: random.Random) -> None:
    forget_keys(place.repository)
    report = place.sync(place.seed(rnd.randbytes(777) + place.images[1]))
    assert report.content.fetched > 0.5 * place.content
    assert "no keys" in report.warnings[0]


def test_a_repository_of_format_1(tmp_path: Path, rnd: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was published before there were key files, kept as test data."""
    monkeypatch.setattr(anywhere, "LEAST", 1)
    found, image = test_format_manifest.format_1(), test_format_manifest.example()[1]
    pack = found.pop("pack")
    name = test_format_manifest.object_digest(pack).hex()
    for path, data in {
        "images/tiny/head.json": found.pop("head.json"),
        **{f"images/tiny/1/{name}": data for name, data in found.items()},
        f"packs/{name[:2]}/{name}.bin": pack,
    }.items():
        (tmp_path / "r" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / path).write_bytes(data)
    (tmp_path / "seed").write_bytes(b"x" + image)
    report = sync(tmp_path / "r", "tiny", output=tmp_path / "o", seeds=[tmp_path / "seed"], cache=tmp_path / "cache")
    assert (tmp_path / "o").read_bytes() == image
    assert "no keys" in report.warnings[0]


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


@pytest.mark.parametrize("change", [flip, lambda data: data.pop(), lambda data: data.extend(b"\0"), bytearray.clear])
def test_damaged_key_files_are_done_without(
    place: Place, rnd: random.Random, change: Callable[[bytearray], object]
) -> None:
    place.spoil_keys(change)
    report = place.sync(place.seed(rnd.randbytes(777) + place.images[1]))
    assert report.content.fetched > 0.5 * place.content
    assert all("keys.bin cannot be used" in warning for warning in report.warnings)
    assert report.warnings


def test_lost_key_files_are_done_without(place: Place, rnd: random.Random) -> None:
    for path in place.repository.rglob("keys.bin"):
        path.unlink()
    report = place.sync(place.seed(rnd.randbytes(777) + place.images[1]))
    assert "keys.bin cannot be used" in report.warnings[0]


def test_a_damaged_answer_is_asked_for_once_more(place: Place, rnd: random.Random) -> None:
    spoilt: list[Request] = []
    name = keys_name("disk", "2")

    def script(request: Request, number: int) -> Fault | None:
        if request.target.endswith(name):
            spoilt.append(request)
            if len(spoilt) == 1:
                return Fault(body=bytes(len((place.repository / name).read_bytes())))
        return None

    with BadServer(objects(place.repository), script) as server:
        report = place.sync(place.seed(rnd.randbytes(777) + place.images[1]), url=server.url)
    assert report.content.fetched <= 0.02 * place.content
    assert report.warnings == ()
    assert [request.get("cache-control") for request in spoilt] == [None, "no-cache"]


def test_a_network_that_fails_is_not_taken_for_damage(
    place: Place, rnd: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise FetchError("https://host/", "no answer", retryable=True)

    monkeypatch.setattr(keyspill.KeySpill, "_fetch", fail)
    with pytest.raises(FetchError, match="no answer"):
        place.sync(place.seed(rnd.randbytes(777) + place.images[1]))


def test_keys_that_lie_cost_a_bounded_number_of_looks(
    place: Place, rnd: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher gives every chunk the key of one common block; a seed is full of that block."""
    looked: list[ChunkFinder] = []
    monkeypatch.setattr(anywhere, "ChunkFinder", keep(looked))
    block = rnd.randbytes(4096)
    key = test_format_manifest.key_of(block)
    monkeypatch.setattr("trimtransfer.keys.KeyFile.keys", lambda file, number: all_the_same(file.count(number), key))
    report = place.sync(place.seed(b"x" + block * 3000))
    assert report.content.fetched > 0.5 * place.content
    assert 0 < sum(one.looks for one in looked) <= 32 * 8
    assert all(one.vain < 64 << 20 for one in looked)


def all_the_same(count: int, key: int) -> np.ndarray:
    return np.full(count, key, dtype=np.uint64)


def keep(made: list[ChunkFinder]) -> Callable[..., ChunkFinder]:
    def make(*arguments: Any) -> ChunkFinder:
        made.append(ChunkFinder(*arguments))
        return made[-1]

    return make


# ---- seeds that change, vanish, or hang


def test_a_seed_that_changes_after_it_was_searched(
    place: Place, rnd: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = place.seed(rnd.randbytes(777) + place.images[1])
    original = anywhere.roll

    def change(*arguments: Any) -> None:
        original(*arguments)
        data = bytearray(seed.read_bytes())
        put(data, len(data) // 3, rnd.randbytes(len(data) // 3))
        with open(seed, "r+b") as file:
            file.write(data)

    monkeypatch.setattr(anywhere, "roll", change)
    report = place.sync(seed)
    assert report.rejected_chunks > 0
    assert report.content.seed > 0


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 500_000), Path.unlink, lambda path: path.chmod(0)])
def test_a_seed_that_shrinks_or_goes_before_it_is_searched(
    place: Place, rnd: random.Random, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    seed = place.seed(rnd.randbytes(777) + place.images[1])
    original = anywhere.roll

    def first(*arguments: Any) -> None:
        change(seed)
        original(*arguments)

    monkeypatch.setattr(anywhere, "roll", first)
    place.sync(seed)


def test_cancelled_while_it_is_searched(place: Place, rnd: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    original = anywhere.roll

    def stop(file: Any, finder: Any, watch: Watch) -> None:
        cancel.set()
        original(file, finder, watch)

    monkeypatch.setattr(anywhere, "roll", stop)
    seed = place.seed(rnd.randbytes(777) + place.images[1])
    with pytest.raises(Cancelled):
        place.sync(seed, cancel=cancel)
    monkeypatch.setattr(anywhere, "roll", original)
    assert place.sync(seed).content.fetched <= 0.02 * place.content


def test_other_files_than_disks_need_no_keys(tmp_path: Path, rnd: random.Random) -> None:
    data = rnd.randbytes(3 << 20)
    (tmp_path / "file").write_bytes(data)
    publish(tmp_path / "r", tmp_path / "file", image="file", version="1", kind=Kind.BYTES, level=1)
    (tmp_path / "seed").write_bytes(rnd.randbytes(777) + data)
    report = sync(tmp_path / "r", "file", output=tmp_path / "o", seeds=[tmp_path / "seed"], cache=tmp_path / "cache")
    assert report.content.fetched < 600_000
    assert report.warnings == ()


def test_a_named_seed_is_only_looked_at_with_patience(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that does not answer must not stop a sync for ever: the first call into it is the guarded one."""
    dead = place.folder / "share"
    dead.symlink_to(place.folder / "nowhere")
    asked = threading.Event()

    monkeypatch.setattr(localfile.Guard.__init__, "__defaults__", (0.2,))  # seconds of patience
    for name in ("stat", "lstat", "readlink", "open"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _real=real, **o: hang_or(dead, asked, _real, *a, **o))
    with pytest.raises(TimeoutError):
        place.sync(dead / "image.img")
    assert asked.is_set()
    assert sources.look is localfile.look


def hang_or(dead: Path, asked: threading.Event, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Stand for a system call that never returns on a dead share."""
    path = arguments[0]
    if not isinstance(path, int) and os.fsencode(path).startswith(os.fsencode(dead)):
        assert threading.current_thread().name == "guarded-reads", "a call that nobody limits"
        asked.set()
        threading.Event().wait(2)
    return real(*arguments, **options)


def test_a_pipe_as_a_seed_does_not_wait(place: Place) -> None:
    os.mkfifo(place.folder / "pipe")
    # Repetitions within the image count as seeds, too.
    assert place.sync(place.folder / "pipe").content.fetched > 0.5 * place.content
