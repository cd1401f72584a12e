"""Where else on this machine a chunk may be when the place that was tried first had something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.plan import SEEDS, Numbers
from trimtransfer.assembly.resolve import WindowPlan
from trimtransfer.index.seed import Seed

TRIES: Final = 4
"""Other places of a chunk that are tried before it is fetched: a tree full of changed files must not cost much more
reading than what it offers."""
_LISTED: Final = 4 * TRIES
"""Places that are asked for; those of files that are gone are among them."""

Place: TypeAlias = tuple[int, int]
"""Number of a seed, and what it calls the chunk."""


@runtime_checkable
class ManyPlaces(Protocol):
    """A seed that knows every place of a chunk."""

    def rows(self, prefix: int, length: int, *, limit: int) -> NDArray[np.int64]:
        """Return at most ``limit`` rows of one chunk."""
        ...


def other_places(plan: WindowPlan, seeds: Sequence[Seed], records: Numbers) -> list[list[Place]]:
    """Return for each of some records at most ``TRIES`` places in seeds, in order, without the one that it has."""
    window = plan.window
    tried = [
        (source - SEEDS, row)
        for source, row in zip(plan.source[records].tolist(), plan.row[records].tolist(), strict=True)
    ]
    places: list[list[Place]] = [[] for _ in tried]
    for number, seed in enumerate(seeds):
        open_ = [at for at, found in enumerate(places) if len(found) < TRIES]
        here = records[open_]
        if isinstance(seed, ManyPlaces):
            columns = zip(window.prefixes[here].tolist(), window.lengths[here].tolist(), strict=True)
            rows = [seed.rows(prefix, length, limit=_LISTED).tolist() for prefix, length in columns]
        else:
            rows = [[row] for row in seed.find(window.prefixes[here], window.lengths[here]).tolist()]
        for at, found in zip(open_, rows, strict=True):
            further = [(number, row) for row in found if row >= 0 and (number, row) != tried[at]]
            places[at] += further[: TRIES - len(places[at])]
    return places
