"""Jobs of large zstd frames in deltas: which tool makes them again, what of a unit's bytes they are, how units are cut
beside them, and which of the base's jobs resemble content."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer import systemzstd, zstdjobs
from trimtransfer.errors import FormatError
from trimtransfer.repository.streams import Stream, Streams
from trimtransfer.repository.toolfinder import LEVELS, Member, begins, makes
from trimtransfer.tool import MAX_MEMORY, Kind, Tool, Zstd
from trimtransfer.unit import MAX_CONTEXT, Span

_LOG: Final = logging.getLogger("trimtransfer.repository")
_SAMPLE: Final = 1 << 18
"""Bytes of content of a job by which tools are ruled out."""
_PIECE_OF: Final = 8
"""A job is made if at least one of so many of its bytes are wanted: all are made."""
_CONTENT: Final = 16 << 20
_STORED: Final = 6 << 20
"""Most content, and most bytes, of the jobs of a unit; unless it is one job."""
_BRIDGE: Final = 1 << 20
_RUNS: Final = 2
"""Runs of blocks of a job that are told apart: each needs the job from its start on."""


class Wanted(NamedTuple):
    """Jobs to be made, the bytes from ``begin`` to ``end`` of a stream: as a member, and by which tool."""

    begin: int
    end: int
    member: Member
    tool: Tool


@dataclass(frozen=True, slots=True)
class BaseRun:
    """Blocks ``first`` to ``end`` of a stream by its number, in a job that begins with block ``start``."""

    stream: int
    start: int
    first: int
    end: int

    def skip(self, stream: Stream) -> int:
        """Return the bytes of content of the job before these blocks."""
        return int(stream.contents[self.first] - stream.contents[self.start])

    def reach(self, stream: Stream) -> int:
        """Return how many bytes before the job it may refer to."""
        assert stream.framed is not None
        return min(int(stream.contents[self.start]), 1 << stream.framed.window, MAX_CONTEXT)


class Jobs:
    """The jobs of a target's streams. Not for several threads at a time."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._tools = dict[int, Tool | None]()

    def tool(self, number: int) -> Tool | None:
        """Return the tool that makes jobs of a stream which do not begin it; None if there is none, or it has none."""
        if number not in self._tools:
            stream = self._streams[number]
            self._tools[number] = None if stream.jobs is None else self._found(stream, stream.jobs)
        return self._tools[number]

    def take(self, number: int, low: int, high: int, room: int) -> Wanted | None:
        """Return the jobs that make most of the bytes ``low`` to ``high`` of a stream with at most ``room`` bytes of
        content; None if there are none, or not enough is wanted of them."""
        stream, tool = self._streams[number], self.tool(number)
        if tool is None or stream.jobs is None:
            return None
        first, last = _wanted(stream.bits[stream.jobs] // 8, low, high)
        contents = stream.contents[stream.jobs]
        while last > first and int(contents[last]) - max(0, int(contents[first]) - tool.before) > room:
            last -= 1
        if first >= last:
            return None
        begin, end = (int(stream.bits[stream.jobs[job]]) // 8 for job in (first, last))
        member, tool = self._member(stream, first, last, tool)
        return Wanted(begin, end, member, tool)

    def rows(self, pieces: Sequence[tuple[int, int, int, int]]) -> Iterator[tuple[int, int]]:
        """Yield first row and end of what should be a unit each, in order, of rows ``(row, stream, low, high)``, parts
        of streams."""
        known = [(row, *found) for row, *place in pieces if (found := self._unit_of(*place)) is not None]
        for _, group in groupby(enumerate(known), key=lambda one: (one[1][0] - one[0], *one[1][1:])):
            rows = [row for _, (row, _, _) in group]
            yield rows[0], rows[-1] + 1

    def _unit_of(self, number: int, low: int, high: int) -> tuple[int, int] | None:
        """Return the stream, and the number of the unit among its units, to which bytes of it belong."""
        stream = self._streams[number]
        if stream.jobs is None or self.tool(number) is None:
            return None
        starts = stream.bits[stream.jobs] // 8
        job = int(np.searchsorted(starts, (low + high) // 2, side="right")) - 1
        units = _units(starts, stream.contents[stream.jobs])
        return number, int(np.searchsorted(units, min(max(job, 0), len(starts) - 2), side="right"))

    # ---- the tool

    def _found(self, stream: Stream, jobs: NDArray[np.int64]) -> Tool | None:
        """Find it by the second job, or by the first of one."""
        assert stream.framed is not None
        first = min(1, len(jobs) - 2)
        for tool in _candidates(stream.framed.window):
            member, way = self._member(stream, first, first + 1, tool)
            if way.memory(len(member.content)) > MAX_MEMORY:
                continue
            try:
                if begins(way, member, _SAMPLE, skip=0) and makes(way, member):
                    return tool
            except FormatError:
                continue
        _LOG.info("a zstd frame of %d jobs is made by nothing that is known here", len(jobs) - 1)
        return None

    def _member(self, stream: Stream, first: int, last: int, tool: Tool) -> tuple[Member, Tool]:
        """Return some jobs with the content before them, and how a tool makes these."""
        assert stream.jobs is not None
        assert stream.framed is not None
        begin, end = (int(block) for block in stream.jobs[[first, last]])
        before = tool.before if first else 0
        ends = stream.whole and end == len(stream.types)
        stored = self._streams.read(stream, int(stream.bits[begin]) // 8, int(stream.bits[end]) // 8)
        content = self._streams.content(stream, int(stream.contents[begin]) - before, int(stream.contents[end]))
        way = replace(tool, window=tool.window if first else 0, option=Zstd.JOBS | Zstd.ENDS * ends)
        return Member(stream.framed, stored, content), way


def _candidates(window: int) -> Iterator[Tool]:
    """Yield tools of frames with such a window."""
    kinds = (Kind.SYSTEM_ZSTD, Kind.ZSTD) if systemzstd.is_there() else (Kind.ZSTD,)
    for level in LEVELS:
        if zstdjobs.window_of(level) == window and zstdjobs.overlap_of(level) <= zstdjobs.MAX_OVERLAP:
            yield from (Tool(kind, level, zstdjobs.overlap_of(level), Zstd.JOBS) for kind in kinds)


def _wanted(starts: NDArray[np.int64], low: int, high: int) -> tuple[int, int]:
    """Return the first job and the end of those of which enough is wanted; ``starts`` and the end of the last one."""
    wanted = np.minimum(high, starts[1:]) - np.maximum(low, starts[:-1])
    enough = np.flatnonzero(wanted * _PIECE_OF >= np.maximum(1, np.diff(starts)))
    return (int(enough[0]), int(enough[-1]) + 1) if len(enough) else (0, 0)


def _units(starts: NDArray[np.int64], contents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return with which jobs units begin, but for the first."""
    found, first = list[int](), 0
    for job in range(1, len(starts) - 1):
        if contents[job + 1] - contents[first] > _CONTENT or starts[job + 1] - starts[first] > _STORED:
            found.append(job)
            first = job
    return np.array(found, dtype=np.int64)


def runs_of_jobs(number: int, stream: Stream, blocks: NDArray[np.int64]) -> Iterator[BaseRun]:
    """Yield runs of blocks of a stream's jobs that make some blocks well, those between two that are near, too."""
    assert stream.jobs is not None
    blocks = blocks[blocks < stream.jobs[-1]]
    jobs = np.searchsorted(stream.jobs, blocks, side="right") - 1
    for job in np.unique(jobs).tolist():
        of_job = blocks[jobs == job]
        gaps = stream.contents[of_job[1:]] - stream.contents[of_job[:-1] + 1]
        runs = np.split(of_job, np.flatnonzero(gaps > _BRIDGE) + 1)
        for run in runs if len(runs) <= _RUNS else [of_job]:
            yield BaseRun(number, int(stream.jobs[job]), int(run[0]), int(run[-1]) + 1)


def job_span(streams: Streams, run: BaseRun, span: Span, *, known: int) -> Span | None:
    """Return a span of blocks of a job with what it needs of what lies before: its last ``known`` bytes were given by
    the span before. None if they cannot be decoded by themselves."""
    stream = streams[run.stream]
    start, reach = int(stream.contents[run.start]), run.reach(stream)
    low, high = (int(stream.bits[block]) // 8 for block in (run.start, run.end))
    try:
        found, before = zstdjobs.referred(
            streams.read(stream, low, high), span.blocks, span.skip + span.size, skip=span.skip, reach=reach
        )
    except FormatError as error:
        _LOG.info("blocks of a zstd frame are no job: %s", error)
        return None
    known = min(known, before)
    first, end = reach - before, reach - known
    content = np.frombuffer(streams.content(stream, start - before, start - known), np.uint8)
    context, lacking = np.zeros(len(content), np.uint8), found[found < end] - first
    context[lacking] = content[lacking]
    return replace(span, unknown=known, context=context.tobytes())
