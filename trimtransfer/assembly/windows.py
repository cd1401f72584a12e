"""Regions in groups that are planned at a time, and what can be said of them before any is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trimtransfer.assembly.plan import FETCH, SEEDS, SELF, Mask
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.report import Content
from trimtransfer.assembly.resolve import WINDOW_REGIONS, WINDOW_STORED, WindowPlan, read_window
from trimtransfer.assembly.verify import right_records
from trimtransfer.assembly.ways import Old, standing
from trimtransfer.manifest import Manifest, Region


def comes_from_parent(manifest: Manifest, old: Old | None) -> bool:
    """Return whether the old image is the version that ``manifest``'s fresh locations and differences start from."""
    known = None if old is None else old.manifest
    return known is not None and (known.image, known.version) == (manifest.image, manifest.parent)


def share_that_stays(remote: Remote, old: Old | None, changed: Mask) -> float:
    """Return which part of the content of changed regions is at its place in the old image, judged by the first ones.

    Their tables are kept, so reading them now costs nothing later.
    """
    regions = next(windows(remote.manifest, np.flatnonzero(changed).tolist()), None)
    if regions is None or old is None:
        return 0.0
    from_parent = old.image is not None and comes_from_parent(remote.manifest, old)
    _, window = read_window(remote, regions, old.image.table_at if old.image and from_parent else None)
    placed = standing(window, regions, old) if old.believed else right_records(old.source, window, regions)
    lengths = window.lengths.astype(np.int64)
    return float(lengths[placed & ~window.zero].sum()) / max(1.0, float(lengths[~window.zero].sum()))


def windows(manifest: Manifest, numbers: Sequence[int]) -> Iterator[list[Region]]:
    """Yield regions in groups that can be planned in bounded memory."""
    group: list[Region] = []
    stored = 0
    for number in numbers:
        region = manifest.region(number)
        size = region.full.length + region.fresh.length + region.rest.length
        if group and (len(group) >= WINDOW_REGIONS or stored + size > WINDOW_STORED):
            yield group
            group, stored = [], 0
        group.append(region)
        stored += size
    if group:
        yield group


def untouched(manifest: Manifest, regions: Mask) -> Content:
    """Return the content of regions that stay as they are."""
    zero = int(manifest.lengths[regions & manifest.zero].sum())
    return Content(unchanged=int(manifest.lengths[regions].sum()) - zero, zero=zero)


def bytes_to_write(plan: WindowPlan) -> int:
    """Return the bytes that carrying out a plan writes."""
    moved = (plan.source == FETCH) | (plan.source == SELF) | (plan.source >= SEEDS)
    return int(plan.window.lengths[moved].sum(dtype=np.int64))
