"""Comparing what a client has with the image that was published: byte by byte, free space apart if it was trimmed."""

from __future__ import annotations

import filecmp
import re
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096
_PIECE = 1024
"""Blocks compared at a time."""


def same(output: Path, original: Path, *, trimmed: bool) -> bool:
    """Tell whether ``output`` is the image ``original``.

    A ``trimmed`` one may have zeros in blocks of 4 KiB that e2fsprogs calls free in the ext4 file system of the
    original, and nowhere else; and must have them wherever it can.
    """
    if not trimmed:
        return filecmp.cmp(output, original, shallow=False)
    if output.stat().st_size != original.stat().st_size:
        return False
    free = free_blocks(original)
    with open(output, "rb") as found, open(original, "rb") as wanted:
        for first in range(0, len(free), _PIECE):
            here = np.frombuffer(found.read(_PIECE * BLOCK), np.uint8).reshape(-1, BLOCK)
            there = np.frombuffer(wanted.read(_PIECE * BLOCK), np.uint8).reshape(-1, BLOCK)
            blank = free[first : first + len(here), None]
            if not np.array_equal(here, np.where(blank, np.uint8(0), there)):
                return False
    return True


def free_blocks(image: Path) -> NDArray[np.bool_]:
    """Return of each block of an ext4 file system whether ``dumpe2fs`` calls it free."""
    listing = subprocess.run(["dumpe2fs", image], capture_output=True, text=True, check=True).stdout
    count, size = (int(re.findall(rf"^{name}: +([0-9]+)$", listing, re.M)[0]) for name in ("Block count", "Block size"))
    if size != BLOCK:
        raise ValueError(f"{image}: blocks of {size} bytes; {BLOCK} are expected")
    free = np.zeros(count, np.bool_)
    for line in re.findall(r"^  Free blocks: (.+)$", listing, re.M):
        for low, high in re.findall(r"([0-9]+)(?:-([0-9]+))?", line):
            free[int(low) : int(high or low) + 1] = True
    return free
