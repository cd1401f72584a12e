"""Giving way: the rate of a transfer that shall only use what nobody else wants. Pure.

Two signs of others are heeded. The queue that builds up somewhere on the way, as LEDBAT does (RFC 6817): the time to
an answer, less the shortest one of the last ten minutes, is aimed at 100 ms at most; the farther off, the faster the
rate changes, and it never grows while what it allows is not used. And what the network interface carries for others:
they get it, with a tenth of the line on top, and so, if they want more, all of it but for a trickle.
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
_LEAST_FACTOR: Final = 0.5
"""At worst the rate is halved in a step."""
_USED: Final = 0.6
"""Share of the rate that has to be used before it may grow."""
_HEADROOM: Final = 0.1
"""Share of the line that is left free beside others: they are seen to want more when they take it."""
_OVERHEAD: Final = 1.06
"""Bytes on the wire for a byte of content: TLS, TCP, IP and Ethernet."""
_NOISE: Final = 16.0 * 1024
_NOISE_OWN: Final = 0.15
"""Share of our own rate that is not taken for others': what lies in socket buffers is counted late."""
_NOISE_LINE: Final = 0.05
_WINDOW: Final = 4
"""Steps over which others' traffic is averaged."""
_SHORTEST, _LONGEST = 0.25, 2.0
"""Seconds of a step; after a longer gap nothing is concluded."""
_FORGET: Final = 180.0
"""Seconds in which the greatest throughput seen counts half."""
_PROBE_EVERY: Final = 30.0
"""Seconds after which it is tried whether the line carries more than is known, for beside others nobody uses it up."""
_PROBE_STEPS: Final = 3
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
    """The rate, step by step."""

    def __init__(self, totals: Totals) -> None:
        self.rate = _FIRST
        """Bytes per second."""
        self.capacity = 0.0
        """The greatest throughput of the line that was seen lately."""
        self._base = BaseDelay()
        self._steps: deque[Totals] = deque([totals], maxlen=_WINDOW + 1)
        self._queue: float | None = None
        self._measured = 0.0
        self._lowest: float | None = None
        self._probed, self._probing = totals.now, 0

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
            return self.rate
        own = (totals.own - self._steps[-1].own) / seconds
        self._steps.append(totals)
        others = self._others()
        self.capacity = max(own + (others or 0.0), self.capacity * 0.5 ** (seconds / _FORGET))
        self.rate = max(FLOOR, self._grown(own, others is not None, totals.now))
        seen = others is not None and others > max(_NOISE, _NOISE_OWN * own, _NOISE_LINE * self.capacity)
        if others is not None and seen and not self._probes(totals.now):
            self.rate = max(FLOOR, min(self.rate, self.capacity * (1 - _HEADROOM) - others))
        return self.rate

    def _probes(self, now: float) -> bool:
        """Tell whether this step, beside others, is one of those that try for more."""
        if now - self._probed >= _PROBE_EVERY:
            self._probed, self._probing = now, _PROBE_STEPS
        self._probing -= 1
        return self._probing >= 0

    def _grown(self, own: float, sees_others: bool, now: float) -> float:
        """Return the rate after what the queue says; where nothing says anything, it grows at half the pace."""
        off = 1.0 if sees_others else 0.5
        if self._queue is not None and now - self._measured <= _STALE:
            off = 1.0 - self._queue / TARGET
        if off < 0:
            return self.rate * max(_LEAST_FACTOR, 1.0 + off)
        return self.rate * (1.0 + _GAIN * off) if own >= _USED * self.rate else self.rate

    def _others(self) -> float | None:
        """Return the bytes per second that the interface received for others, over the last steps."""
        first, last = self._steps[0], self._steps[-1]
        if first.all is None or last.all is None or last.now <= first.now:
            return None
        return max(0.0, (last.all - first.all) - _OVERHEAD * (last.own - first.own)) / (last.now - first.now)
