"""Jobs: the parts in which zstd frames are made by several threads (FORMAT.md, "Tool", and "Wrapped unit").

With workers, libzstd divides content into jobs of a fixed size and compresses each by itself: it may refer to an
*overlap* of content before it, but takes no tables and no offsets over. So a job can be made again from its content
and that overlap, and can be decoded without what lies before it. The sizes are those of libzstd
(``lib/compress/zstdmt_compress.c``) where a program sets none; nothing depends on them but what a publisher tries.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.errors import FormatError

MAX_WINDOW: Final = 22
"""Jobs of frames with a larger window, 2^23 bytes and more, have 32 MiB: too much for a unit."""
MAX_OVERLAP: Final = 21
"""2^21 bytes at most lie before a job of a frame with such a window."""
HEAD: Final = b"\x28\xb5\x2f\xfd\x00\x68"
"""Of a frame that declares no size, with a window of 8 MiB."""
_START: Final = 6
"""Bytes of such a head."""
_LEAST_JOB: Final = 20
_OVERLAPS: Final = {6: 2, 5: 2, 7: 1, 8: 1, 9: 0}
"""How much smaller than the window the overlap is, as a power of two, by libzstd's strategy; else by 2^3."""
_BLOCK: Final = 1 << 17
_WHAT: Final = "blocks of a zstd frame"


def job_size(window: int) -> int:
    """Return the bytes of content of a job of a frame with a window of 2^``window`` bytes."""
    return 1 << max(_LEAST_JOB, window + 2)


def window_of(level: int) -> int:
    """Return the window, as a power of two, of frames of this level whose size is large or not known."""
    return int(zstandard.ZstdCompressionParameters.from_level(level).window_log)


def overlap_of(level: int) -> int:
    """Return the overlap before a job of this level, as a power of two."""
    parameters = zstandard.ZstdCompressionParameters.from_level(level)
    return int(parameters.window_log) - _OVERLAPS.get(int(parameters.strategy), 3)


def compress(content: Bytes, level: int, *, before: int, ends: bool) -> bytes:
    """Return the blocks of jobs with this content behind its first ``before`` bytes, which only may be referred to.

    By the libzstd that the package ``zstandard`` comes with; ``ends``: the last of them ends the frame.
    """
    view, out = memoryview(content), io.BytesIO()
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False, threads=1)
    stream, start = compressor.stream_writer(out, closefd=False), _START
    if before:
        stream.write(view[:before])
        stream.flush(zstandard.FLUSH_BLOCK)
        start = out.tell()
    stream.write(view[before:])
    stream.flush(zstandard.FLUSH_FRAME if ends else zstandard.FLUSH_BLOCK)
    return bytes(out.getbuffer()[start:])


def decode(stored: Bytes, count: int, size: int, context: bytes) -> bytes:
    """Return the content, of ``size`` bytes, of ``count`` blocks, which begin where a job does and may refer to
    ``context`` before them. Memory: the result, the blocks twice, the context twice, and 9 MiB.

    Raises:
        FormatError: there are more or fewer blocks, they are damaged, or have more or less content.
    """
    frame = bytearray(HEAD)
    frame += stored
    at = last = len(HEAD)
    for _ in range(count):
        head = int.from_bytes(frame[at : at + 3], "little")
        last, at = at, at + 3 + (1 if head >> 1 & 3 == 1 else head >> 3)
        if at > len(frame) or head >> 3 > _BLOCK:
            raise FormatError(_WHAT, last, f"{count} blocks within {len(stored)} bytes", head)
    if at != len(frame) or not count:
        raise FormatError(_WHAT, at, "one block at least, up to the end", f"{count}, {len(frame) - at} bytes more")
    frame[last] |= 1
    known = zstandard.ZstdCompressionDict(context, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if context else None
    try:
        content: bytes = zstandard.ZstdDecompressor(dict_data=known).decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise FormatError(_WHAT, 0, "blocks that can be decoded", str(error)) from error
    if len(content) != size:
        raise FormatError(_WHAT, 0, f"{size} bytes of content", len(content))
    return content


def referred(stored: Bytes, count: int, size: int, *, skip: int, reach: int) -> tuple[NDArray[np.int64], int]:
    """Return which of the ``reach`` bytes before blocks what they contain behind ``skip`` is made of, ascending; and
    how many, the last ones, any of their content is made of.

    Found by decoding with bytes there that tell where they come from: five times. Raises what :func:`decode` raises.
    """

    def decoded(context: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.frombuffer(decode(stored, count, size, context.tobytes()), np.uint8)

    copied = np.flatnonzero(decoded(np.zeros(reach, np.uint8)) != decoded(np.full(reach, 255, np.uint8)))
    if not len(copied):
        return copied, 0
    found, places = np.zeros(len(copied), np.uint32), np.arange(reach, dtype=np.uint32)
    for shift in (0, 8, 16):
        found |= decoded((places >> np.uint32(shift)).astype(np.uint8))[copied].astype(np.uint32) << np.uint32(shift)
    return np.unique(found[copied >= skip]).astype(np.int64), reach - int(found.min())
