"""Which parts of a version are not zero, and the layout of a container for it. All tables of the version are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.resolve import read_window
from trimtransfer.disk.layout import Identity, Layout
from trimtransfer.disk.layouts import make_layout
from trimtransfer.errors import TargetRefused
from trimtransfer.manifest import Region
from trimtransfer.table import Table

_GAP: Final = 64 << 10
"""Shorter runs of zeros are counted as data: no container tells them apart."""
_ID_SIZE: Final = 16


def layout_for(
    remote: Remote,
    windows: Iterable[Sequence[Region]],
    base: Callable[[int], Table | None] | None,
    format: str,
    output: str,
) -> Layout:
    """Return the layout of a version's container; ``windows`` are its regions that are not all zero, in order.

    The same version always has the same layout. ``base`` is that of :meth:`Remote.tables`.

    Raises:
        TargetRefused: the format has no disk of that size.
        FetchError, FormatError, IntegrityError: from reading tables.
    """
    manifest = remote.manifest
    columns = [_filled(remote, regions, base) for regions in windows]
    nothing = np.zeros(0, dtype=np.int64)
    starts, ends = (np.concatenate((nothing, *column)) for column in zip(*columns, strict=True)) if columns else (
        nothing, nothing
    )  # fmt: skip
    identity = Identity(manifest.digest()[:_ID_SIZE], manifest.created)
    try:
        return make_layout(format, manifest.length, starts, ends - starts, identity)
    except ValueError as error:
        raise TargetRefused(output, f"cannot be written in the format {format}: {error}") from None


def _filled(
    remote: Remote, regions: Sequence[Region], base: Callable[[int], Table | None] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the parts that are not zero begin and end, those with little between them as one."""
    _, window = read_window(remote, regions, base)
    starts = window.offsets[~window.zero]
    ends = starts + window.lengths[~window.zero]
    first = np.concatenate(([True], starts[1:] - ends[:-1] >= _GAP)) if len(starts) else np.zeros(0, dtype=np.bool_)
    last = np.concatenate((first[1:], [True])) if len(starts) else first
    return starts[first], ends[last]
