"""Layers: a disk as a tree of files - a file's own bytes, a container over its base, parts one after the other.

Reads are coalesced: what lies side by side in a container is read in one go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from trimtransfer.chunk import ZEROS
from trimtransfer.disk.mapping import ABSENT, PACKED, STORED, Mapping, Runs
from trimtransfer.disk.pages import Unpacked
from trimtransfer.errors import FormatError
from trimtransfer.image import ImageSource


class Layer(Protocol):
    """A disk of ``size`` bytes that can be read; ranges lie within it. Thread-safe."""

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        ...

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` from byte ``offset`` on."""
        ...

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the parts that may hold data, in order."""
        ...


class FileLayer:
    """``size`` bytes of a file from byte ``start`` on, as they are."""

    def __init__(self, file: ImageSource, start: int, size: int) -> None:
        self._file, self._start, self.size = file, start, size
        if start + size > file.size:
            raise FormatError(str(file.path), "end", f"at least {start + size:,} bytes", f"{file.size:,}: cut short")

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view``."""
        self._file.read_into(view, self._start + offset)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield what is no hole of the file."""
        for at, size in self._file.extents(self._start + start, length):
            yield at - self._start, size


class ZeroLayer:
    """``size`` bytes of zeros."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view``."""
        fill_zeros(view)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield nothing."""
        yield from ()


class MappedLayer:
    """A container's disk over its base, if it has one; a base that is shorter ends in zeros."""

    def __init__(self, mapping: Mapping, file: ImageSource, base: Layer | None) -> None:
        self._mapping, self._file, self._base = mapping, file, base
        self._unpacked = Unpacked(mapping.unit)
        self.size = mapping.size

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view``.

        Raises:
            FormatError: the container breaks its format's rules.
        """
        for runs in self._windows(offset, len(view)):
            rows = (runs.starts.tolist(), runs.lengths.tolist(), runs.states.tolist(), runs.places.tolist())
            for start, length, state, place in zip(*rows, strict=True):
                part = view[start - offset : start - offset + length]
                if state == STORED:
                    self._file.read_into(part, place)
                elif state == PACKED:
                    self._unpack(part, start, place)
                elif state == ABSENT and self._base is not None:
                    self._read_base(self._base, part, start)
                else:
                    fill_zeros(part)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield what is stored, as far as it is no hole of the file, or packed, or in the base."""
        return merged(self._extents(start, length))

    def _extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        for runs in self._windows(start, length):
            rows = (runs.starts.tolist(), runs.lengths.tolist(), runs.states.tolist(), runs.places.tolist())
            for at, size, state, place in zip(*rows, strict=True):
                if state == STORED:
                    yield from ((offset - place + at, part) for offset, part in self._file.extents(place, size))
                elif state == PACKED:
                    yield at, size
                elif state == ABSENT and self._base is not None and at < self._base.size:
                    yield from self._base.extents(at, min(size, self._base.size - at))

    def _windows(self, offset: int, length: int) -> Iterator[Runs]:
        """Yield the runs of a range, so many at a time that memory stays bounded."""
        end, window = offset + length, self._mapping.window
        while offset < end:
            until = min(end, (offset // window + 1) * window)
            runs = self._mapping.runs(offset, until - offset)
            if runs.stored_end() > self._file.size:
                name = str(self._file.path)
                raise FormatError(
                    name, "end", f"at least {runs.stored_end():,} bytes", f"{self._file.size:,}: cut short"
                )
            yield runs
            offset = until

    def _unpack(self, part: memoryview, start: int, place: int) -> None:
        first = start // self._mapping.unit * self._mapping.unit
        content = self._unpacked.get(first, lambda: self._mapping.unpack(place, first))
        part[:] = memoryview(content)[start - first : start - first + len(part)]

    def _read_base(self, base: Layer, part: memoryview, start: int) -> None:
        there = max(0, min(len(part), base.size - start))
        if there:
            base.read_into(part[:there], start)
        fill_zeros(part[there:])


class JoinedLayer:
    """Parts one after the other."""

    def __init__(self, parts: Sequence[Layer]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.size)
        self.size = self._starts.pop()

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view``."""
        for part, at, start, length in self._touched(offset, len(view)):
            part.read_into(view[at + start - offset : at + start - offset + length], start)

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield those of the parts."""
        return merged(
            (at + begin, size)
            for part, at, low, span in self._touched(start, length)
            for begin, size in part.extents(low, span)
        )

    def _touched(self, offset: int, length: int) -> Iterator[tuple[Layer, int, int, int]]:
        """Yield each part that a range touches: where it begins, and the range (start, length) within it."""
        end = offset + length
        number = bisect_right(self._starts, offset) - 1
        while offset < end:
            part, at = self._parts[number], self._starts[number]
            until = min(end, at + part.size)
            if until > offset:
                yield part, at, offset - at, until - offset
            offset, number = until, number + 1


def merged(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield extents (offset, length) in order, those that touch as one."""
    start = end = -1
    for offset, length in extents:
        if offset != end:
            if end > start:
                yield start, end - start
            start = offset
        end = offset + length
    if end > start:
        yield start, end - start


def fill_zeros(view: memoryview) -> None:
    """Fill ``view`` with zeros."""
    for at in range(0, len(view), len(ZEROS)):
        part = view[at : at + len(ZEROS)]
        part[:] = ZEROS[: len(part)]
