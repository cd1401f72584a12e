"""Locations: in which frames of which packs the chunks of a region lie.

Locations are kept per region in two parts, *fresh* (content that the parent version lacks) and *rest*. They are no part
of any identity: the same version may be located elsewhere later. FORMAT.md, "Locations".

Invariant: a constructed value is valid in itself (numbers within their tables, frames within their packs); whether it
fits a region's table is what :meth:`Locations.pieces` checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, DIGEST_SIZE, Bytes
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError
from trimtransfer.pack import MAX_FRAME_RAW, MAX_PACK, PACK_MAGIC, Codec
from trimtransfer.table import MAX_RECORDS, Table

FRAME: Final = np.dtype(
    [
        ("pack", "<u4"),
        ("offset", "<u4"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("codec", "u1"),
        ("check", "u1", (CHECK_SIZE,)),
    ]
)
"""A frame: number of its pack, where its stored bytes begin in it, their length, its content's length, codec, check."""
RUN: Final = np.dtype([("record", "<u4"), ("count", "<u4"), ("frame", "<u4"), ("start", "<u4")])
"""``count`` neighbouring chunk records of the region's table, from ``record`` on, whose content lies in one piece at
byte ``start`` of the content of ``frame``."""
PIECE: Final = np.dtype([("record", "<u4"), ("frame", "<u4"), ("start", "<u4"), ("length", "<u4")])
"""One chunk record with its place: byte ``start`` of the content of ``frame``."""
MAX_BYTES: Final = 12 + MAX_RECORDS * (DIGEST_SIZE + 4 + FRAME.itemsize + RUN.itemsize)
_LEVEL: Final = 9
_COLUMNS: Final = ("pack", "offset", "stored", "raw")


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack: its digest and its length in bytes."""

    digest: bytes
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Locations:
    """One part of a region's locations: packs, frames (dtype ``FRAME``), runs (dtype ``RUN``, in record order)."""

    packs: tuple[PackRef, ...]
    frames: NDArray[np.void]
    runs: NDArray[np.void]

    @classmethod
    def of(cls, packs: tuple[PackRef, ...], frames: NDArray[np.void], runs: NDArray[np.void]) -> Locations:
        """Build a checked value.

        Raises:
            FormatError: a number out of its range.
        """
        locations = cls(packs, frames, runs)
        locations._check()
        return locations

    @classmethod
    def from_bytes(cls, stored: Bytes) -> Locations:
        """Parse the stored form.

        Raises:
            FormatError: anything but the stored form of valid locations.
        """
        body = memoryview(decompress(stored, MAX_BYTES, "locations"))
        if len(body) < 12:
            raise FormatError("locations", 0, "at least 12 bytes", len(body))
        packs, frames, runs = (int.from_bytes(body[at : at + 4], "little") for at in (0, 4, 8))
        size = 12 + packs * (DIGEST_SIZE + 4) + frames * FRAME.itemsize + runs * RUN.itemsize
        if max(packs, frames, runs) > MAX_RECORDS or len(body) != size:
            raise FormatError("locations", 0, f"{packs} packs, {frames} frames, {runs} runs in {size} bytes", len(body))
        at = 12 + packs * (DIGEST_SIZE + 4)
        refs = tuple(_pack_ref(body[12 + 36 * n : 48 + 36 * n]) for n in range(packs))
        table = np.zeros(frames, dtype=FRAME)
        for name in _COLUMNS:
            table[name] = np.frombuffer(body, dtype="<u4", count=frames, offset=at)
            at += 4 * frames
        table["codec"] = np.frombuffer(body, dtype=np.uint8, count=frames, offset=at)
        at += frames
        table["check"] = np.frombuffer(body, np.uint8, frames * CHECK_SIZE, at).reshape(frames, CHECK_SIZE)
        at += frames * CHECK_SIZE
        run = np.zeros(runs, dtype=RUN)
        for name in ("record", "count", "frame", "start"):
            run[name] = np.frombuffer(body, dtype="<u4", count=runs, offset=at)
            at += 4 * runs
        return cls.of(refs, table, run)

    def to_bytes(self) -> bytes:
        """Return the stored form: the columns one after the other, as one zstd frame."""
        head = b"".join(n.to_bytes(4, "little") for n in (len(self.packs), len(self.frames), len(self.runs)))
        packs = b"".join(ref.digest + ref.length.to_bytes(4, "little") for ref in self.packs)
        frames = b"".join(np.ascontiguousarray(self.frames[name]).tobytes() for name in (*_COLUMNS, "codec", "check"))
        runs = b"".join(
            np.ascontiguousarray(self.runs[name]).tobytes() for name in ("record", "count", "frame", "start")
        )
        return compress(head + packs + frames + runs, _LEVEL)

    def _check(self) -> None:
        frames, runs = self.frames, self.runs
        for ref in self.packs:
            if not len(PACK_MAGIC) < ref.length <= MAX_PACK or len(ref.digest) != DIGEST_SIZE:
                raise FormatError("locations", "packs", f"packs of up to {MAX_PACK} bytes", ref.length)
        if len(frames):
            lengths = np.array([ref.length for ref in self.packs] or [0], dtype=np.int64)
            known = frames["pack"] < len(self.packs)
            ends = frames["offset"].astype(np.int64) + frames["stored"]
            fits = known & (ends <= lengths[np.where(known, frames["pack"], 0)]) & (frames["offset"] >= len(PACK_MAGIC))
            fits &= (frames["stored"] > 0) & (frames["raw"] > 0) & (frames["raw"] <= MAX_FRAME_RAW)
            fits &= frames["codec"] <= max(Codec)
            _all(fits, "frames", "frames within their packs")
        if len(runs):
            ends = runs["record"].astype(np.int64) + runs["count"]
            fits = (runs["frame"] < len(frames)) & (runs["count"] > 0) & (ends <= MAX_RECORDS)
            fits[1:] &= runs["record"][1:] >= ends[:-1]
            _all(fits, "runs", "runs of known frames, in order, none over another")

    def pieces(self, table: Table) -> NDArray[np.void]:
        """Return where each located chunk record of ``table`` lies (dtype ``PIECE``, in record order).

        Raises:
            FormatError: these locations do not fit the table.
        """
        counts = self.runs["count"].astype(np.int64)
        first = np.cumsum(counts) - counts  # number of each run's first piece
        piece = np.zeros(int(counts.sum()), dtype=PIECE)
        within = np.arange(len(piece), dtype=np.int64) - np.repeat(first, counts)
        record = np.repeat(self.runs["record"].astype(np.int64), counts) + within
        if len(record) and int(record.max()) >= len(table):
            raise FormatError("locations", "runs", f"records below {len(table)}", int(record.max()))
        _all(~table.zero[record], "runs", "chunk records only")
        length = table.lengths[record].astype(np.int64)
        before = np.cumsum(length) - length  # bytes of all pieces before each piece
        start = np.repeat(self.runs["start"].astype(np.int64) - before[first], counts) + before
        frame = np.repeat(self.runs["frame"], counts)
        _all(start + length <= self.frames["raw"][frame], "runs", "chunks within their frames")
        piece["record"], piece["frame"], piece["start"], piece["length"] = record, frame, start, length
        return piece


def _pack_ref(data: memoryview) -> PackRef:
    return PackRef(bytes(data[:DIGEST_SIZE]), int.from_bytes(data[DIGEST_SIZE:], "little"))


def _all(fits: NDArray[np.bool_], where: str, expected: str) -> None:
    if not fits.all():
        raise FormatError("locations", where, expected, f"number {int(np.argmin(fits))} is not")
