"""How much one client may take: requests at a time, requests and bytes per second.

Pure: the caller says what time it is. A client is whoever proved who he is, else his address; as many are remembered as
can do harm, and forgetting one only gives it a full allowance again.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

_MOST_CLIENTS: Final = 16_384
"""Clients remembered at a time; those that are busy are never forgotten."""
_IPV6_NETWORK: Final = 64
"""Bits that name a subscriber: within them he may choose addresses as he likes."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one client may take: requests at a time, requests per second (0: any number) with a ``burst`` beyond them,
    bytes per second (0: any number)."""

    concurrent: int
    requests: float = 0.0
    burst: int = 1
    bytes: float = 0.0


class _Client:
    """What is known of one client: requests running, and what is left of its allowance at the time it was counted."""

    __slots__ = ("bytes", "counted", "requests", "running")

    def __init__(self, allowance: Allowance, now: float) -> None:
        self.running = 0
        self.requests = float(allowance.burst)
        self.bytes = allowance.bytes
        self.counted = now

    def refill(self, allowance: Allowance, now: float) -> None:
        """Give what the time since the last call brought; never more than a burst, or a second of bytes."""
        seconds = max(0.0, now - self.counted)
        self.counted = now
        self.requests = min(float(allowance.burst), self.requests + seconds * allowance.requests)
        self.bytes = min(allowance.bytes, self.bytes + seconds * allowance.bytes)


class Limits:
    """The clients of a server. Every :meth:`enter` that lets one in needs its :meth:`leave`."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def __repr__(self) -> str:
        return f"Limits({self.allowance}, {len(self._clients)} clients)"

    def enter(self, client: str, now: float) -> float:
        """Let one request of a client in: 0.0; or return after how many seconds it may come again."""
        known = self._known(client, now)
        if known.running >= self.allowance.concurrent:
            return 1.0
        if self.allowance.requests and known.requests < 1.0:
            return (1.0 - known.requests) / self.allowance.requests
        known.requests -= 1.0
        known.running += 1
        return 0.0

    def leave(self, client: str) -> None:
        """A request of a client has ended."""
        known = self._clients.get(client)
        if known is not None:
            known.running -= 1

    def spend(self, client: str, size: int, now: float) -> float:
        """Take ``size`` bytes from a client's allowance; return how many seconds to wait before they are sent."""
        if not self.allowance.bytes:
            return 0.0
        known = self._known(client, now)
        known.bytes -= size
        return max(0.0, -known.bytes / self.allowance.bytes)

    def _known(self, client: str, now: float) -> _Client:
        known = self._clients.get(client)
        if known is None:
            self._forget_one()
            known = self._clients[client] = _Client(self.allowance, now)
        else:
            self._clients.move_to_end(client)
            known.refill(self.allowance, now)
        return known

    def _forget_one(self) -> None:
        """Make room, of the clients seen longest ago that have nothing running."""
        if len(self._clients) < _MOST_CLIENTS:
            return
        for name, client in self._clients.items():
            if not client.running:
                del self._clients[name]
                return


def client_of(address: str) -> str:
    """Return what an address counts as: itself, of IPv6 its network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), _IPV6_NETWORK), strict=False))
    return address
