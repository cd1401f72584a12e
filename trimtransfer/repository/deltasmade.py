"""What the making of deltas leaves: the units that are kept, the index over them, and a report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtransfer.deltaindex import Units, encode_index
from trimtransfer.location import PackRef
from trimtransfer.tool import Tool, probe


@dataclass(frozen=True, slots=True)
class DeltaReport:
    """What the deltas of a pair are: ``stored_bytes`` (packs and index) in ``units``, which make ``content_bytes`` of
    the ``new_bytes`` that the version has and the other one lacks, instead of about ``plain_bytes`` in plain frames.

    ``wrapped_units`` of them look into compressed files, and make ``wrapped_bytes`` of the content; ``tool_units`` of
    these need tools (liblzma, libzstd), which take a core of a client about ``tool_seconds``. Those from host
    files have no ``base`` but a ``profile``; ``added_bytes`` of them are stored now, others were there.
    ``problem``: why there are none, if something was damaged. ``disks``: those of further disks, if there are any."""

    image: str
    version: str
    base: str
    units: int = 0
    new_bytes: int = 0
    content_bytes: int = 0
    stored_bytes: int = 0
    plain_bytes: int = 0
    packs: int = 0
    seconds: float = 0.0
    problem: str = ""
    wrapped_units: int = 0
    wrapped_bytes: int = 0
    tool_units: int = 0
    tool_seconds: float = 0.0
    profile: str = ""
    added_bytes: int = 0
    disks: tuple[DeltaReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Kept:
    """A unit that is stored: its row (dtype ``UNIT``, ``pack`` numbering all packs), target and base runs."""

    row: NDArray[np.void]
    targets: NDArray[np.void]
    bases: NDArray[np.void]


@dataclass(slots=True)
class Made:
    """The units kept so far, by region, and the packs that they lie in; bytes they make, and what those take plain;
    ``added`` bytes of packs that were not there."""

    packs: list[PackRef] = field(default_factory=list)
    units: dict[int, list[Kept]] = field(default_factory=dict)
    content: int = 0
    plain: int = 0
    count: int = 0
    wrapped: int = 0
    wrapped_content: int = 0
    tools: dict[Tool, int] = field(default_factory=dict)
    tool_units: int = 0
    tool_seconds: float = 0.0
    added: int = 0

    def index(self, target: bytes, base: bytes) -> bytes:
        """Return the index of all units, of a pair of versions with these manifest digests."""
        tools = [(tool.to_bytes(), probe(tool)) for tool in self.tools]
        return encode_index(target, base, self.regions(), tools)

    def regions(self) -> Iterator[tuple[int, Units]]:
        """Yield the units of each region, which refer to their packs only."""
        for index in sorted(self.units):
            yield index, _units(self.units[index], self.packs)

    def report(self, begun: DeltaReport, new_bytes: int, index: bytes, started: float) -> DeltaReport:
        """Return a report with what was made for ``new_bytes``; ``started`` by the monotonic clock."""
        return replace(
            begun,
            units=self.count,
            new_bytes=new_bytes,
            content_bytes=self.content,
            stored_bytes=len(index) + sum(ref.length for ref in self.packs),
            plain_bytes=self.plain,
            packs=len(self.packs),
            wrapped_units=self.wrapped,
            wrapped_bytes=self.wrapped_content,
            tool_units=self.tool_units,
            tool_seconds=round(self.tool_seconds, 3),
            seconds=round(time.monotonic() - started, 3),
        )


def _units(kept: Sequence[Kept], packs: Sequence[PackRef]) -> Units:
    """Return the units of a region, which refer to their packs only."""
    units = np.concatenate([unit.row for unit in kept])
    used, units["pack"] = np.unique(units["pack"], return_inverse=True)
    targets = np.concatenate([unit.targets for unit in kept])
    bases = np.concatenate([unit.bases for unit in kept])
    return Units.of(tuple(packs[number] for number in used.tolist()), units, targets, bases)
