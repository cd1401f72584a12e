"""An interview: one question to a server after the other, each answer judged for what is wrong with any.

It ends early (``Enough``) where there is no use in asking on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from medv.doctor import answers, ranges, wire
from medv.doctor.ailments import find
from medv.doctor.finding import Finding
from trimtransfer.fetch.probe import Probe, Question
from trimtransfer.fetch.seen import Seen

PAGE: Final = 16 << 10
"""Bytes that are read of what is no object."""
_MOST_FAILURES: Final = 3


class Enough(Exception):
    """There is no use in asking any further."""


class Interview:
    """Questions to the server that ``probe`` asks, and what came of them.

    ``findings`` are all so far, ``seen`` all answers; ``row`` those that show whether connections are kept; ``facts``
    what was learnt beside.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.findings: list[Finding] = []
        self.seen: list[Seen] = []
        self.row: list[Seen] = []
        self.facts: dict[str, Any] = {}
        self._failures = 0

    def add(self, found: Iterable[Finding]) -> None:
        """Note findings."""
        self.findings.extend(found)

    def ask(self, name: str, question: Question | None = None, *, judge: bool = True) -> Seen:
        """Ask; with ``judge`` it is for an object that should be there."""
        if self.probe.left <= 0:
            self.add([find("not-examined", f"all after {self.probe.requests} requests")])
            raise Enough
        seen = self.probe.ask(name, question)
        self.seen.append(seen)
        if judge or seen.cause is not None:
            self.add(answers.judge_answer(seen))
        if judge:
            self.add(answers.judge_body(seen))
            self.add(wire.judge_redirects(seen, credentials=self.probe.has_credentials))
        self._failures += seen.status is None
        if self._failures >= _MOST_FAILURES:
            self.add([find("given-up", f"{self._failures} requests got no answer")])
            raise Enough
        return seen

    def piece(self, name: str, start: int, stop: int, total: int, right: bytes | None = None) -> Seen:
        """Ask for a range of an object of ``total`` bytes, and judge it; ``right`` is what it holds, if known."""
        seen = self.ask(name, Question(start=start, stop=stop, limit=stop - start + 64))
        self.add(ranges.judge_range(seen, total, right))
        return seen


def is_whole(seen: Seen) -> bool:
    """Tell whether all bytes of a range came, as far as their number goes."""
    start, stop = seen.asked or (0, 0)
    return seen.status == 206 and seen.succeeded and len(seen.body) == stop - start
