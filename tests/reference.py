"""Slow twins of the compiled functions, written from the specification alone: what they say is right by reading.

Nothing here shares code with the package; tests compare the two.
"""

from __future__ import annotations

import json
import struct
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
import zstandard
from blake3 import blake3

BLOCK = 4096


class Block(NamedTuple):
    """What the cut rule knows of one 4 KiB block."""

    mixed: int
    zero: bool
    zero_tail: bool


class Record(NamedTuple):
    """A record of a region: a chunk or a zero record, ``length`` in blocks or bytes as the function says."""

    length: int
    zero: bool


def blocks_of(data: bytes) -> list[Block]:
    """Return what the cut rule knows of every block of ``data``; a short last one is padded with zeros."""
    found = []
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK].ljust(BLOCK, b"\0")
        h = xxhash.xxh3_64_intdigest(block)
        mixed = ((h ^ (h >> 31)) * 0x9E3779B97F4A7C15 % 2**64) >> 32
        zero = not any(block)
        found.append(Block(mixed, zero, not zero and block.endswith(bytes(16))))
    return found


def cut_blocks(blocks: list[Block]) -> list[Record]:
    """Divide a region's blocks into records, lengths in blocks."""
    records: list[Record] = []
    n = 0  # blocks in the open chunk
    groups = [list(group) for _, group in groupby(blocks, key=lambda block: block.zero)]
    for number, group in enumerate(groups):
        at_border = number in (0, len(groups) - 1)
        if group[0].zero and (len(group) >= 4 or n == 0 or at_border):
            if n > 0:
                records.append(Record(n, False))
            records.append(Record(len(group), True))
            n = 0
            continue
        for block in group:
            n += 1
            below = 2**32 // 48 if n < 18 else 2**32 // 12
            if n == 64 or block.zero_tail or block.mixed < below:
                records.append(Record(n, False))
                n = 0
    if n > 0:
        records.append(Record(n, False))
    return records


def cut_disk(region: bytes) -> list[Record]:
    """Divide a region into records, lengths in true bytes (chunker 1)."""
    records, end = [], 0
    for record in cut_blocks(blocks_of(region)):
        start, end = end, end + record.length * BLOCK
        records.append(Record(min(end, len(region)) - start, record.zero))
    return records


# ---- a repository, read as FORMAT.md says


class Row(NamedTuple):
    """A region that is not all zero, and its stored pieces (file, length, offset, check): as in the manifest."""

    content: bytes
    table: bytes
    full: tuple[int, int, int, bytes]
    difference: tuple[int, int, int, bytes]
    fresh: tuple[int, int, int, bytes]
    rest: tuple[int, int, int, bytes]


def read_image(root: Path, image: str, version: str = "") -> bytes:
    """Return the content of a version (the newest by default), every digest on the way compared."""
    folder = root / "images" / image
    head = json.loads((folder / "head.json").read_text())
    data = (folder / (version or head["version"]) / "manifest.bin").read_bytes()
    if version in ("", head["version"]):
        assert blake3(data).hexdigest() == head["manifest_digest"]
    length, segments, files, used, rows = parse_manifest(data, folder)
    parts, contents, waiting = [], [], iter(rows)
    for _, size in segments:
        for at in range(0, size, 64 << 20):
            region = bytes(min(64 << 20, size - at))
            if used.pop(0):
                row = next(waiting)
                region = read_region(root, files, row, len(region))
                assert content_digest(region) == row.content
            contents.append(content_digest(region))
            parts.append(region)
    whole = b"".join(parts)
    numbers = b"".join(struct.pack("<QQ", *segment) for segment in segments)
    digest = blake3(struct.pack("<Q", length) + numbers + b"".join(contents), derive_key_context="trimtransfer 1 image")
    assert (len(whole), digest.digest()) == (length, data[40:72])
    return whole


def content_digest(region: bytes) -> bytes:
    """Return the content digest of a region."""
    return blake3(region, derive_key_context="trimtransfer 1 region").digest()


def parse_manifest(data: bytes, folder: Path) -> tuple[int, list[tuple[int, int]], list[bytes], list[bool], list[Row]]:
    """Return length, segments, content of the referred files, which regions have rows, and the rows."""
    assert blake3(data[:-32]).digest() == data[-32:]
    length, counts, at = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<III", data, 108), 120
    for _ in range(3):
        at += 1 + data[at]
    segments = [struct.unpack_from("<QQ", data, at + 16 * n) for n in range(counts[0])]
    at += 16 * counts[0]
    files = []
    for _ in range(counts[1]):
        kind, size, digest, name = struct.unpack_from("<B3xQ32sB", data, at)
        version = data[at + 45 : at + 45 + name].decode()
        files.append((folder / version / ("tables.bin", "locations.bin", "keys.bin")[kind - 1]).read_bytes())
        assert (len(files[-1]), blake3(files[-1]).digest()) == (size, digest)
        at += 45 + name
    regions = sum(-(-size // (64 << 20)) for _, size in segments)
    used = [bool(data[at + n // 8] >> n % 8 & 1) for n in range(regions)]
    at += -(-regions // 8)
    rows = []
    for n in range(counts[2]):
        fields = struct.unpack_from("<32s32s" + "HIQ16s" * 4, data, at + 184 * n)
        rows.append(Row(fields[0], fields[1], *(fields[2 + 4 * k : 6 + 4 * k] for k in range(4))))
    assert at + 184 * counts[2] + 32 == len(data)
    return length, segments, files, used, rows


def read_piece(files: list[bytes], ref: tuple[int, int, int, bytes]) -> bytes:
    """Return a stored piece, decompressed."""
    file, length, offset, check = ref
    stored = files[file][offset : offset + length]
    assert blake3(stored).digest()[:16] == check
    return zstandard.ZstdDecompressor().decompress(stored)


def read_region(root: Path, files: list[bytes], row: Row, size: int) -> bytes:
    """Return a region's content: every chunk from where fresh and rest say it is."""
    table = read_piece(files, row.full)
    assert blake3(table, derive_key_context="trimtransfer 1 table").digest() == row.table
    count = int.from_bytes(table[:4], "little")
    records = struct.unpack_from(f"<{count}I", table, 4)
    chunks: dict[int, bytes] = {}
    for ref in (row.fresh, row.rest):
        if ref[1]:
            part = read_chunks(root, read_piece(files, ref), records)
            assert not chunks.keys() & part.keys()
            chunks.update(part)
    parts, digests = [], table[4 + 4 * count :]
    for number, record in enumerate(records):
        if record >> 31:
            parts.append(bytes(record & (1 << 31) - 1))
        else:
            parts.append(chunks.pop(number))
            assert blake3(parts[-1], derive_key_context="trimtransfer 1 chunk").digest() == digests[:32]
            digests = digests[32:]
    assert not chunks
    assert not digests
    assert sum(map(len, parts)) == size
    return b"".join(parts)


def read_chunks(root: Path, part: bytes, records: tuple[int, ...]) -> dict[int, bytes]:
    """Return the chunks that one part of a region's locations locates, by record number."""
    packs, frames, runs = struct.unpack_from("<III", part)
    at = 12 + 36 * packs
    names = [part[12 + 36 * n : 44 + 36 * n].hex() for n in range(packs)]
    columns = [struct.unpack_from(f"<{frames}I", part, at + 4 * frames * k) for k in range(4)]
    at += 16 * frames
    codecs, checks, at = part[at : at + frames], part[at + frames : at + 17 * frames], at + 17 * frames
    contents = []
    for n, (pack, offset, stored, raw) in enumerate(zip(*columns, strict=True)):
        data = (root / "packs" / names[pack][:2] / f"{names[pack]}.bin").read_bytes()[offset : offset + stored]
        assert blake3(data).digest()[:16] == checks[16 * n : 16 * n + 16]
        contents.append(zstandard.ZstdDecompressor().decompress(data) if codecs[n] else data)
        assert len(contents[-1]) == raw
    found = {}
    for record, count, frame, start in zip(
        *(struct.unpack_from(f"<{runs}I", part, at + 4 * runs * k) for k in range(4)), strict=True
    ):
        for number in range(record, record + count):
            found[number] = contents[frame][start : start + records[number]]
            start += records[number]
    return found


# ---- chunker 2: native/search.h ----

SEARCH_LOW = bytes.fromhex("093b16734e4fa091c36789b7cd3797cd")
SEARCH_HIGH = bytes.fromhex("6d354193de609c481cbdc009a4d7a435")


class SearchRule(NamedTuple):
    """The numbers of ``tt_rule``."""

    min: int
    norm: int
    max: int
    strict: int
    loose: int
    level: int


SEARCH_RULES = {
    1 << 10: SearchRule(256, 842, 4096, 2**60 - 1, 2**64 - 1, 111),
    1 << 13: SearchRule(2048, 6737, 32768, 1024819115206086199, 16397105843297379213, 121),
    1 << 16: SearchRule(16384, 53897, 262144, 2**60 - 1, 2**64 - 1, 125),
}
"""By mean chunk length; the package has more."""


def search_candidates(data: bytes, level: int) -> list[bool]:
    """Return which positions are candidates, as if zeros came before the data."""
    b = np.frombuffer(data, np.uint8)

    def earlier(z: np.ndarray, k: int) -> np.ndarray:
        return np.concatenate([np.zeros(k, z.dtype), z])[: len(z)]

    a = (b - earlier(b, 1)) ^ (earlier(b, 2) + earlier(b, 3))
    t = np.array([SEARCH_LOW[value % 16] ^ SEARCH_HIGH[value // 16] for value in range(256)], np.uint8)[a]
    u = t - earlier(t, 5)
    v = u ^ earlier(u, 10)
    w = v + earlier(v, 32)
    x = w ^ earlier(w, 64)
    marked = (x < 128) & (x > level)
    return list((marked & earlier(marked, 11)).tolist())


def search_hash(last: bytes) -> int:
    """Return the hash of a chunk's last 32 bytes."""
    h = 0
    for k in range(0, 32, 8):
        h = (h ^ int.from_bytes(last[k : k + 8], "little")) * 0x9FB21C651E98DF25 % 2**64
        h ^= h >> 32
    h = h * 0xD6E8FEB86659FD93 % 2**64
    return h ^ (h >> 32)


def search(data: bytes, rule: SearchRule, *, final: bool = True) -> list[int]:
    """Return the ends of the chunks of ``data`` (chunker 2)."""
    candidate = search_candidates(data, rule.level)
    ends: list[int] = []
    start = 0
    while start < len(data) and (final or len(data) - start >= rule.max):
        start = search_end(data, candidate, start, rule)
        ends.append(start)
    return ends


def search_end(data: bytes, candidate: list[bool], start: int, rule: SearchRule) -> int:
    """Return where the chunk ends that begins at ``start``."""
    most = min(rule.max, len(data) - start)
    hashes: dict[int, int] = {}  # length -> hash, of the candidates seen
    for n in range(rule.min, most + 1):
        if candidate[start + n - 1]:
            h = search_hash(data[start + n - 32 : start + n])
            if h <= (rule.strict if n < rule.norm else rule.loose):
                return start + n
            hashes[n] = h
    if most == rule.max and hashes:
        return start + min(hashes, key=lambda n: (hashes[n], n))
    return start + most


def cut_bytes(region: bytes, *, mean: int = 1 << 16) -> list[Record]:
    """Divide a region into records, lengths in bytes (chunker 2)."""
    records: list[Record] = []
    start = 0
    for end in search(region, SEARCH_RULES[mean]):
        zero = not any(region[start:end])
        if zero and records and records[-1].zero:
            records[-1] = Record(records[-1].length + end - start, True)
        else:
            records.append(Record(end - start, zero))
        start = end
    return records


# ---- rolling match: native/match.h ----


def window_keys(data: bytes, size: int, *, step: int = 1) -> list[int]:
    """Return the key of the window at every offset of ``data``, or at every ``step``-th."""
    every = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), size)
    windows = every[::step].astype(np.int64)
    low = windows.sum(axis=1) % 2**32
    high = (windows * np.arange(size, 0, -1)).sum(axis=1) % 2**32
    return [(h * 2**32 + n) * 0x9E3779B97F4A7C15 % 2**64 for n, h in zip(low.tolist(), high.tolist(), strict=True)]


def find_blocks(table: bytes, size: int, data: bytes) -> list[tuple[int, int]]:
    """Return offsets in ``data`` and numbers of the blocks of ``table`` that lie there, found from left to right."""
    first: dict[bytes, int] = {}
    for index in range(len(table) // size):
        first.setdefault(table[index * size : (index + 1) * size], index)
    found, at = [], 0
    while at + size <= len(data):
        index = first.get(data[at : at + size], -1)
        if index >= 0:
            found.append((at, index))
        at += size if index >= 0 else 1
    return found


# ---- deltas: FORMAT.md, "Delta" ----


class Words:
    """What is kept of changed words to foresee others."""

    def __init__(self) -> None:
        self.fine: dict[int, tuple[int, int]] = {}
        self.coarse: dict[int, tuple[int, int]] = {}
        self.trust: dict[bytes, int] = {}

    def foreseen(self, base: bytes, f: int, t: int) -> dict[int, int]:
        """Return the differences that the fine (0) and the coarse memory (1) have for the word at base byte ``f``."""
        named = (int.from_bytes(base[f : f + 4], "little") + f) % 2**32
        held = [self.fine.get(self._entry(named >> 6, 16)), self.coarse.get(self._entry(named >> 14, 18))]
        keys = [named >> 6, named >> 14]
        pairs = enumerate(zip(held, keys, strict=True))
        return {mark: (entry[1] - (t - f)) % 2**32 for mark, (entry, key) in pairs if entry and entry[0] == key}

    def site(self, base: bytes, f: int, t: int) -> int:
        """Return the difference that is expected of a word, or 0 if it is no site."""
        if f < 2 or self.trust.get(base[f - 2 : f], 0) < 2:
            return 0
        return next(iter(self.foreseen(base, f, t).values()), 0)

    def keep(self, base: bytes, f: int, t: int, difference: int) -> None:
        """A word that changed by ``difference``."""
        named, moved = (int.from_bytes(base[f : f + 4], "little") + f) % 2**32, (difference + t - f) % 2**32
        self.fine[self._entry(named >> 6, 16)] = (named >> 6, moved)
        self.coarse[self._entry(named >> 14, 18)] = (named >> 14, moved)
        if f >= 2:
            self.trust[base[f - 2 : f]] = min(15, self.trust.get(base[f - 2 : f], 0) + 1)

    def forget(self, base: bytes, f: int) -> None:
        """A false site."""
        named = (int.from_bytes(base[f : f + 4], "little") + f) % 2**32
        self.fine.pop(self._entry(named >> 6, 16), None)
        self.trust[base[f - 2 : f]] //= 2

    def _entry(self, key: int, shift: int) -> int:
        return key * 0x9E3779B1 % 2**32 >> shift


def delta_columns(delta: bytes) -> tuple[bool, int, int, list[bytes]]:
    """Return whether sites are used, the lengths of base and target, and the plain columns."""
    magic, version, sites, zero, base, length = struct.unpack_from("<8sHBBQQ", delta)
    assert (magic, version, zero) == (b"TrimDelt", 1, 0)
    at, columns = 156, []
    for plain, stored in struct.iter_unpack("<QQ", delta[28:156]):
        column = delta[at : at + stored]
        columns.append(column if plain == stored else zstandard.ZstdDecompressor().decompress(column))
        assert len(columns[-1]) == plain
        at += stored
    assert at == len(delta)
    return bool(sites), base, length, columns


def delta_numbers(column: bytes) -> list[int]:
    """Return the numbers of a column."""
    found, value, shift = [], 0, 0
    for byte in column:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    assert shift == 0
    return found


def delta_signed(number: int) -> int:
    """Return the signed number that is written as ``number``."""
    return number // 2 if number % 2 == 0 else -(number + 1) // 2


def apply_delta(delta: bytes, base: bytes) -> bytes:
    """Return the target, byte by byte; any assertion or other error means that this is no delta of that base."""
    sites, base_length, length, columns = delta_columns(delta)
    assert base_length == len(base)
    copies, literals, moves, gaps, false, values = (delta_numbers(columns[k]) for k in (0, 1, 2, 3, 4, 6))
    marks, rest, target, end, words = list(columns[5]), columns[7], bytearray(), 0, Words()
    quiet = taken = 0
    for copied, literal, move in zip(copies, literals, moves, strict=True):
        f = end + delta_signed(move)
        end = f + copied
        assert 0 <= f <= end <= len(base)
        while f < end:
            t = len(target)
            width = min(4, end - f)
            difference = words.site(base, f, t) if sites and width == 4 else 0
            if difference and false[:1] != [taken]:
                taken += 1
            else:
                if difference:
                    words.forget(base, f)
                    taken = 0
                    del false[0]
                if gaps[:1] != [quiet]:
                    quiet += 1
                    target.append(base[f])
                    f += 1
                    continue
                mark = marks.pop(0) if sites and width == 4 else 2
                difference = delta_signed(values.pop(0)) if mark == 2 else words.foreseen(base, f, t)[mark]
                quiet = 0
                del gaps[0]
            if sites and width == 4:
                words.keep(base, f, t, difference)
            word = (int.from_bytes(base[f : f + width], "little") + difference) % 2 ** (8 * width)
            target += word.to_bytes(width, "little")
            f += width
        assert len(rest) >= literal
        target, rest = target + rest[:literal], rest[literal:]
    assert not any([gaps, false, values, marks, rest])
    assert len(target) == length
    return bytes(target)
