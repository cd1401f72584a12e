"""The directory store: what it reads and refuses, what it delivers, and what it leaves when writing fails."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from trimtransfer.chunk import object_digest
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.store import DirectoryStore, Range, Store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "repository")


def test_what_is_put_is_read(store: DirectoryStore) -> None:
    reader: Store = store  # it is one
    store.put("packs/ab/abcd.bin", b"0123456789")
    assert reader.read("packs/ab/abcd.bin", limit=10) == b"0123456789"
    assert reader.read_range(Range("packs/ab/abcd.bin", 3, 4, 10)) == b"3456"
    assert (store.exists("packs/ab/abcd.bin"), store.exists("packs/ab")) == (True, False)
    assert store.size("packs/ab/abcd.bin") == 10
    assert list(store.list()) == [("packs/ab/abcd.bin", 10)]
    assert (store.stats.bytes, store.stats.requests, store.stats.retries) == (14, 2, 0)


def test_replacing_is_atomic(store: DirectoryStore) -> None:
    store.put("head.json", b"old")
    with open(store.path / "head.json", "rb") as reader:
        store.put("head.json", b"newer")
        assert reader.read() == b"old"
    assert store.read("head.json", limit=100) == b"newer"


def test_a_failed_write_leaves_nothing(store: DirectoryStore) -> None:
    store.put("head.json", b"old")

    def fail() -> None:
        with store.staged("head.json") as staging:
            staging.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.read("head.json", limit=100) == b"old"
    assert not os.listdir(store.scratch())


def test_what_is_staged_can_be_read_back(store: DirectoryStore) -> None:
    with store.staged("a/b") as staging:
        staging.write(b"first ")
        staging.write(memoryview(b"second"))
        staging.sync()
        assert staging.read_back() == b"first second"
        assert staging.read_back_digest() == object_digest(b"first second")
        assert not store.exists("a/b")
    assert store.size("a/b") == 12


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", ".trimtransfer/lock", "a/.b", "a\0b", "a\nb", "a/", "é", "a b"],
)
def test_names_that_leave_the_store_are_refused(store: DirectoryStore, name: str) -> None:
    for call in (lambda: store.read(name, limit=1), lambda: store.put(name, b""), lambda: store.delete(name)):
        with pytest.raises(FormatError):
            call()


def test_absent_objects(store: DirectoryStore) -> None:
    store.put("a/b", b"x")
    for name in ("c", "a", "a/b/c", "a/c"):
        with pytest.raises(NotFound):
            store.read(name, limit=1)
        assert not store.exists(name)
    with pytest.raises(NotFound):
        store.size("c")


def test_limits_and_lengths(store: DirectoryStore) -> None:
    store.put("a", b"12345")
    with pytest.raises(FormatError):
        store.read("a", limit=4)
    with pytest.raises(FormatError, match="its end"):
        store.read_range(Range("a", 2, 4))
    with pytest.raises(FormatError, match="expected 6"):
        store.read_range(Range("a", 0, 2, 6))


def test_fetch_delivers_each_range_once(store: DirectoryStore) -> None:
    content = os.urandom(100_000)
    store.put("a", content)
    ranges = [Range("a", at, 777, len(content)) for at in range(0, 99_000, 555)]
    got: dict[int, list[bytes]] = {}
    lock = threading.Lock()

    def deliver(wanted: Range, data: memoryview) -> None:
        with lock:
            got.setdefault(wanted.start, []).append(bytes(data))

    store.fetch(iter(ranges), deliver)
    assert got == {wanted.start: [content[wanted.start : wanted.start + 777]] for wanted in ranges}
    store.fetch([], deliver, again=True)


def test_fetch_is_bounded_and_raises_the_first_failure(store: DirectoryStore) -> None:
    store.put("a", bytes(1000))
    asked = 0

    def ranges():
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield Range("a", 0, 10)

    class Wrong(Exception):
        pass

    def deliver(wanted: Range, data: memoryview) -> None:
        raise Wrong

    with pytest.raises(Wrong):
        store.fetch(ranges(), deliver)
    assert asked < 20
    with pytest.raises(NotFound):
        store.fetch([Range("b", 0, 1)], deliver)


def test_deleting_takes_empty_directories_along(store: DirectoryStore) -> None:
    store.put("packs/ab/1.bin", b"1")
    store.put("packs/cd/2.bin", b"2")
    assert store.delete("packs/ab/1.bin")
    assert not store.delete("packs/ab/1.bin")
    assert os.listdir(store.path / "packs") == ["cd"]
    assert store.delete("packs/cd/2.bin")
    assert not (store.path / "packs").exists()
    assert store.path.is_dir()


def test_listing_shows_no_private_files(store: DirectoryStore) -> None:
    store.put("images/a/head.json", b"")
    store.private("lock").write_bytes(b"me")
    (store.scratch() / "left").write_bytes(b"over")
    os.symlink("/etc", store.path / "images" / "link")
    assert [name for name, _ in store.list()] == ["images/a/head.json"]
    assert list(store.list("packs")) == []
    assert store.clear_temporary() == 1
