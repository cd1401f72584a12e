"""Delta indexes: which chunks of a version the deltas of a pair make, out of which chunks of another version.

An index is optional and proves nothing: what a delta makes is compared with the digests of the chunks that are wanted,
and every chunk is in a plain frame, too. FORMAT.md, "Delta index".

Invariant: constructed values are valid in themselves; whether units fit a region's table is what :meth:`Units.pieces`
checks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, DIGEST_SIZE, MAX_IMAGE_SIZE, REGION_SIZE, Bytes, object_check
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.location import FRAME, PIECE, PackRef
from trimtransfer.pack import MAX_PACK, PACK_MAGIC
from trimtransfer.table import MAX_RECORDS, Table

MAGIC: Final = b"TrimFrom"
FORMAT: Final = 1
FORMAT_TOOLS: Final = 2
"""Of an index with units that need tools; any other is written in format 1."""
MAX_TOOLS: Final = 32
TOOL: Final = np.dtype([("tool", "u1", (5,)), ("zeros", "u1", (3,)), ("check", "u1", (CHECK_SIZE,))])
"""A tool (:mod:`trimtransfer.tool`) and what its probe returned where the units were made."""
MAX_INDEX: Final = 64 << 20
"""Longest index in bytes: a reader takes it whole."""
MAX_TARGET: Final = 8 << 20
MAX_BASE: Final = 16 << 20
"""Most bytes of chunks that a unit makes, and out of which it makes them: both are in memory at a time."""
DELTA_CODEC: Final = 2
"""How a unit is stored, in the place where frames have their codec."""
MAX_BASES: Final = 1 << 17
"""Most base runs of a region's units: 32 units of which each takes every other block of what it may."""
_REGIONS: Final = MAX_IMAGE_SIZE // REGION_SIZE + 256
_HEADER: Final = struct.Struct("<8sHHI32s32s")
_LEVEL: Final = 9

UNIT: Final = np.dtype(
    [
        ("pack", "<u4"),
        ("offset", "<u4"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("plain", "<u4"),
        ("targets", "<u4"),
        ("bases", "<u4"),
        ("tools", "<u4"),
        ("work", "<u4"),
        ("check", "u1", (CHECK_SIZE,)),
    ]
)
"""A unit: number of its pack, where its stored bytes begin there, their length; the length of the chunks that it makes,
and about what these take in plain frames; how many target and base runs it has; which tools of the index it needs, bit
by bit, and milliseconds that these take on one core, about; the check of the stored bytes."""
TARGET: Final = np.dtype([("record", "<u4"), ("count", "<u4")])
"""``count`` neighbouring chunk records of the region's table from ``record`` on, made one after the other."""
BASE: Final = np.dtype([("region", "<u4"), ("record", "<u4"), ("count", "<u4")])
"""``count`` neighbouring chunk records, from ``record`` on, of the table of the other version's ``region``."""
_MAX_UNITS: Final = 36 * MAX_RECORDS + 16 + (UNIT.itemsize + TARGET.itemsize) * MAX_RECORDS + BASE.itemsize * MAX_BASES
_COLUMNS: Final = ("pack", "offset", "stored", "raw", "plain", "targets", "bases")
_TOOL_COLUMNS: Final = (*_COLUMNS, "tools", "work")
ROW: Final = np.dtype([("region", "<u4"), ("stored", "<u4"), ("check", "u1", (CHECK_SIZE,))])


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The units of one region: packs, units (dtype ``UNIT``), and in their order all ``targets`` and ``bases``."""

    packs: tuple[PackRef, ...]
    units: NDArray[np.void]
    targets: NDArray[np.void]
    bases: NDArray[np.void]

    @classmethod
    def of(
        cls,
        packs: tuple[PackRef, ...],
        units: NDArray[np.void],
        targets: NDArray[np.void],
        bases: NDArray[np.void],
    ) -> Units:
        """Build a checked value; ``FormatError`` for a number out of its range."""
        made = cls(packs, units, targets, bases)
        made._check()
        return made

    @classmethod
    def from_bytes(cls, stored: Bytes, *, tools: int = 0) -> Units:
        """Parse the stored form, in an index with so many ``tools``; ``FormatError`` for anything but that of valid
        units."""
        columns = _TOOL_COLUMNS if tools else _COLUMNS
        body = memoryview(decompress(stored, _MAX_UNITS, "delta units"))
        if len(body) < 16:
            raise FormatError("delta units", 0, "at least 16 bytes", len(body))
        packs, units, targets, bases = struct.unpack_from("<4I", body)
        unit_size = 4 * len(columns) + CHECK_SIZE
        size = 16 + 36 * packs + unit_size * units + TARGET.itemsize * targets + BASE.itemsize * bases
        if max(packs, units, targets) > MAX_RECORDS or bases > MAX_BASES or len(body) != size:
            raise FormatError("delta units", 0, f"{size} bytes for what is announced, within limits", len(body))
        refs = tuple(_pack_ref(body[16 + 36 * n : 52 + 36 * n]) for n in range(packs))
        at = 16 + 36 * packs
        unit, at = _take(body, at, UNIT, columns, units)
        unit["check"] = np.frombuffer(body, np.uint8, units * CHECK_SIZE, at).reshape(units, CHECK_SIZE)
        target, at = _take(body, at + units * CHECK_SIZE, TARGET, ("record", "count"), targets)
        base, at = _take(body, at, BASE, ("region", "record", "count"), bases)
        if tools and (unit["tools"].astype(np.uint64) >> np.uint64(tools)).any():
            raise FormatError("delta units", "tools", f"tools below {tools}", "others")
        return cls.of(refs, unit, target, base)

    def to_bytes(self, *, tools: bool = False) -> bytes:
        """Return the stored form: the columns one after the other, as one zstd frame; for an index with ``tools``?"""
        counts = struct.pack("<4I", len(self.packs), len(self.units), len(self.targets), len(self.bases))
        packs = b"".join(ref.digest + ref.length.to_bytes(4, "little") for ref in self.packs)
        columns = (
            _put(self.units, (*(_TOOL_COLUMNS if tools else _COLUMNS), "check")),
            _put(self.targets, ("record", "count")),
            _put(self.bases, ("region", "record", "count")),
        )
        return compress(b"".join((counts, packs, *columns)), _LEVEL)

    @property
    def frames(self) -> NDArray[np.void]:
        """The units as frames (dtype ``FRAME``) of codec ``DELTA_CODEC``."""
        frames = np.zeros(len(self.units), dtype=FRAME)
        for name in ("pack", "offset", "stored", "raw", "check"):
            frames[name] = self.units[name]
        frames["codec"] = DELTA_CODEC
        return frames

    def select(self, units: NDArray[np.int64]) -> Units:
        """Return only some units, by ascending number."""
        chosen = np.zeros(len(self.units), dtype=np.bool_)
        chosen[units] = True
        targets, bases = (runs[np.repeat(chosen, self.units[name])] for name, runs in self._runs())
        return Units(self.packs, self.units[chosen], targets, bases)

    def pieces(self, table: Table) -> NDArray[np.void]:
        """Return what chunk records of ``table`` the units make (dtype ``PIECE``; ``frame`` is the unit's number).

        Raises:
            FormatError: these units do not fit the table.
        """
        counts = self.targets["count"].astype(np.int64)
        first = np.cumsum(counts) - counts
        piece = np.zeros(int(counts.sum()), dtype=PIECE)
        within = np.arange(len(piece), dtype=np.int64) - np.repeat(first, counts)
        record = np.repeat(self.targets["record"].astype(np.int64), counts) + within
        if len(record) and int(record.max()) >= len(table):
            raise FormatError("delta units", "targets", f"records below {len(table)}", int(record.max()))
        if table.zero[record].any():
            raise FormatError("delta units", "targets", "chunk records only", "a zero run")
        unit = np.repeat(np.repeat(np.arange(len(self.units)), self.units["targets"]), counts)
        length = table.lengths[record].astype(np.int64)
        before = np.cumsum(length) - length
        begins = np.searchsorted(unit, np.arange(len(self.units)))
        start = before - before[begins][unit] if len(unit) else before
        made = np.bincount(unit, weights=length, minlength=len(self.units))
        if (made != self.units["raw"]).any():
            raise FormatError("delta units", "targets", "chunks of the length that the unit has", "others")
        piece["record"], piece["frame"], piece["start"], piece["length"] = record, unit, start, length
        return piece

    def _runs(self) -> tuple[tuple[str, NDArray[np.void]], tuple[str, NDArray[np.void]]]:
        return ("targets", self.targets), ("bases", self.bases)

    def _check(self) -> None:
        units, targets, bases = self.units, self.targets, self.bases
        for ref in self.packs:
            if not len(PACK_MAGIC) < ref.length <= MAX_PACK or len(ref.digest) != DIGEST_SIZE:
                raise FormatError("delta units", "packs", f"packs of up to {MAX_PACK} bytes", ref.length)
        lengths = np.array([ref.length for ref in self.packs] or [0], dtype=np.int64)
        known = units["pack"] < len(self.packs)
        fits = known & (units["stored"] > 0) & (units["targets"] > 0) & (units["offset"] >= len(PACK_MAGIC))
        fits &= units["offset"].astype(np.int64) + units["stored"] <= lengths[np.where(known, units["pack"], 0)]
        fits &= (units["raw"] > 0) & (units["raw"] <= MAX_TARGET)
        _all(fits, "units", "units within their packs that make something")
        for name, runs in self._runs():
            if int(units[name].sum(dtype=np.int64)) != len(runs):
                raise FormatError("delta units", name, f"{len(runs)} runs in all", "another number")
        ends = targets["record"].astype(np.int64) + targets["count"]
        fits = (targets["count"] > 0) & (ends <= MAX_RECORDS)
        fits[1:] &= targets["record"][1:] >= ends[:-1]
        _all(fits, "targets", "runs in order, none over another")
        ends = bases["record"].astype(np.int64) + bases["count"]
        _all((bases["count"] > 0) & (ends <= MAX_RECORDS) & (bases["region"] < _REGIONS), "bases", "runs of a table")
        unit = np.repeat(np.arange(len(units)), units["bases"])
        _all(np.bincount(unit, weights=bases["count"]) <= MAX_RECORDS, "bases", f"at most {MAX_RECORDS} chunks a unit")


class DeltaIndex:
    """The index of a pair, in memory: ``target`` and ``base`` are the digests of the two manifests; ``tools`` that
    units need (dtype ``TOOL``)."""

    def __init__(self, data: Bytes) -> None:
        """Parse the header and the directory.

        Raises:
            FormatError: not a delta index.
        """
        self._data = memoryview(data)
        if not _HEADER.size <= len(self._data) <= MAX_INDEX:
            raise FormatError("delta index", 0, f"{_HEADER.size} to {MAX_INDEX} bytes", len(self._data))
        magic, version, tools, rows, self.target, self.base = _HEADER.unpack_from(self._data)
        least = {FORMAT: 0, FORMAT_TOOLS: 1}.get(version)
        if magic != MAGIC or least is None or not least <= tools <= least * MAX_TOOLS:
            expected = f"format {FORMAT} or {FORMAT_TOOLS} (a newer one needs a newer program)"
            raise FormatError("delta index", 0, expected, (magic, version, tools))
        start = _HEADER.size + tools * TOOL.itemsize
        end = start + rows * ROW.itemsize
        if rows > _REGIONS or end > len(self._data):
            raise FormatError("delta index", 12, f"rows that fit {len(self._data)} bytes", rows)
        self.tools = np.frombuffer(self._data, dtype=TOOL, count=tools, offset=_HEADER.size)
        self._rows = np.frombuffer(self._data, dtype=ROW, count=rows, offset=start)
        self._ends = end + np.cumsum(self._rows["stored"], dtype=np.int64)
        ordered = bool((self._rows["region"][1:] > self._rows["region"][:-1]).all())
        if not ordered or (int(self._ends[-1]) if rows else end) != len(self._data):
            raise FormatError("delta index", "directory", "regions in order, their units up to the end", "others")

    @property
    def regions(self) -> NDArray[np.int64]:
        """The numbers of the regions that have units, ascending."""
        return self._rows["region"].astype(np.int64)

    def units(self, region: int) -> Units | None:
        """Return the units of a region, None if it has none.

        Raises:
            IntegrityError, FormatError: they are damaged.
        """
        at = int(np.searchsorted(self._rows["region"], region))
        if at == len(self._rows) or int(self._rows["region"][at]) != region:
            return None
        end = int(self._ends[at])
        stored = self._data[end - int(self._rows["stored"][at]) : end]
        check = self._rows["check"][at].tobytes()
        if object_check(stored) != check:
            raise IntegrityError(f"delta index, units of region {region}", check, object_check(stored))
        return Units.from_bytes(stored, tools=len(self.tools))

    def tool_checks(self) -> list[tuple[bytes, bytes]]:
        """Return the tools, each as it is stored and with its check."""
        return [(row["tool"].tobytes(), row["check"].tobytes()) for row in self.tools]


def encode_index(
    target: bytes, base: bytes, units: Iterable[tuple[int, Units]], tools: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """Return the index of a pair of versions with these manifest digests; ``units`` by region, ascending; ``tools``
    that they need, each as it is stored and with what its probe returned."""
    rows: list[tuple[int, int, bytes]] = []
    pieces: list[bytes] = []
    for region, part in units:
        stored = part.to_bytes(tools=bool(tools))
        rows.append((region, len(stored), object_check(stored)))
        pieces.append(stored)
    directory = np.zeros(len(rows), dtype=ROW)
    for row, (region, length, check) in zip(directory, rows, strict=True):
        row["region"], row["stored"], row["check"] = region, length, np.frombuffer(check, dtype=np.uint8)
    needed = np.zeros(len(tools), dtype=TOOL)
    for row, (tool, check) in zip(needed, tools, strict=True):
        row["tool"], row["check"] = np.frombuffer(tool, dtype=np.uint8), np.frombuffer(check, dtype=np.uint8)
    head = _HEADER.pack(MAGIC, FORMAT_TOOLS if tools else FORMAT, len(tools), len(rows), target, base)
    return b"".join((head, needed.tobytes(), directory.tobytes(), *pieces))


def _put(rows: NDArray[np.void], names: Sequence[str]) -> bytes:
    return b"".join(np.ascontiguousarray(rows[name]).tobytes() for name in names)


def _take(
    body: memoryview, at: int, dtype: np.dtype[np.void], names: Sequence[str], count: int
) -> tuple[NDArray[np.void], int]:
    rows = np.zeros(count, dtype=dtype)
    for name in names:
        rows[name] = np.frombuffer(body, dtype="<u4", count=count, offset=at)
        at += 4 * count
    return rows, at


def _pack_ref(data: memoryview) -> PackRef:
    return PackRef(bytes(data[:DIGEST_SIZE]), int.from_bytes(data[DIGEST_SIZE:], "little"))


def _all(fits: NDArray[np.bool_], where: str, expected: str) -> None:
    if not fits.all():
        raise FormatError("delta units", where, expected, f"number {int(np.argmin(fits))} is not")
