"""One writer at a time in an object store that has neither locks nor conditional writes.

Who wants to write puts an object of its own, and only then lists all such objects. If there is another one, it takes
its own away and is refused. Of two writers, the one that listed last listed after both had put: it saw the other. That
takes a store whose lists show at once what was put (S3 does since 2020).

A writer that died leaves its object. It counts as dead when it was not renewed for ``DEAD`` seconds by the store's own
clock. One that only slept may wake up then; but it begins no request that changes anything unless it renewed within the
last ``FRESH`` seconds (by a clock that goes on during sleep), and the store refuses what was signed more than ``SKEW``
seconds ago. FRESH + SKEW < DEAD: nothing of the old writer can arrive once there may be a new one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.uploading import send_bytes
from trimtransfer.bucket.wire import Wire
from trimtransfer.errors import FetchError, Locked, NotFound, TrimTransferError
from trimtransfer.fetch.sigv4 import SKEW
from trimtransfer.store import PRIVATE

DEAD: Final = 1800.0
FRESH: Final = 600.0
"""Seconds; see above."""
_RENEWAL: Final = 60.0
_WRITERS: Final = f"{PRIVATE}/writers/"
_PLAIN: Final = {"cache-control": "no-store"}
_TRIES: Final = 3
"""Two that began at the same moment may both see each other; after a random pause one of them usually wins."""
_LOG: Final = logging.getLogger("trimtransfer.bucket")
assert FRESH + SKEW < DEAD


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds: see above; tests take less."""

    dead: float = DEAD
    fresh: float = FRESH
    renewal: float = _RENEWAL
    pause: float = 3.0


class Claim:
    """The right to write, while it lasts."""

    def __init__(self, wire: Wire, purpose: str, terms: Terms) -> None:
        self._wire, self._terms = wire, terms
        self._name = f"{_WRITERS}{secrets.token_hex(8)}.json"
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {socket.gethostname()} ({purpose}, {since})"
        self._data = json.dumps({"holder": holder}).encode()
        self._renewed = _awake()
        self._lost = False
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name="claim", daemon=True)
        self._ahead = 0.0

    def check(self) -> None:
        """Raise ``Locked`` unless nobody else can be writing."""
        if self._lost or _awake() - self._renewed > self._terms.fresh:
            raise Locked(self._wire.url, "perhaps somebody else: this process slept, or was offline, for too long")

    def now(self) -> float:
        """Return the store's clock, in seconds since 1970."""
        return _awake() + self._ahead

    def take(self, *, break_others: bool = False) -> None:
        """Take it; ``Locked`` where somebody else has it."""
        for attempt in range(_TRIES):
            self._put()
            try:
                others, now = self._others()
            except BaseException:
                self._withdraw()
                raise
            live = [one for one in others if not break_others and now - one.written < self._terms.dead]
            if not live:
                for one in others:
                    _LOG.warning("%s: the claim of a writer that died was removed", self._wire.url)
                    self._wire.ask("DELETE", one.name)
                self._ahead = now - _awake()
                self._wire.guard = self.check
                self._renewer.start()
                return
            self._withdraw()
            if attempt + 1 == _TRIES or all(now - one.written > 10 for one in live):
                raise Locked(self._wire.url, self._describe(live[0], now))
            time.sleep(random.uniform(0.1, 1.0) * self._terms.pause)

    def release(self) -> None:
        """Give it back."""
        self._ended.set()
        if self._renewer.is_alive():
            self._renewer.join(30)
        self._wire.guard = lambda: None
        if not self._lost:
            self._withdraw()

    def _put(self) -> None:
        begun = _awake()
        send_bytes(self._wire, self._name, self._data, headers=_PLAIN)
        self._renewed = begun

    def _withdraw(self) -> None:
        with contextlib.suppress(FetchError, NotFound):
            self._wire.ask("DELETE", self._name)

    def _others(self) -> tuple[list[Listed], float]:
        found: list[Listed] = []
        token, first = "", True
        while token or first:
            first = False
            page, token, reply = self._wire.page(_WRITERS, token)
            found += page
        return [one for one in found if one.name != self._name], reply.moment

    def _describe(self, one: Listed, now: float) -> str:
        holder = "another process"
        with contextlib.suppress(TrimTransferError, ValueError, KeyError, TypeError):
            holder = str(json.loads(self._wire.ask("GET", one.name).body[:4096])["holder"])[:200]
        left = max(0.0, self._terms.dead - (now - one.written)) / 60
        return f"{holder}. If that died, it is let go of by itself in {left:.0f} minutes without a sign of life"

    def _keep(self) -> None:
        """Renew it again and again; one that is gone was broken by somebody."""
        while not self._ended.wait(self._terms.renewal):
            try:
                self.check()
                self._wire.ask("HEAD", self._name)
                self._put()
            except (NotFound, Locked):
                self._lost = True
                return
            except TrimTransferError as error:
                _LOG.warning("%s: the claim to write could not be renewed: %s", self._wire.url, error)


@contextlib.contextmanager
def claimed(
    wire: Wire,
    purpose: str,
    *,
    break_others: bool = False,
    terms: Terms = Terms(),
) -> Iterator[Claim]:
    """Hold a place in an object store for writing.

    Raises:
        Locked: another process holds it; or, from any request that changes something, it is not sure any more that
            nobody else does.
    """
    claim = Claim(wire, purpose, terms)
    claim.take(break_others=break_others)
    try:
        yield claim
    finally:
        claim.release()


def _awake() -> float:
    """Return a clock in seconds that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
