"""The layout for a format by its name."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.disk.layout import Identity, Layout
from trimtransfer.disk.layout_qcow2 import Qcow2Layout
from trimtransfer.disk.layout_vhd import VhdLayout
from trimtransfer.disk.layout_vhdx import VhdxLayout

WRITABLE: Final = ("qcow2", "vhd", "vhdx")
"""Formats, raw apart, that can be written."""


def make_layout(
    format: str, size: int, starts: NDArray[np.int64], lengths: NDArray[np.int64], identity: Identity
) -> Layout:
    """Return the layout of a disk of ``size`` bytes of which only these ranges (int64, in order) may not be zero.

    Raises:
        ValueError: a format that cannot be written, or that has no disk of this size.
    """
    if format == "qcow2":
        return Qcow2Layout(size, starts, lengths)
    if format == "vhd":
        return VhdLayout(size, starts, lengths, identity)
    if format == "vhdx":
        return VhdxLayout(size, starts, lengths, identity)
    raise ValueError(f"format {format!r}: can be written are {', '.join(WRITABLE)}")
