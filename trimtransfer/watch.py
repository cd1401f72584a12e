"""What a long call tells its caller, and asks of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from trimtransfer.errors import Cancelled

Progress: TypeAlias = Callable[[str, int, int], None]
"""``progress(phase, done_bytes, total_bytes)``"""


@dataclass(frozen=True, slots=True)
class Watch:
    """The caller's side of a long call: where progress goes, and the event that asks to stop.

    ``outcome`` says in the error what a stop leaves behind.
    """

    progress: Progress | None = None
    cancel: threading.Event | None = None
    outcome: str = "stopped"

    def check(self) -> None:
        """Raise ``Cancelled`` if the caller wants to stop."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(self.outcome)

    def report(self, phase: str, done: int, total: int) -> None:
        """Tell the progress; raise ``Cancelled`` if the caller wants to stop."""
        self.check()
        if self.progress is not None:
            self.progress(phase, done, total)
