"""How many units are made at a time: some, or one that takes as much memory as all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets so many in at a time, or one alone. Those that wait for being alone go before those that do not."""

    def __init__(self, at_once: int) -> None:
        self._changed = threading.Condition()
        self._most, self._inside, self._waiting = at_once, 0, 0

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Be inside; ``alone`` or beside others."""
        weight = self._most if alone else 1
        with self._changed:
            self._waiting += alone
            self._changed.wait_for(lambda: self._inside + weight <= self._most and (alone or not self._waiting))
            self._waiting -= alone
            self._inside += weight
        try:
            yield
        finally:
            with self._changed:
                self._inside -= weight
                self._changed.notify_all()
