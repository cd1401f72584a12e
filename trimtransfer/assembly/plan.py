"""Planning: which source serves which record of the regions at hand, and which bytes of which packs are fetched.

Pure, vectorised over records. A window is some regions' records side by side; planning it takes arrays and returns
arrays, so that 30,000 chunks cost milliseconds. Nothing here is trusted later: whoever executes a plan verifies every
chunk, and a source that turns out wrong only moves its chunks to the fetch list.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import FormatError
from trimtransfer.location import FRAME, Locations, PackRef
from trimtransfer.table import Table

GAP: Final = 16 << 10
"""Neighbours closer than this share a request: a request's headers and round trip cost more than these bytes."""
MAX_RANGE: Final = 4 << 20
WHOLE_SHARE: Final = 0.8
"""A pack of which this share or more is needed is fetched in one piece, as caches like best. With a half, a fresh
client of an image with 50 versions at 15 % churn fetched 1.35 times the live data in 462 requests; so, 1.16 in 628."""
RUN_BYTES: Final = 1 << 20
"""Local copies are made in pieces of about this size."""

UNASSIGNED, ZERO, PLACED, SELF, FETCH, SEEDS = -1, 0, 1, 2, 3, 4
"""Sources of a record: none yet; zeros; right at its place already; another place of the output; a pack; the first seed
(the next ones follow)."""

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The records of some regions, one after the other.

    ``regions`` are the regions' numbers and ``first`` each one's first record (and, last, the number of records);
    ``offsets`` are absolute in the image, in bytes. Arrays of shape (records,), ``digests`` (records, 32).
    """

    regions: Numbers
    first: Numbers
    offsets: Numbers
    lengths: NDArray[np.uint32]
    zero: Mask
    digests: NDArray[np.uint8]
    prefixes: NDArray[np.uint64]

    @classmethod
    def of(cls, regions: Sequence[int], starts: Sequence[int], tables: Sequence[Table]) -> Window:
        """Put tables side by side; ``starts`` are the regions' absolute starts."""
        counts = np.array([len(table) for table in tables], dtype=np.int64)
        return cls(
            np.array(regions, dtype=np.int64),
            np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts))),
            np.concatenate([table.offsets + start for start, table in zip(starts, tables, strict=True)]),
            np.concatenate([table.lengths for table in tables]),
            np.concatenate([table.zero for table in tables]),
            np.concatenate([table.digests for table in tables]),
            np.concatenate([table.prefixes for table in tables]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def region_rows(self, records: Numbers) -> Numbers:
        """Return for each record the row (not the number) of its region."""
        return np.searchsorted(self.first, records, side="right") - 1


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Equal chunks of a window: group g is ``order[starts[g]:starts[g + 1]]``, its lowest record first."""

    order: Numbers
    starts: Numbers

    @classmethod
    def of(cls, window: Window, records: Numbers) -> Groups:
        """Group these records (ascending, chunks only) by digest.

        Sorted by prefix; a group ends where the whole digest differs, so different chunks never share one, whatever
        their prefixes. (Prefixes made to collide may split a group: then its chunk is fetched twice.)
        """
        order = records[np.argsort(window.prefixes[records], kind="stable")]
        digests = window.digests[order]
        begins = np.ones(len(order), dtype=np.bool_)
        begins[1:] = (digests[1:] != digests[:-1]).any(axis=1)
        return cls(order, np.concatenate((np.flatnonzero(begins), [len(order)])).astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def leaders(self) -> Numbers:
        """The first record of each group."""
        return self.order[self.starts[:-1]]

    @property
    def sizes(self) -> Numbers:
        """Records of each group."""
        return np.diff(self.starts)

    def numbers(self, records: int) -> Numbers:
        """Return the group of each of the window's ``records`` records, -1 for those in none."""
        numbers = np.full(records, -1, dtype=np.int64)
        numbers[self.order] = np.repeat(np.arange(len(self), dtype=np.int64), self.sizes)
        return numbers

    def any(self, mask: Mask) -> Mask:
        """Return for each group whether ``mask`` (one per record of the window) holds for a member."""
        if not len(self):
            return np.zeros(0, dtype=np.bool_)
        found: Mask = np.logical_or.reduceat(mask[self.order], self.starts[:-1])
        return found

    def spread(self, values: NDArray[np.int64]) -> Numbers:
        """Return ``values`` (one per group) for each record of ``order``."""
        return np.repeat(values, self.sizes)


def same_place(window: Window, row: int, start: int, old: Table) -> Mask:
    """Return which records of the window's region ``row`` the table ``old`` of the same ``start`` has at their place.

    A zero record counts if it lies within one zero run of ``old``; a chunk if offset, length and digest are equal.
    """
    low, high = int(window.first[row]), int(window.first[row + 1])
    offsets = window.offsets[low:high] - start
    lengths = window.lengths[low:high].astype(np.int64)
    old_offsets = old.offsets
    at = np.searchsorted(old_offsets, offsets, side="right") - 1
    ends = old_offsets[at] + old.lengths[at].astype(np.int64)
    same: Mask = (old_offsets[at] == offsets) & (old.lengths[at] == lengths) & ~old.zero[at] & ~window.zero[low:high]
    candidates = np.flatnonzero(same)
    same[candidates] = (old.digests[at[candidates]] == window.digests[low:high][candidates]).all(axis=1)
    same |= window.zero[low:high] & old.zero[at] & (offsets + lengths <= ends)
    return same


class Run(NamedTuple):
    """Neighbouring records ``first`` to ``last`` (exclusive): absolute ``offset`` and ``length`` in bytes."""

    first: int
    last: int
    offset: int
    length: int


def runs(window: Window, chosen: Mask, *, limit: int = RUN_BYTES) -> list[Run]:
    """Return the chosen records as runs of neighbours of about ``limit`` bytes (at most one chunk more)."""
    records = np.flatnonzero(chosen)
    if not len(records):
        return []
    starts = window.offsets[records]
    ends = starts + window.lengths[records]
    begins = np.ones(len(records), dtype=np.bool_)
    begins[1:] = (records[1:] != records[:-1] + 1) | (starts[1:] != ends[:-1])
    origin = starts[np.maximum.accumulate(np.where(begins, np.arange(len(records)), 0))]
    piece = (starts - origin) // limit
    begins[1:] |= piece[1:] != piece[:-1]
    low = np.flatnonzero(begins)
    high = np.append(low[1:], len(records)) - 1
    columns = (records[low], records[high] + 1, starts[low], ends[high] - starts[low])
    return [Run(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


class Piece(NamedTuple):
    """A coalesced request: items ``first`` to ``last`` (exclusive) lie in bytes ``start`` to ``end``."""

    first: int
    last: int
    start: int
    end: int


def coalesce(starts: Numbers, lengths: Numbers, *, gap: int = GAP, limit: int = MAX_RANGE) -> list[Piece]:
    """Return requests for the items (sorted by start) in which neighbours over gaps up to ``gap`` share one.

    A request is at most ``limit`` bytes long unless one item is longer.
    """
    pieces: list[Piece] = []
    for item, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        end = start + length
        if pieces:
            last = pieces[-1]
            if start - last.end <= gap and end - last.start <= limit:
                pieces[-1] = Piece(last.first, item + 1, last.start, max(last.end, end))
                continue
        pieces.append(Piece(item, item + 1, start, end))
    return pieces


class PackRange(NamedTuple):
    """Bytes ``start`` to ``end`` of pack number ``pack``, holding frames ``first`` to ``last`` (exclusive) of the plan;
    ``whole``: fetch the pack in one piece."""

    pack: int
    start: int
    end: int
    whole: bool
    first: int
    last: int


WANTED: Final = np.dtype([("frame", "<u4"), ("start", "<u4"), ("length", "<u4"), ("group", "<i8")])
"""A chunk that a frame is fetched for: ``length`` bytes from ``start`` of the frame's content; its group."""
WRITE: Final = np.dtype([("frame", "<u4"), ("start", "<u4"), ("length", "<u4"), ("offset", "<i8")])
"""Bytes of a frame's content that go to ``offset`` of the image in one piece."""


@dataclass(frozen=True, slots=True, eq=False)
class FetchPlan:
    """What is fetched for a window, in pack order, and where it goes.

    ``frames`` (dtype ``FRAME``, ``pack`` numbering ``packs``), ``wanted`` (dtype ``WANTED``) and ``writes`` (dtype
    ``WRITE``), both sorted by frame; those of frame f are ``wanted[first_wanted[f]:first_wanted[f + 1]]`` and likewise.
    ``missing``: groups that no location was given for.
    """

    packs: tuple[PackRef, ...]
    frames: NDArray[np.void]
    ranges: list[PackRange]
    wanted: NDArray[np.void]
    first_wanted: Numbers
    writes: NDArray[np.void]
    first_write: Numbers
    missing: Numbers

    @classmethod
    def nothing(cls) -> FetchPlan:
        """Return a plan that fetches nothing."""
        none = np.zeros(0, dtype=np.int64)
        first = np.zeros(1, dtype=np.int64)
        return cls((), none.astype(FRAME), [], none.astype(WANTED), first, none.astype(WRITE), first, none)

    @property
    def fetch_bytes(self) -> int:
        """Bytes that the requests ask for."""
        return sum(part.end - part.start for part in self.ranges)


class Located(NamedTuple):
    """Locations of a region and its table; ``first`` is the number of the region's first record in the window."""

    first: int
    table: Table
    locations: Locations


def plan_fetch(
    window: Window, groups: Groups, wanted: Mask, placed: Mask, parts: Sequence[Located], *, gap: int = GAP
) -> FetchPlan:
    """Plan the requests for the ``wanted`` groups, written wherever they are not ``placed`` (one per record) yet.

    Raises:
        FormatError: the locations do not fit their tables, or contradict each other.
    """
    packs, frames, pieces = _gather(window, groups, wanted, parts)
    order = np.lexsort((frames["offset"], frames["pack"]))
    frames, frame_of = _distinct(frames, order)
    pieces["frame"] = frame_of[pieces["frame"]]
    used, pieces["frame"] = np.unique(pieces["frame"], return_inverse=True)
    frames = frames[used]
    pieces = pieces[np.lexsort((pieces["start"], pieces["frame"]))]
    found = np.zeros(len(groups), dtype=np.bool_)
    found[pieces["group"]] = True
    writes = _writes(window, groups, placed, pieces)
    bounds = np.arange(len(frames) + 1)
    return FetchPlan(
        packs,
        frames,
        _pack_ranges(packs, frames, gap),
        pieces,
        np.searchsorted(pieces["frame"], bounds).astype(np.int64),
        writes,
        np.searchsorted(writes["frame"], bounds).astype(np.int64),
        np.flatnonzero(wanted & ~found),
    )


def _gather(
    window: Window, groups: Groups, wanted: Mask, parts: Sequence[Located]
) -> tuple[tuple[PackRef, ...], NDArray[np.void], NDArray[np.void]]:
    """Return packs, frames and one piece for each wanted group that is located, all regions put together."""
    group_of = groups.numbers(len(window))
    packs: dict[PackRef, int] = {}
    frames: list[NDArray[np.void]] = [np.zeros(0, dtype=FRAME)]
    pieces: list[NDArray[np.void]] = [np.zeros(0, dtype=WANTED)]
    count = 0
    for part in parts:
        located = part.locations.pieces(part.table)
        group = group_of[part.first + located["record"].astype(np.int64)]
        keep = (group >= 0) & wanted[np.maximum(group, 0)]
        piece = np.zeros(int(np.count_nonzero(keep)), dtype=WANTED)
        piece["frame"] = located["frame"][keep] + count
        piece["start"], piece["length"] = located["start"][keep], located["length"][keep]
        piece["group"] = group[keep]
        renumber = np.array([packs.setdefault(ref, len(packs)) for ref in part.locations.packs], dtype=np.uint32)
        frame = part.locations.frames.copy()
        if len(frame):
            frame["pack"] = renumber[frame["pack"]]
        frames.append(frame)
        pieces.append(piece)
        count += len(frame)
    joined = np.concatenate(pieces)
    _, once = np.unique(joined["group"], return_index=True)
    return tuple(packs), np.concatenate(frames), joined[np.sort(once)]


def _distinct(frames: NDArray[np.void], order: Numbers) -> tuple[NDArray[np.void], Numbers]:
    """Return the sorted frames without repetitions, and the new number of each given frame."""
    ordered = frames[order]
    new = np.ones(len(ordered), dtype=np.bool_)
    same_start = (ordered["pack"][1:] == ordered["pack"][:-1]) & (ordered["offset"][1:] == ordered["offset"][:-1])
    new[1:] = ~same_start
    number = np.empty(len(frames), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    kept = ordered[new]
    if (ordered != kept[number[order]]).any():
        raise FormatError("locations", "frames", "one description of each frame", "several")
    return kept, number


def _pack_ranges(packs: tuple[PackRef, ...], frames: NDArray[np.void], gap: int) -> list[PackRange]:
    """Return the requests that fetch the frames: coalesced within a pack, or the whole pack if most of it is needed."""
    ranges: list[PackRange] = []
    borders = np.flatnonzero(np.diff(frames["pack"].astype(np.int64))) + 1
    edges = [0, *borders.tolist(), len(frames)]
    for low, high in itertools.pairwise(edges):
        if low == high:
            continue
        pack = int(frames["pack"][low])
        stored = frames["stored"][low:high].astype(np.int64)
        if int(stored.sum()) >= WHOLE_SHARE * packs[pack].length:
            ranges.append(PackRange(pack, 0, packs[pack].length, True, low, high))
            continue
        for piece in coalesce(frames["offset"][low:high].astype(np.int64), stored, gap=gap):
            ranges.append(PackRange(pack, piece.start, piece.end, False, low + piece.first, low + piece.last))
    return ranges


def _writes(window: Window, groups: Groups, placed: Mask, pieces: NDArray[np.void]) -> NDArray[np.void]:
    """Return the writes for all places of the pieces' chunks, neighbours in one."""
    sizes = groups.sizes[pieces["group"]]
    piece = np.repeat(np.arange(len(pieces)), sizes)
    within = np.arange(len(piece)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    record = groups.order[groups.starts[pieces["group"]][piece] + within]
    keep = ~placed[record]
    piece, record = piece[keep], record[keep]
    frame, start = pieces["frame"][piece], pieces["start"][piece].astype(np.int64)
    offset, length = window.offsets[record], window.lengths[record].astype(np.int64)
    order = np.lexsort((offset, frame))
    frame, start, offset, length = frame[order], start[order], offset[order], length[order]
    begins = np.ones(len(frame), dtype=np.bool_)
    begins[1:] = (
        (frame[1:] != frame[:-1]) | (offset[1:] != offset[:-1] + length[:-1]) | (start[1:] != start[:-1] + length[:-1])
    )
    low = np.flatnonzero(begins)
    writes = np.zeros(len(low), dtype=WRITE)
    writes["frame"], writes["start"], writes["offset"] = frame[low], start[low], offset[low]
    writes["length"] = np.add.reduceat(length, low) if len(low) else 0
    return writes
