"""zstd frames with bounds: the only module that compresses and decompresses (RFC 8878).

A frame always declares its content size, so what a decoder allocates is known, and limited, before it starts.
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from trimtransfer.chunk import Bytes
from trimtransfer.errors import FormatError

MAX_WINDOW: Final = 8 << 20
"""Largest window a decoder agrees to, the least that RFC 8878 (section 3.1.1.1.2) recommends to support."""

_local = threading.local()  # contexts are costly to make and must not be shared between threads


def compress(data: Bytes, level: int) -> bytes:
    """Return ``data`` as one zstd frame that declares its content size."""
    contexts: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    compressor = contexts.get(level)
    if compressor is None:
        compressor = contexts[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    return compressor.compress(data)


def decompress(stored: Bytes, limit: int, what: str) -> bytes:
    """Return the content of one zstd frame that declares its size, which is at most ``limit`` bytes.

    ``what`` names the data in errors.

    Raises:
        FormatError: not exactly one such frame.
    """
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        declared = zstandard.frame_content_size(stored)
        if not 0 <= declared <= limit:
            raise FormatError(what, 0, f"a zstd frame of a declared size up to {limit}", f"{declared} bytes")
        window = zstandard.get_frame_parameters(stored).window_size  # a decoder of whole frames does not look at it
        if window > MAX_WINDOW:
            raise FormatError(what, 0, f"a zstd frame with a window up to {MAX_WINDOW}", f"{window} bytes")
        data = decompressor.decompress(stored, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(what, 0, "a zstd frame", str(error)) from error
    if len(data) != declared:
        raise FormatError(what, 0, f"{declared} bytes after decompression", len(data))
    return data
