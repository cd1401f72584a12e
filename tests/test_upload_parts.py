"""What decides about uploads: pieces, limits, checks of what came, the commit; with everything that can be wrong."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gateways import packs_of
from kills import changes_until

from trimtransfer.errors import (
    FormatError,
    IntegrityError,
    Locked,
    NoSpace,
    NotFound,
    TargetRefused,
    TrimTransferError,
    VersionExists,
)
from trimtransfer.manifest import Manifest
from trimtransfer.repository.accepting import Outrun, check_upload, commit_upload
from trimtransfer.repository.audit import audit
from trimtransfer.repository.catalogues import Wishes
from trimtransfer.repository.collecting import collect
from trimtransfer.repository.intent import clean_up, repository_lock
from trimtransfer.repository.keysetup import Plan, init_keys
from trimtransfer.repository.overlay import OverlayStore
from trimtransfer.repository.publish import publish
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.uploads import Upload, UploadLimits, Uploads, UploadTooLarge
from trimtransfer.store import DirectoryStore

LIMITS = UploadLimits(free=1 << 20)
May = Callable[[str], bool]


class Yard:
    """A repository with ``alpha`` 1 and ``beta`` 1, of other content; the next version of alpha made beside it."""

    def __init__(self, root: Path, work: Path, rng: random.Random) -> None:
        self.root, self.work, self.rng = root, work, rng
        self.store = DirectoryStore(root)
        self.first, self.other = rng.randbytes(1_500_000), rng.randbytes(1_200_000)
        for image, data in (("alpha", self.first), ("beta", self.other)):
            publish(root, self.file(data), image=image, version="1", level=1)
        self.second = self.first[:500_000] + rng.randbytes(200_000) + self.first[500_000:]
        self.uploads = Uploads(self.store, LIMITS)

    def file(self, data: bytes) -> Path:
        """Write an image."""
        path = self.work / "disk.img"
        path.write_bytes(data)
        return path

    def make(self, data: bytes, version: str = "2", image: str = "alpha", **options: object) -> OverlayStore:
        """Make a version in a folder over the repository."""
        folder = self.work / f"made-{self.rng.getrandbits(64):x}"
        made = OverlayStore(folder, self.store)
        publish(made, self.file(data), image=image, version=version, level=1, **options)  # type: ignore[arg-type]
        return made

    def send(
        self, made: OverlayStore, version: str = "2", image: str = "alpha", may: May = lambda name: True
    ) -> Upload:
        """Upload it: the packs that are asked for, and all files."""
        upload = self.uploads.begin("user:alice", image, version)
        digests = [bytes.fromhex(Path(name).stem) for name, _ in made.list_own("packs")]
        for digest in upload.lacking(digests, may):
            upload.put_pack(digest, (made.path / f"packs/{digest.hex()[:2]}/{digest.hex()}.bin").read_bytes())
        for name, _ in made.list_own("images"):
            if name.count("/") == 3:
                put(upload, Path(name).name, (made.path / name).read_bytes())
        return upload

    def take(self, upload: Upload, may: May = lambda name: True, wishes: Wishes = Wishes()) -> None:  # noqa: B008
        """Check and commit it."""
        commit_upload(self.store, upload, check_upload(self.store, upload, may=may), wishes)

    def content(self, version: str) -> bytes:
        """Return the content of a version of alpha."""
        there = PublishedImage(VersionReader.open(self.store, "alpha", version))
        return there.read(0, there.size)


def put(upload: Upload, file: str, data: bytes, disk: int = 0) -> None:
    """Send a file in pieces of odd lengths."""
    for at in range(0, len(data), 30_011):
        upload.put_file(disk, file, at, data[at : at + 30_011])


@pytest.fixture
def yard(tmp_path: Path, rnd: random.Random) -> Yard:
    return Yard(tmp_path / "repository", tmp_path, rnd)


def of_alpha(root: Path) -> May:
    """Return what somebody may refer to who reads alpha alone."""
    packs = packs_of(root, "alpha", "1")
    return lambda name: name in packs or name.startswith("images/alpha")


def test_an_upload_becomes_a_version(yard: Yard) -> None:
    upload = yard.send(yard.make(yard.second, solid=True))
    assert yard.uploads.open(upload.id, "user:alice").files() == upload.files()
    collect(yard.root, grace=0)  # sees nothing of it
    before = set(yard.store.list())
    yard.take(upload, of_alpha(yard.root), Wishes(("new",), "note", ("live",)))
    assert yard.content("2") == yard.second
    assert set(yard.store.list()) > before - {one for one in before if one[0].endswith(".json")}
    assert audit(yard.store).damage == ()
    assert audit(yard.store).unreferenced == ()


def test_further_disks(yard: Yard) -> None:
    extra = yard.rng.randbytes(400_000)
    (yard.work / "data.img").write_bytes(extra)
    made = yard.make(yard.second, disks=[yard.work / "data.img"])
    upload = yard.uploads.begin("user:alice", "alpha", "2")
    for name, _ in made.list_own("packs"):
        upload.put_pack(bytes.fromhex(Path(name).stem), (made.path / name).read_bytes())
    for name, _ in made.list_own("images"):
        if name.count("/") == 3:
            put(upload, Path(name).name, (made.path / name).read_bytes(), disk=int(".disk1/" in name))
    yard.take(upload)
    disk = VersionReader.open(yard.store, "alpha", "2").manifest.disks
    assert len(disk) == 1
    assert audit(yard.store).damage == ()


def test_pieces(yard: Yard) -> None:
    upload = yard.uploads.begin("user:alice", "alpha", "2")
    assert upload.put_file(0, "tables.bin", 0, b"abc") == 3
    assert upload.put_file(0, "tables.bin", 0, b"abc") == 3, "sent twice"
    assert upload.put_file(0, "tables.bin", 2, b"cde") == 5, "sent in part before"
    for offset, data in ((7, b"x"), (0, b"xyz"), (4, b"xy")):
        with pytest.raises(FormatError):
            upload.put_file(0, "tables.bin", offset, data)
    assert upload.files() == [(0, "tables.bin", 5)]
    for name in ("head.json", "../x", "from-.bin", "from-a/b.bin", ".x", "x" * 200, "FROM-1.bin"):
        with pytest.raises(FormatError):
            upload.put_file(0, name, 0, b"x")
    with pytest.raises(FormatError):
        upload.put_file(1000, "tables.bin", 0, b"x")


def test_a_pack_that_is_none_is_not_kept(yard: Yard) -> None:
    made = yard.make(yard.second)
    name, _ = next(iter(made.list_own("packs")))
    data, digest = bytearray((made.path / name).read_bytes()), bytes.fromhex(Path(name).stem)
    upload = yard.uploads.begin("user:alice", "alpha", "2")
    for wrong in (bytes(data[:-1]), bytes(data) + b"x", b"", bytes(5_000_000)):
        with pytest.raises((FormatError, IntegrityError)):
            upload.put_pack(digest, wrong)
    data[yard.rng.randrange(len(data))] ^= 1
    with pytest.raises((FormatError, IntegrityError)):
        upload.put_pack(digest, bytes(data))
    assert upload.lacking([digest], lambda name: True) == [digest]


def test_a_known_digest_is_no_permission(yard: Yard) -> None:
    """Content of beta is there; who may not read beta must bring it, and cannot refer to it."""
    made = yard.make(yard.second + yard.other, like=["beta"])
    theirs = [bytes.fromhex(Path(name).stem) for name in packs_of(yard.root, "beta", "1")]
    may = of_alpha(yard.root)
    upload = yard.send(made, may=may)
    assert set(upload.lacking(theirs, may)) == set(theirs)
    assert upload.lacking(theirs, lambda name: True) == []
    with pytest.raises(FormatError, match="not found"):
        check_upload(yard.store, upload, may=may)
    for digest in theirs:  # who has the bytes may send them
        upload.put_pack(digest, (yard.root / f"packs/{digest.hex()[:2]}/{digest.hex()}.bin").read_bytes())
    yard.take(upload, may)
    assert yard.content("2") == yard.second + yard.other


def test_what_lacks_or_is_too_much_is_refused(yard: Yard) -> None:
    made = yard.make(yard.second)
    names = [Path(name).name for name, _ in made.list_own("images") if name.count("/") == 3]
    for lacking in names:
        if lacking.startswith("from-"):
            continue
        upload = yard.send(made)
        whole = dict(upload.files() and [((disk, file), size) for disk, file, size in upload.files()])
        assert (0, lacking) in whole
        (upload.tree().path / f"images/alpha/2/{lacking}").unlink()
        with pytest.raises((FormatError, NotFound)):
            check_upload(yard.store, upload, may=lambda name: True)
        upload.delete()
    upload = yard.send(made)
    put(upload, "hosts.bin", b"nothing")
    with pytest.raises(TrimTransferError):
        check_upload(yard.store, upload, may=lambda name: True)
    upload.clear_files()
    with pytest.raises(FormatError):
        check_upload(yard.store, upload, may=lambda name: True)


def test_lies_are_found(yard: Yard) -> None:
    """A manifest that promises other content than its chunks have; a parent, number or name that is not right."""
    made = yard.make(yard.second)
    path = made.path / "images/alpha/2/manifest.bin"
    data = path.read_bytes()
    content = Manifest.from_bytes(data).region(0).content
    assert data.count(content) == 1
    path.write_bytes(data.replace(content, bytes(len(content))))
    with pytest.raises(FormatError, match="expected"):
        yard.take(yard.send(made))
    path.write_bytes(data)
    upload = yard.send(made)
    yard.take(upload)
    with pytest.raises((Outrun, VersionExists)):
        yard.take(upload)
    made = yard.make(yard.second + b"more", "3")
    shutil.copytree(made.path / "images/alpha/3", made.path / "images/alpha/4")
    with pytest.raises(FormatError, match="alpha 4"):
        yard.take(yard.send(made, "4"))


def test_flipped_bytes_never_make_a_damaged_version(yard: Yard) -> None:
    made = yard.make(yard.second)
    files = {name: made.path / name for name, _ in made.list_own("images") if name.count("/") == 3}
    for _ in range(40):
        name = yard.rng.choice(sorted(files))
        data = files[name].read_bytes()
        at, bit = yard.rng.randrange(len(data)), 1 << yard.rng.randrange(8)
        files[name].write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        upload = yard.send(made)
        try:
            check_upload(yard.store, upload, may=lambda name: True)
        except TrimTransferError:
            pass
        else:  # something that nothing depends on, such as the time of publication
            copy = Yard.__new__(Yard)
            copy.root = yard.work / "copy"
            shutil.copytree(yard.root, copy.root)
            copy.store = DirectoryStore(copy.root)
            yard_upload = Uploads(copy.store, LIMITS).open(upload.id, "user:alice")
            copy.take(yard_upload)
            assert audit(copy.store).damage == (), (name, at, bit)
            assert copy.content("2") == yard.second
            shutil.rmtree(copy.root)
        upload.delete()
        files[name].write_bytes(data)


def test_one_wins(yard: Yard) -> None:
    one, other = yard.make(yard.second), yard.make(yard.second + b"another", "2b")
    uploads = yard.send(one), yard.send(other, "2b")
    checked = [check_upload(yard.store, upload, may=lambda name: True) for upload in uploads]
    commit_upload(yard.store, uploads[0], checked[0], Wishes())
    with pytest.raises(Outrun, match="2 came first"):
        commit_upload(yard.store, uploads[1], checked[1], Wishes())
    assert audit(yard.store).damage == ()
    assert not yard.store.exists("images/alpha/2b/manifest.bin")
    with repository_lock(yard.store, "something else"), pytest.raises(Locked):
        commit_upload(yard.store, uploads[1], checked[1], Wishes())


def test_limits(yard: Yard) -> None:
    few = Uploads(yard.store, UploadLimits(bytes=1000, each=2, lifetime=60, free=0))
    upload = few.begin("user:bob", "alpha", "2")
    upload.put_file(0, "tables.bin", 0, bytes(600))
    with pytest.raises(UploadTooLarge):
        upload.put_file(0, "tables.bin", 600, bytes(600))
    few.begin("user:bob", "alpha", "3")
    with pytest.raises(TargetRefused, match="2 uploads"):
        few.begin("user:bob", "alpha", "4")
    few.begin("user:alice", "alpha", "4")
    with pytest.raises(NotFound):
        few.open(upload.id, "user:alice")
    for id in ("..", "../uploads", "0" * 31, "g" * 32, "0" * 32):
        with pytest.raises(NotFound):
            few.open(id, "user:bob")
    full = Uploads(yard.store, UploadLimits(free=1 << 60)).open(upload.id, "user:bob")
    with pytest.raises(NoSpace):
        full.put_file(0, "keys.bin", 0, b"x")
    assert few.expire(time.time() + 30) == 0
    with upload.held(alone=False):
        assert few.expire(time.time() + 100) == 2, "one is being written to"
    assert few.expire(time.time() + 100) == 1
    assert not list(few)


def test_an_upload_is_held(yard: Yard) -> None:
    upload = yard.uploads.begin("user:alice", "alpha", "2")
    with upload.held(alone=False), upload.held(alone=False), pytest.raises(Locked), upload.held(alone=True):
        pass
    with upload.held(alone=True), pytest.raises(Locked), upload.held(alone=False):
        pass
    with upload.held(alone=True):
        upload.delete()
    with pytest.raises(NotFound), upload.held(alone=False):
        pass


def test_killed_while_it_commits(yard: Yard) -> None:
    """Before each of its changes to the file system: afterwards all of it is there, or nothing; and it can go on."""
    upload = yard.send(yard.make(yard.second))
    checked = check_upload(yard.store, upload, may=lambda name: True)
    before = sorted(yard.store.list())
    limit, committed = 1, 0
    while not changes_until(limit, commit_upload, yard.store, upload, checked, Wishes(("dec",))):
        with repository_lock(yard.store, "looking"):
            clean_up(yard.store)
        try:
            assert yard.content("2") == yard.second
        except NotFound:
            assert sorted(yard.store.list()) == before
            checked = check_upload(yard.store, upload, may=lambda name: True)
        else:
            assert VersionReader.open(yard.store, "alpha").manifest.version == "2"
            committed += 1
            break
        limit += 1
    assert limit > 20
    assert audit(yard.store).damage == ()
    assert yard.content("2") == yard.second


def test_signed_repositories(yard: Yard) -> None:
    keys = Keys((yard.work / "keys",))
    made = yard.make(yard.second)
    init_keys(str(yard.root), keys=keys, offline=yard.work / "offline", plan=Plan({}, {}), passphrase=None)
    upload = yard.send(made)
    checked = check_upload(yard.store, upload, may=lambda name: True)
    with pytest.raises(TargetRefused, match="keys"):
        commit_upload(yard.store, upload, checked, Wishes(), keys=Keys((yard.work / "none",)))
    commit_upload(yard.store, upload, checked, Wishes((), "", ("live",)), keys=keys)
    assert audit(yard.store).damage == ()
    assert yard.content("2") == yard.second
