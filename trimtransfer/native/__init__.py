"""The wall to the compiled module: one typed function for each C function, arguments checked here, nothing else.

The C functions read and write the callers' buffers, keep no state and release the interpreter lock, so every function
may run in several threads at once (on different output arrays). Which instruction set they use is found at run time;
it never changes a result. The environment variable ``TRIMTRANSFER_SIMD`` (scalar, ssse3, neon, avx2 or avx512), read
once when this module is imported, forces one.
"""

from __future__ import annotations

from trimtransfer.native.cuts import cut, hints, rule, search
from trimtransfer.native.deflate import (
    COMPRESSOR_SIZE,
    CONTENT_MOST,
    REBUILD_ROOM,
    Ended,
    Inflated,
    Rebuilder,
    explain,
    explain_slice,
    inflate,
    inflate_blocks,
)
from trimtransfer.native.deltas import COLUMNS, delta_apply, delta_columns, delta_pieces
from trimtransfer.native.matching import Blocks, anchors, block_keys, match
from trimtransfer.native.simd import VARIABLE, Simd, available, select, selected
from trimtransfer.native.wall import ffi, lib

__all__ = (
    "COLUMNS",
    "COMPRESSOR_SIZE",
    "CONTENT_MOST",
    "REBUILD_ROOM",
    "VARIABLE",
    "Blocks",
    "Ended",
    "Inflated",
    "Rebuilder",
    "Simd",
    "anchors",
    "available",
    "block_keys",
    "cut",
    "delta_apply",
    "delta_columns",
    "delta_pieces",
    "explain",
    "explain_slice",
    "ffi",
    "hints",
    "inflate",
    "inflate_blocks",
    "lib",
    "match",
    "rule",
    "search",
    "select",
    "selected",
)
