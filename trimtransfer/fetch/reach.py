"""Connecting to a name that has several addresses, some of which may be dead.

httpx tries one address after the other and gives each the whole time, for every connection anew: a name whose first
address is a black hole costs ten seconds each time. Here the first round is short, what failed is tried last from then
on, and an address that accepts connections but answers badly is left for the next one, too.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Final

import httpcore

FIRST_ROUND: Final = 2.0
"""Seconds for each address in the first round, if there are several: enough for one lost packet to be sent again."""


class NobodyListens(httpcore.ConnectError):
    """Every address of a server refuses connections at once: the machine is there, a server is not."""


class Reach(httpcore.SyncBackend):
    """Connects for all connections of a store. Safe among threads. ``only``: to this address, whatever the name has."""

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._lock = threading.Lock()
        self._failed: dict[str, int] = {}
        self._failures = 0
        self._several: set[str] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that accepts, those without failures first.

        Raises:
            NobodyListens: all refuse; httpcore.ConnectError, httpcore.ConnectTimeout: none accepts.
        """
        addresses = self._in_order(_resolve(host, port))
        short = FIRST_ROUND if timeout is None else min(FIRST_ROUND, timeout)
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        refused = bool(addresses)
        for limit in (short, timeout) if len(addresses) > 1 else (timeout,):
            silent = []
            for address in addresses:
                try:
                    return super().connect_tcp(address, port, limit, local_address, socket_options)
                except httpcore.ConnectTimeout as error:
                    silent.append(address)
                    failure = failure or error
                    refused = False
                except httpcore.ConnectError as error:
                    failure = error
                    refused = refused and isinstance(error.__cause__, ConnectionRefusedError)
                self.distrust(address)
            addresses = silent
        if refused:
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise NobodyListens(f"no server listens at {place}; check the address") from failure
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def distrust(self, address: str) -> bool:
        """Try an address after all others from now on; return whether its name has any other."""
        with self._lock:
            self._failures += 1
            self._failed[address] = self._failures
            return address in self._several

    def _in_order(self, addresses: list[str]) -> list[str]:
        if self._only is not None:
            return [self._only]
        with self._lock:
            if len(addresses) > 1:
                self._several.update(addresses)
            return sorted(addresses, key=lambda address: self._failed.get(address, 0))


def addresses_of(host: str, port: int) -> list[str]:
    """Return the addresses of a name, in the system's order; ``OSError`` if it has none, ``UnicodeError``."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _resolve(host: str, port: int) -> list[str]:
    try:
        return addresses_of(host, port)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    except UnicodeError as error:
        raise httpcore.ConnectError(f"{host!r} is no host name: {error}") from error
