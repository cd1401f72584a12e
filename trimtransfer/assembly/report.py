"""Reports: what a sync, a plan or a verification found, as values. Pure.

The last word of a field is its unit where it has one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.payoff import Decision
from trimtransfer.fetch.manners import Conduct


@dataclass(frozen=True, slots=True)
class Content:
    """Where the bytes of an image come from; together its size.

    ``unchanged``: at their place already (in the old version, or since an interrupted run); ``seed``: other places of
    the old and the new version, and seeds; ``host``: files of the host index; ``fetched``: packs, those in bundles
    too; ``zero``: no data.
    """

    unchanged: int = 0
    seed: int = 0
    host: int = 0
    fetched: int = 0
    zero: int = 0

    def __add__(self, other: Content) -> Content:
        return Content(
            self.unchanged + other.unchanged,
            self.seed + other.seed,
            self.host + other.host,
            self.fetched + other.fetched,
            self.zero + other.zero,
        )

    @property
    def size(self) -> int:
        """All bytes together."""
        return self.unchanged + self.seed + self.host + self.fetched + self.zero

    def to_dict(self) -> dict[str, int]:
        """Return the fields as a JSON object."""
        return {name: getattr(self, name) for name in CATEGORIES}

    @classmethod
    def tally(cls, categories: NDArray[np.uint8], lengths: NDArray[np.uint32]) -> Content:
        """Add up lengths by category (numbers of ``CATEGORIES``)."""
        sums = np.bincount(categories, weights=lengths.astype(np.float64), minlength=len(CATEGORIES))
        return cls(**{name: int(total) for name, total in zip(CATEGORIES, sums, strict=True)})


CATEGORIES = ("unchanged", "seed", "host", "fetched", "zero")
UNCHANGED, SEED, HOST, FETCHED, ZERO = range(len(CATEGORIES))


@dataclass(frozen=True, slots=True)
class Network:
    """What crossed the wire: body bytes, requests, and how many of those were repeated."""

    bytes: int = 0
    requests: int = 0
    retries: int = 0

    def __sub__(self, other: Network) -> Network:
        return Network(self.bytes - other.bytes, self.requests - other.requests, self.retries - other.retries)

    def to_dict(self) -> dict[str, int]:
        """Return the fields as a JSON object."""
        return {"bytes": self.bytes, "requests": self.requests, "retries": self.retries}


@dataclass(frozen=True, slots=True)
class Made:
    """What deltas made: ``units`` of them, ``content`` in bytes (part of what was fetched); ``failed`` units, whose
    content came from plain packs after all; ``declined`` ones, which were not fetched, for they compress again: by a
    library that does it otherwise here, or too slowly for the line; ``solid`` units among them start from nothing."""

    units: int = 0
    content: int = 0
    failed: int = 0
    declined: int = 0
    solid: int = 0

    def __add__(self, other: Made) -> Made:
        return Made(
            self.units + other.units,
            self.content + other.content,
            self.failed + other.failed,
            self.declined + other.declined,
            self.solid + other.solid,
        )

    def to_dict(self) -> dict[str, int]:
        """Return the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did.

    ``format`` is that of the file, ``length`` that of the disk in it. ``wrote`` is how the image was written:
    ``nothing``, ``new`` or ``in-place``; ``rejected_chunks`` counts chunks that a seed offered and that were wrong;
    ``resumed_bytes`` is the part of ``content.unchanged`` that an interrupted run had written; ``seed_seconds`` is the
    time spent on scanning seeds, part of ``seconds``; ``made``: by deltas; ``decisions``: whether local reuse paid;
    ``bundle_bytes`` were read from bundles, not fetched; ``conduct``: towards the servers. ``channel`` is the one
    that was followed, ``back_from`` the newer version that was here. ``disks`` are the version's further disks, which
    all else is not about.
    """

    image: str
    version: str
    digest: bytes
    output: str
    length: int
    wrote: str
    content: Content
    network: Network
    regions: int = 0
    changed_regions: int = 0
    resumed_bytes: int = 0
    rejected_chunks: int = 0
    seconds: float = 0.0
    seed_seconds: float = 0.0
    warnings: tuple[str, ...] = field(default=())
    made: Made = Made()
    format: str = "raw"
    bundle_bytes: int = 0
    decisions: tuple[Decision, ...] = ()
    conduct: Conduct = field(default_factory=Conduct)
    disks: tuple[SyncReport, ...] = ()
    channel: str = ""
    back_from: str = ""
    signed_by: str = ""
    """Id of the repository whose signatures vouch for the version; none if nobody does."""
    offered_by: str = ""
    """Id of the repository that says that it is signed, as far as nobody was told to trust it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "image": self.image,
            "version": self.version,
            "channel": self.channel,
            "back_from": self.back_from,
            "digest": self.digest.hex(),
            "output": self.output,
            "length": self.length,
            "format": self.format,
            "wrote": self.wrote,
            "content": self.content.to_dict(),
            "network": {**self.network.to_dict(), **self.conduct.to_dict()},
            "bundle": {"bytes": self.bundle_bytes},
            "signed_by": self.signed_by,
            "deltas": self.made.to_dict(),
            "regions": {"all": self.regions, "changed": self.changed_regions},
            "resumed_bytes": self.resumed_bytes,
            "rejected_chunks": self.rejected_chunks,
            "seconds": round(self.seconds, 3),
            "seed_seconds": round(self.seed_seconds, 3),
            "decisions": [decision.to_dict() for decision in self.decisions],
            "warnings": list(self.warnings),
            "disks": [disk.to_dict() for disk in self.disks],
        }


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a sync would do.

    ``fetch_bytes`` and ``fetch_requests`` are those still to come; ``network`` is what planning itself cost (of which
    ``metadata`` need not be fetched again). ``estimate_seconds`` is for a bandwidth that ``bandwidth_is``
    ``"given"``, ``"measured"`` or ``"assumed"``, under the limits of rate; None: it takes longer than a year. ``rate``
    is the limit in force now, in bytes per second (None: none, 0: a pause). ``needed_bytes`` is the room that it takes
    on the disk, at most; ``format`` that of the file. ``decisions``: whether local reuse pays; ``bundle_bytes`` come
    from bundles, in all. ``channel`` is the one that is followed, ``back_from`` the newer version that is here.
    ``disks`` are the version's further disks, which all else is not about.
    """

    image: str
    version: str
    digest: bytes
    output: str
    length: int
    would_write: str
    content: Content
    network: Network
    fetch_bytes: int
    fetch_requests: int
    regions: int
    changed_regions: int
    round_trip_seconds: float
    bandwidth_bytes_per_second: float
    bandwidth_is: str
    estimate_seconds: float | None
    seconds: float = 0.0
    needed_bytes: int = 0
    warnings: tuple[str, ...] = ()
    made: Made = Made()
    format: str = "raw"
    bundle_bytes: int = 0
    decisions: tuple[Decision, ...] = ()
    rate: float | None = None
    disks: tuple[PlanReport, ...] = ()
    channel: str = ""
    back_from: str = ""
    signed_by: str = ""
    """Id of the repository whose signatures vouch for the version; none if nobody does."""
    offered_by: str = ""
    """Id of the repository that says that it is signed, as far as nobody was told to trust it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "image": self.image,
            "version": self.version,
            "channel": self.channel,
            "back_from": self.back_from,
            "digest": self.digest.hex(),
            "output": self.output,
            "length": self.length,
            "format": self.format,
            "would_write": self.would_write,
            "content": self.content.to_dict(),
            "network": self.network.to_dict(),
            "fetch": {"bytes": self.fetch_bytes, "requests": self.fetch_requests},
            "bundle": {"bytes": self.bundle_bytes},
            "signed_by": self.signed_by,
            "deltas": self.made.to_dict(),
            "regions": {"all": self.regions, "changed": self.changed_regions},
            "round_trip_seconds": round(self.round_trip_seconds, 4),
            "bandwidth_bytes_per_second": self.bandwidth_bytes_per_second,
            "bandwidth_is": self.bandwidth_is,
            "rate_bytes_per_second": self.rate,
            "estimate_seconds": None if self.estimate_seconds is None else round(self.estimate_seconds, 1),
            "needed_bytes": self.needed_bytes,
            "decisions": [decision.to_dict() for decision in self.decisions],
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "disks": [disk.to_dict() for disk in self.disks],
        }


@dataclass(frozen=True, slots=True)
class MissingDisk:
    """A further disk of a version that was not found: its name, and the path where it was looked for (empty: nobody
    recorded where it is)."""

    image: str
    path: str

    def to_dict(self) -> dict[str, str]:
        """Return the fields as a JSON object."""
        return {"image": self.image, "path": self.path}


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found: ``damaged`` are absolute (start, length) of regions with other content.

    ``disks`` are the version's further disks, as far as they were found, ``missing`` the others; ``belongs``: this is
    the very disk that the version has there, and not one of another version or image.
    """

    image: str
    version: str
    path: str
    length: int
    digest: bytes
    damaged: tuple[tuple[int, int], ...]
    found_length: int
    seconds: float = 0.0
    disks: tuple[VerifyReport, ...] = ()
    missing: tuple[MissingDisk, ...] = ()
    belongs: bool = True

    @property
    def intact(self) -> bool:
        """Whether the file is exactly the version that is recorded of it."""
        return not self.damaged and self.found_length == self.length

    @property
    def damage(self) -> bool:
        """Whether anything that was found is other than it should be."""
        return not self.intact or not all(disk.ok and disk.belongs for disk in self.disks)

    @property
    def ok(self) -> bool:
        """Whether the file is exactly the recorded version, and all further disks of it are there and are so, too."""
        return not self.damage and not self.missing

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "image": self.image,
            "version": self.version,
            "path": self.path,
            "length": self.length,
            "found_length": self.found_length,
            "digest": self.digest.hex(),
            "ok": self.ok,
            "damaged": [{"start": start, "length": length} for start, length in self.damaged],
            "seconds": round(self.seconds, 3),
            "disks": [disk.to_dict() for disk in self.disks],
            "missing": [disk.to_dict() for disk in self.missing],
            "belongs": self.belongs,
        }


def estimate_seconds(*, size: int, requests: int, round_trip: float, bandwidth: float, connections: int) -> float:
    """Return about how long ``size`` bytes in ``requests`` requests take: transfer, plus round trips side by side."""
    return size / bandwidth + requests * round_trip / connections
