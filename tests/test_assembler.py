"""The assembler: every record of a window gets into the target, whatever its sources do; nothing unverified does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from syncing import make_images, publish_all, write_sparse

from trimtransfer.assembly.assembler import Assembler, Meter, copy_region
from trimtransfer.assembly.installed import WrittenIndex
from trimtransfer.assembly.journal import Base, JournalKey
from trimtransfer.assembly.partial import PartialFile, open_partial
from trimtransfer.assembly.plan import FETCH, SEEDS
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.resolve import Resolver, WindowPlan
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.chunk import chunk_digest
from trimtransfer.errors import Cancelled, IntegrityError, NoSpace
from trimtransfer.image import ImageSource
from trimtransfer.index.seed import Seed
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore, Range
from trimtransfer.watch import Watch


class Bench:
    """A repository with one image, and everything that an assembler needs."""

    def __init__(self, folder: Path, image: bytes) -> None:
        self.folder, self.image = folder, image
        publish_all(folder / "repository", [image])
        self.store: DirectoryStore = DirectoryStore(folder / "repository")
        self.manifest = VersionReader.open(self.store, "disk").manifest
        self.regions = [self.manifest.region(number) for number in range(self.manifest.region_count)]

    @contextmanager
    def assembling(
        self, store: DirectoryStore, seeds: list[Seed], watch: Watch | None = None
    ) -> Iterator[tuple[Assembler, WindowPlan, PartialFile]]:
        """Open an assembler and a plan of the whole image in one window."""
        key = JournalKey(self.manifest.digest(), self.manifest.length, Base.ZEROS)
        target = open_partial(self.folder / "new.img", self.folder / "journal", key)
        watch = watch or Watch()
        with TableFile(self.folder / "tables.bin") as tables:
            remote = Remote(store, self.manifest, tables)
            written = WrittenIndex(self.folder, kind=1)
            resolver = Resolver(remote, seeds, written, target, from_parent=False)
            plan = resolver.resolve(self.regions, lambda window, regions: window.zero.copy())
            meters = Meter("reuse", watch), Meter("fetch", watch)
            with Assembler(target, store, resolver, reuse=meters[0], fetching=meters[1], watch=watch) as assembler:
                yield assembler, plan, target
        target.close()

    def result(self) -> bytes:
        """Return what was written."""
        return (self.folder / "new.img").read_bytes()


@pytest.fixture
def bench(tmp_path: Path, rng: np.random.Generator) -> Bench:
    return Bench(tmp_path, make_images(rng, versions=1)[0])


class MemorySeed:
    """Has some of an image's chunks, by number, some of them wrong."""

    name, category = "memory", "seed"

    def __init__(self, image: bytes, plan: WindowPlan, known: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> None:
        window = plan.window
        self._chunks = [
            image[offset : offset + length] for offset, length in zip(window.offsets, window.lengths, strict=True)
        ]
        self._rows = {
            (int(prefix), int(length)): number
            for number, (prefix, length) in enumerate(zip(window.prefixes, window.lengths, strict=True))
            if known[number] and not window.zero[number]
        }
        self._wrong = wrong

    def find(self, prefixes: NDArray[np.uint64], lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Look up."""
        pairs = zip(prefixes.tolist(), lengths.tolist(), strict=True)
        return np.array([self._rows.get(pair, -1) for pair in pairs], dtype=np.int64)

    def read(self, row: int, buffer: memoryview) -> bool:
        """Read, rightly or wrongly."""
        buffer[:] = self._chunks[row] if not self._wrong[row] else bytes(len(buffer))
        return True


class Corrupting(DirectoryStore):
    """Changes a byte of the ranges that ``when`` picks, unless they are asked for again."""

    def __init__(self, path: Path, *, for_good: bool = False) -> None:
        super().__init__(path)
        self.for_good, self.fetched = for_good, 0

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Fetch and corrupt."""

        def spoil(wanted: Range, data: memoryview) -> None:
            if wanted.name.startswith("packs/"):
                self.fetched += 1
                if self.for_good or not again:
                    data = memoryview(bytearray(data))
                    data[len(data) // 2] ^= 1
            deliver(wanted, data)

        super().fetch(ranges, spoil, again=again)


def test_every_mixture_of_sources(bench: Bench, rng: np.random.Generator) -> None:
    """Part fetched, part from a seed that is right, part from one that is wrong."""
    with bench.assembling(bench.store, []) as (_, plan, _):
        records = len(plan.window)
    for known, wrong in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.7, 0.5), (1.0, 1.0)):
        (bench.folder / "new.img").unlink()
        seed = MemorySeed(bench.image, plan, rng.random(records) < known, rng.random(records) < wrong)
        with bench.assembling(bench.store, [seed]) as (assembler, mixed, _):
            assert ((mixed.source == SEEDS).any()) == (known > 0)
            assembler.carry_out(mixed)
            content = mixed.content([seed])
        assert bench.result() == bench.image
        assert (assembler.rejected > 0) == (known * wrong > 0)
        assert content.size == len(bench.image)
        if known == 1.0:
            assert (content.fetched > 0) == (wrong > 0)


def test_a_frame_that_arrives_damaged_is_fetched_again(bench: Bench) -> None:
    store = Corrupting(bench.folder / "repository")
    with bench.assembling(store, []) as (assembler, plan, _):
        assembler.carry_out(plan)
        assert store.fetched > len(plan.fetch.ranges)
    assert bench.result() == bench.image


def test_a_frame_that_stays_damaged_names_its_pack_and_is_not_written(bench: Bench) -> None:
    store = Corrupting(bench.folder / "repository", for_good=True)
    with bench.assembling(store, []) as (assembler, plan, _):
        with pytest.raises(IntegrityError, match=r"packs/../[0-9a-f]{64}\.bin, frame at byte .*damaged"):
            assembler.carry_out(plan)
        window = plan.window
        found = bench.result()
        for offset, length, digest in zip(window.offsets, window.lengths, window.digests, strict=True):
            data = found[offset : offset + length]
            assert not any(data) or chunk_digest(data) == digest.tobytes()


def test_an_error_of_the_target_ends_everything(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fetching threads and of copying threads alike; no thread is left behind."""

    def full(self: PartialFile, pieces: object) -> None:
        raise NoSpace("disk", None, None)

    before = set(threading.enumerate())
    with bench.assembling(bench.store, []) as (assembler, plan, _):
        records = len(plan.window)
        with monkeypatch.context() as patch:
            patch.setattr(PartialFile, "write", full)
            with pytest.raises(NoSpace):
                assembler.carry_out(plan)
    everything = np.ones(records, dtype=np.bool_)
    with bench.assembling(bench.store, [MemorySeed(bench.image, plan, everything, ~everything)]) as (
        assembler,
        plan,
        _,
    ):
        assert not (plan.source == FETCH).any()
        with monkeypatch.context() as patch:
            patch.setattr(PartialFile, "write", full)
            with pytest.raises(NoSpace):
                assembler.carry_out(plan)
        assembler.carry_out(plan)
    assert bench.result() == bench.image
    assert set(threading.enumerate()) <= before


def test_cancelling(bench: Bench) -> None:
    cancel = threading.Event()
    cancel.set()
    watch = Watch(cancel=cancel, outcome="stopped")
    with bench.assembling(bench.store, [], watch) as (assembler, plan, _), pytest.raises(Cancelled):
        assembler.carry_out(plan)


def test_equal_chunks_come_once_and_go_everywhere(tmp_path: Path, rng: np.random.Generator) -> None:
    piece = rng.integers(1, 256, 40 << 10, dtype=np.uint8)
    piece[-16:] = 0
    bench = Bench(tmp_path, piece.tobytes() * 40)
    with bench.assembling(bench.store, []) as (assembler, plan, _):
        assert len(plan.fetch.wanted) <= 3
        assembler.carry_out(plan)
    assert bench.result() == bench.image


def test_a_region_copied_from_a_wrong_image_is_not_done(bench: Bench) -> None:
    write_sparse(bench.folder / "old.img", bench.image[:-1] + b"x")
    key = JournalKey(bench.manifest.digest(), bench.manifest.length, Base.ZEROS)
    target = open_partial(bench.folder / "new.img", bench.folder / "journal", key)
    with ImageSource(bench.folder / "old.img") as source:
        done = [copy_region(source, target, region) for region in bench.regions]
    target.close()
    assert done == [True] * (len(bench.regions) - 1) + [False]
    again = open_partial(bench.folder / "new.img", bench.folder / "journal", key)
    assert again.done.size == sum(region.length for region in bench.regions[:-1])
    again.close()


def test_meters_never_show_more_than_there_is() -> None:
    seen: list[tuple[int, int]] = []
    meter = Meter("fetch", Watch(lambda phase, done, total: seen.append((done, total))))
    meter.add(5)
    meter.expect(10)
    meter.add(4)
    meter.paused = True
    meter.add(100)
    meter.paused = False
    meter.add(7)
    assert seen == [(5, 10), (9, 10), (10, 10)]
