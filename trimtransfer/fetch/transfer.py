"""One call of a store over HTTP: ranges from a queue, through connections, into the receiver's hands.

This module puts the pieces together and decides nothing by itself: ``answer.py`` judges answers, ``body.py`` cuts
them, ``retry.py`` judges failures, ``crew.py`` runs the threads, ``line.py`` holds what calls share.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from trimtransfer.errors import AccessDenied, Cancelled, FetchError, FormatError, NotFound, TrimTransferError
from trimtransfer.fetch.answer import Answer, Asked, check_answer, check_encoding, check_status, content_length
from trimtransfer.fetch.body import Body, Landing, Part, cut
from trimtransfer.fetch.crew import Crew, Queue, Stopped
from trimtransfer.fetch.line import Connection, Exchange, Line
from trimtransfer.fetch.retry import RULES, Action, Attempts, Cause, Failed
from trimtransfer.fetch.site import shown
from trimtransfer.store import Range

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_TICK: Final = 0.1
"""Seconds within which cancelling and stalls are noticed."""
_LOW_RATE: Final = 1 << 20
"""Bytes per second below which one connection asks for pieces of ``_PIECE`` seconds: what several connections and
their socket buffers take in at once would be many seconds' worth."""
_PIECE: Final = 0.8
_SMALLEST_PIECE: Final = 512
_OUR_OWN: Final = frozenset((Cause.ASLEEP, Cause.PAUSED))
"""Failures for which no server is to blame."""


class Transfer:
    """One call of a store: its crew of threads and what they work on. ``fresh`` asks caches for fresh copies.

    ``lacking`` is told the ranges of objects that are not there; without it these are an error.
    """

    def __init__(
        self,
        line: Line,
        ranges: Iterable[Range] = (),
        deliver: Callable[[Range, memoryview], None] = lambda wanted, data: None,
        *,
        fresh: bool = False,
        lacking: Callable[[Range], None] | None = None,
    ) -> None:
        self._line, self._deliver, self._fresh, self._lacking = line, deliver, fresh, lacking
        self._crew = Crew(size=line.connections, tick=min(_TICK, line.options.stall / 4))
        self._queue = Queue(ranges, look_ahead=line.options.look_ahead)
        self._lock = threading.Lock()
        self._busy: set[Connection] = set()
        line.throttle.govern()
        if line.clock.resume():
            line.drop_idle()
        _, self._sleeps = line.clock.read()

    def fetch(self) -> None:
        """Deliver every range of the queue."""
        self._crew.run(self._work, watch=self._watch, interrupt=self._interrupt)

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole object of at most ``limit`` bytes."""
        result: list[bytes] = []

        def attempt(fresh: bool) -> None:
            result.append(self._read(name, limit, fresh=fresh))

        self._crew.run(lambda: self._persist(name, attempt, lambda: 0), watch=self._watch, interrupt=self._interrupt)
        return result[0]

    # ---- the watching thread

    def _watch(self) -> None:
        if self._line.cancel.is_set():
            raise Cancelled("stopped on request while fetching")
        self._line.throttle.govern()
        _, sleeps = self._line.clock.read()
        if self._line.throttle.paused:
            self._line.drop_idle()
            self._abort(Failed(Cause.PAUSED, "paused by the rate schedule"))
        if sleeps != self._sleeps:
            self._sleeps = sleeps
            self._line.drop_idle()
            self._abort(Failed(Cause.ASLEEP, "this machine or process was asleep"))
            return
        failure = Failed(Cause.STALL, f"no progress for {self._line.options.stall:g} seconds")
        self._abort(failure, overdue=time.monotonic())

    def _interrupt(self) -> None:
        self._abort(None)

    def _abort(self, failure: Failed | None, *, overdue: float | None = None) -> None:
        """Break all exchanges, or those whose deadline is before ``overdue``.

        Under the lock without which none is given back: else one would be broken that somebody else has taken since.
        """
        with self._lock:
            for connection in self._busy:
                if overdue is None or connection.deadline < overdue:
                    connection.abort(failure)

    # ---- the working threads

    def _work(self) -> None:
        landing = Landing()
        while run := self._queue.take(self._crew):
            for wanted in run:
                _check_range(wanted)
            if self._piece() is None:
                self._crew.grow()
            if not run[-1].length:
                self._crew.call(self._deliver, run[-1], memoryview(b""))
                continue
            total = run[0].total
            size = total if self._line.ranges_ignored and total else max(wanted.length for wanted in run)
            with self._line.flight.load(size, self._crew.stop) as admitted:
                if not admitted:
                    raise Stopped
                self._fill(run, landing)

    def _fill(self, run: Sequence[Range], landing: Landing) -> None:
        """Fetch and deliver ranges of a run, and others of their object where the server only sends whole objects."""
        parts = deque(map(Part, run))
        done = 0
        if self._line.ranges_ignored:
            self._take_neighbours(parts)

        def ready(part: Part) -> None:
            nonlocal done
            landing.lend(part.wanted.length, lambda view: self._crew.call(self._deliver, part.wanted, view))
            done += part.wanted.length + self._line.options.min_progress

        def attempt(fresh: bool) -> None:
            while parts:
                self._ask(parts, run[-1].end, landing, ready, fresh=fresh)

        try:
            self._persist(run[0].name, attempt, lambda: done + (parts[0].got if parts else 0))
        except NotFound:
            if self._lacking is None:
                raise
            for part in parts:
                self._crew.call(self._lacking, part.wanted)

    def _persist(self, name: str, attempt: Callable[[bool], None], progress: Callable[[], int]) -> None:
        """Attempt until it succeeds or patience ends; ``progress`` is a number of bytes that grows."""
        line = self._line
        attempts = Attempts(line.options, now=line.clock.read()[0])
        fresh = self._fresh
        while True:
            if self._wait_for_pause():
                attempts.progressed(now=line.clock.read()[0])
            before = progress()
            try:
                return attempt(fresh)
            except Failed as failed:
                failure = failed
            if failure.cause is Cause.PAUSED:
                continue
            now, _ = line.clock.read()
            if failure.cause is Cause.ASLEEP or progress() - before >= line.options.min_progress:
                attempts.progressed(now=now)
            decision = attempts.failed(failure, now=now, jitter=random.random(), proven=line.proven)
            url = shown(line.locate(name))
            line.forget()
            if decision.give_up:
                raise _error(failure, name, url, decision.reason) from failure
            _LOG.warning("%s: %s; trying again in %.1f seconds", url, failure, decision.delay)
            if decision.slower:
                line.gate.complained(decision.delay)
            fresh = fresh or decision.refresh
            line.stats.count(retries=1)
            self._crew.sleep(decision.delay)

    def _wait_for_pause(self) -> bool:
        """Wait until the rate schedule lets something through; tell whether that took any time."""
        if not self._line.throttle.paused:
            return False
        while self._line.throttle.paused:
            self._crew.sleep(_TICK)
        return True

    def _ask(
        self, parts: deque[Part], end: int, landing: Landing, ready: Callable[[Part], None], *, fresh: bool
    ) -> None:
        """Make one request for the run of the first part, up to ``end``, and deliver what its answer completes."""
        asked = self._asked(parts[0], end)
        name, limit = parts[0].wanted.name, self._line.options.whole_limit
        with self._exchange(name, _headers(asked, fresh=fresh)) as (exchange, connection):
            answer = check_answer(asked, exchange.status, exchange.headers, whole_limit=limit)
            self._learn(asked, answer, parts, end)

            def delivered(part: Part) -> None:
                with _paused(connection):
                    ready(part)

            cut(Body(self._counted(exchange, connection), answer), answer, parts, landing, delivered, limit=limit)
        self._line.gate.went_well()

    def _read(self, name: str, limit: int, *, fresh: bool) -> bytes:
        headers = _headers(None, fresh=fresh)
        with self._exchange(name, headers) as (exchange, connection):
            check_encoding(exchange.status, exchange.headers)
            if exchange.status != 200:
                raise Failed(Cause.WRONG_RANGE, "a part came although the whole was asked for", status=exchange.status)
            length = content_length(exchange.headers)
            data = None
            if length is None or length <= limit:
                body = Body(self._counted(exchange, connection), Answer(0, length, partial=False))
                data = body.rest(limit)
            if data is None:
                got = "more" if length is None else f"{length:,} bytes"
                raise FormatError(f"object {name}", limit, f"at most {limit:,} bytes", got)
        self._line.gate.went_well()
        return bytes(data)

    @contextmanager
    def _exchange(self, name: str, headers: dict[str, str]) -> Iterator[tuple[Exchange, Connection]]:
        """Send a request when the gate allows; yield the answer if it has a body of the object."""
        line = self._line
        with line.gate.passage(self._crew.stop) as admitted:
            if not admitted:
                raise Stopped
            if line.throttle.paused:
                raise Failed(Cause.PAUSED, "paused by the rate schedule")
            connection = line.take_connection()
            with self._lock:
                self._busy.add(connection)
            try:
                exchange = connection.ask(line.locate(name), headers)
                try:
                    line.answered(name, exchange.url)
                    check_status(exchange.status, exchange.headers, now=datetime.now(UTC))
                    yield exchange, connection
                finally:
                    exchange.close()
            except Failed as failure:
                if RULES[failure.cause] is not Action.FATAL and failure.cause not in _OUR_OWN:
                    connection.leave_address()
                raise
            finally:
                with self._lock:
                    self._busy.discard(connection)
                line.give_connection(connection)

    def _counted(self, exchange: Exchange, connection: Connection) -> Iterator[bytes]:
        """Yield the body's chunks: counted, reported, and paid for."""
        line, crew = self._line, self._crew
        for chunk in exchange.chunks():
            line.stats.count(bytes=len(chunk))
            line.throttle.count(len(chunk))
            connection.received(len(chunk))
            if line.on_bytes is not None:
                crew.call(line.on_bytes, len(chunk))
            if line.bucket.rate is not None:
                with _paused(connection):
                    line.bucket.pay(len(chunk), crew.stop)
            if crew.stop.is_set():
                raise Stopped
            yield chunk

    # ---- what to ask for

    def _piece(self) -> int | None:
        """Return the most bytes to ask for at once, under a low rate limit, or None."""
        rate = self._line.bucket.rate
        return None if rate is None or rate >= _LOW_RATE else max(_SMALLEST_PIECE, int(rate * _PIECE))

    def _asked(self, part: Part, end: int) -> Asked:
        """Return what to ask for: the run up to ``end``, if the part belongs to it."""
        wanted, piece = part.wanted, self._piece()
        end = end if part.end <= end else part.end
        stop = end if piece is None or self._line.ranges_ignored else min(end, part.begin + piece)
        whole = wanted.whole and part.begin == 0 and stop == wanted.total
        return Asked(part.begin, stop, wanted.total, ranged=not whole)

    def _learn(self, asked: Asked, answer: Answer, parts: deque[Part], end: int) -> None:
        """Note whether the server does ranges, and take along what the answer holds: parts behind the run's ``end``,
        or not."""
        if not asked.ranged:
            return
        self._line.ranges_ignored = not answer.partial
        if not answer.partial and parts[-1].end <= end:
            self._take_neighbours(parts)
        while answer.partial and len(parts) > 1 and parts[-1].end > end:
            self._queue.put_back([parts.pop().wanted])

    def _take_neighbours(self, parts: deque[Part]) -> None:
        """Append the queue's further ranges of the same object, in order, as far as they do not overlap."""
        end = parts[-1].end
        left = []
        for wanted in sorted(self._queue.take_same(parts[0].wanted.name, self._crew), key=lambda w: w.start):
            if wanted.start >= end and wanted.length:
                parts.append(Part(wanted))
                end = parts[-1].end
            else:
                left.append(wanted)
        self._queue.put_back(left)


@contextmanager
def _paused(connection: Connection) -> Iterator[None]:
    """Stop the stall timer while it is us who wait."""
    begun, deadline = time.monotonic(), connection.deadline
    connection.deadline = float("inf")
    try:
        yield
    finally:
        connection.deadline = deadline + time.monotonic() - begun


def _headers(asked: Asked | None, *, fresh: bool) -> dict[str, str]:
    """Return the headers of one request, made anew for each: None asks for an object of unknown length."""
    headers = {}
    if asked is not None and asked.ranged:
        headers["Range"] = f"bytes={asked.start}-{asked.stop - 1}"
    if fresh or asked is None:
        headers["Cache-Control"] = "no-cache"
    return headers


def _check_range(wanted: Range) -> None:
    if wanted.start < 0 or wanted.length < 0 or (wanted.total is not None and wanted.run_end > wanted.total):
        raise ValueError(f"{wanted}: not within the object")
    if wanted.whole and (wanted.run_end != wanted.total or (wanted.start and not wanted.run)):
        raise ValueError(f"{wanted}: whole, but not from 0 to the object's total")


def _error(failure: Failed, name: str, url: str, reason: str) -> TrimTransferError:
    """Return the error that a failure ends in, for the caller."""
    if failure.cause is Cause.MISSING:
        return NotFound(name, url)
    cause = f"{failure} ({reason})" if reason else str(failure)
    if failure.cause in (Cause.DENIED, Cause.PROXY_DENIED):
        return AccessDenied(url, cause, status=failure.status)
    retryable = RULES[failure.cause] in (Action.BACKOFF, Action.WAIT)
    return FetchError(url, cause, status=failure.status, retryable=retryable)
