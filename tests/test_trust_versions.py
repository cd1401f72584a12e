"""Labels, channels and removal in signed repositories: what is signed counts, whatever lies beside it."""

from __future__ import annotations

import json
import random
import shutil
from typing import Any

import pytest
from click.testing import CliRunner
from kills import changes_until, some_steps
from test_trust_sync import House, house

from trimtransfer.catalogue import Catalogue
from trimtransfer.cli.repo import repo
from trimtransfer.cli.sync import medv_sync
from trimtransfer.errors import NotFound, TargetRefused, Untrusted
from trimtransfer.names import catalogue_name, channel_name
from trimtransfer.repository.audit import audit
from trimtransfer.repository.bundleplan import Wanted
from trimtransfer.repository.bundling import make_bundle
from trimtransfer.repository.catalogues import read_catalogue, read_channel_head, stored_catalogue
from trimtransfer.repository.collecting import collect
from trimtransfer.repository.publish import publish
from trimtransfer.repository.renewal import renew_timestamp, resign_images
from trimtransfer.repository.signer import Keys, Signer
from trimtransfer.repository.versioning import (
    Policy,
    annotate,
    point_channel,
    remove_channel,
    remove_versions,
    retain,
    roll_back_channel,
)

__all__ = ["house"]


def signed(house: House) -> Catalogue:
    """Return the catalogue that is signed."""
    signer = Signer.open(house.store, "desk", house.keys)
    assert signer is not None
    found = signer.catalogue("desk")
    assert found is not None
    return found


def release(house: House, version: str, **wishes: Any) -> None:
    """Publish a version with labels, a note and channels."""
    house.source.write_bytes(house.source.read_bytes()[:-1] + version[-1:].encode())
    publish(house.repository, house.source, image="desk", version=version, level=3, keys=house.keys, **wishes)


@pytest.fixture
def three(house: House) -> House:
    """Versions 1 to 3: channel live is 2, test is 3, which is also called winter."""
    release(house, "2", channels=["live"])
    release(house, "3", channels=["test"], labels=["winter"], note="cold")
    return house


def test_what_a_publisher_wishes_is_signed(three: House) -> None:
    found = signed(three)
    assert found == read_catalogue(three.store, "desk")
    assert [entry.version for entry in found.versions] == ["1", "2", "3"]
    assert (found.entry("winter").version, found.entry("3").note) == ("3", "cold")
    assert {channel.name: channel.version for channel in found.channels} == {"live": "2", "test": "3"}
    assert three.check() == "3"  # python-tuf agrees
    assert audit(three.store).damage == ()


def test_clients_follow_signed_channels_and_labels(three: House) -> None:
    live = three.sync(pin=True, channel="live")
    assert (live.version, live.channel, live.signed_by) == ("2", "live", three.id)
    assert three.sync(version="winter").version == "3"
    back = three.sync(channel="live")
    assert (back.version, back.back_from) == ("2", "3")
    with pytest.raises(NotFound, match=r"channel pilot .*channels: live, test"):
        three.sync(channel="pilot")
    with pytest.raises(NotFound, match=r"version summer .* among those that are signed"):
        three.sync(version="summer")


def test_files_beside_the_signatures_lead_nobody_astray(three: House) -> None:
    """Who can write to the server points channel and catalogue to an old version; the publisher signs none of that."""
    store = three.store
    old = read_channel_head(store, "desk", "live").to_bytes()
    truth = signed(three)
    forged = truth.pointed("test", "1", 5).annotated("1", labels=["winter"], pinned=True)
    store.put(catalogue_name("desk"), forged.to_bytes())
    store.put(channel_name("desk", "test"), old)
    assert three.sync(pin=True, channel="test").version == "3"
    assert three.sync(version="winter").version == "3"
    names = {damage.name for damage in audit(store).damage}
    assert names == {catalogue_name("desk"), channel_name("desk", "test")}
    changed = annotate(three.repository, "desk", "2", note="still here", keys=three.keys)
    assert changed == truth.annotated("2", note="still here") == signed(three) == read_catalogue(store, "desk")
    assert read_channel_head(store, "desk", "test").version == "3"
    assert audit(store).damage == ()


def test_a_deleted_catalogue_is_not_forgotten(three: House) -> None:
    truth = signed(three)
    three.store.delete(catalogue_name("desk"))
    release(three, "4")
    assert [entry.version for entry in signed(three).versions] == ["1", "2", "3", "4"]
    assert signed(three).channels == truth.channels
    assert signed(three) == read_catalogue(three.store, "desk")


def test_channels_move_by_signature_alone(three: House) -> None:
    nobody = Keys((three.folder,), None)
    for work in (
        lambda keys: point_channel(three.repository, "desk", "live", like="test", keys=keys),
        lambda keys: roll_back_channel(three.repository, "desk", "live", keys=keys),
        lambda keys: remove_channel(three.repository, "desk", "live", keys=keys),
    ):
        before = signed(three)
        with pytest.raises(TargetRefused, match="too few"):
            work(nobody)
        assert signed(three) == before == read_catalogue(three.store, "desk")
        assert work(three.keys) == signed(three) == read_catalogue(three.store, "desk") != before
        assert three.check(quick=True) == "3"
    with pytest.raises(NotFound):
        three.sync(pin=True, channel="live")


def test_removed_versions_are_signed_no_more(three: House) -> None:
    three.sync(pin=True, version="1")
    with pytest.raises(TargetRefused, match="too few"):
        remove_versions(three.repository, "desk", ["1"], keys=Keys((three.folder,), None))
    assert signed(three).find("1") is not None
    report = remove_versions(three.repository, "desk", ["1"], keys=three.keys)
    assert report.removed == {"desk": ("1",)}
    assert [entry.version for entry in signed(three).versions] == ["2", "3"]
    with pytest.raises(NotFound):
        three.sync(version="1")
    assert collect(three.repository, grace=0).deleted.objects > 0
    assert three.check() == "3"
    assert three.sync(channel="live").version == "2"
    assert audit(three.store).damage == ()
    resign_images(str(three.repository), keys=three.keys)
    assert [entry.version for entry in signed(three).versions] == ["2", "3"]


def test_retention_signs_once_it_removes(three: House) -> None:
    point_channel(three.repository, "desk", "live", version="3", keys=three.keys)
    for name in ("live",):
        remove_channel(three.repository, "desk", name, keys=three.keys)
    number = signed(three)
    assert retain(three.repository, Policy(last=1), keys=Keys((three.folder,), None)).removed == {"desk": ("1", "2")}
    assert signed(three) == number
    assert retain(three.repository, Policy(last=1), dry_run=False, keys=three.keys).removed == {"desk": ("1", "2")}
    assert [entry.version for entry in signed(three).versions] == ["3"]
    assert three.check() == "3"


def test_a_bundle_of_a_version_that_was_removed_since(three: House) -> None:
    stick = three.folder / "stick.bundle"
    make_bundle(three.store, stick, [Wanted("desk", ("1",))])
    remove_versions(three.repository, "desk", ["1"], keys=three.keys)
    three.sync(pin=True)
    three.output.unlink()
    with pytest.raises(Untrusted):
        three.sync(stick)


def test_commands(three: House) -> None:
    keys = ["--keys", str(three.folder / "keys")]
    runner = CliRunner(env={"MEDV_KEY_PASSPHRASE": "word"})

    def run(*arguments: str, code: int = 0) -> Any:
        done = runner.invoke(repo, [*arguments, "--json"], prog_name="medv-repo")
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if code == 0 else done.output

    place = str(three.repository)
    run("promote", place, "--image", "desk", "--from", "test", "--to", "live", code=1)
    run("promote", place, "--image", "desk", "--from", "test", "--to", "live", *keys)
    run("annotate", place, "2", "--image", "desk", "--pin", *keys)
    run("channel", place, "pilot", "2", "--image", "desk", *keys)
    run("channel", place, "pilot", "--image", "desk", "--remove", *keys)
    run("remove", place, "1", "--image", "desk", *keys)
    run("retain", place, "--last", "1", "--apply", *keys)
    found = signed(three)
    assert [entry.version for entry in found.versions] == ["2", "3"]
    assert (found.entry("2").pinned, found.channel("live").version) == (True, "3")
    client = ["--root", str(three.root), "--state", str(three.folder / "elsewhere"), "--json"]
    done = CliRunner().invoke(
        medv_sync, [place, "desk", "-o", str(three.output), "--channel", "live", *client], prog_name="medv-sync"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["version"] == "3"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["publish", "channel", "remove"])
def test_kills(change: str, three: House, rnd: random.Random) -> None:
    """Whatever dies when: clients believe what was before or after, and the next command writes what is signed."""
    whole, kept = three.folder / "whole", three.repository
    shutil.copytree(kept, whole)
    works = {
        "publish": lambda: release(three, "4", channels=["live"], labels=["spring"]),
        "channel": lambda: point_channel(kept, "desk", "live", like="test", keys=three.keys),
        "remove": lambda: remove_versions(kept, "desk", ["1"], keys=three.keys),
    }
    before = signed(three)
    total = changes_until(0, works[change])
    after = signed(three)
    assert before != after

    def plain(catalogue: Catalogue) -> Any:
        """Without times."""
        fields = catalogue.to_dict()
        for one in (*fields["versions"], *fields["channels"]):
            one.pop("published", None), one.pop("since", None), one.pop("manifest_digest", None), one.pop("history", 0)
        return fields

    seen = set()
    for step in some_steps(total, rnd, 24):
        shutil.rmtree(kept)
        shutil.copytree(whole, kept)
        if changes_until(step, works[change]):
            break
        three.check(quick=True)
        renew_timestamp(str(kept), keys=three.keys)
        found = signed(three)
        assert plain(found) in (plain(before), plain(after)), step
        annotate(kept, "desk", "2", note="x", keys=three.keys)
        assert signed(three) == stored_catalogue(three.store, "desk") == found.annotated("2", note="x")
        assert audit(three.store, quick=True).damage == ()
        seen.add(plain(found) == plain(after))
    assert seen == {False, True}
