"""How a run is to behave towards the line, the servers and the machine; and what it reports of that. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtransfer.fetch.schedule import UNLIMITED, LocalTime, Schedule, finish, system_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a run is to behave, besides its limit of rate."""

    schedule: Schedule | None = None
    """Rates by the hour; a pause waits."""
    background: bool = False
    """Give way to other traffic."""
    mirrors: tuple[str, ...] = ()
    """Further servers of the same repository, from which packs may come."""
    offered_mirrors: bool = True
    """Use the mirrors that the repository names, too."""
    max_bytes: int | None = None
    """Most bytes to fetch; beyond that the run stops."""
    metered: bool = False
    """Bytes cost money."""


@dataclass(frozen=True, slots=True)
class Pace:
    """A limit of rate (bytes per second, None: none) and a schedule."""

    limit: float | None = None
    schedule: Schedule | None = None

    def rate(self, now: float, local: LocalTime = system_time) -> float | None:
        """Return the bytes per second that are allowed at an instant: None for no limit, 0 for a pause."""
        scheduled = UNLIMITED if self.schedule is None else self.schedule.rate_at(now, local)
        rate = scheduled if self.limit is None else min(self.limit, scheduled)
        return None if rate == UNLIMITED else rate

    def seconds(self, size: int, bandwidth: float, *, now: float, local: LocalTime = system_time) -> float | None:
        """Return how long so many bytes take from an instant on; None: longer than a year."""
        most = bandwidth if self.limit is None else min(self.limit, bandwidth)
        end = finish(self.schedule, now, size, most, local)
        return None if end is None else end - now


@dataclass(frozen=True, slots=True)
class Served:
    """What one server did: body bytes, requests; ``failures`` to serve, ``damaged`` deliveries."""

    url: str
    bytes: int
    requests: int
    failures: int = 0
    damaged: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {
            "url": self.url,
            "bytes": self.bytes,
            "requests": self.requests,
            "failures": self.failures,
            "damaged": self.damaged,
        }


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a run behaved: the ``rate`` in force at its end (bytes per second; None: no limit, 0: paused), the seconds it
    was paused by its schedule, and what came from which server, the repository's own first."""

    rate: float | None = None
    paused_seconds: float = 0.0
    servers: tuple[Served, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {
            "rate_bytes_per_second": self.rate,
            "paused_seconds": round(self.paused_seconds, 1),
            "servers": [server.to_dict() for server in self.servers],
        }
