"""The system's own libzstd, beside the one that comes with the package ``zstandard``: releases choose otherwise, and
guests have files of the release that their distribution has, often the host's.

Only its stable interface is used (zstd.h, since 1.4.0). Where there is none, nothing is compressed by it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from typing import Any, Final

from trimtransfer.chunk import Bytes
from trimtransfer.errors import FormatError

_NAME: Final = "libzstd.so.1"
_WHAT: Final = "the system's libzstd"
_LEVEL, _SIZE, _CHECKSUM, _WORKERS = 100, 200, 201, 400
_CONTINUE, _FLUSH, _END = 0, 1, 2
_PIECE: Final = 1 << 17
_LEAST: Final = 10400
_START: Final = 6
"""Bytes of the head of a frame that declares no size."""


class _In(Structure):
    _fields_ = [("at", c_void_p), ("size", c_size_t), ("pos", c_size_t)]


class _Out(Structure):
    _fields_ = [("at", c_void_p), ("size", c_size_t), ("pos", c_size_t)]


def compress(content: Bytes, level: int, *, size: bool, checksum: bool, jobs: bool, streamed: bool) -> bytes:
    """Return ``content`` as a frame: with its ``size``, known before and declared; a ``checksum``; in ``jobs`` as by
    several threads; ``streamed`` in pieces of 128 KiB.

    Raises:
        FormatError: there is no such library, or it refuses.
    """
    view = memoryview(content).cast("B")
    piece = _PIECE if streamed or not size else max(1, len(view))
    return _compressed(view, level, (int(size), int(checksum), int(jobs)), piece, _END, len(view))


def beginning(
    content: Bytes, level: int, length: int, *, size: bool, checksum: bool, jobs: bool, streamed: bool
) -> bytes:
    """Return what a frame of ``content`` begins with: what comes of its first ``length`` bytes."""
    view = memoryview(content).cast("B")
    del streamed  # the first blocks are the same
    return _compressed(view[:length], level, (int(size), int(checksum), int(jobs)), _PIECE, _FLUSH, len(view))


def compress_jobs(content: Bytes, level: int, *, before: int, ends: bool) -> bytes:
    """Return what :func:`trimtransfer.zstdjobs.compress` does; raises what :func:`compress` does."""
    view = memoryview(content).cast("B")
    with _context(level, (0, 0, 1)) as (library, context):
        if before:
            _fed(library, context, view[:before], _FLUSH)
        made = _fed(library, context, view[before:], _END if ends else _FLUSH)
    return made if before else made[_START:]


def _compressed(
    view: memoryview, level: int, options: tuple[int, int, int], piece: int, ending: int, pledged: int
) -> bytes:
    with _context(level, options) as (library, context):
        if options[0]:
            _checked(library, library.ZSTD_CCtx_setPledgedSrcSize(context, pledged))
        return _streamed(library, context, view, piece, ending)


@contextlib.contextmanager
def _context(level: int, options: tuple[int, int, int]) -> Iterator[tuple[Any, int]]:
    """Give the library and a context that is set up, for as long as it is needed."""
    library = _library()
    if library is None:
        raise FormatError(_WHAT, 0, f"{_NAME} 1.4 or later", "none")
    context = library.ZSTD_createCCtx()
    if not context:
        raise FormatError(_WHAT, 0, "memory", "none")
    try:
        for parameter, value in zip((_LEVEL, _SIZE, _CHECKSUM, _WORKERS), (level, *options), strict=True):
            _checked(library, library.ZSTD_CCtx_setParameter(context, parameter, value))
        yield library, context
    finally:
        library.ZSTD_freeCCtx(context)


def _fed(library: Any, context: int, view: memoryview, ending: int) -> bytes:
    """Return what comes of a view, and of what was given before and is not written yet; only a piece of it is copied at
    a time."""
    room, made = ctypes.create_string_buffer(_PIECE), list[bytes]()

    def step(part: _In, directive: int) -> int:
        out = _Out(ctypes.addressof(room), _PIECE, 0)
        left = _checked(library, library.ZSTD_compressStream2(context, byref(out), byref(part), directive))
        made.append(ctypes.string_at(room, out.pos))
        return left

    for at in range(0, len(view), _PIECE):
        data = bytes(view[at : at + _PIECE])
        part = _In(ctypes.cast(c_char_p(data), c_void_p).value or 0, len(data), 0)
        last = at + _PIECE >= len(view)
        while step(part, ending if last else _CONTINUE) * last or part.pos < part.size:
            pass
    return b"".join(made)


def _streamed(library: Any, context: int, view: memoryview, piece: int, ending: int) -> bytes:
    """Return what comes of a view that is given piece by piece; where it ends is told apart from the last one, unless
    that is all, for otherwise its size would be known."""
    room = library.ZSTD_compressBound(len(view)) + 64
    made = ctypes.create_string_buffer(room)
    out = _Out(ctypes.addressof(made), room, 0)
    data = bytes(view)
    source = ctypes.cast(c_char_p(data), c_void_p).value or 0
    whole = piece >= len(data) and piece != _PIECE
    for at in () if whole else range(0, len(data), piece):
        part = _In(source + at, min(piece, len(data) - at), 0)
        while part.pos < part.size:
            _step(library, context, out, part, _CONTINUE)
    part = _In(source, len(data) if whole else 0, 0)
    while _step(library, context, out, part, ending):
        pass
    return made.raw[: out.pos]


def _step(library: Any, context: int, out: _Out, part: _In, directive: int) -> int:
    """Go on as far as there is something to do; return whether something is left to be written."""
    left = _checked(library, library.ZSTD_compressStream2(context, byref(out), byref(part), directive))
    if out.pos == out.size and (left or part.pos < part.size):
        raise FormatError(_WHAT, 0, f"at most {out.size} bytes", "more")
    return left


def _checked(library: Any, result: int) -> int:
    if library.ZSTD_isError(result):
        raise FormatError(_WHAT, 0, "no error", library.ZSTD_getErrorName(result).decode())
    return result


@cache
def _library() -> Any:
    """Return the library, None if there is none that will do."""
    try:
        library = ctypes.CDLL(_NAME)
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "ZSTD_versionNumber": (c_uint, []),
            "ZSTD_createCCtx": (c_void_p, []),
            "ZSTD_freeCCtx": (c_size_t, [c_void_p]),
            "ZSTD_CCtx_setParameter": (c_size_t, [c_void_p, c_int, c_int]),
            "ZSTD_CCtx_setPledgedSrcSize": (c_size_t, [c_void_p, c_ulonglong]),
            "ZSTD_compressStream2": (c_size_t, [c_void_p, POINTER(_Out), POINTER(_In), c_int]),
            "ZSTD_compressBound": (c_size_t, [c_size_t]),
            "ZSTD_isError": (c_uint, [c_size_t]),
            "ZSTD_getErrorName": (c_char_p, [c_size_t]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library if library.ZSTD_versionNumber() >= _LEAST else None


def is_there() -> bool:
    """Tell whether the system has one."""
    return _library() is not None
