"""What is taken out of a unit's bytes by looking into compressed files, and the record of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.recompress import gzip_check
from trimtransfer.repository.toolfinder import Member, Proven, ToolFinder, makes
from trimtransfer.tool import Kind, Tool, Zstd
from trimtransfer.unit import MAX_CONTENT, MAX_CONTENT_JOBS, Span
from trimtransfer.wrapped import Slice, Unwrapped, Unwrapping


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """What is taken out of a unit's bytes from ``start`` to ``end``: a slice; a member whole, whose deflate stream
    begins at ``body``, ``zipped`` if it is an entry of a zip file; made by ``compressor``, if that is known. Or what a
    tool made of a ``member``, behind the first ``skip`` bytes; a certain ``tool``, of jobs;
    ``more`` of the same if a take before has them."""

    start: int
    end: int
    compressor: bytes
    slice: Slice | None = None
    body: int = 0
    zipped: bool = False
    member: Member | None = None
    skip: int = 0
    tool: Tool | None = None
    more: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """How a unit's bytes are unwrapped, and what of the base resembles the content: spans of the bytes of its runs;
    ``large`` if it has jobs."""

    takes: tuple[Take, ...]
    runs: NDArray[np.void]
    base: Bytes
    spans: tuple[Span, ...]
    tools: ToolFinder

    @property
    def large(self) -> bool:
        """Whether it has jobs of large frames."""
        return any(take.tool for take in self.takes)


@dataclass(frozen=True, slots=True)
class UnwrappedUnit:
    """A unit's bytes as content and record; the ``tools`` that the record names, the ``seconds`` that these take on a
    core, and what they are proven to make."""

    unwrapped: Unwrapped
    tools: frozenset[Tool]
    seconds: float
    proven: Proven


def unwrap_unit(target: Bytes, inside: Inside) -> UnwrappedUnit | None:
    """Return a unit's bytes as content and record; None if nothing can be taken out of them. Only what tools make is
    proven yet."""
    most = MAX_CONTENT_JOBS if inside.large else MAX_CONTENT
    opened, proven = Unwrapping(memoryview(target).cast("B"), limit=most), Proven()
    tools, seconds = set[Tool](), 0.0
    last: Member | None = None
    for take in inside.takes:
        if take.more:
            if take.member is last:
                opened.take_more(take.start, take.end, skip=take.skip)
        elif take.member is not None:
            tool, last = _proven_tool(take, take.member, inside.tools), None
            if tool and opened.take_made(take.start, take.end, take.member.content, tool, skip=take.skip):
                proven.add(tool, take.member)
                tools.add(tool)
                seconds += tool.seconds(len(take.member.content))
                last = take.member
        elif take.slice is not None:
            opened.take_slice(take.start, take.end, take.slice, take.compressor)
        elif opened.copy_to(take.start):
            opened.likely = take.compressor or opened.likely
            opened.take(take.body, None if take.zipped else gzip_check, stop=take.end)
    made = opened.finish()
    if inside.large and not any(tool.option & Zstd.JOBS for tool in tools if tool.kind is not Kind.LZMA2):
        return None  # who knows no jobs must not get their spans
    return None if made is None else UnwrappedUnit(made, frozenset(tools), seconds, proven)


def _proven_tool(take: Take, member: Member, finder: ToolFinder) -> Tool | None:
    if take.tool is None:
        return finder.find(member)
    return take.tool if makes(take.tool, member) else None
