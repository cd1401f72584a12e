"""Decoding of packed units within bounds: deflate (RFC 1951, RFC 1950) and zstd (RFC 8878)."""

from __future__ import annotations

import zlib
from typing import Final

import zstandard

from trimtransfer.errors import FormatError

_MAX_WINDOW: Final = 8 << 20
"""Memory for zstd's window; a unit has at most 2 MiB, so no encoder needs a larger one."""


def inflate(packed: bytes, size: int, what: str, *, header: bool) -> bytes:
    """Return what deflate packed, at most ``size`` bytes; bytes behind its end do not matter.

    ``header``: with zlib's (RFC 1950), else a bare stream.

    Raises:
        FormatError: not deflate, or the stream does not end within ``packed`` and ``size``.
    """
    decoder = zlib.decompressobj(zlib.MAX_WBITS if header else -zlib.MAX_WBITS)
    try:
        content = decoder.decompress(packed, size)
        if not decoder.eof:  # its last byte is out, but not yet its end mark
            content += decoder.decompress(decoder.unconsumed_tail, 1)
    except zlib.error as error:
        raise FormatError(what, 0, "deflated data", error) from None
    if not decoder.eof or len(content) > size:
        raise FormatError(what, 0, f"deflated data of at most {size:,} bytes", "more, or an end that is missing")
    return content


def unzstd(packed: bytes, size: int, what: str) -> bytes:
    """Return the first ``size`` bytes of the content of a zstd frame; bytes behind the frame do not matter.

    Raises:
        FormatError: not zstd, or the content is not that long.
    """
    decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    try:
        with decoder.stream_reader(packed, read_across_frames=False) as stream:
            content = stream.read(size)
    except zstandard.ZstdError as error:
        raise FormatError(what, 0, "data compressed by zstd", error) from None
    if len(content) != size:
        raise FormatError(what, 0, f"{size:,} bytes compressed by zstd", f"{len(content):,} bytes")
    return content
