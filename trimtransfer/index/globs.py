"""Include and exclude patterns for paths.

A pattern is matched against the full path, segment by segment (segments are what ``/`` separates):

- ``*`` stands for any characters within a segment, ``?`` for one, ``[abc]`` and ``[!abc]`` for one of a set;
- a segment ``**`` stands for any number of segments, also none;
- a pattern that does not begin with ``/`` may begin at any depth: ``*.so`` is ``/**/*.so``;
- a pattern that matches a directory matches everything in it;
- upper and lower case differ; a name that begins with a dot is a name like any other.

A path is chosen if no exclude pattern matches it, and if an include pattern does or there is none: exclude wins.
Matching takes time proportional to pattern times path, whatever the pattern.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

_ANY_DEPTH: Final = b"**"
MAX_PATTERN: Final = 4096
"""Longest pattern in bytes: as long as a path."""

_Pattern: TypeAlias = tuple[bytes, ...]
_Places: TypeAlias = frozenset[int]


def parse_pattern(pattern: str) -> _Pattern:
    """Return a pattern's segments. Raises ``ValueError`` if it is empty or longer than :data:`MAX_PATTERN`."""
    raw = os.fsencode(pattern)
    if not raw.strip(b"/") or len(raw) > MAX_PATTERN or b"\0" in raw:
        raise ValueError(f"pattern {pattern!r}: 1 to {MAX_PATTERN} bytes and not only '/' expected")
    segments = tuple(segment for segment in raw.split(b"/") if segment)
    return segments if raw.startswith(b"/") else (_ANY_DEPTH, *segments)


def _settle(pattern: _Pattern, places: set[int]) -> _Places:
    """Add the places that are reached without reading a segment: ``**`` may stand for none."""
    for place in sorted(places):
        while place < len(pattern) and pattern[place] == _ANY_DEPTH:
            place += 1
            places.add(place)
    return frozenset(places)


def _advance(pattern: _Pattern, places: _Places, name: bytes) -> _Places:
    """Return the places in ``pattern`` where one may be after reading one more segment."""
    after = set()
    for place in places:
        if place == len(pattern):
            continue
        if pattern[place] == _ANY_DEPTH:
            after.add(place)
        elif fnmatchcase(name, pattern[place]):
            after.add(place + 1)
    return _settle(pattern, after)


@dataclass(frozen=True, slots=True)
class Scope:
    """What the patterns say about one directory: how far each has come, and whether everything here is included."""

    chooser: PathChooser
    include: tuple[_Places, ...]
    exclude: tuple[_Places, ...]
    included: bool

    def chooses(self, name: bytes) -> bool:
        """Tell whether the file ``name`` in this directory is chosen."""
        entered = self.enter(name)
        return entered is not None and entered.included

    def enter(self, name: bytes) -> Scope | None:
        """Return the scope of the entry ``name``, or None if it is excluded with all that may be in it."""
        chooser = self.chooser
        if not (self.include or self.exclude):
            return self
        exclude = _advance_all(chooser.exclude, self.exclude, name)
        if _any_complete(chooser.exclude, exclude):
            return None
        if self.included:
            return Scope(chooser, (), exclude, included=True)
        include = _advance_all(chooser.include, self.include, name)
        return Scope(chooser, include, exclude, included=_any_complete(chooser.include, include))


class PathChooser:
    """Include and exclude patterns, parsed. Raises ``ValueError`` for a pattern that is none."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self.include = tuple(parse_pattern(pattern) for pattern in include)
        self.exclude = tuple(parse_pattern(pattern) for pattern in exclude)

    def scope(self, path: bytes) -> Scope | None:
        """Return the scope of the directory (or file) with this absolute path, or None if it is excluded."""
        start = frozenset((0,))
        scope: Scope | None = Scope(
            self,
            tuple(_settle(pattern, set(start)) for pattern in self.include),
            tuple(_settle(pattern, set(start)) for pattern in self.exclude),
            included=not self.include,
        )
        for name in path.replace(os.sep.encode(), b"/").split(b"/"):
            if name and scope is not None:
                scope = scope.enter(name)
        return scope

    def chooses(self, path: bytes) -> bool:
        """Tell whether the file with this absolute path is chosen."""
        scope = self.scope(path)
        return scope is not None and scope.included


def _advance_all(patterns: tuple[_Pattern, ...], places: tuple[_Places, ...], name: bytes) -> tuple[_Places, ...]:
    return tuple(_advance(pattern, at, name) for pattern, at in zip(patterns, places, strict=True))


def _any_complete(patterns: tuple[_Pattern, ...], places: tuple[_Places, ...]) -> bool:
    return any(len(pattern) in at for pattern, at in zip(patterns, places, strict=True))
