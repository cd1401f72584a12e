"""What the interface to the servers receives, by Linux's counters; and giving way by it. Elsewhere delays must do."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from trimtransfer.fetch.yielding import Totals, Yielding

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_DEVICES: Final = "/proc/net/dev"
_ROUTES: Final = ("/proc/net/route", "/proc/net/ipv6_route")
_LOOPBACK: Final = "lo"
_MOST: Final = 1 << 20
"""Bytes of such a file that are read."""


class Background:
    """Gives way to others on the line: what a throttle asks for its rate. Safe among threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._interface: str | None = None
        self._yielding = Yielding(Totals(clock(), 0, None))

    def connected(self, address: str) -> None:
        """Watch the interface by which an address is reached; the first one counts."""
        with self._lock:
            if self._interface is None:
                self._interface = interface_of(address, *(_read(path) for path in _ROUTES)) or ""
                _LOG.info("traffic of others is watched at: %s", self._interface or "no interface, only by delays")

    def answered(self, seconds: float) -> None:
        """Note how long a server took to begin an answer."""
        with self._lock:
            self._yielding.delayed(seconds)

    def rate(self, received: int) -> float:
        """Return the bytes per second to go on with."""
        with self._lock:
            total = received_by(self._interface, _read(_DEVICES)) if self._interface else None
            return self._yielding.step(Totals(self._clock(), received, total))


def received_by(interface: str, devices: str) -> int | None:
    """Return the bytes that an interface has received, out of ``/proc/net/dev``."""
    for line in devices.splitlines():
        name, colon, counters = line.partition(":")
        if colon and name.strip() == interface:
            first = counters.split()[:1]
            return int(first[0]) if first and first[0].isascii() and first[0].isdigit() else None
    return None


def interface_of(address: str, routes: str, routes6: str) -> str | None:
    """Return the interface by which an address is reached: the longest prefix in the kernel's tables of routes.

    ``routes`` and ``routes6`` are ``/proc/net/route`` and ``/proc/net/ipv6_route``.
    """
    try:
        target = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if target.is_loopback:
        return _LOOPBACK
    lines = [line.split() for line in (routes if target.version == 4 else routes6).splitlines()]
    found: tuple[int, str] | None = None
    for words in lines:
        try:
            prefix, start, name = _route4(words) if target.version == 4 else _route6(words)
        except (ValueError, IndexError):
            continue  # a heading, or nothing that is known
        bits = target.max_prefixlen
        if int(target) >> (bits - prefix) == start >> (bits - prefix) and (found is None or prefix > found[0]):
            found = prefix, name
    return None if found is None or found[1] == _LOOPBACK else found[1]


def _route4(words: list[str]) -> tuple[int, int, str]:
    """Return prefix length, network and interface: columns 7, 1 and 0, numbers in the machine's (little) order."""
    start, mask = (int.from_bytes(bytes.fromhex(words[column])[:4], "little") for column in (1, 7))
    return mask.bit_count(), start, words[0]


def _route6(words: list[str]) -> tuple[int, int, str]:
    """Return prefix length, network and interface: columns 1, 0 and 9."""
    prefix = int(words[1], 16)
    if prefix > 128:
        raise ValueError("no prefix")
    return prefix, int(words[0], 16), words[9]


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_MOST)
    except OSError:
        return ""
