"""A few threads that work off a common queue, watched by the thread that started them.

The first error ends all and is raised by :meth:`Crew.run`. Functions of the caller are entered through
:meth:`Crew.call` only: once :meth:`Crew.run` has returned, none of them runs or will run, even where a thread
had to be left behind inside a system call that nothing can interrupt (a name lookup without a network).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, ParamSpec, TypeVar

from trimtransfer.store import Range

_P = ParamSpec("_P")
_T = TypeVar("_T")

_GRACE: Final = 1.0
"""Seconds that threads have to end after a stop before they are left behind."""


class Stopped(Exception):
    """Raised inside a thread of a crew that has been stopped."""


class Crew:
    """Up to ``size`` threads that run ``work``; ``watch`` is called every ``tick`` seconds by the starting thread."""

    def __init__(self, *, size: int, tick: float) -> None:
        self.stop = threading.Event()
        self._size, self._tick = size, tick
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._finished = threading.Event()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._calls = 0
        self._work: Callable[[], None] = lambda: None
        self._error: BaseException | None = None

    def run(self, work: Callable[[], None], *, watch: Callable[[], None], interrupt: Callable[[], None]) -> None:
        """Run ``work`` in one thread, and more as :meth:`grow` asks for, until all have returned.

        An error of a thread or of ``watch`` (or Ctrl-C) stops the others: ``interrupt`` must wake those that wait for
        the network. Raises that error.
        """
        self._work = work
        self.grow()
        try:
            while not self._finished.wait(self._tick):
                watch()
        finally:
            self.stop.set()
            interrupt()
            self._dismiss(interrupt)
        if self._error is not None:
            raise self._error

    def grow(self) -> None:
        """Start one more thread, unless there are enough."""
        with self._lock:
            if len(self._threads) >= self._size or self.stop.is_set():
                return
            thread = threading.Thread(target=self._main, name=f"fetch-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            self._running += 1
        thread.start()

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function of the caller, or raise ``Stopped``."""
        with self._lock:
            if self.stop.is_set():
                raise Stopped
            self._calls += 1
        try:
            return function(*args, **kwargs)
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._idle.notify_all()

    def sleep(self, seconds: float) -> None:
        """Wait, or raise ``Stopped``."""
        if self.stop.wait(seconds):
            raise Stopped

    def _main(self) -> None:
        try:
            self._work()
        except BaseException as error:  # also of a thread that stopped although nobody said so: its work is not done
            with self._lock:
                if self._error is None and not self.stop.is_set():
                    self._error = error
            self.stop.set()
        finally:
            with self._lock:
                self._running -= 1
                if not self._running or self._error is not None:
                    self._finished.set()

    def _dismiss(self, interrupt: Callable[[], None]) -> None:
        """Wait for the end of the caller's functions, however long, and of the threads, for a moment."""
        deadline = time.monotonic() + _GRACE
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(0.02)
                interrupt()  # again: one may have been about to send a request
        with self._lock:
            while self._calls:
                self._idle.wait()


class Queue:
    """Ranges pulled lazily out of an iterable, by one thread at a time, with a bounded look-ahead where asked for."""

    def __init__(self, ranges: Iterable[Range], *, look_ahead: int) -> None:
        self._source = iter(ranges)
        self._ahead: deque[Range] = deque()
        self._look_ahead = look_ahead
        self._lock = threading.Lock()

    def take(self, crew: Crew) -> list[Range]:
        """Return the next range with those that continue its run, or nothing at the end."""
        with self._lock:
            first = self._next(crew)
            run = [] if first is None else [first]
            while run and run[-1].end < run[0].run_end:
                following = self._next(crew)
                if following is None:
                    break
                if (following.name, following.start) != (run[0].name, run[-1].end):
                    self._ahead.appendleft(following)
                    break
                run.append(following)
        return run

    def take_same(self, name: str, crew: Crew) -> list[Range]:
        """Return all further ranges of one object within the look-ahead."""
        with self._lock:
            while len(self._ahead) < self._look_ahead:
                wanted = crew.call(next, self._source, None)
                if wanted is None:
                    break
                self._ahead.append(wanted)
            same = [wanted for wanted in self._ahead if wanted.name == name]
            self._ahead = deque(wanted for wanted in self._ahead if wanted.name != name)
        return same

    def _next(self, crew: Crew) -> Range | None:
        return self._ahead.popleft() if self._ahead else crew.call(next, self._source, None)

    def put_back(self, ranges: Iterable[Range]) -> None:
        """Return ranges that were taken ahead, to be taken next."""
        with self._lock:
            self._ahead.extendleft(reversed(list(ranges)))
