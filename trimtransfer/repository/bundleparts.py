"""Parts of objects that go into a bundle: what of an object is needed, how it is verified, and fetching it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.bundle import MAX_PIECE, PIECE
from trimtransfer.chunk import object_check, object_digest, object_hasher
from trimtransfer.errors import FormatError, IntegrityError
from trimtransfer.manifest import StoredRef
from trimtransfer.store import Range, Store
from trimtransfer.watch import Watch

REMEDY: Final = "the repository is damaged: see `medv-repo verify`"
Writer: TypeAlias = Callable[[int, memoryview], None]
"""Writes bytes at a place."""


class Span(NamedTuple):
    """Bytes of an object that go into a bundle as one piece: pieces ``first`` to ``last`` (exclusive) of the object."""

    start: int
    length: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What is needed of an object of ``length`` bytes: ``pieces`` (dtype ``PIECE``, by start), each verified by its
    check; or, with a ``digest``, all of it, cut anyhow and verified by that. ``data`` if it is in memory already."""

    name: str
    length: int
    pieces: NDArray[np.void]
    digest: bytes | None = None
    data: bytes | None = None

    @classmethod
    def whole(cls, name: str, length: int, digest: bytes) -> Part:
        """Return the whole of an object."""
        starts = np.arange(0, length, MAX_PIECE)
        pieces = np.zeros(len(starts), dtype=PIECE)
        pieces["start"], pieces["length"] = starts, np.minimum(MAX_PIECE, length - starts)
        return cls(name, length, pieces, digest)

    @classmethod
    def of(cls, name: str, data: bytes) -> Part:
        """Return an object that is in memory."""
        whole = cls.whole(name, len(data), object_digest(data))
        return cls(name, len(data), whole.pieces, whole.digest, data)

    def spans(self) -> list[Span]:
        """Return the pieces, neighbours joined to at most ``MAX_PIECE`` bytes; ``FormatError`` if they overlap."""
        spans: list[Span] = []
        for number, (start, length) in enumerate(columns(self.pieces)):
            end = spans[-1].start + spans[-1].length if spans else 0
            if start < end:
                raise FormatError(self.name, start, f"pieces that do not overlap (from byte {end} on)", "others")
            if spans and start == end and spans[-1].length + length <= MAX_PIECE and self.digest is None:
                spans[-1] = spans[-1]._replace(length=spans[-1].length + length, last=number + 1)
            else:
                spans.append(Span(start, length, number, number + 1))
        return spans

    def check(self, span: Span, data: memoryview) -> None:
        """Raise ``IntegrityError`` if a span's bytes are not what they should be; a whole object of several spans
        passes: who has all of it compares the digest."""
        if self.digest is not None:
            if span.length == self.length and object_digest(data) != self.digest:
                raise IntegrityError(self.name, self.digest, object_digest(data), REMEDY)
            return
        for row in self.pieces[span.first : span.last]:
            at = int(row["start"]) - span.start
            found, expected = object_check(data[at : at + int(row["length"])]), row["check"].tobytes()
            if found != expected:
                raise IntegrityError(f"{self.name}, byte {int(row['start'])}", expected, found, REMEDY)

    def range(self, span: Span) -> Range:
        """Return the request for a span."""
        return Range(self.name, span.start, span.length, self.length, span.length == self.length)


def fetch_parts(store: Store, parts: Iterable[tuple[Part, Span, int]], write: Writer, watch: Watch) -> None:
    """Fetch spans of parts, verify each, and have it written at its place.

    Raises:
        IntegrityError: the repository is damaged, even when asked past all caches; and what the store raises.
    """
    wanted = {part.range(span): (part, span, place) for part, span, place in parts}
    damaged: list[Range] = []

    def deliver(request: Range, data: memoryview, *, last: bool) -> None:
        watch.check()
        part, span, place = wanted[request]
        try:
            part.check(span, data)
        except IntegrityError:
            if last:
                raise
            damaged.append(request)
            return
        write(place, data)

    store.fetch(list(wanted), lambda request, data: deliver(request, data, last=False))
    if damaged:
        store.fetch(damaged, lambda request, data: deliver(request, data, last=True), again=True)


class Spill:
    """Metadata fetched into a temporary file of ``directory`` that never has a name."""

    def __init__(self, store: Store, directory: Path, watch: Watch) -> None:
        self._store, self._watch = store, watch
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - held
        self._end = 0
        self._places: dict[str, dict[int, int]] = {}

    def fetch(self, parts: Iterable[Part]) -> None:
        """Fetch what is needed of objects and not here yet; raises what :func:`fetch_parts` raises."""
        wanted: list[tuple[Part, Span, int]] = []
        lacking = [part for part in map(self._lacking, parts) if len(part.pieces)]
        for part in lacking:
            places = self._places.setdefault(part.name, {})
            for span in part.spans():
                for start in part.pieces["start"][span.first : span.last].tolist():
                    places[start] = self._end + start - span.start
                wanted.append((part, span, self._end))
                self._end += span.length
        fetch_parts(self._store, wanted, self._write, self._watch)
        for part in lacking:
            self._check_whole(part)

    def span(self, part: Part, span: Span) -> bytes:
        """Return a span of a part that was fetched, verified."""
        pieces = columns(part.pieces[span.first : span.last])
        data = b"".join(self._read(part.name, start, length) for start, length in pieces)
        part.check(span, memoryview(data))
        return data

    def piece(self, name: str, ref: StoredRef) -> bytes:
        """Return a stored piece."""
        data = self._read(name, ref.offset, ref.length)
        if object_check(data) != ref.check:
            raise IntegrityError(f"{name}, byte {ref.offset}", ref.check, object_check(data))
        return data

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _lacking(self, part: Part) -> Part:
        known = self._places.get(part.name, {})
        there = np.array([start in known for start in part.pieces["start"].tolist()], dtype=np.bool_)
        return replace(part, pieces=part.pieces[~there])

    def _read(self, name: str, start: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, self._places[name][start])

    def _check_whole(self, part: Part) -> None:
        if part.digest is None:
            return
        hasher = object_hasher()
        for start, length in columns(part.pieces):
            hasher.update(self._read(part.name, start, length))
        if hasher.digest() != part.digest:
            raise IntegrityError(part.name, part.digest, hasher.digest(), REMEDY)

    def _write(self, place: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], place + done)


def columns(pieces: NDArray[np.void]) -> Iterator[tuple[int, int]]:
    """Return start and length of pieces."""
    return zip(pieces["start"].tolist(), pieces["length"].tolist(), strict=True)
