"""Signed repositories from end to end: publishing, keys, clients over a real server, bundles, kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from kills import changes_until, some_steps
from servers import Nginx
from signedsim import Simulator
from test_trust import oracle

from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.chunk import object_digest
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import medv_sync
from trimtransfer.errors import NotFound, TargetRefused, Untrusted
from trimtransfer.names import deltas_name, head_name, manifest_name
from trimtransfer.repository.audit import audit
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import make_bundle
from trimtransfer.repository.deltas import add_deltas
from trimtransfer.repository.drafts import read_drafts, sign_file
from trimtransfer.repository.keychange import apply_drafts, change_keys, delegate, renew, rotate_keys
from trimtransfer.repository.keyreport import describe_keys
from trimtransfer.repository.keysetup import Plan, init_keys
from trimtransfer.repository.mirrors import set_mirrors
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import read_head
from trimtransfer.repository.renewal import renew_timestamp, resign_images
from trimtransfer.repository.signed import SignedMetadata
from trimtransfer.repository.signedcheck import check_signed
from trimtransfer.repository.signer import Keys
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.client import vouch
from trimtransfer.trust.documents import instant
from trimtransfer.trust.layout import DAYS, ROOT, TOP_ROLES, metadata_name
from trimtransfer.trust.options import Trusting
from trimtransfer.trust.ring import ITERATIONS, Ring, read_public, save_key
from trimtransfer.trust.signing import KeySet, PrivateKey, root_fields, signed_file

SIZE = 600_000


class House:
    """A signed repository on disk, its keys, and one client."""

    def __init__(self, folder: Path, *, counts: dict[str, tuple[int, int]] | None = None) -> None:
        self.folder = folder
        self.repository = folder / "repo"
        self.offline = folder / "safe"
        self.keys = Keys((folder / "keys",), lambda _: b"word")
        self.rng = np.random.default_rng(7)
        self.source = folder / "disk.img"
        self.source.write_bytes(self.rng.bytes(SIZE))
        self.publish("1", signed=False)
        made = init_keys(
            str(self.repository), keys=self.keys, offline=self.offline, plan=Plan(counts or {}, {}),
            passphrase=lambda _: b"word",
        )  # fmt: skip
        self.id = made.repository
        self.root = folder / "1.root.json"
        shutil.copy(made.root, self.root)
        self.output = folder / "out" / "desk.img"
        self.output.parent.mkdir()
        self.trusting = Trusting(self.root, folder / "trust")

    def publish(self, version: str, *, image: str = "desk", signed: bool = True, change: bool = True) -> Any:
        if change:
            with self.source.open("r+b") as file:
                file.seek(100_000)
                file.write(self.rng.bytes(30_000))
        keys = self.keys if signed else None
        return publish(self.repository, self.source, image=image, version=version, level=3, keys=keys)

    def sync(self, url: str | Path | None = None, *, pin: bool = False, **options: Any) -> Any:
        trusting = options.pop("trusting", self.trusting if pin else Trusting(state=self.trusting.state))
        return sync(url or self.repository, "desk", output=self.output, trusting=trusting, **options)

    @property
    def store(self) -> DirectoryStore:
        return DirectoryStore(self.repository)

    def check(self, *, quick: bool = False) -> str:
        """Return the newest version for a client that was here never before, by our own client (and python-tuf's)."""
        fresh = replace(self.trusting, state=self.folder / f"fresh-{os.urandom(4).hex()}")
        found = vouch(self.store, None, "desk", fresh)
        assert found is not None
        head = found.role.head()
        assert head is not None
        manifest = (self.repository / manifest_name("desk", head.version)).read_bytes()
        assert (object_digest(manifest), found.role.repository) == (head.manifest_digest, self.id)
        if not quick:
            simulator = Simulator.__new__(Simulator)
            simulator.objects = {name: (self.repository / name).read_bytes() for name, _ in self.store.list()}
            state = self.folder / f"oracle-{os.urandom(4).hex()}"
            assert oracle(simulator, state, head.version, now=time.time()) == manifest
        return head.version


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


# ---- clients


@pytest.mark.net
def test_over_a_real_server(house: House, nginx: Nginx, authority: Any) -> None:
    shutil.rmtree(nginx.root)
    nginx.root.symlink_to(house.repository)
    ca = authority.file
    first = house.sync(nginx.url, pin=True, ca_cert=ca)
    assert (first.version, first.signed_by) == ("1", house.id)
    assert house.output.read_bytes()[:100] == house.source.read_bytes()[:100]
    again = house.sync(nginx.url, ca_cert=ca)
    assert (again.wrote, again.network.requests) == ("nothing", 1)
    house.publish("2")
    nginx.served()
    nginx.forget()
    second = house.sync(nginx.url, ca_cert=ca)
    assert (second.version, second.signed_by) == ("2", house.id)
    assert house.output.read_bytes() == house.source.read_bytes()
    names = [one.uri.rpartition("/")[2] for one in nginx.served()]
    assert sum("json" in name for name in names) == 3
    assert "head.json" not in names


def test_without_a_word_of_whom_to_trust(house: House) -> None:
    report = house.sync()
    assert (report.signed_by, report.offered_by) == ("", house.id)
    assert house.sync(trusting=Trusting(state=house.trusting.state, first=True)).signed_by == house.id
    assert house.sync().signed_by == house.id


def test_an_image_that_was_vouched_for_takes_nothing_else(house: House, tmp_path: Path) -> None:
    house.sync(pin=True)
    before = house.output.read_bytes()
    other = tmp_path / "other"
    shutil.copytree(house.repository, other)
    shutil.rmtree(other / "metadata")
    house.source.write_bytes(os.urandom(SIZE))
    publish(other, house.source, image="desk", version="9", level=3)
    with pytest.raises(Untrusted, match="get around the signatures"):
        house.sync(other)
    shutil.rmtree(house.trusting.state or "")
    with pytest.raises(Untrusted, match="is gone from"):
        house.sync(other)
    assert house.output.read_bytes() == before
    report = house.sync(other, trusting=Trusting(state=house.trusting.state, unsigned=True))
    assert (report.version, report.signed_by) == ("9", "")


def test_a_head_says_nothing_to_who_trusts_signatures(house: House) -> None:
    house.publish("2")
    head = read_head(house.store, "desk")
    house.store.put(head_name("desk"), replace(head, version="1", sequence=9, manifest_digest=bytes(32)).to_bytes())
    assert house.sync(pin=True).version == "2"
    house.store.delete(head_name("desk"))
    assert house.sync(version="1").version == "1"
    with pytest.raises(NotFound, match="among those that are signed"):
        house.sync(version="7")


def test_files_are_named_by_digest(house: House) -> None:
    """MI8: manifests and delta indexes of other versions, or changed ones, in the place of those that are signed."""
    house.publish("2")
    house.sync(pin=True, version="1")
    manifest = house.repository / manifest_name("desk", "2")
    index = house.repository / deltas_name("desk", "2", "1")
    good = manifest.read_bytes()
    other = (house.repository / manifest_name("desk", "1")).read_bytes()
    for bad in (good + b"x", other, good[:-1] + bytes([good[-1] ^ 1])):
        manifest.write_bytes(bad)
        with pytest.raises(Exception, match="desk"):
            house.sync()
    manifest.write_bytes(good)
    stored = index.read_bytes()
    for damaged in (stored + b"x", stored[:-1] + bytes([stored[-1] ^ 1]), b""):
        index.write_bytes(damaged)
        assert plan(house.repository, "desk", output=house.output, trusting=house.trusting).made.units == 0
    index.write_bytes(stored)
    assert plan(house.repository, "desk", output=house.output, trusting=house.trusting).made.units > 0
    index.unlink()
    assert house.sync().version == "2"
    assert house.output.read_bytes() == house.source.read_bytes()


def test_mirrors_are_signed(house: House) -> None:
    house.publish("2")
    set_mirrors(house.repository, ["https://mirror.example.org/x"])
    assert resign_images(str(house.repository), keys=house.keys) == 1
    metadata = SignedMetadata.open(house.store)
    assert metadata is not None
    role = metadata.image_role("desk")
    assert role is not None
    assert role.mirrors == ("https://mirror.example.org/x",)
    assert house.check() == "2"


def test_several_disks(house: House) -> None:
    further = house.folder / "data.img"
    further.write_bytes(os.urandom(100_000))
    publish(house.repository, house.source, disks=[further], image="desk", version="2", level=3, keys=house.keys)
    report = house.sync(pin=True)
    assert report.disks[0].signed_by == house.id
    assert house.output.with_name("desk.disk1.img").read_bytes() == further.read_bytes()
    assert house.check() == "2"


# ---- bundles


def test_bundles_carry_what_vouches_for_them(house: House, tmp_path: Path) -> None:
    house.publish("2")
    full = tmp_path / "desk.bundle"
    make_bundle(house.store, full, [Wanted("desk")])
    report = house.sync(full, pin=True)
    assert (report.version, report.signed_by) == ("2", house.id)
    assert house.output.read_bytes() == house.source.read_bytes()
    house.publish("3")
    house.sync(house.repository, pin=True)
    assert any("newer than what the bundle has" in text for text in house.sync(full).warnings)
    unsigned = tmp_path / "other"
    publish(unsigned, house.source, image="desk", version="9", level=3)
    make_bundle(DirectoryStore(unsigned), tmp_path / "bad.bundle", [Wanted("desk")])
    with pytest.raises(Untrusted):
        house.sync(tmp_path / "bad.bundle")


def test_a_bundle_of_an_older_version(house: House, tmp_path: Path) -> None:
    house.publish("2")
    old = tmp_path / "old.bundle"
    make_bundle(house.store, old, [Wanted("desk", ("1",))])
    assert house.sync(old, pin=True).version == "1"


# ---- publishing, and what is refused before it begins


def test_publishing_without_keys_is_refused_before_any_work(house: House) -> None:
    def everything() -> list[tuple[str, int]]:
        return list(house.store.list())

    house.publish("2")
    before = everything()
    with pytest.raises(TargetRefused, match="publisher keys"):
        publish(house.repository, house.source, image="desk", version="3", keys=Keys((house.folder,)))
    with pytest.raises(TargetRefused, match="keys delegate"):
        house.publish("1", image="other", change=False)
    with pytest.raises(TargetRefused, match="publisher keys"):
        add_deltas(house.repository, "desk", base="1", level=1, keys=Keys((house.folder,)))
    with pytest.raises(TargetRefused):
        renew_timestamp(str(house.repository), keys=Keys((house.folder,)))
    assert everything() == before
    delegate(str(house.repository), ["other"], keys=house.keys, offline=house.offline)
    house.publish("1", image="other", change=False)
    assert house.check() == "2"


def test_deltas_later(house: House) -> None:
    house.publish("2")
    house.publish("3")
    house.sync(pin=True, version="1")
    assert plan(house.repository, "desk", output=house.output, trusting=house.trusting).made.units == 0
    add_deltas(house.repository, "desk", base="1", level=3, keys=house.keys)
    assert plan(house.repository, "desk", output=house.output, trusting=house.trusting).made.units > 0
    assert house.check() == "3"


def test_the_two_hundredth_version_costs_no_more(house: House) -> None:
    """What is signed grows by one version: no manifest of another one is read again."""
    house.publish("2")
    os.chmod(house.repository / manifest_name("desk", "1"), 0)
    reader = (house.repository / manifest_name("desk", "1")).read_bytes if os.geteuid() else None
    if reader is not None:
        with pytest.raises(PermissionError):
            reader()
    else:
        (house.repository / manifest_name("desk", "1")).write_bytes(b"never looked at")
    house.publish("3")
    metadata = SignedMetadata.open(house.store)
    assert metadata is not None
    role = metadata.image_role("desk")
    assert role is not None
    assert [one.version for one in role.versions] == ["1", "2", "3"]


@pytest.mark.slow
def test_a_kill_at_any_change_leaves_a_state_that_clients_believe(house: House) -> None:
    house.publish("2")
    whole, kept = house.folder / "whole", house.repository
    shutil.copytree(kept, whole)
    house.source.write_bytes(house.source.read_bytes()[:-1] + b"!")

    def work() -> None:
        house.publish("3", change=False)

    total = changes_until(0, work)
    assert house.check(quick=True) == "3"
    seen = set()
    steps = [*range(1, total + 1)]
    for step in (*steps[: total - 40 : 9], *steps[total - 40 :]):
        shutil.rmtree(kept)
        shutil.copytree(whole, kept)
        if changes_until(step, work):
            break
        before = house.check(quick=True)
        renew_timestamp(str(kept), keys=house.keys)
        after = house.check(quick=True)
        head = read_head(house.store, "desk").version
        assert after == head  # what was committed for who trusts heads is completed for who trusts signatures
        assert before in ("2", after)
        seen.add((before, after))
    assert seen == {("2", "2"), ("2", "3"), ("3", "3")}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rotate", "delta", "timestamp", "delegate"])
def test_kills_in_other_commands(change: str, house: House, rnd: random.Random) -> None:
    house.publish("2")
    whole, kept = house.folder / "whole", house.repository
    shutil.copytree(kept, whole)
    works: dict[str, Callable[[], Any]] = {
        "rotate": lambda: rotate_keys(
            str(kept), ["root", "timestamp", "snapshot"], keys=house.keys, offline=house.offline, passphrase=None
        ),
        "delta": lambda: add_deltas(kept, "desk", base="1", level=3, keys=house.keys),
        "timestamp": lambda: renew_timestamp(str(kept), keys=house.keys),
        "delegate": lambda: delegate(str(kept), ["other"], keys=house.keys, offline=house.offline),
    }
    total = changes_until(0, works[change])
    for step in some_steps(total, rnd, 24):
        shutil.rmtree(kept)
        shutil.copytree(whole, kept)
        if changes_until(step, works[change]):
            break
        if change != "rotate":
            assert house.check(quick=True) == "2"
        renew_timestamp(str(kept), keys=house.keys)
        assert house.check(quick=True) == "2"


# ---- keys


def test_rotation_of_everything(house: House) -> None:
    house.sync(pin=True)
    for roles in (["timestamp"], ["snapshot"], ["publisher"], ["targets"], ["root"], ["root", "targets", "publisher"]):
        done = rotate_keys(str(house.repository), roles, keys=house.keys, offline=house.offline, passphrase=None)
        assert done.applied
        assert house.sync().signed_by == house.id
        assert house.check() == "1"
    house.publish("2")
    assert house.sync().version == house.check() == "2"


def test_recovery_after_the_online_keys_were_stolen(house: House) -> None:
    """MI9: what a thief signed, far ahead, is overwritten; clients that took it come back by the rotation."""
    house.sync(pin=True)
    metadata = SignedMetadata.open(house.store)
    assert metadata is not None
    ring = house.keys.ring(metadata.repository)
    metadata.timestamp_number = metadata.snapshot_number = 900_000
    metadata.stage(ring, instant(time.time()), lambda _: None, roles={})
    shutil.move(house.repository / ".trimtransfer/timestamp.json", house.repository / "metadata/timestamp.json")
    assert house.sync().wrote == "nothing"
    rotate_keys(
        str(house.repository), ["snapshot", "timestamp"], keys=house.keys, offline=house.offline, passphrase=None
    )
    house.publish("2")
    assert house.sync().version == "2"


def test_thresholds_and_signing_elsewhere(tmp_path: Path) -> None:
    house = House(tmp_path, counts={"root": (3, 2)})
    safes = [tmp_path / f"safe{number}" for number in range(3)]
    for safe, pem in zip(safes, sorted(house.offline.glob("root-*.pem")), strict=True):
        safe.mkdir()
        shutil.move(pem, safe)
    house.sync(pin=True)
    report = rotate_keys(str(house.repository), ["timestamp"], keys=house.keys, offline=safes[0], passphrase=None)
    assert not report.applied
    (draft,) = report.drafts
    assert "1 more signatures of the root keys" in draft[1]
    assert house.sync().wrote == "nothing"
    carried = tmp_path / "stick.json"
    shutil.copy(draft[0], carried)
    with pytest.raises(TargetRefused, match="no key in"):
        sign_file(carried, Ring([safes[0]], lambda _: b"word"))
    assert sign_file(carried, Ring([safes[2]], lambda _: b"word")).lacks() <= 0
    shutil.copy(carried, draft[0])
    assert apply_drafts(str(house.repository), keys=house.keys, offline=None).applied
    assert not list(read_drafts(house.store))
    assert house.sync().wrote == "nothing"
    assert house.check() == "1"


def test_a_draft_that_was_tampered_with(tmp_path: Path) -> None:
    house = House(tmp_path, counts={"root": (2, 2)})
    second = tmp_path / "second"
    second.mkdir()
    shutil.move(sorted(house.offline.glob("root-*.pem"))[0], second)
    report = rotate_keys(str(house.repository), ["timestamp"], keys=house.keys, offline=house.offline, passphrase=None)
    path = Path(report.drafts[0][0])
    sign_file(path, Ring([second], lambda _: b"word"))
    fields = json.loads(path.read_bytes())
    fields["file"]["signed"]["x-more"] = 1
    path.write_text(json.dumps(fields, sort_keys=True, separators=(",", ":")))
    with pytest.raises(Untrusted):
        apply_drafts(str(house.repository), keys=house.keys, offline=None)
    assert house.check() == "1"


def test_nothing_is_signed_on_top_of_what_somebody_else_wrote(house: House) -> None:
    """Whoever can write to the repository puts a root of his own there that names our keys beside his."""
    mine = PrivateKey.generate()
    metadata = SignedMetadata.open(house.store)
    assert metadata is not None
    tops = {role: metadata.keys(role) for role in TOP_ROLES}
    sets = {role: one for role, one in tops.items() if one is not None} | {ROOT: KeySet((mine.public,))}
    fields = root_fields(metadata.repository, 1, instant(time.time()), sets, DAYS)
    (house.repository / metadata_name(ROOT, 1)).write_bytes(signed_file(fields, [mine]))
    for numbers in (1, 2):
        (house.repository / metadata_name(ROOT, numbers)).write_bytes(
            signed_file({**fields, "version": numbers}, [mine])
        )
        with pytest.raises(Untrusted):
            delegate(str(house.repository), ["other"], keys=house.keys, offline=house.offline)
        with pytest.raises(Untrusted):
            house.publish("2", change=False)


def test_keys_of_others(house: House, tmp_path: Path) -> None:
    friend = PrivateKey.generate()
    path = save_key(tmp_path / "friend", "publisher", friend, None)
    arguments: dict[str, Any] = {"keys": house.keys, "offline": house.offline}
    change_keys(str(house.repository), "publisher", add=[read_public(path)], **arguments)
    alone = Keys((tmp_path / "friend", tmp_path / "online"), None)
    (tmp_path / "online").mkdir()
    for pem in (*(tmp_path / "keys").glob("snapshot-*"), *(tmp_path / "keys").glob("timestamp-*")):
        shutil.copy(pem, tmp_path / "online")
    publish(house.repository, house.source, image="desk", version="2", level=3, keys=alone)
    assert house.check() == "2"
    change_keys(str(house.repository), "publisher", remove=[friend.public.keyid[:8]], **arguments)
    with pytest.raises(TargetRefused, match="publisher keys"):
        publish(house.repository, house.source, image="desk", version="3", level=3, keys=alone)
    with pytest.raises(TargetRefused, match="no such publisher key"):
        change_keys(str(house.repository), "publisher", remove=[friend.public.keyid[:8]], **arguments)
    with pytest.raises(TargetRefused, match="as many keys"):
        change_keys(str(house.repository), "root", threshold=2, **arguments)
    assert house.check() == "2"


def test_renewal(house: House) -> None:
    numbers = {one.role: one.number for one in describe_keys(str(house.repository), house.keys).roles}
    assert renew(str(house.repository), keys=house.keys, offline=house.offline).applied
    assert numbers == {one.role: one.number for one in describe_keys(str(house.repository), house.keys).roles}
    renew(str(house.repository), keys=house.keys, offline=house.offline, everything=True)
    after = {one.role: one.number for one in describe_keys(str(house.repository), house.keys).roles}
    assert all(after[role] == number + 1 for role, number in numbers.items())
    later = instant(time.time() + 29 * 86_400)
    report = renew_timestamp(str(house.repository), keys=house.keys, now=later)
    assert {one.role: one.number for one in report.roles}["snapshot"] == after["snapshot"] + 1
    report = renew_timestamp(str(house.repository), keys=house.keys, now=instant(time.time() + 340 * 86_400))
    assert any(text.startswith("targets is valid until") and "keys renew" in text for text in report.warnings)
    assert {one.role: one.number for one in renew_timestamp(str(house.repository), keys=house.keys, beyond=500).roles}[
        "timestamp"
    ] == 501


def test_verify_looks_at_signatures(house: House) -> None:
    house.publish("2")
    assert audit(house.store).damage == ()
    later = instant(time.time() + 8 * 86_400)
    assert [one.name for one in check_signed(house.store, ["desk"], later)] == ["metadata/timestamp.json"]
    index = house.repository / deltas_name("desk", "2", "1")
    stored = index.read_bytes()
    index.write_bytes(stored + b"x")
    assert deltas_name("desk", "2", "1") in [one.name for one in audit(house.store, quick=True).damage]
    index.unlink()
    assert audit(house.store, quick=True).damage == ()
    timestamp = house.repository / "metadata/timestamp.json"
    timestamp.write_bytes(timestamp.read_bytes().replace(b'"version":2', b'"version":3'))
    assert "forgery" in audit(house.store, quick=True).damage[0].problem


def test_old_files_go_by_and_by(house: House) -> None:
    for number in range(2, 24):
        house.publish(str(number), change=False)
    names = [name for name, _ in house.store.list("metadata")]
    assert sum(name.endswith("snapshot.json") for name in names) <= 17
    assert sum(name.endswith("image-desk.json") for name in names) <= 17
    assert house.check() == "23"


def test_key_files(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    plain = save_key(tmp_path, "plain", key, None)
    sealed = save_key(tmp_path / "sealed", "root", key, b"word")
    for path, more in ((plain, []), (sealed, ["-passin", "pass:word"])):
        assert path.stat().st_mode & 0o777 == 0o600
        if shutil.which("openssl"):
            shown = subprocess.run(
                ["openssl", "pkey", "-in", path, "-noout", "-text", *more], capture_output=True, text=True, check=True
            ).stdout
            assert key.public.public[:2] in shown
    if shutil.which("openssl"):
        parsed = subprocess.run(["openssl", "asn1parse", "-in", sealed], capture_output=True, text=True, check=True)
        assert f"{ITERATIONS:06X}" in parsed.stdout
    assert read_public(plain) == read_public(sealed) == key.public
    with pytest.raises(TargetRefused, match="wrong passphrase"):
        Ring([tmp_path / "sealed"], lambda _: b"other")._get(key.public)
    assert Ring([tmp_path / "sealed"], lambda _: b"word")._get(key.public).public == key.public
    plain.chmod(0o644)
    with pytest.raises(TargetRefused, match="chmod 600"):
        Ring([tmp_path], lambda _: b"")
    with pytest.raises(FileExistsError):
        save_key(tmp_path, "plain", key, None)


# ---- commands


def run(command: Any, *arguments: object, **environment: str) -> Any:
    return CliRunner(env=environment).invoke(command, [str(one) for one in arguments])


def test_commands(tmp_path: Path) -> None:
    word = {"MEDV_KEY_PASSPHRASE": "word", "MEDV_STATE": str(tmp_path / "trust")}
    source, folder = tmp_path / "disk.img", tmp_path / "repo"
    source.write_bytes(os.urandom(SIZE))
    base = ("--image", "desk", "--no-progress", "-q")
    assert run(repo, "publish", folder, source, "--version", "1", *base).exit_code == 0
    inside = run(repo, "keys", "init", folder, "--offline", folder / "safe", **word)
    assert inside.exit_code == 2
    assert "web server would serve the keys" in inside.output
    done = run(repo, "keys", "init", folder, "--offline", tmp_path / "safe", "--keys", tmp_path / "keys", **word)
    assert done.exit_code == 0, done.output
    assert "Give clients" in done.output
    lacks = run(repo, "publish", folder, source, "--version", "2", *base)
    assert lacks.exit_code == 1
    assert "--keys" in lacks.output
    keys = ("--keys", tmp_path / "keys")
    assert run(repo, "publish", folder, source, "--version", "2", *base, *keys).exit_code == 0
    shown = json.loads(run(repo, "keys", "show", folder, *keys, "--json").stdout)
    assert [one["role"] for one in shown["roles"]] == ["root", "targets", "snapshot", "timestamp", "image-desk"]
    assert run(repo, "timestamp", folder, *keys).exit_code == 0
    client = ("sync", folder, "desk", "-o", tmp_path / "desk.img", "--no-progress", "--cache", tmp_path / "cache")
    warned = run(medv_sync, *client, **word)
    assert warned.exit_code == 0, warned.output
    assert "is signed, but whom to trust was not said" in warned.output
    pinned = run(medv_sync, *client, "--root", folder / "metadata/1.root.json", **word)
    assert pinned.exit_code == 0, pinned.output
    assert "signed" not in pinned.output
    (folder / "metadata/timestamp.json").unlink()
    refused = run(medv_sync, *client, **word)
    assert refused.exit_code == 11
    assert "get around the signatures" in refused.output
    assert run(medv_sync, *client, "--unsigned", "--trust-first", **word).exit_code == 2
