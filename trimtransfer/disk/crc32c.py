"""CRC-32C (Castagnoli), which VHDX files carry in their headers and tables.

The sum of a long buffer is made of those of its rows, taken side by side: with no bytes before it, a row's sum
depends on the row alone, and putting rows together is linear (each moves the sum before it by a row of zeros).
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL: Final = 0x82F63B78  # reflected
_ROW: Final = 256


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of ``data``."""
    rows = -(-len(data) // _ROW)
    # The start value is all ones over the first four bytes; zeros before data do not change a sum that starts at zero.
    padded = bytes(rows * _ROW - len(data)) + data
    array = np.frombuffer(padded, dtype=np.uint8).reshape(rows, _ROW)
    value = 0
    for row in _advance(np.zeros(rows, dtype=np.uint32), array).tolist():
        value = _skip_row(value) ^ row
    return value ^ _moved_ones(len(data)) ^ 0xFFFF_FFFF


def _advance(values: NDArray[np.uint32], rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Feed to each sum its row of bytes."""
    table = _table()
    for column in rows.T:
        values = table[(values ^ column) & np.uint32(0xFF)] ^ (values >> np.uint32(8))
    return values


@functools.cache
def _table() -> NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(
            values & np.uint32(1), (values >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), values >> np.uint32(1)
        )
    return values


@functools.cache
def _row_tables() -> tuple[tuple[int, ...], ...]:
    """Return, for each of the four bytes of a sum, what a row of zeros makes of each of its values."""
    zeros = np.zeros((256, _ROW), dtype=np.uint8)
    values = np.arange(256, dtype=np.uint32)
    return tuple(tuple(_advance(values << np.uint32(shift), zeros).tolist()) for shift in (0, 8, 16, 24))


def _skip_row(value: int) -> int:
    one, two, three, four = _row_tables()
    return one[value & 255] ^ two[value >> 8 & 255] ^ three[value >> 16 & 255] ^ four[value >> 24]


def _moved_ones(length: int) -> int:
    """Return what ``length`` zero bytes make of the start value."""
    value = 0xFFFF_FFFF
    for _ in range(length // _ROW):
        value = _skip_row(value)
    rest = np.zeros((1, length % _ROW), dtype=np.uint8)
    return int(_advance(np.array([value], dtype=np.uint32), rest)[0])
