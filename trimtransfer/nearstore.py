"""A bundle that lies nearer than another store: what it has is read from it, everything else comes from there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from trimtransfer.bundlestore import BundleStore
from trimtransfer.errors import Cancelled, FetchError, TrimTransferError
from trimtransfer.store import Range, Store, StoreStats, in_threads

HOLE: Final = 16 << 10
"""Bytes between two pieces that a bundle has which are not fetched: callers join what they want over gaps of about that
length. They verify what they use, so one that did want them asks again."""
_LOG: Final = logging.getLogger("trimtransfer.nearstore")


@dataclass(slots=True)
class _Mixed:
    """A range that comes from both: its buffer, and how many parts of it are still to come."""

    wanted: Range
    data: memoryview
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


class NearStore:
    """A store with a bundle that lies nearer: what that has of ranges is read from it, the rest from ``far``.

    What a version is, is told by ``far`` alone: heads and manifests always come from there. What is asked for ``again``
    was damaged here or on the way, so it comes from there, too. A bundle that cannot be read costs bytes, nothing else.
    """

    def __init__(self, near: BundleStore, far: Store) -> None:
        self.near, self.far = near, far
        self._lost = False

    def __repr__(self) -> str:
        return f"NearStore({self.near!r}, {self.far!r})"

    @property
    def url(self) -> str:
        """The address of the farther store."""
        return self.far.url

    @property
    def stats(self) -> StoreStats:
        """What crossed the wire: that of the farther store."""
        return self.far.stats

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole: from the farther store, which decides."""
        return self.far.read(name, limit=limit)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes, wherever they are."""
        if 0 < self.held_near(wanted) < wanted.length:
            return self.far.read_range(wanted)
        result: list[bytes] = []
        self.fetch([wanted], lambda _, data: result.append(bytes(data)))
        return result[0]

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Deliver each range once: first what the bundle has whole, then the others, as far as it has them.

        Up to ``HOLE`` bytes between pieces of the bundle are zeros, unless they are asked for ``again``.
        """
        if again:
            self.far.fetch(ranges, deliver, again=True)
            return
        here: list[Range] = []
        others: list[Range] = []
        for wanted in ranges:
            (here if self.held_near(wanted) == wanted.length else others).append(wanted)
        lock = threading.Lock()

        def one(wanted: Range) -> None:
            data = self._try(wanted)
            if data is not None:
                deliver(wanted, data)
                return
            with lock:
                others.append(wanted)

        in_threads(here, one, self.near.connections)
        if others:
            self._fetch_mixed(others, deliver)

    def held_near(self, wanted: Range) -> int:
        """Return how many bytes of a range this bundle has."""
        return 0 if self._lost else sum(length for _, length, _ in self.near.held(wanted))

    def close(self) -> None:
        """Close both."""
        self.near.close()
        self.far.close()

    def _fetch_mixed(self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None]) -> None:
        """Fetch from the farther store what the bundle lacks of ranges, and deliver each once it is complete."""
        waiting: dict[Range, list[_Mixed]] = {}

        def missing() -> Iterator[Range]:
            for wanted in ranges:
                mixed, lacking = self._begin(wanted)
                if not lacking:
                    deliver(wanted, mixed.data)
                for part in lacking:
                    waiting.setdefault(part, []).append(mixed)
                yield from lacking

        def take(part: Range, data: memoryview) -> None:
            mixed = waiting[part].pop()
            if part == mixed.wanted:
                deliver(part, data)
                return
            at = part.start - mixed.wanted.start
            mixed.data[at : at + part.length] = data
            with mixed.lock:
                mixed.left -= 1
                complete = mixed.left == 0
            if complete:
                deliver(mixed.wanted, mixed.data)

        self.far.fetch(missing(), take)

    def _begin(self, wanted: Range) -> tuple[_Mixed, list[Range]]:
        """Read what the bundle has of a range; return it with what is lacking."""
        held = [] if self._lost else self.near.held(wanted)
        if self.held_near(wanted) in (0, wanted.length):  # all of it was tried in vain
            return _Mixed(wanted, memoryview(b""), 1), [wanted]
        data = memoryview(bytearray(wanted.length))
        lacking: list[Range] = []
        at = wanted.start
        for start, length, _ in held:
            piece = self._try(Range(wanted.name, start, length, wanted.total))
            if piece is None:
                continue
            if start - at > (HOLE if at > wanted.start else 0):
                lacking.append(Range(wanted.name, at, start - at, wanted.total))
            data[start - wanted.start :][:length] = piece
            at = start + length
        end = wanted.start + wanted.length
        if at < end:
            lacking.append(Range(wanted.name, at, end - at, wanted.total))
        if len(lacking) == 1 and lacking[0].length == wanted.length:
            return _Mixed(wanted, data, 1), [wanted]
        lacking = [part for part in lacking if _offers(self.far, part)]  # else a gap that nobody needs
        return _Mixed(wanted, data, len(lacking)), lacking

    def _try(self, wanted: Range) -> memoryview | None:
        """Return a range that the bundle has; None if it cannot be read after all."""
        if self._lost:
            return None
        try:
            return memoryview(self.near.read_range(wanted))
        except Cancelled:
            raise
        except (TrimTransferError, OSError) as error:
            self._warn(error)
            self._lost = self._lost or isinstance(error, FetchError | OSError)
            return None

    def _warn(self, error: Exception) -> None:
        if not self._lost:
            _LOG.warning("what the bundle cannot give is fetched: %s", error)


def _offers(store: Store, wanted: Range) -> bool:
    """Return whether a store may have some of a range."""
    if isinstance(store, NearStore):
        return bool(store.near.held(wanted)) or _offers(store.far, wanted)
    return not isinstance(store, BundleStore) or bool(store.held(wanted))


def held_bytes(store: Store, wanted: Range) -> int:
    """Return how many bytes of a range one of the bundles near a store has; one that is the store itself counts."""
    if isinstance(store, NearStore):
        return max(store.held_near(wanted), held_bytes(store.far, wanted))
    return sum(length for _, length, _ in store.held(wanted)) if isinstance(store, BundleStore) else 0


def is_offline(store: Store) -> bool:
    """Return whether everything comes from bundles."""
    return is_offline(store.far) if isinstance(store, NearStore) else isinstance(store, BundleStore)


def behind_bundles(store: Store) -> Store:
    """Return the store that bundles are near."""
    while isinstance(store, NearStore):
        store = store.far
    return store


def bundle_stats(store: Store) -> StoreStats:
    """Return what was read from bundles, near a store or as the store."""
    total = StoreStats()
    while isinstance(store, NearStore):
        total.count(bytes=store.near.read_stats.bytes, requests=store.near.read_stats.requests)
        store = store.far
    if isinstance(store, BundleStore):
        total.count(bytes=store.read_stats.bytes, requests=store.read_stats.requests)
    return total
