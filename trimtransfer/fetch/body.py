"""A body as a stream of an object's bytes, and the wanted parts cut out of it.

Pure. One loop serves a 206 (one part, all of the body) and a 200 (many parts of the object, the rest dropped as it
passes). Bytes beyond what the answer's head announced, or beyond the last wanted part, are never read.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trimtransfer.fetch.answer import Answer
from trimtransfer.fetch.retry import Cause, Failed
from trimtransfer.store import Range

_GROWTH: Final = 64 << 10
"""Buffers have a multiple of this length."""


@dataclass(slots=True)
class Part:
    """A wanted range and how many of its bytes, from its start, are in the buffer already."""

    wanted: Range
    got: int = 0

    @property
    def begin(self) -> int:
        """Offset in the object of the first byte still missing."""
        return self.wanted.start + self.got

    @property
    def end(self) -> int:
        """Offset in the object behind the last wanted byte."""
        return self.wanted.end


class Body:
    """The bytes of an object from ``answer.start`` on, as ``chunks`` bring them."""

    def __init__(self, chunks: Iterator[bytes], answer: Answer) -> None:
        self._chunks = chunks
        self._stop, self._framed = answer.stop, answer.framed
        self._rest = memoryview(b"")
        self.position = answer.start

    def skip(self, offset: int) -> None:
        """Drop everything before ``offset``."""
        while self.position < offset:
            self._next(offset - self.position)

    def fill(self, part: Part, buffer: memoryview) -> None:
        """Copy the part's missing bytes into its buffer, as far as the answer reaches; ``Failed`` where it ends early.

        The body stands at ``part.begin``; ``part.got`` counts along, so that a failure loses nothing.
        """
        end = part.end if self._stop is None else min(part.end, self._stop)
        while part.begin < end:
            piece = self._next(end - part.begin)
            buffer[part.got : part.got + len(piece)] = piece
            part.got += len(piece)

    def rest(self, limit: int) -> bytearray | None:
        """Return everything up to the body's end, or None where that is more than ``limit`` bytes."""
        data = bytearray()
        while (chunk := next(self._chunks, None)) is not None:
            data += chunk
            if len(data) > limit:
                return None
        return data

    def finish(self) -> None:
        """Read the end mark that follows the last byte, so that the connection can serve another request."""
        if self._framed and self.position == self._stop and not self._rest:
            with contextlib.suppress(Failed):  # all bytes are here
                next(self._chunks, None)

    def _next(self, most: int) -> memoryview:
        """Return the next 1 to ``most`` bytes; ``Failed`` at the body's end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise Failed(Cause.CUT, f"the answer ended early, at byte {self.position:,} of the object")
            self._rest = memoryview(chunk)
        piece, self._rest = self._rest[:most], self._rest[most:]
        self.position += len(piece)
        return piece


class Landing:
    """A reused buffer for one part at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def room(self, length: int) -> memoryview:
        """Return the buffer's first ``length`` bytes; growing loses what it held."""
        if len(self._buffer) < length:
            self._buffer = bytearray(-(-length // _GROWTH) * _GROWTH)
        return memoryview(self._buffer)[:length]

    def lend(self, length: int, use: Callable[[memoryview], None]) -> None:
        """Call ``use`` with the first ``length`` bytes, read-only.

        A view that outlives the call keeps its bytes: a buffer that somebody still looks at is never written again.
        """
        with memoryview(self._buffer)[:length].toreadonly() as view:
            use(view)
        try:
            # Changing the length is refused while a view exists; within the allocation it copies nothing.
            self._buffer.append(self._buffer.pop())
        except BufferError:
            self._buffer = bytearray()


def cut(
    body: Body, answer: Answer, parts: deque[Part], landing: Landing, ready: Callable[[Part], None], *, limit: int
) -> None:
    """Fill the parts, which are in order and do not overlap, as far as the answer holds them, and remove them.

    ``ready`` is called with each complete part while ``landing`` holds it. In a whole object no part that ends beyond
    ``limit`` is waited for, save the first one.
    """
    first = True
    while parts:
        part = parts[0]
        outside = part.begin < body.position or (answer.stop is not None and part.begin >= answer.stop)
        if outside or not (first or part.end <= limit):
            return
        body.skip(part.begin)
        with landing.room(part.wanted.length) as room:
            body.fill(part, room)
        body.finish()
        if part.begin < part.end:
            return
        ready(part)
        parts.popleft()
        first = False
