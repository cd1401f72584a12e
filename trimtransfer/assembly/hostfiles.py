"""The host index for one transfer: brought up to date first, as far as that pays.

What no other source has decides: for little nobody walks through the system's files (:mod:`payoff`), and a scan ends
where it finds too little of it (:class:`trimtransfer.index.update.StopRule`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.payoff import Decision, Line, decide_scan
from trimtransfer.assembly.plan import Groups, Mask, Numbers
from trimtransfer.assembly.resolve import Resolver
from trimtransfer.errors import Cancelled, Locked, NoSpace
from trimtransfer.index.host import HostIndex, default_paths
from trimtransfer.index.prefix import PrefixSet
from trimtransfer.index.seed import Seed
from trimtransfer.index.update import SAMPLE
from trimtransfer.manifest import Region
from trimtransfer.watch import Watch

LEAST: Final = 4 << 20
"""Bytes that no other source has, below which nobody looks for changed files, but for a metered line's sake."""
_MOST_CHUNKS: Final = 4 << 20
"""Chunks that are counted by a scan (36 MiB); of more than that no scan would be in vain."""

Done: TypeAlias = Callable[[Numbers, NDArray[np.uint32]], Mask]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was decided about the index, and what was noticed on the way."""

    decision: Decision
    warnings: tuple[str, ...] = ()


def bring_up_to_date(
    host: HostIndex, resolver: Resolver, windows: Iterable[Sequence[Region]], done: Done, watch: Watch, line: Line
) -> Refreshed:
    """Update ``host`` for what ``resolver`` finds in none of its seeds nor in the index as it is, if that pays.

    ``windows`` are the regions to be written, ``done`` tells what of them is written already. An index that cannot be
    updated is used as it is.

    Raises:
        Cancelled: on request; and what reading tables raises.
    """
    with contextlib.closing(host.seed()) as present:
        prefixes, size = _wanted((*resolver.seeds, present), resolver, windows, done, watch)
    decision = _decide(host, size, line)
    if not decision.used:
        return Refreshed(decision)
    return Refreshed(decision, _update(host, prefixes, watch))


def _decide(host: HostIndex, size: int, line: Line) -> Decision:
    """Decide for ``size`` bytes of content that nothing has."""
    totals = host.totals()
    decision = decide_scan(
        files=totals.files,
        size=totals.bytes,
        sample=SAMPLE * len(default_paths()),
        wanted=size,
        rate=host.scan_rate(),
        line=line,
    )
    if size < LEAST and decision.used and not line.metered:
        return replace(decision, used=False, reason=f"less than {LEAST >> 20} MiB are in no other place")
    return decision


def _update(host: HostIndex, prefixes: NDArray[np.uint64], watch: Watch) -> tuple[str, ...]:
    """Update the index for these chunks; return warnings."""
    wanted = PrefixSet(prefixes) if len(prefixes) <= _MOST_CHUNKS else None
    try:
        report = host.update(wanted=wanted, progress=watch.progress, cancel=watch.cancel)
    except Cancelled:
        raise Cancelled(watch.outcome) from None
    except Locked:
        return ("the index of host files is being updated by another process, so it is used as it is",)
    except (NoSpace, OSError) as error:
        return (f"the index of host files could not be brought up to date, so it is used as it is: {error}",)
    if report.stopped:
        names = ", ".join(report.stopped)
        return (f"host files hold little of this image, so not all of them were indexed: {names}",)
    return ()


def _wanted(
    seeds: Sequence[Seed], resolver: Resolver, windows: Iterable[Sequence[Region]], done: Done, watch: Watch
) -> tuple[NDArray[np.uint64], int]:
    """Return the prefixes of the chunks that no seed has (not more than a few over the most), and their bytes."""
    parts = [np.zeros(0, dtype=np.uint64)]
    count = size = looked = 0
    for regions in windows:
        watch.report("plan", looked, 0)
        looked += sum(region.length for region in regions)
        _, window = resolver.read(regions)
        content = ~window.zero & ~done(window.offsets, window.lengths)
        records = np.sort(Groups.of(window, np.flatnonzero(content)).leaders)
        for seed in seeds:
            records = records[seed.find(window.prefixes[records], window.lengths[records]) < 0]
        size += int(window.lengths[records].sum(dtype=np.int64))
        if count <= _MOST_CHUNKS:
            parts.append(window.prefixes[records])
            count += len(records)
    return np.concatenate(parts), size
