"""Catalogues as values: what goes in comes out, what is not allowed is refused, and changes keep their rules."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trimtransfer
from trimtransfer.catalogue import MAX_CATALOGUE, MAX_HISTORY, MAX_NOTE, Catalogue, Channel, Entry, Step
from trimtransfer.errors import FormatError, NotFound, TargetRefused

NAMES = st.from_regex(r"v[a-z0-9]{1,6}", fullmatch=True)


def entry(number: int, **fields: Any) -> Entry:
    """Return version v<number>, published that many days after 1970."""
    return replace(Entry(f"v{number}", number, f"v{number - 1}", bytes([number]) * 32, 1000, number * 86_400), **fields)


def catalogue(count: int = 6) -> Catalogue:
    """Return a catalogue of that many versions."""
    return Catalogue("desk", count, tuple(entry(number) for number in range(1, count + 1)))


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=8))
    numbers = sorted(draw(st.sets(st.integers(1, 99), min_size=len(names), max_size=len(names))))
    notes = st.text(st.characters(codec="utf-8", categories=("L", "N")), max_size=20)
    made = Catalogue("desk", 100)
    for name, number in zip(names, numbers, strict=True):
        made = made.with_version(
            Entry(name, number, draw(st.sampled_from(["", "gone"])), draw(st.binary(min_size=32, max_size=32)), 7, 9)
        )
        remarks: dict[str, Any] = {"note": draw(notes), "pinned": draw(st.booleans())}
        made = made.annotated(name, labels=[f"l-{name}"] if draw(st.booleans()) else [], **remarks)
    for name in draw(st.lists(st.sampled_from(names), max_size=8)):
        made = made.pointed(draw(st.sampled_from(["test", "live"])), name, 5)
    return made


@given(catalogues())
def test_bytes_and_back(made: Catalogue) -> None:
    assert Catalogue.from_bytes(made.to_bytes()) == made
    assert Catalogue.from_dict(made.to_dict()) == made
    more = {**made.to_dict(), "later": [1.5, {"a": None}]}
    assert Catalogue.from_dict(more) == made


@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.text(max_size=9) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["format", "image", "versions", "channels", "sequence", "version"]), inner, max_size=6
    )).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Catalogue.from_bytes(data)


def changed(**fields: Any) -> dict[str, Any]:
    """Return the plain values of a catalogue, changed."""
    made = catalogue(3).annotated("v1", labels=["l"]).pointed("live", "v1", 1).pointed("live", "v2", 2)
    return {**made.to_dict(), **fields}


def version(**fields: Any) -> dict[str, Any]:
    """Return a catalogue of one version, that changed."""
    return changed(versions=[{**entry(1).to_dict(), **fields}], channels=[])


@pytest.mark.parametrize(
    "value",
    [
        changed(format=2), changed(format=True), changed(image="../x"), changed(image=3), changed(sequence=2),
        changed(sequence=-1), changed(sequence=2.0), changed(versions={}), changed(versions=[[]]),
        changed(channels=[7]), changed(versions=[]), changed(versions=changed()["versions"][::-1]),
        changed(channels=changed()["channels"] * 2),
        version(version="con"), version(sequence=1 << 63), version(manifest_digest="ab"), version(pinned=1),
        version(manifest_digest="A" * 64), version(labels=["v1"]), version(labels=["a", "a"]), version(labels="a"),
        version(labels=[f"l{number}" for number in range(17)]), version(note="\x1b[2J"), version(note="x" * 1001),
        version(parent="a/b"), version(published=None), [], None, "x",
        changed(channels=[{"channel": "live", "version": "v9", "since": 1}]),
        changed(channels=[{"channel": "Live", "version": "v1", "since": 1}]),
        changed(channels=[{"channel": "live", "version": "v1", "since": 1, "history": [{"version": "x", "since": 1}]}]),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(value: Any) -> None:
    assert Catalogue.from_dict(changed()).find("l") is not None
    assert Catalogue.from_dict(version()).newest is not None
    with pytest.raises(FormatError):
        Catalogue.from_dict(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"format":1,"format":1,"image":"a","sequence":0,"versions":[],"channels":[]}',
        b'{"format":1,"image":"a","sequence":NaN,"versions":[],"channels":[]}',
        b'{"format":1,"image":"a","sequence":1e3,"versions":[],"channels":[]}',
        b'{"format":1,"image":"a","sequence":' + b"9" * 5000 + b',"versions":[],"channels":[]}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b" " * (MAX_CATALOGUE + 1),
        b"\xff",
    ],
)
def test_hostile_bytes_are_refused_soon(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(FormatError):
        Catalogue.from_bytes(data)
    assert time.process_time() - started < 2


def test_many_equal_names_are_refused_soon() -> None:
    rows = [{**entry(1).to_dict(), "sequence": number} for number in range(1, 10_001)]
    started = time.process_time()
    with pytest.raises(FormatError, match="each name once"):
        Catalogue.from_dict({"format": 1, "image": "a", "sequence": 10_000, "versions": rows})
    assert time.process_time() - started < 2


def test_channels_go_on_and_back() -> None:
    made = catalogue()
    for day, name in enumerate(["v1", "v2", "v2", "v4", "v3"]):
        made = made.pointed("live", name, day)
    assert made.channel("live") == Channel("live", "v3", 4, (Step("v4", 3), Step("v2", 1), Step("v1", 0)))
    back = made.rolled_back("live", 9).rolled_back("live", 10)
    assert back.channel("live") == Channel("live", "v2", 10, (Step("v1", 0),))
    assert back.rolled_back("live", 11).channels_of("v1") == ("live",)
    with pytest.raises(TargetRefused, match="nothing to roll back to"):
        back.rolled_back("live", 11).rolled_back("live", 12)
    with pytest.raises(NotFound, match="live"):
        made.rolled_back("pilot", 1)
    assert made.without_channel("live").channels == ()


def test_a_channel_remembers_so_much() -> None:
    made = catalogue(20)
    for number in range(1, 21):
        made = made.pointed("live", f"v{number}", number)
    assert [step.version for step in made.channel("live").history] == [f"v{19 - back}" for back in range(MAX_HISTORY)]


def test_labels_move_and_pins_hold() -> None:
    made = catalogue().annotated("v1", labels=["gold", "a"], note="first\nsecond", pinned=True)
    moved = made.annotated("v2", labels=["gold"])
    assert (moved.entry("gold").version, moved.entry("v1").labels) == ("v2", ("a",))
    assert moved.entry("v1").note == "first\nsecond"
    assert moved.annotated("a", unlabel=["a"], note="", pinned=False).entry("v1") == entry(1)
    with pytest.raises(TargetRefused, match="is a version"):
        made.annotated("v1", labels=["v2"])
    with pytest.raises(NotFound, match="label b"):
        made.annotated("v1", unlabel=["b"])
    with pytest.raises(FormatError, match="printable"):
        made.annotated("v1", note="x" * (MAX_NOTE + 1))
    with pytest.raises(TargetRefused, match="pinned"):
        made.without(["v1"])
    with pytest.raises(FormatError, match="each name once"):
        made.with_version(entry(7, version="gold"))


def test_what_may_be_removed() -> None:
    made = catalogue().pointed("live", "v2", 1).pointed("live", "v3", 2)
    for name, why in (("v3", "channel live"), ("v6", "newest")):
        with pytest.raises(TargetRefused, match=why):
            made.without(["v1", name])
    with pytest.raises(NotFound, match="v9"):
        made.without(["v9"])
    less = made.without(["v1", "v2"])
    assert [one.version for one in less.versions] == ["v3", "v4", "v5", "v6"]
    assert less.channel("live").history == ()
    assert (less.sequence, less.entry("v3").parent) == (6, "v2")


def test_what_a_policy_gives_up() -> None:
    made = catalogue(10).annotated("v2", pinned=True).pointed("live", "v3", 1).pointed("live", "v4", 2)

    def given_up(**policy: Any) -> list[int]:
        return [one.sequence for one in made.disposable(**{"last": None, "since": None, **policy})]

    assert given_up() == []
    assert given_up(last=3) == [1, 5, 6, 7]
    assert given_up(last=100) == []
    assert given_up(since=7 * 86_400) == [1, 5, 6]
    assert given_up(last=1, since=8 * 86_400) == [1, 5, 6, 7]
    assert given_up(since=1 << 40) == [1, 5, 6, 7, 8, 9]


def test_the_example_of_the_format() -> None:
    page = (Path(trimtransfer.__file__).parent / "FORMAT.md").read_text()
    example = page.split("\n## Catalogue\n")[1].split("```")[1].strip().replace("\n", "")
    made = Catalogue.from_bytes(example.encode())
    assert made.to_bytes().decode() == example + "\n"
    assert (made.find("gold"), made.channel("live").version) == (made.versions[0], "1")
