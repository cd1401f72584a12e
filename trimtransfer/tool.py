"""Tools: outside compressors, with their parameters, that compress content again (FORMAT.md, "Tool").

Other than deflate ("Recompression"), how liblzma and libzstd choose is not part of any format: another release of the
library may make other bytes. So a tool is only used where a publisher has seen it make the very same ones, what it
makes is compared with digests wherever it is used, and a *probe* - what it makes of a text that everybody can write
down - tells an environment beforehand whether it should try.
"""

from __future__ import annotations

import contextlib
import lzma
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import Any, Final

import numpy as np
import zstandard
from blake3 import blake3

from trimtransfer import systemzstd, zstdjobs
from trimtransfer.chunk import Bytes, object_check
from trimtransfer.errors import FormatError

TOOL_SIZE: Final = 5
MAX_MEMORY: Final = 104 << 20
"""Bytes that a tool may take beside content and result: xz -6 does so, and zstd -19 for 12 MiB."""
_LIGHT: Final = 24 << 20
"""A tool that takes more is at work alone in a process."""
_heavy = threading.Lock()
_WHAT: Final = "tool"
_X86: Final = 4
_BCJ: Final = {4: lzma.FILTER_X86, 5: lzma.FILTER_POWERPC, 6: lzma.FILTER_IA64, 7: lzma.FILTER_ARM,
               8: lzma.FILTER_ARMTHUMB, 9: lzma.FILTER_SPARC}  # fmt: skip
_LZMA2: Final = (
    (lzma.MODE_FAST, lzma.MF_HC3, 128, 4),
    (lzma.MODE_FAST, lzma.MF_HC4, 128, 8),
    (lzma.MODE_FAST, lzma.MF_HC4, 273, 24),
    (lzma.MODE_FAST, lzma.MF_HC4, 273, 48),
    (lzma.MODE_NORMAL, lzma.MF_BT4, 16, 0),
    (lzma.MODE_NORMAL, lzma.MF_BT4, 32, 0),
    (lzma.MODE_NORMAL, lzma.MF_BT4, 64, 0),
    (lzma.MODE_NORMAL, lzma.MF_BT4, 192, 0),
    (lzma.MODE_NORMAL, lzma.MF_BT4, 273, 512),
)
"""Mode, match finder, length that suffices and depth of each profile: those of xz's levels 0 to 6 (7 to 9 differ from 6
in their dictionaries only), 3e or 5e, and the other extreme ones."""
_LZMA2_RATES: Final = (13.6, 11.0, 10.3, 9.3, 4.7, 3.5, 3.0, 3.0, 2.8)
_ZSTD_RATES: Final = (315, 285, 222, 173, 95, 71, 60, 48, 40, 30, 21, 18, 13, 9.4, 9, 5.8, 5, 4.2, 3, 2.8, 2.7, 2.7)
"""Megabytes of content per second that one core of a usual machine compresses, by profile and level
(benchmarks/bench_members.py)."""
TREES: Final = 4
"""Profiles from this one on search in trees, which find the same with any dictionary that holds the content."""
FITTING: Final = 41
"""In the place of a dictionary: the least one of a power of two that holds the content."""


_PIECE: Final = 1 << 17
_BUFFER: Final = 9 << 20
"""Bytes that libzstd keeps of what it is given, where it does not see all: a window of 8 MiB at most, and some more."""


class Kind(IntEnum):
    """What a tool makes."""

    LZMA2 = 1
    """The payload of a block of an xz file (The .xz File Format 1.2, section 3.2), by liblzma."""
    ZSTD = 2
    """A zstd frame (RFC 8878), by the libzstd that this program comes with."""
    SYSTEM_ZSTD = 3
    """The same by the libzstd that the system has, which may be another release."""


class Zstd(IntEnum):
    """How libzstd is called, as bits."""

    SIZE = 1
    """The frame declares the size of its content, which is known before."""
    CHECKSUM = 2
    WORKERS = 4
    """In jobs, as by several threads: what comes of it is the same for any number of them."""
    STREAMED = 8
    """Piece by piece, of 128 KiB."""
    JOBS = 16
    """No frame, but some jobs of one (:mod:`trimtransfer.zstdjobs`): their blocks."""
    ENDS = 32
    """The last of these jobs ends its frame."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A compressor with its parameters. LZMA2: ``level`` is the profile, ``window`` the dictionary as xz codes it
    or ``FITTING``, ``option`` the id of a filter before it or 0, ``props`` lc + 9 * (lp + 5 * pb). zstd: ``level``,
    ``option`` bits of :class:`Zstd`; ``window``, of jobs, that 2^window bytes of the content are what lies before them,
    0 for those that begin a frame; else 0."""

    kind: Kind
    level: int
    window: int
    option: int
    props: int = 0

    @classmethod
    def from_bytes(cls, stored: bytes) -> Tool:
        """Parse the stored form, ``TOOL_SIZE`` bytes.

        Raises:
            FormatError: not that of a tool that is known here.
        """
        kind, level, window, option, props = stored
        if kind == Kind.LZMA2:
            good = level < len(_LZMA2) and window <= FITTING and (option == 0 or option in _BCJ) and _literals(props)
        else:
            good = kind in (Kind.ZSTD, Kind.SYSTEM_ZSTD) and 1 <= level <= 22 and _is_way(option, window) and not props
        if not good:
            raise FormatError(_WHAT, 0, "a tool (an unknown one needs a newer program)", stored.hex())
        return cls(Kind(kind), level, window, option, props)

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        return bytes((self.kind, self.level, self.window, self.option, self.props))

    def memory(self, size: int) -> int:
        """Return about how many bytes it takes for ``size`` bytes of content, beside these and the result."""
        if self.kind is Kind.LZMA2:
            per_byte = 11.5 if self.level >= TREES else 7.5
            return int(self._dictionary(size) * per_byte) + (2 << 20)
        if self.option & Zstd.JOBS:
            parameters = zstandard.ZstdCompressionParameters.from_level(self.level)
            job = zstdjobs.job_size(parameters.window_log)
            return parameters.estimated_compression_context_size() + min(size, 3 * job) + min(size, job)
        known = size if self.option & Zstd.SIZE else 0
        parameters = zstandard.ZstdCompressionParameters.from_level(self.level, source_size=known)
        buffered = not known or self.option & (Zstd.WORKERS | Zstd.STREAMED)
        return parameters.estimated_compression_context_size() + (max(size, _BUFFER) if buffered else 0)

    def seconds(self, size: int) -> float:
        """Return about how long a core takes for ``size`` bytes of content."""
        rates = _LZMA2_RATES[self.level] if self.kind is Kind.LZMA2 else _ZSTD_RATES[self.level - 1]
        return size / (rates * 1e6)

    def compress(self, content: Bytes) -> bytes:
        """Return what this environment's library makes of ``content``.

        Raises:
            FormatError: it refuses, or it would take more than ``MAX_MEMORY``.
        """
        view = memoryview(content).cast("B")
        needs = self.memory(len(view))
        if needs > MAX_MEMORY:
            raise FormatError(_WHAT, "memory", f"at most {MAX_MEMORY} bytes", needs)
        try:
            with _heavy if needs > _LIGHT else contextlib.nullcontext():
                return self._packed(view) if self.kind is Kind.LZMA2 else self._zstd(view)
        except (lzma.LZMAError, zstandard.ZstdError, ValueError) as error:
            raise FormatError(_WHAT, self.to_bytes().hex(), "a compressor of this environment", str(error)) from error

    def beginning(self, content: Bytes, size: int) -> bytes:
        """Return about what it makes of the first ``size`` bytes where all of ``content`` is to follow; raises what
        :meth:`compress` raises. For ruling tools out: sizes that stand in front, and the end, are others."""
        view = memoryview(content).cast("B")
        if self.kind is Kind.LZMA2 or self.option & Zstd.JOBS:
            return self.compress(view[: self.before + size])
        if self.kind is Kind.SYSTEM_ZSTD:
            return systemzstd.beginning(view, self.level, size, **self._how())
        known = len(view) if self.option & Zstd.SIZE else -1
        stream = self._compressor().compressobj(size=known)
        return stream.compress(view[:size]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    @property
    def before(self) -> int:
        """Bytes of the content that are not made, but lie before what is."""
        return 1 << self.window if self.kind is not Kind.LZMA2 and self.window else 0

    def _packed(self, view: memoryview) -> bytes:
        return lzma.compress(view, lzma.FORMAT_RAW, filters=_filters(self.option, self._lzma2(len(view))))

    def _dictionary(self, size: int) -> int:
        return dictionary(least_dictionary(size) if self.window == FITTING else self.window)

    def _lzma2(self, size: int) -> dict[str, Any]:
        mode, finder, nice, depth = _LZMA2[self.level]
        props, lc = divmod(self.props, 9)
        model = {"dict_size": self._dictionary(size), "lc": lc, "lp": props % 5, "pb": props // 5}
        return model | {"mode": mode, "mf": finder, "nice_len": nice, "depth": depth}

    def _how(self) -> dict[str, bool]:
        return {
            "size": bool(self.option & Zstd.SIZE),
            "checksum": bool(self.option & Zstd.CHECKSUM),
            "jobs": bool(self.option & Zstd.WORKERS),
            "streamed": bool(self.option & Zstd.STREAMED),
        }

    def _compressor(self) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(
            level=self.level,
            write_content_size=bool(self.option & Zstd.SIZE),
            write_checksum=bool(self.option & Zstd.CHECKSUM),
            threads=1 if self.option & Zstd.WORKERS else 0,
        )

    def _jobs(self, view: memoryview) -> bytes:
        if len(view) <= self.before:
            raise FormatError(_WHAT, "content", f"more than {self.before} bytes", len(view))
        make = systemzstd.compress_jobs if self.kind is Kind.SYSTEM_ZSTD else zstdjobs.compress
        return make(view, self.level, before=self.before, ends=bool(self.option & Zstd.ENDS))

    def _zstd(self, view: memoryview) -> bytes:
        if self.option & Zstd.JOBS:
            return self._jobs(view)
        if self.kind is Kind.SYSTEM_ZSTD:
            return systemzstd.compress(view, self.level, **self._how())
        compressor, known = self._compressor(), bool(self.option & Zstd.SIZE)
        if known and not self.option & Zstd.STREAMED:
            return compressor.compress(view)
        stream = compressor.compressobj(size=len(view) if known else -1)
        pieces = (view[at : at + _PIECE] for at in range(0, len(view), _PIECE))
        return b"".join((*map(stream.compress, pieces), stream.flush()))


def dictionary(code: int) -> int:
    """Return the size of a dictionary as xz codes it, 0 to 40."""
    return 0xFFFFFFFF if code >= 40 else (2 | code & 1) << code // 2 + 11


def least_dictionary(size: int) -> int:
    """Return the code of the smallest dictionary of a power of two that holds ``size`` bytes."""
    return 2 * max(0, max(1, size - 1).bit_length() - 12)


def _literals(props: int) -> bool:
    """Tell whether liblzma takes these: LZMA2 has at most four bits of context for literals."""
    return props < 225 and props % 9 + props // 9 % 5 <= 4


def _is_way(option: int, window: int) -> bool:
    """Tell whether libzstd can be called in this way."""
    if option & Zstd.JOBS:
        return option & ~Zstd.ENDS == Zstd.JOBS and (window == 0 or 10 <= window <= zstdjobs.MAX_OVERLAP)
    return option < Zstd.JOBS and window == 0


def _filters(before: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    last = {"id": lzma.FILTER_LZMA2, **options}
    return [{"id": _BCJ[before]}, last] if before else [last]


def is_filter(number: int) -> bool:
    """Tell whether a filter of xz can stand before LZMA2 here: those for machine code."""
    return number in _BCJ


def decompress(kind: Kind, before: int, stored: Bytes, limit: int) -> bytes:
    """Return the content, of at most ``limit`` bytes, of what a tool of this kind made; with a filter ``before`` LZMA2.

    Memory: the result, and up to twice as much.

    Raises:
        FormatError: it is no such thing, or has more content.
    """
    try:
        return _unpacked(before, stored, limit) if kind is Kind.LZMA2 else _unframed(stored, limit)
    except (lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError) as error:
        raise FormatError("compressed member", 0, f"what {kind.name} makes", str(error)) from error


def _unpacked(before: int, stored: Bytes, limit: int) -> bytes:
    """Decode LZMA2; a dictionary that holds the content suffices, whatever size was declared for it."""
    options = {"dict_size": dictionary(least_dictionary(limit))}
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(before, options))
    parts, left, data = list[bytes](), limit, bytes(stored)
    while not decoder.eof:
        part = decoder.decompress(data, max_length=left + 1)
        data, left = b"", left - len(part)
        parts.append(part)
        if left < 0 or (not part and not decoder.eof):
            raise FormatError("compressed member", 0, f"at most {limit} bytes, up to an end", "more, or no end")
    if decoder.unused_data:
        raise FormatError("compressed member", 0, "its end", f"{len(decoder.unused_data)} bytes more")
    return b"".join(parts)


def _unframed(stored: Bytes, limit: int) -> bytes:
    declared = zstandard.frame_content_size(stored)
    if declared > limit or limit == 0:
        raise FormatError("compressed member", 0, f"at most {limit} bytes", declared)
    return zstandard.ZstdDecompressor().decompress(stored, max_output_size=limit, allow_extra_data=False)


@cache
def probe(tool: Tool) -> bytes:
    """Return the check of what a tool makes here of the text of probes: environments that agree on it make, as far as
    one can tell in milliseconds, the same of other content. Nothing is returned if it makes nothing."""
    text = _text()[: 1 << 16] if tool.kind is Kind.LZMA2 else _text()
    if tool.before > _PIECE:  # the text is short
        tool = replace(tool, window=_PIECE.bit_length() - 1)
    try:
        return object_check(tool.compress(text))
    except FormatError:
        return b""


def usable(tools: Iterable[tuple[bytes, bytes]]) -> int:
    """Return which of some tools, each as it is stored and with what a publisher's :func:`probe` returned, are known
    here and do the same: bit n for the n-th."""
    found = 0
    for number, (stored, check) in enumerate(tools):
        with contextlib.suppress(FormatError):
            found |= (probe(Tool.from_bytes(stored)) == check) << number
    return found


@cache
def _text() -> bytes:
    """Return the text of probes (FORMAT.md, "Tool"): words that are the likelier the lower their number."""
    numbers = np.frombuffer(blake3(b"Trim Transfer probe: text").digest(length=2 * 65_536), "<u2").astype(np.uint32)
    letters = blake3(b"Trim Transfer probe: words").digest(length=8 * 1024)
    words = [letters[8 * word : 8 * word + 2 + word % 7] for word in range(1024)]
    return b"".join([words[number] for number in (numbers * numbers >> np.uint32(22)).tolist()])
