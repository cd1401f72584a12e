"""Whether local reuse pays: the time that it costs on this machine against the bytes that it keeps off the line. Pure.

The rule: fewer bytes win unless their cost is out of proportion - more than :data:`NEGLIGIBLE` seconds, and more than
:data:`OUT_OF_PROPORTION` times the time that they save on the line, at best. On a metered line every byte costs, so
there they always win. Times are estimates, by what was measured where it was, else by the rates below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from trimtransfer.fetch.manners import Manners, Pace

OUT_OF_PROPORTION: Final = 20.0
"""Fewer bytes count for much: they are paid for by servers and lines that others use, too. At 100 Mbit/s a minute of
work is done for 37 MB, at a gigabit for 375."""
NEGLIGIBLE: Final = 1.0
"""Seconds that nobody minds, however little they save."""
ASSUMED_BANDWIDTH: Final = 12_500_000.0
"""Bytes per second of a line of which nothing is known: 100 Mbit/s."""
_LEAST_MEASURED: Final = 1 << 20
"""Bytes from which on a transfer tells the bandwidth."""
_MOST_BELIEVED: Final = 125_000_000.0
"""A faster line than a gigabit is not believed in unless it is given: what was measured so may have been a cache."""
READ_RATE: Final = 300_000_000.0
"""Bytes per second that a disk is read with, where no scan has measured it."""
_DECODE_RATE: Final = 300_000_000.0
"""Bytes per second that deltas make on one core (benchmarks/bench_delta.py)."""
_FILE_SECONDS: Final = 12e-6
"""For a file that a walk finds unchanged (benchmarks/bench_index.py: 6 s for 500,000)."""
_CHANGED: Final = 0.02
"""Share of the bytes of an index that a walk finds changed, for want of a better guess."""
_STORED: Final = 0.4
"""Share of its length that content takes in packs (README, "Beside its peers": 0.28 to 0.4)."""

KnownAs: TypeAlias = Literal["given", "measured", "assumed"]


@dataclass(frozen=True, slots=True)
class Line:
    """The way to the repository: ``bytes_per_second`` and how that is known; ``metered``: paid for by the byte."""

    bytes_per_second: float
    known: KnownAs
    metered: bool = False

    @classmethod
    def of(
        cls, given: float | None, limit: float | None, measured: tuple[int, float], *, metered: bool = False
    ) -> Line:
        """Return what is known: a rate that was ``given``, else one ``measured`` (bytes, seconds), else the usual one;
        never above a ``limit``."""
        size, seconds = measured
        rate, known = ASSUMED_BANDWIDTH, "assumed"
        if given is not None:
            rate, known = given, "given"
        elif size >= _LEAST_MEASURED and seconds > 0:
            rate, known = min(size / seconds, _MOST_BELIEVED), "measured"
        if limit is not None and limit < rate:
            rate, known = limit, "given"
        return cls(rate, known, metered)  # type: ignore[arg-type]  # one of the three


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision about ``what``: whether it is ``used``, the bytes that it saves at best, seconds of these on the line,
    seconds that it costs here, and the reason in words."""

    what: str
    used: bool
    saves_bytes: int
    saves_seconds: float
    costs_seconds: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as a JSON object."""
        rounded = {"saves_seconds": round(self.saves_seconds, 3), "costs_seconds": round(self.costs_seconds, 3)}
        return {**asdict(self), **rounded}


class Judge:
    """What decides in one run, by what is known of the line, and what was decided."""

    def __init__(self, bandwidth: float | None, limit: float | None, *, metered: bool) -> None:
        """Take the line's rate if it is known, and the rate that it is limited to, in bytes per second."""
        self._bandwidth, self._limit, self._metered = bandwidth, limit, metered
        self._decisions: list[Decision] = []

    @classmethod
    def of(cls, bandwidth: float | None, limit: float | None, manners: Manners | None, now: float) -> Judge:
        """Return what decides under these manners at an instant, with a limit of rate besides theirs."""
        manners = manners or Manners()
        rate = Pace(limit, manners.schedule).rate(now)
        return cls(bandwidth, rate or limit, metered=manners.metered)

    def again(self) -> Judge:
        """Return one that knows the same and has not decided anything."""
        return Judge(self._bandwidth, self._limit, metered=self._metered)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All decisions so far."""
        return tuple(self._decisions)

    def line(self, measured: tuple[int, float]) -> Line:
        """Return what is known of the line, ``measured`` in bytes and seconds."""
        return Line.of(self._bandwidth, self._limit, measured, metered=self._metered)

    def note(self, decision: Decision) -> bool:
        """Keep a decision; return whether it is in favour."""
        self._decisions.append(decision)
        return decision.used


def decide(what: str, *, saves_bytes: int, costs_seconds: float, line: Line) -> Decision:
    """Decide by the rule whether something is used that saves ``saves_bytes`` at best."""
    saves = saves_bytes / line.bytes_per_second
    if saves_bytes <= 0:
        used, reason = False, "there is nothing to save"
    elif line.metered:
        used, reason = True, "the line is metered, so every byte counts"
    elif costs_seconds <= saves:
        used, reason = True, "it takes less time than it saves"
    elif costs_seconds <= NEGLIGIBLE:
        used, reason = True, "it takes next to no time"
    elif costs_seconds <= OUT_OF_PROPORTION * saves:
        used, reason = True, f"it takes at most {OUT_OF_PROPORTION:.0f} times what it saves: fewer bytes count more"
    else:
        used, reason = False, f"it takes {costs_seconds / saves:.0f} times what it saves, out of proportion"
    return Decision(what, used, saves_bytes, saves, costs_seconds, reason)


def decide_scan(*, files: int, size: int, sample: int, wanted: int, rate: float | None, line: Line) -> Decision:
    """Decide whether the index of host files is brought up to date, for ``wanted`` bytes that nothing else has.

    The index holds ``files`` of ``size`` bytes; one that is empty is begun with ``sample`` bytes, after which the scan
    goes on only while it finds enough. ``rate``: bytes per second of the last scan, None if there was none.
    """
    read = size * _CHANGED if files else sample
    costs = files * _FILE_SECONDS + read / (rate or READ_RATE)
    return decide("host index", saves_bytes=round(wanted * _STORED), costs_seconds=costs, line=line)


def decide_search(*, name: str, size: int, wanted: int, line: Line) -> Decision:
    """Decide whether a file of ``size`` bytes of data is searched at every offset for ``wanted`` bytes that no other
    source has."""
    saves = round(min(size, wanted) * _STORED)
    return decide(f"search of {name} at any offset", saves_bytes=saves, costs_seconds=size / READ_RATE, line=line)


def decide_tools(*, plain: int, stored: int, seconds: float, line: Line) -> Decision:
    """Decide whether deltas are used that compress content again, which takes ``seconds``, and that are ``stored``
    instead of ``plain`` bytes."""
    return decide("compressing again", saves_bytes=plain - stored, costs_seconds=seconds, line=line)


def decide_deltas(*, made: int, plain: int, stored: int, line: Line) -> Decision:
    """Decide whether deltas are used that make ``made`` bytes, and take ``stored`` instead of ``plain``.

    Their bases, about twice as long, are read.
    """
    costs = made / _DECODE_RATE + 2 * made / READ_RATE
    return decide("deltas", saves_bytes=plain - stored, costs_seconds=costs, line=line)


def decide_solid(*, plain: int, stored: int, line: Line) -> Decision:
    """Decide whether solid units are used, which take ``stored`` instead of ``plain`` bytes and start from nothing.

    What they make is about ``plain / 0.4`` bytes.
    """
    costs = plain / _STORED / _DECODE_RATE
    return decide("solid units", saves_bytes=plain - stored, costs_seconds=costs, line=line)
