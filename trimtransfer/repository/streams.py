"""Deflate streams in the image of a version: where their bytes lie, where their blocks end, and what they contain.

A gzip member is looked for where one may begin, and followed through the image; where it does not run on contiguously,
through the extents of its file, if a file system can be read. Nothing is believed: whole blocks that can be decoded are
useful whatever they are, and who uses them compares what comes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.errors import FormatError
from trimtransfer.filesystem.volumes import find_file_systems
from trimtransfer.native import Ended
from trimtransfer.spill import Flat
from trimtransfer.watch import Watch
from trimtransfer.wrapped import gzip_content

_LOG: Final = logging.getLogger("trimtransfer.repository")
CONTEXT: Final = 1 << 15
"""Bytes before a block that it may refer to."""
MOST_CONTENT: Final = 4 << 30
"""Bytes of content of a version's streams that are kept in a temporary file; streams beyond are passed over."""
_HEAD: Final = 4096
"""Bytes in which the head of a member ends; some have a name."""
_TAIL: Final = 8
_WINDOWS: Final = (1 << 16, 1 << 20, 1 << 22, 1 << 24)
"""Bytes of a stream that are looked at: so many, then more, as far as a block needs them."""
_ROOMS: Final = (1 << 22, 1 << 24)
"""Bytes of content for which there is room; a stream of larger blocks ends before them."""
_LEAST: Final = 1 << 15
"""Bytes of content that make a stream worth something that does not reach its end."""
_MOST_EXTENTS: Final = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A gzip member, or its beginning: ``size`` bytes, of which ``head`` lie before the deflate stream and ``tail`` is
    what follows: eight bytes, or none if the end is not there.

    ``extents``: offset in it, place in the image, length (int64, (n, 3)), in order, without gaps. ``bits`` and
    ``contents`` (int64, (blocks + 1,)): where blocks begin and the last one ends, in bits from the member's first byte
    and in bytes of content. ``types`` of the blocks, plus 4 for the final one. ``first`` is where its content begins in
    that of all streams.
    """

    extents: NDArray[np.int64]
    head: int
    size: int
    bits: NDArray[np.int64]
    contents: NDArray[np.int64]
    types: NDArray[np.int64]
    first: int
    tail: bytes

    @property
    def whole(self) -> bool:
        """Whether it reaches its end, as far as its tail tells."""
        return bool(self.tail)

    def places(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield place in the image and length of the bytes from ``low`` to ``high``."""
        return _places(self.extents, low, high)


class Whole(Protocol):
    """An image, published or not, that can be read anywhere."""

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on, fewer at the end."""
        ...


class Streams:
    """The streams of a version that begin at some places of its image. Memory: 24 bytes a block, and 40 MiB."""

    def __init__(self, image: Whole, starts: Iterable[int], directory: Path, *, watch: Watch) -> None:
        """Decode them; ``starts`` ascend, ``directory`` takes a temporary file.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        self._image = image
        self._found: list[Stream] = []
        self._content, self._out = Flat(directory), np.empty(CONTEXT + _ROOMS[0], np.uint8)
        end = 0
        for start in starts:
            watch.check()
            if start >= end:  # else it lies within the one before
                end = self._take(start)
        self._out = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, number: int) -> Stream:
        return self._found[number]

    @property
    def size(self) -> int:
        """Bytes of content of all streams."""
        return len(self._content)

    def content(self, stream: Stream, low: int, high: int) -> bytes:
        """Return the bytes from ``low`` to ``high`` of a stream's content."""
        return self._content.read(stream.first + low, stream.first + high)

    def close(self) -> None:
        """Give the temporary file back."""
        self._content.close()

    def read(self, stream: Stream, low: int, high: int) -> bytes:
        """Return the bytes from ``low`` to ``high`` of a stream; raises what :meth:`ImageBytes.read` raises."""
        return self._read(stream.extents, low, high - low)

    def _read(self, extents: NDArray[np.int64], offset: int, length: int) -> bytes:
        return b"".join(self._image.read(*place) for place in _places(extents, offset, offset + length))

    def _take(self, start: int) -> int:
        """Take the member at ``start`` and those that follow it; return where the last of them ends in the image."""
        extents, end = np.array([[0, start, self._image.size - start]], dtype=np.int64), start
        while len(self._content) < MOST_CONTENT and (stream := self._member(extents)) is not None:
            self._found.append(stream)
            place, length = list(stream.places(stream.size - 1, stream.size))[-1]
            end = max(end, place + length)
            if not stream.whole:
                break
            extents = _behind(stream.extents, stream.size)
        return end

    def _member(self, extents: NDArray[np.int64]) -> Stream | None:
        """Return the member that begins where the extents do; None if there is none that is worth something."""
        head = gzip_content(memoryview(self._read(extents, 0, _HEAD)), 0)
        if head is None:
            return None
        stream = self._decoded(extents, head)
        if not stream.whole and (following := self._fragments.following(int(extents[0, 1]))) is not None:
            stream = self._decoded(following, head)  # however far it went: what is no deflate may look like some
        return stream if stream.whole or int(stream.contents[-1]) >= _LEAST else None

    def _decoded(self, extents: NDArray[np.int64], head: int) -> Stream:
        """Decode a stream behind a head of so many bytes, as far as it goes, and keep its content."""
        first = len(self._content)
        rows = np.concatenate((np.zeros((1, 3), dtype=np.int64), *self._blocks(extents, head)))
        rows[0, 0] = 8 * head
        end = (int(rows[-1, 0]) + 7) // 8
        tail = self._read(extents, end, _TAIL)
        whole = bool(rows[-1, 2] & 4) and tail[4:] == (int(rows[-1, 1]) & 0xFFFFFFFF).to_bytes(4, "little")
        if not whole:  # the last block may be made of bytes that do not belong to it
            rows, tail = rows[: max(1, len(rows) - 1)], b""
            end = int(rows[-1, 0]) // 8
        return Stream(extents, head, end + len(tail), rows[:, 0], rows[:, 1], rows[1:, 2], first, tail)

    def _blocks(self, extents: NDArray[np.int64], head: int) -> Iterator[NDArray[np.int64]]:
        """Yield blocks, some at a time: the bit behind each, the end of its content, its type; keep their content."""
        bit, done, context, window = 8 * head, 0, 0, 0
        while True:
            data = self._read(extents, bit // 8, _WINDOWS[window])
            rows, ended = native.inflate_blocks(data, self._out, bit=bit % 8, context=context, most=len(data))
            if len(rows):
                last = int(rows[-1, 1])
                self._content.append(self._out[context:last].data)
                yield rows + np.array((bit // 8 * 8, done - context, 0))
                bit, done = bit // 8 * 8 + int(rows[-1, 0]), done + last - context
                context = min(last, CONTEXT)
                self._out[:context] = self._out[last - context : last].copy()
                window = max(window, 1)
                if rows[-1, 2] & 4 or len(self._content) >= MOST_CONTENT:
                    return
            elif ended == Ended.BAD and len(data) == _WINDOWS[window] and window + 1 < len(_WINDOWS):
                window += 1
            elif ended == Ended.ROOM and len(self._out) < CONTEXT + _ROOMS[-1]:
                self._out = np.concatenate((self._out[:context], np.empty(CONTEXT + _ROOMS[-1] - context, np.uint8)))
            else:
                return

    @cached_property
    def _fragments(self) -> _Fragments:
        return _Fragments(self._image)


class _Fragments:
    """The extents of an image's files that lie in several places."""

    def __init__(self, image: Whole) -> None:
        files, count = list[NDArray[np.int64]](), 0
        for extents in _files(image):
            if len(extents) > 1 and count + len(extents) <= _MOST_EXTENTS:
                files.append(extents)
                count += len(extents)
        joined = np.concatenate([np.zeros((0, 3), dtype=np.int64), *files])
        owner = np.repeat(np.arange(len(files)), [len(extents) for extents in files])
        order = np.argsort(joined[:, 1], kind="stable")
        self._files, self._owner, self._extents = files, owner[order], joined[order]

    def following(self, place: int) -> NDArray[np.int64] | None:
        """Return extents of the bytes of a file from a place in the image on, up to its first gap; None if the place
        belongs to no file in several places."""
        at = int(np.searchsorted(self._extents[:, 1], place, side="right")) - 1
        if at < 0 or place >= int(self._extents[at, 1] + self._extents[at, 2]):
            return None
        offset = int(self._extents[at, 0]) + place - int(self._extents[at, 1])
        return _behind(self._files[int(self._owner[at])], offset)


def _files(image: Whole) -> Iterator[NDArray[np.int64]]:
    """Yield the extents of all files of an image, as far as its file systems can be read."""
    for found in find_file_systems(image.read, image.size):
        if found.file_system is None:
            continue
        try:
            for entry in found.file_system.files():
                yield entry.extents
        except FormatError as error:
            _LOG.info("files of %s are not looked at: %s", found.volume.name, error)


def _behind(extents: NDArray[np.int64], offset: int) -> NDArray[np.int64]:
    """Return the extents of what lies from ``offset`` on, up to the first gap."""
    rest = extents[extents[:, 0] + extents[:, 2] > offset].copy()
    if not len(rest):
        return rest
    cut = max(0, offset - int(rest[0, 0]))
    rest[0] += np.array((cut, cut, -cut))
    rest[:, 0] -= offset
    gaps = np.flatnonzero(rest[:, 0] != np.cumsum(rest[:, 2]) - rest[:, 2])
    return rest[: int(gaps[0])] if len(gaps) else rest


def _places(extents: NDArray[np.int64], low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield place and length of the bytes from ``low`` to ``high`` of what has these extents."""
    ends = extents[:, 0] + extents[:, 2]
    for offset, place, length in extents[int(np.searchsorted(ends, low, side="right")) :].tolist():
        if offset >= high:
            return
        first, last = max(low, offset), min(high, offset + length)
        yield place + first - offset, last - first
