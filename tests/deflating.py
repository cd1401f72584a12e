"""Deflate in the hands of tests: the slow twin of the predictor, written from FORMAT.md, and streams bit by bit."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

MIN, MAX, GREEDY = 3, 258, 3
"""Bytes in a match; the last level that is greedy."""
LEVELS = {
    1: (4, 4, 8, 4),
    2: (4, 5, 16, 8),
    3: (4, 6, 32, 32),
    4: (4, 4, 16, 16),
    5: (8, 16, 32, 32),
    6: (8, 16, 128, 128),
    7: (8, 32, 128, 256),
    8: (32, 128, 258, 1024),
    9: (32, 258, 258, 4096),
}
"""good, lazy, nice, chain"""


class Token(NamedTuple):
    """A literal (length 0, its byte) or a match (length, distance)."""

    length: int
    value: int


def compressor(level: int, *, gnu: bool = False, memory: int = 8, window: int = 15, strategy: int = 0) -> bytes:
    """Return the three bytes for GNU gzip, or for zlib with these settings."""
    block = 15 if gnu else memory + 6
    return bytes([level | strategy << 4 | gnu << 6, (memory - 1) | window << 4, block])


class Twin:
    """The predictor, for one segment and no corrections: the tokens that a compressor chooses."""

    def __init__(self, data: bytes, by: bytes) -> None:
        self.data, self.level, self.strategy = data, by[0] & 15, by[0] >> 4 & 3
        self.good, self.lazy, self.nice, self.chain = LEVELS[self.level]
        self.farthest = (1 << (by[1] >> 4)) - 262
        self.bits = (by[1] & 15) + 8
        self.chains: dict[int, list[int]] = defaultdict(list)
        self.entered = 0
        moves = max(0, -(-(len(data) - 65536) // 32768))
        held = len(data) - moves * 32768
        self.tail = moves * 32768 + 65275 if by[0] & 64 and 65274 < held < 65535 else len(data)

    def hash(self, at: int) -> int:
        a, b, c = self.data[at : at + 3]
        shift = (self.bits + 2) // 3
        return (a << 2 * shift ^ b << shift ^ c) % (1 << self.bits)

    def enter(self, end: int) -> None:
        for at in range(self.entered, end):
            self.chains[self.hash(at)].append(at)
        self.entered = max(self.entered, end)

    def search(self, at: int, best: int) -> Token:
        """Return the match at ``at`` that has more than ``best`` bytes, or a literal."""
        literal = Token(0, self.data[at])
        most = min(MAX, len(self.data) - at)
        if most < MIN or at >= self.tail:
            return literal
        self.enter(at)
        chain = self.chains[self.hash(at)][:]
        self.enter(at + 1)
        nice, found = min(self.nice, most), literal
        for number, start in enumerate(reversed(chain[-(self.chain // 4 if best >= self.good else self.chain) :])):
            distance = at - start
            if start == 0 or distance > self.farthest or (number and distance == self.farthest) or best >= most:
                break
            length = next((n for n in range(most) if self.data[start + n] != self.data[at + n]), most)
            if length > best:
                best, found = length, Token(length, distance)
                if length >= nice:
                    break
        if self.level > GREEDY and (found.length == MIN and found.value > 4096):
            return literal
        return literal if self.level > GREEDY and self.strategy == 1 and found.length < 6 else found

    def tokens(self) -> list[Token]:
        """Return all tokens."""
        if self.strategy >= 2:
            return self.runs() if self.strategy == 2 else [Token(0, byte) for byte in self.data]
        return self.greedy() if self.level <= GREEDY else self.lazily()

    def greedy(self) -> list[Token]:
        found, at = [], 0
        while at < len(self.data):
            token = self.search(at, MIN - 1)
            found.append(token)
            at += max(1, token.length)
            if token.length and not (token.length <= self.lazy and len(self.data) - at >= MIN):
                self.entered = at
            elif token.length:
                self.enter(at)
        return found

    def lazily(self) -> list[Token]:
        found: list[Token] = []
        at, known = 0, None
        while at < len(self.data):
            token = known or self.search(at, MIN - 1)
            known = None
            if token.length and token.length < self.lazy and at + 1 < len(self.data):
                after = self.search(at + 1, token.length)
                if after.length:
                    token, known = Token(0, self.data[at]), after
            found.append(token)
            at += max(1, token.length)
        return found

    def runs(self) -> list[Token]:
        found, at = [], 0
        while at < len(self.data):
            most = min(MAX, len(self.data) - at)
            length = next((n for n in range(most) if self.data[at + n] != self.data[at - 1]), most) if at else 0
            found.append(Token(length, 1) if length >= MIN else Token(0, self.data[at]))
            at += length if length >= MIN else 1
        return found


class Bits:
    """A stream written bit by bit."""

    def __init__(self) -> None:
        self.value = self.size = 0

    def put(self, value: int, bits: int) -> Bits:
        """Add a number, lowest bit first."""
        self.value |= value << self.size
        self.size += bits
        return self

    def code(self, code: int, bits: int) -> Bits:
        """Add a Huffman code, highest bit first."""
        return self.put(int(f"{code:0{bits}b}"[::-1], 2), bits)

    def literal(self, symbol: int) -> Bits:
        """Add a symbol of a fixed block."""
        if symbol < 144:
            return self.code(48 + symbol, 8)
        if symbol < 256:
            return self.code(400 + symbol - 144, 9)
        return self.code(symbol - 256, 7) if symbol < 280 else self.code(192 + symbol - 280, 8)

    def to_bytes(self, padding: int = 0) -> bytes:
        """Return the stream; ``padding`` fills up its last byte."""
        self.put(padding, -self.size % 8)
        return self.value.to_bytes(self.size // 8, "little")


def deflated(
    pieces: Iterable[bytes],
    *,
    level: int = 6,
    memory: int = 8,
    window: int = 15,
    strategy: int = 0,
    flush: int | Callable[[], int] = zlib.Z_NO_FLUSH,
) -> bytes:
    """Return the raw stream that zlib makes of pieces, flushed behind each."""
    made = zlib.compressobj(level, zlib.DEFLATED, -window, memory, strategy)
    out = b"".join(made.compress(piece) + made.flush(flush() if callable(flush) else flush) for piece in pieces)
    return out + made.flush()
