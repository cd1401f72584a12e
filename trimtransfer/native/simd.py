"""Which instruction set the C functions use."""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Final

from trimtransfer.errors import TrimTransferError
from trimtransfer.native.wall import lib

VARIABLE: Final = "TRIMTRANSFER_SIMD"


class Simd(IntEnum):
    """Instruction sets that the compiled functions can use (``TT_SCALAR`` and so on in ``native/cpu.h``)."""

    SCALAR = 0
    SSSE3 = 1
    NEON = 1
    AVX2 = 2
    AVX512 = 3


def selected() -> Simd:
    """Return the instruction set in use."""
    return Simd(lib.tt_path())


def select(path: Simd | None) -> Simd:
    """Make all later calls use ``path`` (None: the best one) and return what is in use now.

    Raises ``ValueError`` if this machine, or this build, does not have it.
    """
    now = lib.tt_select(-1 if path is None else int(path))
    if now < 0:
        raise ValueError(f"this machine or this build has no {path!r}")
    return Simd(now)


def available() -> tuple[Simd, ...]:
    """Return the instruction sets that this machine and this build have, slowest first."""
    before = selected()
    found = tuple(path for path in Simd if lib.tt_select(int(path)) >= 0)
    select(before)
    return found


def _select_from_environment() -> None:
    wanted = os.environ.get(VARIABLE, "").strip().upper()
    if not wanted:
        return
    if wanted not in Simd.__members__:
        raise TrimTransferError(f"{VARIABLE}={wanted.lower()}: use scalar, ssse3, neon, avx2 or avx512, or unset it")
    try:
        select(Simd[wanted])
    except ValueError:
        raise TrimTransferError(f"{VARIABLE}={wanted.lower()}: this machine does not have it; unset it") from None


_select_from_environment()
