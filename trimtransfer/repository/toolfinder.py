"""Which tool makes the very bytes of a compressed member again: found by doing it.

What most makers use is tried first, then what was right last; kinds of members that nothing makes again are soon left
alone, so the search costs little more than the proof.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from trimtransfer import systemzstd
from trimtransfer.chunk import object_digest
from trimtransfer.errors import FormatError
from trimtransfer.framed import Framed
from trimtransfer.recompress import Compress
from trimtransfer.tool import FITTING, MAX_MEMORY, TREES, Kind, Tool, Zstd, least_dictionary

_PROFILES: Final = (6, 8, 7, 3, 5, 4, 2, 1, 0)
LEVELS: Final = (3, 19, 1, 9, 15, 6, 18, 12, 10, 2, 5, 4, 7, 8, 11, 13, 14, 16, 17, 22, 20)
"""In the order in which they are common: kernels' modules by zstd's default, packages by 19, boot images by 1, 9, 15 or
19, squashfs by 15."""
_SAMPLE: Final = 1 << 18
"""Bytes of content by which a tool is ruled out before it compresses all."""
_MISSES: Final = 6
"""Members of a sort that nothing makes: from then on only tools are tried that were right about others of it; where
there are none, it is left alone."""
_ALLOWANCE: Final = 60.0
"""Seconds, as :meth:`Tool.seconds` has them, that may be spent on tools that turn out to be wrong. Then only those are
tried that have been right."""
_SMALL: Final = 1 << 17
"""Bytes up to which content is one block of zstd, so that releases that divide it otherwise do not differ."""
Sort: TypeAlias = tuple[Kind, int, int, bool]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """What a tool made: its bytes, what these contain, and what tells the sort of tool."""

    framed: Framed
    stored: bytes
    content: bytes

    @property
    def sort(self) -> Sort:
        """What has this in common is mostly made by the same tool."""
        return sort_of(self.framed, len(self.content))


def sort_of(framed: Framed, size: int) -> Sort:
    """Return what a member has in common with others that the same tool made; it has ``size`` bytes of content."""
    return framed.kind, framed.option, framed.window if framed.kind is Kind.LZMA2 else 0, size > _SMALL


class ToolFinder:
    """Finds tools and remembers which were right. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._right: dict[Sort, Counter[Tool]] = {}
        self._misses = Counter[Sort]()
        self._spent = 0.0

    def hopeless(self, sort: Sort) -> bool:
        """Tell whether members of a sort were tried in vain often enough."""
        with self._lock:
            return self._misses[sort] >= _MISSES and not self._right.get(sort)

    def find(self, member: Member) -> Tool | None:
        """Return the tool that makes a member's very bytes of its content; None if none is found."""
        sort = member.sort
        if self.hopeless(sort):
            return None
        with self._lock:
            known = [tool for tool, _ in self._right.get(sort, Counter()).most_common()]
            others = self._misses[sort] < _MISSES and self._spent < _ALLOWANCE
        for tool in _candidates(member, known, others=others):
            if tool.memory(len(member.content)) > MAX_MEMORY:
                continue
            if makes(tool, member):
                with self._lock:
                    self._right.setdefault(sort, Counter())[tool] += 1
                return tool
            with self._lock:
                self._spent += tool.seconds(min(len(member.content), _SAMPLE))
        with self._lock:
            self._misses[sort] += 1
        return None


def _candidates(member: Member, known: list[Tool], *, others: bool) -> Iterator[Tool]:
    """Yield tools that were right before; then ``others``?"""
    likely = {_fitting(tool, member): None for tool in known}
    yield from likely
    if others:
        yield from (tool for tool in _all(member) if tool not in likely)


def _fitting(tool: Tool, member: Member) -> Tool:
    """Return a tool with the dictionary that it takes for another member."""
    if tool.kind is not Kind.LZMA2:
        return tool
    return _lzma2(tool.level, member)


def _all(member: Member) -> Iterator[Tool]:
    if member.framed.kind is Kind.LZMA2:
        yield from (_lzma2(profile, member) for profile in _PROFILES)
        return
    option, large = member.framed.option, len(member.content) > _SMALL
    ways = (Zstd.WORKERS, Zstd.STREAMED, 0) if large else (0,)
    kinds = (Kind.ZSTD, Kind.SYSTEM_ZSTD) if systemzstd.is_there() else (Kind.ZSTD,)
    for level in LEVELS:
        yield from (Tool(kind, level, 0, option | way) for kind in kinds for way in ways)


def _lzma2(profile: int, member: Member) -> Tool:
    """Return a tool whose dictionary, where that does not matter, is no larger than the content needs."""
    framed = member.framed
    fits = profile >= TREES and least_dictionary(len(member.content)) <= framed.window
    return Tool(Kind.LZMA2, profile, FITTING if fits else framed.window, framed.option, framed.props)


def makes(tool: Tool, member: Member) -> bool:
    """Tell whether a tool makes a member's bytes; one that makes others of the first of them is not asked for all."""
    try:
        if len(member.content) > 2 * _SAMPLE and not tool.option & Zstd.JOBS and not begins(tool, member):
            return False
        return tool.compress(member.content) == member.stored
    except FormatError:
        return False


def begins(tool: Tool, member: Member, sample: int = _SAMPLE, *, skip: int = 8) -> bool:
    """Tell whether a tool begins as a member does, by so much content: a look ahead changes only the end of what it
    makes of a sample, and the first ``skip`` bytes are sizes. ``FormatError`` if it makes nothing."""
    head = tool.beginning(member.content, sample)
    return head[skip : len(head) // 2] == member.stored[skip : len(head) // 2]


class Proven:
    """Compresses by what was seen once: whoever has just compressed content need not do it again. For one unit."""

    def __init__(self) -> None:
        self._made: dict[tuple[Tool, bytes], bytes] = {}

    def add(self, tool: Tool, member: Member) -> None:
        """Note that a tool makes a member."""
        self._made[tool, object_digest(member.content)] = member.stored

    @property
    def compress(self) -> Compress:
        """What :meth:`Tool.compress` is."""
        return self._compress

    def _compress(self, tool: Tool, content: bytes | bytearray | memoryview) -> bytes:
        known = self._made.get((tool, object_digest(content)))
        return tool.compress(content) if known is None else known
