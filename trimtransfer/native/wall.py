"""Arrays as the C functions get them, and the compiled module itself: nobody else imports it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtransfer.errors import TrimTransferError

try:
    from trimtransfer._native import ffi, lib
except ModuleNotFoundError:  # a checkout that is not installed hides the package that is
    raise TrimTransferError(
        f"the compiled part of trimtransfer is missing in {os.path.dirname(os.path.dirname(__file__))}: "
        "work in another directory, or install with 'pip install -e .'"
    ) from None

__all__ = ("ffi", "lib", "u8", "u32", "u64")


def u8(array: NDArray[np.uint8]) -> object:
    """Return what the C function gets for an array of uint8."""
    return _pointer(array, np.dtype(np.uint8), "uint8_t[]")


def u32(array: NDArray[np.uint32]) -> object:
    """Return what the C function gets for an array of uint32."""
    return _pointer(array, np.dtype(np.uint32), "uint32_t[]")


def u64(array: NDArray[np.uint64]) -> object:
    """Return what the C function gets for an array of uint64."""
    return _pointer(array, np.dtype(np.uint64), "uint64_t[]")


def _pointer(array: NDArray[Any], dtype: np.dtype[Any], declaration: str) -> object:
    """Return what the C function gets for ``array``, which must have this type (``TypeError``) and no gaps."""
    if array.dtype != dtype:
        raise TypeError(f"an array of {array.dtype} where {dtype} is needed")
    return ffi.from_buffer(declaration, array)
