"""What all transfers of one store over HTTP share: address, limits, counters, connections, and what was learnt.

The protocols say what a transport has to offer; ``fetch.py`` implements them with httpx.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from trimtransfer.fetch.awake import AwakeClock
from trimtransfer.fetch.ratelimit import Flight, Gate
from trimtransfer.fetch.retry import Failed, FetchOptions
from trimtransfer.fetch.site import Site
from trimtransfer.fetch.throttle import Throttle
from trimtransfer.store import StoreStats


class Exchange(Protocol):
    """A request whose answer's head has arrived. ``headers`` by lower-case name; ``url`` is where redirects led."""

    status: int
    headers: Mapping[str, str]
    url: str

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, undecoded; ``Failed`` where it breaks off."""
        ...

    def close(self) -> None:
        """End the exchange; a body that was not read to its end costs the connection."""
        ...


class Connection(Protocol):
    """A kept connection, used by one thread at a time; ``abort`` and ``deadline`` are for the thread that watches."""

    deadline: float
    """Monotonic time at which the running exchange counts as stalled."""
    aborted: bool

    def ask(self, url: str, headers: Mapping[str, str]) -> Exchange:
        """Send a GET, follow redirects, and return the answer, whatever its status; ``Failed``."""
        ...

    def tell(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        """Send a request with a body, and return the answer, whatever its status but a redirect; ``Failed``."""
        ...

    def received(self, count: int) -> None:
        """Note arrived bytes: real progress moves the deadline."""
        ...

    def abort(self, failure: Failed | None) -> None:
        """Break the running exchange; it ends with ``failure``, or with ``Stopped`` for None. For good."""
        ...

    def leave_address(self) -> None:
        """After a failure: use another address of the server from now on, if its name has several."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Line:
    """The way to one repository. ``connect`` makes one more connection; ``cancel`` ends all transfers."""

    def __init__(
        self,
        site: Site,
        connect: Callable[[Line], Connection],
        *,
        connections: int,
        throttle: Throttle,
        options: FetchOptions,
        cancel: threading.Event,
        on_bytes: Callable[[int], None] | None,
    ) -> None:
        self.site, self.options, self.connections = site, options, connections
        self.cancel, self.on_bytes = cancel, on_bytes
        self.stats = StoreStats()
        self.throttle, self.bucket = throttle, throttle.bucket
        self.gate = Gate(connections)
        self.clock = AwakeClock(options.asleep)
        self.flight = Flight(options.in_flight)
        self.proven = False
        """Whether this server has ever answered."""
        self.ranges_ignored = False
        """Whether the last range asked for came as a whole object."""
        self._connect = connect
        self._moved: str | None = None
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = False

    def locate(self, name: str) -> str:
        """Return the URL to ask for an object: where the last redirect led, else below the site."""
        moved = self._moved
        return self.site.locate(name) if moved is None else moved + name

    def answered(self, name: str, url: str) -> None:
        """Note that somebody is there, and where redirects led if the object has the same name there."""
        self.proven = True
        elsewhere = url != self.site.locate(name) and url.endswith("/" + name)
        self._moved = url.removesuffix(name) if elsewhere else None

    def forget(self) -> None:
        """After a failure: ask the site itself again."""
        self._moved = None

    def take_connection(self) -> Connection:
        """Return an idle connection, or a new one."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.site.url}: the store has been closed")
            if self._idle:
                return self._idle.pop()
        return self._connect(self)

    def give_connection(self, connection: Connection) -> None:
        """Take a connection back; an aborted one is closed."""
        with self._lock:
            if not (self._closed or connection.aborted):
                self._idle.append(connection)
                return
        connection.close()

    def drop_idle(self) -> None:
        """Close idle connections: after a sleep they are dead, and nothing says so."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close idle connections; busy ones close when they are given back."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()
