"""Compressed streams in the image of a version: where their bytes lie, where their blocks end, and what they contain.

A member - of gzip, a zip entry, a zstd frame, a block of an xz file - is looked for where one may begin, and followed
through the image; where it does not run on contiguously, through the extents of its file, if a file system can be read.
Nothing is believed: whole blocks that can be decoded are useful whatever they are, and who uses them compares what
comes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtransfer import native
from trimtransfer.chunk import object_check
from trimtransfer.errors import FormatError
from trimtransfer.filesystem.volumes import find_file_systems
from trimtransfer.framed import MAX_HEAD, XZ_MAGIC, ZSTD_MAGIC, Framed, xz_block, zip_content, zstd_frame
from trimtransfer.native import Ended
from trimtransfer.repository.largeframes import read_large_frame
from trimtransfer.spill import Flat
from trimtransfer.tool import Kind, decompress
from trimtransfer.unit import MAX_CONTENT
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
_MOST_STREAMS: Final = 1 << 17
"""Streams of a version that are looked into: each takes up to a KiB."""
_LEAST_FRAMED: Final = 1 << 10
"""Bytes of content that make it worth compressing again."""
_MOST_BLOCKS: Final = 1 << 14
"""Blocks of a zstd frame, chunks of an LZMA2 payload that are looked at; of 12 MiB there are some 100 to 400."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A member, or its beginning: ``size`` bytes, of which ``head`` lie before the compressed ones; ``whole`` if it
    reaches its end. Of two with the same ``key`` the contents are taken for equal; there is none if it is empty.

    Of a deflate stream, in a gzip member or, ``zipped``, an entry of a zip file, blocks are told apart; what is
    ``framed`` can only be decoded and made whole, and counts as one block; unless it has ``jobs`` (int64, (jobs + 1,)):
    these can be decoded and made each by itself, which begin with blocks of these numbers, and end with the last one.

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
    whole: bool
    key: bytes
    zipped: bool = False
    framed: Framed | None = None
    jobs: NDArray[np.int64] | None = None

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

    def __init__(
        self, image: Whole, starts: Iterable[int], directory: Path, *, watch: Watch, framed: bool = True
    ) -> None:
        """Decode them; ``starts`` ascend, ``directory`` takes a temporary file. Without ``framed`` only deflate.

        Raises:
            FormatError, IntegrityError, NotFound: the repository is damaged.
        """
        self._image, self._with_framed = image, framed
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
        check: int | None = None
        while len(self._content) < MOST_CONTENT and len(self._found) < _MOST_STREAMS:
            stream, behind, check = self._member(extents, check)
            if stream is None:
                break
            self._found.append(stream)
            place, length = list(stream.places(stream.size - 1, stream.size))[-1]
            end = max(end, place + length)
            if not stream.whole or not behind:
                break
            extents = _behind(stream.extents, behind)
        return end

    def _member(self, extents: NDArray[np.int64], check: int | None) -> tuple[Stream | None, int, int | None]:
        """Return the member that begins where the extents do (None: none that is worth something), where another one
        may follow it (0: nowhere), and of an xz file the kind of its checks, which the one before has told."""
        head = self._read(extents, 0, _HEAD)
        if check is not None or head.startswith((ZSTD_MAGIC, XZ_MAGIC)):
            return self._framed(extents, check) if self._with_framed else (None, 0, None)
        zipped = zip_content(head)
        begin = zipped[0] if zipped else gzip_content(memoryview(head), 0)
        if begin is None:
            return None, 0, None
        stream = self._decoded(extents, begin, zipped)
        if not stream.whole and (following := self._fragments.following(int(extents[0, 1]))) is not None:
            # however far it went: what is no deflate may look like some
            stream = self._decoded(following, begin, zipped)
        worth = stream.whole or int(stream.contents[-1]) >= _LEAST
        return stream if worth else None, 0 if zipped else stream.size, None

    def _framed(self, extents: NDArray[np.int64], check: int | None) -> tuple[Stream | None, int, int | None]:
        """Return what is framed at the beginning of extents, as :meth:`_member` does."""
        beginning, found = extents, self._opened(extents, check)
        if found is None and (following := self._fragments.following(int(extents[0, 1]))) is not None:
            extents, found = following, self._opened(following, check)
        if found is None:
            return (None, 0, None) if check is not None else self._large(beginning)
        frame, stored, check, content = found
        bits = 8 * np.array((frame.head, frame.end), dtype=np.int64)
        contents, types = np.array((0, len(content)), dtype=np.int64), np.zeros(1, dtype=np.int64)
        first = len(self._content)
        self._content.append(memoryview(content))
        key = object_check(stored)
        stream = Stream(extents, frame.head, frame.end, bits, contents, types, first, True, key, framed=frame)
        return stream, frame.following, check

    def _large(self, extents: NDArray[np.int64]) -> tuple[Stream | None, int, int | None]:
        """Return a zstd frame at the beginning of extents that is too large for a unit, as :meth:`_member` does."""
        stream = self._with_jobs(extents)
        if stream is not None and stream.whole:
            return stream, stream.size, None
        following = self._fragments.following(int(extents[0, 1]))
        other = self._with_jobs(following) if following is not None else None
        return other or stream, other.size if other is not None and other.whole else 0, None

    def _with_jobs(self, extents: NDArray[np.int64]) -> Stream | None:
        first, most = len(self._content), MOST_CONTENT - len(self._content)
        found = read_large_frame(partial(self._read, extents), self._content.append, most=most)
        if found is None:
            return None
        types = np.zeros(len(found.bits) - 1, dtype=np.int64)
        return Stream(
            extents, int(found.bits[0]) // 8, found.size, found.bits, found.contents, types, first, found.whole, b"",
            framed=found.framed, jobs=found.jobs,
        )  # fmt: skip

    def _opened(self, extents: NDArray[np.int64], check: int | None) -> tuple[Framed, bytes, int | None, bytes] | None:
        """Return the frame at the beginning of extents, its bytes, the kind of an xz file's checks, and the content;
        None if there is none that is worth something."""
        found = self._frame(extents, check)
        if found is None:
            return None
        frame, stored, _ = found
        before = frame.option if frame.kind is Kind.LZMA2 else 0
        try:
            content = decompress(frame.kind, before, stored, frame.size if frame.size >= 0 else MAX_CONTENT)
        except FormatError:
            return None
        return (*found, content) if len(content) >= _LEAST_FRAMED else None

    def _frame(self, extents: NDArray[np.int64], check: int | None) -> tuple[Framed, bytes, int | None] | None:
        """Return the frame at the beginning of extents, its bytes, and the kind of an xz file's checks; None if there
        is none, or it is too large for a unit."""
        for window in _WINDOWS:
            data = self._read(extents, 0, window)
            if data.startswith(ZSTD_MAGIC) and check is None:
                found = zstd_frame(data, most=_MOST_BLOCKS)
            else:
                block = xz_block(data, check, most=_MOST_BLOCKS)
                found, check = block or (None, check)
            if found is not None:
                good = found.size <= MAX_CONTENT and found.head <= MAX_HEAD
                return (found, data[found.head : found.end], check) if good else None
            if len(data) < window:
                break
        return None

    def _decoded(self, extents: NDArray[np.int64], head: int, zipped: tuple[int, int] | None) -> Stream:
        """Decode a deflate stream behind a head of so many bytes, as far as it goes, and keep its content."""
        first = len(self._content)
        rows = np.concatenate((np.zeros((1, 3), dtype=np.int64), *self._blocks(extents, head)))
        rows[0, 0] = 8 * head
        end = (int(rows[-1, 0]) + 7) // 8
        tail = self._read(extents, end, _TAIL)
        length = (int(rows[-1, 1]) & 0xFFFFFFFF).to_bytes(4, "little")
        fits = zipped[1] in (-1, end - head) if zipped else tail[4:] == length
        whole = bool(rows[-1, 2] & 4) and fits
        if not whole:  # the last block may be made of bytes that do not belong to it
            rows = rows[: max(1, len(rows) - 1)]
            end = int(rows[-1, 0]) // 8
        key = (self._read(extents, 14, 4) + length if zipped[1] >= 0 else b"") if zipped else tail
        size = end + len(tail) if whole and not zipped else end
        return Stream(
            extents, head, size, rows[:, 0], rows[:, 1], rows[1:, 2], first, whole, key if whole else b"", bool(zipped)
        )

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
