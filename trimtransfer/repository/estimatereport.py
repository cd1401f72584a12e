"""What an estimate tells: of each disk, and of all disks of a version together. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from trimtransfer.repository.advice import Advice
from trimtransfer.repository.deltaestimate import DeltaEstimate
from trimtransfer.repository.trim import TrimmedVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """What publishing a disk would do, or several together, in bytes. Those up to ``again_bytes`` are exact and mean
    what they do in ``PublishReport``.

    ``stored_bytes``, by a sample of ``sampled_bytes``, is off by ``error_bytes`` or less in 19 of 20 cases. A client
    with the parent fetches ``fetched_bytes`` without deltas (metadata included), and with deltas, if they were
    sampled, ``with_deltas_bytes``; one with nothing ``download_bytes``. ``trim_content_bytes`` of new content lie in
    free space and take ``trim_bytes``: what ``trim`` would save. ``publish_seconds`` on this machine, roughly.
    """

    length: int
    zero_bytes: int
    new_bytes: int
    known_bytes: int
    repeated_bytes: int
    again_bytes: int
    stored_bytes: int
    error_bytes: int
    sampled_bytes: int
    packs: int
    metadata_bytes: int
    fetched_bytes: int
    with_deltas_bytes: int
    download_bytes: int
    trim_content_bytes: int
    trim_bytes: int
    publish_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedWhole(Estimated):
    """What all ``disks`` of a version come to; their errors are independent of each other."""

    disks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateReport(Estimated):
    """What publishing a disk as ``image`` after version ``parent`` (empty: there is no such disk before) would do.

    ``deltas``: what a sample of them came to (None: none were made), ``trimmed`` what ``trim`` would do to each volume,
    ``advice`` what ruins reuse. The report of a version's first disk has those of the further ``disks``.
    """

    image: str
    parent: str
    format: str
    kind: str
    recognised: str
    deltas: DeltaEstimate | None = None
    trimmed: tuple[TrimmedVolume, ...] = ()
    advice: tuple[Advice, ...] = ()
    disks: tuple[EstimateReport, ...] = ()

    def whole(self) -> EstimatedWhole:
        """Return what this disk and the further ones come to."""
        reports = (self, *self.disks)
        sums = {one.name: sum(getattr(report, one.name) for report in reports) for one in fields(Estimated)}
        sums["error_bytes"] = round(math.hypot(*(report.error_bytes for report in reports)))
        return EstimatedWhole(disks=len(reports), **sums)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, those of the version as a whole as ``whole``."""
        return {**asdict(self), "whole": asdict(self.whole())}
