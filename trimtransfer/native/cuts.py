"""Where chunks end: block hints, the rule by which chunker 1 cuts, the search of chunker 2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import BLOCK_SIZE, Bytes
from trimtransfer.native.wall import ffi, lib, u8, u32, u64


def hints(data: Bytes, mixed: NDArray[np.uint32], flags: NDArray[np.uint8]) -> None:
    """Write the mixed hint and the flags (bit 0: all zero; bit 1: not, but its last 16 bytes are) of every 4 KiB block.

    A short last block counts as padded with zeros. ``data`` must be contiguous; ``ValueError`` if it is not, or if the
    arrays do not have one element for each block.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    if not len(mixed) == len(flags) == -(-len(view) // BLOCK_SIZE):
        raise ValueError(
            f"{len(mixed)} hints and {len(flags)} flags for {len(view)} bytes: one of each per 4 KiB block"
        )
    lib.tt_hints(view, len(view), u32(mixed), u8(flags))


def cut(mixed: NDArray[np.uint32], flags: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the records of one region as numbers of blocks, bit 31 set for zero records (``native/cut.h``).

    Raises ``ValueError`` unless both arrays have one element for each block.
    """
    if len(mixed) != len(flags) or len(mixed) >= 1 << 31:
        raise ValueError(f"{len(mixed)} hints and {len(flags)} flags: one of each per block, below 2^31")
    runs = np.empty(len(mixed), np.uint32)
    return runs[: lib.tt_cut(u32(mixed), u8(flags), len(mixed), u32(runs))]


def rule(*, least: int, norm: int, most: int, strict: int, loose: int, level: int) -> object:
    """Return a rule of chunker 2 (``tt_rule`` in ``native/search.h``) for :func:`search`; make it once.

    Raises ``ValueError`` for values that the search is not made for.
    """
    if not (256 <= least <= norm <= most <= 1 << 40 and 0 <= strict <= loose < 1 << 64 and 0 <= level <= 126):
        raise ValueError(f"no rule: {least} {norm} {most} bytes, hashes {strict} {loose}, level {level}")
    made = ffi.new("tt_rule *")
    made.min, made.norm, made.max = least, norm, most
    made.strict, made.loose, made.level = strict, loose, level
    return made


def search(data: Bytes, by: object, cuts: NDArray[np.uint64], *, final: bool) -> int:
    """Write the ends of the chunks of ``data``, which begins with one, to ``cuts``; return how many.

    ``by`` is what :func:`rule` returned. With ``final`` the data ends here and so does the last chunk; otherwise the
    search stops where fewer bytes than the rule's largest chunk are left. It also stops when ``cuts`` is full.
    """
    view = ffi.from_buffer("uint8_t[]", data)
    count: int = lib.tt_search(view, len(view), final, by, u64(cuts), len(cuts))
    return count
