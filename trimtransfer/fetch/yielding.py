"""Giving way: the rate of a transfer that shall only use what nobody else wants. Pure.

Two signs of others are heeded. The queue that builds up somewhere on the way, as LEDBAT does (RFC 6817): the time to
an answer, less the shortest one of the last ten minutes, is aimed at 100 ms at most; the farther off, the faster the
rate changes, and it never grows while what it allows is not used. And what the network interface carries for others:
they get it, with a quarter of the line on top, and so, if they want more, all of it but for a trickle. A tenth is left
free even on an idle line, else whoever comes would find a queue of ours and need long to be noticed. What the line
carries is the greatest throughput of late; twice a minute it is tried whether it carries more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

TARGET: Final = 0.1
"""Seconds of queue to aim at (RFC 6817 section 2.5: at most 100 ms)."""
FLOOR: Final = 16.0 * 1024
"""Bytes per second that are always taken: the transfer ends one day, and notices when the line is free again."""
_FIRST: Final = 256.0 * 1024
_GAIN: Final = 0.5
"""Share of the rate by which it grows in a step on an idle line."""
_REGAIN: Final = 1.0
"""The same below half of what is known to be free."""
_LEAST_FACTOR: Final = 0.5
"""At worst the rate is halved in a step."""
_USED: Final = 0.35
"""Share of the rate that has to be used before it may grow: of one that doubles in each step, the mean of the last four
is 0.47."""
_UNUSED: Final = 2.2
"""How many times the throughput a growing rate is when the line carries no more: one that grows by a half is 1.7."""
_HEADROOM: Final = 0.1
"""Share of the line that is left free: so there is no queue, and whoever comes is seen at once."""
_HEADROOM_BESIDE: Final = 0.25
"""The same beside others: who wants more takes that much in every step, and so gets all within some seconds."""
_SHORT_QUEUE: Final = 0.5
"""Share of ``TARGET`` from which on a line that is not known yet counts as full."""
_OVERHEAD: Final = 1.06
"""Bytes on the wire for a byte of content: TLS, TCP, IP and Ethernet."""
_NOISE: Final = 16.0 * 1024
_NOISE_OWN: Final = 0.06
"""Share of our own rate that is not taken for others', as overheads differ: less than ``_HEADROOM``, or whoever fills
that would not be seen."""
_NOISE_GROWING: Final = 0.15
"""The same until the line is known: a rate that grows fills socket buffers, and what lies in them is counted late."""
_NOISE_LINE: Final = 0.05
_WINDOW: Final = 4
"""Steps over which throughput is averaged."""
_SHORTEST, _LONGEST = 0.25, 2.0
"""Seconds of a step; after a longer gap nothing is concluded."""
_PROBE_EVERY: Final = 30.0
"""Seconds after which it is tried whether the line carries more than is known."""
_PROBE_STEPS: Final = _WINDOW + 1
_PERIODS: Final = 3
"""Such times for which the greatest throughput seen is taken for what the line carries."""
_MINUTES: Final = 10
"""Length of the history of shortest answers (RFC 6817: BASE_HISTORY)."""
_STALE: Final = 5.0
"""Seconds for which a measured delay tells about the present."""


class BaseDelay:
    """The shortest delay of the last ten minutes, minute by minute."""

    def __init__(self) -> None:
        self._minutes: deque[tuple[int, float]] = deque(maxlen=_MINUTES)

    def add(self, delay: float, now: float) -> float:
        """Add a measurement, in seconds; return by how much it is above the shortest."""
        minute = int(now // 60)
        while self._minutes and self._minutes[0][0] <= minute - _MINUTES:
            self._minutes.popleft()
        if self._minutes and self._minutes[-1][0] == minute:
            delay_then = self._minutes.pop()[1]
            self._minutes.append((minute, min(delay_then, delay)))
        else:
            self._minutes.append((minute, delay))
        return delay - min(one for _, one in self._minutes)


@dataclass(frozen=True, slots=True)
class Totals:
    """What has been counted up to ``now`` (monotonic seconds): ``own`` bytes of content, and ``all`` bytes that the
    interface received (None: unknown)."""

    now: float
    own: int
    all: int | None


class Yielding:
    """The rate, step by step: it grows until the line is known, and then stays below what others leave of that."""

    def __init__(self, totals: Totals) -> None:
        self.rate = _FIRST
        """Bytes per second."""
        self._base = BaseDelay()
        self._steps: deque[Totals] = deque([totals], maxlen=_WINDOW + 1)
        self._queue: float | None = None
        self._measured = 0.0
        self._lowest: float | None = None
        self._greatest: deque[float] = deque([0.0], maxlen=_PERIODS)
        self._known = False
        self._probed, self._probing = totals.now, 0

    @property
    def capacity(self) -> float:
        """The greatest throughput of the line that was seen lately, in bytes per second."""
        return max(self._greatest)

    def delayed(self, seconds: float) -> None:
        """Note how long an answer took to begin; of those in a step the shortest counts (CURRENT_FILTER)."""
        self._lowest = seconds if self._lowest is None else min(self._lowest, seconds)

    def step(self, totals: Totals) -> float:
        """Return the rate to go on with."""
        seconds = totals.now - self._steps[-1].now
        if seconds < _SHORTEST:
            return self.rate
        if self._lowest is not None:
            self._queue, self._measured = self._base.add(self._lowest, totals.now), totals.now
            self._lowest = None
        if seconds > _LONGEST:
            self._steps.clear()
        self._steps.append(totals)
        if len(self._steps) > 1:
            self._decide(totals.now)
        return self.rate

    def _decide(self, now: float) -> None:
        own, whole = self._throughput()
        others = None if whole is None else max(0.0, whole - own)
        probes = self._probes(now, others or 0.0)
        if len(self._steps) > _WINDOW:
            self._greatest[-1] = max(self._greatest[-1], own if whole is None else whole)
        off = self._off_target(others is not None, now)
        if off < _SHORT_QUEUE or (len(self._steps) > _WINDOW and self.rate > _UNUSED * own):
            self._known = self.capacity > 0
        noise = _NOISE_OWN if self._known else _NOISE_GROWING
        if others is not None and others <= max(_NOISE, noise * own, _NOISE_LINE * self.capacity):
            others = 0.0
        headroom = _HEADROOM_BESIDE if others else _HEADROOM
        free = max(FLOOR, (1 - headroom) * self.capacity - (others or 0.0))
        gain = _REGAIN if self._known and self.rate < free / 2 else _GAIN
        if off < 0:
            self.rate *= max(_LEAST_FACTOR, 1.0 + off)
        elif own >= _USED * self.rate:
            self.rate *= 1.0 + gain * off
        if (self._known or others) and not probes:
            self.rate = min(self.rate, free)
        self.rate = max(FLOOR, self.rate)

    def _off_target(self, sees_others: bool, now: float) -> float:
        """Return how far the queue is below its target, as a share of it (RFC 6817); what is not known is no queue,
        half as surely where others cannot be seen either."""
        if self._queue is not None and now - self._measured <= _STALE:
            return 1.0 - self._queue / TARGET
        return 1.0 if sees_others else 0.5

    def _probes(self, now: float, others: float) -> bool:
        """Tell whether this step is one of those that try for more than is known; not while others want most of it."""
        if now - self._probed >= _PROBE_EVERY and others <= self.capacity / 2:
            self._probed, self._probing = now, _PROBE_STEPS
            self._greatest.append(0.0)
        self._probing -= 1
        return self._probing >= 0

    def _throughput(self) -> tuple[float, float | None]:
        """Return the bytes of content per second over the last steps: our own, and those that the interface brought
        for all, if known. These cannot be more than the line carries; ours can, out of the sockets' buffers."""
        first, last = self._steps[0], self._steps[-1]
        seconds, own = last.now - first.now, last.own - first.own
        if first.all is None or last.all is None:
            return own / seconds, None
        return own / seconds, (last.all - first.all) / _OVERHEAD / seconds
