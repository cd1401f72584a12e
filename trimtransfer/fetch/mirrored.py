"""A repository on several servers: packs from whichever serves them best, everything that decides from its own.

The repository's own server says what an image is: heads, manifests, tables and locations come from it alone. Packs are
named by the digest of their bytes and every frame is checked, so any server may be asked for them; what it learns is
which packs this client lacks. It never gets credentials or cookies of another.

One server at a time, chosen by its health, for some seconds; then they are weighed again. What a server fails to
deliver is asked of the next one, range by range: one that lacks an object (it is behind) is passed over for that
object, one that fails rests, one whose delivery turns out to be damaged is not asked again.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from trimtransfer.errors import FetchError, NotFound
from trimtransfer.fetch.credentials import Credentials
from trimtransfer.fetch.health import HealthMemory, State, choose
from trimtransfer.fetch.http import HttpStore
from trimtransfer.fetch.manners import Conduct, Manners, Served
from trimtransfer.fetch.retry import FetchOptions
from trimtransfer.fetch.site import Site
from trimtransfer.fetch.throttle import Throttle
from trimtransfer.fetch.traffic import Background
from trimtransfer.store import Range, StoreStats

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_SLICE: Final = 10.0
"""Seconds after which servers are weighed again."""
_CHANCES: Final = 3
"""Failures of a server after which it is not asked again in one call, whatever the clock says of its rest."""
_BEHIND: Final = 4
"""Objects that a server lacks before it has served any in this run, after which it is not asked again."""
_PACKS: Final = "packs/"
MEMORY: Final = "mirrors.json"
"""File in the cache directory that keeps what is known of servers."""

Deliver = Callable[[Range, memoryview], None]


class _Server:
    """One server: without a ``store`` one is opened when it is first asked."""

    def __init__(self, url: str, connect: Callable[[], HttpStore], store: HttpStore | None = None) -> None:
        self.url = url
        self._connect, self._store = connect, store
        self.lacking: set[str] = set()
        self.served = self.failures = self.damaged = 0
        self.chances = _CHANCES
        self.given_up = False

    @property
    def store(self) -> HttpStore:
        """Its store."""
        if self._store is None:
            self._store = self._connect()
        return self._store

    @property
    def stats(self) -> StoreStats:
        """What came from it."""
        return StoreStats() if self._store is None else self._store.stats

    @property
    def behind(self) -> bool:
        """Whether it seems to lack whatever is asked for."""
        return not self.served and len(self.lacking) >= _BEHIND

    def close(self) -> None:
        """Close its store."""
        if self._store is not None:
            self._store.close()

    def report(self) -> Served:
        """Return what it did."""
        return Served(self.url, self.stats.bytes, self.stats.requests, self.failures, self.damaged)


class MirroredStore:
    """The repository at ``url`` and its mirrors as one store; arguments as for :class:`HttpStore`.

    ``memory`` is the file in which the health of servers is kept (None: nowhere). ``chance`` (random in [0, 1)) and
    ``wall`` (the instant) are functions.

    ``credentials`` tell what each server is shown.

    Raises what :class:`HttpStore` raises, ``ValueError`` also for the URL of a mirror that is none.
    """

    def __init__(
        self,
        url: str,
        *,
        manners: Manners | None = None,
        throttle: Throttle | None = None,
        memory: Path | None = None,
        options: FetchOptions | None = None,
        credentials: Credentials | None = None,
        cancel: threading.Event | None = None,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
        **arguments: Any,
    ) -> None:
        self._manners = manners or Manners()
        self._throttle = throttle or Throttle()
        self._patient = options or FetchOptions()
        self._hasty = hasty(self._patient)
        self._arguments = {**arguments, "throttle": self._throttle, "cancel": cancel}
        self._chance, self._wall = chance, wall
        self._memory = HealthMemory(memory)
        self._credentials = credentials or Credentials()
        own = self._credentials.of(url, own=True)
        self._own = HttpStore(url, options=self._patient, credential=own, **self._arguments)
        self._primary = _Server(self._own.url, lambda: self._own, self._own)
        self._servers = [self._primary]
        self._delivered: dict[str, list[tuple[int, int, _Server]]] = {}
        self._lock = threading.Lock()
        for mirror in self._manners.mirrors:
            self._add(mirror)

    def __repr__(self) -> str:
        return f"MirroredStore({', '.join(server.url for server in self._servers)})"

    @property
    def url(self) -> str:
        """The repository's own URL without secrets."""
        return self._own.url

    @property
    def stats(self) -> StoreStats:
        """What came from all servers together."""
        total = StoreStats()
        for stats in (server.stats for server in self._servers):
            total.count(bytes=stats.bytes, requests=stats.requests, retries=stats.retries)
        return total

    @property
    def conduct(self) -> Conduct:
        """How this run has behaved so far."""
        served = tuple(server.report() for server in self._servers)
        return Conduct(self._throttle.rate, self._throttle.paused_seconds, served)

    @property
    def takes_mirrors(self) -> bool:
        """Whether mirrors that the repository names are used."""
        return self._manners.offered_mirrors

    def offer(self, mirrors: Iterable[str]) -> None:
        """Take mirrors that the repository names; none that would do without the encryption that its own server has."""
        encrypted = urlsplit(self.url).scheme == "https"
        for mirror in mirrors if self.takes_mirrors else ():
            if encrypted and urlsplit(mirror).scheme != "https":
                _LOG.info("%s: a mirror without encryption is not used for a repository with it", mirror)
                continue
            with contextlib.suppress(ValueError):
                self._add(mirror)

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole, from the repository's own server."""
        return self._own.read(name, limit=limit)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes."""
        result: list[bytes] = []
        self.fetch([wanted], lambda _, data: result.append(bytes(data)))
        return result[0]

    def fetch(self, ranges: Iterable[Range], deliver: Deliver, *, again: bool = False) -> None:
        """Deliver each range exactly once, packs from any server; ``again`` blames whoever delivered them last.

        Raises what the repository's own server is to blame for when no mirror can help.
        """
        if len(self._servers) == 1:
            self._own.fetch(ranges, deliver, again=again)
            return
        wanted = list(ranges)
        others = [one for one in wanted if not one.name.startswith(_PACKS)]
        if others:
            self._own.fetch(others, deliver, again=again)
        try:
            self._fetch_packs(deque(one for one in wanted if one.name.startswith(_PACKS)), deliver, again)
        finally:
            self._own.go_by(self._patient)

    def close(self) -> None:
        """Close the connections and keep what was learnt of the servers."""
        self._memory.save()
        for server in self._servers:
            server.close()

    # ---- inside

    def _add(self, url: str) -> None:
        known = self._credentials.of(url)
        arguments = {**self._arguments, "credential": known}
        mirror = _Server(Site(url).url, lambda: HttpStore(url, options=self._hasty, **arguments))
        if mirror.url not in [server.url for server in self._servers]:
            self._servers.append(mirror)

    def _fetch_packs(self, pending: deque[Range], deliver: Deliver, again: bool) -> None:
        liars = self._blame(pending) if again else {}
        if not again:
            self._delivered.clear()
        for one in self._servers:
            one.chances = _CHANCES
        while pending:
            server, alternatives = self._pick(pending, liars)
            self._own.go_by(self._hasty if alternatives else self._patient)
            if server is not None:
                self._ask(server, pending, deliver, liars, again)
                continue
            error = self._take(self._primary, pending, self._recorded(self._primary, deliver), again, _NEVER)
            if error is not None:
                self._memory.forget()  # when nobody can be reached, it is not for them to rest
                raise error

    def _pick(self, pending: Iterable[Range], liars: dict[Range, set[_Server]]) -> tuple[_Server | None, bool]:
        """Return the server to ask next, None where only patience is left; and whether another one could be asked."""
        able = [server for server in self._servers if any(_may(server, one, liars) for one in pending)]
        now = self._wall()
        well = [one for one in able if one.chances and self._memory[one.url].state(now) is not State.RESTING]
        if liars and self._primary in well:
            return self._primary, len(well) > 1  # the one that is least likely to deliver damage, too
        number = choose([self._memory[one.url] for one in well], now=now, chance=self._chance())
        return (None, False) if number is None else (well[number], len(well) > 1)

    def _ask(
        self,
        server: _Server,
        pending: deque[Range],
        deliver: Deliver,
        liars: dict[Range, set[_Server]],
        again: bool,
    ) -> None:
        """Let a server deliver what it can of ``pending``, for a while; what it does not is put back."""
        mine = deque(one for one in pending if _may(server, one, liars))
        rest = [one for one in pending if not _may(server, one, liars)]
        pending.clear()
        probe = self._memory[server.url].state(self._wall()) is State.PROBE
        if probe:
            rest += list(mine)[1:]
            mine = deque([mine[0]])
        begun, paused, bytes_before = time.monotonic(), self._throttle.paused_seconds, server.stats.bytes
        error = self._take(server, mine, self._recorded(server, deliver), again, begun + _SLICE)
        pending.extend(mine)
        pending.extend(rest)
        if error is not None and not isinstance(error, NotFound):
            self._failed(server, error)
            return
        seconds = time.monotonic() - begun - (self._throttle.paused_seconds - paused)
        size = server.stats.bytes - bytes_before
        if size:
            self._memory[server.url] = self._memory[server.url].served(size, seconds, now=self._wall())

    def _take(
        self, server: _Server, pending: deque[Range], deliver: Deliver, again: bool, until: float
    ) -> FetchError | NotFound | None:
        """Fetch ranges of ``pending`` from a server until an instant; those not delivered are left in ``pending``.

        Returns the server's failure; errors of ``deliver``, and what concerns the whole run, are raised.
        """
        taken: Counter[Range] = Counter()
        broken: list[BaseException] = []

        def ranges() -> Iterator[Range]:
            while pending and time.monotonic() < until:
                one = pending.popleft()
                with self._lock:
                    taken[one] += 1
                yield one

        def delivered(wanted: Range, data: memoryview) -> None:
            try:
                deliver(wanted, data)
            except BaseException as error:
                broken.append(error)
                raise
            with self._lock:
                taken[wanted] -= 1
                server.served += 1

        lacking = None if server is self._primary else lambda wanted: server.lacking.add(wanted.name)
        try:
            server.store.fetch(ranges(), delivered, again=again, lacking=lacking)
        except (FetchError, NotFound) as error:
            if broken:
                raise
            if isinstance(error, NotFound):
                server.lacking.add(error.what)  # a mirror may have it
            return error
        finally:
            pending.extendleft(reversed(list(taken.elements())))
            if server.behind and server is not self._primary and not server.given_up:
                server.given_up = True
                _LOG.warning("%s lacks what is asked for: a mirror that is behind, left aside", server.url)
        return None

    def _recorded(self, server: _Server, deliver: Deliver) -> Deliver:
        """Return a ``deliver`` that remembers who delivered what, until the next fetch."""

        def recorded(wanted: Range, data: memoryview) -> None:
            with self._lock:
                place = (wanted.start, wanted.start + wanted.length, server)
                self._delivered.setdefault(wanted.name, []).append(place)
            deliver(wanted, data)

        return recorded

    def _blame(self, damaged: Sequence[Range] | deque[Range]) -> dict[Range, set[_Server]]:
        """Return, for ranges whose content was damaged, who delivered them; mirrors among those are done with."""
        liars = {}
        for one in damaged:
            stop = one.start + one.length
            places = self._delivered.get(one.name, [])
            liars[one] = {server for first, last, server in places if first < stop and one.start < last}
        for server in {server for servers in liars.values() for server in servers}:
            server.damaged += sum(server in servers for servers in liars.values())
            if server is not self._primary:
                server.given_up = True
                self._memory[server.url] = self._memory[server.url].failing(now=self._wall(), damaged=True)
                _LOG.warning("%s delivered damaged data; it is asked no more", server.url)
        return liars

    def _failed(self, server: _Server, error: FetchError) -> None:
        server.failures += 1
        server.chances -= 1
        self._memory[server.url] = self._memory[server.url].failing(now=self._wall())
        _LOG.warning("%s; the next server is asked", error)


_NEVER: Final = float("inf")


def open_servers(
    url: str, manners: Manners | None, limit_rate: float | None, cache: Path | None, **arguments: Any
) -> MirroredStore:
    """Return the store at ``url`` and its mirrors, with these manners; further arguments as for :class:`HttpStore`.

    What is learnt of the servers is kept in the directory ``cache``.
    """
    manners = manners or Manners()
    yields = Background() if manners.background else None
    throttle = Throttle(limit_rate, schedule=manners.schedule, yields=yields, allowance=manners.max_bytes)
    memory = cache / MEMORY if cache is not None else None
    return MirroredStore(url, manners=manners, throttle=throttle, memory=memory, **arguments)


def hasty(options: FetchOptions) -> FetchOptions:
    """Return options for servers that others stand in for: they lose patience soon."""
    return replace(
        options,
        connect=min(options.connect, 5.0),
        stall=min(options.stall, 15.0),
        budget=min(options.budget, 15.0),
        first_budget=min(options.first_budget, 5.0),
        retry_after_cap=min(options.retry_after_cap, 5.0),
        attempts=min(options.attempts, 3),
        refreshes=0,
    )


def _may(server: _Server, wanted: Range, liars: dict[Range, set[_Server]]) -> bool:
    """Tell whether a server may be asked for a range."""
    return not server.given_up and wanted.name not in server.lacking and server not in liars.get(wanted, ())
