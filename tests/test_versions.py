"""Versions in a repository: catalogues, channels that clients follow, removal, statistics; and dying on the way."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kills import changes_until
from schedules import Died, dying

from medv.objects import cache_control
from trimtransfer.assembly.preview import plan
from trimtransfer.assembly.sync import sync
from trimtransfer.catalogue import Catalogue
from trimtransfer.chunk import Kind
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import medv_sync
from trimtransfer.errors import FormatError, Locked, NotFound, TargetRefused, VersionExists
from trimtransfer.head import Head
from trimtransfer.names import catalogue_name, channel_name, head_name, manifest_name
from trimtransfer.repository import collecting, versioning
from trimtransfer.repository.audit import audit
from trimtransfer.repository.catalogues import current, read_catalogue
from trimtransfer.repository.collecting import GRACE, Garbage, collect, collected_objects
from trimtransfer.repository.intent import Intent, clean_up
from trimtransfer.repository.listing import list_images
from trimtransfer.repository.mirrors import set_mirrors
from trimtransfer.repository.publish import publish
from trimtransfer.repository.quarantine import (
    Moment,
    Quarantine,
    elapsed,
    read_quarantine,
    rescue,
    write_quarantine,
)
from trimtransfer.repository.statistics import statistics
from trimtransfer.store import DirectoryStore

PIECE = 200_000


def contents(count: int) -> list[bytes]:
    """Return versions of a file, each with another piece exchanged."""
    rnd = random.Random(8)
    pieces = [rnd.randbytes(PIECE) for _ in range(4)]
    found = []
    for number in range(count):
        pieces[number % 4] = rnd.randbytes(PIECE)
        found.append(b"".join(pieces))
    return found


CONTENTS = contents(6)


def put(root: Path, number: int, **options: Any) -> None:
    """Publish version v<number>."""
    (root / "image").write_bytes(CONTENTS[number - 1])
    options = {"level": 1, "kind": Kind.DISK, "workers": 1, "_pack_limit": 16 + (512 << 10), **options}
    publish(root / "r", root / "image", image="desk", version=f"v{number}", **options)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with four versions; channel live stands for the second, before for the first."""
    root = tmp_path_factory.mktemp("four")
    put(root, 1, labels=["gold"], note="the first", channels=["live"])
    put(root, 2, channels=["live", "test"])
    put(root, 3)
    put(root, 4)
    return root


@pytest.fixture
def root(four: Path, tmp_path: Path) -> Path:
    shutil.copytree(four, tmp_path / "w")
    return tmp_path / "w"


def versions(root: Path) -> list[str]:
    return [entry.version for entry in current(DirectoryStore(root / "r"), "desk").versions]


def run(*arguments: object, exit_code: int = 0) -> Result:
    done = CliRunner().invoke(repo, [str(one) for one in arguments])
    assert done.exit_code == exit_code, done.output + done.stderr
    return done


def told(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


# ---- catalogues


def test_publishing_enrols(root: Path) -> None:
    catalogue = read_catalogue(DirectoryStore(root / "r"), "desk")
    assert [(one.version, one.sequence, one.parent) for one in catalogue.versions] == [
        ("v1", 1, ""), ("v2", 2, "v1"), ("v3", 3, "v2"), ("v4", 4, "v3"),
    ]  # fmt: skip
    assert (catalogue.entry("gold").version, catalogue.entry("v1").note) == ("v1", "the first")
    assert [step.version for step in catalogue.channel("live").history] == ["v1"]
    assert audit(DirectoryStore(root / "r")).damage == ()


def test_a_repository_without_a_catalogue_has_one_all_the_same(root: Path) -> None:
    store = DirectoryStore(root / "r")
    before = current(store, "desk")
    for path in (root / "r/images/desk").glob("*.json"):
        if path.name != "head.json":
            path.unlink()
    made = current(store, "desk")
    assert [one.version for one in made.versions] == ["v1", "v2", "v3", "v4"]
    assert [one.manifest_digest for one in made.versions] == [one.manifest_digest for one in before.versions]
    assert audit(store).damage == ()
    put(root, 5)
    assert read_catalogue(store, "desk") == current(store, "desk")
    assert versions(root) == ["v1", "v2", "v3", "v4", "v5"]


def test_what_an_older_release_publishes_belongs_to_it(root: Path) -> None:
    """An older release writes the head, and no catalogue; and takes a label for its version's name."""
    store = DirectoryStore(root / "r")
    versioning.annotate(root / "r", "desk", "v1", labels=["v5"])
    old = store.read(catalogue_name("desk"), limit=1 << 20)
    versioning.annotate(root / "r", "desk", "v1", unlabel=["v5"])
    put(root, 5)
    store.put(catalogue_name("desk"), old)
    assert versions(root) == ["v1", "v2", "v3", "v4", "v5"]
    assert current(store, "desk").entry("gold").version == "v1"
    assert collect(root / "r", grace=0).deleted == Garbage()
    assert [one.version for one in list_images(store)[0].versions] == versions(root)


def test_a_damaged_catalogue_is_told_and_nothing_is_collected(root: Path) -> None:
    store = DirectoryStore(root / "r")
    store.put(catalogue_name("desk"), b"{}")
    assert [one.name for one in audit(store).damage] == [catalogue_name("desk")]
    assert len(list_images(store)[0].versions) == 4
    with pytest.raises(FormatError):
        collect(root / "r", grace=0)
    with pytest.raises(FormatError):
        put(root, 5)


def test_wishes_that_cannot_be_granted_are_refused_before(root: Path) -> None:
    with pytest.raises(TargetRefused, match="is a version"):
        put(root, 5, labels=["v1"])
    with pytest.raises(FormatError, match="note"):
        put(root, 5, note="\x07")
    with pytest.raises(FormatError, match="channel name"):
        put(root, 5, channels=["Live"])
    with pytest.raises(VersionExists):
        put(root, 4)
    with pytest.raises(FormatError, match="version name"):
        publish(root / "r", root / "image", image="desk", version="head.json")
    assert versions(root) == ["v1", "v2", "v3", "v4"]


@pytest.mark.slow
def test_a_publisher_that_dies_has_published_with_its_wishes_or_not_at_all(root: Path, tmp_path: Path) -> None:
    wishes: dict[str, Any] = {"labels": ["new"], "channels": ["live"], "deltas": False}
    total, published = 1000, 0
    for limit in range(1000):  # the first time nobody dies
        if limit > total:
            break
        shutil.copytree(root, tmp_path / "x")
        made = changes_until(limit, put, tmp_path / "x", 5, **wishes)
        total = total if limit else made
        store = DirectoryStore(tmp_path / "x/r")
        clean_up(store)
        catalogue = current(store, "desk")
        there = catalogue.find("v5") is not None
        assert (catalogue.find("new") is not None, catalogue.channel("live").version == "v5") == (there, there)
        assert audit(store, workers=1).damage == ()
        assert not list((tmp_path / "x/r/.trimtransfer").glob("wishes*")) or not there
        published += there
        shutil.rmtree(tmp_path / "x")
    assert 3 <= published < total


# ---- channels


def test_clients_follow_a_channel_on_and_back(root: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"output": tmp_path / "desk.img", "cache": tmp_path / "cache"}
    report = sync(root / "r", "desk", channel="live", **where)
    assert (report.version, report.channel, report.back_from) == ("v2", "live", "")
    versioning.point_channel(root / "r", "desk", "live", version="v4")
    assert plan(root / "r", "desk", channel="live", **where).version == "v4"
    assert sync(root / "r", "desk", channel="live", **where).version == "v4"
    versioning.roll_back_channel(root / "r", "desk", "live")
    told = plan(root / "r", "desk", channel="live", **where)
    assert (told.version, told.back_from) == ("v2", "v4")
    report = sync(root / "r", "desk", channel="live", **where)
    assert (report.version, report.back_from) == ("v2", "v4")
    assert (tmp_path / "desk.img").read_bytes() == CONTENTS[1]
    again = sync(root / "r", "desk", channel="live", **where)
    assert (again.wrote, again.network.requests) == ("nothing", 1)
    with pytest.raises(NotFound, match="channel pilot of image desk"):
        sync(root / "r", "desk", channel="pilot", **where)
    with pytest.raises(ValueError, match="one or the other"):
        sync(root / "r", "desk", channel="live", version="v1", **where)


def test_clients_take_a_version_by_its_label(root: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"output": tmp_path / "desk.img", "cache": tmp_path / "cache"}
    assert sync(root / "r", "desk", version="gold", **where).version == "v1"
    assert (tmp_path / "desk.img").read_bytes() == CONTENTS[0]
    with pytest.raises(NotFound, match="version silver"):
        sync(root / "r", "desk", version="silver", **where)


def test_the_head_of_a_channel_is_small_and_follows_mirrors(root: Path) -> None:
    store = DirectoryStore(root / "r")
    set_mirrors(root / "r", ["https://mirror.example.org/x"])
    for name in (head_name("desk"), channel_name("desk", "live")):
        data = store.read(name, limit=1024)
        assert Head.from_bytes(data).mirrors == ("https://mirror.example.org/x",)
    versioning.point_channel(root / "r", "desk", "live", version="v3")
    head = Head.from_bytes(store.read(channel_name("desk", "live"), limit=1024))
    assert (head.version, head.mirrors) == ("v3", ("https://mirror.example.org/x",))


def test_a_wrong_head_of_a_channel_is_told_and_mended_by_any_change(root: Path) -> None:
    store = DirectoryStore(root / "r")
    store.put(channel_name("desk", "live"), store.read(head_name("desk"), limit=1024))
    assert [one.name for one in audit(store).damage] == [channel_name("desk", "live")]
    versioning.annotate(root / "r", "desk", "v1", note="x")
    assert audit(store).damage == ()


@pytest.mark.parametrize("act", ["point", "remove"])
def test_who_dies_changing_a_channel_leaves_what_the_next_change_finishes(root: Path, tmp_path: Path, act: str) -> None:
    def change(where: Path) -> None:
        if act == "point":
            versioning.point_channel(where, "desk", "live", version="v3")
        else:
            versioning.remove_channel(where, "desk", "live")

    for limit in range(1, 40):
        shutil.copytree(root, tmp_path / "x")
        try:
            with dying(limit):
                change(tmp_path / "x/r")
            ended = True
        except Died:
            ended = False
        store = DirectoryStore(tmp_path / "x/r")
        versioning.annotate(tmp_path / "x/r", "desk", "v1", note="x")
        assert audit(store, workers=1, quick=True).damage == ()
        shutil.rmtree(tmp_path / "x")
        if ended:
            return
    raise AssertionError("it never ended")


# ---- removal


def test_what_others_need_of_a_removed_version_stays(root: Path, tmp_path: Path) -> None:
    store = DirectoryStore(root / "r")
    with pytest.raises(TargetRefused, match="channel"):
        versioning.remove_versions(root / "r", "desk", ["v2"])
    rehearsed = versioning.remove_versions(root / "r", "desk", ["gold", "v3"], dry_run=True)
    assert versions(root) == ["v1", "v2", "v3", "v4"]
    report = versioning.remove_versions(root / "r", "desk", ["gold", "v3"])
    assert (report.removed, report.freed) == ({"desk": ("v1", "v3")}, rehearsed.freed)
    assert report.freed.bytes > 0
    assert [one.version for one in list_images(store)[0].versions] == ["v2", "v4"]
    assert audit(store).damage == ()
    assert store.exists(manifest_name("desk", "v1"))  # a client that asked for it before goes on
    deleted = collect(root / "r", grace=0).deleted
    assert deleted == report.freed
    assert not store.exists(manifest_name("desk", "v1"))
    assert audit(store).damage == ()
    assert audit(store).unreferenced == ()
    for version, content in (("v2", CONTENTS[1]), ("v4", CONTENTS[3])):
        sync(root / "r", "desk", version=version, output=tmp_path / version, cache=tmp_path / "cache")
        assert (tmp_path / version).read_bytes() == content
    with pytest.raises(NotFound):
        sync(root / "r", "desk", version="v1", output=tmp_path / "v1", cache=tmp_path / "cache")


def test_nothing_is_built_on_a_removed_version_and_its_name_stays_taken(root: Path) -> None:
    versioning.remove_versions(root / "r", "desk", ["v3"])
    with pytest.raises(NotFound, match="version v3"):
        put(root, 5, parent="v3")
    with pytest.raises(NotFound, match="version v3"):
        put(root, 5, delta_from=["v3"])
    with pytest.raises(VersionExists):
        put(root, 3)


def test_the_name_is_taken_as_long_as_there_are_deltas_from_it(root: Path) -> None:
    text = b"".join(b"%d of a text that repeats itself\n" % number for number in range(20_000))
    for version, content in (("a", text), ("b", text.replace(b"77", b"7"))):
        (root / "image").write_bytes(content)
        publish(root / "t", root / "image", image="text", version=version, level=1, kind=Kind.DISK)
    store = DirectoryStore(root / "t")
    assert store.exists("images/text/b/from-a.bin")
    versioning.remove_versions(root / "t", "text", ["a"])
    collect(root / "t", grace=0)
    report = audit(store)
    assert (report.damage, report.unreferenced) == ((), ())
    assert store.exists("images/text/b/from-a.bin")
    with pytest.raises(VersionExists):
        publish(root / "t", root / "image", image="text", version="a", level=1, kind=Kind.DISK)


def test_retention(root: Path) -> None:
    versioning.point_channel(root / "r", "desk", "test", version="v3")
    versioning.annotate(root / "r", "desk", "v4", pinned=True)
    put(root, 5)
    policy = versioning.Policy(last=1)
    assert versioning.retain(root / "r", policy).removed == {}  # channels could go back to all others
    versioning.remove_channel(root / "r", "desk", "live")
    report = versioning.retain(root / "r", policy)
    assert (report.removed, report.kept, report.dry_run) == ({"desk": ("v1",)}, {"desk": 4}, True)
    assert len(versions(root)) == 5
    assert versioning.retain(root / "r", versioning.Policy(last=1, days=1), dry_run=False).removed == {}
    assert versioning.retain(root / "r", policy, dry_run=False).freed == report.freed
    assert versions(root) == ["v2", "v3", "v4", "v5"]


def test_versions_of_several_disks_go_whole(tmp_path: Path) -> None:
    for number, version in enumerate(("a", "b")):
        for disk in range(2):
            (tmp_path / f"{disk}").write_bytes(random.Random(10 * number + disk).randbytes(PIECE))
        options: dict[str, Any] = {"level": 1, "kind": Kind.DISK, "deltas": False}
        publish(tmp_path / "r", tmp_path / "0", disks=[tmp_path / "1"], image="two", version=version, **options)
    store = DirectoryStore(tmp_path / "r")
    versioning.remove_versions(tmp_path / "r", "two", ["a"])
    assert audit(store).damage == ()
    collect(tmp_path / "r", grace=0)
    assert not [name for name, _ in store.list("images") if "/a/" in name]
    report = audit(store)
    assert (report.damage, report.unreferenced, report.versions) == ((), (), 2)


# ---- quarantine


def test_time_counts_as_far_as_it_is_certain() -> None:
    then = Moment(1000, "a", 50)
    assert elapsed(then, Moment(5, "a", 80), 1) == 30
    assert elapsed(then, Moment(10**9, "a", 80), 1) == 30
    assert elapsed(then, Moment(1300, "b", 80), 500) == 300
    assert elapsed(then, Moment(10**9, "b", 80), 500) == 500
    assert elapsed(then, Moment(5, "b", 80), 500) == 0
    assert elapsed(Moment(1000), Moment(10**9), 500) == 500


def test_quarantine_as_bytes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    made = Quarantine(Moment(5, "x", 7), {"packs/a": 3, "packs/b": 0})
    write_quarantine(store, made)
    assert read_quarantine(store, Moment(0)) == made
    path = tmp_path / ".trimtransfer/quarantine"
    with open(path, "ab") as file:
        file.write(b"rescued pac")  # whoever wrote this died
    assert rescue(store, {"packs/b": 1, "packs/c": 1}) == 1
    assert rescue(store, {"packs/b": 1}) == 0
    assert read_quarantine(store, Moment(0)).ages == {"packs/a": 3}
    for damaged in (b"", b"x", path.read_bytes().replace(b"3 ", b"-3 "), path.read_bytes()[:80]):
        path.write_bytes(damaged)
        assert read_quarantine(store, Moment(9)) == Quarantine(Moment(9))


def test_a_publisher_rescues_what_it_uses_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(root / "r")
    versioning.remove_versions(root / "r", "desk", ["v3"])
    held = read_quarantine(store, Moment(0)).ages
    packs = {name for name in held if name.startswith("packs/")}
    assert packs
    seen = []
    monkeypatch.setattr(Intent, "done", lambda self: seen.append(read_quarantine(store, Moment(0)).ages))
    (root / "image").write_bytes(CONTENTS[2])
    options: dict[str, Any] = {"level": 1, "kind": Kind.DISK, "workers": 1, "_pack_limit": 16 + (512 << 10)}
    publish(root / "r", root / "image", image="desk", version="v6", parent="v2", **options)
    assert not packs & seen[0].keys()
    assert len(seen[0]) < len(held)
    monkeypatch.undo()
    report = collect(root / "r", grace=0)
    assert report.deleted.objects == len(held) - len(packs)
    assert audit(store).damage == ()


def test_a_pack_that_vanishes_while_a_version_is_published_stops_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(root / "r")
    before = store.read(head_name("desk"), limit=1024)
    original = Intent.secure

    def late(self: Intent) -> None:
        packs = sorted(name for name, _ in store.list("packs"))
        for name in packs:
            store.delete(name)
        original(self)

    monkeypatch.setattr(Intent, "secure", late)
    with pytest.raises(NotFound):
        put(root, 5, deltas=False)
    assert store.read(head_name("desk"), limit=1024) == before


@pytest.mark.parametrize("change", ["quarantine", "head", "intent"])
def test_a_collector_stops_when_another_machine_works_on_the_repository(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The lock does not hold there; so it looks before each deletion."""
    store = DirectoryStore(root / "r")
    versioning.remove_versions(root / "r", "desk", ["v3"])
    objects = len(collected_objects(store))
    original = DirectoryStore.delete

    def delete(self: DirectoryStore, name: str) -> bool:
        done = original(self, name)
        if change == "quarantine":
            rescue(store, set(read_quarantine(store, Moment(0)).ages))
        elif change == "head":
            store.put(head_name("desk"), store.read(head_name("desk"), limit=1024))
        else:
            Intent(store, "desk", "v9").add("packs/x")
        return done

    monkeypatch.setattr(DirectoryStore, "delete", delete)
    with pytest.raises(Locked, match="another machine"):
        collect(root / "r", grace=0)
    assert len(collected_objects(store)) == objects - 1


def test_a_collector_waits_for_the_grace_and_forgets_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(root / "r")
    now = Moment(10**9, "boot", 100)
    monkeypatch.setattr(Moment, "now", lambda: now)
    versioning.remove_versions(root / "r", "desk", ["v3"])
    now = Moment(0, "boot", 100 + GRACE - 1)
    report = collect(root / "r")
    assert (report.deleted.objects, report.next_due) == (0, 1)
    now = Moment(9, "boot", 100 + GRACE)
    assert collect(root / "r", dry_run=True).deleted == report.waiting
    assert collect(root / "r").deleted == report.waiting
    assert collect(root / "r").waiting.objects == 0
    assert audit(store).damage == ()


def test_a_lost_head_stops_a_collector(root: Path) -> None:
    (root / "r/images/desk/head.json").unlink()
    with pytest.raises(FormatError, match="head of an image"):
        collect(root / "r", grace=0)


def test_what_it_does_not_know_stays(root: Path) -> None:
    others = [
        "packs/README.txt",
        "images/desk/notes.txt",
        "images/desk/v1/extra.bin",
        "metadata/root.json",
        "robots.txt",
    ]
    for name in others:
        (root / "r" / name).parent.mkdir(exist_ok=True, parents=True)
        (root / "r" / name).write_text("x")
    stray = DirectoryStore(root / "r")
    stray.put("packs/ab/" + "ab" * 32 + ".bin", b"x")
    stray.put("images/desk/channel-old.json", b"x")
    assert collect(root / "r", grace=0).deleted.objects == 1
    assert not stray.exists("images/desk/channel-old.json")  # the catalogue is right, so this goes at once
    assert all((root / "r" / name).exists() for name in others)


@pytest.mark.slow
def test_a_collector_that_dies_anywhere_loses_nothing(root: Path, tmp_path: Path) -> None:
    versioning.remove_versions(root / "r", "desk", ["v3"])
    total = 1000
    for limit in range(1000):
        if limit > total:
            break
        shutil.copytree(root, tmp_path / "x")
        made = changes_until(limit, collect, tmp_path / "x/r", grace=0)
        total = total if limit else made
        store = DirectoryStore(tmp_path / "x/r")
        assert audit(store, workers=1).damage == ()
        collect(tmp_path / "x/r", grace=0)
        report = audit(store, workers=1)
        assert (report.damage, report.unreferenced) == ((), ())
        assert not store.exists(manifest_name("desk", "v3"))
        shutil.rmtree(tmp_path / "x")


@pytest.mark.slow
def test_a_removal_that_dies_anywhere_is_done_or_not(root: Path, tmp_path: Path) -> None:
    total, removed = 1000, 0
    for limit in range(1000):
        if limit > total:
            break
        shutil.copytree(root, tmp_path / "x")
        made = changes_until(limit, versioning.remove_versions, tmp_path / "x/r", "desk", ["v1", "v3"])
        total = total if limit else made
        assert versions(tmp_path / "x") in (["v1", "v2", "v3", "v4"], ["v2", "v4"])
        removed += len(versions(tmp_path / "x")) == 2
        assert audit(DirectoryStore(tmp_path / "x/r"), workers=1).damage == ()
        shutil.rmtree(tmp_path / "x")
    assert removed


# ---- what commands tell


def test_commands(root: Path, tmp_path: Path) -> None:
    where = root / "r"
    assert [one["version"] for one in told("versions", where)["images"][0]["versions"]] == ["v1", "v2", "v3", "v4"]
    text = run("versions", where, "--image", "desk", "--sizes").stdout
    assert "label gold" in text
    assert "channel live: v2" in text
    assert told("show", where, "desk", "gold")["labels"] == ["gold"]
    assert "channel live" in run("show", where, "desk", "v2").stdout
    told("annotate", where, "v3", "--image", "desk", "--label", "gold", "--pin", "--note", "good")
    assert "v3" in run("remove", where, "gold", "--image", "desk", exit_code=1).stderr
    run("annotate", where, "v3", "--image", "desk", exit_code=2)
    run("channel", where, "test", "gold", "--image", "desk")
    shown = told("promote", where, "--image", "desk", "--from", "test", "--to", "live")
    assert shown["channels"][0]["version"] == "v3"
    assert told("channel", where, "live", "--image", "desk", "--rollback")["channels"][0]["version"] == "v2"
    assert len(told("channel", where, "--image", "desk")["channels"]) == 2
    run("channel", where, "--image", "desk", "--rollback", exit_code=2)
    run("channel", where, "nope", "--image", "desk", "--rollback", exit_code=4)
    run("retain", where, exit_code=2)
    assert told("retain", where, "--last", 1)["dry_run"] is True
    assert "Nothing to remove" in run("retain", where, "--days", 3).stdout
    assert told("channel", where, "live", "--image", "desk", "--remove")["removed"]
    assert told("channel", where, "test", "--image", "desk", "--remove")["removed"]
    assert told("retain", where, "--last", 1, "--apply")["removed"] == {"desk": ["v1", "v2"]}
    assert told("gc", where, "--dry-run")["deleted"]["objects"] == 0
    assert "Deleted 0 objects" in run("gc", where).stdout
    assert told("gc", where, "--grace", 0)["deleted"]["objects"] > 0
    facts = told("stats", where)
    assert facts["unused"]["objects"] == 0
    assert "In use" in run("stats", where).stdout
    assert [one["version"] for one in facts["images"][0]["versions"]] == ["v3", "v4"]
    done = CliRunner().invoke(
        medv_sync, [str(where), "desk", "--version", "gold", "-o", str(tmp_path / "x.img"), "--cache", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output


def test_statistics_add_up(root: Path) -> None:
    store = DirectoryStore(root / "r")
    report = statistics(root / "r")
    sizes = collected_objects(store)
    kinds = sum(some.bytes for some in report.kinds.values())
    channels = sum(size for name, size in sizes.items() if "/channel-" in name)
    assert report.live == Garbage.of(sizes.values())
    assert kinds == report.live.bytes - channels
    assert (report.unused, report.quarantine) == (Garbage(), Garbage())
    assert report.image_bytes == 4 * len(CONTENTS[0])
    uses = {use.version: use for use in report.images[0].versions}
    freed = versioning.remove_versions(root / "r", "desk", ["v3"]).freed
    assert freed.bytes == uses["v3"].own_bytes
    after = statistics(root / "r")
    assert (after.unused, after.quarantine) == (freed, freed)
    with pytest.raises(NotFound):
        statistics(root / "r", image="none")


def test_a_catalogue_of_a_thousand_versions_is_small() -> None:
    from trimtransfer.catalogue import Entry

    rows = tuple(Entry(f"2026.{n}", n, f"2026.{n - 1}", bytes(32), 10**6, 1_700_000_000 + n) for n in range(1, 1001))
    assert len(Catalogue("win10", 1000, rows).to_bytes()) < 250_000


def test_caches_ask_again_for_what_changes() -> None:
    for name in (catalogue_name("desk"), channel_name("desk", "live"), head_name("desk")):
        assert cache_control(tuple(name.split("/"))) == "no-cache"


def test_the_collector_names_the_objects_of_the_format() -> None:
    good = ["packs/0a/" + "0a" * 32 + ".bin", "images/a/1/manifest.bin", "images/a.disk1/1.0/from-0.9.bin"]
    bad = ["images/a/head.json", "images/a/catalogue.json", "packs/0a/x.bin", "profiles/a.bin", "images/a/1/other.bin"]
    assert all(collecting._COLLECTED.fullmatch(name) for name in good)
    assert not any(collecting._COLLECTED.fullmatch(name) for name in bad)
