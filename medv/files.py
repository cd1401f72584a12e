"""Files below a directory, answered over HTTP: opened without leaving it, read in threads, sent in pieces.

The first piece is read in the same visit to a thread in which the file is opened and the answer decided, so a short
range costs one. The event loop never waits for a disk.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiofiles.os

from medv.ranges import Answer, Facts, Headers, decide, http_date

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PIECE: Final = 256 << 10
"""Bytes read and sent at once: the memory that one request costs."""
NO_SUCH_FILE: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES))
"""What opening says of something that is not to be served; anything else is trouble of the server's own."""


class Shrunk(EOFError):
    """A file that became shorter while it was sent: the connection must break, or the client would believe it."""


@dataclass(slots=True)
class Reading:
    """A file to be sent: ``answer``, ``facts``, the first piece; ``descriptor`` is open if there is more, else -1."""

    name: tuple[str, ...]
    facts: Facts
    answer: Answer
    first: bytes
    descriptor: int

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    async def send(self, send: Send, headers: Headers) -> None:
        """Send the whole answer and close the file; ``Shrunk`` where it ends before its promised end."""
        try:
            await send({"type": "http.response.start", "status": self.answer.status, "headers": headers})
            done, body = len(self.first), self.first
            end = self.answer.start + self.answer.length if self.first else 0
            while True:
                more = bool(body) and self.answer.start + done < end
                await send({"type": "http.response.body", "body": body, "more_body": more})
                if not more:
                    return
                at = self.answer.start + done
                body = await _read(self.descriptor, min(PIECE, end - at), at)
                if not body:
                    raise Shrunk(f"{'/'.join(self.name)} shrank while it was sent")
                done += len(body)
        finally:
            self.close()


def fields(name: tuple[str, ...], facts: Facts, answer: Answer, cache_control: str) -> Headers:
    """Return the header lines of an answer about a file."""
    lines = {
        "etag": facts.etag,
        "last-modified": http_date(facts.modified),
        "cache-control": cache_control,
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
    }
    if answer.status != 304:
        lines["content-length"] = str(answer.length)
    if answer.status in (200, 206):
        lines["content-type"] = "application/json" if name[-1].endswith(".json") else "application/octet-stream"
    if answer.status == 206:
        lines["content-range"] = f"bytes {answer.start}-{answer.start + answer.length - 1}/{facts.size}"
    elif answer.status == 416:
        lines["content-range"] = f"bytes */{facts.size}"
    return [(key.encode(), value.encode()) for key, value in lines.items()]


def open_below(root: Path, name: tuple[str, ...]) -> int:
    """Open a regular file below ``root``, following no symbolic link on the way; else ``OSError``."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in name[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        # O_NONBLOCK: a pipe put there must not hold the worker; it means nothing to a regular file.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(name[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", "/".join(name))
    return file


def _begin(root: Path, name: tuple[str, ...], method: str, headers: Headers) -> Reading:
    descriptor = open_below(root, name)
    try:
        found = os.fstat(descriptor)
        facts = Facts(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)
        answer = decide(method, headers, facts, now=int(time.time()))
        first = os.pread(descriptor, min(PIECE, answer.length), answer.start) if method == "GET" else b""
        if method == "GET" and answer.length and not first:
            raise FileNotFoundError(errno.ENOENT, "it shrank at this moment", "/".join(name))
    except BaseException:
        os.close(descriptor)
        raise
    reading = Reading(name, facts, answer, first, descriptor)
    if len(first) == answer.length or method != "GET":
        reading.close()
    return reading


begin = aiofiles.os.wrap(_begin)
"""``await begin(root, name, method, headers)``: open a file for an answer and read its first piece, in a thread."""
_read = aiofiles.os.wrap(os.pread)
