"""The catalogue of an image: its retained versions, with labels, notes and pins, and the channels that point to them.

A pure value: what carries it - a file of the repository, signed metadata - is not its business. Every change returns a
new value. FORMAT.md, "Catalogue".

Invariant: versions ascend by sequence number; a name stands for one thing: a version or a label; channels, and what
they can roll back to, name versions that are there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from trimtransfer.chunk import Bytes
from trimtransfer.errors import FormatError, NotFound, TargetRefused
from trimtransfer.fields import MAX_NUMBER, Fields
from trimtransfer.names import check_name

FORMAT: Final = 1
MAX_CATALOGUE: Final = 4_000_000
"""Longest catalogue in bytes: it stays below what signed metadata may take (5 MB) and what caches keep."""
MAX_VERSIONS: Final = 10_000
MAX_LABELS: Final = 16
"""Most labels of a version."""
MAX_CHANNELS: Final = 32
MAX_HISTORY: Final = 5
"""Steps that a channel can roll back; the versions that it would come to are retained."""
MAX_NOTE: Final = 1000
"""Longest note in characters."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A retained version: ``sequence`` number, ``parent`` ("": none; it may be gone), digest and length of its
    manifest, when it was ``published`` in seconds since 1970; labels, note, and whether it is ``pinned``: kept whatever
    the retention policy says."""

    version: str
    sequence: int
    parent: str
    manifest_digest: bytes
    manifest_length: int
    published: int
    labels: tuple[str, ...] = ()
    note: str = ""
    pinned: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is empty is left out."""
        fields: dict[str, Any] = {"version": self.version, "sequence": self.sequence}
        if self.parent:
            fields["parent"] = self.parent
        fields["manifest_digest"] = self.manifest_digest.hex()
        fields["manifest_length"] = self.manifest_length
        fields["published"] = self.published
        return fields | self.remarks()

    def remarks(self) -> dict[str, Any]:
        """Return labels, note and pin as plain values for JSON; what is empty is left out."""
        found = {"labels": list(self.labels), "note": self.note, "pinned": self.pinned}
        return {name: value for name, value in found.items() if value}

    @classmethod
    def from_fields(cls, fields: Fields) -> Entry:
        """Parse one; ``FormatError``."""
        parent = fields.text("parent", "")
        bare = cls(
            check_name("version", fields.text("version")),
            fields.number("sequence"),
            check_name("version", parent) if parent else "",
            fields.digest("manifest_digest"),
            fields.number("manifest_length"),
            fields.number("published"),
        )
        return bare.remarked(fields)

    def remarked(self, fields: Fields) -> Entry:
        """Return it with the labels, the note and the pin of some fields; ``FormatError``."""
        labels = tuple(check_name("label", label) for label in fields.texts("labels", MAX_LABELS))
        return replace(self, labels=labels, note=check_note(fields.text("note", "")), pinned=fields.flag("pinned"))


@dataclass(frozen=True, slots=True)
class Step:
    """What a channel pointed to, and since when, in seconds since 1970."""

    version: str
    since: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"version": self.version, "since": self.since}

    @classmethod
    def from_fields(cls, fields: Fields) -> Step:
        """Parse one; ``FormatError``."""
        return cls(check_name("version", fields.text("version")), fields.number("since"))


@dataclass(frozen=True, slots=True)
class Channel:
    """A name that clients follow, and the version that it stands for ``since`` then; ``history``: what it can roll back
    to, the latest first."""

    name: str
    version: str
    since: int
    history: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        fields: dict[str, Any] = {"channel": self.name, "version": self.version, "since": self.since}
        return {**fields, "history": [step.to_dict() for step in self.history]} if self.history else fields

    @classmethod
    def from_fields(cls, fields: Fields) -> Channel:
        """Parse one; ``FormatError``."""
        history = tuple(Step.from_fields(step) for step in fields.objects("history", MAX_HISTORY))
        now = Step.from_fields(fields)
        return cls(check_name("channel", fields.text("channel")), now.version, now.since, history)

    def pointed(self, version: str, now: int) -> Channel:
        """Return the channel once it stands for another version; where it stands for that already, itself."""
        if version == self.version:
            return self
        steps = (Step(self.version, self.since), *(step for step in self.history if step.version != version))
        return Channel(self.name, version, now, steps[:MAX_HISTORY])

    def rolled_back(self, now: int) -> Channel:
        """Return the channel as it stood before; ``TargetRefused`` if it never stood for anything else."""
        if not self.history:
            raise TargetRefused(f"channel {self.name}", "there is nothing to roll back to; name a version instead")
        return Channel(self.name, self.history[0].version, now, self.history[1:])


@dataclass(frozen=True)
class Catalogue:
    """What is kept of an image. ``sequence`` is the highest number that any version had, one that is gone included."""

    image: str
    sequence: int = 0
    versions: tuple[Entry, ...] = ()
    channels: tuple[Channel, ...] = ()

    def __post_init__(self) -> None:
        """Check that everything fits together; ``FormatError``."""
        check_name("image", self.image)
        if len(self.versions) > MAX_VERSIONS or len(self.channels) > MAX_CHANNELS:
            expected = f"at most {MAX_VERSIONS} versions and {MAX_CHANNELS} channels"
            raise FormatError("catalogue", "numbers", expected, (len(self.versions), len(self.channels)))
        numbers = [*(entry.sequence for entry in self.versions), self.sequence + 1]
        if any(one >= other for one, other in pairwise(numbers)):
            raise FormatError("catalogue", "versions", f"ascending sequence numbers up to {self.sequence}", "others")
        names = [entry.version for entry in self.versions]
        names += [label for entry in self.versions for label in entry.labels]
        _check_once("versions and labels", names)
        _check_once("channels", [channel.name for channel in self.channels])
        for channel in self.channels:
            for version in (channel.version, *(step.version for step in channel.history)):
                if version not in self._entries:
                    raise FormatError("catalogue", f"channel {channel.name}", "versions that are there", version)
        if any(len(entry.labels) > MAX_LABELS for entry in self.versions):
            raise FormatError("catalogue", "labels", f"at most {MAX_LABELS} of a version", "more")

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return {entry.version: entry for entry in self.versions}

    @cached_property
    def _labels(self) -> dict[str, Entry]:
        return {label: entry for entry in self.versions for label in entry.labels}

    # ---- as bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "format": FORMAT,
            "image": self.image,
            "sequence": self.sequence,
            "versions": [entry.to_dict() for entry in self.versions],
            "channels": [channel.to_dict() for channel in self.channels],
        }

    @classmethod
    def from_dict(cls, value: object) -> Catalogue:
        """Parse plain values; unknown fields are ignored.

        Raises:
            FormatError: anything but a valid catalogue; one of a newer format asks to upgrade.
        """
        return cls._from_fields(Fields("catalogue", value))

    @classmethod
    def _from_fields(cls, fields: Fields) -> Catalogue:
        fields.format(FORMAT)
        return cls(
            check_name("image", fields.text("image")),
            fields.number("sequence"),
            tuple(Entry.from_fields(entry) for entry in fields.objects("versions", MAX_VERSIONS)),
            tuple(Channel.from_fields(channel) for channel in fields.objects("channels", MAX_CHANNELS)),
        )

    def remarks(self) -> dict[str, Any]:
        """Return what it says beyond the versions themselves, for JSON beside another list of these."""
        said = {entry.version: entry.remarks() for entry in self.versions}
        return {
            "format": FORMAT,
            "sequence": self.sequence,
            "versions": {version: one for version, one in said.items() if one},
            "channels": [channel.to_dict() for channel in self.channels],
        }

    @classmethod
    def with_remarks(cls, image: str, entries: Iterable[Entry], value: object) -> Catalogue:
        """Return the catalogue of versions of which nothing is said yet, and of what :meth:`remarks` told.

        Raises:
            FormatError: remarks that are none, or on versions that are not there.
        """
        fields = Fields("remarks", value)
        fields.format(FORMAT)
        said = fields.mapping("versions", MAX_VERSIONS)
        known = {entry.version: entry for entry in entries}
        for version, one in said.items():
            if version not in known:
                raise FormatError("remarks", "versions", "versions that are there", version[:80])
            known[version] = known[version].remarked(one)
        channels = tuple(Channel.from_fields(channel) for channel in fields.objects("channels", MAX_CHANNELS))
        return cls(image, fields.number("sequence"), tuple(known.values()), channels)

    def to_bytes(self) -> bytes:
        """Return the catalogue's bytes; ``FormatError`` if they would be too many."""
        data = json.dumps(self.to_dict(), separators=(",", ":")).encode("ascii") + b"\n"
        if len(data) > MAX_CATALOGUE:
            expected = f"at most {MAX_CATALOGUE:,} bytes: remove versions, or shorten notes"
            raise FormatError("catalogue", 0, expected, f"{len(data):,}")
        return data

    @classmethod
    def from_bytes(cls, data: Bytes) -> Catalogue:
        """Parse the bytes of a catalogue; raises as :meth:`from_dict`."""
        return cls._from_fields(Fields.parse("catalogue", data, MAX_CATALOGUE))

    # ---- what there is

    @property
    def newest(self) -> Entry | None:
        """The version published last, of those that are there."""
        return self.versions[-1] if self.versions else None

    def find(self, name: str) -> Entry | None:
        """Return the version of this name, else the one with this label, None if there is neither."""
        return self._entries.get(name) or self._labels.get(name)

    def entry(self, name: str) -> Entry:
        """Return the version of this name or label; ``NotFound``."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"version or label {name} of image {self.image}", "its catalogue")
        return found

    def channel(self, name: str) -> Channel:
        """Return a channel; ``NotFound`` names those that there are."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        there = ", ".join(channel.name for channel in self.channels) or "none"
        raise NotFound(f"channel {name} of image {self.image}", f"channels: {there}")

    def channels_of(self, version: str) -> tuple[str, ...]:
        """Return the names of the channels that stand for a version."""
        return tuple(channel.name for channel in self.channels if channel.version == version)

    def reachable(self) -> frozenset[str]:
        """Return the versions that a channel stands for, or could roll back to."""
        steps = (step.version for channel in self.channels for step in channel.history)
        return frozenset((*(channel.version for channel in self.channels), *steps))

    def disposable(self, *, last: int | None, since: int | None) -> tuple[Entry, ...]:
        """Return the versions that a policy gives up: not among the ``last`` so many, not published at or after
        ``since`` (seconds since 1970; None: no such rule), not pinned, not the newest, and none that a channel stands
        for or could roll back to. Without any rule nothing is given up.
        """
        if last is None and since is None:
            return ()
        kept = {entry.version for entry in self.versions[len(self.versions) - max(1, last or 0) :]} | self.reachable()
        return tuple(
            entry
            for entry in self.versions
            if entry.version not in kept and not entry.pinned and (since is None or entry.published < since)
        )

    # ---- changes

    def with_version(self, entry: Entry) -> Catalogue:
        """Return it with one more version, in its place by sequence number; ``FormatError`` if that is taken."""
        versions = tuple(sorted((*self.versions, entry), key=lambda one: one.sequence))
        return replace(self, sequence=max(self.sequence, entry.sequence), versions=versions)

    def without(self, versions: Iterable[str]) -> Catalogue:
        """Return it without some versions; channels cannot roll back to them any more.

        Raises:
            TargetRefused: a channel stands for one, one is pinned, or is the newest.
            NotFound: one is not there.
        """
        gone = frozenset(versions)
        for name in sorted(gone):
            self._check_removable(name)
        channels = tuple(
            replace(channel, history=tuple(step for step in channel.history if step.version not in gone))
            for channel in self.channels
        )
        return replace(
            self, versions=tuple(entry for entry in self.versions if entry.version not in gone), channels=channels
        )

    def _check_removable(self, name: str) -> None:
        what = f"{self.image} {name}"
        if name not in self._entries:
            raise NotFound(f"version {name} of image {self.image}", "its catalogue")
        if self._entries[name].pinned:
            raise TargetRefused(what, "is pinned; unpin it first")
        if self.channels_of(name):
            named = ", ".join(self.channels_of(name))
            raise TargetRefused(what, f"is what the channel {named} stands for; point that to another version first")
        if self.newest is self._entries[name]:
            raise TargetRefused(what, "is the newest version, which clients without a channel take; publish another")

    def annotated(
        self,
        version: str,
        *,
        labels: Sequence[str] = (),
        unlabel: Sequence[str] = (),
        note: str | None = None,
        pinned: bool | None = None,
    ) -> Catalogue:
        """Return it with other remarks on a version: more ``labels`` (each is taken from whoever has it), fewer,
        another ``note``, pinned or not.

        Raises:
            NotFound: no such version, or it has no such label.
            TargetRefused: a label that is a version's name.
            FormatError: not a label; a note that is too long or cannot be shown; too many labels.
        """
        target = self.entry(version)
        for label in (*labels, *unlabel):
            if check_name("label", label) in self._entries:
                raise TargetRefused(f"label {label}", f"is a version of {self.image} itself")
        for label in unlabel:
            if label not in target.labels:
                raise NotFound(f"label {label} of {self.image} {target.version}", "its catalogue")
        moved = {*labels, *unlabel}
        entries = [
            replace(entry, labels=tuple(label for label in entry.labels if label not in moved))
            for entry in self.versions
        ]
        at = self.versions.index(target)
        entries[at] = replace(
            entries[at],
            labels=tuple(sorted({*entries[at].labels, *labels})),
            note=entries[at].note if note is None else check_note(note),
            pinned=entries[at].pinned if pinned is None else pinned,
        )
        return replace(self, versions=tuple(entries))

    def pointed(self, channel: str, version: str, now: int) -> Catalogue:
        """Return it with a channel, made where there is none, that stands for a version (by name or label) from now on.

        Raises:
            NotFound: no such version. FormatError: not a name; too many channels.
        """
        target = self.entry(version).version
        new = Channel(check_name("channel", channel), target, now)
        known = {one.name: one for one in self.channels}
        known[channel] = known[channel].pointed(target, now) if channel in known else new
        return replace(self, channels=tuple(known[name] for name in sorted(known)))

    def rolled_back(self, channel: str, now: int) -> Catalogue:
        """Return it with a channel that stands for what it stood for before.

        Raises:
            NotFound: no such channel. TargetRefused: it never stood for anything else that is still there.
        """
        back = self.channel(channel).rolled_back(now)
        return replace(self, channels=tuple(back if one.name == channel else one for one in self.channels))

    def without_channel(self, channel: str) -> Catalogue:
        """Return it without a channel; ``NotFound``."""
        gone = self.channel(channel)
        return replace(self, channels=tuple(one for one in self.channels if one is not gone))


def check_note(note: str) -> str:
    """Return a note as it is; ``FormatError`` if it is too long, or has characters that a terminal would obey."""
    if len(note) > MAX_NOTE or not all(line.isprintable() for line in note.split("\n")):
        expected = f"at most {MAX_NOTE} printable characters and line feeds"
        raise FormatError("note", 0, expected, repr(note)[:80])
    return note


def check_published(created: int) -> int:
    """Return a time as a catalogue can hold it: seconds since 1970, no later than a number can tell."""
    return min(max(created, 0), MAX_NUMBER)


def _check_once(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise FormatError("catalogue", what, "each name once", twice)
