"""Publishing to a real S3 server: pushes resume, whatever kills or harms them; one writer at a time; garbage."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from kills import some_steps
from s3server import MISSING, Harm, HarmfulProxy, S3Server, Seen, swift_python, use
from syncing import make_images, publish_all

from medv.cli import medv_repo
from trimtransfer.bucket import pushing, uploading
from trimtransfer.bucket.claim import Terms, claimed
from trimtransfer.bucket.commit import COMMIT, Commit, headers_of, read_commit, write_commit
from trimtransfer.bucket.pushing import PushReport, pull, push
from trimtransfer.bucket.states import known_states, note_states
from trimtransfer.bucket.store import BucketStore
from trimtransfer.bucket.uploading import begun_uploads, part_length, send_bytes, send_file, tag_of
from trimtransfer.bucket.wire import Patience, Wire
from trimtransfer.errors import (
    AccessDenied,
    FetchError,
    FormatError,
    IntegrityError,
    Locked,
    NotFound,
    TargetRefused,
    TrimTransferError,
)
from trimtransfer.repository.audit import audit
from trimtransfer.repository.catalogues import read_catalogue
from trimtransfer.repository.collecting import collect
from trimtransfer.repository.keysetup import Plan, init_keys
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import read_head
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.versioning import remove_versions
from trimtransfer.store import DirectoryStore

pytestmark = pytest.mark.skipif(swift_python() is None, reason=MISSING)
PATIENT = Patience(first_delay=0.01, max_delay=0.1, attempts=6, timeout=5.0)
TERMS = Terms(pause=0.3)
LEAST = 5 << 20
"""Swift and S3 take parts of 5 MiB or more."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def place(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A prefix of its own for each test, and nothing of whoever runs it."""
    use(monkeypatch, server)
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return f"s3://{server.bucket}/{request.node.name.replace('[', '-').rstrip(']').replace('_', '-')}"


def pushed(place: str, directory: Path, **options: Any) -> PushReport:
    with Wire(place, patience=PATIENT) as wire, claimed(wire, "test", terms=TERMS) as claim:
        return push(wire, claim, DirectoryStore(directory), **options)


def check_place(place: str, version: str) -> None:
    """What readers find is whole, and of this version; damage anywhere would be told."""
    store = BucketStore(place)
    try:
        assert read_head(store, "disk").version == version
        assert audit(store).damage == ()
    finally:
        store.close()


def names_in(place: str) -> dict[str, int]:
    with Wire(place) as wire:
        return {one.name: one.length for one in wire.objects() if not one.name.startswith(".")}


class TestUploads:
    def test_parts(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        path = tmp_path / "file"
        path.write_bytes(rng.bytes(2 * LEAST + 12_345))
        with Wire(place) as wire:
            send_file(wire, "images/i/1/tables.bin", path, headers={}, least=LEAST)
            (one,) = wire.objects()
            assert (one.length, one.etag) == (path.stat().st_size, tag_of(path, least=LEAST))
            assert one.etag.endswith("-3")
            assert wire.ask("GET", one.name).body == path.read_bytes()
            assert begun_uploads(wire) == []

    def test_parts_that_arrived_are_not_sent_again(
        self, place: str, server: S3Server, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(rng.bytes(3 * LEAST + 1))

        def denied(seen: Seen, number: int) -> Harm | None:
            return (
                Harm(status=403, body=b"<Error><Code>ExpiredToken</Code></Error>")
                if "partNumber=3" in seen.target
                else None
            )

        with HarmfulProxy(server.port, denied) as proxy:
            use(monkeypatch, server, proxy.url)
            with Wire(place, patience=PATIENT) as wire:
                with pytest.raises(AccessDenied, match="expired"):
                    send_file(wire, "a.bin", path, headers={}, least=LEAST)
                assert [name for name, _ in begun_uploads(wire)] == ["a.bin"]
                proxy.script = lambda *_: None
                proxy.seen.clear()
                send_file(wire, "a.bin", path, headers={}, least=LEAST)
                parts = [seen.target for seen in proxy.seen if "partNumber" in seen.target]
                assert len(parts) == 2
                assert wire.ask("GET", "a.bin").body == path.read_bytes()

    def test_another_file_of_that_name(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        """Parts of what was to be there before are replaced: each is compared."""
        path = tmp_path / "file"
        path.write_bytes(rng.bytes(2 * LEAST))
        with Wire(place) as wire:
            id = uploading._begin(wire, "a.bin", {})
            wire.ask("PUT", "a.bin", query=[("partNumber", "1"), ("uploadId", id)], body=rng.bytes(LEAST))
            send_file(wire, "a.bin", path, headers={}, least=LEAST)
            assert wire.ask("GET", "a.bin").body == path.read_bytes()

    @pytest.mark.parametrize("deaf", ["PUT", "POST"])
    def test_answers_that_are_lost(
        self,
        deaf: str,
        place: str,
        server: S3Server,
        tmp_path: Path,
        rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(rng.bytes(2 * LEAST))
        done = set[str]()

        def lose(seen: Seen, number: int) -> Harm | None:
            if seen.method != deaf or seen.target in done or "uploads=" in seen.target:
                return None
            done.add(seen.target)
            return Harm(deaf=True)

        with HarmfulProxy(server.port, lose) as proxy:
            use(monkeypatch, server, proxy.url)
            with Wire(place, patience=PATIENT) as wire:
                send_file(wire, "a.bin", path, headers={}, least=LEAST)
                assert done
                assert wire.ask("GET", "a.bin").body == path.read_bytes()

    def test_damage_on_the_way_is_refused_by_the_store(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Wire._send

        def damage(self: Wire, method: str, url: str, digest: str, body: bytes, headers: Any) -> Any:
            return real(self, method, url, digest, bytes([body[0] ^ 1]) + body[1:] if body else body, headers)

        monkeypatch.setattr(Wire, "_send", damage)
        with Wire(place, patience=PATIENT) as wire, pytest.raises(TrimTransferError):
            send_bytes(wire, "a.bin", b"content", headers={})

    def test_tags_that_differ(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(uploading, "_md5", lambda data: b"\0" * 16)
        with Wire(place) as wire, pytest.raises(IntegrityError, match="run the same command again"):
            send_bytes(wire, "a.bin", b"content", headers={})

    def test_lengths_of_parts(self) -> None:
        for length in (0, 1, 16 << 20, 1 << 30, 5 << 40):
            size = part_length(length)
            assert 5 << 20 <= size <= 5 << 30
            assert -(-length // size) <= 10_000


class TestPush:
    def test_only_what_lacks_is_sent(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        images, directory = make_images(rng, versions=3), tmp_path / "r"
        publish_all(directory, images[:2])
        first = pushed(place, directory)
        assert first.sent == len(names_in(place)) - len([name for name in names_in(place) if name.endswith(".json")])
        check_place(place, "2")
        again = pushed(place, directory)
        assert (again.sent, again.commit) == (0, first.commit)
        (tmp_path / "3.img").write_bytes(images[2])
        report = publish(directory, tmp_path / "3.img", image="disk", version="3")
        third = pushed(place, directory)
        deltas = sum(one.stored_bytes for one in report.deltas)
        assert third.sent_bytes <= report.stored_bytes + report.metadata_bytes + deltas + 4096
        check_place(place, "3")

    def test_pull(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        directory, other = tmp_path / "r", DirectoryStore(tmp_path / "other")
        publish_all(directory, make_images(rng))
        pushed(place, directory)
        with Wire(place) as wire:
            count, length = pull(wire, other)
            assert pull(wire, other) == (0, 0)
            assert count == len(names_in(place))
            assert length == sum(names_in(place).values())
        assert dict(other.list()) == dict(DirectoryStore(directory).list())
        assert audit(other).damage == ()
        with Wire(place) as wire:
            name = next(name for name in names_in(place) if name.startswith("packs/"))
            wire.ask("PUT", name, body=b"x" * names_in(place)[name])
            other.delete(name)
            with pytest.raises(IntegrityError, match="verify"):
                pull(wire, other)
        with Wire(place + "/nothing") as wire, pytest.raises(NotFound):
            pull(wire, other)

    def test_what_others_did_is_not_undone(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        images = make_images(rng, versions=3)
        first, second = tmp_path / "first", tmp_path / "second"
        publish_all(first, images[:1])
        pushed(place, first)
        with Wire(place) as wire:
            pull(wire, DirectoryStore(second))
        for number, directory in ((2, first), (3, second)):
            (tmp_path / "x.img").write_bytes(images[number - 1])
            publish(directory, tmp_path / "x.img", image="disk", version=str(number))
        pushed(place, first)
        with pytest.raises(TargetRefused, match="somebody else has published"):
            pushed(place, second)
        check_place(place, "2")
        pushed(place, second, replacing=True)
        check_place(place, "3")
        with pytest.raises(TargetRefused, match="somebody else has published"):
            pushed(place, first)

    def test_what_was_made_here_is_not_deleted(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        images = make_images(rng, versions=4)
        first, second = tmp_path / "first", tmp_path / "second"
        publish_all(first, images[:2])
        pushed(place, first)
        publish_all(second, images[3:])
        with Wire(place) as wire:
            with pytest.raises(TargetRefused, match=r"it has disk 1, .* would be deleted here"):
                pull(wire, DirectoryStore(second))
            pull(wire, DirectoryStore(second), replacing=True)
            for number in (3, 4):
                (tmp_path / "x.img").write_bytes(images[number - 1])
                publish(second, tmp_path / "x.img", image="disk", version=str(number))
            with pytest.raises(TargetRefused, match=r"it has disk 3, .* push it first"):
                pull(wire, DirectoryStore(second))
            assert audit(DirectoryStore(second)).damage == ()
            pushed(place, second)
            pull(wire, DirectoryStore(first))
            remove_versions(str(first), "disk", ["1", "2"])
            pushed(place, first)
            pull(wire, DirectoryStore(second))  # what was removed there goes here
        assert [entry.version for entry in read_catalogue(DirectoryStore(second), "disk").versions] == ["3", "4"]

    def test_a_name_that_meant_something_else(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        """Files of equal length under the same name: left by a writer that died, or of a version that was removed."""
        base, plain = rng.bytes(200_000), {"parent": "1", "deltas": False}
        (tmp_path / "1.img").write_bytes(base)
        publish(tmp_path / "a", tmp_path / "1.img", image="disk", version="1")
        pushed(place, tmp_path / "a")
        others = DirectoryStore(tmp_path / "b"), DirectoryStore(tmp_path / "c")
        for other in others:
            with Wire(place) as wire:
                pull(wire, other)
        lengths = set()
        for store in (DirectoryStore(tmp_path / "a"), others[0]):
            (tmp_path / "2.img").write_bytes(base[:-100] + rng.bytes(100))
            publish(store, tmp_path / "2.img", image="disk", version="2", **plain)
            lengths.add(store.size("images/disk/2/manifest.bin"))
        assert len(lengths) == 1
        with Wire(place, patience=PATIENT) as wire, claimed(wire, "dies", terms=TERMS):
            for name, _ in DirectoryStore(tmp_path / "a").list("images/disk/2"):
                send_bytes(wire, name, (tmp_path / "a" / name).read_bytes(), headers=headers_of(name))
        pushed(place, others[0].path)
        check_place(place, "2")
        with Wire(place) as wire:
            pull(wire, others[1])
        publish(others[0], tmp_path / "1.img", image="disk", version="3", **plain)
        remove_versions(str(tmp_path / "b"), "disk", ["2"])
        collect(str(tmp_path / "b"), grace=0)
        (tmp_path / "2.img").write_bytes(base[:-100] + rng.bytes(100))
        publish(others[0], tmp_path / "2.img", image="disk", version="2", **plain)
        assert others[0].size("images/disk/2/manifest.bin") in lengths
        pushed(place, others[0].path)
        check_place(place, "2")
        with Wire(place) as wire:
            pull(wire, others[1])
        assert audit(others[1]).damage == ()

    def test_commits_that_never_arrived(
        self, place: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, directory = make_images(rng, versions=2), tmp_path / "r"
        publish_all(directory, images[:1])
        pushed(place, directory)
        (tmp_path / "2.img").write_bytes(images[1])
        publish(directory, tmp_path / "2.img", image="disk", version="2")
        for _ in range(3):
            with monkeypatch.context() as broken:
                broken.setattr(pushing, "write_commit", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    pushed(place, directory)
            with Wire(place) as wire, pytest.raises(TargetRefused, match="push it first"):
                pull(wire, DirectoryStore(directory))
        check_place(place, "1")
        pushed(place, directory)
        check_place(place, "2")

    def test_a_copy_made_by_other_tools(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        directory, other = tmp_path / "r", tmp_path / "other"
        images = make_images(rng)
        publish_all(directory, images)
        with Wire(place) as wire:
            for name, _ in DirectoryStore(directory).list():
                send_bytes(wire, name, directory.joinpath(name).read_bytes(), headers=headers_of(name))
        publish_all(other, images[1:])
        with pytest.raises(TargetRefused, match="disk 1"):
            pushed(place, other)
        assert pushed(place, directory).sent == 0

    def test_nothing_to_push(self, place: str, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            pushed(place, tmp_path / "nothing")

    def test_deleted_after_the_grace(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        directory = tmp_path / "r"
        publish_all(directory, make_images(rng))
        pushed(place, directory)
        before = names_in(place)
        remove_versions(str(directory), "disk", ["1"])
        collect(str(directory), grace=0)
        here = dict(DirectoryStore(directory).list())
        gone = [name for name in before if name not in here]
        assert gone
        report = pushed(place, directory, grace=3600)
        assert (report.deleted, report.waiting) == (0, len(gone))
        assert set(gone) <= set(names_in(place))
        check_place(place, "2")
        # What is put back in the meantime is not deleted.
        with Wire(place) as wire:
            kept = wire.ask("GET", gone[0]).body
        DirectoryStore(directory).put(gone[0], kept)
        report = pushed(place, directory, grace=0)
        assert report.deleted == len(gone) - 1
        assert set(names_in(place)) == {*here, gone[0]}
        DirectoryStore(directory).delete(gone[0])
        pushed(place, directory, grace=0)
        check_place(place, "2")

    def test_signed_repositories(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        directory, keys = tmp_path / "r", Keys((tmp_path / "keys",))
        images = make_images(rng, versions=3)
        publish_all(directory, images[:2])
        init_keys(str(directory), keys=keys, offline=tmp_path / "offline", plan=Plan({}, {}), passphrase=None)
        pushed(place, directory)
        (tmp_path / "3.img").write_bytes(images[2])
        publish(directory, tmp_path / "3.img", image="disk", version="3", keys=keys)
        pushed(place, directory)
        assert names_in(place) == dict(DirectoryStore(directory).list())
        check_place(place, "3")

    @pytest.mark.parametrize("kind", ["cut", "busy", "broken", "deaf"])
    def test_harm_on_the_way(
        self,
        kind: str,
        place: str,
        server: S3Server,
        tmp_path: Path,
        rng: np.random.Generator,
        rnd: random.Random,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        harms = {
            "cut": Harm(cut=100),
            "busy": Harm(status=503, body=b"<Error><Code>SlowDown</Code></Error>"),
            "broken": Harm(status=500, body=b"<Error><Code>InternalError</Code></Error>"),
            "deaf": Harm(deaf=True),
        }
        directory = tmp_path / "r"
        publish_all(directory, make_images(rng))
        lock = threading.Lock()

        def some(seen: Seen, number: int) -> Harm | None:
            with lock:
                return harms[kind] if rnd.random() < 0.2 and (kind != "cut" or seen.method == "PUT") else None

        with HarmfulProxy(server.port, some) as proxy:
            use(monkeypatch, server, proxy.url)
            patience = Patience(first_delay=0.01, max_delay=0.05, attempts=20, timeout=10.0)
            with Wire(place, patience=patience) as wire, claimed(wire, "test", terms=TERMS) as claim:
                push(wire, claim, DirectoryStore(directory))
        use(monkeypatch, server)
        check_place(place, "2")

    def test_keys_expire_on_the_way(
        self, place: str, server: S3Server, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = tmp_path / "r"
        images = make_images(rng)
        publish_all(directory, images[:1])
        pushed(place, directory)
        (tmp_path / "2.img").write_bytes(images[1])
        publish(directory, tmp_path / "2.img", image="disk", version="2")
        expired = Harm(status=400, body=b"<Error><Code>ExpiredToken</Code></Error>")
        puts = iter(range(1000))

        def later(seen: Seen, number: int) -> Harm | None:
            return expired if seen.method == "PUT" and "writers" not in seen.target and next(puts) > 1 else None

        with HarmfulProxy(server.port, later) as proxy:
            use(monkeypatch, server, proxy.url)
            with pytest.raises(AccessDenied, match="expired"):
                pushed(place, directory)
        use(monkeypatch, server)
        check_place(place, "1")
        pushed(place, directory)
        check_place(place, "2")


class TestKilled:
    """A process that dies by SIGKILL right before its n-th request that changes something."""

    @pytest.mark.slow
    def test_at_any_request(self, place: str, tmp_path: Path, rng: np.random.Generator, rnd: random.Random) -> None:
        images, directory = make_images(rng), tmp_path / "r"
        publish_all(directory, images[:1])
        pushed(place, directory)
        (tmp_path / "2.img").write_bytes(images[1])
        publish(directory, tmp_path / "2.img", image="disk", version="2")
        quick = Terms(dead=-2.0, fresh=600.0, pause=0.01)  # the server tells whole seconds
        seen = set[str]()

        def begin(limit: int) -> tuple[str, DirectoryStore]:
            """Return copies of place and directory."""
            copy, base = f"{place}-{limit}", DirectoryStore(tmp_path / f"r{limit}")
            with Wire(place) as source, Wire(copy) as target:
                for name in (*names_in(place), COMMIT):
                    send_bytes(target, name, source.ask("GET", name).body, headers={})
            shutil.copytree(directory, base.path)
            note_states(base, copy, known_states(base, place), same=False)
            return copy, base

        copy, base = begin(0)
        total = _changes_until_killed(1 << 30, lambda: _push_once(copy, base.path, quick))
        assert total > 8
        for limit in some_steps(total, rnd, 12):
            copy, base = begin(limit)
            count = _changes_until_killed(limit, lambda: _push_once(copy, base.path, quick))  # noqa: B023 - called here
            assert count == limit
            store = BucketStore(copy)
            version = read_head(store, "disk").version
            seen.add(version)
            assert audit(store).damage == ()
            store.close()
            # Another working copy takes over, and what it finds is whole: the old state, or the new one.
            with Wire(copy) as wire, claimed(wire, "other", terms=quick):
                last = pushing.settle(wire)
                assert last is not None
                assert last.done
                other = DirectoryStore(tmp_path / f"o{limit}")
                pull(wire, other)
            assert audit(other).damage == ()
            assert read_catalogue(other, "disk").find(read_head(other, "disk").version) is not None
            # And the one that died goes on.
            _push_once(copy, base.path, quick)
            check_place(copy, "2")
        assert seen == {"1", "2"}


def _push_once(place: str, directory: Path, terms: Terms) -> None:
    with Wire(place, patience=PATIENT) as wire, claimed(wire, "test", terms=terms) as claim:
        push(wire, claim, DirectoryStore(directory), threads=1)


def _changes_until_killed(limit: int, work: Callable[[], None]) -> int:
    """Do it in a process that dies before its ``limit``-th change of the bucket; return how many it began."""
    context = multiprocessing.get_context("fork")
    count = context.Value("l", 0)

    def run() -> None:
        real = Wire._send

        def counted(self: Wire, method: str, *arguments: Any) -> Any:
            if method not in ("GET", "HEAD"):
                count.value += 1
                if count.value == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(self, method, *arguments)

        Wire._send = counted  # type: ignore[method-assign]
        work()

    process = context.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if count.value == limit else 0)
    return count.value


class TestClaims:
    def test_one_at_a_time(self, place: str) -> None:
        with Wire(place) as one, Wire(place) as two:
            with claimed(one, "publishing", terms=TERMS):
                time.sleep(1.1)
                with pytest.raises(Locked, match="publishing"), claimed(two, "other", terms=TERMS):
                    pass
            with claimed(two, "other", terms=TERMS):
                pass
            assert list(two.objects()) == []

    def test_many_at_once(self, place: str) -> None:
        inside, most, done, lock = 0, 0, 0, threading.Lock()

        def work() -> None:
            nonlocal inside, most, done
            try:
                with Wire(place) as wire, claimed(wire, "test", terms=TERMS):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.3)
                    with lock:
                        inside -= 1
                        done += 1
            except Locked:
                return

        for _ in range(3):
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert most == 1
        assert done >= 1

    def test_of_the_dead(self, place: str) -> None:
        quick = Terms(dead=2.5, fresh=0.5, renewal=60.0, pause=0.1)
        with Wire(place) as one, Wire(place) as two:
            with claimed(one, "sleeper", terms=quick):
                with pytest.raises(Locked), claimed(two, "other", terms=quick):
                    pass
                time.sleep(4)
                with claimed(two, "other", terms=quick):
                    self.refused(one)
                    two.ask("PUT", "b", body=b"x")
            assert [one.name for one in two.objects()] == ["b"]

    def refused(self, wire: Wire) -> None:
        with pytest.raises(Locked, match="slept, or was offline"):
            wire.ask("PUT", "a", body=b"x")

    def test_broken_by_hand(self, place: str) -> None:
        quick, deadline = Terms(renewal=3.0), time.monotonic() + 30
        with (
            Wire(place) as one,
            Wire(place) as two,
            claimed(one, "test", terms=quick) as broken,
            claimed(two, "other", break_others=True),
        ):
            while not broken._lost and time.monotonic() < deadline:
                time.sleep(0.1)
            self.refused(one)

    def test_renewal(self, place: str) -> None:
        quick = Terms(dead=4.0, fresh=1.0, renewal=0.2, pause=0.1)
        with Wire(place) as one, Wire(place) as two, claimed(one, "test", terms=quick):
            time.sleep(2.5)
            one.ask("PUT", "a", body=b"x")
            with pytest.raises(Locked), claimed(two, "other", terms=quick):
                pass


class TestCommits:
    def test_bytes(self) -> None:
        commit = Commit.new({"images/i/head.json": b"\0x"}, ("images/j/head.json",), {"packs/aa/b.bin": 5})
        assert Commit.from_bytes(commit.to_bytes()) == commit

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"id": "x"},
            {"done": 1},
            {"put": {"../x": ""}},
            {"put": {"images/i/head.json": "?"}},
            {"drop": [".trimtransfer/commit.json"]},
            {"unused": {"packs/a": "soon"}},
            {"unused": []},
        ],
    )
    def test_others(self, change: dict[str, Any]) -> None:
        fields = json.loads(Commit.new({}, (), {}).to_bytes())
        with pytest.raises(FormatError):
            Commit.from_bytes(json.dumps({**fields, **change}).encode())

    def test_damaged_one_stops_everything(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        publish_all(tmp_path / "r", make_images(rng))
        pushed(place, tmp_path / "r")
        with Wire(place) as wire:
            send_bytes(wire, COMMIT, b"{}", headers={})
        with pytest.raises(FormatError):
            pushed(place, tmp_path / "r")

    def test_done_by_the_next_one(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        publish_all(tmp_path / "r", make_images(rng))
        pushed(place, tmp_path / "r")
        with Wire(place) as wire:
            head = wire.ask("GET", "images/disk/head.json").body
            wire.ask("PUT", "images/disk/head.json", body=b"old")
            write_commit(wire, Commit.new({"images/disk/head.json": head}, (), {}))
            with claimed(wire, "test"):
                pushing.settle(wire)
            last = read_commit(wire)
            assert last is not None
            assert last.done
        check_place(place, "2")


class TestCommands:
    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        result = CliRunner().invoke(medv_repo, [*arguments, "--json"])
        assert result.exit_code == code, result.output
        return dict(json.loads(result.stdout))

    def test_life_of_a_repository(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        for number, data in enumerate(make_images(rng, versions=3), 1):
            (tmp_path / f"{number}.img").write_bytes(data)
            options = ["--image", "disk", "--version", str(number), "--channel", "test"]
            assert self.run("publish", place, str(tmp_path / f"{number}.img"), *options)["version"] == str(number)
            check_place(place, str(number))
        assert self.run("stats", place)["images"]
        assert [one["version"] for one in self.run("ls", place)["images"][0]["versions"]] == ["1", "2", "3"]
        self.run("remove", place, "1", "--image", "disk")
        assert "images/disk/1/manifest.bin" in names_in(place)
        self.run("gc", place)
        assert "images/disk/1/manifest.bin" in names_in(place)
        self.run("gc", place, "--grace", "0")
        assert "images/disk/1/manifest.bin" not in names_in(place)
        check_place(place, "3")
        # The working copy is nothing that cannot be had again.
        os.system(f"rm -r {tmp_path}/XDG_STATE_HOME")
        (tmp_path / "4.img").write_bytes(rng.bytes(100_000))
        self.run("publish", place, str(tmp_path / "4.img"), "--image", "disk", "--version", "4")
        check_place(place, "4")

    def test_two_publishers(self, place: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: Any) -> None:
        (tmp_path / "1.img").write_bytes(rng.bytes(500_000))
        options = [str(tmp_path / "1.img"), "--image", "disk", "--version", "1"]
        with Wire(place) as wire, claimed(wire, "publishing elsewhere"):
            time.sleep(11)
            told = self.run("publish", place, *options, code=9)
        assert "publishing elsewhere" in told["error"]["message"]
        assert names_in(place) == {}
        self.run("publish", place, *options)
        check_place(place, "1")

    def test_a_push_that_failed_is_made_good(
        self, place: str, server: S3Server, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = make_images(rng)
        (tmp_path / "1.img").write_bytes(images[0])
        options = [str(tmp_path / "1.img"), "--image", "disk", "--version", "1"]
        endpoint = server.url
        denied = Harm(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")

        def no_packs(seen: Seen, number: int) -> Harm | None:
            return denied if seen.method == "PUT" and "/packs/" in seen.target else None

        port = server.port
        with HarmfulProxy(port, no_packs) as proxy:
            use(monkeypatch, server, proxy.url)
            assert "s3:PutObject" in self.run("publish", place, *options, code=8)["error"]["message"]
            assert not any(name.endswith("head.json") for name in names_in(place))
            proxy.script = lambda *_: None
            self.run("versions", place, "--image", "disk")
            use(monkeypatch, server, endpoint)
            check_place(place, "1")

    def test_push_and_pull(self, place: str, tmp_path: Path, rng: np.random.Generator) -> None:
        publish_all(tmp_path / "r", make_images(rng))
        assert self.run("push", str(tmp_path / "r"), place)["sent"] > 0
        assert self.run("pull", place, str(tmp_path / "copy"))["objects"] == len(names_in(place))
        self.run("verify", str(tmp_path / "copy"))
        self.run("remove", str(tmp_path / "copy"), "1", "--image", "disk")
        self.run("pull", place, str(tmp_path / "copy"))
        self.run(
            "publish",
            str(tmp_path / "copy"),
            str(tmp_path / "r/images/disk/1/manifest.bin"),
            "--image",
            "own",
            "--version",
            "1",
        )
        assert "own 1" in self.run("pull", place, str(tmp_path / "copy"), code=1)["error"]["message"]
        self.run("pull", place, str(tmp_path / "copy"), "--replace")
        assert not (tmp_path / "copy/images/own").exists()
        (tmp_path / "else").mkdir()
        (tmp_path / "else/file").touch()
        self.run("pull", place, str(tmp_path / "else"), code=1)
        assert (tmp_path / "else/file").exists()

    def test_no_store(self, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish_all(tmp_path / "r", make_images(np.random.default_rng(1)))
        monkeypatch.setattr(
            Wire.__init__, "__kwdefaults__", {**Wire.__init__.__kwdefaults__, "patience": Patience(2, 0.01)}
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert self.run("push", str(tmp_path / "r"), place, code=5)["error"]["type"] == FetchError.__name__
